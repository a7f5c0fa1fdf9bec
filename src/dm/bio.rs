// SPDX-License-Identifier: GPL-2.0

//! A bio on its way through a target.
//!
//! Device-mapper hands the target a clone of the submitter's bio. The clone is owned by whoever has
//! one of the three types here, in the order in which they can follow each other:
//!
//! ```text
//! map           MapBio ──remap──> lower device ─────────> EndBio ──pass_on──> submitter
//!                 │  └──complete──> submitter                │
//!                 └─────defer─────> DeferredBio <───defer────┘
//!                                     └──complete──> submitter
//! ```
//!
//! Each is used up by the step that gives the clone away, and the callbacks must return the token
//! ([`Mapped`], [`Ended`]) that only those steps make.
//!
//! Every clone has a [`PerBio`] in front of it (`per_io_data_size`): what is needed to submit parts
//! of it again, as the lower device moves `bi_iter` on, and the work item to do it from.
//!
//! C: `include/linux/bio.h`, `drivers/md/dm.c`, `drivers/md/dm-bio-record.h`.

use super::{
    bindings,
    compat::iter_by_value,
    device::Device,
    io::submit_and_wait,
    rcu::Stamp,
    target::{Target, TargetInfo},
    workqueue::Queue,
    Status,
};
use core::{
    marker::PhantomData,
    mem::{offset_of, ManuallyDrop},
    ptr::NonNull,
};
use kernel::{
    bindings::{
        bio, bio_endio, bio_init_clone, bio_trim, bvec_iter, work_struct, workqueue_struct,
    },
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

/// Device-mapper's per-bio data of every target made with this layer.
///
/// # Invariants
///
/// `iter` is valid from [`MapBio::remap`] or [`MapBio::defer`] on, as the bio was then sent down; `ti` and
/// `work` from a `defer` on; `home` if the stamp has the bit [`STRAYED`], and `tag` if it has [`TAGGED`].
#[repr(C)]
pub(super) struct PerBio {
    work: Opaque<work_struct>,
    ti: *mut bindings::dm_target,
    iter: bvec_iter,
    tag: u32,
    /// The sector of the mapped device that it is for.
    home: u64,
    status: Status,
}

/// In a stamp: the bio was sent with a tag. No version has the bit ([`super::Version`]).
///
/// A stamp is kept in the clone's `bi_private`, which is its owner's to use; device-mapper, the owner,
/// leaves it to the target (as dm-writecache has it). So it is at hand without the per-bio data.
const TAGGED: usize = 1 << (usize::BITS - 1);
/// In a stamp: the bio was not sent where [`Target::offset`] leads. Nor has a version this bit.
const STRAYED: usize = 1 << (usize::BITS - 2);
/// In a stamp: the target wants to see the bio's end, whatever that is. Nor has a version this bit.
const WATCHED: usize = 1 << (usize::BITS - 3);
/// In place of a stamp: the target is through with the bio, the next completion is the last.
const DONE: usize = usize::MAX;

/// What the target sent a bio down with.
fn version_in(stamp: usize) -> Stamp {
    Stamp(stamp & !(TAGGED | STRAYED | WATCHED))
}

/// Size of the per-bio data in bytes: a multiple of its alignment, since it ends where the clone's
/// bookkeeping begins (`dm_per_bio_data`).
pub(super) const PER_BIO_SIZE: usize = size_of::<PerBio>();

/// A pointer to a clone that device-mapper handed to the target, which owns it now.
///
/// # Invariants
///
/// Valid, with a [`PerBio`], and nobody else uses it.
#[derive(Clone, Copy)]
struct Raw(NonNull<bio>);

impl Raw {
    fn ptr(self) -> *mut bio {
        self.0.as_ptr()
    }

    fn per_bio(self) -> *mut PerBio {
        // SAFETY: By the invariant a device-mapper clone with `PER_BIO_SIZE` bytes of data.
        unsafe { bindings::dm_per_bio_data(self.ptr(), PER_BIO_SIZE) }.cast()
    }

    fn opf(self) -> u32 {
        // SAFETY: Valid by the invariant.
        unsafe { (*self.ptr()).bi_opf }
    }

    fn op(self) -> Op {
        match self.opf() & bindings::REQ_OP_MASK {
            kernel::bindings::req_op_REQ_OP_READ => Op::Read,
            kernel::bindings::req_op_REQ_OP_WRITE => {
                // An empty write with a preflush is how a flush reaches a bio based driver.
                // SAFETY: Valid by the invariant.
                if unsafe { (*self.ptr()).bi_iter.bi_size } == 0 && self.has(bindings::REQ_PREFLUSH)
                {
                    Op::Flush
                } else {
                    Op::Write
                }
            }
            kernel::bindings::req_op_REQ_OP_WRITE_ZEROES => Op::WriteZeroes,
            kernel::bindings::req_op_REQ_OP_DISCARD => Op::Discard,
            kernel::bindings::req_op_REQ_OP_FLUSH => Op::Flush,
            _ => Op::Other,
        }
    }

    #[inline(always)]
    fn stamp(self) -> usize {
        // SAFETY: Valid by the invariant.
        unsafe { (*self.ptr()).bi_private.addr() }
    }

    #[inline(always)]
    fn set_stamp(self, stamp: usize) {
        // SAFETY: Valid by the invariant.
        unsafe { (*self.ptr()).bi_private = core::ptr::without_provenance_mut(stamp) };
    }

    fn has(self, flag: u32) -> bool {
        self.opf() & flag != 0
    }

    /// The sector of the mapped device that a bio is for which was sent down or deferred. `offset` is that of
    /// [`Target::offset`].
    fn home(self, offset: u64) -> u64 {
        let per_bio = self.per_bio();
        // SAFETY: `map` wrote it.
        unsafe {
            if self.stamp() & STRAYED != 0 {
                (*per_bio).home
            } else {
                (*per_bio).iter.bi_sector.wrapping_sub(offset)
            }
        }
    }

    /// Gives the bio to [`run`] on `queue`.
    fn enqueue(self, ti: &TargetInfo, queue: *mut workqueue_struct, status: Status) {
        let per_bio = self.per_bio();
        // SAFETY: The per-bio data is valid for writes and nobody else's. The work is initialised
        // before it is queued, and not queued already: a bio is with the target or with the queue.
        unsafe {
            (*per_bio).ti = ti.as_ptr();
            (*per_bio).status = status;
            bindings::dmr_init_work((*per_bio).work.get(), ti.work_function());
            kernel::bindings::queue_work_on(
                kernel::bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                queue,
                (*per_bio).work.get(),
            );
        }
    }

    /// Completes the bio towards the submitter; the target does not hear of it again.
    fn complete(self, status: Status) {
        self.set_stamp(DONE);
        // SAFETY: Valid and ours by the invariant; `bio_endio` takes it over. It calls
        // device-mapper's `clone_endio`, which calls `end_io`, which sees the stamp.
        unsafe {
            (*self.ptr()).bi_status = status.0;
            bio_endio(self.ptr());
        }
    }
}

/// C: `bio_set_dev`. A helper for that inline would take more instructions to call than it has.
///
/// # Safety
///
/// `bio` must be valid and the caller's, and not outlast `device`.
#[inline(always)]
unsafe fn set_dev(bio: *mut bio, device: &Device) {
    use kernel::bindings::{BIO_BPS_THROTTLED, BIO_REMAPPED};
    // SAFETY: By the requirements.
    unsafe {
        // What is sent from here is new to the device, whether or not the bio was there before.
        (*bio).bi_flags &= !(1 << BIO_REMAPPED | 1 << BIO_BPS_THROTTLED);
        (*bio).bi_bdev = device.bdev();
        #[cfg(CONFIG_BLK_CGROUP)]
        kernel::bindings::bio_associate_blkg(bio);
    }
}

/// What [`Target::map`] did with the bio.
#[must_use]
pub(crate) struct Mapped(pub(super) u32);

/// A bio in [`Target::map`]: it must not sleep.
pub(crate) struct MapBio<'a> {
    // In the order of the callback's arguments: passed on, they stay where they are.
    ti: &'a TargetInfo,
    bio: Raw,
}

impl<'a> MapBio<'a> {
    /// # Safety
    ///
    /// `bio` must be the clone that device-mapper passed to `map` for `ti`, and used by nothing else.
    #[inline(always)]
    pub(super) unsafe fn from_raw(bio: NonNull<bio>, ti: &'a TargetInfo) -> Self {
        // INVARIANT: By the requirement; `ctr`'s trampoline asked for the per-bio data.
        Self { ti, bio: Raw(bio) }
    }

    /// What it asks for.
    #[inline(always)]
    pub(crate) fn op(&self) -> Op {
        self.bio.op()
    }

    /// Its first sector, from the target's start.
    #[inline(always)]
    pub(crate) fn sector(&self) -> u64 {
        // SAFETY: Valid by the invariant of `Raw`.
        let sector = unsafe { (*self.bio.ptr()).bi_iter.bi_sector };
        sector.wrapping_sub(self.ti.begin())
    }

    /// Its length in sectors, 0 for a flush.
    #[inline(always)]
    pub(crate) fn sectors(&self) -> u32 {
        // SAFETY: Valid by the invariant of `Raw`.
        unsafe { (*self.bio.ptr()).bi_iter.bi_size >> 9 }
    }

    /// Whether the submitter would rather have [`Status::AGAIN`] than wait.
    pub(crate) fn is_nowait(&self) -> bool {
        self.bio.has(bindings::REQ_NOWAIT)
    }

    /// Whether it is to be on the medium when it completes.
    pub(crate) fn is_fua(&self) -> bool {
        self.bio.has(bindings::REQ_FUA)
    }

    /// Which of the duplicates of a flush it is, from 0.
    pub(crate) fn number(&self) -> u32 {
        // SAFETY: Valid by the invariant of `Raw`.
        unsafe { bindings::dm_bio_get_target_bio_nr(self.bio.ptr()) }
    }

    /// Cuts the bio to its first `sectors` sectors; the rest comes as another one.
    ///
    /// `false`, and nothing done, where the bio may not be cut there: `sectors` is 0 or longer than
    /// the bio, or the write is atomic. (Duplicates, which may not be cut either, have no sectors.)
    pub(crate) fn accept(&mut self, sectors: u32) -> bool {
        if sectors == 0 || sectors > self.sectors() || self.bio.has(bindings::REQ_ATOMIC) {
            return false;
        }
        if sectors < self.sectors() {
            // SAFETY: Called from `map`, with a bio that none of the function's `BUG_ON`s catches:
            // only flushes are sent in duplicate (`Setup`), zoned devices are not opened.
            unsafe { bindings::dm_accept_partial_bio(self.bio.ptr(), sectors) };
        }
        true
    }

    #[inline(always)]
    fn record(&self) -> *mut PerBio {
        let per_bio = self.bio.per_bio();
        // SAFETY: Both are valid and nobody else's.
        unsafe {
            (*per_bio).iter = iter_by_value(&raw const (*self.bio.ptr()).bi_iter);
        }
        per_bio
    }

    /// All of `device` and `offset` is used before the first call, and what is recorded is what came of it:
    /// so the healthy path keeps nothing but the bio itself over the calls.
    #[inline(always)]
    fn send(&self, device: &Device, offset: &u64, stamp: usize) -> *mut PerBio {
        self.bio.set_stamp(stamp);
        // SAFETY: Valid and ours by the invariant of `Raw`; the device is open, and stays so until the
        // destructor, for which device-mapper waits until all bios are complete.
        unsafe {
            let sector = &raw mut (*self.bio.ptr()).bi_iter.bi_sector;
            *sector = (*sector).wrapping_add(*offset);
            set_dev(self.bio.ptr(), device);
        }
        self.record()
    }

    /// Sends the bio to `device`, to the sector of the mapped device that it is for plus `offset`, with
    /// wraparound: [`Target::offset`], unless it is a flush. `stamp` is that of [`Target::version`].
    #[inline(always)]
    pub(crate) fn remap(self, device: &Device, offset: &u64, stamp: Stamp) -> Mapped {
        self.send(device, offset, stamp.0);
        Mapped(bindings::DM_MAPIO_REMAPPED)
    }

    /// As [`Self::remap`], and [`Target::end_io`] sees the bio's end even if it succeeds.
    pub(crate) fn remap_watched(self, device: &Device, offset: &u64, stamp: Stamp) -> Mapped {
        self.send(device, offset, stamp.0 | WATCHED);
        Mapped(bindings::DM_MAPIO_REMAPPED)
    }

    /// Sends the bio to `sector` of `device`, elsewhere than [`Self::remap`] would. `tag` is kept with it
    /// ([`EndBio::tag`]); if it is a write and succeeds, [`Target::landed`] is called.
    #[inline]
    pub(crate) fn remap_aside(
        self,
        tag: u32,
        device: &Device,
        sector: u64,
        stamp: Stamp,
    ) -> Mapped {
        // SAFETY: Valid by the invariant of `Raw`.
        let home = unsafe { (*self.bio.ptr()).bi_iter.bi_sector };
        let per_bio = self.send(
            device,
            &sector.wrapping_sub(home),
            stamp.0 | TAGGED | STRAYED,
        );
        // SAFETY: Valid and nobody else's.
        unsafe {
            (*per_bio).tag = tag;
            (*per_bio).home = home;
        }
        Mapped(bindings::DM_MAPIO_REMAPPED)
    }

    /// Gives the bio to [`Target::process`] on `queue`, with [`Status::OK`].
    pub(crate) fn defer(self, queue: &Queue) -> Mapped {
        let per_bio = self.record();
        self.bio.set_stamp(STRAYED);
        // SAFETY: Valid and nobody else's.
        unsafe { (*per_bio).home = (*self.bio.ptr()).bi_iter.bi_sector };
        self.bio.enqueue(self.ti, queue.as_ptr(), Status::OK);
        Mapped(bindings::DM_MAPIO_SUBMITTED)
    }

    /// Completes the bio.
    pub(crate) fn complete(self, status: Status) -> Mapped {
        self.bio.complete(status);
        Mapped(bindings::DM_MAPIO_SUBMITTED)
    }
}

/// What [`Target::end_io`] wants done with the bio.
#[must_use]
pub(crate) enum Ended {
    /// Nothing.
    PassedOn,
    /// It succeeds, whatever the lower device said.
    Succeeded,
    /// It is processed on this queue of the target's.
    Deferred(*mut workqueue_struct),
}

/// A remapped bio that failed, or that is not settled. Any context: nothing may sleep.
pub(crate) struct EndBio<'a> {
    bio: Raw,
    ti: &'a TargetInfo,
    status: Status,
    offset: u64,
}

impl<'a> EndBio<'a> {
    /// The stamp that `bio` was sent down with by [`MapBio::remap`], some other value if it was not.
    ///
    /// # Safety
    ///
    /// `bio` must be the clone that device-mapper passed to `end_io`.
    #[inline(always)]
    pub(super) unsafe fn stamp_of(bio: NonNull<bio>) -> usize {
        // INVARIANT: By the requirement.
        Raw(bio).stamp()
    }

    /// The rest of the trampoline of [`Target::end_io`], for a bio that is not settled by its stamp alone. May
    /// change the status.
    ///
    /// # Safety
    ///
    /// As for [`Self::from_raw`], of a target of type `T`.
    pub(super) unsafe fn finish<T: Target>(
        bio: NonNull<bio>,
        ti: &'a TargetInfo,
        status: &mut Status,
    ) -> u32 {
        // INVARIANT: By the requirement.
        let raw = Raw(bio);
        let stamp = raw.stamp();
        if stamp == DONE {
            return bindings::DM_ENDIO_DONE;
        }
        if status.is_ok() {
            // SAFETY: There is a bio, so the constructor has returned, and the destructor was not called.
            let data = unsafe { ti.data::<T>() };
            // Writing operations have odd numbers (`op_is_write`).
            if stamp & TAGGED != 0 && raw.opf() & 1 != 0 {
                T::landed(&data);
            }
            if stamp & WATCHED == 0 && T::version(&data).read() == version_in(stamp) {
                return bindings::DM_ENDIO_DONE;
            }
        }
        // SAFETY: As the requirement says.
        match unsafe { Self::unsettled::<T>(bio, ti, *status) } {
            Ended::PassedOn => (),
            Ended::Succeeded => *status = Status::OK,
            Ended::Deferred(queue) => {
                // Once the bio is given away, the target may be gone.
                raw.enqueue(ti, queue, *status);
                return bindings::DM_ENDIO_INCOMPLETE;
            }
        }
        bindings::DM_ENDIO_DONE
    }

    /// # Safety
    ///
    /// As for [`Self::finish`].
    #[cold]
    #[inline(never)]
    unsafe fn unsettled<T: Target>(bio: NonNull<bio>, ti: &'a TargetInfo, status: Status) -> Ended {
        // SAFETY: As in `finish`.
        let (data, offset) = unsafe { (ti.data::<T>(), T::offset(ti.data::<T>())) };
        // SAFETY: As the requirement says.
        T::end_io(data, unsafe { Self::from_raw(bio, ti, status, offset) })
    }

    /// # Safety
    ///
    /// `bio` must be the clone that device-mapper passed to `end_io` for `ti`, used by nothing else,
    /// `status` the error, and `offset` that of [`Target::offset`].
    #[inline(always)]
    pub(super) unsafe fn from_raw(
        bio: NonNull<bio>,
        ti: &'a TargetInfo,
        status: Status,
        offset: u64,
    ) -> Self {
        Self {
            // INVARIANT: By the requirement.
            bio: Raw(bio),
            ti,
            status,
            offset,
        }
    }

    /// What it asked for. (A write is told from a flush by its length, and the lower device may have
    /// used that up: an empty one with a preflush is taken for a flush.)
    pub(crate) fn op(&self) -> Op {
        match self.bio.op() {
            Op::Flush if self.sectors() != 0 => Op::Write,
            op => op,
        }
    }

    /// Its first sector, from the target's start, as it came.
    pub(crate) fn sector(&self) -> u64 {
        self.bio.home(self.offset).wrapping_sub(self.ti.begin())
    }

    /// Its length in sectors, as it was mapped.
    pub(crate) fn sectors(&self) -> u32 {
        // SAFETY: `map` recorded it.
        unsafe { (*self.bio.per_bio()).iter.bi_size >> 9 }
    }

    /// The stamp that it was sent down with.
    pub(crate) fn stamp(&self) -> Stamp {
        version_in(self.bio.stamp())
    }

    /// The tag that it was sent down with, if it was.
    pub(crate) fn tag(&self) -> Option<u32> {
        let is_tagged = self.bio.stamp() & TAGGED != 0;
        // SAFETY: `map` wrote it.
        is_tagged.then(|| unsafe { (*self.bio.per_bio()).tag })
    }

    /// How the lower device ended it.
    pub(crate) fn status(&self) -> Status {
        self.status
    }

    /// Whether it is a read that nobody waits for.
    pub(crate) fn is_readahead(&self) -> bool {
        self.bio.has(bindings::REQ_RAHEAD)
    }

    /// Which of the duplicates of a flush it is, from 0.
    pub(crate) fn number(&self) -> u32 {
        // SAFETY: A clone of device-mapper's, by the invariant of `Raw`.
        unsafe { bindings::dm_bio_get_target_bio_nr(self.bio.ptr()) }
    }

    /// Lets the submitter have it as it is.
    pub(crate) fn pass_on(self) -> Ended {
        Ended::PassedOn
    }

    /// Lets the submitter have it as one that succeeded.
    pub(crate) fn succeed(self) -> Ended {
        Ended::Succeeded
    }

    /// Gives the bio to [`Target::process`] on `queue`, with its error.
    pub(crate) fn defer(self, queue: &Queue) -> Ended {
        Ended::Deferred(queue.as_ptr())
    }
}

/// A bio in [`Target::process`]: process context, it may sleep.
///
/// Dropped without [`DeferredBio::complete`], it fails.
pub(crate) struct DeferredBio<'a> {
    bio: Raw,
    ti: &'a TargetInfo,
    _life: PhantomData<&'a ()>,
}

/// The work function of target `T`'s deferred bios.
///
/// # Safety
///
/// `work` must be that of the [`PerBio`] of a bio that [`Raw::enqueue`] queued for `T`.
pub(super) unsafe extern "C" fn run<T: Target>(work: *mut work_struct) {
    // SAFETY: By the requirement the work lies in a `PerBio`.
    let per_bio = unsafe { work.byte_sub(offset_of!(PerBio, work)) }.cast::<PerBio>();
    // SAFETY: The data is that of a clone of device-mapper's, `PER_BIO_SIZE` bytes.
    let bio = unsafe { bindings::dm_bio_from_per_bio_data(per_bio.cast(), PER_BIO_SIZE) };
    let Some(bio) = NonNull::new(bio) else { return };
    // SAFETY: `enqueue` wrote it; `ti` lives until all its bios are complete.
    let ti = unsafe { TargetInfo::from_raw((*per_bio).ti) };
    // SAFETY: The target is alive: this bio is not complete.
    let (data, offset) = unsafe { (ti.data::<T>(), T::offset(ti.data::<T>())) };
    // SAFETY: `map` wrote it. The iterator is put back as `map` found it: the lower device has moved it on.
    unsafe {
        (*bio.as_ptr()).bi_iter = (*per_bio).iter;
        (*bio.as_ptr()).bi_iter.bi_sector = Raw(bio).home(offset);
    }
    // INVARIANT: The work runs once, so the bio is nobody else's.
    let bio = DeferredBio {
        bio: Raw(bio),
        ti,
        _life: PhantomData,
    };
    T::process(data, bio);
}

impl DeferredBio<'_> {
    /// What it asks for.
    pub(crate) fn op(&self) -> Op {
        self.bio.op()
    }

    /// Its first sector, from the target's start.
    pub(crate) fn sector(&self) -> u64 {
        // SAFETY: Valid by the invariant of `Raw`; `run` restored the iterator.
        let sector = unsafe { (*self.bio.ptr()).bi_iter.bi_sector };
        sector.wrapping_sub(self.ti.begin())
    }

    /// Its length in sectors.
    pub(crate) fn sectors(&self) -> u32 {
        // SAFETY: Valid by the invariant of `Raw`; `run` restored the iterator.
        unsafe { (*self.bio.ptr()).bi_iter.bi_size >> 9 }
    }

    /// Whether it is to be on the medium when it completes. (If it was sent to a device without a cache, the block layer
    /// may have taken that from it.)
    pub(crate) fn is_fua(&self) -> bool {
        self.bio.has(bindings::REQ_FUA)
    }

    /// The error that it failed with; [`Status::OK`] if it succeeded, or was not submitted.
    pub(crate) fn status(&self) -> Status {
        // SAFETY: `enqueue` wrote it.
        unsafe { (*self.bio.per_bio()).status }
    }

    /// Performs the bio's operation for `count` of its sectors from its sector `skip` on, at `sector`
    /// of `device`, and waits. Writes zeroes for [`Op::WriteZeroes`]. May sleep.
    ///
    /// Writes with FUA if the bio has it, or if `fua`: it may have had it, and have been sent to a device without a
    /// cache, for which the block layer takes it off (`submit_bio_noacct`).
    ///
    /// Fails with [`Status::IOERR`] for sectors that the bio does not have.
    pub(crate) fn transfer(
        &self,
        device: &Device,
        sector: u64,
        skip: u32,
        count: u32,
        fua: bool,
    ) -> Status {
        if count == 0
            || skip
                .checked_add(count)
                .is_none_or(|end| end > self.sectors())
        {
            return Status::IOERR;
        }
        match self.op() {
            Op::Read | Op::Write => (),
            Op::WriteZeroes => {
                let fua = fua || self.bio.has(bindings::REQ_FUA);
                return device.write_zeroes(sector, count, fua);
            }
            _ => return Status::NOTSUPP,
        }
        // SAFETY: The clone shares the bio's pages, which stay until the bio is complete, and that
        // needs `self`. It gets no memory but for what a bio with an encryption or integrity
        // context has, which device-mapper does not send to targets that do not ask for it. The
        // device is set after the cloning, as only that forgets that the bio was already
        // translated to a whole disk's sectors (`BIO_REMAPPED`).
        unsafe {
            submit_and_wait(|clone| {
                if bio_init_clone(core::ptr::null_mut(), clone, self.bio.ptr(), NOIO) != 0 {
                    return Err(Status::RESOURCE);
                }
                bio_trim(clone, skip.into(), count.into());
                set_dev(clone, device);
                // It is waited for now, whatever the submitter wanted.
                (*clone).bi_opf &= !(bindings::REQ_NOWAIT | bindings::REQ_RAHEAD);
                if fua && self.op() == Op::Write {
                    (*clone).bi_opf |= bindings::REQ_FUA;
                }
                (*clone).bi_iter.bi_sector = sector;
                Ok(())
            })
        }
    }

    /// Completes the bio.
    pub(crate) fn complete(self, status: Status) {
        ManuallyDrop::new(self).bio.complete(status);
    }
}

/// Callers are in a [`super::NoIo`] scope, which takes the I/O out of it.
const NOIO: kernel::bindings::gfp_t = kernel::bindings::GFP_KERNEL;

impl Drop for DeferredBio<'_> {
    fn drop(&mut self) {
        self.bio.complete(Status::IOERR);
    }
}

/// Bios as device-mapper makes them, with hand-made bookkeeping in front (`struct dm_target_io` in
/// `drivers/md/dm-core.h`), since a mapped device cannot be made from inside the kernel.
#[kunit_tests(dm_remap_bio)]
mod tests {
    use super::super::{rcu::Version, target::TypeObject};
    use super::super::{Args, DeviceVisitor, Limits, NoIo, Refused, Setup, Stop, TextWriter};
    use super::*;
    use core::fmt::Write;
    use kernel::{
        bindings::{bio_init, bio_uninit},
        sync::{
            atomic::{Atomic, Relaxed},
            Arc, ArcBorrow,
        },
        types::ForeignOwnable,
    };

    /// What the target saw of a deferred bio.
    struct Seen {
        sector: Atomic<u64>,
        sectors: Atomic<u32>,
        status: Atomic<u32>,
        processed: Atomic<u32>,
        /// Times that `end_io` and `landed` were called.
        ended: Atomic<u32>,
        landed: Atomic<u32>,
        version: Version,
    }

    impl Seen {
        fn new() -> Result<Arc<Self>> {
            let seen = Self {
                sector: Atomic::new(0),
                sectors: Atomic::new(0),
                status: Atomic::new(0),
                processed: Atomic::new(0),
                ended: Atomic::new(0),
                landed: Atomic::new(0),
                version: Version::new(),
            };
            Ok(Arc::new(seen, GFP_KERNEL)?)
        }
    }

    struct Recorder;

    #[vtable]
    impl Target for Recorder {
        type Data = Arc<Seen>;
        const NAME: &'static CStr = c"recorder";
        const VERSION: [u32; 3] = [0, 0, 0];
        const NOWAIT: bool = false;

        fn process(seen: ArcBorrow<'_, Seen>, bio: DeferredBio<'_>) {
            seen.sector.store(bio.sector(), Relaxed);
            seen.sectors.store(bio.sectors(), Relaxed);
            seen.status.store(bio.status().0.into(), Relaxed);
            seen.processed.add(1, Relaxed);
            if bio.sectors() == 8 {
                bio.complete(Status::MEDIUM);
            }
            // Else it is dropped.
        }

        fn ctr(setup: &mut Setup<'_>, args: &Args) -> Result<Arc<Seen>, Refused> {
            let words = args.words()?;
            if words.as_slice() != [b"one".as_slice(), b"two"]
                || args.get(1) != Some(c"two")
                || args.get(2).is_some()
            {
                return Err(Refused(c"Not one, two", ENODEV));
            }
            setup.set_flushes(2);
            setup.want_discards();
            setup.want_write_zeroes();
            let seen = Seen::new()?;
            seen.sector.store(setup.info().begin(), Relaxed);
            seen.sectors.store(setup.handle().len() as u32, Relaxed);
            Ok(seen)
        }
        fn dtr(_: ArcBorrow<'_, Seen>, _: &TargetInfo) {}
        fn map(_: ArcBorrow<'_, Seen>, bio: MapBio<'_>) -> Mapped {
            bio.complete(Status::IOERR)
        }
        fn offset(_: ArcBorrow<'_, Seen>) -> u64 {
            OFFSET
        }
        fn version<'a>(seen: &'a ArcBorrow<'_, Seen>) -> &'a Version {
            &seen.version
        }
        fn landed(seen: &ArcBorrow<'_, Seen>) {
            seen.landed.add(1, Relaxed);
        }
        fn end_io(seen: ArcBorrow<'_, Seen>, bio: EndBio<'_>) -> Ended {
            seen.ended.add(1, Relaxed);
            bio.pass_on()
        }
        fn presuspend(_: ArcBorrow<'_, Seen>, _: &TargetInfo) {}
        fn presuspend_undo(_: ArcBorrow<'_, Seen>, _: &TargetInfo) {}
        fn postsuspend(_: ArcBorrow<'_, Seen>, _: &TargetInfo) {}
        fn preresume(_: ArcBorrow<'_, Seen>, _: &TargetInfo) -> Result {
            Ok(())
        }
        fn resume(_: ArcBorrow<'_, Seen>, _: &TargetInfo) {}
        fn status(_: ArcBorrow<'_, Seen>, _: &TargetInfo, _: &mut TextWriter<'_>) {}
        fn table(_: ArcBorrow<'_, Seen>, _: &TargetInfo, _: &mut TextWriter<'_>) {}
        fn ima(_: ArcBorrow<'_, Seen>, _: &TargetInfo, _: &mut TextWriter<'_>) {}
        fn message(
            _: ArcBorrow<'_, Seen>,
            _: &TargetInfo,
            args: &Args,
            out: &mut TextWriter<'_>,
        ) -> Result {
            let is_nested = NoIo::enter().is_nested();
            let word = args.get(0).map_or(&b""[..], CStr::to_bytes);
            write!(out, "{} {is_nested}", word.len()).map_err(|_| EIO)
        }
        fn io_hints(_: ArcBorrow<'_, Seen>, _: &mut Limits<'_>) {}
        fn iterate_devices(
            _: ArcBorrow<'_, Seen>,
            _: &TargetInfo,
            _: DeviceVisitor<'_>,
        ) -> Result<(), Stop> {
            Ok(())
        }
    }

    const MAGIC: u16 = 28714;
    const BEGIN: u64 = 100;
    const OFFSET: u64 = 5000;

    /// A clone's bookkeeping, the part of it that the wrappers' C functions look at.
    #[repr(C)]
    struct Clone {
        per_bio: core::mem::MaybeUninit<PerBio>,
        magic: u16,
        flags: u16,
        number: u32,
        io: usize,
        ti: usize,
        len_ptr: usize,
        old_sector: u64,
        bio: bio,
        completions: u32,
    }

    /// # Safety
    ///
    /// `done` must be the bio of a [`Clone`].
    unsafe extern "C" fn completed(done: *mut bio) {
        // SAFETY: By the requirement.
        let clone = unsafe { done.byte_sub(offset_of!(Clone, bio)) }.cast::<Clone>();
        // SAFETY: By the requirement.
        unsafe { (*clone).completions += 1 };
    }

    /// A target before its constructor.
    fn target() -> Result<(KBox<TypeObject>, KBox<bindings::dm_target>)> {
        let object = KBox::new(
            TypeObject::new::<Recorder>(core::ptr::null_mut()),
            GFP_KERNEL,
        )?;
        // SAFETY: Integers, pointers and bits, all of which may be zero.
        let ti: bindings::dm_target = unsafe { core::mem::zeroed() };
        let mut ti = KBox::new(ti, GFP_KERNEL)?;
        ti.begin = BEGIN;
        ti.len = 77;
        ti.type_ = object.as_ptr();
        Ok((object, ti))
    }

    /// A target and a clone on its way through it.
    struct Fixture {
        seen: Arc<Seen>,
        ti: KBox<bindings::dm_target>,
        _object: KBox<TypeObject>,
        clone: KBox<Clone>,
    }

    impl Fixture {
        fn new(opf: u32, sectors: u32) -> Result<Self> {
            let seen = Seen::new()?;
            let (object, mut ti) = target()?;
            ti.private = seen.clone().into_foreign();
            let clone = Clone {
                per_bio: core::mem::MaybeUninit::zeroed(),
                magic: MAGIC,
                flags: 0,
                number: 3,
                io: 0,
                ti: 0,
                len_ptr: 0,
                old_sector: 0,
                bio: pin_init::zeroed(),
                completions: 0,
            };
            let mut clone = KBox::new(clone, GFP_KERNEL)?;
            // SAFETY: A place for a bio, which has no vectors.
            unsafe {
                bio_init(
                    &mut clone.bio,
                    core::ptr::null_mut(),
                    core::ptr::null_mut(),
                    0,
                    opf,
                )
            };
            clone.bio.bi_iter.bi_sector = BEGIN + 40;
            clone.bio.bi_iter.bi_size = sectors << 9;
            clone.bio.bi_end_io = Some(completed);
            Ok(Self {
                seen,
                ti,
                _object: object,
                clone,
            })
        }

        fn bio(&mut self) -> NonNull<bio> {
            NonNull::from(&mut self.clone.bio)
        }

        fn map_bio(&mut self) -> MapBio<'_> {
            // SAFETY: The target and the clone live as long as the fixture.
            unsafe { MapBio::from_raw(self.bio(), TargetInfo::from_raw(&mut *self.ti)) }
        }

        /// As `remap` sends the bio down, but to no device.
        fn send(&mut self, stamp: usize) {
            self.clone.bio.bi_iter.bi_sector += OFFSET;
            self.map_bio().record();
            Raw(self.bio()).set_stamp(stamp);
        }

        /// As a lower device leaves a bio that it has been through.
        fn used_up(&mut self) {
            let iter = &mut self.clone.bio.bi_iter;
            iter.bi_sector += u64::from(iter.bi_size >> 9);
            iter.bi_size = 0;
            iter.bi_idx = 1;
        }

        fn end_bio(&mut self, status: Status) -> EndBio<'_> {
            // SAFETY: The target and the clone live as long as the fixture.
            let ti = unsafe { TargetInfo::from_raw(&mut *self.ti) };
            // SAFETY: As above.
            unsafe { EndBio::from_raw(self.bio(), ti, status, OFFSET) }
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            // SAFETY: Initialised by `new`.
            unsafe { bio_uninit(&mut self.clone.bio) };
            // SAFETY: Made by `into_foreign` in `new`; no work is left that borrows it.
            drop(unsafe { <Arc<Seen> as ForeignOwnable>::from_foreign(self.ti.private) });
        }
    }

    const WRITE: u32 = kernel::bindings::req_op_REQ_OP_WRITE;

    #[test]
    fn a_constructor_is_refused_or_makes_what_messages_use_and_the_destructor_drops() -> Result {
        let (object, mut ti) = target()?;
        // SAFETY: A target type.
        let (ctr, dtr) = unsafe { ((*object.as_ptr()).ctr, (*object.as_ptr()).dtr) };
        let (ctr, dtr) = (ctr.ok_or(EINVAL)?, dtr.ok_or(EINVAL)?);
        let mut words = [c"one", c"two"].map(|word| word.as_char_ptr().cast_mut());
        // SAFETY: A target to be made, and one word.
        let refused = unsafe { ctr(&mut *ti, 1, words.as_mut_ptr()) };
        assert_eq!(refused, ENODEV.to_errno());
        // SAFETY: The constructor failed, so this is its sentence.
        assert!(unsafe { CStr::from_char_ptr(ti.error) } == c"Not one, two");
        assert!(ti.private.is_null());
        // SAFETY: As above, and two words.
        assert_eq!(unsafe { ctr(&mut *ti, 2, words.as_mut_ptr()) }, 0);
        assert_eq!((ti.num_flush_bios, ti.num_discard_bios), (2, 1));
        assert!(ti.num_write_zeroes_bios == 1 && ti.discards_supported());
        assert!(!ti.flush_bypasses_map());
        assert_eq!(ti.per_io_data_size as usize, PER_BIO_SIZE);
        // SAFETY: The constructor succeeded.
        let seen = unsafe { TargetInfo::from_raw(&mut *ti).data::<Recorder>() };
        assert_eq!(seen.sector.load(Relaxed), BEGIN);
        assert_eq!(seen.sectors.load(Relaxed), 77);
        // A message's result goes where its words are.
        let mut buffer = *b"three\0..............";
        let mut words = [buffer.as_mut_ptr()];
        // SAFETY: A target type.
        let message = unsafe { (*object.as_ptr()).message }.ok_or(EINVAL)?;
        let (result, room) = (buffer.as_mut_ptr(), buffer.len() as c_uint);
        // SAFETY: The constructor succeeded; one word, and room for the result.
        let done = unsafe { message(&mut *ti, 1, words.as_mut_ptr(), result, room) };
        assert!(done == 1 && buffer.starts_with(b"5 true\0"));
        // If it forgot the data, kmemleak would find it.
        // SAFETY: The constructor succeeded, and nothing else will be called.
        unsafe { dtr(&mut *ti) };
        Ok(())
    }

    #[test]
    fn end_io_asks_the_target_unless_the_bio_is_settled() -> Result {
        let ended = |stamp, status: Status| -> Result<(u32, u32)> {
            let mut f = Fixture::new(WRITE, 8)?;
            f.send(stamp);
            // SAFETY: A target type.
            let end_io = unsafe { (*f.ti.type_).end_io }.ok_or(EINVAL)?;
            let (bio, mut status) = (f.bio().as_ptr(), status.0);
            // SAFETY: A clone that `map` handled, its target and its status.
            let done = unsafe { end_io(&mut *f.ti, bio, &mut status) };
            assert!(done == bindings::DM_ENDIO_DONE as c_int);
            Ok((f.seen.ended.load(Relaxed), f.seen.landed.load(Relaxed)))
        };
        assert_eq!(ended(0, Status::OK)?, (0, 0));
        assert_eq!(ended(8, Status::OK)?, (1, 0));
        assert_eq!(ended(0, Status::IOERR)?, (1, 0));
        assert_eq!(ended(TAGGED, Status::OK)?, (0, 1));
        assert_eq!(ended(TAGGED, Status::MEDIUM)?, (1, 0));
        assert_eq!(ended(WATCHED, Status::OK)?, (1, 0));
        assert_eq!(ended(DONE, Status::IOERR)?, (0, 0));
        Ok(())
    }

    #[test]
    fn per_bio_data_leads_back_to_its_bio() -> Result {
        let mut f = Fixture::new(WRITE, 8)?;
        let bio = f.bio();
        let data = Raw(bio).per_bio();
        assert!(core::ptr::eq(data.cast(), &*f.clone));
        assert!(data.is_aligned());
        // SAFETY: The data of a clone.
        let back = unsafe { bindings::dm_bio_from_per_bio_data(data.cast(), PER_BIO_SIZE) };
        assert!(core::ptr::eq(back, bio.as_ptr()));
        Ok(())
    }

    #[test]
    fn a_bio_in_map_counts_from_the_targets_start() -> Result {
        let mut f = Fixture::new(WRITE | bindings::REQ_NOWAIT, 8)?;
        let bio = f.map_bio();
        assert!(bio.op() == Op::Write && bio.is_nowait());
        assert_eq!((bio.sector(), bio.sectors(), bio.number()), (40, 8, 3));
        let mut f = Fixture::new(WRITE | bindings::REQ_PREFLUSH, 0)?;
        assert!(f.map_bio().op() == Op::Flush);
        let mut f = Fixture::new(kernel::bindings::req_op_REQ_OP_DISCARD, 8)?;
        assert!(f.map_bio().op() == Op::Discard);
        Ok(())
    }

    #[test]
    fn what_must_not_be_cut_is_not() -> Result {
        let mut f = Fixture::new(WRITE, 8)?;
        let mut bio = f.map_bio();
        assert!(!bio.accept(0) && !bio.accept(9));
        assert!(bio.accept(8));
        assert_eq!(bio.sectors(), 8);
        let mut f = Fixture::new(WRITE | bindings::REQ_ATOMIC, 8)?;
        assert!(!f.map_bio().accept(4));
        let mut f = Fixture::new(WRITE | bindings::REQ_PREFLUSH, 0)?;
        assert!(!f.map_bio().accept(1));
        Ok(())
    }

    #[test]
    fn a_failed_bio_comes_to_the_target_as_it_was_mapped() -> Result {
        let queue = Queue::new(c"dm_remap_kunit", c"bio", 0)?;
        let mut f = Fixture::new(WRITE, 8)?;
        f.send(0);
        f.used_up();
        assert!(Raw(f.bio()).stamp() != DONE);
        assert!(
            matches!(f.end_bio(Status::IOERR).defer(&queue), Ended::Deferred(q) if q == queue.as_ptr())
        );
        let bio = Raw(f.bio());
        // SAFETY: The target lives as long as the fixture.
        let ti = unsafe { TargetInfo::from_raw(&mut *f.ti) };
        bio.enqueue(ti, queue.as_ptr(), Status::IOERR);
        queue.drain();
        assert_eq!(f.seen.processed.load(Relaxed), 1);
        assert_eq!(
            (f.seen.sector.load(Relaxed), f.seen.sectors.load(Relaxed)),
            (40, 8)
        );
        assert_eq!(f.seen.status.load(Relaxed), u32::from(Status::IOERR.0));
        // The target completed it, once, and hears no more of it.
        assert_eq!(f.clone.completions, 1);
        assert_eq!(f.clone.bio.bi_status, Status::MEDIUM.0);
        assert!(Raw(f.bio()).stamp() == DONE);
        Ok(())
    }

    #[test]
    fn a_bio_comes_back_with_what_was_kept_with_it() -> Result {
        let mut f = Fixture::new(WRITE | bindings::REQ_PREFLUSH, 8)?;
        f.send(7 | TAGGED | WATCHED);
        // SAFETY: The data of a clone.
        unsafe { (*Raw(f.bio()).per_bio()).tag = 11 };
        f.used_up();
        // SAFETY: A clone.
        assert!(unsafe { EndBio::stamp_of(f.bio()) } == 7 | TAGGED | WATCHED);
        let bio = f.end_bio(Status::OK);
        assert_eq!(
            (bio.sector(), bio.sectors(), bio.stamp().count()),
            (40, 8, 7)
        );
        assert!(bio.op() == Op::Write);
        assert!(bio.tag() == Some(11));
        let _ = bio.pass_on();
        Ok(())
    }

    #[test]
    fn a_bio_deferred_by_map_has_no_error() -> Result {
        let queue = Queue::new(c"dm_remap_kunit", c"bio", 0)?;
        let mut f = Fixture::new(WRITE, 8)?;
        let mapped = f.map_bio().defer(&queue);
        assert!(mapped.0 == bindings::DM_MAPIO_SUBMITTED);
        queue.drain();
        assert_eq!(f.seen.processed.load(Relaxed), 1);
        assert_eq!(f.seen.status.load(Relaxed), 0);
        Ok(())
    }

    #[test]
    fn a_dropped_bio_fails() -> Result {
        let queue = Queue::new(c"dm_remap_kunit", c"bio", 0)?;
        let mut f = Fixture::new(WRITE, 16)?;
        let _ = f.map_bio().defer(&queue);
        queue.drain();
        assert_eq!(f.clone.completions, 1);
        assert_eq!(f.clone.bio.bi_status, Status::IOERR.0);
        Ok(())
    }

    #[test]
    fn an_error_that_is_passed_on_stays_the_lower_devices() -> Result {
        let mut f = Fixture::new(WRITE, 8)?;
        f.send(0);
        let bio = f.end_bio(Status::MEDIUM);
        assert!(bio.status() == Status::MEDIUM && bio.op() == Op::Write && !bio.is_readahead());
        assert!(matches!(bio.pass_on(), Ended::PassedOn));
        assert_eq!(f.clone.completions, 0);
        Ok(())
    }
}
