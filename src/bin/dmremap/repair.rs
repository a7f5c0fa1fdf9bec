// SPDX-License-Identifier: GPL-2.0

//! `dmremap check` and `dmremap repair`.

use crate::cli::{Check, Repair};
use crate::dump::uuid;
use crate::image::{crc32c, must_not_be_read_only, superblock_at, table_at, Image, Mend};
use crate::region::{Access, Region};
use crate::{import::now, ui, Status};
use anyhow::{bail, ensure, Context as _, Result};
use dm_remap::engine::format::{number_superblock, Block, Superblock};
use dm_remap::engine::geometry::BLOCK_SIZE;
use dm_remap::engine::image::{Finding, Severity, Standing};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{stdout, BufReader, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// What the findings of an image come to.
pub(crate) fn status_of(image: &Image) -> Status {
    match image.severity() {
        None => Status::Done,
        Some(Severity::Mendable) => Status::Damaged,
        Some(Severity::Fatal) => Status::Unusable,
    }
}

pub(crate) fn check(args: &Check) -> Result<Status> {
    let mut region = Region::open(&args.spare, Access::Read)?;
    let image = Image::read(&mut region)?;
    report(&region.name, &image)
}

/// Prints the findings and the verdict.
pub(crate) fn report(name: &str, image: &Image) -> Result<Status> {
    let mut out = BufWriter::new(stdout().lock());
    for finding in &image.findings {
        writeln!(out, "{finding}")?;
    }
    out.flush()?;
    drop(out);
    let status = status_of(image);
    let count = |severity| {
        let findings = image.findings.iter();
        findings.filter(|f| f.severity() == severity).count()
    };
    let blocks = 2 + image.geometry().table_blocks * u64::from(image.geometry().copies);
    let held = format!(
        "{blocks} blocks, {} entries, {} bad slots",
        image.entries.len(),
        image.bad.len()
    );
    let text = match status {
        Status::Unusable => format!("UNUSABLE, {} reasons above", count(Severity::Fatal)),
        Status::Damaged => format!(
            "usable; {} copies can be repaired",
            count(Severity::Mendable)
        ),
        _ => "sound".into(),
    };
    ui::verdict(status, &format!("{name}: {text} ({held})"))?;
    Ok(status)
}

/// The table block, or `None` the superblock, of which there are two versions of one generation.
fn disputed(finding: &Finding) -> Option<Option<u64>> {
    match finding {
        Finding::Superblock { standing, .. } if *standing == Standing::Differs => Some(None),
        Finding::Replica {
            block, standing, ..
        } if *standing == Standing::Differs => Some(Some(*block)),
        _ => None,
    }
}

/// Has copy `copy` replace the others of each block of which there are two versions of one generation.
fn prefer(image: &mut Image, copy: usize) -> Result<()> {
    let g = *image.geometry();
    let blocks: BTreeSet<_> = image.findings.iter().filter_map(disputed).collect();
    for block in blocks {
        let copies = block.map_or(2, |_| g.areas().len());
        let at = |copy: usize| match block {
            None => superblock_at(&g, copy as u64),
            Some(number) => table_at(&g, copy, number),
        };
        let from = at(copy.min(copies - 1));
        // It is not damaged or stale itself.
        let is_good = !image.mends.iter().any(|mend| mend.to == from);
        ensure!(
            copy < copies && is_good,
            "{}: copy {copy} is not one of the versions",
            block.map_or("superblock".into(), |n| format!("table block {n}"))
        );
        let others = (0..copies).filter(|other| *other != copy);
        image
            .mends
            .retain(|mend| !(0..copies).any(|copy| mend.to == at(copy)));
        image.mends.extend(others.map(|other| Mend {
            superblock: block.is_none().then_some(other as u64),
            from,
            to: at(other),
        }));
    }
    Ok(())
}

pub(crate) fn run(args: &Repair) -> Result<Status> {
    let mut region = Region::open(&args.spare, Access::Write)?;
    if let Some(backup) = &args.undo {
        return undo(&region, backup, args.yes);
    }
    let mut image = Image::read(&mut region)?;
    must_not_be_read_only(&image.found, &region)?;
    if let Some(copy) = args.prefer {
        prefer(&mut image, copy)?;
    }
    if image.mends.is_empty() {
        return report(&region.name, &image);
    }
    for finding in &image.findings {
        if finding.severity() == Severity::Mendable || disputed(finding).is_some() {
            writeln!(stdout(), "{finding}")?;
        }
    }
    ui::confirm(&format!("Rewrite {} blocks?", image.mends.len()), args.yes)?;
    let name = format!(
        "dmremap-{}-{}.backup",
        uuid(&image.superblock().uuid),
        now()
    );
    let backup = args.backup.clone().unwrap_or_else(|| PathBuf::from(name));
    save(&region, &image.mends, &backup)
        .with_context(|| format!("{}: nothing was repaired", backup.display()))?;
    writeln!(stdout(), "what is replaced is in {}", backup.display())?;
    let bar = ui::progress("repairing", image.mends.len() as u64);
    for mend in &image.mends {
        let mut block: Block = [0; BLOCK_SIZE];
        region.read(mend.from, &mut block)?;
        if let Some(copy) = mend.superblock {
            ensure!(
                Superblock::read(&block, 1 - copy, crc32c).is_ok(),
                "{}: superblock copy {} is not what it was a moment ago",
                region.name,
                1 - copy
            );
            number_superblock(&mut block, copy, crc32c);
        }
        region.write(mend.to, &block)?;
        bar.inc(1);
    }
    region.sync()?;
    bar.finish_and_clear();
    let after = Image::read(&mut region)?;
    let left = |f: &&Finding| f.severity() == Severity::Mendable;
    if let Some(finding) = after.findings.iter().find(left) {
        bail!("{}: written, and still damaged: {finding}", region.name);
    }
    report(&region.name, &after)
}

/// First bytes of a backup file. The length of the region in blocks follows, u64; then of each
/// block that could be read its number, u64, and its bytes; at the end a CRC-32C of all before.
/// Little endian.
const MAGIC: &[u8; 16] = b"dmremap backup 1";

/// Writes a new file with the blocks that are to be replaced.
fn save(region: &Region, mends: &[Mend], path: &Path) -> Result<()> {
    let file = File::create_new(path)?;
    let mut out = BufWriter::new(&file);
    let mut crc = 0;
    let mut put = |bytes: &[u8]| {
        crc = crc32c(crc, bytes);
        out.write_all(bytes)
    };
    put(MAGIC)?;
    put(&region.blocks.to_le_bytes())?;
    for mend in mends {
        let mut block: Block = [0; BLOCK_SIZE];
        // One that cannot be read has nothing to be saved.
        if region.read(mend.to, &mut block).is_ok() {
            put(&mend.to.to_le_bytes())?;
            put(&block)?;
        }
    }
    out.write_all(&crc.to_le_bytes())?;
    out.flush()?;
    drop(out);
    file.sync_all()?;
    Ok(())
}

/// The length of the region that a backup was taken from, and its blocks.
fn load(path: &Path) -> Result<(u64, Vec<(u64, Block)>)> {
    let mut bytes = Vec::new();
    BufReader::new(File::open(path)?).read_to_end(&mut bytes)?;
    let (rest, crc) = bytes.split_last_chunk::<4>().context("too short")?;
    ensure!(rest.starts_with(MAGIC), "not a backup of dmremap");
    ensure!(
        crc32c(0, rest) == u32::from_le_bytes(*crc),
        "incomplete or damaged"
    );
    let (length, rest) = rest[MAGIC.len()..]
        .split_first_chunk()
        .context("too short")?;
    let mut blocks = Vec::new();
    for item in rest.chunks(8 + BLOCK_SIZE) {
        let (number, bytes) = item.split_first_chunk().context("incomplete")?;
        let block = bytes.try_into().context("incomplete")?;
        blocks.push((u64::from_le_bytes(*number), block));
    }
    Ok((u64::from_le_bytes(*length), blocks))
}

fn undo(region: &Region, backup: &Path, yes: bool) -> Result<Status> {
    let name = backup.display();
    let (length, blocks) = load(backup).with_context(|| name.to_string())?;
    ensure!(
        length <= region.blocks && blocks.iter().all(|(number, _)| *number < length),
        "{name}: taken from a region of {length} blocks, and {} has {}",
        region.name,
        region.blocks
    );
    ui::confirm(&format!("Put back {} blocks?", blocks.len()), yes)?;
    for (number, block) in &blocks {
        region.write(*number, block)?;
    }
    region.sync()?;
    writeln!(stdout(), "{} blocks put back", blocks.len())?;
    Ok(Status::Done)
}
