// SPDX-License-Identifier: GPL-2.0

//! Which sectors of an active device nobody can read now.
//!
//! The kernel lists units. Of those that are pending or partly relocated, only reading tells which sectors are bad.

use crate::active::{entries, status_number, unit_sectors, Entry};
use crate::dm::{attribute, directory, Device};
use crate::image::Image;
use crate::ui;
use anyhow::{bail, ensure, Context as _, Result};
use rustix::fs::{ioctl_blkpbszget, ioctl_blksszget, OFlags};
use rustix::io::{preadv2, Errno, ReadWriteFlags};
use serde::Serialize;
use std::collections::{BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

const SECTOR: u64 = 512;

/// Sectors of the largest unit.
const LARGEST: u64 = 64;

/// How a sector is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// Main cannot read it, and nothing of it is on the spare.
    Pending,
    /// The slot that held it failed.
    Lost,
    /// The spare holds it.
    Relocated,
    /// Main does.
    Healthy,
}

impl State {
    /// Whether reading it is an error.
    pub(crate) fn is_bad(self) -> bool {
        matches!(self, Self::Pending | Self::Lost)
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Pending => "pending",
            Self::Lost => "lost",
            Self::Relocated => "relocated",
            Self::Healthy => "healthy",
        })
    }
}

/// A buffer as direct I/O wants it.
#[repr(align(4096))]
struct Room([u8; (LARGEST * SECTOR) as usize]);

/// The mapped device, past the page cache.
pub(crate) struct Direct {
    file: File,
    /// The same through the page cache.
    cached: File,
    /// Sectors that can be read and written together, at least.
    pub(crate) block: u64,
    /// Sectors that are bad together, as far as the disk says.
    pub(crate) physical: u64,
}

impl Direct {
    pub(crate) fn open(device: &Device, write: bool) -> Result<Self> {
        ensure!(
            !device.suspended,
            "{0}: suspended, so reading it would wait until dmsetup resume {0}",
            device.name
        );
        must_answer(device)?;
        let path = device.path();
        let flags = OFlags::DIRECT.bits() as i32;
        let mut options = OpenOptions::new();
        options.read(true).write(write).custom_flags(flags);
        let file = options
            .open(&path)
            .with_context(|| path.display().to_string())?;
        let cached = File::open(&path).with_context(|| path.display().to_string())?;
        // Only the block that is asked for.
        let _ = rustix::fs::fadvise(&cached, 0, None, rustix::fs::Advice::Random);
        let bytes = ioctl_blksszget(&file).map_or(SECTOR, u64::from);
        ensure!(bytes <= 4096, "{}: blocks of {bytes} bytes", path.display());
        let directory = directory(device.number);
        let is_aligned = directory.and_then(|it| attribute(&it, "alignment_offset"));
        // Where its blocks do not begin where the disk's do, they are not bad together.
        let physical = match is_aligned.as_deref() {
            Some("0") => ioctl_blkpbszget(&file).map_or(bytes, u64::from).max(bytes),
            _ => bytes,
        };
        Ok(Self {
            file,
            cached,
            block: bytes / SECTOR,
            physical: physical / SECTOR,
        })
    }

    /// Whether sectors can be read together, a unit at most. They cannot if they are bad; that the disk does not answer, or
    /// anything else, says nothing of them, and is an error.
    pub(crate) fn can_read(&self, sectors: Range<u64>) -> Result<bool> {
        let mut room = Room([0; (LARGEST * SECTOR) as usize]);
        let length = (sectors.end - sectors.start) * SECTOR;
        let room = &mut room.0[..length as usize];
        verdict(self.file.read_exact_at(room, sectors.start * SECTOR)).with_context(|| {
            format!(
                "sectors {} to {}: not known to be bad",
                sectors.start,
                sectors.end - 1
            )
        })
    }

    /// Writes zeroes to the block at `sector`.
    pub(crate) fn zero(&self, sector: u64) -> io::Result<()> {
        self.write(sector, &[0; (LARGEST * SECTOR) as usize])
    }

    /// Writes the first bytes of `bytes` to the block at `sector`.
    pub(crate) fn write(&self, sector: u64, bytes: &[u8]) -> io::Result<()> {
        let length = (self.block * SECTOR) as usize;
        let mut room = Room([0; (LARGEST * SECTOR) as usize]);
        room.0[..length].copy_from_slice(&bytes[..length]);
        self.file.write_all_at(&room.0[..length], sector * SECTOR)
    }

    /// What the block at `sector` has in the page cache of the device, where a mounted file system keeps its metadata.
    pub(crate) fn in_memory(&self, sector: u64) -> Option<Vec<u8>> {
        let mut bytes = vec![0; (self.block * SECTOR) as usize];
        let at = sector * SECTOR;
        let mut room = [IoSliceMut::new(&mut bytes)];
        match preadv2(&self.cached, &mut room, at, ReadWriteFlags::NOWAIT) {
            Ok(read) => (read == bytes.len()).then_some(bytes),
            // It does not tell without reading what is not there, so that is one more read that fails.
            Err(Errno::OPNOTSUPP) => self
                .cached
                .read_exact_at(&mut bytes, at)
                .is_ok()
                .then_some(bytes),
            Err(_) => None,
        }
    }

    pub(crate) fn flush(&self) -> Result<()> {
        self.file.sync_all().context("cannot flush")
    }

    /// Of the blocks of `step` sectors from `wanted`, those that cannot be read.
    fn unreadable(&self, wanted: &[Range<u64>]) -> Result<Vec<Range<u64>>> {
        let mut bad = Vec::new();
        for run in wanted.chunk_by(|a, b| a.end == b.start) {
            // A command that fails takes a disk seconds, so first all of it at once.
            let all = run[0].start..run[run.len() - 1].end;
            if self.can_read(all)? {
                continue;
            }
            for block in run {
                if run.len() == 1 || !self.can_read(block.clone())? {
                    bad.push(block.clone());
                }
            }
        }
        Ok(bad)
    }
}

/// Whether something was read, or is bad: what the kernel says of a bad sector, and of nothing else, is ENODATA.
fn verdict(read: io::Result<()>) -> Result<bool> {
    match read {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(Errno::NODATA.raw_os_error()) => Ok(false),
        Err(error) => Err(error)
            .context("they cannot be read, but not because the disk says that they are bad"),
    }
}

/// Refuses a device whose disk does not answer: what is pending would be bad as a whole then.
pub(crate) fn must_answer(device: &Device) -> Result<()> {
    ensure!(
        !device.status()?.starts_with("tripped "),
        "{0}: the disk does not answer (tripped), so that nothing can be said of its sectors: see dmremap status {0}",
        device.name
    );
    Ok(())
}

/// Units without an entry, which only main has: if one of them can be read, main answers.
pub(crate) struct Witnesses<'a> {
    device: &'a Device,
    direct: &'a Direct,
    step: u64,
    /// Places, in steps, that something of has an entry.
    known: BTreeSet<u64>,
}

impl<'a> Witnesses<'a> {
    pub(crate) fn of(device: &'a Device, direct: &'a Direct) -> Result<Self> {
        let unit = unit_sectors(device)?;
        let step = unit.max(direct.block);
        let mut known = BTreeSet::new();
        entries(device, 0, &mut |_, entry| {
            known.insert(entry.sector / step);
            Ok(true)
        })?;
        Ok(Self {
            device,
            direct,
            step,
            known,
        })
    }

    /// An error if main does not answer, as far as sectors near `sector` tell. Before the kernel notices, it calls pending
    /// sectors bad without an answer.
    pub(crate) fn must_vouch(&self, sector: u64) -> Result<()> {
        must_answer(self.device)?;
        let all = self.device.sectors / self.step;
        for place in near(&self.known, sector / self.step, all) {
            let first = place * self.step;
            let can = self.direct.can_read(first..first + self.direct.block);
            // It may have become one of the spare's meanwhile.
            if can.unwrap_or(false) && query(self.device, first)?.state == "healthy" {
                return Ok(());
            }
        }
        bail!(
            "{0}: the disk does not answer: near sector {sector}, what should be healthy cannot be read either. See dmremap \
             status {0}",
            self.device.name
        )
    }
}

/// Of the `all` first numbers, those nearest to `place` that are not `known`: two on each side at most.
fn near(known: &BTreeSet<u64>, place: u64, all: u64) -> Vec<u64> {
    let is_free = |place: &u64| !known.contains(place);
    let below = (0..place.min(all)).rev().filter(is_free).take(2);
    let above = (place.saturating_add(1)..all).filter(is_free).take(2);
    above.chain(below).collect()
}

/// What the kernel says of the unit of a sector.
pub(crate) fn query(device: &Device, sector: u64) -> Result<Entry> {
    Entry::parse(&device.message(&["query", &sector.to_string()])?)
}

/// How to find out.
pub(crate) enum By<'a> {
    /// By reading blocks of so many sectors.
    Reading(&'a Direct, u64),
    /// Not at all: pending units are bad as a whole, and of others what is known to be lost.
    Belief,
}

/// Of each unit that has an entry and touches `within`, the sectors by their states, those of one state side by side together.
pub(crate) fn look(
    device: &Device,
    within: &Range<u64>,
    by: &By<'_>,
    see: &mut dyn FnMut(Range<u64>, State),
) -> Result<()> {
    let unit = unit_sectors(device)?;
    let lost = lost(device)?;
    let known = status_number(device, 4)? + status_number(device, 5)?;
    let bar = match by {
        By::Reading(..) => ui::slow_progress("reading", known),
        By::Belief => ui::progress("reading", known),
    };
    entries(device, within.start, &mut |_, entry| {
        if entry.sector >= within.end {
            return Ok(false);
        }
        let unit = entry.sector..(entry.sector + unit).min(device.sectors);
        let lost = lost.get(&entry.sector).copied().unwrap_or(0);
        let states = states(&entry, &unit, within, lost, by)?;
        let mut at = unit.start;
        for run in states.chunk_by(|a, b| a == b) {
            let end = at + run.len() as u64;
            let (from, to) = (at.max(within.start), end.min(within.end));
            if from < to {
                see(from..to, run[0]);
            }
            at = end;
        }
        bar.inc(1);
        Ok(true)
    })?;
    bar.finish_and_clear();
    Ok(())
}

/// The states of the sectors of `unit`, which `entry` is of. Only blocks that touch `within` are read.
fn states(
    entry: &Entry,
    unit: &Range<u64>,
    within: &Range<u64>,
    lost: u64,
    by: &By<'_>,
) -> Result<Vec<State>> {
    let bit = |mask: u64, sector: u64| mask >> (sector - unit.start) & 1 == 1;
    let is_held = |sector: u64| bit(entry.bits(), sector);
    let state = |sector: u64, is_bad: bool| match (is_held(sector), is_bad) {
        (true, _) => State::Relocated,
        (false, true) if bit(lost, sector) => State::Lost,
        (false, true) => State::Pending,
        (false, false) => State::Healthy,
    };
    let bad: Vec<Range<u64>> = match by {
        By::Belief if entry.bits() == 0 => vec![unit.clone()],
        By::Belief => unit
            .clone()
            .filter(|sector| bit(lost, *sector))
            .map(|sector| sector..sector + 1)
            .collect(),
        By::Reading(direct, step) => {
            let blocks = unit.clone().step_by(*step as usize);
            let blocks = blocks.map(|at| at..(at + step).min(unit.end));
            let wanted = blocks.filter(|block| {
                let is_inside = block.end > within.start && block.start < within.end;
                is_inside && !block.clone().all(is_held)
            });
            direct.unreadable(&wanted.collect::<Vec<_>>())?
        }
    };
    let is_bad = |sector: u64| bad.iter().any(|range| range.contains(&sector));
    Ok(unit.clone().map(|s| state(s, is_bad(s))).collect())
}

/// By first sector of the unit, the sectors that a slot took with it, as far as the spare can be read.
fn lost(device: &Device) -> Result<HashMap<u64, u64>> {
    let mut lost = HashMap::new();
    if status_number(device, 15)? > 0 {
        if let Ok((_, image)) = Image::of_active(device) {
            let all = image.entries.iter().filter(|entry| entry.lost != 0);
            lost.extend(all.map(|e| (image.geometry().unit_start(e.unit), e.lost)));
        }
    }
    Ok(lost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_reading_a_pending_unit_is_bad_as_a_whole() {
        let of = |line: &str, lost: u64| {
            let entry = Entry::parse(line).unwrap();
            states(&entry, &(8..16), &(0..99), lost, &By::Belief).unwrap()
        };
        assert_eq!(of("8 pending 1 0", 0), [State::Pending; 8]);
        let states = of("8 partial 1 f0", 0b0011);
        use State::{Healthy, Lost, Relocated};
        assert_eq!(states[..4], [Lost, Lost, Healthy, Healthy]);
        assert_eq!(states[4..], [Relocated; 4]);
    }

    #[test]
    fn only_what_the_disk_calls_bad_is_bad() {
        let of = |error: Errno| verdict(Err(io::Error::from(error)));
        assert!(verdict(Ok(())).unwrap());
        assert!(!of(Errno::NODATA).unwrap());
        for error in [Errno::IO, Errno::NOLINK, Errno::TIMEDOUT, Errno::NODEV] {
            of(error).unwrap_err();
        }
    }

    #[test]
    fn the_nearest_without_an_entry_are_asked() {
        let known = BTreeSet::from([3, 4, 6]);
        assert_eq!(near(&known, 4, 9), [5, 7, 2, 1]);
        assert_eq!(near(&known, 6, 7), [5, 2]);
        assert!(near(&BTreeSet::from([0]), 0, 1).is_empty());
    }
}
