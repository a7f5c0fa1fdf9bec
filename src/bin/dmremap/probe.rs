// SPDX-License-Identifier: GPL-2.0

//! `dmremap probe`, for udev: is this a spare, or the main of a line of the table file?
//!
//! udev runs it for many devices, some of which are dying: a main is known by its names and not read; of anything else the
//! first and the last block are. Nobody else is kept from a device meanwhile, as opening it exclusively would.

use crate::boot;
use crate::dump::uuid;
use crate::image::crc32c;
use crate::label::decode;
use crate::output::stdout;
use crate::{remaptab, tag, wait, Status};
use anyhow::Result;
use clap::{Args, ValueHint};
use dm_remap::engine::format::{Block, Superblock};
use dm_remap::engine::geometry::{BLOCK_SECTORS, BLOCK_SIZE};
use rustix::fs::{fadvise, Advice, OFlags};
use std::fs::OpenOptions;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::num::NonZero;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Say for udev what a device is to dm-remap
#[derive(Args)]
#[command(hide = true)]
pub(crate) struct Probe {
    /// The device
    device: PathBuf,
    /// The table file
    #[arg(long, value_name = "FILE", default_value = "/etc/remaptab", value_hint = ValueHint::FilePath)]
    tab: PathBuf,
}

/// A superblock of a region that begins with the device: its first copy at the start, or its last at the end.
fn superblock(device: &Path) -> Option<Superblock> {
    let mut options = OpenOptions::new();
    options.read(true);
    options.custom_flags(OFlags::NONBLOCK.bits() as i32);
    let mut file = options.open(device).ok()?;
    let blocks = file.seek(SeekFrom::End(0)).ok()? / BLOCK_SIZE as u64;
    let mut block: Block = [0; BLOCK_SIZE];
    for (copy, at) in [(0, 0), (1, blocks.checked_sub(1)?)] {
        let offset = at * BLOCK_SIZE as u64;
        // Device-mapper wrote past the page cache.
        let _ = fadvise(
            &file,
            offset,
            NonZero::new(BLOCK_SIZE as u64),
            Advice::DontNeed,
        );
        if file.read_exact_at(&mut block, offset).is_err() {
            continue;
        }
        let Ok(found) = Superblock::read(&block, copy, crc32c) else {
            continue;
        };
        let own = found.geometry.spare_sectors / BLOCK_SECTORS;
        // The end of a disk is that of its last partition.
        if own == blocks || copy == 0 && own < blocks {
            return Some(found);
        }
    }
    None
}

/// Text that is safe in a property of udev, encoded as udev does it.
fn encoded(text: &str) -> String {
    let mut safe = String::new();
    for c in text.chars() {
        if c.is_ascii_alphanumeric() || "#+-.:=@_/".contains(c) || !c.is_ascii() {
            safe.push(c);
        } else {
            safe.push_str(&format!("\\x{:02x}", u32::from(c)));
        }
    }
    safe
}

pub(crate) fn run(args: &Probe) -> Result<Status> {
    // As udev has them in this moment; the links themselves are made later.
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let links = variable("DEVLINKS");
    let links: Vec<&str> = links.split_whitespace().collect();
    let is_it = |name: &str| tag::means(name, &args.device, &links);

    let text = remaptab::read(&args.tab).unwrap_or_default();
    // A line with a wrong option has a main all the same.
    let lines: Vec<[&str; 3]> = text
        .lines()
        .map(remaptab::words)
        .filter_map(|words| words.first_chunk().copied())
        .collect();
    let of_main = lines.iter().find(|[_, main, _]| is_it(main));
    let may_be_spare = of_main.is_none_or(|[_, _, spare]| is_it(spare));
    // The device that lies on a member of an array begins with the same block.
    let is_member = variable("ID_FS_USAGE") == "raid";
    let spare = match may_be_spare && !is_member {
        true => superblock(&args.device),
        false => None,
    };

    if let Some([name, ..]) = of_main {
        writeln!(stdout(), "DM_REMAP_MAIN_OF={}", encoded(name))?;
    }
    let spare = spare.map(|found| (uuid(&found.uuid), decode(&found.label)));
    if let Some((uuid, label)) = &spare {
        writeln!(stdout(), "DM_REMAP_UUID={uuid}")?;
        if !label.is_empty() {
            writeln!(stdout(), "DM_REMAP_LABEL_ENC={}", encoded(label))?;
        }
    }
    let is_of = |[name, main, other]: &&[&str; 3]| {
        let is_its_spare =
            || matches!(&spare, Some((uuid, _)) if tag::means_spare(other, uuid)) || is_it(other);
        wait::mark(name, "missing").exists() && (is_it(main) || is_its_spare())
    };
    let units: Vec<String> = lines
        .iter()
        .filter(is_of)
        .map(|[name, ..]| boot::unit(name))
        .collect();
    if !units.is_empty() {
        writeln!(stdout(), "DM_REMAP_START={}", units.join(" "))?;
    }
    match of_main.is_some() || spare.is_some() || !units.is_empty() {
        true => Ok(Status::Done),
        false => Ok(Status::Damaged),
    }
}
