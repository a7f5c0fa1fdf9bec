// SPDX-License-Identifier: GPL-2.0

//! Underlying devices of a target.

use super::bindings::{self, dm_dev, dm_target};
use core::{marker::PhantomData, ptr::NonNull};
use kernel::{bindings::block_device, prelude::*};

/// The devices that were opened for a target; closed when dropped.
///
/// # Invariants
///
/// Each was returned by `dm_get_device` for `ti`, which outlives this, and not put yet.
pub(super) struct Devices {
    ti: NonNull<dm_target>,
    open: KVec<NonNull<dm_dev>>,
}

impl Devices {
    /// None, for `ti`, which must outlive this.
    pub(super) fn new(ti: NonNull<dm_target>) -> Self {
        Self {
            ti,
            open: KVec::new(),
        }
    }

    /// Opens `path` in the table's mode. May sleep.
    pub(super) fn open(&mut self, path: &CStr) -> Result<NonNull<dm_dev>> {
        self.open.reserve(1, GFP_KERNEL)?;
        let (ti, mut dev) = (self.ti.as_ptr(), core::ptr::null_mut());
        // SAFETY: `ti` is a target under construction, `path` a C string, `dev` a place for the result.
        kernel::error::to_result(unsafe {
            let mode = bindings::dm_table_get_mode((*ti).table);
            bindings::dm_get_device(ti, path.as_char_ptr(), mode, &mut dev)
        })?;
        let dev = NonNull::new(dev).ok_or(ENODEV)?;
        // INVARIANT: As above. There is room.
        let _ = self.open.push_within_capacity(dev);
        Ok(dev)
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        for dev in self.open.drain_all() {
            // SAFETY: By the invariant, opened for this target, and not put yet.
            unsafe { bindings::dm_put_device(self.ti.as_ptr(), dev.as_ptr()) };
        }
    }
}

/// A device that the layer has opened for a target ([`super::Setup::device`]), and closes when the target's data have been
/// dropped.
///
/// # Invariants
///
/// `dev` is open for all of `'t`, and `bdev` is its block device: device-mapper changes it only if another target of the same table
/// opens the device in a further mode (`upgrade_mode`), and all targets of this layer use the table's.
///
/// Whoever has one in a callback has it from the data of the same target, so `'t` is not over until bios sent to it are complete: the
/// only place that two targets share is [`super::Target::RegistrationData`], which is `'static`.
#[derive(Clone, Copy)]
pub(crate) struct Device<'t> {
    dev: NonNull<dm_dev>,
    /// One load less in `map`.
    bdev: *mut block_device,
    life: PhantomData<&'t ()>,
}

// SAFETY: Nothing of it is bound to a thread.
unsafe impl Send for Device<'_> {}
// SAFETY: All methods may be called concurrently: they read single words of an open block device, or submit bios of their own.
unsafe impl Sync for Device<'_> {}

/// Sectors of a disk, in the numbers of the whole disk: comparable between its partitions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeviceRange {
    pub(super) disk: usize,
    pub(super) from: u64,
    pub(super) to: u64,
}

impl DeviceRange {
    /// Whether both have a sector in common.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.disk == other.disk && self.from < other.to && other.from < self.to
    }
}

impl Device<'_> {
    /// # Safety
    ///
    /// `dev` must be open for the lifetime of the result.
    pub(super) unsafe fn new(dev: NonNull<dm_dev>) -> Self {
        // SAFETY: Open by the requirement, and its `bdev` does not change.
        let bdev = unsafe { (*dev.as_ptr()).bdev };
        // INVARIANT: By the requirement.
        Self {
            dev,
            bdev,
            life: PhantomData,
        }
    }

    pub(super) fn dm_dev(&self) -> *mut dm_dev {
        self.dev.as_ptr()
    }

    /// The block device; open as long as `self`.
    #[inline(always)]
    pub(super) fn bdev(&self) -> *mut block_device {
        self.bdev
    }

    /// The device's name as tables print it, `major:minor`.
    pub(crate) fn name(&self) -> &str {
        // SAFETY: By the invariant `dev` is open; the name in it is a C string that
        // `dm_get_device` wrote and nobody changes.
        let name = unsafe { CStr::from_char_ptr((*self.dev.as_ptr()).name.as_ptr()) };
        name.to_str().unwrap_or("?")
    }

    /// Length in sectors.
    pub(crate) fn sectors(&self) -> u64 {
        // SAFETY: The block device is open as long as `self`.
        unsafe { bindings::dmr_bdev_nr_sectors(self.bdev()) }
    }

    /// Logical block size in sectors.
    pub(crate) fn logical_block(&self) -> u32 {
        // SAFETY: The block device is open as long as `self`.
        unsafe { bindings::dmr_bdev_logical_block_size(self.bdev()) >> 9 }
    }

    /// Physical block size in sectors.
    pub(crate) fn physical_block(&self) -> u32 {
        // SAFETY: The block device is open as long as `self`.
        unsafe { bindings::dmr_bdev_physical_block_size(self.bdev()) >> 9 }
    }

    /// Sectors from `sector` to the end of the physical block that it lies in: 1 or more.
    pub(crate) fn physical_left(&self, sector: u64) -> u32 {
        let size = u64::from(self.physical_block().max(1));
        let base = self.first_sector();
        // Physical blocks are powers of two, aligned on the whole disk.
        (size - (base.wrapping_add(sector) & (size - 1))) as u32
    }

    /// Whether it can discard. May change.
    pub(crate) fn can_discard(&self) -> bool {
        // SAFETY: The block device is open as long as `self`.
        unsafe { bindings::dmr_bdev_max_discard_sectors(self.bdev()) != 0 }
    }

    /// Sectors that it can write zeroes to at once, without being given them; 0: it cannot. May change.
    pub(crate) fn write_zeroes_sectors(&self) -> u32 {
        // SAFETY: The block device is open as long as `self`.
        unsafe { bindings::dmr_bdev_write_zeroes_sectors(self.bdev()) }
    }

    /// Whether it is a zoned device.
    pub(crate) fn is_zoned(&self) -> bool {
        // SAFETY: The block device is open as long as `self`.
        unsafe { bindings::dmr_bdev_is_zoned(self.bdev()) }
    }

    /// Whether it has a volatile write cache. May change.
    pub(crate) fn has_write_cache(&self) -> bool {
        // SAFETY: The block device is open as long as `self`.
        unsafe { bindings::dmr_bdev_write_cache(self.bdev()) }
    }

    /// First sector on its disk: 0 unless it is a partition.
    pub(crate) fn first_sector(&self) -> u64 {
        // SAFETY: The block device is open as long as `self`; the field is constant.
        unsafe { (*self.bdev()).bd_start_sect }
    }

    /// The UUID of the partition that it is, as text: what `PARTUUID=` names. Empty: there is none.
    pub(crate) fn partition_uuid(&self) -> &[u8] {
        // SAFETY: The block device is open as long as `self`. What describes the partition is set before it can be opened and
        // freed with the block device; the UUID in it is a C string that nobody changes.
        unsafe {
            let uuid = bindings::dmr_bdev_partition_uuid(self.bdev());
            if uuid.is_null() {
                return &[];
            }
            CStr::from_char_ptr(uuid).to_bytes()
        }
    }

    /// The unique number of its disk, and how many bytes that has, if the driver knows one of that kind: a value of `enum
    /// blk_unique_id`. May sleep.
    ///
    /// A mapped device of one target has that of the device below it.
    pub(crate) fn unique_id(&self, kind: u32) -> Option<([u8; 16], usize)> {
        let mut id = [0; 16];
        // SAFETY: The block device is open as long as `self`, `id` has room for what the driver writes: 16 bytes at most.
        let length = unsafe { bindings::dmr_bdev_unique_id(self.bdev(), id.as_mut_ptr(), kind) };
        let length = usize::try_from(length).ok().filter(|n| *n > 0)?;
        Some((id, length))
    }

    /// The range of `count` sectors from `start`, comparable with those of other devices.
    pub(crate) fn range(&self, start: u64, count: u64) -> DeviceRange {
        // SAFETY: The block device is open as long as `self`; both fields are constant.
        let (disk, base) = unsafe { ((*self.bdev()).bd_disk, (*self.bdev()).bd_start_sect) };
        let from = base.saturating_add(start);
        DeviceRange {
            disk: disk as usize,
            from,
            to: from.saturating_add(count),
        }
    }
}
