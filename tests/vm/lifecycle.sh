#!/bin/bash
# Loading, creating, suspending, reloading, removing, unloading: as often as you like, and nothing is left.
# kernels: stock (debug previous)
# vm: --smp 2
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 19

disk main 8
disk spare 4
bad main 1000
data /run/data 64
loaded() { lsmod | grep '^dm_remap '; }
target() { dmsetup targets | grep '^remap '; }

load() { modprobe dm-remap && loaded && target; }
check "modprobe loads the module and it registers its target" load
unload() { rmmod dm-remap && not loaded && not target; }
check "rmmod takes both away" unload
autoload() {
	create r /dev/main /dev/spare
	loaded
	put /run/data /dev/mapper/r 984
	same /run/data /dev/mapper/r 984
}
check "dmsetup create loads the module by itself" autoload
check "rmmod is refused as long as there is a device" not rmmod dm-remap
check "after dmsetup remove it is not" eval 'dmsetup remove r && unload'

# --- Rounds

rounds=100
[[ $VM_KERNEL == stock ]] || rounds=10
rounds() {
	local round
	mark
	for ((round = 0; round < rounds; round++)); do
		((round % 2)) || modprobe dm-remap
		create r /dev/main /dev/spare
		put /run/data /dev/mapper/r 984
		same /run/data /dev/mapper/r 984
		# A sector more goes bad now and then.
		((round % 10)) || bad main $((2000 + round))
		put /run/data /dev/mapper/r 1984
		dmsetup remove r
		rmmod dm-remap
	done
}
check "$rounds rounds of load, create, write and read over bad sectors, remove, unload" rounds
unexpected() { log | grep -vE ' I/O error, dev main,| dm_remap: [0-9:]+: sector [0-9]+: relocated$|callbacks suppressed$'; }
check "leave nothing in the kernel log but the disk's errors and the new entries" not unexpected
check "nothing in lsmod and dmsetup targets" eval 'not loaded && not target'
check "and no device" expect "No devices found" dmsetup ls

# --- Tables that never become active

blank /dev/spare
get /dev/spare 0 8192 >/run/before
inactive() {
	dmsetup create r --notable
	dmsetup load r --table "$(table /dev/main /dev/spare)"
	"$@"
	dmsetup remove r
	same /run/before /dev/spare
	unload
}
check "a table loaded and cleared leaves the spare as it was and the module removable" inactive dmsetup clear r
check "so does one loaded and then removed with its device" inactive true
failing() {
	not dmsetup create r --table "0 16384 remap /dev/main 0 /dev/spare 0 1 nonsense"
	expect "No devices found" dmsetup ls
	unload
}
check "so does one that is refused" failing

# --- Table and status lines

every="unit_sectors 16 spare_sectors 4096 metadata_copies 3 bad_on media read_retries 7 pending_reads fail"
# shellcheck disable=SC2086  # words
again() {
	local line
	create r /dev/main /dev/spare $1
	line=$(dmsetup table r)
	[[ $line == *" $1" ]]
	dmsetup load r --table "$line"
	expect "$line" dmsetup table --inactive r
	dmsetup resume r
	expect "$line" dmsetup table r
	dmsetup remove r
}
check "what dmsetup table prints loads again unchanged, with every feature" again "$every"
check "and with no_format" again "no_format"
blank /dev/spare
check "and with the defaults spelled out" again "bad_on io pending_reads retry"
blank /dev/spare

# --- Suspend, resume, reload

good main 0 16383
bad main 1000
create r /dev/main /dev/spare unit_sectors 8
put /run/data /dev/mapper/r 984
entries=$(list r)
suspend() {
	dmsetup suspend r
	expect "$entries" list r
	dmsetup resume r
	expect "$entries" list r
	same /run/data /dev/mapper/r 984
}
check "suspend and resume keep the entries and the data" suspend
reload() {
	local round
	for round in 1 2 3; do
		dmsetup load r --table "$(table /dev/main /dev/spare read_retries "$round")"
		# The table that is active still makes entries, which the loaded one must know.
		bad main $((3000 + 100 * round))
		put /run/data /dev/mapper/r $((2990 + 100 * round))
		dmsetup resume r
		same /run/data /dev/mapper/r 984
		same /run/data /dev/mapper/r $((2990 + 100 * round))
		bad main $((4000 + 100 * round))
		put /run/data /dev/mapper/r $((3990 + 100 * round))
		same /run/data /dev/mapper/r $((3990 + 100 * round))
	done
	expect 7 field r relocated
}
check "a reloaded table has the entries of the one before, and makes new ones" reload

# --- Lazily committed entries

pending() {
	bad main 6000
	not get /dev/mapper/r 6000 1
	dmsetup suspend r
	dmsetup resume r
	expect "6000 pending -" eval 'list r | sed -n "/^6000/s/ 0$/ -/p"'
	bad main 7000
	not get /dev/mapper/r 7000 1
	dmsetup remove r
	create r /dev/main /dev/spare
	expect "6000 pending 0
7000 pending 0" eval 'list r | grep pending'
}
check "an entry still to be committed when the device goes away is there when it comes back" pending
dmsetup remove r
check "the module goes at last" unload
remove_disk main spare
