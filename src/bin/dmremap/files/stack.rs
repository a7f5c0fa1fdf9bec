// SPDX-License-Identifier: GPL-2.0

//! What lies on a device: sectors are followed up through partitions, loop devices, LVM and dm-crypt, to whoever uses them.

use super::Piece;
use crate::dm::{self, attribute, directory, number, number_at, path_of, Number};
use crate::mounts::{elsewhere, Mount, Tables};
use anyhow::Result;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

const SECTOR: u64 = 512;

/// Who uses some sectors of a device.
pub(super) enum User {
    /// Those first that show most of it; one at least.
    Mounted(Vec<Mount>),
    /// Where only this process and others like it see it.
    Elsewhere {
        process: String,
        at: PathBuf,
    },
    Swap,
    /// Nobody that is known, now.
    Idle,
    /// Others, as these words say, through whom sectors are not followed.
    Opaque(String),
    /// What lies on the device leaves them out. It is encrypted from this byte on, if it is.
    Outside(Option<u64>),
}

/// Told of each user and its sectors.
pub(super) type See<'a> = dyn FnMut(Number, User, Vec<Piece>) -> Result<()> + 'a;

/// A device on another one: which bytes of that are which of its own.
#[derive(Debug, PartialEq, Eq)]
struct Above {
    number: Number,
    on: Range<u64>,
    to: u64,
}

/// How a line of a mapped device's table uses the device below it that is asked about.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// Bytes of that device become bytes of the mapped device.
    Moves {
        on: Range<u64>,
        to: u64,
        is_encrypted: bool,
    },
    /// Not at all.
    Elsewhere,
    /// In a way that is not followed.
    Opaque(String),
    /// In a way that is not followed, all of it, and others use it as well.
    Beside(String),
}

impl Line {
    /// Of `0 8192 linear 8:1 2048`, for the device `below`.
    fn parse(line: &str, below: Number) -> Self {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [start, length, target, arguments @ ..] = &words[..] else {
            return Self::Elsewhere;
        };
        if !arguments.iter().any(|word| number(word) == Some(below)) {
            return Self::Elsewhere;
        }
        if *target == "snapshot" && arguments.first().and_then(|word| number(word)) == Some(below) {
            return Self::Beside("snapshot".into());
        }
        // Where in the arguments the device and the first sector on it are.
        let (device, offset) = match *target {
            "linear" => (0, Some(1)),
            "snapshot-origin" => (0, None),
            "crypt" => (3, Some(4)),
            other => return Self::Opaque(other.into()),
        };
        let bytes = |word: &str| word.parse::<u64>().ok()?.checked_mul(SECTOR);
        let parsed = || {
            let first = offset.map_or(Some(0), |at| bytes(arguments.get(at)?))?;
            let is_it = number(arguments.get(device)?) == Some(below);
            let end = first.checked_add(bytes(length)?)?;
            is_it.then_some((first..end, bytes(start)?))
        };
        match parsed() {
            Some((on, to)) => Self::Moves {
                on,
                to,
                is_encrypted: *target == "crypt",
            },
            None => Self::Opaque((*target).into()),
        }
    }
}

/// The device's children: partitions, loop devices, mapped devices. Others that lie on it, in words. Whether one encrypts.
struct Children {
    above: Vec<Above>,
    opaque: Vec<String>,
    /// Of these, those that have all of it beside the others.
    beside: Vec<String>,
    encrypted_from: Option<u64>,
}

impl Children {
    fn of(device: &Path, below: Number) -> Result<Self> {
        let mut all = Self {
            above: Vec::new(),
            opaque: Vec::new(),
            beside: Vec::new(),
            encrypted_from: None,
        };
        all.partitions(device);
        all.loops(below);
        let holders = fs::read_dir(device.join("holders"));
        for holder in holders.into_iter().flatten().flatten() {
            all.holder(&holder.path(), below)?;
        }
        Ok(all)
    }

    fn partitions(&mut self, device: &Path) {
        for inside in fs::read_dir(device).into_iter().flatten().flatten() {
            let inside = inside.path();
            let bytes = |name| Some(attribute(&inside, name)?.parse::<u64>().ok()? * SECTOR);
            if attribute(&inside, "partition").is_none() {
                continue;
            }
            let of = || {
                let (start, size) = (bytes("start")?, bytes("size")?);
                Some(Above {
                    number: number(&attribute(&inside, "dev")?)?,
                    on: start..start + size,
                    to: 0,
                })
            };
            self.above.extend(of());
        }
    }

    /// Loop devices over the device itself.
    fn loops(&mut self, below: Number) {
        let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
        for device in devices.map(|device| device.path()) {
            let of = || {
                let file = PathBuf::from(attribute(&device, "loop/backing_file")?);
                let bytes = |name| attribute(&device, name)?.parse::<u64>().ok();
                let start = bytes("loop/offset")?;
                let length = bytes("size")? * SECTOR;
                (number_at(&file) == Some(below)).then_some(Above {
                    number: number(&attribute(&device, "dev")?)?,
                    on: start..start.checked_add(length)?,
                    to: 0,
                })
            };
            self.above.extend(of());
        }
    }

    fn holder(&mut self, holder: &Path, below: Number) -> Result<()> {
        let Some(above) = attribute(holder, "dev").and_then(|dev| number(&dev)) else {
            return Ok(());
        };
        let path = path_of(above);
        let Some(name) = attribute(holder, "dm/name") else {
            let kind = attribute(holder, "md/level").map_or("", |_| ", an array of md");
            self.opaque.push(format!("{}{kind}", path.display()));
            return Ok(());
        };
        let of_kind =
            |target: &str| format!("{}, a mapped device of the kind {target}", path.display());
        for line in dm::table(&name)?.lines() {
            match Line::parse(line, below) {
                Line::Moves {
                    on,
                    to,
                    is_encrypted,
                } => {
                    if is_encrypted {
                        self.encrypted_from = Some(on.start);
                    }
                    self.above.push(Above {
                        number: above,
                        on,
                        to,
                    });
                }
                Line::Elsewhere => (),
                Line::Opaque(target) => self.opaque.push(of_kind(&target)),
                Line::Beside(target) => self.beside.push(of_kind(&target)),
            }
        }
        self.opaque.dedup();
        self.beside.dedup();
        Ok(())
    }
}

/// Gives `see` all users of the device of that number that `pieces` concern.
pub(super) fn visit(
    tables: &Tables,
    device: Number,
    pieces: Vec<Piece>,
    see: &mut See<'_>,
) -> Result<()> {
    if pieces.is_empty() {
        return Ok(());
    }
    let children = match directory(device) {
        Some(directory) => Children::of(&directory, device)?,
        None => Children::of(Path::new("/none"), device)?,
    };
    // By device: one of several pieces, as a volume may be, is looked at once.
    let mut parts_of: Vec<(Number, Vec<Piece>)> = Vec::new();
    for above in &children.above {
        let parts = pieces.iter().filter_map(|piece| piece.within(&above.on));
        let part = parts.map(|piece| Piece {
            at: piece.at.saturating_sub(above.on.start) + above.to,
            ..piece
        });
        match parts_of.iter_mut().find(|(it, _)| *it == above.number) {
            Some((_, all)) => all.extend(part),
            None => parts_of.push((above.number, part.collect())),
        }
    }
    for (number, mut parts) in parts_of {
        parts.sort_by_key(|piece| piece.at);
        visit(tables, number, parts, see)?;
    }
    if !children.beside.is_empty() {
        let who = children.beside.join(" and ");
        see(device, User::Opaque(who), pieces.clone())?;
    }
    let mounts = tables.mounts_of(device);
    if !mounts.is_empty() {
        return see(device, User::Mounted(mounts), pieces);
    }
    if tables.is_swap(device) {
        return see(device, User::Swap, pieces);
    }
    let covered = children.above.iter().map(|above| above.on.clone());
    let rest = super::outside(&pieces, covered.collect());
    if rest.is_empty() {
        return Ok(());
    }
    let user = match (children.opaque.is_empty(), children.above.is_empty()) {
        (false, _) => User::Opaque(children.opaque.join(" and ")),
        (true, false) => User::Outside(children.encrypted_from),
        (true, true) if !children.beside.is_empty() => return Ok(()),
        (true, true) => match elsewhere(device) {
            Some((process, at)) => User::Elsewhere { process, at },
            None => match btrfs(Path::new("/sys/fs/btrfs"), &path_of(device)) {
                Some(id) => User::Opaque(format!(
                    "the btrfs file system {id}, which has several devices"
                )),
                None => User::Idle,
            },
        },
    };
    see(device, user, rest)
}

/// The mounted btrfs that has the device among others: the table of mounts names only one of them.
fn btrfs(all: &Path, device: &Path) -> Option<String> {
    let real = fs::canonicalize(device).ok()?;
    let name = real.file_name()?;
    fs::read_dir(all).ok()?.flatten().find_map(|filesystem| {
        let is_in = filesystem.path().join("devices").join(name).exists();
        is_in.then(|| filesystem.file_name().to_string_lossy().into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_table_says_where_sectors_go() {
        let moves = |on: Range<u64>, to: u64, is_encrypted| Line::Moves {
            on: on.start * SECTOR..on.end * SECTOR,
            to: to * SECTOR,
            is_encrypted,
        };
        let opaque = |target: &str| Line::Opaque(target.into());
        for (line, expected) in [
            ("0 100 linear 253:0 2048", moves(2048..2148, 0, false)),
            ("100 50 linear 253:0 0", moves(0..50, 100, false)),
            ("100 50 linear 253:1 0", Line::Elsewhere),
            ("0 9 snapshot-origin 253:0", moves(0..9, 0, false)),
            (
                "0 9 snapshot 253:0 253:1 P 8",
                Line::Beside("snapshot".into()),
            ),
            ("0 9 snapshot 253:1 253:0 P 8", opaque("snapshot")),
            (
                "0 8 crypt aes-xts-plain64 :64:logon:x 0 253:0 32768 1 allow_discards",
                moves(32768..32776, 0, true),
            ),
            ("0 8 striped 2 128 253:1 0 253:0 0", opaque("striped")),
            ("0 8 thin-pool 253:2 253:0 128 0", opaque("thin-pool")),
            ("0 8 linear x 253:0", opaque("linear")),
            ("0 8 linear 253:0 x", opaque("linear")),
            ("0 18446744073709551615 linear 253:0 9", opaque("linear")),
            ("", Line::Elsewhere),
        ] {
            assert_eq!(Line::parse(line, (253, 0)), expected, "{line}");
        }
    }
}
