// SPDX-License-Identifier: GPL-2.0

//! Flushes of the spare, and what follows from one that fails.
//!
//! What is put in a slot lies in the spare's cache until a flush, and a flush that fails may lose it. So no commit may say that it
//! is in the slot after such a flush, however well its own one goes: it has to be put there once more. And after a commit whose
//! flush fails, until one does not, slots are written through the cache (FUA), and need no flush. (A spare may be made of several
//! devices, one of which fails each flush, while those that matter work.)

use super::{Disk, Store};
use crate::dm::{BlkStatus, Durability, Fua};
use kernel::{
    prelude::*,
    sync::atomic::{Acquire, Relaxed, Release},
    time::{Delta, Instant},
};

/// No flush for a commit is tried so soon after one that failed, which may have taken half a minute.
const AGAIN: Delta = Delta::from_secs(10);

/// How data are put in a slot of which a commit will speak. To be had before.
#[derive(Clone, Copy)]
pub(in super::super) struct Filling {
    /// Flushes that had failed.
    failures: u32,
    through: bool,
}

impl Filling {
    /// For writes of this layer's.
    pub(in super::super) fn durability(self) -> Durability {
        match self.through {
            true => Durability::Durable,
            false => Durability::Cached,
        }
    }

    /// For bios, if they were to be repeated as `fua` says.
    pub(in super::super) fn fua(self, fua: Fua) -> Fua {
        match self.through {
            true => Fua::Always,
            false => fua,
        }
    }
}

/// What the spare's cache has that is to be made durable.
#[derive(Clone, Copy)]
pub(super) struct Kept {
    /// Flushes that had failed.
    failures: u32,
    is_any: bool,
}

impl Kept {
    /// Nothing yet.
    pub(super) fn new(store: &Store<'_>) -> Self {
        Self {
            failures: store.flush_failures(),
            is_any: false,
        }
    }

    /// Adds data that were put in a slot. `false`: no, they may be gone.
    pub(super) fn add(&mut self, filling: Filling) -> bool {
        let is_kept = filling.failures == self.failures;
        self.is_any |= is_kept && !filling.through;
        is_kept || filling.through
    }
}

impl Store<'_> {
    /// How data are put in slots now. Any context.
    pub(in super::super) fn filling(&self) -> Filling {
        // Who sees that a flush of the store's failed sees what follows from it.
        let failures = self.flush_failures();
        Filling {
            failures,
            through: self.is_through(),
        }
    }

    /// Whether the last flush of the store's failed. Does not change as long as `disk` is locked and nothing is flushed.
    pub(super) fn is_through(&self) -> bool {
        self.through.load(Relaxed)
    }

    fn flush_failures(&self) -> u32 {
        self.flush_failures.load(Acquire)
    }

    /// A flush of the spare failed. Any context.
    pub(in super::super) fn flush_failed(&self) {
        self.flush_failures.fetch_add(1, Release);
    }

    /// Does `what`; and up to twice more, if that fails, and so did a flush that may have lost what it put in a slot. May sleep.
    pub(in super::super) fn once_more<T, E>(
        &self,
        mut what: impl FnMut() -> Result<T, E>,
    ) -> Result<T, E> {
        let mut more = 2;
        loop {
            let failures = self.flush_failures();
            let done = what();
            if done.is_ok() || more == 0 || failures == self.flush_failures() {
                return done;
            }
            more -= 1;
        }
    }

    /// Makes durable what completed before. Fails at once if that failed a moment ago. May sleep.
    pub(super) fn flush_cache(&self, disk: &mut Disk) -> Result<(), BlkStatus> {
        if disk.flush_failed.is_some_and(|at| at.elapsed() < AGAIN) {
            return Err(BlkStatus::IOERR);
        }
        let done = self.spare.device().flush();
        let failed = done.is_err().then(Instant::now);
        let was_through = core::mem::replace(&mut disk.flush_failed, failed).is_some();
        self.through.store(done.is_err(), Relaxed);
        let name = self.name();
        match done {
            Ok(()) if was_through => pr_info!("{name}: the spare can be flushed again\n"),
            Ok(()) => (),
            Err(status) => {
                // Behind `through`: see `filling`.
                self.flush_failed();
                if !was_through {
                    pr_warn!("{name}: the spare cannot be flushed: {status:?}\n");
                }
            }
        }
        done
    }

    /// As [`Self::flush_cache`]. Fails also if another flush failed since `kept` was begun.
    pub(super) fn flush_kept(&self, kept: Kept, disk: &mut Disk) -> Result<(), BlkStatus> {
        self.flush_cache(disk)?;
        match kept.failures == self.flush_failures() {
            true => Ok(()),
            false => Err(BlkStatus::IOERR),
        }
    }

    /// The flush before a commit. `false`: something is not durable that is to be. May sleep.
    pub(super) fn commit_flush(&self, kept: Kept, disk: &mut Disk) -> bool {
        self.flush_kept(kept, disk).is_ok() || !kept.is_any
    }
}
