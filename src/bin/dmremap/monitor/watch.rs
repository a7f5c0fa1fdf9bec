// SPDX-License-Identifier: GPL-2.0

//! What a change of a device is, and when it is told.
//!
//! A change is a difference between what was told and what is. So nothing is told twice, and nothing is missed that happened
//! while nobody looked. Of a flood, little is told:
//!
//! - a new mode at once, but the same mode again only after the hold-off, with the number of changes until then;
//! - everything else when no more of it came for a while (`collect`), or too long was waited for that; and the same kind again
//!   after the hold-off, in one piece.

use super::trend::Trend;
use crate::status::View;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// A collection ends after so many times `collect`, whatever still comes.
const PATIENCE: u32 = 5;

/// After so many looks what a device says of itself is believed, however doubtful it is.
const DOUBTS: u32 = 10;

/// "Faster each day" is told once a day, in seconds.
const DAY: u64 = 24 * 3600;

/// A moment.
#[derive(Clone, Copy)]
pub(super) struct Now {
    /// Since boot, time asleep included. No clock that is set makes it jump.
    pub(super) uptime: Duration,
    /// Seconds since 1970, which may jump.
    pub(super) unix: u64,
    /// A random number of this boot.
    pub(super) boot: u64,
}

impl Now {
    /// In words; `None`: the clock is wrong.
    pub(super) fn date(&self) -> Option<String> {
        let time = i64::try_from(self.unix).ok()?;
        let time = jiff::Timestamp::from_second(time).ok()?;
        Some(time.to_string())
    }
}

/// How to tell.
pub(super) struct Manner {
    pub(super) collect: Duration,
    pub(super) hold_off: Duration,
    /// The share of free slots below which they are few, in percent.
    pub(super) few: f64,
}

/// The kinds of changes, in the order in which they are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    Mode,
    Lost,
    BadSlots,
    MetadataErrors,
    LowSlots,
    Faster,
    Pending,
    Relocated,
    Test,
}

impl Kind {
    /// Its name for programs, which stays.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Mode => "mode",
            Self::Lost => "lost",
            Self::BadSlots => "bad-slots",
            Self::MetadataErrors => "metadata-errors",
            Self::LowSlots => "low-slots",
            Self::Faster => "faster",
            Self::Pending => "pending",
            Self::Relocated => "relocated",
            Self::Test => "test",
        }
    }
}

/// What is watched of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) mode: String,
    pub(super) pending: u64,
    pub(super) relocated: u64,
    pub(super) lost: u64,
    pub(super) bad_slots: u64,
    pub(super) metadata_errors: u64,
    pub(super) free: u64,
    pub(super) slots: u64,
}

impl From<&View> for Facts {
    fn from(view: &View) -> Self {
        Self {
            mode: view.mode.clone(),
            pending: view.units.pending,
            relocated: view.units.relocated,
            lost: view.lost_sectors,
            bad_slots: view.slots.bad,
            metadata_errors: view.errors.metadata,
            free: view.free(),
            slots: view.slots.total,
        }
    }
}

impl Facts {
    fn counts(&self) -> [(Kind, u64); 5] {
        [
            (Kind::Lost, self.lost),
            (Kind::BadSlots, self.bad_slots),
            (Kind::MetadataErrors, self.metadata_errors),
            (Kind::Pending, self.pending),
            (Kind::Relocated, self.relocated),
        ]
    }

    fn entries(&self) -> u64 {
        self.pending.saturating_add(self.relocated)
    }

    /// Whether at most `percent` of the slots are free.
    fn is_low(&self, percent: f64) -> bool {
        (self.free as f64) < self.slots as f64 * percent / 100.0
    }
}

/// Whether a device is as its owner wants it.
fn is_fine(mode: &str) -> bool {
    matches!(mode, "active" | "readonly")
}

/// Whether going from one mode to the other is no change that matters.
fn is_same(one: &str, other: &str) -> bool {
    one == other || is_fine(one) && is_fine(other)
}

/// What was told last of a device, and what must not be forgotten of it. A new device is told of as far as it is not well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Memory {
    /// The mapped device's name.
    pub(super) name: String,
    /// When it was there last, in seconds since 1970.
    pub(super) seen: u64,
    mode: String,
    pending: u64,
    relocated: u64,
    lost: u64,
    bad_slots: u64,
    metadata_errors: u64,
    /// How many there were at the last look, and in which boot: they are counted from 0 by each table.
    metadata_errors_seen: u64,
    boot: u64,
    is_low: bool,
    /// When "faster each day" was told, in seconds since 1970.
    faster: u64,
    /// Units with an entry; `None`: it was never looked at.
    entries: Option<u64>,
    pub(super) trend: Trend,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            name: String::new(),
            seen: 0,
            mode: "active".into(),
            pending: 0,
            relocated: 0,
            lost: 0,
            bad_slots: 0,
            metadata_errors: 0,
            metadata_errors_seen: 0,
            boot: 0,
            is_low: false,
            faster: 0,
            entries: None,
            trend: Trend::default(),
        }
    }
}

impl Memory {
    fn count(&mut self, kind: Kind) -> Option<&mut u64> {
        Some(match kind {
            Kind::Lost => &mut self.lost,
            Kind::BadSlots => &mut self.bad_slots,
            Kind::MetadataErrors => &mut self.metadata_errors,
            Kind::Pending => &mut self.pending,
            Kind::Relocated => &mut self.relocated,
            _ => return None,
        })
    }

    /// Follows what goes on without being told: counts that went down, and new units.
    fn follow(&mut self, facts: &Facts, now: Now, few: f64) {
        if self.boot != now.boot || facts.metadata_errors < self.metadata_errors_seen {
            self.metadata_errors = 0;
        }
        self.metadata_errors_seen = facts.metadata_errors;
        self.boot = now.boot;
        for (kind, count) in facts.counts() {
            if let Some(told) = self.count(kind) {
                *told = count.min(*told);
            }
        }
        // Not at each slot that comes and goes.
        self.is_low &= facts.is_low(few * 1.25);
        let entries = facts.entries();
        let new = entries.saturating_sub(self.entries.unwrap_or(entries));
        self.trend.add(new, self.seen, now.unix);
        self.entries = Some(entries);
        self.seen = now.unix;
    }

    /// What is new but the mode, and how many of it.
    fn news(&mut self, facts: &Facts, now: Now, few: f64) -> BTreeMap<Kind, u64> {
        let mut news = BTreeMap::new();
        for (kind, count) in facts.counts() {
            let told = self.count(kind).map_or(count, |told| *told);
            if count > told {
                news.insert(kind, count - told);
            }
        }
        if facts.is_low(few) && !self.is_low {
            news.insert(Kind::LowSlots, 0);
        }
        let is_told = (self.faster..self.faster.saturating_add(DAY)).contains(&now.unix);
        if !is_told && self.trend.faster_each_day(now.unix).is_some() {
            news.insert(Kind::Faster, 0);
        }
        news
    }

    fn tell(&mut self, kind: Kind, new: u64, now: Now) {
        match kind {
            Kind::LowSlots => self.is_low = true,
            Kind::Faster => self.faster = now.unix,
            _ => {
                if let Some(told) = self.count(kind) {
                    *told = told.saturating_add(new);
                }
            }
        }
    }
}

/// A change to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) kind: Kind,
    /// How many there are more of what it counts; of a mode, how often it changed.
    pub(super) new: u64,
    /// The mode that was told last.
    pub(super) mode_before: String,
}

/// A device that is watched.
#[derive(Default)]
pub(super) struct Watch {
    pub(super) memory: Memory,
    /// The mode at the last look; `None`: there was none.
    mode: Option<String>,
    /// How often it changed since it was told.
    turns: u64,
    /// Until when, since boot, a mode or a kind is not told again.
    modes_held: BTreeMap<String, Duration>,
    held: BTreeMap<Kind, Duration>,
    /// What is being collected.
    collected: BTreeMap<Kind, u64>,
    /// When the first and the last of it came.
    first: Duration,
    last: Duration,
    /// When to look again at the latest, since boot.
    pub(super) again: Option<Duration>,
    /// How many looks in a row were doubtful.
    doubts: u32,
}

impl Watch {
    pub(super) fn new(memory: Memory) -> Self {
        Self {
            memory,
            ..Self::default()
        }
    }

    /// Whether what a device says of itself is doubtful. A table that takes another's place says nothing of its entries before it
    /// has read them; the device is suspended then. So it is not asked while it is suspended, but it may have been so only for a
    /// moment, between the looks at that and at the entries. Then an event of device-mapper came meanwhile: `is_disturbed`.
    pub(super) fn doubts(&mut self, facts: &Facts, is_disturbed: bool) -> bool {
        let entries = self.memory.entries;
        let is_less = entries.is_none_or(|entries| facts.entries() < entries);
        self.doubts = match is_disturbed && is_less {
            true => self.doubts + 1,
            false => 0,
        };
        // Events may come all the time.
        (1..DOUBTS).contains(&self.doubts)
    }

    /// Looks at a device, and says what is to be told now. Whoever calls it does so.
    pub(super) fn look(&mut self, facts: &Facts, now: Now, manner: &Manner) -> Vec<Change> {
        self.memory.follow(facts, now, manner.few);
        let mut changes = Vec::new();
        self.again = None;
        self.look_at_mode(facts, now, manner, &mut changes);
        self.look_at_counts(facts, now, manner, &mut changes);
        changes
    }

    fn wake(&mut self, at: Duration) {
        self.again = Some(self.again.map_or(at, |again| again.min(at)));
    }

    fn look_at_mode(
        &mut self,
        facts: &Facts,
        now: Now,
        manner: &Manner,
        changes: &mut Vec<Change>,
    ) {
        let before = self.mode.replace(facts.mode.clone());
        let before = before.unwrap_or_else(|| self.memory.mode.clone());
        self.turns += u64::from(!is_same(&before, &facts.mode));
        if self.turns == 0 {
            self.memory.mode.clone_from(&facts.mode);
            return;
        }
        let held = self.modes_held.get(&facts.mode).copied();
        match held.filter(|until| now.uptime < *until) {
            Some(until) => self.wake(until),
            None => {
                let mode_before = std::mem::replace(&mut self.memory.mode, facts.mode.clone());
                changes.push(Change {
                    kind: Kind::Mode,
                    new: std::mem::take(&mut self.turns),
                    mode_before,
                });
                let until = now.uptime + manner.hold_off;
                self.modes_held.insert(facts.mode.clone(), until);
            }
        }
    }

    fn look_at_counts(
        &mut self,
        facts: &Facts,
        now: Now,
        manner: &Manner,
        changes: &mut Vec<Change>,
    ) {
        let mut news = self.memory.news(facts, now, manner.few);
        let held = std::mem::take(&mut self.held);
        for (kind, until) in held.into_iter().filter(|(_, until)| now.uptime < *until) {
            self.held.insert(kind, until);
            if news.remove(&kind).is_some() {
                self.wake(until);
            }
        }
        if self.collected.is_empty() {
            self.first = now.uptime;
        }
        if self.collected != news {
            self.last = now.uptime;
            self.collected = news;
        }
        if self.collected.is_empty() {
            return;
        }
        let quiet = self.last + manner.collect;
        let end = quiet.min(self.first + manner.collect * PATIENCE);
        if now.uptime < end {
            return self.wake(end);
        }
        for (kind, new) in std::mem::take(&mut self.collected) {
            self.memory.tell(kind, new, now);
            self.held.insert(kind, now.uptime + manner.hold_off);
            changes.push(Change {
                kind,
                new,
                mode_before: self.memory.mode.clone(),
            });
        }
    }
}

#[cfg(test)]
mod tests;
