#!/bin/bash
# Flush, FUA, discard, write-zeroes, passthrough, nowait, polling, read-only, and limits of all sorts.
# kernels: stock (debug)
# vm: --smp 2
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 35

data /run/data 64
data /run/other 64
over() { put "$1" /dev/mapper/r 1000 "${@:2}"; }

# --- Flush and FUA: disks with a write cache, which count flushes

disk main 8 cache_size=1 fua=1
disk spare 4 cache_size=1 fua=1
bad main 1003
bad main 1030 1031
create r /dev/main /dev/spare unit_sectors 8
flushes() { awk '{ print $16 }' "/sys/block/$1/stat"; }
flush() {
	local before=("$(flushes main)" "$(flushes spare)")
	dd if=/run/data of=/dev/mapper/r bs=4096 seek=500 conv=notrunc,fsync status=none
	(($(flushes main) > before[0])) && expect "$1" echo $(($(flushes spare) - before[1]))
}
check "a flush reaches main, and not the spare, which has nothing to make durable" flush 0
to_slot() {
	# The first two put all of the unit into its slot, and are durable; the third goes there, and is not.
	put /run/data /dev/mapper/r 1024
	put /run/data /dev/mapper/r 1024
	put /run/data /dev/mapper/r 1024
	flush 1
}
check "after a write to a slot it reaches both" to_slot
check "and then it does not again" flush 0
commit() {
	local before
	before=$(flushes spare)
	over /run/data
	(($(flushes spare) > before))
	same /run/data /dev/mapper/r 1000
}
check "a new entry is flushed to the spare before the write is acknowledged" commit
fua() {
	over /run/other oflag=direct,dsync,seek_bytes
	same /run/other /dev/mapper/r 1000
}
check "FUA writes over entries" fua
mounted() {
	mkfs.ext4 -q -F /dev/mapper/r
	mkdir -p /mnt
	mount /dev/mapper/r /mnt
	cp /run/data /mnt/data
	sync
	umount /mnt
	e2fsck -fn /dev/mapper/r
}
check "a file system that flushes" mounted
dmsetup remove r
remove_disk main spare

# --- Discard

disk main 8 discard=1
disk spare 4 discard=1
bad main 1003
bad main 1030 1031
create r /dev/main /dev/spare unit_sectors 8
over /run/data
get /dev/spare 0 8192 >/run/spare
discard() {
	blkdiscard -o $((992 * 512)) -l $((96 * 512)) /dev/mapper/r
	# Redirected sectors keep what they had, the others are what the disk makes of discarded ones.
	get /dev/mapper/r 1003 1 | cmp - <(part /run/data 3 1)
	get /dev/mapper/r 1030 2 | cmp - <(part /run/data 30 2)
	get /dev/mapper/r 1040 20 | cmp - <(head -c 10240 /dev/zero)
}
check "a discard over entries succeeds and keeps redirected sectors" discard
check "the spare is not touched by it" same /run/spare /dev/spare
check "the whole device can be discarded" eval 'blkdiscard /dev/mapper/r && list r'
check "and written again" eval 'over /run/other && same /run/other /dev/mapper/r 1000'

# --- Passthrough

cat >/run/sg.py <<'P'
import errno, fcntl, sys
for name, number in (("SG_IO", 0x2285), ("SCSI_IOCTL_SEND_COMMAND", 1), ("CDROM_SEND_PACKET", 0x5393)):
    with open("/dev/mapper/r", "rb") as device:
        try:
            fcntl.ioctl(device, number, bytearray(256))
        except OSError as error:
            assert error.errno == errno.ENOTTY, (name, error)
        else:
            sys.exit(f"{name} was not refused")
P
check "SCSI commands are not passed through" python3 /run/sg.py

# --- Nowait

cat >/run/nowait.py <<'P'
import errno, mmap, os, sys
device = os.open("/dev/mapper/r", os.O_RDWR | os.O_DIRECT)
want = open("/run/other", "rb").read()
buffer = mmap.mmap(-1, len(want))
for at in range(64):  # of these some are redirected, some not
    view = memoryview(buffer)[:512]
    assert os.preadv(device, [view], (1000 + at) * 512, os.RWF_NOWAIT) == 512
    assert view == want[at * 512:][:512], at
buffer[:] = want
assert os.pwritev(device, [memoryview(buffer)[:512]], 1003 * 512, os.RWF_NOWAIT) == 512
assert os.pwritev(device, [memoryview(buffer)[512:1024]], 3000 * 512, os.RWF_NOWAIT) == 512
try:
    os.pwritev(device, [memoryview(buffer)[:512]], 6000 * 512, os.RWF_NOWAIT)
except BlockingIOError:
    pass
else:
    sys.exit("a write that has to wait for a commit did not say so")
P
bad main 6000
not get /dev/mapper/r 6000 1 2>/dev/null
check "RWF_NOWAIT: healthy and redirected sectors work, what must wait says EAGAIN" python3 /run/nowait.py
uring() {
	fio --name=uring --filename=/dev/mapper/r --direct=1 --ioengine=io_uring --iodepth=16 --rw=randrw --bs=4k \
		--size=3000k --verify=crc32c --output=/run/fio || { cat /run/fio && false; }
}
check "io_uring over entries" uring
cat >/run/again.py <<'P'
import mmap, os, sys
device = os.open("/dev/mapper/r", os.O_RDWR | os.O_DIRECT)
buffer = mmap.mmap(-1, 8192)
def again(sector, count):
    try:
        done = os.pwritev(device, [memoryview(buffer)[:512 * count]], sector * 512, os.RWF_NOWAIT)
    except BlockingIOError:
        return
    sys.exit(f"{done} bytes of {count} sectors at {sector}")
again(6000, 1)
again(6007, 1)
again(5992, 16)
again(6104, 8)
P
pending_nowait() {
	message r mark 6104
	entries=$(message r list 6000)
	python3 /run/again.py
	expect "$entries" message r list 6000
	put /run/data /dev/mapper/r 5992
	same /run/data /dev/mapper/r 5992
}
check "RWF_NOWAIT writes of pending units change nothing; without it they are done" pending_nowait
nowait_recovered() {
	bad main 7003
	python3 - <<'P'
import mmap, os
device = os.open("/dev/mapper/r", os.O_RDWR | os.O_DIRECT)
buffer = mmap.mmap(-1, 4096)
buffer[:] = open("/run/data", "rb").read(4096)
assert os.pwritev(device, [buffer], 7000 * 512, os.RWF_NOWAIT) == 4096
P
	part /run/data 0 8 >/run/part
	same /run/part /dev/mapper/r 7000
	expect "7000 partial * 8" message r query 7000
}
check "a RWF_NOWAIT write that fails on main is recovered" nowait_recovered

# --- Read-only

dmsetup remove r
get /dev/spare 0 8192 >/run/spare
dmsetup create -r r --table "$(table /dev/main /dev/spare)"
readonly_table() {
	expect 1 blockdev --getro /dev/mapper/r
	same /run/data /dev/mapper/r 5992
	not put /run/other /dev/mapper/r 5992
	not blkdiscard /dev/mapper/r
	bad main 6503
	not get /dev/mapper/r 6500 8
	expect "6496 healthy - -" message r query 6500
	expect readonly field r mode
	same /run/spare /dev/spare
}
check "a read-only table serves its entries, refuses writes and makes no entries" readonly_table
dmsetup remove r
good main 6503
create r /dev/main /dev/spare
message r mark 7000
dmsetup create above --table "0 16384 linear /dev/mapper/r 0"
dmsetup load -r r --table "$(table /dev/main /dev/spare)"
dmsetup resume r
get /dev/spare 0 8192 >/run/spare
readonly_below() {
	local at
	# Relocated, partial and pending ones.
	for at in $(list r | awk '{ print $1 }'); do
		get /dev/mapper/r "$at" 8 >/run/part
		not put /run/part /dev/mapper/above "$at"
	done
	same /run/spare /dev/spare
	expect "0" field r writes_redirected
}
check "nor does one that writes reach from a device above, made when it was not read-only" readonly_below
dmsetup remove above
dmsetup remove r

# --- Limits, which are those of both devices

# limit NAME
limit() { cat "/sys/block/dm-$(dmsetup info -c --noheadings -o minor r)/queue/$1"; }
limits() { # LOGICAL PHYSICAL UNIT: of a device that is made for it
	expect "$1" limit logical_block_size
	expect "$2" limit physical_block_size
	expect "$2" limit minimum_io_size
	expect "$1" blockdev --getss /dev/mapper/r
	expect "$3" field r unit_sectors
}
made_for() { # MAIN SPARE LIMITS...
	blank "$2"
	create r "$1" "$2"
	limits "${@:3}"
	dmsetup remove r
}
check "512 byte blocks" made_for /dev/main /dev/spare 512 512 8
remove_disk main spare
modprobe scsi_debug dev_size_mb=8 sector_size=512 physblk_exp=3 lbpu=1
for ((n = 0; n < 100; n++)); do [[ ! -b /dev/sda ]] || break && sleep 0.1; done
disk fine 8
disk coarse 8 blocksize=4096
check "512 over blocks of 512 in 4096" made_for /dev/fine /dev/sda 512 4096 8
check "blocks of 512 in 4096 over 512" made_for /dev/sda /dev/fine 512 4096 8
check "blocks of 512 in 4096 over 4096" made_for /dev/sda /dev/coarse 4096 4096 8
check "4096 over blocks of 512 in 4096" made_for /dev/coarse /dev/sda 4096 4096 8
remove_disk fine coarse
rmmod scsi_debug
modprobe scsi_debug dev_size_mb=8 sector_size=512 physblk_exp=5
for ((n = 0; n < 100; n++)); do [[ ! -b /dev/sda ]] || break && sleep 0.1; done
disk fine 4
check "blocks of 512 in 16384: units of that" made_for /dev/sda /dev/fine 512 16384 32
rmmod scsi_debug
remove_disk fine
smaller() { # MAIN_SECTORS SPARE_SECTORS: the largest request
	disk main 8 max_sectors="$1"
	disk spare 4 max_sectors="$2"
	bad main 1000 1100
	create r /dev/main /dev/spare
	expect 16 limit max_hw_sectors_kb
	over /run/data
	same /run/data /dev/mapper/r 1000
	dmsetup remove r
	remove_disk main spare
}
check "the largest request is the smaller of both: main's" smaller 32 1024
check "the spare's" smaller 1024 32
polling() {
	disk main 8 poll_queues=1
	disk spare 4 poll_queues=1
	create r /dev/main /dev/spare
	expect "1 0" echo "$(cat /sys/block/main/queue/io_poll) $(limit io_poll)"
	# Across an entry, so that bios would be cut.
	message r mark 8
	fails_with "Operation not supported" fio --name=polled --filename=/dev/mapper/r --direct=1 --ioengine=io_uring --hipri \
		--rw=randwrite --bs=16k --size=64k
	dmsetup remove r
	remove_disk main spare
}
check "there is no polling, and what asks for it is told so" polling

# blocks MAIN_BLOCK SPARE_BLOCK [FEATURE...]
blocks() {
	disk main 8 blocksize="$1"
	disk spare 4 blocksize="$2"
	bad main 1008 1015
	bad main 1032 1039
	create r /dev/main /dev/spare "${@:3}"
	expect 4096 blockdev --getss /dev/mapper/r
	over /run/data
	same /run/data /dev/mapper/r 1000
	expect "2 0" field r relocated metadata_errors
	dmsetup remove r
	create r /dev/main /dev/spare
	same /run/data /dev/mapper/r 1000
	dmsetup remove r
	remove_disk main spare
}
check "main of 4096 byte blocks, spare of 512" blocks 4096 512
check "main of 512, spare of 4096" blocks 512 4096
check "both of 4096, with units of 64 sectors" blocks 4096 4096 unit_sectors 64

parts() {
	disk main 8
	disk spare 4
	bad main 1003
	create r /dev/main /dev/spare
	over /run/data
	dmsetup remove r
	get /dev/spare 0 8192 >/run/spare
	remove_disk spare
	disk spare 4 blocksize=4096
	put /run/spare /dev/spare
	refused "relocated in parts of a logical block" create r /dev/main /dev/spare
	same /run/spare /dev/spare
	remove_disk main spare
}
check "sectors that moved to a spare of 512 byte blocks are not served by blocks of 4096" parts

# --- Write-zeroes: loop devices know it, and null_blk has it done with pages of zeroes

disk main 8
disk spare 4
bad main 1003
bad main 1030 1031
bad main 3000 3100
create r /dev/main /dev/spare unit_sectors 8
over /run/data
zeroed() {
	blkdiscard -z -o $((1000 * 512)) -l $((64 * 512)) /dev/mapper/r
	get /dev/mapper/r 1000 64 | cmp - <(head -c 32768 /dev/zero)
	blkdiscard -z -o $((2990 * 512)) -l $((200 * 512)) /dev/mapper/r
	get /dev/mapper/r 2990 200 | cmp - <(head -c 102400 /dev/zero)
}
check "zeroing bad sectors, old and new ones, by writing" zeroed
dmsetup remove r
remove_disk main spare

modprobe loop
rm -f /run/main /run/spare
truncate -s 8M /run/main /run/spare
losetup /dev/loop0 /run/main
losetup /dev/loop1 /run/spare
holes /dev/loop0 1003 1003 1030 1031 3000 3000 | dmsetup create main
create r /dev/mapper/main /dev/loop1 unit_sectors 8
over /run/data
not get /dev/mapper/r 3000 8 2>/dev/null
dmsetup remove r
dmsetup remove main
# Main is sound now, and so knows write-zeroes; the entries stay.
create r /dev/loop0 /dev/loop1
check "the device offers write-zeroes" test "$(cat /sys/block/dm-0/queue/write_zeroes_max_bytes)" -gt 0
units() { list r | awk '$1 != 3000 { print $1 }'; }
zero_entries() {
	same /run/data /dev/mapper/r 1000
	blkdiscard -z -o $((990 * 512)) -l $((500 * 512)) /dev/mapper/r
	get /dev/mapper/r 990 500 | cmp - <(head -c 256000 /dev/zero)
	expect "1000
1024" units
}
check "write-zeroes over entries zeroes the redirected sectors too" zero_entries
zero_pending() {
	blkdiscard -z -o $((2993 * 512)) -l $((9 * 512)) /dev/mapper/r
	get /dev/mapper/r 2993 9 | cmp - <(head -c 4608 /dev/zero)
	expect "3000 partial 3" eval 'list r | tail -n 1'
}
check "write-zeroes over a pending sector puts zeroes into a slot" zero_pending
zeroes_there() {
	dmsetup remove r
	create r /dev/loop0 /dev/loop1
	get /dev/mapper/r 990 500 | cmp - <(head -c 256000 /dev/zero)
	get /dev/mapper/r 2993 9 | cmp - <(head -c 4608 /dev/zero)
}
check "and they are there after re-activation" zeroes_there
dmsetup remove r
losetup -d /dev/loop0
losetup -d /dev/loop1
