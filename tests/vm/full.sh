#!/bin/bash
# With no slot left a write over bad sectors fails as it does without dm-remap, and nothing else suffers.
# kernels: stock (debug)
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 14

disk main 8
disk spare 4
data /run/data 64
data /run/other 64
# Two superblocks, two areas of one block, four slots.
create r /dev/main /dev/spare unit_sectors 8 spare_sectors 64
check "the spare has four slots" expect "0/4" field r slots
for unit in 100 200 300; do
	bad main $((unit * 8 + 3))
	put /run/data /dev/mapper/r $((unit * 8))
done
check "three of them get used" expect "active 3/4" field r mode slots
before=$(events r)
# One slot for two bad units of one write.
bad main 4003
bad main 4019
check "the write that finds none fails" not put /run/data /dev/mapper/r 4000
with_eio() {
	not put /run/data /dev/mapper/r 4000 2>/run/error
	grep "Input/output error" /run/error
}
check "with an I/O error" with_eio
check "the mode is full, all slots are used" expect "full 4/4" field r mode slots
check "an event was raised" test "$(events r)" -gt "$before"
check "the log says so" eval 'dmesg | grep "mode is now full"'
older() {
	local unit
	for unit in 100 200 300; do
		same /run/data /dev/mapper/r $((unit * 8))
	done
}
check "what was written before is still right" older
rewrite() {
	local unit
	for unit in 100 200 300; do
		put /run/other /dev/mapper/r $((unit * 8))
		same /run/other /dev/mapper/r $((unit * 8))
		put /run/data /dev/mapper/r $((unit * 8))
	done
}
check "units that have a slot can be written again" rewrite
check "healthy sectors are written and read" eval 'put /run/other /dev/mapper/r 8000 && same /run/other /dev/mapper/r 8000'
check "reading a bad sector without a slot fails" not get /dev/mapper/r 4019 1
check "sync works" message r sync
back() {
	dmsetup remove r
	create r /dev/main /dev/spare spare_sectors 64
	expect "full 4/4" field r mode slots
	older
}
check "remove and create work, and the device is as it was" back
larger() {
	good main 4019
	put /run/other /dev/mapper/r 4000
	same /run/other /dev/mapper/r 4000
}
check "the write that failed succeeds once its sector is good again" larger
dmsetup remove r
remove_disk main spare
