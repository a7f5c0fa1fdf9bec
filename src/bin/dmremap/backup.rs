// SPDX-License-Identifier: GPL-2.0

//! What a repair replaces, kept in a file, and put back.

use crate::image::{crc32c, must_not_be_read_only, open, superblock_at, table_at};
use crate::region::Region;
use crate::search::name;
use crate::{ui, whole_file, Status};
use anyhow::{bail, ensure, Context as _, Result};
use dm_remap::engine::format::{Block, Superblock};
use dm_remap::engine::geometry::{Geometry, BLOCK_SIZE};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

/// First bytes of a backup file. Little endian, there follow:
/// - the superblock that counted, as copy 0;
/// - of each block that could be read its number, u64, the CRC-32Cs of all that the repair makes of it, two u32, and its
///   bytes;
/// - a CRC-32C of all before.
const MAGIC: &[u8; 16] = b"dmremap backup 2";

/// A block that was replaced.
struct Saved {
    number: u64,
    becomes: [u32; 2],
    block: Block,
}

/// Writes a new file with the blocks that are to be replaced: those in `places`, with the CRC-32Cs of what they become first
/// and in the end.
pub(crate) fn save(
    region: &Region,
    superblock: &Superblock,
    places: &BTreeMap<u64, [u32; 2]>,
    path: &Path,
) -> Result<()> {
    whole_file::create(path, |out| {
        let mut crc = 0;
        let mut put = |bytes: &[u8]| {
            crc = crc32c(crc, bytes);
            out.write_all(bytes)
        };
        let mut block: Block = [0; BLOCK_SIZE];
        superblock.write(&mut block, 0, crc32c);
        put(MAGIC)?;
        put(&block)?;
        for (number, becomes) in places {
            // One that cannot be read has nothing to be saved.
            if region.read(*number, &mut block).is_ok() {
                put(&number.to_le_bytes())?;
                for crc in becomes {
                    put(&crc.to_le_bytes())?;
                }
                put(&block)?;
            }
        }
        Ok(out.write_all(&crc.to_le_bytes())?)
    })
}

/// The superblock of a backup, and its blocks.
fn load(path: &Path) -> Result<(Superblock, Vec<Saved>)> {
    let bytes = std::fs::read(path)?;
    let (rest, crc) = bytes.split_last_chunk::<4>().context("too short")?;
    let rest = rest.strip_prefix(MAGIC);
    let rest = rest.context("not a backup of this version of dmremap")?;
    ensure!(
        crc32c(crc32c(0, MAGIC), rest) == u32::from_le_bytes(*crc),
        "incomplete or damaged"
    );
    let (superblock, rest) = rest.split_first_chunk().context("too short")?;
    let Ok(superblock) = Superblock::read(superblock, 0, crc32c) else {
        bail!("its superblock cannot be read");
    };
    let saved = |item: &[u8]| {
        let (number, item) = item.split_first_chunk()?;
        let (first, item) = item.split_first_chunk()?;
        let (last, item) = item.split_first_chunk()?;
        Some(Saved {
            number: u64::from_le_bytes(*number),
            becomes: [*first, *last].map(u32::from_le_bytes),
            block: item.try_into().ok()?,
        })
    };
    let blocks: Option<_> = rest.chunks(16 + BLOCK_SIZE).map(saved).collect();
    Ok((superblock, blocks.context("incomplete")?))
}

/// What metadata block `number` is, and which copy of that.
fn metadata_at(g: &Geometry, number: u64) -> Option<(String, usize)> {
    if let Some(copy) = [0, 1]
        .into_iter()
        .find(|copy| superblock_at(g, *copy) == number)
    {
        return Some((format!("superblock copy {copy}"), copy as usize));
    }
    (0..g.areas().len()).find_map(|copy| {
        let table = number.checked_sub(table_at(g, copy, 0))?;
        let what = format!("table block {table}, replica {copy}");
        (table < g.table_blocks).then_some((what, copy))
    })
}

/// The first thing in which two layouts differ.
fn difference(then: &Geometry, now: &Geometry) -> Option<String> {
    let fields = |g: &Geometry| {
        [
            ("spare_sectors", g.spare_sectors),
            ("main_sectors", g.main_sectors),
            ("unit_sectors", g.unit_sectors.into()),
            ("metadata_copies", g.copies.into()),
            ("slots_total", g.slots_total),
            ("table_blocks", g.table_blocks),
            ("data_start", g.data_start),
        ]
    };
    let mut pairs = fields(then).into_iter().zip(fields(now));
    if let Some(((name, then), (_, now))) = pairs.find(|(then, now)| then != now) {
        return Some(format!("{name} was {then}, and is {now}"));
    }
    let (then, now) = (then.areas(), now.areas());
    (then != now).then(|| format!("area_start was {then:?}, and is {now:?}"))
}

/// Puts back what the file `backup` holds, if nothing was written since the repair that made it.
pub(crate) fn undo(region: &mut Region, backup: &Path, yes: bool) -> Result<Status> {
    let file = backup.display();
    let (superblock, mut blocks) = load(backup).with_context(|| file.to_string())?;
    let found = open(region)?;
    must_not_be_read_only(&found, region)?;
    let spare = &region.name;
    ensure!(
        found.superblock.uuid == superblock.uuid,
        "{file}: belongs to the spare of {}; {spare} is the one of {}",
        name(&superblock),
        name(&found.superblock)
    );
    let g = &superblock.geometry;
    if let Some(difference) = difference(g, &found.superblock.geometry) {
        bail!("{file}: taken when {spare} had another layout: {difference}");
    }
    for saved in &blocks {
        let place = metadata_at(g, saved.number);
        let (what, _) = place.with_context(|| format!("{file}: incomplete or damaged"))?;
        let mut block: Block = [0; BLOCK_SIZE];
        region.read(saved.number, &mut block)?;
        let is_known = block == saved.block || saved.becomes.contains(&crc32c(0, &block));
        let generation = block[40..].first_chunk().map(|b| u64::from_le_bytes(*b));
        ensure!(
            is_known,
            "{spare}: {what}: neither what {file} holds nor what the repair made of it (generation {}); \
             nothing was put back",
            generation.unwrap_or_default()
        );
    }
    ui::confirm(
        &format!(
            "Put back {} on {spare} ({})?",
            crate::ui::count(blocks.len() as u64, "block"),
            name(&found.superblock)
        ),
        yes,
    )?;
    // One copy of everything is durable before the next is touched: a cut tears blocks of one copy only.
    let copy = |saved: &Saved| metadata_at(g, saved.number).map(|(_, copy)| copy);
    blocks.sort_by_key(copy);
    for same in blocks.chunk_by(|a, b| copy(a) == copy(b)) {
        for saved in same {
            region.write(saved.number, &saved.block)?;
        }
        region.sync()?;
    }
    writeln!(
        crate::ui::notes(),
        "{} put back",
        crate::ui::count(blocks.len() as u64, "block")
    )?;
    Ok(Status::Done)
}
