// SPDX-License-Identifier: GPL-2.0

//! Where f2fs has its tables, and which blocks are valid.

use super::layout::{append, Class};
use super::Kind;
use crate::dm::{directory, Number};
use anyhow::{ensure, Context as _, Result};
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

const BLOCK: u64 = 4096;
const MAGIC: u32 = 0xf2f5_2010;

/// In blocks.
pub(super) struct F2fs {
    /// Where checkpoints, the segments' table, the nodes' table, summaries and the main area begin.
    areas: [u64; 5],
    per_segment: u64,
    /// Of each segment of the main area, whether it has nodes, and which blocks are valid, the first in the highest bit of
    /// the first byte; without those, the kernel does not say.
    segments: Vec<Segment>,
}

#[derive(Debug, PartialEq, Eq)]
struct Segment {
    has_nodes: bool,
    valid: Vec<u8>,
}

impl Segment {
    /// Of a line of segment_bits: `0         3|512| ff ff 00| 1a`.
    fn parse(line: &str) -> Option<Self> {
        let mut parts = line.split('|');
        let kind = parts.next()?.split_whitespace().nth(1)?;
        let bits = parts.nth(1)?.split_whitespace();
        let bits: Option<Vec<u8>> = bits.map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        Some(Self {
            has_nodes: kind.parse::<u8>().ok()? >= 3,
            valid: bits?,
        })
    }

    fn is_valid(&self, block: u64) -> bool {
        let byte = self.valid.get((block / 8) as usize);
        byte.is_some_and(|byte| byte >> (7 - block % 8) & 1 == 1)
    }
}

impl F2fs {
    pub(super) fn read(device: &Path, number: Number) -> Result<Self> {
        let device = File::open(device)?;
        let of = |at: u64| {
            let mut block = [0; 1024];
            device.read_exact_at(&mut block, at)?;
            Self::parse(&block)
        };
        // There are two copies.
        let mut f2fs = of(1024).or_else(|_| of(BLOCK + 1024))?;
        let name = directory(number).context("no such device")?;
        let name = name.file_name().context("no name")?;
        let bits = fs::read_to_string(Path::new("/proc/fs/f2fs").join(name).join("segment_bits"));
        let bits = bits.unwrap_or_default();
        f2fs.segments = bits.lines().filter_map(Segment::parse).collect();
        Ok(f2fs)
    }

    fn parse(block: &[u8; 1024]) -> Result<Self> {
        let long = |at: usize| {
            let bytes = block[at..at + 4].try_into();
            bytes.map_or(0, u32::from_le_bytes)
        };
        ensure!(long(0) == MAGIC, "not a superblock of f2fs");
        ensure!(long(16) == 12, "blocks of another size");
        Ok(Self {
            areas: [76, 80, 84, 88, 92].map(|at| long(at).into()),
            per_segment: 1_u64.checked_shl(long(20)).unwrap_or(0),
            segments: Vec::new(),
        })
    }

    /// The parts of `bytes`, and what is there.
    pub(super) fn classes(&self, bytes: &Range<u64>) -> Vec<(Range<u64>, Class)> {
        let mut all = Vec::new();
        for block in bytes.start / BLOCK..bytes.end.div_ceil(BLOCK) {
            append(
                &mut all,
                block * BLOCK..(block + 1) * BLOCK,
                self.class(block),
            );
        }
        all
    }

    fn class(&self, block: u64) -> Class {
        let names = [
            "superblock",
            "checkpoint",
            "list of segments",
            "list of nodes",
            "summaries of segments",
        ];
        let area = self.areas.iter().filter(|start| **start <= block).count();
        if let Some(name) = names.get(area) {
            return Class::Known(Kind::Metadata, name);
        }
        let in_main = block - self.areas[4];
        let segment = in_main.checked_div(self.per_segment);
        let segment = segment.and_then(|segment| self.segments.get(segment as usize));
        match segment {
            Some(segment) if !segment.is_valid(in_main % self.per_segment) => {
                Class::Known(Kind::Free, "free space")
            }
            // What is in its inode is a file's data, too.
            Some(segment) if segment.has_nodes => {
                Class::Perhaps(Kind::Metadata, "an inode, or a list of a file's blocks")
            }
            Some(_) => Class::Perhaps(Kind::Unknown, "in use, but by no file with a name"),
            None => Class::Perhaps(
                Kind::Unknown,
                "free space or metadata: the kernel does not say",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_valid_or_free() {
        let mut block = [0; 1024];
        let mut put = |at: usize, number: u32| {
            block[at..at + 4].copy_from_slice(&number.to_le_bytes());
        };
        put(0, MAGIC);
        put(16, 12);
        put(20, 4);
        for (at, start) in [(76, 2), (80, 4), (84, 6), (88, 8), (92, 10)] {
            put(at, start);
        }
        let mut f2fs = F2fs::parse(&block).unwrap();
        let class = |f2fs: &F2fs, block: u64| match &f2fs
            .classes(&(block * BLOCK..block * BLOCK + 512))[..]
        {
            [(_, Class::Known(kind, what))] => (*kind, *what),
            [(range, Class::Perhaps(kind, _))] => {
                assert_eq!(range.end - range.start, BLOCK);
                (*kind, "perhaps")
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(class(&f2fs, 0), (Kind::Metadata, "superblock"));
        assert_eq!(class(&f2fs, 3), (Kind::Metadata, "checkpoint"));
        assert_eq!(class(&f2fs, 9), (Kind::Metadata, "summaries of segments"));
        assert_eq!(class(&f2fs, 10), (Kind::Unknown, "perhaps"));
        let lines = [
            "format: segment_type|valid_blocks|bitmaps|mtime",
            "segment_type(0:HD, 1:WD, 2:CD, 3:HN, 4:WN, 5:CN)",
            "0         4|1  | 80 00| 12",
            "1         0|1  | 00 01| 0",
        ];
        f2fs.segments = lines.into_iter().filter_map(Segment::parse).collect();
        assert_eq!(f2fs.segments.len(), 2);
        assert_eq!(class(&f2fs, 10), (Kind::Metadata, "perhaps"));
        assert_eq!(class(&f2fs, 11), (Kind::Free, "free space"));
        assert_eq!(class(&f2fs, 10 + 16), (Kind::Free, "free space"));
        assert_eq!(class(&f2fs, 10 + 31), (Kind::Unknown, "perhaps"));
        assert!(F2fs::parse(&[0; 1024]).is_err());
    }
}
