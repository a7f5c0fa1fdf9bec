// SPDX-License-Identifier: GPL-2.0

//! A bio in [`Target::map`].

use super::{
    super::{
        bindings,
        device::Device,
        instance::{Instance, Linear},
        status::BlkStatus,
        target::Target,
    },
    raw::{Op, Place, Raw},
    Brand,
};
use core::{
    marker::PhantomData,
    sync::atomic::{compiler_fence, Ordering::SeqCst},
};

/// What [`Target::map`] did with the bio of the same call.
#[must_use]
pub(crate) struct Mapped<'a>(pub(in super::super) u32, Brand<'a>);

/// A bio in [`Target::map`]: it must not sleep.
pub(crate) struct MapBio<'a, T: Target> {
    // In the order of the callback's arguments: passed on, they stay where they are.
    instance: &'a Instance<T>,
    bio: Raw<T>,
    brand: Brand<'a>,
}

impl<'a, T: Target> MapBio<'a, T> {
    /// `bio` is the clone that device-mapper passed to `map`.
    #[inline(always)]
    pub(in super::super) fn new(instance: &'a Instance<T>, bio: Raw<T>) -> Self {
        Self {
            instance,
            bio,
            brand: PhantomData,
        }
    }

    /// Calls `then` with the target's data, for whoever has not kept them.
    #[inline(always)]
    pub(crate) fn with_data<R>(
        self,
        then: impl for<'d, 't> FnOnce(&'d T::Data<'t>, Self) -> R,
    ) -> R {
        then(self.instance.data(), self)
    }

    /// The number of what it asks for ([`Op::number`]).
    #[inline(always)]
    pub(crate) fn op_number(&self) -> u32 {
        self.bio.opf() & bindings::REQ_OP_MASK
    }

    /// What it asks for.
    #[inline(always)]
    pub(crate) fn op(&self) -> Op {
        self.bio.op(self.bio.size())
    }

    /// Whether it changes something on the device. C: `op_is_write`, true of the operations with odd numbers.
    #[inline(always)]
    pub(crate) fn op_is_write(&self) -> bool {
        self.bio.has(1)
    }

    /// Its first sector, from the target's start.
    #[inline(always)]
    pub(crate) fn sector(&self) -> u64 {
        self.bio.sector().wrapping_sub(self.instance.begin())
    }

    /// Its length in sectors, 0 for a flush.
    #[inline(always)]
    pub(crate) fn sectors(&self) -> u32 {
        self.bio.size() >> 9
    }

    /// Whether the submitter would rather have [`BlkStatus::AGAIN`] than wait.
    pub(crate) fn is_nowait(&self) -> bool {
        self.bio.has(bindings::REQ_NOWAIT)
    }

    /// Whether it is to be on the medium when it completes.
    pub(crate) fn is_fua(&self) -> bool {
        self.bio.has(bindings::REQ_FUA)
    }

    /// Which of the duplicates of a bio it is, from 0. C: `dm_bio_get_target_bio_nr`.
    pub(crate) fn target_bio_nr(&self) -> u32 {
        self.bio.target_bio_nr()
    }

    /// Cuts the bio to its first `sectors` sectors; the rest comes as another one. C: `dm_accept_partial_bio`.
    ///
    /// `false`, and nothing done, where the bio may not be cut there: `sectors` is 0 or longer than the bio, the
    /// write is atomic, the bio is one of several duplicates or of no operation that has to do with sectors' contents.
    pub(crate) fn accept_partial(&mut self, sectors: u32) -> bool {
        // Of a polled bio that was cut, the rest is cloned with device-mapper's mark `REQ_DM_POLL_LIST` (only clones
        // made by `alloc_tio` lose it). Drivers take the bit for theirs: NVMe would follow a null pointer.
        const { assert!(!T::POLLED, "a target that is polled must not cut bios") };
        let duplicates = match self.op() {
            Op::Read | Op::Write => 1,
            Op::Discard => self.instance.info().duplicates().0,
            Op::WriteZeroes => self.instance.info().duplicates().1,
            Op::Flush | Op::Other => return false,
        };
        let is_whole = sectors == self.sectors();
        if sectors == 0
            || sectors > self.sectors()
            || duplicates != 1 && !is_whole
            || self.bio.has(bindings::REQ_ATOMIC)
        {
            return false;
        }
        if !is_whole {
            // SAFETY: Called from `map`, with a bio that none of the function's `BUG_ON`s catches: not a duplicate, not
            // atomic, none of a zone, and not lengthened.
            unsafe { bindings::dm_accept_partial_bio(self.bio.ptr(), sectors) };
        }
        true
    }

    /// Sends the bio to where its sectors lie on the device of [`super::super::Setup::linear`]. `cookie` is kept with it, for
    /// [`Target::is_settled`] and [`super::EndBio::cookie`]; with `usize::MAX` the target does not hear of the bio again.
    ///
    /// All of the instance is used before the first call, and what is recorded is what came of it: so this keeps nothing but the
    /// bio itself over the calls.
    #[inline(always)]
    pub(crate) fn remap_linear(self, linear: &Linear<'_>, cookie: usize) -> Mapped<'a> {
        let (device, delta) = (linear.0, self.instance.linear_delta());
        self.bio.set_cookie(cookie);
        self.bio.set_sector(self.bio.sector().wrapping_add(delta));
        self.bio.set_dev(device);
        self.bio.record();
        self.remapped()
    }

    /// Sends the bio to `sector` of `device`.
    #[inline(always)]
    pub(crate) fn remap(self, device: Device<'_>, sector: u64) -> Mapped<'a> {
        const {
            assert!(
                !T::HAS_END_IO && !T::HAS_PROCESS,
                "the bio comes back: use remap_with or remap_linear"
            )
        };
        self.bio.set_sector(sector);
        self.bio.set_dev(device);
        self.remapped()
    }

    /// Sends the bio to `sector` of `device`, with a cookie, as [`Self::remap_linear`], and data that stay with it.
    #[inline]
    pub(crate) fn remap_with(
        self,
        device: Device<'_>,
        sector: u64,
        cookie: usize,
        private: T::PerBio,
    ) -> Mapped<'a> {
        self.ready().remap_with(device, sector, cookie, private)
    }

    /// Finds what is to be written when the bio is sent on, which is a call. Whoever has something to keep in registers from then on
    /// does it first.
    #[inline(always)]
    pub(crate) fn ready(self) -> ReadyBio<'a, T> {
        ReadyBio {
            place: self.bio.place(),
            bio: self,
        }
    }

    #[inline(always)]
    fn remapped(self) -> Mapped<'a> {
        Mapped(bindings::DM_MAPIO_REMAPPED, self.brand)
    }

    /// Gives the bio to [`Target::process`], with [`BlkStatus::OK`].
    pub(crate) fn defer(self) -> Mapped<'a> {
        const {
            assert!(
                T::HAS_PROCESS,
                "a bio is deferred that `Target::process` never gets"
            )
        };
        let delta = self.instance.linear_delta();
        self.bio.set_sector(self.bio.sector().wrapping_add(delta));
        self.bio.record();
        self.bio.enqueue(self.instance, BlkStatus::OK);
        Mapped(bindings::DM_MAPIO_SUBMITTED, self.brand)
    }

    /// Completes the bio.
    pub(crate) fn complete(self, status: BlkStatus) -> Mapped<'a> {
        self.bio.complete(status);
        Mapped(bindings::DM_MAPIO_SUBMITTED, self.brand)
    }
}

/// A [`MapBio`] that can be sent on at once, see [`MapBio::ready`].
pub(crate) struct ReadyBio<'a, T: Target> {
    bio: MapBio<'a, T>,
    /// Of this bio.
    place: Place<T>,
}

impl<'a, T: Target> core::ops::Deref for ReadyBio<'a, T> {
    type Target = MapBio<'a, T>;

    #[inline(always)]
    fn deref(&self) -> &MapBio<'a, T> {
        &self.bio
    }
}

impl<'a, T: Target> ReadyBio<'a, T> {
    /// The bio, for something else to be done with it.
    #[inline(always)]
    pub(crate) fn into_bio(self) -> MapBio<'a, T> {
        self.bio
    }

    /// As [`MapBio::remap_linear`].
    #[inline(always)]
    pub(crate) fn remap_linear(self, linear: &Linear<'_>, cookie: usize) -> Mapped<'a> {
        let Self { bio: this, place } = self;
        // What the caller has looked at is loaded again, instead of kept in registers on other ways, too.
        compiler_fence(SeqCst);
        this.bio.set_cookie(cookie);
        let delta = this.instance.linear_delta();
        this.bio.set_sector(this.bio.sector().wrapping_add(delta));
        place.record();
        this.bio.set_dev(linear.0);
        this.remapped()
    }

    /// As [`MapBio::remap_with`].
    #[inline(always)]
    pub(crate) fn remap_with(
        self,
        device: Device<'_>,
        sector: u64,
        cookie: usize,
        private: T::PerBio,
    ) -> Mapped<'a> {
        let Self { bio: this, place } = self;
        this.bio.set_cookie(cookie);
        place.record_with(this.instance.linear_delta(), private);
        this.bio.set_sector(sector);
        this.bio.set_dev(device);
        this.remapped()
    }
}
