// SPDX-License-Identifier: GPL-2.0

//! The table file, /etc/remaptab: a line a device, `NAME MAIN SPARE OPTIONS`.

use crate::device_cli::Opening;
use crate::dm::check_name;
use crate::{tag, units};
use anyhow::{anyhow, ensure, Context as _, Result};
use clap::Parser;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

/// A line of it.
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) main: String,
    pub(crate) spare: String,
    pub(crate) opening: Opening,
    pub(crate) boot: Boot,
}

/// When it is opened by itself, and what if that cannot be.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Boot {
    /// Not at boot.
    pub(crate) noauto: bool,
    /// Boot does not wait for it.
    pub(crate) nofail: bool,
    /// In the initramfs.
    pub(crate) initrd: bool,
    /// How long its devices are waited for; zero: for ever.
    pub(crate) timeout: Option<Duration>,
}

const OF_BOOT: [&str; 4] = ["noauto", "nofail", INITRD, "x-systemd.device-timeout"];

pub(crate) const INITRD: &str = "x-initrd.attach";

impl Boot {
    fn parse(text: &str) -> Result<Self> {
        let mut boot = Self::default();
        for word in text.split(',') {
            match word.split_once('=').unwrap_or((word, "")) {
                ("noauto", "") => boot.noauto = true,
                ("nofail", "") => boot.nofail = true,
                (INITRD, "") => boot.initrd = true,
                (name @ "x-systemd.device-timeout", time) => {
                    let time = units::time_span(time);
                    boot.timeout = Some(time.map_err(|why| anyhow!("{name}: {why}"))?);
                }
                (name, _) => ensure!(!OF_BOOT.contains(&name), "{name} has no value"),
            }
        }
        Ok(boot)
    }
}

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

/// The words of a line; none in a comment.
pub(crate) fn words(line: &str) -> Vec<&str> {
    let words = line.split_whitespace();
    if line.trim_start().starts_with('#') {
        return Vec::new();
    }
    words.collect()
}

fn parse(line: &str) -> Result<Option<Line>> {
    let (name, main, spare, text) = match words(line)[..] {
        [] => return Ok(None),
        [name, main, spare] => (name, main, spare, ""),
        [name, main, spare, options] => (name, main, spare, options),
        _ => anyhow::bail!("not of the form NAME MAIN SPARE OPTIONS"),
    };
    check_name(name)?;
    for (device, is_spare) in [(main, false), (spare, true)] {
        tag::check(device, is_spare)?;
    }
    Ok(Some(Line {
        name: name.into(),
        main: main.into(),
        spare: spare.into(),
        opening: options(text)?,
        boot: Boot::parse(text)?,
    }))
}

/// The text of the file, empty if there is none.
pub(crate) fn read(file: &Path) -> Result<String> {
    match fs::read_to_string(file) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(String::new()),
        text => text.with_context(|| file.display().to_string()),
    }
}

/// All lines, and what is wrong with those that are wrong.
pub(crate) fn all(file: &Path) -> Result<Vec<Result<Line>>> {
    let mut all: Vec<Result<Line>> = Vec::new();
    for (number, text) in (1..).zip(read(file)?.lines()) {
        let what = || format!("{}: line {number}", file.display());
        let line = parse(text).and_then(|line| {
            let Some(line) = line else { return Ok(None) };
            let is_second = all.iter().flatten().any(|other| other.name == line.name);
            ensure!(!is_second, "{} is there twice", line.name);
            Ok(Some(line))
        });
        all.extend(line.with_context(what).transpose());
    }
    Ok(all)
}

/// The line of the device `name`; `None`: the file has none. Other lines may be wrong.
pub(crate) fn find(file: &Path, name: &str) -> Result<Option<Line>> {
    let mut found = None;
    for (number, line) in (1..).zip(read(file)?.lines()) {
        if words(line).first() != Some(&name) {
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
        let boot = Boot {
            nofail: true,
            timeout: Some(Duration::from_secs(30)),
            ..Boot::default()
        };
        assert_eq!(line.boot, boot);
        assert!(parse("safe a b defaults").unwrap().is_some());
        assert!(parse("  # safe a b").unwrap().is_none());
        for (line, why) in [
            ("safe a", "NAME MAIN SPARE"),
            ("safe a b c d", "NAME MAIN SPARE"),
            ("sa/fe a b", "not a name"),
            ("safe a b frobnicate", "frobnicate"),
            ("safe a b read-retries=11", "read-retries"),
            ("safe a b nofail=no", "nofail has no value"),
            ("safe a b x-systemd.device-timeout=soon", "device-timeout"),
            ("safe UUID=1 b", "its name inside only"),
            ("safe a REMAP=1", "32 hexadecimal"),
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
