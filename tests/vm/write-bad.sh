#!/bin/bash
# A write over bad sectors succeeds, and exactly these sectors move.
# kernels: stock (debug) previous
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 12

disk main 8
disk spare 4
data /run/old 2048
data /run/new 2048
put /run/old /dev/main 2048
# The second is the middle of a unit, the third its end and the next one's start, the last two whole units.
bad main 2051
bad main 2500
bad main 3007 3008
bad main 4000 4007
create r /dev/main /dev/spare unit_sectors 8

# SECTOR MASK of each unit that must move.
units="2048 8
2496 10
3000 80
3008 1
4000 ff"
entries() { expect "$units" eval 'list r | cut -d " " -f 1,3'; }

bytes_on_main() {
	local sector=2048 bad
	for bad in 2051 2500 3007 4000; do
		get /dev/main $sector $((bad - sector)) | cmp - <(part /run/new $((sector - 2048)) $((bad - sector)))
		case $bad in 3007) sector=3009 ;; 4000) sector=4008 ;; *) sector=$((bad + 1)) ;; esac
	done
	get /dev/main $sector $((4096 - sector)) | cmp - <(part /run/new $((sector - 2048)) $((4096 - sector)))
}

# What the disk has where it refused to write.
bad_on_main() {
	local first last
	for first in 2051 2500 3007 4000; do
		case $first in 3007) last=3008 ;; 4000) last=4007 ;; *) last=$first ;; esac
		good main $first $last
		get /dev/main $first $((last - first + 1)) |
			cmp - <(part /run/old $((first - 2048)) $((last - first + 1)))
		bad main $first $last
	done
}

check "the disk itself refuses the write" not put /run/new /dev/main 2048
put /run/old /dev/main 2048 2>/dev/null || true
check "a write of 1 MiB over bad sectors succeeds" put /run/new /dev/mapper/r 2048
check "what was written is read back" same /run/new /dev/mapper/r 2048
check "exactly the units with bad sectors have entries, and the masks are exactly the bad sectors" entries
check "healthy neighbours are on main" bytes_on_main
check "bad sectors are not on main" bad_on_main
check "status counts 5 relocated units" expect 5 field r relocated
check "status says active, 5 slots used, no errors of the spare" \
	expect "0 * remap active 8 5/* 0 5 0 0 * 0 * * * * 0 idle 0" dmsetup status r
recovered() { (($(field r writes_recovered) == $(field r write_errors) && $(field r writes_recovered) > 0)); }
check "every write that failed was recovered" recovered
dmsetup remove r
create r /dev/main /dev/spare
check "the entries are there after remove and create" entries
check "and so is the data" same /run/new /dev/mapper/r 2048
put /run/old /dev/mapper/r 2048
again() {
	expect "$(cut -d " " -f 1 <<<"$units")" eval 'list r | cut -d " " -f 1'
	same /run/old /dev/mapper/r 2048
}
check "and writing it all again needs no new entry" again
dmsetup remove r
remove_disk main spare
