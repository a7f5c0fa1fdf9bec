// SPDX-License-Identifier: GPL-2.0

//! `dmremap dump`: everything that the metadata says, for people or as JSON.

use crate::cli::Dump;
use crate::dm::Device;
use crate::image::{open, Image};
use crate::json::Document;
use crate::label::decode;
use crate::region::{Access, Region};
use crate::repair::status_of;
use crate::{ui, Status};
use anyhow::Result;
use dm_remap::engine::entries::Entry;
use dm_remap::engine::format::{Origin, Superblock, Uuid};
use dm_remap::engine::geometry::Geometry;
use dm_remap::engine::image::{Finding, Severity};
use std::io::{stdout, BufWriter, Write};

/// A UUID as it is commonly written.
pub(crate) fn uuid(uuid: &Uuid) -> String {
    let mut text: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    for at in [20, 16, 12, 8] {
        text.insert(at, '-');
    }
    text
}

/// A point in time, in seconds since 1970, for a person.
pub(crate) fn time(seconds: u64) -> String {
    let stamp = i64::try_from(seconds).map(jiff::Timestamp::from_second);
    match stamp {
        Ok(Ok(stamp)) => stamp.to_string(),
        _ => format!("{seconds} s"),
    }
}

/// What a record was written for.
pub(crate) fn cause(origin: Origin) -> String {
    match origin.cause {
        1 => "read".into(),
        2 => "write".into(),
        3 => "message".into(),
        4 => "scrub".into(),
        5 => "import".into(),
        other => format!("unknown {other}"),
    }
}

/// What has become of the unit of an entry.
pub(crate) fn state(entry: &Entry, g: &Geometry) -> &'static str {
    match entry.mask {
        0 => "pending",
        mask if mask == g.unit_mask(entry.unit) => "relocated",
        _ => "partial",
    }
}

/// How bad a finding is, in a word.
pub(crate) fn severity(finding: &Finding) -> &'static str {
    match finding.severity() {
        Severity::Mendable => "mendable",
        Severity::Fatal => "fatal",
    }
}

/// Prints the superblock, and what the whole table comes to if that is known.
fn print_superblock(out: &mut impl Write, s: &Superblock, image: Option<&Image>) -> Result<()> {
    let g = &s.geometry;
    let read_only = if s.read_only { ", read-only" } else { "" };
    writeln!(out, "uuid        {}", uuid(&s.uuid))?;
    writeln!(out, "label       {}", decode(&s.label))?;
    writeln!(out, "created     {}", time(s.created))?;
    writeln!(out, "generation  {}{read_only}", s.generation)?;
    writeln!(out, "main        {}, {}", ui::size(g.main_sectors), s.main)?;
    writeln!(out, "spare       {}", ui::size(g.spare_sectors))?;
    writeln!(out, "unit        {}", ui::size(g.unit_sectors.into()))?;
    write!(out, "slots       ")?;
    if let Some(image) = image {
        let (used, bad) = (image.slots.used(), image.slots.bad());
        write!(out, "{used} used, {bad} bad, ")?;
    }
    let (slots, start) = (g.usable_slots(), g.data_start);
    writeln!(out, "{slots} in all, from sector {start}")?;
    let blocks = ui::count(g.table_blocks, "block");
    write!(out, "table       {} replicas of {blocks}", g.copies)?;
    if let Some(image) = image {
        write!(out, ", {} in use", image.in_use)?;
    }
    writeln!(out, ", at blocks {:?}", g.areas())?;
    Ok(())
}

/// Prints every record that is not of a free slot.
fn print_records(out: &mut impl Write, image: &Image) -> Result<()> {
    let g = image.geometry();
    for e in &image.entries {
        let (sector, state, origin) = (g.unit_start(e.unit), state(e, g), image.origin(e.slot));
        write!(out, "{sector} {state} {} {:x}", e.slot.0, e.mask)?;
        if e.lost != 0 {
            write!(out, " lost {:x}", e.lost)?;
        }
        writeln!(out, " {} {}", cause(origin), time(origin.changed))?;
    }
    for b in &image.bad {
        write!(out, "bad slot {}", b.slot.0)?;
        if b.lost != 0 {
            write!(out, " lost {:x} of {}", b.lost, g.unit_start(b.unit))?;
        }
        writeln!(out, " {} {}", cause(b.origin), time(b.origin.changed))?;
    }
    Ok(())
}

fn print_findings(out: &mut impl Write, findings: &[Finding]) -> Result<()> {
    for finding in findings {
        writeln!(out, "{}: {finding}", severity(finding))?;
    }
    Ok(())
}

pub(crate) fn run(args: &Dump) -> Result<Status> {
    let active = Device::named(&args.spare.spare)?;
    let mut region = match &active {
        Some(device) => Region::open_spare_of(device)?,
        None => Region::open(&args.spare, Access::Read)?,
    };
    let mut document = Document::new(&args.spare, &region);
    let found = match open(&mut region) {
        Err(error) if args.json => return document.refused(error, "superblock-unusable"),
        found => found?,
    };
    let mut out = BufWriter::new(stdout().lock());
    if args.header {
        let findings: Vec<Finding> = found.findings().collect();
        document.superblocks(&found);
        if args.json {
            return document.print(out);
        }
        print_superblock(&mut out, &found.superblock, None)?;
        print_findings(&mut out, &findings)?;
        out.flush()?;
        return Ok(document.outcome);
    }
    let image = match &active {
        Some(device) => Image::of_active(device)?.1,
        None => Image::of(&region, found),
    };
    if args.json {
        document.image(&image);
        document.records(&image);
        return document.print(out);
    }
    print_superblock(&mut out, image.superblock(), Some(&image))?;
    print_records(&mut out, &image)?;
    print_findings(&mut out, &image.findings)?;
    out.flush()?;
    Ok(status_of(&image))
}
