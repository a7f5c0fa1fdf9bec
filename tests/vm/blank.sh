#!/bin/bash
# What counts as a blank spare: zeroes in its first and last MiB. Anything else is refused, by the kernel and by the tool, and stays
# as it was, byte for byte.
# kernels: stock
# shellcheck source=tests/vm/lib.sh disable=SC2016
. /host/lib.sh

mib=1048576 size=$((8 * 1048576))
# What spares have from others, all of which leave the first 4 KiB alone or put it to zero: name, offset, bytes.
foreign=(
	"an md 1.2 superblock at 4 KiB|4096|\\xfc\\x4e\\x2b\\xa9\\x01"
	"a btrfs superblock at 64 KiB|65600|_BHRfS_M"
	"a bcache superblock at 4 KiB|4120|\\xc6\\x85\\x73\\xf6\\x4e\\x1a\\x45\\xca"
	"an ext4 superblock at 1 KiB|1080|\\x53\\xef"
	"an md 0.90 superblock near the end|$((size - 65536))|\\xfc\\x4e\\x2b\\xa9"
	"a GPT at the end|$((size - 512))|EFI PART"
	"a byte at the very start|0|x"
	"a byte that ends the first MiB|$((mib - 1))|\\x01"
	"a byte that begins the last MiB|$((size - mib))|\\x80"
	"a byte in the last MiB|$((size - 300000))|x"
	"the last byte|$((size - 1))|x"
)
# What lies between is nobody's to judge.
blank=(
	"a byte behind the first MiB|$mib|x"
	"a byte before the last MiB|$((size - mib - 1))|x"
)
plan $((2 * ${#foreign[@]} + 2 * ${#blank[@]} + 12))

disk main 8
disk spare 8
# with OFFSET BYTES: all zero but for these.
with() {
	blank /dev/spare
	printf '%b' "$2" | dd of=/dev/spare bs=1 seek="$1" conv=notrunc,fsync status=none
}
# unchanged COMMAND...: the command succeeds and leaves the spare as it was.
unchanged() {
	get /dev/spare 0 $((size / 512)) >/run/before
	"$@"
	get /dev/spare 0 $((size / 512)) | cmp - /run/before
}
# kernel_refuses START FEATURE...: a region from this sector of the spare on. (Two superblocks' places that hold something are
# foreign data, whatever else there is.)
kernel_refuses() {
	local table
	table="0 16384 remap /dev/main 0 /dev/spare $1 $(($# - 1)) ${*:2}"
	mark
	unchanged not dmsetup create r --table "$table" || {
		dmsetup remove r
		return 1
	}
	log | grep -E "Spare is not blank: its first and last MiB must be zero|Spare holds foreign data: it is neither blank"
}
tool_refuses() { unchanged fails_with "not blank" dmremap format /dev/spare --main /dev/main --yes "$@"; }
kernel_takes() {
	create r /dev/main /dev/spare "$@"
	expect active field r mode
	dmsetup remove r
}

for each in "${foreign[@]}"; do
	IFS='|' read -r name offset bytes <<<"$each"
	with "$offset" "$bytes"
	check "$name is refused" kernel_refuses 0
	check "$name is refused by the tool, too" tool_refuses
done
for each in "${blank[@]}"; do
	IFS='|' read -r name offset bytes <<<"$each"
	with "$offset" "$bytes"
	check "$name: blank" kernel_takes
	with "$offset" "$bytes"
	check "$name: blank for the tool, too" eval 'dmremap format /dev/spare --main /dev/main --yes && kernel_takes no_format'
done
forced() {
	with 4096 "\\xfc\\x4e\\x2b\\xa9"
	dmremap format /dev/spare --main /dev/main --force --yes
	kernel_takes no_format
}
check "format --force takes what is not blank" forced

# --- Regions of less than 2 MiB: all of it

region() { # OFFSET
	with "$1" x
	kernel_refuses 0 spare_sectors 2048
	tool_refuses --spare-sectors 2048
}
check "a region of 1 MiB, a byte in the middle" region 524288
check "its first byte" region 0
check "its last" region $((mib - 1))
beyond() {
	with $mib x
	kernel_takes spare_sectors 2048
}
check "one behind it is not its own" beyond
nearly() {
	with $((mib - 2048)) x
	kernel_refuses 0 spare_sectors 4088
}
check "a region of 2 MiB less a block, a byte in the middle" nearly
exactly() {
	with $mib x
	kernel_refuses 0 spare_sectors 4096
	with $((2 * mib)) x
	kernel_takes spare_sectors 4096
}
check "one of 2 MiB, a byte in the second, and one behind" exactly
start() {
	with $((3 * mib - 1)) x
	kernel_refuses 2048 spare_sectors 4096
	with $((mib - 1)) x
	dmsetup create r --table "0 16384 remap /dev/main 0 /dev/spare 2048 2 spare_sectors 4096"
	dmsetup remove r
}
check "a region in the middle of a disk is judged by what is in it" start

# --- What cannot be read is not known to be zero

unreadable_spare() {
	blank /dev/spare
	bad spare 1000
	not dmsetup create r --table "$(table /dev/main /dev/spare)"
	good spare 1000
	cmp -n $size /dev/spare /dev/zero
}
check "a first MiB that cannot be read is refused, and nothing is written" unreadable_spare

# --- An interrupted format

interrupted() {
	blank /dev/spare
	kernel_takes
	# The superblocks come last.
	dd if=/dev/zero of=/dev/spare bs=4096 count=1 oflag=direct conv=notrunc status=none
	dd if=/dev/zero of=/dev/spare bs=4096 seek=$((size / 4096 - 1)) count=1 oflag=direct conv=notrunc status=none
}
taken_up() {
	interrupted
	kernel_takes
	interrupted
	dmremap format /dev/spare --main /dev/main --yes
	kernel_takes no_format
}
check "tables of a format that was interrupted, and never used, are formatted over" taken_up
used() {
	blank /dev/spare
	create r /dev/main /dev/spare
	message r mark 1000
	dmsetup remove r
	dd if=/dev/zero of=/dev/spare bs=4096 count=1 oflag=direct conv=notrunc status=none
	dd if=/dev/zero of=/dev/spare bs=4096 seek=$((size / 4096 - 1)) count=1 oflag=direct conv=notrunc status=none
	unchanged not dmsetup create r --table "$(table /dev/main /dev/spare)"
	tool_refuses
}
check "tables with an entry are not" used
no_format() {
	blank /dev/spare
	unchanged not dmsetup create r --table "$(table /dev/main /dev/spare no_format)"
}
check "no_format refuses one that is blank" no_format
remove_disk main spare
