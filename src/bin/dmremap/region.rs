// SPDX-License-Identifier: GPL-2.0

//! The region of a spare: opened so that nobody else has it, read and written in blocks.

use crate::cli::{Bounds, Spare};
use crate::dm::{path_of, Device};
use crate::holder;
use crate::main_device::place;
use crate::ui;
use anyhow::{bail, ensure, Context as _, Result};
use dm_remap::engine::format::Block;
use dm_remap::engine::geometry::{BLOCK_SECTORS, BLOCK_SIZE};
use dm_remap::engine::SECTOR_SIZE;
use rustix::fs::{
    fadvise, flock, ioctl_blkpbszget, ioctl_blksszget, Advice, FlockOperation, OFlags,
};
use rustix::io::Errno;
use std::fs::{metadata, File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

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

/// The blocks from `first` on that `bytes` fill, in words.
fn range(first: u64, bytes: &[u8]) -> String {
    match (bytes.len() / BLOCK_SIZE) as u64 {
        0 | 1 => format!("block {first}"),
        count => format!("blocks {first} to {}", first + count - 1),
    }
}

/// Whether `path` is a block device; if not, it is a file. Anything else is refused.
pub(crate) fn is_block_device(path: &Path) -> Result<bool> {
    let name = || path.display().to_string();
    let kind = metadata(path).with_context(name)?.file_type();
    ensure!(
        kind.is_block_device() || kind.is_file(),
        "{}: neither a block device nor a file",
        name()
    );
    Ok(kind.is_block_device())
}

/// How often, with 100 ms between, something is tried that somebody else is in the way of.
const TRIES: u32 = 30;

/// Tries to open or lock `path`, again and again for a moment: who is in the way may be about to end.
fn patiently<T>(path: &Path, mut attempt: impl FnMut() -> io::Result<T>) -> Result<T> {
    let name = path.display();
    let mut tries = 0;
    loop {
        let result = attempt();
        let error = result.as_ref().err().and_then(io::Error::raw_os_error);
        let in_use = [Errno::BUSY, Errno::AGAIN].map(|e| Some(e.raw_os_error()));
        if !in_use.contains(&error) {
            return result.with_context(|| name.to_string());
        }
        // That does not end by itself.
        must_not_be_held(path)?;
        if tries == 0 || tries == TRIES {
            let by =
                holder::process(path).map_or(String::new(), |process| format!(" by {process}"));
            ensure!(tries < TRIES, "{name}: in use{by}");
            let _ = writeln!(io::stderr(), "{name}: in use{by}, waiting");
        }
        tries += 1;
        sleep(Duration::from_millis(100));
    }
}

/// Refuses a device or file that somebody below the level of processes uses.
fn must_not_be_held(path: &Path) -> Result<()> {
    if let Some(user) = holder::of(path) {
        bail!("{}: in use: {user}", path.display());
    }
    Ok(())
}

impl Region {
    /// Opens a spare; refuses one that is in use.
    pub(crate) fn open(spare: &Spare, access: Access) -> Result<Self> {
        Self::open_at(&spare.spare, &spare.bounds, access)
    }

    /// Opens the region of `path` that `bounds` says; refuses a device that is in use.
    ///
    /// Those who read share it, who writes has it alone.
    pub(crate) fn open_at(path: &Path, bounds: &Bounds, access: Access) -> Result<Self> {
        let name = path.display().to_string();
        let is_device = is_block_device(path)?;
        let mut flags = OFlags::NONBLOCK;
        if is_device && access == Access::Write {
            // Refused by the kernel if the device is mounted or another device lies on it.
            flags |= OFlags::EXCL;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::Write);
        options.custom_flags(flags.bits() as i32);
        let mut file = patiently(path, || options.open(path))?;
        let lock = match access {
            Access::Read => FlockOperation::NonBlockingLockShared,
            Access::Write => FlockOperation::NonBlockingLockExclusive,
        };
        patiently(path, || Ok(flock(&file, lock)?))?;
        must_not_be_held(path)?;
        if is_device {
            // Device-mapper wrote past the page cache.
            let _ = fadvise(&file, 0, None, Advice::DontNeed);
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

    /// Opens the region of `path` that `bounds` says for reading, whoever uses it.
    pub(crate) fn open_active(path: &Path, bounds: &Bounds) -> Result<Self> {
        let name = path.display().to_string();
        let mut file = File::open(path).with_context(|| name.clone())?;
        // Device-mapper wrote past the page cache.
        let _ = fadvise(&file, 0, None, Advice::DontNeed);
        let all = sectors_of(&mut file).with_context(|| name.clone())?;
        let rest = all.checked_sub(bounds.spare_start);
        let rest = rest.filter(|rest| *rest >= bounds.spare_sectors.unwrap_or(0));
        let rest =
            rest.with_context(|| format!("{name}: ends at sector {all}, before the region does"))?;
        Ok(Self {
            file,
            name,
            start: bounds.spare_start * u64::from(SECTOR_SIZE),
            blocks: bounds.spare_sectors.unwrap_or(rest) / BLOCK_SECTORS,
        })
    }

    /// Opens the spare of an active device for reading.
    pub(crate) fn open_spare_of(device: &Device) -> Result<Self> {
        let bounds = Bounds {
            spare_start: device.line.spare_start,
            spare_sectors: device.line.features.spare_sectors,
        };
        Self::open_active(&path_of(device.spare), &bounds)
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
        ui::step(|| format!("{}: reads {}", self.name, range(block, to)));
        let read = self.file.read_exact_at(to, offset);
        read.with_context(|| format!("{}: cannot read block {block}", self.name))
    }

    /// Writes whole blocks from block `block` on; durable after [`Self::sync`].
    pub(crate) fn write(&self, block: u64, from: &[u8]) -> Result<()> {
        let offset = self.offset(block, from.len() / BLOCK_SIZE)?;
        ui::must_not_be_dry_run()?;
        ui::step(|| format!("{}: writes {}", self.name, range(block, from)));
        #[cfg(test)]
        crate::cuts::note(crate::cuts::Step::Write(block, from.to_vec()));
        let written = self.file.write_all_at(from, offset);
        written.with_context(|| format!("{}: cannot write block {block}", self.name))
    }

    /// Makes everything durable that was written.
    pub(crate) fn sync(&self) -> Result<()> {
        #[cfg(test)]
        crate::cuts::note(crate::cuts::Step::Sync);
        ui::step(|| format!("{}: flushes", self.name));
        let synced = self.file.sync_data();
        synced.with_context(|| format!("{}: cannot flush", self.name))
    }

    /// Refuses a main, `sectors` of `main` from sector `start` on, that has sectors of the first `blocks` blocks.
    pub(crate) fn must_not_overlap(
        &self,
        blocks: u64,
        main: &Path,
        start: u64,
        sectors: u64,
    ) -> Result<()> {
        let (disk, first) = place(&rustix::fs::fstat(&self.file)?);
        let (main_disk, main_first) = place(&rustix::fs::stat(main)?);
        let range = |first: u64, start: u64, sectors: u64| {
            let from = first.saturating_add(start);
            from..from.saturating_add(sectors)
        };
        let own_start = self.start / u64::from(SECTOR_SIZE);
        let own_sectors = blocks * BLOCK_SECTORS;
        let ours = range(first, own_start, own_sectors);
        let theirs = range(main_first, start, sectors);
        ensure!(
            disk != main_disk || ours.end <= theirs.start || theirs.end <= ours.start,
            "{}: main and spare overlap: main is {sectors} sectors of {} from sector {start} on, \
             the spare {own_sectors} from sector {own_start} on",
            self.name,
            main.display()
        );
        Ok(())
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
    is_block_device(path)?;
    let mut options = OpenOptions::new();
    options.read(true);
    options.custom_flags(OFlags::NONBLOCK.bits() as i32);
    let mut file = options.open(path).with_context(name)?;
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
