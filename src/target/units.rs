// SPDX-License-Identifier: GPL-2.0

//! One change at a time to a unit's entry.

use crate::engine::Unit;
use kernel::{
    new_condvar, new_mutex,
    prelude::*,
    sync::{CondVar, Mutex},
};

/// Locks that may be held at a time, more than the queue runs works; more wait.
const MAX_BUSY: usize = 2048;

/// Locks of single units and of ranges of them.
///
/// Whoever holds one may wait for I/O and for commits, neither of which takes one. Nobody waits for one while holding
/// another: a second one is taken only if it is free ([`UnitLocks::try_lock`]).
#[pin_data]
pub(super) struct UnitLocks {
    /// The first and the last unit of each lock that is held. Capacity [`MAX_BUSY`], never grows.
    #[pin]
    busy: Mutex<KVec<(Unit, Unit)>>,
    #[pin]
    freed: CondVar,
}

/// The lock of some units, until dropped.
pub(super) struct UnitGuard<'a>(&'a UnitLocks, Unit);

impl UnitLocks {
    /// No unit is locked.
    pub(super) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            busy <- new_mutex!(KVec::with_capacity(MAX_BUSY, GFP_KERNEL)?, "dm_remap::busy"),
            freed <- new_condvar!("dm_remap::freed"),
        }? Error)
    }

    /// Locks `unit`. May sleep.
    pub(super) fn lock(&self, unit: Unit) -> UnitGuard<'_> {
        self.lock_range(unit, unit)
    }

    /// Locks `unit` if nobody holds it. May sleep, but waits for nobody who does I/O.
    pub(super) fn try_lock(&self, unit: Unit) -> Option<UnitGuard<'_>> {
        let mut busy = self.busy.lock();
        let is_busy = busy.iter().any(|(from, to)| *from <= unit && unit <= *to);
        (!is_busy && busy.push_within_capacity((unit, unit)).is_ok()).then(|| UnitGuard(self, unit))
    }

    /// Locks those of `units` that nobody holds, and leaves only them in the list. As [`Self::try_lock`].
    pub(super) fn try_lock_each<'a>(&'a self, units: &'a mut KVec<Unit>) -> UnitsGuard<'a> {
        units.retain(|unit| self.try_lock(*unit).map(core::mem::forget).is_some());
        UnitsGuard(self, units)
    }

    fn unlock(&self, unit: Unit) {
        let mut busy = self.busy.lock();
        busy.retain(|(first, _)| *first != unit);
        self.freed.notify_all();
    }

    /// Locks the units from `first` to `last`. May sleep.
    pub(super) fn lock_range(&self, first: Unit, last: Unit) -> UnitGuard<'_> {
        let mut busy = self.busy.lock();
        while busy.iter().any(|(from, to)| *from <= last && first <= *to)
            || busy.push_within_capacity((first, last)).is_err()
        {
            self.freed.wait(&mut busy);
        }
        UnitGuard(self, first)
    }
}

/// The locks of several units, each by itself, until dropped.
pub(super) struct UnitsGuard<'a>(&'a UnitLocks, &'a [Unit]);

impl UnitsGuard<'_> {
    /// The units.
    pub(super) fn units(&self) -> &[Unit] {
        self.1
    }
}

impl Drop for UnitGuard<'_> {
    fn drop(&mut self) {
        self.0.unlock(self.1);
    }
}

impl Drop for UnitsGuard<'_> {
    fn drop(&mut self) {
        self.1.iter().for_each(|unit| self.0.unlock(*unit));
    }
}
