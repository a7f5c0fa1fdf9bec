#!/bin/bash
# Two jobs write different sectors of the same units while these are relocated, restored, and fail: no write is lost.
# kernels: stock (debug) (race)
# vm: --smp 2
# args: 20
# all-args: 100
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 11

modprobe dm-flakey
seconds=$1 units=48 seed=${2:-$((SRANDOM % 10000))}
sectors=$((8 * units))
disk disk 8 badblocks_once=1
disk spare 8
stale /dev/disk | dmsetup create main
create r /dev/mapper/main /dev/spare unit_sectors 8

cat >/run/writers.py <<'P'
"""writers.py JOB SECTORS SEED: four threads write sectors until /run/go goes, each its own, one at a time, and read
others of its own; then /run/job.JOB says how often each sector was written.
writers.py DEVICE SECTORS: compares DEVICE with what the jobs said."""
import errno, mmap, os, random, struct, sys, threading

SECTORS = int(sys.argv[2])

def content(sector, count):
    return struct.pack("<QQ", sector, count) * 32 if count else bytes(512)

refused = []

def read(device, buffer, sector):
    # What is marked, or lies in a bad patch, is asked once: then a fault that shows only once is an error.
    for _ in range(100):
        try:
            return os.preadv(device, [memoryview(buffer)[:512]], sector * 512)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            refused.append(sector)
    sys.exit(f"sector {sector} stays unreadable")

def compare(device, buffer, sector, count):
    assert read(device, buffer, sector) == 512
    if buffer[:512] != content(sector, count):
        there = struct.unpack_from("<QQ", buffer)
        sys.exit(f"sector {sector} was written {count} times, and has (sector, time) {there}")

def write(device, mine, counts, rnd):
    buffer = mmap.mmap(-1, 4096)
    while os.path.exists("/run/go"):
        sector = rnd.choice(mine)
        buffer[:512] = content(sector, counts[sector] + 1)
        assert os.pwrite(device, memoryview(buffer)[:512], sector * 512) == 512
        counts[sector] += 1
        sector = rnd.choice(mine)
        compare(device, buffer, sector, counts[sector])

def job(number, seed):
    def guarded(*args):
        try:
            write(*args)
        except BaseException as error:
            print("failed:", repr(error), flush=True)
            os._exit(1)
    device = os.open("/dev/mapper/r", os.O_RDWR | os.O_DIRECT)
    counts = [0] * SECTORS
    threads = []
    for thread in range(4):
        # A unit's eight sectors are those of the eight threads of both jobs.
        mine = range(2 * thread + number, SECTORS, 8)
        rnd = random.Random(seed + 8 * thread + number)
        threads.append(threading.Thread(target=guarded, args=(device, mine, counts, rnd)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    with open(f"/run/job.{number}", "w") as file:
        file.writelines(f"{count}\n" for count in counts)
    print("refused:", len(refused))

if sys.argv[1].startswith("/"):
    device = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, 4096)
    jobs = [[int(line) for line in open(f"/run/job.{number}")] for number in (0, 1)]
    for sector in range(SECTORS):
        compare(device, buffer, sector, jobs[sector % 2][sector])
    print(sum(map(sum, jobs)))
else:
    job(int(sys.argv[1]), int(sys.argv[3]))
P

# Every so often the fault that main has changes: nothing, or sectors that it does not write.
churn() {
	local n ranges
	RANDOM=$1
	while [[ -e /run/go ]]; do
		ranges=()
		case $((RANDOM % 3)) in
		1) for ((n = RANDOM % 8; n < sectors; n += 8 + RANDOM % 40)); do ranges+=("$n" $((n + RANDOM % 8))); done ;;
		2) ranges=(0 $((RANDOM % sectors))) ;;
		esac
		stale /dev/disk "${ranges[@]}" | reload main
		for ((n = 0; n < 12; n++)); do
			case $((RANDOM % 6)) in
			0) message r remap 0 $sectors ;;
			1) message r restore 0 $sectors ;;
			2) message r remap $((RANDOM % sectors)) ;;
			3) message r restore $((RANDOM % sectors)) ;;
			4) bad disk $((RANDOM % sectors)) ;;
			5) ((RANDOM % 6)) || { dmsetup suspend r && dmsetup resume r; } ;;
			esac
		done
	done
}
# Another administrator, whose messages end early when the device is suspended.
beside() {
	while [[ -e /run/go ]]; do
		message r mark 0 $sectors || true
		message r remap 0 $sectors || true
		message r check || true
		message r restore 0 $sectors || true
	done
}
moved() {
	cat /run/churn /run/beside |
		awk -v words=" units $1" 'i = index($0, words) { n += substr($0, 1, i) } END { print n + 0 }'
}
often() { (($(moved relocated) > 100 && $(moved restored) > 30)); }

any_failed() { (($(field r write_errors) > 0)); }

echo "# seed $seed (the scenario's argument)"
touch /run/go
jobs=()
# To begin with, every write fails on main.
stale /dev/disk 0 $((sectors - 1)) | reload main
for job in 0 1; do
	python3 /run/writers.py $job $sectors "$seed" >/run/writer.$job 2>&1 &
	jobs+=($!)
done
soon any_failed || true
churn "$seed" >/run/churn 2>&1 &
churner=$!
beside >/run/beside 2>&1 &
besides=$!
# A machine that is busy with something else gets some time more.
while { ((SECONDS < seconds)) || { ! often && ((SECONDS < 6 * seconds)); }; } && kill -0 $churner "${jobs[@]}" 2>/dev/null; do sleep 1; done
rm /run/go
churned=0 failed=0
wait $churner || churned=$?
for job in "${jobs[@]}"; do wait "$job" || failed=1; done
wait $besides

none_failed() { # FAILED LOG...
	(($1 == 0)) || { tail -n 20 "${@:2}" && return 1; }
}
check "the writers read what they wrote (seed $seed)" none_failed "$failed" /run/writer.0 /run/writer.1
# Each such error had a read of main behind it that failed.
explained() { (($(awk '/^refused:/ { n += $2 } END { print n + 0 }' /run/writer.?) <= $(field r read_errors))); }
echo "# reads refused: $(cat /run/writer.? | xargs), of $(field r read_errors) that main failed"
check "no read is refused but where main failed one" explained
check "no message, suspend or load failed" none_failed "$churned" /run/churn
echo "# units relocated: $(moved relocated), restored: $(moved restored); $(field r write_errors) writes failed," \
	"writes: $(python3 /run/writers.py /dev/mapper/r $sectors || true)"
checked() { not grep -v " 0 stale, 0 damaged, 0 repaired" <(grep " stale, " /run/beside); }
check "the table was never found stale or damaged" checked
check "units were moved to slots and back again and again" often
failures() {
	(($(field r write_errors) > 0))
	expect "$(field r write_errors)" field r writes_recovered
}
check "writes failed, and all were recovered" failures
check "every sector has what was written last" python3 /run/writers.py /dev/mapper/r $sectors
again() {
	dmsetup remove r
	create r /dev/mapper/main /dev/spare
	python3 /run/writers.py /dev/mapper/r $sectors
}
check "after re-activation too" again
stale /dev/disk | reload main
good disk 0 $((sectors - 1))
back() {
	expect "* units restored, 0 units stay" message r restore 0 $sectors
	expect "" message r list
	# Their slots are free from the next suspend on.
	dmsetup suspend r
	dmsetup resume r
}
check "a sound main takes all units back" back
check "and no slot stays in use" expect "0/*" field r slots
check "and every sector has it there" python3 /run/writers.py /dev/disk $sectors
dmsetup remove r
dmsetup remove main
remove_disk disk spare
