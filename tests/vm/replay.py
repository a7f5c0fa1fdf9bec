"""replay.py [WRITES]: makes a workload of failing writes on a logged device, then checks what each cut of the log would have left.

Main and spare are slices of one dm-log-writes device; main's bad ranges are `error` segments above the log, so the log has
what reached a medium. The log has a write once it is durable: at once if it was FUA, else at the next flush that was sent
after it completed; so a prefix of it is a disk whose cache was lost. What the workload was told goes into the log as
marks, which are therefore behind the writes that they speak of.

After each round's writes, slots fail, too: sectors of the spare become `error` segments. The table block of such a slot
has no free one left, so another table block gets the record of the slot that takes its place, and the commits in between
are states like any other. Sectors that are lost with a slot can be read in the replay, where nothing fails: so those, too,
must be what they were.

Then the log is replayed onto another device, and at each state that ends in a flush or FUA write the target is
activated there, and read back:

- nothing acknowledged as durable before is missing or older than acknowledged;
- each sector is a version of that very sector; never-written slots and main's bad sectors have garbage;
- no two entries share a slot;
- `dmremap check` finds as many entries as the target has, and if there is damage, some that can be mended;
- every 5th time, read-write: `dmremap check` finds no damage any more after the activation;
- every 20th time, read-write: nor does the message `check`; ext4 mounts, has each file that fsync was called for, and e2fsck
  finds no error.

A disk may also write some of its cache: so some states have a random part of the writes up to the next flush.

A metadata write (table block or superblock) is also torn: only some of its sectors arrive. So is what takes more of the table
in use, at each of its sectors: the new blocks, and the block that leads to them. Writes without a flush
between them may have been on the way at the same time; so if two replicas were written like that, both are torn.
"""

import collections
import itertools
import os
import pickle
import random
import re
import struct
import subprocess
import sys
import threading
import time
import traceback

import dm

MIB = 1 << 20
MAIN, SPARE = 16 * 2048, 4 * 2048  # sectors
RAW = 4 * 2048  # main's first quarter, for raw writes; the rest is ext4's
UNIT = 8
WRITES = int(sys.argv[1]) if len(sys.argv) > 1 else 250  # in each of two rounds
WORKERS = os.cpu_count()
REPLACED = max(3, WRITES // 20)  # slots in each round that fail a write, and as many that fail a read
PER_BLOCK = 126  # records in a table block
FIRST_PART = 4  # table blocks that formatting makes
CHUNK = 64 << 10
IDLE = f"0 {MAIN} error"  # the table between activations

# Bad sectors in the first round and the second: some got worse, some are good again.
FS = RAW
STAYS = [(1600, 2000), (3003, 3005), (4000, 4333), (5001, 5010), (7000, 7600),
         (FS + 1001, FS + 1100), (FS + 3000, FS + 3040), (FS + 6000, FS + 6400), (FS + 12001, FS + 12101)]
HEALED = (515, 1100)
BAD = [[HEALED, *STAYS], [(1200, 1500), (6001, 6481), (FS + 4000, FS + 4100), *STAYS]]

FUA_FLAG, FLUSH_FLAG, DISCARD_FLAG, MARK_FLAG = 2, 1, 4, 8


class Failures(collections.Counter):
    """How many times each promise was broken; the first times are told."""

    def note(self, promise, text):
        self[promise] += 1
        if self[promise] <= 10:
            print(f"# {promise}: {text}", flush=True)


# ---- The workload


class Workload:
    """Raw writes: op number = version of all its sectors; and files."""

    def __init__(self):
        self.ops = [None]  # (first, end)
        self.flushes = []  # the ops that a flush made durable
        self.files = collections.defaultdict(list)  # name: (version, id of its mark)
        self.errors = []
        self.slots_bad = []  # sectors of the spare (first, end)
        self.chance = random.Random(4)

    @staticmethod
    def mark(text):
        dm.message("log", f"mark {text}")

    def place(self, bad):
        """A range to write, mostly in or near the bad ones."""
        c = self.chance
        count = c.choice((1, 2, 3, 5, 8, 8, 13, 16, 24, 32, 32))
        if c.random() < 0.75:
            first, end = c.choice([b for b in bad if b[0] < RAW])
            return max(0, c.randrange(first - 10, end)), count
        return c.randrange(RAW - 32), count

    def raw(self, device, bad, number):
        """`number` writes, up to 8 at a time, never two of the same sector at once."""
        fd = os.open(device, os.O_RDWR | os.O_DIRECT)
        aio = dm.Aio(fd, 8)
        buffers = [dm.memory(32 * dm.SECTOR) for _ in range(8)]
        free = list(range(8))
        flying, plain = {}, []
        left = number
        while left or flying:
            while left and free:
                first, count = self.place(bad)
                end = min(first + count, RAW)
                if any(first < e and f < end for f, e in flying.values()):
                    break
                version = len(self.ops)
                self.ops.append((first, end))
                # The log has a FUA write before earlier writes of the same sector that were not flushed: avoided.
                durable = self.chance.random() < 0.35 and not any(
                    first < self.ops[p][1] and self.ops[p][0] < end for p in plain)
                buffer = free.pop()
                data = b"".join(dm.sector(s, version) for s in range(first, end))
                buffers[buffer][:len(data)] = data
                flying[version] = (first, end)
                aio.submit(memoryview(buffers[buffer])[:len(data)], first * dm.SECTOR, durable, (version, durable, buffer))
                left -= 1
                if self.chance.random() < 0.06:
                    break
            for (version, durable, buffer), result in aio.reap():
                first, end = flying.pop(version)
                free.append(buffer)
                if result != (end - first) * dm.SECTOR:
                    self.errors.append(f"write {version} of {first} to {end}: {result}")
                elif durable:
                    self.mark(f"d{version}")
                else:
                    plain.append(version)
            if plain and self.chance.random() < 0.08 or not left and not flying:
                done, plain = plain, []
                os.fdatasync(fd)
                self.flushes.append(done)
                self.mark(f"f{len(self.flushes) - 1}")
        os.close(fd)

    def write_files(self, where, number):
        """Files that replace older ones: fsync, rename, fsync of the directory."""
        try:
            directory = os.open(where, os.O_RDONLY)
            for n in range(number):
                name = f"file{n % 17}"
                version = len(self.files[name]) + 1
                self.files[name].append(version)
                with open(f"{where}/new", "wb") as file:
                    file.write(dm.file_data(name, version))
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(f"{where}/new", f"{where}/{name}")
                os.fsync(directory)
                self.mark(f"e{name}.{version}")
            os.close(directory)
        except OSError as error:
            self.errors.append(f"files: {error}")

    def move(self, healed):
        """Moves units forth and back while they are written."""
        c = random.Random(5)
        try:
            for _ in range(WRITES // 40):
                first = c.randrange(RAW - 64)
                dm.message("r", f"remap {first} {c.randrange(1, 30)}")
                dm.message("r", f"restore {first} 20")
                dm.message("r", f"restore {c.randrange(*healed)} {c.randrange(1, 60)}")
                dm.message("r", f"mark {c.randrange(RAW)}")
        except OSError as error:
            self.errors.append(f"messages: {error}")

    @staticmethod
    def listed():
        """Of each unit's first sector with an entry: its slot and mask."""
        words = (line.split() for line in dm.message("r", "list").splitlines())
        return {int(first): (int(slot), int(mask, 16)) for first, _, slot, mask in words}

    def fill(self, block):
        """Takes all free slots up to table block `block`: for entries without a sector, at the end of the raw part."""
        known = {slot for slot, _ in self.listed().values()}
        for first in range(RAW - 16 * UNIT, 0, -16 * UNIT):
            dm.message("r", f"mark {first} {16 * UNIT}")
            # A slot is free only behind the one that was given out last.
            given = {slot for slot, _ in self.listed().values()} - known
            if any(slot // PER_BLOCK > block for slot in given):
                break

    def extend(self):
        """Has entries for more slots than the table blocks describe that formatting made."""
        for first in range(RAW - 16 * UNIT, 0, -16 * UNIT):
            if max((slot for slot, _ in self.listed().values()), default=0) > FIRST_PART * PER_BLOCK + 2:
                break
            dm.message("r", f"mark {first} {16 * UNIT}")

    def replace(self, device, log, bad):
        """Makes slots fail, one after the other, on a write or a read, when their table block has no free slot."""
        c = self.chance
        with open("/dev/base", "rb") as file:
            file.seek(MAIN * dm.SECTOR + 112)
            slots_at, = struct.unpack("<Q", file.read(8))
        raw = [b for b in bad if b[1] <= RAW]
        has_data = {first: slot for first, (slot, mask) in self.listed().items()
                    if mask and any(f <= first and first + UNIT <= e for f, e in raw)}
        block = collections.Counter(slot // PER_BLOCK for slot in has_data.values()).most_common(1)[0][0]
        self.fill(block)
        chosen = [first for first, slot in has_data.items() if slot // PER_BLOCK == block]
        chosen = c.sample(chosen, min(len(chosen), 2 * REPLACED))
        fd = os.open(device, os.O_RDWR | os.O_DIRECT)
        aio = dm.Aio(fd, 1)
        buffer = dm.memory(UNIT * dm.SECTOR)

        def write(first, end):
            version = len(self.ops)
            self.ops.append((first, end))
            data = b"".join(dm.sector(s, version) for s in range(first, end))
            buffer[:len(data)] = data
            aio.submit(memoryview(buffer)[:len(data)], first * dm.SECTOR, True, version)
            if aio.reap() != [(version, len(data))]:
                self.errors.append(f"write {version} of {first} to {end}, whose slot fails")
            self.mark(f"d{version}")

        for turn, unit in enumerate(chosen):
            slot, mask = self.listed()[unit]
            has = [offset for offset in range(UNIT) if mask >> offset & 1]
            offset = c.choice(has)
            first = slots_at + slot * UNIT + offset
            self.slots_bad.append((first, first + c.randrange(1, UNIT - offset + 1)))
            dm.reload("spare", *dm.holes(log, MAIN, SPARE, self.slots_bad))
            if turn % 2:
                try:
                    os.preadv(fd, [memoryview(buffer)[:dm.SECTOR]], (unit + offset) * dm.SECTOR)
                    self.errors.append(f"read of {unit + offset}, whose slot fails: no error")
                except OSError:
                    pass
            else:
                if turn > 1:
                    # Lost sectors make each state take longer: not many at a time.
                    write(chosen[turn - 1], chosen[turn - 1] + UNIT)
                write(unit + c.randrange(offset + 1), unit + c.randrange(offset + 1, UNIT + 1))
            if self.listed()[unit][0] == slot:
                self.errors.append(f"unit {unit} still has slot {slot}, which fails")
        os.close(fd)

    def run(self):
        log = dm.create("log", f"0 {MAIN + SPARE} log-writes /dev/base /dev/log")
        spare = dm.create("spare", f"0 {SPARE} linear {log} {MAIN}")
        start = time.monotonic()
        for turn, bad in enumerate(BAD):
            main = dm.create("main", *dm.holes(log, 0, MAIN, bad))
            remap = dm.create("r", f"0 {MAIN} remap {main} 0 {spare} 0 2 unit_sectors {UNIT}")
            part = dm.create("fs", f"0 {MAIN - FS} linear {remap} {FS}")
            self.mark(f"active{turn}")
            if not turn:
                subprocess.run(
                    ["mkfs.ext4", "-qF", "-b", "1024", "-J", "size=1", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0", part],
                    check=True)
            dm.mount(part, "/mnt")
            os.sync()
            self.mark(f"mounted{turn}")
            threads = [threading.Thread(target=self.write_files, args=("/mnt", WRITES // 10))]
            if turn:
                self.extend()
                threads.append(threading.Thread(target=self.move, args=(HEALED,)))
            for thread in threads:
                thread.start()
            self.raw(remap, bad, WRITES)
            for thread in threads[1:]:
                thread.join()
            self.replace(remap, log, bad)
            threads[0].join()
            dm.umount("/mnt")
            status = dm.status("r")
            print(f"# {' '.join(status)}  {time.monotonic() - start:.1f} s", flush=True)
            dm.remove("fs")
            dm.remove("r")
            dm.remove("main")
            if not turn:
                # A superblock to be repaired.
                fd = os.open(spare, os.O_RDWR | os.O_DIRECT)
                os.pwrite(fd, dm.memory(4096), 0)
                os.fsync(fd)
                os.close(fd)
        dm.remove("spare")
        dm.remove("log")


# ---- The log (drivers/md/dm-log-writes.c)

Entry = collections.namedtuple("Entry", "sector count flags at mark")


def read_log(log):
    magic, version, number, size = struct.unpack_from("<QQQI", log)
    assert (magic, version, size) == (0x6A736677736872, 1, 512), "this is no log"
    at, entries = 512, []
    for _ in range(number):
        sector, count, flags, length = struct.unpack_from("<4Q", log, at)
        mark = bytes(log[at + 32:at + 32 + length]).decode() if flags & MARK_FLAG else None
        assert not flags & DISCARD_FLAG, "discards are not replayed"
        entries.append(Entry(sector, count, flags, at + 512, mark))
        at += 512 + count * 512
    assert entries[-1].mark == "dm-log-writes-end", "the log is not complete"
    return entries


def new_entries(log, steps):
    """How many records became entries because of errors, and how many took the place of another table block's, by the
    cause (1: a read, 2: a write); by the table blocks in the log."""
    known, count, moved = {}, 0, collections.Counter()
    for step in steps:
        if step.count != 8 or bytes(log[step.at:step.at + 8]) != b"RMAPTABL":
            continue
        block, generation = struct.unpack_from("<QQ", log, step.at + 32)
        records = [struct.unpack_from("<QQII8x", log, step.at + 64 + 32 * i) for i in range(126)]
        before, old = known.get(block, (0, [(0, 0, 0, 0)] * 126))
        if generation > before:
            count += sum(o[2] not in (1, 3) and r[2] == 1 and r[3] in (1, 2) for o, r in zip(old, records))
            moved.update(r[3] for o, r in zip(old, records) if o[2] != 3 and r[2] == 3)
            known[block] = generation, records
    return count, moved


def written_in_group(log, step):
    """Whether it is a change of a table block that is made durable by a flush of its own, with others."""
    is_table = step.count == 8 and bytes(log[step.at:step.at + 8]) == b"RMAPTABL"
    return is_table and not step.flags & (FLUSH_FLAG | FUA_FLAG) and struct.unpack_from("<Q", log, step.at + 40)[0] > 1


# ---- The replay


class Replay:
    """The state of the disk at a point of the log, in memory and on /dev/replayed, and what must be there."""

    def __init__(self, disk, name, base, work, failures):
        self.device, self.name, self.where = f"/dev/{disk}", name, f"/mnt/{name}"
        os.makedirs(self.where, exist_ok=True)
        self.live = False
        self.image = base
        self.view = memoryview(base)
        self.work, self.failures = work, failures
        self.remap = dm.create(name, IDLE)
        self.fd = os.open(self.device, os.O_RDWR | os.O_DIRECT)
        self.seen = {}  # per chunk of the raw part, what was read last
        self.versions = [0] * RAW
        self.floor = [0] * RAW
        self.raised = set()  # sectors whose floor rose since they were last checked
        self.files = {}  # name: version acknowledged
        self.marks = set()
        self.buffer = dm.memory(RAW * dm.SECTOR)
        self.number = collections.Counter()
        self.metadata = None
        self.judged = None, 0  # metadata, as `dmremap check` saw it, and the number of entries that it found
        self.point = ""

    def fail(self, promise, text):
        self.failures.note(promise, f"{text} ({self.point})")

    # The state

    def write(self, sector, data):
        at = sector * dm.SECTOR
        self.image[at:at + len(data)] = data
        if self.live:
            self.store(at, len(data))

    def follow(self, live):
        """Whether the device is to follow the image from here on."""
        if live and not self.live:
            self.store(0, len(self.image))
        self.live = live

    def store(self, at, length):
        """Puts a part of the image on the device."""
        for offset in range(at, at + length, MIB):
            os.pwrite(self.fd, self.view[offset:min(offset + MIB, at + length)], offset)

    def restore(self):
        """Makes the device what the image is, after it was written to."""
        buffer = dm.read_all(self.device)
        for at in range(0, len(buffer), CHUNK):
            if buffer[at:at + CHUNK] != self.image[at:at + CHUNK]:
                self.store(at, CHUNK)

    def restore_metadata(self):
        for at, length in self.areas():
            self.store(at, length)

    def areas(self):
        """Bytes (first, length) of the superblocks and the replicas of the table."""
        if self.metadata is None:
            spare = MAIN * dm.SECTOR
            copy = next(c for c in (spare, spare + SPARE * 512 - 4096) if self.image[c:c + 8] == b"RMAPSUPR")
            copies, = struct.unpack_from("<I", self.image, copy + 64 + 28)
            blocks, = struct.unpack_from("<Q", self.image, copy + 64 + 40)
            starts = struct.unpack_from("<4Q", self.image, copy + 64 + 72)[:copies]
            self.metadata = [(spare, 4096), (spare + SPARE * 512 - 4096, 4096)]
            self.metadata += [(spare + s * 4096, blocks * 4096) for s in starts]
        return self.metadata

    def mark(self, text):
        """What the workload knew from here on."""
        self.marks.add(text)
        if text[0] == "d" and text[1:].isdigit():
            self.acknowledge(int(text[1:]))
        elif text[0] == "f" and text[1:].isdigit():
            for version in self.work.flushes[int(text[1:])]:
                self.acknowledge(version)
        elif text[0] == "e":
            name, version = text[1:].split(".")
            self.files[name] = int(version)

    def acknowledge(self, version):
        self.number["acknowledged"] += 1
        for sector in range(*self.work.ops[version]):
            if self.floor[sector] < version:
                self.floor[sector] = version
                self.raised.add(sector)

    # Checks

    def judge(self, worst):
        """Asks `dmremap check`, whose exit status may be up to `worst`; the number of entries that it finds."""
        self.number["judged"] += 1
        run = subprocess.run(["dmremap", "check", self.device, "--spare-start", str(MAIN)],
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        found = re.search(r"(\d+) entr(?:y|ies)", run.stdout)
        if run.returncode > worst or not found:
            self.fail("dmremap check agrees", f"{run.returncode}: {run.stdout}")
        return int(found[1]) if found else None

    def activate(self, readonly):
        try:
            dm.reload(self.name, f"0 {MAIN} remap {self.device} 0 {self.device} {MAIN} 2 unit_sectors {UNIT}", readonly=readonly)
            return True
        except OSError as error:
            self.fail("the target can be activated", str(error))
            return False

    def deactivate(self):
        dm.reload(self.name, IDLE)

    def check(self, point, how="ro"):
        """Activates the target and compares. `how`: ro, rw, fs."""
        self.point = point
        self.number[how] += 1
        if self.image_formatted():
            metadata = [self.image[at:at + length] for at, length in self.areas()]
            if metadata != self.judged[0]:
                self.judged = metadata, self.judge(1)
        else:
            how = "format"
        if not self.activate(how == "ro"):
            self.deactivate()
            return
        lost = dm.status(self.name)[-1] != "0"
        self.number["with lost sectors"] += lost
        self.read_raw(self.remap)
        entries = dm.message(self.name, "list").splitlines()
        if len(entries) != self.judged[1]:
            self.fail("dmremap check agrees", f"{len(entries)} entries, not {self.judged[1]}")
        slots = collections.Counter(line.split()[2] for line in entries)
        for slot, number in slots.items():
            if number > 1 and slot != "-":
                self.fail("no two entries share a slot", f"slot {slot}: {number} entries")
        if how == "fs":
            found = dm.message(self.name, "check")
            words = found.split()
            if words[2:3] != ["0"] or words[4:5] != ["0"] or words[6:7] != ["0"]:
                self.fail("after activation all metadata is sound", found)
        if how != "ro":
            mode = dm.status(self.name)[0]
            if mode != "active":
                self.fail("after activation all metadata is sound", mode)
        if how == "fs":
            self.read_files(self.remap)
        self.deactivate()
        if how == "rw":
            self.judge(0)
            # Lost sectors that could be read are in the unit's slot now.
            if lost:
                self.restore()
            else:
                self.restore_metadata()
        elif how != "ro":
            self.restore()

    def image_formatted(self):
        spare = MAIN * dm.SECTOR
        return any(self.image[c:c + 8] == b"RMAPSUPR" for c in (spare, spare + SPARE * 512 - 4096))

    def read_raw(self, device):
        fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
        view = memoryview(self.buffer)
        failed = set()
        for at in range(0, RAW * dm.SECTOR, MIB):
            try:
                os.preadv(fd, [view[at:at + MIB]], at)
            except OSError as error:
                failed.add(at // MIB)
                self.fail("every sector can be read", f"MiB {at // MIB}: {error}")
        os.close(fd)
        changed = set()
        for at in range(0, RAW * dm.SECTOR, CHUNK):
            data = self.buffer[at:at + CHUNK]
            before = self.seen.get(at, bytes(CHUNK))
            if at // MIB in failed or data == before:
                continue
            self.seen[at] = data
            changed.update((at + o) // 512 for o in range(0, CHUNK, 512) if data[o:o + 512] != before[o:o + 512])
        for sector in changed:
            data = self.buffer[sector * 512:sector * 512 + 512]
            version = dm.version_of(sector, data)
            if version is None or version and not (
                    version < len(self.work.ops) and sector in range(*self.work.ops[version])):
                self.fail("no read returns what was never written there", f"sector {sector}: {data[:24]!r}")
                version = None
            self.versions[sector] = version
        missing = [s for s in changed | self.raised if self.versions[s] is not None and self.versions[s] < self.floor[s]]
        for sector in missing:
            self.fail("what was acknowledged is there",
                      f"sector {sector} is version {self.versions[sector]}, acknowledged {self.floor[sector]}")
        # Those in error are looked at again.
        self.raised = set(missing)

    def read_files(self, remap):
        promise = "the file system is sound and has what fsync was called for"
        part = dm.create(f"{self.name}fs", f"0 {MAIN - FS} linear {remap} {FS}")
        try:
            dm.mount(part, self.where)
            for name, least in self.files.items():
                with open(f"{self.where}/{name}", "rb") as file:
                    data = file.read()
                words = data[:40].split(b"\n")[0].split()
                version = int(words[1]) if len(words) == 2 and words[1].isdigit() else 0
                if data != dm.file_data(name, version) or version < least or version not in self.work.files[name]:
                    self.fail(promise, f"{name}: version {version}, acknowledged {least}, {len(data)} bytes")
            dm.umount(self.where)
        except OSError as error:
            self.fail(promise, str(error))
        fsck = subprocess.run(["e2fsck", "-fn", part], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if fsck.returncode:
            self.fail(promise, f"e2fsck: {fsck.returncode}: {fsck.stdout[-300:]}")
        dm.remove(f"{self.name}fs")

    def tear(self, point, writes, chance, at_sector=None):
        """Checks the state with `writes` (sector, old data, new data) done in part, of which the last was not made yet.
        `at_sector`: up to there.
        """
        for sector, old, new in writes:
            torn = bytearray(old)
            sectors = len(new) // dm.SECTOR
            if at_sector:
                arrived = range(at_sector)
            elif chance.random() < 0.75:
                arrived = range(chance.randrange(1, sectors))
            else:
                arrived = chance.sample(range(sectors), chance.randrange(1, sectors))
            for s in arrived:
                torn[s * 512:s * 512 + 512] = new[s * 512:s * 512 + 512]
            at = sector * dm.SECTOR
            self.image[at:at + len(torn)] = torn
            self.store(at, len(torn))
        self.number["torn"] += 1
        self.number["torn together"] += len(writes) > 1
        self.check(point, "rw" if self.number["torn"] % 3 == 0 else "ro")
        for n, (sector, old, new) in enumerate(writes, 1):
            self.write(sector, old if n == len(writes) else new)

    def keep_some(self, point, cached, log, chance):
        """Checks the state with some of the writes done that the disk's cache had, as it may choose."""
        self.number["partly cached"] += 1
        before = []
        for step in cached:
            if chance.random() < 0.5:
                at, length = step.sector * dm.SECTOR, step.count * dm.SECTOR
                before.append((step.sector, self.image[at:at + length]))
                self.write(step.sector, log[step.at:step.at + length])
        self.check(point, "ro")
        for sector, data in reversed(before):
            self.write(sector, data)


def pairs_of_writes(steps):
    """The steps (first, end) between a write and the next."""
    last = None
    for n, step in enumerate(steps):
        if step.count:
            if last is not None:
                yield last, n
            last = n
    # The flushes before the first write end in no state of their own.


def replay_states(worker, states, base, log, steps, work):
    """Checks one worker's share of the states, which follow each other; (failures, counts)."""
    failures = Failures()
    mine = range(states * worker // WORKERS + 1, states * (worker + 1) // WORKERS + 1)
    replay = Replay(f"replayed{worker}", f"r{worker}", base, work, failures)
    spare = MAIN * dm.SECTOR
    chance = random.Random(6)
    points, at_point, written, since_flush = 1, False, False, []
    replay.follow(points in mine)
    # `points`: the number of the state that is being made.
    for n, step in enumerate(steps):
        if step.mark is not None:
            replay.mark(step.mark)
        elif step.count:
            if at_point:
                # All marks until the next write are known: that much was acknowledged in this very state.
                if points in mine:
                    how = "ro"
                    if points % 20 == 0 and "mounted0" in replay.marks:
                        how = "fs"
                    elif points % 5 == 0 or "active0" not in replay.marks:
                        how = "rw"
                    replay.check(f"state {points}, before log entry {n}", how)
                    replay.number["points"] += 1
                    if points % 200 == 0:
                        print(f"# state {points} of {states}", flush=True)
                    cached = list(itertools.takewhile(lambda s: not s.flags & (FLUSH_FLAG | FUA_FLAG), steps[n:]))
                    cached = [s for s in cached if s.count]
                    if len(cached) > 1 and chance.random() < 0.15:
                        replay.keep_some(f"some of the writes from log entry {n} on", cached, log, chance)
                points += 1
                replay.follow(points in mine)
                at_point = False
            data = log[step.at:step.at + step.count * 512]
            first, length = step.sector * 512, len(data)
            old = base[first:first + length]
            if data[:8] == b"RMAPTABL" and first >= spare and (length > 4096 or data[48:56] != old[48:56]):
                replay.number["extends"] += length == 4096
                for sectors in range(1, length // 512):
                    if points in mine:
                        replay.tear(f"in log entry {n}, {sectors} sectors of more of the table", [(step.sector, old, data)], chance, sectors)
            if data[:8] in (b"RMAPTABL", b"RMAPSUPR") and first >= spare and length == 4096:
                # Two replicas of the same block.
                block = (data[:8], data[32:40])
                together = [w for w in since_flush if (w[2][:8], w[2][32:40]) == block and w[0] != step.sector]
                if points in mine and (together or data[:8] == b"RMAPSUPR" or chance.random() < 0.2):
                    replay.tear(f"in log entry {n}, block {struct.unpack('<Q', block[1])[0]}, {1 + len(together)} torn",
                                [*together, (step.sector, old, data)], chance)
                since_flush.append((step.sector, old, data))
            replay.write(step.sector, data)
            written = True
        if step.flags & FLUSH_FLAG:
            since_flush = []
        if step.flags & (FLUSH_FLAG | FUA_FLAG):
            replay.number["covered"] += points in mine
            at_point = written
    if points in mine:
        replay.check(f"state {points}, the end", "fs")
        replay.number["points"] += 1
    return failures, replay.number


def main():
    failures = Failures()
    # The spare's first and last MiB are blank; the rest is garbage, so that reading what was not written shows.
    base = dm.memory((MAIN + SPARE) * dm.SECTOR)
    spare = MAIN * dm.SECTOR
    rest = SPARE * dm.SECTOR - 2 * MIB
    base[spare + MIB:-MIB] = (b"never written " * (rest // 14 + 1))[:rest]
    fd = os.open("/dev/base", os.O_RDWR | os.O_DIRECT)
    for at in range(0, len(base), MIB):
        os.pwrite(fd, memoryview(base)[at:at + MIB], at)
    os.close(fd)

    work = Workload()
    work.run()
    for error in work.errors:
        failures.note("the workload sees no error", error)
    log = dm.read_all("/dev/log")
    steps = read_log(log)
    entries, moved = new_entries(log, steps)
    grouped = sum(written_in_group(log, step) for step in steps)
    print(f"# log: {len(steps)} entries, {sum(1 for s in steps if s.count)} writes, {sum(1 for s in steps if s.flags & 3)} of them flush or FUA, {grouped} of table blocks that were written with others", flush=True)

    start = time.monotonic()
    # How many states there are decides who checks which.
    states = 1 + sum(1 for a, b in pairs_of_writes(steps) if any(s.flags & (FLUSH_FLAG | FUA_FLAG) for s in steps[a:b]))
    number = collections.Counter()
    children = []
    for worker in range(WORKERS):
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reader)
            result = (Failures(), collections.Counter())
            try:
                result = replay_states(worker, states, base, log, steps, work)
            except BaseException:  # pylint: disable=broad-exception-caught  # it ends in the report
                traceback.print_exc()
                result[0]["the replay itself works"] = 1
            with os.fdopen(writer, "wb") as file:
                pickle.dump(result, file)
            os._exit(0)
        os.close(writer)
        children.append((pid, reader))
    for pid, reader in children:
        with os.fdopen(reader, "rb") as file:
            failed, counted = pickle.load(file)
        os.waitpid(pid, 0)
        failures += failed
        number += counted
    points = number["points"]
    print(f"# {points} of {states} states of {number['covered']} flush and FUA points, {number['torn']} torn metadata writes"
          f" ({number['torn together']} with another), {number['partly cached']} with a part of the cache, {number['judged']} times dmremap check, {number['fs']} times the file system,"
          f" {sum(1 for s in steps if s.mark and s.mark[0] in 'dfe')} acknowledgements, {entries} new entries from errors,"
          f" slots replaced across table blocks: {moved[2]} by writes, {moved[1]} by reads, {number['with lost sectors']} states with lost sectors;"
          f" {time.monotonic() - start:.1f} s", flush=True)

    enough = {
        f"at least {least} {what} ({got})": got >= least for least, what, got in (
            (WRITES * 6 // 5, "new entries from errors", entries),
            (REPLACED, "slots replaced across table blocks by writes", moved[2]),
            (REPLACED, "slots replaced across table blocks by reads", moved[1]),
            (WRITES * 2, "states at a flush or FUA write", points),
            (WRITES * 2 // 5, "torn metadata writes", number["torn"]),
            (2, "writes that take more of the table in use, of both replicas", number["extends"]),
        )
    }
    promises = [
        "the workload sees no error", "the replay itself works", "the target can be activated", "every sector can be read", "what was acknowledged is there",
        "no read returns what was never written there", "no two entries share a slot", "dmremap check agrees",
        "after activation all metadata is sound", "the file system is sound and has what fsync was called for",
    ]
    results = [*((p, not failures[p]) for p in promises), *enough.items()]
    print(f"KTAP version 1\n1..{len(results)}")
    for i, (promise, good) in enumerate(results, 1):
        print(f"{'ok' if good else 'not ok'} {i} - {promise}" + ("" if good or not failures[promise] else f": {failures[promise]} times"))
    sys.exit(0)


main()
