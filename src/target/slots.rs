// SPDX-License-Identifier: GPL-2.0

//! Slots for units, and the records that say so.

use super::{store::Filling, Remap};
use crate::dm;
use crate::engine::{
    entries::Entry,
    format::{Cause, State, Update},
    Slot,
};
use kernel::prelude::*;

impl Remap<'_> {
    /// A free slot in the part of the table that is in use, if a commit is likely to succeed. Does not wait for the spare.
    pub(super) fn slot_at_hand(&self) -> Option<Slot> {
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

    /// Commits `new`, whose slot has its data by `filling`, and shows it to `map`. The caller has the unit's lock.
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
        filling: Filling,
    ) -> bool {
        let update = self.update_of(new, cause);
        let done = self.store.commit_data(&[update], Some(filling));
        let pending = Entry {
            yields: new.yields,
            ..Entry::new(new.unit, new.slot, 0)
        };
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
