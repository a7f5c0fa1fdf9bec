#!/bin/bash
# A spare with a bad patch: no write fails while any slot is free; slots that fail on read; sectors that were lost and come back.
# kernels: stock (debug)
# vm: --smp 2
# shellcheck source=tests/vm/lib.sh disable=SC2016
. /host/lib.sh
plan 32

main=16384 spare=16384
disk base 16
data /run/model $main
data /run/new 4096
lower main /dev/base 0 $main
lower spare /dev/base $main $spare
# What units have on main is not what they have in slots.
data /run/stale $main
begin() { # [FEATURE...]
	! dmsetup info r >/dev/null 2>&1 || dmsetup remove r
	good base 0 $((main + spare - 1))
	patch spare
	put /run/model /dev/mapper/main
	blank /dev/mapper/spare
	create r /dev/mapper/main /dev/mapper/spare unit_sectors 8 "$@"
}
again() { dmsetup remove r && create r /dev/mapper/main /dev/mapper/spare; }
reloaded() { table /dev/mapper/main /dev/mapper/spare | reload r; }

# slot_start SLOT: its first sector on /dev/base. bad_slots FIRST LAST: all of these are bad.
slot_start() { echo $((main + $(slot_at /dev/mapper/spare "$1"))); }
bad_slots() { bad base "$(slot_start "$1")" $(($(slot_start "$2") + 7)); }
# fill FIRST COUNT: these sectors are relocated; main itself gets other data.
fill() {
	message r remap "$1" "$2" >/dev/null
	part /run/stale "$1" "$2" >/run/part
	put /run/part /dev/mapper/main "$1"
}
# write FIRST COUNT [BLOCK]: in writes of so many sectors, by default units.
write() {
	part /run/new 0 "$2" >/run/io
	dd if=/run/io of=/dev/mapper/r bs=$((512 * ${3:-8})) oflag=direct,seek_bytes seek=$(($1 * 512)) conv=notrunc status=none
	edit /run/model "$1" /run/io
}
# has FIRST COUNT: what the model has.
has() {
	part /run/model "$1" "$2" >/run/part
	same /run/part /dev/mapper/r "$1"
}
# still FIRST COUNT: at once, with another table, and after re-activation.
still() { has "$@" && reloaded && has "$@" && again && has "$@"; }

# --- Written

# 126 slots are one table block's, and all of them are in use.
begin
fill 0 1008
check "126 units are relocated, and one more table block's" eval 'fill 4000 8 && expect 127 field r relocated'
free() { field r slots slots_bad | awk -F '[/ ]' '{ print $2 - $1 - $3 }'; }
before=$(free)
first=$(slot_of r 80)
same_block() { (($(slot_of r 80) + 5 == $(slot_of r 120) && first / 126 == (first + 5) / 126)); }
check "six of them lie side by side" same_block
bad_slots "$first" $((first + 5))
check "six bad slots side by side, with thousands free: six writes succeed" write 80 48
check "what was written is there" has 0 1100
check "status counts them" expect "active 6 127" field r mode slots_bad relocated
check "each took one slot" expect $((before - 6)) free
check "also with another table and after re-activation" eval \
	'still 0 1100 && expect "active 6 127" field r mode slots_bad relocated'
parts() { # One sector of each unit; the rest is copied.
	local slot
	slot=$(slot_of r 400)
	for n in 0 1 2 3 4 5; do bad base $(($(slot_start $((slot + n))) + 5)); done
	for n in 0 1 2 3 4 5; do write $((400 + 8 * n + 5)) 1 1; done
	still 0 1100
	expect "12 0" field r slots_bad lost_sectors
}
check "six slots with a bad sector each, and just these are written: the rest is saved" parts
one_write() {
	local slot
	slot=$(slot_of r 800)
	bad_slots "$slot" $((slot + 11))
	write 800 96 96
	still 0 1100
	expect "24 0" field r slots_bad lost_sectors
}
check "one write over twelve bad slots" one_write

begin
fill 0 1008
whole_block() {
	bad_slots 0 125
	write 0 1008
	has 0 1008
	expect "active 126 0" field r mode relocated lost_sectors
	(($(field r slots_bad) >= 126))
	still 0 1008
}
check "all 126 slots of a table block are bad: 126 writes succeed" whole_block
check "in one write: they are written again" eval 'write 0 1008 1008 && still 0 1008'
next_block() {
	bad_slots 126 377
	write 0 1008
	still 0 1008
	expect "active 126 0" field r mode relocated lost_sectors
}
check "and those that replaced them, in blocks that are bad in turn" next_block

begin
new_entries() {
	bad_slots 0 199
	bad base 2000 3599
	write 2000 1600
	has 2000 1600
	expect "active 200" field r mode relocated
	(($(field r slots_bad) > 0))
	still 2000 1600
}
check "200 bad slots that nobody uses yet: 200 writes over bad sectors of main succeed" new_entries

# Not a slot more than there is.
begin spare_sectors 512
few() {
	local slots n
	slots=$(field r slots)
	slots=${slots#*/}
	fill 0 $((8 * (slots - 4)))
	bad_slots 0 3
	write 0 32
	expect full field r mode
	expect "$((slots - 4))/$slots 4" field r slots slots_bad
	has 0 $((8 * slots - 32))
	bad_slots 4 4
	not write 32 8
	good base "$(slot_start 4)" $(($(slot_start 4) + 7))
	write 32 8
	dmsetup remove r
	create r /dev/mapper/main /dev/mapper/spare spare_sectors 512
	has 0 $((8 * slots - 32))
}
check "the last free slots serve as well, and then a write fails" few

# --- Read

begin
fill 0 1008
fill 4000 400
on_read() {
	local slot
	slot=$(slot_of r 80)
	bad base "$(slot_start "$slot")"
	fails_with "No data available" get /dev/mapper/r 80 8
	expect "80-80" unreadable /dev/mapper/r 80 8 /run/model
	expect "active 1 1" field r mode slots_bad lost_sectors
	not expect "$slot" slot_of r 80
}
check "a slot that fails on read in a full table block is replaced, and a sector is lost" on_read
check "the others are there with another table and after re-activation" eval '
	reloaded && expect "80-80" unreadable /dev/mapper/r 80 8 /run/model &&
	again && expect "80-80" unreadable /dev/mapper/r 80 8 /run/model && expect "1 1" field r slots_bad lost_sectors'
mended() {
	good base 0 $((main + spare - 1))
	has 80 8
	expect "0" field r lost_sectors
	expect "80 relocated ff" eval 'list r | grep "^80 "'
	still 80 8
	expect 0 field r lost_sectors
}
check "its old slot answers again: it is there, and lost no more" mended
# restored: all slots are good again, and nothing is lost.
restored() {
	message r set pending_reads retry
	good base 0 $((main + spare - 1))
	has 0 1008
	expect 0 field r lost_sectors
}
# lost UNIT COUNT RANGES: what is lost of it, read sector by sector, and how many sectors are lost in all. (Before, sectors
# may count that nobody has tried to read yet.)
lost() {
	expect "$3" unreadable /dev/mapper/r "$1" 8 /run/model
	expect "$2" field r lost_sectors
}
# The data came from the old slot just once.
moved() {
	restored
	local slot
	slot=$(slot_of r 160)
	bad base $(($(slot_start "$slot") + 2)) $(($(slot_start "$slot") + 3))
	not get /dev/mapper/r 160 8
	lost 160 2 162-163
	good base 0 $((main + spare - 1))
	has 160 8
	bad_slots "$slot" "$slot"
	has 160 8
	again
	has 160 8
	good base 0 $((main + spare - 1))
	expect 0 field r lost_sectors
}
check "and stays, whatever the old slot does then" moved
one_of_two() {
	local slot
	restored
	slot=$(slot_of r 240)
	bad base $(($(slot_start "$slot") + 2))
	bad base $(($(slot_start "$slot") + 6))
	not get /dev/mapper/r 240 8
	lost 240 2 "242-242 246-246"
	good base $(($(slot_start "$slot") + 2))
	lost 240 1 246-246
	again
	lost 240 1 246-246
	good base $(($(slot_start "$slot") + 6))
	lost 240 0 ""
	still 240 8
}
check "two lost sectors come back one by one" one_of_two
written_over() {
	local slot
	restored
	slot=$(slot_of r 320)
	bad base $(($(slot_start "$slot") + 2)) $(($(slot_start "$slot") + 4))
	not get /dev/mapper/r 320 8
	lost 320 3 322-324
	write 323 1 1
	lost 320 2 "322-322 324-324"
	good base 0 $((main + spare - 1))
	# What the old slot has of it is old.
	has 320 8
	expect 0 field r lost_sectors
	still 320 8
}
check "a lost sector that was written meanwhile has what was written, when the old slot is good again" written_over
written_reload() {
	local slot
	restored
	slot=$(slot_of r 400)
	bad base $(($(slot_start "$slot") + 2)) $(($(slot_start "$slot") + 4))
	not get /dev/mapper/r 400 8
	write 403 1 1
	again
	lost 400 2 "402-402 404-404"
	good base 0 $((main + spare - 1))
	has 400 8
	still 400 8
}
check "after re-activation, too" written_reload
twice() {
	local slot second
	restored
	slot=$(slot_of r 480)
	bad base $(($(slot_start "$slot") + 1))
	not get /dev/mapper/r 480 8
	lost 480 1 481-481
	second=$(slot_of r 480)
	bad base $(($(slot_start "$second") + 5))
	not get /dev/mapper/r 484 4
	lost 480 2 "481-481 485-485"
	again
	lost 480 2 "481-481 485-485"
	good base $(($(slot_start "$slot") + 1))
	lost 480 1 485-485
	good base $(($(slot_start "$second") + 5))
	has 480 8
	expect 0 field r lost_sectors
	still 480 8
}
check "lost in one slot, and in the next: each is asked for what it had" twice
at_once() {
	local slot
	restored
	slot=$(slot_of r 560)
	bad base $(($(slot_start "$slot") + 4))
	not get /dev/mapper/r 560 8 >/dev/null
	message r set pending_reads fail
	good base 0 $((main + spare - 1))
	fails_with "No data available" get /dev/mapper/r 564 1
	(($(field r lost_sectors) > 0))
	message r set pending_reads retry
	has 560 8
	expect 0 field r lost_sectors
}
check "pending_reads fail: the old slot is not asked; retry: it is" at_once
all_lost() {
	local slot
	restored
	slot=$(slot_of r 640)
	bad_slots "$slot" "$slot"
	not get /dev/mapper/r 640 8
	lost 640 8 640-647
	again
	lost 640 8 640-647
	good base 0 $((main + spare - 1))
	has 640 8
	expect 0 field r lost_sectors
	still 640 8
}
check "a slot of which nothing could be read" all_lost
check "never did a read show what main has" eval 'restored && still 0 1100'

# --- Readers at once

# inflight NAME: requests on their way.
inflight() { awk '{ print $1 + $2 }' "$(sys "/dev/mapper/$1")/inflight"; }
# readers COUNT UNIT: so many read the unit at once, and all have asked its slot before it answers; how many succeed.
readers() {
	local n pids=() done=0
	dmsetup suspend --noflush spare
	for ((n = 0; n < $1; n++)); do
		get /dev/mapper/r "$2" 8 >/run/reader.$n 2>/dev/null &
		pids+=($!)
	done
	soon expect "$1" inflight r >/dev/null || done=-100
	dmsetup resume spare
	for ((n = 0; n < $1; n++)); do
		! wait "${pids[n]}" || done=$((done + 1))
	done
	echo $done
}
begin
fill 0 1200
two() {
	local before
	before=$(free)
	bad base $(($(slot_start "$(slot_of r 80)") + 3))
	expect 0 readers 2 80
	expect "active 1" field r mode slots_bad
	expect $((before - 1)) free
	lost 80 1 83-83
}
check "two readers of a slot that fails: one slot is given up" two
eight() {
	bad base $(($(slot_start "$(slot_of r 160)") + 3))
	expect 0 readers 8 160
	expect "active 2" field r mode slots_bad
	lost 160 2 163-163
}
check "eight: the same" eight
over() {
	local round unit
	for round in {1..10}; do
		unit=$((240 + 8 * round))
		bad base $(($(slot_start "$(slot_of r $unit)") + 3))
		expect 0 readers 4 $unit
		expect "active $((2 + round))" field r mode slots_bad
		lost $unit $((2 + round)) $((unit + 3))-$((unit + 3))
	done
}
check "four, over and over: one each time" over
good base 0 $((main + spare - 1))
check "all good again: nothing is lost" eval 'has 0 1200 && expect 0 field r lost_sectors && still 0 1200'
dmsetup remove r
dmsetup remove main

# A sector that fails once for the first reader: the slot stays.
dmsetup remove spare
remove_disk base
disk base 8
disk spare 8 badblocks_once=1
lower spare /dev/spare 0 $spare
put /run/model /dev/base
create r /dev/base /dev/mapper/spare unit_sectors 8
fill_once() {
	message r remap 0 800 >/dev/null
	part /run/stale 0 800 >/run/part
	put /run/part /dev/base
}
fill_once
once() {
	bad spare $(($(slot_at /dev/mapper/spare "$(slot_of r 80)") + 3))
	has 80 8
	expect "active 0 0" field r mode slots_bad lost_sectors
	bad spare $(($(slot_at /dev/mapper/spare "$(slot_of r 160)") + 3))
	bad spare $(($(slot_at /dev/mapper/spare "$(slot_of r 160)") + 5))
	expect 4 readers 4 160
	expect "active 0 0" field r mode slots_bad lost_sectors
	has 0 800
}
check "a slot that can be read when it is asked again stays, for one reader and four" once
dmsetup remove r
dmsetup remove spare
remove_disk base spare

# Two readers, and the slot fails so many reads, and then no more: at some number for both of them, and not when it is copied.
scsi 16
lower spare "$good" 0 $spare
disk base 8
put /run/model /dev/base
create r /dev/base /dev/mapper/spare unit_sectors 8
message r remap 0 600 >/dev/null
part /run/stale 0 600 >/run/part
put /run/part /dev/base
# some COUNT UNIT: 2 readers of one sector.
some() {
	local n pids=() at
	at=$(slot_at /dev/mapper/spare "$(slot_of r "$2")")
	dmsetup suspend --noflush spare
	{
		echo "0 $at linear $good 0"
		echo "$at 8 linear $sick $at"
		echo "$((at + 8)) $((spare - at - 8)) linear $good $((at + 8))"
	} | dmsetup load spare
	commands "-$1" "${sense[medium]%|*}" 28 88
	for n in 1 2; do
		get /dev/mapper/r $(($2 + 3)) 1 >/dev/null 2>&1 &
		pids+=($!)
	done
	soon expect 2 inflight r || at=
	dmsetup resume spare
	wait "${pids[@]}" || true
	disarm
	patch spare
	[[ -n $at ]]
}
mended_between() {
	local count unit=0 before after
	for count in {2..14}; do
		unit=$((unit + 40)) before=$(field r slots_bad)
		some "$count" "$unit"
		after=$(field r slots_bad)
		echo "# $count failing reads: $((after - before)) slots given up" >>/run/figures
		((after <= before + 1))
	done
}
check "two readers of a slot that fails a few reads, however many: at most one slot is given up" mended_between
check "and nothing is lost" eval 'has 0 600 && expect 0 field r lost_sectors'
cat /run/figures
dmsetup remove r
dmsetup remove spare
remove_disk base
rmmod scsi_debug
