// SPDX-License-Identifier: GPL-2.0

//! `docs/format.md` and the reader that was written from it, against the engine.

use crate::image::Image;
use crate::tool::{all, done, list, source, Done, Place};
use dm_remap::engine::format::{Cause, State};
use dm_remap::engine::geometry::Geometry;
use dm_remap::engine::Unit;
use proptest::prelude::*;
use std::process::Command;

pub(crate) fn reader(place: &Place, options: &[&str], image: &str) -> Done {
    let mut command = Command::new("python3");
    command.arg(source("tests/reader.py")).args(options);
    command.arg(place.path(image));
    done(command)
}

/// The text between ```` ```name ```` and ```` ``` ```` in docs/format.md.
fn example(name: &str) -> String {
    let doc = std::fs::read_to_string(source("docs/format.md")).unwrap();
    let (_, rest) = doc.split_once(&format!("```{name}\n")).unwrap();
    rest.split_once("```").unwrap().0.to_string()
}

/// A block from rows of an offset and 16 bytes in hex.
fn block(name: &str) -> Vec<u8> {
    let mut block = vec![0; 4096];
    for row in example(name).lines() {
        let (at, bytes) = row.split_once("  ").unwrap();
        let at = usize::from_str_radix(at, 16).unwrap();
        for (n, byte) in bytes.split(' ').enumerate() {
            block[at + n] = u8::from_str_radix(byte, 16).unwrap();
        }
    }
    block
}

#[test]
fn the_worked_example_is_what_the_engine_writes_and_reads() {
    let [first, table, last] = ["block0", "block1", "block5"].map(block);
    let slots = vec![0; 2 * 4096];
    let written = [first, table.clone(), slots, table, last].concat();

    let geometry = Geometry::plan(1003, 48, 4, 2).unwrap();
    let uuid: [u8; 16] = std::array::from_fn(|n| 0xa0 + n as u8);
    let mut image = Image::new(geometry, uuid, "example");
    let unit = Unit(250);
    let entry = |unit, mask| State::Entry { unit, mask };
    let bad = State::Bad { unit, lost: 4 };
    image.set(0, bad, Cause::Write, 1_800_000_300);
    image.set(1, entry(unit, 3), Cause::Write, 1_800_000_300);
    image.set(2, entry(Unit(2), 0), Cause::Import, 1_800_000_200);
    image.seal(3);
    assert!(image.bytes() == written);

    let place = Place::new();
    place.write("s.img", written);
    place.run(&["check", "s.img"]).ok();
    assert_eq!(list(&place.dump("s.img")), example("list"));
    assert_eq!(reader(&place, &[], "s.img").ok(), example("list"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn the_independent_reader_agrees(
        shift in 0u32..=6, copies in 2u32..=4, blocks in 300u64..500, main in 1000u64..40_000,
        records in proptest::collection::btree_map(
            0u32..1200, (any::<u64>(), any::<u64>(), 0u8..8), 0..60,
        ),
        stale in any::<bool>(), hit in proptest::option::of((0usize..500, 0usize..4096)),
    ) {
        let g = Geometry::plan(main, blocks * 8, 1 << shift, copies).unwrap();
        let mut image = Image::new(g, [7; 16], "");
        let before = image.bytes();
        let mut taken = std::collections::BTreeSet::new();
        let mut last = Unit(0);
        for (slot, (unit, mask, kind)) in records {
            let unit = Unit(unit % g.units());
            let slot = slot % g.slots_total as u32;
            if g.is_reserved(dm_remap::engine::Slot(slot)) {
                continue;
            }
            // A slot that fails takes sectors of a unit with it that has another now.
            if kind < 2 {
                let lost = if taken.is_empty() || kind == 0 { 0 } else { mask & g.unit_mask(last) };
                image.set(slot, State::Bad { unit: last, lost }, Cause::Read, 5);
                continue;
            }
            if !taken.insert(unit) {
                continue;
            }
            last = unit;
            let all = g.unit_mask(unit);
            let mask = [0, all, mask & all][usize::from(kind - 2).min(2)];
            image.set_entry(slot, unit.0, mask);
        }
        image.seal(9);
        let mut bytes = image.bytes();
        if stale {
            // The first area missed every write.
            let area = 4096..4096 * (1 + g.table_blocks as usize);
            bytes[area.clone()].copy_from_slice(&before[area]);
        }
        if let Some((block, byte)) = hit {
            let at = block % blocks as usize * 4096 + byte;
            bytes[at] ^= 0x10;
        }
        let place = Place::new();
        place.write("s.img", bytes);
        let ours = place.run(&["check", "s.img"]);
        let theirs = reader(&place, &["--all"], "s.img");
        if ours.status > 1 {
            prop_assert_eq!(theirs.status, 1, "{}", ours.out);
        } else {
            prop_assert_eq!(theirs.ok(), all(&place.dump("s.img")));
        }
    }
}

#[test]
fn blank_and_foreign_images_are_told_apart() {
    let place = Place::new();
    place.blank("s.img", 20);
    assert_eq!(reader(&place, &[], "s.img").status, 3);
    place.run(&["check", "s.img"]).failed(3, "blank");
    place.write("s.img", [5; 81920]);
    assert_eq!(reader(&place, &[], "s.img").status, 1);
    place.run(&["check", "s.img"]).failed(3, "foreign data");
}
