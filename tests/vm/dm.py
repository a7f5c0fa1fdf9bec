"""For scenarios in Python: device-mapper's ioctls without a process for each, AIO, self-describing sectors."""

import ctypes
import errno
import hashlib
import mmap
import os
import random
import struct
import time
import zlib

SECTOR = 512
_SIZE = 312
_libc = ctypes.CDLL(None, use_errno=True)


def _call(*args):
    result = _libc.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in args))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


# --- Device-mapper (include/uapi/linux/dm-ioctl.h)

_CREATE, _REMOVE, _SUSPEND, _INFO, _LOAD, _CLEAR, _STATUS, _MESSAGE = 3, 4, 6, 7, 9, 10, 12, 14
ACTIVE, DEFERRED = 1 << 5, 1 << 17  # among the flags of info(): there is a table in force; the last user will remove the device
_READONLY, _SUSPENDED, _PERSISTENT, _NOLOCKFS, _NOFLUSH, _DATA_OUT = 1, 2, 1 << 3, 1 << 10, 1 << 11, 1 << 16
_control = os.open("/dev/mapper/control", os.O_RDWR)


def _ioctl(command, name, flags=0, data=b"", count=0, room=0, dev=0):
    """The device's number, the flags, what came back, how often the device is open."""
    size = _SIZE + max(len(data), room)
    head = struct.pack("=3I4Ii2IQ", 4, 0, 0, size, _SIZE, count, 0, flags, 0, 0, dev)
    buffer = bytearray(head + name.encode().ljust(128, b"\0") + bytes(136) + data)
    buffer += bytes(size - len(buffer))
    # Not fcntl.ioctl(): with more than 1 KiB that stops all threads of Python until it returns.
    _call(16, _control, 3 << 30 | _SIZE << 16 | 0xFD << 8 | command, ctypes.byref(ctypes.c_char.from_buffer(buffer)))
    start, _, is_open, flags, _, _, dev = struct.unpack_from("=6IQ", buffer, 16)
    return dev, flags, bytes(buffer[start:]), is_open


def load(name, *lines, readonly=False):
    """Loads a table of lines as dmsetup takes them."""
    data = b""
    for line in lines:
        start, length, kind, *rest = line.split(None, 3)
        args = (rest[0] if rest else "").encode() + b"\0"
        args += bytes(-len(args) % 8)
        data += struct.pack("=QQiI16s", int(start), int(length), 0, 40 + len(args), kind.encode()) + args
    _ioctl(_LOAD, name, _READONLY if readonly else 0, data, len(lines))


def clear(name):
    """Forgets the table that was loaded and not resumed."""
    _ioctl(_CLEAR, name)


def suspend(name, noflush=False, nolockfs=False):
    _ioctl(_SUSPEND, name, _SUSPENDED | noflush * _NOFLUSH | nolockfs * _NOLOCKFS)


def resume(name, noflush=False, nolockfs=False):
    """The flags say how the device is suspended for a new table, if it is not yet."""
    _ioctl(_SUSPEND, name, noflush * _NOFLUSH | nolockfs * _NOLOCKFS)


def create_empty(name, minor=None):
    """Creates a device without a table and returns its node, /dev/dm-N; N is `minor`, under 256, if given."""
    dev = _ioctl(_CREATE, name, dev=minor, flags=_PERSISTENT)[0] if minor else _ioctl(_CREATE, name)[0]
    return f"/dev/dm-{os.minor(dev)}"


def info(name):
    """How often a device is open, and dm's flags."""
    _, flags, _, is_open = _ioctl(_INFO, name)
    return {"open": is_open, "flags": flags}


def create(name, *lines, readonly=False):
    """Creates an active device and returns its node, /dev/dm-N."""
    node = create_empty(name)
    try:
        load(name, *lines, readonly=readonly)
        resume(name)
    except OSError:
        _ioctl(_REMOVE, name)
        raise
    return node


def reload(name, *lines, readonly=False):
    """Gives a device another table. This takes a tenth of the time that `remove` and `create` take."""
    suspend(name)
    load(name, *lines, readonly=readonly)
    resume(name)


def remove(name, deferred=False, patient=True):
    """`patient`: waits up to 10 s for the last user to let go: AIO reports the end of a write before it does.
    `deferred`: does not wait, it is the last user who removes the device."""
    for last in (*[not patient] * 100, True):
        try:
            _ioctl(_REMOVE, name, deferred * DEFERRED)
            return
        except OSError as error:
            if error.errno != errno.EBUSY or last:
                raise
        time.sleep(0.1)


def message(name, text):
    """What the message's result is."""
    data = struct.pack("=Q", 0) + text.encode() + b"\0"
    _, flags, result, _ = _ioctl(_MESSAGE, name, 0, data, 0, 1 << 16)
    return result.split(b"\0", 1)[0].decode() if flags & _DATA_OUT else ""


def status(name):
    """The words of the first target's status."""
    result = _ioctl(_STATUS, name, 0, b"", 0, 1 << 14)[2]
    return result[40:].split(b"\0")[0].decode().split()


def holes(device, start, length, bad):
    """Lines of a linear device over `length` sectors of `device` from `start`, whose ranges `bad` (first, end) fail."""
    lines, at = [], 0
    for first, end in [*sorted(bad), (length, length)]:
        if first > at:
            lines.append(f"{at} {first - at} linear {device} {start + at}")
        if end > first:
            lines.append(f"{first} {end - first} error")
        at = end
    return lines


# --- Memory that O_DIRECT takes, and reads into it


def memory(size):
    return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def size_of(device):
    with open(device, "rb") as file:
        return file.seek(0, os.SEEK_END)


def read_all(device):
    """All of a device, past the page cache."""
    size = size_of(device)
    buffer = memory(size)
    view = memoryview(buffer)
    fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
    for at in range(0, size, 1 << 20):
        os.preadv(fd, [view[at:min(at + (1 << 20), size)]], at)
    os.close(fd)
    return buffer


# --- AIO (include/uapi/linux/aio_abi.h): many writes on the way, and FUA writes without the flush that pwrite() adds


class Aio:
    """Writes in flight to one file descriptor."""

    RWF_DSYNC = 2

    def __init__(self, fd, depth):
        self.fd, self.depth, self.flying = fd, depth, {}
        context = ctypes.c_ulong(0)
        _call(206, depth, ctypes.byref(context))
        self.context, self.last = context.value, 0

    def submit(self, view, offset, fua, tag):
        self.submit_all([(view, offset, fua, tag)])

    def submit_all(self, writes):
        """Several as `submit` takes them, by one call."""
        pointers = (ctypes.c_void_p * len(writes))()
        for n, (view, offset, fua, tag) in enumerate(writes):
            address = ctypes.addressof(ctypes.c_char.from_buffer(view))
            self.last += 1
            iocb = ctypes.create_string_buffer(struct.pack(
                "=QIIHhIQQqQII", self.last, 0, self.RWF_DSYNC if fua else 0, 1, 0, self.fd, address, len(view), offset, 0, 0, 0))
            pointers[n] = ctypes.addressof(iocb)
            self.flying[self.last] = (tag, view, iocb)
        _call(209, self.context, len(writes), pointers)

    def reap(self, least=1):
        """Waits for `least` writes: [(tag, result)...]."""
        events = ctypes.create_string_buffer(32 * self.depth)
        while True:
            try:
                count = _call(208, self.context, least, self.depth, events, 0)
                break
            except OSError as error:
                if error.errno != errno.EINTR:
                    raise
        done = []
        for n in range(count):
            data, _, result, _ = struct.unpack_from("=QQqq", events, 32 * n)
            done.append((self.flying.pop(data)[0], result))
        return done


# --- Sectors that say what they are: magic, sector, version, digest of these over and over, crc32


_NAME = struct.Struct("<8sQQ")


def sector(number, version):
    """What version `version` of sector `number` is; version 0 is zeroes, as of a new disk."""
    if not version:
        return bytes(SECTOR)
    name = _NAME.pack(b"dmrtests", number, version)
    data = name + (hashlib.blake2b(name).digest() * 8)[:SECTOR - len(name) - 4]
    return data + struct.pack("<I", zlib.crc32(data))


def version_of(number, data):
    """The version of sector `number` that `data` is, or None if it is none: another sector's, or torn, or garbage."""
    if data == bytes(SECTOR):
        return 0
    magic, place, version = _NAME.unpack_from(data)
    crc, = struct.unpack_from("<I", data, SECTOR - 4)
    # To make the sector again and compare would take ten times as long.
    return version if (magic, place) == (b"dmrtests", number) and version and crc == zlib.crc32(data[:-4]) else None


def file_data(name, version):
    """The content of a file: the same for the same name and version, of some length up to 20 KiB."""
    chance = random.Random(f"{name}.{version}")
    return f"{name} {version}\n".encode() + chance.randbytes(chance.choice((100, 1000, 3000, 9000, 20000)))


# --- Mounting


def mount(device, where, kind="ext4"):
    if _libc.mount(device.encode(), where.encode(), kind.encode(), ctypes.c_ulong(0), None):
        raise OSError(ctypes.get_errno(), f"mount {device}: {os.strerror(ctypes.get_errno())}")


def umount(where):
    if _libc.umount2(where.encode(), 0):
        raise OSError(ctypes.get_errno(), f"umount {where}: {os.strerror(ctypes.get_errno())}")
