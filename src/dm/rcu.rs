// SPDX-License-Identifier: GPL-2.0

//! Immutable slices, published by RCU, bits that are looked at without it, and a count of changes.
//!
//! An [`RcuSliceCell`] is one pointer, null or to an [`RcuSlice`]. Readers follow it under an RCU
//! guard. An updater, of which there is one at a time, replaces the slice; the old one is freed
//! when no reader can still see it. Freeing runs no code of this module, so unloading has to wait
//! for nothing.
//!
//! C: `kvfree_rcu`, `include/linux/rcupdate.h`.

use super::{bindings, compat::KvfreeRcuHead};
use core::{alloc::Layout, marker::PhantomData, ptr::NonNull};
use kernel::{
    alloc::{allocator::KVmalloc, AllocError, Allocator, Flags, NumaNode},
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Full, Relaxed},
        rcu,
    },
};

/// What a [`Version`] was at some time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp(pub(super) usize);

impl Stamp {
    /// After any change that there will be. (A bio carries three bits more: see `bio`.)
    #[cfg(CONFIG_KUNIT)]
    pub(crate) const LAST: Self = Self(usize::MAX >> 3);

    /// One that means what the target wants it to, for bios that are watched: less than 2^61.
    pub(crate) const fn marked(mark: u32) -> Self {
        Self(mark as usize)
    }

    /// The number of changes before it.
    pub(crate) fn count(self) -> usize {
        self.0
    }
}

/// A count of changes, for readers that note it before they look at what changes, and later ask
/// whether that may have changed.
pub(crate) struct Version(Atomic<usize>);

impl Version {
    /// No change so far.
    pub(crate) const fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// The count. One load, ordered before the loads behind it and behind the loads before it
    /// (x86 orders loads by itself). Any context.
    #[inline(always)]
    pub(crate) fn read(&self) -> Stamp {
        let fence = || {
            if !cfg!(target_arch = "x86_64") {
                // SAFETY: No requirements. (The kernel crate names it otherwise from series to series.)
                unsafe { kernel::bindings::smp_rmb() };
            }
        };
        fence();
        // SAFETY: As in `peek`.
        let version = unsafe { (&raw const self.0).cast::<usize>().read_volatile() };
        fence();
        Stamp(version)
    }

    /// Counts a change, with full ordering. Returns the new count. Any context.
    pub(crate) fn bump(&self) -> Stamp {
        Stamp(self.0.fetch_add(1, Full).wrapping_add(1))
    }
}

/// What `word` holds: a relaxed load in one instruction, where `Atomic::load` is a call of a C helper. Any context.
#[inline(always)]
pub(crate) fn peek(word: &Atomic<u64>) -> u64 {
    // SAFETY: `Atomic` has the layout of what it holds, and a volatile read of an aligned word is a relaxed load
    // (`READ_ONCE`).
    unsafe { core::ptr::from_ref(word).cast::<u64>().read_volatile() }
}

/// Bits that are clear at first and set one by one, looked at from any context without a lock.
///
/// # Invariants
///
/// `shown` is the number of `words` or 0.
pub(crate) struct Bits {
    words: KVVec<Atomic<u64>>,
    count: u64,
    /// Words that [`Bits::is_clear`] looks at.
    shown: Atomic<usize>,
}

impl Bits {
    /// `count` bits, all clear. 8 bytes for each 64. May sleep.
    pub(crate) fn new(count: u64) -> Result<Self> {
        let length = usize::try_from(count.div_ceil(64)).map_err(|_| EFBIG)?;
        let mut words = KVVec::with_capacity(length, GFP_KERNEL)?;
        for _ in 0..length {
            words.push(Atomic::new(0), GFP_KERNEL)?;
        }
        Ok(Self {
            // INVARIANT: All of them.
            shown: Atomic::new(words.len()),
            words,
            count,
        })
    }

    /// From now on [`Self::is_clear`] says `false` of every bit, or what is so again. Any context. Fully ordered.
    pub(crate) fn hide(&self, hidden: bool) {
        // INVARIANT: One of the two.
        let shown = if hidden { 0 } else { self.words.len() };
        self.shown.xchg(shown, Full);
    }

    /// The word that has bit `index`. One load.
    #[inline(always)]
    fn word(&self, index: u64) -> Option<u64> {
        self.words.get((index >> 6) as usize).map(peek)
    }

    /// Whether bit `index` is clear at this moment; `false` past the end, and if the bits are hidden. Any context.
    ///
    /// That they can be hidden costs nothing: it is the bounds check that looks elsewhere.
    #[inline(always)]
    pub(crate) fn is_clear(&self, index: u64) -> bool {
        let at = (index >> 6) as usize;
        // SAFETY: As in `peek`.
        let shown = unsafe { (&raw const self.shown).cast::<usize>().read_volatile() };
        // SAFETY: By the invariant there are so many words.
        let word = |at| peek(unsafe { &*self.words.as_ptr().add(at) });
        at < shown && word(at).wrapping_shr(index as u32) & 1 == 0
    }

    /// The first set bit of `from..=to`. Any context.
    pub(crate) fn first_set(&self, from: u64, to: u64) -> Option<u64> {
        let mut at = from;
        while at <= to && at < self.count {
            let word = self.word(at)?.wrapping_shr(at as u32);
            if word != 0 {
                let found = at.wrapping_add(word.trailing_zeros().into());
                return (found <= to).then_some(found);
            }
            at = (at | 63).wrapping_add(1);
        }
        None
    }

    /// Sets bit `index`, before whatever the caller writes after that. Nothing happens past the end. Any
    /// context.
    pub(crate) fn set(&self, index: u64) {
        if let Some(word) = self.words.get((index >> 6) as usize) {
            let mut old = word.load(Relaxed);
            let bit = 1_u64.wrapping_shl(index as u32);
            while old & bit == 0 {
                match word.cmpxchg(old, old | bit, Full) {
                    Ok(_) => return,
                    Err(now) => old = now,
                }
            }
        }
    }
}

#[repr(C)]
struct Header {
    rcu: KvfreeRcuHead,
    length: usize,
}

/// A slice in one allocation: filled, then published, then immutable.
///
/// # Invariants
///
/// The pointer owns a `KVmalloc` allocation with room for a [`Header`] and, behind it, at least
/// `capacity` elements; the first `length` of them, as the header says, are initialised.
pub(crate) struct RcuSlice<E: Copy> {
    header: NonNull<Header>,
    capacity: usize,
    _elements: PhantomData<E>,
}

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
        let memory = KVmalloc::alloc(layout::<E>(capacity)?, flags, NumaNode::NO_NODE)?;
        let header = memory.cast::<Header>();
        // SAFETY: The allocation has room for the header and is aligned for it. A head for
        // `kvfree_rcu` needs no initialisation, zero is a valid value of it.
        unsafe {
            header.write(Header {
                rcu: core::mem::zeroed(),
                length: 0,
            })
        };
        // INVARIANT: The allocation was made for the capacity; no element is initialised.
        Ok(Self {
            header,
            capacity,
            _elements: PhantomData,
        })
    }

    /// Adds `elements`, as many as there is room for. Any context.
    pub(crate) fn extend(&mut self, elements: &[E]) {
        // SAFETY: Initialised by `with_capacity`, and nobody else's.
        let length = unsafe { &mut (*self.header.as_ptr()).length };
        let count = elements.len().min(self.capacity - *length);
        // SAFETY: The elements `length..length + count` are inside the allocation, by the invariant, which
        // `elements`, a shared borrow, does not overlap.
        unsafe {
            let to = self.header.add(1).cast::<E>().add(*length);
            to.copy_from_nonoverlapping(NonNull::from(elements).cast(), count);
        }
        // INVARIANT: So many more are initialised.
        *length += count;
    }

    /// How many elements were added.
    pub(crate) fn len(&self) -> usize {
        // SAFETY: Initialised by `with_capacity`, and nobody else changes it.
        unsafe { (*self.header.as_ptr()).length }
    }

    fn into_raw(self) -> *mut Header {
        core::mem::ManuallyDrop::new(self).header.as_ptr()
    }
}

impl<E: Copy> Drop for RcuSlice<E> {
    fn drop(&mut self) {
        // SAFETY: By the invariant, a `KVmalloc` allocation that this object owns. `KVmalloc::free`
        // ignores the layout. Elements are `Copy`: nothing to drop.
        unsafe { KVmalloc::free(self.header.cast(), Layout::new::<Header>()) };
    }
}

/// A place for one [`RcuSlice`], or none.
///
/// # Invariants
///
/// The pointer is null or was made by [`RcuSlice::into_raw`], and the cell owns it. Whoever takes
/// it out frees it no earlier than a grace period later, or has the cell exclusively.
#[repr(transparent)]
pub(crate) struct RcuSliceCell<E: Copy>(Atomic<*mut Header>, PhantomData<E>);

// SAFETY: Readers get `&[E]` of elements that were moved in from another thread.
unsafe impl<E: Copy + Send + Sync> Sync for RcuSliceCell<E> {}
// SAFETY: It owns its elements like a box.
unsafe impl<E: Copy + Send> Send for RcuSliceCell<E> {}

impl<E: Copy> RcuSliceCell<E> {
    /// An empty cell.
    pub(crate) fn empty() -> Self {
        // INVARIANT: Null.
        Self(Atomic::new(core::ptr::null_mut()), PhantomData)
    }

    /// The slice, empty if there is none. Any context.
    #[inline]
    pub(crate) fn read<'a>(&'a self, _guard: &'a rcu::Guard) -> &'a [E] {
        let header = if cfg!(target_arch = "x86_64") {
            // SAFETY: As in `peek`. x86 orders the loads behind this one by itself.
            unsafe { (&raw const self.0).cast::<*mut Header>().read_volatile() }
        } else {
            self.0.load(Acquire)
        };
        if header.is_null() {
            return &[];
        }
        // SAFETY: By the invariant, valid; freed at the earliest a grace period after it was taken
        // out, which cannot end while `_guard` lives, that is not before `'a` ends. Nobody changes
        // the header's length or the elements once they are published; the acquire load orders
        // their initialisation before this read.
        unsafe {
            let length = (*header).length;
            core::slice::from_raw_parts(header.add(1).cast::<E>(), length)
        }
    }

    /// Replaces the slice; the old one is freed after a grace period. May sleep.
    ///
    /// An updater that builds the new slice from the old one must be the only one.
    pub(crate) fn replace(&self, new: Option<RcuSlice<E>>) {
        let new = new.map_or(core::ptr::null_mut(), RcuSlice::into_raw);
        // INVARIANT: `new` is null or from `into_raw`; full ordering publishes what it points to.
        let old = self.0.xchg(new, Full);
        if !old.is_null() {
            // SAFETY: By the invariant, an allocation of the cell's that only readers still see.
            // The head is its first field, and they do not look at that.
            unsafe { bindings::kvfree_call_rcu(&raw mut (*old).rcu, old.cast()) };
        }
    }
}

impl<E: Copy> Drop for RcuSliceCell<E> {
    fn drop(&mut self) {
        // Exclusive access: no reader holds a borrow of the cell, so none sees the slice.
        if let Some(header) = NonNull::new(*self.0.get_mut()) {
            // INVARIANT: From `into_raw`; no more elements will be added.
            drop(RcuSlice::<E> {
                header,
                capacity: 0,
                _elements: PhantomData,
            });
        }
    }
}
