// SPDX-License-Identifier: GPL-2.0

//! `dmremap hide` and `unhide`: raw main without the signatures of what lies on the mapped device.
//!
//! The order makes every cut harmless. First the units that hold a signature are relocated, and the kernel has committed that.
//! Then what will be erased is saved. Only then it is erased, on main, where nobody reads any more. Whatever is missing of
//! that when it is cut is done by the next `hide`.

use crate::active::{in_pieces, unit_sectors, Entry};
use crate::device_cli::{Hide, Unhide};
use crate::dm::{path_of, Device};
use crate::{ui, whole_file, Status};
use anyhow::{bail, ensure, Context as _, Result};
use rustix::fs::{fadvise, Advice, OFlags};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{stdout, ErrorKind, Write as _};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

const SECTOR: u64 = 512;

/// Bytes at each end of a device where all that is known has its signatures.
const ENDS: u64 = 1 << 20;

/// Magic bytes of a file system or the like.
pub(crate) struct Signature {
    /// Where they are, in bytes.
    pub(crate) offset: u64,
    /// How many.
    pub(crate) length: u64,
    pub(crate) kind: String,
    pub(crate) label: Option<String>,
}

#[derive(Deserialize)]
struct Wipefs {
    signatures: Vec<Found>,
}

/// All are text in some versions, and numbers in others.
#[derive(Deserialize)]
struct Found {
    offset: serde_json::Value,
    length: serde_json::Value,
    #[serde(rename = "type")]
    kind: String,
    label: Option<String>,
}

fn number(value: &serde_json::Value) -> Option<u64> {
    let text = match value {
        serde_json::Value::Number(number) => return number.as_u64(),
        serde_json::Value::String(text) => text,
        _ => return None,
    };
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// What lies on a device, as wipefs(8) and with it libblkid find it. Nothing is written.
pub(crate) fn signatures(device: &Path) -> Result<Vec<Signature>> {
    let what = || format!("{}: signatures", device.display());
    let mut command = Command::new("wipefs");
    command
        .args(["--no-act", "--json", "--output", "OFFSET,LENGTH,TYPE,LABEL"])
        .arg(device);
    let output = match command.output() {
        Err(e) if e.kind() == ErrorKind::NotFound => bail!("wipefs is missing: install util-linux"),
        output => output.with_context(what)?,
    };
    ensure!(
        output.status.success(),
        "{}: {}",
        what(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    if output.stdout.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    parse(&output.stdout).with_context(what)
}

fn parse(json: &[u8]) -> Result<Vec<Signature>> {
    let found: Wipefs =
        serde_json::from_slice(json).context("wipefs printed what is not understood")?;
    let mut all = Vec::new();
    for Found {
        offset,
        length,
        kind,
        label,
    } in found.signatures
    {
        let place = number(&offset)
            .zip(number(&length))
            .filter(|(_, length)| (1..=4096).contains(length));
        let (offset, length) =
            place.with_context(|| format!("a signature {kind} without a place"))?;
        all.push(Signature {
            offset,
            length,
            kind,
            label,
        });
    }
    // The kernel mounts FAT without any magic bytes, if its geometry can be: not with sectors of no length.
    if let Some(fat) = all.iter().find(|s| s.kind == "vfat" && s.offset < SECTOR) {
        let label = fat.label.clone();
        all.push(Signature {
            offset: 11,
            length: 2,
            kind: "vfat".into(),
            label,
        });
    }
    // Of one that is named twice, the one that says more.
    all.sort_by_key(|s| (s.offset, s.length, s.label.is_none()));
    all.dedup_by_key(|s| (s.offset, s.length));
    Ok(all)
}

impl Signature {
    /// The sectors that it lies in.
    fn sectors(&self) -> Range<u64> {
        self.offset / SECTOR..(self.offset + self.length).div_ceil(SECTOR)
    }

    /// For a person.
    pub(crate) fn describe(&self) -> String {
        let label = self
            .label
            .as_ref()
            .map(|label| format!(" {label:?}"))
            .unwrap_or_default();
        format!("{}{label}", self.kind)
    }
}

/// Refuses a device that cannot be read where signatures lie: one would not be found now, and might be later.
pub(crate) fn must_be_readable(device: &Device) -> Result<()> {
    let file = File::open(device.path()).with_context(|| device.name.clone())?;
    // What is in the page cache says nothing of the disk.
    let _ = fadvise(&file, 0, None, Advice::DontNeed);
    let end = device.sectors * SECTOR;
    let mut block = [0; 4096];
    for at in (0..end.min(ENDS))
        .chain(end.saturating_sub(ENDS)..end)
        .step_by(block.len())
    {
        let length = block.len().min((end - at) as usize);
        if let Err(error) = file.read_exact_at(&mut block[..length], at) {
            bail!(
                "{0}: sector {1} cannot be read ({error}), and a signature may lie there: nothing was hidden. \
                 Repair the file system, or dmremap zero {0}, before",
                device.name,
                at / SECTOR
            );
        }
    }
    Ok(())
}

/// First sectors of the units that hold one of `found`.
fn units_of(device: &Device, found: &[Signature]) -> Result<BTreeSet<u64>> {
    let unit = unit_sectors(device)?;
    let sectors = found.iter().flat_map(Signature::sectors);
    Ok(sectors
        .map(|sector| sector / unit * unit)
        .filter(|sector| *sector < device.sectors)
        .collect())
}

/// Relocates the units from `units` on; refuses one that cannot be read as a whole.
fn relocate(device: &Device, units: &BTreeSet<u64>) -> Result<()> {
    for sector in units {
        let query = || Entry::parse(&device.message(&["query", &sector.to_string()])?);
        let before = query()?;
        if before.state == "relocated" {
            continue;
        }
        in_pieces(device, "remap", *sector..*sector + 1)?;
        let after = query()?;
        if after.state != "relocated" {
            // Not before, and not for good.
            if before.state == "healthy" {
                let _ = in_pieces(device, "restore", *sector..*sector + 1);
            }
            bail!(
                "{}: the unit at sector {sector} holds a signature and cannot be read as a whole: nothing was hidden. \
                 Repair the file system, or dmremap zero {} {sector}, before",
                device.name,
                device.name
            );
        }
    }
    Ok(())
}

/// What will be erased, in a file that wipefs would name so.
fn save(directory: &Path, main: &Path, offset: u64, bytes: &[u8]) -> Result<PathBuf> {
    let name = main.file_name().unwrap_or_default().to_string_lossy();
    let path = directory.join(format!("wipefs-{name}-0x{offset:08x}.bak"));
    match std::fs::read(&path) {
        Ok(there) if there == bytes => return Ok(path),
        Ok(_) => bail!(
            "{}: is there, with other content; move it away, or give --backup",
            path.display()
        ),
        Err(e) if e.kind() == ErrorKind::NotFound => (),
        Err(e) => return Err(e).with_context(|| path.display().to_string()),
    }
    whole_file::create(&path, |file| Ok(file.write_all(bytes)?))?;
    Ok(path)
}

/// Reads from and writes to main in whole sectors, past the page cache.
struct Raw {
    file: File,
    block: u64,
}

/// A buffer as direct I/O wants it.
#[repr(align(4096))]
struct Room([u8; ROOM]);

const ROOM: usize = 1 << 16;

impl Raw {
    fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::DIRECT | OFlags::DSYNC;
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .custom_flags(flags.bits() as i32);
        let file = options
            .open(path)
            .with_context(|| path.display().to_string())?;
        let block = rustix::fs::ioctl_blksszget(&file).map_or(SECTOR, u64::from);
        Ok(Self { file, block })
    }

    /// The blocks that bytes `offset..offset + length` lie in, and where in them these are.
    fn read(&self, offset: u64, length: u64) -> std::io::Result<Blocks> {
        let first = offset / self.block * self.block;
        let end = (offset + length).div_ceil(self.block) * self.block;
        let mut room = Box::new(Room([0; ROOM]));
        let blocks = room
            .0
            .get_mut(..(end - first) as usize)
            .ok_or(ErrorKind::InvalidInput)?;
        self.file.read_exact_at(blocks, first)?;
        let at = (offset - first) as usize;
        Ok(Blocks {
            room,
            first,
            length: (end - first) as usize,
            bytes: at..at + length as usize,
        })
    }

    fn write(&self, blocks: &Blocks) -> std::io::Result<()> {
        self.file
            .write_all_at(&blocks.room.0[..blocks.length], blocks.first)
    }
}

/// Whole blocks of a device, and the bytes in them that are meant.
struct Blocks {
    room: Box<Room>,
    /// Where they begin, in bytes.
    first: u64,
    length: usize,
    bytes: Range<usize>,
}

impl Blocks {
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.room.0[self.bytes.clone()]
    }
}

pub(crate) fn run(args: &Hide) -> Result<Status> {
    let device = Device::open(&args.name)?;
    ensure!(!device.readonly, "{}: opened read-only", device.name);
    must_be_readable(&device)?;
    let found = signatures(&device.path())?;
    if found.is_empty() {
        writeln!(
            stdout(),
            "{}: no signature is on it, there is nothing to hide",
            device.name
        )?;
        return Ok(Status::Done);
    }
    let main = path_of(device.main);
    for s in &found {
        writeln!(
            stdout(),
            "{}: {} at byte {:#x}",
            device.name,
            s.describe(),
            s.offset
        )?;
    }
    ui::confirm(
        &format!("Erase these on {} itself?", main.display()),
        args.yes,
    )?;
    let home = || std::env::var_os("HOME").map(PathBuf::from);
    let directory = args
        .backup
        .clone()
        .or_else(home)
        .context("no home directory; give --backup")?;
    hide(&device, &found, &main, &directory)
}

/// Hides `found`.
pub(crate) fn hide(
    device: &Device,
    found: &[Signature],
    main: &Path,
    directory: &Path,
) -> Result<Status> {
    relocate(device, &units_of(device, found)?)?;
    let raw = Raw::open(main)?;
    let start = device.line.main_start * SECTOR;
    let mut unreadable = 0;
    for s in found {
        let at = start + s.offset;
        let what = || format!("{}: byte {at:#x}", main.display());
        let mut blocks = match raw.read(at, s.length) {
            // Who cannot read it cannot find a signature there.
            Err(error) if is_bad_sector(&error) => {
                unreadable += 1;
                continue;
            }
            blocks => blocks.with_context(what)?,
        };
        if blocks.bytes().iter().all(|byte| *byte == 0) {
            continue;
        }
        let saved = save(directory, main, at, blocks.bytes())?;
        blocks.bytes().fill(0);
        raw.write(&blocks).with_context(what)?;
        writeln!(
            stdout(),
            "{}: {} erased, saved as {}",
            what(),
            s.kind,
            saved.display()
        )?;
    }
    if unreadable > 0 {
        writeln!(
            stdout(),
            "{}: {} cannot be read there anyway",
            main.display(),
            ui::count(unreadable, "signature")
        )?;
    }
    // What others read next is to be what is there.
    if let Ok(file) = File::open(main) {
        let _ = fadvise(&file, 0, None, Advice::DontNeed);
    }
    let left = signatures(main)?.into_iter();
    let end = start + device.sectors * SECTOR;
    let left: Vec<_> = left
        .filter(|s| (start..end).contains(&s.offset))
        .map(|s| s.describe())
        .collect();
    if !left.is_empty() {
        writeln!(
            stdout(),
            "{}: still shows {}",
            main.display(),
            left.join(", ")
        )?;
        return Ok(Status::Damaged);
    }
    writeln!(
        stdout(),
        "{}: shows no signature any more; {} is whole",
        main.display(),
        device.path().display()
    )?;
    Ok(Status::Done)
}

fn is_bad_sector(error: &std::io::Error) -> bool {
    let code = error
        .raw_os_error()
        .map(rustix::io::Errno::from_raw_os_error);
    matches!(
        code,
        Some(rustix::io::Errno::IO | rustix::io::Errno::NODATA | rustix::io::Errno::REMOTEIO)
    )
}

pub(crate) fn unhide(args: &Unhide) -> Result<Status> {
    let device = Device::open(&args.name)?;
    let found = signatures(&device.path())?;
    let mut stay = 0;
    for sector in units_of(&device, &found)? {
        let answer = in_pieces(&device, "restore", sector..sector + 1)?;
        stay += answer.numbers().get(1).copied().unwrap_or(0);
    }
    if let Ok(file) = File::open(path_of(device.main)) {
        let _ = fadvise(&file, 0, None, Advice::DontNeed);
    }
    if stay > 0 {
        writeln!(
            stdout(),
            "{}: {} stay on the spare, as main cannot hold them",
            device.name,
            ui::count(stay, "unit")
        )?;
        return Ok(Status::Damaged);
    }
    writeln!(
        stdout(),
        "{}: has its signatures again",
        path_of(device.main).display()
    )?;
    Ok(Status::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wipefs_prints_is_understood() {
        let json = br#"{"signatures": [
            {"offset":"0x438", "length":"2", "type":"ext4", "label":"home", "uuid":"f0"},
            {"offset":"0x438", "length":2, "type":"ext4", "label":null, "uuid":null},
            {"offset":"0x1fe", "length":2, "type":"PMBR", "label":null, "uuid":null}]}"#;
        let found = parse(json).unwrap();
        let places: Vec<_> = found
            .iter()
            .map(|s| (s.offset, s.length, s.sectors()))
            .collect();
        assert_eq!(places, [(0x1fe, 2, 0..1), (0x438, 2, 2..3)]);
        assert_eq!(found[1].describe(), "ext4 \"home\"");
        let fat =
            br#"{"signatures": [{"offset":"0x36", "length":"8", "type":"vfat", "label":null}]}"#;
        let places: Vec<u64> = parse(fat).unwrap().iter().map(|s| s.offset).collect();
        assert_eq!(places, [11, 0x36]);
        for json in [
            &b"{}"[..],
            b"[]",
            br#"{"signatures":[{"offset":"x","length":"2","type":"a"}]}"#,
        ] {
            assert!(parse(json).is_err());
        }
    }
}
