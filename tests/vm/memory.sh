#!/bin/bash
# When memory is short, or allocations of the module fail, recovery, relocation and commits go on, and nothing is lost.
# kernels: stock (debug)
# vm: --smp 2 --mem 640 --timeout 2400
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan=6
[[ $VM_KERNEL == stock ]] || plan=$((plan + 9))
plan $plan

# A file system, behind it units to write, and behind these units to move by messages. What was written once costs the
# disks no more memory. How often anything is repeated depends on the machine, so the spare has slots for all of main.
main=24 fs=12
units=$((fs * 2048)) moved=$((20 * 2048)) end=$((main * 2048))
disk main $main
disk spare 32
data /run/main $end
put /run/main /dev/main
data /run/spare 65536
put /run/spare /dev/spare
blank /dev/spare
for ((sector = 100; sector < units; sector += 300)); do bad main $sector $((sector + sector % 7)); done
create r /dev/main /dev/spare unit_sectors 8
# A device of its own: that of a mounted file system may not be written by others.
partition() { dmsetup create fs --table "0 $units linear /dev/mapper/r 0"; }
partition
mkfs.ext4 -q -F -b 4096 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/fs
mkdir -p /mnt
mount /dev/mapper/fs /mnt
data /run/file 4096

echo $units >/run/next
# next: sets $at to where no test has been yet.
next() {
	at=$(</run/next)
	((at + 32 <= moved))
	echo $((at + 32)) >/run/next
}
# Writes over sectors that have just become bad, each read back.
new_writes() {
	local n at
	for n in {1..20}; do
		next
		bad main $((at + 8)) $((at + 9))
		part /run/file $((at % 4096)) 32 >/run/part
		put /run/part /dev/mapper/r "$at"
		same /run/part /dev/mapper/r "$at"
		echo "$at" >>/run/new
	done
}
# All that new_writes wrote is there.
written() {
	local n
	while read -r n; do get /dev/mapper/r "$n" 32 | cmp - <(part /run/file $((n % 4096)) 32); done </run/new
}
files() {
	local n
	for n in {1..4}; do
		cp /run/file /mnt/file.$((n % 3))
		sync -f /mnt/file.$((n % 3))
	done
}
messages() {
	local n
	for n in 1 2; do
		"$@" message r remap $moved 1600
		"$@" message r restore $moved 1600
		"$@" message r mark $moved 1600
		"$@" message r check
		"$@" message r sync
		"$@" message r restore $moved 1600
		# From here on the slots are free again.
		dmsetup suspend r
		dmsetup resume r
	done
}

# A message may fail for want of memory, but not always.
stubborn() {
	local n
	for n in {1..20}; do ! "$@" || return 0; done
	return 1
}
# Reads of sectors that have just become bad.
unreadable() {
	local n at
	for n in {1..10}; do
		next
		bad main $((at + 3))
		not get /dev/mapper/r "$at" 8
		expect "$at pending *" stubborn message r query "$at"
	done
}

# --- All memory taken

cat >/run/hog.py <<'P'
open("/proc/self/oom_score_adj", "w").write("1000")
hog = []
while True:
    hog.append(bytearray(1 << 20))
P
hog() { while [[ -e /run/hungry ]]; do python3 /run/hog.py || true; done; }
killed() { awk '/^oom_kill / { print $2 }' /proc/vmstat; }
echo -1000 >/proc/self/oom_score_adj
touch /run/hungry
hog >/run/hog 2>&1 &
# short COMMAND...: again and again, until the hog has had all memory once more.
short() {
	local before
	before=$(killed)
	while (($(killed) < before + 1)); do "$@"; done
}
check "memory is short: a file system over bad sectors" short files
check "memory is short: new entries by writing" short new_writes
check "memory is short: pending entries by reading" short unreadable
check "memory is short: messages" short messages
rm /run/hungry
wait

# --- Allocations that fail

# injecting WHAT PERCENT COMMAND...: below the module's functions, but not in null_blk, so many allocations fail.
injecting() {
	local dir=/sys/kernel/debug/$1 status
	faults "$1"
	fault_below "$1" require dm_remap
	fault_below "$1" reject null_blk
	echo 1000000 >"$dir/times"
	echo "$2" >"$dir/probability"
	run "${@:3}"
	echo 0 >"$dir/probability"
	echo $((1000000 - $(<"$dir/times"))) >>/run/injected
	return "$status"
}
if [[ $VM_KERNEL == debug ]]; then
	for what in failslab fail_page_alloc; do
		check "$what: a file system over bad sectors" injecting $what 10 files
		check "$what: new entries by writing" injecting $what 10 new_writes
		check "$what: messages" injecting $what 10 messages stubborn
		check "$what: pending entries by reading" injecting $what 10 unreadable
	done
	echo "# allocations failed: $(xargs </run/injected)"
	many() { awk '{ n += $1 } END { exit n < 100 }' /run/injected; }
	check "allocations did fail" many
fi

# --- Nothing is lost

again() {
	umount /mnt
	dmsetup remove fs
	dmsetup remove r
	create r /dev/main /dev/spare
	partition
	e2fsck -fn /dev/mapper/fs
	mount -o ro /dev/mapper/fs /mnt
	cmp /run/file /mnt/file.0
	cmp /run/file /mnt/file.1
	cmp /run/file /mnt/file.2
	umount /mnt
	written
}
check "what was written is there after re-activation" again
unmoved() {
	expect "active" field r mode
	get /dev/mapper/r $moved 1600 | cmp - <(part /run/main $moved 1600)
	expect "* 0 stale, 0 damaged, 0 repaired" message r check
}
check "so is what was moved by messages" unmoved
dmsetup remove fs
dmsetup remove r
remove_disk main spare
