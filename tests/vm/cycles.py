"""cycles.py CYCLES: creates, uses and removes devices so many times, three at a time; what the kernel holds stays flat."""

import errno
import os
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dm

CYCLES = int(sys.argv[1])
STOCK = os.environ["VM_KERNEL"] == "stock"
SECTORS = 4 * 2048
OLD = [1000, 5000, 7000]  # bad all the time, and written: they have slots
LOST = 8000  # bad all the time, and never written: pending
NEW = 2000  # bad now and then


class Pair:
    """A main device, a spare and what is made of them."""

    def __init__(self, index):
        self.name, self.main, self.spare = f"r{index}", f"main{index}", f"spare{index}"
        self.table = f"0 {SECTORS} remap /dev/{self.main} 0 /dev/{self.spare} 0"
        self.written, self.read = dm.memory(4096), dm.memory(4096)
        self.written[:] = os.urandom(4096)
        for sector in (*OLD, LOST):
            self.spoil(sector)

    def spoil(self, sector, sign="+"):
        attribute = Path(f"/sys/kernel/config/nullb/{self.main}/badblocks")
        attribute.write_text(f"{sign}{sector}-{sector}", encoding="ascii")

    def load(self, *features):
        dm.load(self.name, " ".join((self.table, *features)))

    def refused(self, line, number):
        try:
            dm.load(self.name, line)
        except OSError as error:
            assert error.errno == number, error
        else:
            raise AssertionError(f"not refused: {line}")

    def use(self, node, *sectors):
        """Writes the sectors and reads them back."""
        device = os.open(node, os.O_RDWR | os.O_DIRECT)
        for sector in sectors or (*OLD, 3000):
            assert os.pwrite(device, self.written, sector * dm.SECTOR) == 4096
            assert os.preadv(device, [self.read], sector * dm.SECTOR) == 4096
            assert self.written[:] == self.read[:], sector
        os.close(device)

    def cannot_read(self, node, sector):
        device = os.open(node, os.O_RDWR | os.O_DIRECT)
        try:
            os.preadv(device, [self.read], sector * dm.SECTOR)
            raise AssertionError("a bad sector was read")
        except OSError as error:
            assert error.errno in (errno.EIO, errno.ENODATA), error
        os.close(device)

    def cycle(self, number):
        kind, twice = number % 10, number // 10 % 2
        node = dm.create_empty(self.name)
        if kind == 0:
            # Refused before, between and after the devices are opened.
            self.refused(f"0 {SECTORS} remap /dev/{self.main} 0", errno.EINVAL)
            self.refused(f"0 {SECTORS} remap /dev/{self.main} 0 /dev/nothing 0", errno.ENOENT)
            self.refused(f"0 {SECTORS - 8} remap /dev/{self.main} 0 /dev/{self.spare} 0", errno.EINVAL)
        self.load()
        if kind in (1, 2):
            # Never resumed: loaded over, or cleared, or removed with the device.
            if kind == 2:
                self.load()
            if twice:
                dm.clear(self.name)
            dm.remove(self.name)
            return
        dm.resume(self.name)
        self.use(node)
        if kind == 3:
            self.load("2 read_retries 1")
            dm.resume(self.name)
            self.use(node)
        elif kind == 4:
            dm.suspend(self.name, noflush=twice, nolockfs=twice)
            self.load()
            dm.clear(self.name)
            dm.resume(self.name)
            self.use(node)
        elif kind == 5:
            self.spoil(NEW)
            self.use(node, NEW)
            self.spoil(NEW, "-")
            assert dm.message(self.name, f"restore {NEW}") == "1 units restored, 0 units stay"
        elif kind == 6:
            # The entry is on its way to the spare when the device goes.
            self.cannot_read(node, LOST)
            if twice:
                dm.suspend(self.name, noflush=True, nolockfs=True)
        elif kind == 7:
            dm.message(self.name, "remap 200 20")
            dm.message(self.name, "restore 200 20")
            dm.message(self.name, "check")
        elif kind == 8:
            self.load()
        dm.remove(self.name)

    def free(self):
        """Whether nobody holds the disks: they can be had for oneself."""
        for name in (self.main, self.spare):
            os.close(os.open(f"/dev/{name}", os.O_RDWR | os.O_EXCL))
        return not any(list(Path(f"/sys/block/{name}/holders").iterdir()) for name in (self.main, self.spare))

    def entries(self, name):
        """Those that a device of that name finds."""
        dm.load(name, self.table)
        dm.resume(name)
        return " ".join(" ".join(line.split()[:2]) for line in dm.message(name, "list").splitlines())


# ---- What the kernel holds

SIZES = {"SUnreclaim": 512, "VmallocUsed": 256, "Percpu": 64, "KernelStack": 64}  # KiB; how much more is no leak
OBJECTS = 40  # in any cache: what other processes do makes 20
# Areas that were freed stay until there are many; what is in use, VmallocUsed says.
LAZY = "vmap_area"


def sample():
    """Objects by cache, and sizes in KiB, once the kernel let go of what it keeps at hand."""
    Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
    for cache in Path("/sys/kernel/slab").iterdir():
        if not cache.is_symlink():
            (cache / "shrink").write_text("1", encoding="ascii")
    slabs = Path("/proc/slabinfo").read_text(encoding="ascii").splitlines()[2:]
    found = {name: int(active) for name, active, *_ in (line.split() for line in slabs) if name != LAZY}
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, size, *_ = line.replace(":", "").split()
        if name in SIZES:
            found[name] = int(size)
    return found


def floor(before=None):
    """The least of samples over 3 s: what is freed after a grace period, or by works, has gone by then. On a busy machine
    that may take longer: so up to 30 s, while it is more than `before` and some."""
    least = sample()
    begin = time.monotonic()
    while (passed := time.monotonic() - begin) < 3 or before and passed < 30 and excess(least, before):
        time.sleep(0.4)
        now = sample()
        least = {name: min(value, now[name]) for name, value in least.items() if name in now}
    return least


def excess(now, before):
    """What has grown by more than it may."""
    return [name for name, value in now.items() if value - before.get(name, 0) > SIZES.get(name, OBJECTS)]


def rescuers():
    """Threads of workqueues, of which each device has some."""
    names = (path.read_text(encoding="ascii") for path in Path("/proc").glob("[0-9]*/comm"))
    return sum(name.startswith("kworker/R-") for name in names)


# ---- Results

results = 0


def check(promise, good, *notes):
    global results
    results += 1
    print("".join(f"# {note}\n" for note in notes) + f"{'ok' if good else 'not ok'} {results} - {promise}", flush=True)


def run(pairs, numbers):
    """Runs the cycles of those numbers, each pair its part one after the other."""
    with ThreadPoolExecutor(len(pairs)) as pool:
        parts = [pool.submit(lambda i=i: [pairs[i].cycle(n) for n in numbers[i::len(pairs)]]) for i in range(len(pairs))]
    return [traceback.format_exception(part.exception()) for part in parts if part.exception()]


def main():
    print(f"KTAP version 1\n1..{8 if STOCK else 6}")
    pairs = [Pair(i) for i in range(3)]
    dm.create_empty("other")  # its turn comes at the end; until then it is not one of those that come and go
    for pair in pairs:
        dm.create(pair.name, pair.table)
    with_devices = rescuers()
    for pair in pairs:
        dm.remove(pair.name)
    without = rescuers()
    start = time.monotonic()
    # A tenth of them to warm up. There are ten kinds, not a multiple of the pairs: each pair sees all.
    errors = run(pairs, range(CYCLES // 10))
    seconds = time.monotonic() - start
    if STOCK:
        before = floor()
    start = time.monotonic()
    errors += run(pairs, range(CYCLES // 10, CYCLES))
    seconds += time.monotonic() - start
    check(f"{CYCLES} cycles of ten kinds", not errors, f"{1000 * seconds / CYCLES:.0f} ms each", *"".join(sum(errors, [])).splitlines())
    if STOCK:
        after = floor(before)
        grown = {name: value - before.get(name, 0) for name, value in after.items()}
        objects = sorted(((by, name) for name, by in grown.items() if name not in SIZES), reverse=True)
        check(f"no cache has over {OBJECTS} objects more than after a tenth of them", not set(excess(after, before)) - set(SIZES),
              "more objects: " + ", ".join(f"{name} {by}" for by, name in objects[:5]))
        check("the kernel has no more memory elsewhere", not set(excess(after, before)) & set(SIZES),
              "more KiB: " + ", ".join(f"{name} {grown[name]}" for name in SIZES))
    check("the devices' workqueues are gone", rescuers() == without < with_devices,
          f"{rescuers()}; {without} before, {with_devices} with devices")
    check("nobody holds main and spare", all([pair.free() for pair in pairs]))
    entries = [pair.entries("other") for pair in pairs]
    dm.remove("other")
    right = " ".join(f"{s} relocated" for s in OLD) + f" {LOST} pending"
    check("another device may have the spare, and has all entries", entries == [right] * len(pairs), *entries)
    references = Path("/sys/module/dm_remap/refcnt").read_text(encoding="ascii").strip()
    check("nobody holds the module", references == "0", f"{references} references")
    unloaded = subprocess.run(["rmmod", "dm_remap"], check=False).returncode == 0
    check("it can go, and no device is left", unloaded and not list(Path("/sys/block").glob("dm-*")))


main()
