// SPDX-License-Identifier: GPL-2.0

//! What a scrub has found, for a person, for a program, and for the scrub that goes on where this one was interrupted.

use crate::dm::{path_of, Device};
use crate::main_device::identity;
use crate::{ui, whole_file, Status};
use anyhow::{Context as _, Result};
use dm_remap::engine::identity::Identity;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// Of each kind, so many are shown to a person.
const SHOWN: usize = 20;

/// One that was interrupted so many days ago is not gone on with: what it read has changed since.
const STALE: u64 = 27;

/// Sectors of the mapped device.
#[derive(Clone, Serialize, Deserialize, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    sector: u64,
    count: u64,
    /// When they were found, in seconds since 1970.
    time: u64,
}

/// Ascending, each range as long as possible.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Findings(Vec<Finding>);

impl Findings {
    pub(crate) fn add(&mut self, sectors: Range<u64>) {
        let (mut sector, mut end, mut time) = (sectors.start, sectors.end, now());
        let touches = |f: &Finding| f.sector <= end && sector <= f.sector + f.count;
        let first = self
            .0
            .partition_point(|f| f.sector + f.count < sectors.start);
        let number = self.0[first..].iter().take_while(|f| touches(f)).count();
        for f in self.0.drain(first..first + number) {
            sector = sector.min(f.sector);
            end = end.max(f.sector + f.count);
            time = time.min(f.time);
        }
        let count = end - sector;
        self.0.insert(
            first,
            Finding {
                sector,
                count,
                time,
            },
        );
    }

    /// Takes sectors out that lie in one of them; whether they did.
    pub(crate) fn remove(&mut self, sectors: &Range<u64>) -> bool {
        let at = self
            .0
            .partition_point(|f| f.sector + f.count <= sectors.start);
        let found = self.0.get(at).cloned();
        let is_in = |f: &Finding| f.sector <= sectors.start && sectors.end <= f.sector + f.count;
        let Some(found) = found.filter(is_in) else {
            return false;
        };
        let parts = [
            (found.sector, sectors.start),
            (sectors.end, found.sector + found.count),
        ];
        let parts = parts.into_iter().filter(|(start, end)| start < end);
        let left = parts.map(|(sector, end)| Finding {
            sector,
            count: end - sector,
            time: found.time,
        });
        self.0.splice(at..=at, left);
        true
    }

    /// The one that a sector belongs to, or the next one.
    pub(crate) fn next(&self, sector: u64) -> Option<Range<u64>> {
        let at = self.0.partition_point(|f| f.sector + f.count <= sector);
        self.0.get(at).map(|f| f.sector..f.sector + f.count)
    }

    pub(crate) fn add_all(&mut self, others: &Self) {
        others
            .0
            .iter()
            .for_each(|f| self.add(f.sector..f.sector + f.count));
    }

    /// The first sectors of its units before `end`.
    fn units(&self, unit: u64, end: u64) -> impl Iterator<Item = u64> + '_ {
        let unit = unit.max(1);
        let ends = move |f: &Finding| f.sector.saturating_add(f.count).min(end);
        self.0
            .iter()
            .flat_map(move |f| (f.sector..ends(f)).step_by(unit as usize))
    }

    fn sectors(&self) -> u64 {
        self.0.iter().map(|f| f.count).sum()
    }
}

/// Sectors that were slow and are to be read again.
#[derive(Serialize, Deserialize)]
pub(crate) struct Suspect {
    pub(crate) sector: u64,
    pub(crate) count: u64,
}

/// All of it; the names are those of docs/json.md and stay.
#[derive(Serialize, Deserialize)]
pub(crate) struct Report {
    version: u32,
    pub(crate) name: String,
    uuid: String,
    /// What is known of main; the same spare may be given another one.
    main_id: Option<String>,
    /// Whether all was read, and every suspect decided upon.
    pub(crate) complete: bool,
    /// Seconds since 1970.
    started: u64,
    pub(crate) ended: u64,
    /// How long it was at work, without the time between an interruption and going on.
    pub(crate) seconds: u64,
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// All before this was read.
    pub(crate) position: u64,
    pub(crate) unit_sectors: u64,
    /// How long reading a unit takes, and how much longer a slow one takes.
    pub(crate) median_us: u64,
    pub(crate) slow_ms: u64,
    pub(crate) pending: Findings,
    pub(crate) relocated: Findings,
    pub(crate) slow: Findings,
    pub(crate) unreadable: Findings,
    pub(crate) unread: Findings,
    pub(crate) suspects: Vec<Suspect>,
    notes: Vec<String>,
}

pub(crate) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

impl Report {
    pub(crate) fn new(device: &Device, sectors: Range<u64>, unit: u64) -> Self {
        let main = identity(&path_of(device.main), Some(device.line.main_start)).ok();
        Self {
            version: 1,
            name: device.name.clone(),
            uuid: device.uuid.clone(),
            main_id: main.filter(Identity::is_known).map(|id| id.to_string()),
            complete: false,
            started: now(),
            ended: 0,
            seconds: 0,
            from: sectors.start,
            to: sectors.end,
            position: sectors.start,
            unit_sectors: unit,
            median_us: 0,
            slow_ms: 0,
            pending: Findings::default(),
            relocated: Findings::default(),
            slow: Findings::default(),
            unreadable: Findings::default(),
            unread: Findings::default(),
            suspects: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Whether it is of the same sectors of the same device as `other`.
    fn is_of(&self, other: &Self) -> bool {
        let devices = |r: &Self| (r.uuid.clone(), r.main_id.clone());
        let sectors = |r: &Self| (r.version, r.from, r.to, r.unit_sectors);
        devices(self) == devices(other)
            && sectors(self) == sectors(other)
            && (self.from..=self.to).contains(&self.position)
    }

    /// How many days ago it began: what it read first is as old as that. `None`: in the future, by a clock that was wrong.
    pub(crate) fn age(&self) -> Option<u64> {
        Some(now().checked_sub(self.started)? / 86400)
    }

    /// Whether it was interrupted too long ago to be gone on with.
    pub(crate) fn is_stale(&self) -> bool {
        now().saturating_sub(self.ended) / 86400 >= STALE
    }

    /// Takes over what `old` has found and the kernel knows since then, so that this does not find it.
    /// `entries` and `end` are the device's.
    pub(crate) fn take_over(&mut self, old: Self, entries: &BTreeMap<u64, bool>, end: u64) {
        self.pending = old.pending;
        self.relocated = old.relocated;
        // Of what cannot be read, that has an entry which was lost with its slot. The rest is met again.
        for at in old.unreadable.units(self.unit_sectors, end) {
            if entries.get(&at) == Some(&false) {
                self.unreadable.add(at..(at + self.unit_sectors).min(end));
            }
        }
    }

    /// Takes note of what changed of units that have an entry: `known` had one before, `found` have one now, by their first
    /// sector, and whether all of it is in a slot. `end`: the device's. Whether something is new.
    pub(crate) fn compare(
        &mut self,
        known: &BTreeMap<u64, bool>,
        found: &BTreeMap<u64, bool>,
        end: u64,
    ) -> bool {
        let length = self.unit_sectors;
        let unit = |at: &u64| *at..(at + length).min(end);
        let mut has_new = false;
        for (at, is_whole) in found {
            let before = known.get(at);
            let is_new = before.is_none();
            if *is_whole {
                self.unreadable.remove(&unit(at));
                // What is being relocated is pending until that is done.
                if self.pending.remove(&unit(at)) || is_new {
                    self.relocated.add(unit(at));
                }
            } else if is_new {
                self.pending.add(unit(at));
            } else if before == Some(&true) {
                // Its slot has failed, and what that had is lost.
                self.relocated.remove(&unit(at));
                self.unreadable.add(unit(at));
            }
            has_new |= is_new || (before == Some(&true) && !is_whole);
        }
        for at in known.keys().filter(|at| !found.contains_key(at)) {
            // Somebody has forgotten or restored it meanwhile.
            for findings in [&mut self.pending, &mut self.relocated, &mut self.unreadable] {
                findings.remove(&unit(at));
            }
        }
        has_new
    }

    /// Takes out what an earlier scrub has found, and is not true any more. `entries` and `end` are the device's.
    pub(crate) fn refresh(&mut self, entries: &BTreeMap<u64, bool>, end: u64) {
        let units =
            |findings: &Findings| -> Vec<u64> { findings.units(self.unit_sectors, end).collect() };
        let pending = units(&self.pending).into_iter().map(|at| (at, false));
        let relocated = units(&self.relocated).into_iter().map(|at| (at, true));
        let known: BTreeMap<u64, bool> = pending.chain(relocated).collect();
        let found = known.keys().filter_map(|at| Some((*at, *entries.get(at)?)));
        let found = found.collect();
        self.compare(&known, &found, end);
    }

    /// Goes back to what was left out first, as all of that is wanted now.
    pub(crate) fn want_unread(&mut self) {
        if let Some(first) = self.unread.next(0) {
            self.position = self.position.min(first.start).max(self.from);
            self.unread = Findings::default();
        }
    }

    /// Says something that a person should know, once.
    pub(crate) fn note(&mut self, text: String) {
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    fn kinds(&self) -> [(&Findings, &'static str); 5] {
        [
            (&self.pending, "cannot be read, pending from now on"),
            (&self.relocated, "hard to read, relocated from now on"),
            (&self.slow, "slow, but not relocated"),
            (&self.unreadable, "cannot be read, and is not pending"),
            (&self.unread, "left out, where hardly anything can be read"),
        ]
    }

    /// What the command is to end with.
    pub(crate) fn status(&self) -> Status {
        match self.kinds().iter().all(|(found, _)| found.0.is_empty()) {
            true => Status::Done,
            false => Status::Damaged,
        }
    }

    /// For a person.
    pub(crate) fn print(&self, out: &mut impl Write) -> Result<()> {
        let read = self.position - self.from;
        let percent = read * 100 / (self.to - self.from).max(1);
        let part = match self.complete {
            true => String::new(),
            false => format!(", {percent} %"),
        };
        let (size, time) = (ui::size(read), duration(self.seconds));
        writeln!(out, "{}: {size} read in {time}{part}", self.name)?;
        for (found, what) in self.kinds() {
            if found.0.is_empty() {
                continue;
            }
            let units = found.sectors().div_ceil(self.unit_sectors);
            writeln!(out, "  {what}: {}", ui::count(units, "unit"))?;
            for Finding { sector, count, .. } in found.0.iter().take(SHOWN) {
                writeln!(out, "    {sector} {count}")?;
            }
            let more = found.0.len().saturating_sub(SHOWN);
            if more > 0 {
                let more = ui::count(more as u64, "range");
                writeln!(out, "    and {more} more, which --json has")?;
            }
        }
        for note in &self.notes {
            for line in textwrap::wrap(note, 78) {
                writeln!(out, "  {line}")?;
            }
        }
        Ok(())
    }

    /// The last line, for a person.
    pub(crate) fn verdict(&self) -> String {
        let name = &self.name;
        match self.status() {
            Status::Done => format!("{name}: nothing new was found"),
            _ if self.pending.0.is_empty() => {
                format!("{name}: the disk gets worse; dmremap status {name} says how it is")
            }
            _ => format!(
                "{name}: the disk gets worse; files with pending sectors give errors: dmremap status {name} says what to do"
            ),
        }
    }
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// Where reports lie: of one that goes on, and the last one of the whole device.
pub(crate) struct Files {
    directory: PathBuf,
    stem: String,
    is_of_all: bool,
}

impl Files {
    /// Those of a device, or of a part of it.
    pub(crate) fn of(name: &str, part: Option<Range<u64>>) -> Self {
        // As systemd tells services.
        let directory = std::env::var_os("STATE_DIRECTORY").unwrap_or("/var/lib/dmremap".into());
        let is_of_all = part.is_none();
        let part = part.map_or(String::new(), |part| {
            format!("-{}-{}", part.start, part.end)
        });
        Self {
            directory: directory.into(),
            stem: format!("scrub-{name}{part}"),
            is_of_all,
        }
    }

    fn path(&self, complete: bool) -> PathBuf {
        let extension = if complete { "json" } else { "state" };
        self.directory.join(format!("{}.{extension}", self.stem))
    }

    /// The report that is there, if it is of what `wanted` is of. One that cannot be read or understood counts as none, with a
    /// warning.
    pub(crate) fn read(&self, complete: bool, wanted: &Report) -> Option<Report> {
        let path = self.path(complete);
        let text = match fs::read(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return None,
            text => text.map_err(anyhow::Error::from),
        };
        let report = text.and_then(|text| Ok(serde_json::from_slice::<Report>(&text)?));
        if let Err(error) = &report {
            ui::warning(&format!(
                "{}: cannot be used, and counts as none: {error:#}",
                path.display()
            ));
        }
        report.ok().filter(|report| report.is_of(wanted))
    }

    /// Keeps a report for the next scrub: one that is not complete to go on with, a complete one of the whole device because
    /// it is the last.
    pub(crate) fn write(&self, report: &Report) -> Result<()> {
        if !report.complete || self.is_of_all {
            let path = self.path(report.complete);
            let text = serde_json::to_string_pretty(report)? + "\n";
            let made = fs::create_dir_all(&self.directory).map_err(Into::into);
            let written = made.and_then(|()| whole_file::replace(&path, &text, true));
            written.with_context(|| path.display().to_string())?;
        }
        match report.complete {
            true => self.forget(),
            false => Ok(()),
        }
    }

    /// Removes the report of what was interrupted.
    pub(crate) fn forget(&self) -> Result<()> {
        let path = self.path(false);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(e).with_context(|| path.display().to_string())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            version: 1,
            name: "safe".into(),
            uuid: "REMAP-1".into(),
            main_id: Some("PARTUUID=1".into()),
            complete: false,
            started: 1_800_000_000,
            ended: 1_800_000_060,
            seconds: 59,
            from: 0,
            to: 4096,
            position: 2048,
            unit_sectors: 8,
            median_us: 80,
            slow_ms: 50,
            pending: Findings::default(),
            relocated: Findings::default(),
            slow: Findings::default(),
            unreadable: Findings::default(),
            unread: Findings::default(),
            suspects: vec![Suspect {
                sector: 0,
                count: 2048,
            }],
            notes: Vec::new(),
        }
    }

    fn printed(report: &Report) -> String {
        let mut out = Vec::new();
        report.print(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn neighbours_are_one_range() {
        let mut all = Findings::default();
        for at in [80, 0, 16, 8, 96, 88, 200] {
            all.add(at..at + 8);
        }
        let ranges: Vec<_> = all.0.iter().map(|f| (f.sector, f.count)).collect();
        assert_eq!(ranges, [(0, 24), (80, 24), (200, 8)]);
        // What is known already is not twice.
        all.add(8..16);
        all.add(0..300);
        assert_eq!((all.0.len(), all.sectors()), (1, 300));
        let mut more = Findings::default();
        more.add(400..408);
        more.add_all(&all);
        for (sector, next) in [(0, 0..300), (299, 0..300), (300, 400..408), (407, 400..408)] {
            assert_eq!(more.next(sector), Some(next));
        }
        assert_eq!(more.next(408), None);
        // Out of the middle, from an end, and as a whole.
        for sectors in [8..16, 0..8, 292..300, 400..408] {
            assert!(more.remove(&sectors));
            assert!(!more.remove(&sectors));
        }
        for sectors in [8..24, 290..294, 1000..1008] {
            assert!(!more.remove(&sectors));
        }
        let ranges: Vec<_> = more.0.iter().map(|f| (f.sector, f.count)).collect();
        assert_eq!(ranges, [(16, 276)]);
    }

    #[test]
    fn a_person_reads_what_is_new() {
        let mut report = report();
        assert_eq!(
            printed(&report),
            "safe: 2048 sectors (1.0 MiB) read in 59 s, 50 %\n"
        );
        assert!(report.status() == Status::Done);
        assert_eq!(report.verdict(), "safe: nothing new was found");
        (0..30).for_each(|nth| report.relocated.add(nth * 16..nth * 16 + 8));
        report.pending.add(1000..1016);
        report.note("The spare is full.".into());
        report.note("The spare is full.".into());
        report.complete = true;
        let said = printed(&report);
        assert!(
            said.contains(
                "read in 59 s\n  cannot be read, pending from now on: 2 units\n    1000 16\n"
            ),
            "{said}"
        );
        assert!(said.contains("now on: 30 units\n    0 8\n    16 8\n"));
        assert!(said.contains("    304 8\n    and 10 ranges more, which --json has\n"));
        assert_eq!(said.matches("The spare is full").count(), 1);
        assert!(report.status() == Status::Damaged);
        assert!(report.verdict().contains("pending sectors give errors"));
    }

    #[test]
    fn what_changes_is_found_and_what_is_not_true_any_more_is_dropped() {
        let ranges = |report: &Report| {
            let all = [&report.pending, &report.relocated, &report.unreadable];
            all.map(|f| f.0.iter().map(|f| (f.sector, f.count)).collect::<Vec<_>>())
        };
        let map =
            |entries: &[(u64, bool)]| -> BTreeMap<u64, bool> { entries.iter().copied().collect() };
        let mut report = report();
        // New ones, the last of which is shorter.
        let first = map(&[(0, false), (8, false), (16, true), (4088, true)]);
        assert!(report.compare(&map(&[]), &first, 4090));
        let found = [vec![(0, 16)], vec![(16, 8), (4088, 2)], vec![]];
        assert_eq!(ranges(&report), found);
        assert!(!report.compare(&first, &first, 4090));
        assert_eq!(ranges(&report), found);
        // One was relocated meanwhile, which is no news, as it was known.
        let second = map(&[(0, false), (8, true), (16, true), (4088, true)]);
        assert!(!report.compare(&first, &second, 4090));
        assert_eq!(
            ranges(&report),
            [vec![(0, 8)], vec![(8, 16), (4088, 2)], vec![]]
        );
        // A slot has failed, of one that was relocated just now, and of one that was long ago.
        let mut third = second.clone();
        third.extend([(16, false), (80, false)]);
        let mut known = second.clone();
        known.insert(80, true);
        assert!(report.compare(&known, &third, 4090));
        let lost = [
            vec![(0, 8)],
            vec![(8, 8), (4088, 2)],
            vec![(16, 8), (80, 8)],
        ];
        assert_eq!(ranges(&report), lost);
        assert!(report.status() == Status::Damaged);
        // They are written, and have another slot.
        let fourth = map(&[(0, false), (8, true), (16, true), (80, true), (4088, true)]);
        assert!(!report.compare(&third, &fourth, 4090));
        assert_eq!(
            ranges(&report),
            [vec![(0, 8)], vec![(8, 8), (4088, 2)], vec![]]
        );
        // Somebody has forgotten one, and restored another one.
        assert!(!report.compare(&fourth, &map(&[(8, true), (16, true), (80, true)]), 4090));
        assert_eq!(ranges(&report), [vec![], vec![(8, 8)], vec![]]);
        // Likewise from one scrub to the next.
        report.pending.add(0..32);
        report.relocated = Findings::default();
        report.relocated.add(80..96);
        report.refresh(
            &map(&[
                (0, false),
                (8, true),
                (24, false),
                (80, false),
                (88, true),
                (800, true),
            ]),
            4090,
        );
        let left = [vec![(0, 8), (24, 8)], vec![(8, 8), (88, 8)], vec![(80, 8)]];
        assert_eq!(ranges(&report), left);
        // What cannot be true costs nothing.
        report.pending.0[0].count = u64::MAX;
        report.refresh(&map(&[]), 4090);
        assert_eq!(ranges(&report)[1..], [vec![], vec![]]);
    }

    #[test]
    fn what_was_left_out_can_be_wanted_later() {
        let mut report = report();
        report.want_unread();
        assert_eq!(report.position, 2048);
        report.unread.add(1000..1008);
        report.unread.add(1200..1208);
        report.unreadable.add(80..88);
        report.want_unread();
        assert_eq!((report.position, report.unread.sectors()), (1000, 0));
        assert_eq!(report.unreadable.sectors(), 8);
    }

    #[test]
    fn time_is_told_as_people_do() {
        for (seconds, said) in [
            (0, "0 s"),
            (119, "119 s"),
            (150, "2 min"),
            (100_000, "27 h 46 min"),
        ] {
            assert_eq!(duration(seconds), said);
        }
    }

    #[test]
    fn what_was_interrupted_is_found_again_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let files = |stem: &str, is_of_all| Files {
            // It is made if it is not there.
            directory: place.path().join("dmremap"),
            stem: stem.into(),
            is_of_all,
        };
        let all = files("scrub-safe", true);
        let wanted = Report {
            position: 0,
            ..report()
        };
        assert!(all.read(false, &wanted).is_none());
        all.forget().unwrap();
        let mut found = report();
        found.pending.add(8..16);
        all.write(&found).unwrap();
        let read = all.read(false, &wanted).unwrap();
        assert_eq!((read.position, read.started), (2048, 1_800_000_000));
        assert_eq!(read.pending.0, found.pending.0);
        assert_eq!((read.suspects[0].sector, read.suspects[0].count), (0, 2048));
        // Of another device, of another disk, of another length, of nobody.
        let others: [fn(&mut Report); 6] = [
            |r| r.uuid = "REMAP-2".into(),
            |r| r.main_id = Some("PARTUUID=2".into()),
            |r| r.main_id = None,
            |r| r.to = 8192,
            |r| r.from = 8,
            |r| r.unit_sectors = 16,
        ];
        for other in others {
            let mut wanted = report();
            other(&mut wanted);
            assert!(all.read(false, &wanted).is_none());
        }
        // The last one of all stays, and ends the other.
        found.complete = true;
        all.write(&found).unwrap();
        assert!(all.read(false, &wanted).is_none());
        assert!(all.read(true, &wanted).unwrap().complete);
        let part = files("scrub-safe-0-4096", false);
        part.write(&report()).unwrap();
        assert!(part.read(false, &wanted).is_some());
        part.write(&found).unwrap();
        let names = fs::read_dir(place.path().join("dmremap")).unwrap();
        let names: Vec<_> = names.map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["scrub-safe.json"]);
        // What is no report counts as none, and so does what cannot be read.
        fs::write(all.path(false), "{\"version\": 1").unwrap();
        assert!(all.read(false, &wanted).is_none());
        fs::remove_file(all.path(false)).unwrap();
        fs::create_dir(all.path(false)).unwrap();
        assert!(all.read(false, &wanted).is_none());
    }

    #[test]
    fn what_is_too_old_is_not_gone_on_with() {
        let day = 86400;
        let days_ago = |days: u64| Report {
            started: now() - (days + 3) * day - 1,
            ended: now() - days * day - 1,
            ..report()
        };
        for (days, is_stale) in [(0, false), (26, false), (27, true), (1000, true)] {
            assert_eq!(days_ago(days).is_stale(), is_stale, "{days}");
            // What it read first is older.
            assert_eq!(days_ago(days).age(), Some(days + 3));
        }
        // A clock was wrong.
        let mut future = days_ago(0);
        (future.started, future.ended) = (now() + day, now() + 2 * day);
        assert!(!future.is_stale());
        assert_eq!(future.age(), None);
        // What nobody was told of is not lost with it.
        let mut old = report();
        old.pending.add(8..16);
        old.relocated.add(80..88);
        old.slow.add(160..168);
        let mut new = report();
        old.unreadable.add(400..424);
        let entries = BTreeMap::from([(8, false), (80, true), (408, false), (416, true)]);
        new.take_over(old, &entries, 4096);
        assert_eq!(new.kinds().map(|(found, _)| found.0.len()), [1, 1, 0, 1, 0]);
        assert_eq!(new.unreadable.next(0), Some(408..416));
    }

    #[test]
    fn the_schema_has_all_of_it_and_nothing_more() {
        let schema = include_str!("../../../docs/json-schema/scrub.json");
        let schema: serde_json::Value = serde_json::from_str(schema).unwrap();
        let mut report = report();
        report.unread.add(0..8);
        let report = serde_json::to_value(&report).unwrap();
        let names = |value: &serde_json::Value| -> Vec<String> {
            value.as_object().unwrap().keys().cloned().collect()
        };
        assert_eq!(names(&report), names(&schema["properties"]));
        assert_eq!(
            schema["required"].as_array().unwrap().len(),
            names(&report).len()
        );
        let range = &schema["$defs"]["range"]["properties"];
        assert_eq!(names(&report["unread"][0]), names(range));
    }
}
