// SPDX-License-Identifier: GPL-2.0

//! The `remap` target: the engine's decisions carried out through `dm/`.
//!
//! - [`entries`]: the table in memory, read by `map` under RCU;
//! - [`store`]: the metadata on the spare;
//! - [`cache`]: whether a flush needs the spare;
//! - [`recover`]: failed bios and writes that need new mask bits, in process context;
//! - [`relocate`]: whole units on the move;
//! - [`pending`]: entries that nobody waits for: committed later, or dropped;
//! - [`vitals`]: whether main answers at all, and takes writes;
//! - [`settings`]: the features that can be changed;
//! - [`messages`]: `dmsetup message`;
//! - [`units`]: one change at a time to a unit.
//!
//! Who waits for whom, see `docs/lifecycle.md`: a recovering bio holds its unit's lock and waits
//! for I/O and for the store's `disk` mutex, whose holder waits for I/O only. No work waits for other
//! work that is queued. So the queue always makes progress, and suspending, which waits for bios,
//! ends. `presuspend` itself waits for nothing.

#![deny(unsafe_code)]

mod cache;
mod counter;
mod entries;
mod messages;
mod pending;
mod recover;
mod relocate;
mod settings;
mod store;
#[cfg(CONFIG_KUNIT)]
mod tests;
mod units;
mod vitals;

use crate::dm::{
    peek, Args, Claim, DeferredBio, Device, DeviceVisitor, EndBio, Ended, IoBuffer, Limits, MapBio,
    Mapped, NoIo, Op, Queue, Refused, Setup, Stamp, Status, Stop, Target, TargetHandle, TargetInfo,
    TextWriter, Version,
};
use crate::engine::{
    args::{BadOn, TableLine},
    geometry::{Geometry, BLOCK_SECTORS, MAX_UNIT_SECTORS, MIN_COPIES},
    identity::{DiskId, IdKind, Identity},
    route::{first_part, Cut, Place},
    Slot,
};
use cache::{Flush, SpareCache};
use core::fmt::Write;
use counter::Counter;
use entries::{Entries, Look};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Relaxed, Release},
        rcu, Arc, ArcBorrow, Mutex,
    },
    time::{msecs_to_jiffies, Jiffies},
    workqueue::{
        impl_has_delayed_work, impl_has_work, new_delayed_work, new_work, DelayedWork, Work,
        WorkItem,
    },
};
use pending::{Batch, Listed, Step, MAX_LISTED};
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
    watch: DelayedWork<Remap, 2>,
    #[pin]
    entries: Entries,
    cache: SpareCache,
    #[pin]
    store: Store,
    #[pin]
    units: UnitLocks,
    #[pin]
    vitals: Vitals,
    #[pin]
    settings: Settings,
    /// Units with an entry that is not on the spare yet.
    #[pin]
    lazy: Mutex<Listed>,
    /// Held by who commits these.
    #[pin]
    batch: Mutex<Batch>,
    /// Held by who drops pending entries.
    #[pin]
    room: Mutex<Batch>,
    /// The unit from which on entries are looked for that yield.
    next_yielding: Atomic<u64>,
    /// Units that main could hardly read, to be relocated in the background. Capacity [`MAX_LISTED`].
    #[pin]
    marginal: Mutex<KVec<crate::engine::Unit>>,
    /// Held by who copies a unit from or to main.
    #[pin]
    mover: Mutex<Mover>,
    /// A unit's room, held by who copies a slot.
    #[pin]
    slot_mover: Mutex<IoBuffer>,
    /// No work but the recovery of bios is to be queued, or to go on: until resume, and from presuspend to resume.
    suspending: Atomic<bool>,
    /// The spare was opened and the entries loaded: from the first preresume on.
    loaded: Atomic<bool>,
    /// The mode that was reported last.
    #[pin]
    reported: Mutex<Mode>,
    main: Device,
    main_start: u64,
    /// What a sector of the mapped device has to have added to be one of main, with wraparound.
    main_offset: u64,
    geometry: Geometry,
    /// The larger logical block of both devices, in sectors.
    block: u32,
    writable: bool,
    /// The table is writable, and nothing is to be watched about writes ([`Remap::be_careful`]).
    plain_writes: Atomic<u64>,
    /// The spare was blank when the table was loaded, and nothing speaks against formatting it.
    may_format: bool,
    counters: Counters,
    ti: TargetHandle,
    claim: Claim,
}

impl_has_work! {
    impl HasWork<Self, 0> for Remap { self.lazy_sync }
    impl HasWork<Self, 1> for Remap { self.background }
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self, 2> for Remap { self.watch }
}

impl WorkItem<0> for Remap {
    type Pointer = Arc<Remap>;

    fn run(this: Arc<Remap>) {
        if this.suspending.load(Acquire) {
            return;
        }
        if this.sync_step() == Step::More {
            Remap::commit_next(this.as_arc_borrow());
        }
        this.report_mode();
        Remap::watch_if_needed(this.as_arc_borrow());
    }
}

impl WorkItem<1> for Remap {
    type Pointer = Arc<Remap>;

    fn run(this: Arc<Remap>) {
        if this.suspending.load(Acquire) {
            return;
        }
        this.relocate_one();
        Remap::relocate_next(this.as_arc_borrow());
        Remap::watch_if_needed(this.as_arc_borrow());
    }
}

impl WorkItem<2> for Remap {
    type Pointer = Arc<Remap>;

    fn run(this: Arc<Remap>) {
        this.watch_once();
        Remap::watch_if_needed(this.as_arc_borrow());
    }
}

/// What the kernel knows of `main`, of which the target protects what begins at sector `start`. May sleep.
fn identity_of(main: &Device, start: u64) -> Identity {
    let disk = IdKind::ALL.into_iter().find_map(|kind| {
        let (bytes, length) = main.unique_id(kind as u32)?;
        let start = main.first_sector().checked_add(start)?;
        Some((DiskId::new(kind, bytes, length)?, start))
    });
    Identity::new(main.partition_uuid(), disk).unwrap_or_default()
}

/// From one look at a device that does not work to the next.
fn watch_every() -> Jiffies {
    msecs_to_jiffies(2000)
}
/// Largest physical block of main that is read as one, in sectors.
const MAX_PHYSICAL: u32 = 128;
/// Longest write or write-zeroes that is sent on in one piece if it does not lie in one group of units: if it fails, all of it
/// may go to slots.
const LONGEST_WRITE: u32 = (4 << 20) >> 9;

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
        } else if self.is_loaded() && !self.has_room() {
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
        // Locked before the mode is asked for: so what is reported last is what is so.
        let mut reported = self.reported.lock();
        let mode = self.mode();
        if *reported != mode {
            *reported = mode;
            // Whatever else floods the log, this is to be in it.
            pr_warn!("{}: mode is now {}\n", self.name(), mode.name());
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
            Op::Write if peek(&this.plain_writes) != 0 => &this.counters.writes_redirected,
            _ => return this.map_slowly(bio, stamp),
        };
        let guard = rcu::read_lock();
        match this.entries.look(sector, count, &guard) {
            Look::Healthy => bio.remap(&this.main, &this.main_offset, stamp),
            Look::InSlot(slot, sector) => {
                drop(guard);
                counter.add(1);
                let sector = this.store.sector(sector);
                bio.remap_aside(slot.0, this.store.spare(), sector, stamp)
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
            if !bio.accept(LONGEST_WRITE) {
                return bio.complete(Status::IOERR);
            }
            count = LONGEST_WRITE;
        }
        let guard = rcu::read_lock();
        let Some(entry) = self.entries.first(sector, count, &guard) else {
            drop(guard);
            return self.map_to_main(bio, is_write, stamp);
        };
        if op == Op::Read {
            // What lies side by side on main goes there in one piece.
            let asks = self.asks_again();
            let on_main = self.entries.on_main(sector, count, asks, &guard);
            if on_main > 0 {
                if !bio.accept(on_main) {
                    return bio.complete(Status::IOERR);
                }
                return bio.remap(&self.main, &self.main_offset, stamp);
            }
        }
        let cut = match op {
            Op::Read => Cut::AtMask,
            _ => Cut::AtUnit,
        };
        let (length, place) = first_part(&self.geometry, sector, count, Some(entry), cut);
        drop(guard);
        if !bio.accept(length) {
            return bio.complete(Status::IOERR);
        }
        let redirected = match op {
            Op::Read => Some(&self.counters.reads_redirected),
            Op::Write if !entry.held && self.writable => Some(&self.counters.writes_redirected),
            // If the spare cannot do it, it is given the zeroes, in process context.
            Op::WriteZeroes if !entry.held && self.writable => {
                let can = self.store.spare().write_zeroes_sectors() >= length;
                can.then_some(&self.counters.writes_redirected)
            }
            _ => None,
        };
        if let (Some(counter), Place::Relocated { slot, sector }) = (redirected, place) {
            counter.add(1);
            let sector = self.store.sector(sector);
            return bio.remap_aside(slot.0, self.store.spare(), sector, stamp);
        }
        match (op, place) {
            (_, Place::Healthy) => self.map_to_main(bio, is_write, stamp),
            // A discard is a hint. The slot stays the unit's: nothing may be discarded there.
            (Op::Discard, _) => bio.complete(Status::OK),
            // The slot that had them may answer again.
            (Op::Read, Place::Lost) if self.asks_again() => self.put_off(bio),
            // It is known that main cannot.
            (Op::Read, _) => bio.complete(Status::MEDIUM),
            // The block layer only warns of a write to a device that is read-only.
            (Op::Write | Op::WriteZeroes, _) if !self.writable => bio.complete(Status::IOERR),
            // New mask bits, or a unit on the move: in process context.
            (Op::Write | Op::WriteZeroes, _) => {
                if !bio.is_nowait() {
                    self.counters.writes_redirected.add(1);
                }
                self.put_off(bio)
            }
            (Op::Flush | Op::Other, _) => bio.complete(Status::NOTSUPP),
        }
    }

    /// Sends a bio to main that meets no entry, or main's sectors of one.
    fn map_to_main(&self, bio: MapBio<'_>, is_write: bool, stamp: Stamp) -> Mapped {
        if is_write && self.vitals.is_watching() {
            return bio.remap_watched(&self.main, &self.main_offset, stamp);
        }
        bio.remap(&self.main, &self.main_offset, stamp)
    }

    /// Has a bio processed, if its submitter can wait.
    fn put_off(&self, bio: MapBio<'_>) -> Mapped {
        if bio.is_nowait() {
            return bio.complete(Status::AGAIN);
        }
        bio.defer(&self.queue)
    }

    /// Sends one of the two copies of a flush on its way: to main, or to the spare if that has something to make durable.
    fn map_flush(&self, bio: MapBio<'_>, stamp: Stamp) -> Mapped {
        if bio.number() == 0 {
            return bio.remap(&self.main, &self.main_offset, stamp);
        }
        match self.cache.begin() {
            None => bio.complete(Status::OK),
            Some(Flush(failures)) => {
                let spare = self.store.spare();
                bio.remap_watched(spare, &self.store.start(), Stamp::marked(failures))
            }
        }
    }

    /// One of the two copies of a flush is back.
    fn flush_ended(&self, bio: EndBio<'_>) -> Ended {
        if bio.number() != 0 {
            let flush = Flush(bio.stamp().count() as u32);
            self.cache.ended(flush, bio.status().is_ok());
            // Before anyone hears of it.
            self.be_careful();
        }
        bio.pass_on()
    }

    /// Flushes the spare. May sleep. `false`: it did not answer.
    fn flush_spare(&self) -> bool {
        let Some(flush) = self.cache.begin() else {
            return true;
        };
        let done = self.store.spare().flush().is_ok();
        self.cache.ended(flush, done);
        self.be_careful();
        done
    }

    /// Has `map` look at each bio closely as long as there is a reason, and no longer. Any context.
    fn be_careful(&self) {
        loop {
            let is_careful = || self.cache.has_failed() || self.vitals.is_watching();
            let careful = is_careful();
            self.plain_writes
                .store(u64::from(self.writable && !careful), Release);
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
        let stamp = bio.stamp();
        if stamp == self.entries.version.read() {
            return true;
        }
        match slot {
            Some(slot) => self.entries.is_in_slot(bio.sector(), slot),
            None => {
                let asks = self.asks_again();
                self.entries
                    .is_on_main(stamp, bio.sector(), bio.sectors(), asks)
            }
        }
    }

    /// Has those devices looked at, after a while, that do not work. Any context that may sleep.
    fn watch_if_needed(this: ArcBorrow<'_, Self>) {
        let needed = this.is_tripped() || this.writable && this.store.is_degraded();
        if needed && !this.suspending.load(Acquire) {
            // Already queued is as good.
            let _ = this
                .queue
                .enqueue_delayed::<_, 2>(Arc::from(this), watch_every());
        }
    }

    /// Looks once whether main answers again, and whether the spare can be written again. May sleep.
    fn watch_once(&self) {
        let _noio = NoIo::enter();
        if self.suspending.load(Acquire) {
            return;
        }
        if self.is_tripped() {
            self.rearm_if_main_answers();
        }
        if self.writable && self.store.is_degraded() && self.store.flush() {
            // What was left undone.
            let _ = self.sync_step();
        }
        self.report_mode();
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

        let identity = identity_of(&main, line.main_start);
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
            if !features.rebind && found.superblock.main.contradicts(&identity) {
                pr_err!(
                    "{}: the spare belongs to {}, and main is {}\n",
                    setup.info().name().to_str().unwrap_or("?"),
                    found.superblock.main,
                    identity
                );
                return Err(
                    c"Main is not the one that the spare belongs to (the log names both): rebind takes it".into(),
                );
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

        let in_use = match &found {
            Some(found) => Store::blocks_in_use(&spare, line.spare_start, &found.superblock)?,
            None => geometry.first_part(),
        };

        // One for each device.
        setup.set_flushes(2);
        if main.can_discard() {
            setup.want_discards();
        }
        setup.want_write_zeroes();
        let physical = main.physical_block().min(MAX_PHYSICAL).max(block);
        let remap = Arc::pin_init(
            try_pin_init!(Remap {
                queue: Queue::new(c"dm_remap", setup.info().name(), 0)?,
                lazy_sync <- new_work!("dm_remap::lazy_sync"),
                background <- new_work!("dm_remap::background"),
                watch <- new_delayed_work!("dm_remap::watch"),
                entries <- Entries::new(&geometry, in_use),
                cache: SpareCache::new(),
                store <- Store::new(
                    setup.handle(),
                    spare,
                    line.spare_start,
                    geometry,
                    block,
                    identity,
                    features.rebind
                ),
                units <- UnitLocks::new(),
                vitals <- Vitals::new(physical),
                settings <- Settings::new(features),
                lazy <- new_mutex!(Listed::new()?, "dm_remap::lazy"),
                batch <- new_mutex!(Batch::new()?, "dm_remap::batch"),
                room <- new_mutex!(Batch::new()?, "dm_remap::room"),
                next_yielding: Atomic::new(0),
                marginal <- new_mutex!(
                    KVec::with_capacity(MAX_LISTED, GFP_KERNEL)?,
                    "dm_remap::marginal"
                ),
                mover <- new_mutex!(Mover::new(geometry.unit_sectors)?, "dm_remap::mover"),
                slot_mover <- new_mutex!(
                    IoBuffer::new((geometry.unit_sectors.max(block) as usize) << 9)?,
                    "dm_remap::slot_mover"
                ),
                suspending: Atomic::new(true),
                loaded: Atomic::new(false),
                reported <- new_mutex!(
                    if writable { Mode::Active } else { Mode::Readonly },
                    "dm_remap::reported"
                ),
                main,
                main_start: line.main_start,
                main_offset: line.main_start.wrapping_sub(setup.info().begin()),
                geometry,
                block,
                writable,
                plain_writes: Atomic::new(u64::from(*writable)),
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
                claim,
            }? Error),
            GFP_KERNEL,
        );
        remap.map_err(Refused::from)
    }

    fn dtr(this: ArcBorrow<'_, Self>, _ti: &TargetInfo) {
        // Works that go on until suspending begins are to end, too, if it never did: the table was not in force.
        this.suspending.store(true, Release);
        // Nothing that runs starts the timer any more. (Not drained: a timer that ends meanwhile would be refused, and its
        // reference lost.)
        this.queue.flush();
        let arc = Arc::from(this);
        Queue::cancel_delayed::<_, 2>(&arc);
        drop(arc);
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
    fn landed(this: &ArcBorrow<'_, Self>) {
        this.cache.landed();
    }

    fn end_io(this: ArcBorrow<'_, Self>, bio: EndBio<'_>) -> Ended {
        if bio.sectors() == 0 {
            return this.flush_ended(bio);
        }
        let slot = bio.tag().map(Slot);
        let op = bio.op();
        let is_write = matches!(op, Op::Write | Op::WriteZeroes);
        let repeat = if bio.status().is_ok() {
            if is_write && slot.is_none() && this.vitals.is_watching() {
                this.vitals.took_write();
                this.be_careful();
            }
            is_write && !this.stands(&bio, slot)
        } else {
            let is_bad = this.is_bad(bio.status()) && (slot.is_some() || !this.is_tripped());
            if op == Op::Discard && is_bad {
                // A hint that was not taken.
                return bio.succeed();
            }
            // Nobody waits for a readahead; the read that follows is worth the time.
            let is_read = op == Op::Read && !bio.is_readahead();
            (is_read || is_write && this.writable) && is_bad
        };
        if repeat {
            bio.defer(&this.queue)
        } else {
            bio.pass_on()
        }
    }

    fn process(this: ArcBorrow<'_, Self>, bio: DeferredBio<'_>) {
        Self::recover(this, bio);
        if this.writable {
            // The bio is through: nobody waits for this.
            this.store.extend_ahead();
        }
        Self::watch_if_needed(this);
    }

    fn presuspend(this: ArcBorrow<'_, Self>, _ti: &TargetInfo) {
        this.suspending.store(true, Release);
        // Not what bios wait for: those go on coming, and may need entries.
        let this = Arc::from(this);
        Queue::cancel::<_, 0>(&this);
        Queue::cancel::<_, 1>(&this);
        Queue::cancel_delayed::<_, 2>(&this);
    }

    fn presuspend_undo(this: ArcBorrow<'_, Self>, ti: &TargetInfo) {
        Self::resume(this, ti);
    }

    fn postsuspend(this: ArcBorrow<'_, Self>, _ti: &TargetInfo) {
        if this.is_loaded() && this.writable {
            // A lazy sync that runs has units' locks.
            this.queue.flush();
            let _ = this.sync_all();
            this.store.free_restored();
            this.report_mode();
        }
    }

    fn preresume(this: ArcBorrow<'_, Self>, _ti: &TargetInfo) -> Result {
        let _noio = NoIo::enter();
        // Once: from here on nobody else writes this spare.
        if !this.is_loaded() {
            this.store
                .activate(&this.entries, this.writable, this.may_format)?;
            // The table before this one may have written to slots. If the spare does not answer now, a flush asks it.
            let _ = this.flush_spare();
            this.find_good_place();
            this.loaded.store(true, Relaxed);
        }
        Ok(())
    }

    fn resume(this: ArcBorrow<'_, Self>, _ti: &TargetInfo) {
        this.suspending.store(false, Release);
        this.claim.go_on();
        Self::commit_next(this);
        Self::relocate_next(this);
        Self::watch_if_needed(this);
        this.report_mode();
    }

    fn status(this: ArcBorrow<'_, Self>, _ti: &TargetInfo, out: &mut TextWriter<'_>) {
        let (used, total, bad) = this.store.with_slots(|s| (s.used(), s.usable(), s.bad()));
        let entries = this.entries.counts();
        let c = &this.counters;
        let _ = write!(
            out,
            "{} {} {}/{} {} {} {} {} {} {} {} {} {} {} {} {} {}",
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
            this.entries.lost_sectors(),
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
        Self::watch_if_needed(this);
        done
    }

    fn io_hints(this: ArcBorrow<'_, Self>, limits: &mut Limits<'_>) {
        // Device-mapper asks when this table is about to take another one's place (`dm_swap_table`).
        this.claim.supersede();
        // Slots are given their zeroes by ourselves if the spare can do no better.
        limits.set_write_zeroes(this.main.write_zeroes_sectors());
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
        if visitor.is_question() {
            // Whatever main can do, the mapped device can.
            return Ok(());
        }
        let start = this.store.start();
        visitor.visit(this.store.spare(), start, this.geometry.spare_sectors)
    }
}
