#!/bin/bash
# Reads that fail: what is lost is an error and pending until it is written; what was hard to read is moved.
# kernels: stock (debug)
# vm: --smp 2
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
kinds=(null error flakey)
[[ ! -e $kunit ]] || kinds+=(dust) # the debug kernel has it
plan $((4 * ${#kinds[@]} + 15))

main=16384
disk base 8
disk spare 4
data /run/model $main
data /run/new 8
data /run/other $main
lower main /dev/base 0 $main
put /run/model /dev/mapper/main
create r /dev/mapper/main /dev/spare unit_sectors 8
again() { dmsetup remove r && create r /dev/mapper/main /dev/spare "$@"; }

# has SECTOR COUNT: the device has there what the model has.
has() {
	part /run/model "$1" "$2" >/run/part
	same /run/part /dev/mapper/r "$1"
}

# --- Lost

lost() { # UNIT
	fails_with "No data available" get /dev/mapper/r $(($1 - 8)) 24
	expect "$1 pending 0" eval "list r | grep '^$1 '"
	expect "$(($1 + 2))-$(($1 + 5))" unreadable /dev/mapper/r $(($1 - 8)) 24 /run/model
}
written() {
	put /run/new /dev/mapper/r "$1"
	expect "$1 * ff" eval "list r | grep '^$1 '"
	same /run/new /dev/mapper/r "$1"
	edit /run/model "$1" /run/new
}
part_written() { # Which sectors move does not depend on which can be read.
	part /run/new 0 1 >/run/part
	put /run/part /dev/mapper/r $(($1 + 3))
	edit /run/model $(($1 + 3)) /run/part
	expect "$1 partial 8" eval "list r | grep '^$1 '"
	expect "$(($1 + 2))-$(($1 + 2)) $(($1 + 4))-$(($1 + 5))" unreadable /dev/mapper/r "$1" 8 /run/model
}
unit=80
for kind in "${kinds[@]}"; do
	fault "$kind" main $((unit + 2)) 4
	check "$kind: a read of lost sectors fails, their unit is pending, its other sectors are read" lost $unit
	check "$kind: one of them written is there, the others are lost still" part_written $unit
	check "$kind: a write of the unit relocates it, and is read back" written $unit
	heal main
	check "$kind: it is not on main" not same /run/new /dev/mapper/main $unit
	unit=$((unit + 80))
done
after() {
	again
	has 0 1024
}
check "all that is there after re-activation" after

# --- One by one

bad base 2000 2007
one() {
	part /run/new 3 1 >/run/part
	put /run/part /dev/mapper/r 2003
	edit /run/model 2003 /run/part
	expect "2000-2002 2004-2007" unreadable /dev/mapper/r 2000 8 /run/model
}
check "one sector written into a unit that cannot be read: it is read back, the other seven are errors" one
check "after re-activation too" eval \
	'again && expect "2000-2002 2004-2007" unreadable /dev/mapper/r 2000 8 /run/model'
one_by_one() {
	local sector left
	part /run/new 5 1 >/run/part
	for sector in 2000 2001 2002 2004 2005 2006 2007; do
		put /run/part /dev/mapper/r $sector
		edit /run/model $sector /run/part
		left=$((sector + 1))-2007
		((sector > 2001)) || left="$((sector + 1))-2002 2004-2007"
		((sector != 2002)) || left="2004-2007"
		((sector < 2007)) || left=""
		expect "$left" unreadable /dev/mapper/r 2000 8 /run/model
	done
	expect "2000 relocated ff" eval 'list r | grep "^2000 "'
}
check "writing them one by one clears them one by one" one_by_one
check "after re-activation all eight are there" eval 'again && has 2000 8'
good base 2000 2007

# --- Pending reads

bad base 3001
not get /dev/mapper/r 3000 8 2>/dev/null
good base 3001
check "retry: what main can read again is no error" has 3000 8
at_once() {
	message r set pending_reads fail
	fails_with "No data available" get /dev/mapper/r 3001 1
	expect "*pending_reads fail*" dmsetup table r
}
check "set pending_reads fail: it is one, and the table says so" at_once
check "set pending_reads retry: no more" eval 'message r set pending_reads retry && has 3000 8'

# --- Hard to read

# The unit came from a slot: main's place may have anything.
moved() { # UNIT
	idle r
	expect "$1 relocated ff" eval "list r | grep '^$1 '"
	part /run/other "$1" 8 >/run/part
	put /run/part /dev/mapper/main "$1"
	has "$1" 8
	again
	has "$1" 8
}
delayed() {
	# Each attempt takes two seconds; the third finds the sectors good.
	lower shaky /dev/base 0 $main
	patch shaky 4002 2 error
	patch main 4000 8 delay /dev/mapper/shaky @ 2000
	(sleep 5 && patch shaky) &
	has 4000 8
	wait $!
	expect "1 1" field r read_errors reads_recovered
	idle r
	(($(events r) > events))
}
message r reset
events=$(events r)
check "a read that fails twice and then works succeeds, and raises an event" delayed
check "its unit is moved in the background" moved 4000
patch main
dmsetup remove shaky
dmsetup remove r
dmsetup remove main
remove_disk base

disk base 8 badblocks_once=1
lower main /dev/base 0 $main
put /run/model /dev/mapper/main
blank /dev/spare
create r /dev/mapper/main /dev/spare unit_sectors 8
# The first bad block that a read meets is good from then on.
once() {
	bad base 1001
	has 1000 8
	idle r
	not moved 1000
}
check "a read within a unit that fails once with an I/O error succeeds, and that is all" once
twice() {
	bad base 1001
	bad base 1005
	has 1000 8
}
check "one within a unit that fails twice succeeds" twice
check "its unit is moved in the background" moved 1000
several() {
	bad base 1101
	bad base 1113
	has 1096 24
	idle r
	expect "1112 relocated ff" eval 'list r | grep "^11[0-2]"'
	has 1096 24
}
check "of a read of three units, that one is moved whose block failed twice" several
one_retry() {
	again read_retries 1
	bad base 1201
	bad base 1205
	fails_with "No data available" get /dev/mapper/r 1200 8
	expect "1200 pending 0" eval 'list r | grep "^1200"'
	has 1200 8
}
check "read_retries 1: a block that fails twice is lost" one_retry
dmsetup remove r
dmsetup remove main
remove_disk base spare
