#!/bin/bash
# Bios of any size and place over hundreds of entries, beginning and ending inside units: right data everywhere.
# Argument: how many random writes for each size of unit.
# kernels: stock (debug)
# vm: --smp 2
# args: 150
# all-args: 600
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 21

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
