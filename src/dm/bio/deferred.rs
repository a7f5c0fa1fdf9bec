// SPDX-License-Identifier: GPL-2.0

//! A bio in [`Target::process`].

use super::{
    super::{
        bindings, context::NoIo, device::Device, instance::Instance, io::submit_and_wait,
        status::BlkStatus, target::Target,
    },
    raw::{set_dev, Op, Recorded},
    Brand,
};
use core::{marker::PhantomData, mem::ManuallyDrop};
use kernel::bindings::{bio_init_clone, bio_trim, work_struct};

/// A bio in [`Target::process`]: process context, it may sleep.
///
/// Dropped without [`DeferredBio::complete`], it fails.
pub(crate) struct DeferredBio<'a, T: Target> {
    instance: &'a Instance<T>,
    bio: Recorded<T>,
    status: BlkStatus,
    _brand: Brand<'a>,
}

/// Whether a write is to be on the medium when it is done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fua {
    /// If the bio says so.
    AsAsked,
    /// Whatever the bio says: it may have asked for it, and been sent to a device without a cache, for which the block
    /// layer takes it off (`submit_bio_noacct`).
    Always,
    /// Not at all: it is for whoever wants to know whether it was that which failed.
    Never,
}

/// The work function of target `T`'s deferred bios.
///
/// # Safety
///
/// `work` must be one that [`super::Raw::enqueue`] queued for `T`, and run once.
pub(in super::super) unsafe extern "C" fn run<T: Target>(work: *mut work_struct) {
    // Suspending waits for the bio, and a request for memory could wait for I/O that waits for that.
    let _noio = NoIo::enter();
    // SAFETY: As the requirement says.
    let Some((bio, instance, status)) = (unsafe { Recorded::<T>::from_work(work) }) else {
        return;
    };
    let bio = DeferredBio {
        instance,
        bio,
        status,
        _brand: PhantomData,
    };
    T::process(instance.data(), bio);
}

impl<T: Target> DeferredBio<'_, T> {
    /// What it asks for.
    pub(crate) fn op(&self) -> Op {
        self.bio.op(self.bio.size())
    }

    /// Its first sector, from the target's start.
    pub(crate) fn sector(&self) -> u64 {
        self.bio.sector().wrapping_sub(self.instance.begin())
    }

    /// Its length in sectors.
    pub(crate) fn sectors(&self) -> u32 {
        self.bio.size() >> 9
    }

    /// Whether it is to be on the medium when it completes. (If it was sent to a device without a cache, the block layer
    /// may have taken that from it.)
    pub(crate) fn is_fua(&self) -> bool {
        self.bio.has(bindings::REQ_FUA)
    }

    /// The data that it was sent down with, if it was ([`super::MapBio::remap_with`]).
    pub(crate) fn private(&self) -> Option<T::PerBio> {
        self.bio.private()
    }

    /// The error that it failed with; [`BlkStatus::OK`] if it succeeded, or was not submitted.
    pub(crate) fn status(&self) -> BlkStatus {
        self.status
    }

    /// Performs the bio's operation for `count` of its sectors from its sector `skip` on, at `sector`
    /// of `device`, and waits. Writes zeroes for [`Op::WriteZeroes`]. May sleep.
    ///
    /// Fails with [`BlkStatus::IOERR`] for sectors that the bio does not have.
    pub(crate) fn transfer(
        &self,
        device: Device<'_>,
        sector: u64,
        skip: u32,
        count: u32,
        fua: Fua,
    ) -> BlkStatus {
        let end = skip.checked_add(count);
        if count == 0 || end.is_none_or(|end| end > self.sectors()) {
            return BlkStatus::IOERR;
        }
        let is_fua = match fua {
            Fua::AsAsked => self.is_fua(),
            Fua::Always => true,
            Fua::Never => false,
        };
        match self.op() {
            Op::Read | Op::Write => (),
            Op::WriteZeroes => {
                // SAFETY: A clone of a target of this layer's, which completes with `self`.
                return unsafe { device.write_zeroes(sector, count, is_fua, self.bio.ptr()) };
            }
            _ => return BlkStatus::NOTSUPP,
        }
        // SAFETY: The clone shares the bio's pages, which stay until the bio is complete, and that
        // needs `self`. It gets no memory but for what a bio with an encryption or integrity
        // context has, which device-mapper does not send to targets that do not ask for it. (No I/O for that: `run` has
        // seen to it.) The device is set after the cloning, as only that forgets that the bio was already
        // translated to a whole disk's sectors (`BIO_REMAPPED`). The bio is a clone of a target of this layer's, which completes
        // with `self`.
        unsafe {
            submit_and_wait(self.bio.ptr(), |clone| {
                let memory = kernel::bindings::GFP_KERNEL;
                if bio_init_clone(core::ptr::null_mut(), clone, self.bio.ptr(), memory) != 0 {
                    return Err(BlkStatus::RESOURCE);
                }
                bio_trim(clone, skip.into(), count.into());
                set_dev(clone, device.bdev());
                // It is waited for now, whatever the submitter wanted; nobody polls for this clone.
                (*clone).bi_opf &= !(bindings::REQ_NOWAIT
                    | bindings::REQ_RAHEAD
                    | bindings::REQ_POLLED
                    | bindings::REQ_FUA);
                if is_fua && self.op() == Op::Write {
                    (*clone).bi_opf |= bindings::REQ_FUA;
                }
                (*clone).bi_iter.bi_sector = sector;
                Ok(())
            })
        }
    }

    /// Completes the bio. The target's data may be used all the same until [`Target::process`] returns.
    pub(crate) fn complete(self, status: BlkStatus) {
        ManuallyDrop::new(self).bio.complete(status);
    }
}

impl<T: Target> Drop for DeferredBio<'_, T> {
    fn drop(&mut self) {
        self.bio.complete(BlkStatus::IOERR);
    }
}
