// SPDX-License-Identifier: GPL-2.0

//! Where sectors are. Four kinds of them meet here: those of the mapped device and of the spare's region, which are counted from
//! the start of an [`Area`], and those of the two devices, which are types of their own.

use super::DeferredBio;
use crate::dm::{BlkStatus, Device, Durability, Fua, IoBuffer};
use crate::engine::recovery::Grid;
use core::marker::PhantomData;

/// Main's device.
pub(super) enum OnMain {}
/// The spare's device.
pub(super) enum OnSpare {}

/// A sector of one of the two devices.
pub(super) struct Sector<K>(u64, PhantomData<K>);

impl<K> Clone for Sector<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for Sector<K> {}

impl<K> Sector<K> {
    /// The number, for the device.
    #[inline(always)]
    pub(super) fn number(self) -> u64 {
        self.0
    }

    /// `count` sectors further on.
    pub(super) fn plus(self, count: u32) -> Self {
        Self(self.0.wrapping_add(count.into()), PhantomData)
    }
}

/// What of a device is the target's: of main what it protects, whose sectors are those of the mapped device; or the region of the
/// spare.
pub(super) struct Area<'t, K> {
    device: Device<'t>,
    start: u64,
    kind: PhantomData<fn() -> K>,
}

pub(super) type Main<'t> = Area<'t, OnMain>;
pub(super) type Spare<'t> = Area<'t, OnSpare>;

impl<'t, K> Area<'t, K> {
    /// What begins at sector `start` of `device`.
    pub(super) fn new(device: Device<'t>, start: u64) -> Self {
        Self {
            device,
            start,
            kind: PhantomData,
        }
    }

    /// The device.
    #[inline(always)]
    pub(super) fn device(&self) -> Device<'t> {
        self.device
    }

    /// Its first sector on the device.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Where sector `sector` of the area is on the device.
    #[inline(always)]
    pub(super) fn sector(&self, sector: u64) -> Sector<K> {
        Sector(self.start.wrapping_add(sector), PhantomData)
    }

    /// Reads `count` sectors into the beginning of `buffer`. May sleep.
    pub(super) fn read(
        &self,
        at: Sector<K>,
        count: u32,
        buffer: &mut IoBuffer,
    ) -> Result<(), BlkStatus> {
        self.device.read(at.0, count, buffer)
    }

    /// Writes `count` sectors from the beginning of `buffer`. May sleep.
    pub(super) fn write(
        &self,
        at: Sector<K>,
        count: u32,
        buffer: &mut IoBuffer,
        durability: Durability,
    ) -> Result<(), BlkStatus> {
        self.device.write(at.0, count, buffer, durability)
    }

    /// Performs the operation of `bio` for `count` of its sectors from its sector `skip` on. May sleep.
    pub(super) fn transfer(
        &self,
        bio: &DeferredBio<'_>,
        at: Sector<K>,
        skip: u32,
        count: u32,
        fua: Fua,
    ) -> BlkStatus {
        bio.transfer(self.device, at.0, skip, count, fua)
    }

    /// Sectors from `at` to the end of its physical block: 1 or more.
    pub(super) fn physical_left(&self, at: Sector<K>) -> u32 {
        self.device.physical_left(at.0)
    }

    /// What the device's physical blocks, or blocks of `block` sectors if these are larger, are for a request at `at`.
    pub(super) fn blocks(&self, at: Sector<K>, block: u32) -> Grid {
        // So far before the end of a block that it begins so far behind the start of another one.
        let size = self.device.physical_block().max(block);
        let left = self.physical_left(at);
        Grid::new(size, u64::from(size.wrapping_sub(left)))
    }
}
