// SPDX-License-Identifier: GPL-2.0

//! A bio in [`Target::end_io`].

use super::{
    super::{bindings, instance::Instance, status::BlkStatus, target::Target},
    raw::{Op, Raw, Recorded},
    Brand,
};
use core::marker::PhantomData;

/// What [`Target::end_io`] wants done with the bio of the same call.
#[must_use]
pub(crate) struct Ended<'a>(pub(in super::super) Outcome, Brand<'a>);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Outcome {
    /// It ends, like this.
    Completed(BlkStatus),
    /// It is processed.
    Deferred,
}

/// A bio that was sent down and has succeeded, or that the target has completed itself: nothing of it is known but its cookie.
/// (Which is loaded when it is asked for.)
pub(crate) struct Cookie<'a, T: Target>(Raw<T>, Brand<'a>);

impl<T: Target> Cookie<'_, T> {
    /// Of the clone that device-mapper passed to `end_io`.
    #[inline(always)]
    pub(in super::super) fn new(bio: Raw<T>) -> Self {
        Self(bio, PhantomData)
    }

    /// The cookie that the target sent the bio down with; if it completed the bio, whatever.
    #[inline(always)]
    pub(crate) fn get(&self) -> usize {
        self.0.cookie()
    }
}

/// A bio that was sent down and is back. Any context: nothing may sleep.
pub(crate) struct EndBio<'a, T: Target> {
    instance: &'a Instance<T>,
    bio: Recorded<T>,
    status: BlkStatus,
    brand: Brand<'a>,
}

impl<'a, T: Target> EndBio<'a, T> {
    /// `bio` is the clone that device-mapper passed to `end_io`.
    #[inline(always)]
    pub(in super::super) fn new(
        instance: &'a Instance<T>,
        bio: Recorded<T>,
        status: BlkStatus,
    ) -> Self {
        Self {
            instance,
            bio,
            status,
            brand: PhantomData,
        }
    }

    /// What it asked for. (A write is told from a flush by the length that it came with.)
    pub(crate) fn op(&self) -> Op {
        self.bio.op(self.bio.whole_size())
    }

    /// Whether it changes something on the device. C: `op_is_write`, true of the operations with odd numbers.
    #[inline(always)]
    pub(crate) fn op_is_write(&self) -> bool {
        self.bio.has(1)
    }

    /// Its first sector, from the target's start, as it came.
    pub(crate) fn sector(&self) -> u64 {
        let sector = self.bio.first_sector(self.instance.linear_delta());
        sector.wrapping_sub(self.instance.begin())
    }

    /// Its length in sectors, as it was mapped.
    pub(crate) fn sectors(&self) -> u32 {
        self.bio.whole_size() >> 9
    }

    /// The cookie that it was sent down with.
    #[inline(always)]
    pub(crate) fn cookie(&self) -> usize {
        self.bio.cookie()
    }

    /// The data that it was sent down with, if it was ([`super::MapBio::remap_with`]).
    pub(crate) fn private(&self) -> Option<T::PerBio> {
        self.bio.private()
    }

    /// How the lower device ended it.
    #[inline(always)]
    pub(crate) fn status(&self) -> BlkStatus {
        self.status
    }

    /// Whether it is a read that nobody waits for.
    pub(crate) fn is_readahead(&self) -> bool {
        self.bio.has(bindings::REQ_RAHEAD)
    }

    /// Which of the duplicates of a bio it is, from 0. C: `dm_bio_get_target_bio_nr`.
    pub(crate) fn target_bio_nr(&self) -> u32 {
        self.bio.target_bio_nr()
    }

    /// Lets the submitter have it as it is.
    #[inline(always)]
    pub(crate) fn pass_on(self) -> Ended<'a> {
        Ended(Outcome::Completed(self.status), self.brand)
    }

    /// Lets the submitter have it as one that ended like this.
    pub(crate) fn complete(self, status: BlkStatus) -> Ended<'a> {
        Ended(Outcome::Completed(status), self.brand)
    }

    /// Gives the bio to [`Target::process`], with its error.
    pub(crate) fn defer(self) -> Ended<'a> {
        const {
            assert!(
                T::HAS_PROCESS,
                "a bio is deferred that `Target::process` never gets"
            )
        };
        Ended(Outcome::Deferred, self.brand)
    }
}
