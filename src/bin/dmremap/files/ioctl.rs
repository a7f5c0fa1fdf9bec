// SPDX-License-Identifier: GPL-2.0

//! What file systems in use tell of where things lie on their device: ioctls that no crate we have knows. All places and
//! lengths are in bytes. Every file that is given to them is a regular file or a directory.

use rustix::io::{Errno, Result};
use rustix::ioctl::{ioctl, opcode, Getter, Opcode, Updater};
use std::ops::Range;
use std::os::fd::AsFd;

// See <linux/fs.h>, <linux/fiemap.h>, <linux/fsmap.h>, and xfs_fs.h of XFS.
const FIBMAP: Opcode = opcode::none(0, 1);
const FIGETBSZ: Opcode = opcode::none(0, 2);
const FIEMAP: Opcode = opcode::read_write::<FiemapHead>(b'f', 11);
const GETFSMAP: Opcode = opcode::read_write::<FsmapHead>(b'X', 59);
const FSGETXATTR: Opcode = opcode::read::<Attributes>(b'X', 31);
const XFS_GEOMETRY: Opcode = opcode::read::<XfsGeometry>(b'X', 126);

/// Length of the blocks that the file system reads and writes.
pub(super) fn block_size(file: impl AsFd) -> Result<u64> {
    let mut size = 0_i32;
    // SAFETY: FIGETBSZ writes an int, and `size` is one.
    let get = unsafe { Updater::<FIGETBSZ, i32>::new(&mut size) };
    // SAFETY: The VFS answers FIGETBSZ for files and directories, and reads and writes nothing but `size`.
    unsafe { ioctl(file, get) }?;
    u64::try_from(size)
        .ok()
        .filter(|size| *size > 0)
        .ok_or(Errno::INVAL)
}

/// `struct fsxattr`: flags, and what is of no use here.
#[repr(C)]
struct Attributes {
    flags: u32,
    others: [u32; 4],
    padding: [u8; 8],
}

/// Whether a file's data lies on the realtime device of XFS.
pub(super) fn is_realtime(file: impl AsFd) -> Result<bool> {
    // SAFETY: FS_IOC_FSGETXATTR writes a struct fsxattr, of which `Attributes` has the size and the fields.
    let get = unsafe { Getter::<FSGETXATTR, Attributes>::new() };
    // SAFETY: The VFS answers it for files and directories, and writes nothing else.
    let attributes = unsafe { ioctl(file, get) }?;
    Ok(attributes.flags & 1 != 0)
}

/// The block of the device that holds block `block` of a file; 0: none does.
pub(super) fn fibmap(file: impl AsFd, block: u32) -> Result<u32> {
    let mut place = block;
    // SAFETY: FIBMAP reads and writes an int, which has the size of `place`, and any bits are a u32.
    let get = unsafe { Updater::<FIBMAP, u32>::new(&mut place) };
    // SAFETY: The VFS answers FIBMAP for files, and reads and writes nothing but `place`.
    unsafe { ioctl(file, get) }?;
    Ok(place)
}

/// A part of a file.
#[derive(Clone, Debug)]
pub(super) struct Extent {
    /// Where in the file it begins.
    pub(super) offset: u64,
    /// Where on the device it lies.
    pub(super) device: Range<u64>,
    pub(super) flags: u32,
}

/// There is nowhere on the device where it lies, or not yet.
pub(super) const UNKNOWN: u32 = 0x2;
/// It is compressed or the like: bytes of the device are not bytes of the file.
pub(super) const ENCODED: u32 = 0x8;
/// It lies in a block with other things.
pub(super) const NOT_ALIGNED: u32 = 0x100;
/// Its place is there, and nothing is in it.
pub(super) const UNWRITTEN: u32 = 0x800;
const LAST: u32 = 0x1;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    reserved_too: [u32; 3],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FiemapHead {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
}

const EXTENTS: usize = 64;

#[repr(C)]
struct Fiemap {
    head: FiemapHead,
    extents: [FiemapExtent; EXTENTS],
}

/// Gives `see` all parts of a file or directory that lie somewhere.
pub(super) fn fiemap(file: impl AsFd, see: &mut dyn FnMut(Extent)) -> Result<()> {
    let mut start = 0;
    loop {
        let mut map = Fiemap {
            head: FiemapHead {
                start,
                length: u64::MAX - start,
                count: EXTENTS as u32,
                ..FiemapHead::default()
            },
            extents: [FiemapExtent::default(); EXTENTS],
        };
        // SAFETY: FIEMAP writes the header and after it as many extents as `count` says, for which `Fiemap` has room; any
        // bits are valid in both.
        let get = unsafe { Updater::<FIEMAP, Fiemap>::new(&mut map) };
        // SAFETY: The VFS answers FIEMAP for files and directories, and reads and writes nothing but `map`.
        unsafe { ioctl(&file, get) }?;
        let found = &map.extents[..EXTENTS.min(map.head.mapped as usize)];
        let Some(last) = found.last() else {
            return Ok(());
        };
        for extent in found {
            see(Extent {
                offset: extent.logical,
                device: extent.physical..extent.physical.saturating_add(extent.length),
                flags: extent.flags,
            });
        }
        let next = last.logical.saturating_add(last.length);
        if last.flags & LAST != 0 || next <= start || next == u64::MAX {
            return Ok(());
        }
        start = next;
    }
}

/// Who has a part of the device.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FsmapRecord {
    device: u32,
    flags: u32,
    physical: u64,
    owner: u64,
    offset: u64,
    length: u64,
    reserved: [u64; 3],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FsmapHead {
    iflags: u32,
    oflags: u32,
    count: u32,
    entries: u32,
    reserved: [u64; 6],
    keys: [FsmapRecord; 2],
}

const RECORDS: usize = 64;

#[repr(C)]
struct Fsmap {
    head: FsmapHead,
    records: [FsmapRecord; RECORDS],
}

/// Who has a part of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Where it lies on the device.
    pub(super) device: Range<u64>,
    pub(super) owner: FsmapOwner,
}

/// The owners that GETFSMAP knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FsmapOwner {
    /// One that every file system, or this one, has a number for.
    Special(u64),
    /// A file or directory.
    Inode {
        number: u64,
        /// Where in it this part begins.
        offset: u64,
        /// [`PREALLOCATED`], [`ATTRIBUTES`], [`EXTENT_MAP`].
        flags: u32,
    },
}

pub(super) const PREALLOCATED: u32 = 0x1;
pub(super) const ATTRIBUTES: u32 = 0x2;
pub(super) const EXTENT_MAP: u32 = 0x4;
const SPECIAL: u32 = 0x10;
const LAST_RECORD: u32 = 0x20;

/// Owners of all file systems.
pub(super) const FREE: u64 = 1;

/// An owner that a file system has its own number for.
pub(super) const fn own(kind: u8, code: u64) -> u64 {
    (kind as u64) << 32 | code
}

/// Who has bytes `bytes` of the device with that number (as the kernel encodes it, `makedev` for 32 bits), on which `file` lies.
pub(super) fn fsmap(file: impl AsFd, device: u32, bytes: Range<u64>) -> Result<Vec<Record>> {
    let low = FsmapRecord {
        device,
        physical: bytes.start,
        ..FsmapRecord::default()
    };
    let high = FsmapRecord {
        device,
        flags: u32::MAX,
        physical: bytes.end - 1,
        owner: u64::MAX,
        offset: u64::MAX,
        ..FsmapRecord::default()
    };
    let mut map = Fsmap {
        head: FsmapHead {
            count: RECORDS as u32,
            keys: [low, high],
            ..FsmapHead::default()
        },
        records: [FsmapRecord::default(); RECORDS],
    };
    let mut found = Vec::new();
    loop {
        // SAFETY: GETFSMAP writes the header and after it as many records as `count` says, for which `Fsmap` has room; any
        // bits are valid in both.
        let get = unsafe { Updater::<GETFSMAP, Fsmap>::new(&mut map) };
        // SAFETY: File systems that know GETFSMAP read and write nothing but `map`; for others it has no meaning.
        unsafe { ioctl(&file, get) }?;
        let records = &map.records[..RECORDS.min(map.head.entries as usize)];
        for record in records.iter().filter(|record| record.device == device) {
            let owner = match record.flags & SPECIAL {
                0 => FsmapOwner::Inode {
                    number: record.owner,
                    offset: record.offset,
                    flags: record.flags,
                },
                _ => FsmapOwner::Special(record.owner),
            };
            found.push(Record {
                device: record.physical..record.physical.saturating_add(record.length),
                owner,
            });
        }
        match records.last() {
            Some(last) if last.flags & LAST_RECORD == 0 && records.len() == RECORDS => {
                map.head.keys[0] = *last;
            }
            _ => return Ok(found),
        }
    }
}

/// What [`xfs_geometry`] says.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct XfsGeometry {
    pub(super) block_size: u32,
    _rtextsize: u32,
    /// Blocks of an allocation group.
    pub(super) group_blocks: u32,
    _agcount: u32,
    pub(super) log_blocks: u32,
    _sectsize: u32,
    /// In bytes.
    pub(super) inode_size: u32,
    _imaxpct: u32,
    _datablocks: u64,
    /// Of the realtime device.
    pub(super) realtime_blocks: u64,
    _rtextents: u64,
    /// Block that the log begins with: group and block in it; 0: it is elsewhere.
    pub(super) log_start: u64,
    _until_flags: [u32; 7],
    pub(super) flags: u32,
    _rest: [u32; 40],
}

#[cfg(test)]
impl XfsGeometry {
    pub(super) fn new(block_size: u32, group_blocks: u32, inode_size: u32, flags: u32) -> Self {
        Self {
            block_size,
            _rtextsize: 0,
            group_blocks,
            _agcount: 0,
            log_blocks: 0,
            _sectsize: 0,
            inode_size,
            _imaxpct: 0,
            _datablocks: 0,
            realtime_blocks: 0,
            _rtextents: 0,
            log_start: 0,
            _until_flags: [0; 7],
            flags,
            _rest: [0; 40],
        }
    }
}

/// The geometry of the XFS file system that `file` is on.
pub(super) fn xfs_geometry(file: impl AsFd) -> Result<XfsGeometry> {
    // SAFETY: It writes a `struct xfs_fsop_geom` of 256 bytes, which `XfsGeometry` is (see the test), of integers.
    let get = unsafe { Getter::<XFS_GEOMETRY, XfsGeometry>::new() };
    // SAFETY: As XFS_IOC_FSGEOMETRY it writes nothing but its output. Only a file system with that number for it answers: this
    // is called for files on XFS.
    unsafe { ioctl(file, get) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{offset_of, size_of};

    #[test]
    fn the_structures_are_those_of_the_kernel() {
        assert_eq!(size_of::<FiemapHead>(), 32);
        assert_eq!(size_of::<FiemapExtent>(), 56);
        assert_eq!(size_of::<FsmapRecord>(), 64);
        assert_eq!(size_of::<FsmapHead>(), 192);
        assert_eq!(size_of::<XfsGeometry>(), 256);
        assert_eq!(offset_of!(XfsGeometry, inode_size), 24);
        assert_eq!(offset_of!(XfsGeometry, realtime_blocks), 40);
        assert_eq!(offset_of!(XfsGeometry, log_start), 56);
        assert_eq!(offset_of!(XfsGeometry, flags), 92);
        assert_eq!(
            (FIBMAP, FIGETBSZ, FIEMAP, GETFSMAP, XFS_GEOMETRY),
            (1, 2, 0xc020_660b, 0xc0c0_583b, 0x8100_587e)
        );
    }
}
