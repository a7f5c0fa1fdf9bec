// SPDX-License-Identifier: GPL-2.0

//! What the spare may still have in its volatile cache: whether a flush needs it.
//!
//! As long as nothing was written to slots since the last flush that the spare answered, a flush is a matter of main
//! alone, and the spare may be unplugged. All else that is written to the spare is durable when it is done
//! ([`super::store`]).
//!
//! If a flush needs the spare and the spare fails it, the flush fails. That is not enough: of a flush that comes with
//! data (`REQ_PREFLUSH`), device-mapper drops the error and sends the data all the same, without the mark
//! (`requeue_flush_with_data` in `drivers/md/dm.c`). Who waits for that data to be on the medium, as a journal's commit
//! block, asks for FUA, too. So after such a failure, FUA writes are not sent on before the spare has answered a flush;
//! if it does not, they fail ([`super::Remap::recover`]). To meet them, the filter of healthy sectors is hidden
//! ([`super::entries::Entries::hide`]): the healthy path has no instruction for this.

use crate::dm::{read_relaxed, BlkStatus};
use kernel::{
    prelude::*,
    sync::atomic::{Atomic, Full, Relaxed},
};

/// Something was written to a slot that no flush covers.
const DIRTY: u64 = 1;
/// A flush that was needed failed, and none that began later has succeeded.
const FAILED: u64 = 2;
/// One flush of the spare that is on its way; there are less than 2^30.
const FLUSH: u64 = 4;
/// One failure of a flush.
const FAILURE: u64 = 1 << 32;

/// All of it in one word, so that each step is atomic.
pub(super) struct SpareCache(Atomic<u64>);

/// A flush of the spare on its way: how many had failed when it began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Flush(pub(super) u32);

impl SpareCache {
    /// Not known to be clean.
    pub(super) fn new() -> Self {
        Self(Atomic::new(DIRTY))
    }

    /// Carries out `step`, which returns `None` for no change. Returns the word before. Any context.
    fn update(&self, step: impl Fn(u64) -> Option<u64>) -> u64 {
        let mut old = self.0.load(Relaxed);
        loop {
            let Some(new) = step(old) else {
                return old;
            };
            match self.0.cmpxchg(old, new, Full) {
                Ok(_) => return old,
                Err(now) => old = now,
            }
        }
    }

    /// A write to a slot has succeeded, without a commit that makes it durable. To be called before anyone hears of
    /// it, unless [`Self::is_dirty`] then. Any context.
    #[inline]
    pub(super) fn landed(&self) {
        if !self.is_dirty() {
            self.set_dirty();
        }
    }

    /// Whether something was written to a slot that no flush covers. One load. Any context.
    #[inline(always)]
    pub(super) fn is_dirty(&self) -> bool {
        read_relaxed(&self.0) & DIRTY != 0
    }

    #[cold]
    #[inline(never)]
    fn set_dirty(&self) {
        self.update(|word| (word & DIRTY == 0).then_some(word | DIRTY));
    }

    /// A flush of the device begins. `None`: the spare has nothing to make durable. Else it must be flushed, and
    /// [`Self::ended`] called. Any context.
    pub(super) fn begin(&self) -> Option<Flush> {
        // What is on its way is not done: nor may this flush say so.
        let is_clean = |word: u64| word & (FAILURE - 1) == 0;
        // From here on, what lands is for the next one.
        let begin = |word: u64| (word & !DIRTY).wrapping_add(FLUSH);
        let old = self.update(|word| (!is_clean(word)).then(|| begin(word)));
        (!is_clean(old)).then_some(Flush((old >> 32) as u32))
    }

    /// A flush of the spare has ended. Any context.
    pub(super) fn ended(&self, flush: Flush, status: BlkStatus) {
        self.update(|word| {
            let word = word.wrapping_sub(FLUSH);
            Some(if !status.is_ok() {
                word.wrapping_add(FAILURE) | DIRTY | FAILED
            } else if (word >> 32) as u32 == flush.0 {
                word & !FAILED
            } else {
                // Others failed since this one began, and it may not cover what they were for.
                word
            })
        });
    }

    /// Whether a flush that was needed has failed, and none has succeeded since. Any context.
    #[inline]
    pub(super) fn has_failed(&self) -> bool {
        read_relaxed(&self.0) & FAILED != 0
    }
}

/// Every order in which flushes and writes can begin and end.
#[kunit_tests(dm_remap_cache)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_spare_is_not_asked_and_one_that_was_written_to_is() {
        let cache = SpareCache::new();
        let first = cache.begin();
        assert!(first.is_some());
        // One is on its way: it may fail, so the next one asks, too.
        let second = cache.begin();
        assert!(second.is_some());
        cache.ended(first.unwrap_or(Flush(9)), BlkStatus::OK);
        assert!(cache.begin().is_some_and(|f| {
            cache.ended(f, BlkStatus::OK);
            true
        }));
        cache.ended(second.unwrap_or(Flush(9)), BlkStatus::OK);
        assert!(cache.begin().is_none());
        cache.landed();
        cache.landed();
        let third = cache.begin();
        // While it is on its way another write lands.
        cache.landed();
        cache.ended(third.unwrap_or(Flush(9)), BlkStatus::OK);
        assert!(cache.begin().is_some());
    }

    #[test]
    fn a_failure_lasts_until_a_later_flush_succeeds() {
        let cache = SpareCache::new();
        let (early, failing) = (cache.begin(), cache.begin());
        let (early, failing) = (early.unwrap_or(Flush(9)), failing.unwrap_or(Flush(9)));
        assert!(!cache.has_failed());
        cache.ended(failing, BlkStatus::IOERR);
        assert!(cache.has_failed());
        // It began before, and does not count.
        cache.ended(early, BlkStatus::OK);
        assert!(cache.has_failed());
        let later = cache.begin();
        assert!(later.is_some());
        cache.ended(later.unwrap_or(Flush(9)), BlkStatus::OK);
        assert!(!cache.has_failed() && cache.begin().is_none());
    }
}
