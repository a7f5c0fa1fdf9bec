// SPDX-License-Identifier: GPL-2.0

//! Changes of the table: records, many at a time, and whole blocks of them.

use super::{as_block, as_block_mut, Disk, Progress, Request, Store, BLOCK, MAX_REQUESTS};
use crate::dm::{self, BlkStatus, Durability};
use crate::engine::{
    format::{self, Block, Update},
    Slot,
};
use kernel::{prelude::*, sync::atomic::Relaxed};

impl Store<'_> {
    /// Whether commits are likely to succeed: nothing is left that could not be written. May sleep.
    ///
    /// To be asked before a new slot gets data. See [`Self::commit`].
    pub(in super::super) fn is_ready(&self) -> bool {
        !self.is_degraded() || self.flush()
    }

    /// Makes `updates` (at most [`MAX_UPDATES`]) durable; those of one table block in one step. May
    /// sleep. All writes to the spare that completed before are durable too.
    ///
    /// `false`: they are not, as far as is known. A replica may have them all the same, until the block
    /// is written again: a slot that they speak of must not be given out before, for anything else.
    pub(in super::super) fn commit(&self, updates: &[Update]) -> bool {
        let tickets = {
            let mut requests = self.requests.lock();
            while requests.list.len() + updates.len() > MAX_REQUESTS {
                self.room.wait(&mut requests);
            }
            let first = requests.last_ticket + 1;
            for update in updates {
                requests.last_ticket += 1;
                let request = Request {
                    ticket: requests.last_ticket,
                    update: *update,
                    progress: Progress::Waiting,
                };
                // There is room, as was made sure.
                let _ = requests.list.push_within_capacity(request);
            }
            first..=requests.last_ticket
        };
        self.flush();
        let mut requests = self.requests.lock();
        // Whoever held `disk` before us, or we, wrote all that was on the list by then.
        let mut done = 0;
        requests.list.retain(|r| {
            let ours = tickets.contains(&r.ticket);
            done += usize::from(ours && r.progress == Progress::Done(true));
            !ours
        });
        self.room.notify_all();
        done == updates.len()
    }

    /// Makes `first` durable, and then `then`, in another table block: if that cannot be written now, it is before
    /// anything else is. May sleep.
    ///
    /// `false`: `first` is not durable, as far as is known, and `then` is not made.
    pub(in super::super) fn commit_then(&self, first: Update, then: Update) -> bool {
        if !self.commit(&[first]) {
            return false;
        }
        // There is room for as many as there are threads.
        let _ = self.disk.lock().owed.push_within_capacity(then);
        self.flush();
        true
    }

    /// Frees `slot`, of which a commit failed that gave it to a unit, once that is taken back. May sleep.
    pub(in super::super) fn release_later(&self, slot: Slot) {
        // No room: it is free at the next activation.
        let _ = self.waiting.lock().uncommitted.push_within_capacity(slot);
    }

    /// Frees `slot` when no bio can be on its way to it ([`Self::free_restored`]). May sleep.
    pub(in super::super) fn free_when_suspended(&self, slot: Slot) {
        // No memory: it is free at the next activation.
        let _ = self.waiting.lock().restored.push(slot, GFP_KERNEL);
    }

    /// The device is suspended. May sleep.
    pub(in super::super) fn free_restored(&self) {
        let slots = core::mem::replace(&mut self.waiting.lock().restored, KVVec::new());
        self.with_slots(|s| slots.iter().for_each(|slot| s.release(*slot)));
    }

    /// Writes what waits, and a block that could not be written before. May sleep.
    ///
    /// Returns whether nothing is left to be written.
    pub(in super::super) fn flush(&self) -> bool {
        let mut disk = self.disk.lock();
        let mut batch = core::mem::take(&mut disk.batch);
        for request in self.requests.lock().list.iter_mut() {
            if request.progress == Progress::Waiting {
                request.progress = Progress::Writing;
                let _ = batch.push_within_capacity((request.ticket, request.update));
            }
        }
        let block_of = |update: &Update| self.geometry.record_of(update.slot).0;
        if let Some(number) = disk.stuck {
            self.update_block(&mut disk, number, &[]);
        }
        while let Some(number) = disk.owed.first().map(block_of) {
            if disk.stuck.is_some() || !self.update_block(&mut disk, number, &[]) {
                break;
            }
        }
        while let Some(number) = batch.first().map(|(_, update)| block_of(update)) {
            let done = disk.stuck.is_none() && self.update_block(&mut disk, number, &batch);
            let mut requests = self.requests.lock();
            for (ticket, _) in batch
                .iter()
                .filter(|(_, update)| block_of(update) == number)
            {
                if let Some(r) = requests.list.iter_mut().find(|r| r.ticket == *ticket) {
                    r.progress = Progress::Done(done);
                }
            }
            batch.retain(|(_, update)| block_of(update) != number);
        }
        disk.batch = batch;
        if disk.stuck.is_some() {
            return false;
        }
        // Nothing is left on the spare of what was not acknowledged.
        let mut waiting = self.waiting.lock();
        self.with_slots(|s| {
            waiting
                .uncommitted
                .drain_all()
                .for_each(|slot| s.release(slot));
        });
        true
    }

    /// Applies those of `updates` that belong to block `number` and writes it to the replicas.
    pub(super) fn update_block(
        &self,
        disk: &mut Disk,
        number: u64,
        updates: &[(u64, Update)],
    ) -> bool {
        let now = dm::unix_seconds();
        self.change_block(disk, number, |block| {
            for (_, update) in updates {
                let (of, index) = self.geometry.record_of(update.slot);
                if of == number {
                    format::set_record(block, index, update, now);
                }
            }
        })
    }

    /// Makes a change to block `number` and writes it to the replicas.
    pub(super) fn change_block(
        &self,
        disk: &mut Disk,
        number: u64,
        change: impl FnOnce(&mut Block),
    ) -> bool {
        let done = self.load_block(disk, number) && self.write_block(disk, number, change);
        disk.stuck = (!done).then_some(number);
        self.degraded.store(!done, Relaxed);
        self.commits.add(u64::from(done));
        done
    }

    /// Makes `disk.block` the newest valid replica of block `number`.
    pub(super) fn load_block(&self, disk: &mut Disk, number: u64) -> bool {
        if disk.loaded == Some(number) {
            return true;
        }
        if disk.stuck.is_some_and(|stuck| stuck != number) {
            // `block` may have the only good copy of that one.
            return false;
        }
        disk.loaded = None;
        let mut best = None;
        for copy in 0..self.geometry.areas().len() {
            let sector = self.sector(self.geometry.table_sector(copy, number));
            if self.spare.read(sector, BLOCK, &mut disk.other).is_err() {
                self.errors.add(1);
                continue;
            }
            let other = as_block(disk.other.bytes(), 0);
            let Some(generation) = other
                .and_then(|b| format::table_generation(b, &disk.uuid, number, dm::crc32c).ok())
            else {
                self.errors.add(1);
                continue;
            };
            let least = best.unwrap_or(disk.generation(number));
            if generation > least || (generation == least && best.is_none()) {
                best = Some(generation);
                core::mem::swap(&mut disk.block, &mut disk.other);
            }
        }
        if let Some(generation) = best {
            disk.loaded = Some(number);
            disk.set_generation(number, generation);
        }
        best.is_some()
    }

    /// Makes a change, and what is owed, to block `number`, which is loaded, and writes it to all replicas, one after
    /// the other.
    ///
    /// `false`: no replica took it, and the block in memory is as it was but for its generation.
    fn write_block(&self, disk: &mut Disk, number: u64, change: impl FnOnce(&mut Block)) -> bool {
        let step = 1 + u64::from(disk.ahead);
        let next = disk.generation(number).checked_add(step);
        let Some(generation) = next.filter(|g| *g != u64::MAX) else {
            // Only a forged block comes that far, and the last generation is not a valid one.
            return false;
        };
        disk.set_generation(number, generation);
        let (Some(block), Some(before)) = (
            as_block_mut(disk.block.bytes_mut(), 0),
            as_block_mut(disk.other.bytes_mut(), 0),
        ) else {
            return false;
        };
        *before = *block;
        let now = dm::unix_seconds();
        for update in &disk.owed {
            let (of, index) = self.geometry.record_of(update.slot);
            if of == number {
                format::set_record(block, index, update, now);
            }
        }
        change(block);
        format::seal_table_block(block, generation, dm::crc32c);
        let mut written = 0;
        for copy in 0..self.geometry.areas().len() {
            let sector = self.sector(self.geometry.table_sector(copy, number));
            let done = self
                .spare
                .write(sector, BLOCK, &mut disk.block, Durability::Durable);
            written += u32::from(done.is_ok());
            self.note_replica(&mut disk.failing, copy, done);
        }
        if written > 0 {
            let block_of = |update: &Update| self.geometry.record_of(update.slot).0;
            disk.owed.retain(|update| block_of(update) != number);
        } else {
            // It may have reached a medium all the same. The next write of this block, which comes
            // before any other, takes back what was not acknowledged.
            core::mem::swap(&mut disk.block, &mut disk.other);
        }
        written > 0
    }

    /// Replica `copy` was written, or not. The log has the first time, and the end of it, whatever else it has.
    pub(super) fn note_replica(&self, failing: &mut u32, copy: usize, done: Result<(), BlkStatus>) {
        let bit = 1 << copy;
        let failed = *failing & bit != 0;
        match done {
            Ok(()) if failed => {
                *failing &= !bit;
                pr_info!(
                    "{}: metadata replica {} can be written again\n",
                    self.name(),
                    copy
                );
            }
            Ok(()) => (),
            Err(status) => {
                self.errors.add(1);
                if !failed {
                    *failing |= bit;
                    pr_warn!(
                        "{}: metadata replica {} cannot be written: {:?}\n",
                        self.name(),
                        copy,
                        status
                    );
                }
            }
        }
    }
}
