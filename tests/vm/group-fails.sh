#!/bin/bash
# 64 entries at once, in as many table blocks, of which some cannot be written, or none made durable: each write that was
# acknowledged is there, now and after re-activation, and all goes on when the spare works again.
# kernels: stock (debug)
# vm: --smp 2
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 10

modprobe dm-remap
disk main 40
scsi 40
cat >/run/burst.py <<'P'
"""burst.py: 64 writes at once, to units that have none of their sectors in slots yet and whose records lie in 64 table
blocks; prints the numbers of those that fail. burst.py check: all that was acknowledged so far is there."""
import json, os, sys
sys.path.insert(0, "/host")
import dm
fd = os.open("/dev/mapper/r", os.O_RDWR | os.O_DIRECT)
bursts = json.load(open("/run/bursts"))  # of each: whether the write to each block was acknowledged
place = lambda version, n: (126 * n + version) * 8
buffers = [dm.memory(4096) for _ in range(64)]
if sys.argv[1:]:
    for version, acknowledged in enumerate(bursts, 1):
        for n in range(64):
            os.preadv(fd, buffers[:1], place(version, n) * 512)
            for s in range(8):
                found = dm.version_of(place(version, n) + s, buffers[0][512 * s:512 * s + 512])
                assert found == version or found == 0 and not acknowledged[n], f"burst {version}, block {n}: {found}"
else:
    version, done = len(bursts) + 1, [False] * 64
    aio = dm.Aio(fd, 64)
    for n, buffer in enumerate(buffers):
        buffer[:] = b"".join(dm.sector(place(version, n) + s, version) for s in range(8))
        aio.submit(memoryview(buffer), place(version, n) * 512, False, n)
    while aio.flying:
        for n, result in aio.reap():
            done[n] = result == 4096
    json.dump([*bursts, done], open("/run/bursts", "w"))
    print(*(n for n in range(64) if not done[n]))
P
echo "[]" >/run/bursts
burst() { python3 -S /run/burst.py "$@"; }
u64() { get /dev/mapper/spare 0 1 | od -An -t u8 -j "$1" -N 8 | tr -d ' '; }
area() { get /dev/mapper/spare $(($(u64 $((136 + 8 * $1))) * 8)) $((65 * 8)); }
alike() { cmp <(area 0) <(area 1); }
# broken BLOCK REPLICA: neither reads nor writes of this replica of a table block succeed.
broken() { patch spare $(($(u64 $((136 + 8 * $2))) * 8 + 8 * $1)) 8 error; }
again() { dmsetup remove r && create r /dev/main /dev/mapper/spare; }

# shellcheck disable=SC2154  # scsi sets it
lower spare "$sick" 0 "$(blockdev --getsz "$sick")"
create r /dev/main /dev/mapper/spare unit_sectors 8
message r mark 0 $((64 * 126 * 8))

check "of 64 at once none fails" expect "" burst
one_replica() {
	broken 60 0
	expect "" burst
	(($(field r metadata_errors) > 0))
	patch spare
	burst check
}
check "nor with one replica of a block that cannot be written, which is counted" one_replica
check "check makes the replicas alike again" eval 'message r check && alike'
no_flush() {
	arm target 35
	expect "$(echo {0..63})" burst
	expect degraded field r mode
	disarm
}
check "none is acknowledged that a failed flush would have made durable" no_flush
goes_on() {
	message r sync
	expect active field r mode
	expect "" burst
	burst check
}
check "and all goes on when the spare flushes again" goes_on
one_flush() { # the first one fails; the next one succeeds, but what the cache had may be gone
	commands -1 "${sense[target]%|*}" 35
	expect "" burst
	disarm
	goes_on
}
check "if only the first flush fails, what it may have lost is written again" one_flush
# Both of its replicas: what lies between them are slots.
no_replica() {
	local failed
	first=$(($(u64 136) * 8 + 8 * 60)) second=$(($(u64 144) * 8 + 8 * 60))
	segments error "$sick" $first $((first + 7)) $second $((second + 7)) | reload spare
	failed=$(burst)
	echo "failed: $failed"
	[[ " $failed " == *" 60 "* && $(wc -w <<<"$failed") -lt 64 ]]
	expect degraded field r mode
	patch spare
}
check "with a block of which no replica can be written, that one fails, and others do not" no_replica
check "and all goes on when it can be" goes_on
check "after re-activation all is there, and the replicas are alike" eval 'again && burst check && alike'
dmsetup remove r spare
check "all is removed" rmmod dm-remap
rmmod scsi_debug
remove_disk main
