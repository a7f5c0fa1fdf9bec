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
//! The numbers of groups and regions follow from the number of slots whose table blocks are in use when a table is loaded, that
//! is of entries that there can be without more of them. Entries that are added later make the filter denser and regions
//! longer, until the next load.
//! docs/performance.md has the comparison with other structures.

use super::{
    geometry::{mask_of, Geometry},
    Slot, Unit,
};

/// Slots that there is room for, at least, if there are so many: 1 MiB of filter.
const LEAST_SLOTS: u64 = 1 << 18;
/// Entries a region, at most, if all slots are in use and evenly spread.
const ENTRIES_PER_REGION: u64 = 16;
/// Bits of the filter for each slot, at least: with all slots in use one group in so many has its bit set.
const BITS_PER_SLOT: u64 = 32;
/// If more units than one in so many have an entry, regions grow longer than that.
const UNITS_PER_ENTRY: u64 = 16;
/// The largest group: 2^6 units, if that keeps the filter below [`MAX_GROUPS`].
const MAX_GROUP_SHIFT: u32 = 6;
/// Bits of the filter, at most: 512 MiB. More than 2 GiB cannot be allocated in one piece.
const MAX_GROUPS: u64 = 1 << 32;
/// Regions, at most: 1 GiB of pointers. More entries than 2^31 make them longer.
const MAX_REGIONS: u64 = 1 << 27;

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
    /// Pending, made by a failed read: a write that finds no other free slot takes this one's.
    pub yields: bool,
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
            yields: false,
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

/// Something of one unit, that lies in a list sorted by units.
pub trait OfUnit {
    /// The unit.
    fn unit(&self) -> Unit;
}

impl OfUnit for Entry {
    fn unit(&self) -> Unit {
        self.unit
    }
}

impl OfUnit for Loss {
    fn unit(&self) -> Unit {
        self.unit
    }
}

/// Those of `unit` in `list`, which is sorted by unit. O(log n).
#[inline]
pub fn those_of<T: OfUnit>(list: &[T], unit: Unit) -> &[T] {
    let is = |at: usize, below: fn(&Unit, &Unit) -> bool| {
        list.get(at).is_some_and(|item| below(&item.unit(), &unit))
    };
    let from = bisect(list.len(), |at| is(at, Unit::lt));
    let to = bisect(list.len(), |at| is(at, Unit::le));
    list.get(from..to).unwrap_or(&[])
}

/// The losses of `unit` in `losses`, which are sorted by unit. O(log n).
pub fn losses_of(losses: &[Loss], unit: Unit) -> &[Loss] {
    those_of(losses, unit)
}

/// The sectors of `unit` in `losses`, which are sorted by unit.
pub fn lost_of(losses: &[Loss], unit: Unit) -> u64 {
    let of_unit = losses_of(losses, unit).iter();
    of_unit.fold(0, |lost, l| lost | l.mask)
}

const HELD: u64 = 1;
const LOST: u64 = 2;
const YIELDS: u64 = 4;
/// Where the mask begins in an entry of one word.
const MASK_SHIFT: u32 = 3;
/// Bits of a mask in an entry of one word.
const MASK_BITS: u32 = 16;
/// Where the slot begins in the first of two words: behind it, no key is closer to the lowest bit than in a sector's number.
const WIDE_SLOT_SHIFT: u32 = 6;
/// As many words are looked at one after the other, where bios go: more are halved before.
const FEW_WORDS: usize = ENTRIES_PER_REGION as usize;

/// Where the entries of a target lie, and what their words mean.
///
/// From its lowest bit, a word has: [`HELD`], [`LOST`], [`YIELDS`], the sectors that the slot has not, the slot, the key. The key
/// is what the region leaves open of the unit, and ascends with it. Where the sectors need more than 16 bits, or key and
/// slot leave them less, the mask is a word of its own, the second of two.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    group_shift: u32,
    group_mask: u64,
    region_shift: u32,
    region_mask: u64,
    slot_shift: u32,
    slot_mask: u64,
    key_shift: u32,
    /// Two words an entry instead of one.
    wide: bool,
    units: u64,
    /// Sectors of a unit less 1.
    offset_mask: u64,
    /// What makes a key of a sector's number, in its place in a word.
    sector_group_shift: u32,
    high_turn: u32,
    high_mask: u64,
    low_shift: u32,
    low_mask: u64,
    /// All below the key.
    below_key: u64,
    /// The mask of all sectors, and in an entry of one word what is clear if all are in the slot and it is not held.
    unit_mask: u64,
    exceptions: u64,
}

impl Layout {
    /// For a target of `geometry`, which has been checked, with so many table blocks in use.
    pub fn new(geometry: &Geometry, in_use: u64) -> Self {
        let units = geometry.units();
        // A spare that is large, or large for its main device, is not to cost memory for what will not happen.
        let slots = geometry
            .slots_of(in_use)
            .max(LEAST_SLOTS)
            .min(geometry.slots_total);
        let entries = slots.min(units / UNITS_PER_ENTRY).max(1);
        let times = units / entries.saturating_mul(BITS_PER_SLOT);
        let least = units
            .div_ceil(MAX_GROUPS)
            .checked_next_power_of_two()
            .map_or(0, u64::ilog2);
        let group_shift = times
            .checked_ilog2()
            .unwrap_or(0)
            .min(MAX_GROUP_SHIFT)
            .max(least);
        let regions = entries
            .div_ceil(ENTRIES_PER_REGION)
            .min(MAX_REGIONS)
            .next_power_of_two();
        let bits = |largest: u64| u64::BITS.saturating_sub(largest.leading_zeros());
        let slot_bits = bits(geometry.slots_total.saturating_sub(1)).max(1);
        let unit_shift = geometry.unit_shift();
        // With so many, a key finds its place, whatever the sizes of the devices.
        let needed = WIDE_SLOT_SHIFT
            .saturating_add(slot_bits)
            .saturating_add(bits(units.saturating_sub(1)));
        let region_shift = regions.ilog2().max(needed.saturating_sub(u64::BITS));
        let mask = |shift: u32| 1_u64.wrapping_shl(shift).wrapping_sub(1);
        let mut layout = Self {
            group_shift,
            group_mask: mask(group_shift),
            region_shift,
            region_mask: mask(region_shift),
            slot_shift: MASK_SHIFT.saturating_add(MASK_BITS),
            slot_mask: mask(slot_bits),
            key_shift: 0,
            wide: false,
            units,
            offset_mask: u64::from(geometry.unit_sectors).wrapping_sub(1),
            sector_group_shift: unit_shift.saturating_add(group_shift),
            high_turn: 0,
            high_mask: 0,
            low_shift: 0,
            low_mask: 0,
            below_key: 0,
            unit_mask: mask_of(0, geometry.unit_sectors),
            exceptions: 0,
        };
        let (_, last) = layout.place(Unit(units.saturating_sub(1)));
        let key_bits = bits(last).max(group_shift);
        let needed = layout
            .slot_shift
            .saturating_add(slot_bits)
            .saturating_add(key_bits);
        if geometry.unit_sectors > MASK_BITS || needed > u64::BITS {
            layout.slot_shift = WIDE_SLOT_SHIFT;
            layout.wide = true;
        }
        let key_shift = layout.slot_shift.saturating_add(slot_bits);
        layout.key_shift = key_shift;
        layout.below_key = mask(key_shift);
        layout.low_shift = key_shift.wrapping_sub(unit_shift);
        layout.low_mask = layout.group_mask.wrapping_shl(key_shift);
        layout.high_turn = layout.low_shift.wrapping_sub(region_shift);
        layout.high_mask = mask(key_bits).wrapping_shl(key_shift) & !layout.low_mask;
        layout.exceptions = layout.unit_mask.wrapping_shl(MASK_SHIFT) | HELD;
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
        if self.wide {
            2
        } else {
            1
        }
    }

    /// The group of `unit`.
    pub fn group_of(&self, unit: Unit) -> u64 {
        unit.0.wrapping_shr(self.group_shift)
    }

    /// The first unit of `group` and the last.
    pub fn units_of(&self, group: u64) -> (Unit, Unit) {
        let first = group.wrapping_shl(self.group_shift);
        (Unit(first), Unit(first | self.group_mask))
    }

    /// The region of `unit`, and its key there.
    #[inline]
    pub fn place(&self, unit: Unit) -> (usize, u64) {
        let group = self.group_of(unit);
        let region = (group & self.region_mask) as usize;
        let high = group
            .wrapping_shr(self.region_shift)
            .wrapping_shl(self.group_shift);
        (region, high | unit.0 & self.group_mask)
    }

    /// The region of the unit of `sector`, and the least that the word of its entry can be: as [`Self::place`], in fewer steps.
    ///
    /// From its lowest bit, a sector's number has: its place in the unit, the unit's in the group, the region, the rest. The unit's
    /// place and the rest are the key, side by side.
    #[inline(always)]
    pub fn locate(&self, sector: u64) -> (usize, u64) {
        let group = sector.wrapping_shr(self.sector_group_shift);
        let high = sector.rotate_left(self.high_turn) & self.high_mask;
        let low = sector.wrapping_shl(self.low_shift) & self.low_mask;
        ((group & self.region_mask) as usize, high | low)
    }

    /// How many sectors of its unit are behind `sector`.
    #[inline(always)]
    pub fn behind(&self, sector: u64) -> u64 {
        !sector & self.offset_mask
    }

    fn unit(&self, region: usize, key: u64) -> Unit {
        let high = key
            .wrapping_shr(self.group_shift)
            .wrapping_shl(self.region_shift);
        let group = high | region as u64;
        Unit(group.wrapping_shl(self.group_shift) | key & self.group_mask)
    }

    /// The words of `entry`, [`Self::stride`] of which count.
    pub fn pack(&self, entry: &Entry) -> [u64; 2] {
        let (_, key) = self.place(entry.unit);
        self.pack_at(key, entry)
    }

    /// As [`Self::pack`], of an entry whose key is known.
    #[inline]
    pub fn pack_at(&self, key: u64, entry: &Entry) -> [u64; 2] {
        let flag = |bit, set: bool| if set { bit } else { 0 };
        let word = key.wrapping_shl(self.key_shift)
            | u64::from(entry.slot.0).wrapping_shl(self.slot_shift)
            | flag(HELD, entry.held)
            | flag(LOST, entry.lost != 0)
            | flag(YIELDS, entry.yields);
        if !self.wide {
            [word | (entry.mask ^ self.unit_mask) << MASK_SHIFT, 0]
        } else {
            [word, entry.mask]
        }
    }

    /// The word of entry `index` of `words` with its key, and its mask.
    #[inline]
    fn read(&self, words: &[u64], index: usize) -> Option<(u64, u64)> {
        if self.wide {
            match words.get(index.wrapping_mul(2)..) {
                Some([word, mask, ..]) => Some((*word, *mask)),
                _ => None,
            }
        } else {
            let word = *words.get(index)?;
            Some((word, !(word >> MASK_SHIFT) & self.unit_mask))
        }
    }

    #[inline]
    fn slot_of(&self, word: u64) -> Slot {
        Slot((word.wrapping_shr(self.slot_shift) & self.slot_mask) as u32)
    }

    /// Entry `index` of `words`, which are those of `region`. `losses`, sorted by unit, is asked for if need
    /// be.
    #[inline]
    pub fn entry<'a>(
        &self,
        region: usize,
        words: &[u64],
        index: usize,
        losses: impl FnOnce() -> &'a [Loss],
    ) -> Option<Entry> {
        let (word, mask) = self.read(words, index)?;
        let unit = self.unit(region, word.wrapping_shr(self.key_shift));
        let lost = match word & LOST {
            0 => 0,
            _ => lost_of(losses(), unit) & !mask,
        };
        Some(Entry {
            unit,
            slot: self.slot_of(word),
            mask,
            lost,
            held: word & HELD != 0,
            yields: word & YIELDS != 0,
        })
    }

    /// The entry of the unit whose word is not below `least` ([`Self::locate`]): its slot, if that has the `count` sectors from the one
    /// on that has `behind` behind it ([`Self::behind`]), and the entry is not held. `None`: there is no entry. O(log n).
    ///
    /// `count` is from 1 to `behind + 1`.
    #[inline]
    pub fn slot(&self, words: &[u64], least: u64, behind: u64, count: u32) -> Option<Option<Slot>> {
        let (word, mask) = self.read(words, self.index_of(words, least))?;
        // Without its key, if that is the one of `least`.
        let word = word.wrapping_sub(least);
        if word > self.below_key {
            return None;
        }
        // As `mask_of`, in a unit.
        let bits = u64::MAX
            .wrapping_shr(u64::BITS.wrapping_sub(count))
            .wrapping_shl(self.offset_mask.wrapping_sub(behind) as u32);
        let is_there = word & HELD == 0 && mask & bits == bits;
        Some(is_there.then(|| self.slot_of(word)))
    }

    /// As [`Self::slot`], of entries of one word, where that takes few instructions. `Some(None)` where it does not, too.
    #[inline(always)]
    pub fn slot_at_once(&self, words: &[u64], least: u64) -> Option<Option<Slot>> {
        let mut words = words;
        while words.len() > FEW_WORDS {
            let (low, high) = words.split_at_checked(words.len() / 2)?;
            let is_behind = low.last().is_some_and(|last| *last < least);
            words = if is_behind { high } else { low };
        }
        let word = first_from(words, least)?.wrapping_sub(least);
        if word > self.below_key {
            return None;
        }
        let is_plain = word & self.exceptions == 0;
        Some(is_plain.then_some(Slot((word >> (MASK_SHIFT + MASK_BITS)) as u32)))
    }

    /// The index in `words` of the first entry whose key is `key` or above. O(log n).
    #[inline]
    pub fn find(&self, words: &[u64], key: u64) -> usize {
        // All that is below the key in a word is less than one of it.
        self.index_of(words, key.wrapping_shl(self.key_shift))
    }

    /// The index in `words` of the first entry whose word is `least` or above.
    #[inline]
    fn index_of(&self, words: &[u64], least: u64) -> usize {
        let is_below = |at: usize| words.get(at).is_some_and(|word| *word < least);
        if self.wide {
            bisect(words.len() / 2, |at| is_below(at.wrapping_mul(2)))
        } else {
            bisect(words.len(), is_below)
        }
    }

    /// The words before those of `unit` and behind them, of its region's `words`.
    pub fn around<'a>(&self, words: &'a [u64], unit: Unit) -> (&'a [u64], &'a [u64]) {
        let (_, key) = self.place(unit);
        let index = self.find(words, key);
        let at = index.wrapping_mul(self.stride());
        let word = self.read(words, index).map(|(word, _)| word);
        let found = word.is_some_and(|word| word.wrapping_shr(self.key_shift) == key);
        let behind = at.wrapping_add(if found { self.stride() } else { 0 });
        let (before, _) = words.split_at_checked(at).unwrap_or((words, &[]));
        (before, words.get(behind..).unwrap_or(&[]))
    }
}

/// The first of ascending `words` that is not below `least`. O(n), but few instructions for few words.
#[inline(always)]
fn first_from(mut words: &[u64], least: u64) -> Option<u64> {
    // As one that is not below is known to be among them.
    let of_four = |[a, b, c, d]: [u64; 4]| {
        if a >= least {
            a
        } else if b >= least {
            b
        } else if c >= least {
            c
        } else {
            d
        }
    };
    while let Some((&[a, b, c, d, e, f, g, h], behind)) = words.split_first_chunk() {
        if h >= least {
            let is_early = d >= least;
            return Some(if is_early {
                of_four([a, b, c, d])
            } else {
                of_four([e, f, g, h])
            });
        }
        words = behind;
    }
    if let Some((&[a, b, c, d], behind)) = words.split_first_chunk() {
        if d >= least {
            return Some(of_four([a, b, c, d]));
        }
        words = behind;
    }
    words.iter().copied().find(|word| *word >= least)
}

/// The first of `count` ascending things that is not below what is looked for.
///
/// `partition_point`, but with nothing in it that could panic: this is on the way of bios.
#[inline(always)]
fn bisect(count: usize, is_below: impl Fn(usize) -> bool) -> usize {
    let (mut from, mut to) = (0_usize, count);
    while from < to {
        let middle = from.wrapping_add(to) / 2;
        if is_below(middle) {
            from = middle.wrapping_add(1);
        } else {
            to = middle;
        }
    }
    from
}

/// Sorts `list` by unit, and leaves those of one unit in their order: O(n), times the bytes in which the units differ.
/// `scratch`, of the same length, is overwritten.
///
/// `core`'s own sorts call a panic function that objtool does not know for one that never returns.
pub fn sort_by_unit<T: OfUnit + Copy>(list: &mut [T], scratch: &mut [T]) {
    let first = list.first().map_or(0, |item| item.unit().0);
    let differ = list.iter().fold(0, |all, item| all | item.unit().0 ^ first);
    let mut is_in_scratch = false;
    let (mut from, mut to) = (&mut *list, &mut *scratch);
    for byte in 0..size_of::<u64>() {
        let digit = |unit: Unit| {
            unit.0
                .to_le_bytes()
                .get(byte)
                .copied()
                .map_or(0, usize::from)
        };
        if digit(Unit(differ)) == 0 {
            continue;
        }
        // Of each digit, how many there are; then, where the next one goes. There are at most 2^32 slots.
        let mut places = [0_u32; 256];
        for item in from.iter() {
            if let Some(count) = places.get_mut(digit(item.unit())) {
                *count = count.wrapping_add(1);
            }
        }
        let mut next = 0_u32;
        for place in &mut places {
            (*place, next) = (next, next.wrapping_add(*place));
        }
        for item in from.iter() {
            if let Some(place) = places.get_mut(digit(item.unit())) {
                if let Some(to) = to.get_mut(*place as usize) {
                    *to = *item;
                }
                *place = place.wrapping_add(1);
            }
        }
        core::mem::swap(&mut from, &mut to);
        is_in_scratch = !is_in_scratch;
    }
    if is_in_scratch {
        list.iter_mut()
            .zip(scratch)
            .for_each(|(to, from)| *to = *from);
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
        fn sorting_is_that_of_the_standard_library(
            units in proptest::collection::vec(any::<u64>(), 0..300), few in 1u64..500, shift in 0u32..64,
        ) {
            // Far apart; many of the same; few bits in which they differ, wherever they are; sorted backwards.
            let same: Vec<u64> = units.iter().map(|u| u % few).collect();
            let near = units.iter().map(|u| (u % 512) << shift).collect();
            let mut backwards = same.clone();
            backwards.sort_unstable_by(|a, b| b.cmp(a));
            for units in [units, same, near, backwards] {
                let mut sorted: Vec<Entry> = units.iter().enumerate()
                    .map(|(n, u)| Entry::new(Unit(*u), Slot(n as u32), 0)).collect();
                let mut expected = sorted.clone();
                expected.sort_by_key(|e| e.unit);
                let mut scratch = sorted.clone();
                sort_by_unit(&mut sorted, &mut scratch);
                prop_assert_eq!(sorted, expected);
            }
        }

        #[test]
        fn losses_are_found_by_their_unit(
            units in proptest::collection::vec((0u64..40, any::<u64>()), 0..60), more in any::<u64>(),
        ) {
            let mut losses: Vec<Loss> = (0..).zip(&units)
                .map(|(n, (unit, mask))| Loss { unit: Unit(*unit), mask: *mask, slot: Slot(n) }).collect();
            losses.push(Loss { unit: Unit(u64::MAX), mask: 1, slot: Slot(99) });
            losses.sort_by_key(|l| l.unit);
            prop_assert!(losses.is_sorted_by_key(|l| l.unit));
            for unit in (0..41).chain([more, u64::MAX - 1, u64::MAX]).map(Unit) {
                let expected: Vec<Loss> = losses.iter().copied().filter(|l| l.unit == unit).collect();
                prop_assert_eq!(losses_of(&losses, unit), &expected[..]);
                let lost = expected.iter().fold(0, |lost, l| lost | l.mask);
                prop_assert_eq!(lost_of(&losses, unit), lost);
            }
        }

        #[test]
        fn units_have_places_of_their_own(
            spare in 1u64..1 << 26, times in 1u64..5000, shift in 0u32..=6, probe in any::<u64>(),
        ) {
            let spare = spare.max(64);
            let Ok(g) = Geometry::plan((spare * times) & !63, spare, 1 << shift, 2) else { return Ok(()) };
            let layout = Layout::new(&g, g.table_blocks);
            let unit = Unit(probe % g.units());
            let (region, key) = layout.place(unit);
            prop_assert!(region < layout.regions());
            prop_assert_eq!(layout.unit(region, key), unit);
            prop_assert!(layout.group_of(unit) < layout.groups());
            let (first, last) = layout.units_of(layout.group_of(unit));
            let group = last.0 - first.0 + 1;
            prop_assert!(first <= unit && unit <= last && group <= 64.max(2 * (g.units() >> 32)));
            let sector = g.unit_start(unit) + probe % u64::from(g.unit_sectors);
            prop_assert_eq!(layout.locate(sector), (region, key << layout.key_shift));
            // Neighbours of other groups are in other regions, and keys ascend.
            let next = layout.place(Unit(last.0 + 1));
            prop_assert!(layout.regions() == 1 || next.0 != region);
            prop_assert!(key < layout.place(Unit(unit.0 + (layout.regions() as u64) * group.max(64))).1);
            let entry = Entry {
                lost: 0, held: probe & 1 != 0, yields: probe & 2 != 0, ..Entry::new(
                    unit, Slot((probe % g.slots_total) as u32), probe & g.unit_mask(Unit(0)))
            };
            let words = layout.pack(&entry);
            let none = || -> &[Loss] { &[] };
            prop_assert_eq!(layout.entry(region, &words[..layout.stride()], 0, none), Some(entry));
            // What DESIGN.md allows, slices and their rounding apart.
            let fixed = layout.groups() / 8 + layout.regions() as u64 * 8;
            prop_assert!(fixed <= g.units() / 8 + g.slots_total + 64);
            prop_assert!(fixed <= 9 * g.slots_total.min(g.units()) + g.units() / 512 + 64);
            prop_assert_eq!(layout.stride(), if g.unit_sectors > 16 { 2 } else { 1 });
        }

        #[test]
        fn even_the_largest_device_needs_no_more_in_one_piece_than_can_be_allocated(
            main in 40u32..=53, spare in 20u32..=38, shift in 0u32..=6, probe in any::<u64>(), few in any::<bool>(),
        ) {
            let g = Geometry::plan(1 << main, 1 << spare.min(main - 1), 1 << shift, 2);
            let Ok(g) = g else { return Ok(()) };
            let layout = Layout::new(&g, if few { 4.min(g.table_blocks) } else { g.table_blocks });
            prop_assert!(layout.groups() <= 1 << 32 && layout.regions() <= 1 << 27);
            for unit in [probe % g.units(), g.units() - 1] {
                let (unit, slot) = (Unit(unit), Slot((probe % g.slots_total) as u32));
                let (region, key) = layout.place(unit);
                prop_assert_eq!(layout.locate(g.unit_start(unit)), (region, key << layout.key_shift));
                let entry = Entry::new(unit, slot, probe & g.unit_mask(unit));
                let words = layout.pack(&entry);
                prop_assert_eq!(layout.entry(region, &words[..layout.stride()], 0, || &[]), Some(entry));
            }
        }

        #[test]
        fn updates_and_lookups_agree_with_a_map(
            wide in any::<bool>(), start in 0u64..1 << 30,
            steps in proptest::collection::vec((
                0u64..40,
                // Often slot 0 without a mask: the least word that a key can have.
                proptest::option::of((
                    prop_oneof![Just(0), any::<u32>()], prop_oneof![Just(0), Just(u64::MAX), any::<u64>()],
                    prop_oneof![Just(0), any::<u64>()], any::<[bool; 2]>(),
                )),
                0u64..130, 0u32..64, 0u32..64,
            ), 0..250),
        ) {
            let g = Geometry::plan(1 << 40, 1 << 20, if wide { 32 } else { 8 }, 2).unwrap();
            let layout = Layout::new(&g, g.table_blocks);
            prop_assert_eq!(layout.stride(), if wide { 2 } else { 1 });
            let (region, first) = layout.place(Unit(start));
            let unit_at = |n: u64| layout.unit(region, (first & !layout.group_mask) + n);
            let mut words: Vec<u64> = Vec::new();
            let mut model = BTreeMap::new();
            let mut losses = Vec::new();
            for (n, new, probe, offset, count) in steps {
                let unit = unit_at(n);
                let new = new.map(|(slot, mask, lost, [held, yields])| {
                    let slot = Slot(slot % g.slots_total as u32);
                    let mask = mask & g.unit_mask(unit);
                    let lost = lost & g.unit_mask(unit) & !mask;
                    losses.retain(|l: &Loss| l.unit != unit);
                    // Of two slots; sorted, as they always are.
                    losses.push(Loss { unit, mask: lost & 0x55, slot });
                    losses.push(Loss { unit, mask: lost & !0x55, slot });
                    losses.sort_by_key(|l| l.unit);
                    Entry { lost, held, yields, ..Entry::new(unit, slot, mask) }
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
                let offset = offset % g.unit_sectors;
                let sector = g.unit_start(from) + u64::from(offset);
                let behind = layout.behind(sector);
                prop_assert_eq!(behind, u64::from(g.unit_sectors - offset - 1));
                let count = count % (behind as u32 + 1) + 1;
                let bits = mask_of(offset, count);
                let slot = expected.filter(|e| e.unit == from)
                    .map(|e| (e.mask & bits == bits && !e.held).then_some(e.slot));
                let least = layout.locate(sector).1;
                prop_assert_eq!(layout.slot(&words, least, behind, count), slot);
                if !wide {
                    let whole = slot.map(|s| s.filter(|_| expected.is_some_and(|e| e.mask == g.unit_mask(e.unit))));
                    prop_assert_eq!(layout.slot_at_once(&words, least), whole);
                }
            }
        }
    }
}
