// SPDX-License-Identifier: GPL-2.0

//! Immutable slices, published by RCU.
//!
//! An [`RcuSliceCell`] is one pointer, to an [`RcuSlice`] or to an empty one that all cells share. Readers follow it under an RCU
//! guard. An updater, of which there is one at a time, replaces the slice; the old one is freed
//! when no reader can still see it. Freeing runs no code of this module, so unloading has to wait
//! for nothing.
//!
//! The guard is the layer's own, since the kernel crate's has a C function around each end of a section, which costs as much
//! as the end itself.
//!
//! C: `kvfree_rcu`, `include/linux/rcupdate.h`.

use super::{bindings, bits::read_relaxed, compat::KvfreeRcuHead};
use core::{alloc::Layout, cell::UnsafeCell, marker::PhantomData, ptr::NonNull};
use kernel::{
    alloc::{allocator::KVmalloc, AllocError, Allocator, Flags, NumaNode},
    prelude::*,
    sync::atomic::{Acquire, Atomic, Full},
    types::NotThreadSafe,
};

/// While it lives, the thread is in a section of RCU's readers: it must not sleep. Sections nest. C: `rcu_read_lock`.
///
/// # Invariants
///
/// The section began with it.
pub(crate) struct RcuGuard(NotThreadSafe);

/// Begins a section of RCU's readers. Any context.
#[inline(always)]
pub(crate) fn rcu_read_lock() -> RcuGuard {
    // SAFETY: No requirements; `drop` ends the section.
    unsafe {
        // All that the inline function is, if nobody watches locks.
        #[cfg(all(CONFIG_PREEMPT_RCU, not(CONFIG_DEBUG_LOCK_ALLOC)))]
        kernel::bindings::__rcu_read_lock();
        #[cfg(not(all(CONFIG_PREEMPT_RCU, not(CONFIG_DEBUG_LOCK_ALLOC))))]
        kernel::bindings::rcu_read_lock();
    }
    // INVARIANT: Just begun.
    RcuGuard(NotThreadSafe)
}

impl Drop for RcuGuard {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: The section began on this same thread, by the invariant.
        unsafe {
            #[cfg(all(CONFIG_PREEMPT_RCU, not(CONFIG_DEBUG_LOCK_ALLOC)))]
            kernel::bindings::__rcu_read_unlock();
            #[cfg(not(all(CONFIG_PREEMPT_RCU, not(CONFIG_DEBUG_LOCK_ALLOC))))]
            kernel::bindings::rcu_read_unlock();
        }
    }
}

/// What an allocation begins with.
#[repr(C)]
struct Header {
    rcu: KvfreeRcuHead,
    length: u32,
    capacity: u32,
}

/// A slice in one allocation: filled, then published, then immutable.
///
/// # Invariants
///
/// The pointer owns a `KVmalloc` allocation, made with the layout of a [`Header`] and `capacity` elements behind it, as the header
/// says; the first `length` of them are initialised, and `length` is at most `capacity`.
pub(crate) struct RcuSlice<E: Copy>(NonNull<Header>, PhantomData<E>);

// SAFETY: It owns its elements like a box.
unsafe impl<E: Copy + Send> Send for RcuSlice<E> {}

fn layout<E>(length: usize) -> Result<Layout, AllocError> {
    // One place for the elements' start, here and where they are accessed: right behind the header.
    const { assert!(align_of::<E>() <= align_of::<Header>()) };
    let elements = Layout::array::<E>(length).map_err(|_| AllocError)?;
    let (whole, _) = Layout::new::<Header>()
        .extend(elements)
        .map_err(|_| AllocError)?;
    Ok(whole.pad_to_align())
}

impl<E: Copy> RcuSlice<E> {
    /// An empty slice with room for `capacity` elements. Sleeps or not, as `flags` says.
    pub(crate) fn with_capacity(capacity: usize, flags: Flags) -> Result<Self, AllocError> {
        let room = u32::try_from(capacity).map_err(|_| AllocError)?;
        let memory = KVmalloc::alloc(layout::<E>(capacity)?, flags, NumaNode::NO_NODE)?;
        let header = memory.cast::<Header>();
        let empty = Header {
            rcu: pin_init::zeroed(),
            length: 0,
            capacity: room,
        };
        // SAFETY: The allocation has room for the header and is aligned for it.
        unsafe { header.write(empty) };
        // INVARIANT: The allocation was made for the capacity; no element is initialised.
        Ok(Self(header, PhantomData))
    }

    fn header(&self) -> &Header {
        // SAFETY: By the invariant there is one, and it changes by `&mut self` only.
        unsafe { self.0.as_ref() }
    }

    /// Adds `element`, if there is room for it. Any context.
    #[inline]
    pub(crate) fn push(&mut self, element: E) {
        let (length, capacity) = (self.header().length, self.header().capacity);
        if length < capacity {
            // SAFETY: Element `length` is inside the allocation, by the invariant, and nobody else has that.
            unsafe {
                let to = self.0.add(1).cast::<E>().add(length as usize);
                to.write(element);
                // INVARIANT: One more is initialised. It is at most the capacity, so it fits.
                (*self.0.as_ptr()).length = length + 1;
            }
        }
    }

    /// Adds `elements`, as many as there is room for. Any context.
    pub(crate) fn extend(&mut self, elements: &[E]) {
        elements.iter().for_each(|element| self.push(*element));
    }

    fn into_raw(self) -> *mut Header {
        core::mem::ManuallyDrop::new(self).0.as_ptr()
    }
}

impl<E: Copy> Drop for RcuSlice<E> {
    fn drop(&mut self) {
        let Ok(layout) = layout::<E>(self.header().capacity as usize) else {
            // It was made with this layout: never reached.
            return;
        };
        // SAFETY: By the invariant, a `KVmalloc` allocation that this object owns, made with that layout. Elements are `Copy`:
        // nothing to drop.
        unsafe { KVmalloc::free(self.0.cast(), layout) };
    }
}

/// A place for one [`RcuSlice`], or none.
///
/// # Invariants
///
/// The pointer is to [`NOTHING`] or was made by [`RcuSlice::into_raw`], and then the cell owns it. Whoever takes
/// it out frees it no earlier than a grace period later, or has the cell exclusively.
///
/// It is invariant in `E`, as what is read was put in through another shared reference.
#[repr(transparent)]
pub(crate) struct RcuSliceCell<E: Copy>(Atomic<*mut Header>, PhantomData<UnsafeCell<E>>);

// SAFETY: Readers get `&[E]` of elements that were moved in from another thread.
unsafe impl<E: Copy + Send + Sync> Sync for RcuSliceCell<E> {}
// SAFETY: It owns its elements like a box.
unsafe impl<E: Copy + Send> Send for RcuSliceCell<E> {}

/// What a cell without a slice points to: so readers need not ask.
static NOTHING: Nothing = Nothing(Header {
    rcu: pin_init::zeroed(),
    length: 0,
    capacity: 0,
});

#[repr(transparent)]
struct Nothing(Header);

// SAFETY: Nobody writes to it.
unsafe impl Sync for Nothing {}

fn nothing() -> *mut Header {
    (&raw const NOTHING.0).cast_mut()
}

impl<E: Copy> RcuSliceCell<E> {
    /// An empty cell.
    pub(crate) fn empty() -> Self {
        // INVARIANT: As it says.
        Self(Atomic::new(nothing()), PhantomData)
    }

    /// The slice, empty if there is none. Any context.
    #[inline]
    pub(crate) fn read<'a>(&'a self, _guard: &'a RcuGuard) -> &'a [E] {
        let header = if cfg!(target_arch = "x86_64") {
            // x86 orders the loads behind this one by itself, and so does the compiler, as their address depends on it.
            read_relaxed(&self.0)
        } else {
            self.0.load(Acquire)
        };
        // SAFETY: By the invariant, valid; if it is freed, then at the earliest a grace period after it was taken
        // out, which cannot end while `_guard` lives, that is not before `'a` ends. Nobody changes
        // the header's length or the elements once they are published; the acquire load orders
        // their initialisation before this read.
        unsafe {
            let length = (*header).length as usize;
            core::slice::from_raw_parts(header.add(1).cast::<E>(), length)
        }
    }

    /// Replaces the slice; the old one is freed after a grace period. May sleep.
    ///
    /// An updater that builds the new slice from the old one must be the only one.
    pub(crate) fn replace(&self, new: Option<RcuSlice<E>>) {
        let new = new.map_or(nothing(), RcuSlice::into_raw);
        // INVARIANT: As it says, and full ordering publishes what `new` points to.
        let old = self.0.xchg(new, Full);
        if old != nothing() {
            // SAFETY: By the invariant, an allocation of the cell's that only readers still see.
            // The head is its first field, and they do not look at that.
            unsafe { bindings::kvfree_call_rcu(&raw mut (*old).rcu, old.cast()) };
        }
    }
}

impl<E: Copy> Drop for RcuSliceCell<E> {
    fn drop(&mut self) {
        // Exclusive access: no reader holds a borrow of the cell, so none sees the slice.
        let header = NonNull::new(*self.0.get_mut()).filter(|h| h.as_ptr() != nothing());
        if let Some(header) = header {
            // INVARIANT: From `into_raw`.
            drop(RcuSlice::<E>(header, PhantomData));
        }
    }
}
