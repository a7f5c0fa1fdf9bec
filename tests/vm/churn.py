"""churn.py SECONDS [SEED]: four processes do to devices what can be done to them, in random order, and compare data.

Each process has a remap device of its own, and its main and spare are dm devices of its own over parts of two disks. So it
knows what must succeed and what must fail, and how. On main, sectors are bad now and then; the spare is slow, or suspended for
a while; either is replaced by errors and comes back. Two threads write and read all the while: whatever happens to the device,
a sector has the version that was acknowledged last, or one that was tried since. Reads may fail while there are bad
sectors, writes while main or spare is gone, nothing else may.

One device more belongs to all: there the processes' calls meet each other, so some may fail, in the ways that CROWD names.

Again and again all pause. Then the module must be unused and can be unloaded, and nothing holds the devices below.

No call and no read or write may take longer than LIMIT: then it is said who hangs in what, and the kernel logs its blocked tasks.
"""

import collections
import contextlib
import ctypes
import errno
import mmap
import os
import queue
import random
import signal
import struct
import sys
import threading
import time
import traceback

import dm

PROCESSES = 4
MAIN, SPARE = 1024, 4096  # sectors of each part of the disks
ALL = PROCESSES  # the part of the device that belongs to all
MINOR = 200  # of the first remap device: with minors of their own, no node ever is another device's
LIMIT = 50
ALL_BAD = [(100, 117), (300, 301), (513, 600), (1000, 1023)]  # first and last sectors that are always bad below the device of all
E = errno

# What is counted, and how often at least it must have been done in 100 s.
KINDS = {
    "create": 10, "load": 20, "clear": 5, "suspend": 20, "resume": 20, "remove": 10, "remove deferred": 2,
    "suspend noflush": 5, "suspend nolockfs": 5, "suspend noflush nolockfs": 5, "suspend with dirty pages": 2, "interrupted suspend": 1,
    "remove refused: open": 2, "remove refused: open and suspended": 2, "remove while suspended": 2, "remove with a loaded table": 2,
    "create refused": 1, "load refused": 10, "preresume failed": 2, "remove after preresume failed": 1, "resumed after preresume failed": 1,
    "remap": 2, "mark": 2, "restore": 2, "forget": 1, "query": 2, "list": 2, "check": 2, "sync": 2, "set": 2, "reset": 2, "help": 2, "message refused": 2,
    "main gone": 2, "spare gone": 2, "load refused: spare gone": 1, "stalled spare": 2, "slow spare": 2, "bad sectors": 10, "read-only": 1,
    "formatted": 1, "rmmod refused": 2, "rmmod": 1, "modprobe": 1, "compared": 5,
    "writes": 200, "reads": 100, "writes that failed": 1, "reads that failed": 1,
    "shared: create": 5, "shared: load": 5, "shared: clear": 2, "shared: suspend": 5, "shared: resume": 5, "shared: remove": 2,
    "shared: remove deferred": 1, "shared: message": 5, "shared: writes": 20,
}
NAMES = list(KINDS)

# What calls to the device of all may fail with.
CROWD = {
    "create": (E.ENXIO,),  # the minor is that of the one that is there, or of one on its way out
    "load": (E.ENXIO, E.EBUSY),  # ... which still has the spare, too
    "clear": (E.ENXIO,),
    "suspend": (E.ENXIO, E.EINVAL),  # another has just suspended it
    "resume": (E.ENXIO, E.EINVAL),  # no table; another has just resumed it
    "remove": (E.ENXIO, E.EBUSY),  # open
    "remove deferred": (E.ENXIO,),
    "message": (E.ENXIO, E.EINVAL, E.EBUSY, E.EINTR),  # no table; not resumed yet; another wants to suspend it
    "status": (E.ENXIO,),
}
FLAGS = [{}, {"noflush": True}, {"nolockfs": True}, {"noflush": True, "nolockfs": True}]


class Unexpected(Exception):
    """Something that should not happen."""


# --- What all processes see


class Shared:
    """Memory of all processes: what each thread does, counts, versions of the sectors of the device of all, and the rounds."""

    THREADS = 5  # of a process
    WATCH = 128

    def __init__(self):
        watches = (PROCESSES + 1) * self.THREADS * self.WATCH
        counts = (PROCESSES + 1) * len(NAMES) * 4
        self.memory = memoryview(mmap.mmap(-1, watches + counts + 2 * MAIN * 4 + 4096))
        at = 0

        def part(size, kind):
            nonlocal at
            at += size
            return self.memory[at - size:at].cast(kind)

        self.watches = part(watches, "B")
        self.counts = part(counts, "I")
        self.acknowledged, self.tried = part(MAIN * 4, "I"), part(MAIN * 4, "I")
        self.rounds = part(64, "d")  # its number, when it ends, whether it is the last
        self.arrived = part(64, "I")  # each process's last round
        self.unloading, self.unloaded = part(64, "I"), part(64, "I")

    def count(self, kind):
        at = NAMES.index(kind)
        return sum(self.counts[at::len(NAMES)])

    def blocked(self):
        """Who has been doing what for how long: (process, what, seconds)."""
        now = time.monotonic()
        for n in range((PROCESSES + 1) * self.THREADS):
            watch = self.watches[n * self.WATCH:(n + 1) * self.WATCH]
            since, = struct.unpack_from("d", watch)
            if since:
                yield n // self.THREADS, bytes(watch[8:]).rstrip(b"\0").decode(), now - since


SHARED = Shared()
local = threading.local()  # .watch: the thread's own
trail = collections.deque(maxlen=60)  # the last calls of this process
counting = threading.Lock()
me = PROCESSES  # the number of this process; the parent's is one more


def count(kind):
    with counting:
        SHARED.counts[me * len(NAMES) + NAMES.index(kind)] += 1


def begin_thread(number):
    at = (me * Shared.THREADS + number) * Shared.WATCH
    local.watch = SHARED.watches[at:at + Shared.WATCH]


@contextlib.contextmanager
def watched(what):
    """What takes longer than LIMIT."""
    local.watch[8:] = what.encode()[:Shared.WATCH - 8].ljust(Shared.WATCH - 8, b"\0")
    struct.pack_into("d", local.watch, 0, time.monotonic())
    try:
        yield
    finally:
        struct.pack_into("d", local.watch, 0, 0.0)


def attempt(what, may, function, *args, **options):
    """Calls the function: the error's number, or 0, and the result. An error that is not in `may` is Unexpected."""
    start = time.monotonic()
    result, error = None, 0
    with watched(what):
        try:
            result = function(*args, **options)
        except OSError as caught:
            error = caught.errno
    said = E.errorcode[error] if error else "done"
    trail.append(f"{start:.2f} {time.monotonic() - start:.2f} s: {what}: {said}")
    if error and error not in may:
        raise Unexpected(f"{what}: {said}")
    return error, result


# --- The module


def delete_module():
    if dm._libc.syscall(ctypes.c_long(176), b"dm_remap", ctypes.c_long(os.O_NONBLOCK)):
        raise OSError(ctypes.get_errno(), "rmmod")


def unload(may):
    """Whether the module went."""
    SHARED.unloading[me] = 1
    error, _ = attempt("rmmod", may, delete_module)
    SHARED.unloaded[me] += not error
    SHARED.unloading[me] = 0
    count("rmmod refused" if error else "rmmod")
    return not error


def unloads():
    """Changes while a module is being unloaded."""
    return any(SHARED.unloading), sum(SHARED.unloaded)


def modprobe():
    before = unloads()
    with watched("modprobe"):
        status = os.waitpid(os.posix_spawnp("modprobe", ["modprobe", "dm_remap"], os.environ), 0)[1]
    if not status:
        count("modprobe")
    elif before == unloads() and not before[0]:
        raise Unexpected(f"modprobe: {status}")


# --- Data


class Spell:
    """A state that comes and goes."""

    def __init__(self):
        self.times = self.active = 0

    def begin(self):
        self.times, self.active = self.times + 1, True

    def end(self):
        self.active = False

    def since(self, token):
        """Whether it was so at any time since `token` = now()."""
        return token != (self.times, False)

    def now(self):
        return self.times, self.active


def fill(buffer, start, versions):
    for n, version in enumerate(versions):
        buffer[n * 512:n * 512 + 512] = dm.sector(start + n, version)


def compare(data, start, acknowledged, tried):
    """What was read from sector `start` on is what was acknowledged last, or was tried since."""
    for at in range(0, len(data), 512):
        sector = start + at // 512
        version = dm.version_of(sector, bytes(data[at:at + 512]))
        if version is None or not acknowledged[sector] <= version <= tried[sector]:
            raise Unexpected(f"sector {sector} has version {version}, acknowledged was {acknowledged[sector]}, "
                             f"tried {tried[sector]}: {bytes(data[at:at + 32]).hex()}")


# --- A process and its device


class Process:
    def __init__(self, number, seed, nodes):
        self.name, self.minor = f"own{number}", MINOR + number
        self.chance = random.Random(f"{seed}.{number}")
        self.seed = f"{seed}.{number}"
        self.first, self.first_spare = number * MAIN, number * SPARE
        self.nodes = nodes  # of "main" and "spare"
        self.main_name, self.spare_name = f"main{number}", f"spare{number}"
        self.delay = 0
        self.options, self.format, self.formatted = "", "", False
        # The device as it should be.
        self.exists = self.live = self.loaded = self.suspended = self.leaving = False
        # Faults that excuse errors: of reads; of all.
        self.bad, self.picky, self.gone = Spell(), Spell(), Spell()
        self.below = threading.Lock()  # held by who changes what is below
        # The writers' file, how many use it at the moment, and what they know.
        self.fd, self.users, self.ending = None, 0, False
        self.moment = threading.Condition()
        self.acknowledged, self.tried, self.version = [0] * MAIN, [0] * MAIN, 0
        self.errands = queue.SimpleQueue()
        self.last_resume, self.crowd_next = 0.0, None
        self.passing, self.passing_ends = False, True

    # ---- Calls

    def call(self, kind, function, *args, **options):
        """What must succeed."""
        words = " ".join(str(a) for a in (*args, *(k for k, v in options.items() if v)))
        _, result = attempt(f"{kind}: {function.__name__} {words}", (), function, *args, **options)
        if kind:
            count(kind)
        return result

    def refused(self, kind, errors, function, *args, **options):
        """What must fail, in one of these ways."""
        words = " ".join(str(a) for a in args)
        error, _ = attempt(f"{kind}: {function.__name__} {words}", errors, function, *args, **options)
        if not error:
            raise Unexpected(f"{kind}: {function.__name__} {words}: succeeded")
        count(kind)

    def chances(self, percent):
        return self.chance.randrange(100) < percent

    def flags(self):
        return self.chance.choice(FLAGS)

    # ---- What is below

    def lower(self, which, line):
        """Another table for main or spare; what is on its way ends before."""
        name = self.main_name if which == "main" else self.spare_name
        with self.below:
            self.call("", dm.suspend, name, noflush=True, nolockfs=True)
            self.call("", dm.load, name, line)
            self.call("", dm.resume, name)

    def lose(self, which):
        self.gone.begin()
        self.lower(which, f"0 {MAIN if which == 'main' else SPARE} error")
        count(f"{which} gone")

    def mend(self, which):
        self.lower(which, main_line(self.first) if which == "main" else spare_line(self.first_spare, self.delay))

    def recovered(self):
        """Main and spare are there again: so nothing more may fail, once that is known."""
        if self.live and not self.suspended:
            if self.chances(30):
                self.call("reset", dm.message, self.name, "reset")
            with watched("tripped"):
                while dm.status(self.name)[0] == "tripped":
                    time.sleep(0.05)
            # What was retried meanwhile comes to its end.
            self.suspend(noflush=True, nolockfs=True)
            self.resume()
        self.gone.end()

    def set_delay(self, ms):
        if ms != self.delay:
            self.delay = ms
            self.mend("spare")
            count("slow spare")

    def stall(self, seconds):
        """The spare is suspended for a while."""
        self.below.acquire()
        self.call("stalled spare", dm.suspend, self.spare_name, noflush=True, nolockfs=True)

        def end():
            time.sleep(seconds)
            self.call("", dm.resume, self.spare_name)
            self.below.release()

        self.errands.put(end)

    def spoil(self):
        """Some sectors of main go bad."""
        self.bad.begin()
        for _ in range(self.chance.randrange(1, 4)):
            first = self.chance.randrange(MAIN)
            last = min(first + self.chance.randrange(24), MAIN - 1)
            badblocks("+", self.first + first, self.first + last)
        count("bad sectors")

    def heal(self):
        badblocks("-", self.first, self.first + MAIN - 1)
        self.bad.end()

    # ---- One call each

    def line(self):
        if self.chances(25):
            self.options = self.chance.choice([
                "", "read_retries 0", "read_retries 3", "pending_reads fail", "pending_reads retry read_retries 1", "bad_on io", "no_format"])
        words = (self.format + " " + self.options).split()
        words = [w for w in words if w != "no_format" or self.formatted]
        if "fail" in words:
            self.picky.begin()
        return f"0 {MAIN} remap {self.nodes['main']} 0 {self.nodes['spare']} 0" + (f" {len(words)} {' '.join(words)}" if words else "")

    def create(self):
        while True:
            error, _ = attempt("create", (E.ENXIO,) if self.leaving else (), dm.create_empty, self.name, self.minor)
            if not error:
                break
            time.sleep(0.01)  # the deferred removal has not come to its end yet
        count("create")
        self.exists, self.leaving = True, False

    def load(self, readonly=False):
        while True:
            before, line = unloads(), self.line()
            error, _ = attempt(f"load: {line}", (E.EINVAL,), dm.load, self.name, line, readonly=readonly)
            if not error:
                break
            # The module is just being unloaded?
            if before == unloads() and not before[0]:
                raise Unexpected(f"load: {line}: EINVAL")
        count("load")
        self.loaded = True

    def clear(self):
        self.call("clear", dm.clear, self.name)
        self.loaded = False

    def suspend(self, **flags):
        kind = " ".join(("suspend", *flags))
        self.call(kind, dm.suspend, self.name, **flags)
        self.suspended = True

    def resume(self):
        self.call("resume", dm.resume, self.name, **self.flags())
        self.live, self.loaded, self.suspended, self.formatted = True, False, False, True

    def remove(self, kind="remove"):
        self.call(kind, dm.remove, self.name, patient=False)
        self.gone_away()

    def gone_away(self):
        self.exists = self.live = self.loaded = self.suspended = False

    def tell(self, may=()):
        """A message to a live device."""
        first = self.chance.randrange(MAIN)
        long = 1 if self.delay > 100 else 8
        counts = {"remap": 4 * long, "restore": 8 * long, "mark": 64, "forget": 64}
        kind = self.chance.choice(["remap", "mark", "restore", "forget", "query", "list", "check", "sync", "set", "help", "refused"])
        if kind == "check" and self.delay > 20:
            kind = "sync"
        if kind in counts:
            text = f"{kind} {first} {min(self.chance.randrange(1, counts[kind] + 1), MAIN - first)}"
        elif kind == "query":
            text = f"query {first}"
        elif kind == "set":
            text = self.chance.choice(["set read_retries 0", "set read_retries 2", "set pending_reads fail", "set bad_on io"])
            if "fail" in text:
                self.picky.begin()
        elif kind == "refused":
            text = self.chance.choice(["nonsense", "remap", f"remap {MAIN}", f"mark {MAIN - 1} 2", "set unit_sectors 8", "restore -1"])
            self.refused("message refused", (E.EINVAL,), dm.message, self.name, text)
            return
        else:
            text = kind
        error, _ = attempt(text, may, dm.message, self.name, text)
        if not error:
            count(kind)

    # ---- States to begin from

    def up(self, io=True):
        """The device is there and works."""
        if not self.exists:
            self.create()
        if not self.live and not self.loaded:
            self.load()
        if self.loaded and not self.live or self.suspended:
            self.resume()
        if io:
            self.start_io()
        else:
            self.stop_io()

    def start_io(self):
        if self.fd is None:
            with self.moment:
                self.fd = self.call("", os.open, f"/dev/dm-{self.minor}", os.O_RDWR | os.O_DIRECT)
                self.moment.notify_all()

    def stop_io(self):
        if self.fd is None:
            return
        if self.suspended:
            self.resume()
        with self.moment, watched("waiting for reads and writes"):
            fd, self.fd = self.fd, None
            self.moment.wait_for(lambda: not self.users)
        self.call("", os.close, fd)

    def down(self):
        """There is no device."""
        self.stop_io()
        if self.exists:
            self.remove()

    def anyhow(self):
        """One state or another."""
        self.chance.choice([self.up, self.up, lambda: self.up(False), self.down])()

    # ---- What is done

    def never_resumed(self):
        self.down()
        self.create()
        for _ in range(self.chance.randrange(3)):
            self.chance.choice([self.load, self.load, self.clear, lambda: self.suspend(**self.flags())])()
        if self.chances(80):
            self.refused("create refused", (E.EBUSY,), dm.create_empty, self.name)
        if self.loaded and self.chances(50):
            self.remove("remove with a loaded table")
        elif self.chances(50):
            self.remove()

    def suspended_for_a_while(self):
        self.up()
        self.suspend(**self.flags())
        for _ in range(self.chance.randrange(4)):
            self.chance.choice([self.tell, self.tell, self.look, self.load, self.clear, lambda: time.sleep(0.05)])()
        if self.chances(70):
            self.resume()

    def look(self):
        self.call("", dm.status, self.name)
        opened = self.call("", dm.info, self.name)["open"]
        if opened != (self.fd is not None):
            raise Unexpected(f"the device is open {opened} times")

    def other_table(self):
        self.up(self.chances(70))
        for _ in range(self.chance.randrange(1, 3)):
            self.load()
        if self.chances(30):
            self.clear()
            self.load()
        if self.chances(30):
            self.suspend(**self.flags())
        self.resume()

    def loaded_and_cleared(self):
        self.anyhow()
        if self.exists:
            self.load()
            if self.chances(50):
                self.tell() if self.live else time.sleep(0)
            self.clear()

    def removed_while_open(self):
        self.up()
        self.refused("remove refused: open", (E.EBUSY,), dm.remove, self.name, patient=False)
        if self.chances(70):
            self.suspend(**self.flags())
            self.refused("remove refused: open and suspended", (E.EBUSY,), dm.remove, self.name, patient=False)

    def removed_while_suspended(self):
        self.up(False)
        self.suspend(**self.flags())
        if self.chances(30):
            self.tell()
        if self.chances(30):
            self.load()
        self.remove("remove while suspended")

    def removed_with_a_table(self):
        self.up(False)
        self.load()
        self.remove("remove with a loaded table")

    def removed_later(self):
        self.up()
        if self.chances(30):
            self.call("remove deferred", dm.remove, self.name, deferred=True)
            self.call("", dm.message, self.name, "@cancel_deferred_remove")
        if self.chances(50):
            self.load()
        self.call("remove deferred", dm.remove, self.name, deferred=True)
        if self.chances(50):
            self.tell()
        self.stop_io()
        with watched("waiting for the deferred removal"), contextlib.suppress(OSError):
            while True:
                dm.info(self.name)
                time.sleep(0.005)
        self.gone_away()
        self.leaving = True

    def refused_tables(self):
        self.up(False)  # a spare that is still blank would take another length
        self.anyhow()
        if not self.exists:
            self.create()
        main, spare = self.nodes["main"], self.nodes["spare"]
        good = f"0 {MAIN} remap {main} 0 {spare} 0"
        self.chance.shuffle(lines := [
            [f"0 {MAIN} remap {main} 0"],
            [f"0 {MAIN} remap {main} 0 /dev/none 0"],
            [f"0 {MAIN} remap {main} 8 {spare} 0"],
            [f"0 {MAIN} remap {main} 0 {main} 0"],
            [f"0 {MAIN // 2} remap {main} 0 {spare} 0"],
            [f"{good} 2 unit_sectors 7"],
            [f"{good} 1 nonsense"],
            [f"{good} 3 read_retries 1"],
            [f"{good} 2 spare_sectors {2 * SPARE}"],
            [good, f"{MAIN} 8 linear /dev/none 0"],  # the first target goes again
            [good, f"{MAIN + 8} 8 error"],
        ])
        for line in lines[:4]:
            self.refused("load refused", (E.EINVAL, E.ENOENT, E.ENODEV, E.ENXIO), dm.load, self.name, *line)

    def preresume_fails(self):
        self.chance.choice([self.up, lambda: self.up(False), self.down])()
        if not self.exists:
            self.create()
        self.load()
        if self.live and self.chances(30):
            self.suspend(**self.flags())
        self.lose("spare")
        for _ in range(self.chance.randrange(1, 3)):
            self.refused("preresume failed", (E.EINVAL, E.EIO), dm.resume, self.name, **self.flags())
        self.live, self.loaded, self.suspended = True, False, True
        self.look()
        self.refused("message refused", (E.EBUSY,), dm.message, self.name, "sync")
        if self.fd is None and self.chances(50):
            self.remove("remove after preresume failed")
            self.mend("spare")
        else:
            self.mend("spare")
            if self.chances(50):
                self.load()
            self.resume()
            count("resumed after preresume failed")
        self.recovered()

    def vanishes(self, which):
        self.up()
        self.lose(which)

        def suspended():
            self.suspend(**self.flags())
            self.resume()

        def loads():
            if which == "main":
                self.load()
            else:
                self.refused("load refused: spare gone", (E.EINVAL, E.EIO), dm.load, self.name, self.line())

        def tells():
            self.tell(may=(E.EIO, E.ENOSPC))

        for _ in range(self.chance.randrange(1, 5)):
            self.chance.choice([suspended, loads, tells, tells, lambda: time.sleep(self.chance.random() / 2)])()
        if self.loaded:
            self.clear()
        if self.chances(20):
            self.down()
        self.mend(which)
        self.recovered()

    def stalls(self):
        self.up()
        if self.chances(50):
            self.spoil()
        self.stall(self.chance.choice([0.1, 0.3, 1, 2]))
        self.chance.choice([
            self.suspended_for_a_while, self.other_table, self.removed_while_suspended, self.removed_later, self.tell, self.down,
            self.loaded_and_cleared])()

    def interrupted(self):
        """A signal while suspending waits for writes, which wait for the spare."""
        self.up()
        self.spoil()
        self.stall(self.chance.choice([0.5, 1]))
        time.sleep(0.1)
        done = threading.Event()

        def hit():
            time.sleep(self.chance.random() / 3)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
            done.set()

        threading.Thread(target=hit).start()
        error, _ = attempt("interrupted suspend", (E.EINTR,), dm.suspend, self.name, **self.flags())
        self.suspended = not error
        with watched("waiting for the signal"):
            done.wait()
        if error:
            count("interrupted suspend")

    def dirty(self):
        """Suspending writes the page cache back."""
        self.up()
        gone = self.chances(20)
        if gone:
            self.stop_io()  # fsync() would fail there, too
        with open(f"/dev/dm-{self.minor}", "r+b", buffering=0) as file:
            first = self.chance.randrange(MAIN * 7 // 8, MAIN - 16) // 8 * 8
            buffer = bytearray(8 * 512)
            versions = self.next_versions(first, 8)
            fill(buffer, first, versions)
            attempt("dirty pages", (), os.pwrite, file.fileno(), buffer, first * 512)
            if gone:
                self.lose("main")
            error, _ = attempt("suspend with dirty pages", (E.EIO,) if gone else (), dm.suspend, self.name, nolockfs=False)
            self.suspended = not error
            count("suspend with dirty pages")
            if not error and not gone:
                self.acknowledged[first:first + 8] = versions
            if gone:
                self.mend("main")
            if self.suspended:
                self.resume()
            if gone:
                self.recovered()
            # What could not be written is not to be written later, when others have written it.
            attempt("fsync", (E.EIO,), os.fsync, file.fileno())

    def read_only(self):
        self.up(False)
        self.call("load", dm.load, self.name, self.line(), readonly=True)
        self.resume()
        if self.call("", dm.status, self.name)[0] != "readonly":
            raise Unexpected("the device is not read-only")
        count("read-only")
        self.load()
        self.resume()

    def slow(self):
        self.set_delay(self.chance.choice([0, 0, 0, 1, 2, 5, 20, 20, 100, 300]))

    def sectors(self):
        if self.chances(30):
            self.heal()
        self.spoil()

    def rmmod(self):
        self.anyhow()
        if self.loaded or self.live:
            self.refused("rmmod refused", (E.EWOULDBLOCK,), delete_module)
        else:
            unload((E.EWOULDBLOCK, E.EBUSY, E.ENOENT))
            if self.chances(50):
                modprobe()

    def tells(self):
        self.up()
        for _ in range(3):
            self.tell()

    def compare_all(self):
        """Everything acknowledged is there."""
        self.heal()
        self.up(False)
        self.call("set", dm.message, self.name, "set pending_reads retry")
        self.picky.end()
        with watched("reading everything"):
            data = dm.read_all(f"/dev/dm-{self.minor}")
        compare(data, 0, self.acknowledged, self.tried)
        count("compared")

    def format_anew(self):
        """Main takes everything back, and the spare is blank again."""
        self.set_delay(0)
        self.compare_all()
        said = self.call("restore", dm.message, self.name, f"restore 0 {MAIN}")
        if not said.endswith(" 0 units stay"):
            raise Unexpected(f"restore: {said}")
        self.down()
        with watched("reading main"):
            compare(dm.read_all(self.nodes["main"]), 0, self.acknowledged, self.tried)
        spare = os.open(self.nodes["spare"], os.O_RDWR | os.O_DIRECT)
        attempt("blank the spare", (), os.pwrite, spare, dm.memory(SPARE * 512), 0)
        os.close(spare)
        self.formatted = False
        self.format = self.chance.choice(["", "unit_sectors 8", "unit_sectors 1", "unit_sectors 64", "metadata_copies 3"])
        self.up(self.chances(50))
        count("formatted")

    # ---- The device of all

    def crowd(self):
        """One call to the device of all."""
        if time.monotonic() > self.last_resume + 3:
            kind = "resume"
        elif self.crowd_next and self.chances(60):
            kind = self.crowd_next
        else:
            kind = self.chance.choice([
                "create", "load", "load", "clear", "suspend", "suspend", "resume", "resume", "remove", "remove deferred",
                "message", "message", "message", "message", "status"])
        error = self.crowd_call(kind)
        self.crowd_next = "create" if error == E.ENXIO else {"create": "load", "load": "resume", "suspend": "resume"}.get(kind)

    def crowd_call(self, kind):
        if kind == "create":
            call = (dm.create_empty, "all", MINOR + ALL)
        elif kind == "load":
            call = (dm.load, "all", all_line(self.chance.randrange(4)))
        elif kind in ("suspend", "resume"):
            call = (getattr(dm, kind), "all")
        elif kind == "message":
            first = self.chance.randrange(MAIN - 16)
            call = (dm.message, "all", self.chance.choice([
                f"remap {first} 16", f"mark {first} 16", f"restore {first} 16", "sync", "check", "list", f"query {first}", "help"]))
        elif kind == "remove deferred":
            call = (dm.remove, "all", True)
        elif kind == "remove":
            call = (dm.remove, "all", False, False)
        else:
            call = (getattr(dm, kind), "all")
        options = self.flags() if kind in ("suspend", "resume") else {}
        before = unloads()
        may = CROWD[kind]
        if kind == "load":
            may += E.EINVAL,
        error, _ = attempt(f"shared: {kind} {call[2:]} {options}", may, *call, **options)
        if kind == "load" and error == E.EINVAL and before == unloads() and not before[0]:
            raise Unexpected(f"shared: {kind}: EINVAL")
        if kind == "resume":
            self.last_resume = time.monotonic()
        if not error and kind != "status":
            count(f"shared: {kind}")
        return error

    def passer(self):
        """Writes now and then to the device of all, if it is there, and reads: a quarter of it is this process's."""
        quarter = MAIN // PROCESSES
        first = me * quarter
        chance = random.Random(f"{self.seed}.passer")
        buffer = dm.memory(8 * 512)
        known, version = [], 0
        while not self.ending:
            time.sleep(chance.random() / 5)
            with self.moment:
                self.passing = not self.passing_ends
            if not self.passing:
                continue
            error, fd = attempt("shared: open", (E.ENOENT, E.ENXIO), os.open, f"/dev/dm-{MINOR + ALL}", os.O_RDWR | os.O_DIRECT)
            if not error:
                # While the first table comes into force, dm fails what is written.
                active = dm.info("all")["flags"] & dm.ACTIVE
                for _ in range(chance.randrange(1, 5) if active else 0):
                    length = chance.randrange(1, 9)
                    sector = first + chance.randrange(quarter - length)
                    version += 1
                    SHARED.tried[sector:sector + length] = memoryview(struct.pack(f"{length}I", *[version] * length)).cast("I")
                    fill(buffer, sector, [version] * length)
                    view = memoryview(buffer)[:length * 512]
                    _, done = attempt(f"shared: write {sector} {length}", (), os.pwrite, fd, view, sector * 512)
                    if done != len(view):
                        raise Unexpected(f"shared: write: {done} bytes")
                    SHARED.acknowledged[sector:sector + length] = SHARED.tried[sector:sector + length]
                    count("shared: writes")
                    known.append(sector)
                    sector = chance.choice(known)
                    view = memoryview(buffer)[:512]
                    attempt(f"shared: read {sector}", (), os.preadv, fd, [view], sector * 512)
                    compare(view, sector, SHARED.acknowledged, SHARED.tried)
                attempt("shared: close", (), os.close, fd)
            self.passing = False

    # ---- Threads

    def next_versions(self, first, length):
        with self.moment:
            self.version += 1
            versions = [self.version] * length
        self.tried[first:first + length] = versions
        return versions

    def writer(self, number):
        # The last eighth is written through the page cache (`dirty`).
        first, end = (0, MAIN // 2) if number == 0 else (MAIN // 2, MAIN * 7 // 8)
        chance = random.Random(f"{self.seed}.writer{number}")
        buffer = dm.memory(16 * 512)
        while True:
            with self.moment:
                self.moment.wait_for(lambda: self.fd is not None or self.ending)
                if self.ending:
                    return
                fd = self.fd
                self.users += 1
            try:
                self.access(fd, chance, first, end, buffer)
            finally:
                with self.moment:
                    self.users -= 1
                    self.moment.notify_all()
            time.sleep(chance.random() / 50)

    def access(self, fd, chance, first, end, buffer):
        length = chance.randrange(1, 17)
        sector = first + chance.randrange(end - first - length + 1)
        view = memoryview(buffer)[:length * 512]
        before, unread = self.gone.now(), (self.bad.now(), self.picky.now())
        what = f"{sector} {length} of {self.name}"
        if chance.randrange(100) < 5:
            attempt("fsync", (E.EIO,) if self.gone.since(before) else (), os.fsync, fd)
        elif chance.randrange(100) < 60:
            versions = self.next_versions(sector, length)
            fill(buffer, sector, versions)
            error, done = attempt(f"write {what}", (E.EIO, E.ENODATA, E.EREMOTEIO), os.pwrite, fd, view, sector * 512)
            if error:
                if not self.gone.since(before):
                    raise Unexpected(f"write {what}: {E.errorcode[error]}: {dm.status(self.name)}")
                count("writes that failed")
                return
            if done != len(view):
                raise Unexpected(f"write {what}: {done} bytes")
            self.acknowledged[sector:sector + length] = versions
            count("writes")
        else:
            error, done = attempt(f"read {what}", (E.EIO, E.ENODATA, E.EREMOTEIO), os.preadv, fd, [view], sector * 512)
            if error or done != len(view):
                if not self.gone.since(before) and not self.bad.since(unread[0]) and not self.picky.since(unread[1]):
                    raise Unexpected(f"read {what}: {error or done}: {dm.status(self.name)}")
                count("reads that failed")
                return
            compare(view, sector, self.acknowledged, self.tried)
            count("reads")

    def helper(self):
        while not self.ending:
            with contextlib.suppress(queue.Empty):
                self.errands.get(timeout=0.5)()

    # ---- Rounds

    def settle(self, last):
        """The end of a round: everything is compared, and this process lets go of everything."""
        if self.delay > 5:
            self.set_delay(0)
        if last:
            self.format_anew()
        self.compare_all()
        self.down()
        with self.moment:
            self.passing_ends = True
        while self.passing:
            self.crowd_call("resume")
            time.sleep(0.02)

    def run(self):
        signal.signal(signal.SIGUSR1, lambda *_: None)
        begin_thread(0)
        for number, thread in enumerate((lambda: self.writer(0), lambda: self.writer(1), self.helper, self.passer), 1):
            threading.Thread(target=guarded, args=(number, thread), daemon=True).start()
        usual = [
            self.never_resumed, *[self.suspended_for_a_while] * 3, *[self.other_table] * 2, self.loaded_and_cleared, self.removed_while_open,
            self.removed_while_suspended, self.removed_with_a_table, self.removed_later, self.refused_tables, self.preresume_fails,
            lambda: self.vanishes("main"), lambda: self.vanishes("spare"), *[self.stalls] * 2, self.interrupted, self.dirty, self.read_only,
            *[self.slow] * 2, *[self.sectors] * 3, self.rmmod, *[self.tells] * 2, self.compare_all, *[self.crowd] * 30]
        turn, things = 0, []
        while True:
            turn += 1
            while SHARED.rounds[0] < turn:
                time.sleep(0.02)
            self.passing_ends = False
            while time.monotonic() < SHARED.rounds[1]:
                if not things:
                    things = [*usual, *[self.format_anew] * self.chances(30)]
                    self.chance.shuffle(things)
                thing = things.pop()
                trail.append(f"{time.monotonic():.2f} --- {getattr(thing, '__name__', thing)}")
                thing()
            last = bool(SHARED.rounds[2])
            self.settle(last)
            SHARED.arrived[me] = turn
            if last:
                break
        self.ending = True
        with self.moment:
            self.moment.notify_all()


def guarded(number, function):
    """What a thread does: if it fails, so does the process."""
    try:
        begin_thread(number)
        function()
    except BaseException as error:  # noqa: whatever it is
        said = str(error) if isinstance(error, Unexpected) else traceback.format_exc()
        lines = [f"process {me}: {said}", *trail]
        os.write(1, "".join(f"# {line}\n" for text in lines for line in text.splitlines()).encode())
        os._exit(1)


# --- All of it


def badblocks(sign, first, last):
    with open("/sys/kernel/config/nullb/disk/badblocks", "w", encoding="ascii") as file:
        file.write(f"{sign}{first}-{last}")


def main_line(first):
    return f"0 {MAIN} linear /dev/disk {first}"


def spare_line(first, ms):
    return f"0 {SPARE} delay /dev/sparedisk {first} {ms}" if ms else f"0 {SPARE} linear /dev/sparedisk {first}"


def all_line(retries):
    return f"0 {MAIN} remap {ALL_NODES['main']} 0 {ALL_NODES['spare']} 0 2 read_retries {retries}"


ALL_NODES = {}
PROMISE = "in any order, by four processes, nothing fails that must not, nothing hangs, nothing acknowledged is lost"


def watch():
    """Ends the scenario if something hangs."""
    while True:
        time.sleep(0.5)
        hanging = sorted(SHARED.blocked(), key=lambda b: -b[2])
        if hanging and hanging[0][2] > LIMIT:
            for process, what, seconds in hanging:
                print(f"# process {process}: {what}: {seconds:.1f} s")
            with open("/proc/sysrq-trigger", "w", encoding="ascii") as trigger:
                trigger.write("w")
            fail(f"hangs: {hanging[0][1]} in process {hanging[0][0]}")


def wait(until, children):
    """Waits until all is done; fails if a process does."""
    while not until():
        time.sleep(0.05)
        for number, pid in list(children.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del children[number]
                if status:
                    raise Unexpected(f"process {number} failed")


def fail(why):
    """The first promise is not kept, and there is no going on."""
    print("".join(f"# {line}\n" for line in why.splitlines()) + f"not ok 1 - {PROMISE}: {why.splitlines()[-1]}", flush=True)
    os._exit(1)


def pause(lower):
    """All have let go: the module must be unused, and nothing holds the devices below."""
    # The device of all has everything, and has it where main is sound. Where it was removed deferred, first its name goes,
    # and then its minor number, a while after the last one let go.
    end = time.monotonic() + LIMIT
    while (found := flags("all")) is None or found & dm.DEFERRED:
        if time.monotonic() > end:
            raise Unexpected("the device of all does not go")
        if found is None and not attempt("create", (E.ENXIO,), dm.create_empty, "all", MINOR + ALL)[0]:
            break
        time.sleep(0.01)
    attempt("load", (), dm.load, "all", all_line(2))
    attempt("resume", (), dm.resume, "all")
    for first, last in ALL_BAD:
        badblocks("-", ALL * MAIN + first, ALL * MAIN + last)
    with watched("reading everything"):
        compare(dm.read_all(f"/dev/dm-{MINOR + ALL}"), 0, SHARED.acknowledged, SHARED.tried)
    for first, last in ALL_BAD:
        badblocks("+", ALL * MAIN + first, ALL * MAIN + last)
    attempt("remove", (), dm.remove, "all", patient=False)
    with open("/sys/module/dm_remap/refcnt", encoding="ascii") as file:
        users = int(file.read())
    if users:
        raise Unexpected(f"the module's use count is {users}")
    unload(())
    if os.path.exists("/sys/module/dm_remap"):
        raise Unexpected("the module is still there")
    for name, node in lower.items():
        opened = dm.info(name)["open"]
        if opened:
            raise Unexpected(f"{name} is open {opened} times")
        os.close(os.open(node, os.O_RDWR | os.O_EXCL))


def flags(name):
    """Those of the device, or None if there is none."""
    try:
        return dm.info(name)["flags"]
    except OSError:
        return None


def rare(seconds):
    """What was not done often enough for so many seconds; in a long time there is no more to come of yet more."""
    return [k for k, least in KINDS.items() if SHARED.count(k) < max(1, least * min(seconds, 300) // 100)]


def churn(seconds, seed):
    """Returns the number of pauses."""
    lower = {}
    for n in range(PROCESSES + 1):
        lower[f"main{n}"] = dm.create(f"main{n}", main_line(n * MAIN))
        lower[f"spare{n}"] = dm.create(f"spare{n}", spare_line(n * SPARE, 1 if n == ALL else 0))
    ALL_NODES.update(main=lower[f"main{ALL}"], spare=lower[f"spare{ALL}"])
    chance, children = random.Random(seed), {}
    for n in range(PROCESSES):
        pid = os.fork()
        if not pid:
            global me
            me = n
            process = Process(n, seed, {"main": lower[f"main{n}"], "spare": lower[f"spare{n}"]})
            guarded(0, process.run)
            os._exit(0)
        children[n] = pid
    begin_thread(0)
    threading.Thread(target=watch, daemon=True).start()
    modprobe()
    pause(lower)
    start, length, turn = time.monotonic(), min(30.0, seconds / 4), 0
    while not SHARED.rounds[2]:
        turn += 1
        now = time.monotonic()
        SHARED.rounds[1] = now + length
        # A machine that is busy with something else gets more time, as long as its scenario has some.
        SHARED.rounds[2] = now + length >= start + seconds and not rare(seconds) or now >= start + max(seconds, 1800)
        SHARED.rounds[0] = turn
        # The module is loaded by whoever needs it first, and goes again where nobody has a table yet.
        while time.monotonic() < now + 1:
            unload((E.EWOULDBLOCK, E.EBUSY, E.ENOENT))
            time.sleep(chance.random() / 20)
        wait(lambda: all(a == turn for a in SHARED.arrived[:PROCESSES]), children)
        pause(lower)
    wait(lambda: not children, children)
    for name in lower:
        dm.remove(name, patient=False)
    return turn


def main():
    seconds = int(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10000)
    print(f"KTAP version 1\n1..3\n# seed {seed} (the scenario's second argument)", flush=True)
    start = time.monotonic()
    try:
        pauses = churn(seconds, seed)
    except BaseException as error:  # noqa: whatever it is
        fail(str(error) if isinstance(error, Unexpected) else traceback.format_exc())
    print(f"ok 1 - {PROMISE}")
    print(f"ok 2 - in {pauses} pauses the module went and nothing was held")
    few = rare(seconds)
    print(f"# {time.monotonic() - start:.0f} s;", ", ".join(f"{k} {SHARED.count(k)}" for k in KINDS))
    print(f"{'not ok' if few else 'ok'} 3 - everything was done, and often enough" + (f": too rare: {few}" if few else ""), flush=True)


main()
