// SPDX-License-Identifier: GPL-2.0

//! `dmremap scrub`: reads all of a mapped device, so that the kernel learns which sectors cannot be read, and has those relocated
//! that can be read hardly.
//!
//! - [`crate::slow`] tells dying units from a busy disk, by the times that reads take.
//! - [`crate::others`] sees when others use the disk: then there is a pause after each read, nine times as long as it.
//! - [`crate::scrub_report`] has the findings, which are the scrub's memory as well.
//!
//! Each read that fails costs a drive seconds, and makes the kernel record what failed. So what is known as pending is not read
//! again, by nobody here; nor is what was left out of a place where hardly anything can be read. A piece that cannot be read is
//! looked at once more around what became pending, as long as not too many reads fail.

use crate::active::{entries, unit_sectors};
use crate::device_cli::Scrub;
use crate::dm::Device;
use crate::others::Disks;
use crate::scrub_report::{now, Files, Findings, Report, Suspect};
use crate::slow::{default_slow, Chance, Disk, Verdict, Watch, LONG, NEAR, PIECE, SAMPLE};
use crate::{ui, wait, Status};
use anyhow::{bail, ensure, Context as _, Result};
use indicatif::ProgressBar;
use rustix::fs::{flock, FlockOperation, OFlags};
use rustix::io::Errno;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{stdout, Write as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

const SECTOR: u64 = 512;

/// The word of a line of status that says whether the kernel is relocating something.
const ACTIVITY: usize = 14;

/// Reads are from memory that is aligned so, in bytes.
const ALIGNMENT: usize = 4096;

/// From one round of suspects to the next, so many sectors are read, or the drive would answer from its cache: 256 MiB. Of
/// disks that do not turn, which have none for data, 64 MiB.
const CACHE: u64 = 256 * PIECE;
const NO_CACHE: u64 = 64 * PIECE;

/// And so long passes at least.
const LATER: Duration = Duration::from_secs(1);

/// How many reads of a piece may fail before the rest of it is left out; half as many of the next one, and so on, down to
/// [`FAILURES_LEAST`]. As many in all of a round, of what lies around that which failed.
const FAILURES: u32 = 32;
const FAILURES_LEAST: u32 = 4;

/// Pieces in a row of which nothing can be read, and nothing is recorded, before that is the end.
const NOTHING: u32 = 16;

/// How much longer than a read the pause is that follows it while others use the disk; and how long it is at most, after long
/// reads, and after those of few sectors: what takes them longer is not the disk's work, but waiting for others.
const YIELD: u32 = 9;
const YIELD_LONG: Duration = Duration::from_secs(5);
const YIELD_SHORT: Duration = Duration::from_millis(200);

/// Failures after which no more is read that nobody asked for: to know what is usual, to drive all else out of the drive's
/// cache, or as controls outside of what is scrubbed.
const SPARE_FAILURES: u32 = 4;

/// From one time that the state is saved to the next; and if there is news.
const SAVE: Duration = Duration::from_secs(10);
const SAVE_NEWS: Duration = Duration::from_secs(1);

/// How long the kernel may take to relocate what it could hardly read; and if this was interrupted.
const RELOCATING: Duration = Duration::from_secs(60);
const RELOCATING_SHORT: Duration = Duration::from_secs(5);

/// From one look whether something has happened to the next.
const MOMENT: Duration = Duration::from_millis(100);

/// It was told to end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Interrupted(i32);

/// The signal that came, 0 if none did.
#[derive(Clone)]
struct Signals(Arc<AtomicUsize>);

impl Signals {
    /// From now on they do not end the process, however many come: it looks for them itself, and ends with a report.
    fn catch() -> Result<Self> {
        let came = Arc::new(AtomicUsize::new(0));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register_usize(signal, Arc::clone(&came), signal as usize)?;
        }
        Ok(Self(came))
    }

    fn came(&self) -> Result<(), Interrupted> {
        match self.0.load(Ordering::Relaxed) {
            0 => Ok(()),
            signal => Err(Interrupted(signal as i32)),
        }
    }

    fn check(&self) -> Result<()> {
        Ok(self.came()?)
    }

    /// Sleeps, but for a signal.
    fn sleep(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            sleep(left.min(MOMENT));
        }
    }
}

/// The mapped device, read past the page cache, no faster than it should.
struct Reader {
    name: String,
    file: File,
    room: Vec<u8>,
    disks: Disks,
    /// Time that a sector is to take at least.
    pace: Duration,
    /// When the next read may begin.
    next: Instant,
    signals: Signals,
    /// The units that have an entry, by their first sector; whether all of it is in a slot.
    known: BTreeMap<u64, bool>,
    /// What has no entry, and is not to be read again either: it cannot be read, or hardly anything near it.
    left_out: Findings,
    /// What is scrubbed, and what of it was not read yet.
    wanted: Range<u64>,
    ahead: Range<u64>,
    /// What could not be read by the way, and nobody has looked at yet.
    failed: Vec<Range<u64>>,
    unit: u64,
    sectors: u64,
}

impl Reader {
    /// Reads, and says how many microseconds that took; `None`: it cannot be read. Then leaves the disk to others for a while.
    fn time(&mut self, sectors: Range<u64>) -> Result<Option<u64>> {
        self.signals.check()?;
        let count = sectors.end - sectors.start;
        let start = self.room.as_ptr().align_offset(ALIGNMENT);
        let room = &mut self.room[start..start + (count * SECTOR) as usize];
        let before = Instant::now();
        let read = self.file.read_exact_at(room, sectors.start * SECTOR);
        let took = before.elapsed();
        if let Err(error) = &read {
            // What the kernel says of a bad sector, and of a drive that gave up on one.
            let bad = [
                Errno::IO,
                Errno::NODATA,
                Errno::REMOTEIO,
                Errno::ILSEQ,
                Errno::TIMEDOUT,
            ];
            let is_bad = Errno::from_io_error(error).is_some_and(|e| bad.contains(&e));
            ensure!(is_bad, "{}: sector {}: {error}", self.name, sectors.start);
        }
        self.be_no_burden(took, count)?;
        Ok(read.ok().map(|()| took.as_micros() as u64))
    }

    /// Leaves the disk to others, and keeps to the rate.
    fn be_no_burden(&mut self, took: Duration, count: u64) -> Result<()> {
        let most = if count < LONG {
            YIELD_SHORT
        } else {
            YIELD_LONG
        };
        if self.disks.are_used_by_others(count) {
            self.signals.sleep((took * YIELD).min(most))?;
        }
        let now = Instant::now();
        self.next = self.next.max(now - took) + self.pace * count as u32;
        self.signals.sleep(self.next.saturating_duration_since(now))
    }

    /// The entry that a sector belongs to, or the next one.
    fn next_entry(&self, sector: u64) -> Option<(Range<u64>, bool)> {
        let unit = sector / self.unit * self.unit;
        let (at, is_whole) = self.known.range(unit..).next()?;
        let end = (at + self.unit).min(self.sectors);
        Some((*at..end, *is_whole))
    }

    /// Runs of sectors that are not known to be unreadable; whether main alone has them.
    fn runs(&self, sectors: &Range<u64>) -> Vec<(Range<u64>, bool)> {
        let mut runs: Vec<(Range<u64>, bool)> = Vec::new();
        let mut at = sectors.start;
        while at < sectors.end {
            let (entry, out) = (self.next_entry(at), self.left_out.next(at));
            let (end, is_readable, is_plain) = match (entry, out) {
                (Some((entry, is_whole)), _) if entry.start <= at => (entry.end, is_whole, false),
                (_, Some(out)) if out.start <= at => (out.end, false, false),
                (entry, out) => {
                    let starts = [
                        entry.map(|(entry, _)| entry.start),
                        out.map(|out| out.start),
                    ];
                    let next = starts.into_iter().flatten().min();
                    (next.unwrap_or(sectors.end), true, true)
                }
            };
            let run = at..end.min(sectors.end);
            at = run.end;
            match runs.last_mut() {
                _ if !is_readable => (),
                Some((last, was_plain)) if last.end == run.start && *was_plain == is_plain => {
                    last.end = run.end;
                }
                _ => runs.push((run, is_plain)),
            }
        }
        runs
    }

    /// Whether these sectors may be read only to know what is usual: nothing in them is known to fail, and little has failed.
    fn may_sample(&self, sectors: &Range<u64>) -> bool {
        let has_failed = self.failed.iter().any(|failed| overlap(failed, sectors));
        self.failed.len() < SPARE_FAILURES as usize && !has_failed && self.is_mains(sectors)
    }

    /// Whether all of these sectors are main's alone, and not known to be unreadable.
    fn is_mains(&self, sectors: &Range<u64>) -> bool {
        sectors.end <= self.sectors && self.runs(sectors) == [(sectors.clone(), true)]
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Disk for Reader {
    fn read(&mut self, sectors: Range<u64>) -> Result<Option<u64>> {
        let micros = self.time(sectors.clone())?;
        if micros.is_none() {
            self.failed.push(sectors);
        }
        Ok(micros)
    }

    fn is_plain(&self, sectors: Range<u64>) -> bool {
        // Nobody knows what is ahead: it may be a place that is dead.
        let is_tried = !overlap(&sectors, &self.ahead);
        let is_wanted = overlap(&sectors, &self.wanted);
        let may_fail = is_wanted || self.failed.len() < SPARE_FAILURES as usize;
        let has_failed = self.failed.iter().any(|failed| overlap(failed, &sectors));
        is_tried && may_fail && !has_failed && self.is_mains(&sectors)
    }
}

/// The units of `sectors` that have an entry.
fn entries_of(device: &Device, sectors: Range<u64>, unit: u64) -> Result<BTreeMap<u64, bool>> {
    let mut found = BTreeMap::new();
    entries(device, sectors.start, &mut |_, entry| {
        if entry.sector < sectors.end {
            found.insert(entry.sector, entry.state == "relocated");
        }
        Ok(entry.sector + unit < sectors.end)
    })?;
    Ok(found)
}

/// One that is under way.
struct Run<'a> {
    device: &'a Device,
    reader: Reader,
    watch: Watch,
    report: Report,
    files: Files,
    can_save: bool,
    bar: ProgressBar,
    is_thorough: bool,
    /// How often reads may fail in the next piece.
    failures: u32,
    /// Pieces in a row of which nothing was read nor recorded.
    nothing: u32,
    /// What main could read a while ago.
    good: Option<Range<u64>>,
    begun: Instant,
    /// The report's seconds then.
    seconds: u64,
    saved: Instant,
    /// From here on, what is read was not looked at as a whole.
    looked: u64,
    /// Where reading goes on that is to drive all else out of the drive's cache.
    filler: u64,
}

impl Run<'_> {
    /// All of it.
    fn all(&mut self) -> Result<()> {
        let may_cache = self.reader.disks.may_turn();
        let cache = if may_cache { CACHE } else { NO_CACHE };
        loop {
            let begin = Instant::now();
            let Report { position, to, .. } = self.report;
            let window = position..(position + cache).min(to);
            while self.report.position < window.end {
                self.piece(window.end)?;
            }
            self.look_back()?;
            // Of what is read only because of the suspects.
            let mut left = self.most_failures();
            if window.end == to {
                if self.watch.suspects().next().is_none() {
                    self.settle(&mut left)?;
                    return self.finish();
                }
                self.bar.set_message("reading again what was slow");
                if may_cache {
                    self.fill(cache - (window.end - window.start), &mut left)?;
                }
            }
            let time = LATER.saturating_sub(begin.elapsed());
            self.reader.signals.sleep(time)?;
            self.round(&mut left)?;
            self.save();
        }
    }

    fn most_failures(&self) -> u32 {
        match self.is_thorough {
            true => u32::MAX,
            false => FAILURES,
        }
    }

    /// Finds out what is usual on this device, and takes the suspects over.
    fn begin(&mut self, slow_ms: Option<u64>) -> Result<()> {
        // First of all: they are not to be forgotten if this is interrupted.
        let suspects: Vec<_> = self.report.suspects.drain(..).collect();
        let suspects = suspects.into_iter().map(|s| s.sector..s.sector + s.count);
        suspects.for_each(|sectors| self.watch.suspect(sectors));
        // So that one which begins anew leaves nothing of the old state, but for what it took over.
        self.save();
        let [long, short] = self.sample()?;
        let report = &mut self.report;
        let position = report.position;
        let mut sorted = short.clone();
        sorted.sort_unstable();
        report.median_us = sorted.get(sorted.len() / 2).copied().unwrap_or(0);
        report.slow_ms = match (slow_ms, report.slow_ms) {
            (Some(given), _) => given,
            (None, 0) => default_slow(report.median_us),
            (None, known) => known,
        };
        let mut watch = Watch::new(self.reader.unit, report.slow_ms, &long, &short);
        let suspects = self.watch.suspects();
        suspects.for_each(|sectors| watch.suspect(sectors));
        self.watch = watch;
        // What is ahead is met again.
        self.reader.failed.retain(|failed| failed.end <= position);
        Ok(())
    }

    /// Times of reads of pieces, and of units, here and there.
    fn sample(&mut self) -> Result<[Vec<u64>; 2]> {
        let mut chance = Chance::default();
        let mut times = [Vec::new(), Vec::new()];
        let kinds = [(SAMPLE.0, PIECE), (SAMPLE.1, self.reader.unit)];
        let Report { from, to, .. } = self.report;
        for (times, (number, count)) in times.iter_mut().zip(kinds) {
            let places = (to - from).div_ceil(count);
            for _ in 0..number {
                let at = from + chance.below(places) * count;
                let sectors = at..(at + count).min(to);
                if !self.reader.may_sample(&sectors) {
                    continue;
                }
                match self.reader.read(sectors.clone())? {
                    Some(micros) => {
                        times.push(micros);
                        self.good = Some(sectors);
                    }
                    None => {
                        // From now on it is known, and no scrub would find it.
                        self.look(&sectors)?;
                        self.save();
                    }
                }
            }
        }
        Ok(times)
    }

    /// Reads the next piece for the first time.
    fn piece(&mut self, end: u64) -> Result<()> {
        let at = self.report.position;
        let piece = at..(at + PIECE - at % PIECE).min(end);
        let (mut left, mut is_short, mut has_news) = (self.failures, false, false);
        for (run, is_plain) in self.reader.runs(&piece) {
            // Between units that are known already, there may be many runs.
            if left == 0 {
                self.reader.left_out.add(run.clone());
                self.report.unread.add(run);
                is_short = true;
                continue;
            }
            match self.reader.time(run.clone())? {
                None => {
                    is_short |= self.around(run, &mut left, &mut has_news)?;
                    is_short |= left == 0;
                }
                Some(micros) => {
                    has_news = true;
                    if is_plain {
                        self.good = Some(run.clone());
                        self.watch.scanned(run, micros);
                    }
                }
            }
        }
        self.failures = match is_short {
            true => (self.failures / 2).max(FAILURES_LEAST),
            false => self.most_failures(),
        };
        self.nothing = if is_short && !has_news {
            self.nothing + 1
        } else {
            0
        };
        if self.nothing >= NOTHING && self.answers()? {
            self.nothing = 0;
        }
        ensure!(
            self.nothing < NOTHING,
            "{}: nothing before sector {} can be read, and the kernel takes that for no bad sectors: the disk seems to be gone",
            self.device.name,
            piece.end
        );
        self.report.position = piece.end;
        self.reader.ahead.start = piece.end;
        self.bar.set_position(piece.end - self.report.from);
        if self.saved.elapsed() >= SAVE {
            self.look_back()?;
            self.save();
        }
        Ok(())
    }

    /// Whether main still reads what it could read a while ago, or its first or last unit. A device that records nothing may
    /// have a dead place of any size.
    fn answers(&mut self) -> Result<bool> {
        let (unit, end) = (self.reader.unit, self.device.sectors);
        let ends = [0..unit.min(end), (end - 1) / unit * unit..end];
        for place in self.good.clone().into_iter().chain(ends) {
            if self.reader.is_mains(&place) && self.reader.time(place)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads what lies around the bad places of sectors that could not be read at once. `left`: how many more reads may fail.
    /// Whether some of it was left out; sets `has_news` if something was read or recorded.
    fn around(&mut self, sectors: Range<u64>, left: &mut u32, has_news: &mut bool) -> Result<bool> {
        let unit = self.reader.unit;
        // What is left to be read, and what has failed already.
        let mut todo = vec![(sectors, true)];
        // Nothing of it counts if it turns out that the disk is gone.
        let (mut unreadable, mut unread) = (Vec::new(), Vec::new());
        while let Some((sectors, has_failed)) = todo.pop() {
            if !has_failed && *left == 0 {
                unread.push(sectors);
                continue;
            }
            if !has_failed && self.reader.time(sectors.clone())?.is_some() {
                *has_news = true;
                continue;
            }
            *left = left.saturating_sub(1);
            match self.look(&sectors)? {
                true => {
                    *has_news = true;
                    // A later scrub would take it for something that was known.
                    if self.saved.elapsed() >= SAVE_NEWS {
                        self.save();
                    }
                }
                false => drop(self.answer()?),
            }
            let runs = self.reader.runs(&sectors);
            let is_as_before = matches!(&runs[..], [(run, _)] if *run == sectors);
            if !is_as_before {
                todo.extend(runs.into_iter().rev().map(|(run, _)| (run, false)));
            } else if sectors.end - sectors.start <= unit {
                unreadable.push(sectors);
            } else {
                let half = (sectors.end - sectors.start) / 2;
                let middle = sectors.start + half.next_multiple_of(unit);
                todo.push((middle..sectors.end, false));
                todo.push((sectors.start..middle, false));
            }
        }
        let is_short = !unread.is_empty();
        for sectors in unread {
            self.reader.left_out.add(sectors.clone());
            self.report.unread.add(sectors);
        }
        for sectors in unreadable {
            self.reader.left_out.add(sectors.clone());
            self.report.unreadable.add(sectors);
        }
        self.save();
        Ok(is_short)
    }

    /// Asks the kernel for the entries of sectors, and takes note of what changed. Whether something did.
    fn look(&mut self, sectors: &Range<u64>) -> Result<bool> {
        let unit = self.reader.unit;
        let sectors = sectors.start / unit * unit..sectors.end;
        let mut found = entries_of(self.device, sectors.clone(), unit)?;
        let all = &mut self.reader.known;
        let known: BTreeMap<u64, bool> = all.range(sectors).map(|(at, is)| (*at, *is)).collect();
        let has_new = self.report.compare(&known, &found, self.device.sectors);
        for at in known.keys() {
            all.remove(at);
        }
        all.append(&mut found);
        Ok(has_new)
    }

    /// Looks at what was read since the last time: the kernel relocates in the background what it could hardly read.
    fn look_back(&mut self) -> Result<()> {
        let position = self.report.position;
        if self.looked < position {
            self.look(&(self.looked..position))?;
        }
        self.looked = position;
        Ok(())
    }

    /// Looks at all that was read, and all that may have been read beside it.
    fn look_at_all(&mut self) -> Result<()> {
        let Report { from, to, .. } = self.report;
        let end = (to + NEAR).min(self.device.sectors);
        self.look(&(from.saturating_sub(NEAR)..end)).map(drop)
    }

    /// Whether the kernel is relocating something in the background.
    fn is_relocating(&self) -> Result<bool> {
        Ok(self.device.status()?.split(' ').nth(ACTIVITY) == Some("relocating"))
    }

    /// Finds what the kernel has relocated up to now.
    fn finish(&mut self) -> Result<()> {
        let end = Instant::now() + RELOCATING;
        while self.is_relocating()? {
            if Instant::now() >= end {
                let text =
                    "The kernel is relocating more in the background, which is not in this report.";
                self.report.note(text.into());
                break;
            }
            self.reader.signals.sleep(MOMENT)?;
        }
        self.look_at_all()
    }

    /// It is interrupted, or cannot go on: keeps what is needed to do so later.
    fn keep(&mut self) {
        for sectors in std::mem::take(&mut self.reader.failed) {
            let is_suspect = self.watch.suspects().any(|s| overlap(&s, &sectors));
            // Ahead, it is met again.
            let is_read = self.report.from <= sectors.start && sectors.end <= self.report.position;
            if is_read && !is_suspect {
                self.watch.suspect(sectors);
            }
        }
        // As far as that can be done now.
        let end = Instant::now() + RELOCATING_SHORT;
        while self.is_relocating().unwrap_or(false) && Instant::now() < end {
            sleep(MOMENT);
        }
        let _ = self.look_at_all();
    }

    /// The device's status; fails if main does not answer at all, which has no bad sectors then.
    fn answer(&self) -> Result<String> {
        let status = self.device.status()?;
        must_answer(&self.device.name, &status)?;
        Ok(status)
    }

    /// Reads so many sectors anywhere. Around what fails, `left` more reads may fail.
    fn fill(&mut self, sectors: u64, left: &mut u32) -> Result<()> {
        // Once around at most.
        let (mut wanted, mut ahead) = (sectors, self.device.sectors);
        let mut failures = 0;
        while wanted > 0 && ahead > 0 && failures < SPARE_FAILURES {
            self.reader.signals.check()?;
            let at = self.filler % self.device.sectors;
            let piece = at..(at + PIECE - at % PIECE).min(self.device.sectors);
            self.filler = piece.end;
            ahead = ahead.saturating_sub(piece.end - piece.start);
            for (run, _) in self.reader.runs(&piece) {
                wanted = wanted.saturating_sub(run.end - run.start);
                if self.reader.read(run)?.is_none() {
                    failures += 1;
                    self.settle(left)?;
                }
            }
        }
        Ok(())
    }

    /// Looks closer at what could not be read by the way; `left` more reads of it may fail.
    fn settle(&mut self, left: &mut u32) -> Result<()> {
        while let Some(sectors) = self.reader.failed.pop() {
            let Report { from, to, .. } = self.report;
            let settled = if from <= sectors.start && sectors.end <= to {
                self.around(sectors.clone(), left, &mut false).map(drop)
            } else {
                self.look(&sectors).map(|_| {
                    // It is nobody's wish to know more of it.
                    self.reader.left_out.add(sectors.clone());
                })
            };
            if settled.is_err() {
                self.reader.failed.push(sectors);
                return settled;
            }
        }
        Ok(())
    }

    /// Reads the suspects once more, and has those relocated that are dying. Around what fails, `left` more reads may fail.
    fn round(&mut self, left: &mut u32) -> Result<()> {
        let Verdict { slow, undecided } = self.watch.round(&mut self.reader)?;
        // What is known now does not depend on what comes then.
        for unit in undecided {
            self.report.slow.add(unit);
        }
        let mut slow = slow.into_iter();
        while let Some(unit) = slow.next() {
            if let Err(error) = self.relocate(unit.clone()) {
                self.watch.suspect(unit);
                slow.for_each(|unit| self.watch.suspect(unit));
                return Err(error);
            }
        }
        self.settle(left)
    }

    /// Has a unit relocated, or says why not.
    fn relocate(&mut self, unit: Range<u64>) -> Result<()> {
        if let Some(obstacle) = obstacle(&self.answer()?) {
            self.report.slow.add(unit);
            self.report.note(obstacle.into());
            return Ok(());
        }
        let remapped = self
            .device
            .message(&["remap", &unit.start.to_string(), "1"]);
        // Programs that it was given to fail, too, when it is interrupted.
        self.reader.signals.check()?;
        if let Err(error) = remapped {
            self.report.slow.add(unit.clone());
            self.report
                .note(format!("Not relocated: {}", error.root_cause()));
        }
        self.look(&unit)?;
        Ok(())
    }

    /// Keeps the report, to go on if this is interrupted.
    fn save(&mut self) {
        let suspects = self.watch.suspects().map(|sectors| Suspect {
            sector: sectors.start,
            count: sectors.end - sectors.start,
        });
        self.report.suspects = suspects.collect();
        self.report.ended = now();
        self.report.seconds = self.seconds + self.begun.elapsed().as_secs();
        if let (true, Err(error)) = (self.can_save, self.files.write(&self.report)) {
            ui::warning(&format!(
                "{error:#}: if this is interrupted, it cannot go on where it was"
            ));
            self.can_save = false;
        }
        self.saved = Instant::now();
    }
}

/// Fails if a line of status says that main does not answer.
fn must_answer(name: &str, status: &str) -> Result<()> {
    ensure!(
        !status.starts_with("tripped "),
        "{name}: the disk does not answer (tripped): see dmremap status {name}"
    );
    Ok(())
}

/// Why what is slow is not relocated, from a line of status; `None`: it is.
fn obstacle(status: &str) -> Option<&'static str> {
    let words: Vec<&str> = status.split([' ', '/']).collect();
    let number = |at: usize| words.get(at)?.parse::<u64>().ok();
    match words[0] {
        "readonly" => return Some(
            "The device was opened read-only: what cannot be read is not recorded, and what is slow is not relocated.",
        ),
        "full" => return Some(
            "The spare is full: what cannot be read is remembered until the device is closed, at most, and what is slow is not \
             relocated.",
        ),
        "degraded" => return Some(
            "The spare does not take writes: what cannot be read is remembered until it does, and what is slow is not \
             relocated.",
        ),
        _ => (),
    }
    let (used, total, bad) = (number(2)?, number(3)?, number(4)?);
    let is_short = total.saturating_sub(used + bad) < total / 4;
    is_short.then_some(
        "Less than a quarter of the spare's slots is free. These are kept for sectors that fail: what is slow is not relocated.",
    )
}

/// The device, to be read.
fn reader(device: &Device, report: &Report, rate: Option<f64>, signals: Signals) -> Result<Reader> {
    let path = device.path();
    let mut options = OpenOptions::new();
    options
        .read(true)
        .custom_flags(OFlags::DIRECT.bits() as i32);
    let file = options
        .open(&path)
        .with_context(|| path.display().to_string())?;
    let sector = |rate: f64| Duration::from_secs_f64(SECTOR as f64 / 1048576.0 / rate);
    let unit = report.unit_sectors;
    let mut left_out = report.unread.clone();
    left_out.add_all(&report.unreadable);
    Ok(Reader {
        name: device.name.clone(),
        file,
        room: vec![0; (PIECE * SECTOR) as usize + ALIGNMENT],
        disks: Disks::below(device.main),
        pace: rate.map_or(Duration::ZERO, sector),
        next: Instant::now(),
        signals,
        // Of all of it: what is not scrubbed is read as well, to compare, and to fill the drive's cache.
        known: entries_of(device, 0..device.sectors, unit)?,
        left_out,
        wanted: report.from..report.to,
        ahead: report.position..report.to,
        failed: Vec::new(),
        unit,
        sectors: device.sectors,
    })
}

/// That nobody else scrubs it, as long as this is held.
fn lock(name: &str) -> Result<File> {
    wait::leave_mark(name, "scrub")?;
    let path = wait::mark(name, "scrub");
    let file = File::open(&path).with_context(|| path.display().to_string())?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => bail!("{name}: is being scrubbed already"),
        locked => locked.with_context(|| path.display().to_string())?,
    }
    Ok(file)
}

/// Reads only when nobody else does, where the disk's scheduler heeds that.
fn be_idle() {
    let id = std::process::id().to_string();
    let done = Command::new("ionice").args(["-c", "3", "-p", &id]).status();
    if !done.is_ok_and(|status| status.success()) {
        ui::step(|| "ionice: cannot set the idle priority".into());
    }
}

/// The sectors to be read: whole units.
fn range(device: &Device, args: &Scrub, unit: u64) -> Result<Range<u64>> {
    let (from, to) = (args.from.unwrap_or(0), args.to.unwrap_or(device.sectors));
    ensure!(
        from < to && to <= device.sectors,
        "{} has {}: there is nothing from sector {from} to before {to}",
        device.name,
        ui::size(device.sectors)
    );
    Ok(from / unit * unit..to.next_multiple_of(unit).min(device.sectors))
}

pub(crate) fn run(args: &Scrub) -> Result<Status> {
    let device = Device::open(&args.name)?;
    let name = &device.name;
    ensure!(
        !device.suspended,
        "{name}: is suspended: dmsetup resume {name}"
    );
    let unit = unit_sectors(&device)?;
    let sectors = range(&device, args, unit)?;
    let is_part = args.from.is_some() || args.to.is_some();
    let files = Files::of(name, is_part.then(|| sectors.clone()));
    let _lock = lock(name)?;
    let mut report = Report::new(&device, sectors.clone(), unit);
    let mut old = files.read(false, &report);
    let dropped = old.take_if(|old| args.restart || old.is_stale());
    match (old, args.if_due) {
        (Some(mut old), _) => {
            if args.thorough {
                old.want_unread();
            }
            if !args.json {
                let (at, to) = (old.position, old.to);
                writeln!(ui::notes(), "{name}: going on at sector {at} of {to}")?;
            }
            report = old;
        }
        (None, Some(days)) => {
            let last = files.read(true, &report);
            let last = last.and_then(|last| Some((last.age()?, last)));
            if let Some((ago, last)) = last.filter(|(ago, _)| *ago < days) {
                let ago = ui::count(ago, "day");
                match args.json {
                    true => ui::json(&mut stdout(), &last)?,
                    false => writeln!(ui::notes(), "{name}: was read {ago} ago")?,
                }
                return Ok(Status::Done);
            }
        }
        (None, None) => (),
    }
    if let Some(dropped) = dropped {
        if !args.json && !args.restart {
            let said = "what was interrupted is too old to go on with, so it begins anew";
            writeln!(ui::notes(), "{name}: {said}")?;
        }
        let entries = entries_of(&device, 0..device.sectors, unit)?;
        report.take_over(dropped, &entries, device.sectors);
    }
    let status = device.status()?;
    must_answer(name, &status)?;
    if let (false, Some(obstacle)) = (status.starts_with("active "), obstacle(&status)) {
        report.note(obstacle.into());
    }
    be_idle();
    let signals = Signals::catch()?;
    let reader = reader(&device, &report, args.rate, signals.clone())?;
    report.refresh(&reader.known, device.sectors);
    let bar = ui::progress("reading", sectors.end - sectors.start);
    bar.set_position(report.position - sectors.start);
    bar.reset_eta();
    let mut run = Run {
        watch: Watch::new(unit, 0, &[], &[]),
        seconds: report.seconds,
        filler: sectors.end,
        looked: report.position,
        device: &device,
        reader,
        report,
        files,
        can_save: true,
        bar,
        is_thorough: args.thorough,
        failures: if args.thorough { u32::MAX } else { FAILURES },
        nothing: 0,
        good: None,
        begun: Instant::now(),
        saved: Instant::now(),
    };
    let ended = run.begin(args.slow).and_then(|()| run.all());
    run.report.complete = ended.is_ok();
    if ended.is_err() {
        run.keep();
    }
    run.save();
    run.bar.finish_and_clear();
    let report = &run.report;
    if args.json {
        ui::json(&mut stdout(), report)?;
    } else {
        report.print(&mut stdout())?;
    }
    match ended {
        Ok(()) if args.json => Ok(report.status()),
        Ok(()) => {
            ui::verdict(report.status(), &report.verdict())?;
            Ok(report.status())
        }
        Err(error) => {
            // Programs that were told to end at the same time fail, too.
            if let Err(Interrupted(signal)) = signals.came() {
                ui::warning(&format!(
                    "{name}: interrupted; the same command goes on at sector {}",
                    report.position
                ));
                stdout().flush()?;
                signal_hook::low_level::emulate_default_handler(signal)?;
            }
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader of 100 sectors, units of 8 of which some have an entry.
    fn reader(known: &[(u64, bool)]) -> Reader {
        Reader {
            name: "safe".into(),
            file: File::open("/dev/null").unwrap(),
            room: Vec::new(),
            disks: Disks::below((0, 0)),
            pace: Duration::ZERO,
            next: Instant::now(),
            signals: Signals(Arc::default()),
            known: known.iter().copied().collect(),
            left_out: Findings::default(),
            wanted: 0..100,
            ahead: 100..100,
            failed: Vec::new(),
            unit: 8,
            sectors: 100,
        }
    }

    #[test]
    fn what_is_pending_is_not_read_and_what_is_in_slots_is_read_apart() {
        assert_eq!(reader(&[]).runs(&(0..100)), [(0..100, true)]);
        let known = reader(&[(0, false), (16, true), (24, true), (32, false), (96, true)]);
        let runs = known.runs(&(0..100));
        assert_eq!(
            runs,
            [
                (8..16, true),
                (16..32, false),
                (40..96, true),
                (96..100, false)
            ]
        );
        // Of a part that begins and ends within units.
        assert_eq!(known.runs(&(20..34)), [(20..32, false)]);
        assert_eq!(known.runs(&(34..44)), [(40..44, true)]);
        assert_eq!(known.runs(&(0..8)), []);
    }

    #[test]
    fn plain_is_what_main_alone_has() {
        let known = reader(&[(16, true), (40, false)]);
        for (sectors, is_plain) in [
            (0..16, true),
            (0..17, false),
            (23..24, false),
            (24..40, true),
            (24..48, false),
            (48..100, true),
            (96..104, false),
        ] {
            assert_eq!(known.is_plain(sectors.clone()), is_plain, "{sectors:?}");
        }
    }

    #[test]
    fn what_was_left_out_is_not_read_again() {
        let mut reader = reader(&[(16, true), (40, false)]);
        reader.left_out.add(24..32);
        reader.left_out.add(36..56);
        reader.left_out.add(90..100);
        let runs = [
            (0..16, true),
            (16..24, false),
            (32..36, true),
            (56..90, true),
        ];
        assert_eq!(reader.runs(&(0..100)), runs);
        assert_eq!(reader.runs(&(26..31)), []);
        for (sectors, is_plain) in [
            (8..16, true),
            (24..32, false),
            (31..33, false),
            (32..36, true),
            (32..37, false),
            (56..90, true),
            (80..91, false),
        ] {
            assert_eq!(reader.is_plain(sectors.clone()), is_plain, "{sectors:?}");
        }
    }

    #[test]
    fn controls_are_where_reads_have_succeeded() {
        let mut reader = reader(&[]);
        reader.sectors = 1000;
        reader.wanted = 100..200;
        reader.ahead = 160..200;
        let plain = |reader: &Reader| {
            let at = [92, 100, 152, 160, 192, 200];
            at.map(|at| reader.is_plain(at..at + 8))
        };
        assert_eq!(plain(&reader), [true, true, true, false, false, true]);
        // What failed a moment ago; and when much has, nothing is tried that nobody wants to know of.
        reader.failed.push(150..156);
        assert_eq!(plain(&reader), [true, true, false, false, false, true]);
        // To know what is usual, what is ahead may be read, but not what has failed.
        let may = [160, 144, 152].map(|at| reader.may_sample(&(at..at + 8)));
        assert_eq!(may, [true, false, false]);
        (0..3).for_each(|_| reader.failed.push(900..908));
        assert_eq!(plain(&reader), [false, true, false, false, false, false]);
        assert!(!reader.may_sample(&(160..168)));
    }

    #[test]
    fn slow_units_leave_slots_for_those_that_fail() {
        let rest = "0 0 0 0 0 0 0 0 0 0 idle 0";
        for (status, said) in [
            ("active 8 0/2014 0", None),
            ("active 8 1511/2014 0", None),
            ("active 8 1512/2014 0", Some("Less than a quarter")),
            ("active 8 0/2014 1512", Some("Less than a quarter")),
            ("full 8 2014/2014 0", Some("The spare is full")),
            ("degraded 8 0/2014 0", Some("does not take writes")),
            ("readonly 8 0/2014 0", Some("read-only")),
        ] {
            let obstacle = obstacle(&format!("{status} {rest}"));
            assert_eq!(obstacle.is_some(), said.is_some(), "{status}");
            assert!(obstacle
                .unwrap_or_default()
                .contains(said.unwrap_or_default()));
        }
    }

    #[test]
    fn a_signal_ends_a_pause() {
        let signals = Signals(Arc::default());
        signals.sleep(Duration::ZERO).unwrap();
        signals.0.store(SIGINT as usize, Ordering::Relaxed);
        let error = signals.sleep(Duration::from_secs(1_000_000)).unwrap_err();
        let Interrupted(signal) = error.downcast().unwrap();
        assert_eq!(signal, SIGINT);
    }

    #[test]
    fn the_rate_is_kept() {
        let mut reader = reader(&[]);
        // 100 ms for a MiB, and nothing is saved up in a long pause.
        reader.pace = Duration::from_micros(100_000 / PIECE);
        reader.next = Instant::now() - Duration::from_secs(100);
        let begin = Instant::now();
        for _ in 0..3 {
            reader.be_no_burden(Duration::ZERO, PIECE).unwrap();
        }
        assert!(begin.elapsed() >= Duration::from_micros(3 * PIECE * (100_000 / PIECE)));
    }
}
