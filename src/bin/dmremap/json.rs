// SPDX-License-Identifier: GPL-2.0

//! The documents that `check --json` and `dump --json` print: docs/json.md has every field. The names stay.

use crate::cli::Spare;
use crate::image::{BadSlot, Image, Refused};
use crate::label::decode;
use crate::region::Region;
use crate::{dump, Status};
use anyhow::{Error, Result};
use dm_remap::engine::entries::Entry;
use dm_remap::engine::format::{Superblock, GROWING};
use dm_remap::engine::geometry::Geometry;
use dm_remap::engine::image::{text, Finding, Found, Severity, Standing};
use dm_remap::engine::{Slot, Unit};
use serde::Serialize;
use std::io::Write;

/// What is known of a spare. Without a superblock that counts, all but the first four is left out.
#[derive(Serialize)]
pub(crate) struct Document {
    version: u32,
    status: &'static str,
    findings: Vec<FindingView>,
    spare: SpareView,
    #[serde(flatten)]
    superblock: Option<SuperblockView>,
    #[serde(flatten)]
    counts: Option<CountsView>,
    #[serde(flatten)]
    table: Option<TableView>,
    /// What the command is to end with.
    #[serde(skip)]
    pub(crate) outcome: Status,
}

#[derive(Serialize)]
struct SpareView {
    device: String,
    start: u64,
    sectors: u64,
    #[serde(flatten)]
    about: Option<AboutView>,
}

#[derive(Serialize)]
struct AboutView {
    uuid: String,
    label: String,
    created: Option<String>,
    generation: String,
    read_only: bool,
}

/// What the superblock says of all but the spare itself.
#[derive(Serialize)]
struct SuperblockView {
    main: MainView,
    unit_sectors: u32,
    metadata_copies: u32,
    table_blocks: u64,
    area_start_blocks: Vec<u64>,
    data_start_sector: u64,
}

#[derive(Serialize)]
struct MainView {
    sectors: u64,
    partition_uuid: Option<String>,
    disk_id: Option<String>,
    disk_start_sector: Option<u64>,
}

/// What the whole table comes to.
#[derive(Serialize)]
struct CountsView {
    slots: SlotsView,
    units: UnitsView,
    lost_sectors: u64,
    table_blocks_in_use: u64,
}

#[derive(Serialize)]
struct SlotsView {
    used: u64,
    total: u64,
    bad: u64,
}

#[derive(Serialize)]
struct UnitsView {
    relocated: u64,
    pending: u64,
}

/// Its records.
#[derive(Serialize)]
struct TableView {
    entries: Vec<EntryView>,
    bad_slots: Vec<BadView>,
}

#[derive(Serialize)]
struct EntryView {
    sector: u64,
    unit: u64,
    state: &'static str,
    slot: u32,
    slot_sector: u64,
    mask: String,
    lost_mask: String,
    cause: String,
    changed: Option<String>,
}

#[derive(Serialize)]
struct BadView {
    slot: u32,
    slot_sector: u64,
    sector: Option<u64>,
    lost_mask: String,
    cause: String,
    changed: Option<String>,
}

/// What is wrong, and where, as far as that can be said in numbers.
#[derive(Serialize)]
struct FindingView {
    code: &'static str,
    severity: &'static str,
    block: Option<u64>,
    replica: Option<u64>,
    record: Option<u64>,
    unit: Option<u64>,
    slot: Option<u32>,
    text: String,
}

impl FindingView {
    fn new(code: &'static str, severity: &'static str, text: String) -> Self {
        Self {
            code,
            severity,
            block: None,
            replica: None,
            record: None,
            unit: None,
            slot: None,
            text,
        }
    }

    fn of(finding: &Finding, g: &Geometry) -> Self {
        let new = |code| Self::new(code, dump::severity(finding), finding.to_string());
        let at = |code, unit: &Unit, slot: &Slot| Self {
            unit: Some(unit.0),
            slot: Some(slot.0),
            ..new(code)
        };
        match finding {
            Finding::Superblock { copy, standing } => Self {
                replica: Some(*copy),
                ..new(match standing {
                    Standing::Stale { .. } => "superblock-stale",
                    Standing::Differs => "superblock-differs",
                    _ => "superblock-damaged",
                })
            },
            Finding::Replica {
                block,
                copy,
                standing,
            } => Self {
                block: Some(*block),
                replica: Some(*copy as u64),
                ..new(match standing {
                    Standing::Stale { .. } => "replica-stale",
                    Standing::Differs => "replica-differs",
                    _ => "replica-damaged",
                })
            },
            Finding::NoReplica { block, .. } => Self {
                block: Some(*block),
                ..new("no-valid-replica")
            },
            Finding::InUse { block, .. } => Self {
                block: Some(*block),
                ..new("blocks-in-use-impossible")
            },
            Finding::Record { block, index, .. } => Self {
                block: Some(*block),
                record: Some(*index as u64),
                slot: g.slot_at(*block, *index as u64).map(|slot| slot.0),
                ..new("record-impossible")
            },
            Finding::TwoSlots { unit, slots } => at("two-slots", unit, &slots[0]),
            Finding::Orphan { unit, slot } => at("lost-without-entry", unit, slot),
            Finding::LostTwice { unit, slots } => at("lost-twice", unit, &slots[0]),
            Finding::Replaced { unit, slot } => at("slot-replaced", unit, slot),
        }
    }
}

/// A point in time, in seconds since 1970, as RFC 3339 has it; `None`: past the year 9999.
pub(crate) fn time(seconds: u64) -> Option<String> {
    let seconds = i64::try_from(seconds).ok()?;
    let stamp = jiff::Timestamp::from_second(seconds).ok()?;
    Some(stamp.to_string())
}

fn hex(mask: u64) -> String {
    format!("{mask:x}")
}

impl Document {
    /// Of the region `region`, of which nothing is known yet.
    pub(crate) fn new(spare: &Spare, region: &Region) -> Self {
        let sectors = region.blocks * dm_remap::engine::geometry::BLOCK_SECTORS;
        Self {
            version: 1,
            status: "sound",
            findings: Vec::new(),
            spare: SpareView {
                device: region.name.clone(),
                start: spare.bounds.spare_start,
                sectors,
                about: None,
            },
            superblock: None,
            counts: None,
            table: None,
            outcome: Status::Done,
        }
    }

    /// The status is not better than this.
    fn worsen(&mut self, status: Status) {
        if (status as u8) > self.outcome as u8 {
            self.outcome = status;
            self.status = match status {
                Status::Damaged => "damaged",
                Status::NoSpare => "no-spare",
                _ => "unusable",
            };
        }
    }

    /// Adds why the spare is not used, by the name `code` if it has none of its own, and prints the document. Returns `error`,
    /// which is told as well; one of another kind alone.
    pub(crate) fn refused(mut self, error: Error, code: &'static str) -> Result<Status> {
        let Some(refused) = error.downcast_ref::<Refused>() else {
            return Err(error);
        };
        self.worsen(refused.status());
        let (code, why) = match refused {
            Refused::Blank(_) => ("blank", "blank, no spare of dm-remap"),
            Refused::Foreign(_, why) => ("foreign-data", *why),
            Refused::Unusable(_, why) if why == text(GROWING) => ("growing-interrupted", &**why),
            Refused::Unusable(_, why) => (code, &**why),
            Refused::Damaged(_) => (code, "must be repaired first"),
        };
        let finding = FindingView::new(code, "fatal", why.into());
        self.findings.push(finding);
        self.print(std::io::stdout().lock())?;
        Err(error)
    }

    fn find<'a>(&mut self, findings: impl Iterator<Item = &'a Finding>, g: &Geometry) {
        for finding in findings {
            self.worsen(match finding.severity() {
                Severity::Mendable => Status::Damaged,
                Severity::Fatal => Status::Unusable,
            });
            self.findings.push(FindingView::of(finding, g));
        }
    }

    /// Adds what the superblock says.
    fn describe(&mut self, s: &Superblock) {
        let g = &s.geometry;
        self.spare.sectors = g.spare_sectors;
        self.spare.about = Some(AboutView {
            uuid: dump::uuid(&s.uuid),
            label: decode(&s.label),
            created: time(s.created),
            generation: s.generation.to_string(),
            read_only: s.read_only,
        });
        self.superblock = Some(SuperblockView {
            main: MainView {
                sectors: g.main_sectors,
                partition_uuid: s.main.partition().map(String::from),
                disk_id: s.main.disk.map(|(id, _)| id.to_string()),
                disk_start_sector: s.main.disk.map(|(_, start)| start),
            },
            unit_sectors: g.unit_sectors,
            metadata_copies: g.copies,
            table_blocks: g.table_blocks,
            area_start_blocks: g.areas().to_vec(),
            data_start_sector: g.data_start,
        });
    }

    /// Adds the superblocks, and what is wrong with them.
    pub(crate) fn superblocks(&mut self, found: &Found) {
        self.describe(&found.superblock);
        let findings: Vec<_> = found.findings().collect();
        self.find(findings.iter(), &found.superblock.geometry);
    }

    /// Adds the superblocks, what the table comes to, and what is wrong with both.
    pub(crate) fn image(&mut self, image: &Image) {
        self.describe(image.superblock());
        self.find(image.findings.iter(), image.geometry());
        let entries = image.entries.len() as u64;
        let pending = image.entries.iter().filter(|e| e.mask == 0).count() as u64;
        let lost = image.entries.iter().map(|e| u64::from(e.lost.count_ones()));
        self.counts = Some(CountsView {
            slots: SlotsView {
                used: image.slots.used(),
                total: image.slots.usable(),
                bad: image.slots.bad(),
            },
            units: UnitsView {
                relocated: entries - pending,
                pending,
            },
            lost_sectors: lost.sum(),
            table_blocks_in_use: image.in_use,
        });
    }

    /// Adds every record that is not of a free slot.
    pub(crate) fn records(&mut self, image: &Image) {
        let g = image.geometry();
        let entry = |entry: &Entry| {
            let origin = image.origin(entry.slot);
            EntryView {
                sector: g.unit_start(entry.unit),
                unit: entry.unit.0,
                state: dump::state(entry, g),
                slot: entry.slot.0,
                slot_sector: g.slot_sector(entry.slot),
                mask: hex(entry.mask),
                lost_mask: hex(entry.lost),
                cause: dump::cause(origin),
                changed: time(origin.changed),
            }
        };
        let bad = |bad: &BadSlot| BadView {
            slot: bad.slot.0,
            slot_sector: g.slot_sector(bad.slot),
            sector: (bad.lost != 0).then(|| g.unit_start(bad.unit)),
            lost_mask: hex(bad.lost),
            cause: dump::cause(bad.origin),
            changed: time(bad.origin.changed),
        };
        self.table = Some(TableView {
            entries: image.entries.iter().map(entry).collect(),
            bad_slots: image.bad.iter().map(bad).collect(),
        });
    }

    /// Prints it. Returns what the command is to end with.
    pub(crate) fn print(&self, mut out: impl Write) -> Result<Status> {
        serde_json::to_writer_pretty(&mut out, self).map_err(std::io::Error::from)?;
        writeln!(out)?;
        out.flush()?;
        Ok(self.outcome)
    }
}
