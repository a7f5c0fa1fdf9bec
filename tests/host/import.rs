// SPDX-License-Identifier: GPL-2.0

//! Lists of bad sectors, in and out.

use crate::image::Image;
use crate::tool::{done, list, Place};
use dm_remap::engine::format::{Cause, State};
use dm_remap::engine::geometry::Geometry;
use dm_remap::engine::identity::{DiskId, IdKind, Identity};
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
        (
            "3\n17\n18\n",
            &["badblocks", "--block-size", "1024"][..],
            vec![0, 32],
        ),
        (
            "3\n17\n",
            &["badblocks", "--block-size", "4096"],
            vec![24, 136],
        ),
        (
            "# a\r\n\r\n 17 \r\n3\r\n17\r\n",
            &["badblocks", "--block-size", "1024"],
            vec![0, 32],
        ),
        ("0x1000\n010 0x2\n", &["sectors"], vec![8, 4096]),
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
            "0x0 + 1\n0x0 0x10000 +\n0x10000 0x200 -\n0x10200 0x2000 *\n0x12200 0x1FED400 +\n",
            &["ddrescue"],
            vec![128],
        ),
        (
            "0 F\n0 0200000 +\n0200000 512 - x\n66048 0x1FEF400 +\n",
            &["ddrescue"],
            vec![128],
        ),
        (
            "0x0 + 1\n0x0 0x10000 +\n0x10000 0x200 -\n0x10200 0x2000 *\n0x12200 0x1FED400 +\n",
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
    assert!(said.contains("1 sector outside main left out"), "{said}");
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
    import(&["nosuch", "--format", "sectors"]).failed(4, "nosuch: no such file");
    import(&["/dev/zero", "--format", "sectors"])
        .failed(4, "/dev/zero: line 1: longer than 65536 bytes");
    import(&["list", "--format", "badblocks", "--block-size", "1000"])
        .failed(4, "--block-size 1000");
    import(&["list", "--format", "ddrescue", "--statuses", "x"]).failed(4, "--statuses");
    import(&["list"]).failed(64, "--format");
    import(&["list", "--format", "csv"]).failed(64, "csv");
    import(&["list", "--format", "sectors", "--device", "safe"]).failed(64, "--device");
    place
        .run(&["import", "--format", "sectors", "list"])
        .failed(64, "not provided:\n  <LIST>");
    assert!(place.image() == image);
}

#[test]
fn the_spare_comes_before_the_list_wherever_the_options_are() {
    let place = Place::new();
    place.write("list", "4711\n");
    for arguments in [
        &["s.img", "list", "--format", "sectors"][..],
        &["s.img", "--format", "sectors", "list"],
        &["--format", "sectors", "s.img", "list"],
        &[
            "s.img",
            "--format=sectors",
            "--clip",
            "list",
            "--offset",
            "0",
        ],
    ] {
        place.blank("s.img", 480);
        place.formatted(2);
        place.run(&[&["import"], arguments].concat()).ok();
        assert_eq!(sectors(&place), [4704], "{arguments:?}");
    }
}

#[test]
fn a_badblocks_list_needs_its_block_size() {
    let place = Place::new();
    let image = place.formatted(2);
    let import = ["import", "s.img", "list", "--format", "badblocks"];
    place.write("list", "3000\n17\n4095\n");
    let why =
        "list: --block-size is missing, and numbers of blocks mean nothing without: which was \
               badblocks given with -b?\n  \
               \x20512: sectors 17 to 4095, units 2 to 511\n  \
               1024: sectors 34 to 8191, units 4 to 1023\n  \
               4096: sectors 136 to 32767, units 17 to 4095\n";
    place.run(&import).failed(64, why);
    // Main is part of the device that the list speaks of.
    let why = "sectors 17 to 4095, not all on main\n  \
               1024: sectors 34 to 8191, units 0 to 1019\n  \
               4096: sectors 136 to 32767, units 13 to 4091\n";
    let offset = [&import[..], &["--offset", "32"]].concat();
    place.run(&offset).failed(64, why);
    place.write("list", "36028797018963966\n36028797018963967\n");
    place.run(&import).failed(4, "list: line 2: past the end");
    place.write("list", "36028797018963966\n");
    place.run(&import).failed(
        64,
        "4096: sectors 288230376151711728 to 288230376151711735, not all",
    );
    place.write("list", "");
    place.run(&import).failed(64, "--block-size");
    assert!(place.image() == image);
    let export = ["export", "s.img", "--format", "badblocks"];
    place.run(&export).failed(64, "--block-size");
}

/// An empty image `s.img` for a main of 65,536 sectors, which begins at that sector of its disk.
fn image_of_main_at(place: &Place, start: Option<u64>) {
    let g = Geometry::plan(1 << 16, 480 * 8, 8, 2).unwrap();
    let mut image = Image::new(g, [3; 16], "");
    let disk = DiskId::new(IdKind::Naa, [0x50; 16], 8).unwrap();
    image.main = Identity::new(b"", start.map(|start| (disk, start))).unwrap();
    image.seal(2);
    place.write("s.img", image.bytes());
}

/// A map of a device of that many sectors, of which sector 4096 is bad.
fn map(sectors: u64) -> String {
    format!(
        "0x0 + 1\n0 0x200000 +\n0x200000 512 -\n0x200200 {} +\n",
        (sectors - 4097) * 512
    )
}

#[test]
fn the_map_of_a_device_of_another_length_is_refused() {
    let import = ["import", "s.img", "list", "--format", "ddrescue"];
    let place = Place::new();
    for (start, length, advice) in [
        // The only partition of a disk, and one that begins where they did once.
        (
            Some(2048),
            65536 + 4096,
            Some("--offset 2048 if it is the map of the disk"),
        ),
        (
            Some(2048),
            65536 + 2048,
            Some("--offset 2048 if it is the map of the disk"),
        ),
        (
            Some(63),
            65536 + 63,
            Some("--offset 63 if it is the map of the disk"),
        ),
        // It would not fit.
        (Some(2048), 65536 + 2047, Some("--offset says at which")),
        (Some(0), 65536 + 2048, Some("--offset says at which")),
        (None, 65536 + 2048, Some("--offset says at which")),
        // The map of a partition for its disk.
        (Some(0), 65536 - 2048, Some("--offset says at which")),
        (Some(2048), 65536 - 8, Some("--offset says at which")),
        (None, 65536 + 7, None),
        (Some(2048), 65536, None),
        (None, 65536 - 7, None),
    ] {
        for clip in [&[][..], &["--clip"]] {
            image_of_main_at(&place, start);
            let image = place.image();
            place.write("list", map(length));
            let done = place.run(&[&import[..], clip].concat());
            match advice {
                Some(advice) => {
                    done.failed(
                        4,
                        &format!("of {length} sectors, and main has 65536: {advice}"),
                    );
                    assert!(place.image() == image);
                }
                None => {
                    done.ok();
                    assert_eq!(sectors(&place), [4096]);
                }
            }
        }
        // Who says where main begins knows.
        for (offset, expected) in [("0", 4096), ("2048", 2048)] {
            image_of_main_at(&place, start);
            place
                .run(&[&import[..], &["--offset", offset]].concat())
                .ok();
            assert_eq!(sectors(&place), [expected]);
        }
    }
}

#[test]
fn a_map_without_an_end_counts_only_as_far_as_main_goes() {
    let place = Place::new();
    // What lies behind main is not wanted; nor is it left out.
    let map = "0x0 + 1\n0 0x1FF0000 +\n0x1FF0000 512 -\n0x1FF0200 0x7FFFFFFFFE00FDFF ?\n";
    place.formatted(2);
    place.write("list", map);
    let import = ["import", "s.img", "list", "--format", "ddrescue"];
    let said = place.run(&import).ok();
    assert!(
        said.contains("122 sectors left out that ddrescue"),
        "{said}"
    );
    assert_eq!(sectors(&place), [65408]);
    // If it is wanted, main's end has to be meant.
    let all = [&import[..], &["--statuses", "?-"]].concat();
    place.run(&all).failed(4, "list: line 4: sectors 65409 to");
    place.run(&[&all[..], &["--clip"]].concat()).ok();
    assert_eq!(sectors(&place).len(), 16);
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
                  'info '*' none') echo 'No such device' >&2; exit 1 ;;\n\
                  'info '*' '*) printf 'safe\\tREMAP-0\\t253\\t4\\tActive\\tWriteable\\n' ;;\n\
                  'status --noflush safe') echo '0 65531 remap active 8 0/9 0 0 0 0 0 0 0 0 0 0 0 idle 0' ;;\n\
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
        let log = log.lines().filter(|l| l.starts_with("message"));
        let log = log.map(|line| format!("{line}\n")).collect::<String>();
        (done, log)
    };
    let (said, log) = run("safe", "32 4\n8 8\n36 2\n");
    assert_eq!(said.ok(), "4 units marked\n");
    let messages = "message safe 0 mark 8 8\nmessage safe 0 mark 32 6\n";
    assert_eq!(log, messages);
    let (said, _) = run("safe", "8\n640 8\n");
    said.failed(4, "2 units marked; failed at sector 640");
    let (said, log) = run("safe", "65531\n");
    said.failed(4, "line 1");
    assert_eq!(log, "");
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
    let blocks = ["--format", "badblocks", "--block-size", "1024"];
    assert_eq!(export(&blocks).ok(), "4\n5\n6\n7\n");
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
    export(&["--format", "ddrescue", "-o", "out"]).failed(4, "out: File exists");
    assert_eq!(std::fs::read(place.path("out")).unwrap(), b"8 8\n");
    assert_eq!(export(&["--format", "sectors", "-o", "-"]).ok(), "8 8\n");
    assert_eq!(place.names(), ["out", "s.img"]);
    // As JSON.
    let json = export(&["--json", "--which", "pending,lost"]).ok();
    let expected = r#"{"version":1,"which":["pending","lost"],"sectors":[{"sector":8,"count":8},{"sector":28,"count":2}]}"#;
    assert_eq!(json, format!("{expected}\n"));
    export(&["--json", "--format", "sectors"]).failed(64, "--format");
    export(&[]).failed(64, "--format");
}

#[test]
fn a_file_that_cannot_be_written_whole_is_not_there() {
    let place = Place::new();
    place.formatted(2);
    let text: String = (0..400).map(|n| format!("{}\n", n * 16)).collect();
    place.write("list", text);
    let import = ["import", "s.img", "list", "--format", "sectors"];
    place.run(&import).ok();
    let export = "export s.img --format sectors -o out";
    // As if the file system were full after 1 KiB.
    let script = format!("trap '' XFSZ; ulimit -f 1; exec \"$0\" {export}");
    let mut shell = std::process::Command::new("bash");
    let shell_with = |shell: &mut std::process::Command| {
        shell
            .arg("-c")
            .arg(script)
            .arg(env!("CARGO_BIN_EXE_dmremap"));
        shell.current_dir(place.path(""));
    };
    shell_with(&mut shell);
    done(shell).failed(4, "out: File too large");
    assert_eq!(place.names(), ["list", "s.img"]);
    let arguments: Vec<&str> = export.split(' ').collect();
    place.run(&arguments).ok();
    assert_eq!(
        std::fs::read_to_string(place.path("out"))
            .unwrap()
            .lines()
            .count(),
        400
    );
    let mode = |name| {
        std::fs::metadata(place.path(name))
            .unwrap()
            .permissions()
            .mode()
    };
    assert_eq!(mode("out"), mode("list"));
    let nowhere = ["export", "s.img", "--format", "sectors", "-o", "no/out"];
    place.run(&nowhere).failed(4, "no/out: No such file");
}

#[test]
fn numbers_that_e2fsck_refuses_are_counted() {
    let place = Place::new();
    place.blank("s.img", 480);
    let main = (1_u64 << 33).to_string();
    let format = ["format", "s.img", "--main-sectors", &main, "--yes"];
    place.run(&format).ok();
    place.write("list", format!("{} 16\n", (1_u64 << 32) - 8));
    let import = ["import", "s.img", "list", "--format", "sectors"];
    place.run(&import).ok();
    for (block_size, high) in [("512", Some(8)), ("1024", None)] {
        let export = [
            "export",
            "s.img",
            "--format",
            "badblocks",
            "--block-size",
            block_size,
        ];
        let done = place.run(&export);
        let warning =
            high.map(|n| format!("warning: {n} numbers are 2^32 or more: e2fsck refuses"));
        match warning {
            Some(warning) => assert!(done.err.contains(&warning), "{}", done.err),
            None => assert_eq!(done.err, ""),
        }
        done.ok();
    }
}

#[test]
fn salvage_prints_what_is_there_and_says_what_is_not() {
    let place = Place::new();
    let g = Geometry::plan(1 << 16, 480 * 8, 8, 2).unwrap();
    let mut image = Image::new(g, [3; 16], "");
    for slot in [0, 126, 252, 378] {
        image.set_entry(slot, slot.into(), 0);
    }
    image.seal(2);
    let good = image.bytes();
    let lose = |block: u64| {
        let mut bytes = good.clone();
        for copy in [0, 1] {
            bytes[image.geometry.table_sector(copy, block) as usize * 512] ^= 1;
        }
        place.write("s.img", bytes);
    };
    let export = ["export", "s.img", "--format", "sectors"];
    let salvage = [&export[..], &["--salvage"]].concat();
    place.write("s.img", &good);
    let all = "0 8\n1008 8\n2016 8\n3024 8\n";
    let done = place.run(&salvage);
    assert_eq!(done.err, "");
    assert_eq!(done.ok(), all);
    lose(1);
    place
        .run(&export)
        .failed(2, "table block 1: no valid replica");
    let done = place.run(&salvage);
    assert_eq!((done.status, &*done.out), (1, "0 8\n2016 8\n3024 8\n"));
    for text in [
        "warning: s.img: table block 1: no valid replica",
        "warning: s.img: the entries of slots 126 to 251 are missing, 126 at most",
    ] {
        assert!(done.err.contains(text), "{}", done.err);
    }
    // The last one has fewer slots.
    lose(3);
    let done = place.run(&salvage);
    assert_eq!((done.status, &*done.out), (1, "0 8\n1008 8\n2016 8\n"));
    let text = "the entries of slots 378 to 469 are missing, 92 at most\n";
    assert!(done.err.ends_with(text), "{}", done.err);
}

#[test]
fn salvage_says_that_the_table_may_go_on() {
    let place = Place::new();
    // Of 8 table blocks, the first 4 are in use from the beginning.
    let g = Geometry::plan(1 << 16, 980 * 8, 8, 2).unwrap();
    assert_eq!((g.table_blocks, g.first_part()), (8, 4));
    let mut image = Image::new(g, [3; 16], "");
    image.set_entry(0, 1, 0);
    image.set_entry(4 * 126, 2, 0);
    image.seal(2);
    let mut bytes = image.bytes();
    for copy in [0, 1] {
        bytes[g.table_sector(copy, 3) as usize * 512] ^= 1;
    }
    place.write("s.img", bytes);
    let done = place.run(&["export", "s.img", "--format", "sectors", "--salvage"]);
    assert_eq!((done.status, &*done.out), (1, "8 8\n"));
    let text = format!(
        "table block 3 said whether more of the table is in use; if so, the entries of slots 504 to \
         {} are missing, {} at most\n",
        g.slots_total - 1,
        g.slots_total - 504
    );
    assert!(done.err.ends_with(&text), "{}", done.err);
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
        let options = ["--format", format, "--block-size", "1024"];
        let export = ["export", "s.img", "-o", "out"];
        place.run(&[&export[..], &options].concat()).ok();
        place.formatted_anew();
        let import = ["import", "s.img", "out", "--clip"];
        place.run(&[&import[..], &options].concat()).ok();
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
