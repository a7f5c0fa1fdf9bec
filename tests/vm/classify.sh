#!/bin/bash
# Which errors count as bad sectors, and what a read of a sector known to be lost does.
# kernels: stock (debug)
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
never=(transport timeout reservation nospc protection)
plan $((7 + 2 * (${#never[@]} + 3)))

disk main 8
disk spare 4
data /run/data 8
again() { # FEATURE...: the same devices with other features
	dmsetup remove r
	create r /dev/main /dev/spare "$@"
}

# null_blk fails with an I/O error, which is no medium error.
create r /dev/main /dev/spare bad_on media
bad main 80 87
not_media() {
	not put /run/data /dev/mapper/r 80
	not get /dev/mapper/r 80 8
	expect "" message r list
	expect "active 0 0" field r mode read_errors write_errors
}
check "bad_on media: an I/O error goes up and makes no entry" not_media

again read_retries 0
no_retry() {
	not get /dev/mapper/r 80 8
	expect "" message r list
}
check "read_retries 0: the error goes up and no sector is marked" no_retry

again
unreadable() {
	not get /dev/mapper/r 80 8
	expect "80 pending 0" list r
}
check "a read that fails makes the unit pending" unreadable

good main 80 87
put /run/data /dev/main 80
check "pending_reads retry: when main can read it again, so can we" same /run/data /dev/mapper/r 80

again pending_reads fail
fail() {
	expect "80 pending 0" list r
	not get /dev/mapper/r 80 8
}
check "pending_reads fail: it fails at once" fail

data /run/new 8
written() {
	put /run/new /dev/mapper/r 80
	same /run/new /dev/mapper/r 80
	expect "80 relocated ff" list r
}
check "until it is written again" written
dmsetup remove r
remove_disk main spare

# --- What a SCSI disk says

scsi 16
lower main "$good" 0 16384
lower spare "$good" 16384 16384
put /run/data /dev/mapper/main 80
create r /dev/mapper/main /dev/mapper/spare

# up KIND: commands for main's sectors 80 to 83 fail; the error goes up as it came, and that is all.
up() {
	fault "$1" main 80 4
	fails_with "${sense[$1]#*|}" get /dev/mapper/r 80 8
	fails_with "${sense[$1]#*|}" put /run/data /dev/mapper/r 80
	expect "" message r list
	expect "active 0/* 0 0" field r mode slots read_errors write_errors
	disarm
	put /run/data /dev/mapper/r 80
	same /run/data /dev/mapper/r 80
}
bad_sectors() { # KIND
	fault "$1" main 80 4
	fails_with "No data available" get /dev/mapper/r 80 8
	expect "80 pending 0" list r
	put /run/data /dev/mapper/r 80
	same /run/data /dev/mapper/r 80
	expect "80 relocated ff" list r
	disarm
	same /run/data /dev/mapper/r 80
	message r restore 80
	expect "" list r
	# Its slot is free from the next suspend on.
	dmsetup suspend r
	dmsetup resume r
	message r reset
}
for bad_on in io media; do
	message r set bad_on $bad_on
	for kind in "${never[@]}"; do
		check "bad_on $bad_on: a $kind error goes up as it came and makes no entry" up "$kind"
	done
	for kind in medium ioerr target; do
		if [[ $bad_on == io || $kind == medium ]]; then
			check "bad_on $bad_on: a $kind error means bad sectors" bad_sectors "$kind"
		else
			check "bad_on $bad_on: a $kind error goes up as it came and makes no entry" up "$kind"
		fi
	done
done
offline() {
	message r set bad_on io
	fault gone-offline main 0 16384
	not get /dev/mapper/r 80 8
	not put /run/data /dev/mapper/r 80
	expect "" message r list
	heal main
	soon same /run/data /dev/mapper/r 80
	put /run/data /dev/mapper/r 80
	same /run/data /dev/mapper/r 80
	expect "active 0/*" field r mode slots
}
check "a disk that is offline has no bad sectors" offline
dmsetup remove r
dmsetup remove main spare
rmmod scsi_debug
