// SPDX-License-Identifier: GPL-2.0

//! The entries in memory: one cell a region, see `engine/entries.rs` for what is in it.

use crate::dm::{RcuSlice, RcuSliceCell};
use crate::engine::{
    entries::{first_from, region_of, updated, Entry, Packed},
    geometry::Geometry,
    Unit,
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{rcu, Mutex},
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

/// All entries of one target.
#[pin_data]
pub(super) struct Entries {
    unit_shift: u32,
    regions: KVVec<RcuSliceCell<Packed>>,
    /// Serialises updates.
    #[pin]
    counts: Mutex<Counts>,
}

impl Entries {
    /// No entries, for a main device of the length that `geometry` says. 8 bytes a region of main.
    pub(super) fn new(geometry: &Geometry) -> impl PinInit<Self, Error> {
        let unit_shift = geometry.unit_shift();
        let count = region_of(Unit(geometry.units().saturating_sub(1))).saturating_add(1);
        let regions = move || {
            let count = usize::try_from(count).map_err(|_| EFBIG)?;
            let mut regions = KVVec::with_capacity(count, GFP_KERNEL)?;
            for _ in 0..count {
                regions.push(RcuSliceCell::empty(), GFP_KERNEL)?;
            }
            Ok::<_, Error>(regions)
        };
        try_pin_init!(Self {
            unit_shift,
            regions: regions()?,
            counts <- new_mutex!(Counts::default(), "dm_remap::counts"),
        })
    }

    #[inline(always)]
    fn cell(&self, region: u64) -> Option<&RcuSliceCell<Packed>> {
        self.regions.get(region as usize)
    }

    fn unit_of(&self, sector: u64) -> Unit {
        Unit(sector.wrapping_shr(self.unit_shift))
    }

    /// Whether sectors `sector..sector + count` certainly meet no entry: the healthy path, one load
    /// for each region that they lie in. Any context. `false` for no sectors and for more than two
    /// regions.
    #[inline(always)]
    pub(super) fn is_healthy(&self, sector: u64, count: u32) -> bool {
        let first = region_of(self.unit_of(sector));
        let last = sector.wrapping_add(u64::from(count).wrapping_sub(1));
        let last = region_of(self.unit_of(last));
        let empty = |region| self.cell(region).is_some_and(RcuSliceCell::is_empty);
        empty(first)
            && (last == first || last == first.wrapping_add(1) && empty(last))
            && count != 0
    }

    /// The first entry that sectors `sector..sector + count` meet, for a `count` above 0. Any context.
    pub(super) fn first(&self, sector: u64, count: u32) -> Option<Entry> {
        let first = self.unit_of(sector);
        let last = self.unit_of(sector.wrapping_add(u64::from(count).wrapping_sub(1)));
        for region in region_of(first)..=region_of(last) {
            let cell = self.cell(region)?;
            if !cell.is_empty() {
                if let Some(entry) = Self::search(cell, region, first, last) {
                    return Some(entry);
                }
            }
        }
        None
    }

    fn search(cell: &RcuSliceCell<Packed>, region: u64, first: Unit, last: Unit) -> Option<Entry> {
        let guard = rcu::read_lock();
        first_from(cell.read(&guard), region, first).filter(|e| e.unit <= last)
    }

    /// The entry of `unit`. Any context.
    pub(super) fn get(&self, unit: Unit) -> Option<Entry> {
        let region = region_of(unit);
        Self::search(self.cell(region)?, region, unit, unit)
    }

    /// Calls `visit` for the entries from `from` on in ascending order, until it returns `false`.
    /// `visit` must not sleep.
    pub(super) fn visit(&self, from: Unit, mut visit: impl FnMut(Entry) -> bool) {
        let first = region_of(from);
        for (cell, region) in self.regions.iter().skip(first as usize).zip(first..) {
            let guard = rcu::read_lock();
            for packed in cell.read(&guard) {
                let entry = packed.entry(region);
                if entry.unit >= from && !visit(entry) {
                    return;
                }
            }
        }
    }

    /// Makes `entry` that of `unit`, or leaves it without one: for readers, in one step. May sleep.
    ///
    /// Does not fail: what it makes known is on the spare already. Waits for memory if it must.
    pub(super) fn set(&self, unit: Unit, entry: Option<&Entry>) {
        let region = region_of(unit);
        let Some(cell) = self.cell(region) else {
            return;
        };
        let mut counts = self.counts.lock();
        let old = self.get(unit);
        // Nobody else replaces the slice while `counts` is locked: its length stays what it is.
        let length = updated(cell.read(&rcu::read_lock()), unit, entry).count();
        let mut new = loop {
            match RcuSlice::with_capacity(length, GFP_KERNEL) {
                Ok(new) => break new,
                Err(_) => fsleep(Delta::from_millis(1)),
            }
        };
        new.extend(updated(cell.read(&rcu::read_lock()), unit, entry));
        cell.replace((length > 0).then_some(new));
        if let Some(old) = old {
            *counts.of(&old) -= 1;
        }
        if let Some(entry) = entry {
            *counts.of(entry) += 1;
        }
    }

    /// Replaces all entries by `sorted`, ascending and each unit once. May sleep. On an error some
    /// are replaced.
    pub(super) fn load(&self, sorted: &[Entry]) -> Result {
        let mut counts = self.counts.lock();
        *counts = Counts::default();
        for cell in self.regions.iter().filter(|c| !c.is_empty()) {
            cell.replace(None);
        }
        for chunk in sorted.chunk_by(|a, b| region_of(a.unit) == region_of(b.unit)) {
            let cell = chunk.first().and_then(|e| self.cell(region_of(e.unit)));
            let mut slice = RcuSlice::with_capacity(chunk.len(), GFP_KERNEL)?;
            slice.extend(chunk.iter().map(Packed::new));
            cell.ok_or(EINVAL)?.replace(Some(slice));
            chunk.iter().for_each(|e| *counts.of(e) += 1);
        }
        Ok(())
    }

    /// How many there are. May sleep.
    pub(super) fn counts(&self) -> Counts {
        *self.counts.lock()
    }
}
