#!/bin/bash
# Bios of any size and place over hundreds of entries, beginning and ending inside units: right data everywhere, and what lies side
# by side in slots goes in one piece.
# Argument: how many random writes for each size of unit.
# kernels: stock (debug)
# vm: --smp 2
# args: 150
# all-args: 600
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 27

mib=12 # of the device
writes=$1
[[ $VM_KERNEL == stock ]] || writes=100

cat >/run/model.py <<'P'
"""model.py SEED WRITES: random writes, and reads of other sizes, compared with a model in memory."""
import mmap, os, random, sys

SIZE = 4 << 20
rnd = random.Random(int(sys.argv[1]))
device = os.open("/dev/mapper/r", os.O_RDWR | os.O_DIRECT)
model = bytearray(SIZE)
buffer = mmap.mmap(-1, 1 << 20)
source = rnd.randbytes(2 << 20)

def place():
    sectors = rnd.choice((1, rnd.randint(1, 16), rnd.randint(1, 200), rnd.randint(1, 2048)))
    return rnd.randrange(0, SIZE // 512 - sectors + 1) * 512, sectors * 512

def verify(at, length):
    view = memoryview(buffer)[:length]
    assert os.preadv(device, [view], at) == length
    if view != model[at:at + length]:
        bad = next(i for i in range(0, length, 512) if view[i:i + 512] != model[at + i:at + i + 512])
        sys.exit(f"sector {(at + bad) // 512}, read of {length} bytes at sector {at // 512}")

for at in range(0, SIZE, len(buffer)):
    buffer[:] = model[at:at + len(buffer)] = rnd.randbytes(len(buffer))
    assert os.pwrite(device, buffer, at) == len(buffer)
for _ in range(int(sys.argv[2])):
    at, length = place()
    start = rnd.randrange(0, 1 << 20)
    view = memoryview(buffer)[:length]
    view[:] = model[at:at + length] = source[start:start + length]
    assert os.pwrite(device, view, at) == length
    verify(*place())
for at in range(0, SIZE, 7 * 512):
    verify(at, min(7 * 512, SIZE - at))
P

# ranges COUNT LONGEST: `first last` of bad ranges, spread over the device.
ranges() {
	awk -v n="$1" -v longest="$2" -v sectors=$((mib * 2048)) 'BEGIN {
		srand(n + longest); step = int(sectors / n)
		for (i = 0; i < n; i++) {
			first = i * step + int(rand() * (step - longest)); print first, first + int(rand() * longest)
		}
	}'
}
verify() {
	fio --name=verify --filename=/dev/mapper/r --direct=1 --ioengine="$1" --iodepth=16 --rw="$2" --verify="$3" \
		--randseed="$4" --bssplit=512/10:1536/10:4k/20:7k/15:24k/20:130k/10:300k/10:1m/5 "${@:5}" \
		--output=/run/fio || { cat /run/fio && false; }
}

for unit in 1 8 64; do
	disk main $mib
	disk spare 16
	# Units of one sector make many entries of few ranges.
	count=300 longest=40
	((unit > 1)) || { count=250 longest=6; }
	while read -r first last; do bad main "$first" "$last"; done < <(ranges $count $longest)
	create r /dev/main /dev/spare unit_sectors $unit
	check "units of $unit sectors: fio verifies random writes of random sizes that make entries" \
		verify libaio randwrite crc32c $unit
	enough() { (($(field r relocated) >= 200)) && expect 0 field r pending; }
	check "units of $unit sectors: at least 200 of them are relocated" enough
	get /dev/mapper/r 0 $((mib * 2048)) >/run/all
	# From now on main would answer for these sectors, with what it had before.
	while read -r first last; do good main "$first" "$last"; done < <(ranges $count $longest)
	check "units of $unit sectors: of units that moved in part, main's old data is not read" \
		eval 'same /run/all /dev/mapper/r 0 6656 && same /run/all /dev/mapper/r 0 64K'
	check "units of $unit sectors: and over the entries that are there, with io_uring" \
		verify io_uring randwrite md5 $((unit + 100))
	check "units of $unit sectors: reads and writes that overlap, compared with a model" \
		python3 /run/model.py "$unit" "$writes"
	entries=$(list r)
	get /dev/mapper/r 0 $((mib * 2048)) >/run/all
	dmsetup remove r
	create r /dev/main /dev/spare
	check "units of $unit sectors: the same entries after re-activation" expect "$entries" list r
	check "units of $unit sectors: the same data, read in blocks of 13 sectors and of 64 KiB" \
		eval 'same /run/all /dev/mapper/r 0 6656 && same /run/all /dev/mapper/r 0 64K'
	dmsetup remove r
	remove_disk main spare
done

# --- Neighbours whose slots are neighbours

disk main $mib
disk base 16
lower main /dev/main 0 $((mib * 2048))
lower spare /dev/base 0 32768
data /run/all $((mib * 2048))
put /run/all /dev/mapper/main
create r /dev/mapper/main /dev/mapper/spare unit_sectors 8
message r remap 2048 2048 >/dev/null
# Main has something else there.
data /run/other 2048
put /run/other /dev/mapper/main 2048
reads() { # MAIN SPARE SECTOR COUNT: commands to these
	costs "$1" 0 main costs "$2" 0 spare eval "get /dev/mapper/r $3 $4 >/run/got"
	cmp <(part /run/all "$3" "$4") /run/got
}
writes() { # SPARE SECTOR COUNT
	data /run/io "$3"
	edit /run/all "$2" /run/io
	costs 0 0 main costs 0 "$1" spare put /run/io /dev/mapper/r "$2"
	part /run/all $(($2 - 64)) $(($3 + 128)) >/run/part
	same /run/part /dev/mapper/r $(($2 - 64)) 6656
}
in_one() {
	local before
	before=$(field r reads_redirected)
	reads 0 1 2048 2048
	reads 0 1 2051 2040
	expect $((before + 2)) field r reads_redirected
}
check "1 MiB read over 256 units, or from inside the first into the last: one command, that counts once" in_one
written() {
	local before
	before=$(field r writes_redirected)
	writes 1 2048 2048
	writes 1 2051 2040
	expect $((before + 2)) field r writes_redirected
}
check "written: the same, and it is there" written
gap() {
	message r restore 2848
	reads 1 2 2048 2048
	# Its new slot is not where its neighbours' are.
	message r remap 2848
	reads 0 3 2048 2048
	writes 3 2048 2048
}
check "a unit in between that is on main, or in a slot elsewhere, is a piece of its own" gap
partial() {
	# In the slot are four of its sectors, and main has the others.
	bad main 4100 4103
	part /run/all 4096 8 >/run/io
	put /run/io /dev/mapper/r 4096
	good main 4100 4103
	expect "4096 partial f0" eval 'list r | grep "^4096 "'
	message r remap 4104 64
	reads 1 1 4096 72
}
check "from the first sector of a unit that is in its slot on" partial
backwards() {
	local unit
	for unit in {31..0}; do message r remap $((8192 + 8 * unit)) >/dev/null; done
	data /run/io 256
	put /run/io /dev/mapper/main 8192
	reads 0 32 8192 256
	writes 32 8192 256
}
check "slots that lie the other way round: each unit has its own data" backwards
reactivated() {
	dmsetup remove r
	create r /dev/mapper/main /dev/mapper/spare
	same /run/all /dev/mapper/r
	same /run/all /dev/mapper/r 0 6656
}
check "the same data after re-activation" reactivated
dmsetup remove r
dmsetup remove main
dmsetup remove spare
remove_disk main base
