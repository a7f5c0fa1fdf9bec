#!/bin/bash
# Suspending, reloading and removing wait for a recovery that is under way, and for nothing else.
# kernels: stock (debug)
# vm: --smp 2
# waits: for slow disks
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 16

modprobe dm-delay
disk disk 40
disk sparedisk 4
for first in 1000 2000 3000 4000 5000 6000; do
	bad disk $((first + 3))
	bad disk $((first + 20)) $((first + 21))
done
data /run/data 32
# Each access takes so long: a write of 32 sectors over bad ones is retried sector by sector, which takes 33 times that.
ms=50
dmsetup create main --table "0 $(blockdev --getsz /dev/disk) delay /dev/disk 0 $ms"
dmsetup create spare --table "0 8192 delay /dev/sparedisk 0 $ms"
create r /dev/mapper/main /dev/mapper/spare unit_sectors 8

in_flight() {
	local requests
	read -ra requests <"$2"
	((requests[0] + requests[1] >= $1))
}
# under_way N: so many requests have reached the device. What comes after a suspension began waits for the resumption.
under_way() { soon in_flight "$1" "/sys/dev/block/$(dmsetup info -c --noheadings -o major,minor r)/inflight"; }

# hold, release: what reaches main meanwhile waits there. So nothing is over before all that a test needs has begun.
hold() { dmsetup suspend --noflush --nolockfs main; }
release() { dmsetup resume main; }

# writing SECTOR COMMAND...: runs the command while a write is being recovered; the write must succeed.
writing() {
	local writer
	hold
	put /run/data /dev/mapper/r "$1" &
	writer=$!
	under_way 1
	release
	sleep 0.1      # the first attempt
	kill -0 $writer # it takes longer than that
	"${@:2}"
	wait $writer
}
# Not in a subshell, unlike `not`: a subshell cannot wait for this shell's children.
fails() { ! "$@"; }
fast() {
	dmsetup suspend main
	dmsetup load main --table "0 $(blockdev --getsz /dev/disk) linear /dev/disk 0"
	dmsetup resume main
}
# slow [MS]
slow() {
	dmsetup suspend main
	dmsetup load main --table "0 $(blockdev --getsz /dev/disk) delay /dev/disk 0 ${1:-$ms}"
	dmsetup resume main
}

suspend() {
	writing 1000 dmsetup suspend r
	expect "SUSPENDED" eval 'dmsetup info r | sed -n "s/^State: *//p"'
	dmsetup resume r
}
check "suspend waits for a write that is being recovered, which succeeds" suspend
check "its data is right" same /run/data /dev/mapper/r 1000
check "its entries are there" expect 2 field r relocated

noflush() { writing 2000 dmsetup suspend --noflush --nolockfs r && dmsetup resume r; }
check "so does suspend without flush" noflush
reload() {
	dmsetup load r --table "$(table /dev/mapper/main /dev/mapper/spare)"
	writing 3000 dmsetup resume r
}
check "so does a reload" reload
check "the reloaded table has the entries of the writes" eval 'expect 6 field r relocated && same /run/data /dev/mapper/r 3000'

force() {
	# Replaces the table by one of errors first, which waits for the write; the device itself is still open then.
	writing 4000 eval 'dmsetup remove --force r || true'
	[[ ! -e /dev/mapper/r ]] || dmsetup remove --retry r
	create r /dev/mapper/main /dev/mapper/spare
	expect 8 field r relocated
	same /run/data /dev/mapper/r 4000
}
check "remove --force waits for the write, which succeeds and is there afterwards" force
deferred() {
	writing 5000 dmsetup remove --deferred r
	soon not dmsetup info r
	create r /dev/mapper/main /dev/mapper/spare
	expect 10 field r relocated
	same /run/data /dev/mapper/r 5000
}
check "remove --deferred takes the device away once the write is through" deferred
reading() {
	local reader
	slow 400 # 8 sectors, not 32
	hold
	get /dev/mapper/r 6000 8 >/dev/null &
	reader=$!
	under_way 1
	release
	dmsetup suspend r
	fails wait $reader
	slow
	# The entry was made after the suspending began, and is on the spare all the same.
	dmsetup remove r
	create r /dev/mapper/main /dev/mapper/spare
	expect "6000 pending 0" eval 'list r | tail -n 1'
}
check "suspend waits for a read that is retried, which fails, and commits its pending entry" reading
lazy() {
	# The pending entry is being committed, slowly, when the device goes.
	not get /dev/mapper/r 6020 1
	dmsetup remove r
	create r /dev/mapper/main /dev/mapper/spare
	expect "6000 pending 0
6016 pending 0" eval 'list r | tail -n 2'
}
check "remove waits for entries that are being committed" lazy

# --- A failing spare, and a table that fails while recovery is under way

failed() {
	local writer
	bad disk 7003
	hold
	put /run/data /dev/mapper/r 7000 &
	writer=$!
	under_way 1
	dmsetup suspend --noflush spare
	dmsetup load spare --table "0 8192 error"
	dmsetup resume spare
	release
	dmsetup suspend r
	fails wait $writer
	dmsetup resume r
}
check "suspend waits for a write whose recovery fails with the spare" failed
gone() {
	dmsetup remove r
	dmsetup suspend spare
	dmsetup load spare --table "0 8192 delay /dev/sparedisk 0 $ms"
	dmsetup resume spare
	create r /dev/mapper/main /dev/mapper/spare
	same /run/data /dev/mapper/r 1000
	same /run/data /dev/mapper/r 5000
}
check "remove does not wait for a spare that is gone, and nothing acknowledged is lost" gone

# --- Freezing a file system writes through the suspending device

fast
dmsetup suspend spare
dmsetup load spare --table "0 8192 delay /dev/sparedisk 0 2"
dmsetup resume spare
mkfs.ext4 -q -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/r 20M
mkdir -p /mnt
mount /dev/mapper/r /mnt
dd if=/dev/urandom of=/run/file bs=1M count=4 status=none
frozen() {
	local block before sector
	before=$(field r relocated)
	cp /run/file /mnt/file
	sync -f /mnt/file
	# The file is dirty again, and then its blocks go bad.
	dd if=/run/file of=/mnt/file bs=1M conv=notrunc status=none
	for block in 3 77 500 1000; do
		sector=$(($(debugfs -R "bmap file $block" /dev/mapper/r 2>/dev/null) * 2))
		((sector > 0))
		bad disk $sector
	done
	dmsetup suspend r
	dmsetup resume r
	umount /mnt
	(($(field r relocated) >= before + 4))
	mount /dev/mapper/r /mnt
	cmp /run/file /mnt/file
}
check "what the frozen file system writes while the device suspends is recovered too" frozen
umount /mnt
check "and the file system is sound" e2fsck -fn /dev/mapper/r

slow
busy() {
	local n writers=()
	hold
	for n in 0 1 2 3 4 5; do
		bad disk $((60000 + 100 * n))
		put /run/data /dev/mapper/r $((59990 + 100 * n)) &
		writers+=($!)
	done
	under_way 6
	release
	dmsetup suspend r
	for n in "${writers[@]}"; do wait "$n"; done
	dmsetup resume r
	for n in 0 1 2 3 4 5; do same /run/data /dev/mapper/r $((59990 + 100 * n)); done
}
check "suspend waits for many writes at once" busy
check "after all of it the module can go" eval 'dmsetup remove r && rmmod dm-remap'
dmsetup remove main
dmsetup remove spare
remove_disk disk sparedisk
