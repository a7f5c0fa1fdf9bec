// SPDX-License-Identifier: GPL-2.0

//! What kernel series have under different names. Nothing else in the module depends on the series.
//!
//! The configurations `dmr_...` are set by Kbuild, from what the tree that is built against has.

use kernel::{bindings::bvec_iter, prelude::*};

/// What `kvfree_call_rcu` wants in an object that it is to free (C: the `struct rcu_head` or, since 7.3, the smaller
/// `struct kvfree_rcu_head` of `kvfree_rcu`). It needs no initialisation; zero is a valid value.
#[cfg(dmr_kvfree_rcu_head)]
pub(super) type KvfreeRcuHead = super::bindings::kvfree_rcu_head;
#[cfg(not(dmr_kvfree_rcu_head))]
pub(super) type KvfreeRcuHead = kernel::bindings::callback_head;

/// A bio's iterator, read field by field: a copy from place to place would keep its address over calls.
///
/// # Safety
///
/// `iter` must be valid, and nobody else may change it meanwhile.
#[inline(always)]
pub(super) unsafe fn iter_by_value(iter: *const bvec_iter) -> bvec_iter {
    // SAFETY: Valid, and not changed meanwhile, by the requirements.
    unsafe {
        bvec_iter {
            bi_sector: (*iter).bi_sector,
            bi_size: (*iter).bi_size,
            bi_idx: (*iter).bi_idx,
            // Bytes of the vector at `bi_idx` that are done: the field has another name since 7.3.
            #[cfg(dmr_bi_offset)]
            bi_offset: (*iter).bi_offset,
            #[cfg(not(dmr_bi_offset))]
            bi_bvec_done: (*iter).bi_bvec_done,
        }
    }
}

/// Runs an initialiser.
///
/// # Safety
///
/// `slot` must be valid for writes, and stay where it is until what is made there is dropped. After an error there is nothing
/// there.
pub(super) unsafe fn init<T>(slot: *mut T, init: impl PinInit<T, Error>) -> Result {
    #[cfg(dmr_raw_try_init)]
    // SAFETY: As the requirements say.
    return unsafe { pin_init::raw_try_init(slot, init) };
    #[cfg(not(dmr_raw_try_init))]
    // SAFETY: As the requirements say.
    return unsafe { init.__pinned_init(slot) };
}
