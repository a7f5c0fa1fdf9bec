// SPDX-License-Identifier: GPL-2.0

//! Where bios go, and what becomes of them when they are back: nothing here sleeps.

use super::{cache::Flush, entries::Look, version::Stamp, EndBio, Ended, MapBio, Mapped, Remap};
use crate::dm::{rcu_read_lock, read_relaxed, BlkStatus, Op};
use crate::engine::{
    args::BadOn,
    route::{first_run, Cut, Place},
    Slot,
};
use kernel::sync::atomic::Release;

/// Longest write or write-zeroes that is sent on in one piece if it does not lie in one group of units: if it fails, all of it
/// may go to slots.
const LONGEST_WRITE: u32 = (4 << 20) >> 9;

/// The highest number of an operation that goes where an entry says without a closer look: of writes, or of reads.
pub(super) fn plain_ops(writes_too: bool) -> u32 {
    (if writes_too { Op::Write } else { Op::Read }).number()
}

impl Remap<'_> {
    /// Whether `status` says that the sectors are bad, rather than the way to them.
    pub(super) fn is_bad(&self, status: BlkStatus) -> bool {
        match self.settings.bad_on() {
            BadOn::Media => status == BlkStatus::MEDIUM,
            BadOn::Io => {
                matches!(
                    status,
                    BlkStatus::MEDIUM | BlkStatus::IOERR | BlkStatus::TARGET
                )
            }
        }
    }

    /// Sends a bio on its way that may meet an entry. `stamp` is older than what it finds.
    ///
    /// If `QUICK`, that is tried first in which most bios need few instructions.
    // These arguments cost the healthy path nothing.
    #[inline(never)]
    pub(super) fn map_filtered<'a, const QUICK: bool>(bio: MapBio<'a>, stamp: Stamp) -> Mapped<'a> {
        bio.with_data(|this, bio| this.map_known::<QUICK>(bio, stamp))
    }

    #[inline(always)]
    fn map_known<'a, const QUICK: bool>(&self, bio: MapBio<'a>, stamp: Stamp) -> Mapped<'a> {
        // Both calls come first: what is found out then stays in registers until the bio has it.
        let guard = rcu_read_lock();
        let bio = bio.ready();
        if bio.op_number() <= read_relaxed(&self.plain_ops) {
            match self
                .entries
                .look::<QUICK>(bio.sector(), bio.sectors(), &guard)
            {
                Look::Healthy => return bio.remap_linear(&self.on_main, stamp.cookie()),
                Look::InSlot(slot, sector) => {
                    let is_write = bio.op_is_write();
                    self.counters.redirected.add_one(is_write);
                    let (spare, stamp) = (self.spare(), stamp.aside_if(is_write));
                    let sector = spare.sector(sector).number();
                    return bio.remap_with(spare.device(), sector, stamp.cookie(), slot);
                }
                Look::Undecided => (),
            }
        }
        drop(guard);
        let bio = bio.into_bio();
        if QUICK {
            Self::map_filtered::<false>(bio, stamp)
        } else {
            self.map_closely(bio, stamp)
        }
    }

    /// Sends a bio on its way that is a flush or may meet an entry. `stamp` is older than what it finds.
    #[cold]
    #[inline(never)]
    fn map_closely<'a>(&self, mut bio: MapBio<'a>, stamp: Stamp) -> Mapped<'a> {
        let (sector, mut count) = (bio.sector(), bio.sectors());
        if count == 0 {
            return self.map_flush(bio, stamp);
        }
        let op = bio.op();
        let is_write = matches!(op, Op::Write | Op::WriteZeroes);
        if is_write && bio.is_fua() && self.cache.has_failed() {
            return self.put_off(bio);
        }
        if is_write && count > LONGEST_WRITE {
            if !bio.accept_partial(LONGEST_WRITE) {
                return bio.complete(BlkStatus::IOERR);
            }
            count = LONGEST_WRITE;
        }
        let guard = rcu_read_lock();
        let Some(entry) = self.entries.first(sector, count, &guard) else {
            drop(guard);
            return self.map_to_main(bio, is_write, stamp);
        };
        if op == Op::Read {
            // What lies side by side on main goes there in one piece.
            let pending = self.settings.pending_reads();
            let on_main = self.entries.on_main(sector, count, pending, &guard);
            if on_main > 0 {
                if !bio.accept_partial(on_main) {
                    return bio.complete(BlkStatus::IOERR);
                }
                return bio.remap_linear(&self.on_main, stamp.cookie());
            }
        }
        let cut = match op {
            Op::Read => Cut::AtMask,
            _ => Cut::AtUnit,
        };
        drop(guard);
        let most = match op {
            Op::WriteZeroes => self.spare().device().write_zeroes_sectors(),
            _ => u32::MAX,
        };
        let in_slot =
            |sector, count| match self.entries.look::<false>(sector, count, &rcu_read_lock()) {
                Look::InSlot(_, at) => Some(at),
                _ => None,
            };
        let (length, place) = first_run(&self.geometry, sector, count, entry, cut, most, in_slot);
        if !bio.accept_partial(length) {
            return bio.complete(BlkStatus::IOERR);
        }
        let goes_there = match op {
            Op::Read => true,
            // If the spare cannot write zeroes, it is given them, in process context.
            Op::Write | Op::WriteZeroes => !entry.held && self.writable && length <= most,
            _ => false,
        };
        if let (true, Place::Relocated { slot, sector }) = (goes_there, place) {
            self.counters.redirected.add_one(is_write);
            let (spare, cookie) = (self.spare(), stamp.aside_if(is_write).cookie());
            return bio.remap_with(spare.device(), spare.sector(sector).number(), cookie, slot);
        }
        match (op, place) {
            (_, Place::Healthy) => self.map_to_main(bio, is_write, stamp),
            // A discard is a hint. The slot stays the unit's: nothing may be discarded there.
            (Op::Discard, _) => bio.complete(BlkStatus::OK),
            // The slot that had them may answer again.
            (Op::Read, Place::Lost) if self.asks_again() => self.put_off(bio),
            // It is known that main cannot.
            (Op::Read, _) => bio.complete(BlkStatus::MEDIUM),
            // The block layer only warns of a write to a device that is read-only.
            (Op::Write | Op::WriteZeroes, _) if !self.writable => bio.complete(BlkStatus::IOERR),
            // New mask bits, or a unit on the move: in process context.
            (Op::Write | Op::WriteZeroes, _) => {
                if !bio.is_nowait() {
                    self.counters.redirected.add_one(true);
                }
                self.put_off(bio)
            }
            (Op::Flush | Op::Other, _) => bio.complete(BlkStatus::NOTSUPP),
        }
    }

    /// Sends a bio to main that meets no entry, or main's sectors of one.
    fn map_to_main<'a>(&self, bio: MapBio<'a>, is_write: bool, stamp: Stamp) -> Mapped<'a> {
        if is_write && self.vitals.is_watching() {
            return bio.remap_linear(&self.on_main, stamp.watched().cookie());
        }
        bio.remap_linear(&self.on_main, stamp.cookie())
    }

    /// Has a bio processed, if its submitter can wait.
    fn put_off<'a>(&self, bio: MapBio<'a>) -> Mapped<'a> {
        if bio.is_nowait() {
            return bio.complete(BlkStatus::AGAIN);
        }
        if bio.op() != Op::Read {
            self.store.comes();
        }
        bio.defer()
    }

    /// Sends one of the two copies of a flush on its way: to main, or to the spare if that has something to make durable.
    fn map_flush<'a>(&self, bio: MapBio<'a>, stamp: Stamp) -> Mapped<'a> {
        if bio.target_bio_nr() == 0 {
            return bio.remap_linear(&self.on_main, stamp.cookie());
        }
        match self.cache.begin() {
            None => bio.complete(BlkStatus::OK),
            Some(Flush(failures)) => {
                let cookie = Stamp::marked(failures).watched().cookie();
                bio.remap_with(self.spare().device(), self.spare().start(), cookie, Slot(0))
            }
        }
    }

    /// One of the two copies of a flush is back.
    fn flush_ended<'a>(&self, bio: EndBio<'a>) -> Ended<'a> {
        if bio.target_bio_nr() != 0 {
            let flush = Flush(Stamp::from_cookie(bio.cookie()).count() as u32);
            // Before anyone hears of it.
            self.spare_flushed(flush, bio.status());
        }
        bio.pass_on()
    }

    /// Flushes the spare. May sleep. `false`: it did not answer.
    pub(super) fn flush_spare(&self) -> bool {
        let Some(flush) = self.cache.begin() else {
            return true;
        };
        let status = self.spare().device().flush().err().unwrap_or(BlkStatus::OK);
        self.spare_flushed(flush, status);
        status.is_ok()
    }

    /// The spare has answered a flush, or failed it. Any context.
    fn spare_flushed(&self, flush: Flush, status: BlkStatus) {
        if !status.is_ok() {
            self.store.flush_failed();
        }
        self.cache.ended(flush, status);
        self.be_careful();
    }

    /// Has `map` look at each bio closely as long as there is a reason, and no longer. Any context.
    pub(super) fn be_careful(&self) {
        loop {
            let is_careful = || self.cache.has_failed() || self.vitals.is_watching();
            let careful = is_careful();
            self.plain_ops
                .store(plain_ops(self.writable && !careful), Release);
            // Fully ordered.
            self.entries.hide(careful);
            // Who changes the reason meanwhile may have been overtaken here.
            if careful == is_careful() {
                return;
            }
        }
    }

    /// Whether the sectors of a write that succeeded are still where it went.
    fn stands(&self, bio: &EndBio<'_>, slot: Option<Slot>) -> bool {
        let stamp = Stamp::from_cookie(bio.cookie()).plain();
        if stamp == self.entries.version.read() {
            return true;
        }
        match slot {
            Some(slot) => self.entries.is_in_slots(bio.sector(), bio.sectors(), slot),
            None => {
                let pending = self.settings.pending_reads();
                self.entries
                    .is_on_main(stamp, bio.sector(), bio.sectors(), pending)
            }
        }
    }

    /// A bio that was sent down is back, and is not settled. Any context.
    #[inline]
    pub(super) fn bio_ended<'a>(&self, bio: EndBio<'a>) -> Ended<'a> {
        let stamp = Stamp::from_cookie(bio.cookie());
        if bio.status().is_ok() {
            if stamp.is_aside() {
                self.cache.landed();
            }
            if !stamp.is_watched() && self.entries.version.read() == stamp.plain() {
                return bio.pass_on();
            }
        }
        self.bio_unsettled(bio)
    }

    #[cold]
    #[inline(never)]
    fn bio_unsettled<'a>(&self, bio: EndBio<'a>) -> Ended<'a> {
        if bio.sectors() == 0 {
            return self.flush_ended(bio);
        }
        let slot = bio.private();
        let op = bio.op();
        let is_write = matches!(op, Op::Write | Op::WriteZeroes);
        let repeat = if bio.status().is_ok() {
            if is_write && slot.is_none() && self.vitals.is_watching() {
                self.vitals.took_write();
                self.be_careful();
            }
            is_write && !self.stands(&bio, slot)
        } else {
            let is_bad = self.is_bad(bio.status()) && (slot.is_some() || !self.is_tripped());
            if op == Op::Discard && is_bad {
                // A hint that was not taken.
                return bio.complete(BlkStatus::OK);
            }
            // Nobody waits for a readahead; the read that follows is worth the time.
            let is_read = op == Op::Read && !bio.is_readahead();
            (is_read || is_write && self.writable) && is_bad
        };
        if repeat {
            if is_write {
                self.store.comes();
            }
            bio.defer()
        } else {
            bio.pass_on()
        }
    }
}
