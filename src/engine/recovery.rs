// SPDX-License-Identifier: GPL-2.0

//! What next, after a command failed: how often a device is asked again.
//!
//! A command that fails takes a real drive seconds, up to half a minute. So what is bounded here is how many
//! commands can fail for one request, whatever its length and however much of it is bad:
//!
//! - a read that ends in an error costs at most `read_retries` + 2 failing reads ([`Reading`]), the request's own among them;
//! - a write costs at most [`MOST_FAILED_WRITES`] failing writes ([`Writing`]), the request's own among them;
//! - a unit that is copied costs at most `read_retries` + 2 failing reads ([`Reading::of_copy`]).
//!
//! Commands that succeed are cheap, and not counted.

/// Failing writes that one request costs, at most.
pub const MOST_FAILED_WRITES: u32 = 16;
/// Units of one write that main refused, after which the rest of it is not offered to main any more.
const FEW_UNITS: u32 = 6;
/// Physical blocks of one unit that main refused, after which the rest of the unit is not offered any more.
const FEW_BLOCKS: u32 = 5;

/// Where units or physical blocks begin, seen from the start of a request.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    size: u32,
    offset: u32,
}

impl Grid {
    /// Pieces of `size` sectors, a power of two, on a device where the request begins at `sector`.
    pub fn new(size: u32, sector: u64) -> Self {
        let size = size.max(1);
        let offset = (sector & u64::from(size.wrapping_sub(1))) as u32;
        Self { size, offset }
    }

    /// Sectors from `at` to where the next piece begins: 1 to the size of one.
    fn left(&self, at: u32) -> u32 {
        let within = self.offset.wrapping_add(at) & self.size.wrapping_sub(1);
        self.size.wrapping_sub(within).max(1)
    }

    /// Whether `count` sectors from `at` begin and end where pieces do.
    fn is_whole(&self, at: u32, count: u32) -> bool {
        self.left(at) == self.size && self.left(at.wrapping_add(count)) == self.size
    }
}

/// Sectors of a request, counted from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The first.
    pub skip: u32,
    /// How many, 1 or more.
    pub count: u32,
}

/// What a failing piece means for a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// Go on with [`Reading::next`].
    GoOn,
    /// This piece cannot be read: a block at most, that was asked for often enough; or what is certain. [`Reading::pass`]
    /// goes on behind it, if others are wanted.
    Lost(Piece),
    /// This piece may well be readable, or some of it, but was asked for enough already to be given up where that does no
    /// harm. Else [`Reading::next`] goes on, if another command may fail.
    Unsure(Piece),
}

/// A read that failed, done again piece by piece: a unit at a time, and a unit that fails block by block.
#[derive(Clone, Debug)]
pub struct Reading {
    end: u32,
    units: Grid,
    blocks: Grid,
    /// Attempts at what contains a block that fails.
    retries: u32,
    /// Each block gets so many of its own.
    each: bool,
    /// Commands that may fail yet.
    budget: u32,
    at: u32,
    /// The unit is read block by block up to here.
    by_blocks: u32,
    /// How often the unit, or block, failed.
    tries: u32,
    /// Something failed in the unit that ends here.
    stumbled: u32,
}

impl Reading {
    /// Of `sectors` sectors whose one command has failed.
    pub fn new(sectors: u32, units: Grid, blocks: Grid, retries: u32) -> Self {
        Self {
            end: sectors,
            units,
            blocks,
            retries,
            each: false,
            budget: retries.saturating_add(1),
            at: 0,
            by_blocks: 0,
            tries: 0,
            stumbled: 0,
        }
    }

    /// Failing commands that copying one unit may cost.
    pub fn budget_of_copy(retries: u32) -> u32 {
        retries.saturating_add(2)
    }

    /// Of `sectors` sectors of a unit, to be copied at the cost of `budget` failing commands: each block that fails once is
    /// passed. `blockwise`: not in one go, where one of the blocks may well be bad.
    pub fn of_copy(sectors: u32, blocks: Grid, budget: u32, blockwise: bool) -> Self {
        let units = Grid::new(sectors.max(1).checked_next_power_of_two().unwrap_or(1), 0);
        Self {
            budget,
            by_blocks: if blockwise { sectors } else { 0 },
            each: true,
            ..Self::new(sectors, units, blocks, 1)
        }
    }

    fn unit_end(&self) -> u32 {
        let end = self.at.saturating_add(self.units.left(self.at));
        end.min(self.end)
    }

    /// What to read now; `None`: all was read, or passed.
    pub fn next(&self) -> Option<Piece> {
        let left = self.end.checked_sub(self.at).filter(|left| *left > 0)?;
        let unit = self.units.left(self.at);
        let count = if self.at < self.by_blocks {
            unit.min(self.blocks.left(self.at))
        } else {
            unit
        };
        Some(Piece {
            skip: self.at,
            count: count.min(left),
        })
    }

    /// The piece was read. Returns whether its unit is through, and did not go without failures: main can hardly
    /// read it.
    pub fn succeeded(&mut self) -> bool {
        let unit_end = self.unit_end();
        self.pass();
        let hardly = self.stumbled == unit_end && self.at >= unit_end;
        if hardly {
            self.stumbled = 0;
        }
        hardly
    }

    /// Goes on behind the piece.
    pub fn pass(&mut self) {
        let count = self.next().map_or(0, |piece| piece.count);
        let unit_end = self.unit_end();
        self.at = self.at.saturating_add(count);
        if self.each || self.at >= unit_end {
            self.tries = 0;
        }
    }

    /// The piece failed. `certain`: it would be no use to ask again.
    pub fn failed(&mut self, certain: bool) -> Failed {
        let Some(piece) = self.next() else {
            return Failed::GoOn;
        };
        self.stumbled = self.unit_end();
        self.budget = self.budget.saturating_sub(1);
        if certain {
            return Failed::Lost(piece);
        }
        self.tries = self.tries.saturating_add(1);
        let is_block = piece.count <= self.blocks.left(self.at);
        if !is_block {
            self.by_blocks = self.unit_end();
        }
        match self.tries >= self.retries {
            true if is_block => Failed::Lost(piece),
            false if self.budget > 0 => Failed::GoOn,
            _ => Failed::Unsure(piece),
        }
    }

    /// What is read now is somewhere else than it was when it failed.
    pub fn moved(&mut self) {
        self.tries = 0;
    }

    /// Whether another command may fail.
    pub fn may_fail(&self) -> bool {
        self.budget > 0
    }

    /// Commands that may fail yet.
    pub fn budget(&self) -> u32 {
        self.budget
    }
}

/// What to do with sectors that are to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteStep {
    /// Write them to main.
    Main(Piece),
    /// As above, but they are only a part of a physical block: first see whether main can read all of it. A drive that
    /// cannot would have to make up the rest.
    MainInPart(Piece),
    /// They go to the slot, main is not asked.
    Slot(Piece),
}

/// A write that failed, or was not submitted, done unit by unit.
#[derive(Clone, Debug)]
pub struct Writing {
    bad_units: u32,
    /// Commands that may fail yet.
    budget: u32,
}

/// One unit of it.
#[derive(Clone, Debug)]
pub struct UnitWriting {
    end: u32,
    blocks: Grid,
    at: u32,
    by_blocks: bool,
    bad_blocks: u32,
    /// Main is asked.
    asks: bool,
    /// Commands that may fail yet.
    budget: u32,
}

impl Default for Writing {
    fn default() -> Self {
        Self {
            bad_units: 0,
            // The request's own may have failed.
            budget: MOST_FAILED_WRITES.saturating_sub(1),
        }
    }
}

impl Writing {
    /// The sectors `first..end`, counted from the start of the request, which lie in one unit.
    pub fn unit(&self, first: u32, end: u32, blocks: Grid) -> UnitWriting {
        UnitWriting {
            end,
            blocks,
            at: first,
            by_blocks: !blocks.is_whole(first, end.saturating_sub(first)),
            bad_blocks: 0,
            asks: self.bad_units < FEW_UNITS && self.budget > 0,
            budget: self.budget,
        }
    }

    /// Whether main may be asked for what it was not, as no slot is free: one more command may fail.
    pub fn ask_after_all(&mut self) -> bool {
        let may_fail = self.budget > 0;
        self.budget = self.budget.saturating_sub(1);
        may_fail
    }

    /// A unit is through.
    pub fn done(&mut self, unit: &UnitWriting) {
        let is_bad = unit.asks && unit.bad_blocks > 0;
        self.bad_units = self.bad_units.saturating_add(is_bad.into());
        self.budget = unit.budget;
    }
}

impl UnitWriting {
    /// What to do now; `None`: the unit is through.
    pub fn next(&self) -> Option<WriteStep> {
        let left = self.end.checked_sub(self.at).filter(|left| *left > 0)?;
        let piece = |count| Piece {
            skip: self.at,
            count,
        };
        if !self.asks || self.bad_blocks >= FEW_BLOCKS || self.budget == 0 {
            return Some(WriteStep::Slot(piece(left)));
        }
        if !self.by_blocks {
            return Some(WriteStep::Main(piece(left)));
        }
        let block = piece(left.min(self.blocks.left(self.at)));
        Some(if self.blocks.is_whole(block.skip, block.count) {
            WriteStep::Main(block)
        } else {
            WriteStep::MainInPart(block)
        })
    }

    /// The step was done: main took the piece, or it is noted down for the slot.
    pub fn succeeded(&mut self) {
        let count = match self.next() {
            Some(WriteStep::Main(p) | WriteStep::MainInPart(p) | WriteStep::Slot(p)) => p.count,
            None => 0,
        };
        self.at = self.at.saturating_add(count);
    }

    /// Main did not take the piece. Returns what goes to the slot therefore; `None`: it is tried block by block.
    pub fn failed(&mut self) -> Option<Piece> {
        let (WriteStep::Main(piece) | WriteStep::MainInPart(piece)) = self.next()? else {
            return None;
        };
        self.budget = self.budget.saturating_sub(1);
        if !self.by_blocks && piece.count > self.blocks.left(self.at) {
            self.by_blocks = true;
            return None;
        }
        self.by_blocks = true;
        self.bad_blocks = self.bad_blocks.saturating_add(1);
        self.at = self.at.saturating_add(piece.count);
        Some(piece)
    }

    /// Whether main is asked at all.
    pub fn asks(&self) -> bool {
        self.asks
    }
}

/// Sectors around a place that count as its neighbours.
const NEAR: u64 = 128;
/// Places side by side that could not be read, with all retries, before the next one gets none.
const A_PATCH: u32 = 2;
/// Places side by side for which one answer of main elsewhere is enough.
const ONE_ANSWER: u32 = 8;

/// Where main could not be read last: a scratch is many bad sectors side by side, and asking for each of them again
/// and again takes hours.
#[derive(Clone, Copy, Debug, Default)]
pub struct Patch {
    from: u64,
    to: u64,
    places: u32,
    unasked: u32,
}

impl Patch {
    /// Whether `sector` lies beside it. Within it, what could not be read once was forgotten since, and that it fails again
    /// says nothing.
    fn is_near(&self, sector: u64) -> bool {
        let is_before = sector < self.from && sector.saturating_add(NEAR) >= self.from;
        let is_behind = sector >= self.to && sector <= self.to.saturating_add(NEAR);
        self.places > 0 && (is_before || is_behind)
    }

    /// Whether a read that failed at `sector` is certain to fail again.
    pub fn is_certain(&self, sector: u64) -> bool {
        self.places >= A_PATCH && self.is_near(sector)
    }

    /// Whether main has to answer elsewhere before `sector` counts as bad.
    pub fn must_ask(&self, sector: u64) -> bool {
        !self.is_near(sector) || self.unasked >= ONE_ANSWER.saturating_sub(1)
    }

    /// Sectors `from..to` could not be read. `asked`: main answered elsewhere just now.
    pub fn note(&mut self, from: u64, to: u64, asked: bool) {
        if !self.is_near(from) {
            *self = Self {
                from,
                to,
                ..Self::default()
            };
        }
        self.from = self.from.min(from);
        self.to = self.to.max(to);
        self.places = self.places.saturating_add(1);
        self.unasked = if asked {
            0
        } else {
            self.unasked.saturating_add(1)
        };
    }
}

/// Different units in a row whose writes main failed, before it is watched whether it takes any.
const SUSPICIOUS: u32 = 16;
/// And before it is said that it takes none.
const REFUSED: u32 = 32;

/// Whether main takes writes at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Refusals {
    last: Option<u64>,
    count: u32,
}

impl Refusals {
    /// Main failed a write to `unit`. Returns whether it is to be said now that main takes no writes.
    pub fn failed(&mut self, unit: u64) -> bool {
        if self.last == Some(unit) {
            return false;
        }
        self.last = Some(unit);
        self.count = self.count.saturating_add(1);
        self.count == REFUSED
    }

    /// Main took a write.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// Whether writes that succeed must not go unnoticed.
    pub fn is_suspicious(&self) -> bool {
        self.count >= SUSPICIOUS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    /// A device some of whose sectors fail, for ever or a few times.
    #[derive(Clone, Debug)]
    struct Disk {
        /// How often each sector fails yet.
        fails: Vec<u32>,
        failed: u32,
    }

    impl Disk {
        fn access(&mut self, first: u64, count: u32) -> bool {
            let sectors = &mut self.fails[first as usize..][..count as usize];
            let fails = sectors.iter_mut().find(|left| **left > 0);
            self.failed += u32::from(fails.is_some());
            fails.map(|left| *left = left.saturating_sub(1)).is_none()
        }

        fn is_bad(&self, sector: u64) -> bool {
            self.fails[sector as usize] > 1000
        }
    }

    fn disk() -> impl Strategy<Value = Disk> {
        let sector = prop_oneof![20 => Just(0u32), 2 => 1u32..4, 3 => Just(u32::MAX)];
        let bad_area = (any::<bool>(), 0usize..2048, 0usize..2048);
        (proptest::collection::vec(sector, 2200), bad_area).prop_map(|(mut fails, (area, a, b))| {
            if area {
                fails[a.min(b)..a.max(b)].fill(u32::MAX);
            }
            Disk { fails, failed: 0 }
        })
    }

    /// Where is read from.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Source {
        Main,
        Slots,
        /// All that can be read is wanted.
        ToCopy,
    }

    /// What `read` does with a request of `count` sectors from `sector`: whether all was read, and what was not.
    fn read(
        disk: &mut Disk,
        mut reading: Reading,
        sector: u64,
        certain: impl Fn(u64) -> bool,
        from: Source,
    ) -> (Vec<bool>, Option<Piece>, Vec<u32>) {
        let mut has = vec![false; reading.end as usize];
        let (mut lost, mut hard) = (None, Vec::new());
        let (mut in_unit, mut failures) = (0, 0);
        while let Some(piece) = reading.next() {
            assert!(piece.count > 0 && piece.skip + piece.count <= reading.end);
            let at = sector + u64::from(piece.skip);
            let unit = (reading.units.offset + piece.skip) / reading.units.size;
            if unit != in_unit {
                (in_unit, failures) = (unit, 0);
            }
            if disk.access(at, piece.count) {
                has[piece.skip as usize..][..piece.count as usize].fill(true);
                if reading.succeeded() {
                    hard.push(piece.skip);
                }
                continue;
            }
            failures += 1;
            let block = reading.blocks.left(piece.skip);
            match reading.failed(certain(at)) {
                Failed::GoOn => assert!(reading.may_fail()),
                Failed::Lost(it) => {
                    assert_eq!(it, piece);
                    // Whatever failed in other units.
                    assert!(certain(at) || failures >= reading.retries && piece.count <= block);
                    lost = Some(piece);
                    if from != Source::ToCopy || !reading.may_fail() {
                        break;
                    }
                    reading.pass();
                }
                Failed::Unsure(it) => {
                    assert_eq!(it, piece);
                    if from == Source::Main {
                        lost = Some(piece);
                        break;
                    }
                    if !reading.may_fail() {
                        break;
                    }
                }
            }
        }
        (has, lost, hard)
    }

    proptest! {
        /// However long the request and however bad the disk: the number of commands that fail.
        #[test]
        fn a_read_costs_at_most_retries_and_two_failing_reads(
            mut disk in disk(), sector in 0u64..100, count in 1u32..2048, unit in 0u32..7, block in 0u32..7,
            retries in 1u32..11, certain in any::<bool>(), from in prop_oneof![Just(Source::Main), Just(Source::Slots)],
        ) {
            let (unit, block) = (1 << unit, 1 << block);
            if !disk.access(sector, count) {
                let reading = Reading::new(count, Grid::new(unit, sector), Grid::new(block, sector), retries);
                let (has, lost, _) = read(&mut disk, reading, sector, |_| certain, from);
                prop_assert!(disk.failed <= retries + 2);
                let all = has.iter().all(|read| *read);
                // It gives up only because of something that failed, and never says that it has what it has not.
                prop_assert!(all == lost.is_none() || disk.failed > retries);
                if let Some(piece) = lost {
                    prop_assert!(!all);
                    prop_assert!(piece.count <= unit);
                }
            }
        }

        /// What a disk can read of a request with one bad sector, all of it is asked for up to that.
        #[test]
        fn a_bad_sector_is_found(
            sector in 0u64..100, count in 1u32..2048, bad in 0u32..2048, shift in 0u32..7, block in 0u32..7, retries in 1u32..11,
            from in prop_oneof![Just(Source::Main), Just(Source::Slots)],
        ) {
            let (unit, block, bad) = (1 << shift, 1 << block, bad % count);
            let mut fails = vec![0; 2200];
            fails[(sector + u64::from(bad)) as usize] = u32::MAX;
            let mut disk = Disk { fails, failed: 1 };
            let reading = Reading::new(count, Grid::new(unit, sector), Grid::new(block, sector), retries);
            let (has, lost, hard) = read(&mut disk, reading, sector, |_| false, from);
            let lost = lost.unwrap();
            prop_assert!((lost.skip..lost.skip + lost.count).contains(&bad));
            prop_assert!(lost.count <= unit && (lost.count <= block || retries == 1 && from == Source::Main));
            prop_assert!(has[..lost.skip as usize].iter().all(|read| *read));
            prop_assert!(hard.is_empty());
        }

        /// What fails once, alone, is read, and its unit is known to be hard to read only if it failed again.
        #[test]
        fn what_fails_once_is_read(
            sector in 0u64..100, count in 1u32..2048, bad in 0u32..2048, shift in 0u32..7, block in 0u32..7, again in any::<bool>(),
        ) {
            let (unit, block, bad) = (1 << shift, 1 << block, bad % count);
            let mut fails = vec![0; 2200];
            fails[(sector + u64::from(bad)) as usize] = u32::from(again);
            let mut disk = Disk { fails, failed: 1 };
            let reading = Reading::new(count, Grid::new(unit, sector), Grid::new(block, sector), 2);
            let (has, lost, hard) = read(&mut disk, reading, sector, |_| false, Source::Main);
            prop_assert!(has.iter().all(|read| *read) && lost.is_none());
            prop_assert_eq!(hard.len(), usize::from(again));
            for skip in hard {
                prop_assert_eq!((sector + u64::from(skip)) / u64::from(unit), (sector + u64::from(bad)) / u64::from(unit));
            }
        }

        /// A unit that is copied: all that can be read without more failures than that.
        #[test]
        fn a_copy_costs_at_most_retries_and_two_failing_reads(
            mut disk in disk(), unit in 0u32..7, number in 0u64..16, block in 0u32..7, retries in 0u32..11,
        ) {
            let (unit, block) = (1u32 << unit, 1 << block);
            let sector = number * u64::from(unit);
            let budget = Reading::budget_of_copy(retries);
            let reading = Reading::of_copy(unit, Grid::new(block, sector), budget, false);
            let before = disk.clone();
            let (has, ..) = read(&mut disk, reading, sector, |_| false, Source::ToCopy);
            prop_assert!(disk.failed <= retries + 2);
            for (nth, read) in has.iter().enumerate() {
                prop_assert!(!read || !disk.is_bad(sector + nth as u64));
            }
            if disk.failed < retries + 2 {
                // Nothing was left out but what failed.
                let blocks = |nth: u32| nth / block.min(unit) * block.min(unit);
                for (nth, read) in (0..).zip(&has) {
                    let first = blocks(nth);
                    let sectors = (first..first + block.min(unit)).map(|s| before.fails[(sector + u64::from(s)) as usize]);
                    prop_assert!(*read || sectors.fold(0u32, u32::saturating_add) > 0);
                }
            }
        }

        /// A write: every sector is on main or noted for the slot, and few commands fail.
        #[test]
        fn a_write_costs_at_most_sixteen_failing_writes(
            mut disk in disk(), sector in 0u64..100, count in 1u32..2048, unit in 0u32..7, block in 0u32..7,
            submitted in any::<bool>(),
        ) {
            let (unit, block) = (1u32 << unit, 1 << block);
            if submitted && disk.access(sector, count) {
                return Ok(());
            }
            let mut writing = Writing::default();
            let blocks = Grid::new(block, sector);
            let (mut at, mut bad_units) = (0, 0);
            while at < count {
                let end = (at + unit - ((sector + u64::from(at)) % u64::from(unit)) as u32).min(count);
                let mut part = writing.unit(at, end, blocks);
                prop_assert!(bad_units < FEW_UNITS || !part.asks());
                let mut placed = at;
                let before = disk.failed;
                while let Some(step) = part.next() {
                    let (WriteStep::Main(piece) | WriteStep::MainInPart(piece) | WriteStep::Slot(piece)) = step;
                    prop_assert_eq!(piece.skip, placed);
                    prop_assert!(piece.count > 0 && placed + piece.count <= end);
                    let whole = |s: u64| s % u64::from(block) == 0;
                    let first = sector + u64::from(piece.skip);
                    let is_whole = whole(first) && whole(first + u64::from(piece.count));
                    prop_assert!(!matches!(step, WriteStep::Main(_)) || is_whole);
                    prop_assert!(!matches!(step, WriteStep::MainInPart(_)) || !is_whole);
                    if matches!(step, WriteStep::Slot(_)) || disk.access(first, piece.count) {
                        part.succeeded();
                        placed += piece.count;
                    } else if let Some(lost) = part.failed() {
                        prop_assert_eq!(lost, piece);
                        placed += piece.count;
                    }
                }
                prop_assert_eq!(placed, end);
                bad_units += u32::from(part.asks() && part.bad_blocks > 0);
                prop_assert!(disk.failed - before <= 1 + FEW_BLOCKS);
                writing.done(&part);
                at = end;
            }
            while writing.ask_after_all() {
                disk.failed += 1;
            }
            prop_assert!(disk.failed <= MOST_FAILED_WRITES);
        }
    }

    #[test]
    fn what_failed_elsewhere_does_not_count() {
        for (retries, before) in (1..11).flat_map(|retries| (0..12).map(move |n| (retries, n))) {
            let mut reading = Reading::new(8, Grid::new(8, 0), Grid::new(8, 0), retries);
            for _ in 0..before {
                reading.failed(false);
            }
            reading.moved();
            let mut failures = 0;
            while reading.may_fail() {
                failures += 1;
                let is_lost = matches!(reading.failed(false), Failed::Lost(_));
                assert_eq!(is_lost, failures >= retries, "{retries} {before}");
            }
        }
    }

    #[test]
    fn a_patch_is_certain_after_two_neighbours_and_ends_where_they_do() {
        let mut patch = Patch::default();
        assert!(!patch.is_certain(1000) && patch.must_ask(1000));
        patch.note(1000, 1008, true);
        assert!(!patch.is_certain(1008) && !patch.must_ask(1008));
        patch.note(1008, 1016, false);
        assert!(patch.is_certain(1016) && patch.is_certain(872) && patch.is_certain(1144));
        assert!(!patch.is_certain(871) && !patch.is_certain(1145));
        // One answer of main is good for seven more.
        for n in 2..8 {
            assert!(!patch.must_ask(1000 + 8 * n));
            patch.note(1000 + 8 * n, 1008 + 8 * n, false);
        }
        assert!(patch.must_ask(1064));
        patch.note(1064, 1072, true);
        assert!(!patch.must_ask(1072));
        // Elsewhere all begins anew.
        patch.note(9000, 9008, true);
        assert!(!patch.is_certain(9008) && !patch.is_certain(1016));
        // What is tried once more is no neighbour of itself.
        patch.note(9008, 9016, false);
        assert!(patch.is_certain(9016) && !patch.is_certain(9008) && patch.must_ask(9000));
    }

    #[test]
    fn main_takes_no_writes_if_so_many_units_failed_and_none_was_written() {
        let mut refusals = Refusals::default();
        for round in 0..2 {
            for unit in 0..u64::from(REFUSED) - 1 {
                assert!(!refusals.failed(unit) && !refusals.failed(unit), "{round}");
                assert_eq!(refusals.is_suspicious(), unit + 1 >= u64::from(SUSPICIOUS));
            }
            if round == 0 {
                refusals.succeeded();
                assert!(!refusals.is_suspicious());
            }
        }
        assert!(refusals.failed(1000));
        // It is said once, but that it takes one again is not to go unnoticed.
        assert!(!refusals.failed(1000) && !refusals.failed(1001) && refusals.is_suspicious());
    }
}
