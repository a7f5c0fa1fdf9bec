// SPDX-License-Identifier: GPL-2.0

//! `dmremap export`: lists of sectors from a spare.

use crate::cli::{Export, Kind, ListFormat};
use crate::image::Image;
use crate::lists::{self, merge};
use crate::{ui, whole_file, Status};
use anyhow::{Context as _, Result};
use dm_remap::engine::entries::Entry;
use dm_remap::engine::image::{Finding, Severity};
use dm_remap::engine::SECTOR_SIZE;
use serde::Serialize;
use std::io::{self, stdout, BufWriter, Write};
use std::ops::Range;

/// The sectors of `entry`'s unit that are of that kind; `all` are those that the unit has.
fn of_kind(entry: &Entry, all: u64, kind: Kind) -> u64 {
    match kind {
        Kind::Pending if entry.mask == 0 => all,
        Kind::Partial if entry.mask != 0 => all & !entry.mask,
        Kind::Relocated => entry.mask,
        Kind::Lost => entry.lost,
        Kind::Pending | Kind::Partial => 0,
    }
}

/// The sectors of those kinds, merged.
fn of_kinds(image: &Image, kinds: &[Kind]) -> Vec<Range<u64>> {
    let g = image.geometry();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for entry in &image.entries {
        let all = g.unit_mask(entry.unit);
        let mut mask = kinds
            .iter()
            .fold(0, |mask, kind| mask | of_kind(entry, all, *kind));
        while mask != 0 {
            let first = mask.trailing_zeros();
            let count = (mask >> first).trailing_ones();
            let start = g.unit_start(entry.unit) + u64::from(first);
            ranges.push(start..start + u64::from(count));
            mask &= u64::MAX.checked_shl(first + count).unwrap_or(0);
        }
    }
    merge(ranges)
}

/// What is wrong with `image` beyond repair, and what may be missing for it.
fn missing(image: &Image) -> Vec<String> {
    let g = image.geometry();
    let of_slots = |slots: Range<u64>| {
        let (first, last) = (slots.start, slots.end - 1);
        let count = slots.end - slots.start;
        format!("the entries of slots {first} to {last} are missing, {count} at most")
    };
    let mut texts = Vec::new();
    let fatal = |f: &&Finding| f.severity() == Severity::Fatal;
    for finding in image.findings.iter().filter(fatal) {
        texts.push(finding.to_string());
        let Finding::NoReplica { block, .. } = finding else {
            continue;
        };
        let end = g.slots_of(block + 1);
        texts.push(of_slots(g.slots_of(*block)..end));
        if block + 1 == image.in_use && end < g.slots_total {
            let rest = of_slots(end..g.slots_total);
            texts.push(format!(
                "table block {block} said whether more of the table is in use; if so, {rest}"
            ));
        }
    }
    texts
}

/// A list as JSON. Its fields do not change their meaning: see docs/usage.md.
#[derive(Serialize)]
struct View<'a> {
    version: u32,
    which: &'a [Kind],
    sectors: Vec<RangeView>,
}

#[derive(Serialize)]
struct RangeView {
    sector: u64,
    count: u64,
}

/// Writes the list that `args` ask for: `ranges` of the sectors of a main of `main_sectors` sectors.
fn write(
    out: &mut impl Write,
    args: &Export,
    ranges: &[Range<u64>],
    main_sectors: u64,
) -> io::Result<()> {
    // Only a badblocks list has blocks.
    let block_size = args.block_size.unwrap_or(SECTOR_SIZE.into());
    match args.format {
        Some(format) => lists::write(out, format, block_size, ranges, main_sectors)?,
        None => {
            let view = |r: &Range<u64>| RangeView {
                sector: r.start,
                count: r.end - r.start,
            };
            let view = View {
                version: 1,
                which: &args.which,
                sectors: ranges.iter().map(view).collect(),
            };
            serde_json::to_writer(&mut *out, &view)?;
            writeln!(out)?;
        }
    }
    out.flush()
}

pub(crate) fn run(args: &Export) -> Result<Status> {
    if let Some(bytes) = args.block_size {
        lists::check_block_size(bytes)?;
    }
    let (region, mut image) = Image::look(&args.spare)?;
    if !args.salvage {
        image = image.must_be_usable(&region)?;
    }
    let ranges = of_kinds(&image, &args.which);
    let sectors = image.geometry().main_sectors;
    match &args.output {
        Some(path) if path.as_os_str() != "-" => {
            whole_file::create(path, |out| Ok(write(out, args, &ranges, sectors)?))
                .with_context(|| path.display().to_string())?;
        }
        _ => write(&mut BufWriter::new(stdout().lock()), args, &ranges, sectors)?,
    }
    if let (Some(ListFormat::Badblocks), Some(bytes)) = (args.format, args.block_size) {
        let blocks = lists::blocks(&ranges, bytes).into_iter();
        let high: u64 = blocks
            .map(|r| r.end.saturating_sub(r.start.max(1 << 32)))
            .sum();
        if high > 0 {
            ui::warning(&format!(
                "{high} numbers are 2^32 or more: e2fsck refuses the list"
            ));
        }
    }
    let missing = missing(&image);
    for text in &missing {
        ui::warning(&format!("{}: {text}", region.name));
    }
    Ok(match missing[..] {
        [] => Status::Done,
        _ => Status::Damaged,
    })
}
