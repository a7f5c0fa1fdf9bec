#!/bin/bash
# A spare made of several devices, of which the one with the slots fails each flush while the ones with the metadata work: what is
# acknowledged is in its slot past the cache (FUA), or is not acknowledged.
# kernels: stock (debug)
# vm: --smp 2
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 12

modprobe -a dm-delay dm-remap
scsi 40
disk main 8 cache_size=1 # with a cache, too: else each write to the spare were made with FUA
disk front 40
trace=/sys/kernel/tracing
[[ -e $trace/trace ]] || mount -t tracefs tracefs $trace
# shellcheck disable=SC2154  # scsi sets it
size=$(blockdev --getsz "$sick")

u64() { get /dev/front 0 1 | od -An -t u8 -j "$1" -N 8 | tr -d ' '; }
# make_spare DEVICE: /dev/mapper/spare, whose metadata are on the disk `front`, and what lies between them, slots, on DEVICE.
make_spare() {
	blank /dev/front
	dmsetup create spare --table "0 $size linear /dev/front 0"
	create r /dev/main /dev/mapper/spare unit_sectors 8
	message r mark 0 1024
	dmsetup remove r
	local from=$((($(u64 136) + 20) * 8)) to=$(($(u64 144) * 8))
	((from + 8192 < to))
	printf '%s\n' "0 $from linear /dev/front 0" "$from $((to - from)) linear $1 $from" \
		"$to $((size - to)) linear /dev/front $to" | reload spare
	create r /dev/main /dev/mapper/spare
	# The first slots lie before.
	local unit=0
	until (($(slot_at /dev/front "$(slot_of r $unit)") >= from)); do ((unit += 8)); done
	echo $unit >/run/unit
}
# write: new data to the next unit, which has none of its sectors in its slot.
write() {
	data /run/new 8
	echo $(($(cat /run/unit) + 8)) >/run/unit
	put /run/new /dev/mapper/r "$(cat /run/unit)"
}
# is_there DEVICE: so it is, and in its slot there.
is_there() {
	local unit
	unit=$(cat /run/unit)
	same /run/new /dev/mapper/r "$unit" && same /run/new "$1" "$(slot_at /dev/front "$(slot_of r "$unit")")"
}

lower middle "$sick" 0 "$size"
make_spare /dev/mapper/middle
echo 1 >$trace/events/block/block_rq_issue/enable
# writes COMMAND [ARG...]: how the command writes to the disk with the slots: W with flags behind it, F in front for a flush.
writes() {
	local number
	number=$(tr : , <"/sys/block/${sick##*/}/dev")
	echo >$trace/trace
	"$@" >&2
	awk -v disk="$number" '$0 ~ "block_rq_issue: " disk " " { sub(".*block_rq_issue: " disk " ", ""); print $1 }' $trace/trace |
		grep W | sort -u | tr '\n' ' '
}
FUA='^W[^ ]*F[^ ]* $'
through() {
	local seen
	seen=$(writes write)
	echo "seen: $seen"
	[[ $seen =~ $FUA ]]
	is_there "$sick"
}

goes_there() {
	write
	is_there "$sick"
}
check "a write to a pending unit goes to its slot" goes_there
not_through() {
	local seen
	seen=$(writes write)
	echo "seen: $seen"
	[[ -n $seen && $seen != *W*F* ]]
}
check "through the disk's cache: a flush follows" not_through
arm target 35
mark
# The first one is written twice, as it was in the cache when the flush failed.
first() {
	local seen
	seen=$(writes write)
	echo "seen: $seen"
	[[ $seen == *W*F* ]]
	is_there "$sick"
}
check "when the disk fails flushes, it is written past its cache" first
check "the log says so, once" expect 1 eval 'log | grep -c "cannot be flushed"'
check "so are all that follow, and nothing else" through
relocated() {
	local seen
	seen=$(writes message r remap 4096)
	echo "seen: $seen"
	[[ $seen =~ $FUA ]]
}
check "what is relocated, too" relocated
check "commits are made, and the device is well" expect "active 0" field r mode slots_bad
disarm
again() { # no flush is tried for some seconds after one that failed
	for ((n = 0; n < 100; n++)); do
		write
		! log | grep "can be flushed again" || break
		sleep 1
	done
	is_there "$sick"
	not_through
}
check "when it can be flushed again, it is" again
# One that is in its slot before the flush that fails, and asks for its commit after it.
late() {
	local unit at
	unit=$(($(cat /run/unit) + 8))
	echo $unit >/run/unit
	at=$(slot_at /dev/front "$(slot_of r $unit)")
	patch middle "$at" 8 delay "$sick @ 0 $sick @ 3600000 $sick @ 0"
	data /run/late 8
	echo >$trace/trace
	put /run/late /dev/mapper/r $unit &
	soon eval 'dmsetup status middle | grep -q " delay 0 1 0$"'
	commands -1 "${sense[target]%|*}" 35
	write
	is_there "$sick"
	disarm
	patch middle # and the disk has it
	wait $!
	same /run/late /dev/mapper/r $unit
	grep -o "block_rq_issue: .* $at + 8 " $trace/trace | tee /dev/stderr | grep " W" | tail -n 1 | grep -q " W[^ ]*F"
}
check "what a flush that failed may have lost is not committed by a later one" late
dmsetup remove r spare middle

# A loop device knows no FUA: the flush that takes its place fails.
modprobe loop
loop=$(losetup -f)
losetup "$loop" "$sick"
make_spare "$loop"
neither() {
	local before
	arm target 35
	before=$(field r slots_bad)
	not write
	not write
	expect "$before" field r slots_bad
	disarm
}
check "what can be made durable in no way is not acknowledged, and no slot is taken for bad" neither
goes_on() {
	soon write
	is_there "$loop"
}
check "and all goes on when that works" goes_on
dmsetup remove r spare
losetup -d "$loop"
check "all is removed" rmmod dm-remap
