#!/usr/bin/env python3
"""Lists the entries of a dm-remap spare, in the form of the kernel's message `list`.

    tests/reader.py [--all] IMAGE [START_SECTOR [SECTORS]]

With --all, each line also has the mask of the lost sectors, and a line `bad SLOT LOST` follows for each bad slot.
Written from docs/format.md and nothing else, to show that it says enough. Exit status 1, with a reason, for
an image that must be refused; 3 for a blank one.
"""

import struct
import sys

BLOCK = 4096
RECORDS = 126


def crc_table():
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
        yield n


CRC = list(crc_table())


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


class Refused(Exception):
    pass


class Damaged(Exception):
    """This copy of a block cannot be used; another may do."""


class Header:
    def __init__(self, block, magic):
        self.magic, crc, self.version, self.uuid, self.number, self.generation = struct.unpack_from("<8sII16sQQ", block)
        if self.magic != magic:
            raise Damaged("wrong magic")
        if crc != crc32c(block[:8] + bytes(4) + block[12:]):
            raise Damaged("wrong checksum")


class Superblock(Header):
    def __init__(self, block, copy):
        super().__init__(block, b"RMAPSUPR")
        if self.version != 1:
            raise Refused(f"format version {self.version}")
        incompat, self.ro_compat, _ = struct.unpack_from("<QQQ", block, 64)
        if incompat:
            raise Refused("unknown incompatible feature")
        if self.number != copy:
            raise Damaged("not the copy that belongs here")
        if self.generation == 2**64 - 1:
            raise Damaged("impossible generation")
        (self.unit, self.copies, self.slots, self.blocks, self.data, self.spare, self.main,
         *areas) = struct.unpack_from("<IIQQQQQ4Q", block, 88)
        if self.unit not in (1, 2, 4, 8, 16, 32, 64) or self.copies not in (2, 3, 4):
            raise Damaged("impossible unit or number of copies")
        self.areas = areas[:self.copies]
        last = self.spare // 8 - 1
        ordered = sorted(self.areas)
        if (not 0 < self.main < 2**63 or self.spare % 8 or self.spare >= 2**63 or not 0 < self.blocks <= 2**26
                or not 0 < self.slots <= min(2**32 - 1, self.blocks * RECORDS)
                or self.data < 8 or self.data % self.unit or self.data + self.slots * self.unit > last * 8
                or ordered[0] < 1 or ordered[-1] + self.blocks > last
                or any(b < a + self.blocks for a, b in zip(ordered, ordered[1:]))):
            raise Damaged("impossible layout")
        partition, disk, kind, length, start = struct.unpack_from("<40s16sIIQ", block, 248)
        text = partition.rstrip(b"\0")
        if len(text) == 40 or not all(0x20 < byte < 0x7F and not 0x41 <= byte <= 0x5A for byte in text):
            raise Damaged("impossible UUID of main's partition")
        known = kind in (1, 2, 3) and 0 < length <= 16 and any(disk[:length]) and not any(disk[length:])
        if not known and (kind or length or start or any(disk)):
            raise Damaged("impossible number of main's disk")
        self.identity = text.decode(), disk[:length].hex(), start


def blank_or_refused(block):
    if not any(block):
        return
    try:
        header = Header(block, b"RMAPTABL")
        records = [struct.unpack_from("<16xI", block, 64 + 32 * index) for index in range(RECORDS)]
        if header.version == 1 and header.generation == 1 and not any(state for state, in records):
            return
    except Damaged:
        pass
    raise Refused("neither blank nor a spare")


def superblock(read, blocks):
    found, why, blank = [], [], []
    end = blocks
    for copy in 0, 1:
        block = read(end - 1 if copy else 0)
        blank.append(not any(block))
        try:
            found.append(Superblock(block, copy))
            if not copy:
                end = found[0].spare // 8
                if end > blocks:
                    raise Refused("the region is shorter than when it was formatted")
        except Damaged as error:
            why.append(f"superblock {copy}: {error}")
    if all(blank):
        for number in {*range(min(blocks, 256)), *range(max(blocks - 256, 0), blocks)}:
            blank_or_refused(read(number))
        sys.exit(3)
    if not found:
        raise Refused("; ".join(why))
    if len({s.uuid for s in found}) > 1:
        raise Refused("superblocks of different spares")
    best = max(found, key=lambda s: s.generation)  # the first of those
    if best.spare // 8 != end:
        raise Refused("the region has another length")
    return best


def table(read, s):
    """Yields slot and record of every slot that is not free."""
    in_use, number = min(s.blocks, 4), -1
    while (number := number + 1) < in_use:
        best = None
        for area in s.areas:
            block = read(area + number)
            try:
                header = Header(block, b"RMAPTABL")
            except Damaged:
                continue
            good = header.version == 1 and header.uuid == s.uuid and header.number == number
            if good and header.generation < 2**64 - 1 and (best is None or header.generation > best[0]):
                best = header.generation, block
        if best is None:
            raise Refused(f"table block {number}: no valid replica")
        more, = struct.unpack_from("<Q", best[1], 48)
        if number + 1 == in_use and in_use < more <= s.blocks:
            in_use = more
        elif more:
            raise Refused(f"table block {number}: {more} blocks in use")
        for index in range(RECORDS):
            record = struct.unpack_from("<QQIIQ", best[1], 64 + 32 * index)
            if record[2]:
                yield number, index, record


class Slot:
    """What a record says of its slot."""

    def __init__(self, number, mask, state):
        self.number, self.mask, self.state = number, mask, state


def settle(unit, slots):
    """The entry of a unit; and its bad slots, all of its slots being given."""
    entries = [slot for slot in slots if slot.state != 2]
    bad = [slot for slot in slots if slot.state == 2]
    if len(entries) == 2 and {slot.state for slot in entries} == {1, 3}:
        old, entry = sorted(entries, key=lambda slot: slot.state)
        bad.append(Slot(old.number, old.mask & ~entry.mask, 2))
    elif len(entries) > 1:
        raise Refused(f"unit {unit}: slots {[slot.number for slot in entries]}")
    else:
        entry = entries[0] if entries else None
    lost = 0
    for slot in bad:
        if slot.mask and not entry:
            raise Refused(f"unit {unit}: lost sectors and no entry")
        mask = slot.mask and slot.mask & ~entry.mask
        if lost & mask:
            raise Refused(f"unit {unit}: a sector lost twice")
        lost |= mask
    return entry, bad, lost


def lines(read, s, everything):
    units = {}
    for number, index, (unit, mask, state, _, _) in table(read, s):
        slot = number * RECORDS + index
        start = s.data + slot * s.unit
        have = min(s.unit, s.main - unit * s.unit)
        if (state > 3 or slot >= s.slots or have <= 0 or mask >> have
                or any(start < 8 * (a + s.blocks) and 8 * a < start + s.unit for a in s.areas)):
            raise Refused(f"table block {number}, record {index}: impossible")
        units.setdefault(unit, []).append(Slot(slot, mask, state))
    bad = {}
    for unit, (entry, failed, lost) in [(unit, settle(unit, slots)) for unit, slots in sorted(units.items())]:
        bad |= {slot.number: slot.mask for slot in failed}
        if entry:
            whole = (1 << min(s.unit, s.main - unit * s.unit)) - 1
            state = "pending" if not entry.mask else "relocated" if entry.mask == whole else "partial"
            line = f"{unit * s.unit} {state} {entry.number} {entry.mask:x}"
            yield f"{line} {lost:x}" if everything else line
    yield from (f"bad {slot} {mask:x}" for slot, mask in sorted(bad.items()) if everything)


def main():
    everything = sys.argv[1] == "--all"
    path, *region = sys.argv[1 + everything:]
    start = int(region[0]) if region else 0
    with open(path, "rb") as image:
        sectors = int(region[1]) if region[1:] else image.seek(0, 2) // 512 - start

        def read(number):
            image.seek(start * 512 + number * BLOCK)
            return image.read(BLOCK).ljust(BLOCK, b"\0")

        try:
            for line in lines(read, superblock(read, sectors // 8), everything):
                print(line)
        except Refused as why:
            sys.exit(f"{path}: {why}")


if __name__ == "__main__":
    main()
