#!/bin/bash
# What new entries cost the spare: of one failed write alone, of 64 at once, and of 64 at once whose records lie in 64 table
# blocks; a spare that answers at once, and one that takes 5 ms for each request, as a disk does.
# kernels: stock (debug)
# vm: --smp 2
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 9

modprobe -a dm-delay dm-remap
disk main 64
disk disk 64 cache_size=4
size=$(blockdev --getsz /dev/disk)
# Marked from the start on; behind that, what fails: units, each 1024 sectors, and a few for writes alone.
marked=$((64 * 126 * 8)) alone=130800
bad main $marked $((alone + 200))

# cost WHAT COMMAND [ARG...]: runs it, and says what that took: $reads, $blocks (written: slots and table blocks), $flushes,
# $commits. (A block is as long as a slot here. Neighbours may be merged, so sectors are counted and not requests.)
counts() { echo "$(awk '{ print $1, $7 / 8, $16 }' /sys/block/disk/stat) $(field r commits)"; }
cost() {
	local was now
	read -ra was < <(counts)
	"${@:2}"
	read -ra now < <(counts)
	reads=$((now[0] - was[0])) blocks=$((now[1] - was[1])) flushes=$((now[2] - was[2])) commits=$((now[3] - was[3]))
	echo "# $kind, $1: $reads reads, $blocks slots and table blocks, $flushes flushes, $commits commits" | tee -a /run/costs
}
# at_once FIRST STEP [COUNT]: 64 units, or COUNT, every STEP-th from sector FIRST on, in flight together.
at_once() {
	fio --name=w --filename=/dev/mapper/r --direct=1 --ioengine=libaio --iodepth=64 --iodepth_batch=64 --bs=4k \
		--rw=write:$((4 * $2 - 4))k --offset=$(($1 / 2))k --size=$((4 * ${3:-64} * $2))k --number_ios=${3:-64}
}

by_itself() {
	cost "$1" put /run/data /dev/mapper/r "$2"
	((reads <= 1 && blocks <= 1 + 2 && flushes <= 2 && commits == 1))
}
new() {
	cost "64 at once" at_once $marked 128
	((reads <= 2 && blocks <= 64 + 2 * 2 * 8 && flushes <= 3 * 8 && commits <= 8))
	expect "66 0" field r relocated pending
}
# How many table blocks have the records of every 126th unit that is marked.
in_blocks() {
	local n
	for ((n = 0; n < 64; n++)); do echo $(($(slot_of r $((n * 126 * 8))) / 126)); done | uniq | wc -l
}
scattered() {
	message r mark 0 $marked
	expect 64 in_blocks
	cost "64 at once in 64 table blocks" at_once 0 126
	((reads <= 2 * 64 && blocks <= 64 + 2 * 64 && flushes <= 3 * 8 && commits <= 8))
	expect "$((66 + 64))" field r relocated
}

# The spare flushes, and takes what goes to slots, but no table block. Each failure of a disk may take half a minute.
refused() {
	local k areas=()
	for k in 0 1; do areas+=($(($(od -An -t u8 -j $((136 + 8 * k)) -N 8 /dev/mapper/spare) * 8))); done
	# 24 blocks, which are in memory from here on.
	at_once 8 126 24
	for k in "${areas[@]}"; do bad disk "$k" $((k + 66 * 8 - 1)); done
	cost "24 at once in blocks that cannot be written" not at_once 16 126 24
	# Each time there are three flushes, and two failures of each replica at most.
	((flushes > 0 && blocks <= 24 + 2 * flushes))
	expect degraded field r mode
	for k in "${areas[@]}"; do good disk "$k" $((k + 66 * 8 - 1)); done
	message r sync
	expect active field r mode
}

data /run/data 8
for kind in flash disk; do
	blank /dev/disk
	case $kind in
	flash) dmsetup create spare --table "0 $size linear /dev/disk 0" ;;
	disk) dmsetup create spare --table "0 $size delay /dev/disk 0 5" ;;
	esac
	create r /dev/main /dev/mapper/spare unit_sectors 8
	check "$kind: the first failed write takes a slot, a write of each replica, and a read" by_itself "the first" $alone
	check "$kind: so does another, alone" by_itself "another" $((alone + 96))
	check "$kind: 64 at once take 64 slots, and 8 commits at most" new
	check "$kind: so do 64 whose records lie in 64 table blocks" scattered
	[[ $kind == disk ]] || check "replicas that refuse all are not asked for each block" refused
	dmsetup remove r spare
done
cat /run/costs
remove_disk main disk
