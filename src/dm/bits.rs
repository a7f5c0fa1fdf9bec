// SPDX-License-Identifier: GPL-2.0

//! Bits that are looked at without a lock, and loads that cost one instruction.
//!
//! `Bitmap` of the kernel crate is not for this: it is one allocation of kmalloc's, of 4 MiB at most, and looking for the next
//! bit is not atomic beside one that is set. And `Atomic::load` is a call of a C helper, which the path of a bio does without.

use core::sync::atomic::{compiler_fence, Ordering::SeqCst};
use kernel::{
    prelude::*,
    sync::atomic::{Atomic, AtomicType, Full},
};

/// What `word` holds: a relaxed load in one instruction. Any context. C: `READ_ONCE`.
#[inline(always)]
pub(crate) fn read_relaxed<T: AtomicType + Copy>(word: &Atomic<T>) -> T {
    const { assert!(size_of::<T>() <= size_of::<usize>(), "this load may tear") };
    // SAFETY: `Atomic` has the layout of what it holds, which is aligned and valid as long as the borrow. Whoever else writes to
    // it does so atomically, beside which a volatile read is a relaxed load.
    unsafe { word.as_ptr().read_volatile() }
}

/// What `word` holds: as [`read_relaxed`], and ordered before the loads behind it and behind the loads before it. Any
/// context.
#[inline(always)]
pub(crate) fn read_ordered<T: AtomicType + Copy>(word: &Atomic<T>) -> T {
    order_loads();
    let value = read_relaxed(word);
    order_loads();
    value
}

/// C: `smp_rmb`. (The kernel crate names it otherwise from series to series.)
#[inline(always)]
pub(super) fn order_loads() {
    if cfg!(target_arch = "x86_64") {
        // The processor keeps loads in order; the compiler has to be told.
        compiler_fence(SeqCst);
    } else {
        // SAFETY: No requirements.
        unsafe { kernel::bindings::smp_rmb() };
    }
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
        self.words.get((index >> 6) as usize).map(read_relaxed)
    }

    /// Whether bit `index` is clear at this moment; `false` past the end, and if the bits are hidden. Any context.
    ///
    /// That they can be hidden costs nothing: it is the bounds check that looks elsewhere.
    #[inline(always)]
    pub(crate) fn is_clear(&self, index: u64) -> bool {
        let at = (index >> 6) as usize;
        // SAFETY: By the invariant there are so many words, if so many are shown; nobody takes any away.
        let word = |at| read_relaxed(unsafe { &*self.words.as_ptr().add(at) });
        at < read_relaxed(&self.shown) && word(at).wrapping_shr(index as u32) & 1 == 0
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
            let mut old = read_relaxed(word);
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
