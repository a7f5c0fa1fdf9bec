// SPDX-License-Identifier: GPL-2.0

//! Whole units on the move, beside I/O: from main to a slot, from a slot to another, and back to main.
//!
//! Always the same steps, under the unit's lock: hold the entry ([`Entries::hold`]), so that no write
//! is acknowledged that the copy misses; copy; commit; publish. See `docs/design.md` for why that is enough.
//!
//! [`Entries::hold`]: super::entries::Entries::hold

use super::{
    area::{Area, Sector},
    store::Filling,
    vitals::PLACES_ASKED,
    Remap,
};
use crate::dm::{BlkStatus, Durability, IoBuffer};
use crate::engine::{
    entries::Entry,
    format::{Cause, State, Update},
    geometry::mask_of,
    recovery::{Failed, Reading},
    Slot, Unit,
};
use kernel::{prelude::*, sync::atomic::Acquire};

/// Two units' room, for those that copy to or from main, one unit at a time.
pub(super) struct Mover {
    unit: IoBuffer,
    other: IoBuffer,
}

impl Mover {
    /// For units of `unit` sectors.
    pub(super) fn new(unit: u32) -> Result<Self> {
        let bytes = (unit as usize) << 9;
        Ok(Self {
            unit: IoBuffer::new(bytes)?,
            other: IoBuffer::new(bytes)?,
        })
    }
}

/// What became of a unit that was to be restored.
#[derive(PartialEq, Eq)]
pub(super) enum Restored {
    /// It had no entry.
    Healthy,
    /// Its entry is gone.
    Freed,
    /// Its entry stays, as main cannot hold it or the change cannot be committed.
    Stays,
}

/// What came of writing to a slot, or reading, other than data.
pub(super) enum NotCopied {
    /// The slot's medium failed.
    Unwritable,
    /// Something else did.
    Failed,
}

/// What is copied: sectors of a unit, from where.
pub(super) struct Source<'a, K> {
    pub(super) area: &'a Area<'a, K>,
    /// The first sector of the unit there.
    pub(super) start: Sector<K>,
    /// The sectors of the unit.
    pub(super) wanted: u64,
    /// The second failure is to be the last: some of it is known to be bad, and has cost failures enough.
    pub(super) cautious: bool,
}

impl Remap<'_> {
    /// Reads what can be read of a unit, with few failures ([`Reading::of_copy`]), and hands it to `put`, run by run: first
    /// sector in the unit, number of sectors. Returns the sectors that were read and put.
    pub(super) fn copy<K>(
        &self,
        source: &Source<'_, K>,
        buffer: &mut IoBuffer,
        mut put: impl FnMut(u32, u32, &mut IoBuffer) -> Result<(), NotCopied>,
    ) -> Result<u64, NotCopied> {
        let retries = self.retries();
        let mut budget = match source.cautious {
            true => 2,
            false => Reading::budget_of_copy(retries),
        };
        let (mut left, mut done, mut pass) = (source.wanted, 0, 0);
        while budget > 0 {
            if left == 0 {
                // What failed is asked for again, once all else was read.
                pass += 1;
                left = source.wanted & !done;
                if left == 0 || pass > retries {
                    break;
                }
            }
            let first = left.trailing_zeros();
            let count = (left >> first).trailing_ones();
            left &= !mask_of(first, count);
            let blocks = source.area.blocks(source.start.plus(first), self.block);
            let blockwise = source.cautious || pass > 0;
            let mut reading = Reading::of_copy(count, blocks, budget, blockwise);
            while let Some(piece) = reading.next() {
                let offset = first + piece.skip;
                let from = source.start.plus(offset);
                match source.area.read(from, piece.count, buffer) {
                    Ok(()) => {
                        put(offset, piece.count, buffer)?;
                        done |= mask_of(offset, piece.count);
                        reading.succeeded();
                    }
                    Err(status) if self.is_bad(status) => match reading.failed(false) {
                        Failed::GoOn => (),
                        _ if !reading.may_fail() => break,
                        Failed::Lost(_) => reading.pass(),
                        Failed::Unsure(_) => (),
                    },
                    Err(_) => return Err(NotCopied::Failed),
                }
            }
            budget = reading.budget();
        }
        Ok(done)
    }

    /// Whether a write to a slot that asked for FUA and failed with `status` may have failed for the flush that takes FUA's place on
    /// disks that do not know it: then the slot may be good, and takes the write without. Of a medium's error there is no doubt.
    pub(super) fn may_be_flush(&self, status: BlkStatus) -> bool {
        self.is_bad(status) && status != BlkStatus::MEDIUM
    }

    /// Writes `count` sectors from sector `offset` of `slot` on.
    pub(super) fn put_in_slot(
        &self,
        slot: Slot,
        offset: u32,
        count: u32,
        buffer: &mut IoBuffer,
        filling: Filling,
    ) -> Result<(), NotCopied> {
        let to = self.slot_sector(slot, offset);
        let written = self.spare().write(to, count, buffer, filling.durability());
        let Err(status) = written else {
            return Ok(());
        };
        let is_through = filling.durability() != Durability::Cached;
        let mut write = || self.spare().write(to, count, buffer, Durability::Cached);
        if is_through && self.may_be_flush(status) && write().is_ok() {
            self.store.flush_failed();
            return Err(NotCopied::Failed);
        }
        Err(match self.is_bad(status) {
            true => NotCopied::Unwritable,
            false => NotCopied::Failed,
        })
    }

    /// Has `unit` relocated in the background, as main could hardly read it.
    pub(super) fn relocate_later(&self, unit: Unit) {
        if !self.writable || self.is_tripped() {
            return;
        }
        let mut marginal = self.marginal.lock();
        // No room: the next read that needs retries asks again.
        if !marginal.contains(&unit) && marginal.push_within_capacity(unit).is_ok() {
            drop(marginal);
            self.relocate_next();
        }
    }

    /// Has the background go on, if there is more to do.
    pub(super) fn relocate_next(&self) {
        if !self.marginal.lock().is_empty() && !self.suspending.load(Acquire) {
            self.works.background.queue();
        }
    }

    /// Relocates one unit that waits for it. May sleep.
    pub(super) fn relocate_one(&self) {
        let Some(unit) = self.marginal.lock().first().copied() else {
            return;
        };
        // No slot or no commit: then so be it, main could read it after all.
        let _ = self.relocate(unit, Cause::Read);
        self.marginal.lock().retain(|u| *u != unit);
        self.report_mode();
    }

    /// Copies what main can read of `unit` to its slot, a new one if need be, and commits. May sleep.
    /// Returns the mask.
    pub(super) fn relocate(&self, unit: Unit, cause: Cause) -> Result<u64> {
        self.store.once_more(|| self.try_to_relocate(unit, cause))
    }

    fn try_to_relocate(&self, unit: Unit, cause: Cause) -> Result<u64> {
        let mut mover = self.mover.lock();
        let _guard = self.units.lock(unit);
        let mut found = self.entries.get(unit);
        loop {
            let known = found.map_or(0, |e| e.mask | e.lost);
            let wanted = self.geometry.unit_mask(unit) & !known;
            let old = match found {
                Some(entry) if wanted == 0 => return Ok(entry.mask),
                Some(entry) => entry,
                None => {
                    let slot = match cause {
                        Cause::Read => self.new_slot(),
                        _ => self.new_slot_for_data(),
                    };
                    Entry::new(unit, slot.ok_or(ENOSPC)?, 0)
                }
            };
            self.entries.hold(&old);
            let filling = self.store.filling();
            let source = Source {
                area: &self.main,
                start: self.main_sector(unit, 0),
                wanted,
                cautious: false,
            };
            let put = |offset, count, buffer: &mut IoBuffer| {
                self.put_in_slot(old.slot, offset, count, buffer, filling)
            };
            let copied = self.copy(&source, &mut mover.unit, put);
            // Of a main device that is gone nothing can be read either.
            let is_gone = matches!(copied, Ok(0))
                && found.is_none()
                && !self.main_answers(unit, PLACES_ASKED);
            if let (Ok(copied), false) = (&copied, is_gone) {
                let mask = old.mask | copied;
                let new = Entry {
                    mask,
                    held: false,
                    yields: mask == 0 && (old.yields || found.is_none() && cause == Cause::Read),
                    ..old
                };
                if found == Some(new) {
                    self.entries.set(unit, found.as_ref());
                    return Ok(mask);
                }
                return match self.establish(found, &new, true, cause, filling) {
                    true => Ok(mask),
                    false => Err(EIO),
                };
            }
            self.entries.set(unit, found.as_ref());
            let is_empty = known == 0;
            if is_empty && matches!(copied, Err(NotCopied::Unwritable)) && self.retire(old.slot) {
                // Nothing is in the slot yet: another one does as well.
                self.entries.set(unit, None);
                found = None;
                continue;
            }
            if found.is_none() {
                self.store.with_slots(|s| s.release(old.slot));
            }
            return Err(EIO);
        }
    }

    // ---- Back to main

    /// Copies the slot of `unit` to main, compares, and frees the entry. May sleep.
    pub(super) fn restore(&self, unit: Unit) -> Restored {
        let mut mover = self.mover.lock();
        let _guard = self.units.lock(unit);
        let Some(old) = self.entries.get(unit) else {
            return Restored::Healthy;
        };
        if old.lost != 0 || !self.store.is_ready() || !self.forget_made_good(&old) {
            return Restored::Stays;
        }
        self.entries.hold_to_restore(&old);
        if !self.copy_back(&old, &mut mover) {
            self.entries.set(unit, Some(&old));
            return Restored::Stays;
        }
        let free = Update {
            slot: old.slot,
            state: State::Free,
            cause: Cause::Message,
        };
        if !self.store.commit(&[free]) {
            // A replica may say free: the entry stays held, so that each write commits it anew.
            self.commit_later(unit);
            return Restored::Stays;
        }
        self.entries.set(unit, None);
        if old.mask == 0 {
            self.store.with_slots(|s| s.release(old.slot));
        } else {
            // Bios may be on their way to it.
            self.store.free_when_suspended(old.slot);
        }
        Restored::Freed
    }

    /// Writes the sectors that `old` has in its slot to main, and checks that main has all of the unit. At most one command
    /// fails.
    fn copy_back(&self, old: &Entry, mover: &mut Mover) -> bool {
        let runs = |mask: u64| {
            let mut left = mask;
            core::iter::from_fn(move || {
                let first = (left != 0).then(|| left.trailing_zeros())?;
                let count = (left >> first).trailing_ones();
                left &= !mask_of(first, count);
                Some((first, count))
            })
        };
        let main = |offset| self.main_sector(old.unit, offset);
        for (first, count) in runs(old.mask) {
            let from = self.slot_sector(old.slot, first);
            let read = self.spare().read(from, count, &mut mover.unit);
            if read.is_err()
                || !self.is_whole(old.unit, first, count)
                || self
                    .main
                    .write(main(first), count, &mut mover.unit, Durability::Cached)
                    .is_err()
            {
                return false;
            }
        }
        if self.main.device().flush().is_err() {
            return false;
        }
        for (first, count) in runs(self.geometry.unit_mask(old.unit)) {
            if self.main.read(main(first), count, &mut mover.unit).is_err() {
                return false;
            }
        }
        runs(old.mask).all(|(first, count)| {
            let from = self.slot_sector(old.slot, first);
            let read = self.spare().read(from, count, &mut mover.other);
            let bytes = |sectors: u32| (sectors as usize) << 9;
            let there = mover.unit.bytes().get(bytes(first)..bytes(first + count));
            read.is_ok() && there == mover.other.bytes().get(..bytes(count))
        })
    }

    /// Whether sectors of a unit can be written to main without its making up the rest of a physical block: they are whole
    /// blocks, or main can read those that they are a part of.
    fn is_whole(&self, unit: Unit, first: u32, count: u32) -> bool {
        let start = self.geometry.unit_start(unit) + u64::from(first);
        let end = start + u64::from(count);
        let size = self.main.device().physical_block();
        let begins = |sector: u64| self.main.physical_left(self.main.sector(sector)) == size;
        (begins(start) || self.can_read_block(start).is_ok())
            && (begins(end) || self.can_read_block(end - 1).is_ok())
    }
}
