"""power.py BOOT EXPECTED: checks what the last boot left; unless EXPECTED is 0, goes on writing until the machine is killed.

Three processes write raw ranges of self-describing sectors, a fourth one files. Which write is the nth follows from n, so it is
enough to note, on /dev/vdc, how many were acknowledged as durable. With each boot more sectors are bad. What was on these
before is lost, as on any drive, if it is not written again: it may be an error, but never anything older.
"""

import os
import random
import struct
import subprocess
import sys
import time

import dm

MAIN = 32 * 2048
ZONE, ZONES = 4 * 2048, 3  # for raw writes
FS = ZONE * ZONES
GROUP = 3  # writes until a durable one
FILES = 23
NOTE_FILES, NOTE_LEVEL, NOTE_STARTS = 8, 63, 64  # sectors of /dev/vdc; 0..2: each zone's writes

notes = os.open("/dev/vdc", os.O_RDWR | os.O_DIRECT)


def note(at, *values):
    buffer = dm.memory(512)
    buffer[:8 * len(values)] = struct.pack(f"<{len(values)}Q", *values)
    os.pwrite(notes, buffer, at * 512)


def noted(at, count=1):
    buffer = dm.memory(512)
    os.preadv(notes, [buffer], at * 512)
    return struct.unpack_from(f"<{count}Q", buffer)


def bad_end(level):
    """Each zone is bad from its sector 13 to before this one."""
    return min(13 + 511 + 67 * level, ZONE)


def bad_since(sector):
    """From which level on a sector of a zone is bad, None: never."""
    if sector < 13:
        return None
    return max(0, -(-(sector + 1 - 13 - 511) // 67))


def main_table(level):
    bad = [(z * ZONE + 13, z * ZONE + bad_end(level)) for z in range(ZONES)]
    bad += [(FS + 3001, FS + 3100), (FS + 9000, FS + 9480), (FS + 17001, FS + 17003), (FS + 24000, FS + 24999)]
    return dm.holes("/dev/vda", 0, MAIN, bad)


def places(zone):
    """Ranges (first, end) of a zone, in the order in which they are written again and again."""
    chance, at, found = random.Random(zone), 0, []
    while at < ZONE:
        end = min(at + chance.choice((1, 3, 8, 8, 11, 16, 24, 40)), ZONE)
        found.append((at, end))
        at = end
    chance.shuffle(found)
    return found


# ---- The writers


def write_zone(device, zone):
    fd = os.open(device, os.O_RDWR | os.O_DIRECT)
    buffer = dm.memory(40 * 512)
    ranges, n = places(zone), noted(zone)[0]
    while True:
        first, end = ranges[n % len(ranges)]
        base = zone * ZONE
        data = b"".join(dm.sector(base + s, n + 1) for s in range(first, end))
        buffer[:len(data)] = data
        durable = n % GROUP == GROUP - 1
        flags = os.RWF_DSYNC if durable and n % 2 else 0
        written = os.pwritev(fd, [memoryview(buffer)[:len(data)]], (base + first) * 512, flags)
        assert written == len(data), f"write {n}: {written} of {len(data)} bytes"
        if durable and not flags:
            os.fdatasync(fd)
        n += 1
        if durable:
            note(zone, n)


def write_files():
    directory = os.open("/mnt", os.O_RDONLY)
    n = noted(NOTE_FILES)[0]
    while True:
        name = f"file{n % FILES}"
        with open("/mnt/new", "wb") as file:
            file.write(dm.file_data(name, n))
            file.flush()
            os.fsync(file.fileno())
        os.rename("/mnt/new", f"/mnt/{name}")
        os.fsync(directory)
        n += 1
        note(NOTE_FILES, n)


def process(work, *args):
    if os.fork() == 0:
        try:
            work(*args)
        except BaseException as error:  # pylint: disable=broad-exception-caught  # it is this boot's result
            print(f"not ok 2 - writing goes on: {work.__name__} {args}: {error!r}", flush=True)
        os._exit(1)


def kill_after(seconds):
    time.sleep(seconds)
    with open("/proc/sysrq-trigger", "w", encoding="ascii") as trigger:
        trigger.write("b")


# ---- The check


def check_zone(device, zone, starts):
    """What is wrong: a list of sentences."""
    wrong, done, base, lost = [], noted(zone)[0], zone * ZONE, 0
    fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
    buffer = memoryview(dm.memory(40 * 512))
    ranges = places(zone)
    for index, (first, end) in enumerate(ranges):
        last = done - 1 - (done - 1 - index) % len(ranges)  # -1 or less: none
        may = [max(last + 1, 0)] + [n + 1 for n in range(done, done + GROUP) if n % len(ranges) == index]
        view = buffer[:(end - first) * 512]
        try:
            os.preadv(fd, [view], (base + first) * 512)
            failed = set()
        except OSError:
            failed = set()
            for s in range(first, end):
                try:
                    os.preadv(fd, [view[(s - first) * 512:(s - first + 1) * 512]], (base + s) * 512)
                except OSError:
                    failed.add(s)
        for s in range(first, end):
            if s in failed:
                since = bad_since(s)
                if since is None or since >= len(starts) or last >= starts[since][zone]:
                    wrong.append(f"sector {base + s} cannot be read, write {last} was acknowledged")
                lost += 1
                continue
            data = bytes(view[(s - first) * 512:(s - first + 1) * 512])
            if dm.version_of(base + s, data) not in may:
                wrong.append(f"sector {base + s} is {dm.version_of(base + s, data)}, may be {may}: {data[:24]!r}")
    os.close(fd)
    return wrong


def check_files(device):
    wrong, done = [], noted(NOTE_FILES)[0]
    dm.mount(device, "/mnt")
    for index in range(min(FILES, done)):
        name = f"file{index}"
        last = done - 1 - (done - 1 - index) % FILES
        with open(f"/mnt/{name}", "rb") as file:
            data = file.read()
        if data not in [dm.file_data(name, n) for n in (last, last + FILES)[:2 if last + FILES == done else 1]]:
            wrong.append(f"{name} is not version {last}: {data[:20]!r}, {len(data)} bytes")
    dm.umount("/mnt")
    fsck = subprocess.run(["e2fsck", "-fn", device], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if fsck.returncode:
        wrong.append(f"e2fsck: {fsck.stdout[-500:]}")
    return wrong


def check(remap, files, starts):
    wrong = []
    found = dm.message("r", "check")
    words = found.split()
    if [words[2], words[4], words[6]] != ["0", "0", "0"]:
        wrong.append(f"check: {found}")
    entries = dm.message("r", "list 0 100000").splitlines()
    slots = [line.split()[2] for line in entries]
    if len(set(slots)) != len(slots):
        wrong.append("two entries share a slot")
    for zone in range(ZONES):
        wrong += check_zone(remap, zone, starts)
    wrong += check_files(files)
    if dm.status("r")[0] != "active":
        wrong.append(f"the mode is {dm.status('r')[0]}")
    return wrong, len(entries)


def main():
    boot, last = int(sys.argv[1]), sys.argv[2] == "0"
    if last:
        print("KTAP version 1\n1..2")
    level = noted(NOTE_LEVEL)[0]
    starts = [(0,) * ZONES] + [noted(NOTE_STARTS + n, ZONES) for n in range(1, level + 1)]
    main_device = dm.create("main", *main_table(level))
    remap = dm.create("r", f"0 {MAIN} remap {main_device} 0 /dev/vdb 0 2 unit_sectors 8")
    files = dm.create("fs", f"0 {MAIN - FS} linear {remap} {FS}")
    if boot == 1:
        # Blocks of a page: a smaller one is written after the rest of its page is read, which may be bad.
        subprocess.run(["mkfs.ext4", "-qF", "-b", "4096", "-J", "size=4", "-E", "nodiscard,lazy_itable_init=0", files], check=True)
        os.sync()
    wrong, entries = check(remap, files, starts)
    done = sum(noted(z)[0] for z in range(ZONES))
    print("\n".join(f"# {w}" for w in wrong[:20]), end="\n" if wrong else "")
    print(f"{'not ok' if wrong else 'ok'} 1 - boot {boot}: {done} writes and {noted(NOTE_FILES)[0]} files are there;"
          f" {entries} entries" + (f": {len(wrong)} losses" if wrong else ""), flush=True)
    if last:
        dm.remove("fs")
        dm.remove("r")
        dm.remove("main")
        print("ok 2 - all is removed")
        return
    # More is bad from here on, under a device in use.
    note(NOTE_STARTS + level + 1, *(noted(z)[0] for z in range(ZONES)))
    note(NOTE_LEVEL, level + 1)
    dm.load("main", *main_table(level + 1))
    dm.suspend("main")
    dm.resume("main")
    dm.mount(files, "/mnt")
    for zone in range(ZONES):
        process(write_zone, remap, zone)
    process(write_files)
    seconds = random.SystemRandom().uniform(0.1, 3)
    print(f"# boot {boot} ends {seconds:.2f} s after writing began", flush=True)
    kill_after(seconds)


main()
