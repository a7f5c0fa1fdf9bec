#!/bin/bash
# 1,000 units that take a second to fail are recovered side by side, and nobody else waits for them.
# kernels: stock (debug)
# vm: --smp 2
# waits: for slow disks
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 13

modprobe dm-delay
units=1000
# Main: what is sound, then units to write and units to read; each access to those takes a second, and fails.
sound=32768 to_write=$sound to_read=$((sound + 8 * units))
disk disk 32
disk spare 32
dmsetup create failing --table "0 $((16 * units)) error"
dmsetup create main <<T
0 $sound linear /dev/disk 0
$sound $((16 * units)) delay /dev/mapper/failing 0 1000
T
create r /dev/mapper/main /dev/spare unit_sectors 8
message r remap 0 400 >/run/remap

reads() { awk '{ print $1 }' "$(sys /dev/mapper/r)/stat"; }
reading() { (($(reads) >= $1 + 100)); }
# beside NAME COMMAND...: while the command runs, others read sectors that are sound, some of them in slots, one after
# the other; /run/NAME.us says how long each took.
beside() {
	local reader was
	was=$(reads)
	fio --name=beside --filename=/dev/mapper/r --size=$((sound / 2))k --direct=1 --ioengine=psync --rw=randread --bs=4k \
		--zonemode=none --time_based --runtime=1000 --write_lat_log="/run/$1" --output="/run/$1.fio" &
	reader=$!
	soon reading "$was"
	"${@:2}"
	kill $reader
	wait $reader || true
	awk -F , '{ print int($2 / 1000) }' "/run/$1_clat.1.log" | sort -n >"/run/$1.us"
}
# latency NAME PERCENT: µs that so many of the reads did not exceed.
latency() { awk -v p="$2" '{ us[NR] = $1 } END { print us[int(1 + (NR - 1) * p / 100)] }' "/run/$1.us"; }

# at_once NAME RW FIRST: requests of one sector, two in each unit, all in flight together; how long it took: $took.
at_once() {
	local start=$SECONDS
	fio --name="$1" --filename=/dev/mapper/r --direct=1 --ioengine=libaio --iodepth=$((2 * units)) --rw="$2:1536" \
		--bs=512 --offset=$(($3 * 512)) --size=$((4096 * units)) --number_ios=$((2 * units)) --do_verify=0 \
		--verify=crc32c --continue_on_error=all --output="/run/$1" 2>"/run/$1.errors" || true
	took=$((SECONDS - start))
}
errors() { grep -c "io_u error" "/run/$1.errors" || true; }
far_below() { (($1 * 20 < $2)); }
held_up() { # NAME
	echo "# reads beside $1: $(wc -l <"/run/$1.us"), µs: median $(latency "$1" 50), 99 % $(latency "$1" 99)," \
		"longest $(latency "$1" 100)"
}

beside nothing sleep 5
held_up nothing
beside writes at_once writes write $to_write
held_up writes
# Each failed, and failed again.
echo "# $((2 * units)) writes: $took s, one after the other $((4 * units)) s"
check "no write fails" expect 0 errors writes
check "side by side: in far less time than one after the other" far_below "$took" $((4 * units))
check "two requests of one unit take one slot" \
	expect "$((50 + units))/* $((50 + units)) 0" field r slots relocated pending
check "each is counted" expect "$((2 * units)) $((2 * units))" field r write_errors writes_recovered
masks() { (($(message r list $to_write $units | grep -c "partial .* 11$") == units)); }
check "and both sectors are in it" masks
written() {
	fio --name=writes --filename=/dev/mapper/r --direct=1 --ioengine=libaio --iodepth=16 --rw=read:1536 --bs=512 \
		--offset=$((to_write * 512)) --size=$((4096 * units)) --number_ios=$((2 * units)) --verify=crc32c
}
check "with what was written" written

beside reads at_once reads read $to_read
held_up reads
# Each failed, and failed twice more.
echo "# $((2 * units)) reads: $took s, one after the other $((6 * units)) s"
check "all reads fail" expect $((2 * units)) errors reads
check "side by side" far_below "$took" $((6 * units))
check "and make one pending entry a unit" expect "$((50 + 2 * units))/* $((50 + units)) $units" \
	field r slots relocated pending

# A read that waited for one of them would take a second.
unhindered() { (($(latency "$1" 99) < 200000 && $(latency "$1" 50) < 20 * $(latency nothing 50))); }
check "reads of sound sectors are not held up by writes that fail" unhindered writes
check "nor by reads that fail" unhindered reads
entries=$(list r)
again() {
	dmsetup remove r
	create r /dev/mapper/main /dev/spare
	expect "$entries" list r
	written
}
check "the same entries and data after re-activation" again
dmsetup remove r

# 200 units fail at once, and each write of metadata takes 30 ms: one commit after the other would take 12 s.
grouped() {
	dmsetup create slow --table "0 $(blockdev --getsz /dev/spare) delay /dev/spare 0 0 /dev/spare 0 30"
	create r /dev/mapper/main /dev/mapper/slow
	bad disk 16000 17599
	fio --name=grouped --filename=/dev/mapper/r --direct=1 --ioengine=libaio --iodepth=200 --rw=write --bs=4k \
		--offset=$((16000 * 512)) --size=$((4096 * 200))
	expect $((250 + units)) field r relocated
	echo "# 200 writes that fail at once: $(field r commits) commits" >/run/grouped
	(($(field r commits) <= 50))
	dmsetup remove r
}
check "those who wait at the same time share commits" grouped
cat /run/grouped
dmsetup remove slow
dmsetup remove main
dmsetup remove failing
remove_disk disk spare
