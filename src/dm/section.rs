// SPDX-License-Identifier: GPL-2.0

//! Read-side sections that begin in one context and end in another, as a bio does.
//!
//! The kernel crate's `Srcu` has guards, which stay in their scope, and sections that each cost two full
//! barriers; here is the flavour without either.
//!
//! C: `srcu_down_read_fast`, `srcu_up_read_fast`, `include/linux/srcu.h`.

use super::bindings;
use kernel::{bindings::srcu_struct, prelude::*, sync::rcu, types::Opaque};

/// Where sections begin, end, and are waited for.
#[pin_data(PinnedDrop)]
pub(crate) struct Sections {
    #[pin]
    srcu: Opaque<srcu_struct>,
}

// SAFETY: Any thread may use the structure at the same time as others.
unsafe impl Send for Sections {}
// SAFETY: As above.
unsafe impl Sync for Sections {}

/// A section that has begun. To be given back to [`Sections::leave`]: if it is not, whoever waits for
/// it waits for ever.
#[must_use]
pub(crate) struct Section(pub(super) *mut kernel::bindings::srcu_ctr);

// SAFETY: A section may end on another thread, in another context, than it began.
unsafe impl Send for Section {}

impl Sections {
    /// No section has begun.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            srcu <- Opaque::try_ffi_init(|srcu: *mut srcu_struct| {
                // SAFETY: A place for the structure, which will not move.
                kernel::error::to_result(unsafe {
                    bindings::dmr_init_srcu_fast_updown(srcu.cast())
                })
            }),
        }? Error)
    }

    /// Begins a section. Any context but NMI.
    #[inline]
    pub(crate) fn enter(&self) -> Section {
        // SAFETY: Initialised by `new`, for this flavour.
        Section(unsafe { bindings::dmr_srcu_down_read_fast(self.srcu.get().cast()) })
    }

    /// Ends a section of this object's. Any context but NMI.
    #[inline]
    pub(crate) fn leave(&self, section: Section) {
        // SAFETY: Initialised by `new`, and the section is one that has begun.
        unsafe { bindings::dmr_srcu_up_read_fast(self.srcu.get().cast(), section.0) };
    }

    /// Waits until all sections that have begun have ended, and before that for RCU's readers: a section may
    /// begin under the RCU guard under which was found what it is to keep. May sleep; not from within either.
    pub(crate) fn wait(&self) {
        rcu::synchronize_rcu();
        // SAFETY: Initialised by `new`.
        unsafe { kernel::bindings::synchronize_srcu(self.srcu.get()) };
    }

    /// Calls `f`, which may sleep, within a section.
    pub(crate) fn within<R>(&self, f: impl FnOnce() -> R) -> R {
        let section = self.enter();
        let result = f();
        self.leave(section);
        result
    }
}

#[pinned_drop]
impl PinnedDrop for Sections {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Initialised by `new`, and no section is left: each has given up its borrow, or is a bio's,
        // for which device-mapper waits before the destructor.
        unsafe { kernel::bindings::cleanup_srcu_struct(self.srcu.get()) };
    }
}
