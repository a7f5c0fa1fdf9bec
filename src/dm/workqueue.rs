// SPDX-License-Identifier: GPL-2.0

//! A workqueue of one's own: allocated, cancelled without waiting, drained, destroyed.
//!
//! The kernel crate has work items and the system's queues; this adds the owned queue.
//!
//! C: `include/linux/workqueue.h`, `kernel/workqueue.c`.

use super::bindings;
use core::ops::Deref;
use kernel::{
    bindings::{cancel_delayed_work, delayed_work},
    container_of,
    prelude::*,
    sync::Arc,
    workqueue::{self, HasDelayedWork, HasWork, Work, WorkItem},
};

/// An unbound workqueue with a rescuer (`WQ_UNBOUND | WQ_MEM_RECLAIM`): its work makes progress
/// under memory pressure, one item at a time in the worst case. So no item may wait for another
/// one that is only queued.
///
/// Work is enqueued through [`Deref`] to the kernel crate's queue. Dropping it waits for all work
/// and destroys it: that may sleep, and must not happen on the queue itself.
///
/// # Invariants
///
/// The pointer is a valid workqueue that this object owns.
pub(crate) struct Queue(*mut kernel::bindings::workqueue_struct);

// SAFETY: All of the C functions may be called from any thread.
unsafe impl Send for Queue {}
// SAFETY: All of the C functions may be called concurrently.
unsafe impl Sync for Queue {}

impl Queue {
    /// Allocates the queue `name/instance`, which runs at most `max_active` items at a time, 0 for the
    /// kernel's default of 1024. May sleep.
    pub(crate) fn new(name: &CStr, instance: &CStr, max_active: u16) -> Result<Self> {
        // SAFETY: Both are C strings, which the function formats into memory of its own.
        let queue = unsafe {
            bindings::dmr_alloc_workqueue(
                name.as_char_ptr(),
                instance.as_char_ptr(),
                max_active.into(),
            )
        };
        if queue.is_null() {
            return Err(ENOMEM);
        }
        // INVARIANT: Just allocated.
        Ok(Self(queue))
    }

    pub(super) fn as_ptr(&self) -> *mut kernel::bindings::workqueue_struct {
        self.0
    }

    /// Takes `item`'s work off the queue if it has not begun; never waits. Any context.
    ///
    /// Returns whether it was queued. If it runs already, it goes on running.
    pub(crate) fn cancel<T, const ID: u64>(item: &Arc<T>) -> bool
    where
        T: WorkItem<ID, Pointer = Arc<T>> + HasWork<T, ID> + Send + Sync,
    {
        let ptr = Arc::as_ptr(item).cast_mut();
        // SAFETY: An `Arc` points to a valid value.
        let work = unsafe { Work::raw_get(T::raw_get_work(ptr)) };
        // SAFETY: The work was initialised with the value, by `Work::new`.
        let was_pending = unsafe { kernel::bindings::cancel_work(work) };
        if was_pending {
            // SAFETY: Enqueuing leaked one reference, made by `Arc::into_raw`, for the function of
            // the work to take back (`RawWorkItem for Arc`). As the work was still pending, that
            // function will not run, and the reference is ours.
            drop(unsafe { Arc::from_raw(ptr) });
        }
        was_pending
    }

    /// As [`Self::cancel`], also if only its timer runs yet ([`Queue::enqueue_delayed`]).
    ///
    /// [`Queue::enqueue_delayed`]: workqueue::Queue::enqueue_delayed
    pub(crate) fn cancel_delayed<T, const ID: u64>(item: &Arc<T>) -> bool
    where
        T: WorkItem<ID, Pointer = Arc<T>> + HasDelayedWork<T, ID> + Send + Sync,
    {
        let ptr = Arc::as_ptr(item).cast_mut();
        // SAFETY: An `Arc` points to a valid value.
        let work = unsafe { Work::raw_get(T::raw_get_work(ptr)) };
        // SAFETY: By `HasDelayedWork` the work is the field of a `delayed_work` that was initialised with the value.
        let was_pending = unsafe { cancel_delayed_work(container_of!(work, delayed_work, work)) };
        if was_pending {
            // SAFETY: As in `cancel`.
            drop(unsafe { Arc::from_raw(ptr) });
        }
        was_pending
    }

    /// Waits for the work that is queued or running at the time of the call. May sleep.
    pub(crate) fn flush(&self) {
        // SAFETY: Valid by the invariant.
        unsafe { kernel::bindings::__flush_workqueue(self.0) };
    }

    /// Waits until nothing is queued or running, work queued by work included. May sleep.
    ///
    /// In the meantime only the queue's own work may enqueue (C: `drain_workqueue`).
    pub(crate) fn drain(&self) {
        // SAFETY: Valid by the invariant.
        unsafe { kernel::bindings::drain_workqueue(self.0) };
    }
}

impl Deref for Queue {
    type Target = workqueue::Queue;

    fn deref(&self) -> &workqueue::Queue {
        // SAFETY: Valid by the invariant, and as long as `self`.
        unsafe { workqueue::Queue::from_raw(self.0) }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: Valid by the invariant, and nobody can use it after this. It drains first.
        unsafe { kernel::bindings::destroy_workqueue(self.0) };
    }
}
