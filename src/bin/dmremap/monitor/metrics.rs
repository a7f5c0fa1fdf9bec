// SPDX-License-Identifier: GPL-2.0

//! The text for Prometheus, in the exposition format that node_exporter's textfile collector reads. The names are those of
//! docs/usage.md and stay.

use crate::status::{Both, View};
use std::collections::BTreeMap;

/// The modes that every device is said to have or not to have.
const MODES: [&str; 5] = ["active", "readonly", "full", "degraded", "tripped"];

/// Labels besides the device, and the value.
type Sample = (Vec<(&'static str, String)>, u64);

/// The value of a label, as it stands between quotation marks.
fn escaped(value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"");
    value.replace('\n', "\\n")
}

/// A sample for each value of a label.
fn by<const N: usize>(label: &'static str, values: [(&str, u64); N]) -> Vec<Sample> {
    let sample = |(value, number): (&str, u64)| (vec![(label, value.into())], number);
    values.into_iter().map(sample).collect()
}

fn by_operation(of: &Both) -> Vec<Sample> {
    by("op", [("read", of.read), ("write", of.write)])
}

fn modes(view: &View) -> Vec<Sample> {
    let mut modes = MODES.to_vec();
    if !modes.contains(&view.mode.as_str()) {
        modes.push(&view.mode);
    }
    let sample = |mode: &str| (vec![("mode", mode.into())], u64::from(mode == view.mode));
    modes.into_iter().map(sample).collect()
}

/// A metric: its name, what it counts, and its samples of a device.
type Metric = (&'static str, &'static str, fn(&View) -> Vec<Sample>);

const METRICS: [Metric; 9] = [
    (
        "dm_remap_info",
        "A device, and what it is made of.",
        |view| {
            let labels = [
                ("uuid", &view.uuid),
                ("main", &view.main.device),
                ("spare", &view.spare.device),
            ];
            let labels = labels.map(|(label, value)| (label, value.clone()));
            vec![(labels.into(), 1)]
        },
    ),
    (
        "dm_remap_mode",
        "Whether the device is in this mode.",
        modes,
    ),
    (
        "dm_remap_units",
        "Bad units: relocated to the spare, or pending, which cannot be read.",
        |view| {
            let units = &view.units;
            by(
                "state",
                [("relocated", units.relocated), ("pending", units.pending)],
            )
        },
    ),
    (
        "dm_remap_slots",
        "Places for units on the spare: used, free, or bad.",
        |view| {
            let slots = &view.slots;
            let states = [
                ("used", slots.used),
                ("free", view.free()),
                ("bad", slots.bad),
            ];
            by("state", states)
        },
    ),
    (
        "dm_remap_lost_sectors",
        "Sectors that were lost with slots that failed.",
        |view| vec![(vec![], view.lost_sectors)],
    ),
    (
        "dm_remap_errors_total",
        "Requests that the main device failed.",
        |view| {
            by_operation(&Both {
                read: view.errors.read,
                write: view.errors.write,
            })
        },
    ),
    (
        "dm_remap_recovered_total",
        "Requests that the main device failed and that succeeded all the same.",
        |view| by_operation(&view.recovered),
    ),
    (
        "dm_remap_redirected_total",
        "Requests that went to the spare at once.",
        |view| by_operation(&view.redirected),
    ),
    (
        "dm_remap_metadata_errors_total",
        "Replicas of the metadata that could not be read or written.",
        |view| vec![(vec![], view.errors.metadata)],
    ),
];

/// The text for these devices.
pub(super) fn text(views: &BTreeMap<String, View>) -> String {
    let mut text = String::new();
    for (name, help, samples) in METRICS {
        let kind = match name.ends_with("_total") {
            true => "counter",
            false => "gauge",
        };
        text += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for view in views.values() {
            for (labels, value) in samples(view) {
                text += &format!("{name}{{device=\"{}\"", escaped(&view.name));
                for (label, value) in labels {
                    text += &format!(",{label}=\"{}\"", escaped(&value));
                }
                text += &format!("}} {value}\n");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dm::Device;

    fn text<const N: usize>(views: [View; N]) -> String {
        let named = views.map(|view| (view.name.clone(), view));
        super::text(&named.into())
    }

    #[test]
    fn every_number_has_its_place() {
        let device = Device::example("safe", "REMAP-00");
        let status = "degraded 8 3/64 4 1 2 5 6 7 8 9 10 11 12 idle 13";
        let view = View::of(&device, status, None).unwrap();
        let samples: Vec<String> = text([view])
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.strip_prefix("dm_remap_").unwrap().into())
            .collect();
        let expected = r#"info{device="safe",uuid="REMAP-00",main="8:1",spare="8:17"} 1
mode{device="safe",mode="active"} 0
mode{device="safe",mode="readonly"} 0
mode{device="safe",mode="full"} 0
mode{device="safe",mode="degraded"} 1
mode{device="safe",mode="tripped"} 0
units{device="safe",state="relocated"} 1
units{device="safe",state="pending"} 2
slots{device="safe",state="used"} 3
slots{device="safe",state="free"} 57
slots{device="safe",state="bad"} 4
lost_sectors{device="safe"} 13
errors_total{device="safe",op="read"} 5
errors_total{device="safe",op="write"} 6
recovered_total{device="safe",op="read"} 7
recovered_total{device="safe",op="write"} 8
redirected_total{device="safe",op="read"} 9
redirected_total{device="safe",op="write"} 10
metadata_errors_total{device="safe"} 12"#;
        let samples = samples.join("\n");
        // Where they lie is this machine's matter.
        let place = samples.find("main=").unwrap()..samples.find("} 1\n").unwrap();
        assert_eq!(
            samples.replace(&samples[place], "main=\"8:1\",spare=\"8:17\""),
            expected
        );
    }

    #[test]
    fn each_metric_is_described_once_before_its_samples() {
        let views = ["a", "b"].map(|name| {
            let status = "active 8 0/64 0 0 0 0 0 0 0 0 0 0 0 idle 0";
            View::of(&Device::example(name, ""), status, None).unwrap()
        });
        let text = text(views);
        let mut seen = Vec::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split(['{', ' ']).collect();
            match words[..] {
                ["#", "HELP", name, ..] => {
                    assert!(!seen.contains(&name), "{name}");
                    seen.push(name);
                }
                ["#", "TYPE", name, kind] => {
                    assert_eq!(seen.last(), Some(&name));
                    assert_eq!(kind == "counter", name.ends_with("_total"));
                }
                [name, ..] => assert_eq!(seen.last(), Some(&name)),
                [] => panic!("an empty line"),
            }
        }
        assert_eq!(seen.len(), METRICS.len());
        assert!(text.ends_with('\n'));
    }

    #[test]
    fn labels_are_escaped_and_modes_to_come_are_shown() {
        let device = Device::example("a\\b\"c\nd", "ü");
        let status = "resting 8 0/64 0 0 0 0 0 0 0 0 0 0 0 idle 0";
        let text = text([View::of(&device, status, None).unwrap()]);
        assert!(text.contains(r#"{device="a\\b\"c\nd",uuid="ü","#), "{text}");
        assert!(text.contains(r#",mode="resting"} 1"#), "{text}");
        assert_eq!(text.matches("} 1\n").count(), 2, "{text}");
    }
}
