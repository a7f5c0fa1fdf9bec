#!/bin/bash
# The main job, told to a person: two equal disks with bad sectors, one under dm-remap and one not.
# Run by `make demo` in the test machine, on the distribution's own kernel.
set -eu

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
run() { printf '  $ %s\n' "$*"; "$@" 2>&1 | sed 's/^/    /'; return "${PIPESTATUS[0]}"; }
fail() { printf '\nDEMO FAILED: %s\n' "$*"; exit 1; }

disk() { # NAME MiB
	mkdir "/sys/kernel/config/nullb/$1"
	for pair in "size $2" "memory_backed 1" "blocksize 512"; do
		echo "${pair#* }" >"/sys/kernel/config/nullb/$1/${pair% *}"
	done
	echo 1 >"/sys/kernel/config/nullb/$1/power"
}

# The 256 MiB disks get 60 bad ranges of 1 to 24 sectors. The first three are where ext4 keeps the group descriptors,
# the inode table and the first directories; the others lie about where files go.
bad_ranges() {
	echo 20-23 && echo 2100-2107 && echo 18432-18433
	local n start
	RANDOM=42
	for n in $(seq 57); do
		start=$((40000 + n * 5000 + RANDOM % 3000))
		echo "$start-$((start + RANDOM % 24))"
	done
}

use_disk() { # DEVICE MOUNT-POINT: makes a file system and copies the tree; fails as a user would see it fail
	run mkfs.ext4 -q -F -b 4096 -E lazy_itable_init=0,lazy_journal_init=0 "$1" &&
		run mount "$1" "$2" &&
		run cp -a /usr/lib/x86_64-linux-gnu /usr/lib/python3* /usr/sbin "$2/" &&
		run sync -f "$2"
}

modprobe null_blk nr_devices=0
mount -t configfs none /sys/kernel/config 2>/dev/null || true
mkdir -p /mnt/protected /mnt/plain
disk worn 256
disk twin 256
disk spare 16

say "Linux $(uname -r), as the distribution ships it"
say "Two worn-out disks, equal: 256 MiB with bad sectors. Reading or writing one of those fails."
for range in $(bad_ranges); do
	echo "+$range" >/sys/kernel/config/nullb/worn/badblocks
	echo "+$range" >/sys/kernel/config/nullb/twin/badblocks
done
echo "  $(bad_ranges | wc -l) bad ranges; the first (sectors): $(bad_ranges | head -n 5 | tr '\n' ' ')..."
run dd if=/dev/zero of=/dev/worn bs=512 seek=2100 count=1 oflag=direct status=none && fail "the disk is not broken"

say "The first one gets a spare of 16 MiB and dm-remap over both"
sectors=$(blockdev --getsz /dev/worn)
table="0 $sectors remap /dev/worn 0 /dev/spare 0"
run dmsetup create protected --table "$table"
run dmsetup status protected

say "A file system on it, and $(du -smc /usr/lib/x86_64-linux-gnu /usr/lib/python3* /usr/sbin | tail -n 1 | cut -f1) MiB of files"
use_disk /dev/mapper/protected /mnt/protected || fail "the protected disk gave an error"
(cd /mnt/protected && find . -type f -print0 | sort -z | xargs -0 sha256sum) >/tmp/sums
echo "  $(wc -l </tmp/sums) files, their checksums noted"
run umount /mnt/protected
run dmsetup status protected
echo "  (mode, unit, slots used/total, bad slots, relocated, pending, read and write errors, recovered, redirected, ...)"
echo "  The first units that were relocated (sector, state, slot, sectors held):"
dmsetup message protected 0 list | head -n 5 | sed 's/^/    /'
relocated=$(dmsetup message protected 0 list | grep -cv pending) || fail "nothing was relocated: this showed nothing"

say "The device is removed, the module unloaded, all of it activated again from what the spare says"
run dmsetup remove protected
run rmmod dm-remap
run dmsetup create protected --table "$table"
run dmsetup status protected
[ "$(dmsetup message protected 0 list | grep -cv pending)" = "$relocated" ] || fail "entries were lost"

say "Is the file system sound, and is every file what was copied?"
run fsck.ext4 -f -n /dev/mapper/protected || fail "fsck found errors"
run mount -o ro /dev/mapper/protected /mnt/protected
(cd /mnt/protected && sha256sum --quiet -c /tmp/sums) || fail "files changed"
diff -r --no-dereference /usr/sbin /mnt/protected/sbin || fail "files differ from the originals"
echo "  all $(wc -l </tmp/sums) checksums are equal"
run umount /mnt/protected
run dmsetup remove protected
run rmmod dm-remap

say "The same with the other disk, without dm-remap"
broken=''
if ! use_disk /dev/twin /mnt/plain; then
	broken="an I/O error"
fi
if mountpoint -q /mnt/plain; then
	(cd /mnt/plain && sha256sum --quiet -c /tmp/sums >/tmp/lost 2>&1) ||
		broken="${broken:+$broken, and }$(grep -c FAILED /tmp/lost) files damaged or unreadable"
	umount /mnt/plain || true
fi
[ -n "$broken" ] || fail "the plain disk works as well: this showed nothing"
echo "  As expected, it failed: $broken."

say "Done: $relocated units relocated, nothing lost with dm-remap; without it, $broken."
