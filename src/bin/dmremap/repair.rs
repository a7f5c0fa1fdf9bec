// SPDX-License-Identifier: GPL-2.0

//! `dmremap check` and `dmremap repair`.

use crate::change;
use crate::cli::{Check, Repair};
use crate::dump::uuid;
use crate::image::{crc32c, must_not_be_read_only, superblock_at, table_at, Image, Mend};
use crate::region::{Access, Region};
use crate::{import::now, main_device, ui, Status};
use anyhow::{bail, ensure, Context as _, Result};
use dm_remap::engine::entries::Loss;
use dm_remap::engine::format::{number_superblock, Block, Cause, State, Superblock, Update};
use dm_remap::engine::geometry::BLOCK_SIZE;
use dm_remap::engine::image::{Finding, Severity, Standing};
use dm_remap::engine::Slot;
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
    main_device::must_be(image.superblock(), &args.main, &region.name)?;
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
    let fatal = |f: &&Finding| f.severity() == Severity::Fatal;
    let fatal = image.findings.iter().filter(fatal).count();
    let blocks = 2 + image.in_use * u64::from(image.geometry().copies);
    let held = format!(
        "{blocks} blocks, {} entries, {} bad slots",
        image.entries.len(),
        image.bad.len()
    );
    let text = match status {
        Status::Unusable => format!("UNUSABLE, {fatal} reasons above"),
        Status::Damaged => format!("usable; {} can be repaired", mendable(image)),
        _ => "sound".into(),
    };
    ui::verdict(status, &format!("{name}: {text} ({held})"))?;
    Ok(status)
}

/// How many things can be repaired, in words.
fn mendable(image: &Image) -> String {
    let records = image.replaced.len();
    let copies = image.findings.len() - records;
    match (copies, records) {
        (copies, 0) => format!("{copies} copies"),
        (0, records) => format!("{records} records"),
        (copies, records) => format!("{copies} copies and {records} records"),
    }
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
    // Nothing is recorded in a table that contradicts itself.
    let with_records = args.prefer.is_some() || status_of(&image) == Status::Damaged;
    let places = places(&image, with_records);
    if places.is_empty() {
        return report(&region.name, &image);
    }
    for finding in &image.findings {
        if finding.severity() == Severity::Mendable || disputed(finding).is_some() {
            writeln!(stdout(), "{finding}")?;
        }
    }
    ui::confirm(&format!("Rewrite {} blocks?", places.len()), args.yes)?;
    let name = format!(
        "dmremap-{}-{}.backup",
        uuid(&image.superblock().uuid),
        now()
    );
    let backup = args.backup.clone().unwrap_or_else(|| PathBuf::from(name));
    save(&region, &places, &backup)
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
    let after = reread(&mut region, |f| matches!(f, Finding::Replaced { .. }))?;
    // With copies that were preferred it may be others than before, and those are not saved.
    let is_saved = |loss: &&Loss| record_at(&after, loss.slot).all(|at| places.contains(&at));
    let bad: Vec<Update> = after.replaced.iter().filter(is_saved).map(as_bad).collect();
    if status_of(&after) != Status::Damaged || bad.len() < after.replaced.len() {
        return report(&region.name, &after);
    }
    change::records(&region, &after, &bad, now())?;
    let after = reread(&mut region, |_| false)?;
    report(&region.name, &after)
}

/// The image after something was written: nothing is left to repair, but for what `may_be` left.
fn reread(region: &mut Region, may_be: impl Fn(&Finding) -> bool) -> Result<Image> {
    let image = Image::read(region)?;
    let left = |f: &&Finding| f.severity() == Severity::Mendable && !may_be(f);
    if let Some(finding) = image.findings.iter().find(left) {
        bail!("{}: written, and still damaged: {finding}", region.name);
    }
    Ok(image)
}

/// The record of a slot that was replaced, as it should be.
fn as_bad(loss: &Loss) -> Update {
    let Loss { unit, mask, slot } = *loss;
    Update {
        slot,
        state: State::Bad { unit, lost: mask },
        cause: Cause::Write,
    }
}

/// The replicas of the block that has the record of `slot`.
fn record_at(image: &Image, slot: Slot) -> impl Iterator<Item = u64> {
    let g = *image.geometry();
    let (number, _) = g.record_of(slot);
    (0..g.areas().len()).map(move |copy| table_at(&g, copy, number))
}

/// The blocks that are to be rewritten, those for records of slots that were replaced only if wanted.
fn places(image: &Image, with_records: bool) -> BTreeSet<u64> {
    let replaced = image.replaced.iter().filter(|_| with_records);
    let records = replaced.flat_map(|loss| record_at(image, loss.slot));
    image
        .mends
        .iter()
        .map(|mend| mend.to)
        .chain(records)
        .collect()
}

/// First bytes of a backup file. The length of the region in blocks follows, u64; then of each
/// block that could be read its number, u64, and its bytes; at the end a CRC-32C of all before.
/// Little endian.
const MAGIC: &[u8; 16] = b"dmremap backup 1";

/// Writes a new file with the blocks that are to be replaced.
fn save(region: &Region, places: &BTreeSet<u64>, path: &Path) -> Result<()> {
    let file = File::create_new(path)?;
    let mut out = BufWriter::new(&file);
    let mut crc = 0;
    let mut put = |bytes: &[u8]| {
        crc = crc32c(crc, bytes);
        out.write_all(bytes)
    };
    put(MAGIC)?;
    put(&region.blocks.to_le_bytes())?;
    for place in places {
        let mut block: Block = [0; BLOCK_SIZE];
        // One that cannot be read has nothing to be saved.
        if region.read(*place, &mut block).is_ok() {
            put(&place.to_le_bytes())?;
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
