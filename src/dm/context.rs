// SPDX-License-Identifier: GPL-2.0

//! What the current thread may do, and what is expected of it.

use super::bindings;
use kernel::{prelude::*, types::NotThreadSafe};

/// While it lives, no allocation of this thread starts I/O: every `GFP_KERNEL` acts as `GFP_NOIO`.
///
/// For code that I/O waits for. C: `memalloc_noio_save`, `include/linux/sched/mm.h`. Scopes nest.
pub(super) struct NoIo(c_uint, NotThreadSafe);

impl NoIo {
    /// Enters the scope.
    pub(super) fn enter() -> Self {
        // SAFETY: Changes a flag of the current thread, from process context.
        Self(unsafe { bindings::dmr_memalloc_noio_save() }, NotThreadSafe)
    }
}

#[cfg(CONFIG_KUNIT)]
impl NoIo {
    /// Whether this thread was in a scope already.
    pub(super) fn is_nested(&self) -> bool {
        // The flags are those that it did not have.
        self.0 == 0
    }
}

impl Drop for NoIo {
    fn drop(&mut self) {
        // SAFETY: The flags are those that the matching save returned on this same thread.
        unsafe { bindings::dmr_memalloc_noio_restore(self.0) };
    }
}

/// While it lives, a kernel with `CONFIG_DEBUG_ATOMIC_SLEEP` reports whatever may sleep; nothing in others.
///
/// For callbacks that must not sleep but are called where one could: the kernel would not notice. Any context.
pub(super) struct NoSleep(NotThreadSafe);

impl NoSleep {
    /// Enters the scope.
    #[inline(always)]
    pub(super) fn enter() -> Self {
        if cfg!(CONFIG_DEBUG_ATOMIC_SLEEP) {
            // SAFETY: Counts for the current thread; `drop` takes it back.
            unsafe { bindings::dmr_preempt_disable() };
        }
        Self(NotThreadSafe)
    }
}

impl Drop for NoSleep {
    #[inline(always)]
    fn drop(&mut self) {
        if cfg!(CONFIG_DEBUG_ATOMIC_SLEEP) {
            // SAFETY: `enter` disabled it on this same thread.
            unsafe { bindings::dmr_preempt_enable() };
        }
    }
}

/// Whether the current process is being killed. Process context.
pub(crate) fn is_killed() -> bool {
    // SAFETY: No requirements.
    unsafe { bindings::dmr_fatal_signal_pending() }
}
