// SPDX-License-Identifier: GPL-2.0

//! Counts of what happens on the way of bios, on all CPUs at once.
//!
//! C: `include/linux/percpu.h`.

use super::{bindings, bits::read_ordered};
use core::ptr::NonNull;
use kernel::{
    prelude::*,
    sync::atomic::{Atomic, Release},
};

/// Two counts of events, of which each CPU has its own part: no CPU waits for a cache line that another one writes. A
/// `bool` says which of the two.
///
/// # Invariants
///
/// The pointer is two `u64` for each CPU, of the per-CPU allocator's, which this owns.
pub(crate) struct PerCpuCounts {
    parts: NonNull<u64>,
    /// What they were when they were cleared.
    cleared: [Atomic<u64>; 2],
}

// SAFETY: What it owns may be used on any CPU.
unsafe impl Send for PerCpuCounts {}
// SAFETY: The parts are read, and a CPU adds to its own in a way that interrupts of its own allow.
unsafe impl Sync for PerCpuCounts {}

impl PerCpuCounts {
    /// Both zero. May sleep.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: May sleep, as the caller may.
        let parts = unsafe { bindings::dmr_alloc_counters(2) };
        Ok(Self {
            // INVARIANT: Just made.
            parts: NonNull::new(parts).ok_or(ENOMEM)?,
            cleared: [Atomic::new(0), Atomic::new(0)],
        })
    }

    /// One of the two, for the per-CPU functions.
    #[inline(always)]
    fn part(&self, which: bool) -> *mut u64 {
        self.parts.as_ptr().wrapping_add(usize::from(which))
    }

    /// Counts one more. Any context.
    #[inline(always)]
    pub(crate) fn add_one(&self, which: bool) {
        // SAFETY: By the invariant, a `u64` of the per-CPU allocator's. The instruction is what `this_cpu_inc` is there.
        unsafe {
            #[cfg(any(not(CONFIG_X86_64), CONFIG_UML, not(CONFIG_SMP)))]
            bindings::dmr_count(self.part(which));
            #[cfg(not(any(not(CONFIG_X86_64), CONFIG_UML, not(CONFIG_SMP))))]
            core::arch::asm!(
                "inc qword ptr gs:[{} + 8 * {}]",
                in(reg) self.parts.as_ptr(),
                in(reg) usize::from(which),
                options(nostack),
            );
        }
    }

    fn sum(&self, which: bool) -> u64 {
        // SAFETY: By the invariant, a `u64` of the per-CPU allocator's.
        unsafe { bindings::dmr_sum_counter(self.part(which)) }
    }

    /// The count. Exact of what has happened before; of what happens meanwhile, some may be in it. Any context.
    pub(crate) fn get(&self, which: bool) -> u64 {
        let [first, second] = &self.cleared;
        // Read before the parts, which only grow: so the sum is not less.
        let cleared = read_ordered(if which { second } else { first });
        self.sum(which).wrapping_sub(cleared)
    }

    /// Both begin at zero again. Any context.
    pub(crate) fn clear(&self) {
        for (which, cleared) in [false, true].into_iter().zip(&self.cleared) {
            // The parts are left alone: what is stored in another CPU's, that one may overwrite.
            cleared.store(self.sum(which), Release);
        }
    }
}

impl Drop for PerCpuCounts {
    fn drop(&mut self) {
        // SAFETY: Owned by the invariant, and not used any more.
        unsafe { bindings::dmr_free_counters(self.parts.as_ptr()) };
    }
}
