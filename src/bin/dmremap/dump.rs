// SPDX-License-Identifier: GPL-2.0

//! `dmremap dump`: everything that the metadata says, for people or as JSON.

use crate::cli::Dump;
use crate::image::{BadSlot, Image};
use crate::label::decode;
use crate::region::{Access, Region};
use crate::repair::status_of;
use crate::Status;
use anyhow::Result;
use dm_remap::engine::entries::Entry;
use dm_remap::engine::format::{Origin, Uuid};
use dm_remap::engine::geometry::Geometry;
use dm_remap::engine::image::Severity;
use serde::Serialize;
use std::io::{stdout, BufWriter, Write};

#[derive(Serialize)]
struct SuperblockView {
    uuid: String,
    label: String,
    created: u64,
    generation: u64,
    read_only: bool,
    unit_sectors: u32,
    metadata_copies: u32,
    main_sectors: u64,
    main: MainView,
    spare_sectors: u64,
    table_blocks: u64,
    table_blocks_in_use: u64,
    data_start: u64,
    area_start: Vec<u64>,
    slots_total: u64,
    slots_usable: u64,
    slots_used: u64,
    slots_bad: u64,
}

/// What is known of main.
#[derive(Serialize)]
struct MainView {
    partition_uuid: Option<String>,
    disk_id: Option<String>,
    /// First sector on the disk.
    disk_start: Option<u64>,
    #[serde(skip)]
    text: String,
}

#[derive(Serialize)]
struct EntryView {
    /// First sector of the unit on main.
    sector: u64,
    unit: u64,
    state: &'static str,
    slot: u32,
    /// First sector of the slot in the region.
    slot_sector: u64,
    mask: String,
    lost: String,
    cause: String,
    changed: u64,
}

#[derive(Serialize)]
struct BadView {
    slot: u32,
    slot_sector: u64,
    /// First sector of the unit on main; none if nothing was lost.
    sector: Option<u64>,
    lost: String,
    cause: String,
    changed: u64,
}

#[derive(Serialize)]
struct FindingView {
    severity: &'static str,
    finding: String,
}

#[derive(Serialize)]
struct View {
    superblock: SuperblockView,
    entries: Vec<EntryView>,
    bad_slots: Vec<BadView>,
    findings: Vec<FindingView>,
}

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

fn cause(origin: Origin) -> String {
    match origin.cause {
        1 => "read".into(),
        2 => "write".into(),
        3 => "message".into(),
        4 => "scrub".into(),
        5 => "import".into(),
        other => format!("unknown {other}"),
    }
}

fn state(entry: &Entry, g: &Geometry) -> &'static str {
    match entry.mask {
        0 => "pending",
        mask if mask == g.unit_mask(entry.unit) => "relocated",
        _ => "partial",
    }
}

impl View {
    fn new(image: &Image) -> Self {
        let s = image.superblock();
        let g = &s.geometry;
        let entry = |entry: &Entry| {
            let origin = image.origin(entry.slot);
            EntryView {
                sector: g.unit_start(entry.unit),
                unit: entry.unit.0,
                state: state(entry, g),
                slot: entry.slot.0,
                slot_sector: g.slot_sector(entry.slot),
                mask: format!("{:x}", entry.mask),
                lost: format!("{:x}", entry.lost),
                cause: cause(origin),
                changed: origin.changed,
            }
        };
        let bad = |bad: &BadSlot| BadView {
            slot: bad.slot.0,
            slot_sector: g.slot_sector(bad.slot),
            sector: (bad.lost != 0).then(|| g.unit_start(bad.unit)),
            lost: format!("{:x}", bad.lost),
            cause: cause(bad.origin),
            changed: bad.origin.changed,
        };
        let finding = |finding: &dm_remap::engine::image::Finding| FindingView {
            severity: match finding.severity() {
                Severity::Mendable => "mendable",
                Severity::Fatal => "fatal",
            },
            finding: finding.to_string(),
        };
        Self {
            superblock: SuperblockView {
                uuid: uuid(&s.uuid),
                label: decode(&s.label),
                created: s.created,
                generation: s.generation,
                read_only: s.read_only,
                unit_sectors: g.unit_sectors,
                metadata_copies: g.copies,
                main_sectors: g.main_sectors,
                main: MainView {
                    partition_uuid: s.main.partition().map(String::from),
                    disk_id: s.main.disk.map(|(id, _)| id.to_string()),
                    disk_start: s.main.disk.map(|(_, start)| start),
                    text: s.main.to_string(),
                },
                spare_sectors: g.spare_sectors,
                table_blocks: g.table_blocks,
                table_blocks_in_use: image.in_use,
                data_start: g.data_start,
                area_start: g.areas().to_vec(),
                slots_total: g.slots_total,
                slots_usable: image.slots.usable(),
                slots_used: image.slots.used(),
                slots_bad: image.slots.bad(),
            },
            entries: image.entries.iter().map(entry).collect(),
            bad_slots: image.bad.iter().map(bad).collect(),
            findings: image.findings.iter().map(finding).collect(),
        }
    }

    fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        let s = &self.superblock;
        let read_only = if s.read_only { ", read-only" } else { "" };
        writeln!(out, "uuid        {}", s.uuid)?;
        writeln!(out, "label       {}", s.label)?;
        writeln!(out, "created     {}", time(s.created))?;
        writeln!(out, "generation  {}{read_only}", s.generation)?;
        let length = crate::ui::size(s.main_sectors);
        writeln!(out, "main        {length}, {}", s.main.text)?;
        writeln!(out, "spare       {}", crate::ui::size(s.spare_sectors))?;
        writeln!(
            out,
            "unit        {}",
            crate::ui::size(s.unit_sectors.into())
        )?;
        writeln!(
            out,
            "slots       {} used, {} bad, {} in all, from sector {}",
            s.slots_used, s.slots_bad, s.slots_usable, s.data_start
        )?;
        writeln!(
            out,
            "table       {} replicas of {} blocks, {} in use, at blocks {:?}",
            s.metadata_copies, s.table_blocks, s.table_blocks_in_use, s.area_start
        )?;
        for e in &self.entries {
            write!(out, "{} {} {} {}", e.sector, e.state, e.slot, e.mask)?;
            if e.lost != "0" {
                write!(out, " lost {}", e.lost)?;
            }
            writeln!(out, " {} {}", e.cause, time(e.changed))?;
        }
        for b in &self.bad_slots {
            write!(out, "bad slot {}", b.slot)?;
            if let Some(sector) = b.sector {
                write!(out, " lost {} of {sector}", b.lost)?;
            }
            writeln!(out, " {} {}", b.cause, time(b.changed))?;
        }
        for f in &self.findings {
            writeln!(out, "{}: {}", f.severity, f.finding)?;
        }
        Ok(())
    }
}

pub(crate) fn run(args: &Dump) -> Result<Status> {
    let mut region = Region::open(&args.spare, Access::Read)?;
    let image = Image::read(&mut region)?;
    let view = View::new(&image);
    let mut out = BufWriter::new(stdout().lock());
    if args.json {
        serde_json::to_writer_pretty(&mut out, &view).map_err(std::io::Error::from)?;
        writeln!(out)?;
    } else {
        view.print(&mut out)?;
    }
    out.flush()?;
    Ok(status_of(&image))
}
