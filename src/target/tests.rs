// SPDX-License-Identifier: GPL-2.0

//! KUnit suites: the entries under RCU, and the engine as the kernel's compiler and libraries make it.

use super::entries::{Entries, Look};
use super::version::Stamp;
use crate::dm::{self, rcu_read_lock};
use crate::engine::{
    args::PendingReads,
    entries::{Entry, Loss},
    format::{self, Cause, State, Superblock, Update},
    geometry::{Geometry, BLOCK_SIZE},
    identity::Identity,
    message::{Message, Range},
    route::{first_part, first_run, Cut, Place},
    Slot, Unit,
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{Atomic, Full, Relaxed},
        Arc,
    },
    time::{delay::fsleep, Delta, Instant, Monotonic},
    workqueue::{self, impl_has_work, new_work, Work, WorkItem},
};

/// The entries in memory.
#[kunit_tests(dm_remap_entries)]
mod entries_tests {
    use super::*;

    fn none(main_sectors: u64) -> Result<Arc<Entries>> {
        let geometry = Geometry::plan(main_sectors, 1 << 20, 8, 2).map_err(|_| EINVAL)?;
        Arc::pin_init(Entries::new(&geometry, geometry.table_blocks), GFP_KERNEL)
    }

    fn entry(unit: u64) -> Entry {
        Entry::new(Unit(unit), Slot((unit % 1000) as u32), unit & 0xff)
    }

    fn first(entries: &Entries, sector: u64, count: u32) -> Option<Entry> {
        entries.first(sector, count, &rcu_read_lock())
    }

    #[test]
    fn nothing_is_found_where_nothing_is() -> Result {
        let entries = none(1 << 24)?;
        assert!(first(&entries, 0, u32::MAX >> 9).is_none());
        assert!(entries.is_healthy(0, 8) && entries.is_healthy(16383, 1));
        // Neither over the end of a region, nor a flush, wherever the target begins.
        assert!(!entries.is_healthy(16383, 2) && !entries.is_healthy(0, 0));
        assert!(!entries.is_healthy(u64::MAX - 99, 0) && !entries.is_healthy(u64::MAX, 8));
        // Past the end of main there are no entries, and no panic.
        assert!(first(&entries, u64::MAX - 7, 8).is_none());
        assert!(entries.get(Unit(u64::MAX)).is_none());
        Ok(())
    }

    #[test]
    fn an_entry_is_met_by_just_the_sectors_of_its_unit() -> Result {
        let entries = none(1 << 24)?;
        // The last unit of the first region and the first of the second.
        for unit in [2047, 2048, 9999] {
            entries.set(Unit(unit), Some(&entry(unit)));
        }
        assert!(first(&entries, 2046 * 8, 8).is_none());
        assert!(first(&entries, 2046 * 8 + 7, 2) == Some(entry(2047)));
        assert!(first(&entries, 2047 * 8 + 7, 1) == Some(entry(2047)));
        assert!(first(&entries, 2047 * 8, 4096) == Some(entry(2047)));
        assert!(first(&entries, 2048 * 8, 4096) == Some(entry(2048)));
        assert!(first(&entries, 2049 * 8, (9999 - 2049) * 8).is_none());
        assert!(first(&entries, 2049 * 8, (9999 - 2049) * 8 + 1) == Some(entry(9999)));
        assert!(first(&entries, 10000 * 8, 4096).is_none());
        Ok(())
    }

    #[test]
    fn entries_are_replaced_counted_and_listed_in_order() -> Result {
        let entries = none(1 << 24)?;
        for n in 0..500u64 {
            let e = entry(n * 7919 % 5000);
            entries.set(e.unit, Some(&e));
        }
        let pending = Entry {
            mask: 0,
            ..entry(7919 % 5000)
        };
        entries.set(pending.unit, Some(&pending));
        assert!(entries.get(pending.unit) == Some(pending));
        let (mut last, mut seen, mut empty) = (None, 0, 0);
        entries.visit(Unit(0), |e| {
            let ascending = last < Some(e.unit);
            last = Some(e.unit);
            seen += 1;
            empty += u64::from(e.mask == 0);
            ascending
        });
        entries.set(Unit(123_456), Some(&entry(123_456)));
        entries.set(Unit(123_456), None);
        assert!(entries.get(Unit(123_456)).is_none());
        let counts = entries.counts();
        assert_eq!(seen, 500);
        assert_eq!((counts.pending, counts.relocated), (empty, 500 - empty));
        assert!(empty >= 1);
        Ok(())
    }

    #[test]
    fn a_look_finds_the_slot_that_has_all_of_a_request() -> Result {
        for unit_sectors in [8, 16, 32, 64] {
            let geometry = Geometry::plan(1 << 24, 1 << 20, unit_sectors, 2).map_err(|_| EINVAL)?;
            let entries = Entries::new(&geometry, geometry.table_blocks);
            let entries = Arc::pin_init(entries, GFP_KERNEL)?;
            let (all, start) = (geometry.unit_mask(Unit(77)), 77 * u64::from(unit_sectors));
            let look = |quick: bool, at: u64, count: u32| {
                let guard = rcu_read_lock();
                let sector = start + at;
                match if quick {
                    entries.look::<true>(sector, count, &guard)
                } else {
                    entries.look::<false>(sector, count, &guard)
                } {
                    Look::Healthy => None,
                    Look::Undecided => Some(None),
                    Look::InSlot(slot, sector) => Some(Some((slot, sector))),
                }
            };
            let is_quick = unit_sectors <= 16;
            let quickly = |found| if is_quick { found } else { Some(None) };
            assert!(look(false, 3, 2).is_none() && look(true, 3, 2) == quickly(None));

            let entry = Entry::new(Unit(77), Slot(5), all);
            entries.set(entry.unit, Some(&entry));
            for (at, count) in [(0, unit_sectors), (3, 2), (u64::from(unit_sectors) - 1, 1)] {
                let found = Some(Some((Slot(5), geometry.slot_sector(Slot(5)) + at)));
                assert!(look(false, at, count) == found && look(true, at, count) == quickly(found));
            }
            for quick in [false, true] {
                // Into the next unit, or nothing at all.
                assert!(look(quick, 3, unit_sectors - 2) == Some(None));
                assert!(look(quick, 0, 0) == Some(None) && look(quick, 5, 0) == Some(None));
            }
            entries.set(
                entry.unit,
                Some(&Entry {
                    mask: all ^ 4,
                    ..entry
                }),
            );
            let found = Some(Some((Slot(5), geometry.slot_sector(Slot(5)) + 3)));
            assert!(look(false, 3, 2) == found && look(true, 3, 2) == Some(None));
            assert!(look(false, 2, 2) == Some(None) && look(true, 2, 2) == Some(None));
            entries.set(
                entry.unit,
                Some(&Entry {
                    held: true,
                    ..entry
                }),
            );
            assert!(look(false, 3, 2) == Some(None) && look(true, 3, 2) == Some(None));
        }
        Ok(())
    }

    #[test]
    fn a_write_in_flight_stands_unless_its_unit_moved() -> Result {
        let entries = none(1 << 24)?;
        let stamp = entries.version.read();
        // Two units, of which the second is to be relocated.
        assert!(entries.is_on_main(stamp, 40, 16, PendingReads::Retry));
        let pending = Entry::new(Unit(6), Slot(9), 0);
        entries.set(pending.unit, Some(&pending));
        assert!(
            stamp == entries.version.read()
                && entries.is_on_main(stamp, 40, 16, PendingReads::Retry)
        );
        entries.hold(&pending);
        assert!(stamp != entries.version.read());
        assert!(
            !entries.is_on_main(stamp, 40, 16, PendingReads::Retry)
                && entries.is_on_main(stamp, 40, 8, PendingReads::Retry)
        );
        assert!(!entries.is_in_slots(48, 8, Slot(9)));
        let relocated = Entry {
            mask: 0x0f,
            ..pending
        };
        entries.set(pending.unit, Some(&relocated));
        assert!(
            !entries.is_on_main(stamp, 44, 8, PendingReads::Retry)
                && entries.is_on_main(stamp, 52, 4, PendingReads::Retry)
        );
        assert!(entries.is_in_slots(48, 8, Slot(9)) && !entries.is_in_slots(48, 8, Slot(8)));
        let later = entries.version.read();
        entries.hold_to_restore(&relocated);
        entries.set(pending.unit, None);
        // No entry, but the sectors were written from the slot since.
        assert!(!entries.is_on_main(later, 52, 4, PendingReads::Retry));
        assert!(entries.is_on_main(entries.version.read(), 40, 16, PendingReads::Retry));
        assert!(!entries.is_in_slots(48, 8, Slot(9)));
        Ok(())
    }

    #[test]
    fn a_write_to_slots_side_by_side_stands_unless_one_of_its_units_moved() -> Result {
        let entries = none(1 << 24)?;
        let entry = |unit| Entry::new(Unit(unit), Slot(unit as u32 + 3), 0xff);
        for unit in 6..10 {
            entries.set(Unit(unit), Some(&entry(unit)));
        }
        // All of them, and sectors at both ends.
        let stands =
            || entries.is_in_slots(48, 32, Slot(9)) && entries.is_in_slots(55, 18, Slot(9));
        assert!(stands() && entries.is_in_slots(56, 24, Slot(10)));
        assert!(!entries.is_in_slots(48, 33, Slot(9)) && !entries.is_in_slots(47, 2, Slot(8)));
        for unit in 6..10 {
            entries.hold(&entry(unit));
            assert!(!stands());
            let elsewhere = Entry {
                slot: Slot(99),
                ..entry(unit)
            };
            entries.set(Unit(unit), Some(&elsewhere));
            assert!(!stands());
            entries.set(Unit(unit), None);
            assert!(!stands());
            entries.set(Unit(unit), Some(&entry(unit)));
            assert!(stands());
        }
        Ok(())
    }

    #[test]
    fn losses_last_until_the_sectors_are_written_or_forgotten() -> Result {
        let entries = none(1 << 24)?;
        let entry = Entry {
            lost: 0b110,
            ..Entry::new(Unit(6), Slot(9), 0b1001)
        };
        for (unit, slot) in [(6, 1), (7, 2)] {
            entries.add_loss(Loss {
                unit: Unit(unit),
                mask: 0b110,
                slot: Slot(slot),
            });
        }
        entries.set(entry.unit, Some(&entry));
        assert!(entries.get(Unit(6)) == Some(entry));
        assert!(
            !entries.is_on_main(Stamp::LAST, 49, 1, PendingReads::Retry)
                && entries.is_on_main(Stamp::LAST, 52, 1, PendingReads::Retry)
        );
        let written = Entry {
            mask: 0b1011,
            lost: 0b100,
            ..entry
        };
        entries.set(entry.unit, Some(&written));
        assert!(entries.get(Unit(6)) == Some(written));
        entries.set(entry.unit, None);
        entries.keep_losses(Unit(6), 0);
        entries.set(entry.unit, Some(&entry));
        assert!(entries.get(Unit(6)).is_some_and(|e| e.lost == 0));
        let mut left = 0;
        entries.visit_losses(|l| left += l.unit.0);
        assert_eq!(left, 7);
        Ok(())
    }

    #[test]
    fn loading_replaces_everything() -> Result {
        let entries = none(1 << 24)?;
        entries.set(Unit(77), Some(&entry(77)));
        let mut list = KVec::new();
        for n in 0..300u64 {
            list.push(entry(n * 100 + 1), GFP_KERNEL)?;
        }
        entries.load(&list, &[])?;
        assert!(entries.get(Unit(77)).is_none());
        assert!(list.iter().all(|e| entries.get(e.unit) == Some(*e)));
        entries.load(&[], &[])?;
        assert!(first(&entries, 0, 1 << 23).is_none());
        assert_eq!(entries.counts().relocated, 0);
        Ok(())
    }
}

/// The entries under readers and updaters that run at the same time.
///
/// Every entry ever set follows from its unit and its slot, so that one made of two states, or of freed memory,
/// is wrong. A third of the units, the fixed ones, has an entry all the time.
#[kunit_tests(dm_remap_entries_stress)]
mod stress_tests {
    use super::*;

    const UNITS: u64 = 192;
    const FIXED: u64 = UNITS / 3;
    /// Units so far from each other are in one region, which holds every fourth of ours.
    const STEP: u64 = 1 << 13;
    const ALL: u64 = 0xff;
    /// With no entry, and losses that come and go.
    const ELSEWHERE: Unit = Unit(5);

    fn unit(number: u64) -> Unit {
        Unit(number % 4 + number / 4 * STEP)
    }

    fn mask_in(slot: Slot) -> u64 {
        (u64::from(slot.0) * 0x9d >> 3 | 1) & ALL
    }

    fn is_fixed(number: u64) -> bool {
        number % 3 == 0
    }

    /// The entry of unit `number`. What its slot does not have is lost, if the number is even.
    fn entry(number: u64, generation: u64) -> Entry {
        let slot = Slot(((generation & 0xff) << 8 | number) as u32);
        let mask = mask_in(slot);
        let lost = if number % 2 == 0 { ALL & !mask } else { 0 };
        Entry {
            lost,
            ..Entry::new(unit(number), slot, mask)
        }
    }

    fn is_sound(found: &Entry) -> bool {
        let slot = u64::from(found.slot.0);
        let expected = entry(slot & 0xff, slot >> 8);
        *found
            == Entry {
                held: found.held,
                ..expected
            }
    }

    struct Shared {
        entries: Arc<Entries>,
        stop: Atomic<bool>,
        /// Workers that have not ended.
        running: Atomic<usize>,
        looks: Atomic<usize>,
        changes: Atomic<usize>,
        /// The number of the check that failed, 0: none.
        wrong: Atomic<usize>,
    }

    /// Looks up, or changes, until it is stopped.
    #[pin_data]
    struct Worker {
        shared: Arc<Shared>,
        is_updater: bool,
        seed: u64,
        #[pin]
        work: Work<Worker>,
    }

    impl_has_work! {
        impl HasWork<Self> for Worker { self.work }
    }

    impl WorkItem for Worker {
        type Pointer = Arc<Worker>;

        fn run(this: Arc<Worker>) {
            let shared = &this.shared;
            let mut random = this.seed;
            let mut rounds = 0_u32;
            while !shared.stop.load(Relaxed) {
                random = random
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                if this.is_updater {
                    shared.change(random >> 33);
                } else if let Err(check) = shared.look(random >> 33) {
                    shared.wrong.store(check, Relaxed);
                }
                rounds = rounds.wrapping_add(1);
                if rounds % 1024 == 0 {
                    fsleep(Delta::from_millis(1));
                }
            }
            shared.running.fetch_sub(1, Full);
        }
    }

    impl Shared {
        /// One look-up of each kind; fails with the number of the check.
        fn look(&self, random: u64) -> Result<(), usize> {
            let check = |number: usize, holds: bool| if holds { Ok(()) } else { Err(number) };
            let number = random % UNITS;
            let (unit, fixed) = (unit(number), is_fixed(number));
            let (sector, offset) = (unit.0 * 8, random >> 8 & 7);
            let entries = &self.entries;

            let found = entries.get(unit);
            check(1, !fixed || found.is_some())?;
            check(2, found.is_none_or(|e| e.unit == unit && is_sound(&e)))?;
            check(3, !fixed || !entries.is_healthy(sector, 8))?;
            check(
                4,
                !fixed || !entries.is_on_main(Stamp::LAST, sector, 8, PendingReads::Retry),
            )?;
            check(
                5,
                !entries.is_in_slots(sector, 8, Slot((number ^ 1) as u32)),
            )?;

            let guard = rcu_read_lock();
            let found = entries.first(sector, 8, &guard);
            check(6, found.is_none_or(|e| e.unit == unit && is_sound(&e)))?;
            check(7, !fixed || found.is_some())?;
            for look in [
                entries.look::<true>(sector + offset, 1, &guard),
                entries.look::<false>(sector + offset, 1, &guard),
            ] {
                match look {
                    Look::Healthy => check(8, !fixed)?,
                    Look::InSlot(slot, at) => {
                        check(9, at % 8 == offset && u64::from(slot.0) & 0xff == number)?;
                        check(10, mask_in(slot) >> offset & 1 != 0)?;
                    }
                    Look::Undecided => (),
                }
            }
            drop(guard);

            if random >> 16 & 15 == 0 {
                let (mut last, mut seen, mut sound) = (None, 0, true);
                entries.visit(Unit(0), |e| {
                    sound &= last < Some(e.unit) && is_sound(&e);
                    last = Some(e.unit);
                    seen += u64::from(is_fixed(u64::from(e.slot.0) & 0xff));
                    true
                });
                check(11, sound)?;
                check(12, seen == FIXED)?;
                let mut sound = true;
                entries.visit_losses(|l| sound &= l.mask == ALL && u64::from(l.slot.0) == l.unit.0);
                check(13, sound)?;
            }
            self.looks.fetch_add(1, Relaxed);
            Ok(())
        }

        /// One change of some kind.
        fn change(&self, random: u64) {
            let (number, kind) = (random % UNITS, random >> 8 & 15);
            let entry = entry(number, random >> 12);
            match kind {
                0 => self.entries.add_loss(loss(ELSEWHERE)),
                1 => self.entries.keep_losses(ELSEWHERE, 0),
                2 => {
                    self.entries.hold(&entry);
                }
                3 => self.entries.hold_to_restore(&entry),
                4..9 if !is_fixed(number) => self.entries.set(entry.unit, None),
                _ => self.entries.set(entry.unit, Some(&entry)),
            }
            self.changes.fetch_add(1, Relaxed);
        }
    }

    fn loss(unit: Unit) -> Loss {
        Loss {
            unit,
            mask: ALL,
            slot: Slot(unit.0 as u32),
        }
    }

    #[test]
    fn readers_beside_updaters_see_whole_entries_and_miss_none() -> Result {
        let geometry = Geometry::plan(1 << 24, 1 << 20, 8, 2).map_err(|_| EINVAL)?;
        let entries = Arc::pin_init(Entries::new(&geometry, geometry.table_blocks), GFP_KERNEL)?;
        for number in 0..UNITS {
            if number % 2 == 0 {
                entries.add_loss(loss(unit(number)));
            }
            if is_fixed(number) {
                entries.set(unit(number), Some(&entry(number, 0)));
            }
        }
        let shared = Arc::new(
            Shared {
                entries,
                stop: Atomic::new(false),
                running: Atomic::new(6),
                looks: Atomic::new(0),
                changes: Atomic::new(0),
                wrong: Atomic::new(0),
            },
            GFP_KERNEL,
        )?;
        for seed in 0..6 {
            let shared = shared.clone();
            let worker = pin_init!(Worker {
                shared,
                is_updater: seed % 3 == 0,
                seed,
                work <- new_work!("dm_remap::stress"),
            });
            let worker: Arc<Worker> = Arc::pin_init(worker, GFP_KERNEL)?;
            let _ = workqueue::system_unbound().enqueue::<_, 0>(worker);
        }
        let start = Instant::<Monotonic>::now();
        let is_enough = || shared.looks.load(Relaxed) > 1000 && shared.changes.load(Relaxed) > 1000;
        // A machine that is busy with something else gets some time more.
        while (start.elapsed().as_millis() < 2000 || !is_enough())
            && start.elapsed().as_millis() < 120_000
            && shared.wrong.load(Relaxed) == 0
        {
            fsleep(Delta::from_millis(10));
        }
        shared.stop.store(true, Relaxed);
        while shared.running.load(Relaxed) != 0 {
            fsleep(Delta::from_millis(1));
        }
        let (looks, changes) = (shared.looks.load(Relaxed), shared.changes.load(Relaxed));
        pr_info!("stress: {looks} rounds of look-ups, {changes} changes\n");
        assert_eq!(shared.wrong.load(Relaxed), 0);
        assert!(is_enough());
        Ok(())
    }
}

/// The engine with the kernel's checksum and `zerocopy`.
#[kunit_tests(dm_remap_engine)]
mod engine_tests {
    use super::*;

    fn geometry() -> Result<Geometry> {
        Geometry::plan(1 << 20, 1 << 16, 8, 3).map_err(|_| EINVAL)
    }

    #[test]
    fn blocks_are_read_as_they_were_written() -> Result {
        let g = geometry()?;
        let mut bytes = KBox::new([0u8; BLOCK_SIZE], GFP_KERNEL)?;
        let superblock = Superblock {
            uuid: [7; 16],
            generation: 3,
            read_only: false,
            geometry: g,
            created: 5,
            label: [0; 64],
            main: Identity::default(),
        };
        superblock.write(&mut bytes, 1, dm::crc32c);
        assert!(Superblock::read(&bytes, 1, dm::crc32c) == Ok(superblock));
        assert!(Superblock::read(&bytes, 0, dm::crc32c).is_err());

        format::blank_table_block(&mut bytes, &[7; 16], 0, dm::crc32c);
        let update = Update {
            slot: Slot(5),
            state: State::Entry {
                unit: Unit(9),
                mask: 0x81,
            },
            cause: Cause::Write,
        };
        format::set_record(&mut bytes, 5, &update, 1);
        assert!(format::table_generation(&bytes, &[7; 16], 0, dm::crc32c).is_err());
        format::seal_table_block(&mut bytes, 2, dm::crc32c);
        assert!(format::table_generation(&bytes, &[7; 16], 0, dm::crc32c) == Ok(2));
        assert!(format::record(&bytes, 0, 5, &g) == Ok(update.state));
        assert!(format::record(&bytes, 0, 6, &g) == Ok(State::Free));
        bytes[4000] ^= 1;
        assert!(format::table_generation(&bytes, &[7; 16], 0, dm::crc32c).is_err());
        Ok(())
    }

    #[test]
    fn requests_are_split_at_entries_and_at_mask_bits() -> Result {
        let g = geometry()?;
        let entry = Entry {
            lost: 0b0000_0010,
            ..Entry::new(Unit(10), Slot(4), 0b0011_1100)
        };
        let held = |sector| Place::Relocated {
            slot: Slot(4),
            sector,
        };
        let unset = Place::Unset { mask: entry.mask };
        let slot = g.slot_sector(Slot(4));
        let split = |sector, count, cut| first_part(&g, sector, count, Some(entry), cut);
        assert!(first_part(&g, 70, 100, None, Cut::AtMask) == (100, Place::Healthy));
        assert!(split(70, 100, Cut::AtMask) == (10, Place::Healthy));
        assert!(split(80, 90, Cut::AtMask) == (1, unset));
        assert!(split(81, 90, Cut::AtMask) == (1, Place::Lost));
        assert!(split(82, 88, Cut::AtMask) == (4, held(slot + 2)));
        assert!(split(83, 2, Cut::AtUnit) == (2, held(slot + 3)));
        assert!(split(84, 84, Cut::AtUnit) == (4, unset));
        assert!(split(86, 84, Cut::AtMask) == (2, unset));
        assert!(split(88, 80, Cut::AtMask) == (80, Place::Healthy));

        // Of the next two units, too, slots that follow have all that is wanted.
        let entry = Entry::new(Unit(10), Slot(4), 0xfc);
        let in_slot = |at: u64, _| (at < 104).then(|| slot + (at - 80));
        let run = |sector, cut, most| first_run(&g, sector, 40, entry, cut, most, in_slot);
        assert!(run(82, Cut::AtMask, u32::MAX) == (22, held(slot + 2)));
        assert!(run(82, Cut::AtUnit, 21) == (14, held(slot + 2)));
        assert!(run(81, Cut::AtUnit, u32::MAX) == (7, Place::Unset { mask: 0xfc }));
        Ok(())
    }

    #[test]
    fn bad_messages_are_refused() {
        assert!(
            Message::parse(&[b"remap", b"5", b"3"], 8)
                == Ok(Message::Remap(Range {
                    sector: 5,
                    count: 3
                }))
        );
        assert!(Message::parse(&[b"remap", b"5", b"4"], 8).is_err());
        assert!(Message::parse(&[b"no_such_thing"], 8).is_err());
    }
}
