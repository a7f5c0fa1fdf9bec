// SPDX-License-Identifier: GPL-2.0

//! `generator`, `probe` and `initrd-tab`: what systemd, udev and the initramfs are told of the table file.

use crate::tool::{done, Done, Place};
use std::fs;
use std::path::Path;

/// Every file and link below `directory`, sorted: its path, and its content or where it leads.
fn tree(directory: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = vec![directory.to_path_buf()];
    while let Some(next) = rest.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(directory).unwrap().display().to_string();
            if let Ok(to) = fs::read_link(&path) {
                found.push((name, to.display().to_string()));
            } else if path.is_dir() {
                rest.push(path);
            } else {
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn generator(place: &Place, in_initrd: bool) -> Done {
    let mut command = place.command(&["generator", "n", "e", "l", "--tab", "tab"]);
    command.env("SYSTEMD_IN_INITRD", if in_initrd { "1" } else { "0" });
    command.env("DMREMAP_RUN", place.path("run"));
    done(command)
}

const TAB: &str = "\
# NAME MAIN SPARE OPTIONS
safe   /dev/a PARTUUID=1-2 defaults
x-y@+  /dev/b /dev/c       nofail,readonly

later  /dev/d /dev/e       noauto
root   /dev/f /dev/g       x-initrd.attach
";

#[test]
fn a_unit_is_made_for_each_line() {
    let place = Place::new();
    place.write("tab", TAB);
    let done = generator(&place, false);
    assert_eq!((done.status, &*done.out, &*done.err), (0, "", ""));
    let tree = tree(&place.path("n"));
    let template = "/usr/lib/systemd/system/dmremap@.service";
    let links = [
        "dev-mapper-later.device.requires/dmremap@later.service",
        "dev-mapper-root.device.requires/dmremap@root.service",
        "dev-mapper-safe.device.requires/dmremap@safe.service",
        "dev-mapper-x\\x2dy\\x40\\x2b.device.requires/dmremap@x\\x2dy\\x40\\x2b.service",
        "dmremap.target.requires/dmremap@root.service",
        "dmremap.target.requires/dmremap@safe.service",
        "dmremap.target.wants/dmremap@x\\x2dy\\x40\\x2b.service",
    ];
    let mut expected: Vec<(String, String)> = links
        .iter()
        .map(|link| (link.to_string(), template.to_string()))
        .collect();
    expected.push((
        "sysinit.target.wants/dmremap.target".into(),
        "/usr/lib/systemd/system/dmremap.target".into(),
    ));
    let (texts, found): (Vec<_>, Vec<_>) = tree
        .into_iter()
        .partition(|(name, _)| name.ends_with(".conf"));
    assert_eq!(found, expected);
    let text = |unit: &str| {
        let path = format!("dmremap@{unit}.service.d/50-remaptab.conf");
        let found = texts.iter().find(|(name, _)| *name == path);
        found.unwrap_or_else(|| panic!("{path}")).1.clone()
    };
    let waits = "Before=dmremap.target\n";
    let closes = "Conflicts=umount.target\nBefore=umount.target\n";
    for (unit, has_waits, has_closes) in [
        ("safe", true, true),
        ("x\\x2dy\\x40\\x2b", false, true),
        ("later", true, true),
        ("root", true, false),
    ] {
        let text = text(unit);
        assert!(
            text.contains("\n[Unit]\nDescription=Remap device "),
            "{text}"
        );
        assert_eq!(text.contains(waits), has_waits, "{unit}: {text}");
        assert_eq!(text.contains(closes), has_closes, "{unit}: {text}");
    }
    // Again, over it: as at a reload. And what the initramfs opened stays to the end.
    fs::create_dir(place.path("run")).unwrap();
    place.write("run/safe.initrd", "");
    generator(&place, false).ok();
    let text = place.path("n/dmremap@safe.service.d/50-remaptab.conf");
    assert!(!fs::read_to_string(text).unwrap().contains("umount"));
}

#[test]
fn a_wrong_line_is_told_of_and_the_others_go_on() {
    for (line, why) in [
        ("safe /dev/a", "tab: line 2: not of the form"),
        ("safe /dev/a /dev/b frobnicate", "frobnicate"),
        ("safe UUID=1 /dev/b", "UUID=1"),
        ("sa/fe /dev/a /dev/b", "not a name"),
        ("a /dev/a /dev/b", "a is there twice"),
        (
            "safe /dev/a /dev/b x-systemd.device-timeout=x",
            "not a time",
        ),
    ] {
        let place = Place::new();
        place.write("tab", format!("a /dev/a /dev/b\n{line}\nb /dev/c /dev/d\n"));
        let done = generator(&place, false);
        assert!(done.err.contains(why), "{line}: {}", done.err);
        done.ok();
        let names: Vec<String> = tree(&place.path("n/dmremap.target.requires"))
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["dmremap@a.service", "dmremap@b.service"], "{line}");
    }
}

#[test]
fn an_initramfs_opens_what_it_is_told_to() {
    let place = Place::new();
    place.write("tab", TAB);
    generator(&place, true).ok();
    let names: Vec<String> = tree(&place.path("n"))
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert!(names.iter().all(|name| !name.contains("safe")), "{names:?}");
    assert!(names.contains(&"dmremap.target.requires/dmremap@root.service".to_string()));
    let tab = place.run(&["initrd-tab", "--tab", "tab"]).ok();
    assert_eq!(
        tab,
        "safe /dev/a PARTUUID=1-2 defaults\nx-y@+ /dev/b /dev/c nofail,readonly\n\
         later /dev/d /dev/e noauto\nroot /dev/f /dev/g x-initrd.attach\n"
    );
}

#[test]
fn without_a_table_file_nothing_is_made() {
    let place = Place::new();
    generator(&place, false).ok();
    assert_eq!(place.run(&["initrd-tab", "--tab", "tab"]).ok(), "");
    place.write("tab", "# nothing\n\n");
    generator(&place, false).ok();
    assert_eq!(place.names(), ["tab"]);
}

/// What udev is told of `device`, whose links are `links`.
fn probe(place: &Place, device: &str, links: &str, usage: &str) -> Done {
    let device = place.path(device);
    let mut command = place.command(&["probe", "--tab", "tab", &device.display().to_string()]);
    command.env("DEVLINKS", links).env("ID_FS_USAGE", usage);
    command.env("DMREMAP_RUN", place.path("run"));
    done(command)
}

/// The uuid of `s.img`.
fn uuid(place: &Place) -> String {
    place.dump("s.img")["spare"]["uuid"]
        .as_str()
        .unwrap_or_else(|| panic!("{}", place.dump("s.img")))
        .to_string()
}

#[test]
fn a_spare_is_known_by_its_superblocks() {
    let place = Place::new();
    let image = place.formatted(2);
    let uuid = uuid(&place);
    let said = format!("DM_REMAP_UUID={uuid}\nDM_REMAP_LABEL_ENC=test\n");
    assert_eq!(probe(&place, "s.img", "", "").ok(), said);
    // Of an array, it is a member that begins like it.
    assert_eq!(probe(&place, "s.img", "", "raid").status, 1);
    place.run(&["label", "s.img", "left \"disk\" ü"]).ok();
    let encoded = probe(&place, "s.img", "", "").ok();
    assert!(
        encoded.ends_with("=left\\x20\\x22disk\\x22\\x20ü\n"),
        "{encoded}"
    );

    let end = image.len() - 4096;
    let mut first = image.clone();
    first[..4096].fill(0xff);
    place.write("first.img", &first);
    assert_eq!(probe(&place, "first.img", "", "").ok(), said);
    let mut last = image.clone();
    last[end..].fill(0xff);
    place.write("last.img", &last);
    assert_eq!(probe(&place, "last.img", "", "").ok(), said);

    let mut both = first.clone();
    both[end..].fill(0xff);
    // A disk whose last partition is a spare is none.
    let disk = [vec![0; 8192], image.clone()].concat();
    let cut = image[..end].to_vec();
    for (what, image) in [("both", &both), ("disk", &disk), ("cut", &cut)] {
        place.write("x.img", image);
        assert_eq!(probe(&place, "x.img", "", "").status, 1, "{what}");
    }
    place.blank("blank.img", 100);
    place.write("short.img", "short");
    for name in ["blank.img", "short.img", "none"] {
        let done = probe(&place, name, "", "");
        assert_eq!(
            (done.status, done.out.as_str(), done.err.as_str()),
            (1, "", "")
        );
    }
}

#[test]
fn a_main_is_known_by_any_of_its_names_and_not_read() {
    let place = Place::new();
    place.formatted(2);
    let path = place.path("s.img").display().to_string();
    let link =
        "/dev/disk/by-id/ata-X-part1 /dev/disk/by-partuuid/0a-01 /dev/disk/by-partlabel/films";
    for main in [
        path.as_str(),
        "/dev/disk/by-id/ata-X-part1",
        "ID=ata-X-part1",
        "PARTUUID=0A-01",
        "PARTLABEL=films",
    ] {
        // A wrong option makes no difference.
        place.write(
            "tab",
            format!("other /dev/x /dev/y\na.b {main} /dev/z frobnicate\n"),
        );
        let said = probe(&place, "s.img", link, "filesystem").ok();
        assert_eq!(said, "DM_REMAP_MAIN_OF=a.b\n", "{main}");
    }
    for main in [
        "/dev/disk/by-id/ata-X",
        "ID=ata-Y",
        "PARTUUID=0a-02",
        "UUID=0a-01",
    ] {
        place.write("tab", format!("a {main} /dev/z\n# b {path} /dev/z\n"));
        let said = probe(&place, "s.img", link, "").ok();
        assert!(!said.contains("MAIN_OF"), "{main}: {said}");
    }
    // Both in one.
    place.write("tab", format!("a {path} {path} main-start=8\n"));
    let said = probe(&place, "s.img", "", "").ok();
    assert!(said.contains("MAIN_OF=a\nDM_REMAP_UUID="), "{said}");
}

#[test]
fn what_was_missing_starts_the_unit_when_it_appears() {
    let place = Place::new();
    place.formatted(2);
    let (uuid, path) = (uuid(&place), place.path("s.img").display().to_string());
    let started = |place: &Place, device: &str| {
        let said = probe(place, device, "", "").out;
        let line = said
            .lines()
            .find_map(|line| line.strip_prefix("DM_REMAP_START="));
        line.map(str::to_string)
    };
    place.write(
        "tab",
        format!("a-b /dev/x REMAP={uuid}\nc {path} /dev/y\nd /dev/x /dev/y\n"),
    );
    assert_eq!(started(&place, "s.img"), None);
    fs::create_dir(place.path("run")).unwrap();
    for name in ["c", "d"] {
        place.write(&format!("run/{name}.missing"), "");
    }
    assert_eq!(
        started(&place, "s.img").as_deref(),
        Some("dmremap@c.service")
    );
    place.write(
        "tab",
        format!("a-b /dev/x REMAP={}\n", uuid.replace('-', "")),
    );
    place.write("run/a-b.missing", "");
    assert_eq!(
        started(&place, "s.img").as_deref(),
        Some("dmremap@a\\x2db.service")
    );
    // A spare that begins elsewhere on it is known by the name of its device only.
    place.blank("x.img", 10);
    let path = place.path("x.img").display().to_string();
    place.write("tab", format!("c /dev/x {path} spare-start=8\n"));
    assert_eq!(
        started(&place, "x.img").as_deref(),
        Some("dmremap@c.service")
    );
}
