// SPDX-License-Identifier: GPL-2.0

//! Whole units on the move, beside I/O: from main to a slot, from a slot to another, and back to main.
//!
//! Always the same steps, under the unit's lock: hold the entry ([`Entries::hold`]), so that no write
//! is acknowledged that the copy misses; copy; commit; publish. See `docs/design.md` for why that is enough.
//!
//! [`Entries::hold`]: super::entries::Entries::hold

use super::{store::MAX_UPDATES, Remap};
use crate::dm::{IoBuffer, NoIo, Status};
use crate::engine::{
    entries::{Entry, Loss},
    format::{Cause, State, Update},
    geometry::mask_of,
    Slot, Unit,
};
use kernel::{
    prelude::*,
    sync::{atomic::Acquire, Arc, ArcBorrow},
};

/// Two blocks' room, for those that copy to or from main, one unit at a time.
pub(super) struct Mover {
    block: IoBuffer,
    other: IoBuffer,
}

impl Mover {
    /// For logical blocks of `block` sectors.
    pub(super) fn new(block: u32) -> Result<Self> {
        let bytes = (block as usize) << 9;
        Ok(Self {
            block: IoBuffer::new(bytes)?,
            other: IoBuffer::new(bytes)?,
        })
    }
}

/// What became of a unit that was to be restored.
#[derive(PartialEq, Eq)]
pub(super) enum Restored {
    /// It had no entry.
    Healthy,
    /// Its entry is gone. No bio may be sent to the slot any more, but some may be on their way.
    Freed(Slot),
    /// Its entry stays, as main cannot hold it or the change cannot be committed.
    Stays,
}

/// What came of copying a block.
enum Copied {
    Yes,
    /// The source's medium failed, or the target's, or something else did.
    Unreadable,
    Unwritable,
    Failed,
}

impl Remap {
    /// The first sectors of the blocks of a unit, with their bits.
    fn blocks(&self) -> impl Iterator<Item = (u32, u64)> {
        let (block, end) = (self.block, self.geometry.unit_sectors);
        let offsets =
            core::iter::successors(Some(0), move |offset: &u32| offset.checked_add(block));
        let offsets = offsets.take_while(move |offset| *offset < end);
        offsets.map(move |offset| (offset, mask_of(offset, block)))
    }

    // ---- From main to a slot

    /// Has `unit` relocated in the background, as main could hardly read it.
    pub(super) fn relocate_later(this: ArcBorrow<'_, Self>, unit: Unit) {
        if !this.writable || this.is_tripped() {
            return;
        }
        let mut marginal = this.marginal.lock();
        // No room: the next read that needs retries asks again.
        if !marginal.contains(&unit) && marginal.push_within_capacity(unit).is_ok() {
            drop(marginal);
            if !this.suspending.load(Acquire) {
                let _ = this.queue.enqueue::<_, 1>(Arc::from(this));
            }
        }
    }

    /// Relocates what waits for it, until there is no more or suspending begins. May sleep.
    pub(super) fn relocate_marginal(&self) {
        let _noio = NoIo::enter();
        while !self.suspending.load(Acquire) {
            let Some(unit) = self.marginal.lock().first().copied() else {
                break;
            };
            // No slot or no commit: then so be it, main could read it after all.
            let _ = self.relocate(unit, Cause::Read);
            self.marginal.lock().retain(|u| *u != unit);
            self.report_mode();
        }
    }

    /// Copies what main can read of `unit` to its slot, a new one if need be, and commits. May sleep.
    /// Returns the mask.
    pub(super) fn relocate(&self, unit: Unit, cause: Cause) -> Result<u64> {
        let mut mover = self.mover.lock();
        let _guard = self.units.lock(unit);
        let found = self.entries.get(unit);
        if let Some(e) = found.filter(|e| e.mask | e.lost == self.geometry.unit_mask(unit)) {
            return Ok(e.mask);
        }
        loop {
            let old = match found {
                Some(entry) => entry,
                None => Entry::new(unit, self.new_slot().ok_or(ENOSPC)?, 0),
            };
            self.entries.hold(&old);
            let mut new = Entry { held: false, ..old };
            let (mut unwritable, mut failed) = (false, false);
            for (offset, bits) in self.blocks() {
                // The last unit of main may be short.
                let wanted = self.geometry.unit_mask(unit) & !(old.mask | old.lost);
                if bits & wanted == 0 {
                    continue;
                }
                match self.copy_out(unit, old.slot, offset, &mut mover.block) {
                    Copied::Yes => new.mask |= bits,
                    Copied::Unreadable => (),
                    Copied::Unwritable => unwritable = true,
                    Copied::Failed => failed = true,
                }
            }
            // Of a main device that is gone nothing can be read either.
            failed |= new.mask == 0 && found.is_none() && !self.main_answers(unit);
            if failed || (unwritable && found.is_none()) {
                self.entries.set(unit, found.as_ref());
                if found.is_none() && (failed || !self.retire(old.slot)) {
                    self.store.with_slots(|s| s.release(old.slot));
                    failed = true;
                }
                if failed {
                    return Err(EIO);
                }
                continue;
            }
            if found == Some(new) {
                self.entries.set(unit, found.as_ref());
                return Ok(new.mask);
            }
            return if self.establish(found, &new, true, cause) {
                Ok(new.mask)
            } else {
                Err(EIO)
            };
        }
    }

    fn copy_out(&self, unit: Unit, slot: Slot, offset: u32, buffer: &mut IoBuffer) -> Copied {
        let from = self.main_sector(unit, offset);
        let retries = self.settings.get().read_retries.unwrap_or(2);
        let mut read = Err(Status::IOERR);
        for _ in 0..=retries {
            read = self.main.read(from, self.block, buffer);
            match read {
                Err(status) if self.is_bad(status) => (),
                _ => break,
            }
        }
        match read {
            Ok(()) => (),
            Err(status) if self.is_bad(status) => return Copied::Unreadable,
            Err(_) => return Copied::Failed,
        }
        self.write_block(slot, offset, buffer)
    }

    fn write_block(&self, slot: Slot, offset: u32, buffer: &mut IoBuffer) -> Copied {
        let to = self.slot_sector(slot, offset);
        match self.store.spare().write(to, self.block, buffer, false) {
            Ok(()) => Copied::Yes,
            Err(status) if self.is_bad(status) => Copied::Unwritable,
            Err(_) => Copied::Failed,
        }
    }

    // ---- From a slot to another

    /// Replaces the slot of `old`, whose medium failed: what it still has, and the sectors `bits` that
    /// `write` puts into a slot, go to another one in the same table block, so that one write changes
    /// both records. What it has no more is lost. The caller has the unit's lock. May sleep.
    ///
    /// `false`: the entry is as it was, or held if that is not sure.
    pub(super) fn move_slot(
        &self,
        old: Entry,
        bits: u64,
        mut write: impl FnMut(Slot) -> Result<(), Status>,
    ) -> bool {
        self.entries.hold(&old);
        loop {
            let slot = self.new_slot_beside(old.slot);
            let Some(slot) = slot else { break };
            let lost = match write(slot) {
                Ok(()) => self.copy_slot(&old, bits, slot),
                Err(status) if self.is_bad(status) => Err(Copied::Unwritable),
                Err(_) => Err(Copied::Failed),
            };
            let lost = match lost {
                Ok(lost) => lost,
                Err(Copied::Unwritable) if self.retire(slot) => continue,
                Err(_) => {
                    self.store.with_slots(|s| s.release(slot));
                    break;
                }
            };
            let new = Entry {
                unit: old.unit,
                slot,
                mask: (old.mask | bits) & !lost,
                lost: (old.lost | lost) & !bits,
                held: false,
            };
            let unit = old.unit;
            let updates = [
                self.update_of(&new, Cause::Write),
                Update {
                    slot: old.slot,
                    state: State::Bad { unit, lost },
                    cause: if bits == 0 { Cause::Read } else { Cause::Write },
                },
            ];
            if !self.store.commit(&updates) {
                // A replica may name the new slot: writes must not go to the old one unheard.
                return false;
            }
            self.store.with_slots(|s| s.retire(old.slot));
            if lost != 0 {
                self.entries.add_loss(Loss {
                    unit,
                    mask: lost,
                    slot: old.slot,
                });
            }
            self.entries.set(unit, Some(&new));
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

    /// Copies what the slot of `old` has, but for `bits`, to `slot`. Returns the sectors that are lost:
    /// those that it cannot read although the spare answers.
    fn copy_slot(&self, old: &Entry, bits: u64, slot: Slot) -> Result<u64, Copied> {
        let mut buffer = self.slot_mover.lock();
        let mut lost = 0;
        for last in [false, true] {
            let wanted = if last { lost } else { old.mask & !bits };
            lost = 0;
            for (offset, block) in self.blocks().filter(|(_, b)| b & wanted != 0) {
                let from = self.slot_sector(old.slot, offset);
                match self.store.spare().read(from, self.block, &mut buffer) {
                    Ok(()) => match self.write_block(slot, offset, &mut buffer) {
                        Copied::Yes => (),
                        other => return Err(other),
                    },
                    Err(status) if self.is_bad(status) => lost |= block & wanted,
                    Err(_) => return Err(Copied::Failed),
                }
            }
            if lost == 0 {
                break;
            }
            // It may be the whole spare that does not answer.
            if !self.store.answers(&mut buffer) {
                return Err(Copied::Failed);
            }
        }
        Ok(lost)
    }

    /// Sectors `bits` of `unit` could not be read from its slot: replaces that. May sleep.
    ///
    /// `false`: that cannot be done, and they may be readable another time.
    pub(super) fn slot_unreadable(&self, unit: Unit, bits: u64) -> bool {
        if !self.writable {
            return false;
        }
        let _guard = self.units.lock(unit);
        // In the meantime another bio may have seen to it.
        match self.entries.get(unit).filter(|e| e.mask & bits != 0) {
            Some(entry) => self.move_slot(entry, 0, |_| Ok(())),
            None => true,
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
        if old.lost != 0 || !self.store.is_ready() {
            return Restored::Stays;
        }
        self.entries.hold_to_restore(&old);
        if !self.copy_back(&old, &mut mover) {
            self.entries.set(unit, Some(&old));
            return Restored::Stays;
        }
        // Slots that failed under the unit lie in the same table block: one write changes all.
        let mut updates = KVec::new();
        let free = Update {
            slot: old.slot,
            state: State::Free,
            cause: Cause::Message,
        };
        let mut complete = updates.push(free, GFP_KERNEL).is_ok();
        let mut bad = 0;
        self.entries
            .visit_losses(|l| bad += usize::from(l.unit == unit));
        complete &= updates.reserve(bad, GFP_KERNEL).is_ok();
        self.entries.visit_losses(|l| {
            if l.unit == unit {
                let update = Update {
                    slot: l.slot,
                    state: State::BAD,
                    cause: Cause::Message,
                };
                complete &= updates.push_within_capacity(update).is_ok();
            }
        });
        // Only a forged table has more: they would not fit into one commit.
        if !complete || updates.len() > MAX_UPDATES {
            self.entries.set(unit, Some(&old));
            return Restored::Stays;
        }
        if !self.store.commit(&updates) {
            // A replica may say free: the entry stays held, so that each write commits it anew.
            return Restored::Stays;
        }
        self.entries.set(unit, None);
        self.entries.forget_losses(unit);
        Restored::Freed(old.slot)
    }

    /// Writes the sectors that `old` has in its slot to main, and checks that main has all of the unit.
    fn copy_back(&self, old: &Entry, mover: &mut Mover) -> bool {
        let all = self.geometry.unit_mask(old.unit);
        let main = |offset| self.main_sector(old.unit, offset);
        for (offset, _) in self.blocks().filter(|(_, b)| b & old.mask != 0) {
            let from = self.slot_sector(old.slot, offset);
            let read = self.store.spare().read(from, self.block, &mut mover.block);
            if read.is_err()
                || self
                    .main
                    .write(main(offset), self.block, &mut mover.block, false)
                    .is_err()
            {
                return false;
            }
        }
        if self.main.flush().is_err() {
            return false;
        }
        for (offset, bits) in self.blocks().filter(|(_, b)| b & all != 0) {
            if self
                .main
                .read(main(offset), self.block, &mut mover.block)
                .is_err()
            {
                return false;
            }
            if bits & old.mask != 0 {
                let from = self.slot_sector(old.slot, offset);
                let read = self.store.spare().read(from, self.block, &mut mover.other);
                if read.is_err() || mover.block.bytes() != mover.other.bytes() {
                    return false;
                }
            }
        }
        true
    }
}
