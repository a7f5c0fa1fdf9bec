// SPDX-License-Identifier: GPL-2.0

//! Mapped devices of the target `remap`, through dmsetup(8).
//!
//! It is there wherever device-mapper is used, in an initramfs too, and it does right what is easily done wrong: udev's
//! cookies where udev runs, the nodes in /dev/mapper where it does not. (The crate `devicemapper` refuses every call on a
//! machine without udev.)

use anyhow::{anyhow, bail, ensure, Context as _, Result};
use dm_remap::engine::args::TableLine;
use dm_remap::engine::image::text;
use rustix::fs::{statx, AtFlags, FileType, StatxFlags, CWD};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Number of a block device: major and minor.
pub(crate) type Number = (u32, u32);

/// An active remap device.
pub(crate) struct Device {
    pub(crate) name: String,
    /// The device-mapper UUID; empty if it has none.
    pub(crate) uuid: String,
    pub(crate) number: Number,
    pub(crate) suspended: bool,
    pub(crate) readonly: bool,
    /// Length in sectors.
    pub(crate) sectors: u64,
    pub(crate) main: Number,
    pub(crate) spare: Number,
    pub(crate) line: TableLine,
}

/// Runs dmsetup and returns what it printed, and whether it failed: then with what the kernel logged meanwhile.
fn run(arguments: &[&str]) -> Result<(String, Result<()>)> {
    let mut log = KernelLog::from_now();
    let output = match Command::new("dmsetup").args(arguments).output() {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            bail!("dmsetup is missing: install the package dmsetup (or device-mapper)")
        }
        output => output.context("cannot run dmsetup")?,
    };
    let printed = String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_string();
    if output.status.success() {
        return Ok((printed, Ok(())));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().replace('\n', "; ");
    let kernel = log.sentences();
    let why = match kernel.is_empty() {
        true => anyhow!("dmsetup {}: {said}", arguments[0]),
        false => anyhow!("{}", kernel.join("; ")),
    };
    Ok((printed, Err(why)))
}

/// Runs dmsetup and returns what it printed.
fn dmsetup(arguments: &[&str]) -> Result<String> {
    let (printed, done) = run(arguments)?;
    done.map(|()| printed)
}

/// How often dmsetup is run that tells of all devices.
const TRIES: usize = 3;

/// Runs dmsetup, which tells of all devices. It fails if one of them, whatever it is, vanishes meanwhile. So it is tried again;
/// and if that does not help, what it said of the others counts, and the failure stands beside it.
fn run_for_all(arguments: &[&str]) -> Result<(String, Result<()>)> {
    let mut result = run(arguments)?;
    for _ in 1..TRIES {
        if result.1.is_err() {
            result = run(arguments)?;
        }
    }
    match result {
        (printed, Err(why)) if printed.is_empty() => Err(why),
        result => Ok(result),
    }
}

/// The kernel's log from a moment on, where it may be read.
struct KernelLog(Option<File>);

impl KernelLog {
    fn from_now() -> Self {
        let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let open = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open("/dev/kmsg");
        Self(
            open.and_then(|mut log| log.seek(SeekFrom::End(0)).map(|_| log))
                .ok(),
        )
    }

    /// What device-mapper and the target have said since.
    fn sentences(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        let mut record = [0; 8192];
        while let Some(Ok(length)) = self.0.as_mut().map(|log| log.read(&mut record)) {
            let text = String::from_utf8_lossy(&record[..length]);
            let line = text.split_once(';').map_or("", |(_, rest)| rest);
            said.extend(sentence(line.lines().next().unwrap_or_default()));
        }
        said.dedup();
        said
    }
}

/// What a line of the kernel's log says about a remap device; none if it is about something else, or says nothing new.
fn sentence(line: &str) -> Option<String> {
    if let Some(rest) = line.strip_prefix("device-mapper: table: ") {
        let (_, rest) = rest.split_once(": ")?;
        return Some(rest.strip_prefix("remap: ").unwrap_or(rest).to_string());
    }
    let (_, rest) = line.strip_prefix("dm_remap: ")?.split_once(": ")?;
    Some(rest.to_string())
}

/// Asks dmsetup for the words of a line about a device.
const INFO: [&str; 7] = [
    "info",
    "-c",
    "--noheadings",
    "--separator",
    "\t",
    "-o",
    "name,uuid,major,minor,suspended,readonly",
];

impl Device {
    fn of(info: &str, table: &str) -> Result<Self> {
        let fields: Vec<&str> = info.split('\t').collect();
        let [name, uuid, major, minor, suspended, readonly] = fields[..] else {
            bail!("dmsetup info: {info}: not understood");
        };
        let name = name.to_string();
        let mut words = table.split_whitespace();
        let what = || format!("{name}: not a remap device: {table}");
        let (Some("0"), Some(sectors), Some("remap")) = (words.next(), words.next(), words.next())
        else {
            bail!(what());
        };
        let words: Vec<&str> = words.collect();
        let bytes: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        let number_of = |at: usize| number(words.get(at)?);
        Ok(Self {
            uuid: uuid.to_string(),
            number: (major.parse()?, minor.parse()?),
            suspended: suspended == "Suspended",
            readonly: readonly == "Read-only",
            sectors: sectors.parse()?,
            main: number_of(0).with_context(what)?,
            spare: number_of(2).with_context(what)?,
            line: TableLine::parse(&bytes).map_err(|why| anyhow!("{name}: {}", text(why)))?,
            name,
        })
    }

    /// All of them, by name.
    pub(crate) fn all() -> Result<Vec<Self>> {
        let (devices, is_whole) = Self::each()?;
        is_whole?;
        let mut devices = devices.into_iter().collect::<Result<Vec<_>>>()?;
        devices.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(devices)
    }

    /// Each of them, or why it is not understood; and why some may be missing.
    pub(crate) fn each() -> Result<(Vec<Result<Self>>, Result<()>)> {
        let (infos, infos_whole) = run_for_all(&INFO)?;
        let (tables, tables_whole) = lines_of_all(&["table", "--target", "remap"])?;
        // What only one of the two tells of comes or goes just now.
        let found = infos.lines().filter_map(|info| {
            let (name, _) = info.split_once('\t')?;
            Some(Self::of(info, tables.get(name)?))
        });
        Ok((found.collect(), infos_whole.and(tables_whole)))
    }

    fn ask(name: &str) -> Result<Self> {
        Self::of(&dmsetup(&[&INFO[..], &[name]].concat())?, &table(name)?)
    }

    /// The mapped device of that name; `None`: there is none. One that is not a remap device is an error.
    pub(crate) fn find(name: &str) -> Result<Option<Self>> {
        number_of(name).map(|_| Self::ask(name)).transpose()
    }

    /// The active device that a person named: by its name, or as /dev/mapper/NAME.
    pub(crate) fn open(name: &str) -> Result<Self> {
        let bare = name.strip_prefix("/dev/mapper/").unwrap_or(name);
        let device = Self::ask(bare);
        if device.is_err() && number_of(bare).is_none() {
            let none =
                || format!("{name}: there is no active device of that name; see dmremap status");
            return device.with_context(none);
        }
        device
    }

    /// The active device that `spare` means, if it does not mean a spare: a bare name of one, or its node.
    pub(crate) fn named(spare: &Path) -> Result<Option<Self>> {
        let Some(name) = spare.to_str() else {
            return Ok(None);
        };
        let bare = name.strip_prefix("/dev/mapper/").unwrap_or(name);
        if bare.is_empty() || bare.contains('/') {
            return Ok(None);
        }
        match Self::find(bare) {
            // Another mapped device may be a spare.
            Err(_) if bare != name => Ok(None),
            found => found,
        }
    }

    /// Sends a message and returns what the target says.
    pub(crate) fn message(&self, words: &[&str]) -> Result<String> {
        let all: Vec<&str> = ["message", &self.name, "0"]
            .iter()
            .chain(words)
            .copied()
            .collect();
        dmsetup(&all).with_context(|| format!("{}: {}", self.name, words.join(" ")))
    }

    /// The line of `dmsetup status`, without start, length and target.
    pub(crate) fn status(&self) -> Result<String> {
        let line = dmsetup(&["status", "--noflush", &self.name])?;
        let words = line.splitn(4, ' ').nth(3);
        Ok(words
            .with_context(|| format!("{}: no status: {line}", self.name))?
            .to_string())
    }

    /// Its node.
    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.name)
    }
}

/// Lines by the names of devices.
type Lines = BTreeMap<String, String>;

/// What dmsetup prints of each device, by name: of several lines of one, the first. (Without any device, it says so.) And why
/// some may be missing.
fn lines_of_all(arguments: &[&str]) -> Result<(Lines, Result<()>)> {
    let (printed, is_whole) = run_for_all(arguments)?;
    let mut lines = Lines::new();
    for line in printed.lines() {
        if let Some((name, line)) = line.split_once(": ") {
            lines.entry(name.into()).or_insert_with(|| line.into());
        }
    }
    Ok((lines, is_whole))
}

/// The line of `dmsetup status` of each remap device, by name, without start, length and target; and why some may be missing.
pub(crate) fn statuses() -> Result<(Lines, Result<()>)> {
    let (mut lines, is_whole) = lines_of_all(&["status", "--noflush", "--target", "remap"])?;
    // One without a table has no words.
    lines.retain(|_, line| match line.splitn(4, ' ').nth(3) {
        Some(words) => {
            *line = words.into();
            true
        }
        None => false,
    });
    Ok((lines, is_whole))
}

/// Whether a mapped device is suspended now, as sysfs says.
pub(crate) fn is_suspended(number: Number) -> bool {
    let suspended = directory(number).and_then(|directory| attribute(&directory, "dm/suspended"));
    suspended.as_deref() == Some("1")
}

/// Creates a mapped device and makes it live.
pub(crate) fn create(name: &str, uuid: &str, table: &str, readonly: bool) -> Result<()> {
    let mut arguments = vec!["create", name, "--uuid", uuid, "--table", table];
    if readonly {
        arguments.push("--readonly");
    }
    dmsetup(&arguments).map(drop)
}

/// Removes a mapped device, or marks it to be removed when nobody has it open any more.
pub(crate) fn remove(name: &str, deferred: bool) -> Result<()> {
    let how = if deferred { "--deferred" } else { "--retry" };
    dmsetup(&["remove", how, name]).map(drop)
}

/// The table of the mapped device of that name, remap or not: a line a target. Keys are not shown.
pub(crate) fn table(name: &str) -> Result<String> {
    dmsetup(&["table", name])
}

/// The numbers and the directories of all mapped devices.
fn mapped() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| path.join("dm").exists())
}

/// A file of a directory in sysfs.
pub(crate) fn attribute(directory: &Path, name: &str) -> Option<String> {
    Some(
        fs::read_to_string(directory.join(name))
            .ok()?
            .trim_end()
            .to_string(),
    )
}

/// The number that `text` is: `8:1`.
pub(crate) fn number(text: &str) -> Option<Number> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The number of the mapped device of that name, remap or not; `None`: there is none.
pub(crate) fn number_of(name: &str) -> Option<Number> {
    let found = mapped().find(|path| attribute(path, "dm/name").as_deref() == Some(name))?;
    number(&attribute(&found, "dev")?)
}

/// The number of the block device at `path`; `None`: it is none.
pub(crate) fn number_at(path: &Path) -> Option<Number> {
    // It may be any file that a process has open: a server that does not answer is not asked.
    let found = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE).ok()?;
    let is_device = FileType::from_raw_mode(found.stx_mode.into()) == FileType::BlockDevice;
    is_device.then_some((found.stx_rdev_major, found.stx_rdev_minor))
}

/// The directory of a block device in sysfs.
pub(crate) fn directory((major, minor): Number) -> Option<PathBuf> {
    fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()
}

/// The node of a block device, as a person knows it.
pub(crate) fn path_of(number: Number) -> PathBuf {
    let Some(directory) = directory(number) else {
        return format!("{}:{}", number.0, number.1).into();
    };
    if let Some(name) = attribute(&directory, "dm/name") {
        return Path::new("/dev/mapper").join(name);
    }
    // `!` stands for `/` in names of the kernel.
    let name = directory
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .replace('!', "/");
    Path::new("/dev").join(name)
}

/// Refuses a name that udev or the shell would not leave as it is.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "#+-.:=@_".contains(c);
    ensure!(
        !name.is_empty() && name.len() < 128 && name.chars().all(is_plain) && !name.starts_with(['-', '.']),
        "{name:?}: not a name for a device: letters, digits and #+-.:=@_ only, up to 127, the first neither - nor ."
    );
    Ok(())
}

#[cfg(test)]
impl Device {
    /// One that is not there.
    pub(crate) fn example(name: &str, uuid: &str) -> Self {
        let info = format!("{name}\t{uuid}\t253\t4\tActive\tWriteable");
        Self::of(&info, "0 4096 remap 8:1 0 8:17 16").unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_what_dmsetup_says() {
        let info = "safe\tREMAP-00\t253\t4\tActive\tWriteable";
        let table = "0 4096 remap 8:1 0 8:17 16 4 spare_sectors 4096 read_retries 0";
        let device = Device::of(info, table).unwrap();
        assert_eq!(
            (device.name.as_str(), device.uuid.as_str()),
            ("safe", "REMAP-00")
        );
        assert_eq!(
            (device.number, device.main, device.spare),
            ((253, 4), (8, 1), (8, 17))
        );
        assert_eq!((device.sectors, device.line.spare_start), (4096, 16));
        assert!(!device.suspended && !device.readonly);
        for table in [
            "0 8 linear 8:1 0",
            "",
            "0 8 remap",
            "8 8 remap 8:1 0 8:2 0",
            "0 8 remap sda 0 8:2 0",
        ] {
            assert!(Device::of(info, table).is_err(), "{table}");
        }
    }

    #[test]
    fn of_the_log_only_what_speaks_of_remap_counts() {
        let said = [
            "device-mapper: table: 253:0: remap: Spare is in use (-EBUSY)",
            "device-mapper: ioctl: error adding target to table",
            "dm_remap: 253:0: message: no free slot is left",
            "usb 1-1: reset",
        ];
        let said: Vec<String> = said.into_iter().filter_map(sentence).collect();
        assert_eq!(
            said,
            ["Spare is in use (-EBUSY)", "message: no free slot is left"]
        );
    }

    #[test]
    fn names_are_plain() {
        for name in ["safe", "vg-home_1", "a"] {
            check_name(name).unwrap();
        }
        for name in ["", "a b", "a/b", "-a", ".", "\u{202e}", &"x".repeat(128)] {
            check_name(name).unwrap_err();
        }
    }
}
