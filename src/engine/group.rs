// SPDX-License-Identifier: GPL-2.0

//! Which table blocks memory has, and which of them are written together: a group.

/// Places for table blocks, and so as many as there may be in a group.
pub const PLACES: usize = 32;

/// A set of places, one bit each.
pub type Set = u32;

/// What is in which place. There is always one for a block of a group that is not full, but for what is stuck: the one that was
/// in a group least recently.
///
/// # Invariants
///
/// No two places have the same block. A place of `group`, `loaded` or `stuck` has one.
#[derive(Default)]
pub struct Places {
    numbers: [Option<u64>; PLACES],
    /// The last group that each was in.
    last: [u64; PLACES],
    /// Groups so far.
    now: u64,
    group: Set,
    loaded: Set,
    stuck: Set,
}

/// The set of this place alone.
pub fn only(place: usize) -> Set {
    1_u32.checked_shl(place as u32).unwrap_or(0)
}

impl Places {
    /// Begins an empty group.
    pub fn begin(&mut self) {
        self.now += 1;
        self.group = 0;
    }

    /// Begins a group of all that is stuck.
    pub fn begin_with_stuck(&mut self) {
        self.begin();
        self.group = self.stuck;
    }

    /// Adds block `number` to the group. `None`: the group is full.
    pub fn add(&mut self, number: u64) -> Option<usize> {
        let place = self.find(number).or_else(|| self.free_place())?;
        let known = self.numbers.get_mut(place)?;
        if *known != Some(number) {
            *known = Some(number);
            self.loaded &= !only(place);
        }
        *self.last.get_mut(place)? = self.now;
        self.group |= only(place);
        Some(place)
    }

    /// The place of block `number`, if it has one.
    pub fn find(&self, number: u64) -> Option<usize> {
        self.numbers.iter().position(|n| *n == Some(number))
    }

    fn free_place(&self) -> Option<usize> {
        let kept = self.group | self.stuck;
        let last = self.last.iter().enumerate();
        let free = last.filter(|(place, _)| kept & only(*place) == 0);
        free.min_by_key(|(_, last)| **last).map(|(place, _)| place)
    }

    /// Takes a place out of the group.
    pub fn leave(&mut self, place: usize) {
        self.group &= !only(place);
    }

    /// The places of the group.
    pub fn group(&self) -> Set {
        self.group
    }

    /// Of the places `of`, the one with the next block behind `at`, which becomes that: so they come in the order of their blocks.
    pub fn next(&self, of: Set, at: &mut Option<u64>) -> Option<(usize, u64)> {
        let numbers = self.numbers.iter().enumerate();
        let blocks = numbers.filter_map(|(place, n)| n.map(|n| (place, n)));
        let left = blocks.filter(|(place, n)| of & only(*place) != 0 && Some(*n) > *at);
        let next = left.min_by_key(|(_, n)| *n)?;
        *at = Some(next.1);
        Some(next)
    }

    /// Whether the block of this place is in memory.
    pub fn is_loaded(&self, place: usize) -> bool {
        self.loaded & only(place) != 0
    }

    /// Whether one of these is.
    pub fn any_is_loaded(&self, of: Set) -> bool {
        self.loaded & of != 0
    }

    /// The block of this place is in memory.
    pub fn set_loaded(&mut self, place: usize) {
        self.loaded |= only(place);
    }

    /// The group was written: `taken` is on the spare, the rest of it is stuck.
    pub fn end(&mut self, taken: Set) {
        self.stuck = self.stuck & !self.group | self.group & !taken;
    }

    /// What is in the group, or was before, and is to be written before anything else.
    pub fn stuck(&self) -> Set {
        self.stuck
    }

    /// Whether block `number` is.
    pub fn is_stuck(&self, number: u64) -> bool {
        self.find(number)
            .is_some_and(|place| self.stuck & only(place) != 0)
    }

    /// Whether block `number` is in the group.
    pub fn is_in_group(&self, number: u64) -> bool {
        self.find(number)
            .is_some_and(|place| self.group & only(place) != 0)
    }

    /// Forgets what is in memory, but for what is stuck.
    pub fn forget(&mut self) {
        self.loaded &= self.stuck;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{collections::BTreeMap, vec::Vec};

    fn numbers(places: &Places, of: Set) -> Vec<u64> {
        let mut at = None;
        std::iter::from_fn(|| places.next(of, &mut at))
            .map(|(_, n)| n)
            .collect()
    }

    #[test]
    fn a_group_has_each_block_once_and_in_order() {
        let mut p = Places::default();
        p.begin();
        for number in [7, 3, 7, 0, 3] {
            assert!(p.add(number).is_some());
        }
        assert_eq!(numbers(&p, p.group()), [0, 3, 7]);
        p.begin();
        assert_eq!(p.group(), 0);
    }

    #[test]
    fn a_group_has_no_more_than_there_are_places() {
        let mut p = Places::default();
        p.begin();
        assert!((0..PLACES as u64).all(|n| p.add(n).is_some()));
        assert_eq!(p.add(PLACES as u64), None);
        assert!(p.add(5).is_some());
    }

    #[test]
    fn what_is_stuck_keeps_its_place_until_it_is_taken() {
        let mut p = Places::default();
        p.begin();
        let (a, b) = (p.add(1).unwrap(), p.add(2).unwrap());
        p.set_loaded(a);
        p.set_loaded(b);
        p.end(only(a));
        assert!(!p.is_stuck(1) && p.is_stuck(2));
        for n in 100..200 {
            p.begin();
            let place = p.add(n).unwrap();
            p.end(only(place));
        }
        assert_eq!((p.find(1), p.find(2)), (None, Some(b)));
        p.forget();
        assert!(p.is_loaded(b));
        p.begin_with_stuck();
        assert_eq!(numbers(&p, p.group()), [2]);
        p.end(p.group());
        assert_eq!(p.stuck(), 0);
    }

    proptest! {
        /// What was in a group before is in memory still if no more blocks than there are places came since.
        #[test]
        fn the_least_recent_block_goes_first(
            groups in proptest::collection::vec(proptest::collection::vec(0u64..60, 1..20), 1..30)
        ) {
            let mut p = Places::default();
            let mut last = BTreeMap::new();
            for (turn, group) in groups.iter().enumerate() {
                p.begin();
                for number in group {
                    let known = p.find(*number);
                    let place = p.add(*number).unwrap();
                    prop_assert_eq!(p.is_loaded(place), last.contains_key(number) && known.is_some());
                    p.set_loaded(place);
                    last.insert(*number, turn);
                }
                p.end(p.group());
                let mut recent: Vec<_> = last.iter().map(|(n, turn)| (*turn, *n)).collect();
                recent.sort();
                let least = recent.len().checked_sub(PLACES).map_or(0, |n| recent[n].0);
                for (turn, number) in recent {
                    prop_assert_eq!(p.find(number).is_some() || turn <= least, true);
                    prop_assert!(p.find(number).is_none() || turn >= least);
                }
            }
        }
    }
}
