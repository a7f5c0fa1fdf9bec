#!/bin/bash
# Discards and write-zeroes are offered when main has them, whatever the spare has, and bad sectors do not make them fail.
# kernels: stock (debug)
# shellcheck source=tests/vm/lib.sh disable=SC2016
. /host/lib.sh
plan 29
mkdir -p /mnt

# --- Discards

main=131072
disk main 64 discard=1
disk spare 8
disk without 64
disk with 8 discard=1
data /run/model $main
data /run/data 64
put /run/model /dev/main
bad main 1003
bad main 2000 2999
bad main 50000
create r /dev/main /dev/spare unit_sectors 8
discard() { blkdiscard -f -o $(($1 * 512)) -l $(($2 * 512)) /dev/mapper/r; }
check "discards are offered, as main has them" eval '(($(queue r discard_max_bytes) > 0))'
put /run/data /dev/mapper/r 2000
put /run/data /dev/mapper/r 6000
message r remap 4000 64 >/dev/null
not get /dev/mapper/r 50000 8 2>/dev/null
message r mark 7000 >/dev/null
entries=$(list r)
recovered=$(field r writes_recovered)
check "one of sound sectors reaches main" eval \
	'discard 10000 2048 && cmp -n 1048576 /dev/zero <(get /dev/mapper/r 10000 2048)'
check "one over a bad sector succeeds" discard 996 16
check "one of nothing but bad sectors" discard 2100 800
check "one over relocated and bad ones" discard 1800 1600
check "one over relocated ones" discard 4000 64
check "one over what is pending" discard 49000 2000
check "one over all of the device" discard 0 $main
check "no entry comes or goes by it" expect "$entries" list r
check "no error is counted as one of a write" expect "$recovered" field r writes_recovered
check "the device is well" expect "active 0 0" field r mode slots_bad lost_sectors
healthy() {
	cmp -n 1048576 /dev/zero <(get /dev/mapper/r 20000 2048)
	part /run/model 60000 800 >/run/part
	put /run/part /dev/mapper/r 60000
	same /run/part /dev/mapper/r 60000
	put /run/data /dev/mapper/r 2000
	same /run/data /dev/mapper/r 2000
}
check "what is sound is discarded, and can be written" healthy
dmsetup remove r

# A file system that trims: what blktests block/003 and xfstests generic/260 do.
trims() { # TYPE
	local size before
	blank /dev/spare
	create r /dev/main /dev/spare unit_sectors 8
	mkfs.ext4 -q -F -E nodiscard /dev/mapper/r
	mount -t ext4 /dev/mapper/r /mnt
	head -c 5M /dev/urandom >/mnt/file
	sync
	sum=$(sha256sum </mnt/file)
	size=$(fstrim -v /mnt)
	echo "$size"
	[[ $size != *" 0 B"* ]]
	echo 3 >/proc/sys/vm/drop_caches
	expect "$sum" eval 'sha256sum </mnt/file'
	umount /mnt
	e2fsck -fn /dev/mapper/r
	dmsetup remove r
}
check "fstrim of ext4 over bad sectors succeeds" trims
! mountpoint -q /mnt || umount /mnt
! dmsetup info r >/dev/null 2>&1 || dmsetup remove r
mounted() {
	blank /dev/spare
	create r /dev/main /dev/spare unit_sectors 8
	mkfs.ext4 -q -F /dev/mapper/r # discards all of it
	mount -t ext4 -o discard /dev/mapper/r /mnt
	head -c 5M /dev/urandom >/mnt/file
	sync
	rm /mnt/file
	sync
	grep " /mnt ext4 rw" /proc/mounts
	umount /mnt
	e2fsck -fn /dev/mapper/r
	dmsetup remove r
}
check "mkfs that discards, and mount -o discard" mounted
! mountpoint -q /mnt || umount /mnt
! dmsetup info r >/dev/null 2>&1 || dmsetup remove r

offered() { # MAIN SPARE
	local max
	blank "$2"
	create r "$1" "$2" unit_sectors 8
	max=$(queue r discard_max_bytes)
	dmsetup remove r
	echo "$max"
}
check "main has discards, and so has the spare: offered" expect "[1-9]*" offered /dev/main /dev/with
check "main has none, the spare has: not offered" expect 0 offered /dev/without /dev/with
check "neither has: not offered" expect 0 offered /dev/without /dev/spare
remove_disk main spare without with

# --- Write-zeroes

scsi 16 lbpws=1
disk spare 8
disk without 16
lower main "$good" 0 32768
data /run/model 32768
put /run/model /dev/mapper/main
first=8192
lower failing "$sick" $first 2048
patch main $first 2048 linear /dev/mapper/failing 0
create r /dev/mapper/main /dev/spare unit_sectors 8
check "write-zeroes are offered, as main has them, though the spare has none" eval '
	expect 0 cat /sys/block/spare/queue/write_zeroes_max_bytes && (($(queue r write_zeroes_max_bytes) > 0))'
# Punching a hole is write-zeroes without the block layer's writing zeroes in their stead.
punch() { fallocate -p -o $(($1 * 512)) -l $(($2 * 512)) /dev/mapper/r; }
zeroed() { # FIRST COUNT
	edit /run/model "$1" <(head -c $(($2 * 512)) /dev/zero)
	part /run/model $(($1 - 64)) $(($2 + 128)) >/run/part
	same /run/part /dev/mapper/r $(($1 - 64))
}
again() { dmsetup remove r && create r /dev/mapper/main /dev/spare; }
check "a MiB of what is sound: one command to main" eval \
	'costs 0 1 main blkdiscard -f -z -o 524288 -l 1048576 /dev/mapper/r && zeroed 1024 2048'
relocated() {
	message r remap 4096 512
	part /run/model 4096 512 >/run/part
	# Main has something else there.
	head -c $((512 * 512)) /dev/urandom >/run/other
	put /run/other /dev/mapper/main 4096
	same /run/part /dev/mapper/r 4096
	punch 4100 500
	zeroed 4100 500
}
check "over relocated units: zeroes are read back, and the rest is as it was" relocated
check "after re-activation, too" eval 'again && zeroed 4100 500'
mixed() {
	punch 3000 2000
	zeroed 3000 2000
	again
	zeroed 3000 2000
}
check "over units on main and in slots: the same" mixed
zero_range() {
	part /run/data 0 64 >/run/io
	put /run/io /dev/mapper/r 4224
	edit /run/model 4224 /run/io
	fallocate -z -o $((4200 * 512)) -l $((200 * 512)) /dev/mapper/r
	zeroed 4200 200
	put /run/io /dev/mapper/r 4224
	edit /run/model 4224 /run/io
	blkdiscard -f -z -o $((4200 * 512)) -l $((200 * 512)) /dev/mapper/r
	zeroed 4200 200
}
check "fallocate -z and blkdiscard -z" zero_range
bad_ones() {
	local before
	arm medium 28 2a 88 8a 41 93 42 # but not flushes
	before=$(field r write_errors)
	punch $((first + 300)) 1000
	(($(field r write_errors) > before))
	head -c 512000 /dev/zero | cmp - <(get /dev/mapper/r $((first + 300)) 1000)
	again
	head -c 512000 /dev/zero | cmp - <(get /dev/mapper/r $((first + 300)) 1000)
	disarm
	zeroed $((first + 300)) 1000
}
check "over bad sectors: they are zero, in slots, after re-activation too" bad_ones
discards() { # The spare of these has none either.
	discard 4000 1000
	arm medium 28 2a 88 8a 41 93 42
	discard $((first + 100)) 1500
	disarm
	expect active field r mode
}
check "discards of a SCSI disk, over relocated units and bad sectors, too" discards
other_errors() {
	arm transport
	not discard $((first + 100)) 500
	not punch $((first + 100)) 500
	disarm
	punch $((first + 100)) 500
	zeroed $((first + 100)) 500
}
check "an error of the way to main goes up" other_errors
dmsetup remove r
check "main without them: not offered" eval '
	blank /dev/spare && create r /dev/without /dev/spare && expect 0 queue r write_zeroes_max_bytes'
dmsetup remove r
dmsetup remove main
dmsetup remove failing
# A spare that has them, too: the other half of the same disk.
lower main "$good" 0 16384
lower half "$sick" 16384 16384
part /run/model 0 16384 >/run/part
put /run/part /dev/mapper/main
blank /dev/mapper/half
create r /dev/mapper/main /dev/mapper/half unit_sectors 8
message r remap 4096 2048 >/dev/null
zeroes() { blkdiscard -f -z -o $(($1 * 512)) -l $(($2 * 512)) /dev/mapper/r; }
neighbours() {
	put /run/other /dev/mapper/r 4096
	costs 0 0 main costs 0 1 half zeroes 4100 2040
	edit /run/model 4096 /run/other
	zeroed 4100 2040
}
check "over 256 units whose slots are neighbours, on a spare that has them: one command" neighbours
limited() {
	echo 100 >"$(echo "/sys/block/${sick##*/}"/device/scsi_disk/*/max_write_same_blocks)"
	patch half
	put /run/other /dev/mapper/r 4096
	edit /run/model 4096 /run/other
	# 12 units of 8 sectors each
	not costs 0 21 half zeroes 4096 2048
	zeroed 4096 2048
	costs 0 22 half zeroes 4096 2048
}
check "on a spare that has them for 100 sectors at once: never more than that" limited
dmsetup remove r
dmsetup remove main
dmsetup remove half
remove_disk spare without
rmmod scsi_debug
