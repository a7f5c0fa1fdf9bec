// SPDX-License-Identifier: GPL-2.0

//! Event counters.

use kernel::sync::atomic::{Atomic, Relaxed};

/// A count of events that are rare: none happens on the way of a bio that succeeds.
pub(super) struct Counter(Atomic<u64>);

impl Counter {
    /// Zero.
    pub(super) const fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// Counts `n` more. Any context.
    pub(super) fn add(&self, n: u64) {
        self.0.add(n, Relaxed);
    }

    /// The count.
    pub(super) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Begins at zero again. Any context.
    pub(super) fn clear(&self) {
        self.0.store(0, Relaxed);
    }
}
