#!/bin/bash
# What new entries cost the spare: of one failed write alone, of 64 at once, and of 64 at once whose records lie in 64 table
# blocks; a spare that answers at once, and one that takes 5 ms for each request, as a disk does.
# kernels: stock (debug)
# vm: --smp 2
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 10

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
		--rw=write:$((4 * $2 - 4))k --offset=$(($1 / 2))k --size=$((4 * ${3:-64} * $2))k --number_ios="${3:-64}"
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

# The spare flushes, and takes what goes to slots, but requests to table blocks fail, and each takes longer than all may together.
slow() { # READ-MS WRITE-MS
	local at k=()
	for at in 136 144; do
		at=$(($(od -An -t u8 -j $at -N 8 /dev/disk) * 8))
		k+=("$at" $((at + 66 * 8 - 1)))
		bad disk "${k[-2]}" "${k[-1]}"
	done
	segments "delay /dev/disk @ $1 /dev/disk @ $2 /dev/disk @ 0" /dev/disk "${k[@]}" | reload spare
}
works() {
	good disk 0 $((size - 1))
	echo "0 $size linear /dev/disk 0" | reload spare
	message r sync
	expect active field r mode
}
unwritable() {
	# 24 blocks, which are in memory from here on.
	at_once 8 126 24
	slow 0 1500
	cost "24 at once in blocks that cannot be written" not at_once 16 126 24
	# Each time there are three flushes, and one failure of each replica.
	((flushes > 0 && blocks <= 24 + 2 * flushes))
	expect degraded field r mode
	works
}
unreadable() {
	dmsetup remove r
	create r /dev/main /dev/mapper/spare
	slow 1500 0
	cost "24 at once in blocks that cannot be read" not at_once 24 126 24
	((reads > 0 && reads < 2 * 24))
	expect degraded field r mode
	works
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
	if [[ $kind == flash ]]; then
		check "replicas that refuse all are not written block by block" unwritable
		check "nor read" unreadable
	fi
	dmsetup remove r spare
done
cat /run/costs
remove_disk main disk
