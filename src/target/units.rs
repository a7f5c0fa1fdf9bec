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
/// Whoever holds one may wait for I/O and for commits, neither of which takes one; nobody holds two.
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

impl Drop for UnitGuard<'_> {
    fn drop(&mut self) {
        let mut busy = self.0.busy.lock();
        busy.retain(|(first, _)| *first != self.1);
        self.0.freed.notify_all();
    }
}
