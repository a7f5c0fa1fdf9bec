// SPDX-License-Identifier: GPL-2.0

//! Pending entries, which no bio waits for: committed later, many at once, and dropped when their slots are needed or
//! an administrator says so.

use super::{store::MAX_UPDATES, Remap};
use crate::engine::{
    entries::Entry,
    format::{Cause, State, Update},
    Unit,
};
use kernel::{
    prelude::*,
    sync::atomic::{Acquire, Relaxed},
    time::{delay::fsleep, Delta},
};

/// Units that may wait to be committed or relocated; past that, none are added.
pub(super) const MAX_LISTED: usize = 1024;
/// Entries that give up their slots at a time.
const ROOM: usize = 32;

/// Units whose entries the spare does not have, or not as they are.
pub(super) struct Listed {
    /// Each once. Capacity [`MAX_LISTED`].
    units: KVec<Unit>,
    /// There was no room for one; if it is held, it is to be found again.
    overflowed: bool,
}

/// What is committed or dropped together.
pub(super) struct Batch {
    /// Capacity [`MAX_UPDATES`].
    units: KVec<Unit>,
    /// Capacity [`MAX_UPDATES`].
    updates: KVec<Update>,
}

impl Listed {
    /// None.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            units: KVec::with_capacity(MAX_LISTED, GFP_KERNEL)?,
            overflowed: false,
        })
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    fn add(&mut self, unit: Unit) {
        // No room: a pending entry lasts until the next activation only.
        if !self.units.contains(&unit) && self.units.push_within_capacity(unit).is_err() {
            self.overflowed = true;
        }
    }
}

impl Batch {
    /// Empty.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            units: KVec::with_capacity(MAX_UPDATES, GFP_KERNEL)?,
            updates: KVec::with_capacity(MAX_UPDATES, GFP_KERNEL)?,
        })
    }
}

/// What came of a step.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing is left to be done.
    Done,
    /// Something is.
    More,
    /// The spare cannot be written.
    Failed,
}

impl Remap<'_> {
    /// Remembers that the spare has not what `unit`'s entry says. May sleep.
    pub(super) fn commit_later(&self, unit: Unit) {
        self.lazy.lock().add(unit);
    }

    /// Remembers that `unit` has an entry that the spare does not know yet, and has it committed. May sleep.
    pub(super) fn commit_lazily(&self, unit: Unit) {
        self.commit_later(unit);
        self.commit_next();
    }

    /// Has the lazy sync go on, if there is something to commit.
    pub(super) fn commit_next(&self) {
        if !self.lazy.lock().is_empty() && !self.suspending.load(Acquire) {
            self.works.lazy_sync.queue();
        }
    }

    /// Commits those entries that wait for it whose units nobody is busy with, as many as fit in a table block. May
    /// sleep.
    pub(super) fn sync_step(&self) -> Step {
        let mut batch = self.batch.lock();
        let Batch { units, updates } = &mut *batch;
        units.clear();
        updates.clear();
        {
            let mut lazy = self.lazy.lock();
            if lazy.overflowed && lazy.is_empty() {
                lazy.overflowed = false;
                // Of what was not listed, that which must be committed.
                self.entries.visit(Unit(0), |entry| {
                    if entry.held {
                        lazy.add(entry.unit);
                    }
                    !lazy.overflowed
                });
            }
            for unit in lazy.units.iter().take(MAX_UPDATES) {
                let _ = units.push_within_capacity(*unit);
            }
        }
        if units.is_empty() {
            return Step::Done;
        }
        let locked = self.units.try_lock_each(units);
        if locked.units().is_empty() {
            // Who is busy with all of them may wait for a device.
            fsleep(Delta::from_millis(1));
            return Step::More;
        }
        for unit in locked.units() {
            if let Some(entry) = self.entries.get(*unit) {
                let _ =
                    updates.push_within_capacity(self.update_of(&entry, Self::cause_of(&entry)));
            }
        }
        if !self.store.commit(updates) {
            // For the next sync, by a message, at the next suspend or resume, or when the spare can be written again.
            return Step::Failed;
        }
        for unit in locked.units() {
            if let Some(entry) = self.entries.get(*unit).filter(|e| e.held) {
                // The table says again what memory does.
                let entry = Entry {
                    held: false,
                    ..entry
                };
                self.entries.set(*unit, Some(&entry));
            }
        }
        let mut lazy = self.lazy.lock();
        lazy.units.retain(|unit| !locked.units().contains(unit));
        match lazy.is_empty() && !lazy.overflowed {
            true => Step::Done,
            false => Step::More,
        }
    }

    /// Commits all entries that wait for it. No bio is with the target, or a message asks for it. May sleep. `false`: the
    /// spare cannot be written.
    pub(super) fn sync_all(&self) -> bool {
        loop {
            match self.sync_step() {
                Step::Done => return true,
                Step::Failed => return false,
                Step::More => (),
            }
        }
    }

    /// Why an entry is there, as far as memory knows.
    fn cause_of(entry: &Entry) -> Cause {
        match entry.mask {
            0 if entry.yields => Cause::Read,
            0 => Cause::Import,
            _ => Cause::Write,
        }
    }

    /// Whether an entry is only there because main could not be read: main is asked again, with or without it.
    fn yields(&self, entry: &Entry) -> bool {
        entry.yields && entry.mask | entry.lost == 0 && !entry.held && self.asks_again()
    }

    /// Whether a slot is free, or will be for data that needs one. May sleep.
    pub(super) fn has_room(&self) -> bool {
        self.store.with_slots(|s| s.free()) > 0
            || self.asks_again() && self.entries.counts().yielding > 0
    }

    /// Drops the pending entries of `batch` that `is_right`, whose units nobody is busy with: they are free on the spare
    /// before they are in memory. Returns how many; `None` if the spare cannot be written. May sleep.
    fn drop_pending(&self, batch: &mut Batch, is_right: impl Fn(&Entry) -> bool) -> Option<usize> {
        let Batch { units, updates } = batch;
        updates.clear();
        let locked = self.units.try_lock_each(units);
        for unit in locked.units() {
            if let Some(entry) = self.entries.get(*unit).filter(&is_right) {
                let _ = updates.push_within_capacity(Update {
                    slot: entry.slot,
                    state: State::Free,
                    cause: Cause::Message,
                });
            }
        }
        if !self.store.commit(updates) {
            // A replica may say so: the spare is to say again what memory does.
            locked
                .units()
                .iter()
                .for_each(|unit| self.commit_later(*unit));
            return None;
        }
        for unit in locked.units() {
            if let Some(entry) = self.entries.get(*unit).filter(&is_right) {
                self.entries.set(*unit, None);
                // No sector of it was ever there, so no bio is on its way to it.
                self.store.with_slots(|s| s.release(entry.slot));
            }
        }
        Some(updates.len())
    }

    /// No slot is free: entries that yield give up theirs. The caller may have a unit's lock, which is none of theirs.
    /// `false`: there is none to be had. May sleep.
    pub(super) fn make_room(&self) -> bool {
        // Whoever is busy with a unit is through in a moment, unless he waits for room himself.
        for _ in 0..1000 {
            let mut batch = self.room.lock();
            if !self.has_room() || !self.store.is_ready() {
                return false;
            }
            if self.store.with_slots(|s| s.left()) > 0 {
                // Somebody else has made room meanwhile.
                return true;
            }
            if self.entries.counts().yielding == 0 {
                // Of slots that are free no record can be written.
                return false;
            }
            let mut next = self.next_yielding.load(Relaxed);
            batch.units.clear();
            for from in [next, 0] {
                self.entries.visit(Unit(from), |entry| {
                    if self.yields(&entry) && !batch.units.contains(&entry.unit) {
                        let _ = batch.units.push_within_capacity(entry.unit);
                    }
                    batch.units.len() < ROOM
                });
                next = batch.units.last().map_or(0, |unit| unit.0.wrapping_add(1));
            }
            self.next_yielding.store(next, Relaxed);
            match self.drop_pending(&mut batch, |entry| self.yields(entry)) {
                None => return false,
                Some(0) => (),
                Some(_) => return true,
            }
            drop(batch);
            fsleep(Delta::from_millis(1));
        }
        false
    }

    /// Drops the pending entries among the units `first..=last`, which are at most [`MAX_UPDATES`]. Returns how many, `None`
    /// if the spare cannot be written. May sleep.
    pub(super) fn forget(&self, first: Unit, last: Unit) -> Option<usize> {
        let is_pending = |entry: &Entry| entry.mask | entry.lost == 0 && !entry.held;
        let mut dropped = 0;
        // Once more for those that somebody is busy with.
        loop {
            let mut batch = self.room.lock();
            batch.units.clear();
            self.entries.visit(first, |entry| {
                if entry.unit <= last && is_pending(&entry) {
                    let _ = batch.units.push_within_capacity(entry.unit);
                }
                entry.unit < last
            });
            if batch.units.is_empty() {
                return Some(dropped);
            }
            dropped += self.drop_pending(&mut batch, is_pending)?;
            // Who is busy may wait for room.
            drop(batch);
            fsleep(Delta::from_micros(100));
        }
    }
}
