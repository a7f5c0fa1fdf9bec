// SPDX-License-Identifier: GPL-2.0

//! The table file, /etc/remaptab: a line a device, `NAME MAIN SPARE OPTIONS`.

use crate::device_cli::Opening;
use crate::dm::check_name;
use anyhow::{ensure, Context as _, Result};
use clap::Parser;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// A line of it.
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) main: String,
    pub(crate) spare: String,
    pub(crate) opening: Opening,
}

/// Options that others obey: systemd's generator and the initramfs.
const OF_BOOT: [&str; 4] = [
    "noauto",
    "nofail",
    "x-initrd.attach",
    "x-systemd.device-timeout",
];

#[derive(Parser)]
#[command(no_binary_name = true)]
struct Options {
    #[command(flatten)]
    opening: Opening,
}

fn options(text: &str) -> Result<Opening> {
    let of_open = |word: &&str| {
        let name = word.split('=').next().unwrap_or_default();
        !word.is_empty()
            && *word != "defaults"
            && *word != "-"
            && !OF_BOOT.contains(&name)
            && !name.starts_with("x-")
    };
    let words: Vec<String> = text
        .split(',')
        .filter(of_open)
        .map(|word| format!("--{word}"))
        .collect();
    let parsed = Options::try_parse_from(words).map_err(|error| {
        let said = error.to_string();
        let said = said.lines().next().unwrap_or_default().to_string();
        anyhow::anyhow!(said
            .strip_prefix("error: ")
            .unwrap_or(&said)
            .replace("--", ""))
    })?;
    Ok(parsed.opening)
}

fn parse(line: &str) -> Result<Option<Line>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (name, main, spare, text) = match words[..] {
        [] => return Ok(None),
        [first, ..] if first.starts_with('#') => return Ok(None),
        [name, main, spare] => (name, main, spare, ""),
        [name, main, spare, options] => (name, main, spare, options),
        _ => anyhow::bail!("not of the form NAME MAIN SPARE OPTIONS"),
    };
    check_name(name)?;
    Ok(Some(Line {
        name: name.into(),
        main: main.into(),
        spare: spare.into(),
        opening: options(text)?,
    }))
}

/// The line of the device `name`; `None`: the file has none. Other lines may be wrong.
pub(crate) fn find(file: &Path, name: &str) -> Result<Option<Line>> {
    let text = match fs::read_to_string(file) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| file.display().to_string())?,
    };
    let mut found = None;
    for (number, line) in (1..).zip(text.lines()) {
        if line.split_whitespace().next() != Some(name) {
            continue;
        }
        let what = || format!("{}: line {number}", file.display());
        ensure!(found.is_none(), "{}: {name} is there twice", what());
        found = parse(line).with_context(what)?;
    }
    Ok(found)
}

/// Adds a line, durably; what was there stays as it is.
pub(crate) fn add(file: &Path, line: &str) -> Result<()> {
    let what = || file.display().to_string();
    let mut text = match fs::read_to_string(file) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            "# Remap devices, see dmremap(8): NAME MAIN SPARE OPTIONS\n".to_string()
        }
        text => text.with_context(what)?,
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(line);
    text.push('\n');
    let mut new = tempfile::NamedTempFile::new_in(file.parent().unwrap_or(Path::new("/")))
        .with_context(what)?;
    std::io::Write::write_all(&mut new, text.as_bytes()).with_context(what)?;
    let mode = fs::metadata(file).map_or_else(
        |_| std::os::unix::fs::PermissionsExt::from_mode(0o644),
        |metadata| metadata.permissions(),
    );
    new.as_file().set_permissions(mode).with_context(what)?;
    new.as_file().sync_all().with_context(what)?;
    new.persist(file)
        .map_err(|error| error.error)
        .with_context(what)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_options_of_open_and_those_of_boot() {
        let line = "safe\tPARTUUID=1-2  /dev/sdb1 nofail,spare-start=8,read-retries=0,readonly,x-systemd.device-timeout=30";
        let line = parse(line).unwrap().unwrap();
        assert_eq!(
            (line.name.as_str(), line.main.as_str(), line.spare.as_str()),
            ("safe", "PARTUUID=1-2", "/dev/sdb1")
        );
        assert_eq!(
            (line.opening.bounds.spare_start, line.opening.read_retries),
            (8, Some(0))
        );
        assert!(line.opening.readonly && !line.opening.rebind);
        assert!(parse("safe a b defaults").unwrap().is_some());
        assert!(parse("  # safe a b").unwrap().is_none());
        for (line, why) in [
            ("safe a", "NAME MAIN SPARE"),
            ("safe a b c d", "NAME MAIN SPARE"),
            ("sa/fe a b", "not a name"),
            ("safe a b frobnicate", "frobnicate"),
            ("safe a b read-retries=11", "read-retries"),
        ] {
            let error = format!("{:#}", parse(line).err().unwrap());
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn a_line_is_found_and_added() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("remaptab");
        assert!(find(&file, "safe").unwrap().is_none());
        add(&file, "other /dev/a").unwrap();
        add(&file, "safe /dev/a /dev/b").unwrap();
        assert_eq!(find(&file, "safe").unwrap().unwrap().spare, "/dev/b");
        assert!(format!("{:#}", find(&file, "other").err().unwrap()).contains("line 2"));
        add(&file, "safe /dev/a /dev/b").unwrap();
        assert!(format!("{:#}", find(&file, "safe").err().unwrap()).contains("twice"));
    }
}
