// SPDX-License-Identifier: GPL-2.0

//! Which units of main read slowly because they are dying, told from a disk that is merely busy. Pure: it sees times only.
//!
//! A read may take long for two reasons. Either the place is bad, and the drive reads it many times until it succeeds; or the
//! disk has other things to do just then. Where other things are to blame, any place would have been slow. So each read of a
//! suspect has a *control* right beside it: a read of the same length, near it, of a place that is not suspect. It comes
//! before or after the suspect by chance, so that no rhythm of the load can hit always the same of both.
//!
//! 1. All of the device is read once in long pieces. One that takes `slow` longer than the median of the pieces before it
//!    becomes a suspect. That costs nothing, and is often wrong.
//! 2. In *rounds*, which lie seconds apart and so far apart that no drive has the data in its cache any more, each suspect is
//!    read again. It stays one only if it takes `slow` longer than the median of the latest controls.
//! 3. A suspect that stays is divided by 8, down to units.
//! 4. Each time, the controls say how probable it was that a healthy place is slow just then: the share of them that were.
//!    These multiply. A unit whose every read was slow is dying once less than one in [`DOUBT`] healthy ones would have come
//!    that far. On a quiet disk that takes six rounds, on a busy one more.
//!
//! A healthy unit of a busy disk drops out at its first read that is not slow.

use anyhow::Result;
use std::collections::VecDeque;
use std::ops::Range;

/// Sectors of a piece: 1 MiB.
pub(crate) const PIECE: u64 = 2048;

/// One healthy unit in so many may be taken for a dying one while the disk is busy.
const DOUBT: f64 = 1e6;

/// A unit that is slow each time, but cannot be told from its neighbours, is given up after so many rounds.
const ROUNDS: u32 = 16;

/// A unit by itself must have been slow so often.
const TIMES: u32 = 2;

/// A suspect that stays is divided by this.
const PARTS: u64 = 8;

/// What is read here and there, before all else, to know what is usual: so many pieces, and so many units.
pub(crate) const SAMPLE: (usize, usize) = (16, 32);

/// So many times are remembered.
const RECENT: usize = 127;

/// Suspects whose controls are judged together.
const BATCH: usize = 32;

/// How far from a suspect its control may be, in sectors: 16 MiB.
pub(crate) const NEAR: u64 = 32768;

/// So many sectors are long, and cost as much as a piece does; all less as much as a unit.
pub(crate) const LONG: u64 = 129;

/// What is read.
pub(crate) trait Disk {
    /// Reads these sectors, and says how long that took, in microseconds; `None`: they cannot be read.
    fn read(&mut self, sectors: Range<u64>) -> Result<Option<u64>>;
    /// Whether these sectors exist, and it is main alone that has them.
    fn is_plain(&self, sectors: Range<u64>) -> bool;
}

/// The latest times of one kind of reads, in microseconds.
#[derive(Default)]
struct Times(VecDeque<u64>);

impl Times {
    fn add(&mut self, micros: u64) {
        if self.0.len() == RECENT {
            self.0.pop_front();
        }
        self.0.push_back(micros);
    }

    /// `None`: there are none.
    fn median(&self) -> Option<u64> {
        let mut sorted: Vec<u64> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }

    /// How probable it is, at most, that one more is above `limit`. Of few times nobody knows that well, so it is never 0: what
    /// Laplace's rule says, and about one standard deviation more.
    fn share_above(&self, limit: u64) -> f64 {
        let above = self.0.iter().filter(|micros| **micros > limit).count() as f64 + 1.0;
        (above + above.sqrt()) / (self.0.len() + 2) as f64
    }
}

/// Numbers that no load has the rhythm of (xorshift64).
pub(crate) struct Chance(u64);

impl Default for Chance {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Chance {
    /// The next one, below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end.max(1)
    }
}

/// Sectors that read slowly so far.
struct Suspect {
    sectors: Range<u64>,
    /// How probable it was for a healthy place to come so far.
    doubt: f64,
    /// How often it was read by itself, if it is a unit.
    rounds: u32,
}

/// What came of a round: units that are no suspects any more.
#[derive(Default)]
pub(crate) struct Verdict {
    /// They are dying.
    pub(crate) slow: Vec<Range<u64>>,
    /// They are slow, but there is nothing to compare them with.
    pub(crate) undecided: Vec<Range<u64>>,
}

/// All that is known of a device's times.
pub(crate) struct Watch {
    /// Sectors of a unit.
    unit: u64,
    /// What is slow, in microseconds above what is usual.
    slow: u64,
    scanned: Times,
    long: Times,
    short: Times,
    suspects: Vec<Suspect>,
    chance: Chance,
}

/// What is slow on a device whose median read of a unit takes so long, in milliseconds.
///
/// A drive whose arm moves takes 10 to 20 ms, and 8 more for each turn of the disk that it needs until it succeeds. What it
/// does to itself now and then is over after 50 ms, mostly.
pub(crate) fn default_slow(median_micros: u64) -> u64 {
    (4 * median_micros / 1000).clamp(50, 200)
}

impl Watch {
    /// For units of `unit` sectors, on a device of which `long` and `short` are times of reads of pieces and units.
    pub(crate) fn new(unit: u64, slow_ms: u64, long: &[u64], short: &[u64]) -> Self {
        let times = |all: &[u64]| {
            let mut times = Times::default();
            all.iter().for_each(|micros| times.add(*micros));
            times
        };
        Self {
            unit,
            slow: slow_ms * 1000,
            scanned: times(long),
            long: times(long),
            short: times(short),
            suspects: Vec::new(),
            chance: Chance::default(),
        }
    }

    /// Takes note of a piece that was read for the first time.
    pub(crate) fn scanned(&mut self, sectors: Range<u64>, micros: u64) {
        let usual = self.scanned.median();
        if usual.is_some_and(|usual| micros > usual + self.slow) {
            self.suspect(sectors);
        }
        self.scanned.add(micros);
    }

    /// Makes a suspect of sectors that were slow once; nothing more is known of them.
    pub(crate) fn suspect(&mut self, sectors: Range<u64>) {
        self.suspects.push(Suspect {
            sectors,
            doubt: 1.0,
            rounds: 0,
        });
    }

    /// What is suspect.
    pub(crate) fn suspects(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.suspects.iter().map(|suspect| suspect.sectors.clone())
    }

    /// Reads every suspect once more. If that fails, all of them are suspects still, also those whose verdict was reached.
    pub(crate) fn round(&mut self, disk: &mut dyn Disk) -> Result<Verdict> {
        let mut verdict = Verdict::default();
        let mut taken: Vec<Range<u64>> = self.suspects().collect();
        taken.sort_by_key(|sectors| sectors.start);
        let mut left = VecDeque::from(std::mem::take(&mut self.suspects));
        while !left.is_empty() {
            let batch = left.iter().take(BATCH);
            let batch: Vec<Range<u64>> = batch.map(|suspect| suspect.sectors.clone()).collect();
            let times = batch.iter().map(|sectors| self.pair(disk, sectors, &taken));
            let times: Vec<Option<u64>> = match times.collect() {
                Ok(times) => times,
                Err(error) => {
                    self.suspects.extend(left);
                    let Verdict { slow, undecided } = verdict;
                    (slow.into_iter().chain(undecided)).for_each(|unit| self.suspect(unit));
                    return Err(error);
                }
            };
            for (suspect, micros) in left.drain(..batch.len()).zip(times) {
                self.judge(suspect, micros, &mut verdict);
            }
        }
        Ok(verdict)
    }

    /// Reads a suspect and its control. How long the suspect took; `None`: it cannot be read, or is not main's alone any more.
    fn pair(
        &mut self,
        disk: &mut dyn Disk,
        sectors: &Range<u64>,
        taken: &[Range<u64>],
    ) -> Result<Option<u64>> {
        if !disk.is_plain(sectors.clone()) {
            return Ok(None);
        }
        let control = self.control(disk, sectors, taken);
        let is_first = self.chance.below(2) == 0;
        let mut micros = None;
        for is_suspect in [is_first, !is_first] {
            if is_suspect {
                micros = disk.read(sectors.clone())?;
            } else if let Some(control) = &control {
                if let Some(micros) = disk.read(control.clone())? {
                    match sectors.end - sectors.start {
                        LONG.. => self.long.add(micros),
                        _ => self.short.add(micros),
                    }
                }
            }
        }
        Ok(micros)
    }

    /// The times of controls for such sectors.
    fn controls(&self, sectors: &Range<u64>) -> &Times {
        match sectors.end - sectors.start {
            LONG.. => &self.long,
            _ => &self.short,
        }
    }

    /// As many sectors near these, of which none is suspect; `taken` are those that are, in ascending order.
    fn control(
        &mut self,
        disk: &dyn Disk,
        sectors: &Range<u64>,
        taken: &[Range<u64>],
    ) -> Option<Range<u64>> {
        let lowest = sectors.start.saturating_sub(NEAR);
        for _ in 0..32 {
            let at = (lowest + self.chance.below(2 * NEAR)) / self.unit * self.unit;
            let control = at..at + (sectors.end - sectors.start);
            // The last one that begins before the control ends.
            let before = taken.partition_point(|other| other.start < control.end);
            let last = before.checked_sub(1).and_then(|last| taken.get(last));
            let is_suspect = last.is_some_and(|last| last.end > at);
            if !is_suspect && disk.is_plain(control.clone()) {
                return Some(control);
            }
        }
        None
    }

    fn judge(&mut self, suspect: Suspect, micros: Option<u64>, verdict: &mut Verdict) {
        let count = suspect.sectors.end - suspect.sectors.start;
        let Some(micros) = micros else {
            // What is still main's of it.
            if count > self.unit {
                self.divide(&suspect);
            }
            return;
        };
        let controls = self.controls(&suspect.sectors);
        let limit = controls.median().unwrap_or(0) + self.slow;
        if micros <= limit {
            return;
        }
        let suspect = Suspect {
            doubt: suspect.doubt * controls.share_above(limit),
            rounds: suspect.rounds + 1,
            ..suspect
        };
        if count > self.unit {
            self.divide(&suspect);
        } else if suspect.rounds >= TIMES && suspect.doubt * DOUBT < 1.0 {
            verdict.slow.push(suspect.sectors);
        } else if suspect.rounds >= ROUNDS {
            verdict.undecided.push(suspect.sectors);
        } else {
            self.suspects.push(suspect);
        }
    }

    /// Makes suspects of the parts of one.
    fn divide(&mut self, suspect: &Suspect) {
        let Range { start, end } = suspect.sectors;
        let step = (end - start).div_ceil(PARTS).next_multiple_of(self.unit);
        let mut at = start;
        while at < end {
            let next = (at + step).min(end);
            self.suspects.push(Suspect {
                sectors: at..next,
                rounds: 0,
                ..*suspect
            });
            at = next;
        }
    }
}

#[cfg(test)]
#[path = "slow_tests.rs"]
mod tests;
