// SPDX-License-Identifier: GPL-2.0

//! Changing a spare all of whose copies are sound: records, how much of the table is in use, superblocks.

use crate::image::{crc32c, next, read_superblock, superblock_at, table_at, Image};
use crate::region::Region;
use crate::ui;
use anyhow::{bail, Result};
use dm_remap::engine::format::{
    blank_table_block, seal_table_block, set_next_in_use, set_record, table_generation,
    update_superblock, Block, Superblock, Update,
};
use dm_remap::engine::geometry::BLOCK_SIZE;
use std::collections::BTreeMap;
use std::ops::Range;

/// Puts `updates`, made at `now` (seconds since 1970), into the table of `image`, which was read from
/// `region` and has neither damaged nor stale copies. Durable when it returns.
///
/// After a power cut each table block is as before or as after; so no update may rely on one in another
/// block.
pub(crate) fn records(region: &Region, image: &Image, updates: &[Update], now: u64) -> Result<()> {
    let blocks = changed_blocks(region, image, updates, now)?;
    write(region, image, &blocks)
}

/// Those table blocks of `image` that `updates` change, as they will be, for [`write`].
pub(crate) fn changed_blocks(
    region: &Region,
    image: &Image,
    updates: &[Update],
    now: u64,
) -> Result<Vec<(u64, Box<Block>)>> {
    let g = image.geometry();
    let mut changes: BTreeMap<u64, Vec<&Update>> = BTreeMap::new();
    for update in updates {
        let (number, _) = g.record_of(update.slot);
        changes.entry(number).or_default().push(update);
    }
    let mut blocks: Vec<(u64, Box<Block>)> = Vec::with_capacity(changes.len());
    for (number, updates) in changes {
        let change = |block: &mut Block| {
            for update in updates {
                let (_, index) = g.record_of(update.slot);
                set_record(block, index, update, now);
            }
        };
        blocks.push((number, changed(region, image, number, change)?));
    }
    Ok(blocks)
}

/// Table block `number` with a change, of the next generation.
fn changed(
    region: &Region,
    image: &Image,
    number: u64,
    change: impl FnOnce(&mut Block),
) -> Result<Box<Block>> {
    let mut block = Box::new([0; BLOCK_SIZE]);
    region.read(image.newest_at(number), &mut block[..])?;
    let generation = table_generation(&block, &image.superblock().uuid, number, crc32c);
    let Ok(generation) = generation else {
        bail!("{}: table block {number} changed meanwhile", region.name);
    };
    change(&mut block);
    seal_table_block(&mut block, next(generation)?, crc32c);
    Ok(block)
}

/// Writes table blocks, to all replicas.
pub(crate) fn write(region: &Region, image: &Image, blocks: &[(u64, Box<Block>)]) -> Result<()> {
    let g = image.geometry();
    // One replica of everything is durable before the next one is touched: a cut tears blocks of
    // one replica only.
    let copies = g.areas().len();
    let bar = ui::progress("writing", (blocks.len() * copies) as u64);
    for copy in 0..copies {
        for (number, block) in blocks {
            region.write(table_at(g, copy, *number), &block[..])?;
            bar.inc(1);
        }
        region.sync()?;
    }
    bar.finish_and_clear();
    Ok(())
}

/// Takes one part more of the table in use. Returns how many blocks are then; `None`: all were.
pub(crate) fn extend(region: &Region, image: &Image, in_use: u64) -> Result<Option<u64>> {
    let g = image.geometry();
    let Some(next) = g.next_part(in_use) else {
        return Ok(None);
    };
    blank_blocks(region, image.superblock(), in_use..next, &mut |_| ())?;
    region.sync()?;
    // Nothing leads to the new blocks before this.
    let last = in_use - 1;
    let block = changed(region, image, last, |block| set_next_in_use(block, next))?;
    write(region, image, &[(last, block)])?;
    Ok(Some(next))
}

/// Writes table blocks that have no records, and calls `done` with how many it wrote.
pub(crate) fn blank_blocks(
    region: &Region,
    superblock: &Superblock,
    numbers: Range<u64>,
    done: &mut dyn FnMut(u64),
) -> Result<()> {
    let g = &superblock.geometry;
    let mut chunk = Vec::new();
    for copy in 0..g.areas().len() {
        for first in numbers.clone().step_by(256) {
            chunk.clear();
            for number in first..numbers.end.min(first + 256) {
                let mut block: Block = [0; BLOCK_SIZE];
                blank_table_block(&mut block, &superblock.uuid, number, crc32c);
                chunk.extend_from_slice(&block);
            }
            region.write(table_at(g, copy, first), &chunk)?;
            done((chunk.len() / BLOCK_SIZE) as u64);
        }
    }
    Ok(())
}

/// Makes the label and main of both superblocks, which are `old`, those of `new`. Copy by copy: a cut tears at most one.
pub(crate) fn superblock(region: &Region, old: &Superblock, new: Superblock) -> Result<()> {
    let new = Superblock {
        generation: next(old.generation)?,
        ..new
    };
    for copy in [0, 1] {
        let mut block = read_superblock(region, old, copy)?;
        update_superblock(&mut block, copy, &new, crc32c);
        region.write(superblock_at(&old.geometry, copy), &block)?;
        region.sync()?;
    }
    Ok(())
}
