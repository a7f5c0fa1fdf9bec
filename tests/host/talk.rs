// SPDX-License-Identifier: GPL-2.0

//! How the tool speaks: dry runs, quiet and verbose, colours, help, manual pages, completions.

use crate::image::Image;
use crate::tool::{done, Place};
use dm_remap::engine::geometry::Geometry;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

/// The commands that the help of `dmremap` lists.
fn commands(place: &Place) -> Vec<String> {
    let help = place.run(&["--help"]).ok();
    let list = help.split("\nCommands:\n").nth(1).unwrap();
    let list = list.lines().take_while(|line| !line.is_empty());
    let names = list.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let names: Vec<_> = names
        .filter(|name| !matches!(*name, "" | "help"))
        .map(String::from)
        .collect();
    assert!(names.len() > 8, "{names:?}");
    names
}

#[test]
fn a_dry_run_says_what_would_be_done_and_writes_nothing() {
    let place = Place::new();
    place.formatted(2);
    let sound = place.image();
    place.write("list", "77\n");
    place.blank("main", 65536 / 8);
    let mut damaged = sound.clone();
    damaged[4096 + 77] = 1;
    let longer = [&sound[..], &vec![0; 480 * 4096]].concat();
    place.write("s.img", &damaged);
    place
        .run(&["repair", "s.img", "--yes", "--backup", "old"])
        .ok();
    for (before, command, plan) in [
        (
            &vec![0; 480 * 4096],
            &["format", "s.img", "--main-sectors", "65531"][..],
            "Write 2 copies",
        ),
        (
            &damaged,
            &["repair", "s.img", "--backup", "new"],
            "Rewrite 1 block?",
        ),
        (
            &damaged,
            &["repair", "s.img", "--undo", "old"],
            "Put back 1 block on s.img",
        ),
        (&longer, &["grow", "s.img"], "Grow it to 938 slots"),
        (
            &sound,
            &["import", "s.img", "list", "--format", "sectors"],
            "Mark 1 unit?",
        ),
        (
            &sound,
            &["label", "s.img", "new"],
            "Change the label \"test\" to \"new\"?",
        ),
        (&sound, &["rebind", "s.img", "--main", "main"], "Record it?"),
    ] {
        for more in [&["-n"][..], &["--dry-run", "--yes"]] {
            let asks = matches!(command[0], "format" | "repair" | "grow");
            if more.len() > 1 && !asks {
                continue;
            }
            place.write("s.img", before);
            let said = place.run(&[command, more].concat()).ok();
            assert!(said.contains(plan), "{command:?}: {said}");
            assert!(
                said.ends_with("nothing was written\n"),
                "{command:?}: {said}"
            );
            assert!(place.image() == *before, "{command:?}");
            assert!(!place.path("new").exists());
        }
    }
    // An active device gets no message.
    let script = "#!/bin/sh\necho $1 >>log\n[ $1 = info ] && printf 'safe\\t\\t253\\t4\\tActive\\tWriteable\\n' ||\n\
                  echo '0 65531 remap 7:0 0 7:1 0'\n";
    place.write("dmsetup", script);
    let executable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(place.path("dmsetup"), executable).unwrap();
    let import = [
        "import", "--device", "safe", "list", "--format", "sectors", "-n",
    ];
    let mut command = place.command(&import);
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", place.path("").display()));
    let said = done(command).ok();
    assert_eq!(
        said,
        "Mark 1 range of safe? no (--dry-run)\nnothing was written\n"
    );
    assert_eq!(fs::read(place.path("log")).unwrap(), b"info\ntable\n");
    // Those that only read have no such option.
    place.run(&["check", "s.img", "-n"]).failed(64, "'-n'");
}

#[test]
fn quiet_leaves_what_was_asked_for_and_errors() {
    let place = Place::new();
    place.formatted(2);
    place.write("list", "77\n70000\n");
    let import = ["import", "s.img", "list", "--format", "sectors"];
    place
        .run(&[&import[..], &["-q"]].concat())
        .failed(4, "line 2");
    let clip = [&import[..], &["--clip"]].concat();
    assert_eq!(place.run(&[&clip[..], &["--quiet"]].concat()).ok(), "");
    assert!(place
        .run(&clip)
        .ok()
        .contains("0 units marked, 1 had an entry"));
    assert_eq!(place.run(&["-q", "label", "s.img"]).ok(), "test\n");
    assert!(place
        .run(&["dump", "-q", "s.img"])
        .ok()
        .contains("72 pending"));
    assert!(place.run(&["check", "-q", "s.img"]).ok().contains("sound"));
    place.blank("s.img", 480);
    let said = place
        .run(&["format", "s.img", "--main-sectors", "65531", "--yes", "-q"])
        .ok();
    let lines: Vec<_> = said
        .lines()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(lines, ["uuid", "table:"]);
    place
        .run(&["-q", "-v", "check", "s.img"])
        .failed(64, "cannot be used with");
}

#[test]
fn verbose_tells_each_read_and_write() {
    let place = Place::new();
    place.formatted(2);
    let steps = |arguments: &[&str]| {
        let done = place.run(arguments);
        assert_eq!(done.status, 0);
        done.err
    };
    assert_eq!(steps(&["label", "s.img", "a"]), "");
    let said = steps(&["label", "s.img", "b", "-v"]);
    for step in [
        "reads block 0\n",
        "writes block 0\n",
        "writes block 479\n",
        "flushes\n",
    ] {
        assert!(said.contains(&format!("s.img: {step}")), "{said}");
    }
    let said = steps(&["dump", "--header", "s.img", "--verbose"]);
    assert!(
        said.contains("reads blocks 0 to ") || said.contains("reads block 0"),
        "{said}"
    );
    assert!(!said.contains("writes"));
    let areas = |arguments: &[&str]| steps(arguments).matches("reads").count();
    let less = areas(&["dump", "--header", "-v", "s.img"]);
    assert!(less < areas(&["dump", "-v", "s.img"]), "the table was read");
}

#[test]
fn colours_are_for_terminals_or_on_demand() {
    let place = Place::new();
    place.formatted(2);
    for (variables, coloured) in [
        (&[][..], false),
        (&[("CLICOLOR", "1")], false),
        (&[("CLICOLOR_FORCE", "1")], true),
        (&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")], false),
    ] {
        for arguments in [&["check", "s.img"][..], &["check", "nosuch"]] {
            let mut command = place.command(arguments);
            command
                .env_remove("NO_COLOR")
                .env_remove("CLICOLOR")
                .env_remove("CLICOLOR_FORCE");
            command.envs(variables.iter().copied());
            let said = done(command);
            let said = said.out + &said.err;
            assert_eq!(said.contains('\u{1b}'), coloured, "{variables:?}: {said:?}");
        }
    }
}

#[test]
fn what_a_label_hides_is_shown() {
    let g = Geometry::plan(1 << 16, 480 * 8, 8, 2).unwrap();
    let place = Place::new();
    for (label, shown) in [
        ("\u{1b}[2Jx", "\\u{1b}[2Jx"),
        ("a\u{202e}b", "a\\u{202e}b"),
        ("a\u{2028}b", "a\\u{2028}b"),
        ("a\u{200b}", "a\\u{200b}"),
        (" a", "\\u{20}a"),
    ] {
        let mut image = Image::new(g, [1; 16], label);
        image.seal(2);
        place.write("s.img", image.bytes());
        assert_eq!(place.run(&["label", "s.img"]).ok(), format!("{shown}\n"));
        let dump = place.run(&["dump", "--header", "s.img"]).ok();
        assert!(dump.contains(&format!("label       {shown}\n")), "{dump}");
        assert_eq!(place.dump("s.img")["spare"]["label"], shown);
    }
}

#[test]
fn help_has_examples_and_exit_statuses() {
    let place = Place::new();
    let help = place.run(&["--help"]).ok();
    for heading in ["Examples:", "Exit status:", "See also:"] {
        assert!(help.contains(&format!("\n{heading}\n  ")), "{help}");
    }
    for command in commands(&place) {
        let help = place.run(&[&*command, "--help"]).ok();
        let examples = help
            .split("\nExamples:\n")
            .nth(1)
            .unwrap_or_else(|| panic!("{help}"));
        assert!(examples.contains(&format!("dmremap {command} ")), "{help}");
        let statuses = help
            .split("\nExit status:\n")
            .nth(1)
            .unwrap_or_else(|| panic!("{help}"));
        for status in ["  0   ", "  4   ", "  64  wrong usage"] {
            assert!(statuses.contains(status), "{help}");
        }
        assert_eq!(help.matches("Exit status:").count(), 1, "{help}");
        assert_eq!(help, place.run(&["help", &command]).ok());
    }
}

#[test]
fn every_command_has_a_manual_page_in_section_8() {
    let place = Place::new();
    fs::create_dir(place.path("man")).unwrap();
    place.run(&["man", "man"]).ok();
    let mut pages = vec!["dmremap".to_string()];
    pages.extend(
        commands(&place)
            .iter()
            .map(|command| format!("dmremap-{command}")),
    );
    // And that of the table file.
    assert!(place.path("man/remaptab.5").exists());
    assert_eq!(
        fs::read_dir(place.path("man")).unwrap().count(),
        pages.len() + 1
    );
    for name in pages {
        let page = fs::read_to_string(place.path(&format!("man/{name}.8"))).unwrap();
        let title = concat!(" 8 \" \" \"dmremap ", env!("CARGO_PKG_VERSION"), "\"");
        assert!(page.contains(&format!(".TH {name}{title}")), "{page}");
        let mut after = 0;
        for heading in [
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "OPTIONS",
            "EXAMPLES",
            "EXIT STATUS",
            "SEE ALSO",
        ] {
            let quoted = if heading.contains(' ') {
                format!("\"{heading}\"")
            } else {
                heading.into()
            };
            let at = page.find(&format!("\n.SH {quoted}\n"));
            assert!(at.is_some_and(|at| at > after), "{name}: {heading}: {page}");
            after = at.unwrap();
        }
        // What groff would warn of: other characters than ASCII, requests that it does not know, examples that do not end.
        assert!(page.is_ascii(), "{name}");
        let requests = page.lines().filter_map(|line| line.strip_prefix('.'));
        for request in requests {
            let request = request.split(' ').next().unwrap();
            let known = [
                "TH", "SH", "PP", "TP", "IP", "RS", "RE", "EX", "EE", "br", "ie", "el",
            ];
            assert!(known.contains(&request), "{name}: {request}");
        }
        assert_eq!(
            page.matches("\n.EX\n").count(),
            page.matches("\n.EE\n").count(),
            "{name}"
        );
    }
    place.run(&["man", "nosuch"]).failed(4, "nosuch");
}

#[test]
fn completions_have_every_command_but_the_hidden_ones() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = place.run(&["completions", shell]).ok();
        let has = |word: &str| {
            let is_part = |c: char| c.is_alphanumeric() || c == '-';
            script.split(|c| !is_part(c)).any(|found| found == word)
        };
        for command in commands(&place) {
            assert!(has(&command), "{shell}: {command}");
        }
        for option in ["dry-run", "header", "json", "quiet"] {
            assert!(script.contains(option), "{shell}: {option}");
        }
        // "man" is a word of theirs only as the command.
        assert!(!has("man") && !has("completions"), "{shell}: {script}");
    }
}
