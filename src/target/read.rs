// SPDX-License-Identifier: GPL-2.0

//! Reads in process context: again, and with few failures.

use super::{recover::Part, replace::Replaced, DeferredBio, Remap};
use crate::dm::{BlkStatus, Fua};
use crate::engine::{
    entries::Entry,
    recovery::{Failed, Grid, Piece, Reading},
    Slot, Unit,
};

impl Remap<'_> {
    /// Reads `bio`, which failed, or of which sectors are lost, as [`Reading`] says.
    ///
    /// Fails with [`BlkStatus::MEDIUM`] if something stays unreadable; its unit has an entry then, or another
    /// slot. With the error as it came if the device does not answer at all, it is not a bad sector's, or too much failed to say
    /// which slot is bad.
    pub(super) fn read_again(&self, bio: &DeferredBio<'_>) -> Result<(), BlkStatus> {
        let first = self.part_at(bio, 0);
        let entry = self.entries.get(first.unit);
        if bio.status().is_ok() {
            // Of lost sectors, which `map` cuts off: they lie in one unit.
            return self.read_lost(bio, first.unit, first.bits);
        }
        let in_slot = entry.is_some_and(|e| e.mask & first.bits != 0);
        if !in_slot && self.meets_pending(bio) {
            // Known to be bad, and asked.
            return Err(BlkStatus::MEDIUM);
        }
        let retries = self.retries();
        if retries == 0 {
            // Without a retry it is not known which blocks are bad.
            return Err(bio.status());
        }
        let is_certain =
            |sector: u64| !in_slot && self.is_main_unit(sector) && self.vitals.is_certain(sector);
        let blocks = match entry {
            Some(entry) if in_slot => {
                let at = self.slot_sector(entry.slot, first.offset());
                self.spare().blocks(at, self.block)
            }
            _ => {
                let at = self.main_sector(first.unit, first.offset());
                self.main.blocks(at, self.block)
            }
        };
        // With one unit there is no doubt which one made the bio fail.
        let is_one = first.count == bio.sectors();
        if is_one && is_certain(bio.sector()) {
            return Err(self.unreadable(first, bio.status(), true));
        }
        let units = Grid::new(self.geometry.unit_sectors, bio.sector());
        let mut reading = Reading::new(bio.sectors(), units, blocks, retries);
        let is_medium = bio.status() == BlkStatus::MEDIUM;
        let mut last = bio.status();
        let mut asked = None;
        while let Some(piece) = reading.next() {
            let part = self.part_at(bio, piece.skip);
            let (status, slot) = self.read_piece(bio, piece);
            if status.is_ok() {
                let hardly = reading.succeeded() || is_one && is_medium && reading.next().is_none();
                if hardly && slot.is_none() {
                    self.relocate_later(part.unit);
                }
                continue;
            }
            if !self.is_bad(status) {
                return Err(status);
            }
            last = status;
            // What one place failed says nothing about another.
            if slot != asked {
                reading.moved();
                asked = slot;
            }
            let lost = match reading.failed(is_certain(bio.sector() + u64::from(piece.skip))) {
                Failed::GoOn => continue,
                // A slot is not given up for that: what it has is nowhere else.
                Failed::Unsure(_) if slot.is_some() => match reading.may_fail() {
                    true => continue,
                    false => break,
                },
                Failed::Lost(piece) | Failed::Unsure(piece) => Part {
                    count: piece.count,
                    bits: part.bits_of(piece),
                    ..part
                },
            };
            let Some(slot) = slot else {
                return Err(self.unreadable(lost, last, reading.may_fail()));
            };
            match self.slot_unreadable(lost.unit, lost.bits, slot) {
                Replaced::Yes => return Err(BlkStatus::MEDIUM),
                // It may well be readable where it is now.
                Replaced::ByOther if reading.may_fail() => (),
                Replaced::No | Replaced::ByOther => return Err(last),
            }
        }
        match reading.next() {
            None => Ok(()),
            Some(_) => Err(last),
        }
    }

    /// `part` of a read stays unreadable on main. Its unit becomes pending, if main answers elsewhere. Returns the
    /// error that goes up.
    fn unreadable(&self, part: Part, status: BlkStatus, may_ask: bool) -> BlkStatus {
        if !self.is_main_unit(self.geometry.unit_start(part.unit)) {
            return BlkStatus::MEDIUM;
        }
        if self.writable && !self.is_bad_place(part.unit, status, may_ask) {
            return status;
        }
        self.note_unreadable(part.unit);
        BlkStatus::MEDIUM
    }

    /// Whether the unit at `sector` has no entry.
    fn is_main_unit(&self, sector: u64) -> bool {
        self.entries.get(self.geometry.unit_of(sector)).is_none()
    }

    /// Whether `bio` was, as a read of main, for units among others that are known not to be readable.
    fn meets_pending(&self, bio: &DeferredBio<'_>) -> bool {
        let mut skip = 0;
        while skip < bio.sectors() {
            let part = self.part_at(bio, skip);
            let entry = self.entries.get(part.unit);
            if entry.is_some_and(|e| e.mask | e.lost == 0) {
                return true;
            }
            skip += part.count;
        }
        false
    }

    /// Reads a piece of `bio`, which lies in one unit, from where its sectors are: looked up each time, as they may move.
    /// Returns the slot that failed, if it was one.
    fn read_piece(&self, bio: &DeferredBio<'_>, piece: Piece) -> (BlkStatus, Option<Slot>) {
        let end = piece.skip + piece.count;
        let mut at = piece.skip;
        while at < end {
            let part = self.part_at(bio, at);
            let entry = self.entries.get(part.unit);
            let (mask, lost) = entry.map_or((0, 0), |e| (e.mask, e.lost));
            let offset = part.offset();
            let left = part.count.min(end - at);
            let run = |bits: u64| (bits >> offset).trailing_ones().min(left);
            let (status, count, slot) = match entry {
                Some(e) if run(mask) > 0 => {
                    let sector = self.slot_sector(e.slot, offset);
                    let count = run(mask);
                    let status = self.spare().transfer(bio, sector, at, count, Fua::AsAsked);
                    (status, count, Some(e.slot))
                }
                Some(_) if run(lost) > 0 => (BlkStatus::MEDIUM, left, None),
                _ => {
                    let sector = self.main_sector(part.unit, offset);
                    let count = run(!(mask | lost));
                    let status = self.main.transfer(bio, sector, at, count, Fua::AsAsked);
                    if status.is_ok() {
                        self.vitals.worked(bio.sector() + u64::from(at));
                    }
                    (status, count, None)
                }
            };
            if !status.is_ok() {
                return (status, slot);
            }
            at += count;
        }
        (BlkStatus::OK, None)
    }

    /// Makes a pending entry for `unit` unless it has one or no slot is free, to be committed lazily.
    fn note_unreadable(&self, unit: Unit) {
        if !self.writable {
            return;
        }
        let guard = self.units.lock(unit);
        if self.entries.get(unit).is_some() {
            return;
        }
        // Without a free slot it would only be in the way of data; and the reader is not to wait until there are more.
        let Some(slot) = self.slot_at_hand() else {
            return;
        };
        let entry = Entry {
            yields: true,
            ..Entry::new(unit, slot, 0)
        };
        self.entries.add(&entry);
        // So that the lazy sync does not find us busy with it.
        drop(guard);
        self.report_entry(&entry, "pending");
        self.commit_lazily(unit);
    }
}
