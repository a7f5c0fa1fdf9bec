// SPDX-License-Identifier: GPL-2.0

//! Whether main answers at all: a device that goes away is not bad sectors.
//!
//! Before an error makes an entry, main must answer a read elsewhere, unless it is a read's and says itself that it is
//! the medium's. If it does not, the error goes up and nothing is recorded; after [`TRIP`] different units in a row the target
//! trips, and errors go up without being looked into until main answers again.
//!
//! Whether it takes writes: see [`Refusals`].

use super::Remap;
use crate::dm::{BlkStatus, IoBuffer};
use crate::engine::{
    recovery::{Patch, Refusals},
    Unit,
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Full, Relaxed, Release},
        Mutex,
    },
};

/// Places on main that are tried before an error is taken for one of all of main, where more than a read depends on that.
pub(super) const PLACES_ASKED: u32 = 4;
/// Different units that failed in a row while main did not answer.
const TRIP: u32 = 8;
/// Places on main, one of which is tried if the one that last worked does not any more.
const PLACES: u64 = 16;
/// From one of them to the next: far away.
const STRIDE: u64 = 7;

struct Probe {
    /// A physical block's room.
    buffer: IoBuffer,
    /// How many were begun before this one, and what it said.
    number: u64,
    answered: bool,
    /// The unit that failed last while main did not answer, and how many did in a row.
    last: Option<Unit>,
    streak: u32,
    /// Which of the places is tried next.
    place: u64,
}

/// What the failures of main have in common.
#[derive(Default)]
struct Pattern {
    patch: Patch,
    refusals: Refusals,
}

/// What is known about main.
#[pin_data]
pub(super) struct Vitals {
    tripped: Atomic<bool>,
    /// The sector of the target that was read or written last as far as is known.
    good: Atomic<u64>,
    /// Probes begun.
    begun: Atomic<u64>,
    /// Writes to main that succeed are of interest.
    watching: Atomic<bool>,
    /// One has succeeded since.
    took: Atomic<bool>,
    /// Held during a probe's I/O.
    #[pin]
    probe: Mutex<Probe>,
    /// Held for a moment.
    #[pin]
    pattern: Mutex<Pattern>,
}

impl Vitals {
    /// For a main device with physical or logical blocks of up to `block` sectors that is not known to have failed.
    pub(super) fn new(block: u32) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            tripped: Atomic::new(false),
            good: Atomic::new(0),
            begun: Atomic::new(0),
            watching: Atomic::new(false),
            took: Atomic::new(false),
            probe <- new_mutex!(
                Probe {
                    buffer: IoBuffer::new((block as usize) << 9)?,
                    number: 0,
                    answered: true,
                    last: None,
                    streak: 0,
                    place: 0,
                },
                "dm_remap::probe"
            ),
            pattern <- new_mutex!(Pattern::default(), "dm_remap::pattern"),
        }? Error)
    }

    /// Whether errors of main go up as they are. Any context.
    pub(super) fn is_tripped(&self) -> bool {
        self.tripped.load(Relaxed)
    }

    /// Sector `sector` of the target was read from or written to main. Any context.
    pub(super) fn worked(&self, sector: u64) {
        self.good.store(sector, Relaxed);
    }

    /// Whether main is watched for writes that it takes. Any context.
    pub(super) fn is_watching(&self) -> bool {
        self.watching.load(Relaxed)
    }

    /// Main took a write. Any context.
    pub(super) fn took_write(&self) {
        self.took.store(true, Relaxed);
        self.watching.store(false, Release);
    }

    /// Takes main for well again. May sleep.
    pub(super) fn rearm(&self) {
        let mut probe = self.probe.lock();
        probe.streak = 0;
        probe.last = None;
        self.tripped.store(false, Release);
    }

    /// Whether a read that failed at `sector` of the target is certain to fail again. May sleep.
    pub(super) fn is_certain(&self, sector: u64) -> bool {
        self.pattern.lock().patch.is_certain(sector)
    }
}

impl Remap<'_> {
    /// Whether main answers a read elsewhere, asked because `unit` failed: at up to `places` places, until one is read.
    /// Trips if too many units did. May sleep. Callers that arrive during a probe share the result of the next one.
    pub(super) fn main_answers(&self, unit: Unit, places: u32) -> bool {
        let vitals = &self.vitals;
        let asked = vitals.begun.load(Acquire);
        let mut probe = vitals.probe.lock();
        if probe.number <= asked {
            self.look_elsewhere(unit);
            probe.number = vitals.begun.fetch_add(1, Full).wrapping_add(1);
            probe.answered = (0..places).any(|_| self.probe_main(&mut probe));
        }
        if probe.answered {
            probe.streak = 0;
            probe.last = None;
        } else if probe.last != Some(unit) {
            probe.last = Some(unit);
            probe.streak = probe.streak.saturating_add(1);
            if probe.streak >= TRIP {
                vitals.tripped.store(true, Release);
            }
        }
        probe.answered
    }

    /// Sees to it that a probe does not read what has just failed, nor its neighbours.
    fn look_elsewhere(&self, unit: Unit) {
        const NEAR: u64 = 2048;
        let (failed, length) = (self.geometry.unit_start(unit), self.geometry.main_sectors);
        if self.vitals.good.load(Relaxed).abs_diff(failed) < NEAR.min(length / 4) {
            // The other end of main.
            let last = length / PLACES * (PLACES - 1);
            self.vitals
                .worked(if failed < length / 2 { last } else { 0 });
        }
    }

    /// Whether `unit`, which could not be read, is bad, and not all of main: it failed with `status`. `may_ask`: another
    /// command may fail. May sleep.
    pub(super) fn is_bad_place(&self, unit: Unit, status: BlkStatus, may_ask: bool) -> bool {
        let (from, to) = (
            self.geometry.unit_start(unit),
            self.geometry.unit_start(Unit(unit.0.saturating_add(1))),
        );
        let patch = self.vitals.pattern.lock().patch;
        // Of a medium's error there is no doubt.
        let must_ask = status != BlkStatus::MEDIUM && patch.must_ask(from);
        if must_ask && !(may_ask && self.main_answers(unit, 1)) {
            return false;
        }
        self.vitals.pattern.lock().patch.note(from, to, must_ask);
        true
    }

    /// Main failed a write to `unit`, and answers. Says so if it takes none at all. May sleep.
    pub(super) fn main_refused(&self, unit: Unit) {
        let vitals = &self.vitals;
        let is_refusal = {
            let mut pattern = vitals.pattern.lock();
            if vitals.took.xchg(false, Full) {
                pattern.refusals.succeeded();
            }
            let is_refusal = pattern.refusals.failed(unit.0);
            vitals
                .watching
                .store(pattern.refusals.is_suspicious(), Release);
            is_refusal
        };
        self.be_careful();
        if is_refusal {
            pr_err!(
                "{}: main takes no writes: it failed the last ones to many different units, and took none between them\n",
                self.name()
            );
            self.ti.event();
        }
    }

    /// Looks for a place where main can be read, before anything has failed: at most two commands. May sleep.
    pub(super) fn find_good_place(&self) {
        let mut probe = self.vitals.probe.lock();
        let _ = self.probe_main(&mut probe) || self.probe_main(&mut probe);
    }

    /// Leaves the mode `tripped` if main answers. One command. May sleep.
    pub(super) fn rearm_if_main_answers(&self) {
        let answered = self.probe_main(&mut self.vitals.probe.lock());
        if answered {
            self.vitals.rearm();
        }
    }

    /// Reads a block on main: where it last worked; if that fails, the next probe tries elsewhere. One command.
    fn probe_main(&self, probe: &mut Probe) -> bool {
        let good = self.vitals.good.load(Relaxed);
        let sector = good & !(u64::from(self.block) - 1);
        let at = self.main.sector(sector);
        match self.main.read(at, self.block, &mut probe.buffer) {
            Ok(()) => true,
            Err(status) if self.is_bad(status) => {
                probe.place = (probe.place + STRIDE) % PLACES;
                let next = self.geometry.main_sectors / PLACES * probe.place;
                self.vitals.worked(next);
                false
            }
            // The way to main is at fault.
            Err(_) => false,
        }
    }

    /// Whether main can read the physical block in which sector `sector` of the target lies. One command. May sleep.
    pub(super) fn can_read_block(&self, sector: u64) -> Result<(), BlkStatus> {
        let size = u64::from(self.main.device().physical_block().max(1));
        let end = sector + u64::from(self.main.physical_left(self.main.sector(sector)));
        // All of it, but nothing that is not main's.
        let first = end.saturating_sub(size);
        let end = end.min(self.geometry.main_sectors);
        let mut probe = self.vitals.probe.lock();
        let count = (end - first) as u32;
        self.main
            .read(self.main.sector(first), count, &mut probe.buffer)
    }
}
