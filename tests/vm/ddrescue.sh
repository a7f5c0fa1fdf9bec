#!/bin/bash
# A failing disk is copied with ddrescue; what could not be read is pending on the copy: an error, not old data, until
# it is written (docs/usage.md).
# kernels: stock (debug)
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 11

sectors=65536
disk main 32
disk copy 32
disk spare 1
# What was on the copy before must never pass for the disk's.
data /run/old $sectors
put /run/old /dev/copy
mkfs.ext4 -q -F -b 4096 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 /dev/main
mkdir -p /mnt /run/files
mount /dev/main /mnt
for n in {1..8}; do data "/run/files/$n" 640; done
cp -r /run/files /mnt
umount /mnt

# first DEVICE FILE BLOCK: the sector of the file system that this block of a file begins at.
first() { debugfs -R "blocks $2" "$1" 2>/dev/null | awk -v n="$3" '{ print 8 * $(n + 1) }'; }
file2=$(($(first /dev/main files/2 10) + 3))
file4=$(($(first /dev/main files/4 20) + 5))
free=$(($(debugfs -R "ffb 1 6000" /dev/main 2>/dev/null | awk '{ print 8 * $NF }') + 2))
bad main $file2
bad main $file4 $((file4 + 19))
bad main $free

images() {
	ddrescue -q -f -d -r1 /dev/main /dev/copy /run/map
	not same /run/old /dev/copy
	dmremap format /dev/spare --main /dev/copy --unit-sectors 1 --yes
	expect "22 units marked*" dmremap import /dev/spare /run/map --format ddrescue --statuses '?*/-'
	create rescued /dev/copy /dev/spare pending_reads fail
}
check "what ddrescue could not read becomes pending entries of its copy" images

pending() { message rescued list | awk '$2 == "pending" { print $1 }'; }
marked() {
	{ echo $file2 && seq $file4 $((file4 + 19)) && echo $free; } | sort -n >/run/expected
	pending | cmp - /run/expected
}
check "exactly the sectors that were bad are" marked

# The files that pending sectors hit.
hit() {
	local inodes
	debugfs -R "icheck $(pending | awk '{ print int($1 * 512 / 4096) }' | uniq | xargs)" /dev/mapper/rescued >/run/blocks
	inodes=$(awk '$2 ~ /^[0-9]+$/ { print $2 }' /run/blocks | sort -u | xargs)
	[[ -z $inodes ]] || debugfs -R "ncheck $inodes" /dev/mapper/rescued 2>/dev/null | awk 'NR > 1 { print $2 }' | sort
}
named() {
	e2fsck -fn /dev/mapper/rescued
	expect $'/files/2\n/files/4' hit
}
check "the files that they hit are named" named

mount /dev/mapper/rescued /mnt
# damaged FILE RANGES: these of its sectors are errors, the others are as they were.
damaged() { expect "$2" unreadable "/mnt/files/$1" 0 640 "/run/files/$1"; }
whole() {
	local n
	for n in 1 3 5 6 7 8; do cmp /mnt/files/$n /run/files/$n; done
}
check "all other files are whole" whole
check "a file is an error where it was hit, and only there" damaged 2 83-83
check "so is one that was hit in many sectors" damaged 4 165-184
fails() { fails_with "Input/output error" cat "/mnt/files/$1" >/dev/null; }
check "who reads such a file as a whole is told" fails 4

rewrites() {
	dd if=/run/files/2 of=/mnt/files/2 bs=1M conv=notrunc,fsync status=none
	damaged 2 ""
	expect 21 field rescued pending
	expect /files/4 hit
}
check "writing a file again clears its pending entries" rewrites
replaces() {
	rm /mnt/files/4
	cp /run/files/4 /mnt/files/4
	sync -f /mnt
	damaged 4 ""
	expect "" hit
}
check "so does replacing it: what is still pending hits no file" replaces
umount /mnt

restores() {
	expect "*, 0 units stay" message rescued restore 0 $sectors
	expect "0 0" field rescued relocated pending
}
check "what was written goes back to the copy, and nothing is pending" restores
dmsetup remove rescued
alone() {
	e2fsck -fn /dev/copy
	mount -o ro /dev/copy /mnt
	diff -r /run/files /mnt/files
	umount /mnt
}
check "which then does without the spare" alone
remove_disk main copy spare
