"""damage.py: damages the metadata of a spare in many ways; each time the target is activated and all of main is read.

Damages are: zeroed, a bit flipped, swapped with the next metadata block, replaced by an older generation of the same block.
First each block suffers each of them, then random pairs of blocks two random ones. The table has two parts, and blocks behind
them that are not in use, although they look as if they were, with entries.

What must come of it follows from what is left: a block counts if one of its copies is left, the newest there is. So a table
block whose newest copies are all gone, and which has an older one, is as it was then: from a cut in the middle of a
write that cannot be told (docs/format.md, section 6). That is the only way to get older data.
"""

import collections
import os
import random
import re
import struct
import subprocess
import sys

import dm
from reader import crc32c

BLOCK = 4096
UNIT = 2
MAIN, SPARE = 2 * 2048, 2 * 2048  # sectors
BAD = MAIN // 2  # before this one, main takes no write while the spare is filled
PAIRS = 60
KINDS = ["zeroed", "flipped", "swapped", "older"]
TABLE = f"0 {MAIN} remap /dev/main 0 /dev/spare 0 2 unit_sectors {UNIT}"

main_fd, spare_fd = (os.open(f"/dev/{name}", os.O_RDWR | os.O_DIRECT) for name in ("main", "spare"))
kernel_log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
failures = collections.Counter()


def fail(promise, text):
    failures[promise] += 1
    if failures[promise] <= 10:
        print(f"# {promise}: {text}", flush=True)


def logged():
    """The kernel log since the last call."""
    text = b""
    while True:
        try:
            text += os.read(kernel_log, 8192)
        except BlockingIOError:
            return text.decode(errors="replace")


def dmremap(*args):
    """Exit status and output."""
    run = subprocess.run(["dmremap", *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return run.returncode, run.stdout


def write(fd, at, data):
    buffer = dm.memory(len(data))
    buffer[:] = bytes(data)
    assert os.pwrite(fd, buffer, at) == len(data)


# ---- The spare to be damaged


def write_units(units, sectors, version):
    """Writes the first `sectors` sectors of units that main cannot hold."""
    bad = dm.create("bad", *dm.holes("/dev/main", 0, MAIN, [(0, BAD)]))
    remap = dm.create("r", TABLE.replace("/dev/main", bad))
    fd = os.open(remap, os.O_RDWR | os.O_DIRECT)
    aio = dm.Aio(fd, 32)
    for unit in units:
        first = unit * UNIT
        data = memoryview(dm.memory(sectors * dm.SECTOR))
        data[:] = b"".join(dm.sector(s, version) for s in range(first, first + sectors))
        if len(aio.flying) == aio.depth:
            aio.reap()
        aio.submit(data, first * dm.SECTOR, False, unit)
    while aio.flying:
        aio.reap()
    os.close(fd)
    dm.remove("r")
    dm.remove("bad")


def entries_of(block):
    """The masks of a table block's entries, by unit."""
    records = (struct.unpack_from("<QQI", block, 64 + 32 * i) for i in range(126))
    return {unit: mask for unit, mask, state in records if state == 1}


class Image:
    """The metadata as it was and as it is: of each copy of a block (kind, number) its place, and what is there by place."""

    def __init__(self):
        write(main_fd, 0, b"".join(dm.sector(s, 1) for s in range(MAIN)))
        units = list(range(BAD // UNIT))
        random.Random(1).shuffle(units)
        first, then = units[:800], units[:800:7] + units[800:840]
        write_units(first, UNIT // 2, 2)
        old = dm.read_all("/dev/spare")
        status, said = dmremap("label", "/dev/spare", "newer")
        assert status == 0, said
        write_units(then, UNIT, 3)
        new = dm.read_all("/dev/spare")
        copies, = struct.unpack_from("<I", new, 92)
        areas = struct.unpack_from("<4Q", new, 136)[:copies]
        blocks, last = 4, (areas[0] + 3) * BLOCK
        blocks, = struct.unpack_from("<Q", new, last + 48)
        self.parts = blocks, struct.unpack_from("<Q", new, 104)[0]
        for area in areas:
            for number in range(*self.parts):
                forged = bytearray(new[last:last + BLOCK])
                struct.pack_into("<QQQ", forged, 32, number, 1000, 0)
                struct.pack_into("<I", forged, 8, 0)
                struct.pack_into("<I", forged, 8, crc32c(bytes(forged)))
                write(spare_fd, (area + number) * BLOCK, forged)
        new = dm.read_all("/dev/spare")
        self.places = [(("superblock", 0), 0)]
        self.places += [(("table block", n), (area + n) * BLOCK) for area in areas for n in range(blocks)]
        self.places += [(("superblock", 0), SPARE * dm.SECTOR - BLOCK)]
        self.spare = new
        self.old, self.new = ({at: i[at:at + BLOCK] for _, at in self.places} for i in (old, new))
        version = {u: 2 for u in first} | {u: 3 for u in then}
        self.on_main = [dm.sector(s, 1) for s in range(MAIN)]
        self.in_slot = [dm.sector(s, version.get(s // UNIT, 1)) for s in range(MAIN)]

    def is_fit(self):
        """Whether each block but the last has entries, and all copies are of one generation that is not the first."""
        generations, entries = collections.defaultdict(set), []
        for of, at in self.places:
            generations[of].add(tuple(struct.unpack_from("<Q", i[at], 40)[0] for i in (self.old, self.new)))
            if of[0] == "table block" and of[1] < self.parts[0] - 1:
                entries.append(len(entries_of(self.old[at])))
        print(f"# {self.parts} blocks in use, of all; generations {dict(generations)}, entries {entries}", flush=True)
        return self.parts[0] == 8 and self.parts[1] > 12 and all(entries) and all(
            len(g) == 1 and (min(g)[0] < min(g)[1] or of == ("table block", self.parts[0] - 1)) for of, g in generations.items())

    def content(self, tables):
        """What the device has if these table blocks count."""
        masks = {}
        for block in tables:
            masks.update(entries_of(block))
        return b"".join((self.in_slot if masks.get(s // UNIT, 0) >> s % UNIT & 1 else self.on_main)[s] for s in range(MAIN))


# ---- The cases


def damage(image, now, kind, nth, chance):
    """Damages the nth block of `now`, contents by place."""
    at = image.places[nth][1]
    if kind == "zeroed":
        now[at] = bytes(BLOCK)
    elif kind == "flipped":
        bit = chance.randrange(BLOCK * 8)
        byte = bit // 8
        now[at] = now[at][:byte] + bytes([now[at][byte] ^ 1 << bit % 8]) + now[at][byte + 1:]
    elif kind == "swapped":
        other = image.places[(nth + 1) % len(image.places)][1]
        now[at], now[other] = now[other], now[at]
    else:
        now[at] = image.old[at]


def counting(image, now):
    """Of each block: which generation of it counts; None: neither is left."""
    found = {}
    for of, at in image.places:
        found.setdefault(of, None)
        if now[at] == image.new[at]:
            found[of] = image.new
        elif now[at] == image.old[at] and found[of] is None:
            found[of] = image.old
    return found


def check(image, now, what):
    """One case."""
    for _, at in image.places:
        write(spare_fd, at, now[at])
    counts = counting(image, now)
    lost = [f"{kind} {number}" if kind != "superblock" else kind for (kind, number), version in counts.items() if version is None]
    logged()
    try:
        remap = dm.create("r", TABLE)
    except OSError as error:
        remap, said = None, f"{error}: {logged()}"
    if lost:
        # A superblock without its magic may be anything.
        names = re.compile("|".join(rf"\b{name}(?!\d)" for name in lost + ["foreign data"] * ("superblock" in lost)), re.I)
        if remap:
            fail("what cannot be right is refused", f"{what}: {lost}")
            dm.remove("r")
        else:
            if not names.search(said):
                fail("a refusal names the block", f"{what}: {said}")
            status, said = dmremap("check", "/dev/spare")
            if status not in (2, 3) or not names.search(said):
                fail("dmremap check agrees", f"{what}: {status}, {said}")
        left = dm.read_all("/dev/spare")
        if any(left[at:at + BLOCK] not in (now[at], image.new[at]) for _, at in image.places):
            fail("a refusal damages nothing", what)
        return "refused"
    if remap is None:
        fail("right data, where a copy of each block is left", f"{what}: {said}")
        return "refused"
    mended = {at: counts[of][at] for of, at in image.places}
    if dm.read_all(remap)[:] != image.content(mended[at] for of, at in image.places if of[0] == "table block"):
        fail("right data, where a copy of each block is left", what)
    dm.remove("r")
    expected = bytearray(image.spare)
    for at, data in mended.items():
        expected[at:at + BLOCK] = data
    if dm.read_all("/dev/spare")[:] != expected:
        fail("activation repairs every copy, byte for byte", what)
    status, said = dmremap("check", "/dev/spare")
    if status:
        fail("dmremap check agrees", f"{what}: {status}, {said}")
    return "right" if all(version is image.new for version in counts.values()) else "older"


def main():
    image = Image()
    chance = random.Random(5)
    number = collections.Counter()
    if not image.is_fit():
        fail("a spare with entries in each of several table blocks, and an older generation of each", "no")
    count = len(image.places)
    cases = [[(kind, nth)] for nth in range(count) for kind in KINDS]
    while len(cases) < count * len(KINDS) + PAIRS:
        a, b = chance.sample(range(count), 2)
        cases.append([(chance.choice(KINDS), a), (chance.choice(KINDS), b)])
    for case in cases:
        now = dict(image.new)
        what = []
        for kind, nth in case:
            damage(image, now, kind, nth, chance)
            (name, of), at = image.places[nth]
            what.append(f"{name} {of} at block {at // BLOCK} {kind}")
        number[len(case), check(image, now, ", ".join(what))] += 1
    print(f"# {len(cases)} cases: {dict(number)}", flush=True)
    promises = [
        "a spare with entries in each of several table blocks, and an older generation of each",
        "right data, where a copy of each block is left",
        "activation repairs every copy, byte for byte",
        "what cannot be right is refused", "a refusal names the block", "a refusal damages nothing", "dmremap check agrees",
    ]
    enough = len(cases) >= 50 and all(any(how == k for _, k in number) for how in ("right", "older", "refused"))
    results = [*((p, not failures[p]) for p in promises), ("at least 50 cases, with each outcome", enough)]
    print(f"KTAP version 1\n1..{len(results)}")
    for n, (promise, good) in enumerate(results, 1):
        print(f"{'ok' if good else 'not ok'} {n} - {promise}" + (f": {failures[promise]} times" if failures[promise] else ""))
    sys.exit(0)


main()
