// SPDX-License-Identifier: GPL-2.0

//! Which device main is, as far as that can be known.
//!
//! Names such as `/dev/sdb` change from one boot to the next. A spare that serves another main of the same length would give
//! it sectors of the first one, silently. So the superblock has what the kernel knows of main: the UUID of the
//! partition, and the number that the disk has from its maker.

use core::fmt;

/// Bytes of the longest UUID of a partition, as text, and a zero.
pub const PARTITION_UUID: usize = 40;
/// Bytes of the longest number of a disk.
pub const DISK_ID: usize = 16;

/// What kind of number a disk has; the values are those of the SCSI standard and of the kernel's `enum blk_unique_id`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdKind {
    /// Given by the vendor (T10).
    Vendor = 1,
    /// EUI-64, or an NGUID of NVMe.
    Eui64 = 2,
    /// NAA: the world wide name of a SCSI or ATA disk.
    Naa = 3,
}

impl IdKind {
    /// In the order in which a device is asked for one.
    pub const ALL: [Self; 3] = [Self::Naa, Self::Eui64, Self::Vendor];

    /// The one with that value.
    pub fn of(value: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u32 == value)
    }
}

/// The number of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskId {
    kind: IdKind,
    length: u8,
    /// Zero behind `length`.
    bytes: [u8; DISK_ID],
}

impl DiskId {
    /// The first `length` of `bytes`; `None`: it cannot have that many.
    pub fn new(kind: IdKind, bytes: [u8; DISK_ID], length: usize) -> Option<Self> {
        if length == 0 || length > DISK_ID {
            return None;
        }
        let mut own = [0; DISK_ID];
        for (to, from) in own.iter_mut().zip(bytes).take(length) {
            *to = from;
        }
        // Some devices have one that says nothing.
        if own.iter().all(|b| *b == 0) {
            return None;
        }
        let length = length as u8;
        Some(Self {
            kind,
            length,
            bytes: own,
        })
    }

    /// What kind it is.
    pub fn kind(&self) -> IdKind {
        self.kind
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or(&[])
    }
}

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            IdKind::Vendor => "t10.",
            IdKind::Eui64 => "eui.",
            IdKind::Naa => "naa.",
        })?;
        self.bytes().iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// What is known of a main device; all of it may be unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    partition: [u8; PARTITION_UUID],
    /// The disk, and the first sector on it of what is protected.
    pub disk: Option<(DiskId, u64)>,
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            partition: [0; PARTITION_UUID],
            disk: None,
        }
    }
}

impl Identity {
    /// Of the partition whose UUID is `partition`, as text, or empty, on `disk` from that sector on.
    ///
    /// `None`: no UUID can be like that.
    pub fn new(partition: &[u8], disk: Option<(DiskId, u64)>) -> Option<Self> {
        let mut own = [0; PARTITION_UUID];
        if partition.len() >= own.len() || !partition.iter().all(u8::is_ascii_graphic) {
            return None;
        }
        for (to, from) in own.iter_mut().zip(partition) {
            *to = from.to_ascii_lowercase();
        }
        let partition = own;
        Some(Self { partition, disk })
    }

    /// From the bytes of a superblock.
    pub(super) fn parse(
        partition: &[u8; PARTITION_UUID],
        disk: Option<(DiskId, u64)>,
    ) -> Option<Self> {
        let text = partition.split(|b| *b == 0).next().unwrap_or(&[]);
        Self::new(text, disk).filter(|identity| identity.partition == *partition)
    }

    /// The partition's UUID as it is on the spare.
    pub(super) fn partition_field(&self) -> &[u8; PARTITION_UUID] {
        &self.partition
    }

    /// The partition's UUID.
    pub fn partition(&self) -> Option<&str> {
        let text = self.partition.split(|b| *b == 0).next()?;
        let text = core::str::from_utf8(text).ok()?;
        Some(text).filter(|text| !text.is_empty())
    }

    /// Whether anything is known.
    pub fn is_known(&self) -> bool {
        *self != Self::default()
    }

    /// Whether `other` cannot be this one: something that is known of both differs, and nothing is the same.
    pub fn contradicts(&self, other: &Self) -> bool {
        let partitions = self.partition().zip(other.partition());
        let disks = self.disk.zip(other.disk);
        let same = [partitions.map(|(a, b)| a == b), disks.map(|(a, b)| a == b)];
        same.contains(&Some(false)) && !same.contains(&Some(true))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.partition(), &self.disk) {
            (None, None) => f.write_str("a device of which nothing is known"),
            (Some(partition), None) => write!(f, "PARTUUID={partition}"),
            (None, Some((disk, start))) => write!(f, "disk {disk} from sector {start}"),
            (Some(partition), Some((disk, start))) => {
                write!(f, "PARTUUID={partition} on disk {disk} from sector {start}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;
    use std::vec::Vec;

    fn disk(last: u8, start: u64) -> Option<(DiskId, u64)> {
        let mut bytes = [0x50; DISK_ID];
        bytes[7] = last;
        Some((DiskId::new(IdKind::Naa, bytes, 8).unwrap(), start))
    }

    fn main(partition: &str, disk: Option<(DiskId, u64)>) -> Identity {
        Identity::new(partition.as_bytes(), disk).unwrap()
    }

    #[test]
    fn only_what_is_known_of_both_can_contradict() {
        let all = [
            main("", None),
            main("a-1", None),
            main("a-2", None),
            main("", disk(1, 0)),
            main("", disk(2, 0)),
            main("", disk(1, 8)),
            main("a-1", disk(1, 0)),
            main("a-1", disk(2, 0)),
            main("a-2", disk(2, 0)),
        ];
        let refused: Vec<(usize, usize)> = (0..all.len())
            .flat_map(|a| (a..all.len()).map(move |b| (a, b)))
            .filter(|(a, b)| {
                assert_eq!(all[*a].contradicts(&all[*b]), all[*b].contradicts(&all[*a]));
                all[*a].contradicts(&all[*b])
            })
            .collect();
        let expected = [
            (1, 2),
            (1, 8),
            (2, 6),
            (2, 7),
            (3, 4),
            (3, 5),
            (3, 7),
            (3, 8),
            (4, 5),
            (4, 6),
            (5, 6),
            (5, 7),
            (5, 8),
            (6, 8),
        ];
        assert_eq!(refused, expected);
    }

    #[test]
    fn it_reads_as_other_tools_write_it() {
        assert_eq!(main("AB-01", None).to_string(), "PARTUUID=ab-01");
        let text = "disk naa.5050505050505001 from sector 2048";
        assert_eq!(main("", disk(1, 2048)).to_string(), text);
        assert!(main("", disk(1, 0)).is_known() && !main("", None).is_known());
    }

    #[test]
    fn what_no_device_has_is_none() {
        assert_eq!(Identity::new(&[b'a'; 40], None), None);
        assert_eq!(Identity::new(b"a b", None), None);
        assert_eq!(Identity::new(b"a\xff", None), None);
        for length in [0, 17] {
            assert_eq!(DiskId::new(IdKind::Naa, [1; 16], length), None);
        }
        assert_eq!(DiskId::new(IdKind::Naa, [0; 16], 8), None);
        let mut field = [0; PARTITION_UUID];
        assert!(Identity::parse(&field, None).is_some_and(|i| !i.is_known()));
        field[1] = b'a';
        assert_eq!(Identity::parse(&field, None), None);
        assert_eq!(Identity::parse(&[b'a'; PARTITION_UUID], None), None);
    }
}
