// SPDX-License-Identifier: GPL-2.0

//! Lists of bad sectors, in and out.

use crate::image::Image;
use crate::tool::{done, list, Place};
use dm_remap::engine::format::{Cause, State};
use dm_remap::engine::geometry::Geometry;
use dm_remap::engine::Unit;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

/// First sectors of the entries of `s.img`.
fn sectors(place: &Place) -> Vec<u64> {
    let dump = place.dump("s.img");
    let entries = dump["entries"].as_array().unwrap();
    assert!(entries
        .iter()
        .all(|e| e["state"] == "pending" && e["cause"] == "import"));
    entries
        .iter()
        .map(|e| e["sector"].as_u64().unwrap())
        .collect()
}

#[test]
fn every_kind_of_list_becomes_pending_entries() {
    for (text, options, expected) in [
        ("3\n17\n18\n", &["badblocks"][..], vec![0, 32]),
        (
            "3\n17\n",
            &["badblocks", "--block-size", "4096"],
            vec![24, 136],
        ),
        ("# a\n7 2\n65530\n", &["sectors"], vec![0, 8, 65528]),
        ("1007\n", &["sectors", "--offset", "1000"], vec![0]),
        (
            "0 100\n65520 100\n",
            &["sectors", "--offset", "90", "--clip"],
            (0..2)
                .map(|n| n * 8)
                .chain((8178..8192).map(|n| n * 8))
                .filter(|n| *n < 65531)
                .collect(),
        ),
        (
            "0x0 + 1\n0x0 0x10000 +\n0x10000 0x200 -\n0x10200 0x2000 *\n",
            &["ddrescue"],
            vec![128],
        ),
        (
            "0x0 + 1\n0x0 0x10000 +\n0x10000 0x200 -\n0x10200 0x2000 *\n",
            &["ddrescue", "--statuses", "*-"],
            vec![128, 136, 144],
        ),
    ] {
        let place = Place::new();
        place.formatted(2);
        place.write("list", text);
        let import = [&["import", "s.img", "list", "--format"], options].concat();
        let said = place.run(&import).ok();
        let left_out = text.contains('*') && !options.contains(&"*-");
        let what = "16 sectors left out that ddrescue has not finished with";
        assert_eq!(said.contains(what), left_out, "{said}");
        if !options.contains(&"--clip") {
            assert_eq!(sectors(&place), expected, "{text}");
        }
        place.run(&["check", "s.img"]).ok();
        // Again: nothing new.
        let image = place.image();
        let said = place.run(&import).ok();
        assert!(said.contains("0 units marked"), "{said}");
        assert!(place.image() == image);
    }
}

#[test]
fn what_lies_outside_main_is_an_error_or_left_out() {
    let place = Place::new();
    let image = place.formatted(2);
    place.write("list", "1\n65530 2\n");
    let import = ["import", "s.img", "list", "--format", "sectors"];
    place
        .run(&import)
        .failed(4, "list: line 2: sectors 65530 to 65531");
    assert!(place.image() == image);
    let said = place.run(&[&import[..], &["--clip"]].concat()).ok();
    assert!(said.contains("1 sectors outside main left out"), "{said}");
    assert_eq!(sectors(&place), [0, 65528]);
}

#[test]
fn a_list_that_does_not_fit_changes_nothing() {
    let place = Place::new();
    let image = place.formatted(2);
    for text in ["0 4000\n", "0 65531\n"] {
        place.write("list", text);
        place
            .run(&["import", "s.img", "list", "--format", "sectors"])
            .failed(4, "470 free slots, and the list names");
        assert!(place.image() == image);
    }
    // As many as there are do.
    place.write("list", "0 3760\n");
    place
        .run(&["import", "s.img", "list", "--format", "sectors"])
        .ok();
    place.run(&["check", "s.img"]).ok();
    assert_eq!(sectors(&place).len(), 470);
    place.write("list", "4000\n");
    place
        .run(&["import", "s.img", "list", "--format", "sectors"])
        .failed(4, "0 free slots");
}

#[test]
fn bad_lists_and_options_name_what_is_wrong() {
    let place = Place::new();
    let image = place.formatted(2);
    place.write("list", "5\nfive\n");
    let import = |more: &[&str]| place.run(&[&["import", "s.img"], more].concat());
    import(&["list", "--format", "sectors"]).failed(4, "list: line 2: not a number: \"five\"");
    import(&["list", "--format", "ddrescue"]).failed(4, "list: line 1: not the status line");
    import(&["nosuch", "--format", "sectors"]).failed(4, "nosuch");
    import(&["list", "--format", "badblocks", "--block-size", "1000"])
        .failed(4, "--block-size 1000");
    import(&["list", "--format", "ddrescue", "--statuses", "x"]).failed(4, "--statuses");
    import(&["list"]).failed(64, "--format");
    import(&["list", "--format", "csv"]).failed(64, "csv");
    import(&["list", "--format", "sectors", "--device", "safe"]).failed(64, "--device");
    place
        .run(&["import", "--format", "sectors", "list"])
        .failed(64, "SPARE");
    assert!(place.image() == image);
}

#[test]
fn damaged_metadata_is_not_imported_into() {
    let place = Place::new();
    let mut image = place.formatted(2);
    image[4096 + 77] = 1;
    place.write("s.img", &image);
    place.write("list", "5\n");
    place
        .run(&["import", "s.img", "list", "--format", "sectors"])
        .failed(1, "dmremap repair s.img");
    place.run(&["label", "s.img", "x"]).ok();
}

#[test]
fn an_active_device_gets_messages() {
    let place = Place::new();
    let script = "#!/bin/sh\necho \"$*\" >>log\ncase \"$*\" in\n\
                  'table safe') echo '0 65531 remap 7:0 0 7:1 0' ;;\n\
                  'table other') echo '0 65531 linear 7:0 0' ;;\n\
                  'message safe 0 mark 640 8') echo 'No space left' >&2; exit 1 ;;\n\
                  'message'*) echo '2 units marked' ;;\n\
                  *) echo 'No such device' >&2; exit 1 ;;\nesac\n";
    place.write("dmsetup", script);
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(place.path("dmsetup"), executable).unwrap();
    let run = |device: &str, text: &str| {
        place.write("list", text);
        let arguments = ["import", "--device", device, "list", "--format", "sectors"];
        let mut command = place.command(&arguments);
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", place.path("").display()));
        let done = done(command);
        let log = std::fs::read_to_string(place.path("log")).unwrap();
        std::fs::remove_file(place.path("log")).unwrap();
        (done, log)
    };
    let (said, log) = run("safe", "32 4\n8 8\n36 2\n");
    assert_eq!(said.ok(), "4 units marked\n");
    let messages = "table safe\nmessage safe 0 mark 8 8\nmessage safe 0 mark 32 6\n";
    assert_eq!(log, messages);
    let (said, _) = run("safe", "8\n640 8\n");
    said.failed(4, "2 units marked; failed at sector 640");
    let (said, log) = run("safe", "65531\n");
    said.failed(4, "line 1");
    assert_eq!(log, "table safe\n");
    run("other", "8\n").0.failed(4, "not a remap device");
    run("none", "8\n").0.failed(4, "No such device");
}

/// An image with an entry of each kind.
fn every_kind() -> Image {
    let g = Geometry::plan(1 << 16, 480 * 8, 8, 2).unwrap();
    let mut image = Image::new(g, [3; 16], "");
    image.set_entry(0, 1, 0); // pending: 8..16
    image.set_entry(1, 3, 0b0000_1111); // partial: 28..32 not in the slot
    image.set_entry(2, 5, 0xff); // relocated: 40..48
    let unit = Unit(3);
    let lost = 0b0011_0000;
    image.set(3, State::Bad { unit, lost }, Cause::Read, 0); // 28..30 lost
    image.seal(2);
    image
}

#[test]
fn export_prints_the_sectors_of_each_kind() {
    let place = Place::new();
    place.write("s.img", every_kind().bytes());
    let export = |arguments: &[&str]| place.run(&[&["export", "s.img"], arguments].concat());
    for (which, expected) in [
        ("pending", "8 8\n"),
        ("partial", "28 4\n"),
        ("relocated", "24 4\n40 8\n"),
        ("lost", "28 2\n"),
        ("partial,relocated", "24 8\n40 8\n"),
        ("pending,lost", "8 8\n28 2\n"),
    ] {
        let said = export(&["--format", "sectors", "--which", which]).ok();
        assert_eq!(said, expected, "{which}");
    }
    assert_eq!(export(&["--format", "badblocks"]).ok(), "4\n5\n6\n7\n");
    let blocks = ["--format", "badblocks", "--block-size", "8192"];
    assert_eq!(export(&blocks).ok(), "0\n");
    let map = export(&["--format", "ddrescue"]).ok();
    let ends = "0x00000000  0x00001000  +\n0x00001000  0x00001000  -\n0x00002000  0x01FFE000  +\n";
    assert!(map.ends_with(ends), "{map}");
    export(&["--format", "sectors", "--which", "good"]).failed(64, "good");
    export(&["--format", "badblocks", "--block-size", "0"]).failed(4, "--block-size 0");
    // Into a file that is new.
    export(&["--format", "sectors", "-o", "out"]).ok();
    assert_eq!(std::fs::read(place.path("out")).unwrap(), b"8 8\n");
    export(&["--format", "ddrescue", "-o", "out"]).failed(4, "out");
    assert_eq!(std::fs::read(place.path("out")).unwrap(), b"8 8\n");
}

#[test]
fn what_one_spare_exports_another_imports() {
    for format in ["badblocks", "ddrescue", "sectors"] {
        let place = Place::new();
        place.formatted(2);
        place.write("list", "8 100\n3000 7\n65530\n");
        place
            .run(&["import", "s.img", "list", "--format", "sectors"])
            .ok();
        let first = sectors(&place);
        place
            .run(&["export", "s.img", "--format", format, "-o", "out"])
            .ok();
        place.formatted_anew();
        let import = ["import", "s.img", "out", "--clip", "--format", format];
        place.run(&import).ok();
        assert_eq!(sectors(&place), first, "{format}");
    }
}

#[test]
fn a_list_may_come_through_a_pipe() {
    use std::io::Write as _;
    let place = Place::new();
    place.formatted(2);
    let mut command = place.command(&["import", "s.img", "-", "--format", "sectors"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"4711\n").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(list(&place.dump("s.img")), "4704 pending 0 0\n");
}
