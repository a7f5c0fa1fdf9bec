// SPDX-License-Identifier: GPL-2.0

//! Small things that the kernel crate does not have yet.

use super::bindings;
use kernel::{prelude::*, types::NotThreadSafe};

/// While it lives, no allocation of this thread starts I/O: every `GFP_KERNEL` acts as `GFP_NOIO`.
///
/// For code that I/O waits for. C: `memalloc_noio_save`, `include/linux/sched/mm.h`. Scopes nest.
pub(crate) struct NoIo(c_uint, NotThreadSafe);

impl NoIo {
    /// Enters the scope.
    pub(crate) fn enter() -> Self {
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

/// Continues a standard CRC-32C (Castagnoli); begins with 0. Any context.
///
/// The kernel's own `crc32c` (`include/linux/crc32.h`) leaves both inversions to the caller.
pub(crate) fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    // SAFETY: Pointer and length are those of a live slice, which is only read.
    !unsafe { bindings::crc32c(!crc, bytes.as_ptr().cast(), bytes.len()) }
}

/// The time in seconds since 1970, 0 before that. Any context.
pub(crate) fn unix_seconds() -> u64 {
    // SAFETY: No requirements.
    u64::try_from(unsafe { bindings::ktime_get_real_seconds() }).unwrap_or(0)
}

/// Random bytes, as for a uuid. Any context.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // SAFETY: Pointer and length are those of a live array.
    unsafe { kernel::bindings::get_random_bytes(bytes.as_mut_ptr().cast(), bytes.len()) };
    bytes
}

/// Whether the current process is being killed. Process context.
pub(crate) fn is_killed() -> bool {
    // SAFETY: No requirements.
    unsafe { bindings::dmr_fatal_signal_pending() }
}

/// Whether one more log line is within the module's rate limit. Any context.
pub(crate) fn log_allowed() -> bool {
    // SAFETY: No requirements.
    unsafe { bindings::dmr_ratelimit() }
}
