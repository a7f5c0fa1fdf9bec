// SPDX-License-Identifier: GPL-2.0

//! Where a FAT file system has its tables and its directories, and which clusters are free.
//!
//! Linux does not tell where a directory lies. And one whose first sector cannot be read it takes for one without links: as soon
//! as somebody looks it up, its clusters are free (`fat_fill_inode`, `fat_evict_inode`).

use super::layout::{append, Class, NOT_WHOLE};
use super::Kind;
use anyhow::{ensure, Context as _, Result};
use std::cell::OnceCell;
use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Entries of so many bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Width {
    Twelve,
    Sixteen,
    ThirtyTwo,
}

/// All but the number of clusters in bytes.
pub(super) struct Fat {
    device: File,
    width: Width,
    /// Where each copy of the table begins.
    tables: Vec<u64>,
    /// The end of the last one.
    root: u64,
    /// Where cluster 2, the first, begins. Before it, on FAT12 and FAT16, the root directory.
    data: u64,
    cluster: u64,
    clusters: u64,
    /// The root directory's first cluster, on FAT32.
    root_cluster: u64,
    directories: OnceCell<Directories>,
}

/// Where the directories are.
#[derive(Default)]
struct Directories {
    clusters: HashSet<u64>,
    /// Of one, a part cannot be read: there may be more of them.
    is_torn: bool,
    /// Of one, the first sector cannot be read.
    is_headless: bool,
}

const SECTOR: u64 = 512;

impl Fat {
    pub(super) fn read(device: &Path) -> Result<Self> {
        let device = File::open(device)?;
        let mut sector = [0; 512];
        device.read_exact_at(&mut sector, 0)?;
        Self::parse(device, &sector)
    }

    fn parse(device: File, boot: &[u8; 512]) -> Result<Self> {
        let byte = |at: usize| u64::from(boot[at]);
        let word = |at: usize| byte(at) | byte(at + 1) << 8;
        let long = |at: usize| word(at) | word(at + 2) << 16;
        let or = |short: u64, long: u64| if short == 0 { long } else { short };
        let (sector, per_cluster) = (word(11), byte(13));
        let (reserved, tables, entries) = (word(14), byte(16), word(17));
        let sectors = or(word(19), long(32));
        let length = or(word(22), long(36));
        ensure!(
            sector.is_power_of_two() && per_cluster.is_power_of_two() && tables > 0,
            "not a boot sector of FAT"
        );
        let root = reserved + tables * length;
        let data = root + (entries * 32).div_ceil(sector);
        let clusters = sectors
            .checked_sub(data)
            .context("shorter than its tables")?
            / per_cluster;
        Ok(Self {
            device,
            width: match clusters {
                _ if word(22) == 0 => Width::ThirtyTwo,
                0..=4084 => Width::Twelve,
                _ => Width::Sixteen,
            },
            tables: (0..tables)
                .map(|table| (reserved + table * length) * sector)
                .collect(),
            root: root * sector,
            data: data * sector,
            cluster: per_cluster * sector,
            clusters,
            root_cluster: long(44),
            directories: OnceCell::new(),
        })
    }

    /// What the tables say of a cluster, of the first copy that can be read.
    fn entry(&self, cluster: u64) -> Option<u32> {
        let (at, length) = match self.width {
            Width::Twelve => (cluster * 3 / 2, 2),
            Width::Sixteen => (cluster * 2, 2),
            Width::ThirtyTwo => (cluster * 4, 4),
        };
        let mut entry = [0; 4];
        self.tables.iter().find(|table| {
            let read = self.device.read_exact_at(&mut entry[..length], *table + at);
            read.is_ok()
        })?;
        let entry = u32::from_le_bytes(entry);
        Some(match self.width {
            Width::Twelve if cluster % 2 == 1 => entry >> 4,
            Width::Twelve => entry & 0xfff,
            Width::Sixteen => entry,
            Width::ThirtyTwo => entry & 0x0fff_ffff,
        })
    }

    /// The clusters of the chain that begins with `first`, which are added to `all`, in bytes.
    fn chain(&self, first: u64, all: &mut Directories) -> Vec<Range<u64>> {
        let mut chain = Vec::new();
        let mut cluster = first;
        while (2..self.clusters + 2).contains(&cluster) && all.clusters.insert(cluster) {
            let at = self.data + (cluster - 2) * self.cluster;
            chain.push(at..at + self.cluster);
            match self.entry(cluster) {
                Some(next) => cluster = next.into(),
                None => all.is_torn = true,
            }
        }
        chain
    }

    /// All directories, as far as they can be read.
    fn directories(&self) -> Directories {
        let mut all = Directories::default();
        let root = match self.width {
            Width::ThirtyTwo => self.chain(self.root_cluster, &mut all),
            _ => std::iter::once(self.root..self.data).collect(),
        };
        let mut ahead = vec![root];
        let mut is_root = true;
        while let Some(directory) = ahead.pop() {
            let sectors = directory.into_iter();
            let sectors = sectors.flat_map(|bytes| bytes.step_by(SECTOR as usize));
            for (number, at) in sectors.enumerate() {
                let mut sector = [0; SECTOR as usize];
                if self.device.read_exact_at(&mut sector, at).is_err() {
                    all.is_torn = true;
                    all.is_headless |= number == 0 && !is_root;
                    continue;
                }
                for entry in sector.chunks_exact(32) {
                    // Not deleted, `.` or `..`; no label or part of a long name; and no file.
                    let is_directory = !matches!(entry[0], 0 | 0xe5 | b'.')
                        && entry[11] & 0x08 == 0
                        && entry[11] & 0x10 != 0;
                    let word = |at| u64::from(u16::from_le_bytes([entry[at], entry[at + 1]]));
                    let first = match self.width {
                        Width::ThirtyTwo => word(26) | word(20) << 16,
                        _ => word(26),
                    };
                    if is_directory {
                        ahead.push(self.chain(first, &mut all));
                    }
                }
            }
            is_root = false;
        }
        all
    }

    /// Whether Linux would give free what a directory has, as soon as it is looked at.
    pub(super) fn is_headless(&self) -> bool {
        let directories = self.directories.get_or_init(|| self.directories());
        directories.is_headless
    }

    /// What a cluster is that is in use.
    fn used(&self, cluster: u64) -> Class {
        let directories = self.directories.get_or_init(|| self.directories());
        if directories.clusters.contains(&cluster) {
            return Class::Known(Kind::Directory, "a directory");
        }
        match directories.is_torn {
            true => Class::Perhaps(Kind::Unknown, NOT_WHOLE),
            false => Class::Perhaps(Kind::Metadata, "in use, but by no file or directory"),
        }
    }

    /// A part of `bytes` each, and what is there.
    pub(super) fn classes(&self, bytes: &Range<u64>) -> Vec<(Range<u64>, Class)> {
        let known = |kind, what| Class::Known(kind, what);
        let first = self.tables.first().copied().unwrap_or(0);
        let mut all = vec![
            (0..first, known(Kind::Metadata, "boot sector")),
            (
                first..self.root,
                known(Kind::Metadata, "file allocation table"),
            ),
            (
                self.root..self.data,
                known(Kind::Directory, "root directory"),
            ),
        ];
        let number = |byte: u64| byte.saturating_sub(self.data) / self.cluster;
        let end = self.data + self.clusters * self.cluster;
        if bytes.end > self.data {
            for index in number(bytes.start)..=number(bytes.end - 1).min(self.clusters) {
                let at = self.data + index * self.cluster;
                if at >= end {
                    break;
                }
                let bad = match self.width {
                    Width::Twelve => 0xff7,
                    Width::Sixteen => 0xfff7,
                    Width::ThirtyTwo => 0x0fff_fff7,
                };
                let class = match self.entry(index + 2) {
                    Some(0) => known(Kind::Free, "free space"),
                    Some(entry) if entry == bad => known(Kind::Free, "marked as bad, and not used"),
                    Some(_) => self.used(index + 2),
                    None => Class::Perhaps(
                        Kind::Unknown,
                        "free space or a directory: the file allocation table cannot be read",
                    ),
                };
                append(&mut all, at..at + self.cluster, class);
            }
        }
        all.push((end..u64::MAX, known(Kind::Free, "behind the last cluster")));
        all.retain(|(range, _)| range.start < bytes.end && bytes.start < range.end);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 reserved sector, 2 tables of 2 sectors, 16 entries in the root directory, clusters of 2 sectors.
    fn fat() -> Fat {
        let mut image = vec![0; 512 * 64];
        image[11..14].copy_from_slice(&[0, 2, 2]);
        image[14..20].copy_from_slice(&[1, 0, 2, 16, 0, 64]);
        image[22] = 2;
        // Cluster 2 is used, 3 free, 4 bad, 5 and 6 used.
        for table in [512, 3 * 512] {
            image[table..table + 11]
                .copy_from_slice(&[0xf8, 0xff, 0xff, 0xff, 0, 0, 0xf7, 0xff, 0xff, 0xff, 0x0f]);
        }
        // A directory that has cluster 5, and in it one that has cluster 6; files and what else looks like directories.
        let mut entry = |at: usize, name: u8, attributes: u8, cluster: u8| {
            (image[at], image[at + 11], image[at + 26]) = (name, attributes, cluster);
        };
        entry(5 * 512, b'A', 0x20, 2);
        entry(5 * 512 + 32, b'B', 0x10, 5);
        entry(5 * 512 + 64, 0xe5, 0x10, 2);
        entry(5 * 512 + 96, b'L', 0x0f | 0x10, 2);
        entry(12 * 512, b'.', 0x10, 5);
        entry(12 * 512 + 512, b'C', 0x10, 6);
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &image).unwrap();
        let boot = image[..512].try_into().unwrap();
        Fat::parse(file, &boot).unwrap()
    }

    #[test]
    fn clusters_are_used_or_free() {
        let fat = fat();
        assert_eq!((fat.width, fat.clusters), (Width::Twelve, 29));
        let at = |sector: u64| {
            let classes = fat.classes(&(sector * 512..(sector + 1) * 512));
            assert_eq!(classes.len(), 1, "{sector}: {classes:?}");
            match &classes[0].1 {
                Class::Known(kind, what) => (*kind, *what),
                Class::Perhaps(kind, _) => (*kind, "perhaps"),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(at(0), (Kind::Metadata, "boot sector"));
        assert_eq!(at(1), (Kind::Metadata, "file allocation table"));
        assert_eq!(at(4), (Kind::Metadata, "file allocation table"));
        assert_eq!(at(5), (Kind::Directory, "root directory"));
        assert_eq!(at(6), (Kind::Metadata, "perhaps"));
        assert_eq!(at(7), (Kind::Metadata, "perhaps"));
        assert_eq!(at(8), (Kind::Free, "free space"));
        assert_eq!(at(10), (Kind::Free, "marked as bad, and not used"));
        assert_eq!(at(12), (Kind::Directory, "a directory"));
        assert_eq!(at(15), (Kind::Directory, "a directory"));
        assert_eq!(at(63), (Kind::Free, "free space"));
        assert_eq!(fat.classes(&(64 * 512..65 * 512)).len(), 1);
        assert!(!fat.is_headless());
        // All of them cover all of it.
        let all = fat.classes(&(0..64 * 512));
        assert!(all.windows(2).all(|two| two[0].0.end == two[1].0.start));
    }

    #[test]
    fn a_directory_that_cannot_be_read_as_a_whole_may_have_others() {
        // Cluster 5 ends with sector 13, and cluster 6 begins with sector 14.
        for (sectors, is_headless) in [(13, false), (12, true), (15, false), (14, true)] {
            let fat = fat();
            // The others are as if they could not be read.
            fat.device.set_len(sectors * 512).unwrap();
            assert_eq!(fat.is_headless(), is_headless, "{sectors}");
            let classes = fat.classes(&(6 * 512..7 * 512));
            assert_eq!(classes[0].1, Class::Perhaps(Kind::Unknown, NOT_WHOLE));
        }
    }

    #[test]
    fn what_is_no_boot_sector_is_refused() {
        for boot in [[0; 512], [0xff; 512]] {
            let file = tempfile::tempfile().unwrap();
            assert!(Fat::parse(file, &boot).is_err());
        }
    }
}
