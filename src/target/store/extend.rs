// SPDX-License-Identifier: GPL-2.0

//! More of the table in use.

use super::{as_block, as_block_mut, flush::Kept, Disk, Store, TableBlock, BLOCK, CHUNK};
use crate::dm::{self, BlkStatus};
use crate::engine::{format, geometry::RECORDS_PER_BLOCK, slots::SlotMap, Slot};
use core::ops::Range;
use kernel::{prelude::*, sync::atomic::Relaxed};

/// Slots left to give out of those whose table blocks are in use, below which more blocks are taken in use.
const FEW_LEFT: u64 = RECORDS_PER_BLOCK;

impl Store<'_> {
    /// Takes a free slot, and for that, if need be, more of the table in use. May sleep.
    pub(in super::super) fn allocate(&self) -> Option<Slot> {
        loop {
            let (slot, in_use) = self.with_slots(|s| (s.allocate(), s.blocks()));
            if slot.is_some() || !self.extend(in_use) {
                return slot;
            }
        }
    }

    /// Takes more of the table in use if few slots are left of what is: so that no write has to wait for it. May sleep.
    pub(in super::super) fn extend_ahead(&self) {
        let (left, in_use) = self.with_slots(|s| (s.left(), s.blocks()));
        let needed = left < FEW_LEFT && in_use < self.geometry.table_blocks && in_use > 0;
        if needed && !self.is_degraded() && !self.ended.load(Relaxed) {
            self.ended.store(!self.extend(in_use), Relaxed);
        }
    }

    /// Takes another part of the table in use, if it is still `from` blocks that are. May sleep.
    ///
    /// `false`: there is no other, or it cannot be written.
    fn extend(&self, from: u64) -> bool {
        if !self.flush() {
            return false;
        }
        let mut disk = self.disk.lock();
        if disk.in_use() != from {
            return disk.in_use() > from;
        }
        let Some(next) = self.geometry.next_part(from) else {
            return false;
        };
        // Something else may have failed meanwhile, and must be written before.
        let is_ready = disk.places.stuck() == 0 && disk.owed.is_empty();
        let count = next.saturating_sub(from) as usize;
        let has_room = disk.table.reserve(count, GFP_KERNEL).is_ok()
            && disk.parts.reserve(1, GFP_KERNEL).is_ok();
        let Some(words) = Self::words(next).ok().filter(|_| is_ready && has_room) else {
            return false;
        };
        let mut kept = Kept::new(self);
        let filling = self.filling();
        let Ok(end) = self.make_blocks(&mut disk, from..next) else {
            return false;
        };
        let last = from.saturating_sub(1);
        // They are durable first.
        if !kept.add(filling)
            || !self.commit_flush(kept, &mut disk)
            || !self.change_block(&mut disk, last, |block| format::set_next_in_use(block, end))
        {
            disk.table.truncate(from as usize);
            return false;
        }
        let _ = disk.parts.push_within_capacity(end);
        let mut words = words;
        words.truncate(SlotMap::<KVVec<u64>>::words_for(end) as usize);
        let before = self.with_slots(|s| s.extend(words, &self.geometry));
        self.ended.store(false, Relaxed);
        drop(disk);
        drop(before);
        true
    }

    /// Writes these table blocks, which follow those in use and are not in use, without records. Not durable. May sleep.
    pub(super) fn write_blank_blocks(
        &self,
        disk: &mut Disk,
        numbers: Range<u64>,
    ) -> Result<(), BlkStatus> {
        let durability = self.filling().durability();
        let uuid = disk.uuid;
        let mut written = Ok(());
        for copy in 0..self.geometry.areas().len() {
            for first in numbers.clone().step_by(CHUNK as usize) {
                let count = CHUNK.min(numbers.end - first);
                for n in 0..count {
                    if let Some(block) = as_block_mut(disk.chunk.bytes_mut(), n) {
                        format::blank_table_block(block, &uuid, first + n, dm::crc32c);
                    }
                }
                let sector = self.sector(self.geometry.table_sector(copy, first));
                let length = count as u32 * BLOCK;
                written = written.and_then(|()| {
                    self.spare
                        .write(sector, length, &mut disk.chunk, durability)
                });
            }
        }
        written?;
        for _ in numbers {
            let _ = disk.table.push_within_capacity(TableBlock::at(1));
        }
        Ok(())
    }

    /// Writes table blocks without records where none are in use. Returns the end of those that are there: fewer, if a
    /// replica cannot be written. Not durable yet. There is room for what is known of them.
    fn make_blocks(&self, disk: &mut Disk, numbers: Range<u64>) -> Result<u64, BlkStatus> {
        let written = self.write_blank_blocks(disk, numbers.clone());
        if written.is_ok() {
            return Ok(numbers.end);
        }
        // One at least: each costs time now.
        written.or_else(|status| {
            self.make_block(disk, numbers.start)
                .then_some(())
                .ok_or(status)
        })?;
        Ok(numbers.start + 1)
    }

    /// Writes table block `number`, which is not in use, without records, although not all replicas take it.
    fn make_block(&self, disk: &mut Disk, number: u64) -> bool {
        let durability = self.filling().durability();
        let uuid = disk.uuid;
        let copies = 0..self.geometry.areas().len();
        let sector = |copy| self.sector(self.geometry.table_sector(copy, number));
        // What lies there may look like this block. If it stays, it must not count.
        let mut generation = 1;
        for copy in copies.clone() {
            let read = self
                .spare
                .read(sector(copy), BLOCK, &mut disk.other)
                .is_ok();
            let found = as_block(disk.other.bytes(), 0)
                .filter(|_| read)
                .and_then(|block| format::table_generation(block, &uuid, number, dm::crc32c).ok());
            generation = generation.max(found.map_or(0, |found| found.saturating_add(1)));
        }
        if generation == u64::MAX {
            return false;
        }
        let Some(block) = as_block_mut(disk.other.bytes_mut(), 0) else {
            return false;
        };
        format::blank_table_block(block, &uuid, number, dm::crc32c);
        format::seal_table_block(block, generation, dm::crc32c);
        let (mut written, mut block) = (0, TableBlock::at(generation));
        for copy in copies {
            let done = self
                .spare
                .write(sector(copy), BLOCK, &mut disk.other, durability);
            written += u32::from(done.is_ok());
            block.set_missed(copy, done.is_err());
            self.errors.add(u64::from(done.is_err()));
            self.note_replica(&mut disk.failing, copy, done);
        }
        written > 0 && disk.table.push_within_capacity(block).is_ok()
    }
}
