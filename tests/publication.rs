// SPDX-License-Identifier: GPL-2.0

//! A model test of how entries are published and units are moved beside I/O: `loom` runs small scenarios in
//! every order of their steps and with every value that the memory orders let a load return.
//!
//! The model repeats `src/target/entries.rs`, and what `map`, `end_io`, `recover.rs`, `write.rs` and `relocate.rs`
//! do with it for a whole unit at a time; what is in a slice is the engine's own code. Each [`Bug`] breaks one step,
//! and loom must find it.
//!
//! What stands for what:
//!
//! - `READ_ONCE`, a volatile load: `Relaxed`. `smp_rmb`: `fence(Acquire)`, which also keeps later stores
//!   behind, as `smp_rmb` does not; nothing here depends on that.
//! - `Full` of an atomic operation: `AcqRel`, which is less; the kernel has a full barrier on both sides. So
//!   what passes here needs no full barrier.
//! - An RCU section: the reader's own mutex, held. A grace period: each reader's mutex, taken once. That is the
//!   guarantee of RCU, no more: a section that the grace period did not wait for sees all that was before it.
//!   SRCU sections, the same with other mutexes.
//! - `kvfree_rcu`: a list, and [`Entries::reclaim`], which the scenario calls at the end of a thread.
//! - A medium: atomic exchanges, `AcqRel`. A device holds one value at a time, and its answer is behind the
//!   request and behind what it answered before, through registers and interrupts.
//! - The unit's lock, the updater's: mutexes. The commit: nothing; it succeeds, but in [`in_vain`].
//!
//! Not covered: loads that see stores which come later in the program (loom does not make such), more than one
//! writer at a time to a unit beside a move, the mask's bits one by one, losses, memory that runs out.

#![allow(missing_docs)]

use dm_remap::engine::{
    entries::{Entry, Layout},
    geometry::Geometry,
    Slot, Unit,
};
use loom::{
    cell::UnsafeCell,
    sync::{
        atomic::{
            fence, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed, Release},
        },
        Arc, Mutex, MutexGuard,
    },
    thread,
};
use std::rc::Rc;

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    None,
    /// The filter's bit is set after the version was counted up.
    BitAfterVersion,
    /// The version is counted up before the entry is published.
    VersionBeforeEntry,
    /// The version is read without a barrier.
    NoReadBarrier,
    /// A bio notes the version behind its look-up.
    StampBehindLookup,
    /// A slice is published by a store that orders nothing.
    PublishedUnordered,
    /// A slice is published and then filled.
    PublishedUnfilled,
    /// A slice is freed at once.
    FreedAtOnce,
    /// Readers look into slices outside RCU's sections.
    NoSection,
    /// A unit is copied, then held.
    CopyBeforeHold,
    /// The entry is not held.
    NotHeld,
    /// `end_io` asks nothing.
    NothingAsked,
    /// A bio is repeated without the unit's lock.
    NoUnitLock,
    /// Units are restored as they are relocated.
    NoRestored,
    /// Whether units were restored is asked first, and then what entries there are.
    RestoredAskedFirst,
    /// A slot is another unit's as soon as it is free.
    SlotReusedAtOnce,
    /// A bio's section begins when the RCU section that found the slot is over.
    SectionTooLate,
    /// Only the bios' sections are waited for, not RCU's.
    NoGracePeriod,
    /// A write is acknowledged before its entry is published.
    AckBeforeEntry,
    /// A unit whose relocation could not be committed is not held any more.
    NotHeldInVain,
}

/// Threads: the one that runs the scenario, and two more.
const CPUS: usize = 3;

/// One slice. In place of an address, cells have its number, so that a reader of one that was freed is found out
/// whatever the allocator does.
struct Slice {
    words: UnsafeCell<Vec<u64>>,
    freed: UnsafeCell<bool>,
}

type Guard<'a> = MutexGuard<'a, ()>;

/// Mutexes of which each thread has its own.
struct Sections([Mutex<()>; CPUS]);

impl Sections {
    fn new() -> Self {
        Self(std::array::from_fn(|_| Mutex::new(())))
    }

    fn enter(&self, cpu: usize) -> Guard<'_> {
        self.0[cpu].lock().unwrap()
    }

    fn wait(&self) {
        for mutex in &self.0 {
            drop(mutex.lock().unwrap());
        }
    }
}

/// As `Entries`, with one region and two groups.
struct Entries {
    bug: Bug,
    layout: Layout,
    region: usize,
    all: u64,
    filter: AtomicUsize,
    cell: AtomicUsize,
    version: AtomicUsize,
    restored: AtomicUsize,
    updater: Mutex<()>,
    rcu: Sections,
    // What the model needs of its own; loom is not to see these.
    slices: std::sync::Mutex<Vec<Rc<Slice>>>,
    retired: std::sync::Mutex<Vec<usize>>,
}

/// Where a bio goes.
enum Way<'a> {
    Main,
    /// In a section.
    Slot(Slot, Guard<'a>),
    /// To process context.
    Queue,
}

impl Entries {
    fn new(bug: Bug, geometry: &Geometry, region: usize) -> Self {
        Self {
            bug,
            layout: Layout::new(geometry, geometry.table_blocks),
            region,
            all: geometry.unit_mask(Unit(0)),
            filter: AtomicUsize::new(0),
            cell: AtomicUsize::new(0),
            version: AtomicUsize::new(0),
            restored: AtomicUsize::new(0),
            updater: Mutex::new(()),
            rcu: Sections::new(),
            slices: std::sync::Mutex::default(),
            retired: std::sync::Mutex::default(),
        }
    }

    /// `Version::read`.
    fn version(&self) -> usize {
        let fence = || {
            if self.bug != Bug::NoReadBarrier {
                fence(Acquire);
            }
        };
        fence();
        let version = self.version.load(Relaxed);
        fence();
        version
    }

    fn bit(&self, unit: Unit) -> usize {
        1 << usize::from(unit != Unit(self.region as u64))
    }

    fn is_clear(&self, unit: Unit) -> bool {
        self.filter.load(Relaxed) & self.bit(unit) == 0
    }

    /// `RcuSliceCell::read`. The guard is the caller's matter.
    fn words(&self) -> Vec<u64> {
        let number = self.cell.load(Acquire);
        if number == 0 {
            return Vec::new();
        }
        let slice = self.slices.lock().unwrap()[number - 1].clone();
        // SAFETY: Loom sees to it that nobody changes it at the same time: that is what is tested.
        slice
            .freed
            .with(|freed| assert!(!unsafe { *freed }, "a reader sees a slice that was freed"));
        // SAFETY: As above.
        slice.words.with(|words| unsafe { (*words).clone() })
    }

    fn enter(&self, cpu: usize) -> Option<Guard<'_>> {
        (self.bug != Bug::NoSection).then(|| self.rcu.enter(cpu))
    }

    fn get(&self, cpu: usize, unit: Unit) -> Option<Entry> {
        let _guard = self.enter(cpu);
        self.find(&self.words(), unit)
    }

    fn find(&self, words: &[u64], unit: Unit) -> Option<Entry> {
        let index = self.layout.find(words, self.layout.place(unit).1);
        let found = self.layout.entry(self.region, words, index, || &[]);
        found.filter(|e| e.unit == unit)
    }

    fn is_on_main(&self, cpu: usize, stamp: usize, unit: Unit) -> bool {
        let is_not_restored =
            || self.bug == Bug::NoRestored || stamp >= self.restored.load(Acquire);
        let has_no_entry = || {
            let entry = || self.get(cpu, unit);
            self.is_clear(unit) || entry().is_none_or(|e| !e.held && e.mask == 0)
        };
        let early = (self.bug == Bug::RestoredAskedFirst).then(is_not_restored);
        has_no_entry() && early.unwrap_or_else(is_not_restored)
    }

    fn is_in_slot(&self, cpu: usize, unit: Unit, slot: Slot) -> bool {
        self.get(cpu, unit)
            .is_some_and(|e| e.slot == slot && !e.held)
    }

    fn hold(&self, cpu: usize, entry: &Entry) -> usize {
        let bump = || self.version.fetch_add(1, AcqRel) + 1;
        let early = (self.bug == Bug::VersionBeforeEntry).then(bump);
        let held = self.bug != Bug::NotHeld;
        self.publish(cpu, entry.unit, Some(&Entry { held, ..*entry }));
        let version = early.unwrap_or_else(bump);
        if self.bug == Bug::BitAfterVersion {
            self.filter.fetch_or(self.bit(entry.unit), AcqRel);
        }
        version
    }

    fn hold_to_restore(&self, cpu: usize, entry: &Entry) {
        let version = self.hold(cpu, entry);
        self.restored.store(version, Release);
    }

    fn set(&self, cpu: usize, unit: Unit, entry: Option<&Entry>) {
        self.publish(cpu, unit, entry);
        if self.bug == Bug::BitAfterVersion && entry.is_some() {
            self.filter.fetch_or(self.bit(unit), AcqRel);
        }
    }

    /// `Entries::set`.
    fn publish(&self, cpu: usize, unit: Unit, entry: Option<&Entry>) {
        let _updater = self.updater.lock().unwrap();
        if entry.is_some() && self.bug != Bug::BitAfterVersion {
            self.filter.fetch_or(self.bit(unit), AcqRel);
        }
        let old = {
            let _guard = self.enter(cpu);
            self.words()
        };
        let (before, behind) = self.layout.around(&old, unit);
        let packed = entry.map(|e| self.layout.pack(e));
        let packed = packed
            .as_ref()
            .map_or(&[][..], |p| &p[..self.layout.stride()]);
        let words = [before, packed, behind].concat();
        let slice = Rc::new(Slice {
            words: UnsafeCell::new(Vec::new()),
            freed: UnsafeCell::new(false),
        });
        let number = {
            let mut slices = self.slices.lock().unwrap();
            slices.push(slice.clone());
            slices.len()
        };
        // SAFETY: Loom sees to it that nobody looks at it at the same time: that is what is tested.
        let fill = || slice.words.with_mut(|to| unsafe { *to = words.clone() });
        let old = match self.bug {
            Bug::PublishedUnfilled => {
                let old = self.cell.swap(number, AcqRel);
                fill();
                old
            }
            Bug::PublishedUnordered => {
                fill();
                self.cell.swap(number, Relaxed)
            }
            _ => {
                fill();
                self.cell.swap(number, AcqRel)
            }
        };
        if old != 0 && self.bug == Bug::FreedAtOnce {
            self.free(old);
        } else if old != 0 {
            self.retired.lock().unwrap().push(old);
        }
    }

    /// A grace period, and what waits for one is freed.
    fn reclaim(&self) {
        let retired = std::mem::take(&mut *self.retired.lock().unwrap());
        self.rcu.wait();
        retired.into_iter().for_each(|old| self.free(old));
    }

    fn free(&self, number: usize) {
        let slice = self.slices.lock().unwrap()[number - 1].clone();
        // SAFETY: As in `publish`.
        slice.freed.with_mut(|freed| unsafe { *freed = true });
        // SAFETY: As in `publish`.
        slice.words.with_mut(|words| unsafe { (*words).clear() });
    }
}

/// What a device has in one place: one value for all sectors.
struct Medium(AtomicUsize);

impl Medium {
    fn read(&self) -> usize {
        self.0.fetch_add(0, AcqRel)
    }

    fn write(&self, value: usize) {
        self.0.swap(value, AcqRel);
    }
}

/// A target with two units, in one region, and two slots.
struct Target {
    bug: Bug,
    units: [Unit; 2],
    entries: Entries,
    sections: Sections,
    main: [Medium; 2],
    slots: [Medium; 2],
    locks: [Mutex<()>; 2],
    /// Main takes no writes.
    bad: bool,
}

const OLD: usize = 0;

impl Target {
    fn new(bug: Bug) -> Self {
        let geometry = Geometry::plan(1 << 20, 1 << 12, 8, 2).unwrap();
        let layout = Layout::new(&geometry, geometry.table_blocks);
        let region = |n| layout.place(Unit(n)).0;
        let second = (1..).find(|n| region(*n) == region(0) && layout.group_of(Unit(*n)) > 0);
        let media = || [0; 2].map(|value| Medium(AtomicUsize::new(value)));
        Self {
            bug,
            units: [Unit(0), Unit(second.unwrap())],
            entries: Entries::new(bug, &geometry, region(0)),
            sections: Sections::new(),
            main: media(),
            slots: media(),
            locks: [0; 2].map(|_| Mutex::new(())),
            bad: false,
        }
    }

    /// An entry of unit `n`, whose slot has all of it or nothing.
    fn entry(&self, n: usize, slot: Slot, full: bool) -> Entry {
        Entry::new(self.units[n], slot, if full { self.entries.all } else { 0 })
    }

    /// `map`: the version, and where the bio goes.
    fn map(&self, cpu: usize, n: usize, is_write: bool) -> (usize, Way<'_>) {
        let stamp = self.entries.version();
        let way = self.look(cpu, n, is_write);
        match self.bug {
            Bug::StampBehindLookup => (self.entries.version(), way),
            _ => (stamp, way),
        }
    }

    fn look(&self, cpu: usize, n: usize, is_write: bool) -> Way<'_> {
        let entries = &self.entries;
        if entries.is_clear(self.units[n]) {
            return Way::Main;
        }
        let guard = entries.enter(cpu);
        let Some(entry) = entries.find(&entries.words(), self.units[n]) else {
            return Way::Main;
        };
        if is_write && (entry.held || entry.mask == 0) {
            return Way::Queue;
        }
        if entry.mask == 0 {
            return Way::Main;
        }
        let _guard = guard.filter(|_| self.bug != Bug::SectionTooLate);
        Way::Slot(entry.slot, self.sections.enter(cpu))
    }

    fn read(&self, cpu: usize, n: usize) -> usize {
        match self.map(cpu, n, false).1 {
            Way::Slot(slot, _section) => self.slots[slot.0 as usize].read(),
            _ => self.main[n].read(),
        }
    }

    /// Returns when the write is acknowledged.
    fn write(&self, cpu: usize, n: usize, value: usize) {
        let unit = self.units[n];
        let (stamp, way) = self.map(cpu, n, true);
        let settled = || self.bug == Bug::NothingAsked || stamp == self.entries.version();
        let done = match way {
            Way::Main if self.bad => false,
            Way::Main => {
                self.main[n].write(value);
                settled() || self.entries.is_on_main(cpu, stamp, unit)
            }
            Way::Slot(slot, _section) => {
                self.slots[slot.0 as usize].write(value);
                settled() || self.entries.is_in_slot(cpu, unit, slot)
            }
            Way::Queue => false,
        };
        if !done {
            self.repeat(cpu, n, value);
        }
    }

    /// `Remap::write_part`. Slot n is for unit n, if it needs one.
    fn repeat(&self, cpu: usize, n: usize, value: usize) {
        let _guard = (self.bug != Bug::NoUnitLock).then(|| self.locks[n].lock().unwrap());
        let old = self.entries.get(cpu, self.units[n]);
        if old.is_none() && !self.bad {
            return self.main[n].write(value);
        }
        let slot = old.map_or(Slot(n as u32), |e| e.slot);
        self.slots[slot.0 as usize].write(value);
        let new = self.entry(n, slot, true);
        if old != Some(new) {
            self.entries.set(cpu, new.unit, Some(&new));
        }
    }

    /// `Remap::relocate`.
    fn relocate(&self, cpu: usize, n: usize, slot: Slot) {
        let _guard = self.locks[n].lock().unwrap();
        if self.entries.get(cpu, self.units[n]).is_some() {
            return;
        }
        let early = (self.bug == Bug::CopyBeforeHold).then(|| self.main[n].read());
        self.entries.hold(cpu, &self.entry(n, slot, false));
        let data = early.unwrap_or_else(|| self.main[n].read());
        self.slots[slot.0 as usize].write(data);
        let new = self.entry(n, slot, true);
        self.entries.set(cpu, new.unit, Some(&new));
    }

    /// `Remap::relocate` whose commit fails, though the table on the spare has it.
    fn relocate_in_vain(&self, cpu: usize, n: usize, slot: Slot) {
        let _guard = self.locks[n].lock().unwrap();
        let pending = self.entry(n, slot, false);
        self.entries.hold(cpu, &pending);
        self.slots[slot.0 as usize].write(self.main[n].read());
        let held = self.bug != Bug::NotHeldInVain;
        self.entries
            .set(cpu, pending.unit, Some(&Entry { held, ..pending }));
    }

    /// `Remap::restore`, and the wait of the message behind it. Returns the slot, which is free then.
    fn restore(&self, cpu: usize, n: usize) -> Option<Slot> {
        let guard = self.locks[n].lock().unwrap();
        let old = self.entries.get(cpu, self.units[n])?;
        self.entries.hold_to_restore(cpu, &old);
        self.main[n].write(self.slots[old.slot.0 as usize].read());
        self.entries.set(cpu, old.unit, None);
        drop(guard);
        if self.bug != Bug::SlotReusedAtOnce {
            if self.bug != Bug::NoGracePeriod {
                self.entries.rcu.wait();
            }
            self.sections.wait();
        }
        Some(old.slot)
    }
}

// ---- Scenarios

/// Who notes the new version finds the entry; slices are whole, and not freed. Unit 1 has an entry all the time.
fn look_up(bug: Bug) {
    let target = Arc::new(Target::new(bug));
    let other = target.entry(1, Slot(1), true);
    target.entries.set(0, other.unit, Some(&other));
    let reader = {
        let target = target.clone();
        thread::spawn(move || {
            let entries = &target.entries;
            let stamp = entries.version();
            let healthy = entries.is_clear(target.units[0]);
            let found = (!healthy)
                .then(|| entries.get(1, target.units[0]))
                .flatten();
            assert!(
                stamp == 0 || found.is_some_and(|e| e.slot == Slot(0)),
                "who noted the version missed the entry"
            );
            assert_eq!(
                entries.get(1, other.unit),
                Some(other),
                "an entry that was there all the time is not found"
            );
        })
    };
    let entry = target.entry(0, Slot(0), false);
    target.entries.hold(0, &entry);
    target.entries.reclaim();
    reader.join().unwrap();
}

/// A write, a read of it by the same thread, and the unit goes to a slot.
fn relocation(bug: Bug) {
    let target = Arc::new(Target::new(bug));
    let writer = {
        let target = target.clone();
        thread::spawn(move || {
            target.write(1, 0, 1);
            assert_eq!(target.read(1, 0), 1, "an acknowledged write is not read");
        })
    };
    target.relocate(0, 0, Slot(0));
    target.entries.reclaim();
    writer.join().unwrap();
    assert_eq!(target.read(0, 0), 1, "an acknowledged write is not read");
}

/// A write, and the unit goes to a slot and back.
fn there_and_back(bug: Bug) {
    let target = Arc::new(Target::new(bug));
    let writer = {
        let target = target.clone();
        thread::spawn(move || target.write(1, 0, 1))
    };
    target.relocate(0, 0, Slot(0));
    target.restore(0, 0);
    writer.join().unwrap();
    assert_eq!(target.read(0, 0), 1, "an acknowledged write is not read");
}

/// A write to a slot whose unit is restored, and the slot becomes another unit's.
fn reuse(bug: Bug) {
    let target = Arc::new(Target::new(bug));
    let entry = target.entry(0, Slot(0), true);
    target.entries.set(0, entry.unit, Some(&entry));
    let writer = {
        let target = target.clone();
        thread::spawn(move || {
            target.write(1, 0, 1);
            assert_eq!(target.read(1, 0), 1, "an acknowledged write is not read");
        })
    };
    let slot = target.restore(0, 0).unwrap();
    target.main[1].write(2);
    target.relocate(0, 1, slot);
    writer.join().unwrap();
    assert_eq!(target.read(0, 0), 1, "an acknowledged write is not read");
    assert_eq!(target.read(0, 1), 2, "a late write hit another unit's slot");
}

/// A write that main does not take makes an entry; who knows that it is acknowledged reads it, and another unit
/// of the region gets an entry at the same time.
fn failed_write(bug: Bug) {
    let mut target = Target::new(bug);
    target.bad = true;
    let target = Arc::new(target);
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let writer = {
        let (target, acknowledged) = (target.clone(), acknowledged.clone());
        thread::spawn(move || {
            if bug == Bug::AckBeforeEntry {
                acknowledged.store(1, Release);
            }
            target.write(1, 0, 1);
            acknowledged.store(1, Release);
        })
    };
    let other = {
        let target = target.clone();
        thread::spawn(move || {
            target.write(2, 1, 2);
            assert_eq!(target.read(2, 1), 2, "an acknowledged write is not read");
        })
    };
    let known = acknowledged.load(Acquire);
    let found = target.read(0, 0);
    assert!(
        known == 0 || found == 1,
        "an acknowledged write is not read"
    );
    assert!(found == OLD || found == 1, "what was never written is read");
    writer.join().unwrap();
    other.join().unwrap();
    assert_eq!(
        (target.read(0, 0), target.read(0, 1)),
        (1, 2),
        "an acknowledged write is not read"
    );
}

/// A write, and a relocation that could not be committed, as far as is known. Then the power fails: the table says that
/// the slot has the unit.
fn in_vain(bug: Bug) {
    let target = Arc::new(Target::new(bug));
    let writer = {
        let target = target.clone();
        thread::spawn(move || target.write(1, 0, 1))
    };
    target.relocate_in_vain(0, 0, Slot(0));
    writer.join().unwrap();
    let found = target.slots[0].read();
    assert_eq!(found, 1, "an acknowledged write is not read");
}

/// How often a thread is interrupted where it need not be, at most.
const PREEMPTIONS: usize = 3;

fn check(scenario: fn(Bug), bug: Bug) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(PREEMPTIONS);
    model.check(move || scenario(bug));
}

#[test]
fn who_notes_a_version_finds_what_it_counts() {
    check(look_up, Bug::None);
}

#[test]
fn a_write_beside_a_relocation_is_read() {
    check(relocation, Bug::None);
}

#[test]
fn a_write_older_than_a_relocation_and_a_restore_is_read() {
    check(there_and_back, Bug::None);
}

#[test]
fn a_write_to_a_slot_that_was_freed_hits_nobody() {
    check(reuse, Bug::None);
}

#[test]
fn a_write_that_made_an_entry_is_read() {
    check(failed_write, Bug::None);
}

#[test]
fn a_write_beside_a_relocation_that_may_be_on_the_spare_is_read_after_a_cut() {
    check(in_vain, Bug::None);
}

/// Loom finds each bug in the scenario, and as what it is.
#[test]
fn each_broken_step_is_found() {
    const MISSED: &str = "who noted the version missed the entry";
    const RACE: &str = "Causality violation";
    const LOST: &str = "an acknowledged write is not read";
    const HIT: &str = "a late write hit another unit's slot";
    type Scenario = fn(Bug);
    let bugs: [(Bug, Scenario, &str); 22] = [
        (Bug::BitAfterVersion, look_up, MISSED),
        (Bug::BitAfterVersion, relocation, LOST),
        (Bug::VersionBeforeEntry, look_up, MISSED),
        (Bug::VersionBeforeEntry, relocation, LOST),
        (Bug::NoReadBarrier, look_up, MISSED),
        (Bug::NoReadBarrier, relocation, LOST),
        (Bug::StampBehindLookup, relocation, LOST),
        (Bug::PublishedUnordered, look_up, RACE),
        (Bug::PublishedUnfilled, look_up, RACE),
        (Bug::FreedAtOnce, look_up, RACE),
        (Bug::NoSection, look_up, RACE),
        (Bug::CopyBeforeHold, relocation, LOST),
        (Bug::NotHeld, relocation, LOST),
        (Bug::NothingAsked, relocation, LOST),
        (Bug::NoUnitLock, relocation, LOST),
        (Bug::NoRestored, there_and_back, LOST),
        (Bug::RestoredAskedFirst, there_and_back, LOST),
        (Bug::SlotReusedAtOnce, reuse, HIT),
        (Bug::SectionTooLate, reuse, HIT),
        (Bug::NoGracePeriod, reuse, HIT),
        (Bug::AckBeforeEntry, failed_write, LOST),
        (Bug::NotHeldInVain, in_vain, LOST),
    ];
    for (bug, scenario, message) in bugs {
        let found = std::panic::catch_unwind(|| check(scenario, bug));
        let panic = found
            .err()
            .unwrap_or_else(|| panic!("{bug:?} is not found"));
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied());
        let text = text.unwrap_or("no message");
        assert!(text.contains(message), "{bug:?} is found as: {text}");
    }
}
