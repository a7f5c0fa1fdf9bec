// SPDX-License-Identifier: GPL-2.0

//! What the mapped device is told to be able to do: [`super::Target::iterate_devices`] and [`super::Target::io_hints`].

use super::{bindings, device::Device, info::TargetInfo};
use kernel::prelude::*;

/// A visit of [`super::Target::iterate_devices`] is over.
pub(crate) struct Stop(pub(super) c_int);

/// Shows a target's devices to device-mapper.
pub(crate) struct DeviceVisitor<'a> {
    ti: &'a TargetInfo,
    visit: bindings::iterate_devices_callout_fn,
    data: *mut c_void,
}

impl<'a> DeviceVisitor<'a> {
    /// # Safety
    ///
    /// `visit` and `data` must be what device-mapper passed to `iterate_devices` for `ti`, which runs for all of `'a`.
    pub(super) unsafe fn new(
        ti: &'a TargetInfo,
        visit: bindings::iterate_devices_callout_fn,
        data: *mut c_void,
    ) -> Self {
        Self { ti, visit, data }
    }
}

impl DeviceVisitor<'_> {
    /// Whether the visit comes without data, as device-mapper's questions do whether all that it is shown can do something
    /// (`device_not_..._capable` in `drivers/md/dm-table.c`): a device of which the target does not need it may then be left
    /// out. What changes or measures something has data. (Some questions whether any device can do something have none, too.)
    pub(crate) fn has_no_data(&self) -> bool {
        self.data.is_null()
    }

    /// Shows `count` sectors of `device` from `start`.
    pub(crate) fn visit(&self, device: Device<'_>, start: u64, count: u64) -> Result<(), Stop> {
        let Some(visit) = self.visit else {
            return Ok(());
        };
        // SAFETY: The function and its data are what device-mapper passed for just this call, as `new` requires.
        match unsafe { visit(self.ti.as_ptr(), device.dm_dev(), start, count, self.data) } {
            0 => Ok(()),
            other => Err(Stop(other)),
        }
    }
}

/// What device-mapper is about to tell the block layer of a mapped device, for [`super::Target::io_hints`] to change.
///
/// C: `struct queue_limits` in `include/linux/blkdev.h`.
pub(crate) struct Limits<'a>(pub(super) &'a mut kernel::bindings::queue_limits);

impl Limits<'_> {
    /// Write-zeroes go up to that many sectors, 0: there are none.
    pub(crate) fn set_max_write_zeroes_sectors(&mut self, sectors: u32) {
        if self.0.max_write_zeroes_sectors != sectors {
            self.0.max_write_zeroes_sectors = sectors;
            // Whether they unmap is not known then; the block layer wants the same number or none.
            self.0.max_hw_wzeroes_unmap_sectors = 0;
        }
    }
}
