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
    let cases: [(&str, Spoil); 5] = [
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
        ("slot inside a metadata area", |i| {
            let slot = i.geometry.reserved().next().unwrap();
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
