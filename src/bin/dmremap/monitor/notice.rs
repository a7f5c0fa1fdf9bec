// SPDX-License-Identifier: GPL-2.0

//! A change in words, in fields, and as JSON.

use super::journal::Priority;
use super::watch::{Change, Facts, Kind, Memory, Now};
use crate::status::{Errors, Slots, Units, View};
use crate::ui;
use serde::Serialize;
use serde_json::json;

/// A change that is told.
pub(super) struct Notice {
    pub(super) kind: Kind,
    /// The mapped device's name.
    pub(super) name: String,
    pub(super) priority: Priority,
    /// What happened, in a few words, and with where that leads.
    pub(super) short: String,
    pub(super) message: String,
    pub(super) fields: Vec<(&'static str, String)>,
    /// A document in one line.
    pub(super) json: String,
}

/// What happened, in words.
fn words(change: &Change, facts: &Facts, faster: Option<[u64; 3]>) -> String {
    let new = change.new;
    match change.kind {
        Kind::Mode if new > 1 => format!("mode is {}, after {new} changes", facts.mode),
        Kind::Mode => format!("mode is {}, it was {}", facts.mode, change.mode_before),
        Kind::Lost => format!(
            "{} lost with slots that failed, {} in all",
            ui::count(new, "sector"),
            facts.lost
        ),
        Kind::BadSlots => format!(
            "{} of the spare failed, {} in all",
            ui::count(new, "slot"),
            facts.bad_slots
        ),
        Kind::MetadataErrors => format!(
            "{} of the metadata could not be read or written, {} in all",
            ui::count(new, "copy"),
            facts.metadata_errors
        ),
        Kind::LowSlots => format!(
            "only {} of {} left on the spare{}",
            ui::count(facts.free, "slot"),
            facts.slots,
            match facts.pending {
                0 => "",
                _ => ", and those that pending units can give up",
            }
        ),
        Kind::Faster => {
            let [first, second, third] = faster.unwrap_or_default();
            format!("the disk fails faster each day: {first}, {second} and {third} new bad units in the last three days")
        }
        Kind::Pending => format!(
            "{} cannot be read (pending), {} in all",
            ui::count(new, "new unit"),
            facts.pending
        ),
        Kind::Relocated => format!(
            "{} relocated, {} in all",
            ui::count(new, "new unit"),
            facts.relocated
        ),
        Kind::Test => "this is a test message of dmremap monitor".into(),
    }
}

fn priority(kind: Kind, mode: &str) -> Priority {
    match kind {
        Kind::Mode if matches!(mode, "active" | "readonly") => Priority::Notice,
        Kind::Lost => Priority::Critical,
        Kind::Mode | Kind::MetadataErrors => Priority::Error,
        Kind::BadSlots | Kind::LowSlots | Kind::Faster | Kind::Pending => Priority::Warning,
        Kind::Relocated => Priority::Notice,
        Kind::Test => Priority::Info,
    }
}

impl Notice {
    pub(super) fn new(change: &Change, view: &View, memory: &Memory, now: Now) -> Self {
        let facts = Facts::from(view);
        let faster = memory.trend.faster_each_day(now.unix);
        let forecast = memory.trend.forecast(facts.free, now.unix);
        let short = words(change, &facts, faster);
        let is_about_trend = matches!(
            change.kind,
            Kind::Pending | Kind::Relocated | Kind::BadSlots | Kind::LowSlots | Kind::Faster
        );
        let trend = forecast
            .filter(|_| is_about_trend)
            .map(|forecast| format!("; {}", forecast.words(facts.mode == "full")));
        let message = format!("{}: {short}{}", view.name, trend.unwrap_or_default());
        let trend = TrendView {
            new_units_last_day: memory.trend.last_day(now.unix),
            new_units_last_week: memory.trend.last_week(now.unix),
            full_in_hours: forecast.and_then(|forecast| forecast.full_in_hours),
        };
        let document = Document::new(change, view, &message, trend, now);
        Self {
            kind: change.kind,
            name: view.name.clone(),
            priority: priority(change.kind, &view.mode),
            fields: fields(change, view),
            json: serde_json::to_string(&document).unwrap_or_default(),
            short,
            message,
        }
    }

    /// Of a test where there is no device.
    pub(super) fn test() -> Self {
        let message = "this is a test message of dmremap monitor; no remap device is active";
        Self {
            kind: Kind::Test,
            name: "-".into(),
            priority: Priority::Info,
            short: message.into(),
            message: message.into(),
            fields: vec![("DMREMAP_EVENT", "test".into())],
            json: json!({ "version": 1, "event": "test", "message": message }).to_string(),
        }
    }
}

/// For the journal and for the program; the names are those of docs/usage.md and stay.
fn fields(change: &Change, view: &View) -> Vec<(&'static str, String)> {
    let path = std::path::Path::new("/dev/mapper").join(&view.name);
    vec![
        ("DMREMAP_EVENT", change.kind.name().into()),
        ("DMREMAP_NAME", view.name.clone()),
        ("DMREMAP_DEVICE", path.display().to_string()),
        ("DMREMAP_UUID", view.uuid.clone()),
        ("DMREMAP_MAIN", view.main.device.clone()),
        ("DMREMAP_SPARE", view.spare.device.clone()),
        ("DMREMAP_NEW", change.new.to_string()),
        ("DMREMAP_MODE", view.mode.clone()),
        ("DMREMAP_MODE_BEFORE", change.mode_before.clone()),
        ("DMREMAP_PENDING", view.units.pending.to_string()),
        ("DMREMAP_RELOCATED", view.units.relocated.to_string()),
        ("DMREMAP_LOST_SECTORS", view.lost_sectors.to_string()),
        ("DMREMAP_SLOTS_USED", view.slots.used.to_string()),
        ("DMREMAP_SLOTS_TOTAL", view.slots.total.to_string()),
        ("DMREMAP_SLOTS_BAD", view.slots.bad.to_string()),
        ("DMREMAP_METADATA_ERRORS", view.errors.metadata.to_string()),
    ]
}

/// The names are those of docs/json.md and stay.
#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    time: Option<String>,
    event: Kind,
    message: &'a str,
    new: u64,
    mode_before: &'a str,
    name: &'a str,
    uuid: &'a str,
    mode: &'a str,
    slots: &'a Slots,
    units: &'a Units,
    lost_sectors: u64,
    errors: &'a Errors,
    trend: TrendView,
}

#[derive(Serialize)]
struct TrendView {
    new_units_last_day: u64,
    new_units_last_week: u64,
    full_in_hours: Option<u64>,
}

impl<'a> Document<'a> {
    fn new(
        change: &'a Change,
        view: &'a View,
        message: &'a str,
        trend: TrendView,
        now: Now,
    ) -> Self {
        Self {
            version: 1,
            time: now.date(),
            event: change.kind,
            message,
            new: change.new,
            mode_before: &change.mode_before,
            name: &view.name,
            uuid: &view.uuid,
            mode: &view.mode,
            slots: &view.slots,
            units: &view.units,
            lost_sectors: view.lost_sectors,
            errors: &view.errors,
            trend,
        }
    }
}

/// The subject of a mail of so many messages, of which one is in the headline.
pub(super) fn subject(headline: &str, count: usize, host: &str) -> String {
    let rest = match count {
        0 | 1 => String::new(),
        _ => format!(" (and {} more)", count - 1),
    };
    let subject = format!("dm-remap on {host}: {headline}{rest}");
    // A header is one line, in ASCII.
    let plain = |c: char| {
        if c.is_ascii_graphic() || c == ' ' {
            c
        } else {
            '?'
        }
    };
    subject.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dm::Device;
    use std::time::Duration;

    const NOW: Now = Now {
        uptime: Duration::ZERO,
        unix: 1_790_000_000,
        boot: 0,
    };

    fn notice(kind: Kind, new: u64) -> Notice {
        let status = "full 8 50/64 4 10 20 5 6 7 8 9 10 11 12 idle 13";
        let view = View::of(&Device::example("safe", "REMAP-00"), status, None).unwrap();
        let mut memory = Memory::default();
        memory.trend.add(5, NOW.unix, NOW.unix);
        let mode_before = "active".into();
        let change = Change {
            kind,
            new,
            mode_before,
        };
        Notice::new(&change, &view, &memory, NOW)
    }

    #[test]
    fn a_person_understands_each() {
        let trend = "; 5 new in 24 h, the spare is full";
        for (kind, new, expected, priority) in [
            (
                Kind::Mode,
                1,
                "mode is full, it was active",
                Priority::Error,
            ),
            (
                Kind::Mode,
                7,
                "mode is full, after 7 changes",
                Priority::Error,
            ),
            (
                Kind::Lost,
                1,
                "1 sector lost with slots that failed, 13 in all",
                Priority::Critical,
            ),
            (
                Kind::BadSlots,
                2,
                "2 slots of the spare failed, 4 in all+",
                Priority::Warning,
            ),
            (
                Kind::MetadataErrors,
                2,
                "2 copies of the metadata could not be read or written, 12 in all",
                Priority::Error,
            ),
            (
                Kind::LowSlots,
                0,
                "only 10 slots of 64 left on the spare, and those that pending units can give up+",
                Priority::Warning,
            ),
            (
                Kind::Pending,
                1,
                "1 new unit cannot be read (pending), 20 in all+",
                Priority::Warning,
            ),
            (
                Kind::Relocated,
                3,
                "3 new units relocated, 10 in all+",
                Priority::Notice,
            ),
            (
                Kind::Test,
                0,
                "this is a test message of dmremap monitor",
                Priority::Info,
            ),
        ] {
            let notice = notice(kind, new);
            let expected = expected.replace('+', trend);
            assert_eq!(notice.message, format!("safe: {expected}"));
            assert_eq!(notice.priority, priority);
        }
    }

    #[test]
    fn every_kind_has_the_same_name_everywhere() {
        for kind in [
            Kind::Mode,
            Kind::Lost,
            Kind::BadSlots,
            Kind::MetadataErrors,
            Kind::LowSlots,
            Kind::Faster,
            Kind::Pending,
            Kind::Relocated,
            Kind::Test,
        ] {
            let notice = notice(kind, 1);
            let event = format!("\"event\":\"{}\"", kind.name());
            assert!(notice.json.contains(&event), "{}", notice.json);
            assert_eq!(notice.fields[0], ("DMREMAP_EVENT", kind.name().into()));
        }
    }

    #[test]
    fn a_subject_is_one_line_of_ascii() {
        assert_eq!(
            subject("safe: mode is full, it was active", 1, "box"),
            "dm-remap on box: safe: mode is full, it was active"
        );
        assert_eq!(
            subject("a\r\nBcc: ü: mode is full", 2, "box"),
            "dm-remap on box: a??Bcc: ?: mode is full (and 1 more)"
        );
    }

    #[test]
    fn the_spare_is_full_when_the_mode_says_so() {
        let message = |status: &str| {
            let view = View::of(&Device::example("safe", ""), status, None).unwrap();
            let mut memory = Memory::default();
            memory.trend.add(5, NOW.unix, NOW.unix);
            let change = Change {
                kind: Kind::Pending,
                new: 5,
                mode_before: "active".into(),
            };
            Notice::new(&change, &view, &memory, NOW).message
        };
        let full = message("full 8 64/64 0 10 54 0 0 0 0 0 0 0 0 idle 0");
        assert!(
            full.ends_with("; 5 new in 24 h, the spare is full"),
            "{full}"
        );
        // Slots of pending units are not lost to writes.
        let active = message("active 8 64/64 0 10 54 0 0 0 0 0 0 0 0 idle 0");
        let expected = "; 5 new in 24 h, the spare is full within the hour at this rate";
        assert!(active.ends_with(expected), "{active}");
    }
}
