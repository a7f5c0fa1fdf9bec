#!/bin/bash
# A main device that goes away as a whole is not taken for bad sectors: no slots are used, and it is awaited.
# kernels: stock (debug)
# vm: --smp 2
# waits: for main to be asked again
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 29

main=32768
scsi 24
disk base 16
disk spare 4
data /run/model $main
data /run/data 8
begin() { # DEVICE
	lower main "$1" 0 $main
	put /run/model /dev/mapper/main
	blank /dev/spare
	create r /dev/mapper/main /dev/spare unit_sectors 8
}
gone() { patch main 0 $main error; }
begin /dev/base

# --- Under load

# An entry, to be served whatever main does.
bad base 16003
put /run/data /dev/mapper/r 16000
served() {
	same /run/data /dev/mapper/r 16000
	put /run/data /dev/mapper/r 16000
}
fio --name=load --filename=/dev/mapper/r --direct=1 --ioengine=libaio --iodepth=16 --rw=randrw --bs=4k --size=4m \
	--time_based --runtime=300 --rate_iops=300 --continue_on_error=io --output=/run/fio &
load=$!
sleep 1
before=$(events r)
mark
check "main is gone under load: the mode is tripped" eval 'gone && soon expect tripped field r mode'
no_slots() {
	sleep 1
	expect "16000 * 8" list r
	expect "tripped 1/* 0 1 0" field r mode slots slots_bad relocated pending
}
check "no slot is used, no sector is pending" no_slots
check "reads fail with the error of main" fails_with "Input/output error" get /dev/mapper/r 24000 8
check "so do writes" fails_with "Input/output error" put /run/data /dev/mapper/r 24000
sector_served() {
	part /run/data 3 1 >/run/part
	same /run/part /dev/mapper/r 16003
	put /run/part /dev/mapper/r 16003
}
check "what is relocated is served" sector_served
check "an event was raised" test "$(events r)" -gt "$before"
check "the log says so" eval 'log | grep "mode is now tripped"'
before=$(events r)
mark
back() {
	patch main
	soon expect active field r mode
}
check "main is back: the mode is active, by itself" back
works() {
	part /run/model 24000 800 >/run/part
	same /run/part /dev/mapper/r 24000
	put /run/part /dev/mapper/r 24000
	same /run/part /dev/mapper/r 24000
	expect "16000 * 8" list r
}
check "reads and writes succeed, no entry was made" works
check "an event was raised then" test "$(events r)" -gt "$before"
check "and the log says so" eval 'log | grep "mode is now active"'
check "the load went on all the time" kill $load
wait $load || true

# --- How many make it trip

fail() { # UNIT...
	local unit
	for unit; do fails_with "Input/output error" put /run/data /dev/mapper/r $((unit * 8)); done
}
seven() {
	gone
	fail 11 11 12 12 13 13 14 14 15 15 16 16 17 17
	expect active field r mode
	expect "16000 * 8" list r
}
check "seven units that fail, twice each, do not trip it, nor use slots" seven
check "one more does" eval 'fail 18 && expect tripped field r mode'
reset() {
	message r reset
	expect "active 0 0 0 0 0 0" field r mode read_errors write_errors reads_recovered writes_recovered \
		reads_redirected writes_redirected
}
check "reset leaves it and clears the counters" reset
reads_too() {
	local unit
	for unit in 21 22 23 24 25 26 27; do not get /dev/mapper/r $((unit * 8)) 8; done
	expect active field r mode
	not get /dev/mapper/r 224 8
	expect tripped field r mode
	expect "16000 * 8" list r
}
check "failing reads trip it likewise" reads_too
suspend() {
	dmsetup suspend r
	dmsetup resume r
	expect "16000 * 8" list r
	dmsetup load r --table "$(table /dev/mapper/main /dev/spare)"
	dmsetup resume r
	expect "16000 * 8" list r
}
check "suspend, resume and reload work while main is gone" suspend
removed() {
	not get /dev/mapper/r 224 64
	dmsetup remove r
	create r /dev/mapper/main /dev/spare
	expect "16000 * 8" list r
	sector_served
	patch main
	soon expect active field r mode
	works
}
check "so do remove and create; main back, all is there" removed

# --- Bad sectors are no reason

many() {
	local n
	for ((n = 0; n < 40; n++)); do
		bad base $((1000 + 80 * n))
		put /run/data /dev/mapper/r $((1000 + 80 * n))
		expect active field r mode
	done
	for ((n = 0; n < 40; n++)); do same /run/data /dev/mapper/r $((1000 + 80 * n)); done
	expect "41 0" field r relocated pending
}
check "forty bad sectors in a row, written: each is relocated, and it does not trip" many
unread() {
	local n
	for ((n = 0; n < 40; n++)); do
		bad base $((5000 + 80 * n))
		not get /dev/mapper/r $((5000 + 80 * n)) 8
	done
	expect "active 41 40" field r mode relocated pending
}
check "forty, read: each is pending" unread
large() {
	bad base 20000 20799
	part /run/model 0 800 >/run/part
	put /run/part /dev/mapper/r 20000
	same /run/part /dev/mapper/r 20000
	expect "active 141" field r mode relocated
}
check "a hundred units side by side, in one write: the same" large
good base 0 $((main - 1))
dmsetup remove r
dmsetup remove main

# --- Errors as they came

begin "$good"
patch main 0 $main linear "$sick" @
each_error() { # KIND MODE
	local unit
	arm "$1"
	for unit in {50..69}; do fails_with "${sense[$1]#*|}" put /run/data /dev/mapper/r $((8 * unit)); done
	expect "$2" field r mode
	expect "" list r
	disarm
	soon expect active field r mode
}
for kind in medium ioerr target; do
	check "$kind errors on all of main: it trips, and they go up as they came" each_error $kind tripped
done
check "transport errors on all of main: they go up as they came, and it does not trip" each_error transport active

cat >/run/storm.py <<'P'
"""10,000 reads and writes that fail, all with a transport error."""
import errno, mmap, os
device, buffer = os.open("/dev/mapper/r", os.O_RDWR | os.O_DIRECT), mmap.mmap(-1, 4096)
for n in range(10000):
    at = n * 7919 % 4096 * 4096
    try:
        os.pwritev(device, [buffer], at) if n % 2 else os.preadv(device, [buffer], at)
    except OSError as error:
        assert error.errno == errno.ENOLINK, error
    else:
        raise SystemExit(f"{n} did not fail")
P
storm() {
	arm transport
	python3 /run/storm.py
	expect "" list r
	expect "active 0/* 0 0 0" field r mode slots slots_bad relocated pending
}
check "ten thousand transport errors: no entry" storm
disarm
check "and main has what it had" same /run/model /dev/mapper/r
by_messages() {
	local sector
	patch main 0 $main error
	for sector in 1000 2000 3000 4000 5000 6000 7000 8000; do not message r remap $sector; done
	expect tripped field r mode
	patch main
	soon expect active field r mode
	expect "" list r
}
check "main found dead by messages alone: tripped, and active by itself once main answers" by_messages
spare_untouched() {
	dmsetup remove r
	create r /dev/mapper/main /dev/spare
	expect "" list r
	same /run/model /dev/mapper/r
}
check "after re-activation too" spare_untouched
dmsetup remove r
dmsetup remove main
remove_disk base spare
rmmod scsi_debug
