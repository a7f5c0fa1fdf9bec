// SPDX-License-Identifier: GPL-2.0

//! `dmremap import`: pending entries from a list, offline into a spare or by messages.

use crate::active::in_pieces;
use crate::change;
use crate::cli::{Import, ListFormat};
use crate::dm::{attribute, directory, Device};
use crate::image::{open, Image};
use crate::lists::{self, merge, List, Options, Span};
use crate::region::{Access, Region};
use crate::{ui, Status};
use anyhow::{anyhow, bail, ensure, Context as _, Result};
use dm_remap::engine::format::{Cause, State, Update};
use dm_remap::engine::{Unit, SECTOR_SIZE};
use std::fs::File;
use std::io::{self, stdin, BufReader, Write as _};
use std::ops::Range;
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
        // Without one the numbers of the blocks are enough, to tell what they could mean.
        block_size: args.block_size.unwrap_or(SECTOR_SIZE.into()),
        statuses: &args.statuses,
    };
    let name = args.list().display();
    let list = if args.list().as_os_str() == "-" {
        lists::read(stdin().lock(), &options)
    } else {
        match File::open(args.list()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => bail!("{name}: no such file"),
            file => lists::read(
                BufReader::new(file.with_context(|| name.to_string())?),
                &options,
            ),
        }
    };
    let list = list.with_context(|| name.to_string())?;
    if args.format == ListFormat::Badblocks && args.block_size.is_none() {
        ui::error(&no_block_size(args, &list.spans)?);
        return Ok(Status::Usage);
    }
    match (&args.device, args.spare()) {
        (Some(name), _) => into_device(args, &Device::open(name)?, &list),
        (None, Some(spare)) => {
            if let Some(device) = Device::named(spare)? {
                return into_device(args, &device, &list);
            }
            let mut region = Region::open_at(spare, &args.bounds, Access::Write)?;
            into_spare(args, &mut region, &list)
        }
        (None, None) => bail!("neither a spare nor --device"),
    }
}

/// What to say if the block size of a badblocks list is missing: what the list would cover with each that is usual.
fn no_block_size(args: &Import, blocks: &[Span]) -> Result<anyhow::Error> {
    let geometry = match args.spare() {
        Some(spare) => {
            let mut region = match Device::named(spare)? {
                Some(device) => Region::open_spare_of(&device)?,
                None => Region::open_at(spare, &args.bounds, Access::Read)?,
            };
            Some(open(&mut region)?.superblock.geometry)
        }
        None => None,
    };
    let mut text = format!(
        "{}: --block-size is missing, and numbers of blocks mean nothing without: which was \
         badblocks given with -b?",
        args.list().display()
    );
    let first = blocks.iter().map(|block| block.sectors.start).min();
    let last = blocks.iter().map(|block| block.sectors.end).max();
    for bytes in [512, 1024, 4096] {
        let Some((first, last)) = first.zip(last) else {
            break;
        };
        let [first, end] = [first, last].map(|block| block.saturating_mul(bytes / 512));
        let last = end - 1;
        text += &format!("\n  {bytes:4}: sectors {first} to {last}");
        if let Some(g) = geometry {
            let offset = args.offset.unwrap_or(0);
            if first >= offset && last - offset < g.main_sectors {
                let [first, last] = [first, last].map(|sector| g.unit_of(sector - offset).0);
                text += &format!(", units {first} to {last}");
            } else {
                text += ", not all on main";
            }
        }
    }
    Ok(anyhow!(text))
}

/// What the length of a ddrescue map may differ from that of the device, in sectors: either may have been rounded to
/// blocks of 4 KiB. No partition begins that close to the start of its disk.
const ROUNDING: u64 = 8;

/// Refuses the map of a device that is longer or shorter than main: mostly that of a disk for one of its partitions.
/// `start` is where main begins on its disk, if that is known.
fn must_be_of_main(
    args: &Import,
    length: u64,
    main_sectors: u64,
    start: Option<u64>,
) -> Result<()> {
    if args.offset.is_some() || length.abs_diff(main_sectors) < ROUNDING {
        return Ok(());
    }
    let fits = |start: &u64| *start > 0 && length >= start.saturating_add(main_sectors);
    let advice = match start.filter(fits) {
        Some(start) => format!("--offset {start} if it is the map of the disk that main is on"),
        None => "--offset says at which of its sectors main begins".into(),
    };
    bail!(
        "{}: the map of a device of {length} sectors, and main has {main_sectors}: {advice}; \
         --offset 0 if both begin with the same sector",
        args.list().display()
    );
}

/// The sectors of `list`, merged, as sectors of a main of `main_sectors` sectors, which begins at sector `start` of its
/// disk, if that is known.
fn on_main(
    args: &Import,
    list: &List,
    main_sectors: u64,
    start: Option<u64>,
) -> Result<Vec<Range<u64>>> {
    if let Some(length) = list.length {
        must_be_of_main(args, length, main_sectors, start)?;
    }
    let offset = args.offset.unwrap_or(0);
    let main = offset..offset.saturating_add(main_sectors);
    let within = |sectors: &Range<u64>| sectors.start.max(main.start)..sectors.end.min(main.end);
    let length = |sectors: &Range<u64>| sectors.end.saturating_sub(sectors.start);
    let mut outside = 0;
    let mut ranges = Vec::new();
    for Span { line, sectors } in &list.spans {
        let inside = within(sectors);
        if inside != *sectors {
            ensure!(
                args.clip,
                "{}: line {line}: sectors {} to {} are not all on main, which has {main_sectors} \
                 from sector {offset} on; --clip leaves out what is not",
                args.list().display(),
                sectors.start,
                sectors.end - 1,
            );
            outside += length(sectors) - length(&inside);
        }
        if !inside.is_empty() {
            ranges.push(inside.start - offset..inside.end - offset);
        }
    }
    let left_out = merge(
        list.left_out
            .iter()
            .map(within)
            .filter(|r| !r.is_empty())
            .collect(),
    );
    let left_out: u64 = left_out.iter().map(length).sum();
    if left_out > 0 {
        writeln!(
            ui::notes(),
            "{} left out that ddrescue has not finished with; see --statuses",
            ui::count(left_out, "sector")
        )?;
    }
    if outside > 0 {
        let outside = ui::count(outside, "sector");
        writeln!(ui::notes(), "{outside} outside main left out")?;
    }
    Ok(merge(ranges))
}

fn into_spare(args: &Import, region: &mut Region, list: &List) -> Result<Status> {
    let mut image = Image::read(region)?.must_be_writable(region)?;
    let g = *image.geometry();
    let start = image.superblock().main.disk.map(|(_, start)| start);
    let sectors = on_main(args, list, g.main_sectors, start)?;
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
        "{}: {}, and the list names {}; nothing was written",
        region.name,
        ui::count(free, "free slot"),
        ui::count(listed, "unit")
    );
    let count = ui::count(new.len() as u64, "unit");
    ui::confirm(&format!("Mark {count}?"), true)?;
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
    writeln!(ui::notes(), "{count} marked, {had} had an entry")?;
    Ok(Status::Done)
}

/// Marks units of an active device, by messages.
fn into_device(args: &Import, device: &Device, list: &List) -> Result<Status> {
    let mut marked = 0;
    let first = directory(device.main).and_then(|main| attribute(&main, "start"));
    let start = first.and_then(|first| first.parse::<u64>().ok());
    let start = start.map(|start| start.saturating_add(device.line.main_start));
    let ranges = on_main(args, list, device.sectors, start)?;
    let count = ui::count(ranges.len() as u64, "range");
    ui::confirm(&format!("Mark {count} of {}?", device.name), true)?;
    let bar = ui::progress("marking", ranges.len() as u64);
    for range in ranges {
        let sector = range.start;
        let answer = in_pieces(device, "mark", range);
        let answer =
            answer.with_context(|| format!("{marked} units marked; failed at sector {sector}"))?;
        marked += answer.numbers().first().copied().unwrap_or(0);
        bar.inc(1);
    }
    bar.finish_and_clear();
    writeln!(ui::notes(), "{} marked", ui::count(marked, "unit"))?;
    Ok(Status::Done)
}
