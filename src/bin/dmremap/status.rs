// SPDX-License-Identifier: GPL-2.0

//! `dmremap status`: how a device is, for a person and as JSON.

use crate::dm::{path_of, Device};
use crate::image::Image;
use crate::label::decode;
use crate::region::Region;
use crate::smart::{Drives, Smart};
use crate::{device_cli, dump, image, ui};
use anyhow::{bail, Context as _, Result};
use dm_remap::engine::format::Superblock;
use dm_remap::engine::image::Found;
use serde::Serialize;
use std::io::{stdout, Write};

/// Table blocks of which the times of all entries are read at most.
const FEW_BLOCKS: u64 = 64;

#[derive(Clone, Serialize)]
pub(crate) struct MainView {
    pub(crate) device: String,
    pub(crate) start: u64,
    pub(crate) sectors: u64,
    pub(crate) id: Option<String>,
}

#[derive(Clone, Serialize)]
pub(crate) struct SpareView {
    pub(crate) device: String,
    pub(crate) start: u64,
    pub(crate) sectors: Option<u64>,
    pub(crate) uuid: Option<String>,
    pub(crate) label: Option<String>,
}

#[derive(Clone, Serialize)]
pub(crate) struct Slots {
    pub(crate) used: u64,
    pub(crate) total: u64,
    pub(crate) bad: u64,
}

#[derive(Clone, Serialize)]
pub(crate) struct Units {
    pub(crate) relocated: u64,
    pub(crate) pending: u64,
}

#[derive(Clone, Serialize)]
pub(crate) struct Errors {
    pub(crate) read: u64,
    pub(crate) write: u64,
    pub(crate) metadata: u64,
}

#[derive(Clone, Serialize)]
pub(crate) struct Both {
    pub(crate) read: u64,
    pub(crate) write: u64,
}

/// A device; the names are those of docs/json.md and stay.
#[derive(Clone, Serialize)]
pub(crate) struct View {
    pub(crate) name: String,
    pub(crate) uuid: String,
    pub(crate) mode: String,
    pub(crate) suspended: bool,
    pub(crate) main: MainView,
    pub(crate) spare: SpareView,
    pub(crate) unit_sectors: u32,
    pub(crate) slots: Slots,
    pub(crate) units: Units,
    pub(crate) lost_sectors: u64,
    pub(crate) errors: Errors,
    pub(crate) recovered: Both,
    pub(crate) redirected: Both,
    pub(crate) commits: u64,
    pub(crate) activity: String,
    /// What the drive below main says of itself.
    pub(crate) smart: Option<Smart>,
    #[serde(skip)]
    pub(crate) label: String,
    #[serde(skip)]
    pub(crate) times: Option<(u64, u64)>,
}

/// The superblock of an active device, if it can be read.
fn superblock(device: &Device) -> Option<(Region, Found)> {
    let mut region = Region::open_spare_of(device).ok()?;
    let found = image::open(&mut region).ok()?;
    Some((region, found))
}

/// When the first and the last entry were written, if that is quickly read.
fn times(region: &Region, found: Found) -> Option<(u64, u64)> {
    if !Image::is_small(region, &found, FEW_BLOCKS) {
        return None;
    }
    let image = Image::of(region, found);
    let changed = image
        .entries
        .iter()
        .map(|entry| image.origin(entry.slot).changed);
    let changed = changed.chain(image.bad.iter().map(|bad| bad.origin.changed));
    changed.fold(None, |range: Option<(u64, u64)>, at| {
        let (first, last) = range.unwrap_or((at, at));
        Some((first.min(at), last.max(at)))
    })
}

impl View {
    pub(crate) fn new(device: &Device) -> Result<Self> {
        let read = superblock(device);
        let found = read.as_ref().map(|(_, found)| &found.superblock);
        let mut view = Self::of(device, &device.status()?, found)?;
        view.times = read.and_then(|(region, found)| times(&region, found));
        Ok(view)
    }

    /// By what `dmsetup status` says, and by the superblock, if it was read.
    pub(crate) fn of(device: &Device, line: &str, known: Option<&Superblock>) -> Result<Self> {
        let what = || format!("{}: status {line}: not understood", device.name);
        let words: Vec<&str> = line.split(' ').collect();
        let word = |at: usize| words.get(at).copied().with_context(what);
        let number = |at: usize| word(at)?.parse::<u64>().with_context(what);
        let (used, total) = word(2)?.split_once('/').with_context(what)?;
        let id = known
            .filter(|s| s.main.is_known())
            .map(|s| s.main.to_string());
        let label = known.map(|s| decode(&s.label));
        Ok(Self {
            name: device.name.clone(),
            uuid: device.uuid.clone(),
            mode: word(0)?.into(),
            suspended: device.suspended,
            main: MainView {
                device: path_of(device.main).display().to_string(),
                start: device.line.main_start,
                sectors: device.sectors,
                id,
            },
            spare: SpareView {
                device: path_of(device.spare).display().to_string(),
                start: device.line.spare_start,
                sectors: known.map(|s| s.geometry.spare_sectors),
                uuid: known.map(|s| dump::uuid(&s.uuid)),
                label: label.clone(),
            },
            unit_sectors: u32::try_from(number(1)?).with_context(what)?,
            slots: Slots {
                used: used.parse().with_context(what)?,
                total: total.parse().with_context(what)?,
                bad: number(3)?,
            },
            units: Units {
                relocated: number(4)?,
                pending: number(5)?,
            },
            errors: Errors {
                read: number(6)?,
                write: number(7)?,
                metadata: number(13)?,
            },
            recovered: Both {
                read: number(8)?,
                write: number(9)?,
            },
            redirected: Both {
                read: number(10)?,
                write: number(11)?,
            },
            commits: number(12)?,
            activity: word(14)?.into(),
            lost_sectors: number(15)?,
            smart: None,
            label: label.unwrap_or_default(),
            times: None,
        })
    }

    /// Slots that can be given out.
    pub(crate) fn free(&self) -> u64 {
        self.slots
            .total
            .saturating_sub(self.slots.used + self.slots.bad)
    }

    /// What is wrong, what it means, and what to do: nothing if all is well.
    pub(crate) fn advice(&self) -> Vec<String> {
        let name = &self.name;
        let mut said = Vec::new();
        let mut say = |text: String| said.push(text);
        match self.mode.as_str() {
            "active" => (),
            "readonly" => say("The device was opened read-only: nothing is written, and no bad sector is relocated.".into()),
            "full" => say(format!(
                "The spare is full: the next bad sector is an error to whoever writes it. Use a larger spare: make its \
                 partition longer, then dmremap close {name}, dmremap grow {}, dmremap open {name}.",
                self.spare.device
            )),
            "degraded" => say(format!(
                "The spare {} does not take writes: no further sector can be relocated. What is relocated is still served. \
                 Look after its cable and the kernel log; the mode ends by itself when the spare answers again.",
                self.spare.device
            )),
            "tripped" => say(format!(
                "The disk {} does not answer, as if it were unplugged: its errors are passed on and not recorded. The mode ends \
                 by itself when it answers again, or with dmremap reset {name}.",
                self.main.device
            )),
            other => say(format!("The mode {other} is not known to this version of dmremap.")),
        }
        if self.suspended {
            say(format!(
                "The device is suspended: whoever uses it waits, until dmsetup resume {name}."
            ));
        }
        let (pending, relocated) = (self.units.pending, self.units.relocated);
        if pending > 0 {
            say(format!(
                "{} of the disk cannot be read (pending): files there give errors, and dmremap files {name} names them. A unit \
                 is served from the spare once it is written; dmremap zero {name} writes zeroes to what nobody can read.",
                ui::count(pending, "unit")
            ));
        }
        if self.lost_sectors > 0 {
            say(format!(
                "{} were on parts of the spare that failed, and are lost: dmremap files {name} names the files. Restore them \
                 from a backup, or dmremap zero {name}.",
                ui::count(self.lost_sectors, "sector")
            ));
        }
        if self.slots.bad > 0 {
            say(format!(
                "{} of the spare {} failed: it has bad sectors itself. Plan to replace it.",
                ui::count(self.slots.bad, "slot"),
                self.spare.device
            ));
        }
        let free = self.free();
        if self.mode == "active" && free < self.slots.total / 10 {
            say(format!(
                "Only {} left on the spare: think of a larger one.",
                ui::count(free, "slot")
            ));
        }
        if let Some(smart) = self
            .smart
            .as_ref()
            .filter(|smart| smart.failing == Some(true))
        {
            say(format!(
                "{} says itself that it is about to fail (SMART): copy what is on it as long as that goes.",
                smart.drive
            ));
        }
        if relocated + pending > 0 && self.mode != "readonly" {
            say("A disk that loses sectors mostly loses more: have a backup, and plan to replace it.".into());
        }
        said
    }

    /// Whether something is wrong that the disk has not been cured of.
    pub(crate) fn is_well(&self) -> bool {
        let is_mode_well = matches!(self.mode.as_str(), "active" | "readonly");
        is_mode_well
            && !self.suspended
            && self.units.pending == 0
            && self.lost_sectors == 0
            && self.slots.bad == 0
    }

    fn headline(&self) -> String {
        let relocated = self.units.relocated;
        match (self.is_well(), relocated) {
            (true, 0) => "all is well, no bad sector is known".into(),
            (true, _) => format!(
                "all is well: {} served from the spare",
                ui::count(relocated, "bad unit")
            ),
            (false, _) => "needs attention".into(),
        }
    }

    pub(crate) fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        let unit = u64::from(self.unit_sectors);
        writeln!(out, "{}: {}", self.name, self.headline())?;
        let mode = if self.suspended {
            format!("{}, suspended", self.mode)
        } else {
            self.mode.clone()
        };
        let activity = if self.activity == "idle" {
            String::new()
        } else {
            format!(", {}", self.activity)
        };
        writeln!(out, "  mode        {mode}{activity}")?;
        writeln!(
            out,
            "  main        {}, {}",
            self.main.device,
            ui::size(self.main.sectors)
        )?;
        if let Some(id) = &self.main.id {
            writeln!(out, "              {id}")?;
        }
        let size = self
            .spare
            .sectors
            .map(|sectors| format!(", {}", ui::size(sectors)));
        writeln!(
            out,
            "  spare       {}{}",
            self.spare.device,
            size.unwrap_or_default()
        )?;
        if let Some(uuid) = &self.spare.uuid {
            let label = if self.label.is_empty() {
                String::new()
            } else {
                format!(", {:?}", self.label)
            };
            writeln!(out, "              {uuid}{label}")?;
        }
        writeln!(
            out,
            "  units       {} relocated, {} pending, of {} each",
            self.units.relocated,
            self.units.pending,
            ui::size(unit)
        )?;
        writeln!(
            out,
            "  slots       {} used of {}, {} bad",
            self.slots.used, self.slots.total, self.slots.bad
        )?;
        if self.lost_sectors > 0 {
            writeln!(out, "  lost        {}", ui::size(self.lost_sectors))?;
        }
        if let Some((first, last)) = self.times {
            writeln!(
                out,
                "  since       first {}, last {}",
                dump::time(first),
                dump::time(last)
            )?;
        }
        let requests = |of: &Both| {
            let [reads, writes] = [ui::count(of.read, "read"), ui::count(of.write, "write")];
            format!("{reads}, {writes}")
        };
        let e = &self.errors;
        let of_main = Both {
            read: e.read,
            write: e.write,
        };
        writeln!(
            out,
            "  errors      {} of main, {} of the metadata",
            requests(&of_main),
            e.metadata
        )?;
        writeln!(out, "  recovered   {}", requests(&self.recovered))?;
        writeln!(out, "  redirected  {}", requests(&self.redirected))?;
        if let Some(smart) = &self.smart {
            writeln!(out, "  drive       {smart}")?;
        }
        for line in self.advice() {
            writeln!(out)?;
            for line in textwrap::wrap(&line, 78) {
                writeln!(out, "  {line}")?;
            }
        }
        Ok(())
    }
}

pub(crate) fn run(args: &device_cli::Status) -> Result<crate::Status> {
    let devices = match &args.name {
        Some(name) => vec![Device::open(name)?],
        None => Device::all()?,
    };
    let mut views = Vec::new();
    let mut drives = Drives::default();
    for device in &devices {
        match View::new(device) {
            Ok(view) => views.push(View {
                smart: drives.of(&path_of(device.main)),
                ..view
            }),
            // It may have been closed meanwhile.
            Err(_) if args.name.is_none() && Device::find(&device.name)?.is_none() => (),
            Err(error) => bail!(error),
        }
    }
    let mut out = stdout();
    if args.json {
        ui::json(
            &mut out,
            &serde_json::json!({ "version": 1, "devices": views }),
        )?;
    } else if views.is_empty() {
        writeln!(out, "no remap device is active")?;
    }
    for (at, view) in views.iter().enumerate().filter(|_| !args.json) {
        if at > 0 {
            writeln!(out)?;
        }
        view.print(&mut out)?;
    }
    Ok(if views.iter().all(View::is_well) {
        crate::Status::Done
    } else {
        crate::Status::Damaged
    })
}
