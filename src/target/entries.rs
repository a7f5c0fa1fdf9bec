// SPDX-License-Identifier: GPL-2.0

//! The entries in memory: the filter's bits and one cell a region, see `engine/entries.rs` for what is in it.
//!
//! A bit of the filter is set before the first entry of its group is published, and never cleared. So it
//! needs no RCU to look at, and who sees it clear has looked before there was an entry.
//!
//! A bio notes the version before it looks entries up ([`Entries::version`]), and when it comes back
//! and the version is another, it asks whether its sectors are still where it went
//! ([`Entries::is_on_main`], [`Entries::is_in_slots`]). A change that bios in flight must not miss
//! first holds the entry ([`Entries::hold`]), which counts the version up, and only then copies data.

use super::version::{Stamp, Version};
use crate::dm::{rcu_read_lock, Bits, RcuGuard, RcuSlice, RcuSliceCell};
use crate::engine::{
    args::PendingReads,
    entries::{losses_of, Entry, Layout, Loss},
    geometry::Geometry,
    route::within_unit,
    Slot, Unit,
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Release},
        Mutex,
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
    /// Of these, those whose slots go to data that finds no other.
    pub(super) yielding: u64,
}

impl Counts {
    /// One more, or one less: `by`, of those that are as `entry` is.
    fn change(&mut self, entry: &Entry, by: i64) {
        let add = |count: &mut u64| *count = count.wrapping_add_signed(by);
        if entry.mask != 0 {
            add(&mut self.relocated);
        } else {
            add(&mut self.pending);
            if entry.yields {
                add(&mut self.yielding);
            }
        }
    }
}

/// Where a request goes that meets at most one entry.
pub(super) enum Look {
    /// There is none.
    Healthy,
    /// The slot has all of its sectors, from this sector of the region on, and writes need not wait.
    InSlot(Slot, u64),
    /// More than this is to be looked at.
    Undecided,
}

/// What an update needs.
struct Updater {
    counts: Counts,
    /// Room for a slice of [`RESERVE`] words, for when there is no memory.
    reserve: Option<RcuSlice<u64>>,
}

/// A page with the slice's length. Longer slices are rare ([`Layout`]), and wait for memory.
const RESERVE: usize = 511;

/// All entries of one target.
#[pin_data]
pub(super) struct Entries {
    geometry: Geometry,
    layout: Layout,
    unit_shift: u32,
    /// Base-2 logarithm of the sectors in a group.
    group_shift: u32,
    /// The last sector of the first slot, from the start of the region.
    first_slot_end: u64,
    filter: Bits,
    /// The regions, if entries have one word, and if they have two; else none.
    narrow: KVVec<RcuSliceCell<u64>>,
    paired: KVVec<RcuSliceCell<u64>>,
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
    /// No entries, for a target of that geometry with so many table blocks in use. May sleep.
    pub(super) fn new(geometry: &Geometry, in_use: u64) -> impl PinInit<Self, Error> {
        let geometry = *geometry;
        let layout = Layout::new(&geometry, in_use);
        let regions = move |are_these: bool| {
            let count = if are_these { layout.regions() } else { 0 };
            let mut regions = KVVec::with_capacity(count, GFP_KERNEL)?;
            for _ in 0..count {
                regions.push(RcuSliceCell::empty(), GFP_KERNEL)?;
            }
            Ok::<_, Error>(regions)
        };
        let updater = || {
            Ok::<_, Error>(Updater {
                counts: Counts::default(),
                reserve: Some(RcuSlice::with_capacity(RESERVE, GFP_KERNEL)?),
            })
        };
        try_pin_init!(Self {
            geometry,
            layout,
            unit_shift: geometry.unit_shift(),
            group_shift: geometry.unit_shift() + layout.group_shift(),
            first_slot_end: geometry.data_start + u64::from(geometry.unit_sectors) - 1,
            filter: Bits::new(layout.groups())?,
            narrow: regions(layout.stride() == 1)?,
            paired: regions(layout.stride() == 2)?,
            losses: RcuSliceCell::empty(),
            version: Version::new(),
            restored: Atomic::new(0),
            updater <- new_mutex!(updater()?, "dm_remap::updater"),
        })
    }

    fn unit_of(&self, sector: u64) -> Unit {
        Unit(sector.wrapping_shr(self.unit_shift))
    }

    /// Whether sectors `sector..sector + count` certainly meet no entry: the healthy path, one bit. Any
    /// context. `false` if they lie in two groups, and for the flushes of device-mapper, which have no
    /// sectors and begin at sector 0 of the mapped device.
    #[inline(always)]
    pub(super) fn is_healthy(&self, sector: u64, count: u32) -> bool {
        let group = sector.wrapping_shr(self.group_shift);
        let last = sector.wrapping_add(u64::from(count)).wrapping_sub(1);
        group == last.wrapping_shr(self.group_shift) && self.filter.is_clear(group)
    }

    /// From now on [`Self::is_healthy`] is true of nothing, or what is so again. Any context. Fully ordered.
    pub(super) fn hide(&self, hidden: bool) {
        self.filter.hide(hidden);
    }

    fn regions(&self) -> &[RcuSliceCell<u64>] {
        if self.narrow.is_empty() {
            &self.paired
        } else {
            &self.narrow
        }
    }

    /// For sectors that may meet an entry, what is known at once; if `QUICK`, what is found out in few instructions. Any context.
    #[inline(always)]
    pub(super) fn look<const QUICK: bool>(
        &self,
        sector: u64,
        count: u32,
        guard: &RcuGuard,
    ) -> Look {
        let behind = self.layout.behind(sector);
        // Nor does a flush, which has none, know its place.
        if u64::from(count.wrapping_sub(1)) > behind {
            return Look::Undecided;
        }
        let (region, least) = self.layout.locate(sector);
        let regions = if QUICK { &self.narrow } else { self.regions() };
        let Some(cell) = regions.get(region) else {
            return Look::Undecided;
        };
        let words = cell.read(guard);
        let slot = if QUICK {
            self.layout.slot_at_once(words, least)
        } else {
            self.layout.slot(words, least, behind, count)
        };
        match slot {
            None => Look::Healthy,
            Some(None) => Look::Undecided,
            Some(Some(slot)) => {
                let slots = u64::from(slot.0).wrapping_shl(self.unit_shift);
                let end = self.first_slot_end.wrapping_add(slots);
                Look::InSlot(slot, end.wrapping_sub(behind))
            }
        }
    }

    /// The first entry that sectors `sector..sector + count` meet, for a `count` above 0. Any context.
    pub(super) fn first(&self, sector: u64, count: u32, guard: &RcuGuard) -> Option<Entry> {
        let first = self.unit_of(sector);
        let last = self.unit_of(sector.wrapping_add(u64::from(count)).wrapping_sub(1));
        let (mut at, to) = (self.layout.group_of(first), self.layout.group_of(last));
        while let Some(group) = self.filter.first_set(at, to) {
            let (from, end) = self.layout.units_of(group);
            let entry = self.search(from.max(first), guard);
            if let Some(entry) = entry.filter(|e| e.unit <= end.min(last)) {
                return Some(entry);
            }
            at = group.wrapping_add(1);
        }
        None
    }

    /// How many of the sectors `sector..sector + count` from the first on are to be read from main in one go: those of
    /// no entry, and those that an entry leaves on main; of units without any in a slot only if reads of them ask main. Any context.
    pub(super) fn on_main(
        &self,
        sector: u64,
        count: u32,
        pending: PendingReads,
        guard: &RcuGuard,
    ) -> u32 {
        let mut done = 0;
        while done < count {
            let at = sector.wrapping_add(done.into());
            let left = count.wrapping_sub(done);
            let Some(entry) = self.first(at, left, guard) else {
                return count;
            };
            let before = self.geometry.unit_start(entry.unit).saturating_sub(at);
            let before = u32::try_from(before).unwrap_or(left);
            if before > 0 {
                // Never past the end: the entry meets the request.
                done = done.wrapping_add(before.min(left));
                continue;
            }
            let (bits, within) = within_unit(&self.geometry, at, left);
            let offset = bits.trailing_zeros();
            let elsewhere = (entry.mask | entry.lost).wrapping_shr(offset);
            let clear = elsewhere.trailing_zeros().min(within);
            if entry.mask == 0 && pending == PendingReads::Fail {
                return done;
            }
            done = done.wrapping_add(clear);
            if clear < within {
                return done;
            }
        }
        done
    }

    /// The first entry of `from`'s region from `from` on.
    fn search(&self, from: Unit, guard: &RcuGuard) -> Option<Entry> {
        let (region, key) = self.layout.place(from);
        let words = self.regions().get(region)?.read(guard);
        let index = self.layout.find(words, key);
        self.layout
            .entry(region, words, index, || self.losses.read(guard))
    }

    /// The entry of `unit`. Any context.
    pub(super) fn get(&self, unit: Unit) -> Option<Entry> {
        self.search(unit, &rcu_read_lock())
            .filter(|e| e.unit == unit)
    }

    /// Calls `visit` for the entries from `from` on in ascending order, until it returns `false`.
    /// `visit` must not sleep.
    pub(super) fn visit(&self, from: Unit, mut visit: impl FnMut(Entry) -> bool) {
        let mut at = self.layout.group_of(from);
        while let Some(group) = self.filter.first_set(at, u64::MAX) {
            let (first, last) = self.layout.units_of(group);
            let (region, key) = self.layout.place(first.max(from));
            let guard = rcu_read_lock();
            let words = self
                .regions()
                .get(region)
                .map_or(&[][..], |c| c.read(&guard));
            let mut index = self.layout.find(words, key);
            let losses = || self.losses.read(&guard);
            while let Some(entry) = self.layout.entry(region, words, index, losses) {
                if entry.unit > last {
                    break;
                }
                if !visit(entry) {
                    return;
                }
                index = index.wrapping_add(1);
            }
            at = group.wrapping_add(1);
        }
    }

    // ---- Bios in flight

    /// Whether a write of sectors `sector..sector + count` that went to main, having noted `stamp`
    /// as the version, is where reads will look for it. `pending`: whether they look at main for units that
    /// have no sector in a slot, too. Any context.
    pub(super) fn is_on_main(
        &self,
        stamp: Stamp,
        sector: u64,
        count: u32,
        pending: PendingReads,
    ) -> bool {
        let (mut at, mut left) = (sector, count);
        let guard = rcu_read_lock();
        while left > 0 {
            let Some(entry) = self.first(at, left, &guard) else {
                break;
            };
            let start = self.geometry.unit_start(entry.unit);
            let before = u32::try_from(start.saturating_sub(at))
                .unwrap_or(left)
                .min(left);
            at = at.wrapping_add(before.into());
            left = left.wrapping_sub(before);
            let (bits, within) = within_unit(&self.geometry, at, left);
            let is_away = (entry.mask | entry.lost) & bits != 0;
            let is_unread = entry.mask == 0 && pending == PendingReads::Fail;
            if entry.held || is_away || is_unread {
                return false;
            }
            at = at.wrapping_add(within.into());
            left = left.wrapping_sub(within);
        }
        // Asked last: a restore sets this before it removes the entry, so who misses the entry sees this.
        stamp.count() >= self.restored.load(Acquire)
    }

    /// Whether a write of sectors `sector..sector + count`, for a `count` above 0, is where reads will look for it: the first
    /// unit's went to `slot`, those of the units behind it to the slots behind that. Any context.
    pub(super) fn is_in_slots(&self, sector: u64, count: u32, slot: Slot) -> bool {
        let first = self.unit_of(sector);
        let last = self.unit_of(sector.wrapping_add(u64::from(count)).wrapping_sub(1));
        let more = last.0.wrapping_sub(first.0) as u32;
        (0..=more).all(|n| {
            let entry = self.get(Unit(first.0.wrapping_add(n.into())));
            entry.is_some_and(|e| e.slot == Slot(slot.0.wrapping_add(n)) && !e.held)
        })
    }

    /// Publishes `entry` as held: from now on writes to its unit wait for the unit's lock, and those in
    /// flight come back to be repeated. May sleep. Returns the version.
    pub(super) fn hold(&self, entry: &Entry) -> Stamp {
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
        self.restored.store(version.count(), Release);
    }

    // ---- Changes

    /// Makes `entry` that of `unit`, or leaves it without one: for readers, in one step. May sleep.
    ///
    /// Does not fail: what it makes known is on the spare already. Waits for memory if it must.
    pub(super) fn set(&self, unit: Unit, entry: Option<&Entry>) {
        let (region, _) = self.layout.place(unit);
        let Some(cell) = self.regions().get(region) else {
            return;
        };
        let packed = entry.map(|e| self.layout.pack(e));
        let packed = packed.as_ref().and_then(|p| p.get(..self.layout.stride()));
        let packed = packed.unwrap_or(&[]);
        let mut updater = self.updater.lock();
        let old = self.get(unit);
        if entry.is_some() {
            self.filter.set(self.layout.group_of(unit));
        }
        // Nobody else replaces the slice while `updater` is locked: its length stays what it is.
        let guard = rcu_read_lock();
        let (before, behind) = self.layout.around(cell.read(&guard), unit);
        let length = before.len() + packed.len() + behind.len();
        drop(guard);
        if updater.reserve.is_none() {
            updater.reserve = RcuSlice::with_capacity(RESERVE, GFP_KERNEL).ok();
        }
        let mut new = slice(length, || updater.reserve.take_if(|_| length <= RESERVE));
        let guard = rcu_read_lock();
        let (before, behind) = self.layout.around(cell.read(&guard), unit);
        for words in [before, packed, behind] {
            new.extend(words);
        }
        drop(guard);
        cell.replace((length > 0).then_some(new));
        if let Some(old) = old {
            updater.counts.change(&old, -1);
        }
        if let Some(entry) = entry {
            updater.counts.change(entry, 1);
        }
    }

    /// Publishes an entry of a unit that had none, and that no bio must miss from now on. May sleep.
    pub(super) fn add(&self, entry: &Entry) {
        self.set(entry.unit, Some(entry));
        self.version.bump();
    }

    /// Adds `loss`; the entry of its unit is to be set after that. May sleep.
    pub(super) fn add_loss(&self, loss: Loss) {
        let _updater = self.updater.lock();
        let length = self.losses.read(&rcu_read_lock()).len();
        let mut new = slice(length.saturating_add(1), || None);
        let guard = rcu_read_lock();
        let old = self.losses.read(&guard);
        let at = old.partition_point(|l| l.unit <= loss.unit);
        let (before, behind) = old.split_at_checked(at).unwrap_or((old, &[]));
        for part in [before, &[loss], behind] {
            new.extend(part);
        }
        drop(guard);
        self.losses.replace(Some(new));
    }

    /// Leaves those of the sectors `keep` among the losses of `unit`. May sleep.
    pub(super) fn keep_losses(&self, unit: Unit, keep: u64) {
        let _updater = self.updater.lock();
        if !self.has_losses(unit) {
            return;
        }
        let length = self.losses.read(&rcu_read_lock()).len();
        let mut new = slice(length, || None);
        let guard = rcu_read_lock();
        for loss in self.losses.read(&guard) {
            let keep = if loss.unit == unit { keep } else { u64::MAX };
            let mask = loss.mask & keep;
            if mask != 0 {
                new.extend(&[Loss { mask, ..*loss }]);
            }
        }
        drop(guard);
        self.losses.replace(Some(new));
    }

    fn has_losses(&self, unit: Unit) -> bool {
        !losses_of(self.losses.read(&rcu_read_lock()), unit).is_empty()
    }

    /// Loss `nth` of `unit`. Any context.
    pub(super) fn loss(&self, unit: Unit, nth: usize) -> Option<Loss> {
        let guard = rcu_read_lock();
        losses_of(self.losses.read(&guard), unit).get(nth).copied()
    }

    /// Sectors that are lost. May sleep.
    pub(super) fn lost_sectors(&self) -> u64 {
        let mut sectors = 0;
        self.visit_losses(|loss| {
            let held = self.get(loss.unit).map_or(0, |entry| entry.mask);
            sectors += u64::from((loss.mask & !held).count_ones());
        });
        sectors
    }

    /// Calls `visit` for each loss, those that were made good among them. It must not sleep.
    pub(super) fn visit_losses(&self, visit: impl FnMut(&Loss)) {
        self.losses.read(&rcu_read_lock()).iter().for_each(visit);
    }

    /// Replaces all entries by `sorted`, ascending and each unit once, and the losses, sorted by unit. May sleep. On an
    /// error there are none.
    pub(super) fn load(&self, sorted: &[Entry], losses: &[Loss]) -> Result {
        let layout = &self.layout;
        let mut updater = self.updater.lock();
        updater.counts = Counts::default();
        self.regions().iter().for_each(|c| c.replace(None));
        self.losses.replace(None);

        let stride = layout.stride() as u32;
        let mut lengths = KVVec::from_elem(0_u32, layout.regions(), GFP_KERNEL)?;
        for entry in sorted {
            let length = lengths.get_mut(layout.place(entry.unit).0).ok_or(EINVAL)?;
            *length = length.checked_add(stride).ok_or(EFBIG)?;
        }
        let mut slices = KVVec::with_capacity(layout.regions(), GFP_KERNEL)?;
        for length in lengths {
            let slice = match length {
                0 => None,
                _ => Some(RcuSlice::with_capacity(length as usize, GFP_KERNEL)?),
            };
            slices.push(slice, GFP_KERNEL)?;
        }
        let mut slice = RcuSlice::with_capacity(losses.len(), GFP_KERNEL)?;
        slice.extend(losses);
        self.losses.replace((!losses.is_empty()).then_some(slice));
        for entry in sorted {
            self.filter.set(layout.group_of(entry.unit));
            let (region, key) = layout.place(entry.unit);
            let slice = slices.get_mut(region).and_then(Option::as_mut);
            let slice = slice.ok_or(EINVAL)?;
            let [word, mask] = layout.pack_at(key, entry);
            slice.push(word);
            if stride > 1 {
                slice.push(mask);
            }
            updater.counts.change(entry, 1);
        }
        for (cell, slice) in self.regions().iter().zip(slices) {
            if slice.is_some() {
                cell.replace(slice);
            }
        }
        Ok(())
    }

    /// How many there are. May sleep.
    pub(super) fn counts(&self) -> Counts {
        self.updater.lock().counts
    }
}
