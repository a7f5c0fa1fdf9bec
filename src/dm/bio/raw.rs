// SPDX-License-Identifier: GPL-2.0

//! What the three states of a bio share: the clone, and what the layer and the target keep with it.

use super::super::{
    bindings, compat::iter_by_value, device::Device, instance::Instance, status::BlkStatus,
    target::Target,
};
use core::{
    marker::PhantomData,
    mem::{offset_of, MaybeUninit},
    ptr::NonNull,
};
use kernel::{
    bindings::{bio, bio_endio, block_device, bvec_iter, work_struct},
    prelude::*,
    types::Opaque,
};

/// What a bio asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Data from the device.
    Read,
    /// Data to the device.
    Write,
    /// Zeroes to the device, without a payload.
    WriteZeroes,
    /// The sectors' content is not needed any more.
    Discard,
    /// No sectors: everything completed so far must be on the medium.
    Flush,
    /// Anything else.
    Other,
}

impl Op {
    /// C: `enum req_op`. Of a flush without data, that of a write, as which it comes. [`u32::MAX`] for [`Op::Other`].
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Read => kernel::bindings::req_op_REQ_OP_READ,
            Self::Write | Self::Flush => kernel::bindings::req_op_REQ_OP_WRITE,
            Self::WriteZeroes => kernel::bindings::req_op_REQ_OP_WRITE_ZEROES,
            Self::Discard => kernel::bindings::req_op_REQ_OP_DISCARD,
            Self::Other => u32::MAX,
        }
    }
}

/// In place of a cookie: the target is through with the bio, the next completion is the last.
const DONE: usize = usize::MAX;

/// In the `bi_size` of a recorded iterator, which is in bytes of whole sectors: `private` was written.
const HAS_PRIVATE: u32 = 1;

/// Device-mapper's per-bio data of a target that sees bios again.
///
/// # Invariants
///
/// From the time on when `map` gave the bio away:
/// - `iter` is the bio's iterator as it came, but for its sector, which has [`Instance::linear_delta`] added, and for the
///   bit [`HAS_PRIVATE`] of its size;
/// - `private` is initialised if that bit is set.
///
/// From [`Raw::enqueue`] on, `instance` and `status` are initialised, and `work` is with the queue until it runs.
#[repr(C)]
pub(super) struct PerBio<T: Target> {
    work: Opaque<work_struct>,
    instance: *const Instance<T>,
    iter: bvec_iter,
    status: BlkStatus,
    private: MaybeUninit<T::PerBio>,
}

/// How large the per-bio data of a target of type `T` are, in bytes: nothing, if it never sees a bio again.
///
/// A multiple of their alignment, since they end where the clone's bookkeeping begins (`dm_per_bio_data`).
pub(in super::super) const fn per_bio_size<T: Target>() -> usize {
    const {
        assert!(
            align_of::<PerBio<T>>() <= 8,
            "device-mapper aligns per-bio data to 8 bytes"
        );
        // Device-mapper's sum with what it keeps itself must not overflow; and all of it is there once for each clone.
        assert!(size_of::<PerBio<T>>() <= 4096, "per-bio data must be small")
    };
    if sees_bios_again::<T>() {
        size_of::<PerBio<T>>()
    } else {
        0
    }
}

/// Whether a bio that was sent down, or deferred, comes to the target once more.
const fn sees_bios_again<T: Target>() -> bool {
    T::HAS_END_IO || T::HAS_PROCESS
}

/// A pointer to a clone that device-mapper handed to a target of type `T`.
///
/// # Invariants
///
/// The clone is valid, has per-bio data of [`per_bio_size`] bytes in front of it, and belongs to whoever has this: device-mapper
/// looks at it again when it is completed, or returned from a callback.
pub(in super::super) struct Raw<T: Target>(NonNull<bio>, PhantomData<T>);

impl<T: Target> Clone for Raw<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T: Target> Copy for Raw<T> {}

impl<T: Target> Raw<T> {
    /// # Safety
    ///
    /// `bio` must be a clone that device-mapper made for a target of type `T`, and that nobody else uses meanwhile.
    #[inline(always)]
    pub(in super::super) unsafe fn new(bio: NonNull<bio>) -> Self {
        // INVARIANT: By the requirement; the size of the per-bio data is what the constructor's trampoline asked for.
        Self(bio, PhantomData)
    }

    #[inline(always)]
    pub(super) fn ptr(self) -> *mut bio {
        self.0.as_ptr()
    }

    pub(super) fn per_bio(self) -> *mut PerBio<T> {
        // SAFETY: By the invariant a clone of device-mapper's with so many bytes of per-bio data.
        unsafe { bindings::dm_per_bio_data(self.ptr(), per_bio_size::<T>()) }.cast()
    }

    #[inline(always)]
    pub(super) fn opf(self) -> u32 {
        // SAFETY: Valid by the invariant, and nobody else writes to it.
        unsafe { (*self.ptr()).bi_opf }
    }

    #[inline(always)]
    pub(super) fn has(self, flag: u32) -> bool {
        self.opf() & flag != 0
    }

    /// What it asks for, if it has so many bytes.
    pub(super) fn op(self, size: u32) -> Op {
        match self.opf() & bindings::REQ_OP_MASK {
            kernel::bindings::req_op_REQ_OP_READ => Op::Read,
            // How a flush reaches a bio based driver. (It has a preflush, too, but comes back without it from a device that has
            // no cache: `submit_bio_noacct`.)
            kernel::bindings::req_op_REQ_OP_WRITE if size == 0 => Op::Flush,
            kernel::bindings::req_op_REQ_OP_WRITE => Op::Write,
            kernel::bindings::req_op_REQ_OP_WRITE_ZEROES => Op::WriteZeroes,
            kernel::bindings::req_op_REQ_OP_DISCARD => Op::Discard,
            kernel::bindings::req_op_REQ_OP_FLUSH => Op::Flush,
            _ => Op::Other,
        }
    }

    /// The sector that the clone is at now.
    #[inline(always)]
    pub(super) fn sector(self) -> u64 {
        // SAFETY: Valid by the invariant, and nobody else writes to it.
        unsafe { (*self.ptr()).bi_iter.bi_sector }
    }

    #[inline(always)]
    pub(super) fn set_sector(self, sector: u64) {
        // SAFETY: Valid by the invariant, and nobody else uses it.
        unsafe { (*self.ptr()).bi_iter.bi_sector = sector };
    }

    /// From now on it is for `device`.
    #[inline(always)]
    pub(super) fn set_dev(self, device: Device<'_>) {
        // SAFETY: Valid by the invariant, and nobody else uses it. The device is open until the destructor, for which
        // device-mapper waits until all bios are complete.
        unsafe { set_dev(self.ptr(), device.bdev()) };
    }

    /// The bytes that are left of the clone.
    #[inline(always)]
    pub(super) fn size(self) -> u32 {
        // SAFETY: Valid by the invariant, and nobody else writes to it.
        unsafe { (*self.ptr()).bi_iter.bi_size }
    }

    /// Which of the duplicates of a bio it is, from 0.
    pub(super) fn target_bio_nr(self) -> u32 {
        // SAFETY: A clone of device-mapper's, by the invariant.
        unsafe { bindings::dm_bio_get_target_bio_nr(self.ptr()) }
    }

    /// The cookie that the target sent the bio down with.
    ///
    /// It is kept in the clone's `bi_private`, which is its owner's to use; device-mapper, the owner, leaves it to the
    /// target (as dm-writecache has it). So it is at hand without the per-bio data.
    #[inline(always)]
    pub(in super::super) fn cookie(self) -> usize {
        // SAFETY: Valid by the invariant, and nobody else writes to it.
        unsafe { (*self.ptr()).bi_private.addr() }
    }

    #[inline(always)]
    pub(super) fn set_cookie(self, cookie: usize) {
        if T::HAS_END_IO {
            // SAFETY: Valid by the invariant, and nobody else uses it.
            unsafe { (*self.ptr()).bi_private = core::ptr::without_provenance_mut(cookie) };
        }
    }

    /// Whether the target has completed it.
    pub(in super::super) fn is_done(self) -> bool {
        self.cookie() == DONE
    }

    /// Notes how the bio came, for when it comes back: its iterator as it is, which is at the sector that it came for
    /// plus `linear_delta`.
    #[inline(always)]
    pub(super) fn record(self) {
        self.place().record();
    }

    /// Finds the place for that.
    #[inline(always)]
    pub(super) fn place(self) -> Place<T> {
        let per_bio = if sees_bios_again::<T>() {
            self.per_bio()
        } else {
            core::ptr::null_mut()
        };
        // INVARIANT: The bio's, if there are any.
        Place(self, per_bio)
    }

    /// Gives the bio, which was recorded, to [`super::run`] on the target's queue. From then on it is not the caller's.
    #[cold]
    #[inline(never)]
    pub(in super::super) fn enqueue(self, instance: &Instance<T>, status: BlkStatus) {
        let Some(queue) = instance.queue().filter(|_| T::HAS_PROCESS) else {
            // A target that processes bios has a queue, and no other one can defer any: never reached.
            return self.complete(BlkStatus::IOERR);
        };
        let per_bio = self.per_bio();
        // SAFETY: The per-bio data are valid by the invariant of `self`, and nobody else uses them: the bio is with the
        // target, so its work is not queued. It is initialised before it is. The queue is valid, by the type's invariant.
        unsafe {
            (*per_bio).instance = instance;
            (*per_bio).status = status;
            bindings::dmr_init_work((*per_bio).work.get(), Some(super::run::<T>));
            kernel::bindings::queue_work_on(
                kernel::bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                queue.as_ptr(),
                (*per_bio).work.get(),
            );
        }
    }

    /// Completes the bio towards the submitter; the target does not hear of it again.
    pub(super) fn complete(self, status: BlkStatus) {
        self.set_cookie(DONE);
        // SAFETY: Valid, and the caller's to give away, by the invariant; `bio_endio` takes it over. It calls
        // device-mapper's `clone_endio`, which calls the target's `end_io`, which sees the cookie.
        unsafe {
            (*self.ptr()).bi_status = status.0;
            bio_endio(self.ptr());
        }
    }
}

/// A bio, and where its per-bio data are.
///
/// # Invariants
///
/// The pointer is to the bio's per-bio data, if the target sees bios again.
pub(super) struct Place<T: Target>(Raw<T>, *mut PerBio<T>);

impl<T: Target> Place<T> {
    /// As [`Raw::record`].
    #[inline(always)]
    pub(super) fn record(&self) {
        let Self(bio, per_bio) = *self;
        if sees_bios_again::<T>() {
            // SAFETY: The clone is valid by the invariant of `Raw`, its per-bio data by ours; nobody else uses them.
            // INVARIANT: As the type of the per-bio data wants it. The size is one of whole sectors, so the bit is clear.
            unsafe { (*per_bio).iter = iter_by_value(&raw const (*bio.ptr()).bi_iter) };
        }
    }

    /// As [`Raw::record`], of a bio that is at the sector that it came for, with data of the target's.
    #[inline(always)]
    pub(super) fn record_with(&self, delta: u64, private: T::PerBio) {
        let Self(bio, per_bio) = *self;
        if sees_bios_again::<T>() {
            // SAFETY: The clone is valid by the invariant of `Raw`, its per-bio data by ours; nobody else uses them.
            unsafe {
                let iter = iter_by_value(&raw const (*bio.ptr()).bi_iter);
                (*per_bio).private = MaybeUninit::new(private);
                // INVARIANT: As the type of the per-bio data wants it; `private` is initialised.
                (*per_bio).iter = bvec_iter {
                    bi_sector: iter.bi_sector.wrapping_add(delta),
                    bi_size: iter.bi_size | HAS_PRIVATE,
                    ..iter
                };
            }
        }
    }
}

/// A bio that is with the target once more: how it came is known.
///
/// # Invariants
///
/// It was recorded ([`Raw::record`]) when `map` gave it away, and its per-bio data were not written to since, but by
/// [`Raw::enqueue`].
pub(in super::super) struct Recorded<T: Target>(Raw<T>);

impl<T: Target> core::ops::Deref for Recorded<T> {
    type Target = Raw<T>;

    fn deref(&self) -> &Raw<T> {
        &self.0
    }
}

impl<T: Target> Recorded<T> {
    /// # Safety
    ///
    /// As the invariant says.
    #[inline(always)]
    pub(in super::super) unsafe fn new(bio: Raw<T>) -> Self {
        // INVARIANT: By the requirement.
        Self(bio)
    }

    fn iter(&self) -> bvec_iter {
        // SAFETY: The per-bio data are valid by the invariant of `Raw`, and the iterator was recorded, by ours.
        unsafe { iter_by_value(&raw const (*self.per_bio()).iter) }
    }

    /// What the target sent the bio down with, if it did.
    pub(super) fn private(&self) -> Option<T::PerBio> {
        let has = self.iter().bi_size & HAS_PRIVATE != 0;
        // SAFETY: The per-bio data are valid by the invariant of `Raw`; if the bit is set, `private` is initialised, by theirs.
        has.then(|| unsafe { (*self.per_bio()).private.assume_init() })
    }

    /// The sector of the mapped device that the bio came for.
    pub(super) fn first_sector(&self, delta: u64) -> u64 {
        self.iter().bi_sector.wrapping_sub(delta)
    }

    /// The bytes that the bio came for.
    pub(super) fn whole_size(&self) -> u32 {
        self.iter().bi_size & !HAS_PRIVATE
    }

    /// Takes over the bio of a work that [`Raw::enqueue`] queued, as it came; with the target, and the error that it was deferred
    /// with.
    ///
    /// # Safety
    ///
    /// `work` must be such a work, which runs now, and of which nobody else has taken over the bio.
    pub(super) unsafe fn from_work<'a>(
        work: *mut work_struct,
    ) -> Option<(Self, &'a Instance<T>, BlkStatus)> {
        // SAFETY: By the requirement the work lies in the per-bio data of a clone, at that offset; they are of that size.
        let (per_bio, bio) = unsafe {
            let per_bio = work
                .byte_sub(offset_of!(PerBio<T>, work))
                .cast::<PerBio<T>>();
            let bio = bindings::dm_bio_from_per_bio_data(per_bio.cast(), per_bio_size::<T>());
            (per_bio, NonNull::new(bio)?)
        };
        // SAFETY: By the requirement, nobody else has this clone. `enqueue` is called for recorded bios.
        let this = unsafe { Self::new(Raw::new(bio)) };
        // SAFETY: `enqueue` wrote both. The target waits for its queue before it goes away, and this is work on it.
        let (instance, status) = unsafe { (&*(*per_bio).instance, (*per_bio).status) };
        // The lower device has moved the iterator on.
        let iter = bvec_iter {
            bi_sector: this.first_sector(instance.linear_delta()),
            bi_size: this.whole_size(),
            ..this.iter()
        };
        // SAFETY: Valid and ours, by the invariant of `Raw`.
        unsafe { (*this.ptr()).bi_iter = iter };
        Some((this, instance, status))
    }
}

/// C: `bio_set_dev`. A helper for that inline would take more instructions to call than it has.
///
/// # Safety
///
/// `bio` must be valid and the caller's, and complete before `bdev` is closed.
#[inline(always)]
pub(super) unsafe fn set_dev(bio: *mut bio, bdev: *mut block_device) {
    use kernel::bindings::{BIO_BPS_THROTTLED, BIO_REMAPPED};
    // SAFETY: The bio is valid and the caller's, the device open, by the requirement.
    unsafe {
        // What is sent from here is new to the device, whether or not the bio was there before.
        (*bio).bi_flags &= !(1 << BIO_REMAPPED | 1 << BIO_BPS_THROTTLED);
        (*bio).bi_bdev = bdev;
        #[cfg(CONFIG_BLK_CGROUP)]
        kernel::bindings::bio_associate_blkg(bio);
    }
}
