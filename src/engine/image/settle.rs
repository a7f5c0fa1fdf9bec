// SPDX-License-Identifier: GPL-2.0

//! Whether the records of a table agree with each other.

use super::super::entries::{losses_of, those_of, Entry, Loss};
use super::Finding;
use core::ops::Range;

/// What [`settle`] comes upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Something contradicts itself.
    Finding(Finding),
    /// The unit has moved from this slot to another, and the slot's record does not say yet that it is bad.
    /// `mask`, which may be 0, are the sectors that it took with it.
    ///
    /// The slot's record must say so before any other is written.
    Replaced(Loss),
}

/// Compares the entries and the losses of a table with each other. Returns how many entries stay: they are
/// moved to the front of `entries`.
///
/// In `entries` as they are handed in, `held` stands for a record in state [`State::Moved`](super::State::Moved); in those that
/// stay it is not set. `losses` are those of the records of bad slots that lost something. Both lists are
/// sorted by unit.
///
/// - Of two entries of one unit, one of them moved, the moved one stays; [`Settled::Replaced`] tells what the
///   other one is instead. Any other number of entries of one unit is [`Finding::TwoSlots`]; they all stay.
/// - An entry learns which of its unit's sectors are lost: those of the unit's losses that it does not have.
/// - No sector of a unit is lost twice, those apart that the entry has: else [`Finding::LostTwice`], once for
///   the unit.
/// - A loss whose unit has no entry is [`Finding::Orphan`].
pub fn settle(entries: &mut [Entry], losses: &[Loss], see: &mut dyn FnMut(Settled)) -> usize {
    debug_assert!(entries.is_sorted_by_key(|e| e.unit) && losses.is_sorted_by_key(|l| l.unit));
    let (mut from, mut kept) = (0_usize, 0_usize);
    let mut lost = losses;
    while let Some(entry) = entries.get(from).copied() {
        let unit = entry.unit;
        while let Some((_, behind)) = lost.split_first().filter(|(loss, _)| loss.unit < unit) {
            lost = behind;
        }
        let is_lost = lost.first().is_some_and(|loss| loss.unit == unit);
        let next = from.saturating_add(1);
        let is_alone = entries.get(next).is_none_or(|other| other.unit != unit);
        // As nearly all are, and there may be millions: it stays as it is.
        if is_alone && !is_lost && !entry.held {
            if let Some(to) = entries.get_mut(kept).filter(|_| kept != from) {
                *to = entry;
            }
            (from, kept) = (next, kept.saturating_add(1));
            continue;
        }
        let count = run_at(entries, from);
        let (replaced, stays) = join(entries, from..from.saturating_add(count), kept, see);
        let to = kept.saturating_add(stays);
        if let Some(staying) = entries.get_mut(kept..to) {
            lose(staying, replaced, losses_of(lost, unit), see);
        }
        from = from.saturating_add(count);
        kept = to;
    }
    let entries = entries.get(..kept).unwrap_or_default();
    for loss in losses.iter() {
        if those_of(entries, loss.unit).is_empty() {
            see(Settled::Finding(Finding::Orphan {
                unit: loss.unit,
                slot: loss.slot,
            }));
        }
    }
    kept
}

/// How many entries from `from` on are of the same unit.
fn run_at(entries: &[Entry], from: usize) -> usize {
    let entries = entries.get(from..).unwrap_or_default();
    let unit = entries.first().map(|e| e.unit);
    entries.iter().take_while(|e| Some(e.unit) == unit).count()
}

/// Moves those of `entries[of]`, all entries of one unit, that stay to `to` and behind. Returns how many they
/// are, and what the other one is instead.
fn join(
    entries: &mut [Entry],
    of: Range<usize>,
    to: usize,
    see: &mut dyn FnMut(Settled),
) -> (Option<Loss>, usize) {
    let all = entries.get(of.clone()).unwrap_or_default();
    let pair = match all {
        [new, old] | [old, new] if new.held && !old.held => Some((*new, *old)),
        _ => None,
    };
    if let Some((new, old)) = pair {
        let loss = Loss {
            unit: old.unit,
            mask: old.mask & !new.mask,
            slot: old.slot,
        };
        see(Settled::Replaced(loss));
        if let Some(entry) = entries.get_mut(to) {
            *entry = Entry { held: false, ..new };
        }
        return (Some(loss), 1);
    }
    for (a, b) in all.iter().zip(all.iter().skip(1)) {
        see(Settled::Finding(Finding::TwoSlots {
            unit: a.unit,
            slots: [a.slot.min(b.slot), a.slot.max(b.slot)],
        }));
    }
    let count = all.len();
    for (to, from) in (to..).zip(of) {
        if let Some(entry) = entries.get(from).copied() {
            if let Some(to) = entries.get_mut(to) {
                *to = Entry {
                    held: false,
                    ..entry
                };
            }
        }
    }
    (None, count)
}

/// Tells `entries`, those that a unit has, what `losses` and the one that was `replaced` took with them.
fn lose(
    entries: &mut [Entry],
    replaced: Option<Loss>,
    losses: &[Loss],
    see: &mut dyn FnMut(Settled),
) {
    let held = entries.iter().fold(0, |held, e| held | e.mask);
    let all = || replaced.iter().chain(losses);
    let mut lost = 0;
    let clash = all().find(|loss| {
        let before = lost;
        lost |= loss.mask & !held;
        before & loss.mask != 0
    });
    if let Some(b) = clash {
        let overlaps = |a: &&Loss| a.mask & b.mask & !held != 0;
        if let Some(a) = all().find(overlaps) {
            see(Settled::Finding(Finding::LostTwice {
                unit: b.unit,
                slots: [a.slot.min(b.slot), a.slot.max(b.slot)],
            }));
        }
    }
    let lost = all().fold(0, |lost, loss| lost | loss.mask & !held);
    for entry in entries {
        entry.lost |= lost;
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{Slot, Unit};
    use super::super::Severity;
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};
    use std::string::ToString;
    use std::vec::Vec;

    fn entry(unit: u64, slot: u32, mask: u64) -> Entry {
        Entry::new(Unit(unit), Slot(slot), mask)
    }

    fn moved(unit: u64, slot: u32, mask: u64) -> Entry {
        let held = true;
        Entry {
            held,
            ..entry(unit, slot, mask)
        }
    }

    fn loss(unit: u64, slot: u32, mask: u64) -> Loss {
        let (unit, slot) = (Unit(unit), Slot(slot));
        Loss { unit, mask, slot }
    }

    /// The entries that stay, and what was seen.
    fn settled(entries: &[Entry], losses: &[Loss]) -> (Vec<Entry>, Vec<Settled>) {
        let (mut entries, mut losses) = (entries.to_vec(), losses.to_vec());
        let mut seen = Vec::new();
        entries.sort_by_key(|e| e.unit);
        losses.sort_by_key(|l| l.unit);
        let stay = settle(&mut entries, &losses, &mut |what| seen.push(what));
        assert!(losses.is_sorted_by_key(|l| l.unit));
        entries.truncate(stay);
        (entries, seen)
    }

    fn twice(unit: u64, a: u32, b: u32) -> Settled {
        let slots = [Slot(a), Slot(b)];
        let unit = Unit(unit);
        Settled::Finding(Finding::LostTwice { unit, slots })
    }

    #[test]
    fn of_a_moved_entry_and_the_one_it_replaces_the_moved_one_stays() {
        for list in [
            [entry(5, 1, 0x0f), moved(5, 130, 0xf1)],
            [moved(5, 130, 0xf1), entry(5, 1, 0x0f)],
        ] {
            let (stay, seen) = settled(&list, &[]);
            let expected = Entry {
                lost: 0x0e,
                ..entry(5, 130, 0xf1)
            };
            assert_eq!(stay, [expected]);
            assert_eq!(seen, [Settled::Replaced(loss(5, 1, 0x0e))]);
        }
        // It took nothing with it.
        let (stay, seen) = settled(&[entry(5, 1, 0), moved(5, 130, 1), entry(6, 2, 3)], &[]);
        assert_eq!(stay, [entry(5, 130, 1), entry(6, 2, 3)]);
        assert_eq!(seen, [Settled::Replaced(loss(5, 1, 0))]);
        // It is bad on disk already.
        let (stay, seen) = settled(&[moved(5, 130, 1)], &[loss(5, 1, 6)]);
        let expected = Entry {
            lost: 6,
            ..entry(5, 130, 1)
        };
        assert_eq!((stay, seen), ([expected].to_vec(), Vec::new()));
    }

    #[test]
    fn two_slots_of_a_unit_are_refused_unless_one_of_them_took_the_place_of_the_other() {
        let lists: [&[Entry]; 5] = [
            &[entry(5, 2, 1), entry(5, 1, 1)],
            &[moved(5, 2, 1), moved(5, 1, 1)],
            &[entry(5, 2, 1), moved(5, 1, 1), entry(5, 3, 1)],
            &[entry(5, 2, 1), moved(5, 1, 1), moved(5, 3, 1)],
            &[entry(5, 2, 1), entry(5, 1, 1), entry(5, 3, 0)],
        ];
        for list in lists {
            let (stay, seen) = settled(list, &[]);
            assert_eq!(stay.len(), list.len());
            assert!(stay
                .iter()
                .all(|e| !e.held && list.iter().any(|l| l.slot == e.slot)));
            assert_eq!(seen.len(), list.len() - 1);
            assert!(seen.iter().all(|what| matches!(what,
                Settled::Finding(f @ Finding::TwoSlots { unit: Unit(5), slots: [a, b] })
                    if f.severity() == Severity::Fatal && a < b)));
        }
    }

    #[test]
    fn no_sector_is_lost_with_two_slots() {
        let only =
            |unit, slot, mask, losses: &[Loss]| settled(&[entry(unit, slot, mask)], losses).1;
        assert_eq!(only(5, 1, 0, &[loss(5, 2, 3), loss(5, 3, 4)]), []);
        assert_eq!(
            only(5, 1, 0, &[loss(5, 2, 3), loss(5, 3, 6)]),
            [twice(5, 2, 3)]
        );
        // The entry has what both claim.
        assert_eq!(only(5, 1, 2, &[loss(5, 2, 3), loss(5, 3, 6)]), []);
        // Once for a unit.
        let three = [loss(5, 9, 3), loss(5, 3, 4), loss(5, 2, 7)];
        assert_eq!(only(5, 1, 0, &three).len(), 1);
        // What the replaced slot took counts as well.
        let pair = [entry(5, 1, 7), moved(5, 130, 1)];
        let (_, seen) = settled(&pair, &[loss(5, 9, 0x11)]);
        assert_eq!(seen, [Settled::Replaced(loss(5, 1, 6))]);
        let (_, seen) = settled(&pair, &[loss(5, 9, 0x10), loss(5, 0, 4)]);
        assert_eq!(seen, [Settled::Replaced(loss(5, 1, 6)), twice(5, 0, 1)]);
        let Settled::Finding(finding) = twice(5, 0, 1) else {
            return;
        };
        assert_eq!(finding.severity(), Severity::Fatal);
        let text = finding.to_string();
        assert!(text.starts_with("unit 5: slots 0 and 1, which failed, claim the same sector"));
    }

    proptest! {
        #[test]
        fn settling_is_what_the_rules_say(
            entries in proptest::collection::vec((0u64..12, 0u64..8, any::<bool>()), 0..24),
            losses in proptest::collection::vec((0u64..13, 0u64..16), 0..12),
            // Masks as they are, so that much goes wrong, or apart.
            apart in any::<bool>(),
        ) {
            let entries: Vec<Entry> = (0..).zip(&entries).map(|(slot, (unit, mask, is_moved))| {
                if *is_moved { moved(*unit, slot, *mask) } else { entry(*unit, slot, *mask) }
            }).collect();
            let losses: Vec<Loss> = (0..).zip(&losses).map(|(n, (unit, mask))| {
                let mask = if apart { 8 << n } else { *mask };
                loss(*unit, 100 + n, mask)
            }).collect();
            let (stay, seen) = settled(&entries, &losses);

            // Unit by unit, without regard to order.
            let mut expected = BTreeMap::new();
            let mut replaced = Vec::new();
            let (mut two_slots, mut lost_twice, mut orphans) =
                (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
            for unit in (0..13).map(Unit) {
                let mut of_unit: Vec<Entry> =
                    entries.iter().copied().filter(|e| e.unit == unit).collect();
                let mut lost: Vec<Loss> = losses.iter().copied().filter(|l| l.unit == unit).collect();
                if of_unit.is_empty() {
                    orphans.extend(lost.iter().map(|l| l.slot));
                    continue;
                }
                let moves = of_unit.iter().filter(|e| e.held).count();
                if of_unit.len() == 2 && moves == 1 {
                    let new = of_unit.iter().position(|e| e.held).unwrap();
                    let old = of_unit.remove(1 - new);
                    let left = loss(unit.0, old.slot.0, old.mask & !of_unit[0].mask);
                    replaced.push(left);
                    lost.push(left);
                } else if of_unit.len() > 1 {
                    two_slots.insert(unit, of_unit.len() - 1);
                }
                let held = of_unit.iter().fold(0, |held, e| held | e.mask);
                for bit in (0..64).map(|n| 1_u64 << n).filter(|bit| held & bit == 0) {
                    if lost.iter().filter(|l| l.mask & bit != 0).count() > 1 {
                        lost_twice.insert(unit);
                    }
                }
                let lost = lost.iter().fold(0, |lost, l| lost | l.mask) & !held;
                for e in of_unit {
                    expected.insert(e.slot, Entry { held: false, lost, ..e });
                }
            }
            prop_assert!(stay.is_sorted_by_key(|e| e.unit));
            prop_assert_eq!(stay.len(), expected.len());
            for e in &stay {
                prop_assert_eq!(Some(e), expected.get(&e.slot));
            }
            let all: Vec<Loss> = losses.iter().chain(&replaced).copied().collect();
            for what in seen {
                match what {
                    Settled::Replaced(loss) => {
                        let at = replaced.iter().position(|l| *l == loss);
                        prop_assert!(at.is_some(), "{loss:?}");
                        replaced.remove(at.unwrap());
                    }
                    Settled::Finding(Finding::TwoSlots { unit, slots: [a, b] }) => {
                        prop_assert!(a < b);
                        prop_assert!([a, b].iter().all(|s| expected[s].unit == unit));
                        *two_slots.get_mut(&unit).unwrap() -= 1;
                    }
                    Settled::Finding(Finding::LostTwice { unit, slots: [a, b] }) => {
                        prop_assert!(a < b && lost_twice.remove(&unit));
                        let mask = |slot| all.iter().find(|l| l.slot == slot && l.unit == unit)
                            .unwrap().mask;
                        let held = expected.values().filter(|e| e.unit == unit)
                            .fold(0, |held, e| held | e.mask);
                        prop_assert!(mask(a) & mask(b) & !held != 0);
                    }
                    Settled::Finding(Finding::Orphan { slot, .. }) => {
                        prop_assert!(orphans.remove(&slot));
                    }
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            prop_assert!(replaced.is_empty() && lost_twice.is_empty() && orphans.is_empty());
            prop_assert!(two_slots.values().all(|left| *left == 0));
        }
    }
}
