// SPDX-License-Identifier: GPL-2.0

//! Changes of the table: records, many at a time, and whole blocks of them.

use super::{
    as_block, as_block_mut, flush::Kept, Disk, Filling, Progress, Request, Store, BLOCK,
    MAX_REQUESTS,
};
use crate::dm::{self, BlkStatus, Durability};
use crate::engine::{
    format::{self, Block, Update},
    geometry::MAX_COPIES,
    group::{only, Set},
    Slot,
};
use kernel::{
    prelude::*,
    sync::atomic::Relaxed,
    time::{Delta, Instant, Monotonic},
};

/// Time that failures may take before no more is asked, in one go.
const PATIENCE: Delta = Delta::from_secs(1);

/// For requests of one kind, each of which may take half a minute to fail.
struct Patience(Delta);

impl Patience {
    const fn new() -> Self {
        Self(PATIENCE)
    }

    /// Whether it is over.
    fn is_over(&self) -> bool {
        self.0.is_negative()
    }

    /// Does `request`. Fails at once if it is over.
    fn ask<T>(&mut self, request: impl FnOnce() -> Result<T, BlkStatus>) -> Result<T, BlkStatus> {
        if self.is_over() {
            return Err(BlkStatus::IOERR);
        }
        let start = Instant::<Monotonic>::now();
        let done = request();
        if done.is_err() {
            self.0 -= start.elapsed();
        }
        done
    }
}

/// What came of writing a group to a replica.
struct Replica {
    /// The blocks that it was given in this turn, and those that it did not take, in any.
    given: Set,
    failed: Set,
    /// The first error.
    result: Result<(), BlkStatus>,
    patience: Patience,
}

impl Replica {
    const fn new() -> Self {
        Self {
            given: 0,
            failed: 0,
            result: Ok(()),
            patience: Patience::new(),
        }
    }

    /// It was given the block of one place.
    fn note(&mut self, place: Set, done: Result<(), BlkStatus>) {
        self.given |= place;
        self.result = self.result.and(done);
        if done.is_err() {
            self.failed |= place;
        }
    }

    /// The turn is over, and what was written in it is durable, or not. Returns what is.
    fn end_turn(&mut self, durable: Result<(), BlkStatus>) -> Set {
        let given = core::mem::take(&mut self.given);
        if given != 0 && durable.is_err() {
            self.failed |= given;
            self.result = self.result.and(durable);
        }
        given & !self.failed
    }
}

impl Store<'_> {
    /// Whether commits are likely to succeed: nothing is left that could not be written. May sleep.
    ///
    /// To be asked before a new slot gets data. See [`Self::commit`].
    pub(in super::super) fn is_ready(&self) -> bool {
        !self.is_degraded() || self.flush()
    }

    /// Makes `updates` (at most [`MAX_UPDATES`]) durable, which speak of no data that were not durable before; those of one table
    /// block in one step. May sleep.
    ///
    /// `false`: they are not, as far as is known. A replica may have them all the same, until the block
    /// is written again: a slot that they speak of must not be given out before, for anything else.
    pub(in super::super) fn commit(&self, updates: &[Update]) -> bool {
        self.commit_data(updates, None)
    }

    /// As [`Self::commit`], and before that makes data durable that were put in slots.
    ///
    /// `false` as well, if a flush failed since then: they may be gone ([`Self::once_more`]).
    pub(in super::super) fn commit_data(
        &self,
        updates: &[Update],
        filling: Option<Filling>,
    ) -> bool {
        let tickets = {
            let mut requests = self.requests.lock();
            while requests.list.len() + updates.len() > MAX_REQUESTS {
                self.room.wait(&mut requests);
            }
            requests.callers += 1;
            self.arrived.notify_all();
            let first = requests.last_ticket + 1;
            for update in updates {
                requests.last_ticket += 1;
                let request = Request {
                    ticket: requests.last_ticket,
                    update: *update,
                    filling,
                    progress: Progress::Waiting,
                };
                // There is room, as was made sure.
                let _ = requests.list.push_within_capacity(request);
            }
            first..=requests.last_ticket
        };
        let mut disk = self.disk.lock();
        if self.has_waiting(|r| tickets.contains(&r.ticket)) {
            self.flush_with(&mut disk);
        }
        drop(disk);
        let mut requests = self.requests.lock();
        // Whoever held `disk` before us, or we, wrote all that was on the list by then.
        let mut done = 0;
        requests.list.retain(|r| {
            let ours = tickets.contains(&r.ticket);
            done += usize::from(ours && r.progress == Progress::Done(true));
            !ours
        });
        requests.callers -= 1;
        self.room.notify_all();
        done == updates.len()
    }

    /// Makes `first` durable with its data, and then `then`, in another table block: if that cannot be written now, it is before
    /// anything else is. May sleep.
    ///
    /// `false`: `first` is not durable, as far as is known, and `then` is not made.
    pub(in super::super) fn commit_then(
        &self,
        first: Update,
        filling: Filling,
        then: Update,
    ) -> bool {
        if !self.commit_data(&[first], Some(filling)) {
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

    /// Writes what waits, and blocks that could not be written before. May sleep.
    ///
    /// Returns whether nothing is left to be written.
    pub(in super::super) fn flush(&self) -> bool {
        self.flush_with(&mut self.disk.lock())
    }

    /// Whether requests of this kind are on the list that nobody has begun to write.
    fn has_waiting(&self, is_meant: impl Fn(&Request) -> bool) -> bool {
        let requests = self.requests.lock();
        let mut waiting = requests.list.iter().filter(|r| r.is_waiting());
        waiting.any(is_meant)
    }

    /// As [`Self::flush`].
    fn flush_with(&self, disk: &mut Disk) -> bool {
        let mut batch = core::mem::take(&mut disk.batch);
        let mut requests = self.requests.lock();
        self.gather(&mut requests);
        let mut kept = Kept::new(self);
        for request in requests.list.iter_mut().filter(|r| r.is_waiting()) {
            if request.filling.is_none_or(|filling| kept.add(filling)) {
                request.progress = Progress::Writing;
                let _ = batch.push_within_capacity(request.update);
            } else {
                request.progress = Progress::Done(false);
            }
        }
        drop(requests);
        let block_of = |update: &Update| self.geometry.record_of(update.slot).0;
        // What is stuck, or owed, is not in one group with anything else: a cut may leave any part of a group.
        let mut is_ready = disk.places.stuck() == 0;
        if !is_ready {
            disk.places.begin_with_stuck();
            is_ready = self.write_group(disk, |_, _| ());
        }
        while is_ready && !disk.owed.is_empty() {
            disk.places.begin();
            for update in &disk.owed {
                let _ = disk.places.add(block_of(update));
            }
            is_ready = self.write_group(disk, |_, _| ());
        }
        let mut goes_on = is_ready && (batch.is_empty() || self.commit_flush(kept, disk));
        while !batch.is_empty() {
            disk.places.begin();
            if goes_on {
                for update in &batch {
                    let _ = disk.places.add(block_of(update));
                }
                is_ready = self.write_updates(disk, &batch);
                goes_on = is_ready;
            }
            // Without a group, all of them failed.
            let failed = disk.places.group() == 0;
            let is_over = |update: &Update| failed || disk.places.is_in_group(block_of(update));
            for r in self.requests.lock().list.iter_mut() {
                if r.progress == Progress::Writing && is_over(&r.update) {
                    let stuck = disk.places.is_stuck(block_of(&r.update));
                    r.progress = Progress::Done(!failed && !stuck);
                }
            }
            batch.retain(|update| !is_over(update));
        }
        disk.batch = batch;
        if !is_ready {
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

    /// Makes those of `updates` that belong to the blocks of the group, as [`Self::write_group`].
    fn write_updates(&self, disk: &mut Disk, updates: &[Update]) -> bool {
        let now = dm::unix_seconds();
        self.write_group(disk, |number, block| {
            self.set_records(block, number, updates, now);
        })
    }

    /// Makes those of `updates` that belong to block `number`.
    fn set_records(&self, block: &mut Block, number: u64, updates: &[Update], now: u64) {
        for update in updates {
            let (of, index) = self.geometry.record_of(update.slot);
            if of == number {
                format::set_record(block, index, update, now);
            }
        }
    }

    /// Makes a change to block `number` and writes it to the replicas, if nothing is stuck.
    pub(super) fn change_block(
        &self,
        disk: &mut Disk,
        number: u64,
        change: impl Fn(&mut Block),
    ) -> bool {
        disk.places.begin();
        disk.places.stuck() == 0
            && disk.places.add(number).is_some()
            && self.write_group(disk, |_, block| change(block))
    }

    /// Makes table block `number` a group of its own, and brings its newest valid replica to memory, where it is the one in
    /// the place that is returned.
    pub(super) fn load_block(&self, disk: &mut Disk, number: u64) -> Option<usize> {
        disk.places.begin();
        let place = disk.places.add(number)?;
        self.load_place(disk, place, number).then_some(place)
    }

    /// Has block `number`, whose place is `place`, in memory.
    fn load_place(&self, disk: &mut Disk, place: usize, number: u64) -> bool {
        if disk.places.is_loaded(place) {
            return true;
        }
        for copy in 0..self.geometry.areas().len() {
            let sector = self.sector(self.geometry.table_sector(copy, number));
            let read = self.spare.read(sector, BLOCK, &mut disk.other);
            let other = as_block(disk.other.bytes(), 0).filter(|_| read.is_ok());
            let found = other
                .and_then(|b| format::table_generation(b, &disk.uuid, number, dm::crc32c).ok());
            self.errors.add(u64::from(found.is_none()));
            // One with a lower generation missed a write. One with a higher generation could not be read when the entries
            // were loaded: what it says is not in force, and never will be (`Disk::step`).
            if found == Some(disk.table_block(number).generation) {
                if let Some(block) = disk.blocks.get_mut(place) {
                    core::mem::swap(block, &mut disk.other);
                    disk.places.set_loaded(place);
                    return true;
                }
            }
        }
        false
    }

    /// Makes a change, and what is owed, to the blocks of the group, and writes them to all replicas, one after the other:
    /// all blocks to the first, and when they are durable, all to the next.
    ///
    /// A block that no replica took is stuck from then on, and in memory is as it was but for its generation. Returns whether
    /// nothing is stuck.
    pub(super) fn write_group(&self, disk: &mut Disk, change: impl Fn(u64, &mut Block)) -> bool {
        let group = disk.places.group();
        let (mut wanted, mut at, mut patience) = (0, None, Patience::new());
        while let Some((place, number)) = disk.places.next(group, &mut at) {
            if patience.is_over() {
                // Nothing was tried: it is not stuck for that.
                disk.places.leave(place);
                continue;
            }
            let load = || {
                self.load_place(disk, place, number)
                    .then_some(())
                    .ok_or(BlkStatus::IOERR)
            };
            if patience.ask(load).is_err() {
                continue;
            }
            // Only a forged block comes so far as the last generation, which is not a valid one.
            let next = disk.table_block(number).generation.checked_add(disk.step);
            if let Some(generation) = next.filter(|g| *g != u64::MAX) {
                disk.note(number, |block| block.generation = generation);
                wanted |= only(place);
            }
        }
        let taken = match wanted {
            0 => 0,
            _ => self.write_replicas(disk, wanted, &change),
        };
        disk.places.end(taken);
        let is_ready = disk.places.stuck() == 0;
        self.degraded.store(!is_ready, Relaxed);
        self.commits.add(u64::from(taken != 0));
        is_ready
    }

    /// Writes these of the group. Returns those that a replica took; they are in memory as they are there.
    ///
    /// What one replica of a block got is made durable before the next one is begun. Those that
    /// missed a block's last write get it first: so a cut never tears the only replica that has all that was acknowledged.
    fn write_replicas(
        &self,
        disk: &mut Disk,
        wanted: Set,
        change: &impl Fn(u64, &mut Block),
    ) -> Set {
        let copies = self.geometry.areas().len();
        let flushes = !self.is_through();
        let now = dm::unix_seconds();
        let (mut taken, mut composed) = (0, None);
        let mut replicas = [const { Replica::new() }; MAX_COPIES as usize];
        // Whether all is durable that was written in the turns before this one.
        let mut before = Ok(());
        for turn in 0..copies {
            // Nothing but one block may be in the spare's cache.
            let is_last = wanted.is_power_of_two() && turn + 1 == copies;
            let durability = match (flushes, is_last) {
                (false, _) => Durability::DurableBehind,
                (true, true) => Durability::Durable,
                (true, false) => Durability::Cached,
            };
            before = before.or_else(|_| self.flush_cache(disk));
            let kept = Kept::new(self);
            let mut at = None;
            while let Some((place, number)) = disk.places.next(wanted, &mut at) {
                let copy = self.replica_at(turn, disk.table_block(number).missed);
                let Some(replica) = replicas.get_mut(copy) else {
                    continue;
                };
                let write = || {
                    if composed.replace(place) != Some(place) {
                        self.compose(disk, place, number, now, change);
                    }
                    let sector = self.sector(self.geometry.table_sector(copy, number));
                    self.spare.write(sector, BLOCK, &mut disk.other, durability)
                };
                let done = before.and_then(|()| replica.patience.ask(write));
                replica.note(only(place), done);
            }
            if flushes && !is_last {
                before = before.and_then(|()| self.flush_kept(kept, disk));
            }
            for replica in &mut replicas {
                taken |= replica.end_turn(before);
            }
        }
        for (copy, replica) in replicas.iter().take(copies).enumerate() {
            self.errors.add(replica.failed.count_ones().into());
            self.note_replica(&mut disk.failing, copy, replica.result);
        }
        let mut at = None;
        while let Some((place, number)) = disk.places.next(taken, &mut at) {
            if composed.take() != Some(place) {
                self.compose(disk, place, number, now, change);
            }
            if let Some(block) = disk.blocks.get_mut(place) {
                core::mem::swap(block, &mut disk.other);
            }
            disk.note(number, |block| {
                for (copy, replica) in replicas.iter().enumerate() {
                    block.set_missed(copy, replica.failed & only(place) != 0);
                }
            });
        }
        let places = &disk.places;
        disk.owed.retain(|update| {
            let place = places.find(self.geometry.record_of(update.slot).0);
            place.is_none_or(|place| taken & only(place) == 0)
        });
        taken
    }

    /// The replica whose turn this is, of a block whose last write these replicas missed: one bit each.
    fn replica_at(&self, turn: usize, missed: u8) -> usize {
        let copies = 0..self.geometry.areas().len();
        let has_missed = |copy: &usize| missed & (1 << copy) != 0;
        let late = copies.clone().filter(has_missed);
        let others = copies.filter(|copy| !has_missed(copy));
        Iterator::chain(late, others).nth(turn).unwrap_or(0)
    }

    /// Makes `disk.other` block `number`, which is in `place`, with what is owed and a change.
    fn compose(
        &self,
        disk: &mut Disk,
        place: usize,
        number: u64,
        now: u64,
        change: &impl Fn(u64, &mut Block),
    ) {
        let generation = disk.table_block(number).generation;
        let old = disk.blocks.get(place).and_then(|b| as_block(b.bytes(), 0));
        let new = as_block_mut(disk.other.bytes_mut(), 0);
        if let (Some(old), Some(new)) = (old, new) {
            *new = *old;
            self.set_records(new, number, &disk.owed, now);
            change(number, new);
            format::seal_table_block(new, generation, dm::crc32c);
        }
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
            Err(status) if !failed => {
                *failing |= bit;
                pr_warn!(
                    "{}: metadata replica {} cannot be written: {:?}\n",
                    self.name(),
                    copy,
                    status
                );
            }
            Err(_) => (),
        }
    }
}
