// SPDX-License-Identifier: GPL-2.0

//! The region of a spare: opened so that nobody else has it, read and written in blocks.

use crate::cli::{Bounds, Spare};
use anyhow::{bail, ensure, Context as _, Result};
use dm_remap::engine::format::Block;
use dm_remap::engine::geometry::{BLOCK_SECTORS, BLOCK_SIZE};
use dm_remap::engine::SECTOR_SIZE;
use rustix::fs::{fadvise, flock, ioctl_blkpbszget, ioctl_blksszget, Advice, FlockOperation};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Bytes of a window of [`Reader`].
const WINDOW: usize = 1 << 20;

/// What is to be done with a region.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// A region of whole blocks on an open device or file.
pub(crate) struct Region {
    file: File,
    /// The device's name.
    pub(crate) name: String,
    start: u64,
    /// Length in blocks.
    pub(crate) blocks: u64,
}

/// Length in sectors of a device or file.
fn sectors_of(file: &mut File) -> Result<u64> {
    Ok(file.seek(SeekFrom::End(0))? / u64::from(SECTOR_SIZE))
}

/// The loop device that serves an image file, if there is one.
fn loop_device_of(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let devices = std::fs::read_dir("/sys/block").ok()?;
    let mut devices = devices.filter_map(|entry| entry.ok());
    let used = devices.find(|device| {
        let backing = std::fs::read_to_string(device.path().join("loop/backing_file"));
        backing.is_ok_and(|backing| Path::new(backing.trim_end()) == path)
    })?;
    Some(format!("/dev/{}", used.file_name().to_string_lossy()))
}

impl Region {
    /// Opens a spare; refuses one that is in use.
    pub(crate) fn open(spare: &Spare, access: Access) -> Result<Self> {
        Self::open_at(&spare.spare, &spare.bounds, access)
    }

    /// Opens the region of `path` that `bounds` says; refuses a device that is in use.
    pub(crate) fn open_at(path: &Path, bounds: &Bounds, access: Access) -> Result<Self> {
        let name = path.display().to_string();
        let kind = std::fs::metadata(path)
            .with_context(|| name.clone())?
            .file_type();
        let is_device = kind.is_block_device();
        ensure!(
            is_device || kind.is_file(),
            "{name}: neither a block device nor a file"
        );
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::Write);
        if is_device {
            // Refused by the kernel if the device is mounted or another device lies on it.
            options.custom_flags(rustix::fs::OFlags::EXCL.bits() as i32);
        }
        let mut file = match options.open(path) {
            Err(e) if e.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => bail!(
                "{name}: in use (mounted, or below an active device). \
                 An active remap device answers for itself: dmsetup message <device> 0 check"
            ),
            result => result.with_context(|| name.clone())?,
        };
        if is_device {
            // Device-mapper wrote past the page cache.
            let _ = fadvise(&file, 0, None, Advice::DontNeed);
        } else {
            let lock = match access {
                Access::Read => FlockOperation::NonBlockingLockShared,
                Access::Write => FlockOperation::NonBlockingLockExclusive,
            };
            ensure!(
                flock(&file, lock).is_ok(),
                "{name}: in use by another process"
            );
            if let Some(device) = loop_device_of(path) {
                bail!("{name}: in use by {device}; give that, or detach it");
            }
        }
        let all = sectors_of(&mut file).with_context(|| name.clone())?;
        let rest = all.checked_sub(bounds.spare_start);
        let Some(rest) = rest.filter(|rest| *rest >= bounds.spare_sectors.unwrap_or(0)) else {
            bail!("{name}: ends at sector {all}, before --spare-start and --spare-sectors");
        };
        Ok(Self {
            file,
            name,
            start: bounds.spare_start * u64::from(SECTOR_SIZE),
            blocks: bounds.spare_sectors.unwrap_or(rest) / BLOCK_SECTORS,
        })
    }

    /// Shortens the region.
    pub(crate) fn truncate(&mut self, blocks: u64) {
        self.blocks = self.blocks.min(blocks);
    }

    fn offset(&self, block: u64, count: usize) -> Result<u64> {
        let end = block.checked_add(count as u64);
        ensure!(
            end.is_some_and(|end| end <= self.blocks),
            "{}: block {block} is past the end of the region",
            self.name
        );
        Ok(self.start + block * BLOCK_SIZE as u64)
    }

    /// Reads whole blocks from block `block` on.
    pub(crate) fn read(&self, block: u64, to: &mut [u8]) -> Result<()> {
        let offset = self.offset(block, to.len() / BLOCK_SIZE)?;
        let read = self.file.read_exact_at(to, offset);
        read.with_context(|| format!("{}: cannot read block {block}", self.name))
    }

    /// Writes whole blocks from block `block` on; durable after [`Self::sync`].
    pub(crate) fn write(&self, block: u64, from: &[u8]) -> Result<()> {
        let offset = self.offset(block, from.len() / BLOCK_SIZE)?;
        #[cfg(test)]
        crate::cuts::note(crate::cuts::Step::Write(block, from.to_vec()));
        let written = self.file.write_all_at(from, offset);
        written.with_context(|| format!("{}: cannot write block {block}", self.name))
    }

    /// Makes everything durable that was written.
    pub(crate) fn sync(&self) -> Result<()> {
        #[cfg(test)]
        crate::cuts::note(crate::cuts::Step::Sync);
        let synced = self.file.sync_data();
        synced.with_context(|| format!("{}: cannot flush", self.name))
    }

    /// Whether this is the device or file at `path`.
    pub(crate) fn is_same_as(&self, path: &Path) -> bool {
        let ours = rustix::fs::fstat(&self.file).ok();
        let other = rustix::fs::stat(path).ok();
        let identity = |s: rustix::fs::Stat| {
            let is_device = s.st_rdev != 0;
            (
                s.st_rdev,
                if is_device {
                    (0, 0)
                } else {
                    (s.st_dev, s.st_ino)
                },
            )
        };
        ours.map(identity) == other.map(identity)
    }

    /// Logical and physical block size in sectors; a file has blocks of a sector.
    pub(crate) fn block_sizes(&self) -> [u32; 2] {
        block_sizes(&self.file)
    }

    /// A reader of single blocks, fast where they are in a row.
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader {
            region: self,
            windows: Vec::new(),
            next: 0,
            worn: Vec::new(),
        }
    }
}

fn block_sizes(file: &File) -> [u32; 2] {
    let sectors = |bytes: Result<u32, Errno>| bytes.map_or(1, |bytes| bytes / SECTOR_SIZE);
    [
        sectors(ioctl_blksszget(file)),
        sectors(ioctl_blkpbszget(file)),
    ]
}

/// Length of a device or file in sectors, and its block sizes as [`Region::block_sizes`] has them.
pub(crate) fn measure(path: &Path) -> Result<(u64, [u32; 2])> {
    let name = || path.display().to_string();
    let mut file = File::open(path).with_context(name)?;
    Ok((
        sectors_of(&mut file).with_context(name)?,
        block_sizes(&file),
    ))
}

/// Reads blocks, with a window of 1 MiB for each of the four streams that there can be.
pub(crate) struct Reader<'a> {
    region: &'a Region,
    windows: Vec<(u64, Vec<u8>)>,
    next: usize,
    /// Windows that could not be read whole: their blocks are read one by one.
    worn: Vec<Range<u64>>,
}

impl Reader<'_> {
    /// Reads the first of `blocks`, the others of which may be asked for next; `false` if it cannot be read.
    pub(crate) fn read(&mut self, blocks: Range<u64>, to: &mut Block) -> bool {
        let block = blocks.start;
        let hit = |(first, bytes): &(u64, Vec<u8>)| {
            let from = usize::try_from(block.checked_sub(*first)?)
                .ok()?
                .checked_mul(BLOCK_SIZE)?;
            bytes.get(from..)?.first_chunk::<BLOCK_SIZE>().copied()
        };
        if let Some(found) = self.windows.iter().find_map(hit) {
            *to = found;
            return true;
        }
        if self.worn.iter().any(|worn| worn.contains(&block)) {
            return self.region.read(block, to).is_ok();
        }
        let left = self.region.blocks.min(blocks.end).saturating_sub(block);
        let count = left.min((WINDOW / BLOCK_SIZE) as u64);
        let mut bytes = vec![0; count as usize * BLOCK_SIZE];
        if self.region.read(block, &mut bytes).is_err() || count == 0 {
            self.worn.push(block..block + count);
            return self.region.read(block, to).is_ok();
        }
        to.copy_from_slice(&bytes[..BLOCK_SIZE]);
        let window = (block, bytes);
        if self.windows.len() < 4 {
            self.windows.push(window);
        } else {
            self.windows[self.next % 4] = window;
            self.next += 1;
        }
        true
    }
}
