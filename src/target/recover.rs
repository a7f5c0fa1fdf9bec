// SPDX-License-Identifier: GPL-2.0

//! Bios in process context: those that failed, and writes that need new mask bits.

use super::{name_of, Remap};
use crate::dm::{self, DeferredBio, NoIo, Op, Status, TargetInfo};
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
    /// Recovers `bio` or carries out a write that needs new mask bits, and completes it. May sleep.
    pub(super) fn recover(this: ArcBorrow<'_, Self>, ti: &TargetInfo, bio: DeferredBio<'_>) {
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
                Op::Read => Self::read_part(this, ti, &bio, part),
                _ => this.write_part(ti, &bio, part),
            };
            match (bio.op(), done) {
                (_, Ok(())) => (),
                // The rest of a failed read may show more sectors that are bad.
                (Op::Read, Err(status)) if this.is_bad(status) => result = Err(Status::MEDIUM),
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
        this.report_mode(ti);
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

    // ---- Reads

    /// Reads `part` of a failed read again, block by block.
    ///
    /// Fails with a bad status if a block stays unreadable; its unit has an entry then.
    fn read_part(
        this: ArcBorrow<'_, Self>,
        ti: &TargetInfo,
        bio: &DeferredBio<'_>,
        part: Part,
    ) -> Result<(), Status> {
        let mut lost = None;
        this.each_block(part, |skip, offset, count| {
            let mut last = bio.status();
            for _ in 0..this.features.read_retries.unwrap_or(2) {
                // Looked up each time: the block may be relocated in the meantime.
                let bits = mask_of(offset, count);
                let slot = this
                    .entries
                    .get(part.unit)
                    .filter(|e| e.mask & bits == bits);
                last = match slot {
                    Some(entry) => {
                        let sector = this.slot_sector(entry.slot, offset);
                        bio.transfer(this.store.spare(), sector, skip, count)
                    }
                    None => {
                        let sector = this.main_sector(part.unit, offset);
                        bio.transfer(&this.main, sector, skip, count)
                    }
                };
                if last.is_ok() {
                    return Ok(());
                }
                if !this.is_bad(last) {
                    return Err(last);
                }
            }
            lost = Some(last);
            Ok(())
        })?;
        let Some(status) = lost else {
            return Ok(());
        };
        if this.features.read_retries != Some(0) {
            Self::note_unreadable(this, ti, part.unit);
        }
        Err(status)
    }

    /// Makes a pending entry for `unit` unless it has one, to be committed lazily.
    fn note_unreadable(this: ArcBorrow<'_, Self>, ti: &TargetInfo, unit: Unit) {
        if !this.writable {
            return;
        }
        let _guard = this.units.lock(unit);
        if this.entries.get(unit).is_some() {
            return;
        }
        let Some(slot) = this.new_slot() else {
            return;
        };
        let entry = Entry {
            unit,
            slot,
            mask: 0,
        };
        this.entries.set(unit, Some(&entry));
        this.report_entry(ti, &entry);
        Self::commit_lazily(this, unit);
    }

    // ---- Writes

    /// Writes `part`: to main what main takes, to the unit's slot what it does not.
    fn write_part(&self, ti: &TargetInfo, bio: &DeferredBio<'_>, part: Part) -> Result<(), Status> {
        let mut bits = part.bits;
        let mut status = bio.status();
        if self.entries.get(part.unit).is_none() {
            // Without the unit's lock: a drive may take its time to fail.
            bits = 0;
            self.each_block(part, |skip, offset, count| {
                let sector = self.main_sector(part.unit, offset);
                let again = bio.transfer(&self.main, sector, skip, count);
                if !again.is_ok() {
                    if !self.is_bad(again) {
                        return Err(again);
                    }
                    bits |= mask_of(offset, count);
                    status = again;
                }
                Ok(())
            })?;
            if bits == 0 {
                return Ok(());
            }
        }
        if status.is_ok() {
            // Never submitted: there is no error of main's to give.
            status = Status::MEDIUM;
        }
        self.write_to_slot(ti, bio, part, bits, status)
    }

    /// Writes the sectors `bits` of `part` to the unit's slot, a new one if need be, and makes the
    /// entry say so: spare data first, then the commit, then what `map` sees.
    ///
    /// Fails with `error` if there is no slot or no commit; the entry is as it was then.
    fn write_to_slot(
        &self,
        ti: &TargetInfo,
        bio: &DeferredBio<'_>,
        part: Part,
        bits: u64,
        error: Status,
    ) -> Result<(), Status> {
        let _guard = self.units.lock(part.unit);
        let mut old = self.entries.get(part.unit);
        let mask = old.map_or(0, |e| e.mask);
        loop {
            let slot = old.map(|e| e.slot).or_else(|| self.new_slot());
            let slot = slot.ok_or(error)?;
            match self.write_runs(bio, part, bits, slot) {
                Ok(()) => {
                    let entry = Entry {
                        unit: part.unit,
                        slot,
                        mask: mask | bits,
                    };
                    return self.establish(ti, old, &entry, Cause::Write).ok_or(error);
                }
                // Nothing is in the slot yet: another one does as well.
                Err(status) if mask == 0 && self.is_bad(status) && self.retire(slot) => {
                    if old.take().is_some() {
                        self.entries.set(part.unit, None);
                    }
                }
                Err(status) => {
                    if old.is_none() {
                        self.store.with_slots(|s| s.release(slot));
                    }
                    // A slot's error says nothing of the sectors that the bio is for.
                    return Err(if self.is_bad(status) { error } else { status });
                }
            }
        }
    }

    /// A free slot, if there is one and a commit is likely to succeed. May sleep.
    pub(super) fn new_slot(&self) -> Option<Slot> {
        if !self.store.is_ready() {
            return None;
        }
        self.store.with_slots(|s| s.allocate())
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
            bio.transfer(self.store.spare(), sector, skip, count)
                .check()?;
            left &= !mask_of(offset, count);
        }
        Ok(())
    }

    /// Records that the medium of `slot`, which holds no data, failed.
    ///
    /// `false`: that could not be recorded, as when it is the whole spare that fails.
    fn retire(&self, slot: Slot) -> bool {
        let recorded = self.store.commit(Update {
            slot,
            state: State::Bad,
            cause: Cause::Write,
        });
        if recorded {
            self.store.with_slots(|s| s.retire(slot));
        }
        recorded
    }

    /// Makes what the entry of a unit says durable.
    pub(super) fn commit_entry(&self, entry: &Entry, cause: Cause) -> bool {
        self.store.commit(Update {
            slot: entry.slot,
            state: State::Entry {
                unit: entry.unit,
                mask: entry.mask,
            },
            cause,
        })
    }

    /// Commits `entry`, whose slot has its data, and shows it to `map`. The caller has the unit's lock.
    ///
    /// `None`: not committed; `old` stays in force.
    pub(super) fn establish(
        &self,
        ti: &TargetInfo,
        old: Option<Entry>,
        entry: &Entry,
        cause: Cause,
    ) -> Option<()> {
        // The slot has the data already: nothing to say to the table.
        if old == Some(*entry) && entry.mask != 0 {
            return Some(());
        }
        // Not committed: a new slot stays taken until the next activation, as a replica may name it.
        self.commit_entry(entry, cause).then_some(())?;
        self.entries.set(entry.unit, Some(entry));
        if old.is_none_or(|old| old.mask == 0) {
            self.report_entry(ti, entry);
        }
        Some(())
    }

    /// Tells the administrator of a new entry.
    fn report_entry(&self, ti: &TargetInfo, entry: &Entry) {
        if dm::log_allowed() {
            let what = if entry.mask == 0 {
                "pending"
            } else {
                "relocated"
            };
            let sector = self.geometry.unit_start(entry.unit);
            pr_warn!("{}: sector {}: {}\n", name_of(ti), sector, what);
        }
        ti.event();
    }
}
