// SPDX-License-Identifier: GPL-2.0

//! Whether the metadata is what it should be.

use super::{as_block, as_block_mut, Disk, Store, BLOCK, MAX_UPDATES};
use crate::dm::{self, Durability, IoBuffer};
use crate::engine::{
    entries::Entry,
    format::{self, Cause, State, Superblock, Update},
    geometry::RECORDS_PER_BLOCK,
    Slot, Unit,
};
use crate::target::{
    area::{OnSpare, Sector},
    entries::Entries,
};
use kernel::prelude::*;

impl Store<'_> {
    /// Whether the spare answers a read into `buffer`, of a logical block. May sleep.
    pub(in super::super) fn answers(&self, buffer: &mut IoBuffer) -> bool {
        [0, 1].iter().any(|copy| {
            let sector = self.sector(self.geometry.superblock_sector(*copy));
            self.spare.read(sector, self.block, buffer).is_ok()
        })
    }

    /// Reads all replicas of all blocks, and rewrites those that are not what they should be. May
    /// sleep. Then calls `recheck` for each unit whose record is not what memory has.
    ///
    /// Stops early when `stop` says so.
    pub(in super::super) fn check(
        &self,
        entries: &Entries,
        stop: impl Fn() -> bool,
        mut recheck: impl FnMut(Unit) -> bool,
    ) -> Result<Checked> {
        let g = &self.geometry;
        let mut found = Checked::default();
        let mut doubtful = KVec::<Slot>::with_capacity(MAX_UPDATES, GFP_KERNEL)?;
        self.flush();
        {
            let mut disk = self.disk.lock();
            let stuck = disk.places.stuck();
            // Of these a change may have reached the spare: nothing else may be written before they are.
            if disk.places.any_is_loaded(stuck) {
                return Err(EIO);
            }
            while let Some((_, number)) = disk.places.next(disk.places.stuck(), &mut None) {
                found.damaged += g.areas().len() as u64;
                if !self.rebuild(&mut disk, number, entries) {
                    return Err(EIO);
                }
                found.repaired += g.areas().len() as u64;
            }
            self.check_superblocks(&mut disk, &mut found);
        }
        for number in
            (0..g.table_blocks).take_while(|number| *number < self.with_slots(|s| s.blocks()))
        {
            if stop() {
                return Err(EINTR);
            }
            doubtful.clear();
            {
                let mut disk = self.disk.lock();
                self.check_block(&mut disk, number, entries, &mut found);
                self.compare_records(&mut disk, number, entries, &mut doubtful);
            }
            for slot in &doubtful {
                // A slot that is taken, and no unit's, is one whose commit failed.
                let mut unit = None;
                entries.visit(Unit(0), |e| {
                    unit = (e.slot == *slot).then_some(e.unit);
                    unit.is_none()
                });
                if unit.is_some_and(&mut recheck) {
                    found.stale += 1;
                    found.repaired += 1;
                }
            }
        }
        Ok(found)
    }

    pub(super) fn check_superblocks(&self, disk: &mut Disk, found: &mut Checked) {
        disk.places.forget();
        for copy in [0, 1] {
            let sector = self.sector(self.geometry.superblock_sector(copy));
            let Some(right) = as_block_mut(disk.superblock.bytes_mut(), 0) else {
                return;
            };
            format::number_superblock(right, copy, dm::crc32c);
            let read = self.spare.read(sector, BLOCK, &mut disk.other);
            found.blocks += 1;
            if read.is_ok() && disk.other.bytes() == disk.superblock.bytes() {
                continue;
            }
            let known =
                as_block(disk.other.bytes(), 0).map(|b| Superblock::read(b, copy, dm::crc32c));
            let same = matches!(known, Some(Ok(s)) if s.uuid == disk.uuid);
            found.note(read.is_ok() && same);
            self.rewrite(sector, &mut disk.superblock, found);
        }
    }

    /// Returns whether it was.
    fn rewrite(&self, sector: Sector<OnSpare>, block: &mut IoBuffer, found: &mut Checked) -> bool {
        let done = self.spare.write(sector, BLOCK, block, Durability::Durable);
        match done {
            Ok(()) => found.repaired += 1,
            Err(_) => self.errors.add(1),
        }
        done.is_ok()
    }

    /// Makes all replicas of table block `number` the newest one, or what memory has if there is none.
    pub(super) fn check_block(
        &self,
        disk: &mut Disk,
        number: u64,
        entries: &Entries,
        found: &mut Checked,
    ) {
        let loaded = self.load_block(disk, number);
        for copy in 0..self.geometry.areas().len() {
            let sector = self.sector(self.geometry.table_sector(copy, number));
            found.blocks += 1;
            let read = self.spare.read(sector, BLOCK, &mut disk.other).is_ok();
            let right = loaded.and_then(|place| disk.blocks.get_mut(place));
            if read
                && right
                    .as_ref()
                    .is_some_and(|b| disk.other.bytes() == b.bytes())
            {
                disk.note(number, |block| block.set_missed(copy, false));
                continue;
            }
            let other = as_block(disk.other.bytes(), 0).filter(|_| read);
            let valid = other.is_some_and(|b| {
                format::table_generation(b, &disk.uuid, number, dm::crc32c).is_ok()
            });
            found.note(valid);
            if let Some(block) = right {
                let is_right = self.rewrite(sector, block, found);
                disk.note(number, |block| block.set_missed(copy, !is_right));
            }
        }
        // As long as another block is stuck, this one must not be written.
        if loaded.is_none() && disk.places.stuck() == 0 && self.rebuild(disk, number, entries) {
            found.repaired += self.geometry.areas().len() as u64;
        }
    }

    /// Writes table block `number`, of which no replica is left, as memory has it.
    fn rebuild(&self, disk: &mut Disk, number: u64, entries: &Entries) -> bool {
        let (uuid, next) = (disk.uuid, disk.next_in_use(number));
        disk.places.begin();
        let Some(place) = disk.places.add(number) else {
            return false;
        };
        let block = disk.blocks.get_mut(place);
        let Some(block) = block.and_then(|b| as_block_mut(b.bytes_mut(), 0)) else {
            return false;
        };
        format::blank_table_block(block, &uuid, number, dm::crc32c);
        format::set_next_in_use(block, next);
        let now = dm::unix_seconds();
        let mut put = |slot, state| {
            let (of, index) = self.geometry.record_of(slot);
            if of == number {
                let cause = Cause::Message;
                format::set_record(block, index, &Update { slot, state, cause }, now);
            }
        };
        // Whatever is taken and no entry's is bad, or not known to be good.
        let waiting = self.waiting.lock();
        let mut slots = self.slots.lock();
        for index in 0..RECORDS_PER_BLOCK {
            if let Some(slot) = self.geometry.slot_at(number, index) {
                let is_free = waiting.restored.contains(&slot);
                if slots.is_taken(slot) && !self.geometry.is_reserved(slot) && !is_free {
                    put(slot, State::BAD);
                }
            }
        }
        drop(slots);
        drop(waiting);
        entries.visit_losses(|l| {
            let (unit, lost) = (l.unit, l.mask);
            put(l.slot, State::Bad { unit, lost });
        });
        entries.visit(Unit(0), |e| {
            let (unit, mask) = (e.unit, e.mask);
            put(e.slot, State::Entry { unit, mask });
            true
        });
        disk.places.set_loaded(place);
        self.write_group(disk, |_, _| ());
        !disk.places.is_stuck(number)
    }

    /// Adds the slots to `doubtful` whose records in block `number` are not what memory has.
    fn compare_records(
        &self,
        disk: &mut Disk,
        number: u64,
        entries: &Entries,
        doubtful: &mut KVec<Slot>,
    ) {
        let place = self.load_block(disk, number);
        let Some(block) = place.and_then(|place| disk.block(place)) else {
            return;
        };
        for index in 0..RECORDS_PER_BLOCK {
            let Some(slot) = self.geometry.slot_at(number, index) else {
                continue;
            };
            let right = match format::record(block, number, index as usize, &self.geometry) {
                Ok(State::Entry { unit, mask } | State::Moved { unit, mask }) => entries
                    .get(unit)
                    .is_some_and(|e| e.slot == slot && e.mask == mask),
                Ok(State::Free) => {
                    self.geometry.is_reserved(slot) || !self.with_slots(|s| s.is_taken(slot))
                }
                Ok(State::Bad { .. }) => true,
                Err(_) => false,
            };
            if !right {
                let _ = doubtful.push_within_capacity(slot);
            }
        }
    }

    /// Whether the record of `slot` says what memory has for `entry`. May sleep.
    pub(in super::super) fn has_record(&self, entry: &Entry) -> bool {
        let (number, index) = self.geometry.record_of(entry.slot);
        let mut disk = self.disk.lock();
        let place = self.load_block(&mut disk, number);
        let block = place.and_then(|place| disk.block(place));
        let state = block.map(|b| format::record(b, number, index, &self.geometry));
        let (unit, mask) = (entry.unit, entry.mask);
        state == Some(Ok(State::Entry { unit, mask }))
    }
}

/// What [`Store::check`] found.
#[derive(Default)]
pub(in super::super) struct Checked {
    /// Replicas and superblocks looked at.
    pub(in super::super) blocks: u64,
    /// Sound, and not the newest, or not what memory has.
    pub(in super::super) stale: u64,
    /// Unreadable or not valid.
    pub(in super::super) damaged: u64,
    /// Rewritten.
    pub(in super::super) repaired: u64,
}

impl Checked {
    fn note(&mut self, sound: bool) {
        if sound {
            self.stale += 1;
        } else {
            self.damaged += 1;
        }
    }
}
