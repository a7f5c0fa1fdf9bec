// SPDX-License-Identifier: GPL-2.0

//! `dmremap export`: lists of sectors from a spare.

use crate::cli::{Export, Kind};
use crate::image::Image;
use crate::lists::{self, merge};
use crate::region::{Access, Region};
use crate::Status;
use anyhow::{Context as _, Result};
use dm_remap::engine::entries::Entry;
use std::fs::File;
use std::io::{stdout, BufWriter, Write as _};
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

pub(crate) fn run(args: &Export) -> Result<Status> {
    lists::check_block_size(args.block_size)?;
    let mut region = Region::open(&args.spare, Access::Read)?;
    let image = Image::read(&mut region)?.must_be_usable(&region)?;
    let g = image.geometry();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for entry in &image.entries {
        let all = g.unit_mask(entry.unit);
        let kinds = args.which.iter();
        let mut mask = kinds.fold(0, |mask, kind| mask | of_kind(entry, all, *kind));
        while mask != 0 {
            let first = mask.trailing_zeros();
            let count = (mask >> first).trailing_ones();
            let start = g.unit_start(entry.unit) + u64::from(first);
            ranges.push(start..start + u64::from(count));
            mask &= u64::MAX.checked_shl(first + count).unwrap_or(0);
        }
    }
    let ranges = merge(ranges);
    let sectors = g.main_sectors;
    match &args.output {
        None => {
            let mut out = BufWriter::new(stdout().lock());
            lists::write(&mut out, args.format, args.block_size, &ranges, sectors)?;
            out.flush()?;
        }
        Some(path) => {
            let name = || path.display().to_string();
            let mut out = BufWriter::new(File::create_new(path).with_context(name)?);
            lists::write(&mut out, args.format, args.block_size, &ranges, sectors)
                .and_then(|()| out.flush())
                .with_context(name)?;
        }
    }
    Ok(Status::Done)
}
