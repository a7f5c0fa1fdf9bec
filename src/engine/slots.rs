// SPDX-License-Identifier: GPL-2.0

//! Which slots of the spare are free.

use super::{
    geometry::{Geometry, RECORDS_PER_BLOCK},
    Slot,
};
use core::ops::DerefMut;

/// A bitmap of slots, set: taken (by an entry, bad, or reserved). Two words for each table block that is in use.
///
/// # Invariants
///
/// The bits of `used + bad` slots, of those reserved, and those that stand for no slot are set in `words`, no
/// other bit is.
pub struct SlotMap<S> {
    words: S,
    total: u64,
    /// Slots that can hold data, those included of table blocks that are not in use.
    usable: u64,
    used: u64,
    bad: u64,
    /// Clear bits.
    left: u64,
    /// The table block where the search for a free slot begins: new entries share table blocks.
    next: u64,
}

/// The two words of the table block that describes `slot`, and the slot's bit in them.
fn place_of(slot: Slot) -> (u64, u64) {
    let slot = u64::from(slot.0);
    (slot / RECORDS_PER_BLOCK, slot % RECORDS_PER_BLOCK)
}

impl<S: DerefMut<Target = [u64]>> SlotMap<S> {
    /// Words needed for the slots of `blocks` table blocks.
    pub fn words_for(blocks: u64) -> u64 {
        2 * blocks
    }

    /// The slots of `geometry`, all free but those reserved, over `words`, all zero.
    ///
    /// Those that `words` is too short for are not given out before [`Self::extend`].
    pub fn new(words: S, geometry: &Geometry) -> Self {
        let mut map = Self {
            words,
            total: geometry.slots_total,
            usable: geometry.usable_slots(),
            used: 0,
            bad: 0,
            left: 0,
            next: 0,
        };
        map.prepare(0, geometry);
        map
    }

    /// Replaces the map's words by longer ones, all zero. Returns those that it had.
    pub fn extend(&mut self, mut words: S, geometry: &Geometry) -> S {
        for (to, from) in words.iter_mut().zip(self.words.iter()) {
            *to = *from;
        }
        let had = self.blocks();
        let words = core::mem::replace(&mut self.words, words);
        self.prepare(had, geometry);
        words
    }

    /// Takes what can never be given out of the slots of table blocks from `block` on.
    fn prepare(&mut self, block: u64, geometry: &Geometry) {
        let blocks = self.blocks();
        let pairs = self.words.chunks_exact_mut(2);
        for (block, pair) in (0..).zip(pairs).skip(block as usize) {
            let exist = self.total.saturating_sub(block * RECORDS_PER_BLOCK);
            for (word, first) in pair.iter_mut().zip([0, 64]) {
                let exist = exist.min(RECORDS_PER_BLOCK).saturating_sub(first);
                *word = match exist {
                    0..64 => !((1 << exist) - 1),
                    _ => 0,
                };
                self.left += u64::from(word.count_zeros());
            }
        }
        let slots = geometry.slots_of(block)..geometry.slots_of(blocks);
        for slot in geometry.reserved(slots) {
            self.set(slot);
        }
    }

    /// Table blocks whose slots are given out.
    pub fn blocks(&self) -> u64 {
        self.words.len() as u64 / 2
    }

    /// Slots that hold an entry.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Slots whose medium failed.
    pub fn bad(&self) -> u64 {
        self.bad
    }

    /// Slots that can hold an entry: all but the reserved ones.
    pub fn usable(&self) -> u64 {
        self.usable
    }

    /// Slots left to give out, those included of table blocks that are not in use.
    pub fn free(&self) -> u64 {
        self.usable() - self.used - self.bad
    }

    /// Slots left to give out of those whose table blocks are in use.
    pub fn left(&self) -> u64 {
        self.left
    }

    fn word(&mut self, slot: Slot) -> Option<(&mut u64, u64)> {
        let (block, bit) = place_of(slot);
        let word = self.words.get_mut((2 * block + bit / 64) as usize)?;
        Some((word, 1 << (bit % 64)))
    }

    fn set(&mut self, slot: Slot) -> bool {
        let exists = u64::from(slot.0) < self.total;
        let Some((word, bit)) = self.word(slot).filter(|_| exists) else {
            return false;
        };
        let was_clear = *word & bit == 0;
        *word |= bit;
        self.left -= u64::from(was_clear);
        was_clear
    }

    /// Marks `slot` as holding an entry; `false` if it does not exist or is taken.
    pub fn take(&mut self, slot: Slot) -> bool {
        let taken = self.set(slot);
        self.used += u64::from(taken);
        taken
    }

    /// Marks `slot` as bad; `false` if it does not exist or is taken.
    pub fn set_bad(&mut self, slot: Slot) -> bool {
        let taken = self.set(slot);
        self.bad += u64::from(taken);
        taken
    }

    /// Takes a free slot of table block `block`.
    fn allocate_in(&mut self, block: u64) -> Option<Slot> {
        let at = usize::try_from(2 * block).ok()?;
        let (low, high) = (*self.words.get(at)?, *self.words.get(at + 1)?);
        if low & high == u64::MAX {
            return None;
        }
        let bit = match low.trailing_ones() {
            64 => 64 + high.trailing_ones(),
            bit => bit,
        };
        let slot = u32::try_from(block * RECORDS_PER_BLOCK + u64::from(bit)).ok()?;
        self.take(Slot(slot)).then_some(Slot(slot))
    }

    /// Takes a free slot, from the block where the last one was if that has any left. `None`: of the table blocks in use,
    /// none has.
    pub fn allocate(&mut self) -> Option<Slot> {
        let blocks = self.blocks();
        for n in 0..blocks {
            let block = (self.next + n) % blocks;
            if let Some(slot) = self.allocate_in(block) {
                self.next = block;
                return Some(slot);
            }
        }
        None
    }

    /// Takes a free slot of the table block that describes `slot`: one write changes both records.
    pub fn allocate_beside(&mut self, slot: Slot) -> Option<Slot> {
        self.allocate_in(place_of(slot).0)
    }

    /// Whether `slot` is taken, for whatever reason; `true` if it does not exist.
    pub fn is_taken(&mut self, slot: Slot) -> bool {
        let exists = u64::from(slot.0) < self.total;
        !exists || self.word(slot).is_none_or(|(word, bit)| *word & bit != 0)
    }

    /// Gives a slot that held an entry back.
    pub fn release(&mut self, slot: Slot) {
        if !self.is_taken(slot) {
            return;
        }
        if let Some((word, bit)) = self.word(slot) {
            *word &= !bit;
            self.used -= 1;
            self.left += 1;
        }
    }

    /// Turns a slot that held an entry into a bad one.
    pub fn retire(&mut self, slot: Slot) {
        self.release(slot);
        self.set_bad(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::{vec, vec::Vec};

    /// Of `total` slots, none of them reserved.
    fn geometry(total: u64) -> Geometry {
        let g = Geometry::plan(1 << 30, 1 << 16, 8, 2).unwrap();
        assert!(total < g.usable_slots());
        Geometry {
            slots_total: total,
            ..g
        }
    }

    fn words(blocks: u64) -> Vec<u64> {
        vec![0; SlotMap::<Vec<u64>>::words_for(blocks) as usize]
    }

    fn all_of(total: u64) -> SlotMap<Vec<u64>> {
        SlotMap::new(words(total.div_ceil(126)), &geometry(total))
    }

    proptest! {
        #[test]
        fn no_slot_is_given_out_twice_and_all_are(
            total in 1u64..600, steps in proptest::collection::vec((0u8..12, any::<u32>()), 0..1500),
        ) {
            let g = geometry(total);
            let mut map = SlotMap::new(words(1), &g);
            let (mut used, mut gone) = (BTreeSet::new(), BTreeSet::new());
            for (what, n) in steps {
                let slot = Slot(n % total as u32);
                match what {
                    0 => {
                        if used.remove(&slot) { map.release(slot); }
                    }
                    1 => prop_assert_eq!(
                        map.set_bad(slot),
                        u64::from(slot.0) < map.blocks() * 126 && !used.contains(&slot) && gone.insert(slot)),
                    4 if n % 40 == 0 && map.blocks() * 126 < total => {
                        let blocks = map.blocks() + 1;
                        prop_assert_eq!(map.extend(words(blocks), &g).len() as u64, blocks * 2 - 2);
                        prop_assert_eq!(map.blocks(), blocks);
                    }
                    2 => {
                        if used.remove(&slot) { map.retire(slot); gone.insert(slot); }
                    }
                    3 if used.contains(&slot) => {
                        let beside = |s: &Slot| s.0 / 126 == slot.0 / 126;
                        match map.allocate_beside(slot) {
                            Some(new) => {
                                prop_assert!(beside(&new) && !gone.contains(&new) && used.insert(new));
                            }
                            None => {
                                let first = u64::from(slot.0) / 126 * 126;
                                let taken = used.iter().chain(&gone).filter(|s| beside(s)).count();
                                prop_assert_eq!(taken as u64, 126.min(total - first));
                            }
                        }
                    }
                    _ => match map.allocate() {
                        Some(slot) => {
                            prop_assert!(u64::from(slot.0) < total && !gone.contains(&slot));
                            prop_assert!(used.insert(slot));
                        }
                        None => prop_assert_eq!((used.len() + gone.len()) as u64, total.min(map.blocks() * 126)),
                    },
                }
                let left = total.min(map.blocks() * 126) - (used.len() + gone.len()) as u64;
                prop_assert_eq!(map.left(), left);
                prop_assert_eq!((map.used(), map.bad()), (used.len() as u64, gone.len() as u64));
            }
        }
    }

    #[test]
    fn reserved_slots_do_not_count() {
        let g = Geometry::plan(1 << 30, 480 * 8, 8, 3).unwrap();
        let reserved: BTreeSet<_> = g.reserved(0..g.slots_total).collect();
        assert_eq!((reserved.len(), g.table_blocks), (4, 4));
        let first = u64::from(reserved.first().unwrap().0) / 126;
        assert!(first > 0);
        let mut map = SlotMap::new(words(first), &g);
        let total = g.slots_total - 4;
        assert_eq!((map.usable(), map.free()), (total, total));
        let mut given = Vec::new();
        while let Some(slot) = map.allocate() {
            given.push(slot);
        }
        assert_eq!(given.len() as u64, first * 126);
        map.extend(words(g.table_blocks), &g);
        assert!(reserved.iter().all(|slot| map.is_taken(*slot)));
        while let Some(slot) = map.allocate() {
            given.push(slot);
        }
        assert_eq!((map.free(), given.len() as u64), (0, total));
        assert!(given.iter().all(|slot| !reserved.contains(slot)));
    }

    #[test]
    fn new_slots_share_a_table_block_until_it_has_none_left() {
        let mut map = all_of(200);
        assert!((0..126).all(|n| map.allocate() == Some(Slot(n))));
        assert_eq!(map.allocate_beside(Slot(0)), None);
        assert_eq!(map.allocate(), Some(Slot(126)));
        // The search goes on where the last one was, and not where another is free.
        map.release(Slot(7));
        assert_eq!(map.allocate(), Some(Slot(127)));
        assert_eq!(map.allocate_beside(Slot(30)), Some(Slot(7)));
        assert!((128..200).all(|n| map.allocate() == Some(Slot(n))));
        assert_eq!((map.allocate(), map.free()), (None, 0));
        map.release(Slot(7));
        assert_eq!(map.allocate_beside(Slot(130)), None);
        assert_eq!(map.allocate(), Some(Slot(7)));
    }
}
