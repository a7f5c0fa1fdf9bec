// SPDX-License-Identifier: GPL-2.0

//! Who commits takes along what others are about to bring.
//!
//! Many writes that fail at once are recovered side by side, and come to their commits one by one. So whoever is to write
//! waits for those that have been handed to recovery and do not wait for main, which may take seconds: until they have
//! brought their requests or are through, but a moment at most. They may wait for what whoever waits here holds, or may not even
//! run: no more depends on this than how many are written at once. A write alone waits for nobody.

use super::{Requests, Store};
use kernel::{
    sync::{atomic::Relaxed, CondVarTimeoutResult, MutexGuard},
    time::msecs_to_jiffies,
};

/// About as long as a disk takes to write.
const MOMENT_MS: u32 = 10;

/// A write that nobody waits for: it waits for main.
pub(in super::super) struct Aside<'a, 't>(&'a Store<'t>);

impl<'t> Store<'t> {
    /// A write is handed to recovery. Any context.
    pub(in super::super) fn comes(&self) {
        self.coming.add(1, Relaxed);
    }

    /// It is through. May sleep.
    pub(in super::super) fn has_come(&self) {
        let _requests = self.requests.lock();
        self.coming.add(-1, Relaxed);
        self.arrived.notify_all();
    }

    /// A write that was handed to recovery may wait for main until this is dropped. May sleep.
    pub(in super::super) fn aside(&self) -> Aside<'_, 't> {
        self.has_come();
        Aside(self)
    }

    /// Waits a moment for who comes with requests. May sleep.
    pub(super) fn gather(&self, requests: &mut MutexGuard<'_, Requests>) {
        let mut left = msecs_to_jiffies(MOMENT_MS);
        while requests.callers > 0 && self.coming.load(Relaxed) > requests.callers {
            match self.arrived.wait_interruptible_timeout(requests, left) {
                CondVarTimeoutResult::Woken { jiffies } => left = jiffies,
                _ => return,
            }
        }
    }
}

impl Drop for Aside<'_, '_> {
    fn drop(&mut self) {
        self.0.comes();
    }
}
