// SPDX-License-Identifier: GPL-2.0

//! What the target says of itself.

use super::{counter::Counter, Remap};
use crate::dm::{PerCpuCounts, TextWriter};
use kernel::prelude::*;

/// Bios by what became of them; each counts once.
pub(super) struct Counters {
    pub(super) read_errors: Counter,
    pub(super) write_errors: Counter,
    pub(super) reads_recovered: Counter,
    pub(super) writes_recovered: Counter,
    /// Of reads: `false`; of writes: `true`.
    pub(super) redirected: PerCpuCounts,
}

impl Counters {
    /// All zero. May sleep.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            read_errors: Counter::new(),
            write_errors: Counter::new(),
            reads_recovered: Counter::new(),
            writes_recovered: Counter::new(),
            redirected: PerCpuCounts::new()?,
        })
    }

    /// Begins at zero again. Any context.
    pub(super) fn clear(&self) {
        self.read_errors.clear();
        self.write_errors.clear();
        self.reads_recovered.clear();
        self.writes_recovered.clear();
        self.redirected.clear();
    }
}

/// What the target can do at the moment; the order is that of precedence.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
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

impl Remap<'_> {
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

    /// Tells the administrator if the mode changed. Process context, may sleep.
    pub(super) fn report_mode(&self) {
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

    /// Prints what `dmsetup status` shows (DESIGN.md, section 2). May sleep.
    pub(super) fn print_status(&self, out: &mut TextWriter<'_>) {
        let (used, total, bad) = self.store.with_slots(|s| (s.used(), s.usable(), s.bad()));
        let entries = self.entries.counts();
        let c = &self.counters;
        write!(
            out,
            "{} {} {}/{} {} {} {} {} {} {} {} {} {} {} {} {} {}",
            self.mode().name(),
            self.geometry.unit_sectors,
            used,
            total,
            bad,
            entries.relocated,
            entries.pending,
            c.read_errors.get(),
            c.write_errors.get(),
            c.reads_recovered.get(),
            c.writes_recovered.get(),
            c.redirected.get(false),
            c.redirected.get(true),
            self.store.commits.get(),
            self.store.errors.get(),
            if self.marginal.lock().is_empty() {
                "idle"
            } else {
                "relocating"
            },
            self.entries.lost_sectors(),
        );
    }

    /// Prints the words of the table line. May sleep.
    pub(super) fn print_table(&self, out: &mut TextWriter<'_>) {
        write!(
            out,
            "{} {} {} {}{}",
            self.main.device().name(),
            self.main.start(),
            self.spare().device().name(),
            self.spare().start(),
            self.settings.features(),
        );
    }

    /// Prints what the integrity subsystem measures. May sleep.
    pub(super) fn print_ima(&self, out: &mut TextWriter<'_>) {
        let g = &self.geometry;
        write!(
            out,
            ",main_dev={},main_start={},spare_dev={},spare_start={},spare_sectors={},\
             unit_sectors={},metadata_copies={}",
            self.main.device().name(),
            self.main.start(),
            self.spare().device().name(),
            self.spare().start(),
            g.spare_sectors,
            g.unit_sectors,
            g.copies,
        );
    }
}
