// SPDX-License-Identifier: GPL-2.0

//! Who commits takes along what others are about to bring.
//!
//! Many writes that fail at once are recovered side by side, and come to their commits one by one. So whoever is to write
//! waits until all writes that have been handed to recovery have brought their requests or are through, as long as one
//! after the other does. Those that wait for another write to the same unit do not count. The others may be held up all the
//! same, by main or by what whoever waits here holds, or not even run: after a moment in which nothing came, or some
//! moments in all, it goes on, and nobody waits again before no such write is left. So no more depends on this than how
//! many are written at once. A write alone waits for nobody.

use super::{Request, Requests, Store, MAX_REQUESTS};
use kernel::{
    sync::{atomic::Relaxed, CondVarTimeoutResult, MutexGuard},
    time::msecs_to_jiffies,
};

/// Longer than anything takes that works.
const MOMENT_MS: u32 = 500;
/// In all.
const LIMIT_MS: u32 = 2000;

impl Store<'_> {
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

    /// Does `wait`, in which a write that was handed to recovery may wait for others. May sleep.
    pub(in super::super) fn aside<R>(&self, wait: impl FnOnce() -> R) -> R {
        self.has_come();
        let done = wait();
        self.comes();
        done
    }

    /// Waits for who comes with requests, if one is there. May sleep.
    pub(super) fn gather(&self, requests: &mut MutexGuard<'_, Requests>) {
        if !requests.list.iter().any(Request::is_waiting) {
            return;
        }
        let mut left = msecs_to_jiffies(LIMIT_MS);
        loop {
            if self.coming.load(Relaxed) <= requests.callers {
                requests.in_vain = false;
                return;
            }
            if requests.in_vain || requests.list.len() == MAX_REQUESTS {
                return;
            }
            let most = left.min(msecs_to_jiffies(MOMENT_MS));
            let wait = self.arrived.wait_interruptible_timeout(requests, most);
            left -= match wait {
                CondVarTimeoutResult::Woken { jiffies } => most.saturating_sub(jiffies),
                _ => most,
            };
            requests.in_vain = left == 0 || !matches!(wait, CondVarTimeoutResult::Woken { .. });
        }
    }
}
