#!/bin/bash
# A replica that missed a write is not taken for the table, even while it is the only one that can be read.
# kernels: stock (debug)
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 9

modprobe dm-delay
disk main 32
disk spare 24
data /run/data 2048
data /run/sector 1
create r /dev/main /dev/spare unit_sectors 8
u64() { od -An -t u8 -j "$1" -N 8 /dev/spare | tr -d ' '; }
first=$(($(u64 136) * 8)) second=$(($(u64 144) * 8))
get /dev/spare "$first" 8 >/run/blank

# Slot 0, in table block 0, holds one sector of its unit. More entries than a block has records follow.
bad main 80
put /run/sector /dev/mapper/r 80
alike() { cmp <(get /dev/spare "$first" 8) <(get /dev/spare "$second" 8); }
blank_still() { cmp <(get /dev/spare "$first" 8) /run/blank; }
written() {
	alike
	not blank_still
}
check "a commit reaches both replicas" written
bad main 8000 9999
put /run/data /dev/mapper/r 8000
# The second replica of block 0 misses the write that gives the unit one more sector.
bad spare "$second" $((second + 7))
missed() {
	put /run/sector /dev/mapper/r 81
	(($(field r metadata_errors) > 0))
	expect "80 partial 0 3" message r query 80
}
check "a commit that one replica misses succeeds" missed
good spare "$second" $((second + 7))

# Entries in 33 other blocks, so that block 0 is not in memory any more. Then its good replica cannot be read.
message r mark 20000 $((33 * 126 * 8))
bad spare "$first" $((first + 7))
stale() {
	not put /run/sector /dev/mapper/r 82
	expect degraded field r mode
	same /run/sector /dev/mapper/r 80
	same /run/sector /dev/mapper/r 81
}
check "the replica that missed it is not built upon: the write fails, mode degraded" stale
good spare "$first" $((first + 7))
healed() {
	message r sync
	expect active field r mode
	put /run/sector /dev/mapper/r 82
}
check "when the good one can be read again, sync re-arms" healed
again() {
	dmsetup remove r
	create r /dev/main /dev/spare
	expect "80 partial 0 7" message r query 80
	same /run/sector /dev/mapper/r 80
	same /run/sector /dev/mapper/r 81
	same /run/sector /dev/mapper/r 82
	same /run/data /dev/mapper/r 8000
}
check "nothing that was acknowledged is lost" again
check "both replicas are alike again" alike

# The first replica is some writes ahead: the second one missed them. While the first can be neither read nor written the second one is
# the table, and is written on.
ahead() {
	local sector
	get /dev/spare "$second" 8 >/run/before
	for sector in 84 85 86; do put /run/sector /dev/mapper/r $sector; done
	dmsetup remove r
	put /run/before /dev/spare "$second"
	bad spare "$first" $((first + 7))
	create r /dev/main /dev/spare
	put /run/sector /dev/mapper/r 83
	dmsetup remove r
	good spare "$first" $((first + 7))
	create r /dev/main /dev/spare
	expect "80 partial 0 f" message r query 80
	same /run/sector /dev/mapper/r 83
	alike
}
check "a replica that is ahead and comes back is not taken for what was written without it" ahead

# The first replica of the block has a write that the second one missed. A cut may come when the next one is on its way to the first.
torn() {
	local size
	size=$(blockdev --getsz /dev/spare)
	dmsetup remove r
	lower spare /dev/spare 0 "$size"
	create r /dev/main /dev/mapper/spare
	put /run/sector /dev/mapper/r 84
	bad spare "$second" $((second + 7))
	put /run/sector /dev/mapper/r 85
	good spare "$second" $((second + 7))
	# What is written to the first one takes an hour, or until the table is another one.
	patch spare "$first" 8 delay "/dev/spare @ 0 /dev/spare @ 3600000 /dev/spare @ 0"
	put /run/sector /dev/mapper/r 86 &
	soon eval 'dmsetup status spare | grep -q " delay 0 1 0$"'
	get /dev/spare 0 "$size" >/run/cut
	patch spare
	wait $!
	dmsetup remove r
	dmsetup remove spare
	put /run/cut /dev/spare 0
	data /run/garbage 3
	put /run/garbage /dev/spare $((first + 5))
	create r /dev/main /dev/spare
	expect "80 partial 0 7f" message r query 80
	same /run/sector /dev/mapper/r 85
	alike
}
check "a replica that missed a write gets the next one first, so a cut in the other one loses nothing" torn
check "all is removed" eval "dmsetup remove r && rmmod dm-remap"
