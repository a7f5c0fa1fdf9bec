#!/bin/bash
# A disk whose failing commands take 200 ms, a MiB of it bad: reading that once through the page cache sends it hardly more failing
# commands than reading the disk itself does, and takes hardly longer.
# kernels: stock
# waits: for commands of 200 ms that fail
# shellcheck source=tests/vm/lib.sh disable=SC2016
. /host/lib.sh
plan 9

modprobe dm-delay
sectors=2048 # that are bad, behind as many that are sound
disk base 8
disk spare 4
data /run/model 16384
put /run/model /dev/base
dmsetup create dead --table "0 $sectors error"
slow() { echo "0 $sectors delay /dev/mapper/dead 0 $1"; } # MS
slow 200 | dmsetup create slow
# Counts; everything that it is sent takes 200 ms, and fails.
lower failing /dev/mapper/slow 0 $sectors
lower main /dev/base 0 16384
patch main 4096 $sectors linear /dev/mapper/failing 0
create r /dev/mapper/main /dev/spare unit_sectors 8

# pass DEVICE: reads the bad MiB and what lies around it once, as anybody would; sets $reads and $ms.
pass() {
	local before after start=${EPOCHREALTIME/./}
	read -r before _ < <(sent failing)
	# A limit for a module that would take for ever.
	timeout 240 dd if="$1" of=/run/read bs=4k skip=384 count=512 conv=noerror,sync status=none 2>/dev/null || true
	read -r after _ < <(sent failing)
	ms=$(((${EPOCHREALTIME/./} - start) / 1000)) reads=$((after - before))
	echo "# $1: $reads failing reads, $ms ms"
}
at_most() { (($1 <= $2)); }

# Both have what the kernel's readahead makes of it: the same.
for name in main r; do echo 128 >"$(sys /dev/mapper/$name)/queue/read_ahead_kb"; done
pass /dev/mapper/main
raw_reads=$reads raw_ms=$ms
pass /dev/mapper/r
check "a bad MiB, read once through the page cache: at most 1.5 times as many failing commands" \
	at_most $((2 * reads)) $((3 * raw_reads))
check "and at most 1.5 times as long" at_most $((2 * ms)) $((3 * raw_ms))
around() {
	part /run/model 3072 1024 | cmp - <(head -c 524288 /run/read)
	part /run/model 6144 1024 | cmp - <(tail -c 524288 /run/read)
}
check "what lies before and behind it is read" around
check "all of it is pending" expect 256 field r pending
# What follows is only counted.
slow 1 | reload slow
pass /dev/mapper/r
check "read again: not one more than the disk itself" at_most "$reads" "$raw_reads"
check "after re-activation as well" eval '
	dmsetup remove r && create r /dev/mapper/main /dev/spare && echo 128 >"$(sys /dev/mapper/r)/queue/read_ahead_kb" &&
	pass /dev/mapper/r >/run/again && at_most "$reads" "$raw_reads"'

# Past the page cache, in 64 KiB: a command each.
direct() {
	local n
	for n in {0..15}; do not get /dev/mapper/r $((4096 + 128 * n)) 128 >/dev/null 2>&1; done
}
check "in direct reads of 64 KiB: one failing command each" costs 16 0 failing direct
# And written, 512 KiB in two.
writes() {
	part /run/model 0 1024 >/run/part
	put /run/part /dev/mapper/r 4096
	same /run/part /dev/mapper/r 4096
}
check "512 KiB of it are written: at most 16 failing commands, and read back" costs 0 16 failing writes
check "a MiB of write-zeroes, half of it in slots: at most 16" costs 0 16 failing \
	blkdiscard -f -z -o $((4096 * 512)) -l 1048576 /dev/mapper/r
dmsetup remove r
dmsetup remove main
dmsetup remove failing
dmsetup remove slow
dmsetup remove dead
remove_disk base spare
