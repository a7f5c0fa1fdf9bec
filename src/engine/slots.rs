// SPDX-License-Identifier: GPL-2.0

//! Which slots of the spare are free.

use super::Slot;
use core::ops::DerefMut;

/// A bitmap of slots, set: taken (by an entry, bad, or reserved).
///
/// # Invariants
///
/// `used + bad` slots below `total` and those passed to [`SlotMap::reserve`] have their bit set in
/// `words`, no other bit is set.
pub struct SlotMap<S> {
    words: S,
    total: u64,
    used: u64,
    bad: u64,
    reserved: u64,
    /// Where the search for a free slot begins: new entries share table blocks.
    next: u64,
}

impl<S: DerefMut<Target = [u64]>> SlotMap<S> {
    /// Words needed to describe `total` slots.
    pub fn words_for(total: u64) -> u64 {
        total.div_ceil(64)
    }

    /// A map of `total` free slots over `words`, all zero.
    ///
    /// Slots that `words` is too short for are never given out.
    pub fn new(words: S, total: u64) -> Self {
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

    fn set(&mut self, slot: Slot) -> bool {
        let slot = u64::from(slot.0);
        if slot >= self.total {
            return false;
        }
        let Some(word) = self.words.get_mut((slot / 64) as usize) else {
            return false;
        };
        let bit = 1 << (slot % 64);
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

    /// Takes a free slot, searching behind the one taken last.
    pub fn allocate(&mut self) -> Option<Slot> {
        let words = Self::words_for(self.total);
        let first = self.next / 64;
        // One round, the first word twice: its low bits come last.
        for n in 0..=words {
            let at = (first + n) % words.max(1);
            let word = *self.words.get(at as usize)?;
            let below = if n == 0 {
                (1u64 << (self.next % 64)) - 1
            } else {
                0
            };
            let bit = u64::from((word | below).trailing_ones());
            let slot = at * 64 + bit;
            if bit < 64 && slot < self.total {
                let slot = Slot(u32::try_from(slot).ok()?);
                self.next = (u64::from(slot.0) + 1) % self.total;
                return self.take(slot).then_some(slot);
            }
        }
        None
    }

    /// Gives a slot that held an entry back.
    pub fn release(&mut self, slot: Slot) {
        if let Some(word) = self.words.get_mut((slot.0 / 64) as usize) {
            let bit = 1 << (slot.0 % 64);
            if *word & bit != 0 {
                *word &= !bit;
                self.used -= 1;
            }
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
            total in 1u64..300, steps in proptest::collection::vec((0u8..8, any::<u32>()), 0..700),
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
        assert!(map.reserve(Slot(69)) && !map.reserve(Slot(70)));
        assert_eq!((map.total(), map.free()), (69, 69));
        for _ in 0..69 {
            assert!(map.allocate().is_some_and(|s| s.0 < 69));
        }
        assert_eq!((map.allocate(), map.free()), (None, 0));
    }
}
