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
    /// Whether it is written through the spare's cache.
    pub(in super::super) fn is_through(self) -> bool {
        self.through
    }

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

impl Store<'_> {
    /// How data are put in slots now. Any context.
    pub(in super::super) fn filling(&self) -> Filling {
        // Who sees the failure of a commit's flush sees what follows from it.
        let failures = self.flush_failures();
        Filling {
            failures,
            through: self.through.load(Relaxed),
        }
    }

    /// Flushes of the spare that have failed. Any context.
    fn flush_failures(&self) -> u32 {
        self.flush_failures.load(Acquire)
    }

    /// A flush of the spare failed. Any context.
    pub(in super::super) fn flush_failed(&self) {
        self.flush_failures.fetch_add(1, Release);
    }

    /// Does `what`; and once more, if that fails, and so did a flush that may have lost what it put in a slot. May sleep.
    pub(in super::super) fn once_more<T, E>(
        &self,
        mut what: impl FnMut() -> Result<T, E>,
    ) -> Result<T, E> {
        let failures = self.flush_failures();
        what().or_else(|error| match failures == self.flush_failures() {
            true => Err(error),
            false => what(),
        })
    }

    /// Whether a flush that succeeds makes data durable that were put in a slot like this, if it needs one.
    pub(super) fn is_kept(&self, filling: Filling) -> bool {
        filling.through || filling.failures == self.flush_failures()
    }

    /// Makes durable what completed before. May sleep.
    pub(in super::super) fn flush_cache(&self) -> Result<(), BlkStatus> {
        let done = self.spare.device().flush();
        if done.is_err() {
            self.flush_failed();
        }
        done
    }

    /// The flush before a commit of what was put in slots. `Ok(false)`: there was none that succeeded, and none is
    /// needed. May sleep.
    pub(super) fn commit_flush(&self, disk: &mut Disk) -> Result<bool, BlkStatus> {
        let failed = disk.flush_failed;
        if failed.is_some_and(|at| at.elapsed() < AGAIN) {
            return Ok(false);
        }
        let done = self.spare.device().flush();
        disk.flush_failed = done.is_err().then(Instant::now);
        self.through.store(done.is_err(), Relaxed);
        match (done, failed) {
            (Ok(()), None) => Ok(true),
            (Ok(()), Some(_)) => {
                pr_info!("{}: the spare can be flushed again\n", self.name());
                Ok(true)
            }
            (Err(_), Some(_)) => Ok(false),
            (Err(status), None) => {
                // Behind `through`: see `filling`.
                self.flush_failed();
                pr_warn!(
                    "{}: the spare cannot be flushed ({:?}), and is written through\n",
                    self.name(),
                    status
                );
                Err(status)
            }
        }
    }
}
