#!/bin/bash
# What was acknowledged before the machine was killed without warning is there afterwards.
# kernels: stock (debug)
# vm: --smp 2
# disks: 24M 8M 1M
# boots: 98 0
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh

# Bad: all of some units, parts of others, every tenth sector of the last quarter.
bads=(1003 1003 2000 2047 3004 3015 5001 5001 5003 5003)
for ((sector = 36000; sector < 49000; sector += 10)); do bads+=("$sector" "$sector"); done
holes /dev/vda "${bads[@]}" | dmsetup create main
create r /dev/mapper/main /dev/vdb unit_sectors 8

cat >/run/write.py <<'P'
"""write.py write|verify: writes 4 KiB at a time, notes how many were acknowledged on /dev/vdc; verifies just these."""
import mmap, os, random, sys

FIRST, COUNT = 36000 * 512, 1500
device = os.open("/dev/mapper/r", os.O_RDWR | os.O_DIRECT)
note = os.open("/dev/vdc", os.O_RDWR | os.O_DIRECT)
buffer = mmap.mmap(-1, 4096)
noted = mmap.mmap(-1, 512)

def pattern(n, round):
    return random.Random(n * 1000 + round).randbytes(4096)

places = random.Random(1).sample(range(COUNT), COUNT)
if sys.argv[1] == "write":
    n = 0
    while True:
        buffer[:] = pattern(n % COUNT, n // COUNT)
        os.pwrite(device, buffer, FIRST + places[n % COUNT] * 4096)
        n += 1
        noted[:8] = n.to_bytes(8, "little")
        os.pwrite(note, noted, 4096)
        if n == 40:
            print("started", flush=True)
os.preadv(note, [noted], 4096)
done = int.from_bytes(noted[:8], "little")
print(f"# {done} writes were acknowledged")
assert done >= 40
for n in range(max(0, done - COUNT), done):
    os.preadv(device, [buffer], FIRST + places[n % COUNT] * 4096)
    data = bytes(buffer)
    # The write after the last one acknowledged may have happened, or in part: where it replaced older data, either may
    # be in each sector.
    may = [pattern(n % COUNT, n // COUNT)]
    if n + COUNT == done:
        may.append(pattern(n % COUNT, n // COUNT + 1))
    for sector in range(0, 4096, 512):
        assert any(data[sector:sector + 512] == m[sector:sector + 512] for m in may), f"write {n}, byte {sector}"
P
known() { python3 -c "import random, sys; sys.stdout.buffer.write(random.Random($1).randbytes(1 << 20))" >/run/known; }

known 1
case $1 in
1)
	put /run/known /dev/mapper/r 1000
	known 2
	put /run/known /dev/mapper/r 4000 oflag=direct,dsync,seek_bytes
	list r >/run/list
	truncate -s 64K /run/list
	put /run/list /dev/vdc 16
	mkfifo /run/started
	python3 /run/write.py write >/run/started &
	read -r _ </run/started
	sleep 2
	echo b >/proc/sysrq-trigger
	sleep 60
	;;
2)
	plan 4
	check "a write of 1 MiB that was acknowledged" same /run/known /dev/mapper/r 1000
	known 2
	check "and one with FUA" same /run/known /dev/mapper/r 4000
	entries() { get /dev/vdc 16 128 | tr -d '\0' | cmp - <(list r | awk '$1 < 10000'); }
	check "have the entries that they had" entries
	check "of many writes under way, each one acknowledged is there" python3 /run/write.py verify
	dmsetup remove r
	dmsetup remove main
	;;
esac
