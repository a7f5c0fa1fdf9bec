// SPDX-License-Identifier: GPL-2.0

//! Changing records of a table whose replicas are all sound.

use crate::image::{crc32c, next, table_at, Image};
use crate::region::Region;
use crate::ui;
use anyhow::{bail, Result};
use dm_remap::engine::format::{seal_table_block, set_record, table_generation, Block, Update};
use dm_remap::engine::geometry::BLOCK_SIZE;
use std::collections::BTreeMap;

/// Puts `updates`, made at `now` (seconds since 1970), into the table of `image`, which was read from
/// `region` and has neither damaged nor stale copies. Durable when it returns.
///
/// After a power cut each table block is as before or as after; so no update may rely on one in another
/// block.
pub(crate) fn records(region: &Region, image: &Image, updates: &[Update], now: u64) -> Result<()> {
    let g = image.geometry();
    let mut changes: BTreeMap<u64, Vec<&Update>> = BTreeMap::new();
    for update in updates {
        let (number, _) = g.record_of(update.slot);
        changes.entry(number).or_default().push(update);
    }
    let mut blocks: Vec<(u64, Box<Block>)> = Vec::with_capacity(changes.len());
    for (number, updates) in changes {
        // All replicas are the same.
        let mut block = Box::new([0; BLOCK_SIZE]);
        region.read(table_at(g, 0, number), &mut block[..])?;
        let generation = table_generation(&block, &image.superblock().uuid, number, crc32c);
        let Ok(generation) = generation else {
            bail!("{}: table block {number} changed meanwhile", region.name);
        };
        for update in updates {
            let (_, index) = g.record_of(update.slot);
            set_record(&mut block, index, update, now);
        }
        seal_table_block(&mut block, next(generation)?, crc32c);
        blocks.push((number, block));
    }
    // One replica of everything is durable before the next one is touched: a cut tears blocks of
    // one replica only.
    let copies = g.areas().len();
    let bar = ui::progress("writing", (blocks.len() * copies) as u64);
    for copy in 0..copies {
        for (number, block) in &blocks {
            region.write(table_at(g, copy, *number), &block[..])?;
            bar.inc(1);
        }
        region.sync()?;
    }
    bar.finish_and_clear();
    Ok(())
}
