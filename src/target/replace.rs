// SPDX-License-Identifier: GPL-2.0

//! Slots that fail: what they still have goes to others, and what they do not is lost, until they answer again.

use super::{
    relocate::{NotCopied, Source},
    store::Filling,
    DeferredBio, Remap,
};
use crate::dm::{BlkStatus, Fua, IoBuffer};
use crate::engine::{
    entries::{Entry, Loss},
    format::{Cause, State, Update},
    geometry::mask_of,
    Slot, Unit,
};
use kernel::prelude::*;

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

impl Remap<'_> {
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
        mut write: impl FnMut(Slot, Filling) -> Result<(), BlkStatus>,
    ) -> bool {
        if !self.forget_made_good(&old) {
            return false;
        }
        self.entries.hold(&old);
        let filling = self.store.filling();
        while let Some(slot) = self.new_slot_beside(old.slot) {
            let written = write(slot, filling).map_err(|status| match self.is_bad(status) {
                true => NotCopied::Unwritable,
                false => NotCopied::Failed,
            });
            let copied =
                written.and_then(|()| self.copy_slot(&old, bits, unreadable, slot, filling));
            let lost = match copied {
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
            if !self.commit_move(&old, &new, lost, cause, filling) {
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
    fn commit_move(
        &self,
        old: &Entry,
        new: &Entry,
        lost: u64,
        cause: Cause,
        filling: Filling,
    ) -> bool {
        let (unit, mask) = (new.unit, new.mask);
        let bad = Update {
            slot: old.slot,
            state: State::Bad { unit, lost },
            cause,
        };
        if self.geometry.record_of(old.slot).0 == self.geometry.record_of(new.slot).0 {
            let updates = [self.update_of(new, cause), bad];
            return self.store.commit_data(&updates, Some(filling));
        }
        let moved = Update {
            slot: new.slot,
            state: State::Moved { unit, mask },
            cause,
        };
        // The old record may still say that it has taken another's place itself.
        self.store.commit(&[self.update_of(old, cause)])
            && self.store.commit_then(moved, filling, bad)
    }

    /// Losses of sectors that were written since stay on the spare until they could be mistaken for newer ones: before the
    /// slot is lost that has these sectors now. Makes them go. The caller has the unit's lock. `false`: that cannot be
    /// committed.
    pub(super) fn forget_made_good(&self, entry: &Entry) -> bool {
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
        filling: Filling,
    ) -> Result<u64, NotCopied> {
        let mut buffer = self.slot_mover.lock();
        let has = old.mask & !bits;
        let source = Source {
            area: self.spare(),
            start: self.slot_sector(old.slot, 0),
            wanted: has & !unreadable,
            // What is not tried now is asked for when it is read, if that is how it shall be.
            cautious: unreadable != 0 && self.asks_again(),
        };
        let put = |offset, count, buffer: &mut IoBuffer| {
            self.put_in_slot(slot, offset, count, buffer, filling)
        };
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
        let done = self
            .store
            .once_more(|| self.try_to_replace(unit, bits, slot));
        done.unwrap_or_else(|replaced| replaced)
    }

    /// As [`Self::slot_unreadable`]; fails with [`Replaced::No`].
    fn try_to_replace(&self, unit: Unit, bits: u64, slot: Slot) -> Result<Replaced, Replaced> {
        let _guard = self.units.lock(unit);
        // In the meantime another bio may have seen to it.
        let entry = self.entries.get(unit);
        match entry.filter(|e| e.slot == slot && e.mask & bits != 0) {
            None => Ok(Replaced::ByOther),
            Some(entry) if self.move_slot(entry, 0, bits, |_, _| Ok(())) => Ok(Replaced::Yes),
            Some(_) => Err(Replaced::No),
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
            let (status, count) = match entry {
                Some(e) if e.lost >> offset & 1 != 0 => {
                    let loss = self.loss_of(unit, offset).ok_or(BlkStatus::MEDIUM)?;
                    let run = loss.mask & lost & left;
                    let count = (run >> offset).trailing_ones();
                    let at = self.slot_sector(loss.slot, offset);
                    if self.writable && self.find_again(&e, &loss, mask_of(offset, count))? {
                        continue;
                    }
                    let spare = self.spare();
                    (spare.transfer(bio, at, skip, count, Fua::AsAsked), count)
                }
                Some(e) if e.mask >> offset & 1 != 0 => {
                    let count = ((e.mask & left) >> offset).trailing_ones();
                    let at = self.slot_sector(e.slot, offset);
                    let spare = self.spare();
                    (spare.transfer(bio, at, skip, count, Fua::AsAsked), count)
                }
                // On main, as it was never lost, or was restored.
                _ => {
                    let clear = left & !(lost | entry.map_or(0, |e| e.mask));
                    let count = (clear >> offset).trailing_ones();
                    let at = self.main_sector(unit, offset);
                    (
                        self.main.transfer(bio, at, skip, count, Fua::AsAsked),
                        count,
                    )
                }
            };
            match status {
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
        match self.spare().read(from, count, &mut buffer) {
            Ok(()) => (),
            Err(status) if self.is_bad(status) => return Err(BlkStatus::MEDIUM),
            Err(status) => return Err(status),
        }
        let filling = self.store.filling();
        let written = self.put_in_slot(entry.slot, offset, count, &mut buffer, filling);
        drop(buffer);
        let new = Entry {
            mask: entry.mask | bits,
            lost: entry.lost & !bits,
            held: false,
            ..*entry
        };
        let (held, cause) = (entry.held, Cause::Read);
        if written.is_err() || !self.establish(Some(*entry), &new, held, cause, filling) {
            return Ok(false);
        }
        self.report_entry(&new, "lost sectors can be read again");
        Ok(true)
    }
}
