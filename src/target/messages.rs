// SPDX-License-Identifier: GPL-2.0

//! `dmsetup message`.

use super::{relocate::Restored, store::MAX_UPDATES, Remap};
use crate::dm::{Args, TextWriter};
use crate::engine::{
    entries::Entry,
    format::Cause,
    message::{Message, Range, HELP},
    Unit,
};
use kernel::{prelude::*, sync::atomic::Acquire};

impl Remap<'_> {
    /// Does what a message says, printing its result to `out`. May sleep.
    pub(super) fn carry_out(&self, args: &Args, out: &mut TextWriter<'_>) -> Result {
        let words = args.words()?;
        let message = Message::parse(&words, self.ti.sectors()).map_err(|why| {
            self.complain(why.to_str().unwrap_or("?"));
            EINVAL
        })?;
        if !self.is_loaded() && message != Message::Help {
            self.complain("the device was never resumed");
            return Err(EBUSY);
        }
        let changes = matches!(
            message,
            Message::Remap(_)
                | Message::Mark(_)
                | Message::Restore(_)
                | Message::Forget(_)
                | Message::Check
        );
        if changes && !self.writable {
            self.complain("the table is read-only");
            return Err(EROFS);
        }
        let done = match message {
            Message::Help => {
                write!(out, "{HELP}");
                Ok(())
            }
            Message::Query { sector } => {
                let unit = self.geometry.unit_of(sector);
                self.print(out, unit, self.entries.get(unit).as_ref());
                Ok(())
            }
            Message::List { from, max } => {
                self.list(from, max, out);
                Ok(())
            }
            Message::Sync => {
                if self.sync_all() && self.store.flush() {
                    Ok(())
                } else {
                    Err(EIO)
                }
            }
            Message::Remap(range) => self.remap_range(range, out),
            Message::Mark(range) => self.mark_range(range, out),
            Message::Restore(range) => self.restore_range(range, out),
            Message::Forget(range) => self.forget_range(range, out),
            Message::Check => self.check(out),
            Message::Set(setting) => {
                self.settings.set(setting);
                Ok(())
            }
            Message::Reset => {
                self.vitals.rearm();
                self.counters.clear();
                self.store.commits.clear();
                self.store.errors.clear();
                Ok(())
            }
        };
        self.report_mode();
        done
    }

    fn complain(&self, why: &str) {
        pr_warn!("{}: message: {}\n", self.name(), why);
    }

    /// Whether a message that takes its time is to end: the administrator interrupts it, wants to suspend the device, or,
    /// if the message began while it was suspended, gives it another table; both wait for messages.
    fn is_interrupted(&self, was_suspended: bool) -> bool {
        let interrupted = !was_suspended && self.suspending.load(Acquire)
            || self.claim.is_superseded()
            || kernel::current!().signal_pending();
        if interrupted {
            self.complain("interrupted, what is done is done");
        }
        interrupted
    }

    /// Prints `<unit_start> <state> <slot or -> <mask or ->`.
    fn print(&self, out: &mut TextWriter<'_>, unit: Unit, entry: Option<&Entry>) {
        let start = self.geometry.unit_start(unit);
        match entry {
            None => write!(out, "{start} healthy - -"),
            Some(Entry { slot, mask, .. }) => {
                let state = match *mask {
                    0 => "pending",
                    m if m == self.geometry.unit_mask(unit) => "relocated",
                    _ => "partial",
                };
                write!(out, "{start} {state} {} {mask:x}", slot.0)
            }
        };
    }

    fn list(&self, from: u64, max: u64, out: &mut TextWriter<'_>) {
        let mut left = max;
        self.entries.visit(self.geometry.unit_of(from), |entry| {
            if left == 0 || out.is_full() {
                return false;
            }
            left -= 1;
            if !out.is_empty() {
                writeln!(out);
            }
            self.print(out, entry.unit, Some(&entry));
            true
        });
    }

    fn units_of(&self, range: Range) -> (Unit, Unit) {
        let last = range.sector + (range.count - 1);
        (
            self.geometry.unit_of(range.sector),
            self.geometry.unit_of(last),
        )
    }

    fn remap_range(&self, range: Range, out: &mut TextWriter<'_>) -> Result {
        let was_suspended = self.suspending.load(Acquire);
        let (first, last) = self.units_of(range);
        let (mut relocated, mut incomplete) = (0u64, 0u64);
        for unit in (first.0..=last.0).map(Unit) {
            if self.is_interrupted(was_suspended) {
                return Err(EINTR);
            }
            let mask = self.relocate(unit, Cause::Message)?;
            relocated += 1;
            incomplete += u64::from(mask != self.geometry.unit_mask(unit));
        }
        write!(
            out,
            "{relocated} units relocated, {incomplete} of them not readable as a whole"
        );
        Ok(())
    }

    fn mark_range(&self, range: Range, out: &mut TextWriter<'_>) -> Result {
        let was_suspended = self.suspending.load(Acquire);
        let (first, last) = self.units_of(range);
        let mut new = KVec::with_capacity(MAX_UPDATES, GFP_KERNEL)?;
        let mut updates = KVec::with_capacity(MAX_UPDATES, GFP_KERNEL)?;
        let mut marked = 0;
        let mut from = first;
        while from <= last {
            if self.is_interrupted(was_suspended) {
                return Err(EINTR);
            }
            let to = Unit(from.0.saturating_add(MAX_UPDATES as u64 - 1)).min(last);
            let _guard = self.units.lock_range(from, to);
            new.clear();
            updates.clear();
            let mut full = false;
            for unit in (from.0..=to.0).map(Unit) {
                let known = self.entries.get(unit);
                if let Some(entry) = known.filter(|e| e.yields && e.mask == 0) {
                    // From now on it stays.
                    let entry = Entry {
                        yields: false,
                        ..entry
                    };
                    let _ = new.push_within_capacity(entry);
                    let _ = updates.push_within_capacity(self.update_of(&entry, Cause::Import));
                }
                if known.is_some() {
                    continue;
                }
                let Some(slot) = self.new_slot() else {
                    full = true;
                    break;
                };
                let entry = Entry::new(unit, slot, 0);
                let _ = new.push_within_capacity(entry);
                let _ = updates.push_within_capacity(self.update_of(&entry, Cause::Import));
            }
            let committed = self.store.commit(&updates);
            for entry in &new {
                self.entries.add(entry);
                if !committed {
                    // Some of them may be, and then the slots are these units': so be it, once the table can be
                    // written again.
                    self.commit_later(entry.unit);
                }
            }
            if let Some(entry) = new.last() {
                self.report_entry(entry, "pending");
            }
            if !committed {
                return Err(EIO);
            }
            marked += new.len();
            if full {
                self.complain("no free slot is left");
                return Err(ENOSPC);
            }
            from = Unit(to.0 + 1);
        }
        write!(out, "{marked} units marked");
        Ok(())
    }

    /// The first unit from `from` on that has an entry.
    fn next_entry(&self, from: Unit) -> Option<Unit> {
        let mut found = None;
        self.entries.visit(from, |e| {
            found = Some(e.unit);
            false
        });
        found
    }

    fn restore_range(&self, range: Range, out: &mut TextWriter<'_>) -> Result {
        let was_suspended = self.suspending.load(Acquire);
        let (first, last) = self.units_of(range);
        let (mut restored, mut stay) = (0u64, 0u64);
        let mut next = first;
        let mut done = Ok(());
        loop {
            let Some(unit) = self.next_entry(next).filter(|unit| *unit <= last) else {
                break;
            };
            if self.is_interrupted(was_suspended) {
                done = Err(EINTR);
                break;
            }
            match self.restore(unit) {
                Restored::Healthy => (),
                Restored::Freed => restored += 1,
                Restored::Stays => stay += 1,
            }
            next = Unit(unit.0 + 1);
        }
        write!(out, "{restored} units restored, {stay} units stay");
        done
    }

    fn forget_range(&self, range: Range, out: &mut TextWriter<'_>) -> Result {
        let was_suspended = self.suspending.load(Acquire);
        let (first, last) = self.units_of(range);
        let mut forgotten = 0;
        let mut next = self.next_entry(first);
        while let Some(from) = next.filter(|unit| *unit <= last) {
            if self.is_interrupted(was_suspended) {
                return Err(EINTR);
            }
            let to = Unit(from.0.saturating_add(MAX_UPDATES as u64 - 1)).min(last);
            forgotten += self.forget(from, to).ok_or(EIO)?;
            next = self.next_entry(Unit(to.0.saturating_add(1)));
        }
        write!(out, "{forgotten} units forgotten");
        Ok(())
    }

    fn check(&self, out: &mut TextWriter<'_>) -> Result {
        let was_suspended = self.suspending.load(Acquire);
        let found = self.store.check(
            &self.entries,
            || self.is_interrupted(was_suspended),
            |unit| {
                let _guard = self.units.lock(unit);
                let entry = self.entries.get(unit);
                // Under the unit's lock nothing is on its way to the table that memory does not have.
                entry.is_some_and(|e| {
                    !self.store.has_record(&e)
                        && self.store.commit(&[self.update_of(&e, Cause::Message)])
                })
            },
        )?;
        write!(
            out,
            "{} blocks: {} stale, {} damaged, {} repaired",
            found.blocks, found.stale, found.damaged, found.repaired
        );
        Ok(())
    }
}
