// SPDX-License-Identifier: GPL-2.0

//! Damaged metadata, as `check` and `repair` deal with it. The engine's own tests have thousands of
//! cases more (src/engine/image.rs).

use crate::image::Image;
use crate::tool::Place;
use dm_remap::engine::format::{Cause, State};
use dm_remap::engine::geometry::Geometry;
use dm_remap::engine::Unit;
use std::fs;

const BLOCK: usize = 4096;

/// An image of 4 table blocks in 3 replicas with some entries.
fn sample() -> Image {
    let g = Geometry::plan(1 << 16, 480 * 8, 8, 3).unwrap();
    let mut image = Image::new(g, *b"0123456789abcdef", "sample");
    for n in 0..60 {
        image.set_entry(n * 2, u64::from(n) * 100, u64::from(n));
    }
    let unit = Unit(700);
    let lost = 0x81;
    image.set(1, State::Bad { unit, lost }, Cause::Read, 1_800_000_000);
    image.seal(5);
    image
}

/// The metadata blocks of an image: superblocks, then the areas.
fn metadata(g: &Geometry) -> Vec<usize> {
    let area = |start: &u64| *start..*start + g.table_blocks;
    let tables = g.areas().iter().flat_map(area);
    let all = [0, g.spare_sectors / 8 - 1].into_iter().chain(tables);
    all.map(|block| block as usize).collect()
}

#[test]
fn repair_gives_every_single_damaged_block_back() {
    let image = sample();
    let good = image.bytes();
    let mut older = sample();
    older.seal(4);
    let older = older.bytes();
    for (n, block) in metadata(&image.geometry).into_iter().enumerate() {
        for kind in ["zero", "flip", "older"] {
            let at = block * BLOCK..(block + 1) * BLOCK;
            let mut bytes = good.clone();
            match kind {
                "zero" => bytes[at].fill(0),
                "flip" => bytes[at.start + 37 * n % BLOCK] ^= 4,
                _ => bytes[at.clone()].copy_from_slice(&older[at]),
            }
            let damaged = bytes != good;
            let place = Place::new();
            place.write("s.img", &bytes);
            let what = format!("{kind} block {block}");
            let status = place.run(&["check", "s.img"]).status;
            assert_eq!(status, i32::from(damaged), "{what}");
            assert!(place.image() == bytes, "{what}: check wrote");
            let repair = ["repair", "s.img", "--yes", "--backup", "b"];
            place.run(&repair).ok();
            assert!(place.image() == good, "{what}: not as before");
            if damaged {
                place.run(&["repair", "s.img", "--undo", "b", "--yes"]).ok();
                assert!(place.image() == bytes, "{what}: undo");
            }
        }
    }
}

#[test]
fn a_block_without_a_valid_replica_is_named_and_the_rest_is_repaired() {
    let image = sample();
    let mut bytes = image.bytes();
    for copy in 0..3 {
        let at = image.geometry.table_sector(copy, 2) as usize * 512;
        bytes[at + 100] ^= 1;
    }
    let place = Place::new();
    place.write("s.img", &bytes);
    let check = || place.run(&["check", "s.img"]);
    check().failed(2, "table block 2: no valid replica");
    place
        .run(&["export", "s.img", "--format", "sectors"])
        .failed(2, "table block 2: no valid replica");
    // A superblock too: that can be mended.
    bytes[BLOCK - 1] = 1;
    place.write("s.img", &bytes);
    let done = place.run(&["repair", "s.img", "--yes", "--backup", "b"]);
    done.failed(2, "table block 2: no valid replica");
    bytes[BLOCK - 1] = 0;
    assert!(place.image() == bytes);
}

#[test]
fn impossible_records_are_named_with_their_reason() {
    let place = Place::new();
    type Spoil = fn(&mut Image);
    let cases: [(&str, Spoil); 8] = [
        ("table block 1, record 4: unit past the end of main", |i| {
            i.set_entry(130, 1 << 13, 1)
        }),
        ("table block 0, record 9: mask outside the unit", |i| {
            i.set_entry(9, 4, 0x100)
        }),
        ("unit 100: has two slots, 2 and 131", |i| {
            i.set_entry(131, 100, 1)
        }),
        (
            "unit 5: slot 7 lost sectors of it, and it has no entry",
            |i| {
                let unit = Unit(5);
                i.set(7, State::Bad { unit, lost: 1 }, Cause::Read, 0);
            },
        ),
        (
            "unit 700: slots 1 and 3, which failed, claim the same sector",
            |i| {
                let unit = Unit(700);
                i.set(3, State::Bad { unit, lost: 0x80 }, Cause::Read, 0);
            },
        ),
        ("unit 100: has two slots, 2 and 131", |i| {
            let (unit, mask) = (Unit(100), 1);
            i.set(2, State::Moved { unit, mask }, Cause::Read, 0);
            i.set(131, State::Moved { unit, mask }, Cause::Read, 0);
        }),
        ("table block 0, record 9: unknown state", |i| {
            i.set_entry(9, 4, 1);
            i.tables[0][64 + 32 * 9 + 16] = 4;
        }),
        ("slot inside a metadata area", |i| {
            let slot = i
                .geometry
                .reserved(0..i.geometry.slots_total)
                .next()
                .unwrap();
            i.set_entry(slot.0, 7, 1);
        }),
    ];
    for (why, spoil) in cases {
        let mut image = sample();
        spoil(&mut image);
        image.seal(6);
        place.write("s.img", image.bytes());
        place.run(&["check", "s.img"]).failed(2, why);
        let import = ["import", "s.img", "-", "--format", "sectors"];
        place.run(&import).failed(2, why);
        assert!(place.image() == image.bytes());
    }
}

/// Slot 300 has taken the place of slot 18, which served unit 900 with mask 9, and slot 301 that of slot 140; the
/// records of 18 and 140 do not say so yet.
fn replaced() -> Image {
    let mut image = sample();
    let moved = |unit, mask| {
        let unit = Unit(unit);
        State::Moved { unit, mask }
    };
    image.set_entry(140, 77, 0xff);
    image.set(300, moved(900, 8), Cause::Write, 1_800_000_000);
    image.set(301, moved(77, 0xff), Cause::Write, 1_800_000_000);
    // This one is done.
    let bad = State::Bad {
        unit: Unit(5),
        lost: 2,
    };
    image.set(20, bad, Cause::Write, 1_800_000_000);
    image.set(302, moved(5, 1), Cause::Write, 1_800_000_000);
    image.seal(5);
    image
}

#[test]
fn a_replaced_slot_that_is_not_recorded_as_bad_is_named_and_repair_records_it() {
    let place = Place::new();
    let bytes = replaced().bytes();
    place.write("s.img", &bytes);
    let check = || place.run(&["check", "s.img"]);
    for why in [
        "unit 900: slot 18 was replaced, and is not yet recorded as bad",
        "unit 77: slot 140 was replaced, and is not yet recorded as bad",
        "usable; 2 records can be repaired",
    ] {
        check().failed(1, why);
    }
    // Each unit once, where it is now.
    let dump = place.dump("s.img");
    let of_unit = |unit: u64| {
        let entries = dump["entries"].as_array().unwrap().iter();
        let entries: Vec<_> = entries.filter(|e| e["unit"] == unit).collect();
        assert_eq!(entries.len(), 1);
        let word = |name: &str| entries[0][name].as_str().unwrap().to_string();
        (
            entries[0]["slot"].as_u64().unwrap(),
            word("mask"),
            word("lost_mask"),
        )
    };
    assert_eq!(of_unit(900), (300, "8".into(), "1".into()));
    assert_eq!(of_unit(77), (301, "ff".into(), "0".into()));
    assert_eq!(of_unit(5), (302, "1".into(), "2".into()));
    let bad = |dump: &serde_json::Value| {
        let bad = dump["bad_slots"].as_array().unwrap().iter();
        let bad = bad.map(|b| {
            (
                b["slot"].as_u64().unwrap(),
                b["lost_mask"].as_str().unwrap().into(),
            )
        });
        bad.collect::<Vec<(u64, String)>>()
    };
    let all_bad =
        [(1, "81"), (18, "1"), (20, "2"), (140, "0")].map(|(slot, lost)| (slot, lost.into()));
    assert_eq!(bad(&dump), all_bad);
    assert_eq!(dump["findings"][0]["severity"], "mendable");
    assert_eq!(dump["slots"]["bad"], 4);
    // It can be read, and is not written before it is repaired.
    let lost = ["export", "s.img", "--format", "sectors", "--which", "lost"];
    assert!(place.run(&lost).ok().contains("7200"));
    place.run(&["label", "s.img", "x"]).ok();
    let bytes = place.image();
    place
        .run(&["import", "s.img", "-", "--format", "sectors"])
        .failed(1, "dmremap repair");
    place.run(&["repair", "s.img"]).failed(4, "--yes");
    assert!(place.image() == bytes);

    let repair = ["repair", "s.img", "--yes", "--backup", "b"];
    let said = place.run(&repair).ok();
    assert!(said.contains("sound"), "{said}");
    check().ok();
    let after = place.dump("s.img");
    assert_eq!(
        (&after["entries"], bad(&after)),
        (&dump["entries"], all_bad.into())
    );
    place.run(&["repair", "s.img", "--undo", "b", "--yes"]).ok();
    assert!(place.image() == bytes);

    // With damage to a replica of the same block, and of another one.
    let mut damaged = bytes;
    for (copy, number) in [(1, 0), (2, 3)] {
        let at = replaced().geometry.table_sector(copy, number) as usize * 512;
        damaged[at + 70] ^= 1;
    }
    place.write("s.img", &damaged);
    check().failed(1, "usable; 2 copies and 2 records can be repaired");
    place
        .run(&["repair", "s.img", "--yes", "--backup", "c"])
        .ok();
    let again = place.dump("s.img");
    assert_eq!(
        (&again["entries"], bad(&again)),
        (&after["entries"], bad(&after))
    );
    assert_eq!(again["findings"], after["findings"]);
    place.run(&["repair", "s.img", "--undo", "c", "--yes"]).ok();
    assert!(place.image() == damaged);
}

#[test]
fn nothing_is_recorded_in_a_table_that_contradicts_itself() {
    let place = Place::new();
    let mut image = replaced();
    image.set_entry(141, 100, 1);
    image.seal(6);
    place.write("s.img", image.bytes());
    let why = "unit 100: has two slots, 2 and 141";
    let repair = ["repair", "s.img", "--yes", "--backup", "b"];
    place.run(&["check", "s.img"]).failed(2, why);
    place.run(&repair).failed(2, why);
    assert!(place.image() == image.bytes());
    assert!(!place.path("b").exists());
    // Nor if another contradiction in it is ended.
    let mut bytes = image.bytes();
    let mut other = replaced();
    other.set_entry(141, 100, 1);
    other.set_entry(260, 102, 1);
    other.seal(6);
    let at = image.geometry.table_sector(1, 2) as usize * 512;
    bytes[at..at + BLOCK].copy_from_slice(&other.tables[2]);
    place.write("s.img", &bytes);
    let prefer = [&repair[..], &["--prefer", "0"]].concat();
    place.run(&prefer).failed(2, why);
    assert!(place.image() == image.bytes());
}

#[test]
fn a_growing_spare_takes_moved_entries_along() {
    let place = Place::new();
    let mut image = sample();
    let (unit, mask) = (Unit(901), 6);
    image.set(
        301,
        State::Moved { unit, mask },
        Cause::Write,
        1_800_000_000,
    );
    image.seal(6);
    let mut bytes = image.bytes();
    bytes.resize(800 * BLOCK, 0);
    place.write("s.img", &bytes);
    let bounds = ["--spare-sectors", "3840"];
    let before = place
        .run(&[&["dump", "s.img", "--json"], &bounds[..]].concat())
        .ok();
    let before: serde_json::Value = serde_json::from_str(&before).unwrap();
    place.run(&["grow", "s.img", "--yes"]).ok();
    place.run(&["check", "s.img"]).ok();
    assert_eq!(place.dump("s.img")["entries"], before["entries"]);
    // With one that is not recorded, it is repaired first.
    let mut bytes = replaced().bytes();
    bytes.resize(800 * BLOCK, 0);
    place.write("s.img", &bytes);
    place
        .run(&["grow", "s.img", "--yes"])
        .failed(1, "dmremap repair");
    assert!(place.image() == bytes);
}

#[test]
fn repair_asks_and_keeps_what_it_replaces() {
    let place = Place::new();
    let mut bytes = sample().bytes();
    bytes[BLOCK..3 * BLOCK].fill(0xee);
    place.write("s.img", &bytes);
    place.run(&["repair", "s.img"]).failed(4, "--yes");
    place.write("taken", "mine");
    place
        .run(&["repair", "s.img", "--yes", "--backup", "taken"])
        .failed(4, "taken: nothing was repaired");
    assert!(place.image() == bytes);
    assert_eq!(fs::read(place.path("taken")).unwrap(), b"mine");
    place
        .run(&["repair", "s.img", "--undo", "taken", "--yes"])
        .failed(4, "taken");
    place
        .run(&["repair", "s.img", "--undo", "none", "--yes"])
        .failed(4, "none");
    assert!(place.image() == bytes);
    // By default a new file in the current directory.
    let said = place.run(&["repair", "s.img", "--yes"]).ok();
    let name = said
        .lines()
        .find_map(|l| l.strip_prefix("what is replaced is in "));
    assert!(place.image() == sample().bytes());
    // A backup with a damaged byte is not put back.
    let backup = place.path(name.unwrap());
    let mut saved = fs::read(&backup).unwrap();
    saved[5000] ^= 1;
    place.write("spoilt", saved);
    place
        .run(&["repair", "s.img", "--undo", "spoilt", "--yes"])
        .failed(4, "spoilt: incomplete or damaged");
    assert!(place.image() == sample().bytes());
}

#[test]
fn a_spare_without_superblocks_is_not_taken_for_blank_or_foreign() {
    let place = Place::new();
    let good = sample().bytes();
    for (byte, why) in [
        (0, "a table that was in use is there"),
        (1, "wrong checksum"),
    ] {
        let mut bytes = good.clone();
        for start in [0, bytes.len() - BLOCK] {
            bytes[start + 200] = 1;
            if byte == 0 {
                bytes[start..start + BLOCK].fill(0);
            }
        }
        place.write("s.img", &bytes);
        place.run(&["check", "s.img"]).failed(2, why);
        place.run(&["repair", "s.img", "--yes"]).failed(2, why);
        place
            .run(&["format", "s.img", "--main-sectors", "65536", "--yes"])
            .failed(4, "of dm-remap");
        assert!(place.image() == bytes);
    }
}

#[test]
fn two_versions_of_one_generation_are_left_alone_until_one_is_preferred() {
    let image = sample();
    let good = image.bytes();
    let mut other = sample();
    other.set_entry(251, 9, 1);
    other.seal(5);
    let mut bytes = good.clone();
    let at = |copy| image.geometry.table_sector(copy, 1) as usize * 512;
    bytes[at(1)..at(1) + BLOCK].copy_from_slice(&other.tables[1]);
    bytes[at(2) + 100] ^= 1;
    let place = Place::new();
    place.write("s.img", &bytes);
    let why = "table block 1, replica 1: same generation as another copy, other content";
    place.run(&["check", "s.img"]).failed(2, why);
    let import = ["import", "s.img", "-", "--format", "sectors"];
    place.run(&import).failed(2, why);
    let repair = |copy, backup| {
        let repair = ["repair", "s.img", "--yes", "--backup", backup];
        place.run(&[&repair[..], &["--prefer", copy]].concat())
    };
    for copy in ["2", "3"] {
        let why = format!("table block 1: copy {copy} is not one of the versions");
        repair(copy, "b").failed(4, &why);
        assert!(place.image() == bytes);
    }
    let expected = |tables: &[[u8; BLOCK]]| {
        let mut expected = good.clone();
        for copy in 0..3 {
            expected[at(copy)..at(copy) + BLOCK].copy_from_slice(&tables[1]);
        }
        expected
    };
    repair("1", "b1").ok();
    assert!(place.image() == expected(&other.tables));
    place
        .run(&["repair", "s.img", "--undo", "b1", "--yes"])
        .ok();
    assert!(place.image() == bytes);
    repair("0", "b0").ok();
    assert!(place.image() == good);
}

#[test]
fn a_later_version_of_the_format_is_left_alone() {
    for (at, byte, read) in [(12, 2, 2), (64, 1, 2), (72, 1, 0)] {
        let mut bytes = sample().bytes();
        for copy in [0, bytes.len() - BLOCK] {
            bytes[copy + at] = byte;
            bytes[copy + 8..copy + 12].fill(0);
            let crc = crc32c::crc32c(&bytes[copy..copy + BLOCK]);
            bytes[copy + 8..copy + 12].copy_from_slice(&crc.to_le_bytes());
        }
        let place = Place::new();
        place.write("s.img", &bytes);
        assert_eq!(place.run(&["dump", "s.img"]).status, read);
        for write in [
            &["repair", "s.img", "--yes"][..],
            &["label", "s.img", "x"],
            &["import", "s.img", "-", "--format", "sectors"],
        ] {
            place.run(write).failed(2, "s.img");
        }
        assert!(place.image() == bytes);
    }
}

#[test]
fn a_compatible_feature_stays() {
    let mut bytes = sample().bytes();
    for copy in [0, bytes.len() - BLOCK] {
        bytes[copy + 80] = 8;
        bytes[copy + 8..copy + 12].fill(0);
        let crc = crc32c::crc32c(&bytes[copy..copy + BLOCK]);
        bytes[copy + 8..copy + 12].copy_from_slice(&crc.to_le_bytes());
    }
    let place = Place::new();
    let last = bytes.len() - BLOCK;
    for copy in [0, last] {
        let mut damaged = bytes.clone();
        damaged[copy..copy + BLOCK].fill(0);
        place.write("s.img", &damaged);
        let repair = ["repair", "s.img", "--yes", "--backup"];
        place
            .run(&[&repair[..], &[&format!("b{copy}")]].concat())
            .ok();
        assert!(place.image() == bytes);
    }
    place.run(&["label", "s.img", "x"]).ok();
    assert_eq!([0, last].map(|copy| place.image()[copy + 80]), [8, 8]);
}
