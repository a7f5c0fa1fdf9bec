#!/usr/bin/env python3
"""What a bio, an entry and an activation cost, in instructions: runs in the machine of `scripts/vm --icount`, whose clock
counts them (one instruction = 1 ns). `machine.py full FILE` for `make bench`, `machine.py short FILE` for
tests/vm/hot-path.sh; FILE gets the figures.

All devices lie on one null_blk disk of 272 GiB that keeps no data. Entries are in its first 256 GiB and only on odd units
of 8 sectors, so a healthy bio is one to an even unit, or one in the last 16 GiB.
"""

import json
import os
import platform
import random
import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, "/host")
import dm  # noqa: E402  # tests/vm/dm.py

UNIT = 8  # sectors
MAIN = 272 << 21  # sectors
POPULATED = 1 << 26  # units
# Units that get their data moved to the spare: 4 MiB behind the populated part.
MOVED, MOVED_AT = 1024, (POPULATED + 4096) * UNIT
# 1 MiB more, no two neighbours of which get neighbouring slots.
SCATTERED, SCATTERED_AT = 256, (POPULATED + 8192) * UNIT
CLUSTER = 64  # entries

TRACING = Path("/sys/kernel/tracing")


def log(text):
    print(f"# {time.monotonic():7.1f} s  {text}", flush=True)


def run(*command, **more):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **more).stdout


def put(path, text):
    Path(path).write_text(str(text), encoding="utf-8")


# --- Disks and devices


def disk(name, mib, **attributes):
    """A null_blk disk that completes in the caller's context."""
    base = Path("/sys/kernel/config/nullb") / name
    base.mkdir()
    for key, value in {"size": mib, "blocksize": 512, "queue_mode": 2, "irqmode": 0, **attributes, "power": 1}.items():
        put(base / key, value)


def memory_disk(name, mib, **attributes):
    """One that keeps data, and has some in its first 8 MiB and in the last. (How long it takes to find a page depends on the highest
    there is.)"""
    disk(name, mib, memory_backed=1, **attributes)
    for at, count in ((0, 8), (mib - 1, 1)):
        run("dd", "if=/dev/zero", f"of=/dev/{name}", "bs=1M", f"count={count}", f"seek={at}", "oflag=direct", "status=none")


def raid1(mib):
    """md's RAID1 whose first leg has its first 4 MiB in md's log of bad blocks: its node."""
    run("modprobe", "raid1")
    put("/sys/module/md_mod/parameters/new_array", "md_bench")
    md = Path("/sys/block/md_bench/md")
    # What mdadm would write: for whoever keeps the log on disk himself.
    for name, value in (("metadata_version", "external:bench"), ("level", "raid1"), ("raid_disks", 2), ("resync_start", "none")):
        put(md / name, value)
    for slot in (0, 1):
        leg = f"leg{slot}"
        memory_disk(leg, mib)
        put(md / "new_dev", Path(f"/sys/block/{leg}/dev").read_text(encoding="utf-8"))
        for name, value in (("size", mib << 10), ("slot", slot), ("state", "external_bbl")):
            put(md / f"dev-{leg}" / name, value)
    for sector in range(0, MOVED * UNIT, 512):  # an entry of the log has no more
        put(md / "dev-leg0/bad_blocks", f"{sector} 512")
    put(md / "component_size", mib << 10)
    put(md / "array_state", "readonly")
    return "/dev/md_bench"


def entries(count, kind):
    """The odd units that `count` entries are for: anywhere, or in runs of CLUSTER."""
    chance = random.Random(count)
    bits = POPULATED.bit_length() - 2
    length = 1 if kind == "random" else CLUSTER
    odd = set()
    while len(odd) < count:
        start = chance.getrandbits(bits)
        if length == 1:
            odd.add(start)
        else:
            odd.update(range(start, min(start + length, 1 << bits, start + count - len(odd))))
    return sorted(2 * n + 1 for n in odd)


def linear_segments(count):
    """The table that sends count / 2 random units to another disk and the moved units, too."""
    at, slot, lines = 0, MOVED, []
    for unit in entries(count // 2, "random"):
        lines.append(f"{at} {unit * UNIT - at} linear /dev/main {at}")
        lines.append(f"{unit * UNIT} {UNIT} linear /dev/peer {slot * UNIT}")
        at, slot = (unit + 1) * UNIT, slot + 1
    lines.append(f"{at} {MOVED_AT - at} linear /dev/main {at}")
    lines.append(f"{MOVED_AT} {MOVED * UNIT} linear /dev/peer 0")
    at = MOVED_AT + MOVED * UNIT
    lines.append(f"{at} {MAIN - at} linear /dev/main {at}")
    return "\n".join(lines)


def memory():
    """KiB that the kernel uses for itself, and KiB that are neither free nor in the lists of free pages of the CPU."""
    os.sync()
    put("/proc/sys/vm/drop_caches", 3)
    time.sleep(0.5)  # what is freed after a grace period
    for cache in Path("/sys/kernel/slab").iterdir():
        put(cache / "shrink", 1)
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    zones = Path("/proc/zoneinfo").read_text(encoding="utf-8")
    listed = 4 * sum(int(n) for n in re.findall(r"^ +count: +(\d+)", zones, re.M))
    return kib["Slab"] + kib["VmallocUsed"] + kib["Percpu"], kib["MemTotal"] - kib["MemFree"] - listed


def busy():
    """Instructions that tasks have executed so far, without the idle one."""
    time.sleep(1e-6)  # they are added up when a task stops to run
    stat = Path("/proc/schedstat").read_text(encoding="utf-8")
    return int(re.search(r"^cpu0 (.*)", stat, re.M)[1].split()[6])


def instructions(action, *args):
    """What `action` takes, without what it takes to find out."""
    times = [busy(), busy()]
    action(*args)
    times.append(busy())
    return times[2] - 2 * times[1] + times[0]


class Remap:
    """A remap device, and the entries it began with, whose records were made in so many ascending runs."""

    def __init__(self, name, count, kind, spare_mib, runs=1):
        self.name, self.count, self.kind, self.runs = name, count, kind, runs
        spare = f"spare-{name}"
        disk(spare, spare_mib, memory_backed=1)
        run("dmremap", "format", f"/dev/{spare}", "--main", "/dev/main", "--yes")
        self.units = entries(count, kind)
        for nth in range(runs if count else 0):
            put("/run/bad", "".join(f"{unit * UNIT}\n" for unit in self.units[nth::runs]))
            run("dmremap", "import", f"/dev/{spare}", "/run/bad", "--format", "sectors")
            os.unlink("/run/bad")
        before = memory()
        run("dmsetup", "create", name, "--notable")
        dm.load(name, f"0 {MAIN} remap /dev/main 0 /dev/{spare} 0 1 no_format")
        self.activation = instructions(dm.resume, name)
        after = memory()
        run("dmsetup", "mknodes", name)
        self.kernel_kib, self.used_kib = (b - a for a, b in zip(before, after))
        relocated, pending = dm.status(name)[4:6]
        assert (relocated, pending) == ("0", str(count)), dm.status(name)

    def region(self):
        """The first sector of an aligned 8 MiB that have entries, if there are any."""
        unit = self.units[len(self.units) // 2] if self.units else 0
        return unit * UNIT >> 14 << 14


# --- Loads

LOADS = {
    # name: (options, devices: all; dm-linear and remap, where there are entries; those of which a part is on a spare; dm-linear
    # over that and remap, where slots are scattered)
    "psync read": ("rw=randread ioengine=psync bs=4k ba=8k size=256g", "all"),
    "psync write": ("rw=randwrite ioengine=psync bs=4k ba=8k size=256g", "all"),
    "io_uring read": ("rw=randread ioengine=io_uring iodepth=32 bs=4k ba=8k size=256g", "all"),
    "io_uring write": ("rw=randwrite ioengine=io_uring iodepth=32 bs=4k ba=8k size=256g", "all"),
    "psync read beside entries": ("rw=randread ioengine=psync bs=4k ba=8k size=8m", "beside"),
    "psync read anywhere": ("rw=randread ioengine=psync bs=4k size=256g", "all"),
    "1 MiB read": ("rw=read ioengine=psync bs=1m offset=257g size=15g", "all"),
    "1 MiB write": ("rw=write ioengine=psync bs=1m offset=257g size=15g", "all"),
    "1 MiB read anywhere": ("rw=read ioengine=psync bs=1m size=255g", "all"),
    "psync read redirected": ("rw=randread ioengine=psync bs=4k size=4m", "moved"),
    "psync write redirected": ("rw=randwrite ioengine=psync bs=4k size=4m", "moved"),
    "io_uring read redirected": ("rw=randread ioengine=io_uring iodepth=32 bs=4k size=4m", "moved"),
    "io_uring write redirected": ("rw=randwrite ioengine=io_uring iodepth=32 bs=4k size=4m", "moved"),
    "1 MiB read, slots side by side": ("rw=read ioengine=psync bs=1m size=4m", "moved"),
    "1 MiB write, slots side by side": ("rw=write ioengine=psync bs=1m size=4m", "moved"),
    "1 MiB read, slots scattered": ("rw=read ioengine=psync bs=1m size=1m", "scattered"),
    "1 MiB write, slots scattered": ("rw=write ioengine=psync bs=1m size=1m", "scattered"),
}


def fio(options, devices, ms, rounds):
    """Instructions per I/O in each round for each (name, path, first sector), one device after the other. By the clock:
    fio gives its time in ms only, but ends within one I/O of the time it was given."""
    jobs = ["[global]", "direct=1", "thread=1", "norandommap=1", "time_based=1", "ramp_time=10ms", "stonewall=1",
            "disk_util=0", "disable_lat=1", "disable_clat=1", "disable_slat=1", "clocksource=clock_gettime",
            *options.split()]
    # The first and the last job of a process are not like the others: the one warms up, and during the other fio looks
    # more often whether it is done.
    idle = ("-", *devices[0][1:])
    for name, path, sector in [idle, *devices * rounds, idle]:
        jobs += [f"[{name}]", f"filename={path}", f"runtime={ms if name != '-' else 20}ms"]
        if sector:
            jobs.append(f"offset={sector * 512}")
    put("/run/jobs", "\n".join(jobs))
    run("fio", "--output-format=json", "--output=/run/fio", "/run/jobs")
    result = {name: [] for name, *_ in devices}
    for job in json.loads(Path("/run/fio").read_text(encoding="utf-8"))["jobs"][1:-1]:
        assert job["error"] == 0, job
        result[job["jobname"]].append(ms * 1e6 / (job["read"]["total_ios"] + job["write"]["total_ios"]))
    return result


def measure(rows, load, devices, ms, rounds):
    """Adds to rows[load][device] what the rounds gave; what else runs can only add to it, so the lowest counts."""
    figures = fio(LOADS[load][0], devices, ms, rounds)
    linear = min(figures["dm-linear"])
    rows[load] = {name: {
        "rounds": [round(f, 1) for f in values],
        "above_linear": round(min(values) - linear, 1),
        "ratio": round(min(values) / linear, 5),
    } for name, values in figures.items()}
    log(f"{load}: dm-linear {linear:.1f}, "
        + ", ".join(f"{n} {v['above_linear']:+.0f}" for n, v in rows[load].items() if n != "dm-linear"))


# --- What one entry more costs


def allocated(action):
    """Bytes that the module has allocated by kmalloc while `action` ran, its bios not among them, and how often."""
    event = TRACING / "events/kmem/kmalloc/trigger"
    put(event, "hist:keys=common_stacktrace:vals=bytes_alloc:size=4096")
    try:
        action()
        text = (TRACING / "events/kmem/kmalloc/hist").read_text(encoding="utf-8")
    finally:
        put(event, "!hist:keys=common_stacktrace:vals=bytes_alloc:size=4096")
    size = hits = 0
    one = re.compile(r"\{ common_stacktrace:(.*?)\} hitcount: +(\d+) +bytes_alloc: +(\d+)", re.S)
    for stack, times, total in one.findall(text):
        ours = stack.find("[dm_remap]")
        if ours >= 0 and "bio" not in stack[:ours]:
            size, hits = size + int(total), hits + int(times)
    return size, hits


def adding(remap, times):
    """For one `remap` message of a healthy unit, at places far apart and at one place: the median of instructions and the
    most, above those of a `query` message, and the bytes allocated."""
    chance = random.Random(7)
    base = remap.units[len(remap.units) // 2] + 1 if remap.units else 2 * chance.getrandbits(25)
    places = {
        "scattered": [2 * chance.getrandbits(25) for _ in range(2 * times)],
        "together": [base + 2 * n for n in range(2 * times)],
    }
    result = {}
    for name, units in places.items():
        query, one = (sorted(instructions(dm.message, remap.name, f"{word} {unit * UNIT}") for unit in units[:times])
                      for word in ("query", "remap"))
        size, hits = allocated(lambda u=units: [dm.message(remap.name, f"remap {unit * UNIT}") for unit in u[times:]])
        result[name] = {"instructions": one[times // 2] - query[times // 2], "most": one[-1] - query[times // 2],
                        "bytes": round(size / times), "allocations": round(hits / times, 2)}
    return result


# --- What new entries by failed writes cost

# Main: 126 units for each of 64 table blocks, which get marked; then such as have no entries.
MARKED, BAD_MIB = 64 * 126, 64


def failed_writes():
    """For each kind of spare, and writes that main fails: instructions a write above those of the same one again, which goes to a slot;
    and what the spare saw of all of them."""
    run("modprobe", "dm-delay")
    disk("bad", BAD_MIB, memory_backed=0)
    disk("cached", BAD_MIB, memory_backed=1, cache_size=4)
    size = BAD_MIB << 11
    # Not all of it: main is there.
    put("/sys/kernel/config/nullb/bad/badblocks", f"+{MARKED * UNIT}-{size - 8 * UNIT - 1}")
    at_once = [range(MARKED + n, MARKED + n + 64 * 128, 128) for n in range(3)]
    last = size // UNIT - 9
    result = {}
    for kind, target in ("at once", "linear /dev/cached 0"), ("5 ms", "delay /dev/cached 0 5"):
        run("blkdiscard", "--zeroout", "/dev/cached")
        run("dmsetup", "create", "slow", input=f"0 {size} {target}")
        node = dm.create("failing", f"0 {size} remap /dev/bad 0 /dev/mapper/slow 0 2 unit_sectors {UNIT}")
        fd = os.open(node, os.O_RDWR | os.O_DIRECT)
        aio = dm.Aio(fd, 64)
        data = memoryview(dm.memory(UNIT * 512))

        def counts():
            stat = Path("/sys/block/cached/stat").read_text(encoding="utf-8").split()
            return int(stat[0]), int(stat[6]) // UNIT, int(stat[15]), int(dm.status("failing")[12])

        def write(units):
            aio.submit_all([(data, unit * UNIT * 512, False, unit) for unit in units])
            left = len(units)
            while left:
                done = aio.reap()
                assert all(size == UNIT * 512 for _, size in done), done
                left -= len(done)
            time.sleep(0.1)  # what comes after that

        def cost(batches):
            found = []
            for units in batches:
                before = counts()
                new = instructions(write, units)
                spare = [b - a for a, b in zip(before, counts())]
                found.append(((new - instructions(write, units)) // len(units), *spare))
            return {what: sorted(values)[len(values) // 2]
                    for what, values in zip(("instructions", "reads", "blocks", "flushes", "commits"), zip(*found))}

        result[kind] = {
            "the first": cost([[last]]),
            "another, alone": cost([[last - n] for n in range(1, 10)]),
            "64 at once": cost(at_once),
        }
        dm.message("failing", f"mark 0 {MARKED * UNIT}")
        result[kind]["64 at once, in 64 table blocks"] = cost([range(0, MARKED, 126)])
        log(f"failed writes, spare that answers {kind}: {result[kind]}")
        os.close(fd)
        run("dmsetup", "remove", "failing", "slow")
    return result


# --- The two versions


def quiet():
    """Ends what else runs now and then: it would be counted with the I/O."""
    put("/proc/sys/vm/stat_interval", 3600)
    put("/proc/sys/kernel/printk", 3)
    damon = Path("/sys/module/damon_stat/parameters/enabled")
    if damon.exists():
        put(damon, "N")
    time.sleep(3)


def main():
    full = sys.argv[1] == "full"
    run("modprobe", "null_blk", "nr_devices=0")
    run("modprobe", "dm-remap")
    run("mount", "-t", "tracefs", "tracefs", TRACING)
    quiet()
    disk("main", MAIN >> 11, memory_backed=0)
    # All spares are of one size (memory_disk).
    spare_mib = 4400 if full else 160
    memory_disk("peer", spare_mib)

    def device(name, table):
        run("dmsetup", "create", name, input=table)
        return name, f"/dev/mapper/{name}", 0

    peers = [("raw", "/dev/main", 0)] if full else []
    peers.append(device("dm-linear", f"0 {MAIN} linear /dev/main 0"))
    device("spare", f"0 {MOVED * UNIT} linear /dev/peer 0")
    moved = [("dm-linear", "/dev/mapper/spare", 0)]
    run("modprobe", "rust-dm-linear")
    peers.append(device("rust-linear", f"0 {MAIN} rust_linear /dev/main 0"))
    if full:
        run("modprobe", "dm-flakey")
        peers.append(device("dm-flakey", f"0 {MAIN} flakey /dev/main 0 3600 0"))
        for exponent in (3, 4, 5):
            name, path, _ = device(f"dm-linear-1e{exponent}", linear_segments(10 ** exponent))
            peers.append((name, path, 0))
            moved.append((name, path, MOVED_AT))
            log(f"{name} is there")
        array = raid1(spare_mib)
        mirrored = [("md-raid1", array, MOVED * UNIT), ("md-raid1-bad", array, 0)]
    # What the first device takes, others do not.
    Remap("first", 0, "random", 64)
    run("dmsetup", "remove", "first")
    wanted = [(0, "random")]
    wanted += [(10 ** e, kind) for e in (3, 5, 6) for kind in ("random", "clustered")] if full else [(4000, "random")]
    remaps = []
    for count, kind in wanted:
        name = "remap-0" if not count else f"remap-{count:.0e}-{kind}".replace("+0", "")
        remaps.append(Remap(name, count, kind, spare_mib))
        last = remaps[-1]
        log(f"{name} is there: {last.activation:,} instructions, {last.kernel_kib:,} KiB, {last.used_kib:,} KiB")
    if full:
        # Bad sectors that were found by and by, and not in one go from the first to the last.
        mixed = Remap("remap-1e6-mixed", 10 ** 6, "random", spare_mib, 25)
        run("dmsetup", "remove", mixed.name)
        log(f"{mixed.name} was there: {mixed.activation:,} instructions")
    every = peers + [(r.name, f"/dev/mapper/{r.name}", 0) for r in remaps]
    linear = peers[1 if full else 0]

    ms, rounds = (200, 2) if full else (100, 3)
    rows = {}
    for load, (_, which) in LOADS.items():
        if which == "all" and (full or load.startswith(("psync", "io_uring")) and "anywhere" not in load):
            measure(rows, load, every, ms, rounds)
        elif which == "beside":
            measure(rows, load, [linear, *((r.name, f"/dev/mapper/{r.name}", r.region()) for r in remaps)], ms, rounds)

    for remap in remaps:
        run("dmsetup", "message", remap.name, "0", "remap", str(MOVED_AT), str(MOVED * UNIT))
        moved.append((remap.name, f"/dev/mapper/{remap.name}", MOVED_AT))
        if full:
            for n in range(SCATTERED):
                dm.message(remap.name, f"remap {SCATTERED_AT + n * 37 % SCATTERED * UNIT}")
    scattered = [moved[0], *((r.name, f"/dev/mapper/{r.name}", SCATTERED_AT) for r in remaps)]
    for load, (_, which) in LOADS.items():
        if which == "moved" and (full or not load.startswith("1 MiB")):
            measure(rows, load, moved + (mirrored if full and load.endswith("read redirected") else []), ms, rounds)
        elif which == "scattered" and full:
            measure(rows, load, scattered, ms, rounds)

    result = {
        "environment": {
            "kernel": platform.release(),
            "fio": run("fio", "--version").strip(),
            "main": "null_blk queue_mode=2 irqmode=0, 272 GiB, no data kept",
            "spare": f"null_blk queue_mode=2 irqmode=0, {spare_mib} MiB in memory",
            "run_ms": ms,
        },
        "instructions_per_io": rows,
    }
    if full:
        empty = remaps[0]
        result["activation"] = {r.name: {
            "entries": r.count, "runs": r.runs, "instructions": r.activation,
            "per_entry": round((r.activation - empty.activation) / max(r.count, 1)),
        } for r in [*remaps, mixed]}
        result["memory"] = {r.name: {
            "entries": r.count, "kernel_kib": r.kernel_kib, "used_kib": r.used_kib,
            # Exact to 100 KiB: of a thousand entries, nothing is to be seen.
            "bytes_per_entry": round((r.kernel_kib - empty.kernel_kib) * 1024 / r.count, 1) if r.count >= 10 ** 5 else None,
        } for r in remaps}
        result["adding"] = {}
        for remap in remaps:
            result["adding"][remap.name] = {"present": remap.count + MOVED + SCATTERED, **adding(remap, 32)}
            log(f"{remap.name} and one more: {result['adding'][remap.name]}")
        result["failed_writes"] = failed_writes()
    put(sys.argv[2], json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
