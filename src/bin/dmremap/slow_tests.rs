// SPDX-License-Identifier: GPL-2.0

//! Disks of all kinds of load, with and without units that are dying: who is relocated?

use super::*;
use std::collections::{BTreeMap, BTreeSet};

const UNIT: u64 = 8;
/// 125,000 units: a million sectors.
const SECTORS: u64 = 1_000_000;
const MS: u64 = 1000;

/// What keeps the disk busy.
#[derive(Clone, Copy, Debug)]
enum Load {
    Quiet,
    /// That share of reads, in percent, waits up to so many milliseconds.
    Random(u64, u64),
    /// For up to so many milliseconds each read waits as long as 400 ms, then for as long none does.
    Bursts(u64),
    /// The disk stops every so many milliseconds, for so many.
    Stalls(u64, u64),
    /// Every so manieth read waits 300 ms.
    Rhythm(u64),
    /// Each read waits in a long queue.
    Saturated,
    /// One read in a thousand takes 5 s.
    Rare,
    /// It becomes slower from minute to minute.
    Drift,
    /// Nothing, until all seems well; from then on, one read in three waits up to a second.
    Later,
}

const LOADS: [Load; 15] = [
    Load::Quiet,
    Load::Random(1, 500),
    Load::Random(5, 1000),
    Load::Random(20, 500),
    Load::Random(50, 2000),
    Load::Bursts(300),
    Load::Bursts(5000),
    Load::Stalls(1000, 200),
    Load::Stalls(137, 90),
    Load::Rhythm(2),
    Load::Rhythm(4),
    Load::Saturated,
    Load::Rare,
    Load::Drift,
    Load::Later,
];

struct Model {
    /// Microseconds.
    now: u64,
    chance: Chance,
    load: Load,
    reads: u64,
    is_busy: bool,
    /// When that changes.
    until: u64,
    /// First sectors of units, and the milliseconds that they take longer.
    slow: BTreeMap<u64, u64>,
    unreadable: BTreeSet<u64>,
    /// What has an entry.
    relocated: BTreeSet<u64>,
    undecided: BTreeSet<u64>,
}

impl Model {
    fn new(load: Load, seed: u64) -> Self {
        Self {
            now: 0,
            chance: Chance(0x2545_f491_4f6c_dd1d ^ (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            load,
            reads: 0,
            is_busy: false,
            until: 0,
            slow: BTreeMap::new(),
            unreadable: BTreeSet::new(),
            relocated: BTreeSet::new(),
            undecided: BTreeSet::new(),
        }
    }

    fn chance(&mut self, end: u64) -> u64 {
        self.chance.below(end)
    }

    /// How long a read waits for others, in microseconds.
    fn wait(&mut self) -> u64 {
        match self.load {
            Load::Quiet => 0,
            Load::Random(percent, up_to) => match self.chance(100) < percent {
                true => self.chance(up_to * MS),
                false => 0,
            },
            Load::Bursts(up_to) => {
                while self.now >= self.until {
                    self.is_busy = !self.is_busy;
                    self.until += 1 + self.chance(up_to * MS);
                }
                match self.is_busy {
                    true => self.chance(400 * MS),
                    false => 0,
                }
            }
            Load::Stalls(every, lasts) => (lasts * MS).saturating_sub(self.now % (every * MS)),
            Load::Rhythm(every) => match self.reads % every {
                0 => 300 * MS,
                _ => 0,
            },
            Load::Saturated => (64 + self.chance(128)) * MS,
            Load::Rare => match self.chance(1000) {
                0 => 5000 * MS,
                _ => 0,
            },
            Load::Drift => (self.now / 600).min(500 * MS),
            Load::Later => match self.now > 5000 * MS && self.chance(3) == 0 {
                true => self.chance(1000 * MS),
                false => 0,
            },
        }
    }

    /// Scrubs all of it, and relocates what is found.
    fn scrub(&mut self) {
        let times = |model: &mut Self, number: usize, count: u64| -> Vec<u64> {
            let places = (0..number).map(|_| model.chance(SECTORS / count - 1) * count);
            let places: Vec<u64> = places.collect();
            let reads = places
                .iter()
                .filter_map(|at| model.read(*at..at + count).unwrap());
            reads.collect()
        };
        let long = times(self, SAMPLE.0, PIECE);
        let short = times(self, SAMPLE.1, UNIT);
        let mut sorted = short.clone();
        sorted.sort_unstable();
        let slow = default_slow(sorted[sorted.len() / 2]);
        let mut watch = Watch::new(UNIT, slow, &long, &short);
        for (nth, at) in (0..SECTORS).step_by(PIECE as usize).enumerate() {
            let sectors = at..(at + PIECE).min(SECTORS);
            if let Some(micros) = self.read(sectors.clone()).unwrap() {
                watch.scanned(sectors, micros);
            }
            if nth % 64 == 63 {
                self.round(&mut watch);
            }
        }
        while watch.suspects().next().is_some() {
            self.now += 1000 * MS;
            self.round(&mut watch);
        }
    }

    fn round(&mut self, watch: &mut Watch) {
        let Verdict { slow, undecided } = watch.round(self).unwrap();
        self.relocated.extend(slow.iter().map(|unit| unit.start));
        (self.undecided).extend(undecided.iter().map(|unit| unit.start));
    }

    fn healthy_relocated(&self) -> usize {
        let is_healthy = |unit: &&u64| !self.slow.contains_key(unit);
        self.relocated.iter().filter(is_healthy).count()
    }
}

impl Disk for Model {
    fn read(&mut self, sectors: Range<u64>) -> Result<Option<u64>> {
        assert!(self.is_plain(sectors.clone()), "{sectors:?}");
        self.reads += 1;
        let own = match sectors.end - sectors.start {
            LONG.. => 7 * MS,
            _ => 0,
        };
        let own = own + 2 * MS + self.chance(16 * MS);
        let bad: u64 = self
            .slow
            .range(sectors.clone())
            .map(|(_, ms)| ms * MS)
            .sum();
        let micros = self.wait() + own + bad;
        self.now += micros;
        let is_readable = self.unreadable.range(sectors).next().is_none();
        Ok(is_readable.then_some(micros))
    }

    fn is_plain(&self, sectors: Range<u64>) -> bool {
        sectors.end <= SECTORS && self.relocated.range(sectors).next().is_none()
    }
}

/// One healthy unit in 100,000 may be relocated; the rule is made for one in a million.
#[test]
fn on_a_busy_disk_healthy_units_stay_where_they_are() {
    for load in LOADS {
        let mut relocated = 0;
        for seed in 0..8 {
            let mut model = Model::new(load, seed);
            model.scrub();
            relocated += model.healthy_relocated();
        }
        let units = 8 * SECTORS / UNIT;
        assert!(
            relocated as u64 <= units / 400_000,
            "{load:?}: {relocated} of {units}"
        );
    }
}

/// Twenty units here and there take so many milliseconds longer: how many are found.
fn found(load: Load, seed: u64, ms: u64) -> usize {
    let mut model = Model::new(load, seed);
    while model.slow.len() < 20 {
        let unit = model.chance(SECTORS / UNIT) * UNIT;
        model.slow.insert(unit, ms);
    }
    model.scrub();
    model.relocated.len() - model.healthy_relocated()
}

#[test]
fn units_that_are_slow_are_found_on_a_quiet_disk() {
    for seed in 0..8 {
        assert_eq!(found(Load::Quiet, seed, 300), 20, "{seed}");
        assert_eq!(found(Load::Quiet, seed, 100), 20, "{seed}");
        assert_eq!(found(Load::Quiet, seed, 3000), 20, "{seed}");
        // Three turns of the disk more are not an illness.
        assert_eq!(found(Load::Quiet, seed, 25), 0, "{seed}");
    }
}

#[test]
fn and_on_a_busy_one_as_long_as_they_stand_out() {
    for load in LOADS {
        for seed in 0..4 {
            let found = found(load, seed, 300);
            match load {
                // Nearly half of all reads take as long.
                Load::Random(50, _) | Load::Rhythm(2) => (),
                _ => assert!(found >= 18, "{load:?}: {found}"),
            }
        }
    }
}

#[test]
fn a_place_with_many_slow_units_is_found_as_a_whole() {
    let mut model = Model::new(Load::Quiet, 1);
    // In one piece in two of 20 MiB, and 64 side by side.
    let scattered = (0..10).map(|nth| 100 * PIECE + nth * 2 * PIECE + nth * 88);
    let together = (0..64).map(|nth| 400 * PIECE + 1000 + nth * UNIT);
    model.slow = scattered.chain(together).map(|unit| (unit, 300)).collect();
    model.scrub();
    assert!(model.relocated.iter().eq(model.slow.keys()));
}

#[test]
fn the_first_and_the_last_unit_are_found() {
    let mut model = Model::new(Load::Quiet, 1);
    model.slow = [0, UNIT, SECTORS - UNIT].map(|unit| (unit, 300)).into();
    model.scrub();
    assert!(model.relocated.iter().eq(model.slow.keys()));
}

#[test]
fn what_cannot_be_read_is_not_slow() {
    let mut model = Model::new(Load::Quiet, 1);
    // The piece is slow, and its unit cannot be read any more at the next look.
    let unit = 77 * UNIT;
    model.unreadable.insert(unit);
    let mut watch = Watch::new(UNIT, 50, &[9 * MS; 16], &[2 * MS; 64]);
    watch.scanned(0..PIECE, 500 * MS);
    while watch.suspects().next().is_some() {
        model.round(&mut watch);
    }
    assert!(model.relocated.is_empty() && model.undecided.is_empty());
}

#[test]
fn a_device_that_is_slow_as_a_whole_is_left_alone() {
    let mut model = Model::new(Load::Quiet, 1);
    model.slow = (0..SECTORS)
        .step_by(UNIT as usize)
        .map(|unit| (unit, 2))
        .collect();
    model.scrub();
    assert!(model.relocated.is_empty());
}

#[test]
fn with_nothing_to_compare_it_is_undecided() {
    /// A disk of one unit.
    struct Tiny;
    impl Disk for Tiny {
        fn read(&mut self, _: Range<u64>) -> Result<Option<u64>> {
            Ok(Some(300 * MS))
        }
        fn is_plain(&self, sectors: Range<u64>) -> bool {
            sectors.end <= UNIT
        }
    }
    let mut watch = Watch::new(UNIT, 50, &[], &[]);
    watch.suspect(0..UNIT);
    let mut undecided = Vec::new();
    for _ in 0..ROUNDS {
        let verdict = watch.round(&mut Tiny).unwrap();
        assert!(verdict.slow.is_empty());
        undecided.extend(verdict.undecided);
    }
    assert_eq!(undecided.len(), 1);
    assert_eq!(undecided[0], 0..UNIT);
}

/// Ends after so many reads.
struct Ends {
    reads: u64,
    /// Whether there is anything but suspects.
    has_controls: bool,
}

const SUSPECTS: u64 = 100;

/// The suspects lie 99 units apart.
fn is_suspect(at: u64) -> bool {
    at % (100 * UNIT) == 0 && at < SUSPECTS * 100 * UNIT
}

impl Disk for Ends {
    fn read(&mut self, sectors: Range<u64>) -> Result<Option<u64>> {
        anyhow::ensure!(self.reads > 0);
        self.reads -= 1;
        let is_slow = is_suspect(sectors.start);
        Ok(Some(if is_slow { 300 * MS } else { 2 * MS }))
    }
    fn is_plain(&self, sectors: Range<u64>) -> bool {
        self.has_controls || is_suspect(sectors.start)
    }
}

/// With `SUSPECTS` of so many sectors each.
fn suspicious(sectors: u64) -> Watch {
    let mut watch = Watch::new(UNIT, 50, &[9 * MS; 16], &[]);
    for at in (0..SUSPECTS).map(|nth| nth * 100 * UNIT) {
        watch.suspect(at..at + sectors);
    }
    watch
}

fn suspect_sectors(watch: &Watch) -> u64 {
    let all = watch.suspects();
    all.map(|sectors| sectors.end - sectors.start).sum()
}

#[test]
fn an_interrupted_round_forgets_nobody() {
    let part = 16 * UNIT;
    for reads in 0..=2 * SUSPECTS {
        let mut watch = suspicious(part);
        let has_controls = true;
        let round = watch.round(&mut Ends {
            reads,
            has_controls,
        });
        assert_eq!(round.is_ok(), reads == 2 * SUSPECTS);
        assert_eq!(suspect_sectors(&watch), SUSPECTS * part, "{reads} reads");
    }
}

#[test]
fn nor_does_it_forget_those_it_has_judged_already() {
    // They are found to be dying; or they are given up, as there is nothing to compare them with.
    for has_controls in [true, false] {
        let mut disk = Ends {
            reads: u64::MAX,
            has_controls,
        };
        let mut rounds = 0;
        let mut watch = suspicious(UNIT);
        let decided = |verdict: Verdict| verdict.slow.len() + verdict.undecided.len();
        while decided(watch.round(&mut disk).unwrap()) == 0 {
            rounds += 1;
        }
        // All of them in the same round.
        assert_eq!(suspect_sectors(&watch), 0);
        let most = SUSPECTS * if has_controls { 2 } else { 1 };
        for reads in (0..most).step_by(7).chain([most - 1]) {
            let mut watch = suspicious(UNIT);
            disk.reads = u64::MAX;
            for _ in 0..rounds {
                watch.round(&mut disk).unwrap();
            }
            disk.reads = reads;
            assert!(watch.round(&mut disk).is_err());
            assert_eq!(suspect_sectors(&watch), SUSPECTS * UNIT, "{reads} reads");
        }
    }
}

#[test]
fn the_default_follows_the_device_within_limits() {
    // A solid state disk, a disk with an arm, and one behind a slow network.
    for (micros, ms) in [(80, 50), (12_000, 50), (17_000, 68), (400_000, 200)] {
        assert_eq!(default_slow(micros), ms);
    }
}
