#!/bin/bash
# Slots are for data: what a failed read remembers of a bad sector gives way to a write that needs the slot.
# kernels: stock (debug)
# vm: --smp 2 --mem 1500
# shellcheck source=tests/vm/lib.sh disable=SC2016
. /host/lib.sh
big=1
[[ $VM_KERNEL == stock ]] || big=
plan $((36 + ${big:+6}))

disk main 16
disk spare 4
data /run/model 32768
put /run/model /dev/main

# unit N: the first sector of the Nth bad unit; one of its sectors is bad.
unit() { echo $((64 * $1)); }
for ((n = 0; n < 500; n++)); do
	((n % 20 == 0)) || continue
	# null_blk keeps at most 512 ranges; and bad units lie alone as well as side by side.
	for ((k = n; k < n + 20; k++)); do bad main $(($(unit $k) + 3)); done
done

# units read|write FIRST LAST [FILE]: how many reads, or writes, of these bad units succeeded. A write puts the model's data
# there, or those of FILE; a read counts if it gives them.
cat >/run/units.py <<'P'
import mmap, os, sys
what, first, last, name = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else "/run/model"
fd, model, buffer = os.open("/dev/mapper/r", os.O_RDWR | os.O_DIRECT), open(name, "rb"), mmap.mmap(-1, 4096)
done = 0
for n in range(first, last + 1):
    at = n * 64 * 512
    data = os.pread(model.fileno(), 4096, at)
    try:
        if what == "write":
            buffer[:] = data
            os.pwritev(fd, [buffer], at)
        else:
            os.preadv(fd, [buffer], at)
            assert buffer[:] == data, f"unit {n} has not what it should"
        done += 1
    except OSError:
        pass
print(done)
P
units() { python3 -S /run/units.py "$@"; }

# begin [FEATURE...]: a device of 250 slots, none of which is used.
begin() {
	! dmsetup info r >/dev/null 2>&1 || dmsetup remove r
	blank /dev/spare
	create r /dev/main /dev/spare unit_sectors 8 spare_sectors 2048 "$@"
}
again() { dmsetup remove r && create r /dev/main /dev/spare spare_sectors 2048; }

# --- Reads

begin
check "the spare has 250 slots" expect "0/250" field r slots
check "a read pass over 300 units with a bad sector each: each read fails" expect 0 units read 0 299
check "the device is not full" expect active field r mode
check "writing 200 of them succeeds" expect 200 units write 100 299
check "and is read back" expect 200 units read 100 299
check "the device is not full" expect "active 200" field r mode relocated
check "all others fail still" expect 0 units read 0 99
check "what was written is there after re-activation" eval \
	'again && expect 200 units read 100 299 && expect 0 units read 0 99'
check "and the device is not full" expect "active 200" field r mode relocated
check "fifty more: all slots are used" eval 'expect 50 units write 50 99 && expect 250 units read 50 299'
check "now it is full, and says so" expect "full 250/250 0 250 0" field r mode slots slots_bad relocated pending
check "a write that needs a slot fails" expect 0 units write 0 2
check "a read of what is bad is an error, and no more" eval 'expect 0 units read 0 49 && expect full field r mode'
check "what is in slots can be written" expect 250 units write 50 299
check "all is there after re-activation" eval 'again && expect 250 units read 50 299 && expect full field r mode'

# What reads made gives way after re-activation as well.
begin
activated() {
	expect 0 units read 0 299
	message r sync
	again
	expect active field r mode
	expect 200 units write 100 299
	again
	expect 200 units read 100 299
}
check "a read pass, re-activation, and then 200 writes: all succeed" activated

begin
passes() {
	local n
	for n in 1 2 3; do
		expect 0 units read 100 449
		expect active field r mode
	done
	expect 250 units write 200 449
	expect 250 units read 200 449
}
check "three read passes over 350 bad units, then 250 writes" passes

# Writes of several units that are all pending.
begin
long() {
	bad main 20000 23999
	expect 0 units read 0 299
	expect active field r mode
	part /run/model 20000 1600 >/run/part
	put /run/part /dev/mapper/r 20000
	same /run/part /dev/mapper/r 20000
	again
	same /run/part /dev/mapper/r 20000
	good main 20000 23999
	for n in {312..374}; do bad main $(($(unit "$n") + 3)); done
}
check "a write of 200 bad units side by side, when all slots are held by reads" long

# --- Marked

begin
marks() {
	local n
	for ((n = 300; n < 400; n++)); do message r mark "$(unit $n)" >/dev/null; done
	expect "100/250 0 0 100" field r slots slots_bad relocated pending
}
check "a hundred units are marked" marks
check "a read pass over 200 more: none succeeds" expect 0 units read 0 199
check "150 of them are written" expect 150 units write 0 149
check "marked units kept their slots: full" expect "full 250/250 0 150 100" field r mode slots slots_bad relocated pending
check "so a write that needs one fails" expect 0 units write 150 160
marked() { [[ $(list r | awk '$2 == "pending" && $1 >= 300 * 64 && $1 < 400 * 64' | wc -l) == 100 ]]; }
check "all hundred are pending, after re-activation too" eval 'marked && again && marked && expect 150 units read 0 149'
check "and can be written: they have slots" eval 'expect 100 units write 300 399 && expect 100 units read 300 399'

# --- pending_reads fail

begin pending_reads fail
check "pending_reads fail, a read pass over 300: none succeeds" expect 0 units read 0 299
check "none of what it found gives way" eval 'expect full field r mode && expect 0 units write 300 310'
check "what has a slot is written" eval 'n=$(units write 0 299) && expect 250 echo $n'
begin pending_reads fail
units read 0 299 >/dev/null
check "set to retry, they give way" eval \
	'message r set pending_reads retry && expect 10 units write 300 309 && expect 10 units read 300 309'
check "and the mode is active" expect active field r mode

# --- forget

begin
forgets() {
	expect 0 units read 0 99
	expect 20 units write 0 19
	message r mark "$(unit 300)" >/dev/null
	message r mark "$(unit 301)" >/dev/null
	expect "102/250 0 20 82" field r slots slots_bad relocated pending
	# Half of them: units 0 to 49.
	expect "30 *" message r forget 0 $((64 * 50))
	expect "72/250 0 20 52" field r slots slots_bad relocated pending
	expect "52 *" message r forget 0 32768
	expect "20/250 0 20 0" field r slots slots_bad relocated pending
	expect "0 *" message r forget 0 32768
}
check "forget drops pending units, says how many, and their slots are free" forgets
kept() {
	expect 20 units read 0 19
	expect 20 eval 'list r | grep -c "relocated ff$"'
}
check "units with data in slots are left alone" kept
check "the same after re-activation" eval 'again && kept && expect "20/250 0 20 0" field r slots slots_bad relocated pending'
asks_main() {
	expect 0 units read 30 30
	expect "1 *" message r forget "$(unit 30)"
	good main $(($(unit 30) + 3))
	expect 1 units read 30 30
	bad main $(($(unit 30) + 3))
}
check "main is asked again for what was forgotten" asks_main
partial() {
	part /run/model $(($(unit 40) + 1)) 1 >/run/part
	put /run/part /dev/mapper/r $(($(unit 40) + 3))
	expect "0 *" message r forget "$(unit 40)" 8
	same /run/part /dev/mapper/r $(($(unit 40) + 3))
}
check "a unit that is in its slot in part is left alone" partial
bad_words() {
	refused "<sector> must be a sector of the device" message r forget 32768
	refused "wrong number of arguments" message r forget
	refused "<count> must be 1 or more" message r forget 0 0
}
check "a bad forget changes nothing" bad_words
dmsetup remove r
remove_disk main spare

# --- 30,000 bad units, 4,000 slots

if [[ -n $big ]]; then
	# The bad units are 30 runs of a thousand, with a thousand healthy ones after each; the slots are 4,000.
	data_start=$((2 + 2 * 32))
	disk big 235
	disk spare 20
	for ((n = 0; n < 30; n++)); do bad big $((n * 16000)) $((n * 16000 + 7999)); done
	spare=$((8 * (data_start + 4000 + 2)))
	create r /dev/big /dev/spare unit_sectors 8 spare_sectors "$spare"
	slots=$(field r slots)
	echo "# slots: ${slots#*/}"
	check "about 4,000 slots" eval '((${slots#*/} >= 3900 && ${slots#*/} <= 4100))'
	cat >/run/big.py <<-'P'
		import mmap, os, sys
		fd, buffer = os.open("/dev/mapper/r", os.O_RDWR | os.O_DIRECT), mmap.mmap(-1, 4096)
		def bad():
		    return (8 * (2000 * run + n) for run in range(30) for n in range(1000))
		def written():  # a tenth
		    return (sector for n, sector in enumerate(bad()) if n % 10 == 3)
		def data(sector):
		    return (b"%15d\n" % sector) * 256
		done = 0
		for sector in bad() if sys.argv[1] == "all" else written():
		    try:
		        if sys.argv[1] == "write":
		            buffer[:] = data(sector)
		            os.pwritev(fd, [buffer], sector * 512)
		        else:
		            os.preadv(fd, [buffer], sector * 512)
		            assert buffer[:] == data(sector), f"sector {sector}"
		        done += 1
		    except OSError:
		        pass
		print(done)
	P
	check "30,000 bad units are read: none succeeds" expect 0 python3 -S /run/big.py all
	healthy() {
		for n in 0 13 29; do get /dev/mapper/r $((n * 16000 + 8000)) 8000 >/dev/null; done
		expect active field r mode
	}
	check "what is healthy is read, and the device is not full" healthy
	check "writing to 3,000 of them: all succeed" expect 3000 python3 -S /run/big.py write
	check "and are read back" expect 3000 python3 -S /run/big.py read
	big_again() {
		dmsetup remove r
		create r /dev/big /dev/spare spare_sectors "$spare"
		expect 3000 python3 -S /run/big.py read
		expect "active 3000" field r mode relocated
	}
	check "after re-activation too" big_again
	dmsetup remove r
	remove_disk big spare
fi
