#!/bin/bash
# Another target on src/dm, samples/linear: I/O, suspend, reload and removal, as of the target that the layer was made for.
# kernels: stock (debug)
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 17

disk main 8
data /run/data 64
data /run/other 64
line() { echo "$1 $2 rust_linear /dev/main $3"; }

check "modprobe registers the target" eval 'modprobe rust-dm-linear && dmsetup targets | grep "^rust_linear  *v1.0.0"'
refuses() { # WORDS SENTENCE
	refused "$2" dmsetup create l --table "0 800 rust_linear $1"
	expect "No devices found" dmsetup ls
}
check "a table line without a start is refused in words" refuses "/dev/main" "Needs <device> <start>"
check "so is one with a word too many" refuses "/dev/main 0 0" "Needs <device> <start>"
check "and one whose start is no number" refuses "/dev/main -1" "Needs <device> <start>"
check "and a device that is not there" refuses "/dev/nothing 0" "Cannot open device"
check "and a range that the device does not have" refuses "/dev/main 16000" "too small for target"

# Two targets, the second one's sectors before the first one's.
printf '%s\n' "$(line 0 1000 8000)" "$(line 1000 2000 2000)" | dmsetup create l
lines="0 1000 rust_linear $(stat -c '%Hr:%Lr' /dev/main) 8000
1000 2000 rust_linear $(stat -c '%Hr:%Lr' /dev/main) 2000"
check "dmsetup table prints what was loaded" expect "$lines" dmsetup table l
across() {
	put /run/data /dev/mapper/l 968
	same /run/data /dev/mapper/l 968
	head -c $((32 * 512)) /run/data >/run/first
	tail -c $((32 * 512)) /run/data >/run/second
	same /run/first /dev/main 8968
	same /run/second /dev/main 2000
}
check "a write over both targets lies on the device where it belongs" across
fails() {
	bad main 2500
	not get /dev/mapper/l 1500 1
	get /dev/mapper/l 1501 1 >/dev/null
	good main 2500
}
check "an error goes up, of its sector only" fails
verified() { # COMMAND...: beside I/O that is read back.
	fio --name=x --filename=/dev/mapper/l --direct=1 --rw=randrw --bs=4k --size=1M --io_size=8M --ioengine=libaio \
		--iodepth=8 --fsync=32 --verify=crc32c --do_verify=1 --minimal >/run/fio &
	"$@"
	wait $!
}
suspends() { for _ in 1 2 3 4 5; do dmsetup suspend l && dmsetup resume l; done; }
check "I/O goes on over suspend and resume" verified suspends
reloads() {
	for _ in 1 2 3 4 5; do
		dmsetup load l --table "$lines"
		dmsetup resume l
	done
}
check "and over a reload of the table" verified reloads
moved() {
	put /run/other /dev/main 100
	dmsetup load l --table "$(line 0 800 100)"
	expect "$lines" dmsetup table l
	dmsetup resume l
	same /run/other /dev/mapper/l 0
}
check "another table takes its place when the device is resumed" moved
nowait() {
	fio --name=x --filename=/dev/mapper/l --direct=1 --rw=randrw --bs=4k --size=256k --io_size=4M --ioengine=io_uring \
		--iodepth=8 --nowait=1 --minimal >/run/fio
	[[ $(cut -d\; -f5 /run/fio) == 0 ]]
}
check "requests that must not wait are served" nowait
check "a message is not known" not dmsetup message l 0 help
check "rmmod is refused as long as there is a device" not rmmod rust_dm_linear
inactive() {
	dmsetup load l --table "$(line 0 100 0)"
	dmsetup clear l
	dmsetup load l --table "$(line 0 100 0)"
	dmsetup remove l
	rmmod rust_dm_linear
	not eval 'lsmod | grep ^rust_dm_linear'
}
check "tables that never became active go away, and the module" inactive
beside() {
	modprobe rust-dm-linear
	modprobe dm-remap
	rmmod rust_dm_linear dm_remap
}
check "it and dm-remap can be loaded side by side" beside
remove_disk main
