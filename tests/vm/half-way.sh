#!/bin/bash
# Writes on their way while their unit moves, and commits of which one part fails: what was acknowledged stays, what may be on
# the spare already is not forgotten.
# kernels: stock (debug)
# vm: --smp 2
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 9

modprobe -a dm_delay dm_log_writes
disk disk 8
disk sparedisk 2
data /run/old 16384
data /run/new 8
put /run/old /dev/disk
# Writes to main take a while.
sectors=16384 spare=4096
dmsetup create main --table "0 $sectors delay /dev/disk 0 0 /dev/disk 0 2000"
dmsetup create spare --table "0 $spare linear /dev/sparedisk 0"
create r /dev/mapper/main /dev/mapper/spare unit_sectors 8
blocks=$(od -An -t u8 -j 104 -N 8 /dev/sparedisk | xargs)
read -r first second < <(od -An -t u8 -j 136 -N 16 /dev/sparedisk)
# fail_blocks FROM COUNT: these table blocks can be neither read nor written, in any area; heal: they can.
fail_blocks() {
	holes /dev/sparedisk $((8 * (first + $1))) $((8 * (first + $1 + $2) - 1)) \
		$((8 * (second + $1))) $((8 * (second + $1 + $2) - 1)) | reload spare
}
heal_blocks() { echo "0 $spare linear /dev/sparedisk 0" | reload spare; }
in_flight() { soon eval "((\$(awk '{ print \$2 }' /sys/dev/block/$(dmsetup info -c --noheadings -o major,minor r)/inflight) >= 1))"; }

# --- A write on its way to main while its unit is relocated

# write_beside COMMAND...: the command runs while a write to sector 8000 is on its way; returns what the write says.
write_beside() {
	local writer
	put /run/new /dev/mapper/r 8000 &
	writer=$!
	in_flight
	"$@"
	kill -0 $writer
	wait $writer
}
not_committed() {
	fail_blocks 0 "$blocks"
	# The table may have the relocation or not: while nobody can say so, the write is not acknowledged.
	not write_beside not message r remap 8000
	heal_blocks
	message r sync
	put /run/new /dev/mapper/r 8000
	dmsetup remove r
	create r /dev/mapper/main /dev/mapper/spare
	same /run/new /dev/mapper/r 8000
}
check "a write on its way, and a relocation that cannot be committed: not acknowledged" not_committed
released() {
	# Nothing is left that every later write has to wait for.
	message r restore 8000
	fail_blocks 0 "$blocks"
	not message r remap 9000
	heal_blocks
	message r sync
	expect "9000 pending 0" eval 'list r | grep "^9000 "'
	put /run/new /dev/mapper/r 9000
	expect "9000 relocated ff" eval 'list r | grep "^9000 "'
	same /run/new /dev/mapper/r 9000
}
check "once the table can be written again, the unit is written and read as any other" released
committed() {
	write_beside message r remap 8000
	same /run/new /dev/mapper/r 8000
}
check "with a relocation that is committed: it ends in the slot" committed
dmsetup remove r
dmsetup remove spare

# --- The same write with FUA, to a main device without a cache, for which the block layer drops FUA; the spare has one

disk cached 2 cache_size=1 fua=1
disk log 16
dmsetup create spare --table "0 $spare log-writes /dev/cached /dev/log"
create r /dev/mapper/main /dev/mapper/spare unit_sectors 8
cat >/run/fua.py <<'P'
"""fua.py SECTOR: one write with FUA. fua.py SECTOR LOG: prints the flags of the last write of 8 sectors there in the log."""
import os, struct, sys
sys.path.insert(0, "/host")
import dm
sector = int(sys.argv[1])
if len(sys.argv) == 2:
    fd = os.open("/dev/mapper/r", os.O_RDWR | os.O_DIRECT)
    aio, buffer = dm.Aio(fd, 1), dm.memory(4096)
    buffer[:] = open("/run/new", "rb").read()
    aio.submit(memoryview(buffer), sector * 512, True, "write")
    assert aio.reap() == [("write", 4096)]
else:
    log = open(sys.argv[2], "rb", buffering=0)
    _, _, count, size = struct.unpack("<QQQI", log.read(28))
    at, found = size, "none"
    for _ in range(count):
        log.seek(at)
        start, length, flags, data = struct.unpack("<QQQQ", log.read(32))
        at += size + (0 if flags & 4 else length * 512 if length else 0)
        if (start, length) == (sector, 8):
            found = flags
    print(found)
P
fua() {
	local writer at
	python3 /run/fua.py 8000 &
	writer=$!
	in_flight
	message r remap 8000
	wait $writer
	at=$(slot_at /dev/cached "$(slot_of r 8000)")
	same /run/new /dev/mapper/r 8000
	dmsetup message spare 0 mark end
	# LOG_FUA_FLAG
	expect 2 eval "echo \$((\$(python3 /run/fua.py $at /dev/log) & 2))"
}
check "a write with FUA that ends in the slot is written there with FUA" fua
dmsetup remove r
dmsetup remove spare

# --- A write on its way to slots side by side while one of the units, not the first, goes back to main

blank /dev/sparedisk
dmsetup create spare --table "0 $spare linear /dev/sparedisk 0"
create r /dev/mapper/main /dev/mapper/spare unit_sectors 8
data /run/long 24
side_by_side() {
	local writer at
	message r remap 8000 24
	at=$(slot_at /dev/sparedisk "$(slot_of r 8000)")
	segments "delay /dev/sparedisk @ 0 /dev/sparedisk @ 600000" /dev/sparedisk "$at" $((at + 23)) | reload spare
	put /run/long /dev/mapper/r 8000 &
	writer=$!
	in_flight
	expect "1 units restored, 0 units stay" message r restore 8008
	kill -0 $writer
	# Now it arrives.
	heal_blocks
	wait $writer
	same /run/long /dev/mapper/r 8000
	expect "2 1" field r relocated writes_redirected
}
check "a write to three slots in one piece, and the second unit is restored: it ends where the units are" side_by_side
dmsetup remove r
dmsetup remove spare

# --- Entries in two table blocks, one of which cannot be written

blank /dev/sparedisk
dmsetup create spare --table "0 $spare linear /dev/sparedisk 0"
create r /dev/mapper/main /dev/mapper/spare unit_sectors 8
half_marked() {
	# Two slots of the first block, so that 126 more are in two.
	message r mark 8000 16
	fail_blocks 1 1
	not message r mark 0 1008
	heal_blocks
	message r sync
	message r mark 0 1008
	expect 128 field r pending
	dmsetup remove r
	create r /dev/mapper/main /dev/mapper/spare
	expect "128 128/*" field r pending slots
}
check "marking units in two table blocks, one of which cannot be written: once it can, all are pending, each once" half_marked
expect_whole() { expect "* 0 stale, 0 damaged, 0 repaired" message r check; }
check "and the table is as memory has it" expect_whole
again() {
	fail_blocks 1 1
	not message r mark 2000 1008
	# Not another word to this table: the next one finds what there is, and no unit twice.
	heal_blocks
	dmsetup remove r
	create r /dev/mapper/main /dev/mapper/spare
	message r mark 2000 1008
	expect 254 field r pending
}
check "the same, and the device goes at once" again
dmsetup remove r
check "the module can go" rmmod dm-remap
