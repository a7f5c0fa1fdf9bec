// SPDX-License-Identifier: GPL-2.0

//! Which slots of the spare are free.

use super::{geometry::RECORDS_PER_BLOCK, Slot};
use core::ops::DerefMut;

/// A bitmap of slots, set: taken (by an entry, bad, or reserved). Two words for each table block.
///
/// # Invariants
///
/// The bits of `used + bad` slots below `total`, of those passed to [`SlotMap::reserve`], and those
/// that stand for no slot are set in `words`, no other bit is.
pub struct SlotMap<S> {
    words: S,
    total: u64,
    used: u64,
    bad: u64,
    reserved: u64,
    /// The table block where the search for a free slot begins: new entries share table blocks.
    next: u64,
}

/// The two words of the table block that describes `slot`, and the slot's bit in them.
fn place_of(slot: Slot) -> (u64, u64) {
    let slot = u64::from(slot.0);
    (slot / RECORDS_PER_BLOCK, slot % RECORDS_PER_BLOCK)
}

impl<S: DerefMut<Target = [u64]>> SlotMap<S> {
    /// Words needed to describe `total` slots.
    pub fn words_for(total: u64) -> u64 {
        2 * total.div_ceil(RECORDS_PER_BLOCK)
    }

    /// A map of `total` free slots over `words`, all zero.
    ///
    /// Slots that `words` is too short for are never given out.
    pub fn new(mut words: S, total: u64) -> Self {
        for (block, pair) in (0..).zip(words.chunks_exact_mut(2)) {
            let exist = total.saturating_sub(block * RECORDS_PER_BLOCK);
            for (word, first) in pair.iter_mut().zip([0, 64]) {
                let exist = exist.min(RECORDS_PER_BLOCK).saturating_sub(first);
                *word = match exist {
                    0..64 => !((1 << exist) - 1),
                    _ => 0,
                };
            }
        }
        Self {
            words,
            total,
            used: 0,
            bad: 0,
            reserved: 0,
            next: 0,
        }
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
    pub fn total(&self) -> u64 {
        self.total - self.reserved
    }

    /// Slots left to give out.
    pub fn free(&self) -> u64 {
        self.total() - self.used - self.bad
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

    /// Marks `slot` as none that data may be in; `false` if it does not exist or is taken.
    pub fn reserve(&mut self, slot: Slot) -> bool {
        let taken = self.set(slot);
        self.reserved += u64::from(taken);
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

    /// Takes a free slot, from the block where the last one was if that has any left.
    pub fn allocate(&mut self) -> Option<Slot> {
        let blocks = self.total.div_ceil(RECORDS_PER_BLOCK);
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

    proptest! {
        #[test]
        fn no_slot_is_given_out_twice_and_all_are(
            total in 1u64..600, steps in proptest::collection::vec((0u8..8, any::<u32>()), 0..1500),
        ) {
            let words = vec![0u64; SlotMap::<Vec<u64>>::words_for(total) as usize];
            let mut map = SlotMap::new(words, total);
            let (mut used, mut gone) = (BTreeSet::new(), BTreeSet::new());
            for (what, n) in steps {
                let slot = Slot(n % total as u32);
                match what {
                    0 => {
                        if used.remove(&slot) { map.release(slot); }
                    }
                    1 => prop_assert_eq!(
                        map.set_bad(slot), !used.contains(&slot) && gone.insert(slot)),
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
                        None => prop_assert_eq!((used.len() + gone.len()) as u64, total),
                    },
                }
                prop_assert_eq!((map.used(), map.bad()), (used.len() as u64, gone.len() as u64));
            }
        }
    }

    #[test]
    fn reserved_slots_do_not_count() {
        let mut map = SlotMap::new(vec![0u64; 2], 70);
        assert!(map.is_taken(Slot(70)) && !map.is_taken(Slot(69)));
        assert!(map.reserve(Slot(69)) && !map.reserve(Slot(70)));
        assert_eq!((map.total(), map.free()), (69, 69));
        for _ in 0..69 {
            assert!(map.allocate().is_some_and(|s| s.0 < 69));
        }
        assert_eq!((map.allocate(), map.free()), (None, 0));
    }

    #[test]
    fn new_slots_share_a_table_block_until_it_has_none_left() {
        let mut map = SlotMap::new(vec![0u64; 4], 200);
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
