// SPDX-License-Identifier: GPL-2.0

//! Bios in process context: those that failed, writes that need new mask bits, and writes whose
//! sectors moved while they were on their way.

use super::{relocate::Replaced, DeferredBio, Remap};
use crate::dm::{self, BlkStatus, Fua, Op};
use crate::engine::{
    args::PendingReads,
    entries::Entry,
    format::{Cause, State, Update},
    geometry::mask_of,
    recovery::{Failed, Grid, Piece, Reading, WriteStep, Writing},
    route::within_unit,
    Slot, Unit,
};
use kernel::prelude::*;

/// Sectors of a bio within one unit.
#[derive(Clone, Copy)]
struct Part {
    unit: Unit,
    /// From the start of the bio.
    skip: u32,
    count: u32,
    /// The sectors in the unit.
    bits: u64,
}

impl Part {
    /// First sector, from the start of the unit.
    fn offset(&self) -> u32 {
        self.bits.trailing_zeros()
    }

    /// The sectors of a piece of it, in the unit.
    fn bits_of(&self, piece: Piece) -> u64 {
        let offset = self
            .offset()
            .wrapping_add(piece.skip.wrapping_sub(self.skip));
        mask_of(offset, piece.count)
    }
}

/// Places on main that are tried before a write's error is taken for one of all of main.
const PLACES_ASKED: u32 = 4;

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
    fn part_at(&self, bio: &DeferredBio<'_>, skip: u32) -> Part {
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
    fn fua(&self) -> Fua {
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

    // ---- Reads

    /// Reads `bio`, which failed, or of which sectors are lost, as [`Reading`] says.
    ///
    /// Fails with [`BlkStatus::MEDIUM`] if something stays unreadable; its unit has an entry then, or another
    /// slot. With the error as it came if the device does not answer at all, or it is not a bad sector's.
    fn read_again(&self, bio: &DeferredBio<'_>) -> Result<(), BlkStatus> {
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
                self.blocks_of_spare(self.slot_sector(entry.slot, first.offset()))
            }
            _ => self.blocks_of_main(self.main_sector(first.unit, first.offset())),
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
            let lost = match reading.failed(is_certain(bio.sector() + u64::from(piece.skip))) {
                Failed::GoOn => continue,
                Failed::Enough => break,
                Failed::Lost(piece) => Part {
                    count: piece.count,
                    bits: part.bits_of(piece),
                    ..part
                },
            };
            let Some(slot) = slot else {
                return Err(self.unreadable(lost, last, reading.may_fail()));
            };
            return match self.slot_unreadable(lost.unit, lost.bits, slot) {
                Replaced::Yes => Err(BlkStatus::MEDIUM),
                Replaced::No => Err(last),
                // It may well be readable where it is now. (All of a bio to a slot lies in one unit.)
                Replaced::ByOther => {
                    let count = bio.sectors() - piece.skip;
                    self.read_piece(bio, Piece { count, ..piece }).0.check()
                }
            };
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
                    let status = bio.transfer(self.store.spare(), sector, at, count, Fua::AsAsked);
                    (status, count, Some(e.slot))
                }
                Some(_) if run(lost) > 0 => (BlkStatus::MEDIUM, left, None),
                _ => {
                    let sector = self.main_sector(part.unit, offset);
                    let count = run(!(mask | lost));
                    let status = bio.transfer(self.main, sector, at, count, Fua::AsAsked);
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

    // ---- Writes

    /// Writes `bio`: to main what main takes, to slots what it does not, as [`Writing`] says.
    fn write_again(&self, bio: &DeferredBio<'_>) -> Result<(), BlkStatus> {
        let mut writing = Writing::default();
        let mut skip = 0;
        while skip < bio.sectors() {
            let part = self.part_at(bio, skip);
            self.write_part(bio, part, &mut writing)?;
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
        let _guard = self.units.lock(part.unit);
        // A bio that was never submitted has no error of main's to give.
        let mut error = bio.status().check().err().unwrap_or(BlkStatus::MEDIUM);
        if let Some(entry) = self.entries.get(part.unit) {
            return self.write_to_slot(bio, part, entry, error);
        }
        let sector = self.main_sector(part.unit, part.offset());
        let blocks = self.blocks_of_main(sector.wrapping_sub(part.skip.into()));
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
        let sector = self.main_start + bio.sector() + u64::from(piece.skip);
        let fua = self.fua();
        let status = bio.transfer(self.main, sector, piece.skip, piece.count, fua);
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
            match self.write_runs(bio, part, bits, slot) {
                Ok(()) => {
                    let entry = Entry::new(part.unit, slot, bits);
                    let done = self.establish(None, &entry, false, Cause::Write);
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
        match self.write_runs(bio, part, part.bits, old.slot) {
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
                match self.establish(Some(old), &new, old.held, Cause::Write) {
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
                let write = |slot| self.write_runs(bio, part, part.bits, slot);
                if self.move_slot(old, part.bits, 0, write) {
                    Ok(())
                } else {
                    Err(error)
                }
            }
            Err(status) => Err(status),
        }
    }

    /// A free slot in the part of the table that is in use, if a commit is likely to succeed. Does not wait for the spare.
    fn slot_at_hand(&self) -> Option<Slot> {
        let is_ready = self.store.is_ready();
        self.store.with_slots(|s| is_ready.then(|| s.allocate()))?
    }

    /// A free slot, if there is one and a commit is likely to succeed. May sleep.
    pub(super) fn new_slot(&self) -> Option<Slot> {
        if !self.store.is_ready() {
            return None;
        }
        self.store.allocate()
    }

    /// As [`Self::new_slot`], for data: if none is free, entries that are there only because of a failed read give up
    /// theirs. May sleep.
    pub(super) fn new_slot_for_data(&self) -> Option<Slot> {
        loop {
            if let Some(slot) = self.new_slot() {
                return Some(slot);
            }
            if !self.make_room() {
                return None;
            }
        }
    }

    /// As [`Self::new_slot_for_data`], if possible with its record in the same table block as that of `slot`.
    pub(super) fn new_slot_beside(&self, slot: Slot) -> Option<Slot> {
        if !self.store.is_ready() {
            return None;
        }
        self.store
            .with_slots(|s| s.allocate_beside(slot))
            .or_else(|| self.new_slot_for_data())
    }

    /// Writes the sectors `bits` of `part` to `slot`, run by run.
    fn write_runs(
        &self,
        bio: &DeferredBio<'_>,
        part: Part,
        bits: u64,
        slot: Slot,
    ) -> Result<(), BlkStatus> {
        let mut left = bits;
        while left != 0 {
            let offset = left.trailing_zeros();
            let count = (left >> offset).trailing_ones();
            let skip = part.skip + (offset - part.offset());
            let sector = self.slot_sector(slot, offset);
            bio.transfer(self.store.spare(), sector, skip, count, self.fua())
                .check()?;
            left &= !mask_of(offset, count);
        }
        Ok(())
    }

    // ---- Records

    /// Records that the medium of `slot`, which holds no data, failed.
    ///
    /// `false`: that could not be recorded, as when it is the whole spare that fails.
    pub(super) fn retire(&self, slot: Slot) -> bool {
        let recorded = self.store.commit(&[Update {
            slot,
            state: State::BAD,
            cause: Cause::Write,
        }]);
        if recorded {
            self.store.with_slots(|s| s.retire(slot));
        }
        recorded
    }

    /// What the record of an entry's slot has to say.
    pub(super) fn update_of(&self, entry: &Entry, cause: Cause) -> Update {
        Update {
            slot: entry.slot,
            state: State::Entry {
                unit: entry.unit,
                mask: entry.mask,
            },
            cause,
        }
    }

    /// Commits `new`, whose slot has its data, and shows it to `map`. The caller has the unit's lock.
    ///
    /// `false`: not committed. `old` stays, or a pending entry comes into force: as a replica may say
    /// what `new` does, no write to the unit may go by without a commit. Nor may one that has been on its way to
    /// main, if the slot's data was copied from there before that ended: then `held`, which the entry stays.
    pub(super) fn establish(
        &self,
        old: Option<Entry>,
        new: &Entry,
        held: bool,
        cause: Cause,
    ) -> bool {
        let done = self.store.commit(&[self.update_of(new, cause)]);
        let pending = Entry::new(new.unit, new.slot, 0);
        let stays = Entry {
            held,
            ..old.unwrap_or(pending)
        };
        let entry = if done { new } else { &stays };
        self.entries.set(new.unit, Some(entry));
        if !done {
            // The table is to say what memory has, once it can be written again.
            self.commit_later(new.unit);
        }
        if old.is_none_or(|old| old.mask == 0 && entry.mask != 0) {
            self.report_entry(
                entry,
                if entry.mask == 0 {
                    "pending"
                } else {
                    "relocated"
                },
            );
        }
        done
    }

    /// Tells the administrator what became of the unit of an entry.
    pub(super) fn report_entry(&self, entry: &Entry, what: &str) {
        if dm::log_allowed() {
            let sector = self.geometry.unit_start(entry.unit);
            pr_warn!("{}: sector {}: {}\n", self.name(), sector, what);
        }
        self.ti.event();
    }
}
