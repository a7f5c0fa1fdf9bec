#!/bin/bash
# Slots that fail with data in them: what can be saved moves to another slot; the rest is lost, never main's old data.
# kernels: stock (debug)
# vm: --smp 2
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 42

main=16384 spare=8192
disk base 12 discard=1
data /run/model $main
data /run/new 8
data /run/other 8
lower main /dev/base 0 $main
lower spare /dev/base $main $spare
create r /dev/mapper/main /dev/mapper/spare unit_sectors 8
dmsetup remove r
# On main itself is something else than what the slots get.
data /run/stale $main
put /run/stale /dev/mapper/main
again() {
	! dmsetup info r >/dev/null 2>&1 || dmsetup remove r
	create r /dev/mapper/main /dev/mapper/spare "$@"
}
again

# fill UNIT...: relocated, with the model's data in their slots.
fill() {
	local unit
	for unit; do
		message r remap "$unit" >/dev/null
		part /run/model "$unit" 8 >/run/part
		put /run/part /dev/mapper/r "$unit"
	done
}
# break_slot UNIT SECTOR...: these sectors of its slot are bad; mend_slots: all are good again.
break_slot() {
	local at sector
	at=$((main + $(slot_at /dev/mapper/spare "$(slot_of r "$1")")))
	for sector in "${@:2}"; do bad base $((at + sector)); done
}
mend_slots() { good base $main $((main + spare - 1)); }
# write UNIT OFFSET COUNT
write() {
	part /run/new "$2" "$3" >/run/io
	put /run/io /dev/mapper/r $(($1 + $2))
	edit /run/model $(($1 + $2)) /run/io
}
# lost UNIT RANGES: these sectors of the unit are errors, the others have what the model has.
lost() { expect "$2" unreadable /dev/mapper/r "$1" 8 /run/model; }
# At once, after a reload, after re-activation. The slot stays bad.
stays() {
	lost "$@"
	dmsetup load r --table "$(table /dev/mapper/main /dev/mapper/spare)"
	dmsetup resume r
	lost "$@"
	again
	lost "$@"
}
slots_bad=0
more_bad() { expect $((slots_bad + $1)) field r slots_bad; }

# --- On write

fill 80 160 240 320 400
whole() {
	local before
	before=$(slot_of r 80)
	break_slot 80 3
	write 80 0 8
	expect "80 relocated ff" eval 'list r | grep "^80 "'
	not expect "$before" slot_of r 80
}
check "a slot that fails when its unit is written: the write succeeds, in another slot" whole
check "status counts a bad slot" more_bad 1
check "the data is there, before and after re-activation" stays 80 ""
slots_bad=1
check "the bad slot is remembered" more_bad 0
in_part() {
	break_slot 160 3
	write 160 2 3
}
check "a slot that fails when its unit is written in part: the rest moves along" in_part
check "the whole unit is there, before and after re-activation" stays 160 ""
in_part_lost() {
	break_slot 240 1 6
	write 240 0 3
	expect "240 partial bf" eval 'list r | grep "^240 "'
}
check "what cannot be read from it then is lost" in_part_lost
check "and an error, before and after re-activation, though main would answer" stays 240 246-246
check "until it is written" eval 'write 240 6 1 && stays 240 ""'
twice() {
	local slot k at
	slot=$(slot_of r 320)
	slots_bad=$(field r slots_bad)
	# The slots that come next are bad from the start.
	for k in 1 2 3 4 5 6 7 8; do
		at=$((main + $(slot_at /dev/mapper/spare $((slot + k)))))
		[[ $(message r list) == *" $((slot + k)) "* ]] || bad base $at $((at + 7))
	done
	break_slot 320 0 1 2 3 4 5 6 7
	write 320 0 8
	(($(field r slots_bad) > slots_bad + 1))
	stays 320 ""
}
check "when the next slots fail too, others are tried" twice
second() {
	break_slot 320 0
	write 320 0 1
	lost 320 ""
	break_slot 320 7
	write 320 6 2
	stays 320 ""
}
check "and the slot that replaced one may fail as well" second

# --- On read

slots_bad=$(field r slots_bad)
before=$(events r)
mark
on_read() {
	break_slot 400 2 5
	fails_with "No data available" get /dev/mapper/r 400 8
	expect "400 partial db" eval 'list r | grep "^400 "'
}
check "a slot that fails on read: the read fails, what it still has moves" on_read
check "status counts a bad slot" more_bad 1
check "an event is raised" test "$(events r)" -gt "$before"
check "the log names the sector" eval 'log | grep "sector 400: "'
check "the lost sectors are errors, before and after re-activation, though main would answer" \
	stays 400 "402-402 405-405"
check "a slot that fails again loses more" eval \
	'break_slot 400 7 && not get /dev/mapper/r 400 8 && stays 400 "402-402 405-405 407-407"'
unmoved() {
	"$@"
	lost 400 "402-402 405-405 407-407"
}
check "relocating the unit does not bring main's data back" unmoved message r remap 400
check "nor does restoring it" unmoved message r restore 400
check "nor marking it" unmoved message r mark 400
check "nor does a discard" unmoved blkdiscard -f -o $((400 * 512)) -l 4096 /dev/mapper/r
check "nor suspending and sync" unmoved eval 'message r sync && dmsetup suspend r && dmsetup resume r'
check "all that is so after re-activation" stays 400 "402-402 405-405 407-407"
one_by_one() {
	write 400 5 1
	stays 400 "402-402 407-407"
	write 400 2 1
	stays 400 407-407
	write 400 7 1
	stays 400 ""
	expect "400 relocated ff" eval 'list r | grep "^400 "'
}
check "written one by one, they are there one by one" one_by_one
fill 480
all_lost() {
	break_slot 480 0 1 2 3 4 5 6 7
	not get /dev/mapper/r 480 8
	stays 480 480-487
}
check "a slot of which nothing can be read" all_lost
check "until it is written" eval 'write 480 0 8 && stays 480 ""'
fill 560
# Each attempt takes two seconds; the third finds the sector good.
transient() {
	local at
	slots_bad=$(field r slots_bad)
	at=$(slot_at /dev/mapper/spare "$(slot_of r 560)")
	lower shaky /dev/base $main $spare
	patch shaky $((at + 4)) 1 error
	patch spare "$at" 8 delay /dev/mapper/shaky "$at" 1000
	(sleep 5 && patch shaky) &
	part /run/model 560 8 | cmp - <(get /dev/mapper/r 560 8)
	wait $!
	patch spare
	dmsetup remove shaky
	more_bad 0
	(($(field r reads_recovered) > 0))
	stays 560 ""
}
check "a slot that can be read at the third attempt loses nothing" transient
fill 640
one_retry() {
	message r set read_retries 1
	break_slot 640 3
	fails_with "No data available" get /dev/mapper/r 640 8
	expect "640 partial f7" eval 'list r | grep "^640 "'
	stays 640 643-643
}
check "read_retries 1: no more is lost than the block that cannot be read" one_retry

# --- Several of them in one bio

fill 800 808 816 824 880 888 896 904
as_model() { part /run/model "$1" 32 | cmp - <(get /dev/mapper/r "$1" 32); }
check "four units in slots side by side are read in one piece" costs 1 0 spare as_model 800
one_read() {
	slots_bad=$(field r slots_bad)
	break_slot 816 3
	fails_with "No data available" get /dev/mapper/r 800 32
	more_bad 1
	expect 819-819 unreadable /dev/mapper/r 800 32 /run/model
	again
	expect 819-819 unreadable /dev/mapper/r 800 32 /run/model
}
check "one of them fails on read: its sector is lost, and no other" one_read
one_write() {
	slots_bad=$(field r slots_bad)
	break_slot 896 2
	data /run/long 32
	edit /run/model 880 /run/long
	put /run/long /dev/mapper/r 880
	more_bad 1
	as_model 880
	again
	as_model 880
}
check "one of them fails on write: it is replaced, and all is there" one_write

# --- A spare that is gone

gone() {
	local before
	before=$(message r list)
	slots_bad=$(field r slots_bad)
	patch spare 0 $spare error
	for unit in 80 160 240 320 400 480 560; do
		not get /dev/mapper/r $unit 8
		not put /run/other /dev/mapper/r $unit
	done
	patch spare
	message r sync
	expect active field r mode
	expect "$before" message r list
	more_bad 0
	for unit in 80 160 240 320 400 480 560; do lost $unit ""; done
	again
	expect "$before" message r list
	for unit in 80 160 240 320 400 480 560; do lost $unit ""; done
}
check "a spare that is gone and comes back: nothing is lost, no slot is bad" gone
replicas() { # bad|good
	local k area
	for k in 0 1; do
		area=$(($(od -An -t u8 -j $((136 + 8 * k)) -N 8 /dev/mapper/spare) * 8 + main))
		"$1" base $area $((area + 63))
	done
}
uncommitted() {
	local before
	before=$(message r list)
	break_slot 560 4
	replicas bad
	not get /dev/mapper/r 560 8
	not put /run/other /dev/mapper/r 560
	expect "$before" message r list
	replicas good
	message r sync
	expect active field r mode
}
check "a slot that fails while no table block can be written stays the unit's" uncommitted
# The write above may have been done in part.
restored() {
	write 560 0 8
	stays 560 ""
}
check "and is replaced once one can be" restored
dmsetup remove r

# --- No slot left

few() { # SPARE_SECTORS
	mend_slots
	blank /dev/mapper/spare "$1"
	again unit_sectors 8 spare_sectors "$1"
}
few 64
fill 80 160 240 320
check "a spare of four slots, all used" expect "full 4/4" field r mode slots
full_read() {
	break_slot 160 3
	fails_with "error reading" get /dev/mapper/r 160 8
	expect "160 relocated ff" eval 'list r | grep "^160 "'
	expect "163-163" unreadable /dev/mapper/r 160 8
	mend_slots
	lost 160 ""
}
check "a slot that fails on read then: an error; it keeps what it has" full_read
full_write() {
	break_slot 240 3
	fails_with "Input/output error" put /run/other /dev/mapper/r 240
	expect "240 relocated ff" eval 'list r | grep "^240 "'
	mend_slots
	for unit in 80 160 320; do lost $unit ""; done
	write 240 0 8
	lost 240 ""
}
check "one that fails on write: the write fails, and succeeds when it is good again" full_write
after_full() {
	again spare_sectors 64
	expect "full 4/4 0" field r mode slots slots_bad
	for unit in 80 160 240 320; do lost $unit ""; done
}
check "all is there after re-activation" after_full
dmsetup remove r

few $spare
message r remap 0 1024 >/run/said
elsewhere() {
	part /run/model 80 8 >/run/part
	put /run/part /dev/mapper/r 80
	break_slot 80 1
	not get /dev/mapper/r 80 8
	(($(slot_of r 80) >= 126))
	stays 80 81-81
}
check "with no slot free in its table block, one that fails is replaced from another" elsewhere
dmsetup remove r
dmsetup remove main
dmsetup remove spare
remove_disk base

# --- Slots that fail now and then: a sector that is bad is good once a read has met it

disk base 12 badblocks_once=1
lower main /dev/base 0 $main
lower spare /dev/base $main $spare
create r /dev/mapper/main /dev/mapper/spare unit_sectors 8
fill 80 88 96
entries=$(message r list)
all_read() { part /run/model 80 24 | cmp - <(get /dev/mapper/r 80 24); }
unchanged() {
	expect "0 0" field r slots_bad lost_sectors
	expect "$entries" message r list
}
# Each line fails one command more: the read itself, then what is read again.
each_once() {
	break_slot 80 1
	break_slot 88 3
	break_slot 96 3
	"$@"
	unchanged
	all_read
}
check "three slots side by side, each of which fails once: all is read" each_once all_read
too_often() {
	break_slot 80 5
	each_once fails_with "Input/output error" get /dev/mapper/r 80 24
}
check "one more failure is too many for one read: an error, but nothing is lost, and the next one reads all" too_often
once_more() {
	message r set read_retries 1
	each_once fails_with "Input/output error" get /dev/mapper/r 80 24
	break_slot 80 1 5
	all_read
	unchanged
}
check "read_retries 1: the same; and a unit that fails once more is read block by block" once_more
dmsetup remove r
dmsetup remove main
dmsetup remove spare
remove_disk base
