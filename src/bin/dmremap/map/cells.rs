// SPDX-License-Identifier: GPL-2.0

//! The cells of a map: which units each shows, what is in it, and where it is worst. Nothing but arithmetic.

use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::ops::Range;

/// What has become of a unit, the better before the worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    Healthy,
    Relocated,
    Partial,
    Pending,
    Lost,
}

impl State {
    pub(super) const ALL: [Self; 5] = [
        Self::Healthy,
        Self::Relocated,
        Self::Partial,
        Self::Pending,
        Self::Lost,
    ];

    pub(super) fn name(self) -> &'static str {
        ["healthy", "relocated", "partial", "pending", "lost"][self as usize]
    }

    /// For a person, of what is in it.
    pub(super) fn meaning(self) -> &'static str {
        [
            "on the disk",
            "served from the spare",
            "on the spare in part",
            "cannot be read until written",
            "lost with a part of the spare",
        ][self as usize]
    }
}

/// A unit that is not healthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bad {
    pub(super) unit: u64,
    pub(super) state: State,
    /// It is worse than it was in the report that the map is compared with.
    pub(super) is_worse: bool,
}

/// So many units in each state, and so many that are worse than they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    of: [u64; State::ALL.len()],
    pub(super) worse: u64,
}

impl Counts {
    /// Of `units` units, of which `bad` are not healthy.
    pub(super) fn new(units: u64, bad: &[Bad]) -> Self {
        let mut counts = Self::default();
        for bad in bad {
            counts.of[bad.state as usize] += 1;
            counts.worse += u64::from(bad.is_worse);
        }
        counts.of[State::Healthy as usize] = units.saturating_sub(bad.len() as u64);
        counts
    }

    pub(super) fn of(&self, state: State) -> u64 {
        self.of[state as usize]
    }

    /// Those that are not healthy.
    pub(super) fn bad(&self) -> u64 {
        self.of[1..].iter().sum()
    }

    pub(super) fn worst(&self) -> State {
        let there = |state: &State| self.of(*state) > 0;
        State::ALL
            .into_iter()
            .rev()
            .find(there)
            .unwrap_or(State::Healthy)
    }

    /// How much of it is not healthy, in [`LEVELS`].
    pub(super) fn level(&self) -> usize {
        let all: u64 = self.of.iter().sum();
        let per_mille = 1000 * u128::from(self.bad()) / u128::from(all.max(1));
        match per_mille {
            0 => 0,
            1..100 => 1,
            _ => 2,
        }
    }
}

/// The strengths in which a cell is shown: how much of it is not healthy.
pub(super) const LEVELS: [&str; 3] = ["less than 0.1 %", "less than 10 %", "10 % or more"];

/// The part of `bad`, which is sorted by unit, that lies in `units`.
pub(super) fn inside<'a>(bad: &'a [Bad], units: &Range<u64>) -> &'a [Bad] {
    let from = bad.partition_point(|bad| bad.unit < units.start);
    let to = bad.partition_point(|bad| bad.unit < units.end);
    &bad[from..to.max(from)]
}

/// A range of units in cells of the same number of units each, but for the last.
pub(super) struct Grid {
    pub(super) units: Range<u64>,
    /// Units of a cell.
    pub(super) step: u64,
    pub(super) cells: Vec<Counts>,
}

impl Grid {
    /// Of the units `units`, one at least, in `most` cells at most; `bad` is sorted by unit.
    pub(super) fn new(bad: &[Bad], units: Range<u64>, most: u64) -> Self {
        let length = units.end - units.start;
        let step = length.div_ceil(most).max(1);
        let mut grid = Self {
            units,
            step,
            cells: Vec::new(),
        };
        for at in 0..length.div_ceil(step) {
            let units = grid.cell(at as usize);
            let counts = Counts::new(units.end - units.start, inside(bad, &units));
            grid.cells.push(counts);
        }
        grid
    }

    /// The units that a cell shows.
    pub(super) fn cell(&self, at: usize) -> Range<u64> {
        let from = self.units.start + at as u64 * self.step;
        from..(from + self.step).min(self.units.end)
    }

    /// The cell that shows a unit.
    pub(super) fn at(&self, unit: u64) -> usize {
        ((unit - self.units.start) / self.step) as usize
    }

    /// Whether nine in ten of the cells look alike, and are not healthy.
    fn is_uniform(&self) -> bool {
        let mut alike = [[0; LEVELS.len()]; State::ALL.len()];
        for cell in self.cells.iter().filter(|cell| cell.bad() > 0) {
            alike[cell.worst() as usize][cell.level()] += 1;
        }
        let most = alike.as_flattened().iter().max();
        most.is_some_and(|most| most * 10 > self.cells.len() * 9)
    }
}

/// Units of a cell, at least, into which it is worth looking.
const WORTH_A_LOOK: u64 = 8;

/// The parts that are worth a closer look, by place: `most` at most, apart from each other, in `cells` cells at most.
///
/// Each is the shortest stretch that has half of what is wrong with one of the worst cells and those beside it, or somewhat
/// more of the device if it is so short that there are cells left. What is not a hundredth as bad as the worst is none of them. Where a closer look shows the same everywhere, there is none either.
pub(super) fn worst(bad: &[Bad], grid: &Grid, most: usize, cells: u64) -> Vec<Grid> {
    let weigh = |bad: &[Bad]| bad.iter().map(|bad| bad.state as u64).sum::<u64>();
    let of_cell = |at: usize| weigh(inside(bad, &grid.cell(at)));
    let mut by_weight: Vec<(u64, usize)> = (0..grid.cells.len())
        .filter(|at| grid.step >= WORTH_A_LOOK && grid.cells[*at].bad() > 0)
        .map(|at| (of_cell(at), at))
        .collect();
    by_weight.sort_by_key(|(weight, at)| (Reverse(*weight), *at));
    let mut parts: Vec<(usize, Grid)> = Vec::new();
    let heaviest = by_weight.first().map_or(0, |(weight, _)| *weight);
    for (weight, at) in by_weight {
        // With the cells beside them, they do not meet.
        let is_apart = parts.iter().all(|(part, _)| part.abs_diff(at) > 2);
        if parts.len() < most && is_apart && weight * 100 >= heaviest {
            let last = (at + 1).min(grid.cells.len() - 1);
            let around = grid.cell(at.saturating_sub(1)).start..grid.cell(last).end;
            let inside = inside(bad, &around);
            let units = shortest(inside, weigh(inside).div_ceil(2));
            let part = Grid::new(bad, widen(units, cells, &around), cells);
            if !part.is_uniform() {
                parts.push((at, part));
            }
        }
    }
    parts.sort_unstable_by_key(|(at, _)| *at);
    parts.into_iter().map(|(_, part)| part).collect()
}

/// The shortest stretch of units in which what is wrong weighs so much; `bad` has that at least.
fn shortest(bad: &[Bad], wanted: u64) -> Range<u64> {
    let mut found = bad[0].unit..bad[bad.len() - 1].unit + 1;
    let (mut from, mut has) = (0, 0);
    for (to, last) in bad.iter().enumerate() {
        has += last.state as u64;
        while from < to && has - bad[from].state as u64 >= wanted {
            has -= bad[from].state as u64;
            from += 1;
        }
        if has >= wanted && last.unit + 1 - bad[from].unit < found.end - found.start {
            found = bad[from].unit..last.unit + 1;
        }
    }
    found
}

/// `units` and as much on both sides that they are `least`, within `bounds`.
fn widen(units: Range<u64>, least: u64, bounds: &Range<u64>) -> Range<u64> {
    let missing = least.saturating_sub(units.end - units.start);
    let from = units.start.saturating_sub(missing / 2).max(bounds.start);
    let to = (from + least).max(units.end).min(bounds.end);
    let from = from.min(to.saturating_sub(least)).max(bounds.start);
    from..to
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// A device's length in units, and what is not healthy of it.
    fn device() -> impl Strategy<Value = (u64, Vec<Bad>)> {
        let length = prop_oneof![1..100_u64, 1..1_u64 << 20, 1..1_u64 << 50];
        let devices = length.prop_flat_map(|units| {
            // Anywhere, and close together.
            let near = (
                0..units,
                prop::collection::vec((0..500_u64, 1..5_usize), 0..60),
            );
            let near = near.prop_map(move |(from, all)| {
                let place = move |(by, state): (u64, usize)| ((from + by).min(units - 1), state);
                all.into_iter().map(place).collect::<Vec<_>>()
            });
            let far = prop::collection::vec((0..units, 1..5_usize), 0..60);
            (Just(units), near, far)
        });
        devices.prop_map(|(units, near, far)| {
            let all: BTreeMap<u64, usize> = near.into_iter().chain(far).collect();
            let bad = |(unit, state): (u64, usize)| Bad {
                unit,
                state: State::ALL[state],
                is_worse: unit % 3 == 0,
            };
            (units, all.into_iter().map(bad).collect())
        })
    }

    proptest! {
        #[test]
        fn every_unit_is_in_the_cell_where_it_belongs(
            (units, bad) in device(),
            most in 1..3000_u64,
            some in any::<prop::sample::Index>(),
        ) {
            let grid = Grid::new(&bad, 0..units, most);
            prop_assert!(grid.cells.len() as u64 <= most);
            // The cells follow each other from the first unit to the last.
            let mut next = 0;
            for at in 0..grid.cells.len() {
                let cell = grid.cell(at);
                prop_assert_eq!(cell.start, next);
                prop_assert!(cell.end > cell.start);
                next = cell.end;
            }
            prop_assert_eq!(next, units);
            // Counted in another way, it is the same.
            let mut counted = vec![[0_u64; 6]; grid.cells.len()];
            for bad in &bad {
                let at = grid.at(bad.unit);
                prop_assert!(grid.cell(at).contains(&bad.unit));
                counted[at][bad.state as usize] += 1;
                counted[at][5] += u64::from(bad.is_worse);
            }
            for (at, cell) in grid.cells.iter().enumerate() {
                let states = &State::ALL[1..];
                prop_assert!(states.iter().all(|s| cell.of(*s) == counted[at][*s as usize]));
                prop_assert_eq!(cell.worse, counted[at][5]);
                let range = grid.cell(at);
                prop_assert_eq!(cell.bad() + cell.of(State::Healthy), range.end - range.start);
                let worst = states.iter().rev().find(|s| counted[at][**s as usize] > 0);
                prop_assert_eq!(cell.worst(), *worst.unwrap_or(&State::Healthy));
            }
            let unit = some.index(usize::try_from(units).unwrap()) as u64;
            prop_assert!(grid.cell(grid.at(unit)).contains(&unit));
        }

        #[test]
        fn all_cells_together_are_the_device((units, bad) in device(), most in 1..3000_u64) {
            let all = Counts::new(units, &bad);
            let grid = Grid::new(&bad, 0..units, most);
            for state in State::ALL {
                let sum: u64 = grid.cells.iter().map(|cell| cell.of(state)).sum();
                prop_assert_eq!(sum, all.of(state));
            }
            let worse: u64 = grid.cells.iter().map(|cell| cell.worse).sum();
            prop_assert_eq!(worse, all.worse);
        }

        #[test]
        fn the_worst_parts_are_apart_and_have_what_is_worst(
            (units, bad) in device(),
            most in 1..3000_u64,
            cells in 1..1000_u64,
        ) {
            let grid = Grid::new(&bad, 0..units, most);
            let parts = worst(&bad, &grid, 3, cells);
            prop_assert!(parts.len() <= 3);
            let mut next = 0;
            for part in &parts {
                let Range { start, end } = part.units;
                prop_assert!(next <= start && start < end && end <= units);
                next = end;
                prop_assert!(part.cells.len() as u64 <= cells);
                prop_assert!(part.step <= 3 * grid.step);
                prop_assert!(part.cells.iter().any(|cell| cell.bad() > 0));
            }
            // The worst cell, or one beside it, is not left out, unless all of it looks alike.
            let weight = |units: &Range<u64>| -> u64 {
                inside(&bad, units).iter().map(|bad| bad.state as u64).sum()
            };
            let heaviest = (0..grid.cells.len()).max_by_key(|at| (weight(&grid.cell(*at)), Reverse(*at)));
            let heaviest = heaviest.filter(|_| grid.step >= WORTH_A_LOOK && !bad.is_empty());
            if let Some(at) = heaviest {
                let near = grid.cell(at.saturating_sub(1)).start..grid.cell((at + 1).min(grid.cells.len() - 1)).end;
                let is_near = |part: &Grid| part.units.start < near.end && near.start < part.units.end;
                // With that many cells there is one for each unit: the healthy look different.
                if cells > 3 * grid.step && inside(&bad, &near).len() as u64 * 2 < grid.step {
                    prop_assert!(parts.iter().any(is_near), "{near:?}");
                }
            }
        }

        #[test]
        fn a_stretch_is_the_shortest_that_weighs_enough((_, bad) in device()) {
            prop_assume!(!bad.is_empty());
            let weight = |bad: &[Bad]| bad.iter().map(|bad| bad.state as u64).sum::<u64>();
            let wanted = weight(&bad).div_ceil(2);
            let found = shortest(&bad, wanted);
            prop_assert!(weight(inside(&bad, &found)) >= wanted);
            let length = found.end - found.start;
            for first in &bad {
                let shorter = first.unit..first.unit + length - 1;
                prop_assert!(weight(inside(&bad, &shorter)) < wanted);
            }
        }
    }

    #[test]
    fn a_level_is_a_share_of_the_cell() {
        let level = |units, count: u64| {
            let bad = |unit| Bad {
                unit,
                state: State::Pending,
                is_worse: false,
            };
            let bad: Vec<Bad> = (0..count).map(bad).collect();
            Counts::new(units, &bad).level()
        };
        let levels = [1, 9, 10, 999, 1000].map(|count| level(10_000, count));
        assert_eq!(levels, [0, 0, 1, 1, 2]);
        // One of one is all of it.
        assert_eq!(level(1, 1), 2);
    }

    #[test]
    fn a_part_that_is_widened_stays_within_its_bounds() {
        for (units, least, bounds, expected) in [
            (10..12, 8, 0..100, 7..15),
            (0..2, 8, 0..100, 0..8),
            (98..100, 8, 0..100, 92..100),
            (10..40, 8, 0..100, 10..40),
            (3..4, 8, 2..6, 2..6),
        ] {
            assert_eq!(widen(units.clone(), least, &bounds), expected, "{units:?}");
        }
    }
}
