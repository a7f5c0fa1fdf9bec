// SPDX-License-Identifier: GPL-2.0

//! Writes in process context: to main what it takes, to slots what it does not.

use super::{recover::Part, store::Filling, vitals::PLACES_ASKED, DeferredBio, Remap};
use crate::dm::{BlkStatus, Fua};
use crate::engine::{
    entries::Entry,
    format::Cause,
    geometry::mask_of,
    recovery::{Piece, WriteStep, Writing},
    Slot,
};

impl Remap<'_> {
    /// Writes `bio`: to main what main takes, to slots what it does not, as [`Writing`] says.
    pub(super) fn write_again(&self, bio: &DeferredBio<'_>) -> Result<(), BlkStatus> {
        let mut writing = Writing::default();
        let mut skip = 0;
        while skip < bio.sectors() {
            let part = self.part_at(bio, skip);
            self.store
                .once_more(|| self.write_part(bio, part, &mut writing))?;
            skip += part.count;
        }
        Ok(())
    }

    /// Writes `part`: to main what main takes, to the unit's slot what it does not, and all of it there
    /// if the unit has one.
    fn write_part(
        &self,
        bio: &DeferredBio<'_>,
        part: Part,
        writing: &mut Writing,
    ) -> Result<(), BlkStatus> {
        let at_once = self.units.try_lock(part.unit);
        let _guard = at_once.unwrap_or_else(|| self.store.aside(|| self.units.lock(part.unit)));
        // A bio that was never submitted has no error of main's to give.
        let mut error = bio.status().check().err().unwrap_or(BlkStatus::MEDIUM);
        if let Some(entry) = self.entries.get(part.unit) {
            return self.write_to_slot(bio, part, entry, error);
        }
        // Seen from the bio's start.
        let start = self.main.sector(bio.sector());
        let blocks = self.main.blocks(start, self.block);
        let mut steps = writing.unit(part.skip, part.skip + part.count, blocks);
        let mut bits = 0;
        while let Some(step) = steps.next() {
            let (piece, in_part) = match step {
                WriteStep::Main(piece) => (piece, false),
                WriteStep::MainInPart(piece) => (piece, true),
                WriteStep::Slot(piece) => {
                    bits |= part.bits_of(piece);
                    steps.succeeded();
                    continue;
                }
            };
            let at = bio.sector() + u64::from(piece.skip);
            let mut status = BlkStatus::OK;
            if in_part {
                status = self.can_read_block(at).err().unwrap_or(BlkStatus::OK);
            }
            if status.is_ok() {
                status = self.write_main(bio, piece);
            }
            if status.is_ok() {
                steps.succeeded();
                continue;
            }
            if !self.is_bad(status) {
                writing.done(&steps);
                return Err(status);
            }
            error = status;
            if let Some(piece) = steps.failed() {
                bits |= part.bits_of(piece);
            }
        }
        writing.done(&steps);
        if bits == 0 {
            return Ok(());
        }
        if steps.asks() {
            if !self.main_answers(part.unit, PLACES_ASKED) {
                return Err(error);
            }
            self.main_refused(part.unit);
        }
        match self.write_to_new_slot(bio, part, bits, error) {
            // Main was not asked, for its neighbours' sake; it is now.
            Err(_) if !steps.asks() && writing.ask_after_all() => self
                .write_main(
                    bio,
                    Piece {
                        skip: part.skip,
                        count: part.count,
                    },
                )
                .check(),
            done => done,
        }
    }

    /// Writes a piece of `bio`, which lies in one unit without an entry, to main.
    fn write_main(&self, bio: &DeferredBio<'_>, piece: Piece) -> BlkStatus {
        let at = self.main.sector(bio.sector()).plus(piece.skip);
        let main = &self.main;
        let status = main.transfer(bio, at, piece.skip, piece.count, self.fua());
        if status.is_ok() {
            self.vitals.worked(bio.sector() + u64::from(piece.skip));
            self.vitals.took_write();
        }
        status
    }

    /// Writes the sectors `bits` of `part` to a new slot and makes an entry that says so: spare data
    /// first, then the commit, then what `map` sees. Fails with `error` if there is no slot or no commit.
    fn write_to_new_slot(
        &self,
        bio: &DeferredBio<'_>,
        part: Part,
        bits: u64,
        error: BlkStatus,
    ) -> Result<(), BlkStatus> {
        loop {
            let slot = self.new_slot_for_data().ok_or(error)?;
            let filling = self.store.filling();
            match self.write_runs(bio, part, bits, slot, filling) {
                Ok(()) => {
                    let entry = Entry::new(part.unit, slot, bits);
                    let done = self.establish(None, &entry, false, Cause::Write, filling);
                    return if done { Ok(()) } else { Err(error) };
                }
                // Nothing is in the slot yet: another one does as well.
                Err(status) if self.is_bad(status) && self.retire(slot) => (),
                Err(status) => {
                    self.store.with_slots(|s| s.release(slot));
                    // A slot's error says nothing of the sectors that the bio is for.
                    return Err(if self.is_bad(status) { error } else { status });
                }
            }
        }
    }

    /// Writes all of `part` to the slot of `old`, or another one if its medium fails. As above.
    fn write_to_slot(
        &self,
        bio: &DeferredBio<'_>,
        part: Part,
        old: Entry,
        error: BlkStatus,
    ) -> Result<(), BlkStatus> {
        let filling = self.store.filling();
        match self.write_runs(bio, part, part.bits, old.slot, filling) {
            Ok(()) => {
                let new = Entry {
                    mask: old.mask | part.bits,
                    lost: old.lost & !part.bits,
                    held: false,
                    yields: false,
                    ..old
                };
                if old == new {
                    // The table says so already, so no commit makes it durable.
                    self.cache.landed();
                    return Ok(());
                }
                match self.establish(Some(old), &new, old.held, Cause::Write, filling) {
                    true => Ok(()),
                    false => Err(error),
                }
            }
            Err(status) if self.is_bad(status) => {
                if old.mask | old.lost == 0 {
                    // Nothing has to move.
                    if !self.retire(old.slot) {
                        return Err(error);
                    }
                    self.entries.set(part.unit, None);
                    return self.write_to_new_slot(bio, part, part.bits, error);
                }
                let write = |slot, filling| self.write_runs(bio, part, part.bits, slot, filling);
                if self.move_slot(old, part.bits, 0, write) {
                    Ok(())
                } else {
                    Err(error)
                }
            }
            Err(status) => Err(status),
        }
    }

    /// Writes the sectors `bits` of `part` to `slot`, run by run.
    fn write_runs(
        &self,
        bio: &DeferredBio<'_>,
        part: Part,
        bits: u64,
        slot: Slot,
        filling: Filling,
    ) -> Result<(), BlkStatus> {
        let mut left = bits;
        while left != 0 {
            let offset = left.trailing_zeros();
            let count = (left >> offset).trailing_ones();
            let skip = part.skip + (offset - part.offset());
            let at = self.slot_sector(slot, offset);
            let write = |fua| self.spare().transfer(bio, at, skip, count, fua);
            let fua = filling.fua(self.fua());
            let status = write(fua);
            let is_through = fua == Fua::Always || bio.is_fua();
            if is_through && self.may_be_flush(status) && write(Fua::Never).is_ok() {
                self.store.flush_failed();
                return Err(BlkStatus::TRANSPORT);
            }
            status.check()?;
            left &= !mask_of(offset, count);
        }
        Ok(())
    }
}
