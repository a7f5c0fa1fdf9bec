"""files.py: for bad sectors at random, `dmremap files` names exactly the files that cannot be read, and tells what else is hit.

    files.py SEED COUNT CASE...

A case is a file system and what it lies on, as xfs or ext4+gpt+crypt. Files are made, and the file system's own tools say of
COUNT sectors of the remap device what is there. Then these go bad and are read once. All files are read, as md5sum reads them,
and those that cannot be are those that the command names.
"""

import hashlib
import json
import mmap
import os
import random
import re
import struct
import subprocess
import sys
from pathlib import Path

REMAP, MOUNT = "/dev/mapper/r", "/mnt"
MIB = {"ext4": 64, "xfs": 304, "vfat": 64, "f2fs": 96}
FILL = {"ext4": 36, "xfs": 100, "vfat": 40, "f2fs": 40}
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-b", "4096"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "vfat": ["mkfs.vfat", "-s", "4"],
    "f2fs": ["mkfs.f2fs", "-q", "-f"],
}
# Nothing is written, and no journal is read, so that the bad sectors stay as they are.
READONLY = {"ext4": "ro,noload", "xfs": "ro,norecovery", "vfat": "ro", "f2fs": "ro"}
MODULES = {"xfs": ["xfs"], "vfat": ["vfat", "nls_cp437", "nls_ascii"], "f2fs": ["f2fs"]}
LVM = 'devices { types = [ "device-mapper", 16 ] } activation { udev_sync = 0 udev_rules = 0 }'
checks = int(os.environ.get("CHECKS", "0"))


def run(*command, check=True):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
                          errors="surrogateescape", check=False)
    if check and done.returncode:
        raise RuntimeError(f"{command}: status {done.returncode}: {done.stdout[-500:]} {done.stderr[-500:]}")
    return done.stdout


def result(promise, problems):
    """One line of KTAP; `problems` are what is wrong."""
    global checks
    checks += 1
    print(f"{'not ok' if problems else 'ok'} {checks} - {promise}")
    for problem in problems[:20]:
        print(f"# {problem!a}")
    sys.stdout.flush()


def spoil(sectors, sign="+"):
    for sector in sectors:
        Path("/sys/kernel/config/nullb/main/badblocks").write_text(f"{sign}{sector}-{sector}", encoding="ascii")


def touch(sectors):
    """Each is read once, and becomes pending."""
    device = os.open(REMAP, os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, 512)
    for sector in sectors:
        try:
            os.preadv(device, [buffer], sector * 512)
        except OSError:
            continue
        raise RuntimeError(f"sector {sector} can be read")
    os.close(device)


class Case:
    """A file system on a remap device."""

    def __init__(self, name, seed):
        self.name = name
        self.fs, *layers = name.split("+")
        self.random = random.Random(f"{name} {seed}")
        self.files = {}  # path: md5
        self.directories = set()
        self.undo = []
        for module in MODULES.get(self.fs, []):
            run("modprobe", module)
        for disk, size in ("main", MIB[self.fs]), ("spare", 8):
            folder = Path(f"/sys/kernel/config/nullb/{disk}")
            folder.mkdir()
            for attribute, value in ("memory_backed", 1), ("blocksize", 512), ("size", size), ("power", 1):
                (folder / attribute).write_text(str(value), encoding="ascii")
        run("dmremap", "open", "r", "/dev/main", "/dev/spare")
        # What the file system is on, and of that (first sector, sectors, where on the remap device).
        self.top, self.segments = REMAP, [(0, MIB[self.fs] * 2048, 0)]
        for layer in layers:
            getattr(self, layer)()

    def end(self):
        run("umount", MOUNT, check=False)
        for undo in reversed(self.undo):
            undo()
        run("dmremap", "close", "r")
        for disk in "main", "spare":
            Path(f"/sys/kernel/config/nullb/{disk}/power").write_text("0", encoding="ascii")
            Path(f"/sys/kernel/config/nullb/{disk}").rmdir()

    # --- What the file system lies on

    def move(self, top, *parts):
        """`top` lies on what was the top: (its first sector, sectors, where on that)."""
        self.top, below = top, self.segments
        self.segments = []
        for first, length, place in parts:
            for start, sectors, target in below:
                begin, end = max(place, start), min(place + length, start + sectors)
                if begin < end:
                    self.segments.append((first + begin - place, end - begin, target + begin - start))

    def lvm(self):
        lvm = ["--config", LVM, "--devices", self.top]
        run("pvcreate", "-qff", "-y", *lvm, self.top)
        run("vgcreate", *lvm, "-s", "1m", "vg", self.top)
        # Two pieces, with something between them.
        for name, size in ("data", 20), ("between", 3):
            run("lvcreate", "-y", "-Wn", "-Zn", *lvm, "-L", f"{size}m", "-n", name, "vg")
        run("lvextend", *lvm, "-l", "+100%FREE", "vg/data")
        self.undo.append(lambda: run("vgchange", "-an", *lvm, "vg"))
        lines = [line.split() for line in run("dmsetup", "table", "vg-data").splitlines()]
        assert len(lines) == 2, lines
        self.move("/dev/mapper/vg-data", *[(int(line[0]), int(line[1]), int(line[4])) for line in lines])

    def gpt(self):
        sectors = int(run("blockdev", "--getsz", self.top))
        subprocess.run(["sfdisk", "-q", self.top], input=f"label: gpt\nstart=2048,size={sectors - 4096}\n", text=True, check=True)
        run("modprobe", "loop")
        loop = run("losetup", "--find", "--show", "--partscan", "--direct-io=on", self.top).strip()
        self.undo.append(lambda: run("losetup", "--detach", loop))
        self.move(f"{loop}p1", (0, sectors - 4096, 2048))

    def crypt(self):
        Path("/run/key").write_text("secret", encoding="ascii")
        run("cryptsetup", "luksFormat", "-q", "--type", "luks1", "--pbkdf-force-iterations", "1000", self.top, "/run/key")
        run("cryptsetup", "open", "--key-file", "/run/key", self.top, "secret")
        self.undo.append(lambda: run("cryptsetup", "close", "secret"))
        offset, size = (int(re.search(rf"^ *{word}: *(\d+)", run("cryptsetup", "status", "secret"), re.M)[1]) for word in ("offset", "size"))
        self.move("/dev/mapper/secret", (0, size, offset))

    def inside(self, sectors):
        """Of those sectors of the remap device that the file system has, by them, its own."""
        return {s: first + s - place for s in sectors for first, length, place in self.segments if place <= s < place + length}

    # --- Files

    def fill(self):
        run(*MAKE[self.fs], self.top)
        run("mount", "-o", "noatime", self.top, MOUNT)
        names = ["plain", "with blank", "ümläut"]
        if self.fs != "vfat":
            names += ["line\nbreak", "\udcff is a byte", "tab\t", "back\\slash"]
        directories, room, number = [Path(MOUNT)], FILL[self.fs] << 20, 0
        while room > 0:
            if number % 40 == 0:
                directories.append(self.random.choice(directories) / f"{self.random.choice(names)} {number}")
                directories[-1].mkdir()
                self.directories.add(str(directories[-1]))
            number += 1
            path = self.random.choice(directories[-8:]) / f"{self.random.choice(names)}.{number}"
            data = self.random.randbytes(self.random.choice([0, 30, 700, 4096, 5000, 70_000, 300_000]))
            room -= len(data)
            with open(path, "wb") as file:
                if self.fs != "vfat" and number % 11 == 0:
                    file.truncate(1 << 16)  # a hole
                    file.seek(1 << 16)
                    file.write(data)
                    data = bytes(1 << 16) + data
                else:
                    file.write(data)
            self.files[str(path)] = hashlib.md5(data).hexdigest()
            if self.fs != "vfat" and number % 13 == 0:
                link = self.random.choice(directories) / f"link {number}"
                os.link(path, link)
                self.files[str(link)] = self.files[str(path)]
            if number % 5 == 0:
                # So that others lie in the gaps.
                gone = self.random.choice(list(self.files))
                room += os.stat(gone).st_size
                os.unlink(gone)
                del self.files[gone]
        run("umount", MOUNT)

    def mount(self):
        """As after a reboot."""
        run("umount", MOUNT, check=False)
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
        run("mount", "-t", self.fs, "-o", READONLY[self.fs], self.top, MOUNT)

    def cannot_be_read(self):
        """The files that md5sum fails for. The others have what was written."""
        failed = set()
        for path, md5 in self.files.items():
            try:
                with open(path, "rb") as file:
                    assert hashlib.md5(file.read()).hexdigest() == md5, f"{path!r} has something else"
            except OSError:
                failed.add(path)
        return failed

    # --- The test

    def choose(self, count):
        """Bad sectors with which the file system can be mounted, and what is there."""
        for _ in range(20):
            sectors = sorted(self.random.sample(range(MIB[self.fs] * 2048), count))
            own = self.inside(sectors)
            kinds = globals()[f"kinds_{self.fs}"](self.top, list(own.values()))
            spoil(sectors)
            touch(sectors)
            try:
                self.mount()
                return sectors, {s: kinds[mine] for s, mine in own.items()}
            except RuntimeError as error:
                print(f"# other sectors: {error!a}")
            spoil(sectors, "-")
            run("dmremap", "forget", "r", "0", f"{MIB[self.fs]}M")
        raise RuntimeError("cannot be mounted with bad sectors")

    def test(self, count):
        self.fill()
        sectors, kinds = self.choose(count)
        report = json.loads(run("dmremap", "files", "r", "--json", check=False))
        listed = set(run("dmremap", "files", "r", "-z", check=False).split("\0")) - {""}
        self.mount()
        failed = self.cannot_be_read()
        print(f"# {self.name}: {len(failed)} of {len(self.files)} files cannot be read; "
              + ", ".join(f"{list(kinds.values()).count(kind)} {kind}" for kind in sorted(set(kinds.values()))))
        problems = [] if failed else ["no file is hit: nothing was tested"]
        # Nobody gets through a directory that cannot be read.
        blocked = {p for hit in report["hits"] if hit["kind"] == "directory" for p in hit["paths"]}
        blocked |= {u["path"] for u in report["unreachable"]} - set(self.files)
        # FAT does not tell which it is, and leaves out what is in it.
        anonymous = self.fs == "vfat" and "directory" in kinds.values()
        is_behind = lambda path: anonymous or any(path.startswith(p.rstrip("/") + "/") for p in blocked)
        problems += [f"not named: {path}" for path in sorted(failed - listed) if not is_behind(path)]
        problems += [f"can be read: {path}" for path in sorted(listed & set(self.files) - failed)]
        problems += [f"no file or directory: {path}" for path in sorted(listed - set(self.files) - self.directories)]
        if anonymous and not report["notes"]:
            problems.append("that a directory cannot be read is not said")
        result(f"{self.name}: exactly the files that cannot be read are named", problems)
        result(f"{self.name}: what is no file's data is told apart", self.compare(report, sectors, kinds))
        if self.name == "ext4":
            self.unmounted(sectors, kinds, failed)

    def compare(self, report, sectors, kinds, mounted=True):
        """What is wrong with the kinds of the hits."""
        problems, seen = [], {}
        for hit in report["hits"]:
            if hit["state"] != "pending":
                problems.append(f"state: {hit}")
            for sector in range(hit["start"], hit["start"] + hit["count"]):
                if sector in seen:
                    problems.append(f"twice: {hit}")
                seen[sector] = hit
        problems += [f"sector {s} is missing" for s in set(sectors) - set(seen)]
        problems += [f"sector {s} is not bad" for s in set(seen) - set(sectors)]
        allowed = {"file": {"file", "unused"}, "metadata": {"metadata", "inode"}, "directory": {"directory"},
                   "map": {"inode", "metadata"}, "used": {"file", "unused", "directory"},
                   "node": {"metadata", "file", "directory"}}  # it may hold a small file, or a small directory
        if report["unreachable"] or report["notes"] and not mounted or {"directory", "map"} & set(kinds.values()):
            # Not all of the tree could be looked at.
            for kinds_of in allowed.values():
                kinds_of.add("unknown")
        if "metadata" in kinds.values():
            # It may be what tells free space apart.
            seen = {s: hit for s, hit in seen.items() if not (hit["kind"] == "unknown" and "cannot be read" in hit["text"])}
        for sector, hit in seen.items():
            kind = kinds.get(sector)
            if kind is None:
                # Between what is on the device: headers, gaps.
                wrong = hit["kind"] not in ("metadata", "unknown", "free")
            else:
                wrong = hit["kind"] not in allowed.get(kind, {kind})
            if wrong:
                problems.append(f"sector {sector} is {kind}: {hit}")
        return problems

    def unmounted(self, sectors, kinds, failed):
        """The same by debugfs."""
        run("umount", MOUNT)
        report = json.loads(run("dmremap", "files", "r", "--json", check=False))
        listed = set(run("dmremap", "files", "r", "-z", check=False).split("\0")) - {""}
        # Nobody gets through a directory that cannot be read, or whose inode cannot be.
        blocked = {p for hit in report["hits"] if hit["kind"] in ("directory", "inode") for p in hit["paths"]}
        here = {path.removeprefix(MOUNT) for path in failed}
        is_behind = lambda path: any(path.startswith(p.rstrip("/") + "/") for p in blocked)
        problems = [f"not named: {p}" for p in sorted(here - listed) if not is_behind(p)]
        directories = {path.removeprefix(MOUNT) for path in self.directories}
        problems += [f"can be read: {p}" for p in sorted(listed - here - directories)]
        problems += self.compare(report, sectors, kinds, mounted=False)
        result(f"{self.name}, not mounted: the same", problems)


# --- What the file system's own tools say of sectors of its device


def kinds_ext4(device, sectors):
    blocks = sorted({s // 8 for s in sectors})
    said = run("debugfs", "-R", "icheck " + " ".join(map(str, blocks)), device)
    owner = {int(b): int(i) for b, i in re.findall(r"^(\d+)\t(\d+)$", said, re.M)}
    Path("/run/commands").write_text("".join(f"testb {b}\n" for b in blocks), encoding="ascii")
    said = run("debugfs", "-f", "/run/commands", device)
    used = {int(b): word == "marked" for b, word in re.findall(r"^Block (\d+) (marked|not)", said, re.M)}
    words, maps = {"directory": "directory", "regular": "file"}, set()
    kinds = {}
    for inode in set(owner.values()):
        said = run("debugfs", "-R", f"stat <{inode}>", device)
        kinds[inode] = words.get(re.search(r"Type: (\w+)", said)[1], "metadata")
        maps |= {int(block) for block in re.findall(r"\((?:ETB\d+|[DT]?IND)\):(\d+)", said)}
    kinds |= {7: "metadata", 8: "journal"}

    def kind(block):
        if block not in owner:
            return "metadata" if used[block] else "free"
        return "map" if block in maps and owner[block] > 10 else kinds[owner[block]]

    return {s: kind(s // 8) for s in sectors}


def kinds_xfs(device, sectors):
    commands = ["-c", "blockget -n"]
    for s in sectors:
        commands += ["-c", f"daddr {s}", "-c", "blockuse"]
    said = re.findall(r"^block \d+ \(\d+/\d+\) type (\w+)", run("xfs_db", "-r", *commands, device), re.M)
    assert len(said) == len(sectors), said
    words = {"free1": "free", "free2": "free", "log": "journal", "dir": "directory", "data": "file"}
    return {s: words.get(word, "metadata") for s, word in zip(sectors, said)}


def kinds_vfat(device, sectors):
    with open(device, "rb") as file:
        boot = file.read(512)
        per, reserved, fats, root = struct.unpack_from("<BHBH", boot, 13)
        length = struct.unpack_from("<H", boot, 22)[0]
        assert length and root, "not FAT16"
        file.seek(reserved * 512)
        entries = struct.unpack(f"<{length * 256}H", file.read(length * 512))
        tables = reserved + fats * length
        data = tables + root // 16
        # The clusters of all directories.
        directories = set()
        file.seek(tables * 512)
        ahead = [file.read(root * 32)]
        while ahead:
            content = ahead.pop()
            for at in range(0, len(content), 32):
                name, attributes, cluster = content[at], content[at + 11], struct.unpack_from("<H", content, at + 26)[0]
                if name == 0:
                    break
                # Deleted, `.` and `..`; a label or part of a long name; a file.
                if name in (0xE5, 0x2E) or attributes & 0x08 or not attributes & 0x10:
                    continue
                inside = b""
                while 2 <= cluster < 0xFFF0:
                    directories.add(cluster)
                    file.seek((data + (cluster - 2) * per) * 512)
                    inside += file.read(per * 512)
                    cluster = entries[cluster]
                ahead.append(inside)
    kinds = {}
    for s in sectors:
        cluster = (s - data) // per + 2
        if s < data:
            kinds[s] = "metadata" if s < tables else "directory"
        elif cluster < len(entries) and entries[cluster]:
            kinds[s] = "directory" if cluster in directories else "file"
        else:
            kinds[s] = "free"
    return kinds


def kinds_f2fs(device, sectors):
    # It tells what a block that is not valid any more was.
    words = {"blkaddr is not valid": "free", "Obsolete block": "free", "Node block": "node", "Data block": "used"}
    kinds = {}
    for s in sectors:
        said = run("dump.f2fs", "-b", str(s // 8), device, check=False)
        assert " Area" in said, said
        kinds[s] = next((kind for word, kind in words.items() if word in said), "metadata")
    return kinds


def main():
    seed, count, cases = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    print(f"# seed {seed}", flush=True)
    for name in cases:
        case = Case(name, seed)
        case.test(count)
        case.end()


if __name__ == "__main__":
    main()
