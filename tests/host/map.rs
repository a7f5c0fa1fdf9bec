// SPDX-License-Identifier: GPL-2.0

//! The maps of disks in some states that disks come in: as SVG, in a terminal, and as JSON that is compared with later.

use crate::image::Image;
use crate::json::Schema;
use crate::tool::{done, source, Place};
use dm_remap::engine::format::{Cause, State};
use dm_remap::engine::geometry::Geometry;
use dm_remap::engine::Unit;
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

/// 2027-01-15.
const TIME: u64 = 1_800_000_000;

/// Units of a disk of 500 GB.
const UNITS: u64 = 976_773_168 / 8;

/// What is not healthy of a disk: of each unit, which sectors a slot holds, and which are lost.
type Damage = BTreeMap<u64, (u8, u8)>;

const PENDING: (u8, u8) = (0, 0);
const RELOCATED: (u8, u8) = (0xff, 0);
const PARTIAL: (u8, u8) = (0x0f, 0);
const LOST: (u8, u8) = (0xf0, 0x03);

/// Numbers that look like chance, and are the same each time.
struct Chance(u64);

impl Chance {
    /// One of 0 to `below` - 1.
    fn number(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }

    /// Whether it is one of so many in a hundred.
    fn percent(&mut self, share: u64) -> bool {
        self.number(100) < share
    }
}

/// A head has touched the platter twice; who wrote there since has the sectors back.
fn scratched() -> Damage {
    let (mut damage, mut chance) = (Damage::new(), Chance(1));
    // Across a tenth of the disk, deepest in the middle: a few units on the tracks that it meets.
    let (from, to, track) = (UNITS * 21 / 100, UNITS * 32 / 100, 470);
    let mut at = from;
    while at < to {
        let depth = 10 - ((from + to) / 2).abs_diff(at) * 20 / (to - from);
        for unit in at..at + 1 + chance.number(1 + depth / 3) {
            let state = match chance.number(10) {
                0..6 => RELOCATED,
                6 => PARTIAL,
                _ => PENDING,
            };
            damage.insert(unit, state);
        }
        at += track * (1 + chance.number(1 + 4 * (10 - depth)));
    }
    // A short, deep one, of which nobody wrote much.
    for turn in 0..600 {
        let at = UNITS * 683 / 1000 + turn * 303 + chance.number(9);
        let depth = 60 - 300_u64.abs_diff(turn) / 5;
        for unit in at..at + chance.number(2 + depth) {
            let state = if chance.percent(8) {
                RELOCATED
            } else {
                PENDING
            };
            damage.insert(unit, state);
        }
    }
    // Here and there one.
    for _ in 0..14 {
        damage.insert(chance.number(UNITS), RELOCATED);
    }
    for unit in [UNITS * 685 / 1000, UNITS * 9 / 10 + 77] {
        damage.insert(unit, LOST);
    }
    damage
}

/// Half of the platter's surface is worn off, a million units of it tried.
fn half_dead() -> (u64, Damage) {
    let (units, mut damage, mut chance) = (2_800_000, Damage::new(), Chance(2));
    for unit in units / 2 - 60_000..units {
        // The farther, the worse.
        let share = 45 + (unit + 60_000 - units / 2) / 28_000;
        if chance.percent(share) {
            let state = if chance.percent(6) {
                RELOCATED
            } else {
                PENDING
            };
            damage.insert(unit, state);
        }
    }
    assert!(damage.len() > 1_000_000, "{}", damage.len());
    for _ in 0..30 {
        damage.insert(chance.number(units), RELOCATED);
    }
    (units, damage)
}

/// As many bad sectors as the spare has slots, all over.
fn full() -> Damage {
    let (mut damage, mut chance) = (Damage::new(), Chance(3));
    while damage.len() < 5200 {
        let unit = chance.number(UNITS);
        let many = 1 + chance.number(40);
        let state = if chance.percent(4) {
            PENDING
        } else {
            RELOCATED
        };
        damage.extend((unit..unit + many).map(|unit| (unit, state)));
    }
    damage.into_iter().take(5200).collect()
}

/// A spare with at least so many slots, of a disk with that damage.
fn spare(units: u64, slots: u64, label: &str, damage: &Damage) -> Image {
    let spare = 8 * (slots + 2 + 2 * slots.div_ceil(126));
    let mut image = Image::new(
        Geometry::plan(units * 8, spare, 8, 2).unwrap(),
        [0x5c; 16],
        label,
    );
    let mut slot = 0;
    let mut next = || {
        slot += 1;
        slot - 1
    };
    for (unit, (mask, lost)) in damage {
        if *lost != 0 {
            let (unit, lost) = (Unit(*unit), u64::from(*lost));
            image.set(next(), State::Bad { unit, lost }, Cause::Read, TIME - 3600);
        }
        image.set(
            next(),
            State::Entry {
                unit: Unit(*unit),
                mask: (*mask).into(),
            },
            if *mask == 0 {
                Cause::Read
            } else {
                Cause::Write
            },
            TIME - unit % 900_000,
        );
    }
    image.seal(3);
    image
}

/// The devices of which pictures are made: a name, and the spare.
fn devices() -> [(&'static str, Image); 4] {
    let (units, worn) = half_dead();
    [
        ("empty", spare(UNITS, 24_000, "", &Damage::new())),
        ("scratched", spare(UNITS, 60_000, "left disk", &scratched())),
        (
            "half-dead",
            spare(units, 1_200_000, "archive <2019> & \"old\"", &worn),
        ),
        ("full", spare(UNITS, 5200, "", &full())),
    ]
}

/// What Python's parser of XML says of a file: the text of all elements of that name, one a line.
#[track_caller]
fn elements(place: &Place, name: &str, element: &str) -> String {
    let mut command = Command::new("python3");
    let program = "import sys, xml.etree.ElementTree as e
for found in e.parse(sys.argv[1]).iter('{http://www.w3.org/2000/svg}' + sys.argv[2]): print(found.text)";
    command
        .args(["-c", program])
        .arg(place.path(name))
        .arg(element);
    done(command).ok()
}

/// With the environment variable UPDATE set, docs/map.svg and build/pictures/ are written anew.
#[test]
fn pictures_are_well_formed_and_small_and_the_one_of_the_docs_is_as_drawn_now() {
    let place = Place::new();
    let update = std::env::var_os("UPDATE").is_some();
    for (name, image) in devices() {
        image.save(&place.path(name));
        let svg = format!("{name}.svg");
        place.run(&["map", name, "-o", &svg]).ok();
        let picture = fs::read(place.path(&svg)).unwrap();
        assert!(picture.len() < 1 << 20, "{name}: {} bytes", picture.len());
        let texts = elements(&place, &svg, "text");
        let titles = elements(&place, &svg, "title");
        assert!(
            texts.contains("pending\n") && titles.starts_with(name),
            "{texts}"
        );
        if name == "half-dead" {
            assert!(titles.contains(r#"(archive <2019> & "old")"#), "{titles}");
            assert!(titles.lines().count() > 500);
        }
        if update {
            fs::create_dir_all(source("build/pictures")).unwrap();
            fs::write(source("build/pictures").join(&svg), &picture).unwrap();
        }
        if name == "scratched" {
            if update {
                fs::write(source("docs/map.svg"), &picture).unwrap();
            }
            let kept = fs::read(source("docs/map.svg")).unwrap();
            assert!(kept == picture, "docs/map.svg: UPDATE=1 writes it anew");
        }
        place
            .run(&["map", name, "-o", &svg])
            .failed(4, "File exists");
        fs::remove_file(place.path(name)).unwrap();
    }
}

#[test]
fn a_map_in_the_terminal_is_as_wide_as_that_and_plain_where_it_must_be() {
    let place = Place::new();
    spare(UNITS, 60_000, "left disk", &scratched()).save(&place.path("s.img"));
    let map = |locale: &str, columns: &str| {
        let mut command = place.command(&["map", "s.img"]);
        command.env("LC_ALL", locale).env("COLUMNS", columns);
        done(command).ok()
    };
    for columns in ["60", "80", "133"] {
        for locale in ["C", "C.UTF-8"] {
            let drawn = map(locale, columns);
            let width: usize = columns.parse().unwrap();
            let healthy = if locale == "C" { "...." } else { "····" };
            let rows = drawn.lines().filter(|line| line.contains(healthy));
            assert_eq!(
                rows.clone().map(|row| row.chars().count()).max(),
                Some(width),
                "{drawn}"
            );
            assert!(rows.count() > 10, "{drawn}");
            assert!(!drawn.contains('\u{1b}'));
            assert_eq!(drawn.is_ascii(), locale == "C", "{drawn}");
        }
    }
    let mut coloured = place.command(&["map", "s.img"]);
    coloured.env("CLICOLOR_FORCE", "1").env_remove("NO_COLOR");
    assert!(done(coloured).ok().contains('\u{1b}'));
    // What the legend says is what there is.
    let drawn = map("C", "80");
    for glyphs in [
        "  rR   relocated  ",
        "  aA   partial    ",
        "  pP   pending    ",
        "  xX   lost       2 units: ",
    ] {
        assert!(drawn.contains(glyphs), "{glyphs}: {drawn}");
    }
}

#[test]
fn what_a_map_says_in_json_adds_up() {
    let place = Place::new();
    let damage: Damage = [
        (0, PENDING),
        (1, PENDING),
        (2, RELOCATED),
        (7, PARTIAL),
        (8, LOST),
        (8191, PENDING),
    ]
    .into();
    // The last unit is not whole.
    let geometry = Geometry::plan(8192 * 8 - 3, 480 * 8, 8, 2).unwrap();
    let mut image = Image::new(geometry, [0x5c; 16], "");
    for (slot, (unit, (mask, _))) in (0..).zip(&damage) {
        image.set_entry(slot, *unit, (*mask).into());
    }
    image.set(
        9,
        State::Bad {
            unit: Unit(8),
            lost: 3,
        },
        Cause::Read,
        TIME,
    );
    image.seal(2);
    image.save(&place.path("s.img"));
    let document: Value =
        serde_json::from_str(&place.run(&["map", "s.img", "--json"]).ok()).unwrap();
    Schema::read("map").check(&document);
    assert_eq!(
        document["entries"],
        json!([
            { "sector": 0, "count": 16, "state": "pending" },
            { "sector": 16, "count": 8, "state": "relocated" },
            { "sector": 56, "count": 8, "state": "partial" },
            { "sector": 64, "count": 8, "state": "lost" },
            { "sector": 65528, "count": 5, "state": "pending" },
        ])
    );
    assert_eq!(
        document["units"],
        json!({ "healthy": 8186, "relocated": 1, "partial": 1, "pending": 3, "lost": 1 })
    );
    assert_eq!(
        (&document["lost_sectors"], &document["slots"]["bad"]),
        (&2.into(), &1.into())
    );
    assert_eq!(
        (&document["name"], &document["main"]["sectors"]),
        (&"s.img".into(), &65533.into())
    );
}

#[test]
fn what_is_worse_than_in_a_report_is_marked() {
    let place = Place::new();
    let before: Damage = [
        (0, PENDING),
        (1, RELOCATED),
        (2, RELOCATED),
        (3, PENDING),
        (4, PENDING),
        (9, LOST),
    ]
    .into();
    // Unit 3 was written, unit 4 as well and forgotten, unit 2 is bad again, 700 new.
    let after: Damage = [
        (0, PENDING),
        (1, RELOCATED),
        (2, PENDING),
        (3, RELOCATED),
        (9, LOST),
        (700, PENDING),
    ]
    .into();
    let make = |name: &str, damage| spare(8192, 300, "", damage).save(&place.path(name));
    make("before.img", &before);
    make("after.img", &after);
    for command in ["map", "dump"] {
        let report = place.run(&[command, "before.img", "--json"]).ok();
        place.write("report.json", &report);
        let said = place
            .run(&["map", "after.img", "--json", "--since", "report.json"])
            .ok();
        let document: Value = serde_json::from_str(&said).unwrap();
        Schema::read("map").check(&document);
        let since = &document["since"];
        assert_eq!(
            (&since["worse"], &since["better"]),
            (&2.into(), &2.into()),
            "{command}"
        );
        let worse = document["entries"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|e| e["worse"] == true);
        let worse: Vec<&Value> = worse.map(|entry| &entry["sector"]).collect();
        assert_eq!(worse, [&json!(16), &json!(5600)], "{command}");
        let drawn = place
            .run(&["map", "after.img", "--since", "report.json"])
            .ok();
        assert!(drawn.contains(": 2 units worse, 2 better"), "{drawn}");
        // In the map, and in its enlarged parts.
        assert_eq!(drawn.matches('^').count(), 4, "{drawn}");
        let picture = place
            .run(&["map", "after.img", "-o", "-", "--since", "report.json"])
            .ok();
        assert!(picture.contains("pending; 1 worse</title>"), "{picture}");
        assert_eq!(picture.matches("href=\"#v\"").count(), 5, "{picture}");
    }
    // Whatever the report says, nothing that a terminal obeys is printed.
    let report = place.run(&["map", "before.img", "--json"]).ok();
    let mut report: Value = serde_json::from_str(&report).unwrap();
    report["time"] = "\u{1b}[2J".into();
    place.write("report.json", report.to_string());
    let drawn = place
        .run(&["map", "after.img", "--since", "report.json"])
        .ok();
    assert!(
        drawn.contains("since report.json: 2 units worse"),
        "{drawn}"
    );
    // Of the same spare nothing is worse.
    let report = place.run(&["map", "after.img", "--json"]).ok();
    place.write("report.json", &report);
    let drawn = place
        .run(&["map", "after.img", "--since", "report.json"])
        .ok();
    assert!(
        drawn.contains(": 0 units worse, 0 better") && !drawn.contains('^'),
        "{drawn}"
    );
}

#[test]
fn a_report_that_cannot_be_compared_is_refused_with_the_reason() {
    let place = Place::new();
    place.formatted(2);
    fs::rename(place.path("s.img"), place.path("other.img")).unwrap();
    spare(8192, 300, "", &[(5, PENDING)].into()).save(&place.path("s.img"));
    let report: Value = serde_json::from_str(&place.run(&["map", "s.img", "--json"]).ok()).unwrap();
    let with = |path: &str, value: Value| {
        let mut report = report.clone();
        *report.pointer_mut(path).unwrap() = value;
        report.to_string()
    };
    let other = place.run(&["map", "other.img", "--json"]).ok();
    let header = place.run(&["dump", "--header", "--json", "s.img"]).ok();
    for (text, why) in [
        (
            String::new(),
            "not what dmremap map --json or dump --json prints: EOF",
        ),
        (
            "[]".into(),
            "not what dmremap map --json or dump --json prints",
        ),
        (header, "missing field `entries`"),
        (other, "of another device: its spare is "),
        (with("/version", 2.into()), "of another device"),
        (with("/unit_sectors", 16.into()), "of another device"),
        (with("/main/sectors", 8.into()), "of a main of 8 sectors"),
        (
            with("/entries/0/state", "healthy".into()),
            "the entry of sector 40 cannot be",
        ),
        (
            with("/entries/0/state", "sick".into()),
            "unknown variant `sick`",
        ),
        // Nothing that a terminal obeys is printed.
        (
            with("/entries/0/state", "sick\u{1b}[2J".into()),
            "unknown variant `sick\\u{1b}[2J`",
        ),
        (
            with("/entries/0/sector", 41.into()),
            "the entry of sector 41 cannot be",
        ),
        (with("/entries/0/sector", (1_u64 << 60).into()), "cannot be"),
        (
            with("/entries/0/count", 0.into()),
            "the entry of sector 40 cannot be",
        ),
        (
            with("/entries/0/count", u64::MAX.into()),
            "the entry of sector 40 cannot be",
        ),
        (
            with(
                "/entries",
                json!([{ "sector": 40, "state": "lost" }, { "sector": 32, "state": "lost" }]),
            ),
            "the entry of sector 32 cannot be",
        ),
    ] {
        place.write("report.json", text);
        place
            .run(&["map", "s.img", "--since", "report.json"])
            .failed(4, why);
    }
}
