#!/bin/bash
# The spare is unplugged, or does not flush: what main has does not suffer, and no flush that needs the spare is acknowledged.
# kernels: stock (debug)
# shellcheck source=tests/vm/lib.sh disable=SC2016
. /host/lib.sh
plan 32

main=32768
disk main 16 cache_size=4
data /run/model $main
put /run/model /dev/main
data /run/data 8
data /run/other 8
pluggable 16
mkdir -p /mnt

# A unit that main cannot hold, behind the file system that there will be.
bad_unit=30000
bad main $bad_unit $((bad_unit + 7))

# with_fua SECTOR: writes /run/data there with FUA, and without the flush that a program's O_DSYNC write brings along.
cat >/run/fua.py <<'P'
import os, sys
sys.path.insert(0, "/host")
import dm
fd = os.open("/dev/mapper/r", os.O_RDWR | os.O_DIRECT)
buffer = dm.memory(4096)
buffer[:] = open("/run/data", "rb").read()
aio = dm.Aio(fd, 1)
aio.submit(memoryview(buffer), int(sys.argv[1]) * 512, True, 0)
(_, result), = aio.reap()
sys.exit(f"{os.strerror(-result)}" if result < 0 else 0)
P
with_fua() { python3 -S /run/fua.py "$1"; }
# fsyncs COUNT OUTCOME: one file descriptor, healthy sectors written through the page cache and fsync, over and over; each of
# them succeeds (0) or fails with EIO (5).
cat >/run/fsyncs.py <<'P'
import os, sys
fd = os.open("/dev/mapper/r", os.O_RDWR)
for n in range(int(sys.argv[1])):
    os.pwrite(fd, bytes([n + 1]) * 4096, 8192 * n)
    try:
        os.fsync(fd)
        error = 0
    except OSError as e:
        error = e.errno
    assert error == int(sys.argv[2]), f"fsync {n}: {error}"
P
fsyncs() { python3 -S /run/fsyncs.py "$@"; }
# Writes that return when the data is durable: FUA, and with a flush.
durably() {
	with_fua 8000
	same /run/data /dev/mapper/r 8000
	put /run/other /dev/mapper/r 8000 oflag=direct,seek_bytes,sync
	put /run/other /dev/mapper/r 8100 oflag=direct,seek_bytes,dsync
	put /run/data /dev/mapper/r 8200 conv=fsync,notrunc
	same /run/other /dev/mapper/r 8000
}
plainly() {
	put /run/data /dev/mapper/r 9000
	same /run/data /dev/mapper/r 9000
	part /run/model 20000 800 >/run/part
	same /run/part /dev/mapper/r 20000
}
# begin: the device, with its spare, new or as it was.
begin() { create r /dev/main "$plugged" unit_sectors 8; }
end() {
	dmsetup remove r
	plug
}

# --- Nothing in slots

begin
check "unplugged, nothing in slots: fsync works" eval 'unplug && fsyncs 20 0'
check "so do writes with FUA, with O_SYNC, with O_DSYNC, with fsync" durably
check "and plain reads and writes" plainly
check "the mode does not say that main is at fault" not expect tripped field r mode
check "suspend and resume: the same" eval 'dmsetup suspend r && dmsetup resume r && fsyncs 5 0 && durably'
unreadable_now() {
	fails_with "No data available" get /dev/mapper/r $bad_unit 8
	not put /run/data /dev/mapper/r $bad_unit
	fsyncs 5 0
	durably
}
check "a bad sector on main is an error then, for reads and writes, and fsync still works" unreadable_now
end
# What the page cache keeps of a write that failed goes with the device.
begin
check "plugged again: the device is activated, and is as it was" eval 'plainly && fsyncs 5 0 && durably'
check "an entry is made, and flushed" eval 'put /run/data /dev/mapper/r $bad_unit && sync /dev/mapper/r'

# --- Written to a slot and flushed

check "a flush reaches the spare if a slot was written since the last one" eval '
	put /run/other /dev/mapper/r $bad_unit && before=$(requests "$plugged") && sync /dev/mapper/r &&
	(($(requests "$plugged") > before))'
check "and does not if none was" eval 'before=$(requests "$plugged") && fsyncs 5 0 && expect "$before" requests "$plugged"'
unplug
check "unplugged, all that was written to slots was flushed: fsync works" fsyncs 20 0
check "so does what is durable when it returns" durably
check "and plain I/O" plainly
redirected() {
	not get /dev/mapper/r $bad_unit 8
	not put /run/data /dev/mapper/r $bad_unit
	expect "$bad_unit relocated ff" list r
	fsyncs 5 0
}
check "what is in slots is an error then, read and written, and fsync still works" redirected
end
begin
check "plugged again: it is there" same /run/other /dev/mapper/r $bad_unit

# --- Written to a slot and not flushed

put /run/data /dev/mapper/r $bad_unit
unplug
check "unplugged with a slot written and not flushed: fsync fails, each time" fsyncs 10 5
check "so does a write with FUA" eval 'not with_fua 8000 && not with_fua 8000'
check "and one with O_DSYNC" eval '
	not put /run/data /dev/mapper/r 8000 oflag=direct,seek_bytes,dsync &&
	not put /run/data /dev/mapper/r 8000 oflag=direct,seek_bytes,dsync'
check "plain reads and writes work" plainly
check "suspend and resume forget nothing" eval 'dmsetup suspend r; dmsetup resume r; fsyncs 3 5 && not with_fua 8000'
end
begin
check "plugged again: fsync works, and what was written is there" eval \
	'fsyncs 5 0 && durably && same /run/data /dev/mapper/r $bad_unit'

# A journal's commit is a write with a flush before it, whose error device-mapper does not see.
commits() {
	python3 -S - <<-'P'
		import os
		for n in range(3):
		    fd = os.open(f"/mnt/file{n}", os.O_RDWR | os.O_CREAT)
		    os.write(fd, bytes([n + 1]) * 4096)
		    os.fsync(fd)
		    os.close(fd)
	P
}
# The debug kernel lets nobody write to what is mounted: a linear device lies between.
fs=/dev/mapper/r
layer() { [[ $VM_KERNEL == stock ]] || { lower fs /dev/mapper/r 0 24576 && fs=/dev/mapper/fs; }; }
unmount() { umount /mnt && { [[ $VM_KERNEL == stock ]] || dmsetup remove fs; }; }
layer
mkfs.ext4 -q -F -E nodiscard "$fs" 12M
mount -t ext4 "$fs" /mnt
check "on a file system, files are written and fsynced" commits
put /run/other /dev/mapper/r $bad_unit
unplug
none_commits() {
	python3 -S - <<-'P'
		import os
		done = 0
		for n in range(5):
		    try:
		        fd = os.open(f"/mnt/new{n}", os.O_RDWR | os.O_CREAT)
		        os.write(fd, bytes([n + 1]) * 4096)
		        os.fsync(fd)
		        done += 1
		    except OSError as error:
		        print(error)
		assert done == 0, f"{done} were acknowledged"
	P
}
check "a slot written and not flushed, unplugged: no commit of the journal is acknowledged" none_commits
unmount
end
begin
layer
check "plugged again: the file system is sound, and has what was acknowledged" eval '
	mount -t ext4 "$fs" /mnt && expect 3 eval "ls /mnt/file? | wc -l" && commits && umount /mnt && e2fsck -fn "$fs"'
[[ $fs == /dev/mapper/r ]] || dmsetup remove fs
dmsetup remove r
rmmod scsi_debug

# --- A spare whose flushes fail for a while

scsi 16
create r /dev/main "$sick" unit_sectors 8
put /run/data /dev/mapper/r $bad_unit
sync /dev/mapper/r
arm target 35
check "the spare does not flush, nothing to be flushed there: fsync works" eval 'fsyncs 5 0 && durably && plainly'
written() {
	put /run/other /dev/mapper/r $bad_unit
	same /run/other /dev/mapper/r $bad_unit
}
check "slots are written and read" written
check "then fsync fails" not fsyncs 1 0
check "each time, and what else must be durable" eval \
	'not fsyncs 1 0 && not with_fua 8000 && not put /run/data /dev/mapper/r 8000 oflag=direct,seek_bytes,dsync'
check "plain reads and writes work, and slots are read and written" eval 'plainly && written'
disarm
check "the spare flushes again: so does fsync, at once" fsyncs 5 0
check "and FUA writes" durably
unplugged() {
	plainly
	same /run/other /dev/mapper/r $bad_unit
	arm target 35
	fsyncs 5 0
	durably
	disarm
}
check "and nothing is left to be flushed" unplugged
dmsetup remove r
remove_disk main
