// SPDX-License-Identifier: GPL-2.0

//! Looking for superblocks in places where none should be.

use crate::cli::{Bounds, Spare};
use crate::dump::uuid;
use crate::image::{crc32c, probe, Refused};
use crate::label::decode;
use crate::output::stdout;
use crate::region::{Access, Region};
use crate::ui;
use anyhow::{Error, Result};
use dm_remap::engine::format::{is_unused_table, is_used_table, Block, Fault, Superblock};
use dm_remap::engine::geometry::{BLOCK_SECTORS, BLOCK_SIZE};
use dm_remap::engine::image::BLANK_BLOCKS;
use std::io::{stderr, Write as _};
use std::ops::Range;

/// A sound superblock.
pub(crate) struct Sighting {
    /// Its block, from the start of the region that was searched.
    pub(crate) at: u64,
    /// Which copy it is.
    copy: u64,
    pub(crate) superblock: Superblock,
}

impl Sighting {
    /// In words: uuid and label of the spare.
    pub(crate) fn name(&self) -> String {
        name(&self.superblock)
    }

    /// First block of its region. `None`: before the start of the one that was searched.
    pub(crate) fn first(&self) -> Option<u64> {
        match self.copy {
            0 => Some(self.at),
            _ => (self.at + 1).checked_sub(self.superblock.geometry.spare_sectors / BLOCK_SECTORS),
        }
    }
}

/// Which spare that is, in words.
pub(crate) fn name(superblock: &Superblock) -> String {
    let (uuid, label) = (uuid(&superblock.uuid), decode(&superblock.label));
    format!("uuid {uuid}, label {label:?}")
}

/// The first and the last MiB of those blocks.
pub(crate) fn ends(blocks: Range<u64>) -> [Range<u64>; 2] {
    let first = blocks.end.min(blocks.start + BLANK_BLOCKS);
    let last = blocks.end.saturating_sub(BLANK_BLOCKS).max(first);
    [blocks.start..first, last..blocks.end]
}

/// Calls `found` with each sound superblock in `blocks`. What cannot be read is left out.
pub(crate) fn superblocks(
    region: &Region,
    blocks: Range<u64>,
    mut found: impl FnMut(Sighting) -> Result<()>,
) -> Result<()> {
    let bar = ui::progress("looking for superblocks", blocks.end - blocks.start);
    let mut reader = region.reader();
    let mut block: Block = [0; BLOCK_SIZE];
    for at in blocks.clone() {
        if at % BLANK_BLOCKS == 0 {
            bar.set_position(at - blocks.start);
        }
        if !reader.read(at..blocks.end, &mut block) {
            continue;
        }
        for copy in [0, 1] {
            if let Ok(superblock) = Superblock::read(&block, copy, crc32c) {
                bar.suspend(|| {
                    found(Sighting {
                        at,
                        copy,
                        superblock,
                    })
                })?;
            }
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Whether there is a table of a spare near the start of the region.
fn has_table(region: &Region) -> bool {
    let mut reader = region.reader();
    let mut block: Block = [0; BLOCK_SIZE];
    let [first, _] = ends(0..region.blocks);
    first.clone().any(|at| {
        reader.read(at..first.end, &mut block)
            && (is_used_table(&block) || is_unused_table(&block, crc32c))
    })
}

/// Why a spare cannot be read is `why`. If neither end has a superblock, the region may be shorter than was said, or lie
/// elsewhere: names those regions of the device that have one.
///
/// That reads the whole device. So it is done `always`, or if there is a table that shows that there was a spare.
pub(crate) fn elsewhere(region: Region, spare: &Spare, always: bool, why: Error) -> Result<Error> {
    let lost = |copy: &Result<Superblock, Fault>| matches!(copy, Err(Fault::Damaged(_)));
    if !why.is::<Refused>()
        || !probe(&region).copies.iter().all(lost)
        || !(always || has_table(&region))
    {
        return Ok(why);
    }
    // It holds a lock.
    drop(region);
    let start = spare.bounds.spare_start;
    let bounds = Bounds {
        spare_start: start,
        spare_sectors: None,
    };
    let region = Region::open_at(&spare.spare, &bounds, Access::Read)?;
    let _ = writeln!(
        stderr(),
        "{}: no superblock where it should be; looking for one elsewhere",
        region.name
    );
    let mut known = Vec::new();
    superblocks(&region, 0..region.blocks, |sighting| {
        let sectors = sighting.superblock.geometry.spare_sectors;
        let place = (sighting.first(), sectors);
        let (Some(first), false) = (place.0, known.contains(&place)) else {
            return Ok(());
        };
        known.push(place);
        let first = start + first * BLOCK_SECTORS;
        let starts = match first {
            0 => String::new(),
            _ => format!("--spare-start {first} "),
        };
        writeln!(
            stdout(),
            "{}: a superblock of a region of {sectors} sectors ({}) lies at sector {}: \
             give {starts}--spare-sectors {sectors}",
            region.name,
            sighting.name(),
            start + sighting.at * BLOCK_SECTORS
        )?;
        Ok(())
    })?;
    if known.is_empty() {
        return Ok(why.context("no superblock elsewhere on it"));
    }
    Ok(why)
}
