#!/bin/bash
# ext4 and xfs over 100 random bad blocks are as good as on a sound disk, and without dm-remap they are not.
# kernels: stock (debug) (previous)
# vm: --smp 2
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 10

mkdir -p /mnt
tree=/usr/lib/python3.13
[[ -d $tree ]] || tree=$(echo /usr/lib/python3.*)
# First sectors of 100 blocks of 4 KiB, random among those that the file system will write: ext4 nearly all of its
# 48 MiB, xfs the beginning of each of its 4 allocation groups of 80 MiB.
bad_blocks() {
	awk -v type="$1" 'BEGIN {
		srand(1)
		while (n < 100) {
			block = type == "ext4" ? int(rand() * 12288) : int(rand() * 4) * 20480 + int(rand() * 2048)
			if (!seen[block]++) { print 8 * block; n++ }
		}
	}'
}
# use DEVICE TYPE: make, fill, check.
use() {
	case $2 in
	ext4) mkfs.ext4 -q -F -b 4096 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 "$1" ;;
	xfs) mkfs.xfs -q -f -K "$1" ;;
	esac
	mount -t "$2" "$1" /mnt
	cp -a "$tree" /mnt/tree
	umount /mnt
	verify "$@"
}
verify() {
	case $2 in
	ext4) e2fsck -fn "$1" ;;
	xfs) xfs_repair -n "$1" ;;
	esac
	mount -t "$2" -o ro "$1" /mnt
	diff -r "$tree" /mnt/tree
	umount /mnt
}

for type in ext4 xfs; do
	size=48
	[[ $type == ext4 ]] || size=320
	disk main $size
	disk spare 8
	while read -r sector; do bad main "$sector" $((sector + 7)); done < <(bad_blocks $type)
	create r /dev/main /dev/spare
	check "$type: make, fill, check, compare" use /dev/mapper/r $type
	check "$type: many of the blocks were bad" test "$(field r relocated)" -ge 40
	dmsetup remove r
	create r /dev/main /dev/spare
	check "$type: the same after re-activation" verify /dev/mapper/r $type
	! mountpoint -q /mnt || umount /mnt
	check "$type: no sector was lost" expect 0 field r pending
	dmsetup remove r
	check "$type: on the disk itself it fails" not use /dev/main $type
	! mountpoint -q /mnt || umount /mnt
	remove_disk main spare
done
