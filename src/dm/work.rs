// SPDX-License-Identifier: GPL-2.0

//! Works of a target, and the queue for them and for deferred bios.
//!
//! The kernel crate's works belong to whoever queues them, by an `Arc`: they outlive what they were made for. A target's end
//! with it. So the layer owns them, and lends a [`Work`] to the target's data.
//!
//! C: `include/linux/workqueue.h`, `kernel/workqueue.c`.

use super::{bindings, context::NoIo, instance::Instance, target::Target};
use core::{marker::PhantomData, ptr::NonNull};
use kernel::{
    bindings::{delayed_work, work_struct},
    prelude::*,
    time::Jiffies,
    types::Opaque,
};

/// An unbound workqueue with a rescuer (`WQ_UNBOUND | WQ_MEM_RECLAIM`): its work makes progress under memory pressure, one
/// item at a time in the worst case. So no item may wait for another one that is only queued.
///
/// Dropping it waits for all work and destroys it: that may sleep, and must not happen on the queue itself.
///
/// # Invariants
///
/// The pointer is a valid workqueue that this object owns.
pub(super) struct Queue(NonNull<kernel::bindings::workqueue_struct>);

// SAFETY: All of the C functions may be called from any thread.
unsafe impl Send for Queue {}
// SAFETY: All of the C functions may be called concurrently.
unsafe impl Sync for Queue {}

impl Queue {
    /// Allocates the queue `dm-name/instance`. May sleep.
    pub(super) fn new(name: &CStr, instance: &CStr) -> Result<Self> {
        let (name, instance) = (name.as_char_ptr(), instance.as_char_ptr());
        // SAFETY: Both are C strings, which the function formats into memory of its own.
        let queue = unsafe { bindings::dmr_alloc_workqueue(name, instance) };
        // INVARIANT: Just allocated.
        Ok(Self(NonNull::new(queue).ok_or(ENOMEM)?))
    }

    pub(super) fn as_ptr(&self) -> *mut kernel::bindings::workqueue_struct {
        self.0.as_ptr()
    }

    /// Waits for the work that is queued or running at the time of the call. May sleep.
    pub(super) fn flush(&self) {
        // SAFETY: Valid by the invariant.
        unsafe { kernel::bindings::__flush_workqueue(self.as_ptr()) };
    }

    /// Waits until nothing is queued or running, work queued by work included. May sleep.
    ///
    /// In the meantime only the queue's own work may enqueue (C: `drain_workqueue`).
    pub(super) fn drain(&self) {
        // SAFETY: Valid by the invariant.
        unsafe { kernel::bindings::drain_workqueue(self.as_ptr()) };
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: Valid by the invariant, and nobody can use it after this. It drains first.
        unsafe { kernel::bindings::destroy_workqueue(self.as_ptr()) };
    }
}

/// What a work of a target of type `T` does ([`super::Setup::work`]).
pub(crate) trait TargetWork<T: Target> {
    /// Does it. Process context, may sleep; requests for memory start no I/O (`NoIo`). It never runs twice at the same time.
    fn run(data: &T::Data<'_>);
}

/// What all works have in common.
#[repr(C)]
struct WorkBase {
    work: Opaque<delayed_work>,
    queue: *mut kernel::bindings::workqueue_struct,
}

// SAFETY: All of the C functions that it is used with may be called concurrently, from any thread.
unsafe impl Sync for WorkBase {}

/// A work of a target of type `T`.
///
/// # Invariants
///
/// `base.work` is initialised, with a function that expects it to be the first field of such an item, and `base.queue` a queue
/// that is destroyed no earlier than the work was disabled. Both are `instance`'s.
#[repr(C)]
pub(super) struct WorkItem<T: Target> {
    base: WorkBase,
    instance: NonNull<Instance<T>>,
}

impl<T: Target> WorkItem<T> {
    /// A work that cannot be queued yet.
    pub(super) fn new<W: TargetWork<T>>(
        instance: NonNull<Instance<T>>,
        queue: &Queue,
    ) -> Result<KBox<Self>> {
        let item = KBox::new(
            Self {
                base: WorkBase {
                    work: Opaque::uninit(),
                    queue: queue.as_ptr(),
                },
                instance,
            },
            GFP_KERNEL,
        )?;
        let work = item.base.work.get();
        // SAFETY: A place for a work, which stays where it is; it is initialised before it is disabled.
        // INVARIANT: The function is for this type.
        unsafe {
            bindings::dmr_init_delayed_work(work, Some(Self::run::<W>));
            kernel::bindings::disable_delayed_work(work);
        }
        Ok(item)
    }

    /// Lets the work be queued.
    pub(super) fn enable(&self) {
        // SAFETY: Initialised by the invariant.
        unsafe { kernel::bindings::enable_delayed_work(self.base.work.get()) };
    }

    /// Takes the work off its queue and timer, waits for it if it runs, and has the kernel refuse to queue it again. May sleep.
    pub(super) fn disable_sync(&self) {
        // SAFETY: Initialised by the invariant.
        unsafe { kernel::bindings::disable_delayed_work_sync(self.base.work.get()) };
    }

    /// # Safety
    ///
    /// `work` must be that of an item.
    unsafe extern "C" fn run<W: TargetWork<T>>(work: *mut work_struct) {
        // Suspending may wait for us, and a request for memory could wait for I/O that waits for that.
        let _noio = NoIo::enter();
        // SAFETY: It is the first field of a `delayed_work`, and that of an item, which stays as long as its work runs. The target
        // waits for its works before it goes away, and they are enabled when its data are complete.
        let instance = unsafe { (*work.cast::<Self>()).instance.as_ref() };
        W::run(instance.data());
    }
}

/// A work of the target's, lent to its data.
///
/// # Invariants
///
/// It is of a `WorkItem`, which, with its queue, stays for `'t`.
#[derive(Clone, Copy)]
pub(crate) struct Work<'t>(&'t WorkBase);

impl Work<'_> {
    /// # Safety
    ///
    /// The item, and its queue, must stay for the lifetime of the result.
    pub(super) unsafe fn new<T: Target>(item: &WorkItem<T>) -> Self {
        // SAFETY: Valid for that long, by the requirement.
        // INVARIANT: By the requirement.
        Self(unsafe { NonNull::from(&item.base).as_ref() })
    }

    /// Queues it. Any context. `false`: it is queued already, or the target is going away, or not complete yet.
    pub(crate) fn queue(&self) -> bool {
        self.queue_delayed(0)
    }

    /// As [`Self::queue`], after so many jiffies.
    pub(crate) fn queue_delayed(&self, delay: Jiffies) -> bool {
        let cpu = kernel::bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int;
        let (queue, work) = (self.0.queue, self.0.work.get());
        // SAFETY: Both are valid by the invariant. If the work is disabled, the queue may be destroyed, and is not looked at.
        unsafe { kernel::bindings::queue_delayed_work_on(cpu, queue, work, delay) }
    }

    /// Takes it off the queue, or stops its timer, if it has not begun; never waits. Any context. If it runs, it goes on
    /// running.
    pub(crate) fn cancel(&self) {
        // SAFETY: Valid by the invariant.
        unsafe { kernel::bindings::cancel_delayed_work(self.0.work.get()) };
    }
}
