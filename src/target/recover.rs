// SPDX-License-Identifier: GPL-2.0

//! Bios in process context: those that failed, writes that need new mask bits, and writes whose
//! sectors moved while they were on their way.

use super::Remap;
use crate::dm::{self, DeferredBio, NoIo, Op, Status};
use crate::engine::{
    entries::Entry,
    format::{Cause, State, Update},
    geometry::mask_of,
    route::within_unit,
    Slot, Unit,
};
use kernel::{prelude::*, sync::ArcBorrow};

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
}

impl Remap {
    /// Does what `bio` asks for, as far as that can be done, and completes it. May sleep.
    pub(super) fn recover(this: ArcBorrow<'_, Self>, bio: DeferredBio<'_>) {
        let _noio = NoIo::enter();
        let failed = !bio.status().is_ok();
        let c = &this.counters;
        let (errors, recovered) = match bio.op() {
            Op::Read => (&c.read_errors, &c.reads_recovered),
            _ => (&c.write_errors, &c.writes_recovered),
        };
        errors.add(u64::from(failed));
        let mut result = Ok(());
        let mut skip = 0;
        while skip < bio.sectors() {
            let sector = bio.sector() + u64::from(skip);
            let (bits, count) = within_unit(&this.geometry, sector, bio.sectors() - skip);
            let part = Part {
                unit: this.geometry.unit_of(sector),
                skip,
                count,
                bits,
            };
            let done = match bio.op() {
                Op::Read => Self::read_part(this, &bio, part),
                _ => this.write_part(&bio, part),
            };
            match (bio.op(), done) {
                (_, Ok(())) => (),
                // The rest of a failed read may show more sectors that are bad.
                (Op::Read, Err(Status::MEDIUM)) => result = Err(Status::MEDIUM),
                (_, Err(status)) => {
                    result = Err(status);
                    break;
                }
            }
            skip += count;
        }
        if result.is_ok() {
            recovered.add(u64::from(failed));
        }
        // Before the bio is complete: the target lives as long as it is not.
        this.report_mode();
        bio.complete(result.err().unwrap_or(Status::OK));
    }

    /// Calls `transfer` for each logical block of `part`, with its first sector from the start of the
    /// bio and of the unit, and its length. Stops at an error.
    fn each_block(
        &self,
        part: Part,
        mut transfer: impl FnMut(u32, u32, u32) -> Result<(), Status>,
    ) -> Result<(), Status> {
        let first = part.offset();
        let mut offset = first;
        while offset < first + part.count {
            // Bios begin and end at logical blocks.
            let count = self.block.min(first + part.count - offset);
            transfer(part.skip + (offset - first), offset, count)?;
            offset += count;
        }
        Ok(())
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

    /// Whether a write may have lost its FUA on the way to one device that the other one needs. May change.
    fn may_lack_fua(&self) -> bool {
        self.main.has_write_cache() != self.store.spare().has_write_cache()
    }

    // ---- Reads

    /// Reads `part` of a failed read again, block by block.
    ///
    /// Fails with [`Status::MEDIUM`] if a block stays unreadable; its unit has an entry then, or another
    /// slot. With the error as it came if the device does not answer at all, or it is not a bad sector's.
    fn read_part(
        this: ArcBorrow<'_, Self>,
        bio: &DeferredBio<'_>,
        part: Part,
    ) -> Result<(), Status> {
        let retries = this.settings.get().read_retries.unwrap_or(2);
        let mut error = None;
        let mut unreadable = 0;
        // With one unit there is no doubt which one made the bio fail.
        let mut marginal = part.count == bio.sectors();
        this.each_block(part, |skip, offset, count| {
            let mut last = bio.status();
            for attempt in 0..retries {
                last = this.read_block(bio, part.unit, skip, offset, count);
                if last.is_ok() {
                    marginal |= attempt > 0;
                    return Ok(());
                }
                if !this.is_bad(last) {
                    return Err(last);
                }
            }
            error = Some(last);
            unreadable |= mask_of(offset, count);
            Ok(())
        })?;
        let entry = this.entries.get(part.unit);
        let in_slot = entry.map_or(0, |e| e.mask);
        let Some(error) = error else {
            if marginal && part.bits & !in_slot != 0 {
                Self::relocate_later(this, part.unit);
            }
            return Ok(());
        };
        // Without a retry it is not known which blocks are bad.
        if retries > 0 {
            let known = (unreadable & in_slot == 0 || this.slot_unreadable(part.unit, unreadable))
                && (unreadable & !in_slot == 0 || Self::note_unreadable(this, part.unit));
            if known {
                return Err(Status::MEDIUM);
            }
        }
        Err(error)
    }

    /// Reads one block of `unit` from where it is: looked up each time, as it may move.
    fn read_block(
        &self,
        bio: &DeferredBio<'_>,
        unit: Unit,
        skip: u32,
        offset: u32,
        count: u32,
    ) -> Status {
        let bits = mask_of(offset, count);
        // The slot stays the unit's while we are in the section.
        self.sections.within(|| match self.entries.get(unit) {
            Some(e) if e.mask & bits == bits => {
                let sector = self.slot_sector(e.slot, offset);
                bio.transfer(self.store.spare(), sector, skip, count, false)
            }
            Some(e) if e.lost & bits != 0 => Status::MEDIUM,
            _ => {
                let sector = self.main_sector(unit, offset);
                let status = bio.transfer(&self.main, sector, skip, count, false);
                if status.is_ok() {
                    self.vitals.worked(bio.sector() + u64::from(skip));
                }
                status
            }
        })
    }

    /// Makes a pending entry for `unit` unless it has one, to be committed lazily.
    ///
    /// `false`, and none is made: main does not answer.
    fn note_unreadable(this: ArcBorrow<'_, Self>, unit: Unit) -> bool {
        if !this.writable || this.entries.get(unit).is_some() {
            return true;
        }
        if !this.main_answers(unit) {
            return false;
        }
        let _guard = this.units.lock(unit);
        if this.entries.get(unit).is_some() {
            return true;
        }
        let Some(slot) = this.new_slot() else {
            return true;
        };
        let entry = Entry::new(unit, slot, 0);
        this.entries.set(unit, Some(&entry));
        this.report_entry(&entry, "pending");
        Self::commit_lazily(this, unit);
        true
    }

    // ---- Writes

    /// Writes `part`: to main what main takes, to the unit's slot what it does not, and all of it there
    /// if the unit has one.
    fn write_part(&self, bio: &DeferredBio<'_>, part: Part) -> Result<(), Status> {
        let _guard = self.units.lock(part.unit);
        if let Some(entry) = self.entries.get(part.unit) {
            // A bio that was never submitted has no error of main's to give.
            let error = bio.status().check().err().unwrap_or(Status::MEDIUM);
            return self.write_to_slot(bio, part, entry, error);
        }
        let (mut bits, mut error) = (0, Status::IOERR);
        self.each_block(part, |skip, offset, count| {
            let sector = self.main_sector(part.unit, offset);
            let status = bio.transfer(&self.main, sector, skip, count, self.may_lack_fua());
            if status.is_ok() {
                self.vitals.worked(bio.sector() + u64::from(skip));
            } else {
                if !self.is_bad(status) {
                    return Err(status);
                }
                bits |= mask_of(offset, count);
                error = status;
            }
            Ok(())
        })?;
        if bits == 0 {
            return Ok(());
        }
        if !self.main_answers(part.unit) {
            return Err(error);
        }
        self.write_to_new_slot(bio, part, bits, error)
    }

    /// Writes the sectors `bits` of `part` to a new slot and makes an entry that says so: spare data
    /// first, then the commit, then what `map` sees. Fails with `error` if there is no slot or no commit.
    fn write_to_new_slot(
        &self,
        bio: &DeferredBio<'_>,
        part: Part,
        bits: u64,
        error: Status,
    ) -> Result<(), Status> {
        loop {
            let slot = self.new_slot().ok_or(error)?;
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
        error: Status,
    ) -> Result<(), Status> {
        match self.write_runs(bio, part, part.bits, old.slot) {
            Ok(()) => {
                let new = Entry {
                    mask: old.mask | part.bits,
                    lost: old.lost & !part.bits,
                    held: false,
                    ..old
                };
                // If the table says so already, there is nothing to commit.
                let done = old == new || self.establish(Some(old), &new, old.held, Cause::Write);
                if done {
                    Ok(())
                } else {
                    Err(error)
                }
            }
            Err(status) if self.is_bad(status) => {
                let write = |slot| self.write_runs(bio, part, part.bits, slot);
                if self.move_slot(old, part.bits, write) {
                    return Ok(());
                }
                if old.mask | old.lost == 0 && self.retire(old.slot) {
                    // No slot is free beside it, but nothing has to move either.
                    self.entries.set(part.unit, None);
                    return self.write_to_new_slot(bio, part, part.bits, error);
                }
                Err(error)
            }
            Err(status) => Err(status),
        }
    }

    /// A free slot, if there is one and a commit is likely to succeed. May sleep.
    pub(super) fn new_slot(&self) -> Option<Slot> {
        if !self.store.is_ready() {
            return None;
        }
        self.store.with_slots(|s| s.allocate())
    }

    /// As [`Remap::new_slot`], with its record in the same table block as that of `slot`.
    pub(super) fn new_slot_beside(&self, slot: Slot) -> Option<Slot> {
        if !self.store.is_ready() {
            return None;
        }
        self.store.with_slots(|s| s.allocate_beside(slot))
    }

    /// Writes the sectors `bits` of `part` to `slot`, run by run.
    fn write_runs(
        &self,
        bio: &DeferredBio<'_>,
        part: Part,
        bits: u64,
        slot: Slot,
    ) -> Result<(), Status> {
        let mut left = bits;
        while left != 0 {
            let offset = left.trailing_zeros();
            let count = (left >> offset).trailing_ones();
            let skip = part.skip + (offset - part.offset());
            let sector = self.slot_sector(slot, offset);
            bio.transfer(self.store.spare(), sector, skip, count, self.may_lack_fua())
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
            let _ = self.lazy.lock().push_within_capacity(new.unit);
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
