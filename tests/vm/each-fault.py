"""each-fault.py [STRIDE]: each step in the life of a table with one fault in it: the first, the second, ... until it has no more.

STRIDE: takes one fault of so many, beginning at any of them.

A fault is an allocation that fails, or a request for I/O on main or spare, called by the module or by what it calls
(`/proc/thread-self/fail-nth`, Documentation/fault-injection). What the step starts elsewhere, as works, has none.

If the step fails, it says so with a sensible error, and a plain activation after that finds all entries and all data. If
it did without, they are there at once (looked at after every third of these steps).
"""

import collections
import contextlib
import errno
import os
import random
import sys
import traceback
from pathlib import Path

import dm

SECTORS, SPARE_SECTORS = 4 * 2048, 2048
TABLE = f"0 {SECTORS} remap /dev/main 0 /dev/spare 0"
OLD = [1000, 5000, 7000]  # bad all the time, and written: they have slots
LOST = 8000  # bad, and pending
CLEAN = {errno.ENOMEM, errno.EIO, errno.ENOSPC}
NAME = "r"
STRIDE = int(sys.argv[1]) if len(sys.argv) > 1 else 1

fail_nth = os.open("/proc/thread-self/fail-nth", os.O_RDWR)


def with_fault(nth, step):
    """Runs the step with its `nth` fault: the error's number, or 0, and whether there were so many."""
    os.pwrite(fail_nth, b"%d" % nth, 0)
    try:
        step()
        error = 0
    except OSError as caught:
        error = caught.errno
    left = int(os.pread(fail_nth, 16, 0))
    os.pwrite(fail_nth, b"0", 0)
    return error, left == 0


def spoil(sector, sign="+"):
    Path("/sys/kernel/config/nullb/main/badblocks").write_text(f"{sign}{sector}-{sector}", encoding="ascii")


def blank_spare():
    fd = os.open("/dev/spare", os.O_WRONLY | os.O_DIRECT)
    os.pwrite(fd, dm.memory(SPARE_SECTORS * 512), 0)
    os.close(fd)


class Data:
    """Two blocks of 4 KiB: what is in the sectors, and what is read from them."""

    written, read = dm.memory(4096), dm.memory(4096)
    written[:] = os.urandom(4096)


def access(sector, write=False):
    device = os.open("/dev/" + NODE, os.O_RDWR | os.O_DIRECT)
    try:
        if write:
            assert os.pwrite(device, Data.written, sector * 512) == 4096
        Data.read[:] = bytes(4096)
        os.preadv(device, [Data.read], sector * 512)
        assert Data.read[:] == Data.written[:], f"sector {sector} is not what was written"
    finally:
        os.close(device)


def unreadable(sector):
    with contextlib.suppress(OSError):
        access(sector)
        raise AssertionError(f"sector {sector} is bad, and was read")


def entries():
    return [" ".join(line.split()[:2]) for line in dm.message(NAME, "list").splitlines()]


NODE = ""
EXPECTED = [*(f"{s} partial" for s in OLD), f"{LOST} pending"]


def create():
    global NODE
    NODE = os.path.basename(dm.create_empty(NAME))


def verify(expected):
    """The device is active and has these entries, and their data."""
    found = entries()
    assert found == expected, f"entries {found}, expected {expected}"
    for sector in OLD:
        access(sector, write=not expected)
    assert dm.status(NAME)[0] == "active", dm.status(NAME)


def plain(expected):
    """A plain activation, whatever the state, and the end of the device; nothing holds what is below."""
    dm.load(NAME, TABLE)
    dm.resume(NAME)
    verify(expected)
    dm.remove(NAME)
    for name in ("main", "spare"):
        os.close(os.open(f"/dev/{name}", os.O_RDWR | os.O_EXCL))
    users = Path("/sys/module/dm_remap/refcnt").read_text(encoding="ascii").strip()
    assert users == "0", f"{users} references to the module"


# --- The steps: what comes before; what may fail, and the entries after that


def load():
    create()
    return lambda: dm.load(NAME, TABLE), EXPECTED


def resume():
    create()
    dm.load(NAME, TABLE)
    return lambda: dm.resume(NAME), EXPECTED


def format_spare():
    blank_spare()
    create()
    dm.load(NAME, TABLE)
    return lambda: dm.resume(NAME), []


def active():
    create()
    dm.load(NAME, TABLE)
    dm.resume(NAME)


def reload():
    active()
    dm.load(NAME, f"{TABLE} 2 read_retries 1")
    return lambda: dm.resume(NAME), EXPECTED


def every_fault(prepare):
    """(faults, errors by number) of a step."""
    errors, nth = collections.Counter(), 1 - random.randint(1, STRIDE)
    while True:
        nth += STRIDE
        step, expected = prepare()
        error, fired = with_fault(nth, step)
        try:
            assert error == 0 or fired and error in CLEAN, f"{errno.errorcode.get(error, error)}"
            if error or not fired:
                plain(expected)
            else:
                # It did without. Of the many such, each third is looked at.
                if prepare is not load and sum(errors.values()) % 3 == 0:
                    verify(expected)
                dm.remove(NAME)
        except Exception as failed:
            raise AssertionError(f"fault {nth}, after which the step said {error}: {failed!r}") from failed
        if not fired:
            return nth - 1, errors
        errors[errno.errorcode.get(error, "none")] += 1


def opening():
    """Main or spare is not there, or somebody else's alone."""
    tried = 0
    for name in ("main", "spare"):
        refused = [(TABLE.replace(f"/dev/{name}", "/dev/nothing"), errno.ENOENT, contextlib.nullcontext)]
        refused += [(TABLE, errno.EBUSY, lambda: exclusively(name))]
        for line, number, state in refused:
            create()
            with state():
                try:
                    dm.load(NAME, line)
                except OSError as error:
                    assert error.errno == number, f"{name}: {error!r}"
                else:
                    raise AssertionError(f"{name}: no {errno.errorcode[number]}")
            plain(EXPECTED)
            tried += 1
    return tried, {}


@contextlib.contextmanager
def exclusively(name):
    fd = os.open(f"/dev/{name}", os.O_RDWR | os.O_EXCL)
    yield
    os.close(fd)


# --- All of it

FEWEST = {load: 40, resume: 10, format_spare: 10, reload: 10}  # faults that a step has at least


def main():
    steps = [("load", load), ("resume", resume), ("resume that formats the spare", format_spare), ("reload", reload)]
    print(f"KTAP version 1\n1..{len(steps) + 1}", flush=True)
    for sector in (*OLD, LOST):
        spoil(sector)
    number = 0
    for name, step in [*steps, ("load", opening)]:
        if step is not format_spare:
            blank_spare()
            active()
            for sector in OLD:
                access(sector, write=True)
            unreadable(LOST)
            dm.remove(NAME)
        number += 1
        try:
            faults, errors = opening() if step is opening else every_fault(step)
            assert faults >= FEWEST.get(step, 1), f"{faults} faults only"
            why = ""
            print(f"# {faults} faults: {dict(errors)}")
        except Exception:  # noqa: whatever it is
            why = "\n".join(f"# {line}" for line in traceback.format_exc().splitlines())
            with contextlib.suppress(OSError):
                dm.remove(NAME)
        promise = f"{name} with a device that cannot be opened" if step is opening else f"{name} with each fault in turn"
        print(why + "\n" * bool(why) + f"{'not ok' if why else 'ok'} {number} - {promise}: a clean error, and plain activation works", flush=True)


main()
