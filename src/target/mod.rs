// SPDX-License-Identifier: GPL-2.0

//! The `remap` target: the engine's decisions carried out through `dm/`.
//!
//! - [`entries`]: the table in memory, read by `map` under RCU;
//! - [`store`]: the metadata on the spare;
//! - [`recover`]: failed bios and writes that need new mask bits, in process context;
//! - [`relocate`]: whole units on the move;
//! - [`vitals`]: whether main answers at all;
//! - [`settings`]: the features that can be changed;
//! - [`messages`]: `dmsetup message`;
//! - [`units`]: one change at a time to a unit.
//!
//! Who waits for whom, see `docs/lifecycle.md`: a recovering bio holds its unit's lock and waits
//! for I/O and for the store's `disk` mutex, whose holder waits for I/O only. No work waits for other
//! work that is queued. So the queue always makes progress, and suspending, which waits for bios,
//! ends. `presuspend` itself waits for nothing.

#![deny(unsafe_code)]

mod counter;
mod entries;
mod messages;
mod recover;
mod relocate;
mod settings;
mod store;
#[cfg(CONFIG_KUNIT)]
mod tests;
mod units;
mod vitals;

use crate::dm::{
    self, Args, Claim, DeferredBio, Device, DeviceVisitor, EndBio, Ended, IoBuffer, Limits, MapBio,
    Mapped, NoIo, Op, Queue, Refused, Section, Sections, Setup, Stamp, Status, Stop, Target,
    TargetHandle, TargetInfo, TextWriter, Version,
};
use crate::engine::{
    args::{BadOn, PendingReads, TableLine},
    entries::Entry,
    format::Cause,
    geometry::{Geometry, BLOCK_SECTORS, MAX_UNIT_SECTORS, MIN_COPIES},
    route::{first_part, Cut, Place},
    Slot, Unit,
};
use core::fmt::Write;
use counter::Counter;
use entries::{Entries, Look};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Full, Relaxed, Release},
        rcu, Arc, ArcBorrow, Mutex,
    },
    time::{delay::fsleep, Delta},
    workqueue::{impl_has_work, new_work, Work, WorkItem},
};
use relocate::Mover;
use settings::Settings;
use store::Store;
use units::UnitLocks;
use vitals::Vitals;

/// Bios by what became of them; each counts once.
struct Counters {
    read_errors: Counter,
    write_errors: Counter,
    reads_recovered: Counter,
    writes_recovered: Counter,
    reads_redirected: Counter,
    writes_redirected: Counter,
}

impl Counters {
    fn clear(&self) {
        self.read_errors.clear();
        self.write_errors.clear();
        self.reads_recovered.clear();
        self.writes_recovered.clear();
        self.reads_redirected.clear();
        self.writes_redirected.clear();
    }
}

/// What the target can do at the moment; the order is that of precedence.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Readonly,
    Tripped,
    Degraded,
    Full,
    Active,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Readonly => "readonly",
            Self::Tripped => "tripped",
            Self::Degraded => "degraded",
            Self::Full => "full",
            Self::Active => "active",
        }
    }
}

/// The data of one `remap` target.
///
/// Fields are dropped in this order: the queue, with all that may use the rest, first.
#[pin_data]
pub(crate) struct Remap {
    /// Recovery of bios, and the works below.
    queue: Queue,
    #[pin]
    lazy_sync: Work<Remap, 0>,
    #[pin]
    background: Work<Remap, 1>,
    #[pin]
    watch: Work<Remap, 2>,
    #[pin]
    entries: Entries,
    /// Bios on their way to or from slots.
    #[pin]
    sections: Sections,
    #[pin]
    store: Store,
    #[pin]
    units: UnitLocks,
    #[pin]
    vitals: Vitals,
    #[pin]
    settings: Settings,
    /// Units with a pending entry that is not on the spare yet. Capacity [`MAX_LISTED`].
    #[pin]
    lazy: Mutex<KVec<Unit>>,
    /// Units that main could hardly read, to be relocated in the background. Capacity [`MAX_LISTED`].
    #[pin]
    marginal: Mutex<KVec<Unit>>,
    /// Held by who copies a unit from or to main.
    #[pin]
    mover: Mutex<Mover>,
    /// A block's room, held by who copies a slot.
    #[pin]
    slot_mover: Mutex<IoBuffer>,
    /// No work but the recovery of bios is to be queued: from presuspend to resume.
    suspending: Atomic<bool>,
    /// The spare was opened and the entries loaded: from the first preresume on.
    loaded: Atomic<bool>,
    /// The mode that was reported last, as a number.
    reported: Atomic<u32>,
    main: Device,
    main_start: u64,
    /// What a sector of the mapped device has to have added to be one of main, with wraparound.
    main_offset: u64,
    geometry: Geometry,
    /// The larger logical block of both devices, in sectors.
    block: u32,
    writable: bool,
    /// The spare was blank when the table was loaded, and nothing speaks against formatting it.
    may_format: bool,
    counters: Counters,
    ti: TargetHandle,
    _claim: Claim,
}

impl_has_work! {
    impl HasWork<Self, 0> for Remap { self.lazy_sync }
    impl HasWork<Self, 1> for Remap { self.background }
    impl HasWork<Self, 2> for Remap { self.watch }
}

impl WorkItem<0> for Remap {
    type Pointer = Arc<Remap>;

    fn run(this: Arc<Remap>) {
        this.sync_lazy();
    }
}

impl WorkItem<1> for Remap {
    type Pointer = Arc<Remap>;

    fn run(this: Arc<Remap>) {
        this.relocate_marginal();
        Remap::watch_if_tripped(this.as_arc_borrow());
    }
}

impl WorkItem<2> for Remap {
    type Pointer = Arc<Remap>;

    fn run(this: Arc<Remap>) {
        this.watch_main();
    }
}

/// Units that may wait for the lazy sync or for being relocated; past that, none are added.
const MAX_LISTED: usize = 1024;

impl Remap {
    /// Whether `status` says that the sectors are bad, rather than the way to them.
    fn is_bad(&self, status: Status) -> bool {
        match self.settings.get().bad_on.unwrap_or(BadOn::Io) {
            BadOn::Media => status == Status::MEDIUM,
            BadOn::Io => {
                matches!(status, Status::MEDIUM | Status::IOERR | Status::TARGET)
            }
        }
    }

    /// Whether the spare was opened and its entries are in memory.
    fn is_loaded(&self) -> bool {
        self.loaded.load(Relaxed)
    }

    fn mode(&self) -> Mode {
        if !self.writable {
            Mode::Readonly
        } else if self.is_tripped() {
            Mode::Tripped
        } else if self.store.is_degraded() {
            Mode::Degraded
        } else if self.is_loaded() && self.store.with_slots(|s| s.free()) == 0 {
            Mode::Full
        } else {
            Mode::Active
        }
    }

    fn is_tripped(&self) -> bool {
        self.vitals.is_tripped()
    }

    /// The mapped device's name.
    fn name(&self) -> &str {
        self.ti.name().to_str().unwrap_or("?")
    }

    /// Tells the administrator if the mode changed. Process context, may sleep.
    fn report_mode(&self) {
        let mode = self.mode();
        if self.reported.xchg(mode as u32, Full) != mode as u32 {
            if dm::log_allowed() {
                pr_warn!("{}: mode is now {}\n", self.name(), mode.name());
            }
            self.ti.event();
        }
    }

    /// Sends a bio on its way that may meet an entry. `stamp` is older than what it finds.
    // In this order, the arguments cost the healthy path nothing.
    #[inline(never)]
    fn map_filtered(bio: MapBio<'_>, this: &Self, stamp: Stamp) -> Mapped {
        let (sector, count) = (bio.sector(), bio.sectors());
        let counter = match bio.op() {
            Op::Read => &this.counters.reads_redirected,
            Op::Write if this.writable => &this.counters.writes_redirected,
            _ => return this.map_slowly(bio, stamp),
        };
        let guard = rcu::read_lock();
        match this.entries.look(sector, count, &guard) {
            Look::Healthy => bio.remap(&this.main, &this.main_offset, stamp),
            Look::InSlot(slot, sector) => {
                // As long as the bio is in the section, the slot stays the unit's.
                let section = this.sections.enter();
                drop(guard);
                counter.add(1);
                let sector = this.store.sector(sector);
                bio.remap_in(section, slot.0, this.store.spare(), sector, stamp)
            }
            Look::Intricate => {
                drop(guard);
                this.map_slowly(bio, stamp)
            }
        }
    }

    /// Sends a bio on its way that is a flush or may meet an entry. `stamp` is older than what it finds.
    #[cold]
    #[inline(never)]
    fn map_slowly(&self, mut bio: MapBio<'_>, stamp: Stamp) -> Mapped {
        let (sector, count) = (bio.sector(), bio.sectors());
        if count == 0 {
            return match bio.number() {
                0 => bio.remap(&self.main, &self.main_offset, stamp),
                _ => bio.remap(self.store.spare(), &self.store.start(), stamp),
            };
        }
        let guard = rcu::read_lock();
        let Some(entry) = self.entries.first(sector, count, &guard) else {
            return bio.remap(&self.main, &self.main_offset, stamp);
        };
        let op = bio.op();
        let cut = match op {
            Op::Read => Cut::AtMask,
            _ => Cut::AtUnit,
        };
        let (length, place) = first_part(&self.geometry, sector, count, Some(entry), cut);
        if !bio.accept(length) {
            return bio.complete(Status::IOERR);
        }
        let redirected = match op {
            Op::Read => Some(&self.counters.reads_redirected),
            Op::Write | Op::WriteZeroes if !entry.held && self.writable => {
                Some(&self.counters.writes_redirected)
            }
            _ => None,
        };
        if let (Some(counter), Place::Relocated { slot, sector }) = (redirected, place) {
            // As long as the bio is in the section, the slot stays the unit's.
            let section = self.sections.enter();
            counter.add(1);
            let sector = self.store.sector(sector);
            return bio.remap_in(section, slot.0, self.store.spare(), sector, stamp);
        }
        match (op, place) {
            (_, Place::Healthy) => bio.remap(&self.main, &self.main_offset, stamp),
            // A discard is a hint. The slot stays the unit's: nothing may be discarded there.
            (Op::Discard, _) => bio.complete(Status::OK),
            (Op::Read, Place::Lost) => bio.complete(Status::MEDIUM),
            (Op::Read, Place::Unset { mask: 0 })
                if self.settings.get().pending_reads == Some(PendingReads::Fail) =>
            {
                bio.complete(Status::MEDIUM)
            }
            (Op::Read, _) => bio.remap(&self.main, &self.main_offset, stamp),
            // The block layer only warns of a write to a device that is read-only.
            (Op::Write | Op::WriteZeroes, _) if !self.writable => bio.complete(Status::IOERR),
            // New mask bits, or a unit on the move: in process context.
            (Op::Write | Op::WriteZeroes, _) => {
                if bio.is_nowait() {
                    return bio.complete(Status::AGAIN);
                }
                self.counters.writes_redirected.add(1);
                bio.defer(&self.queue)
            }
            (Op::Flush | Op::Other, _) => bio.complete(Status::NOTSUPP),
        }
    }

    /// Whether the sectors of a write that succeeded are still where it went.
    fn stands(&self, bio: &EndBio<'_>, slot: Option<Slot>) -> bool {
        let stamp = bio.stamp();
        if stamp == self.entries.version.read() {
            return true;
        }
        match slot {
            Some(slot) => self.entries.is_in_slot(bio.sector(), slot),
            None => self.entries.is_on_main(stamp, bio.sector(), bio.sectors()),
        }
    }

    /// Has main watched if it does not answer. Any context.
    fn watch_if_tripped(this: ArcBorrow<'_, Self>) {
        if this.is_tripped() && !this.suspending.load(Acquire) {
            // Already queued is as good.
            let _ = this.queue.enqueue::<_, 2>(Arc::from(this));
        }
    }

    /// Waits for main to answer again, or suspending to begin. May sleep.
    fn watch_main(&self) {
        let _noio = NoIo::enter();
        while self.is_tripped() {
            // A second, in small pieces: suspending waits for what we do.
            for _ in 0..20 {
                if self.suspending.load(Acquire) {
                    return;
                }
                fsleep(Delta::from_millis(50));
            }
            self.rearm_if_main_answers();
        }
    }

    /// Remembers that `unit` has an entry that the spare does not know yet, and has it committed.
    fn commit_lazily(this: ArcBorrow<'_, Self>, unit: Unit) {
        // No room: the entry lasts until the next activation only.
        let _ = this.lazy.lock().push_within_capacity(unit);
        if !this.suspending.load(Acquire) {
            // Already queued is as good.
            let _ = this.queue.enqueue::<_, 0>(Arc::from(this));
        }
    }

    /// Commits the pending entries that wait for it. May sleep.
    fn sync_lazy(&self) {
        let _noio = NoIo::enter();
        loop {
            let Some(unit) = self.lazy.lock().pop() else {
                return;
            };
            let _guard = self.units.lock(unit);
            let entry = self.entries.get(unit);
            let done = entry.is_none_or(|e| self.store.commit(&[self.update_of(&e, Cause::Read)]));
            if !done {
                // For the next sync, by a message or at the next suspend or resume.
                let _ = self.lazy.lock().push_within_capacity(unit);
                return;
            }
            if let Some(entry) = entry.filter(|e| e.held) {
                // The table says again what memory does.
                self.entries.set(
                    unit,
                    Some(&Entry {
                        held: false,
                        ..entry
                    }),
                );
            }
        }
    }
}

#[vtable]
impl Target for Remap {
    type Data = Arc<Remap>;

    const NAME: &'static CStr = c"remap";
    const VERSION: [u32; 3] = [1, 0, 0];
    const NOWAIT: bool = true;

    fn ctr(setup: &mut Setup<'_>, args: &Args) -> Result<Arc<Remap>, Refused> {
        let words = args.words()?;
        let line = TableLine::parse(&words)?;
        let features = line.features;
        let length = setup.info().len();
        let writable = setup.info().is_writable();

        let path = args.get(0).ok_or(c"Missing main_dev")?;
        let open = |error| Refused(c"Cannot open main_dev", error);
        let main = setup.device(path).map_err(open)?;
        let path = args.get(2).ok_or(c"Missing spare_dev")?;
        let open = |error| Refused(c"Cannot open spare_dev", error);
        let spare = setup.device(path).map_err(open)?;

        if main.is_zoned() || spare.is_zoned() {
            return Err(c"Zoned devices are not supported".into());
        }
        let main_end = line.main_start.checked_add(length);
        if main_end.is_none_or(|end| end > main.sectors()) {
            return Err(c"main_dev ends before main_start and the target's length".into());
        }
        let rest = spare.sectors().checked_sub(line.spare_start);
        let rest = rest.ok_or(c"spare_start is past the end of spare_dev")?;
        let region = features.spare_sectors.unwrap_or(rest);
        if region > rest {
            return Err(c"spare_dev ends before spare_start and spare_sectors".into());
        }
        let region = region - region % BLOCK_SECTORS;
        // Logical blocks are powers of two.
        let aligned = |sector: u64, block: u32| sector & (u64::from(block) - 1) == 0;
        let block = main.logical_block().max(spare.logical_block());
        if u64::from(spare.logical_block()) > BLOCK_SECTORS {
            return Err(c"spare_dev has logical blocks of more than 4096 bytes".into());
        }
        if !aligned(line.main_start, block) {
            return Err(c"main_start is not a multiple of the devices' logical block".into());
        }
        if !aligned(line.spare_start, block) {
            return Err(c"spare_start is not a multiple of the devices' logical block".into());
        }
        if !aligned(length, block) {
            return Err(c"Length is not a multiple of the devices' logical block".into());
        }
        let spare_range = spare.range(line.spare_start, region);
        if main.range(line.main_start, length).overlaps(&spare_range) {
            return Err(c"Spare region overlaps main".into());
        }
        let claim = Claim::new(setup.info(), spare_range).map_err(|error| {
            if error == EBUSY {
                Refused(
                    c"Spare region belongs to another mapped device or target",
                    error,
                )
            } else {
                error.into()
            }
        })?;

        let found = Store::probe(&spare, line.spare_start, region)?;
        let geometry = if let Some(found) = &found {
            let g = found.superblock.geometry;
            if g.main_sectors != length {
                return Err(c"Spare was formatted for a main device of another length".into());
            }
            if features.unit_sectors.is_some_and(|n| n != g.unit_sectors) {
                return Err(c"Spare was formatted with another unit_sectors".into());
            }
            if features.metadata_copies.is_some_and(|n| n != g.copies) {
                return Err(c"Spare was formatted with another metadata_copies".into());
            }
            if features.spare_sectors.is_some() && g.spare_sectors != region {
                return Err(c"Spare was formatted with another spare_sectors".into());
            }
            if found.superblock.read_only && writable {
                return Err(c"Superblock: unknown feature that allows read-only use only".into());
            }
            g
        } else {
            if features.no_format {
                return Err(c"Spare is blank and no_format is given".into());
            }
            if !writable {
                return Err(c"Spare is blank and the table is read-only".into());
            }
            let physical = main.physical_block().max(spare.physical_block());
            let unit = features
                .unit_sectors
                .unwrap_or(physical.clamp(BLOCK_SECTORS as u32, MAX_UNIT_SECTORS));
            let copies = features.metadata_copies.unwrap_or(MIN_COPIES);
            Geometry::plan(length, region, unit, copies)?
        };
        if geometry.unit_sectors < block {
            return Err(c"unit_sectors is less than the devices' logical block".into());
        }

        // Write-ahead metadata needs no care at a flush: device-mapper may send it to both devices.
        setup.set_flushes(2, true);
        setup.want_discards();
        setup.want_write_zeroes();
        let remap = Arc::pin_init(
            try_pin_init!(Remap {
                queue: Queue::new(c"dm_remap", setup.info().name(), 0)?,
                lazy_sync <- new_work!("dm_remap::lazy_sync"),
                background <- new_work!("dm_remap::background"),
                watch <- new_work!("dm_remap::watch"),
                entries <- Entries::new(&geometry),
                sections <- Sections::new(),
                store <- Store::new(spare, line.spare_start, geometry, block),
                units <- UnitLocks::new(),
                vitals <- Vitals::new(block),
                settings <- Settings::new(features),
                lazy <- new_mutex!(KVec::with_capacity(MAX_LISTED, GFP_KERNEL)?, "dm_remap::lazy"),
                marginal <- new_mutex!(
                    KVec::with_capacity(MAX_LISTED, GFP_KERNEL)?,
                    "dm_remap::marginal"
                ),
                mover <- new_mutex!(Mover::new(block)?, "dm_remap::mover"),
                slot_mover <- new_mutex!(
                    IoBuffer::new((block as usize) << 9)?,
                    "dm_remap::slot_mover"
                ),
                suspending: Atomic::new(false),
                loaded: Atomic::new(false),
                reported: Atomic::new(if writable { Mode::Active } else { Mode::Readonly } as u32),
                main,
                main_start: line.main_start,
                main_offset: line.main_start.wrapping_sub(setup.info().begin()),
                geometry,
                block,
                writable,
                may_format: found.is_none(),
                counters: Counters {
                    read_errors: Counter::new(),
                    write_errors: Counter::new(),
                    reads_recovered: Counter::new(),
                    writes_recovered: Counter::new(),
                    reads_redirected: Counter::new(),
                    writes_redirected: Counter::new(),
                },
                ti: setup.handle(),
                _claim: claim,
            }? Error),
            GFP_KERNEL,
        );
        remap.map_err(Refused::from)
    }

    fn dtr(this: ArcBorrow<'_, Self>, _ti: &TargetInfo) {
        // Works that go on until suspending begins are to end, too, if it never did: the table was not in force.
        this.suspending.store(true, Release);
        // With this, nothing runs any more that holds a reference: the last one is the caller's.
        this.queue.drain();
    }

    #[inline]
    fn map(this: ArcBorrow<'_, Self>, bio: MapBio<'_>) -> Mapped {
        let (sector, count) = (bio.sector(), bio.sectors());
        // Before the entries are looked at: see `entries`.
        let stamp = this.entries.version.read();
        if this.entries.is_healthy(sector, count) {
            return bio.remap(&this.main, &this.main_offset, stamp);
        }
        Self::map_filtered(bio, &this, stamp)
    }

    fn offset(this: ArcBorrow<'_, Self>) -> u64 {
        this.main_offset
    }

    #[inline(always)]
    fn version<'a>(this: &'a ArcBorrow<'_, Self>) -> &'a Version {
        &this.entries.version
    }

    #[inline(always)]
    fn leave(this: ArcBorrow<'_, Self>, section: Section) {
        this.sections.leave(section);
    }

    fn end_io(this: ArcBorrow<'_, Self>, bio: EndBio<'_>) -> Ended {
        // As long as the section lasts, the slot cannot have become another unit's, or this one's again.
        let slot = bio.tag().map(Slot);
        let is_write = matches!(bio.op(), Op::Write | Op::WriteZeroes);
        let repeat = if bio.status().is_ok() {
            is_write && !this.stands(&bio, slot)
        } else {
            // Nobody waits for a readahead; the read that follows is worth the time.
            let is_read = bio.op() == Op::Read && !bio.is_readahead();
            (is_read || is_write && this.writable)
                && this.is_bad(bio.status())
                && (slot.is_some() || !this.is_tripped())
        };
        if repeat {
            bio.defer(&this.queue)
        } else {
            bio.pass_on()
        }
    }

    fn process(this: ArcBorrow<'_, Self>, bio: DeferredBio<'_>) {
        Self::recover(this, bio);
        Self::watch_if_tripped(this);
    }

    fn presuspend(this: ArcBorrow<'_, Self>, _ti: &TargetInfo) {
        this.suspending.store(true, Release);
        // Not what bios wait for: those go on coming, and may need entries.
        let this = Arc::from(this);
        Queue::cancel::<_, 0>(&this);
        Queue::cancel::<_, 1>(&this);
        Queue::cancel::<_, 2>(&this);
    }

    fn presuspend_undo(this: ArcBorrow<'_, Self>, ti: &TargetInfo) {
        Self::resume(this, ti);
    }

    fn postsuspend(this: ArcBorrow<'_, Self>, _ti: &TargetInfo) {
        if this.is_loaded() && this.writable {
            // A lazy sync that runs has taken units off the list that it has yet to commit.
            this.queue.flush();
            this.sync_lazy();
            this.report_mode();
        }
    }

    fn preresume(this: ArcBorrow<'_, Self>, ti: &TargetInfo) -> Result {
        let _noio = NoIo::enter();
        // Once: from here on nobody else writes this spare.
        if !this.is_loaded() {
            this.store
                .activate(ti.name(), &this.entries, this.writable, this.may_format)?;
            this.loaded.store(true, Relaxed);
        }
        Ok(())
    }

    fn resume(this: ArcBorrow<'_, Self>, _ti: &TargetInfo) {
        this.suspending.store(false, Release);
        // Already queued is as good.
        if !this.lazy.lock().is_empty() {
            let _ = this.queue.enqueue::<_, 0>(Arc::from(this));
        }
        if !this.marginal.lock().is_empty() {
            let _ = this.queue.enqueue::<_, 1>(Arc::from(this));
        }
        Self::watch_if_tripped(this);
        this.report_mode();
    }

    fn status(this: ArcBorrow<'_, Self>, _ti: &TargetInfo, out: &mut TextWriter<'_>) {
        let (used, total, bad) = this.store.with_slots(|s| (s.used(), s.total(), s.bad()));
        let entries = this.entries.counts();
        let c = &this.counters;
        let _ = write!(
            out,
            "{} {} {}/{} {} {} {} {} {} {} {} {} {} {} {} {}",
            this.mode().name(),
            this.geometry.unit_sectors,
            used,
            total,
            bad,
            entries.relocated,
            entries.pending,
            c.read_errors.get(),
            c.write_errors.get(),
            c.reads_recovered.get(),
            c.writes_recovered.get(),
            c.reads_redirected.get(),
            c.writes_redirected.get(),
            this.store.commits.get(),
            this.store.errors.get(),
            if this.marginal.lock().is_empty() {
                "idle"
            } else {
                "relocating"
            },
        );
    }

    fn table(this: ArcBorrow<'_, Self>, _ti: &TargetInfo, out: &mut TextWriter<'_>) {
        let _ = write!(
            out,
            "{} {} {} {}{}",
            this.main.name(),
            this.main_start,
            this.store.spare().name(),
            this.store.start(),
            this.settings.get(),
        );
    }

    fn ima(this: ArcBorrow<'_, Self>, _ti: &TargetInfo, out: &mut TextWriter<'_>) {
        let g = &this.geometry;
        let _ = write!(
            out,
            ",main_dev={},main_start={},spare_dev={},spare_start={},spare_sectors={},\
             unit_sectors={},metadata_copies={}",
            this.main.name(),
            this.main_start,
            this.store.spare().name(),
            this.store.start(),
            g.spare_sectors,
            g.unit_sectors,
            g.copies,
        );
    }

    fn message(
        this: ArcBorrow<'_, Self>,
        ti: &TargetInfo,
        args: &Args,
        out: &mut TextWriter<'_>,
    ) -> Result {
        let done = this.obey(ti.len(), args, out);
        Self::watch_if_tripped(this);
        done
    }

    fn io_hints(_this: ArcBorrow<'_, Self>, limits: &mut Limits<'_>) {
        // Of a polled bio that was cut, the rest is cloned with device-mapper's mark `REQ_DM_POLL_LIST` (only clones
        // made by `alloc_tio` lose it). Drivers take the bit for theirs: NVMe would follow a null pointer.
        limits.forbid_polling();
    }

    fn iterate_devices(
        this: ArcBorrow<'_, Self>,
        ti: &TargetInfo,
        visitor: DeviceVisitor<'_>,
    ) -> Result<(), Stop> {
        visitor.visit(&this.main, this.main_start, ti.len())?;
        let start = this.store.start();
        visitor.visit(this.store.spare(), start, this.geometry.spare_sectors)
    }
}
