// SPDX-License-Identifier: GPL-2.0

//! Bios in process context: those that failed, writes that need new mask bits, and writes whose
//! sectors moved while they were on their way.

use super::{
    area::{OnMain, OnSpare, Sector, Spare},
    DeferredBio, Remap,
};
use crate::dm::{BlkStatus, Fua, Op};
use crate::engine::{
    args::PendingReads, geometry::mask_of, recovery::Piece, route::within_unit, Slot, Unit,
};

/// Sectors of a bio within one unit.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) unit: Unit,
    /// From the start of the bio.
    pub(super) skip: u32,
    pub(super) count: u32,
    /// The sectors in the unit.
    pub(super) bits: u64,
}

impl Part {
    /// First sector, from the start of the unit.
    pub(super) fn offset(&self) -> u32 {
        self.bits.trailing_zeros()
    }

    /// The sectors of a piece of it, in the unit.
    pub(super) fn bits_of(&self, piece: Piece) -> u64 {
        let offset = self
            .offset()
            .wrapping_add(piece.skip.wrapping_sub(self.skip));
        mask_of(offset, piece.count)
    }
}

impl Remap<'_> {
    /// Does what `bio` asks for, as far as that can be done, and completes it. May sleep.
    pub(super) fn recover(&self, bio: DeferredBio<'_>) {
        let failed = !bio.status().is_ok();
        let c = &self.counters;
        let (errors, recovered) = match bio.op() {
            Op::Read => (&c.read_errors, &c.reads_recovered),
            _ => (&c.write_errors, &c.writes_recovered),
        };
        errors.add(u64::from(failed));
        let result = match bio.op() {
            Op::Read => self.read_again(&bio),
            // See `cache.rs`.
            _ if bio.is_fua() && self.cache.has_failed() && !self.flush_spare() => {
                Err(BlkStatus::IOERR)
            }
            _ => self.write_again(&bio),
        };
        if result.is_ok() {
            recovered.add(u64::from(failed));
        }
        if bio.op() != Op::Read {
            self.store.has_come();
        }
        // Before the bio is complete: the target lives as long as it is not.
        self.report_mode();
        bio.complete(result.err().unwrap_or(BlkStatus::OK));
    }

    /// The sectors of `bio` from `skip` on, up to the end of their unit.
    pub(super) fn part_at(&self, bio: &DeferredBio<'_>, skip: u32) -> Part {
        let sector = bio.sector() + u64::from(skip);
        let (bits, count) = within_unit(&self.geometry, sector, bio.sectors() - skip);
        Part {
            unit: self.geometry.unit_of(sector),
            skip,
            count,
            bits,
        }
    }

    /// Where sector `offset` of `unit` is on main.
    pub(super) fn main_sector(&self, unit: Unit, offset: u32) -> Sector<OnMain> {
        let start = self.main.sector(self.geometry.unit_start(unit));
        start.plus(offset)
    }

    /// Where sector `offset` of `slot` is on the spare.
    pub(super) fn slot_sector(&self, slot: Slot, offset: u32) -> Sector<OnSpare> {
        let start = self.spare().sector(self.geometry.slot_sector(slot));
        start.plus(offset)
    }

    /// The spare's region.
    #[inline(always)]
    pub(super) fn spare(&self) -> &Spare<'_> {
        self.store.spare()
    }

    /// How writes are repeated: one may have lost its FUA on the way to one device that the other one needs. May change.
    pub(super) fn fua(&self) -> Fua {
        let (main, spare) = (self.main.device(), self.spare().device());
        match main.has_write_cache() == spare.has_write_cache() {
            true => Fua::AsAsked,
            false => Fua::Always,
        }
    }

    /// Attempts at what could not be read, beside the first.
    pub(super) fn retries(&self) -> u32 {
        self.settings.read_retries()
    }

    /// Whether reads of sectors that could not be read ask again.
    pub(super) fn asks_again(&self) -> bool {
        self.settings.pending_reads() == PendingReads::Retry
    }
}
