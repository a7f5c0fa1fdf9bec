// SPDX-License-Identifier: GPL-2.0

//! `docs/format.md` and the reader that was written from it, against the engine.

use crate::image::{crc32c, Image};
use crate::tool::{all, done, list, source, Done, Place};
use dm_remap::engine::format::{blank_table_block, record, seal_table_block, Cause, State};
use dm_remap::engine::geometry::Geometry;
use dm_remap::engine::identity::{DiskId, IdKind, Identity};
use dm_remap::engine::{Slot, Unit};
use proptest::prelude::*;
use std::collections::BTreeMap;
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
    let number = std::array::from_fn(|n| {
        [
            0x50, 0, 0xc5, 0, 0xa1, 0xb2, 0xc3, 0xd4, 0, 0, 0, 0, 0, 0, 0, 0,
        ][n]
    });
    let disk = DiskId::new(IdKind::Naa, number, 8).map(|id| (id, 2048));
    image.main = Identity::new(b"c001cafe-02", disk).unwrap();
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

/// What the record of `slot` says.
fn state(image: &Image, slot: u32) -> State {
    let g = &image.geometry;
    let (number, index) = g.record_of(Slot(slot));
    record(&image.tables[number as usize], number, index, g).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn the_independent_reader_agrees(
        shift in 0u32..=6, copies in 2u32..=4, blocks in 300u64..500, main in 1000u64..40_000,
        records in proptest::collection::btree_map(
            0u32..1200, (any::<u64>(), any::<u64>(), 0u8..12), 0..60,
        ),
        // Losses of a unit as they come, two entries of any kind: most images are refused then.
        wild in proptest::bool::weighted(0.3),
        stale in any::<bool>(), hit in proptest::option::of((0usize..500, 0usize..4096)),
    ) {
        let g = Geometry::plan(main, blocks * 8, 1 << shift, copies).unwrap();
        let mut image = Image::new(g, [7; 16], "");
        let before = image.bytes();
        // Of each unit the sectors that were in a slot: in one only, but for a unit that moved.
        let mut in_slots = BTreeMap::new();
        let mut last: Option<(Unit, u64, bool)> = None;
        for (slot, (unit, mask, kind)) in records {
            let slot = slot % g.slots_total as u32;
            if g.is_reserved(Slot(slot)) || state(&image, slot) != State::Free {
                continue;
            }
            let mut set = |state| image.set(slot, state, Cause::Read, 5);
            match (kind, last) {
                (0, _) => set(State::BAD),
                // A slot that fails takes sectors of a unit with it that has another now.
                (1 | 2, Some((unit, ..))) => {
                    let before = in_slots.entry(unit).or_insert(0);
                    let lost = mask & g.unit_mask(unit) & if wild { !0 } else { !*before };
                    *before |= lost;
                    set(State::Bad { unit, lost });
                }
                // The unit has moved to this slot, or from it, and the record of the other is as before.
                (3 | 4, Some((unit, held, is_moved))) => {
                    let before = in_slots.entry(unit).or_insert(0);
                    let mask = mask & g.unit_mask(unit) & if wild { !0 } else { !*before | held };
                    *before |= mask;
                    let moves = if wild { kind == 3 } else { !is_moved };
                    set(if moves { State::Moved { unit, mask } } else { State::Entry { unit, mask } });
                    last = None;
                }
                _ => {
                    let unit = Unit(unit % g.units());
                    if in_slots.contains_key(&unit) {
                        continue;
                    }
                    let all = g.unit_mask(unit);
                    let mask = [0, all, mask & all][usize::from(kind % 3)];
                    in_slots.insert(unit, mask);
                    let is_moved = kind > 9;
                    last = Some((unit, mask, is_moved));
                    set(if is_moved { State::Moved { unit, mask } } else { State::Entry { unit, mask } });
                }
            }
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
        prop_assert!(wild || hit.is_some() || ours.status < 2, "{}", ours.out);
        if ours.status > 1 {
            prop_assert_eq!(theirs.status, 1, "{}", ours.out);
        } else {
            prop_assert_eq!(theirs.ok(), all(&place.dump("s.img")));
        }
    }
}

/// What `check` and the reader say of an image: their status, which must be that.
#[track_caller]
fn both_say(place: &Place, check: (i32, &str), theirs: (i32, &str)) {
    place.run(&["check", "s.img"]).failed(check.0, check.1);
    reader(place, &["--all"], "s.img").failed(theirs.0, theirs.1);
}

#[test]
fn records_that_contradict_each_other_are_refused_by_both() {
    let (unit, moved) = (Unit(9), true);
    let entry = |mask, is_moved| match is_moved {
        true => State::Moved { unit, mask },
        false => State::Entry { unit, mask },
    };
    let bad = |lost| State::Bad { unit, lost };
    // What the slots say, and why `check` and the reader refuse that.
    type Case<'a> = (&'a [State], Option<(&'static str, &'static str)>);
    let cases: [Case<'_>; 9] = [
        (&[entry(1, false), bad(2), bad(4)], None),
        (&[entry(2, false), bad(3), bad(6)], None),
        (&[entry(3, false), entry(1, moved), bad(4)], None),
        (&[entry(7, false), entry(4, moved), bad(12)], None),
        (
            &[entry(1, false), bad(6), bad(4)],
            Some(("claim the same sector", "lost twice")),
        ),
        (
            &[entry(3, false), entry(1, moved), bad(2)],
            Some(("claim the same sector", "lost twice")),
        ),
        (
            &[entry(3, moved), entry(1, moved)],
            Some(("has two slots", "slots [")),
        ),
        (
            &[entry(3, false), entry(1, moved), entry(0, false)],
            Some(("has two slots", "slots [")),
        ),
        (&[bad(1)], Some(("it has no entry", "no entry"))),
    ];
    let g = Geometry::plan(1000, 400 * 8, 8, 2).unwrap();
    let place = Place::new();
    for (states, why) in cases {
        let mut image = Image::new(g, [7; 16], "");
        for (slot, state) in (0..).zip(states) {
            image.set(slot * 100, *state, Cause::Write, 5);
        }
        image.seal(2);
        place.write("s.img", image.bytes());
        match why {
            Some((ours, theirs)) => both_say(&place, (2, ours), (1, theirs)),
            None => {
                assert!(place.run(&["check", "s.img"]).status < 2, "{states:?}");
                let theirs = reader(&place, &["--all"], "s.img");
                assert_eq!(theirs.ok(), all(&place.dump("s.img")));
            }
        }
    }
}

#[test]
fn blank_and_foreign_images_are_told_apart() {
    let place = Place::new();
    place.blank("s.img", 20);
    both_say(&place, (3, "blank"), (3, ""));
    place.write("s.img", [5; 81920]);
    both_say(
        &place,
        (3, "foreign data"),
        (1, "superblock 0: wrong magic"),
    );
}

#[test]
fn an_image_is_blank_if_its_first_and_last_mib_are_zero_or_never_used() {
    let mut unused = [0; 4096];
    blank_table_block(&mut unused, &[8; 16], 7, crc32c);
    let mut used = unused;
    seal_table_block(&mut used, 2, crc32c);
    let mut damaged = unused;
    damaged[4000] = 1;
    let mut foreign = [0; 4096];
    foreign[4095] = 1;
    let place = Place::new();
    let format = ["format", "s.img", "--main-sectors", "65536", "--yes"];
    for blocks in [20, 600] {
        for at in [1, 7, blocks - 2] {
            for (block, is_blank) in [
                (unused, true),
                (used, false),
                (damaged, false),
                (foreign, false),
            ] {
                let mut bytes = vec![0; blocks * 4096];
                bytes[at * 4096..][..4096].copy_from_slice(&block);
                place.write("s.img", &bytes);
                let check = place.run(&["check", "s.img"]);
                let theirs = reader(&place, &[], "s.img").status;
                let format = place.run(&format);
                assert_eq!(
                    check.status,
                    if block == used { 2 } else { 3 },
                    "{}",
                    check.err
                );
                assert_eq!(
                    check.err.contains("blank, no spare"),
                    is_blank,
                    "{}",
                    check.err
                );
                assert_eq!(theirs, if is_blank { 3 } else { 1 });
                assert_eq!(
                    format.status,
                    if is_blank { 0 } else { 4 },
                    "{}",
                    format.err
                );
                assert!(is_blank || format.err.contains("--force"), "{}", format.err);
            }
        }
    }
    // Past that nobody looks.
    let mut bytes = vec![0; 600 * 4096];
    bytes[256 * 4096..344 * 4096].fill(0xff);
    place.write("s.img", &bytes);
    both_say(&place, (3, "blank"), (3, ""));
    place.run(&format).ok();
    bytes[255 * 4096] = 1;
    place.write("s.img", &bytes);
    both_say(
        &place,
        (3, "first and last MiB must be zero"),
        (1, "neither blank nor a spare"),
    );
    place
        .run(&format)
        .failed(4, "unknown data (byte 1044480 is not zero)");
}
