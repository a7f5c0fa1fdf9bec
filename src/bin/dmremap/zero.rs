// SPDX-License-Identifier: GPL-2.0

//! `dmremap zero`: zeroes where nobody can read.

use crate::active::unit_sectors;
use crate::device_cli::Zero;
use crate::dm::Device;
use crate::unreadable::{look, query, By, Direct, State, Witnesses};
use crate::{files, ui, Status};
use anyhow::{ensure, Context as _, Result};
use dm_remap::engine::args::PendingReads;
use indicatif::ProgressBar;
use std::io::{stdout, Write as _};
use std::ops::Range;

/// Lines about whose the sectors are, at most.
const LINES: usize = 20;

/// Says whose these sectors are. That it cannot be said is no reason to write no zeroes.
fn tell_whose(device: &Device, bad: &[(Range<u64>, State)]) -> Result<()> {
    let report = match files::whose(device, bad) {
        Ok(report) => report,
        Err(error) => {
            ui::warning(&format!("whose they are cannot be said: {error:#}"));
            return Ok(());
        }
    };
    let lines = report.lines();
    for line in lines.iter().take(LINES) {
        writeln!(stdout(), "  {line}")?;
    }
    if let Some(more) = lines.len().checked_sub(LINES).filter(|more| *more > 0) {
        let more = ui::count(more as u64, "line");
        writeln!(stdout(), "  and {more} more: dmremap files {}", device.name)?;
    }
    Ok(())
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
    let direct = Direct::open(&device, true)?;
    // What was restored to a file may be in memory only; until it is written, the sectors are as bad as before.
    files::flush(&device);
    let block = direct.block;
    let within = from / block * block..to.next_multiple_of(block);
    let mut bad = Vec::new();
    look(
        &device,
        &within,
        &By::Reading(&direct, block),
        &mut |sectors, state| {
            if state.is_bad() {
                bad.push((sectors, state));
            }
        },
    )?;
    let mut blocks: Vec<u64> = bad
        .iter()
        .flat_map(|(range, _)| (range.start / block * block..range.end).step_by(block as usize))
        .collect();
    blocks.dedup();
    let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else {
        writeln!(
            stdout(),
            "{}: all that is pending or lost can be read",
            device.name
        )?;
        return Ok(Status::Done);
    };
    let sectors = blocks.len() as u64 * block;
    writeln!(
        stdout(),
        "{}: {} cannot be read, the first at sector {first}, the last at {}",
        device.name,
        ui::count(sectors, "sector"),
        last + block - 1
    )?;
    tell_whose(&device, &bad)?;
    ui::confirm(
        "Write zeroes there? What they held is lost for good. (Copy the files first, if they can be read: they may still be in \
         memory.)",
        args.yes,
    )?;
    let bar = ui::slow_progress("writing zeroes", blocks.len() as u64);
    let mut done = Done::default();
    let result = write(&device, &direct, &blocks, &mut done, &bar);
    direct.flush()?;
    bar.finish_and_clear();
    for (count, what) in [
        (done.readable, "kept what can be read by now"),
        (
            done.changed,
            "left alone what was written or moved meanwhile",
        ),
        (
            done.remembered,
            "kept what was still in memory, and wrote that",
        ),
    ] {
        if count > 0 {
            writeln!(
                stdout(),
                "{}: {what}: {}",
                device.name,
                ui::count(count, "sector")
            )?;
        }
    }
    writeln!(
        stdout(),
        "{}: {} are zeroes now",
        device.name,
        ui::count(done.zeroed, "sector")
    )?;
    result?;
    ensure!(
        done.failed == 0,
        "{}: {} could not be written",
        device.name,
        ui::count(done.failed, "sector")
    );
    Ok(Status::Done)
}

/// Sectors, by what was done.
#[derive(Default)]
struct Done {
    zeroed: u64,
    /// They could be read.
    readable: u64,
    /// Somebody else wrote them.
    changed: u64,
    /// The page cache had them.
    remembered: u64,
    failed: u64,
}

/// Writes to each of `blocks` that still cannot be read. An error if it cannot be known that the disk says so.
fn write(
    device: &Device,
    direct: &Direct,
    blocks: &[u64],
    done: &mut Done,
    bar: &ProgressBar,
) -> Result<()> {
    let unit = unit_sectors(device)?;
    let witnesses = Witnesses::of(device, direct)?;
    // What is bad together is read once: a command that fails takes a disk seconds. Nothing is larger than a unit.
    let together = direct.physical.min(unit).max(direct.block);
    for group in blocks.chunk_by(|a, b| a / together == b / together) {
        let sectors = group[0]..group[group.len() - 1] + direct.block;
        let count = group.len() as u64 * direct.block;
        bar.inc(group.len() as u64);
        // What is written from here on shows in the unit's mask; what was written before can be read.
        let before = query(device, sectors.start)?;
        if direct.can_read(sectors.clone())? {
            done.readable += count;
            continue;
        }
        witnesses.must_vouch(sectors.start)?;
        let remembered: Vec<Option<Vec<u8>>> =
            group.iter().map(|at| direct.in_memory(*at)).collect();
        let after = query(device, sectors.start)?;
        if after.state == "healthy" || (before.bits(), before.slot) != (after.bits(), after.slot) {
            done.changed += count;
            continue;
        }
        for (at, bytes) in group.iter().zip(remembered) {
            let (written, to) = match bytes {
                Some(bytes) => (direct.write(*at, &bytes), &mut done.remembered),
                None => (direct.zero(*at), &mut done.zeroed),
            };
            match written {
                Ok(()) => *to += direct.block,
                Err(_) => done.failed += direct.block,
            }
        }
    }
    Ok(())
}
