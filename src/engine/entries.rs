// SPDX-License-Identifier: GPL-2.0

//! The entries of one region, sorted by unit, and how a new version of them is made.
//!
//! Main is divided into regions of [`REGION_UNITS`] units. The caller keeps one pointer a region,
//! null while nothing in it is bad: that one load decides the healthy path. Behind a pointer lies
//! an immutable slice of [`Packed`] entries, found by bisection. A change makes a new slice
//! ([`updated`]), at most `16 * REGION_UNITS` bytes, whatever the number of entries elsewhere.

use super::{Slot, Unit};

/// Base-2 logarithm of [`REGION_UNITS`].
pub const REGION_SHIFT: u32 = 11;
/// Units in a region.
pub const REGION_UNITS: u64 = 1 << REGION_SHIFT;

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

/// An [`Entry`] within its region: 16 bytes, where a million of them count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Packed {
    offset: u32,
    slot: u32,
    mask: u64,
}

const HELD: u32 = 1 << 31;
const LOST: u32 = 1 << 30;

impl Packed {
    /// Packs `entry`, leaving out its region, and which sectors are lost.
    pub fn new(entry: &Entry) -> Self {
        let flag = |bit, set: bool| if set { bit } else { 0 };
        Self {
            offset: (entry.unit.0 & (REGION_UNITS - 1)) as u32
                | flag(HELD, entry.held)
                | flag(LOST, entry.lost != 0),
            slot: entry.slot.0,
            mask: entry.mask,
        }
    }

    fn offset(&self) -> u32 {
        self.offset & !(HELD | LOST)
    }

    /// The entry again, for the region it was taken from and with the losses that there are.
    pub fn entry<'a>(&self, region: u64, losses: impl FnOnce() -> &'a [Loss]) -> Entry {
        let unit = Unit((region << REGION_SHIFT) | u64::from(self.offset()));
        let lost = match self.offset & LOST {
            0 => 0,
            _ => lost_of(losses(), unit) & !self.mask,
        };
        Entry {
            unit,
            slot: Slot(self.slot),
            mask: self.mask,
            lost,
            held: self.offset & HELD != 0,
        }
    }
}

/// The region that holds `unit`.
pub fn region_of(unit: Unit) -> u64 {
    unit.0 >> REGION_SHIFT
}

/// The first entry of `region` at `from` or behind it.
///
/// `sorted` are the region's entries. O(log n).
pub fn first_from(sorted: &[Packed], region: u64, from: Unit) -> Option<&Packed> {
    let start = region << REGION_SHIFT;
    let offset = from.0.saturating_sub(start);
    // `partition_point`, but with nothing in it that could panic: this is on `map`'s path.
    let mut rest = sorted;
    while let Some((before, [middle, after @ ..])) = rest.split_at_checked(rest.len() / 2) {
        rest = if u64::from(middle.offset()) < offset {
            after
        } else if before.last().is_none_or(|p| u64::from(p.offset()) < offset) {
            return Some(middle);
        } else {
            before
        };
    }
    None
}

/// The entries `sorted` with that of `unit` replaced by `new`, added, or removed (`None`).
pub fn updated<'a>(
    sorted: &'a [Packed],
    unit: Unit,
    new: Option<&Entry>,
) -> impl Iterator<Item = Packed> + Clone + 'a {
    let offset = (unit.0 & (REGION_UNITS - 1)) as u32;
    let at = sorted.partition_point(|p| p.offset() < offset);
    let (before, rest) = sorted.split_at_checked(at).unwrap_or((sorted, &[]));
    let after = match rest.split_first() {
        Some((first, after)) if first.offset() == offset => after,
        _ => rest,
    };
    let new = new.map(Packed::new);
    before
        .iter()
        .copied()
        .chain(new)
        .chain(after.iter().copied())
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

    #[test]
    fn an_entry_costs_16_bytes() {
        assert_eq!(size_of::<Packed>(), 16);
    }

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
        fn updates_and_lookups_agree_with_a_map(
            region in 0u64..1 << 40,
            steps in proptest::collection::vec((0u64..40, any::<Option<(u32, u64, u64, bool)>>(), 0u64..45), 0..80),
        ) {
            let base = region << REGION_SHIFT;
            let mut sorted: Vec<Packed> = Vec::new();
            let mut model = BTreeMap::new();
            let mut losses = Vec::new();
            for (offset, new, probe) in steps {
                let unit = Unit(base + offset);
                let new = new.map(|(slot, mask, lost, held)| {
                    let (slot, lost) = (Slot(slot), lost & !mask);
                    losses.retain(|l: &Loss| l.unit != unit);
                    losses.push(Loss { unit, mask: lost, slot });
                    Entry { lost, held, ..Entry::new(unit, slot, mask) }
                });
                sorted = updated(&sorted, unit, new.as_ref()).collect();
                match new {
                    Some(e) => model.insert(unit, e),
                    None => model.remove(&unit),
                };
                prop_assert_eq!(sorted.len(), model.len());
                let from = Unit(base + probe);
                let expected = model.range(from..).next().map(|(_, e)| *e);
                let found = first_from(&sorted, region, from);
                prop_assert_eq!(found.map(|p| p.entry(region, || &losses)), expected);
            }
        }
    }
}
