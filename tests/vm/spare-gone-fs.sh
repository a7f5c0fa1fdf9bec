#!/bin/bash
# The spare is unplugged below a file system under a load of fsyncs. With nothing in slots nobody notices; with data in them there are
# errors for what the spare has and for what must be durable there, and what was acknowledged is there once it is back.
# kernels: stock (debug)
# vm: --smp 2
# shellcheck source=tests/vm/lib.sh disable=SC2016
. /host/lib.sh
plan 22
mkdir -p /mnt

# Writes files that say what they are, one after the other, each with fsync of it and of its directory; says in
# /run/acknowledged which are durable; and removes the oldest, saying so first in /run/removed. Until /run/stop is there; exit status 3
# and the error in /run/error if one is met.
cat >/run/load.py <<'P'
import os, sys
sys.path.insert(0, "/host")
import dm

acknowledged, removed = open("/run/acknowledged", "w"), open("/run/removed", "w")
directory = os.open("/mnt", os.O_RDONLY)
n = 0
try:
    while not os.path.exists("/run/stop"):
        fd = os.open(f"/mnt/file{n}", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.write(fd, dm.file_data(f"file{n}", 1))
        os.fsync(fd)
        os.close(fd)
        os.fsync(directory)
        print(n, file=acknowledged, flush=True)
        if n >= 40:
            print(n - 40, file=removed, flush=True)
            os.unlink(f"/mnt/file{n - 40}")
        # One file is written again and again where it is.
        fd = os.open("/mnt/same", os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, b"%8d" % n, 4096 * (n % 50))
        os.fdatasync(fd)
        os.close(fd)
        n += 1
except OSError as error:
    print(error, file=open("/run/error", "w"))
    sys.exit(3)
P
# Whether every file that was acknowledged, and not removed since, is there byte for byte.
cat >/run/verify.py <<'P'
import sys
sys.path.insert(0, "/host")
import dm
removed = {int(line) for line in open("/run/removed")}
files = [n for n in map(int, open("/run/acknowledged")) if n not in removed]
for n in files:
    assert open(f"/mnt/file{n}", "rb").read() == dm.file_data(f"file{n}", 1), n
same = open("/mnt/same", "rb").read()
last = max(files)
for n in range(max(0, last - 49), last):
    assert same[4096 * (n % 50):][:8] == b"%8d" % n or int(same[4096 * (n % 50):][:8]) > n, n
print(len(files), "files are there")
P
acknowledged() { wc -l </run/acknowledged; }
at_least() { (($(acknowledged) >= $1)); }
# start: the load begins; its exit status will be in /run/ended.
start() {
	rm -f /run/stop /run/ended /run/error
	: >/run/acknowledged
	{
		status=0
		python3 -S /run/load.py || status=$?
		echo $status >/run/ended
	} &
}
ended() { [[ -s /run/ended ]]; }
stop() {
	: >/run/stop
	soon ended
	[[ ! -e /run/error ]] || cat /run/error
	expect 0 cat /run/ended
}
# begin TYPE: a device with a file system, mounted.
begin() {
	pluggable 16
	blank "$plugged"
	create r /dev/main "$plugged" unit_sectors 8
	# What is bad has a slot, or a program that reads before it writes would fail.
	while read -r sector; do dd if=/dev/zero of=/dev/mapper/r bs=16k count=1 oflag=direct,seek_bytes seek=$((sector * 512)) \
		conv=notrunc status=none; done </run/bad
	case $1 in
	ext4) mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/r ;;
	xfs) mkfs.xfs -q -f -K /dev/mapper/r ;;
	esac
	mount -t "$1" /dev/mapper/r /mnt
}
# (An xfs that was shut down fails what mountpoint asks.)
unmount() { ! grep -q " /mnt " /proc/mounts || umount /mnt; }
end() {
	unmount
	dmsetup remove r
	rmmod scsi_debug
	remove_disk main
}
writable() { grep -E "^/dev/mapper/r /mnt $1 rw" /proc/mounts; }
fsck() {
	case $1 in
	# That there was an error is noted in the superblock; it may correct that.
	ext4) { e2fsck -fy /dev/mapper/r || (($? == 1)); } && e2fsck -fn /dev/mapper/r ;;
	xfs) xfs_repair -n /dev/mapper/r ;;
	esac
}

for type in ext4 xfs; do
	size=48
	[[ $type == ext4 ]] || size=320

	# --- Nothing in slots

	disk main $size cache_size=4
	: >/run/bad
	begin $type
	mark
	start
	check "$type: a load of fsyncs" soon at_least 30
	goes_on() {
		unplug
		soon at_least $(($(acknowledged) + 60))
	}
	check "$type: the spare is unplugged, nothing in slots: it goes on" goes_on
	check "$type: without any error" stop
	check "$type: the file system is as it was, and can be written" eval \
		"writable $type && : >/mnt/new && sync /mnt/new && not eval 'log | grep -E \"EXT4-fs error|XFS.*(error|shut)\"'"
	no_entries() { expect "0 0" field r relocated pending; }
	check "$type: and no unit was relocated" no_entries
	verified() {
		echo 3 >/proc/sys/vm/drop_caches
		python3 -S /run/verify.py
		umount /mnt
		fsck "$1"
	}
	check "$type: all is there, and it is sound" verified $type
	end

	# --- Something in slots

	# One block in twelve of those that the file system will write.
	disk main $size cache_size=4
	awk -v type=$type 'BEGIN {
		srand(7)
		for (n = 0; n < 250; n++) {
			# xfs begins in each of four allocation groups.
			print type == "ext4" ? 384 * n + 32 * int(12 * rand()) : 163840 * (n % 4) + 384 * int(n / 4) + 32 * int(12 * rand())
		}
	}' >/run/bad
	while read -r sector; do bad main "$sector" $((sector + 31)); done </run/bad
	begin $type
	start
	check "$type, bad blocks: a load of fsyncs" soon at_least 30
	check "$type, bad blocks: many are in slots" test "$(field r relocated)" -ge 900
	# That is within the load's next few files: each writes a few blocks, and the journal.
	unplug
	check "$type, bad blocks: the spare is unplugged: a write or an fsync fails" eval 'soon ended && expect 3 cat /run/ended'
	: >/run/stop
	soon ended
	# Not a sector more than what the spare holds.
	only_those() {
		list r | awk '$2 != "pending" { print $1 }' >/run/held
		python3 -S - <<-'P'
			import mmap, os
			held = {int(line) // 8 for line in open("/run/held")}
			fd, buffer = os.open("/dev/mapper/r", os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, 4096)
			units = os.lseek(fd, 0, os.SEEK_END) // 4096
			failed = set()
			for unit in range(min(units, 40000)):
			    try:
			        os.preadv(fd, [buffer], unit * 4096)
			    except OSError:
			        failed.add(unit)
			print(len(failed), "units cannot be read, of", len(held), "held")
			assert failed <= held, failed - held
			assert failed
		P
	}
	check "$type, bad blocks: what main has can be read, what the spare has cannot" only_those
	unmount
	back() {
		plug
		table /dev/main "$plugged" | reload r
		expect active field r mode
		mount -t "$1" /dev/mapper/r /mnt
		python3 -S /run/verify.py
		umount /mnt
		fsck "$1"
		mount -t "$1" /dev/mapper/r /mnt
		python3 -S /run/verify.py
		umount /mnt
	}
	check "$type, bad blocks: plugged again, a new table: what was acknowledged is there, and it is sound" back $type
	unmount
	end
done
