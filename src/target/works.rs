// SPDX-License-Identifier: GPL-2.0

//! What goes on beside bios: each work does one step a run, and queues itself again if there is more to do.

use super::{pending::Step, Remap, RemapTarget};
use crate::dm::{Setup, TargetWork, Work};
use kernel::{
    prelude::*,
    sync::atomic::Acquire,
    time::{msecs_to_jiffies, Jiffies},
};

/// The works of one target.
pub(super) struct Works<'t> {
    /// [`LazySync`]
    pub(super) lazy_sync: Work<'t>,
    /// [`Background`]
    pub(super) background: Work<'t>,
    /// [`Watch`]
    pub(super) watch: Work<'t>,
}

impl<'t> Works<'t> {
    /// None is queued. May sleep.
    pub(super) fn new(setup: &mut Setup<'t, RemapTarget>) -> Result<Self> {
        Ok(Self {
            lazy_sync: setup.work::<LazySync>()?,
            background: setup.work::<Background>()?,
            watch: setup.work::<Watch>()?,
        })
    }

    /// Takes off the queue what has not begun. Any context.
    pub(super) fn cancel(&self) {
        for work in [&self.lazy_sync, &self.background, &self.watch] {
            work.cancel();
        }
    }
}

/// Commits pending entries.
struct LazySync;

impl TargetWork<RemapTarget> for LazySync {
    fn run(remap: &Remap<'_>) {
        if remap.suspending.load(Acquire) {
            return;
        }
        if remap.sync_step() == Step::More {
            remap.commit_next();
        }
        remap.report_mode();
        remap.watch_if_needed();
    }
}

/// Relocates units that main could hardly read.
struct Background;

impl TargetWork<RemapTarget> for Background {
    fn run(remap: &Remap<'_>) {
        if remap.suspending.load(Acquire) {
            return;
        }
        remap.relocate_one();
        remap.relocate_next();
        remap.watch_if_needed();
    }
}

/// Looks at devices that do not work.
struct Watch;

impl TargetWork<RemapTarget> for Watch {
    fn run(remap: &Remap<'_>) {
        remap.watch_once();
        remap.watch_if_needed();
    }
}

/// From one look at a device that does not work to the next.
fn watch_every() -> Jiffies {
    msecs_to_jiffies(2000)
}
impl Remap<'_> {
    /// Has those devices looked at, after a while, that do not work. Any context that may sleep.
    pub(super) fn watch_if_needed(&self) {
        let needed = self.is_tripped() || self.writable && self.store.is_degraded();
        if needed && !self.suspending.load(Acquire) {
            self.works.watch.queue_delayed(watch_every());
        }
    }

    /// Looks once whether main answers again, and whether the spare can be written again. May sleep.
    fn watch_once(&self) {
        if self.suspending.load(Acquire) {
            return;
        }
        if self.is_tripped() {
            self.rearm_if_main_answers();
        }
        if self.writable && self.store.is_degraded() && self.store.flush() {
            // What was left undone.
            let _ = self.sync_step();
        }
        self.report_mode();
    }
}
