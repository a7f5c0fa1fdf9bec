#!/bin/bash
# A spare that goes bad itself: slots, replicas, all of it for a while.
# kernels: stock (debug)
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 20

modprobe dm-flakey
disk main 8
disk disk 4
data /run/data 64
data /run/other 64
spare=$(blockdev --getsz /dev/disk)
dmsetup create spare --table "0 $spare linear /dev/disk 0"
create r /dev/main /dev/mapper/spare unit_sectors 8
dmsetup remove r
u64() { od -An -t u8 -j "$1" -N 8 /dev/disk | tr -d ' '; }
start=$(u64 112) blocks=$(u64 104) areas=("$(u64 136)" "$(u64 144)")
slot() { echo $((start + 8 * $1)); }

# --- Slots

for n in 0 1 3 6; do
	bad disk $(($(slot $n) + n))
done
create r /dev/main /dev/mapper/spare
for n in 0 1 2 3 4; do
	bad main $((1000 + 80 * n)) $((1007 + 80 * n))
done
write() {
	put "$1" /dev/mapper/r 1000
	put "$1" /dev/mapper/r 1080
	put "$1" /dev/mapper/r 1160
	put "$1" /dev/mapper/r 1240
	put "$1" /dev/mapper/r 1320
}
there() {
	for n in 0 1 2 3 4; do
		get /dev/mapper/r $((1000 + 80 * n)) 8 | cmp - <(part "$1" 0 8)
	done
}
check "writes succeed though some slots are bad" write /run/data
check "what was written is read back" there /run/data
check "status counts bad slots, and the others as used" expect "active 5/* 4 5" field r mode slots slots_bad relocated
slots() { message r list | awk '{ print $3 }' | sort -n | xargs; }
check "no entry has a bad slot" expect "2 4 5 7 8" slots
again() {
	dmsetup remove r
	create r /dev/main /dev/mapper/spare
	expect "active 5/* 4 5" field r mode slots slots_bad relocated
	there /run/data
}
check "all that is remembered" again
check "metadata had no errors" expect 0 field r metadata_errors
worn() {
	bad disk $(($(slot 2) + 5))
	put /run/other /dev/mapper/r 1000
	same /run/other /dev/mapper/r 1000
	expect "active 5/* 5 5" field r mode slots slots_bad relocated
}
check "a write to a slot that went bad later goes to another one" worn
write /run/data

# --- One replica

one_replica() {
	bad disk $((areas[1] * 8)) $(((areas[1] + blocks) * 8 - 1))
	bad main 2000
	put /run/data /dev/mapper/r 2000
	same /run/data /dev/mapper/r 2000
	expect "active" field r mode
	(($(field r metadata_errors) > 0))
	dmsetup remove r
	create r /dev/main /dev/mapper/spare
	same /run/data /dev/mapper/r 2000
	there /run/data
}
check "with one replica that cannot be written, entries are made and kept" one_replica
good disk $((areas[1] * 8)) $(((areas[1] + blocks) * 8 - 1))
dmsetup remove r
create r /dev/main /dev/mapper/spare
area() { get /dev/disk $((areas[$1] * 8)) $((blocks * 8)); }
equal() { cmp <(area 0) <(area 1); }
check "and with its sectors good again it is repaired" equal

# --- No replica

no_replica() {
	local area
	for area in "${areas[@]}"; do "$1" disk $((area * 8)) $(((area + blocks) * 8 - 1)); done
}
no_replica bad
bad main 3003
before=$(events r)
degraded() {
	not put /run/data /dev/mapper/r 3000
	expect degraded field r mode
	expect 6 field r relocated
}
check "with no replica that can be written a write over a bad sector fails, and the mode is degraded" degraded
check "an event was raised" test "$(events r)" -gt "$before"
check "entries that were there are served, for reading and writing" eval \
	'there /run/data && put /run/other /dev/mapper/r 1000 && get /dev/mapper/r 1000 8 | cmp - <(part /run/other 0 8)'
check "healthy sectors are written and read" eval 'put /run/other /dev/mapper/r 8000 && same /run/other /dev/mapper/r 8000'
check "sync fails" not message r sync
no_replica good
rearmed() {
	message r sync
	expect active field r mode
	put /run/data /dev/mapper/r 3000
	same /run/data /dev/mapper/r 3000
	expect 7 field r relocated
}
check "once the spare can be written again, sync re-arms" rearmed
put /run/data /dev/mapper/r 1000

# --- A spare that refuses all writes

before=$(field r slots_bad)
load() {
	dmsetup suspend --noflush spare
	dmsetup load spare --table "$1"
	dmsetup resume spare
}
readonly_spare() {
	load "0 $spare flakey /dev/disk 0 0 3600 1 error_writes"
	bad main 4003
	not put /run/data /dev/mapper/r 4000
	expect degraded field r mode
	there /run/data
}
check "a spare that fails all writes: the write fails, the mode is degraded, entries are served" readonly_spare
rearm() {
	load "0 $spare linear /dev/disk 0"
	message r sync
	expect active field r mode
	put /run/data /dev/mapper/r 4000
	same /run/data /dev/mapper/r 4000
}
check "back again, sync re-arms" rearm
check "and its slots were not taken for bad ones" expect "$before" field r slots_bad
gone() {
	load "0 $spare error"
	bad main 5003
	not put /run/data /dev/mapper/r 5000
	not get /dev/mapper/r 1000 1
	put /run/other /dev/mapper/r 8000
	same /run/other /dev/mapper/r 8000
	load "0 $spare linear /dev/disk 0"
	message r sync
	there /run/data
	put /run/data /dev/mapper/r 5000
	same /run/data /dev/mapper/r 5000
}
check "a spare that is gone for a while costs only what it serves, and only so long" gone
last() {
	dmsetup remove r
	create r /dev/main /dev/mapper/spare
	there /run/data
	same /run/data /dev/mapper/r 2000
	same /run/data /dev/mapper/r 3000
	same /run/data /dev/mapper/r 4000
	same /run/data /dev/mapper/r 5000
}
check "after all of it everything acknowledged is there" last
dmsetup remove r
dmsetup remove spare
remove_disk main disk
