// SPDX-License-Identifier: GPL-2.0

//! Read-side sections that begin in one context and end in another, as a bio does.
//!
//! The kernel crate's `Srcu` has guards, which stay in their scope; this adds the loose ends.
//!
//! C: `srcu_down_read`, `srcu_up_read`, `include/linux/srcu.h`.

use super::bindings;
use kernel::{
    new_srcu,
    prelude::*,
    sync::{rcu, Srcu},
};

/// Where sections begin, end, and are waited for.
#[pin_data]
pub(crate) struct Sections {
    #[pin]
    srcu: Srcu,
}

/// A section that has begun. To be given back to [`Sections::leave`]: if it is not, whoever waits for
/// it, or drops the [`Sections`], waits for ever.
#[must_use]
pub(crate) struct Section(pub(super) c_int);

impl Sections {
    /// No section has begun.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            srcu <- new_srcu!("dm_remap::sections"),
        }? Error)
    }

    fn as_ptr(&self) -> *mut kernel::bindings::srcu_struct {
        // `Srcu` is a transparent wrapper of the C structure.
        core::ptr::from_ref(&self.srcu).cast_mut().cast()
    }

    /// Begins a section. Any context.
    pub(crate) fn enter(&self) -> Section {
        // SAFETY: `Srcu` is initialised, by its own invariant.
        Section(unsafe { bindings::dmr_srcu_down_read(self.as_ptr()) })
    }

    /// Ends a section of this object's. Any context.
    pub(crate) fn leave(&self, section: Section) {
        // SAFETY: `Srcu` is initialised, and the index is that of a section that has begun.
        unsafe { bindings::dmr_srcu_up_read(self.as_ptr(), section.0) };
    }

    /// Waits until all sections that have begun have ended, and before that for RCU's readers: a section may
    /// begin under the RCU guard under which was found what it is to keep. May sleep; not from within either.
    pub(crate) fn wait(&self) {
        rcu::synchronize_rcu();
        self.srcu.synchronize();
    }

    /// Calls `f`, which may sleep, within a section.
    pub(crate) fn within<R>(&self, f: impl FnOnce() -> R) -> R {
        let _guard = self.srcu.read_lock();
        f()
    }
}
