// SPDX-License-Identifier: GPL-2.0

//! How the entries lie in memory.
//!
//! A **filter** has one bit for each **group** of a few neighbouring units, set once a unit of the group has
//! an entry: a request whose groups' bits are clear meets none, and that decides the healthy path. The
//! entries themselves lie in **regions**, each an immutable sorted slice of words, one or two an entry,
//! searched by bisection. Group n belongs to region n modulo their number: so entries that lie side by side,
//! as a scratch on a platter makes them, are in different regions, no slice grows long, and a change, which
//! makes a new slice, copies little however many entries there are.
//!
//! The numbers of groups and regions follow from the number of slots, that is of entries that there can be.
//! docs/performance.md has the comparison with other structures.

use super::{geometry::Geometry, Slot, Unit};

/// Entries a region, at most, if all slots are in use and evenly spread.
const ENTRIES_PER_REGION: u64 = 16;
/// Bits of the filter for each slot, at least: with all slots in use one group in so many has its bit set.
const BITS_PER_SLOT: u64 = 16;
/// The largest group: 2^6 units.
const MAX_GROUP_SHIFT: u32 = 6;

/// What is known about one unit that is not healthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The unit.
    pub unit: Unit,
    /// Where its sectors go.
    pub slot: Slot,
    /// Bit i set: sector i of the unit is held by the slot. No bit set: pending.
    pub mask: u64,
    /// Bit i set: sector i was in a slot that failed. Nobody has it until it is written again, and
    /// what main has is older. Never a bit of `mask`.
    pub lost: u64,
    /// A change is under way, or could not be committed: writes must not go on before it is.
    pub held: bool,
}

impl Entry {
    /// An entry whose other sectors are on main.
    pub fn new(unit: Unit, slot: Slot, mask: u64) -> Self {
        Self {
            unit,
            slot,
            mask,
            lost: 0,
            held: false,
        }
    }
}

/// Sectors that a failed slot took with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Loss {
    /// Their unit.
    pub unit: Unit,
    /// The sectors of the unit. Those that were written since are not lost any more.
    pub mask: u64,
    /// The slot, whose record says so.
    pub slot: Slot,
}

/// The sectors of `unit` in `losses`.
pub fn lost_of(losses: &[Loss], unit: Unit) -> u64 {
    let of_unit = losses.iter().filter(|l| l.unit == unit);
    of_unit.fold(0, |lost, l| lost | l.mask)
}

const HELD: u64 = 1;
const LOST: u64 = 2;
/// Where the mask begins in an entry of one word.
const MASK_SHIFT: u32 = 2;
/// Bits of a mask in an entry of one word.
const MASK_BITS: u32 = 16;

/// Where the entries of a target lie, and what their words mean.
///
/// From its lowest bit, a word has: [`HELD`], [`LOST`], the mask, the slot, the key. The key is what the
/// region leaves open of the unit, and ascends with it. Where the mask needs more than 16 bits, or key and
/// slot leave it less, it has a word of its own, the second of two.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    group_shift: u32,
    region_shift: u32,
    slot_shift: u32,
    key_shift: u32,
    /// Base-2 logarithm of the words an entry.
    stride_shift: u32,
    units: u64,
}

impl Layout {
    /// For a target of `geometry`, which has been checked.
    pub fn new(geometry: &Geometry) -> Self {
        let units = geometry.units();
        let entries = geometry.slots_total.min(units).max(1);
        let times = units / entries.saturating_mul(BITS_PER_SLOT);
        let group_shift = times.checked_ilog2().unwrap_or(0).min(MAX_GROUP_SHIFT);
        let regions = entries.div_ceil(ENTRIES_PER_REGION).next_power_of_two();
        let region_shift = regions.ilog2();
        let bits = |largest: u64| u64::BITS.saturating_sub(largest.leading_zeros());
        let slot_bits = bits(geometry.slots_total.saturating_sub(1)).max(1);
        let mut layout = Self {
            group_shift,
            region_shift,
            slot_shift: MASK_SHIFT.saturating_add(MASK_BITS),
            key_shift: 0,
            stride_shift: 0,
            units,
        };
        let (_, last) = layout.place(Unit(units.saturating_sub(1)));
        let needed = layout
            .slot_shift
            .saturating_add(slot_bits)
            .saturating_add(bits(last));
        if geometry.unit_sectors > MASK_BITS || needed > u64::BITS {
            // 2^54 sectors, the most that a device can have, leave 5 bits of 64.
            layout.slot_shift = MASK_SHIFT;
            layout.stride_shift = 1;
        }
        layout.key_shift = layout.slot_shift.saturating_add(slot_bits);
        layout
    }

    /// Bits of the filter.
    pub fn groups(&self) -> u64 {
        self.group_of(Unit(self.units.saturating_sub(1)))
            .saturating_add(1)
    }

    /// How many regions there are.
    pub fn regions(&self) -> usize {
        1_usize.wrapping_shl(self.region_shift)
    }

    /// Base-2 logarithm of the units in a group.
    pub fn group_shift(&self) -> u32 {
        self.group_shift
    }

    /// Words an entry: 1 or 2.
    pub fn stride(&self) -> usize {
        1_usize.wrapping_shl(self.stride_shift)
    }

    /// The group of `unit`.
    pub fn group_of(&self, unit: Unit) -> u64 {
        unit.0.wrapping_shr(self.group_shift)
    }

    /// The first unit of `group` and the last.
    pub fn units_of(&self, group: u64) -> (Unit, Unit) {
        let first = group.wrapping_shl(self.group_shift);
        (Unit(first), Unit(first | self.group_mask()))
    }

    fn group_mask(&self) -> u64 {
        1_u64.wrapping_shl(self.group_shift).wrapping_sub(1)
    }

    /// The region of `unit`, and its key there.
    pub fn place(&self, unit: Unit) -> (usize, u64) {
        let group = self.group_of(unit);
        let region = group as usize & self.regions().wrapping_sub(1);
        let high = group
            .wrapping_shr(self.region_shift)
            .wrapping_shl(self.group_shift);
        (region, high | unit.0 & self.group_mask())
    }

    fn unit(&self, region: usize, key: u64) -> Unit {
        let high = key
            .wrapping_shr(self.group_shift)
            .wrapping_shl(self.region_shift);
        let group = high | region as u64;
        Unit(group.wrapping_shl(self.group_shift) | key & self.group_mask())
    }

    /// The words of `entry`, [`Self::stride`] of which count.
    pub fn pack(&self, entry: &Entry) -> [u64; 2] {
        let flag = |bit, set: bool| if set { bit } else { 0 };
        let (_, key) = self.place(entry.unit);
        let word = key.wrapping_shl(self.key_shift)
            | u64::from(entry.slot.0).wrapping_shl(self.slot_shift)
            | flag(HELD, entry.held)
            | flag(LOST, entry.lost != 0);
        if self.stride_shift == 0 {
            [word | entry.mask << MASK_SHIFT, 0]
        } else {
            [word, entry.mask]
        }
    }

    /// Entry `index` of `words`, which are those of `region`. `losses` is asked for if need be.
    #[inline]
    pub fn entry<'a>(
        &self,
        region: usize,
        words: &[u64],
        index: usize,
        losses: impl FnOnce() -> &'a [Loss],
    ) -> Option<Entry> {
        let at = index.wrapping_shl(self.stride_shift);
        let word = *words.get(at)?;
        let mask = if self.stride_shift == 0 {
            word >> MASK_SHIFT & ((1 << MASK_BITS) - 1)
        } else {
            *words.get(at.wrapping_add(1))?
        };
        let unit = self.unit(region, word.wrapping_shr(self.key_shift));
        let slot_bits = self.key_shift.wrapping_sub(self.slot_shift);
        let slot =
            word.wrapping_shr(self.slot_shift) & 1_u64.wrapping_shl(slot_bits).wrapping_sub(1);
        let lost = match word & LOST {
            0 => 0,
            _ => lost_of(losses(), unit) & !mask,
        };
        Some(Entry {
            unit,
            slot: Slot(slot as u32),
            mask,
            lost,
            held: word & HELD != 0,
        })
    }

    /// The index in `words` of the first entry whose key is `key` or above. O(log n).
    #[inline]
    pub fn find(&self, words: &[u64], key: u64) -> usize {
        // `partition_point`, but with nothing in it that could panic: this is on `map`'s path.
        let (mut from, mut to) = (0, words.len().wrapping_shr(self.stride_shift));
        while from < to {
            let middle = from.wrapping_add(to) / 2;
            match words.get(middle.wrapping_shl(self.stride_shift)) {
                Some(word) if word.wrapping_shr(self.key_shift) < key => {
                    from = middle.wrapping_add(1)
                }
                _ => to = middle,
            }
        }
        from
    }

    /// The words before those of `unit` and behind them, of its region's `words`.
    pub fn around<'a>(&self, words: &'a [u64], unit: Unit) -> (&'a [u64], &'a [u64]) {
        let (_, key) = self.place(unit);
        let at = |key| self.find(words, key).wrapping_shl(self.stride_shift);
        let before = words.get(..at(key)).unwrap_or(words);
        let behind = words.get(at(key.wrapping_add(1))..).unwrap_or(&[]);
        (before, behind)
    }
}

/// Sorts `entries` by unit, in place, O(n log n): heap sort.
///
/// `core`'s own sort calls a panic function that objtool does not know for one that never returns.
pub fn sort_by_unit(entries: &mut [Entry]) {
    let unit = |entries: &[Entry], at: usize| entries.get(at).map(|e| e.unit);
    // Moves the entry at `root` down until both below it are smaller.
    let sift = |heap: &mut [Entry], mut root: usize| loop {
        let left = root.saturating_mul(2).saturating_add(1);
        let right = left.saturating_add(1);
        let larger = if unit(heap, right) > unit(heap, left) {
            right
        } else {
            left
        };
        if unit(heap, larger) <= unit(heap, root) {
            return;
        }
        heap.swap(root, larger);
        root = larger;
    };
    for root in (0..entries.len() / 2).rev() {
        sift(entries, root);
    }
    for end in (1..entries.len()).rev() {
        entries.swap(0, end);
        if let Some(heap) = entries.get_mut(..end) {
            sift(heap, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn sorting_is_that_of_the_standard_library(units in proptest::collection::vec(0u64..500, 0..300)) {
            let mut entries: Vec<Entry> = units.iter().enumerate()
                .map(|(n, u)| Entry::new(Unit(*u), Slot(n as u32), 0)).collect();
            sort_by_unit(&mut entries);
            let mut expected = units;
            expected.sort_unstable();
            prop_assert!(entries.iter().map(|e| e.unit.0).eq(expected));
        }

        #[test]
        fn units_have_places_of_their_own(
            spare in 1u64..1 << 26, times in 1u64..5000, shift in 0u32..=6, probe in any::<u64>(),
        ) {
            let spare = spare.max(64);
            let Ok(g) = Geometry::plan((spare * times) & !63, spare, 1 << shift, 2) else { return Ok(()) };
            let layout = Layout::new(&g);
            let unit = Unit(probe % g.units());
            let (region, key) = layout.place(unit);
            prop_assert!(region < layout.regions());
            prop_assert_eq!(layout.unit(region, key), unit);
            prop_assert!(layout.group_of(unit) < layout.groups());
            let (first, last) = layout.units_of(layout.group_of(unit));
            prop_assert!(first <= unit && unit <= last && last.0 - first.0 < 64);
            // Neighbours of other groups are in other regions, and keys ascend.
            let next = layout.place(Unit(last.0 + 1));
            prop_assert!(layout.regions() == 1 || next.0 != region);
            prop_assert!(key < layout.place(Unit(unit.0 + (layout.regions() as u64) * 64)).1);
            let entry = Entry {
                lost: 0, held: probe & 1 != 0, ..Entry::new(
                    unit, Slot((probe % g.slots_total) as u32), probe & g.unit_mask(Unit(0)))
            };
            let words = layout.pack(&entry);
            let none = || -> &[Loss] { &[] };
            prop_assert_eq!(layout.entry(region, &words[..layout.stride()], 0, none), Some(entry));
            // What DESIGN.md allows, slices and their rounding apart.
            let fixed = layout.groups() / 8 + layout.regions() as u64 * 8;
            prop_assert!(fixed <= g.units() / 8 + g.slots_total + 64);
            prop_assert!(fixed <= 5 * g.slots_total.min(g.units()) + g.units() / 512 + 64);
            prop_assert_eq!(layout.stride(), if g.unit_sectors > 16 { 2 } else { 1 });
        }

        #[test]
        fn updates_and_lookups_agree_with_a_map(
            wide in any::<bool>(), start in 0u64..1 << 30,
            steps in proptest::collection::vec((0u64..40, any::<Option<(u32, u64, u64, bool)>>(), 0u64..45), 0..80),
        ) {
            let g = Geometry::plan(1 << 40, 1 << 20, if wide { 32 } else { 8 }, 2).unwrap();
            let layout = Layout::new(&g);
            prop_assert_eq!(layout.stride(), if wide { 2 } else { 1 });
            let (region, first) = layout.place(Unit(start));
            let unit_at = |n: u64| layout.unit(region, (first & !layout.group_mask()) + n);
            let mut words: Vec<u64> = Vec::new();
            let mut model = BTreeMap::new();
            let mut losses = Vec::new();
            for (n, new, probe) in steps {
                let unit = unit_at(n);
                let new = new.map(|(slot, mask, lost, held)| {
                    let slot = Slot(slot % g.slots_total as u32);
                    let mask = mask & g.unit_mask(unit);
                    let lost = lost & g.unit_mask(unit) & !mask;
                    losses.retain(|l: &Loss| l.unit != unit);
                    losses.push(Loss { unit, mask: lost, slot });
                    Entry { lost, held, ..Entry::new(unit, slot, mask) }
                });
                let (before, behind) = layout.around(&words, unit);
                let packed = new.map(|e| layout.pack(&e));
                let packed = packed.as_ref().map_or(&[][..], |p| &p[..layout.stride()]);
                words = [before, packed, behind].concat();
                match new {
                    Some(e) => model.insert(unit, e),
                    None => model.remove(&unit),
                };
                prop_assert_eq!(words.len(), model.len() * layout.stride());
                let from = unit_at(probe);
                let expected = model.range(from..).next().map(|(_, e)| *e);
                let index = layout.find(&words, layout.place(from).1);
                prop_assert_eq!(layout.entry(region, &words, index, || &losses), expected);
            }
        }
    }
}
