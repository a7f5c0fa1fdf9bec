// SPDX-License-Identifier: GPL-2.0

//! Tests of [`super`], with a clock of their own.

use super::*;
use proptest::prelude::*;

const MANNER: Manner = Manner {
    collect: Duration::from_secs(60),
    hold_off: Duration::from_secs(3600),
    few: 10.0,
};

/// A device and a clock.
struct Scene {
    watch: Watch,
    facts: Facts,
    /// Seconds since boot.
    time: u64,
    /// What the wall clock is ahead of that.
    ahead: u64,
    boot: u64,
    told: Vec<(u64, Kind, u64)>,
}

impl Scene {
    /// A device that is well, and was looked at.
    fn new() -> Self {
        let facts = Facts {
            mode: "active".into(),
            free: 1000,
            slots: 1000,
            ..Facts::default()
        };
        let mut scene = Self {
            watch: Watch::default(),
            facts,
            time: 1000,
            ahead: 1_790_000_000,
            boot: 1,
            told: Vec::new(),
        };
        scene.look();
        assert_eq!(scene.told, []);
        scene
    }

    fn look(&mut self) {
        let now = Now {
            uptime: Duration::from_secs(self.time),
            unix: self.time + self.ahead,
            boot: self.boot,
        };
        for change in self.watch.look(&self.facts, now, &MANNER) {
            self.told.push((self.time, change.kind, change.new));
        }
    }

    /// Time passes, and nothing happens. Whoever watches looks when he is told to, at the latest.
    fn wait(&mut self, seconds: u64) {
        let end = self.time + seconds;
        while let Some(again) = self.watch.again.filter(|again| again.as_secs() <= end) {
            assert!(again.as_secs() > self.time, "looks again and again");
            self.time = again.as_secs();
            self.look();
        }
        self.time = end;
    }

    fn mode(&mut self, mode: &str) {
        self.facts.mode = mode.into();
        self.look();
    }

    /// What was told since the last call: seconds since `from`, what, and how many.
    fn told(&mut self, from: u64) -> Vec<(u64, Kind, u64)> {
        let told = std::mem::take(&mut self.told).into_iter();
        told.map(|(time, kind, new)| (time - from, kind, new))
            .collect()
    }
}

#[test]
fn a_flood_within_a_minute_is_told_once_and_the_rest_after_the_hold_off() {
    let mut scene = Scene::new();
    let start = scene.time;
    for second in 0..60 {
        for _ in 0..167 {
            scene.facts.pending += 1;
            scene.look();
        }
        assert_eq!(scene.told, [], "{second}");
        scene.wait(1);
    }
    scene.wait(1000);
    assert_eq!(scene.told(start), [(119, Kind::Pending, 10_020)]);
    // More, of this kind and of another one.
    for _ in 0..5 {
        scene.facts.pending += 1;
        scene.look();
        scene.wait(30);
    }
    scene.facts.lost = 8;
    scene.look();
    let lost = scene.time - start;
    scene.wait(10_000);
    assert_eq!(
        scene.told(start),
        [
            (lost + 60, Kind::Lost, 8),
            (119 + 3600 + 60, Kind::Pending, 5)
        ]
    );
    scene.wait(1_000_000);
    assert_eq!(scene.told(start), []);
}

#[test]
fn what_does_not_end_is_told_all_the_same() {
    let mut scene = Scene::new();
    let start = scene.time;
    for _ in 0..3600 {
        scene.facts.relocated += 1;
        scene.look();
        scene.wait(1);
    }
    assert_eq!(scene.told(start), [(300, Kind::Relocated, 300)]);
    scene.wait(3000);
    assert_eq!(scene.told(start), [(3960, Kind::Relocated, 3300)]);
}

#[test]
fn a_new_mode_is_told_at_once_in_a_flood_too() {
    let mut scene = Scene::new();
    scene.facts.pending = 700;
    scene.look();
    scene.wait(10);
    let start = scene.time;
    scene.mode("full");
    assert_eq!(scene.told(start), [(0, Kind::Mode, 1)]);
    scene.wait(100);
    assert_eq!(scene.told(start), [(50, Kind::Pending, 700)]);
}

#[test]
fn a_mode_that_comes_and_goes_is_told_little() {
    let mut scene = Scene::new();
    let start = scene.time;
    for _ in 0..100 {
        scene.mode("tripped");
        scene.wait(10);
        scene.mode("active");
        scene.wait(10);
    }
    assert_eq!(scene.told(start), [(0, Kind::Mode, 1), (10, Kind::Mode, 1)]);
    // Something worse.
    scene.mode("degraded");
    assert_eq!(scene.told(start), [(2000, Kind::Mode, 199)]);
    scene.wait(10);
    scene.mode("active");
    scene.wait(10_000);
    assert_eq!(scene.told(start), [(3610, Kind::Mode, 1)]);
    // As it was told: but it was not so all the time.
    scene.mode("full");
    scene.mode("active");
    scene.wait(10_000);
    let told = scene.told(start);
    assert_eq!(told.len(), 2, "{told:?}");
}

#[test]
fn the_mode_that_stays_is_told_in_the_end() {
    let mut scene = Scene::new();
    let start = scene.time;
    for mode in ["degraded", "active", "degraded", "active", "degraded"] {
        scene.mode(mode);
        scene.wait(1);
    }
    scene.wait(10_000);
    assert_eq!(
        scene.told(start),
        [
            (0, Kind::Mode, 1),
            (1, Kind::Mode, 1),
            (3600, Kind::Mode, 3)
        ]
    );
    assert_eq!(scene.watch.memory.mode, "degraded");
}

#[test]
fn to_be_opened_read_only_is_no_change() {
    let mut scene = Scene::new();
    scene.mode("readonly");
    scene.mode("active");
    scene.mode("readonly");
    scene.wait(10_000);
    assert_eq!(scene.told, []);
    scene.mode("tripped");
    assert_eq!(scene.told.len(), 1);
}

#[test]
fn what_was_told_is_not_told_again_and_what_happened_unseen_is() {
    let mut scene = Scene::new();
    scene.facts.pending = 3;
    scene.mode("degraded");
    scene.wait(1000);
    assert_eq!(scene.told.len(), 2);
    scene.facts.lost = 8;
    scene.look();
    // The monitor starts anew, from what was kept.
    let text = serde_json::to_string(&scene.watch.memory).unwrap();
    scene.watch = Watch::new(serde_json::from_str(&text).unwrap());
    scene.facts.pending = 5;
    scene.facts.mode = "tripped".into();
    scene.told.clear();
    let start = scene.time;
    scene.look();
    scene.wait(1000);
    assert_eq!(
        scene.told(start),
        [
            (0, Kind::Mode, 1),
            (60, Kind::Lost, 8),
            (60, Kind::Pending, 2)
        ]
    );
}

#[test]
fn of_a_new_device_all_is_told_that_is_not_well() {
    let mut scene = Scene::new();
    scene.watch = Watch::default();
    scene.facts = Facts {
        mode: "full".into(),
        pending: 1,
        relocated: 2,
        lost: 3,
        bad_slots: 4,
        metadata_errors: 5,
        free: 0,
        slots: 7,
    };
    scene.look();
    scene.wait(60);
    let told: Vec<(Kind, u64)> = scene
        .told
        .iter()
        .map(|(_, kind, new)| (*kind, *new))
        .collect();
    let expected = [
        (Kind::Mode, 1),
        (Kind::Lost, 3),
        (Kind::BadSlots, 4),
        (Kind::MetadataErrors, 5),
        (Kind::LowSlots, 0),
        (Kind::Pending, 1),
        (Kind::Relocated, 2),
    ];
    assert_eq!(told, expected);
    // Nobody knows since when.
    assert_eq!(scene.watch.memory.trend, Trend::default());
}

#[test]
fn counters_that_begin_anew_are_followed() {
    let mut scene = Scene::new();
    scene.facts.metadata_errors = 9;
    scene.facts.pending = 9;
    scene.look();
    scene.wait(5000);
    scene.told.clear();
    let start = scene.time;
    // A table was loaded, and units were forgotten.
    scene.facts.metadata_errors = 2;
    scene.facts.pending = 0;
    scene.look();
    scene.facts.metadata_errors = 3;
    scene.facts.pending = 4;
    scene.look();
    scene.wait(100);
    assert_eq!(
        scene.told(start),
        [(60, Kind::MetadataErrors, 3), (60, Kind::Pending, 4)]
    );
    // Less than was there, more than was told.
    let mut scene = Scene::new();
    for errors in [9, 20, 15] {
        scene.facts.metadata_errors = errors;
        scene.look();
        scene.wait(100);
    }
    let start = scene.time;
    scene.wait(5000);
    let told = scene.told(start - 300);
    assert_eq!(told.last().map(|(_, _, new)| *new), Some(15), "{told:?}");
}

#[test]
fn after_a_reboot_errors_of_the_metadata_are_new() {
    let mut scene = Scene::new();
    scene.facts.metadata_errors = 9;
    scene.facts.pending = 9;
    scene.look();
    scene.wait(5000);
    scene.told.clear();
    let text = serde_json::to_string(&scene.watch.memory).unwrap();
    for boot in [1, 2] {
        scene.watch = Watch::new(serde_json::from_str(&text).unwrap());
        scene.boot = boot;
        scene.look();
        scene.wait(100);
        let told: Vec<Kind> = scene.told.iter().map(|(_, kind, _)| *kind).collect();
        let expected = if boot == 1 {
            &[][..]
        } else {
            &[Kind::MetadataErrors]
        };
        assert_eq!(told, expected, "boot {boot}");
    }
}

#[test]
fn less_entries_while_events_come_are_doubted_for_a_while() {
    let mut scene = Scene::new();
    scene.facts.pending = 5;
    let facts = |pending| Facts {
        pending,
        ..Facts::default()
    };
    // Of one that was never looked at, nobody knows.
    assert!(Watch::default().doubts(&facts(0), true));
    assert!(!Watch::default().doubts(&facts(0), false));
    scene.look();
    let watch = &mut scene.watch;
    assert!(!watch.doubts(&facts(5), true) && !watch.doubts(&facts(6), true));
    assert!(!watch.doubts(&facts(4), false));
    for _ in 0..3 {
        assert!(watch.doubts(&facts(4), true));
    }
    assert!(!watch.doubts(&facts(4), false));
    let doubted = (0..100).take_while(|_| watch.doubts(&facts(0), true));
    assert_eq!(doubted.count(), DOUBTS as usize - 1);
}

#[test]
fn few_slots_are_told_once_although_some_come_and_go() {
    let mut scene = Scene::new();
    let start = scene.time;
    for free in [99, 100, 99, 110, 90, 120, 1] {
        scene.facts.free = free;
        scene.look();
        scene.wait(10_000);
    }
    assert_eq!(scene.told(start), [(60, Kind::LowSlots, 0)]);
    for free in [130, 99] {
        scene.facts.free = free;
        scene.look();
        scene.wait(10_000);
    }
    assert_eq!(scene.told.len(), 1);
}

#[test]
fn faster_each_day_is_told_once_a_day() {
    let mut scene = Scene::new();
    for (day, new) in [1, 5, 20, 80, 3].into_iter().enumerate() {
        for _ in 0..new {
            scene.facts.relocated += 1;
            scene.wait(60);
            scene.look();
        }
        scene.wait(DAY - 60 * new);
        scene.look();
        let told = scene.told.iter();
        let told = told.filter(|(_, kind, _)| *kind == Kind::Faster).count();
        assert_eq!(told, [0, 0, 1, 2, 2][day], "day {day}");
    }
}

#[test]
fn clocks_that_jump_make_no_difference_to_what_is_told() {
    let mut scene = Scene::new();
    let start = scene.time;
    scene.facts.pending = 1;
    scene.look();
    // Suspended to disk for a week, and the wall clock is set back to 1970.
    scene.time += 7 * DAY;
    scene.ahead = 0;
    scene.look();
    assert_eq!(scene.told(start), [(7 * DAY, Kind::Pending, 1)]);
    scene.ahead = u64::MAX / 2;
    scene.facts.pending = 2;
    scene.look();
    scene.wait(4000);
    assert_eq!(scene.told(start), [(7 * DAY + 3600 + 60, Kind::Pending, 1)]);
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    New(Kind, u64),
    Mode(&'static str),
    /// The monitor ends and begins.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop::sample::select(vec![Kind::Lost, Kind::Pending, Kind::Relocated]);
    let mode = prop::sample::select(vec!["active", "tripped", "degraded", "full"]);
    prop_oneof![
        (0_u64..200).prop_map(Step::Wait),
        (0_u64..5000).prop_map(Step::Wait),
        (kind, 1_u64..1000).prop_map(|(kind, new)| Step::New(kind, new)),
        mode.prop_map(Step::Mode),
        Just(Step::Restart),
    ]
}

proptest! {
    /// Whatever happens: a new mode is told at once, unless it was told within the hold-off; in the end everything was
    /// told once; and between two of a kind there is the hold-off.
    #[test]
    fn all_is_told_once_and_never_too_often(steps in prop::collection::vec(step(), 1..80)) {
        let mut scene = Scene::new();
        let mut sums: BTreeMap<Kind, u64> = BTreeMap::new();
        let mut held_until = BTreeMap::new();
        let mut seen = "active";
        let mut restarts = vec![];
        for step in steps {
            match step {
                Step::Wait(seconds) => scene.wait(seconds),
                Step::New(kind, new) => {
                    *sums.entry(kind).or_default() += new;
                    match kind {
                        Kind::Lost => scene.facts.lost += new,
                        Kind::Pending => scene.facts.pending += new,
                        _ => scene.facts.relocated += new,
                    }
                    scene.look();
                }
                Step::Mode(mode) => {
                    let before = scene.told.len();
                    scene.mode(mode);
                    let is_told = scene.told[before..].iter().any(|(_, kind, _)| *kind == Kind::Mode);
                    let is_free = held_until.get(mode).is_none_or(|until| scene.time >= *until);
                    if mode != seen && is_free {
                        prop_assert!(is_told, "{mode} at {}", scene.time);
                    }
                    if is_told {
                        held_until.insert(mode, scene.time + 3600);
                    }
                    seen = mode;
                }
                Step::Restart => {
                    let memory = scene.watch.memory.clone();
                    scene.watch = Watch::new(memory);
                    held_until.clear();
                    restarts.push(scene.time);
                    scene.look();
                    let last = scene.told.iter().rev().find(|(_, kind, _)| *kind == Kind::Mode);
                    if last.is_some_and(|(time, _, _)| *time == scene.time) {
                        held_until.insert(seen, scene.time + 3600);
                    }
                }
            }
            // Those that were told while time passed.
            if let Some((time, _, _)) = scene.told.iter().rev().find(|(_, kind, _)| *kind == Kind::Mode) {
                let until = held_until.entry(seen).or_insert(0);
                *until = (*until).max(time + 3600);
            }
        }
        scene.wait(20_000);
        prop_assert!(scene.watch.again.is_none());
        prop_assert_eq!(&scene.watch.memory.mode, &scene.facts.mode);
        for kind in [Kind::Lost, Kind::Pending, Kind::Relocated] {
            let told: Vec<_> = scene.told.iter().filter(|(_, of, _)| *of == kind).collect();
            let sum: u64 = told.iter().map(|(_, _, new)| new).sum();
            prop_assert_eq!(sum, sums.get(&kind).copied().unwrap_or(0));
            for pair in told.windows(2) {
                let is_new_monitor = restarts.iter().any(|at| (pair[0].0..=pair[1].0).contains(at));
                prop_assert!(is_new_monitor || pair[1].0 - pair[0].0 >= 3600, "{:?}", pair);
            }
        }
    }
}
