// SPDX-License-Identifier: GPL-2.0

//! `format`, `label`, `dump`, and what all commands have in common.

use crate::image::Image;
use crate::tool::Place;
use dm_remap::engine::geometry::Geometry;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

const MAIN: [&str; 2] = ["--main-sectors", "65536"];

#[test]
fn format_writes_only_when_told_to() {
    let place = Place::new();
    place.blank("s.img", 100);
    let blank = place.image();
    let format = [&["format", "s.img"], &MAIN[..]].concat();
    place.run(&format).failed(4, "--yes");
    place.run(&[&format[..], &["--advise"]].concat()).ok();
    assert!(place.image() == blank);
    let said = place.run(&[&format[..], &["--yes"]].concat()).ok();
    assert!(said.contains("table: 0 65536 remap <main_dev>"), "{said}");
    place.run(&["check", "s.img"]).ok();
    // And never twice.
    let image = place.image();
    place
        .run(&[&format[..], &["--yes"]].concat())
        .failed(4, "a spare of dm-remap, label \"\"");
    assert!(place.image() == image);
}

#[test]
fn what_is_not_blank_is_named_and_kept() {
    for (at, bytes, what) in [
        (1080, &b"\x53\xef"[..], "an ext2, ext3 or ext4 file system"),
        (0, b"XFSB", "an XFS file system"),
        (0, b"LUKS\xba\xbe", "a LUKS volume"),
        (510, b"\x55\xaa", "a boot sector or partition table"),
        (70_000, b"x", "unknown data (byte 70000 is not zero)"),
        (4095, b"x", "unknown data (byte 4095 is not zero)"),
        (409_599, b"x", "unknown data (byte 409599 is not zero)"),
        (
            4096,
            b"RMAPTABL",
            "the table of a spare of dm-remap (byte 4096)",
        ),
    ] {
        let place = Place::new();
        place.blank("s.img", 100);
        let mut image = place.image();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        place.write("s.img", &image);
        let format = [&["format", "s.img", "--yes"], &MAIN[..]].concat();
        place.run(&format).failed(4, what);
        assert!(place.image() == image);
        place.run(&[&format[..], &["--force"]].concat()).ok();
        place.run(&["check", "s.img"]).ok();
    }
}

#[test]
fn a_forced_format_leaves_nothing_of_the_spare_before() {
    let place = Place::new();
    place.formatted(3);
    place.write("list", "77\n");
    place
        .run(&["import", "s.img", "list", "--format", "sectors"])
        .ok();
    let format = [
        "format",
        "s.img",
        "--main-sectors",
        "4000",
        "--yes",
        "--slots",
        "50",
    ];
    place.run(&format).failed(4, "label \"test\"");
    place.run(&[&format[..], &["--force"]].concat()).ok();
    place.run(&["check", "s.img"]).ok();
    assert!(place.dump("s.img")["entries"]
        .as_array()
        .unwrap()
        .is_empty());
    assert!(place.image()[479 * 4096..].iter().all(|b| *b == 0));
}

#[test]
fn the_size_follows_from_what_is_wanted() {
    let place = Place::new();
    place.blank("s.img", 2000);
    let format = [&["format", "s.img", "--yes"], &MAIN[..]].concat();
    let with = |more: &[&str]| place.run(&[&format[..], more].concat());
    with(&["--share", "50"]).failed(4, "4096 slots take");
    with(&["--slots", "0"]).failed(64, "--slots");
    with(&["--share", "0"]).failed(64, "--share");
    with(&["--share", "101"]).failed(64, "--share");
    with(&["--share", "1", "--slots", "5"]).failed(64, "--slots");
    assert!(place.image().iter().all(|b| *b == 0));
    // 1 % of 8192 units.
    let said = with(&["--share", "1", "--metadata-copies", "4"]).ok();
    assert!(said.contains("2 spare_sectors "), "{said}");
    let dump = place.dump("s.img");
    assert!(dump["slots"]["total"].as_u64().unwrap() >= 82, "{dump}");
    let sectors = dump["spare"]["sectors"].as_u64().unwrap();
    let less = Geometry::plan(65536, sectors - 8, 8, 4).unwrap();
    assert!(less.usable_slots() < 82);
}

#[test]
fn impossible_formats_name_what_is_wrong() {
    let place = Place::new();
    place.blank("s.img", 100);
    place.blank("tiny", 4);
    let run = |arguments: &[&str]| place.run(&[&["format", "--yes"], arguments].concat());
    let with = |more: &[&str]| run(&[&["s.img"], &MAIN[..], more].concat());
    with(&["--unit-sectors", "3"]).failed(64, "a power of two from 1 to 64");
    with(&["--unit-sectors", "128"]).failed(64, "a power of two from 1 to 64");
    with(&["--unit-sectors", "0"]).failed(64, "--unit-sectors");
    with(&["--metadata-copies", "1"]).failed(64, "from 2 to 4");
    with(&["--metadata-copies", "5"]).failed(64, "from 2 to 4");
    with(&["--label", &"x".repeat(65)]).failed(64, "65 bytes, 64 at most");
    with(&["--label", "a\nb"]).failed(64, "U+000A is a control");
    with(&["--spare-start", "1000"]).failed(4, "ends at sector 800");
    with(&["--spare-sectors", "801"]).failed(4, "ends at sector 800");
    run(&["s.img"]).failed(64, "--main");
    run(&["s.img", "--main", "nosuch"]).failed(4, "nosuch");
    run(&["s.img", "--main", "s.img"]).failed(4, "main and spare overlap");
    run(&["s.img", "--main-sectors", "0"]).failed(64, "one sector at least");
    run(&["s.img", "--main-sectors", "-5"]).failed(64, "-5");
    run(&[&["tiny"], &MAIN[..]].concat()).failed(4, "tiny: Spare region is too small");
    run(&[&["nosuch"], &MAIN[..]].concat()).failed(4, "nosuch");
    run(&[&["."], &MAIN[..]].concat()).failed(4, "neither a block device nor a file");
    assert!(place.image().iter().all(|b| *b == 0));
}

#[test]
fn a_region_may_lie_anywhere_in_an_image() {
    let place = Place::new();
    place.write("s.img", vec![0xaa; 300 * 4096]);
    let bounds = ["--spare-start", "803", "--spare-sectors", "805"];
    let mut image = place.image();
    image[803 * 512..1608 * 512].fill(0);
    place.write("s.img", &image);
    let format = [&["format", "s.img", "--yes"], &MAIN[..], &bounds].concat();
    place.run(&format).ok();
    place.run(&[&["check", "s.img"], &bounds[..]].concat()).ok();
    place.run(&["check", "s.img"]).failed(3, "foreign data");
    let after = place.image();
    assert!(after[..803 * 512] == image[..803 * 512]);
    assert!(after[1603 * 512..] == image[1603 * 512..]);
}

#[test]
fn main_may_be_a_device_or_a_file() {
    let place = Place::new();
    place.blank("main", 500);
    place.blank("s.img", 100);
    let said = place
        .run(&["format", "s.img", "--main", "main", "--yes"])
        .ok();
    assert!(
        said.contains("table: 0 4000 remap main 0 s.img 0\n"),
        "{said}"
    );
    assert_eq!(place.dump("s.img")["main"]["sectors"], 4000);
}

#[test]
fn labels_are_set_and_kept() {
    let place = Place::new();
    place.formatted(2);
    assert_eq!(place.run(&["label", "s.img"]).ok(), "test\n");
    place.run(&["label", "s.img", "linke Platte, außen"]).ok();
    assert_eq!(place.run(&["label", "s.img"]).ok(), "linke Platte, außen\n");
    assert_eq!(place.dump("s.img")["spare"]["generation"], "2");
    place.run(&["check", "s.img"]).ok();
    let image = place.image();
    place
        .run(&["label", "s.img", &"ß".repeat(33)])
        .failed(64, "66 bytes");
    place
        .run(&["label", "s.img", "\u{1b}[31m"])
        .failed(64, "U+001B is a control");
    assert!(place.image() == image);
    // Either copy alone does.
    for copy in [0, 479] {
        let mut image = image.clone();
        image[copy * 4096..(copy + 1) * 4096].fill(0);
        place.write("s.img", &image);
        assert_eq!(place.run(&["label", "s.img"]).ok(), "linke Platte, außen\n");
        place
            .run(&["label", "s.img", "x"])
            .failed(1, "dmremap repair");
        assert!(place.image() == image);
    }
}

#[test]
fn dump_says_the_same_to_people_and_programs() {
    let g = Geometry::plan(1 << 16, 480 * 8, 8, 2).unwrap();
    let mut image = Image::new(g, [0xab; 16], "a\u{1b}b");
    image.set_entry(5, 9, 0x0f);
    image.seal(2);
    let place = Place::new();
    place.write("s.img", image.bytes());
    let text = place.run(&["dump", "s.img"]).ok();
    assert!(
        text.contains("72 partial 5 f write 2027-01-15T08:00:00Z\n"),
        "{text}"
    );
    assert!(
        text.contains("abababab-abab-abab-abab-abababababab"),
        "{text}"
    );
    assert!(text.contains("label       a\\u{1b}b\n"), "{text}");
    let json = place.dump("s.img");
    assert_eq!(json["slots"]["used"], 1);
    assert_eq!(json["entries"][0]["slot_sector"], g.data_start + 40);
    assert_eq!(json["entries"][0]["mask"], "f");
    assert_eq!(json["entries"][0]["changed"], "2027-01-15T08:00:00Z");
}

#[test]
fn an_image_in_use_is_refused() {
    let place = Place::new();
    let image = place.formatted(2);
    let file = fs::File::open(place.path("s.img")).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    for command in [
        &["check", "s.img"][..],
        &["dump", "s.img"],
        &["label", "s.img", "x"],
        &["repair", "s.img", "--yes"],
    ] {
        place.run(command).failed(4, "in use");
    }
    assert!(place.image() == image);
}

#[test]
fn wrong_usage_says_what_is_right() {
    let place = Place::new();
    place.run(&[]).failed(64, "Usage:");
    place.run(&["frobnicate"]).failed(64, "frobnicate");
    place.run(&["check"]).failed(64, "<SPARE>");
    place.run(&["check", "nosuch"]).failed(4, "nosuch");
    place.run(&["--version"]).ok();
    for command in [
        "format", "dump", "check", "repair", "grow", "import", "export", "label",
    ] {
        let help = place.run(&[command, "--help"]).ok();
        assert!(help.contains("Usage:"), "{help}");
        assert!(!help.contains('\u{1b}'), "colour without a terminal");
    }
}

/// Nobody reads what is printed, as in `dmremap dump SPARE | head`: no words about that.
#[test]
fn a_closed_pipe_is_no_reason_to_complain() {
    let place = Place::new();
    place.formatted(2);
    place.write("list", "77\n");
    let closed = || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        OwnedFd::from(theirs)
    };
    for command in [
        &["dump", "s.img"][..],
        &["dump", "--json", "s.img"],
        &["label", "s.img"],
        &["export", "s.img", "--format", "ddrescue"],
        &["completions", "bash"],
    ] {
        let mut child = place.command(command);
        let child = child.stdout(closed()).output().unwrap();
        let said = String::from_utf8_lossy(&child.stderr);
        assert_eq!(child.status.code(), Some(4), "{command:?}: {said}");
        assert_eq!(said, "", "{command:?}");
    }
    // The same where errors are told.
    let mut child = place.command(&["check", "nosuch"]);
    let child = child.stderr(closed()).output().unwrap();
    assert_eq!(child.status.code(), Some(4));
    // What cannot be written for another reason is an error.
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let mut child = place.command(&["dump", "s.img"]);
    let child = child.stdout(full).output().unwrap();
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(said.contains("No space left"), "{said}");
}
