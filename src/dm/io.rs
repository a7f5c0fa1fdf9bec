// SPDX-License-Identifier: GPL-2.0

//! Synchronous I/O of a target's own, as for metadata.

use super::{bindings, device::Device, status::BlkStatus};
use core::mem::MaybeUninit;
use kernel::{
    alloc::Flags,
    bindings::{bio, bio_init, bio_uninit, bio_vec},
    prelude::*,
};

/// Memory for I/O: zeroed, physically contiguous, aligned to its size if that is a power of two.
pub(crate) struct IoBuffer(KVec<u8>);

impl IoBuffer {
    /// Allocates `len` bytes, a multiple of 512. May sleep.
    pub(crate) fn new(len: usize) -> Result<Self> {
        if len % 512 != 0 {
            return Err(EINVAL);
        }
        Self::zeroed(len, GFP_KERNEL)
    }

    /// Allocates `most` bytes, or half of that and so on, if there is not so much in one piece: `least` at least, a
    /// multiple of 512. May sleep.
    pub(crate) fn at_most(most: usize, least: usize) -> Result<Self> {
        let mut len = most;
        while len > least && len % 1024 == 0 {
            if let Ok(buffer) = Self::zeroed(len, GFP_KERNEL | __GFP_NOWARN) {
                return Ok(buffer);
            }
            len /= 2;
        }
        Self::new(len.max(least))
    }

    fn zeroed(len: usize, flags: Flags) -> Result<Self> {
        Ok(Self(KVec::from_elem(0, len, flags)?))
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its bytes, to change.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// Its first `sectors` sectors.
    fn sectors(&mut self, sectors: u32) -> Result<&mut [u8], BlkStatus> {
        let bytes = self.0.get_mut(..(sectors as usize) << 9);
        bytes.filter(|b| !b.is_empty()).ok_or(BlkStatus::IOERR)
    }
}

/// What a write promises when it has succeeded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// The device has it, maybe in its cache only.
    Cached,
    /// It is on the device's medium (`REQ_FUA`).
    Durable,
    /// So it is, behind all that the device completed before (`REQ_PREFLUSH | REQ_FUA`). A device-mapper device drops the error
    /// of such a flush ([`Device::flush`] has it).
    DurableBehind,
}

impl Device<'_> {
    /// Reads `sectors` sectors from `sector` into the beginning of `buffer`. May sleep.
    pub(crate) fn read(
        &self,
        sector: u64,
        sectors: u32,
        buffer: &mut IoBuffer,
    ) -> Result<(), BlkStatus> {
        self.transfer(
            kernel::bindings::req_op_REQ_OP_READ | bindings::REQ_META | bindings::REQ_SYNC,
            sector,
            buffer.sectors(sectors)?,
        )
    }

    /// Writes `sectors` sectors to `sector` from the beginning of `buffer`. May sleep.
    pub(crate) fn write(
        &self,
        sector: u64,
        sectors: u32,
        buffer: &mut IoBuffer,
        durability: Durability,
    ) -> Result<(), BlkStatus> {
        let durable = match durability {
            Durability::Cached => 0,
            Durability::Durable => bindings::REQ_FUA,
            Durability::DurableBehind => bindings::REQ_PREFLUSH | bindings::REQ_FUA,
        };
        let flags = bindings::REQ_META | bindings::REQ_SYNC | durable;
        let op = kernel::bindings::req_op_REQ_OP_WRITE | flags;
        self.transfer(op, sector, buffer.sectors(sectors)?)
    }

    /// Makes durable what completed before. May sleep.
    pub(crate) fn flush(&self) -> Result<(), BlkStatus> {
        let opf = kernel::bindings::req_op_REQ_OP_WRITE
            | bindings::REQ_META
            | bindings::REQ_SYNC
            | bindings::REQ_PREFLUSH;
        self.transfer(opf, 0, &mut [])
    }

    /// `data`: none, or a part of an [`IoBuffer`].
    fn transfer(
        &self,
        opf: kernel::bindings::blk_opf_t,
        sector: u64,
        data: &mut [u8],
    ) -> Result<(), BlkStatus> {
        let mut vec = MaybeUninit::<bio_vec>::uninit();
        // SAFETY: The table has room for one vector; it and the data, of a kmalloc allocation, stay valid until the bio is
        // complete, as the function waits for that. The block device is open as long as `self`.
        unsafe {
            submit_and_wait(core::ptr::null_mut(), |bio| {
                bio_init(bio, self.bdev(), vec.as_mut_ptr(), 1, opf);
                if !data.is_empty() {
                    bindings::dmr_bio_add_virt(bio, data.as_mut_ptr().cast(), data.len() as c_uint);
                }
                (*bio).bi_iter.bi_sector = sector;
                Ok(())
            })
        }
        .check()
    }

    /// Writes `sectors` sectors of zeroes to `sector`. May sleep.
    ///
    /// # Safety
    ///
    /// `whole` must be as [`submit_and_wait`] wants it.
    pub(super) unsafe fn write_zeroes(
        &self,
        sector: u64,
        sectors: u32,
        fua: bool,
        whole: *mut bio,
    ) -> BlkStatus {
        const PAGE: u32 = (kernel::page::PAGE_SIZE >> 9) as u32;
        let mut opf = kernel::bindings::req_op_REQ_OP_WRITE | bindings::REQ_SYNC;
        if fua {
            opf |= bindings::REQ_FUA;
        }
        let mut done = 0;
        while done < sectors {
            let count = PAGE.min(sectors - done);
            let mut vec = MaybeUninit::<bio_vec>::uninit();
            // SAFETY: The table has one vector, which stays until the bio is complete, as the function waits for that. The data
            // is the kernel's zero page, at most all of it, which nobody writes to. The block device is open as long as `self`. `whole` is as the requirement says.
            let status = unsafe {
                submit_and_wait(whole, |bio| {
                    bio_init(bio, self.bdev(), vec.as_mut_ptr(), 1, opf);
                    bindings::dmr_bio_add_zeroes(bio, count << 9);
                    (*bio).bi_iter.bi_sector = sector + u64::from(done);
                    Ok(())
                })
            };
            if !status.is_ok() {
                return status;
            }
            done += count;
        }
        BlkStatus::OK
    }
}

/// Submits the bio that `init` prepares and waits for it. May sleep.
///
/// `whole`: null, or a clone of device-mapper's of which this does a part. Then it is charged to the control group of whoever sent
/// that one, and seen in the mapped device's statistics.
///
/// # Safety
///
/// If it returns `Ok`, `init` must have initialised the bio, for a device that is open and with data
/// that is valid until the bio is complete; if it returns an error, the bio must hold no resources. `whole` must not be complete,
/// if it is not null, and its target must have [`dm_target::accounts_remapped_io`](super::bindings::dm_target) set.
pub(super) unsafe fn submit_and_wait(
    whole: *mut bio,
    init: impl FnOnce(*mut bio) -> Result<(), BlkStatus>,
) -> BlkStatus {
    let mut bio = MaybeUninit::<bio>::uninit();
    let bio = bio.as_mut_ptr();
    if let Err(status) = init(bio) {
        return status;
    }
    let submit = (!whole.is_null()).then_some(submit_part as unsafe extern "C" fn(_, _));
    // SAFETY: By the requirement, ready to be submitted; it lives on this stack until after the
    // wait. `bio_await` clears nothing of it, so the status can be read then. `submit_part` gets what it wants.
    unsafe {
        kernel::bindings::bio_await(bio, whole.cast(), submit);
        let status = BlkStatus((*bio).bi_status);
        bio_uninit(bio);
        status
    }
}

/// Submits `part` on behalf of the clone `whole`.
///
/// # Safety
///
/// As [`submit_and_wait`] says, for a `whole` that is not null.
unsafe extern "C" fn submit_part(part: *mut bio, whole: *mut c_void) {
    // SAFETY: By the requirement. `whole` may have been accounted for already.
    unsafe { bindings::dm_submit_bio_remap(whole.cast(), part) };
}
