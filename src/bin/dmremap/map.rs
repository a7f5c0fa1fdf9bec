// SPDX-License-Identifier: GPL-2.0

//! `dmremap map`: a picture of a device, in the terminal or as SVG, or the same as JSON, for the next one to be compared with.

mod cells;
mod svg;
mod terminal;

use crate::cli::Map as Args;
use crate::files::shown;
use crate::image::Image;
use crate::label::decode;
use crate::{dump, import, json, ui, whole_file, Status};
use anyhow::{anyhow, ensure, Context as _, Result};
use cells::{Bad, Counts, Grid, State};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{stdout, BufWriter, Write};
use std::ops::Range;
use std::path::Path;

/// What is drawn.
struct Map {
    /// Of the active device, or of the spare.
    name: String,
    label: String,
    uuid: String,
    /// Length of main.
    sectors: u64,
    unit_sectors: u64,
    slots: Slots,
    lost_sectors: u64,
    /// When a record was changed last, in seconds since 1970.
    changed: Option<u64>,
    /// Sorted by unit.
    bad: Vec<Bad>,
    since: Option<Since>,
}

#[derive(Clone, Copy, Serialize)]
struct Slots {
    used: u64,
    total: u64,
    bad: u64,
}

/// What is different from a report.
#[derive(Clone, Serialize)]
struct Since {
    /// When it was made; without that, its name.
    report: String,
    /// Units that are in a worse state now.
    worse: u64,
    /// Units that are in a better one.
    better: u64,
}

/// A report to compare with: what `map --json` or `dump --json` printed.
#[derive(Deserialize)]
struct Report {
    version: u32,
    time: Option<String>,
    spare: ReportSpare,
    main: MainView,
    unit_sectors: u64,
    entries: Vec<ReportEntry>,
}

#[derive(Deserialize)]
struct ReportSpare {
    uuid: String,
}

#[derive(Deserialize)]
struct ReportEntry {
    sector: u64,
    state: State,
    /// Of `map`, where one stands for many units.
    count: Option<u64>,
    /// Of `dump`, where it is no state.
    lost_mask: Option<String>,
}

/// The document that `map --json` prints; the names are those of docs/json.md and stay.
#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    name: &'a str,
    time: Option<String>,
    spare: SpareView<'a>,
    main: MainView,
    unit_sectors: u64,
    slots: Slots,
    units: UnitsView,
    lost_sectors: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<&'a Since>,
    entries: Vec<Run>,
}

#[derive(Serialize)]
struct SpareView<'a> {
    uuid: &'a str,
    label: &'a str,
}

#[derive(Serialize, Deserialize)]
struct MainView {
    sectors: u64,
}

#[derive(Serialize)]
struct UnitsView {
    healthy: u64,
    relocated: u64,
    partial: u64,
    pending: u64,
    lost: u64,
}

/// Units side by side that are in the same state.
#[derive(Serialize)]
struct Run {
    sector: u64,
    count: u64,
    state: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    worse: Option<bool>,
}

/// A number of units for a person: `12 units`.
fn units(number: u64) -> String {
    ui::count(number, "unit")
}

/// What there is of each state that is not healthy, the worst first: `3 lost, 12 pending`.
fn list(counts: &Counts) -> String {
    let there = State::ALL[1..].iter().rev().filter(|s| counts.of(**s) > 0);
    let there: Vec<String> = there
        .map(|s| format!("{} {}", counts.of(*s), s.name()))
        .collect();
    match there.is_empty() {
        true => "healthy".into(),
        false => there.join(", "),
    }
}

impl Map {
    fn new(name: String, image: &Image) -> Self {
        let g = image.geometry();
        let bad = image.entries.iter().map(|entry| Bad {
            unit: entry.unit.0,
            state: match dump::state(entry, g) {
                _ if entry.lost != 0 => State::Lost,
                "pending" => State::Pending,
                "partial" => State::Partial,
                _ => State::Relocated,
            },
            is_worse: false,
        });
        let entries = image.entries.iter().map(|e| image.origin(e.slot).changed);
        let slots = image.bad.iter().map(|bad| bad.origin.changed);
        let lost = image.entries.iter().map(|e| u64::from(e.lost.count_ones()));
        Self {
            name,
            label: decode(&image.superblock().label),
            uuid: dump::uuid(&image.superblock().uuid),
            sectors: g.main_sectors,
            unit_sectors: g.unit_sectors.into(),
            slots: Slots {
                used: image.slots.used(),
                total: image.slots.usable(),
                bad: image.slots.bad(),
            },
            lost_sectors: lost.sum(),
            changed: entries.chain(slots).max(),
            bad: bad.collect(),
            since: None,
        }
    }

    /// All units.
    fn units(&self) -> u64 {
        self.sectors.div_ceil(self.unit_sectors)
    }

    fn counts(&self) -> Counts {
        self.counts_of(&(0..self.units()))
    }

    fn counts_of(&self, units: &Range<u64>) -> Counts {
        Counts::new(units.end - units.start, cells::inside(&self.bad, units))
    }

    /// What it is a map of.
    fn title(&self) -> String {
        match self.label.is_empty() {
            true => self.name.clone(),
            false => format!("{} ({})", self.name, self.label),
        }
    }

    /// The sectors of units.
    fn sectors_of(&self, units: &Range<u64>) -> Range<u64> {
        units.start * self.unit_sectors..(units.end * self.unit_sectors).min(self.sectors)
    }

    /// Where units are, for a person: `sectors 80 to 159 (40.0 KiB)`.
    fn place(&self, units: &Range<u64>) -> String {
        let Range { start, end } = self.sectors_of(units);
        let size = ui::binary((end - start) * 512);
        format!("sectors {start} to {} ({size})", end - 1)
    }

    /// The unit in which places are told beside sectors, and its sectors.
    fn scale(&self) -> (&'static str, u64) {
        match self.sectors {
            0..0x4000 => ("KiB", 2),
            0x4000..0x80_0000 => ("MiB", 2 << 10),
            _ => ("GiB", 2 << 20),
        }
    }

    /// Where a unit begins, in that unit, so exactly that units `step` farther on are somewhere else.
    fn position(&self, unit: u64, step: u64) -> String {
        let (_, scale) = self.scale();
        let in_scale = |units: u64| (units * self.unit_sectors) as f64 / scale as f64;
        let digits = (1..6).find(|digits| in_scale(step) >= 0.1_f64.powi(*digits));
        format!("{:.*}", digits.unwrap_or(6) as usize, in_scale(unit))
    }

    /// What there is to say of the whole, in lines.
    fn facts(&self) -> Vec<String> {
        let Slots { used, total, bad } = self.slots;
        let mut slots = format!("{used} of {} in use", ui::count(total, "slot"));
        if used + bad >= total {
            slots += ": the spare is full";
        }
        if bad > 0 {
            slots += &format!(", {bad} failed");
        }
        if self.lost_sectors > 0 {
            slots += &format!("; {} lost", ui::count(self.lost_sectors, "sector"));
        }
        if let Some(changed) = self.changed {
            slots += &format!("; last change {}", dump::time(changed));
        }
        let unit = ui::binary(self.unit_sectors * 512);
        let mut facts = vec![
            format!("{} in units of {unit}", ui::size(self.sectors)),
            slots,
        ];
        facts.extend(self.since.as_ref().map(|since| {
            format!(
                "since {}: {} worse, {} better",
                since.report,
                units(since.worse),
                since.better
            )
        }));
        facts
    }

    /// What a cell of a grid is.
    fn cell(&self, grid: &Grid) -> String {
        let bytes = grid.step.saturating_mul(self.unit_sectors * 512);
        format!("{} ({})", units(grid.step), ui::binary(bytes))
    }

    /// Marks what is worse than in the report of that name.
    fn compare(&mut self, path: &Path) -> Result<()> {
        let name = || shown(path);
        let text = fs::read(path).with_context(name)?;
        let report: Report = serde_json::from_slice(&text).map_err(|e| {
            anyhow!(
                "{}: not what dmremap map --json or dump --json prints: {}",
                name(),
                shown(Path::new(&e.to_string()))
            )
        })?;
        let same = report.version == 1
            && report.main.sectors == self.sectors
            && report.unit_sectors == self.unit_sectors;
        ensure!(
            same && report.spare.uuid == self.uuid,
            "{}: of another device: its spare is {:?}, of a main of {}; this one is {:?}, of {}",
            name(),
            report.spare.uuid,
            ui::size(report.main.sectors),
            self.uuid,
            ui::size(self.sectors)
        );
        let then = self.runs(&report.entries).with_context(name)?;
        let is_time = |time: &String| time.parse::<jiff::Timestamp>().is_ok();
        let mut since = Since {
            report: report.time.filter(is_time).unwrap_or_else(name),
            worse: 0,
            better: 0,
        };
        for (units, state) in &then {
            since.better += units.end - units.start;
            let from = self.bad.partition_point(|bad| bad.unit < units.start);
            let now = self.bad[from..]
                .iter()
                .take_while(|bad| bad.unit < units.end);
            since.better -= now.filter(|bad| bad.state >= *state).count() as u64;
        }
        for bad in &mut self.bad {
            let at = then.partition_point(|(units, _)| units.end <= bad.unit);
            let then = then.get(at).filter(|(units, _)| units.contains(&bad.unit));
            bad.is_worse = then.is_none_or(|(_, state)| *state < bad.state);
            since.worse += u64::from(bad.is_worse);
        }
        self.since = Some(since);
        Ok(())
    }

    /// The units of a report's entries, and their states.
    fn runs(&self, entries: &[ReportEntry]) -> Result<Vec<(Range<u64>, State)>> {
        let mut runs: Vec<(Range<u64>, State)> = Vec::with_capacity(entries.len());
        for entry in entries {
            let what = || format!("the entry of sector {} cannot be", entry.sector);
            let count = entry.count.unwrap_or(self.unit_sectors);
            let end = entry.sector.checked_add(count).with_context(what)?;
            let units = entry.sector / self.unit_sectors..end.div_ceil(self.unit_sectors);
            let after = runs.last().map_or(0, |(units, _)| units.end);
            ensure!(
                entry.state != State::Healthy
                    && entry.sector % self.unit_sectors == 0
                    && (after..units.end).contains(&units.start)
                    && units.end <= self.units(),
                what()
            );
            let is_lost = entry.lost_mask.as_deref().is_some_and(|mask| mask != "0");
            runs.push((units, if is_lost { State::Lost } else { entry.state }));
        }
        Ok(runs)
    }

    fn print_json(&self, mut out: impl Write) -> Result<()> {
        let counts = self.counts();
        let mut entries: Vec<Run> = Vec::new();
        for bad in &self.bad {
            let Range { start, end } = self.sectors_of(&(bad.unit..bad.unit + 1));
            let worse = self.since.is_some().then_some(bad.is_worse);
            match entries.last_mut() {
                Some(run)
                    if (run.sector + run.count, run.state, run.worse)
                        == (start, bad.state, worse) =>
                {
                    run.count += end - start
                }
                _ => entries.push(Run {
                    sector: start,
                    count: end - start,
                    state: bad.state,
                    worse,
                }),
            }
        }
        let document = Document {
            version: 1,
            name: &self.name,
            time: json::time(import::now()),
            spare: SpareView {
                uuid: &self.uuid,
                label: &self.label,
            },
            main: MainView {
                sectors: self.sectors,
            },
            unit_sectors: self.unit_sectors,
            slots: self.slots,
            units: UnitsView {
                healthy: counts.of(State::Healthy),
                relocated: counts.of(State::Relocated),
                partial: counts.of(State::Partial),
                pending: counts.of(State::Pending),
                lost: counts.of(State::Lost),
            },
            lost_sectors: self.lost_sectors,
            since: self.since.as_ref(),
            entries,
        };
        serde_json::to_writer(&mut out, &document).map_err(std::io::Error::from)?;
        writeln!(out)?;
        Ok(())
    }
}

pub(crate) fn run(args: &Args) -> Result<Status> {
    let (region, image) = Image::look(&args.spare)?;
    let image = image.must_be_usable(&region)?;
    let mut map = Map::new(args.spare.spare.display().to_string(), &image);
    drop(image);
    if let Some(report) = &args.since {
        map.compare(report)?;
    }
    match &args.output {
        Some(path) if path.as_os_str() != "-" => {
            let drawn =
                |out: &mut BufWriter<fs::File>| Ok(out.write_all(svg::draw(&map).as_bytes())?);
            whole_file::create(path, drawn).with_context(|| path.display().to_string())?;
        }
        Some(_) => stdout().write_all(svg::draw(&map).as_bytes())?,
        None if args.json => {
            let mut out = BufWriter::new(stdout().lock());
            map.print_json(&mut out)?;
            out.flush()?;
        }
        None => {
            let mut out = BufWriter::new(anstream::stdout());
            terminal::draw(&map, &mut out, ui::width(), ui::is_ascii())?;
            out.flush()?;
        }
    }
    Ok(Status::Done)
}
