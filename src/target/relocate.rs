// SPDX-License-Identifier: GPL-2.0

//! Whole units on the move, beside I/O: from main to a slot, from a slot to another, and back to main.
//!
//! Always the same steps, under the unit's lock: hold the entry ([`Entries::hold`]), so that no write
//! is acknowledged that the copy misses; copy; commit; publish. See `docs/design.md` for why that is enough.
//!
//! [`Entries::hold`]: super::entries::Entries::hold

use super::{DeferredBio, Remap};
use crate::dm::{BlkStatus, Device, Durability, Fua, IoBuffer};
use crate::engine::{
    entries::{Entry, Loss},
    format::{Cause, State, Update},
    geometry::mask_of,
    recovery::{Failed, Grid, Reading},
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

/// What became of a slot that could not be read.
#[derive(PartialEq, Eq)]
pub(super) enum Replaced {
    /// Another one took its place; what it has no more is lost.
    Yes,
    /// It stays, and may be readable another time.
    No,
    /// It was not the unit's any more.
    ByOther,
}

/// What came of writing to a slot, or reading, other than data.
enum NotCopied {
    /// The slot's medium failed.
    Unwritable,
    /// Something else did.
    Failed,
}

/// What is copied: sectors of a unit, from where.
struct Source<'a> {
    device: Device<'a>,
    /// The first sector of the unit there.
    start: u64,
    blocks: &'a dyn Fn(u64) -> Grid,
    /// The sectors of the unit.
    wanted: u64,
    /// The second failure is to be the last: some of it is known to be bad, and has cost failures enough.
    cautious: bool,
}

impl Remap<'_> {
    /// Reads what can be read of a unit, with few failures ([`Reading::of_copy`]), and hands it to `put`, run by run: first
    /// sector in the unit, number of sectors. Returns the sectors that were read and put.
    fn copy(
        &self,
        source: &Source<'_>,
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
            let blocks = (source.blocks)(source.start + u64::from(first));
            let blockwise = source.cautious || pass > 0;
            let mut reading = Reading::of_copy(count, blocks, budget, blockwise);
            while let Some(piece) = reading.next() {
                let offset = first + piece.skip;
                let from = source.start + u64::from(offset);
                match source.device.read(from, piece.count, buffer) {
                    Ok(()) => {
                        put(offset, piece.count, buffer)?;
                        done |= mask_of(offset, piece.count);
                        reading.succeeded();
                    }
                    Err(status) if self.is_bad(status) => match reading.failed(false) {
                        Failed::GoOn => (),
                        Failed::Lost(_) if reading.may_fail() => reading.pass(),
                        _ => break,
                    },
                    Err(_) => return Err(NotCopied::Failed),
                }
            }
            budget = reading.budget();
        }
        Ok(done)
    }

    /// Writes `count` sectors from sector `offset` of `slot` on.
    fn put_in_slot(
        &self,
        slot: Slot,
        offset: u32,
        count: u32,
        buffer: &mut IoBuffer,
    ) -> Result<(), NotCopied> {
        let to = self.slot_sector(slot, offset);
        let written = self
            .store
            .spare()
            .write(to, count, buffer, Durability::Cached);
        written.map_err(|status| match self.is_bad(status) {
            true => NotCopied::Unwritable,
            false => NotCopied::Failed,
        })
    }

    // ---- From main to a slot

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
            let source = Source {
                device: self.main,
                start: self.main_sector(unit, 0),
                blocks: &|sector| self.blocks_of_main(sector),
                wanted,
                cautious: false,
            };
            let put = |offset, count, buffer: &mut IoBuffer| {
                self.put_in_slot(old.slot, offset, count, buffer)
            };
            let copied = self.copy(&source, &mut mover.unit, put);
            // Of a main device that is gone nothing can be read either.
            let is_gone = matches!(copied, Ok(0)) && found.is_none() && !self.main_answers(unit, 1);
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
                return match self.establish(found, &new, true, cause) {
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

    // ---- From a slot to another

    /// Replaces the slot of `old`, whose medium failed: what it still has, and the sectors `bits` that
    /// `write` puts into a slot, go to another one. What it has no more is lost; `unreadable` is known to be. The caller has
    /// the unit's lock. May sleep.
    ///
    /// `false`: the entry is as it was, or held if that is not sure.
    pub(super) fn move_slot(
        &self,
        old: Entry,
        bits: u64,
        unreadable: u64,
        mut write: impl FnMut(Slot) -> Result<(), BlkStatus>,
    ) -> bool {
        if !self.forget_made_good(&old) {
            return false;
        }
        self.entries.hold(&old);
        while let Some(slot) = self.new_slot_beside(old.slot) {
            let written = write(slot).map_err(|status| match self.is_bad(status) {
                true => NotCopied::Unwritable,
                false => NotCopied::Failed,
            });
            let lost = match written.and_then(|()| self.copy_slot(&old, bits, unreadable, slot)) {
                Ok(lost) => lost,
                Err(NotCopied::Unwritable) if self.retire(slot) => continue,
                Err(_) => {
                    self.store.with_slots(|s| s.release(slot));
                    break;
                }
            };
            let new = Entry {
                slot,
                mask: (old.mask | bits) & !lost,
                lost: (old.lost | lost) & !bits,
                held: false,
                ..old
            };
            let cause = if bits == 0 { Cause::Read } else { Cause::Write };
            if !self.commit_move(&old, &new, lost, cause) {
                // A replica may name the new slot: writes must not go to the old one unheard.
                self.store.release_later(slot);
                self.commit_later(old.unit);
                return false;
            }
            self.store.with_slots(|s| s.retire(old.slot));
            if lost != 0 {
                self.entries.add_loss(Loss {
                    unit: old.unit,
                    mask: lost,
                    slot: old.slot,
                });
            }
            self.entries.set(old.unit, Some(&new));
            self.report_entry(
                &new,
                if lost == 0 {
                    "slot replaced"
                } else {
                    "slot failed, sectors lost"
                },
            );
            return true;
        }
        self.entries.set(old.unit, Some(&old));
        false
    }

    /// Commits that `new` takes the place of `old`, whose slot is bad.
    ///
    /// One write changes both records if they lie in the same table block. If not, a cut in between must not leave two
    /// records that contradict each other: the new one says that it takes another's place (`State::Moved`), until the
    /// other says that it is bad, which comes before any further commit (`docs/format.md`).
    ///
    /// `false`: not committed. A replica may have it all the same.
    fn commit_move(&self, old: &Entry, new: &Entry, lost: u64, cause: Cause) -> bool {
        let (unit, mask) = (new.unit, new.mask);
        let bad = Update {
            slot: old.slot,
            state: State::Bad { unit, lost },
            cause,
        };
        if self.geometry.record_of(old.slot).0 == self.geometry.record_of(new.slot).0 {
            return self.store.commit(&[self.update_of(new, cause), bad]);
        }
        let moved = Update {
            slot: new.slot,
            state: State::Moved { unit, mask },
            cause,
        };
        // The old record may still say that it has taken another's place itself.
        self.store.commit(&[self.update_of(old, cause)]) && self.store.commit_then(moved, bad)
    }

    /// Losses of sectors that were written since stay on the spare until they could be mistaken for newer ones: before the
    /// slot is lost that has these sectors now. Makes them go. The caller has the unit's lock. `false`: that cannot be
    /// committed.
    fn forget_made_good(&self, entry: &Entry) -> bool {
        let mut nth = 0;
        while let Some(loss) = self.entries.loss(entry.unit, nth) {
            nth += 1;
            if loss.mask & entry.mask == 0 {
                continue;
            }
            let update = Update {
                slot: loss.slot,
                state: State::Bad {
                    unit: entry.unit,
                    lost: loss.mask & !entry.mask,
                },
                cause: Cause::Write,
            };
            if !self.store.commit(&[update]) {
                return false;
            }
        }
        self.entries.keep_losses(entry.unit, !entry.mask);
        true
    }

    /// Copies what the slot of `old` has, but for `bits`, to `slot`. Returns the sectors that are lost:
    /// those that it cannot read although the spare answers.
    fn copy_slot(
        &self,
        old: &Entry,
        bits: u64,
        unreadable: u64,
        slot: Slot,
    ) -> Result<u64, NotCopied> {
        let mut buffer = self.slot_mover.lock();
        let has = old.mask & !bits;
        let source = Source {
            device: self.store.spare(),
            start: self.slot_sector(old.slot, 0),
            blocks: &|sector| self.blocks_of_spare(sector),
            wanted: has & !unreadable,
            // What is not tried now is asked for when it is read, if that is how it shall be.
            cautious: unreadable != 0 && self.asks_again(),
        };
        let put =
            |offset, count, buffer: &mut IoBuffer| self.put_in_slot(slot, offset, count, buffer);
        let lost = has & !self.copy(&source, &mut buffer, put)?;
        // It may be the whole spare that does not answer.
        if lost != 0 && !self.store.answers(&mut buffer) {
            return Err(NotCopied::Failed);
        }
        Ok(lost)
    }

    /// Sectors `bits` of `unit` could not be read from `slot`: replaces that. May sleep.
    pub(super) fn slot_unreadable(&self, unit: Unit, bits: u64, slot: Slot) -> Replaced {
        if !self.writable {
            return Replaced::No;
        }
        let _guard = self.units.lock(unit);
        // In the meantime another bio may have seen to it.
        let entry = self.entries.get(unit);
        match entry.filter(|e| e.slot == slot && e.mask & bits != 0) {
            None => Replaced::ByOther,
            Some(entry) if self.move_slot(entry, 0, bits, |_| Ok(())) => Replaced::Yes,
            Some(_) => Replaced::No,
        }
    }

    /// Reads `bio`, which is for the sectors `bits` of `unit`, some of which were lost when it came: it may be that the
    /// slot which had them can be read again. Then they are lost no more. At most one command fails. May sleep.
    pub(super) fn read_lost(
        &self,
        bio: &DeferredBio<'_>,
        unit: Unit,
        bits: u64,
    ) -> Result<(), BlkStatus> {
        let _guard = self.units.lock(unit);
        let mut skip = 0;
        let mut left = bits;
        while left != 0 {
            let offset = left.trailing_zeros();
            let entry = self.entries.get(unit);
            let lost = entry.map_or(0, |e| e.lost);
            let (device, sector, count) = match entry {
                Some(e) if e.lost >> offset & 1 != 0 => {
                    let loss = self.loss_of(unit, offset).ok_or(BlkStatus::MEDIUM)?;
                    let run = loss.mask & lost & left;
                    let count = (run >> offset).trailing_ones();
                    let sector = self.slot_sector(loss.slot, offset);
                    if self.writable && self.find_again(&e, &loss, mask_of(offset, count))? {
                        continue;
                    }
                    (self.store.spare(), sector, count)
                }
                Some(e) if e.mask >> offset & 1 != 0 => {
                    let count = (e.mask & left) >> offset;
                    let sector = self.slot_sector(e.slot, offset);
                    (self.store.spare(), sector, count.trailing_ones())
                }
                // On main, as it was never lost, or was restored.
                _ => {
                    let clear = left & !(lost | entry.map_or(0, |e| e.mask));
                    let count = (clear >> offset).trailing_ones();
                    (self.main, self.main_sector(unit, offset), count)
                }
            };
            match bio.transfer(device, sector, skip, count, Fua::AsAsked) {
                status if status.is_ok() => (),
                status if self.is_bad(status) => return Err(BlkStatus::MEDIUM),
                status => return Err(status),
            }
            skip += count;
            left &= !mask_of(offset, count);
        }
        Ok(())
    }

    /// The loss that sector `offset` of `unit` belongs to.
    fn loss_of(&self, unit: Unit, offset: u32) -> Option<Loss> {
        (0..)
            .map_while(|nth| self.entries.loss(unit, nth))
            .find(|loss| loss.mask >> offset & 1 != 0)
    }

    /// Copies the sectors `bits`, which lie side by side, from the slot of `loss` to that of `entry`, and commits that they
    /// are there. The caller has the unit's lock. `false`: they can be read, but not put there.
    fn find_again(&self, entry: &Entry, loss: &Loss, bits: u64) -> Result<bool, BlkStatus> {
        let mut buffer = self.slot_mover.lock();
        let (offset, count) = (bits.trailing_zeros(), bits.count_ones());
        let from = self.slot_sector(loss.slot, offset);
        match self.store.spare().read(from, count, &mut buffer) {
            Ok(()) => (),
            Err(status) if self.is_bad(status) => return Err(BlkStatus::MEDIUM),
            Err(status) => return Err(status),
        }
        let written = self.put_in_slot(entry.slot, offset, count, &mut buffer);
        drop(buffer);
        let new = Entry {
            mask: entry.mask | bits,
            lost: entry.lost & !bits,
            held: false,
            ..*entry
        };
        if written.is_err() || !self.establish(Some(*entry), &new, entry.held, Cause::Read) {
            return Ok(false);
        }
        self.report_entry(&new, "lost sectors can be read again");
        Ok(true)
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
            let read = self.store.spare().read(from, count, &mut mover.unit);
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
        if self.main.flush().is_err() {
            return false;
        }
        for (first, count) in runs(self.geometry.unit_mask(old.unit)) {
            if self.main.read(main(first), count, &mut mover.unit).is_err() {
                return false;
            }
        }
        runs(old.mask).all(|(first, count)| {
            let from = self.slot_sector(old.slot, first);
            let read = self.store.spare().read(from, count, &mut mover.other);
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
        let size = self.main.physical_block();
        let begins = |sector: u64| self.main.physical_left(self.main_start + sector) == size;
        (begins(start) || self.can_read_block(start).is_ok())
            && (begins(end) || self.can_read_block(end - 1).is_ok())
    }
}
