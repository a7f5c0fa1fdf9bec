// SPDX-License-Identifier: GPL-2.0

//! The features in force: those of the table line, and what `set` made of them.

use crate::engine::args::{BadOn, Features, PendingReads, Setting, DEFAULT_READ_RETRIES};
use kernel::sync::atomic::{Atomic, Relaxed};

/// A feature that nobody has set.
const UNSET: u32 = u32::MAX;

/// The features of a table line. Three of them can change at run time: each is a word of its own.
pub(super) struct Settings {
    constant: Features,
    bad_on: Atomic<u32>,
    read_retries: Atomic<u32>,
    pending_reads: Atomic<u32>,
}

impl Settings {
    /// As the table line says.
    pub(super) fn new(features: &Features) -> Self {
        let settings = Self {
            constant: *features,
            bad_on: Atomic::new(UNSET),
            read_retries: Atomic::new(UNSET),
            pending_reads: Atomic::new(UNSET),
        };
        features
            .settings()
            .for_each(|setting| settings.set(setting));
        settings
    }

    /// Changes one. Any context.
    pub(super) fn set(&self, setting: Setting) {
        match setting {
            Setting::BadOn(value) => self.bad_on.store(value as u32, Relaxed),
            Setting::ReadRetries(value) => self.read_retries.store(value, Relaxed),
            Setting::PendingReads(value) => self.pending_reads.store(value as u32, Relaxed),
        }
    }

    fn bad_on_if_set(&self) -> Option<BadOn> {
        let value = self.bad_on.load(Relaxed);
        [BadOn::Media, BadOn::Io]
            .into_iter()
            .find(|v| *v as u32 == value)
    }

    fn pending_reads_if_set(&self) -> Option<PendingReads> {
        let value = self.pending_reads.load(Relaxed);
        let all = [PendingReads::Retry, PendingReads::Fail];
        all.into_iter().find(|v| *v as u32 == value)
    }

    fn read_retries_if_set(&self) -> Option<u32> {
        Some(self.read_retries.load(Relaxed)).filter(|value| *value != UNSET)
    }

    /// Which completions mean "bad sector". Any context.
    pub(super) fn bad_on(&self) -> BadOn {
        self.bad_on_if_set().unwrap_or_default()
    }

    /// Extra attempts at what could not be read. Any context.
    pub(super) fn read_retries(&self) -> u32 {
        self.read_retries_if_set().unwrap_or(DEFAULT_READ_RETRIES)
    }

    /// What a read of a pending sector does. Any context.
    pub(super) fn pending_reads(&self) -> PendingReads {
        self.pending_reads_if_set().unwrap_or_default()
    }

    /// All of them, for the table line. Any context.
    pub(super) fn features(&self) -> Features {
        Features {
            bad_on: self.bad_on_if_set(),
            read_retries: self.read_retries_if_set(),
            pending_reads: self.pending_reads_if_set(),
            ..self.constant
        }
    }
}
