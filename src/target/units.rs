// SPDX-License-Identifier: GPL-2.0

//! One change at a time to a unit's entry.

use crate::engine::Unit;
use kernel::{
    new_condvar, new_mutex,
    prelude::*,
    sync::{CondVar, Mutex},
};

/// Units that may be changing at a time; more wait.
const MAX_BUSY: usize = 1024;

/// Locks of single units.
///
/// Whoever holds one may wait for I/O and for commits, neither of which takes one; nobody holds two.
#[pin_data]
pub(super) struct UnitLocks {
    /// Capacity [`MAX_BUSY`], never grows.
    #[pin]
    busy: Mutex<KVec<Unit>>,
    #[pin]
    freed: CondVar,
}

/// The lock of one unit, until dropped.
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
        let mut busy = self.busy.lock();
        while busy.contains(&unit) || busy.push_within_capacity(unit).is_err() {
            self.freed.wait(&mut busy);
        }
        UnitGuard(self, unit)
    }
}

impl Drop for UnitGuard<'_> {
    fn drop(&mut self) {
        let mut busy = self.0.busy.lock();
        busy.retain(|unit| *unit != self.1);
        self.0.freed.notify_all();
    }
}
