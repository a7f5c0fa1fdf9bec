// SPDX-License-Identifier: GPL-2.0

//! Bios in process context: those that failed, writes that need new mask bits, and writes whose
//! sectors moved while they were on their way.

use super::{DeferredBio, Remap};
use crate::dm::{BlkStatus, Fua, Op};
use crate::engine::{
    args::PendingReads,
    geometry::mask_of,
    recovery::{Grid, Piece},
    route::within_unit,
    Slot, Unit,
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
    pub(super) fn main_sector(&self, unit: Unit, offset: u32) -> u64 {
        self.main_start + self.geometry.unit_start(unit) + u64::from(offset)
    }

    /// Where sector `offset` of `slot` is on the spare.
    pub(super) fn slot_sector(&self, slot: Slot, offset: u32) -> u64 {
        self.store
            .sector(self.geometry.slot_sector(slot) + u64::from(offset))
    }

    /// What main's physical blocks are for a request at `sector` of it.
    pub(super) fn blocks_of_main(&self, sector: u64) -> Grid {
        // So far before the end of a block that it begins so far behind the start of another one.
        let size = self.main.physical_block().max(self.block);
        let left = self.main.physical_left(sector);
        Grid::new(size, u64::from(size.wrapping_sub(left)))
    }

    /// What the spare's physical blocks are for a request at `sector` of it.
    pub(super) fn blocks_of_spare(&self, sector: u64) -> Grid {
        let spare = self.store.spare();
        let size = spare.physical_block().max(self.block);
        let left = spare.physical_left(sector);
        Grid::new(size, u64::from(size.wrapping_sub(left)))
    }

    /// How writes are repeated: one may have lost its FUA on the way to one device that the other one needs. May change.
    pub(super) fn fua(&self) -> Fua {
        match self.main.has_write_cache() == self.store.spare().has_write_cache() {
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
