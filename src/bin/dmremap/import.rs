// SPDX-License-Identifier: GPL-2.0

//! `dmremap import`: pending entries from a list, offline into a spare or by messages.

use crate::change;
use crate::cli::Import;
use crate::image::Image;
use crate::lists::{self, merge, List, Options, Span};
use crate::region::{Access, Region};
use crate::{ui, Status};
use anyhow::{bail, ensure, Context as _, Result};
use dm_remap::engine::format::{Cause, State, Update};
use dm_remap::engine::Unit;
use std::fs::File;
use std::io::{stdin, stdout, BufReader, Write as _};
use std::ops::Range;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

pub(crate) fn run(args: &Import) -> Result<Status> {
    let options = Options {
        format: args.format,
        block_size: args.block_size,
        statuses: &args.statuses,
    };
    let name = args.list.display();
    let list = if args.list.as_os_str() == "-" {
        lists::read(stdin().lock(), &options)
    } else {
        let file = File::open(&args.list).with_context(|| name.to_string())?;
        lists::read(BufReader::new(file), &options)
    };
    let List { spans, left_out } = list.with_context(|| name.to_string())?;
    if left_out > 0 {
        writeln!(
            stdout(),
            "{left_out} sectors left out that ddrescue has not finished with; see --statuses"
        )?;
    }
    match (&args.device, &args.spare) {
        (Some(device), _) => into_device(args, device, &spans),
        (None, Some(spare)) => {
            let mut region = Region::open_at(spare, &args.bounds, Access::Write)?;
            into_spare(args, &mut region, &spans)
        }
        (None, None) => bail!("neither a spare nor --device"),
    }
}

/// The sectors of `spans`, merged, as sectors of a main of `main_sectors` sectors.
fn on_main(args: &Import, spans: &[Span], main_sectors: u64) -> Result<Vec<Range<u64>>> {
    let mut outside = 0;
    let mut ranges = Vec::new();
    for Span { line, sectors } in spans {
        let from = sectors.start.max(args.offset);
        let to = sectors.end.min(args.offset.saturating_add(main_sectors));
        if (from, to) != (sectors.start, sectors.end) {
            ensure!(
                args.clip,
                "{}: line {line}: sectors {} to {} are not all on main, which has {main_sectors} \
                 from sector {} on; --clip leaves out what is not",
                args.list.display(),
                sectors.start,
                sectors.end - 1,
                args.offset
            );
            outside += sectors.end - sectors.start - to.saturating_sub(from);
        }
        if from < to {
            ranges.push(from - args.offset..to - args.offset);
        }
    }
    if outside > 0 {
        writeln!(stdout(), "{outside} sectors outside main left out")?;
    }
    Ok(merge(ranges))
}

fn into_spare(args: &Import, region: &mut Region, spans: &[Span]) -> Result<Status> {
    let mut image = Image::read(region)?.must_be_writable(region)?;
    let g = *image.geometry();
    let sectors = on_main(args, spans, g.main_sectors)?;
    let units = sectors
        .iter()
        .map(|r| g.unit_of(r.start).0..g.unit_of(r.end - 1).0 + 1);
    let units = merge(units.collect());
    let listed: u64 = units.iter().map(|r| r.end - r.start).sum();
    let known = |unit: &Unit| image.entries.binary_search_by_key(unit, |e| e.unit).is_ok();
    // Before the units are counted one by one, as a list may name a whole disk.
    let could_fit = listed <= image.slots.free() + image.entries.len() as u64;
    let new: Vec<Unit> = if could_fit {
        let all = units.into_iter().flatten().map(Unit);
        all.filter(|unit| !known(unit)).collect()
    } else {
        Vec::new()
    };
    let free = image.slots.free();
    ensure!(
        could_fit && new.len() as u64 <= free,
        "{}: {free} free slots, and the list names {listed} units; nothing was written",
        region.name
    );
    let mut updates = Vec::with_capacity(new.len());
    for unit in &new {
        let (unit, mask) = (*unit, 0);
        updates.push(Update {
            slot: image.allocate(region)?,
            state: State::Entry { unit, mask },
            cause: Cause::Import,
        });
    }
    change::records(region, &image, &updates, now())?;
    let had = listed - new.len() as u64;
    writeln!(stdout(), "{} units marked, {had} had an entry", new.len())?;
    Ok(Status::Done)
}

/// Runs dmsetup and returns what it printed.
fn dmsetup(arguments: &[&str]) -> Result<String> {
    let output = Command::new("dmsetup").args(arguments).output();
    let output = output.context("cannot run dmsetup")?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_string();
    let what = arguments.join(" ");
    ensure!(
        output.status.success(),
        "dmsetup {what}: {}",
        text(output.stderr)
    );
    Ok(text(output.stdout))
}

fn into_device(args: &Import, device: &str, spans: &[Span]) -> Result<Status> {
    let table = dmsetup(&["table", device])?;
    let words: Vec<&str> = table.split_whitespace().collect();
    let length = match words[..] {
        ["0", length, "remap", ..] if table.lines().count() == 1 => length.parse::<u64>().ok(),
        _ => None,
    };
    let length = length.with_context(|| format!("{device}: not a remap device: {table}"))?;
    let ranges = on_main(args, spans, length)?;
    let mut marked = 0;
    let bar = ui::progress("marking", ranges.len() as u64);
    for range in &ranges {
        let [sector, count] = [range.start, range.end - range.start].map(|n| n.to_string());
        let said = dmsetup(&["message", device, "0", "mark", &sector, &count])
            .with_context(|| format!("{marked} units marked; failed at sector {sector}"))?;
        let number = said.split_whitespace().next();
        marked += number.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        bar.inc(1);
    }
    bar.finish_and_clear();
    writeln!(stdout(), "{marked} units marked")?;
    Ok(Status::Done)
}
