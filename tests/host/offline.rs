// SPDX-License-Identifier: GPL-2.0

//! What the offline commands promise of devices, files and pipes that are not as they should be.

use crate::image::{crc32c, Image};
use crate::tool::{done, Place};
use dm_remap::engine::format::{seal_table_block, Cause, State, Superblock};
use dm_remap::engine::geometry::{Geometry, BLOCK_SIZE};
use dm_remap::engine::Unit;
use rustix::fs::{flock, FlockOperation};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

const UUID: [u8; 16] = *b"0123456789abcdef";

/// A spare of `blocks` blocks with some entries.
fn sample(blocks: u64, uuid: [u8; 16]) -> Image {
    let g = Geometry::plan(1 << 16, blocks * 8, 8, 2).unwrap();
    let mut image = Image::new(g, uuid, "sample");
    for n in 0..30 {
        image.set_entry(n, u64::from(n) * 100, 0xff);
    }
    image.seal(5);
    image
}

/// The byte where a replica of a table block begins.
fn table(image: &Image, copy: usize, number: u64) -> usize {
    image.geometry.table_sector(copy, number) as usize * 512
}

/// `s.img` with a damaged replica is repaired, and what was replaced is in `b`. Returns the bytes before and after.
fn repaired(place: &Place) -> [Vec<u8>; 2] {
    let image = sample(480, UUID);
    let good = image.bytes();
    let mut bytes = good.clone();
    bytes[table(&image, 1, 0) + 100] ^= 1;
    place.write("s.img", &bytes);
    place
        .run(&["repair", "s.img", "--yes", "--backup", "b"])
        .ok();
    assert!(place.image() == good);
    [bytes, good]
}

const UNDO: [&str; 5] = ["repair", "s.img", "--undo", "b", "--yes"];

#[test]
fn undo_writes_to_nothing_but_what_the_repair_left() {
    let place = Place::new();
    let [damaged, good] = repaired(&place);
    let refused = |bytes: &[u8], status, why: &str| {
        place.write("s.img", bytes);
        place.run(&UNDO).failed(status, why);
        assert!(place.image() == bytes, "{why}");
    };
    // Something else, and nothing.
    let mut ext4 = vec![0; good.len()];
    ext4[1080..1082].copy_from_slice(b"\x53\xef");
    refused(&ext4, 3, "foreign data");
    refused(&vec![0; good.len()], 3, "blank");
    // Another spare, just as long.
    let other = sample(480, [0xab; 16]).bytes();
    refused(
        &other,
        4,
        "belongs to the spare of uuid 30313233-3435-3637-3839-616263646566, label \"sample\"",
    );
    refused(&other, 4, "uuid abababab-abab-abab-abab-abababababab");
    // The same with another layout.
    let mut grown = good.clone();
    grown.resize(800 * BLOCK_SIZE, 0);
    place.write("s.img", &grown);
    place.run(&["grow", "s.img", "--yes"]).ok();
    refused(&place.image(), 4, "spare_sectors was 3840, and is 6400");
    // Written since.
    place.write("s.img", &good);
    place.write("list", "8008\n");
    place
        .run(&["import", "s.img", "list", "--format", "sectors"])
        .ok();
    refused(
        &place.image(),
        4,
        "table block 0, replica 1: neither what b holds",
    );
    refused(&place.image(), 4, "(generation 6)");
    // That is the one, and it says so before it writes.
    place.write("s.img", &good);
    place.run(&UNDO).ok();
    assert!(place.image() == damaged);
    // Undone already.
    place.run(&UNDO).ok();
    assert!(place.image() == damaged);
}

#[test]
fn undo_does_not_bring_an_entry_back_whose_unit_has_moved_on() {
    let mut image = sample(480, UUID);
    let (unit, mask) = (Unit(500), 0xff);
    // Slot 300, in another table block, has taken the place of slot 5.
    image.set(300, State::Moved { unit, mask }, Cause::Write, 1);
    image.seal(5);
    let place = Place::new();
    place.write("s.img", image.bytes());
    place
        .run(&["repair", "s.img", "--yes", "--backup", "b"])
        .ok();
    let after = place.image();
    place.run(&UNDO).ok();
    assert!(place.image() == image.bytes());
    // The unit was restored since: slot 5 has old data.
    let mut restored = sample(480, UUID);
    restored.set(300, State::Free, Cause::Message, 2);
    restored.seal(6);
    let mut bytes = after;
    for copy in [0, 1] {
        let at = table(&image, copy, 2);
        bytes[at..at + BLOCK_SIZE].copy_from_slice(&restored.tables[2]);
    }
    place.write("s.img", &bytes);
    place.run(&["check", "s.img"]).ok();
    place.run(&UNDO).failed(4, "table block 2, replica 0");
    assert!(place.image() == bytes);
}

#[test]
fn main_is_a_device_or_a_file() {
    let place = Place::new();
    place.blank("s.img", 100);
    fs::create_dir(place.path("directory")).unwrap();
    done({
        let mut mkfifo = Command::new("mkfifo");
        mkfifo.arg(place.path("fifo"));
        mkfifo
    })
    .ok();
    let why = "neither a block device nor a file";
    for main in ["directory", "fifo", "/dev/null"] {
        let format = ["format", "s.img", "--yes", "--main", main];
        place.run(&format).failed(4, why);
        let advise = ["format", "--advise", "--main", main];
        place.run(&advise).failed(4, why);
        let sectors = ["--main-sectors", "65536"];
        place.run(&[&format[..], &sectors].concat()).failed(4, why);
    }
    assert!(place.image().iter().all(|b| *b == 0));
    place.formatted_anew();
    for main in ["directory", "fifo", "/dev/null"] {
        place
            .run(&["check", "s.img", "--main", main])
            .failed(4, why);
        place
            .run(&["rebind", "s.img", "--main", main])
            .failed(4, why);
    }
}

#[test]
fn main_and_spare_do_not_overlap() {
    let place = Place::new();
    place.blank("s.img", 1000);
    let run = |words: &str| place.run(&words.split(' ').collect::<Vec<_>>());
    let format = |words: &str| run(&format!("format s.img --main s.img --yes {words}"));
    let why = "main and spare overlap";
    format("--spare-sectors 800").failed(4, why);
    format("--spare-start 7200").failed(4, why);
    format("--main-sectors 7201 --spare-start 7200").failed(4, why);
    format("--main-start 799 --spare-sectors 800").failed(4, why);
    format("--main-start 799 --main-sectors 7000 --spare-sectors 800").failed(4, why);
    assert!(place.image().iter().all(|b| *b == 0));
    format("--main-start 800 --spare-sectors 800").ok();
    let rebind = |words: &str| {
        run(&format!(
            "rebind s.img --spare-sectors 800 --main s.img {words}"
        ))
    };
    rebind("--main-start 799").failed(4, why);
    rebind("--main-start 800").ok();
    place.blank("s.img", 1000);
    format("--main-sectors 7200 --spare-start 7200").ok();
    // Slots for less of it leave room.
    place.blank("s.img", 1000);
    format("--main-start 800 --slots 50").ok();
}

#[test]
fn what_is_out_of_range_is_wrong_usage() {
    let place = Place::new();
    place.blank("s.img", 100);
    let long = "x".repeat(65);
    for (option, value, why) in [
        ("--main-sectors", "0", "one sector at least"),
        ("--main-sectors", "18014398509481984", "--main-sectors"),
        ("--share", "NaN", "--share"),
        ("--label", &long, "65 bytes, 64 at most"),
    ] {
        let main: &[&str] = match option {
            "--main-sectors" => &[],
            _ => &["--main-sectors", "65536"],
        };
        let format = ["format", "s.img", "--yes", option, value];
        place.run(&[&format[..], main].concat()).failed(64, why);
    }
    place
        .run(&["repair", "s.img", "--prefer", "4"])
        .failed(64, "0..=3");
    assert!(place.image().iter().all(|b| *b == 0));
    let said = place
        .run(&["format", "s.img", "--yes", "--main-sectors", "4194304"])
        .ok();
    assert!(
        said.contains("main: 4194304 sectors (2.0 GiB), 524288 units"),
        "{said}"
    );
}

#[test]
fn a_region_that_is_shorter_than_its_device_is_found_by_its_second_superblock() {
    let image = sample(480, UUID);
    let place = Place::new();
    let mut bytes = vec![0; 3000 * BLOCK_SIZE];
    bytes[..480 * BLOCK_SIZE].copy_from_slice(&image.bytes());
    let whole = bytes.clone();
    bytes[..BLOCK_SIZE].fill(0);
    place.write("s.img", &bytes);
    let found =
        "a superblock of a region of 3840 sectors (uuid 30313233-3435-3637-3839-616263646566, \
                 label \"sample\") lies at sector 3832: give --spare-sectors 3840";
    place.run(&["check", "s.img"]).failed(2, found);
    place.run(&["repair", "s.img", "--yes"]).failed(2, found);
    // Something else was written there.
    bytes[..BLOCK_SIZE].fill(7);
    place.write("s.img", &bytes);
    place.run(&["check", "s.img"]).failed(3, found);
    assert!(place.image() == bytes);
    let given = ["repair", "s.img", "--spare-sectors", "3840", "--yes"];
    place.run(&given).ok();
    assert!(place.image() == whole);
    // It begins elsewhere, and nothing shows that there was one: only repair reads all of it.
    let mut bytes = vec![0; 4000 * BLOCK_SIZE];
    bytes[900 * BLOCK_SIZE..1380 * BLOCK_SIZE].copy_from_slice(&image.bytes());
    place.write("s.img", &bytes);
    let found = "lies at sector 7200: give --spare-start 7200 --spare-sectors 3840";
    let check = place.run(&["check", "s.img"]);
    assert_eq!((check.status, check.out.as_str()), (3, ""));
    let repair = place.run(&["repair", "s.img", "--yes"]);
    assert_eq!(repair.out.matches("a superblock of").count(), 1);
    repair.failed(3, found);
    let start = ["repair", "s.img", "--yes", "--spare-start", "800"];
    place
        .run(&start)
        .failed(3, "lies at sector 7200: give --spare-start 7200");
    bytes[900 * BLOCK_SIZE..901 * BLOCK_SIZE].fill(0);
    place.write("s.img", &bytes);
    let found = "lies at sector 11032: give --spare-start 7200 --spare-sectors 3840";
    place.run(&["repair", "s.img", "--yes"]).failed(3, found);
    assert!(place.image() == bytes);
    place.blank("s.img", 300);
    place
        .run(&["repair", "s.img", "--yes"])
        .failed(3, "no superblock elsewhere on it");
}

#[test]
fn who_reads_shares_and_who_writes_waits() {
    let place = Place::new();
    place.formatted(2);
    let file = fs::File::open(place.path("s.img")).unwrap();
    flock(&file, FlockOperation::LockShared).unwrap();
    place.run(&["check", "s.img"]).ok();
    place.run(&["dump", "s.img"]).ok();
    for (command, lock) in [
        (&["label", "s.img", "x"][..], FlockOperation::LockShared),
        (&["check", "s.img"], FlockOperation::LockExclusive),
    ] {
        flock(&file, lock).unwrap();
        let mut child = place.command(command);
        child.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().unwrap();
        let mut said = String::new();
        let stderr = child.stderr.take().unwrap();
        BufReader::new(stderr).read_line(&mut said).unwrap();
        let process = format!("(process {}), waiting", std::process::id());
        assert!(said.contains("s.img: in use by "), "{said}");
        assert!(said.contains(&process), "{said}");
        flock(&file, FlockOperation::Unlock).unwrap();
        assert!(child.wait().unwrap().success(), "{command:?}");
    }
    flock(&file, FlockOperation::LockShared).unwrap();
    let process = format!("(process {})", std::process::id());
    place.run(&["label", "s.img", "y"]).failed(4, &process);
    assert_eq!(place.run(&["label", "s.img"]).ok(), "x\n");
}

#[test]
fn what_was_confirmed_is_done_although_nobody_reads_what_is_printed() {
    let place = Place::new();
    let closed = || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        OwnedFd::from(theirs)
    };
    let run = |words: &str| {
        let mut child = place.command(&words.split(' ').collect::<Vec<_>>());
        let child = child.stdout(closed()).output().unwrap();
        let said = String::from_utf8_lossy(&child.stderr).into_owned();
        (child.status.code(), said)
    };
    let done = (Some(0), String::new());
    place.blank("s.img", 480);
    assert_eq!(run("format s.img --main-sectors 65536 --yes"), done);
    place.run(&["check", "s.img"]).ok();
    assert_eq!(run("check s.img"), done);
    let file = fs::File::options().write(true).open(place.path("s.img"));
    file.unwrap().set_len(900 * 4096).unwrap();
    assert_eq!(run("grow s.img --yes"), done);
    assert_eq!(place.dump("s.img")["spare"]["sectors"], 7200);
    let good = place.image();
    let mut bytes = good.clone();
    bytes[300] ^= 1;
    place.write("s.img", &bytes);
    assert_eq!(run("check s.img").0, Some(1));
    assert_eq!(run("repair s.img --yes --backup b"), done);
    assert!(place.image() == good);
    assert_eq!(run("repair s.img --yes --undo b"), done);
    assert!(place.image() == bytes);
    place.write("s.img", &good);
    place.blank("main", 8192);
    assert_eq!(run("rebind s.img --main main"), done);
    assert_eq!(place.dump("s.img")["spare"]["generation"], "4");
}

#[test]
fn a_spare_does_not_grow_into_another() {
    let place = Place::new();
    let (own, other) = (sample(150, UUID), sample(200, [0xab; 16]).bytes());
    // Right behind it, near the end, and one that has lost its first superblock.
    for (at, lost, begins) in [(150, None, 1200), (500, None, 4000), (500, Some(500), 4000)] {
        let mut bytes = vec![0; 700 * BLOCK_SIZE];
        bytes[..150 * BLOCK_SIZE].copy_from_slice(&own.bytes());
        bytes[at * BLOCK_SIZE..(at + 200) * BLOCK_SIZE].copy_from_slice(&other);
        if let Some(lost) = lost {
            bytes[lost * BLOCK_SIZE..(lost + 1) * BLOCK_SIZE].fill(0);
        }
        place.write("s.img", &bytes);
        let why = format!(
            "another spare (uuid abababab-abab-abab-abab-abababababab, label \"sample\") begins at \
             sector {begins}"
        );
        let grow = ["grow", "s.img", "--yes", "--force"];
        for grow in [&grow[..3], &grow] {
            let done = place.run(grow);
            assert!(!done.err.contains("--force"), "{}", done.err);
            done.failed(4, &why);
            assert!(place.image() == bytes);
        }
    }
}

#[test]
fn what_an_interrupted_format_left_is_formatted_without_force() {
    let g = Geometry::plan(65536, 100 * 8, 8, 2).unwrap();
    let empty = Image::new(g, UUID, "").bytes();
    let place = Place::new();
    let format = ["format", "s.img", "--main-sectors", "65536", "--yes"];
    for blocks in [100, 101, 300, 3000] {
        // The second superblock is written before the first.
        for second in [false, true] {
            let mut bytes = empty.clone();
            bytes[..BLOCK_SIZE].fill(0);
            if !second {
                bytes[99 * BLOCK_SIZE..].fill(0);
            }
            bytes.resize(blocks * BLOCK_SIZE, 0);
            place.write("s.img", &bytes);
            let said = place.run(&format).ok();
            assert!(said.contains("s.img: an interrupted format"), "{said}");
            place.run(&["check", "s.img"]).ok();
        }
    }
    let refused = |bytes: &[u8], why| {
        place.write("s.img", bytes);
        place.run(&format).failed(4, why);
        assert!(place.image() == bytes);
    };
    // With anything else it is not.
    for at in [50, 150] {
        let mut bytes = empty.clone();
        bytes[..BLOCK_SIZE].fill(0);
        bytes.resize(200 * BLOCK_SIZE, 0);
        bytes[at * BLOCK_SIZE] = 1;
        refused(&bytes, "not blank");
    }
    // Nor a spare that was in use, and whose replicas near its ends were never written.
    let g = Geometry::plan(1 << 16, 600 * 8, 8, 3).unwrap();
    let mut used = Image::new(g, UUID, "");
    used.set_entry(0, 7, 1);
    used.seal(2);
    let unused = Image::new(g, UUID, "");
    let mut bytes = used.bytes();
    bytes[..BLOCK_SIZE].fill(0);
    for copy in [0, 2] {
        for (number, block) in (0..).zip(&unused.tables) {
            let at = table(&used, copy, number);
            bytes[at..at + BLOCK_SIZE].copy_from_slice(block);
            seal_table_block(
                (&mut bytes[at..at + BLOCK_SIZE]).try_into().unwrap(),
                1,
                crc32c,
            );
        }
    }
    bytes.resize(700 * BLOCK_SIZE, 0);
    refused(&bytes, "not blank");
    // Nor one that is complete.
    refused(&empty, "a spare of dm-remap");
}

#[test]
fn a_backup_that_cannot_be_written_leaves_nothing() {
    let image = sample(480, UUID);
    let mut bytes = image.bytes();
    for copy in [0, 1] {
        bytes[table(&image, copy, u64::try_from(copy).unwrap()) + 100] ^= 1;
    }
    let place = Place::new();
    place.write("s.img", &bytes);
    // As on a full file system: no file grows beyond 4 KiB.
    let mut limited = Command::new("bash");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 4; exec \"$@\"", "-"]);
    limited.arg(env!("CARGO_BIN_EXE_dmremap"));
    limited.args(["repair", "s.img", "--yes", "--backup", "b"]);
    limited.current_dir(place.path("."));
    done(limited).failed(4, "b: nothing was repaired");
    assert!(place.image() == bytes);
    assert_eq!(fs::read_dir(place.path(".")).unwrap().count(), 1);
    place
        .run(&["repair", "s.img", "--yes", "--backup", "b"])
        .ok();
    assert!(place.image() == image.bytes());
}

#[test]
fn what_cannot_be_repaired_says_what_can_be_done() {
    let image = sample(480, UUID);
    let good = image.bytes();
    let place = Place::new();
    // Two versions.
    let mut other = sample(480, UUID);
    other.set_entry(140, 9, 1);
    other.seal(5);
    let mut bytes = good.clone();
    let at = table(&image, 1, 1);
    bytes[at..at + BLOCK_SIZE].copy_from_slice(&other.tables[1]);
    place.write("s.img", &bytes);
    let why = "give dmremap repair --prefer 0 or --prefer 1\n";
    place.run(&["check", "s.img"]).failed(2, why);
    place.run(&["repair", "s.img", "--yes"]).failed(2, why);
    // Of the superblock.
    let mut bytes = good.clone();
    let mut block = bytes[..BLOCK_SIZE].try_into().unwrap();
    let mut superblock = Superblock::read(&block, 0, crc32c).unwrap();
    superblock.label[0] = b'S';
    superblock.write(&mut block, 0, crc32c);
    bytes[..BLOCK_SIZE].copy_from_slice(&block);
    place.write("s.img", &bytes);
    place.run(&["check", "s.img"]).failed(2, why);
    // None is left: main would answer for what is in the slots.
    let mut bytes = good;
    for copy in [0, 1] {
        bytes[table(&image, copy, 0) + 100] ^= 1;
    }
    place.write("s.img", &bytes);
    let why = "which sectors are in 126 slots is unknown";
    place.run(&["check", "s.img"]).failed(2, why);
    place.run(&["repair", "s.img", "--yes"]).failed(2, why);
    assert!(place.image() == bytes);
}
