// SPDX-License-Identifier: GPL-2.0

//! Whether main answers at all: a device that goes away is not bad sectors.
//!
//! Before an error makes an entry, main must answer a read elsewhere. If it does not, the error goes
//! up and nothing is recorded; after [`TRIP`] different units in a row the target trips, and errors go
//! up without being looked into until main answers again.

use super::Remap;
use crate::dm::IoBuffer;
use crate::engine::Unit;
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Full, Relaxed, Release},
        Mutex,
    },
};

/// Different units that failed in a row while main did not answer.
const TRIP: u32 = 8;
/// Places on main that a probe tries, beside the one that last worked.
const PLACES: u64 = 16;

struct Probe {
    buffer: IoBuffer,
    /// How many were begun before this one, and what it said.
    number: u64,
    answered: bool,
    /// The unit that failed last while main did not answer, and how many did in a row.
    last: Option<Unit>,
    streak: u32,
}

/// What is known about main.
#[pin_data]
pub(super) struct Vitals {
    tripped: Atomic<bool>,
    /// The sector of the target that was read or written last as far as is known.
    good: Atomic<u64>,
    /// Probes begun.
    begun: Atomic<u64>,
    /// Held during a probe's I/O.
    #[pin]
    probe: Mutex<Probe>,
}

impl Vitals {
    /// For a main device with logical blocks of `block` sectors that is not known to have failed.
    pub(super) fn new(block: u32) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            tripped: Atomic::new(false),
            good: Atomic::new(0),
            begun: Atomic::new(0),
            probe <- new_mutex!(
                Probe {
                    buffer: IoBuffer::new((block as usize) << 9)?,
                    number: 0,
                    answered: true,
                    last: None,
                    streak: 0,
                },
                "dm_remap::probe"
            ),
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

    /// Takes main for well again. May sleep.
    pub(super) fn rearm(&self) {
        let mut probe = self.probe.lock();
        probe.streak = 0;
        probe.last = None;
        self.tripped.store(false, Release);
    }
}

impl Remap {
    /// Whether main answers a read, asked because `unit` failed. Trips if too many did. May sleep.
    ///
    /// Who asks while others wait for the same answer shares it, if it was not begun before.
    pub(super) fn main_answers(&self, unit: Unit) -> bool {
        let vitals = &self.vitals;
        let asked = vitals.begun.load(Acquire);
        let mut probe = vitals.probe.lock();
        if probe.number <= asked {
            probe.number = vitals.begun.fetch_add(1, Full).wrapping_add(1);
            probe.answered = self.probe_main(&mut probe.buffer);
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

    /// Leaves the mode `tripped` if main answers. May sleep.
    pub(super) fn rearm_if_main_answers(&self) {
        let answered = self.probe_main(&mut self.vitals.probe.lock().buffer);
        if answered {
            self.vitals.rearm();
            self.report_mode();
        }
    }

    /// Reads a block here and there on main until one can be read.
    fn probe_main(&self, buffer: &mut IoBuffer) -> bool {
        let length = self.geometry.main_sectors;
        let places = (0..PLACES).map(|n| length / PLACES * n);
        let good = self.vitals.good.load(Relaxed);
        for sector in Iterator::chain(core::iter::once(good), places) {
            let sector = sector & !(u64::from(self.block) - 1);
            match self.main.read(self.main_start + sector, self.block, buffer) {
                Ok(()) => {
                    self.vitals.worked(sector);
                    return true;
                }
                Err(status) if self.is_bad(status) => (),
                // The way to main is at fault.
                Err(_) => return false,
            }
        }
        false
    }
}
