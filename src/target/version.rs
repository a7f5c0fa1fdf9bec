// SPDX-License-Identifier: GPL-2.0

//! A count of changes to the entries, which goes with each bio.

use crate::dm::read_ordered;
use kernel::sync::atomic::{Atomic, Full};

/// What a [`Version`] was at some time, and what else is to be known of a bio when it is back: the cookie that it is sent down
/// with. A count of changes, times four, and two flags.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp(usize);

/// The bio is a write that went to a slot.
const ASIDE: usize = 1;
/// Its end is of interest, whatever that is.
const WATCHED: usize = 2;
/// One change.
const STEP: usize = 4;

impl Stamp {
    /// After any change that there will be.
    #[cfg(CONFIG_KUNIT)]
    pub(super) const LAST: Self = Self(usize::MAX & !(STEP - 1));

    /// One that means what its maker wants it to.
    pub(super) const fn marked(mark: u32) -> Self {
        Self(mark as usize * STEP)
    }

    /// That of a bio.
    #[inline(always)]
    pub(super) fn from_cookie(cookie: usize) -> Self {
        Self(cookie)
    }

    /// For a bio to be sent down with.
    #[inline(always)]
    pub(super) fn cookie(self) -> usize {
        self.0
    }

    /// Of a bio that goes to a slot. (Of a read, that does not matter when it is back.)
    #[inline(always)]
    pub(super) fn aside_if(self, is_write: bool) -> Self {
        Self(self.0 | usize::from(is_write) * ASIDE)
    }

    /// Of a bio whose end is to be seen.
    pub(super) fn watched(self) -> Self {
        Self(self.0 | WATCHED)
    }

    #[inline(always)]
    pub(super) fn is_aside(self) -> bool {
        self.0 & ASIDE != 0
    }

    /// Whether it was sent while the count was `now`, as nothing special, or as a write to a slot if that is `settled`.
    #[inline(always)]
    pub(super) fn is_settled(self, now: Self, settled: impl FnOnce() -> bool) -> bool {
        let difference = self.0 ^ now.0;
        difference == 0 || difference == ASIDE && settled()
    }

    #[inline(always)]
    pub(super) fn is_watched(self) -> bool {
        self.0 & WATCHED != 0
    }

    /// Without the flags.
    #[inline(always)]
    pub(super) fn plain(self) -> Self {
        Self(self.0 & !(ASIDE | WATCHED))
    }

    /// The number of changes before it, or the mark.
    pub(super) fn count(self) -> usize {
        self.0 / STEP
    }
}

/// A count of changes, for readers that note it before they look at what changes, and later ask
/// whether that may have changed.
pub(super) struct Version(Atomic<usize>);

impl Version {
    /// No change so far.
    pub(super) const fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// The count. One load, ordered before the loads behind it and behind the loads before it. Any context.
    #[inline(always)]
    pub(super) fn read(&self) -> Stamp {
        Stamp(read_ordered(&self.0))
    }

    /// Counts a change, with full ordering. Returns the new count. Any context.
    pub(super) fn bump(&self) -> Stamp {
        Stamp(self.0.fetch_add(STEP, Full).wrapping_add(STEP))
    }
}
