// SPDX-License-Identifier: GPL-2.0

//! `dmremap grow`: entries stay, and no cut loses any.

use crate::image::{crc32c, Image};
use crate::reader::reader;
use crate::tool::{list, Place};
use dm_remap::engine::format::{read_growth, Block, Cause, Growth, State, Superblock, GROWING};
use dm_remap::engine::geometry::{Geometry, BLOCK_SIZE};
use dm_remap::engine::grow::{finish, prepare, Disk, Unfit};
use dm_remap::engine::{Slot, Unit};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs;

/// Lengths before and after, in blocks; the file is a little longer.
const OLD: u64 = 150;
const NEW: u64 = 330;
const FILE: u64 = 335;

/// A region of two table blocks in two replicas with some entries.
fn sample() -> Image {
    let mut image = Image::new(
        Geometry::plan(1 << 16, OLD * 8, 8, 2).unwrap(),
        *b"0123456789abcdef",
        "sample",
    );
    for n in 0..40 {
        image.set_entry(n * 3, u64::from(n) * 100, u64::from(n));
    }
    let unit = Unit(700);
    let lost = 0x81;
    image.set(1, State::Bad { unit, lost }, Cause::Read, 1_800_000_000);
    image.seal(5);
    image
}

/// The same, as it was formatted.
fn unused() -> Image {
    let sample = sample();
    Image::new(sample.geometry, *b"0123456789abcdef", "unused")
}

/// The file that the region is to grow in.
fn file_of(image: &Image) -> Vec<u8> {
    let mut bytes = image.bytes();
    bytes.resize(FILE as usize * BLOCK_SIZE, 0);
    bytes
}

fn file() -> Vec<u8> {
    file_of(&sample())
}

const GROW: [&str; 5] = ["grow", "s.img", "--spare-sectors", "2640", "--yes"];

fn dump(place: &Place, sectors: u64) -> crate::tool::Done {
    place.run(&[
        "dump",
        "--json",
        "s.img",
        "--spare-sectors",
        &sectors.to_string(),
    ])
}

/// What counts in a spare: entries, and bad slots with what they took.
fn held(dump: &serde_json::Value) -> (serde_json::Value, serde_json::Value) {
    (dump["entries"].clone(), dump["bad_slots"].clone())
}

/// A region in memory that keeps the order in which it was written.
struct Recorder {
    bytes: Vec<u8>,
    /// Block and content, or a flush.
    log: Vec<Option<(usize, Box<Block>)>>,
}

impl Disk for Recorder {
    type Error = Unfit;

    fn read(&mut self, number: u64, to: &mut Block) -> Result<(), Unfit> {
        let at = number as usize * BLOCK_SIZE;
        to.copy_from_slice(&self.bytes[at..at + BLOCK_SIZE]);
        Ok(())
    }

    fn write(&mut self, number: u64, from: &Block) -> Result<(), Unfit> {
        let at = number as usize * BLOCK_SIZE;
        self.bytes[at..at + BLOCK_SIZE].copy_from_slice(from);
        self.log.push(Some((at, Box::new(*from))));
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Unfit> {
        self.log.push(None);
        Ok(())
    }
}

/// What is written when the region in `bytes` grows.
fn record(bytes: Vec<u8>) -> Recorder {
    let mut block: Block = bytes[..BLOCK_SIZE].try_into().unwrap();
    let old = Superblock::read(&block, 0, crc32c).unwrap();
    let geometry = old.geometry.grown(NEW * 8).unwrap();
    let growth = Growth {
        superblock: Superblock {
            generation: 2,
            geometry,
            ..old.clone()
        },
        from: OLD * 8,
    };
    let log = Vec::new();
    let mut disk = Recorder { bytes, log };
    prepare(&mut disk, &old, &geometry, crc32c).unwrap();
    finish(&mut disk, &mut block, &growth, crc32c).unwrap();
    disk
}

/// Every state that a cut can leave: some of the writes since the last flush, one of them in part.
fn cuts(log: &[Option<(usize, Box<Block>)>]) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    // What is durable, and what was written since.
    let mut durable = file();
    let mut since: Vec<&(usize, Box<Block>)> = Vec::new();
    for (n, operation) in log.iter().enumerate() {
        let Some(write) = operation else {
            for (at, block) in since.drain(..) {
                durable[*at..*at + BLOCK_SIZE].copy_from_slice(&block[..]);
            }
            continue;
        };
        let mut others = durable.clone();
        for kind in ["none", "all"] {
            for torn in (0..=BLOCK_SIZE).step_by(512) {
                for from in [0, BLOCK_SIZE - torn] {
                    let mut bytes = others.clone();
                    let part = write.0 + from..write.0 + from + torn;
                    bytes[part].copy_from_slice(&write.1[from..from + torn]);
                    all.push((
                        format!("{torn} bytes from {from} of {n}, {kind} before"),
                        bytes,
                    ));
                }
            }
            for (at, block) in &since {
                others[*at..*at + BLOCK_SIZE].copy_from_slice(&block[..]);
            }
        }
        since.push(write);
    }
    let mut known = BTreeSet::new();
    all.retain(|(_, bytes)| known.insert(crc32c::crc32c(bytes)));
    all
}

/// The states of `bytes` between two flushes: what the torn ones come to.
fn between(mut bytes: Vec<u8>, log: &[Option<(usize, Box<Block>)>]) -> Vec<(String, Vec<u8>)> {
    let mut all = vec![("nothing written".into(), bytes.clone())];
    for (n, operation) in log.iter().enumerate() {
        match operation {
            Some((at, block)) => bytes[*at..*at + BLOCK_SIZE].copy_from_slice(&block[..]),
            None if all.last().is_some_and(|(_, last)| *last == bytes) => (),
            None => all.push((format!("{n} written or flushed"), bytes.clone())),
        }
    }
    all
}

/// Dumps the region as if it were that long: the right entries, or a refusal, which is returned.
#[track_caller]
fn right_or_refused(
    place: &Place,
    sectors: u64,
    right: &(serde_json::Value, serde_json::Value),
    what: &str,
) -> Option<String> {
    let done = dump(place, sectors);
    if done.status > 1 {
        assert!(
            !done.err.contains("blank, no spare"),
            "{what}: {}",
            done.err
        );
        return Some(done.err);
    }
    let dump = serde_json::from_str(&done.out).unwrap();
    assert!(held(&dump) == *right, "{what}: other entries");
    None
}

#[test]
fn a_cut_anywhere_loses_nothing_and_growing_again_completes_it() {
    let place = Place::new();
    place.write("s.img", file());
    let before = held(&place.dump("s.img"));
    place.run(&GROW).ok();
    let after = place.image();
    let recorded = record(file());
    assert!(
        recorded.bytes == after,
        "the test and the tool do different things"
    );
    let cuts = cuts(&recorded.log);
    assert!(cuts.len() > 50, "{}", cuts.len());
    let mut seen = BTreeSet::new();
    for (what, bytes) in &cuts {
        place.write("s.img", bytes);
        let old = right_or_refused(&place, OLD * 8, &before, what);
        let new = right_or_refused(&place, NEW * 8, &before, what);
        let state = match (&old, &new) {
            (None, None) => "old",
            (Some(old), Some(new)) => {
                assert!(old.contains("run dmremap grow again"), "{what}: {old}");
                assert!(new.contains("run dmremap grow again"), "{what}: {new}");
                "growing"
            }
            (Some(old), None) => {
                assert!(
                    old.contains("shorter than the one that was formatted"),
                    "{old}"
                );
                "new"
            }
            (None, Some(new)) => panic!("{what}: {new}"),
        };
        seen.insert(state);
        assert!(place.image() == *bytes);
        place.run(&GROW).ok();
        assert!(place.image() == after, "{what}: not as without the cut");
    }
    assert_eq!(Vec::from_iter(seen), ["growing", "new", "old"]);
}

#[rustfmt::skip]
const IMPORT: [&str; 7] =
    ["import", "s.img", "list", "--format", "sectors", "--spare-sectors", "2640"];

/// After a cut the region is used, as long as it may be, and then a superblock is lost.
#[test]
fn after_a_cut_no_superblock_leads_to_tables_that_missed_a_write() {
    let place = Place::new();
    place.write("list", "8008\n");
    let run = |arguments: &[&str], sectors: u64| {
        let sectors = ["--spare-sectors", &sectors.to_string()];
        place.run(&[arguments, &["s.img"], &sectors].concat())
    };
    let mut used = 0;
    for file in [sample(), unused()].map(|image| file_of(&image)) {
        for (what, bytes) in between(file.clone(), &record(file).log) {
            place.write("s.img", &bytes);
            let import = || place.run(&IMPORT);
            if import().status == 1 {
                run(&["repair", "--yes", "--backup", &what], NEW * 8).ok();
                import().ok();
            }
            let Ok(now) = serde_json::from_str(&dump(&place, NEW * 8).out) else {
                continue;
            };
            let right = held(&now);
            let Some(entries) = right.0.as_array() else {
                continue;
            };
            used += usize::from(entries.iter().any(|e| e["sector"] == 8008));
            let good = place.image();
            for lost in [&[0][..], &[OLD - 1], &[NEW - 1], &[0, OLD - 1]] {
                for byte in [0, 0xee] {
                    let mut bytes = good.clone();
                    for lost in lost {
                        let at = *lost as usize * BLOCK_SIZE;
                        bytes[at..at + BLOCK_SIZE].fill(byte);
                    }
                    let what = format!("{what}, {lost:?} made {byte}");
                    // Growing again does not find older tables either.
                    for sectors in [OLD * 8, NEW * 8] {
                        place.write("s.img", &bytes);
                        right_or_refused(&place, sectors, &right, &what);
                        if run(&["grow", "--yes"], sectors).status == 0 {
                            assert_eq!(right_or_refused(&place, NEW * 8, &right, &what), None);
                        }
                    }
                }
            }
        }
    }
    assert!(used >= 8, "{used}");
}

#[test]
fn a_region_that_has_grown_twice_does_not_lead_to_the_tables_between() {
    let place = Place::new();
    let mut bytes = file();
    bytes.resize(500 * BLOCK_SIZE, 0);
    place.write("s.img", &bytes);
    place.write("list", "8008\n");
    place.run(&GROW).ok();
    place.run(&IMPORT).ok();
    place.run(&["grow", "s.img", "--yes"]).ok();
    place.write("list", "16016\n");
    place.run(&IMPORT[..5]).ok();
    let right = held(&place.dump("s.img"));
    assert_eq!(right.0.as_array().unwrap().len(), 42);
    let mut bytes = place.image();
    bytes[..BLOCK_SIZE].fill(0);
    for sectors in [OLD * 8, NEW * 8, 500 * 8] {
        place.write("s.img", &bytes);
        right_or_refused(&place, sectors, &right, "first superblock lost");
        let given = sectors.to_string();
        let grow = ["grow", "s.img", "--spare-sectors", &given, "--yes"];
        let grown = place.run(&grow).status == 0;
        assert!(!grown, "to {sectors} sectors");
        assert!(place.image() == bytes);
    }
    // As long as it is, it can be repaired.
    place.run(&["repair", "s.img", "--yes"]).ok();
    assert!(held(&place.dump("s.img")) == right);
}

/// Of the superblocks of a growth that was interrupted, any one may be lost.
#[test]
fn an_interrupted_growth_is_finished_from_any_superblock() {
    let place = Place::new();
    place.write("s.img", file());
    let right = held(&place.dump("s.img"));
    let recorded = record(file());
    let mut finished = 0;
    for (what, bytes) in between(file(), &recorded.log) {
        place.write("s.img", &bytes);
        if right_or_refused(&place, NEW * 8, &right, &what).is_none() {
            continue;
        }
        for lost in [0, OLD - 1, NEW - 1] {
            let mut bytes = bytes.clone();
            let at = lost as usize * BLOCK_SIZE;
            bytes[at..at + BLOCK_SIZE].fill(0);
            place.write("s.img", &bytes);
            let run = |arguments: &[&str], sectors: u64| {
                let sectors = ["--spare-sectors", &sectors.to_string()];
                let spare = ["s.img", "--yes"];
                place.run(&[arguments, &spare, &sectors].concat()).status
            };
            let either = |arguments: &[&str]| {
                let grown = run(arguments, NEW * 8);
                if grown == 0 {
                    0
                } else {
                    run(arguments, OLD * 8).min(grown)
                }
            };
            if either(&["grow"]) == 1 {
                // No superblock that is left says that it grows: one of a region as before or after.
                assert_eq!(
                    either(&["repair", "--backup", &what]),
                    0,
                    "{what}, {lost} lost"
                );
                run(&["grow"], NEW * 8);
            }
            assert_eq!(right_or_refused(&place, NEW * 8, &right, &what), None);
            finished += 1;
        }
    }
    assert!(finished >= 12, "{finished}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn entries_are_the_same_before_and_after(
        shift in 0u32..=6, copies in 2u32..=4, blocks in 40u64..400, more in 1u64..500,
        records in proptest::collection::btree_map(
            0u32..3000, (any::<u64>(), any::<u64>(), 0u8..8), 0..60,
        ),
    ) {
        let g = Geometry::plan(30_001, blocks * 8, 1 << shift, copies);
        prop_assume!(g.is_ok());
        let g = g.unwrap();
        let mut image = Image::new(g, [7; 16], "a label");
        let mut taken = BTreeSet::new();
        for (slot, (unit, mask, kind)) in records {
            let (unit, slot) = (unit % g.units(), slot % g.slots_total as u32);
            if g.is_reserved(Slot(slot)) || !taken.insert(unit) {
                continue;
            }
            match kind {
                0 => image.set(slot, State::BAD, Cause::Read, 5),
                _ => image.set_entry(slot, unit, mask & g.unit_mask(Unit(unit))),
            }
        }
        image.seal(9);
        let place = Place::new();
        // Slots are full of data.
        let mut bytes = image.bytes();
        let places = |g: &Geometry| {
            let slot = |slot: u32| (!g.is_reserved(Slot(slot))).then(|| g.slot_sector(Slot(slot)));
            (0..image.geometry.slots_total as u32).filter_map(slot).collect::<Vec<_>>()
        };
        for start in places(&g) {
            bytes[start as usize * 512..][..512 << shift].fill(start as u8 | 1);
        }
        let old = bytes.clone();
        bytes.resize(bytes.len() + more as usize * BLOCK_SIZE, 0);
        place.write("s.img", &bytes);
        let before = place.dump("s.img");
        let listed = reader(&place, &[], "s.img").ok();
        let done = place.run(&["grow", "s.img", "--yes"]);
        if let Err(why) = g.grown((blocks + more) * 8) {
            prop_assert_eq!(done.status, 4);
            prop_assert!(done.err.contains(why.to_str().unwrap()), "{}", done.err);
            prop_assert!(place.image() == bytes);
            return Ok(());
        }
        done.ok();
        place.run(&["check", "s.img"]).ok();
        let after = place.dump("s.img");
        prop_assert!(held(&before) == held(&after));
        prop_assert_eq!(&after["spare"]["label"], "a label");
        prop_assert_eq!(&after["spare"]["uuid"], &before["spare"]["uuid"]);
        prop_assert_eq!(reader(&place, &[], "s.img").ok(), listed);
        // No data of a slot was touched.
        let new = place.image();
        for start in places(&g) {
            let slot = start as usize * 512..(start as usize * 512) + (512 << shift);
            prop_assert!(new[slot.clone()] == old[slot]);
        }
        // And each that counted is still one that may.
        let grown = g.grown((blocks + more) * 8).unwrap();
        prop_assert!(places(&g).iter().all(|start| places(&grown).contains(start)));
    }
}

#[test]
fn grow_writes_only_when_told_to() {
    let place = Place::new();
    place.write("s.img", file());
    let grow = |arguments: &[&str]| place.run(&[&["grow", "s.img"], arguments].concat());
    let said = grow(&[]);
    assert!(
        said.out.contains("sectors 1200 to 2679: blank"),
        "{}",
        said.out
    );
    said.failed(4, "--yes");
    grow(&["--spare-sectors", "2681", "--yes"]).failed(4, "ends at sector 2680");
    grow(&["--spare-sectors", "1192", "--yes"]).failed(2, "shorter than the one");
    // Two areas of two blocks, a superblock, and nothing else.
    grow(&["--spare-sectors", "1232", "--yes"]).failed(4, "to 1240 sectors");
    assert!(grow(&["--spare-sectors", "1200", "--yes"])
        .ok()
        .contains("already"));
    assert!(place.image() == file());
    let said = grow(&["--spare-sectors", "1240", "--yes"]).ok();
    assert!(
        said.contains("spare_sectors in the table line, if it is there: 1240"),
        "{said}"
    );
    let spare = place.dump("s.img")["spare"].clone();
    assert_eq!(spare["sectors"], 1240);
    assert_eq!(spare["generation"], "3");
    grow(&["--yes"]).ok();
    place.run(&["check", "s.img"]).ok();
}

#[test]
fn what_is_added_and_not_blank_is_named_and_kept() {
    let place = Place::new();
    for (at, bytes, what) in [
        (
            OLD as usize * BLOCK_SIZE + 1080,
            &b"\x53\xef"[..],
            "an ext2, ext3 or ext4 file system",
        ),
        (
            OLD as usize * BLOCK_SIZE,
            b"x",
            "unknown data (byte 0 is not zero)",
        ),
        (
            NEW as usize * BLOCK_SIZE - 1,
            b"x",
            "unknown data (byte 737279 is not zero)",
        ),
    ] {
        let mut image = file();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        place.write("s.img", &image);
        place.run(&GROW).failed(4, what);
        assert!(place.image() == image);
        place.run(&[&GROW[..], &["--force"]].concat()).ok();
        place.run(&["check", "s.img"]).ok();
    }
    // What lies behind is not its concern.
    let mut image = file();
    image[NEW as usize * BLOCK_SIZE] = 1;
    place.write("s.img", &image);
    place.run(&GROW).ok();
}

#[test]
fn a_spare_that_is_not_sound_does_not_grow() {
    let place = Place::new();
    for (block, status, why) in [
        (0, 2, "Superblock: wrong checksum"),
        (1, 1, "dmremap repair"),
        (OLD as usize - 1, 1, "dmremap repair"),
    ] {
        let mut image = file();
        image[block * BLOCK_SIZE + 300] ^= 1;
        place.write("s.img", &image);
        place.run(&GROW).failed(status, why);
        assert!(place.image() == image);
        let backup = block.to_string();
        let repair = ["repair", "s.img", "--spare-sectors", "1200", "--yes"];
        place
            .run(&[&repair[..], &["--backup", &backup]].concat())
            .ok();
        place.run(&GROW).ok();
    }
    place.blank("s.img", FILE);
    place.run(&GROW).failed(3, "blank");
}

#[test]
fn while_it_grows_nothing_else_uses_a_spare() {
    let place = Place::new();
    let log = record(file()).log;
    let mut bytes = file();
    // Until that superblock says so.
    let mut until = |copy| {
        for (at, block) in log.iter().flatten() {
            bytes[*at..*at + BLOCK_SIZE].copy_from_slice(&block[..]);
            if read_growth(block, copy, crc32c).is_some() {
                break;
            }
        }
        place.write("s.img", &bytes);
        bytes.clone()
    };
    until(1);
    place
        .run(&["grow", "s.img", "--spare-sectors", "1200", "--yes"])
        .failed(
            4,
            "growing to 2640 sectors (1.3 MiB) was interrupted, and must go on",
        );
    let bytes = until(0);
    let why = GROWING.to_str().unwrap();
    place.run(&["check", "s.img"]).failed(2, why);
    place.run(&["dump", "s.img"]).failed(2, why);
    place.run(&["repair", "s.img", "--yes"]).failed(2, why);
    place.run(&["label", "s.img", "x"]).failed(2, why);
    let format = ["format", "s.img", "--main-sectors", "65536", "--yes"];
    place.run(&format).failed(4, "not blank");
    assert_eq!(reader(&place, &[], "s.img").status, 1);
    // The file became shorter meanwhile.
    let file = fs::OpenOptions::new().write(true).open(place.path("s.img"));
    file.unwrap().set_len(300 * 4096).unwrap();
    place
        .run(&["grow", "s.img", "--yes"])
        .failed(4, "growing from 1200 sectors (600 KiB) to 2640 sectors");
    place.write("s.img", &bytes);
    // However long it is now.
    assert!(place
        .run(&["grow", "s.img", "--yes"])
        .ok()
        .contains("was interrupted"));
    assert_eq!(place.dump("s.img")["spare"]["sectors"], 2640);
    assert_eq!(list(&place.dump("s.img")).lines().count(), 40);
}
