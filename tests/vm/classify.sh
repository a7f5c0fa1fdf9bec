#!/bin/bash
# Which errors count as bad sectors, and what a read of a sector known to be lost does.
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 6

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
