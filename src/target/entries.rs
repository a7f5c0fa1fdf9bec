// SPDX-License-Identifier: GPL-2.0

//! The entries in memory: one cell a region, see `engine/entries.rs` for what is in it.
//!
//! A bio notes the version before it looks entries up ([`Entries::version`]), and when it comes back
//! and the version is another, it asks whether its sectors are still where it went
//! ([`Entries::is_on_main`], [`Entries::is_in_slot`]). A change that bios in flight must not miss
//! first holds the entry ([`Entries::hold`]), which counts the version up, and only then copies data.

use crate::dm::{RcuSlice, RcuSliceCell, Version};
use crate::engine::{
    entries::{
        first_from, lost_of, region_of, updated, Entry, Loss, Packed, REGION_SHIFT, REGION_UNITS,
    },
    geometry::Geometry,
    route::within_unit,
    Slot, Unit,
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Release},
        rcu, Mutex,
    },
    time::{delay::fsleep, Delta},
};

/// How many entries there are.
#[derive(Clone, Copy, Default)]
pub(super) struct Counts {
    /// With at least one sector in the slot.
    pub(super) relocated: u64,
    /// With none.
    pub(super) pending: u64,
}

impl Counts {
    fn of(&mut self, entry: &Entry) -> &mut u64 {
        if entry.mask == 0 {
            &mut self.pending
        } else {
            &mut self.relocated
        }
    }
}

/// What an update needs.
struct Updater {
    counts: Counts,
    /// Room for the largest slice, for when there is no memory.
    reserve: Option<RcuSlice<Packed>>,
}

/// All entries of one target.
#[pin_data]
pub(super) struct Entries {
    geometry: Geometry,
    unit_shift: u32,
    region_shift: u32,
    regions: KVVec<RcuSliceCell<Packed>>,
    losses: RcuSliceCell<Loss>,
    /// Entries that were held so far.
    pub(super) version: Version,
    /// The version with which the last unit was held whose sectors went back to main.
    restored: Atomic<usize>,
    /// Serialises updates.
    #[pin]
    updater: Mutex<Updater>,
}

/// A slice of `capacity` elements, waiting for memory if it must.
fn slice<E: Copy>(
    capacity: usize,
    mut instead: impl FnMut() -> Option<RcuSlice<E>>,
) -> RcuSlice<E> {
    loop {
        let made = RcuSlice::with_capacity(capacity, GFP_KERNEL);
        if let Some(slice) = made.ok().or_else(&mut instead) {
            return slice;
        }
        fsleep(Delta::from_millis(1));
    }
}

impl Entries {
    /// No entries, for a main device of the length that `geometry` says. 8 bytes a region of main.
    pub(super) fn new(geometry: &Geometry) -> impl PinInit<Self, Error> {
        let geometry = *geometry;
        let count = region_of(Unit(geometry.units().saturating_sub(1))).saturating_add(1);
        let regions = move || {
            let count = usize::try_from(count).map_err(|_| EFBIG)?;
            let mut regions = KVVec::with_capacity(count, GFP_KERNEL)?;
            for _ in 0..count {
                regions.push(RcuSliceCell::empty(), GFP_KERNEL)?;
            }
            Ok::<_, Error>(regions)
        };
        let updater = || {
            Ok::<_, Error>(Updater {
                counts: Counts::default(),
                reserve: Some(RcuSlice::with_capacity(REGION_UNITS as usize, GFP_KERNEL)?),
            })
        };
        try_pin_init!(Self {
            geometry,
            unit_shift: geometry.unit_shift(),
            region_shift: geometry.unit_shift() + REGION_SHIFT,
            regions: regions()?,
            losses: RcuSliceCell::empty(),
            version: Version::new(),
            restored: Atomic::new(0),
            updater <- new_mutex!(updater()?, "dm_remap::updater"),
        })
    }

    #[inline(always)]
    fn cell(&self, region: u64) -> Option<&RcuSliceCell<Packed>> {
        self.regions.get(region as usize)
    }

    fn unit_of(&self, sector: u64) -> Unit {
        Unit(sector.wrapping_shr(self.unit_shift))
    }

    /// Whether sectors `sector..sector + count` certainly meet no entry: the healthy path, one load.
    /// Any context. `false` if they lie in two regions, and for the flushes of device-mapper, which
    /// have no sectors and begin at sector 0 of the mapped device.
    #[inline(always)]
    pub(super) fn is_healthy(&self, sector: u64, count: u32) -> bool {
        let region = sector.wrapping_shr(self.region_shift);
        let last = sector.wrapping_add(u64::from(count).wrapping_sub(1));
        region == last.wrapping_shr(self.region_shift)
            && self.cell(region).is_some_and(RcuSliceCell::is_empty)
    }

    /// The first entry that sectors `sector..sector + count` meet, for a `count` above 0. Any context.
    pub(super) fn first(&self, sector: u64, count: u32) -> Option<Entry> {
        let first = self.unit_of(sector);
        let last = self.unit_of(sector.wrapping_add(u64::from(count).wrapping_sub(1)));
        for region in region_of(first)..=region_of(last) {
            let cell = self.cell(region)?;
            if !cell.is_empty() {
                if let Some(entry) = self.search(cell, region, first, last) {
                    return Some(entry);
                }
            }
        }
        None
    }

    fn search(
        &self,
        cell: &RcuSliceCell<Packed>,
        region: u64,
        first: Unit,
        last: Unit,
    ) -> Option<Entry> {
        let guard = rcu::read_lock();
        let packed = first_from(cell.read(&guard), region, first)?;
        let entry = packed.entry(region, || self.losses.read(&guard));
        (entry.unit <= last).then_some(entry)
    }

    /// The entry of `unit`. Any context.
    pub(super) fn get(&self, unit: Unit) -> Option<Entry> {
        let region = region_of(unit);
        self.search(self.cell(region)?, region, unit, unit)
    }

    /// Calls `visit` for the entries from `from` on in ascending order, until it returns `false`.
    /// `visit` must not sleep.
    pub(super) fn visit(&self, from: Unit, mut visit: impl FnMut(Entry) -> bool) {
        let first = region_of(from);
        for (cell, region) in self.regions.iter().skip(first as usize).zip(first..) {
            if cell.is_empty() {
                continue;
            }
            let guard = rcu::read_lock();
            for packed in cell.read(&guard) {
                let entry = packed.entry(region, || self.losses.read(&guard));
                if entry.unit >= from && !visit(entry) {
                    return;
                }
            }
        }
    }

    // ---- Bios in flight

    /// Whether a write of sectors `sector..sector + count` that went to main, having noted `stamp`
    /// as the version, is where reads will look for it. Any context.
    pub(super) fn is_on_main(&self, stamp: usize, sector: u64, count: u32) -> bool {
        if stamp < self.restored.load(Acquire) {
            return false;
        }
        let (mut at, mut left) = (sector, count);
        while left > 0 {
            let Some(entry) = self.first(at, left) else {
                return true;
            };
            let start = self.geometry.unit_start(entry.unit);
            let before = u32::try_from(start.saturating_sub(at))
                .unwrap_or(left)
                .min(left);
            at = at.wrapping_add(before.into());
            left = left.wrapping_sub(before);
            let (bits, within) = within_unit(&self.geometry, at, left);
            if entry.held || (entry.mask | entry.lost) & bits != 0 {
                return false;
            }
            at = at.wrapping_add(within.into());
            left = left.wrapping_sub(within);
        }
        true
    }

    /// Whether a write of sectors of the unit at `sector` that went to `slot` is where reads will look
    /// for it. Any context.
    pub(super) fn is_in_slot(&self, sector: u64, slot: Slot) -> bool {
        let entry = self.get(self.unit_of(sector));
        entry.is_some_and(|e| e.slot == slot && !e.held)
    }

    /// Publishes `entry` as held: from now on writes to its unit wait for the unit's lock, and those in
    /// flight come back to be repeated. May sleep. Returns the version.
    pub(super) fn hold(&self, entry: &Entry) -> usize {
        let held = Entry {
            held: true,
            ..*entry
        };
        self.set(entry.unit, Some(&held));
        self.version.bump()
    }

    /// As [`Entries::hold`], for a unit whose sectors are to go back to main: writes that have been on
    /// their way to main since before the entry was made come back too. May sleep.
    pub(super) fn hold_to_restore(&self, entry: &Entry) {
        let version = self.hold(entry);
        self.restored.store(version, Release);
    }

    // ---- Changes

    /// Makes `entry` that of `unit`, or leaves it without one: for readers, in one step. May sleep.
    ///
    /// Does not fail: what it makes known is on the spare already. Waits for memory if it must.
    pub(super) fn set(&self, unit: Unit, entry: Option<&Entry>) {
        let region = region_of(unit);
        let Some(cell) = self.cell(region) else {
            return;
        };
        let mut updater = self.updater.lock();
        let old = self.get(unit);
        // Nobody else replaces the slice while `updater` is locked: its length stays what it is.
        let length = updated(cell.read(&rcu::read_lock()), unit, entry).count();
        if updater.reserve.is_none() {
            updater.reserve = RcuSlice::with_capacity(REGION_UNITS as usize, GFP_KERNEL).ok();
        }
        let mut new = slice(length, || updater.reserve.take());
        new.extend(updated(cell.read(&rcu::read_lock()), unit, entry));
        cell.replace((length > 0).then_some(new));
        if let Some(old) = old {
            *updater.counts.of(&old) -= 1;
        }
        if let Some(entry) = entry {
            *updater.counts.of(entry) += 1;
        }
    }

    /// Adds `loss`; the entry of its unit is to be set after that. May sleep.
    pub(super) fn add_loss(&self, loss: Loss) {
        let _updater = self.updater.lock();
        let length = self.losses.read(&rcu::read_lock()).len();
        let mut new = slice(length.saturating_add(1), || None);
        new.extend(self.losses.read(&rcu::read_lock()).iter().copied());
        new.extend(core::iter::once(loss));
        self.losses.replace(Some(new));
    }

    /// Forgets the losses of `unit`, which has no entry any more. May sleep.
    pub(super) fn forget_losses(&self, unit: Unit) {
        let _updater = self.updater.lock();
        if !self.has_losses(unit) {
            return;
        }
        let length = self.losses.read(&rcu::read_lock()).len();
        let mut new = slice(length, || None);
        let guard = rcu::read_lock();
        let others = self.losses.read(&guard).iter().filter(|l| l.unit != unit);
        new.extend(others.copied());
        drop(guard);
        self.losses.replace(Some(new));
    }

    fn has_losses(&self, unit: Unit) -> bool {
        lost_of(self.losses.read(&rcu::read_lock()), unit) != 0
    }

    /// Calls `visit` for each loss, those that were made good among them. It must not sleep.
    pub(super) fn visit_losses(&self, visit: impl FnMut(&Loss)) {
        self.losses.read(&rcu::read_lock()).iter().for_each(visit);
    }

    /// Replaces all entries by `sorted`, ascending and each unit once, and the losses. May sleep. On an
    /// error some are replaced.
    pub(super) fn load(&self, sorted: &[Entry], losses: &[Loss]) -> Result {
        let mut updater = self.updater.lock();
        updater.counts = Counts::default();
        for cell in self.regions.iter().filter(|c| !c.is_empty()) {
            cell.replace(None);
        }
        let mut slice = RcuSlice::with_capacity(losses.len(), GFP_KERNEL)?;
        slice.extend(losses.iter().copied());
        self.losses.replace((!losses.is_empty()).then_some(slice));
        for chunk in sorted.chunk_by(|a, b| region_of(a.unit) == region_of(b.unit)) {
            let cell = chunk.first().and_then(|e| self.cell(region_of(e.unit)));
            let mut slice = RcuSlice::with_capacity(chunk.len(), GFP_KERNEL)?;
            slice.extend(chunk.iter().map(Packed::new));
            cell.ok_or(EINVAL)?.replace(Some(slice));
            chunk.iter().for_each(|e| *updater.counts.of(e) += 1);
        }
        Ok(())
    }

    /// How many there are. May sleep.
    pub(super) fn counts(&self) -> Counts {
        self.updater.lock().counts
    }
}
