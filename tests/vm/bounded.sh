#!/bin/bash
# What a bad sector costs: how many failing commands a disk is sent, on one with physical blocks of 4 KiB and logical ones of 512
# bytes. Counted on the device that the bad sectors are.
# kernels: stock (debug)
# shellcheck source=tests/vm/lib.sh disable=SC2016
. /host/lib.sh
plan 78

main=32768
scsi 16 physblk_exp=3 lbpws=1
disk spare 8
data /run/model 4096
data /run/new 4096
head -c 2M /dev/zero >/run/zero
lower main "$good" 0 $main
# Reading or writing what these 4096 sectors of main are fails as `arm` says. (`failing` counts; the disk is below it.)
first=8192
lower failing "$sick" $first 4096
patch main $first 4096 linear /dev/mapper/failing 0

# begin KIND [FEATURE...]: a device of which those sectors are bad, with nothing in slots.
begin() {
	disarm
	! dmsetup info r >/dev/null 2>&1 || dmsetup remove r
	blank /dev/spare
	create r /dev/mapper/main /dev/spare "${@:2}"
	put /run/model /dev/mapper/main $first
	arm "$1"
}
check "main has physical blocks of 4 KiB, and logical ones of 512 bytes" eval \
	'expect 4096 queue main physical_block_size && expect 512 queue main logical_block_size'

# --- Reads

# read_fails FIRST COUNT: of the sectors that are bad.
read_fails() { fails_with "No data available" get /dev/mapper/r $((first + $1)) "$2"; }
# The log and the counts of what is in the background belong to the command.
settled() { "$@" && idle r; }
reads() {
	local kind=$1 unit=$2 size
	begin "$kind" unit_sectors "$unit"
	check "$kind, units of $unit: a 4 KiB read of a bad block: at most 4 commands fail" \
		costs 4 0 failing settled read_fails 0 8
	check "$kind, units of $unit: read again: one" costs 1 0 failing settled read_fails 0 8
	check "$kind, units of $unit: and again" costs 1 0 failing settled read_fails 0 8
	check "$kind, units of $unit: one sector of it: one" costs 1 0 failing settled read_fails 3 1
	check "$kind, units of $unit: a 128 KiB read, all bad: at most 4" costs 4 0 failing settled read_fails 256 256
	check "$kind, units of $unit: again: one" costs 1 0 failing settled read_fails 256 256
	check "$kind, units of $unit: a MiB, all bad: at most 4" costs 4 0 failing settled read_fails 2048 2048
	check "$kind, units of $unit: again: one" costs 1 0 failing settled read_fails 2048 2048
	check "$kind, units of $unit: nothing is relocated" expect "active 0" field r mode relocated
}
reads medium 8
reads ioerr 8
reads medium 64

# Only the last block of a read is bad: those before it are read, and delivered by the reads that come for them.
begin medium
last_block() { fails_with "No data available" get /dev/mapper/r $((first - 120)) 128; }
check "a 64 KiB read of which the last block is bad: at most 4" costs 4 0 failing settled last_block
check "again: one" costs 1 0 failing settled last_block
before_it() {
	get /dev/mapper/r $((first - 120)) 120 >/dev/null
	expect "" eval "list r | awk '\$1 < $first'"
}
check "what lies before is read, and has no entry" before_it
# Block by block, over a quarter of a MiB: that is what the page cache does after a long read failed.
pass() {
	local n
	for ((n = 0; n < 64; n++)); do not get /dev/mapper/r $((first + 256 + 8 * n)) 8 2>/dev/null; done
}
check "64 reads of 64 bad blocks side by side: at most 96" costs 96 0 failing settled pass
check "again: 64" costs 64 0 failing settled pass
check "all of them are pending" eval 'expect 64 eval "message r list $((first + 256)) | grep -c \"pending .* 0$\""'
retries() { # READ_RETRIES
	begin medium read_retries "$1"
	costs $(($1 + 2)) 0 failing settled read_fails 0 8
	costs $(($1 + 2)) 0 failing settled read_fails 256 1024
	costs 1 0 failing settled read_fails 256 1024
}
for n in 1 5 10; do
	check "read_retries $n: at most $((n + 2)), whatever the length, and then one" retries $n
done
no_retries() {
	begin medium read_retries 0
	costs 2 0 failing settled read_fails 0 1024
	costs 2 0 failing settled read_fails 0 8
}
check "read_retries 0: at most 2" no_retries

# --- Reads over units that are known, and good

begin medium
disarm
message r mark 2048 128 >/dev/null
known() { get /dev/mapper/r 2048 128 >/run/got && cmp -n 65536 /run/got /run/known; }
get /dev/mapper/main 2048 128 >/run/known
check "a 64 KiB read over 16 pending units that main can read: one command" costs 1 0 main known
message r mark 4096 >/dev/null
message r mark 4112 >/dev/null
mixed() { get /dev/mapper/r 4088 64 >/run/got; }
check "one over healthy and pending units in turn: one command" costs 1 0 main mixed
known_bad() {
	message r mark $first 128
	arm medium
	costs 1 0 failing settled read_fails 0 128
	costs 1 0 failing settled read_fails 24 64
}
check "over 16 pending units that main cannot read: one command fails" known_bad

# --- Writes

write() { # FIRST COUNT
	part /run/new "$1" "$2" >/run/io
	put /run/io /dev/mapper/r $((first + $1))
}
# there FIRST COUNT: what was written is read back, and no command fails.
there() {
	part /run/new "$1" "$2" >/run/io
	costs 0 0 failing same /run/io /dev/mapper/r $((first + $1))
}
writes() {
	local kind=$1 unit=$2
	begin "$kind" unit_sectors "$unit"
	check "$kind, units of $unit: a failing 4 KiB write: at most 4 writes fail" costs 4 4 failing settled write 0 8
	check "$kind, units of $unit: 128 KiB: at most 16" costs 16 16 failing settled write 256 256
	check "$kind, units of $unit: a MiB: at most 16" costs 16 16 failing settled write 2048 2048
	check "$kind, units of $unit: 64 KiB across the edge to what is healthy: at most 16" costs 16 16 failing settled \
		across
	check "$kind, units of $unit: all is read back" eval 'there 0 8 && there 256 256 && there 2048 1984'
	check "$kind, units of $unit: and written again, to slots" costs 0 0 failing settled write 256 256
	check "$kind, units of $unit: healthy neighbours have no entry" eval \
		"expect '' eval 'list r | awk \"\\\$1 + $unit <= $first || \\\$1 >= $first + 4096\"'"
}
across() {
	part /run/new 4032 64 >/run/io
	cat /run/io /run/io >/run/across
	put /run/across /dev/mapper/r $((first + 4032))
	same /run/across /dev/mapper/r $((first + 4032))
}
writes medium 8
writes ioerr 64

# --- Write-zeroes

zero() { blkdiscard -f -z -o $(((first + $1) * 512)) -l $(($2 * 512)) /dev/mapper/r; }
zeroes() {
	begin medium unit_sectors "$1"
	costs 16 16 failing settled zero 1024 2048
	costs 0 0 failing cmp -n 1048576 /run/zero <(get /dev/mapper/r $((first + 1024)) 2048)
}
check "a MiB of write-zeroes: at most 16" zeroes 8
check "with units of 64 sectors: the same" zeroes 64

# --- Messages

remaps() { # UNIT
	begin medium unit_sectors "$1"
	costs 4 0 failing settled message r remap $first
	costs 32 0 failing settled message r remap $((first + 2048)) $((8 * $1))
}
check "remap of units that cannot be read: at most 4 each" remaps 8
check "with units of 64 sectors: the same" remaps 64
restores() { # UNIT
	begin medium unit_sectors "$1"
	write 0 $((8 * $1))
	# It gives up a unit at its first failing write.
	costs 4 4 failing settled eval "expect '0 units restored, 1 units stay*' message r restore $first"
	costs 16 16 failing settled eval "expect '0 units restored, 8 units stay*' message r restore $first $((8 * $1))"
	there 0 $((8 * $1))
}
check "restore to a main that still fails: at most 4 for a unit, 16 for eight" restores 8
check "with units of 64 sectors: the same" restores 64

# --- Less than a physical block

begin medium
sub_block() {
	part /run/new 3 1 >/run/io
	put /run/io /dev/mapper/r $((first + 3))
}
check "512 bytes into a bad physical block: one write fails, and no other is tried" costs 4 1 failing settled sub_block
check "the sector is in a slot, the other seven are errors" eval \
	'expect "$first partial 8" list r &&
	expect "$first-$((first + 2)) $((first + 4))-$((first + 7))" unreadable /dev/mapper/r $first 8'
again() { dmsetup remove r && create r /dev/mapper/main /dev/spare; }
check "it is read back, after re-activation too" eval 'there 3 1 && again && there 3 1'
straddling() { # 4 sectors of one physical block, two whole ones, 4 of the next
	part /run/new 1028 24 >/run/io
	put /run/io /dev/mapper/r $((first + 1028))
	there 1028 24
	expect "$((first + 1024))-$((first + 1027)) $((first + 1052))-$((first + 1055))" \
		unreadable /dev/mapper/r $((first + 1024)) 32
}
check "a write that begins and ends within bad blocks: what it has is read back, the rest are errors" straddling

# --- Main is asked whether it answers where it does

disarm
dmsetup remove r
dmsetup remove main
dmsetup remove failing
rmmod scsi_debug
disk base 8
first_read() { # LAST: all up to it is bad, and nothing was read or written before.
	blank /dev/spare
	create r /dev/base /dev/spare unit_sectors 8
	bad base 0 "$1"
	run fails_with "No data available" get /dev/mapper/r 0 8
	((status)) || run expect "0 pending 0" list r
	dmsetup remove r
	return "$status"
}
first_write() { # LAST
	blank /dev/spare
	create r /dev/base /dev/spare unit_sectors 8
	bad base 0 "$1"
	part /run/new 0 8 >/run/io
	run put /run/io /dev/mapper/r 0
	((status)) || run same /run/io /dev/mapper/r 0
	dmsetup remove r
	return "$status"
}
for last in 0 7 9999; do
	check "the first thing read, of a main bad from 0 to $last: pending" first_read $last
	good base 0 16383
	check "the first thing written: in a slot" first_write $last
	good base 0 16383
done
remove_disk base

# --- Errors that do not come back

blank /dev/spare
disk once 8 badblocks_once=1
put /run/model /dev/once
create r /dev/once /dev/spare unit_sectors 8
unmoved() {
	idle r
	expect "active 0/* 0 0 0" field r mode slots slots_bad relocated pending
	expect "" list r
	same /run/model /dev/mapper/r
}
# Each bad block fails one command.
read_once() { # FIRST COUNT
	bad once $(($1 + 3))
	part /run/model "$1" "$2" | cmp - <(get /dev/mapper/r "$1" "$2")
	unmoved
}
check "a read that fails once with an I/O error succeeds, and moves nothing" read_once 1000 8
check "nor does one of many units" read_once 2000 128
check "they are counted" expect "2 2" field r read_errors reads_recovered
write_once() { # FIRST COUNT
	bad once $(($1 + 3))
	part /run/new "$1" "$2" >/run/io
	put /run/io /dev/mapper/r "$1"
	edit /run/model "$1" /run/io
	unmoved
}
check "a write that fails once with an I/O error succeeds, and moves nothing" write_once 1200 8
check "nor does one of many units" write_once 2400 128
check "they are counted, too" expect "2 2" field r write_errors writes_recovered
many() {
	local n
	for ((n = 0; n < 40; n++)); do
		bad once $((1000 + 40 * n))
		get /dev/mapper/r $((1000 + 40 * n)) 8 >/dev/null
		bad once $((1004 + 40 * n))
		part /run/model $((1000 + 40 * n)) 8 >/run/io
		put /run/io /dev/mapper/r $((1000 + 40 * n))
	done
	unmoved
}
check "forty of each, all over the disk: the same" many
dmsetup remove r
remove_disk once spare
