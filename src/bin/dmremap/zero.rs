// SPDX-License-Identifier: GPL-2.0

//! `dmremap zero`: zeroes where nobody can read.

use crate::active::{entries, unit_sectors};
use crate::device_cli::Zero;
use crate::dm::Device;
use crate::{ui, Status};
use anyhow::{ensure, Context as _, Result};
use dm_remap::engine::args::PendingReads;
use rustix::fs::{ioctl_blksszget, OFlags};
use std::fs::{File, OpenOptions};
use std::io::{stdout, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

const SECTOR: u64 = 512;

/// A buffer as direct I/O wants it.
#[repr(align(4096))]
struct Block([u8; 4096]);

/// The mapped device, past the page cache.
struct Direct {
    file: File,
    /// Bytes that are read and written together.
    block: u64,
}

impl Direct {
    fn open(device: &Device) -> Result<Self> {
        let path = device.path();
        let flags = OFlags::DIRECT.bits() as i32;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(&path);
        let file = file.with_context(|| path.display().to_string())?;
        let block = ioctl_blksszget(&file).map_or(SECTOR, u64::from);
        ensure!(block <= 4096, "{}: blocks of {block} bytes", path.display());
        Ok(Self { file, block })
    }

    fn is_readable(&self, at: u64) -> bool {
        let mut room = Block([0; 4096]);
        self.file
            .read_exact_at(&mut room.0[..self.block as usize], at)
            .is_ok()
    }

    fn zero(&self, at: u64) -> std::io::Result<()> {
        let room = Block([0; 4096]);
        self.file.write_all_at(&room.0[..self.block as usize], at)
    }
}

pub(crate) fn run(args: &Zero) -> Result<Status> {
    let device = Device::open(&args.name)?;
    ensure!(!device.readonly, "{}: opened read-only", device.name);
    let from = args.sector.unwrap_or(0);
    let to = args
        .count
        .map_or(Some(device.sectors), |count| from.checked_add(count));
    let to = to.filter(|to| from < *to && *to <= device.sectors);
    let to = to.with_context(|| {
        format!(
            "{} has {}, and no such range",
            device.name,
            ui::size(device.sectors)
        )
    })?;
    let are_units_whole = device.line.features.pending_reads == Some(PendingReads::Fail);
    ensure!(
        !are_units_whole || args.whole_units,
        "{0}: pending_reads is fail, so healthy sectors next to bad ones cannot be read either, and would be zeroes: \
         dmremap set {0} pending_reads retry, or give --whole-units",
        device.name
    );
    let unit = unit_sectors(&device)?;
    let direct = Direct::open(&device)?;
    let mut blocks = Vec::new();
    entries(&device, from, &mut |_, entry| {
        // Sectors that the slot holds can be read.
        let all = unit.min(device.sectors - entry.sector);
        let step = direct.block / SECTOR;
        for sector in (entry.sector..entry.sector + all).step_by(step as usize) {
            let is_wanted = sector + step > from && sector < to;
            let mask = ((1_u128 << step) - 1) << (sector - entry.sector);
            let is_held = u128::from(entry.bits()) & mask == mask;
            if is_wanted && !is_held && !direct.is_readable(sector * SECTOR) {
                blocks.push(sector * SECTOR);
            }
        }
        Ok(entry.sector + unit < to)
    })?;
    if blocks.is_empty() {
        writeln!(
            stdout(),
            "{}: all that is pending or lost can be read",
            device.name
        )?;
        return Ok(Status::Done);
    }
    let sectors = blocks.len() as u64 * direct.block / SECTOR;
    writeln!(
        stdout(),
        "{}: {} cannot be read, the first at sector {}, the last at {}",
        device.name,
        ui::count(sectors, "sector"),
        blocks[0] / SECTOR,
        (blocks[blocks.len() - 1] + direct.block) / SECTOR - 1
    )?;
    ui::confirm(
        "Write zeroes there? What they held is lost for good.",
        args.yes,
    )?;
    let bar = ui::progress("writing zeroes", blocks.len() as u64);
    let mut failed = 0_u64;
    for at in &blocks {
        failed += u64::from(direct.zero(*at).is_err());
        bar.inc(1);
    }
    direct.file.sync_all().context("cannot flush")?;
    bar.finish_and_clear();
    let written = sectors - failed * direct.block / SECTOR;
    writeln!(
        stdout(),
        "{}: {} are zeroes now",
        device.name,
        ui::count(written, "sector")
    )?;
    ensure!(
        failed == 0,
        "{}: {} could not be written",
        device.name,
        ui::count(sectors - written, "sector")
    );
    Ok(Status::Done)
}
