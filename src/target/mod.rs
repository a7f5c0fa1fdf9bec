// SPDX-License-Identifier: GPL-2.0

//! The `remap` target: the engine's decisions carried out through `dm/`.
//!
//! - [`open`]: from a table line to a target;
//! - [`map`]: where bios go, and what becomes of them when they are back;
//! - [`entries`]: the table in memory, read by `map` under RCU, and [`version`], the count of its changes;
//! - [`store`]: the metadata on the spare;
//! - [`area`]: which sectors are where;
//! - [`cache`]: whether a flush needs the spare;
//! - [`recover`]: failed bios and writes that need new mask bits, in process context; [`read`] and [`write`];
//! - [`slots`]: slots for units, and the records that say so;
//! - [`relocate`]: whole units on the move to slots and back, and [`replace`]: from one slot to another;
//! - [`pending`]: entries that nobody waits for: committed later, or dropped;
//! - [`vitals`]: whether main answers at all, and takes writes;
//! - [`works`]: what goes on beside bios;
//! - [`settings`]: the features that can be changed;
//! - [`messages`]: `dmsetup message`, and [`status`]: `dmsetup status`;
//! - [`units`]: one change at a time to a unit;
//! - [`claim`]: one mapped device at a time for a spare.
//!
//! Who waits for whom, see `docs/lifecycle.md`: a recovering bio holds its unit's lock and waits
//! for I/O and for the store's `disk` mutex, whose holder waits for I/O, and some moments for others to come. No work waits
//! for other work that is queued until that has run. So the queue always makes progress, and suspending, which waits for bios,
//! ends. `presuspend` itself waits for nothing.

#![deny(unsafe_code)]

mod area;
mod cache;
mod claim;
mod counter;
mod entries;
mod map;
mod messages;
mod open;
mod pending;
mod read;
mod recover;
mod relocate;
mod replace;
mod settings;
mod slots;
mod status;
mod store;
#[cfg(CONFIG_KUNIT)]
mod tests;
mod units;
mod version;
mod vitals;
mod works;
mod write;

pub(crate) use claim::Claims;

use crate::dm::{
    self, Args, Cookie, DeviceVisitor, IoBuffer, Limits, Linear, Refused, Setup, Stop, Target,
    TargetInfo, TextWriter,
};
use crate::engine::{geometry::Geometry, Slot, Unit};
use area::Main;
use cache::SpareCache;
use claim::Claim;
use entries::Entries;
use kernel::{
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed, Release},
        Mutex,
    },
};
use open::Opened;
use pending::{Batch, Listed, MAX_LISTED};
use relocate::Mover;
use settings::Settings;
use status::{Counters, Mode};
use store::Store;
use units::UnitLocks;
use version::Stamp;
use vitals::Vitals;
use works::Works;

type MapBio<'a> = dm::MapBio<'a, RemapTarget>;
type Mapped<'a> = dm::Mapped<'a>;
type EndBio<'a> = dm::EndBio<'a, RemapTarget>;
type Ended<'a> = dm::Ended<'a>;
type DeferredBio<'a> = dm::DeferredBio<'a, RemapTarget>;

/// The data of one `remap` target.
#[pin_data]
pub(crate) struct Remap<'t> {
    works: Works<'t>,
    #[pin]
    entries: Entries,
    cache: SpareCache,
    #[pin]
    store: Store<'t>,
    #[pin]
    units: UnitLocks,
    #[pin]
    vitals: Vitals,
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
    marginal: Mutex<KVec<Unit>>,
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
    main: Main<'t>,
    /// Where healthy sectors are.
    on_main: Linear<'t>,
    geometry: Geometry,
    /// The larger logical block of both devices, in sectors.
    block: u32,
    writable: bool,
    /// [`plain_ops`](map::plain_ops), with writes if the table is writable and nothing is to be watched about them
    /// ([`Remap::be_careful`]).
    plain_ops: Atomic<u32>,
    /// The spare was blank when the table was loaded, and nothing speaks against formatting it.
    may_format: bool,
    counters: Counters,
    ti: &'t TargetInfo,
    claim: Claim<'t>,
}

impl Remap<'_> {
    /// Whether the spare was opened and its entries are in memory.
    fn is_loaded(&self) -> bool {
        self.loaded.load(Relaxed)
    }

    fn is_tripped(&self) -> bool {
        self.vitals.is_tripped()
    }

    /// The mapped device's name.
    fn name(&self) -> &str {
        self.ti.name().to_str().unwrap_or("?")
    }
}

/// The target type.
pub(crate) struct RemapTarget;

#[vtable]
impl Target for RemapTarget {
    type Data<'t> = Remap<'t>;
    /// The slot that a bio went to, or the first of several side by side.
    type PerBio = Slot;
    type RegistrationData = Claims;

    const NAME: &'static CStr = c"remap";
    const VERSION: [u32; 3] = [1, 0, 0];
    const NOWAIT: bool = true;

    fn ctr<'t>(
        setup: &mut Setup<'t, Self>,
        args: &Args,
    ) -> Result<impl PinInit<Remap<'t>, Error>, Refused> {
        Opened::new(setup, args)?.build(setup)
    }

    #[inline]
    fn map<'a>(remap: &Remap<'_>, bio: MapBio<'a>) -> Mapped<'a> {
        let (sector, count) = (bio.sector(), bio.sectors());
        // Before the entries are looked at: see `entries`.
        let stamp = remap.entries.version.read();
        if remap.entries.is_healthy(sector, count) {
            return bio.remap_linear(&remap.on_main, stamp.cookie());
        }
        Remap::map_filtered::<true>(bio, stamp)
    }

    /// The entries have not changed since it was sent, and it is nothing special: as a write to a slot is not, if it is known
    /// already that the spare's cache has some.
    #[inline(always)]
    fn is_settled(remap: &Remap<'_>, cookie: Cookie<'_, Self>) -> bool {
        let now = remap.entries.version.read();
        Stamp::from_cookie(cookie.get()).is_settled(now, || remap.cache.is_dirty())
    }

    #[inline]
    fn end_io<'a>(remap: &Remap<'_>, bio: EndBio<'a>) -> Ended<'a> {
        remap.bio_ended(bio)
    }

    fn process(remap: &Remap<'_>, bio: DeferredBio<'_>) {
        remap.recover(bio);
        if remap.writable {
            // The bio is through: nobody waits for this.
            remap.store.extend_ahead();
        }
        remap.watch_if_needed();
    }

    fn presuspend(remap: &Remap<'_>) {
        remap.suspending.store(true, Release);
        // Not what bios wait for: those go on coming, and may need entries.
        remap.works.cancel();
    }

    fn presuspend_undo(remap: &Remap<'_>) {
        Self::resume(remap);
    }

    fn postsuspend(remap: &Remap<'_>) {
        if remap.is_loaded() && remap.writable {
            let _ = remap.sync_all();
            remap.store.free_restored();
            remap.report_mode();
        }
    }

    fn preresume(remap: &Remap<'_>) -> Result {
        // Once: from here on nobody else writes this spare.
        if !remap.is_loaded() {
            remap
                .store
                .activate(&remap.entries, remap.writable, remap.may_format)?;
            // The table before this one may have written to slots. If the spare does not answer now, a flush asks it.
            let _ = remap.flush_spare();
            remap.find_good_place();
            remap.loaded.store(true, Relaxed);
        }
        Ok(())
    }

    fn resume(remap: &Remap<'_>) {
        remap.suspending.store(false, Release);
        remap.claim.go_on();
        remap.commit_next();
        remap.relocate_next();
        remap.watch_if_needed();
        remap.report_mode();
    }

    fn status(remap: &Remap<'_>, out: &mut TextWriter<'_>) {
        remap.print_status(out);
    }

    fn table(remap: &Remap<'_>, out: &mut TextWriter<'_>) {
        remap.print_table(out);
    }

    fn ima(remap: &Remap<'_>, out: &mut TextWriter<'_>) {
        remap.print_ima(out);
    }

    fn message(remap: &Remap<'_>, args: &Args, out: &mut TextWriter<'_>) -> Result {
        let done = remap.carry_out(args, out);
        remap.watch_if_needed();
        done
    }

    fn io_hints(remap: &Remap<'_>, limits: &mut Limits<'_>) {
        // Device-mapper asks when this table is about to take another one's place (`dm_swap_table`).
        remap.claim.supersede();
        // Slots are given their zeroes by ourselves if the spare can do no better.
        limits.set_max_write_zeroes_sectors(remap.main.device().write_zeroes_sectors());
    }

    fn iterate_devices(remap: &Remap<'_>, visitor: DeviceVisitor<'_>) -> Result<(), Stop> {
        visitor.visit(remap.main.device(), remap.main.start(), remap.ti.sectors())?;
        if visitor.has_no_data() {
            // Whatever main can do, the mapped device can.
            return Ok(());
        }
        let (spare, sectors) = (remap.spare(), remap.geometry.spare_sectors);
        visitor.visit(spare.device(), spare.start(), sectors)
    }
}
