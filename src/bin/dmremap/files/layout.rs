// SPDX-License-Identifier: GPL-2.0

//! What a mounted file system says of a place on its device, before anybody looks for the file that has it.

use super::debugfs::Ext;
use super::ioctl::{self, own, FsmapOwner, Record, XfsGeometry};
use super::{f2fs::F2fs, fat::Fat, outside, Kind, Owner, Part, Piece, Place};
use crate::dm::Number;
use std::ops::Range;
use std::os::fd::OwnedFd;

/// What is at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// What no file has, in words.
    Known(Kind, &'static str),
    /// Inodes with these numbers.
    Inodes(Range<u64>),
    /// A part of this file.
    Of(Owner),
    /// A file may have it; if none has, it is this.
    Perhaps(Kind, &'static str),
}

/// Appends what is at `range`, to the last part if that ends there and has the same.
pub(super) fn append(all: &mut Vec<(Range<u64>, Class)>, range: Range<u64>, class: Class) {
    match all.last_mut() {
        Some((last, same)) if last.end == range.start && *same == class => last.end = range.end,
        _ => all.push((range, class)),
    }
}

/// The parts of `piece`, of which `classes` say what is there. Where a file has it, the offset is that of the part.
pub(super) fn cut(piece: &Piece, classes: &[(Range<u64>, Class)]) -> Vec<(Piece, Class)> {
    let part = |(range, class): &(Range<u64>, Class)| {
        let part = piece.within(range)?;
        let mut class = class.clone();
        if let Class::Of(Owner {
            offset: Some(offset),
            ..
        }) = &mut class
        {
            *offset += part.at.saturating_sub(range.start);
        }
        Some((part, class))
    };
    classes.iter().filter_map(part).collect()
}

/// Where the answers come from.
enum Source {
    Ext(Ext),
    /// The ioctl GETFSMAP of XFS, for the device with this number as the kernel packs it into 32 bits.
    Xfs(u32, XfsGeometry),
    Fat(Fat),
    F2fs(F2fs),
    /// Nowhere.
    None,
}

pub(super) struct Layout<'a> {
    root: &'a OwnedFd,
    source: Source,
}

pub(super) const OUTSIDE: &str = "outside of the file system";
/// What nobody has, where not all files could be looked at.
pub(super) const NOT_WHOLE: &str =
    "of a file that could not be found, or the file system's own: not all of the tree could be looked at";
const NOBODY_SAYS: &str = "free space or metadata: the file system does not say which";
const UNREADABLE: &str = "free space or metadata: what tells them apart cannot be read";

impl<'a> Layout<'a> {
    /// Of the file system on the device `number`, with the open directory `root`.
    pub(super) fn of(place: &Place, root: &'a OwnedFd, number: Number) -> Self {
        let device = &place.device;
        let packed = number.1 & 0xff | number.0 << 8 | (number.1 & !0xff) << 12;
        let source = match place.filesystem.as_deref().unwrap_or_default() {
            "ext4" | "ext3" | "ext2" => Ext::read(device).ok().map(Source::Ext),
            "xfs" => {
                let geometry = ioctl::xfs_geometry(root).ok();
                geometry.map(|geometry| Source::Xfs(packed, geometry))
            }
            "vfat" | "msdos" => Fat::read(device).ok().map(Source::Fat),
            "f2fs" => F2fs::read(device, number).ok().map(Source::F2fs),
            _ => None,
        };
        Self {
            root,
            source: source.unwrap_or(Source::None),
        }
    }

    /// Whether files may lie on another device, whose sectors have the same numbers.
    pub(super) fn has_realtime(&self) -> bool {
        matches!(&self.source, Source::Xfs(_, geometry) if geometry.realtime_blocks > 0)
    }

    /// Whether files must not be looked at, as Linux would give free what a directory has.
    pub(super) fn is_headless(&self) -> bool {
        matches!(&self.source, Source::Fat(fat) if fat.is_headless())
    }

    /// The parts of `piece`, and what is there.
    pub(super) fn classify(&mut self, piece: &Piece) -> Vec<(Piece, Class)> {
        let bytes = piece.bytes();
        let perhaps = |what| vec![(piece.clone(), Class::Perhaps(Kind::Unknown, what))];
        match &mut self.source {
            Source::Ext(ext) => cut(piece, &ext.classes(&bytes)),
            Source::Xfs(device, geometry) => match ioctl::fsmap(self.root, *device, bytes) {
                Ok(records) => geometry.classify(piece, &records),
                Err(_) => perhaps(UNREADABLE),
            },
            Source::Fat(fat) => cut(piece, &fat.classes(&bytes)),
            Source::F2fs(f2fs) => cut(piece, &f2fs.classes(&bytes)),
            Source::None => perhaps(NOBODY_SAYS),
        }
    }
}

/// In flags: the superblock is of version 5.
const V5: u32 = 1 << 15;

impl XfsGeometry {
    /// The parts of `piece`, by the records that GETFSMAP has of it.
    fn classify(&self, piece: &Piece, records: &[Record]) -> Vec<(Piece, Class)> {
        let class = |record: &Record| {
            let part = piece.within(&record.device)?;
            Some((record.device.clone(), self.class(&part.bytes(), record)))
        };
        let classes: Vec<_> = records.iter().filter_map(class).collect();
        let said = records.iter().map(|record| record.device.clone()).collect();
        let log = self.log();
        let mut found = Vec::new();
        for (part, class) in cut(piece, &classes) {
            // A file system without a list of owners does not tell the log from files.
            let inside = match class {
                Class::Perhaps(..) => part.within(&log),
                _ => None,
            };
            if let Some(inside) = inside {
                found.push((inside, Class::Known(Kind::Journal, "log")));
                let rest = outside(&[part], vec![log.clone()]).into_iter();
                found.extend(rest.map(|part| (part, class.clone())));
            } else {
                found.push((part, class));
            }
        }
        for part in outside(std::slice::from_ref(piece), said) {
            found.push((part, Class::Known(Kind::Free, OUTSIDE)));
        }
        found
    }

    /// What `record` means, for `bytes` in it.
    fn class(&self, bytes: &Range<u64>, record: &Record) -> Class {
        let owner = match &record.owner {
            FsmapOwner::Special(owner) => *owner,
            FsmapOwner::Inode {
                number,
                offset,
                flags,
            } => {
                let is = |flag| flags & flag != 0;
                let (part, offset) = match () {
                    () if is(ioctl::EXTENT_MAP) => (Part::Map, None),
                    () if is(ioctl::ATTRIBUTES) => (Part::Attributes, None),
                    () if is(ioctl::PREALLOCATED) => (Part::Unwritten, Some(*offset)),
                    () => (Part::Data, Some(*offset)),
                };
                return Class::Of(Owner {
                    inode: *number,
                    offset,
                    part,
                });
            }
        };
        let numbers = [
            (own(b'X', 1), Kind::Metadata, "superblock"),
            (own(b'X', 2), Kind::Journal, "log"),
            (own(b'X', 3), Kind::Metadata, "allocation group's lists"),
            (own(b'X', 4), Kind::Metadata, "list of inodes"),
            (own(b'X', 6), Kind::Metadata, "reference counts"),
            (own(b'X', 7), Kind::Metadata, "space for copies on write"),
            (own(b'X', 8), Kind::Metadata, "marked as bad"),
            (ioctl::FREE, Kind::Free, "free space"),
        ];
        if owner == own(b'X', 5) {
            let inodes = self.inodes(bytes);
            return inodes.map_or(Class::Known(Kind::Metadata, "inodes"), Class::Inodes);
        }
        let number = numbers.iter().find(|(number, ..)| *number == owner);
        number.map_or(
            Class::Perhaps(
                Kind::Metadata,
                "in use, but not by the data of a file: inodes, directories, lists",
            ),
            |(_, kind, what)| Class::Known(*kind, what),
        )
    }

    /// Where the log lies, in bytes; empty: elsewhere.
    fn log(&self) -> Range<u64> {
        let [block, group, length] =
            [self.block_size, self.group_blocks, self.log_blocks].map(u64::from);
        let bits = self.group_bits();
        let in_group = self.log_start & ((1 << bits) - 1);
        match self.log_start {
            0 => 0..0,
            start => {
                let first = (start >> bits) * group + in_group;
                first * block..(first + length) * block
            }
        }
    }

    /// Bits of a block's number in its group.
    fn group_bits(&self) -> u32 {
        u64::from(self.group_blocks).next_power_of_two().ilog2()
    }

    /// The number of an inode is made of the group, the block in it, and the place in that. They are read in clusters.
    fn inodes(&self, bytes: &Range<u64>) -> Option<Range<u64>> {
        let [block, group, inode] =
            [self.block_size, self.group_blocks, self.inode_size].map(u64::from);
        let per_block = block.checked_div(inode).filter(|count| *count > 0)?;
        let group_bits = self.group_bits();
        let number = |byte: u64| {
            let at = byte / block;
            let (group, in_group) = (at.checked_div(group)?, at.checked_rem(group)?);
            Some((group << group_bits | in_group) * per_block)
        };
        let cluster = match self.flags & V5 {
            0 => 8192 / inode,
            _ => 32,
        };
        let cluster = cluster.max(per_block);
        let first = number(bytes.start)? / cluster * cluster;
        let last = number(bytes.end - 1)? / cluster * cluster;
        Some(first..last + cluster)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inodes_of_xfs_have_their_place_as_number() {
        let new = |inode: u32, flags: u32| XfsGeometry::new(4096, 12_800, inode, flags);
        // Block 5 of group 2: 14 bits for the block, 3 for the inode.
        let at = (2 * 12_800 + 5) * 4096;
        let first = (2_u64 << 14 | 5) << 3;
        let of = |geometry: XfsGeometry| geometry.inodes(&(at..at + 512));
        let begin = first / 32 * 32;
        assert_eq!(of(new(512, V5)), Some(begin..begin + 32));
        assert_eq!(of(new(512, 0)).map(|all| all.end - all.start), Some(16));
        assert_eq!(of(new(0, V5)), None);
        let mut geometry = new(512, V5);
        assert_eq!(geometry.log(), 0..0);
        (geometry.log_start, geometry.log_blocks) = (2 << 14 | 5, 7);
        assert_eq!(geometry.log(), at..at + 7 * 4096);
    }
}
