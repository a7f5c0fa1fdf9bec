// SPDX-License-Identifier: GPL-2.0

//! Which sectors of a request go where.
//!
//! A request that meets no entry goes to main whole. One that meets an entry is cut there, so that
//! every part has one place ([`first_part`]), or several that lie side by side ([`first_run`]); the rest
//! comes back as a request of its own.

use super::entries::Entry;
use super::geometry::{mask_of, Geometry};
use super::Slot;

/// Where the first part of a request belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In no entry: main.
    Healthy,
    /// Every sector of the part is held by the slot; `sector` is where, from the region's start.
    Relocated {
        /// The entry's slot.
        slot: Slot,
        /// First sector of the part, from the start of the spare region.
        sector: u64,
    },
    /// In an entry, but at least one sector of the part is not held by its slot.
    Unset {
        /// The entry's whole mask.
        mask: u64,
    },
    /// In an entry, and nowhere: a slot failed that held it. Reads only, see [`Cut`].
    Lost,
}

/// How a request is cut inside an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Wherever set and clear bits of the mask meet, or lost sectors and others: a read, whose clear
    /// sectors main may still hold.
    AtMask,
    /// At the end of the unit only: a write, all of which goes to the slot.
    AtUnit,
}

/// The first part of the request for `count` sectors of main from `sector`: its length in sectors
/// (`1..=count`) and its place.
///
/// `entry` is the first entry that the request meets, if it meets any, with its unit.
pub fn first_part(
    geometry: &Geometry,
    sector: u64,
    count: u32,
    entry: Option<Entry>,
    cut: Cut,
) -> (u32, Place) {
    let Some(entry) = entry else {
        return (count, Place::Healthy);
    };
    let start = geometry.unit_start(entry.unit);
    if sector < start {
        let before = u32::try_from(start.wrapping_sub(sector)).unwrap_or(u32::MAX);
        return (count.min(before), Place::Healthy);
    }
    // An entry that ends before the request is none that the request meets.
    let Some(offset) = u32::try_from(sector.wrapping_sub(start))
        .ok()
        .filter(|o| *o < geometry.unit_sectors)
    else {
        return (count, Place::Healthy);
    };
    let rest = count.min(geometry.unit_sectors.wrapping_sub(offset));
    let bits = entry.mask.wrapping_shr(offset);
    let (set, clear) = (bits.trailing_ones(), bits.trailing_zeros());
    let held = Place::Relocated {
        slot: entry.slot,
        sector: geometry
            .slot_sector(entry.slot)
            .wrapping_add(u64::from(offset)),
    };
    let unset = Place::Unset { mask: entry.mask };
    let lost = entry.lost.wrapping_shr(offset);
    match cut {
        _ if set >= rest => (rest, held),
        Cut::AtMask if set > 0 => (set, held),
        Cut::AtMask if lost & 1 != 0 => (rest.min(lost.trailing_ones()), Place::Lost),
        Cut::AtMask => (rest.min(clear).min(lost.trailing_zeros()), unset),
        Cut::AtUnit => (rest, unset),
    }
}

/// As [`first_part`], but where the first part is all of the request in its unit, in a slot, and the next units' parts lie behind it
/// on the spare as they do on main, they go with it, up to `most` sectors. No entry is held then.
///
/// `in_slot` finds out for sectors of one unit where on the spare they are, if the unit's slot has all of them and its entry is not held.
pub fn first_run(
    geometry: &Geometry,
    sector: u64,
    count: u32,
    first: Entry,
    cut: Cut,
    most: u32,
    in_slot: impl Fn(u64, u32) -> Option<u64>,
) -> (u32, Place) {
    let (mut length, place) = first_part(geometry, sector, count, Some(first), cut);
    let Place::Relocated { sector: start, .. } = place else {
        return (length, place);
    };
    while !first.held && length < count {
        let at = sector.wrapping_add(length.into());
        let (_, more) = within_unit(geometry, at, count.wrapping_sub(length));
        let side_by_side = start.wrapping_add(length.into());
        if length.saturating_add(more) > most || in_slot(at, more) != Some(side_by_side) {
            break;
        }
        length = length.wrapping_add(more);
    }
    (length, place)
}

/// Cuts `count` sectors from `sector` at the end of the unit: the unit's sectors as a mask, and
/// how many they are (`1..=count` for a `count` above 0).
pub fn within_unit(geometry: &Geometry, sector: u64, count: u32) -> (u64, u32) {
    let offset = (sector & u64::from(geometry.unit_sectors.wrapping_sub(1))) as u32;
    let count = count.min(geometry.unit_sectors.wrapping_sub(offset));
    (mask_of(offset, count), count)
}

#[cfg(test)]
mod tests {
    use super::super::Unit;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        /// Cutting a request part by part sends each sector where its own entry says.
        #[test]
        fn every_sector_goes_to_its_place(
            shift in 0u32..=6, sector in 0u64..500, count in 1u32..300,
            masks in proptest::collection::btree_map(0u64..600, any::<(u64, u64)>(), 0..40),
            at_mask in any::<bool>(),
        ) {
            let g = Geometry::plan(1 << 20, 1 << 16, 1 << shift, 2).unwrap();
            let entries: Vec<Entry> = masks.iter().enumerate().map(|(i, (unit, (mask, lost)))| {
                let all = g.unit_mask(Unit(*unit));
                let entry = Entry::new(Unit(*unit), Slot(i as u32), mask & all);
                Entry { lost: lost & all & !mask, ..entry }
            }).collect();
            let cut = if at_mask { Cut::AtMask } else { Cut::AtUnit };
            let (mut at, mut left) = (sector, count);
            while left > 0 {
                let meets = entries.iter().copied().find(|e| {
                    let start = g.unit_start(e.unit);
                    start < at + u64::from(left) && start + u64::from(g.unit_sectors) > at
                });
                let (length, place) = first_part(&g, at, left, meets, cut);
                prop_assert!(length >= 1 && length <= left);
                for s in at..at + u64::from(length) {
                    let entry = entries.iter().find(|e| e.unit == g.unit_of(s));
                    let offset = s & u64::from(g.unit_sectors - 1);
                    match place {
                        Place::Healthy => prop_assert!(entry.is_none()),
                        Place::Lost => {
                            prop_assert!(at_mask && entry.unwrap().lost >> offset & 1 == 1);
                        }
                        Place::Relocated { slot, sector } => {
                            let e = entry.unwrap();
                            prop_assert_eq!(slot, e.slot);
                            prop_assert!(e.mask >> offset & 1 == 1);
                            prop_assert_eq!(sector + (s - at), g.slot_sector(e.slot) + offset);
                        }
                        Place::Unset { mask } => {
                            let e = entry.unwrap();
                            prop_assert_eq!(mask, e.mask);
                            prop_assert!(!at_mask || (e.mask | e.lost) >> offset & 1 == 0);
                        }
                    }
                }
                if let Place::Unset { mask } = place {
                    let (bits, n) = within_unit(&g, at, length);
                    prop_assert_eq!(n, length);
                    prop_assert!(mask & bits != bits);
                }
                at += u64::from(length);
                left -= length;
            }
        }

        /// A run is as long as its sectors lie on the spare as on main, found sector by sector.
        #[test]
        fn what_lies_side_by_side_goes_in_one_piece(
            shift in 0u32..=6, offset in 0u32..64, count in 1u32..500, most in 1u32..500, whole in any::<bool>(),
            at_mask in any::<bool>(),
            units in proptest::collection::vec(
                // Mostly whole, and in the slot behind that of the unit before.
                proptest::option::weighted(0.95, (
                    prop_oneof![9 => Just(u64::MAX), 1 => any::<u64>()],
                    prop_oneof![9 => Just(1u32), 1 => 0u32..3], proptest::bool::weighted(0.05),
                )), 510,
            ),
        ) {
            let g = Geometry::plan(1 << 20, 1 << 17, 1 << shift, 2).unwrap();
            let mut slot = 0;
            let entries: Vec<Option<Entry>> = (0..).zip(units).map(|(n, unit)| {
                let (mask, step, held) = unit?;
                slot += step;
                let mask = mask & g.unit_mask(Unit(n));
                Some(Entry { held, ..Entry::new(Unit(n), Slot(slot), mask) })
            }).collect();
            let sector = u64::from(offset & (g.unit_sectors - 1));
            let Some(first) = entries[0] else { return Ok(()) };
            let cut = if at_mask { Cut::AtMask } else { Cut::AtUnit };
            // Often one that a unit ends at.
            let most = if whole { (most << shift).saturating_sub(sector as u32) } else { most };
            let entry_of = |unit: Unit| entries[unit.0 as usize];
            let in_slot = |at: u64, n: u32| {
                let entry = entry_of(g.unit_of(at)).filter(|e| !e.held)?;
                let offset = (at - g.unit_start(entry.unit)) as u32;
                assert!(n > 0 && offset + n <= g.unit_sectors);
                let bits = mask_of(offset, n);
                (entry.mask & bits == bits).then(|| g.slot_sector(entry.slot) + u64::from(offset))
            };
            let (length, place) = first_run(&g, sector, count, first, cut, most, in_slot);
            prop_assert_eq!(place, first_part(&g, sector, count, Some(first), cut).1);
            let Place::Relocated { slot, sector: start } = place else {
                prop_assert_eq!(length, first_part(&g, sector, count, Some(first), cut).0);
                return Ok(());
            };
            prop_assert_eq!((slot, start), (first.slot, g.slot_sector(first.slot) + sector));

            let end = sector + u64::from(count);
            let is_set = |s: u64| entry_of(g.unit_of(s)).is_some_and(|e| e.mask >> (s - g.unit_start(e.unit)) & 1 == 1);
            let goes_on = |s: u64| {
                let Some(entry) = entry_of(g.unit_of(s)) else { return false };
                let unit = g.unit_start(entry.unit)..g.unit_start(entry.unit) + u64::from(g.unit_sectors);
                let in_first = entry.unit == first.unit;
                let is_there = at_mask && in_first && is_set(s)
                    || unit.clone().all(|s| s < sector || s >= end || is_set(s));
                let is_free = in_first || !entry.held && !first.held;
                let at = g.slot_sector(entry.slot) + (s - unit.start);
                is_there && is_free && at == start + (s - sector)
            };
            let longest = (sector..end).take_while(|s| goes_on(*s)).count() as u32;
            let in_first = longest.min(g.unit_sectors - sector as u32);
            let expected = (in_first..=longest).rev().find(|n| {
                let is_cut_here = *n == longest || (sector as u32 + n) % g.unit_sectors == 0;
                *n == in_first || is_cut_here && *n <= most
            });
            prop_assert_eq!(Some(length), expected);
        }
    }
}
