// SPDX-License-Identifier: GPL-2.0

//! `dmremap check` and `dmremap repair`.

use crate::cli::{Check, Repair};
use crate::dm::Device;
use crate::dump::uuid;
use crate::image::{crc32c, must_not_be_read_only, superblock_at, table_at, Image, Mend};
use crate::json::Document;
use crate::output::{stdout, though_unread};
use crate::region::{Access, Region};
use crate::{active, backup, change, import::now, main_device, search, ui, Status};
use anyhow::{bail, ensure, Context as _, Result};
use dm_remap::engine::entries::Loss;
use dm_remap::engine::format::{number_superblock, Block, Cause, State, Superblock, Update};
use dm_remap::engine::geometry::BLOCK_SIZE;
use dm_remap::engine::image::{Finding, Severity, Standing};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;

/// What the findings of an image come to.
pub(crate) fn status_of(image: &Image) -> Status {
    match image.severity() {
        None => Status::Done,
        Some(Severity::Mendable) => Status::Damaged,
        Some(Severity::Fatal) => Status::Unusable,
    }
}

pub(crate) fn check(args: &Check) -> Result<Status> {
    if let Some(device) = Device::named(&args.spare.spare)? {
        return active::check(&device, args.json);
    }
    let mut region = Region::open(&args.spare, Access::Read)?;
    let mut document = Document::new(&args.spare, &region);
    let image = match Image::read(&mut region) {
        Err(error) if args.json => return document.refused(error, "superblock-unusable"),
        Err(why) => return Err(search::elsewhere(region, &args.spare, false, why)?),
        Ok(image) => image,
    };
    let right = main_device::must_be(image.superblock(), &args.main, &region.name);
    if args.json {
        document.image(&image);
        return match right {
            Err(error) => document.refused(error, "another-main"),
            Ok(()) => document.print(stdout()),
        };
    }
    right?;
    report(&region.name, &image)
}

/// Prints the findings and the verdict.
pub(crate) fn report(name: &str, image: &Image) -> Result<Status> {
    let mut out = BufWriter::new(stdout());
    for finding in &image.findings {
        writeln!(out, "{finding}")?;
    }
    for advice in [versions(image), unknown(image)].into_iter().flatten() {
        writeln!(out, "{advice}")?;
    }
    out.flush()?;
    drop(out);
    let status = status_of(image);
    let fatal = |f: &&Finding| f.severity() == Severity::Fatal;
    let fatal = image.findings.iter().filter(fatal).count();
    let blocks = 2 + image.in_use * u64::from(image.geometry().copies);
    let held = format!(
        "{}, {}, {}",
        ui::count(blocks, "block"),
        ui::count(image.entries.len() as u64, "entry"),
        ui::count(image.bad.len() as u64, "bad slot")
    );
    let text = match status {
        Status::Unusable => format!("UNUSABLE, {} above", ui::count(fatal as u64, "reason")),
        Status::Damaged => format!("usable; {} can be repaired", mendable(image)),
        _ => "sound".into(),
    };
    though_unread(ui::verdict(status, &format!("{name}: {text} ({held})")))?;
    Ok(status)
}

/// How many things can be repaired, in words.
fn mendable(image: &Image) -> String {
    let records = image.replaced.len() as u64;
    let copies = image.findings.len() as u64 - records;
    let copies = (copies > 0).then(|| ui::count(copies, "copy"));
    let records = (records > 0).then(|| ui::count(records, "record"));
    let both: Vec<String> = copies.into_iter().chain(records).collect();
    both.join(" and ")
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

/// The blocks of which there are two versions of one generation, as [`disputed`] has them.
fn all_disputed(image: &Image) -> BTreeSet<Option<u64>> {
    image.findings.iter().filter_map(disputed).collect()
}

/// Where the copies of a block are, as [`disputed`] has it.
fn copies_of(image: &Image, block: Option<u64>) -> Vec<u64> {
    let g = image.geometry();
    match block {
        None => [0, 1].map(|copy| superblock_at(g, copy)).into(),
        Some(number) => (0..g.areas().len())
            .map(|copy| table_at(g, copy, number))
            .collect(),
    }
}

/// Whether copy `copy` of those at `copies` is neither damaged nor stale.
fn is_version(image: &Image, copies: &[u64], copy: usize) -> bool {
    let at = copies.get(copy);
    at.is_some_and(|at| !image.mends.iter().any(|mend| mend.to == *at))
}

/// What to do about blocks of which there are two versions of one generation.
fn versions(image: &Image) -> Option<String> {
    let blocks = all_disputed(image);
    let of_all = |copy: &usize| {
        let mut blocks = blocks.iter().map(|block| copies_of(image, *block));
        blocks.all(|copies| is_version(image, &copies, *copy))
    };
    let choice = (0..image.geometry().areas().len()).filter(of_all);
    let choice: Vec<String> = choice.map(|copy| format!("--prefer {copy}")).collect();
    if blocks.is_empty() {
        return None;
    }
    let advice = match choice.is_empty() {
        true => "no copy is valid of all these blocks, so this cannot be repaired".into(),
        false => format!(
            "only you can tell which are right: give dmremap repair {}",
            choice.join(" or ")
        ),
    };
    Some(format!("copies of one generation differ; {advice}"))
}

/// What to do about table blocks without a valid replica.
fn unknown(image: &Image) -> Option<String> {
    let g = image.geometry();
    let lost = |finding: &Finding| match finding {
        Finding::NoReplica { block, .. } => Some(g.slots_of(block + 1) - g.slots_of(*block)),
        _ => None,
    };
    let slots: u64 = image.findings.iter().filter_map(lost).sum();
    (slots > 0).then(|| {
        format!(
            "which sectors are in {slots} slots is unknown. That is not repaired: with empty blocks in their place, main would \
             answer for these sectors with older data. dmremap dump shows all other entries"
        )
    })
}

/// Has copy `copy` replace the others of each block of which there are two versions of one generation.
fn prefer(image: &mut Image, copy: usize) -> Result<()> {
    for block in all_disputed(image) {
        let copies = copies_of(image, block);
        ensure!(
            is_version(image, &copies, copy),
            "{}: copy {copy} is not one of the versions",
            block.map_or("superblock".into(), |n| format!("table block {n}"))
        );
        image.mends.retain(|mend| !copies.contains(&mend.to));
        let others = (0..).zip(&copies).filter(|(_, at)| **at != copies[copy]);
        image.mends.extend(others.map(|(other, at)| Mend {
            superblock: block.is_none().then_some(other),
            from: copies[copy],
            to: *at,
        }));
    }
    Ok(())
}

pub(crate) fn run(args: &Repair) -> Result<Status> {
    let mut region = Region::open(&args.spare, Access::Write)?;
    if let Some(backup) = &args.undo {
        return backup::undo(&mut region, backup, args.yes);
    }
    let mut image = match Image::read(&mut region) {
        Ok(image) => image,
        Err(why) => return Err(search::elsewhere(region, &args.spare, true, why)?),
    };
    must_not_be_read_only(&image.found, &region)?;
    if let Some(copy) = args.prefer {
        prefer(&mut image, copy)?;
    }
    // Nothing is recorded in a table that contradicts itself. With copies that were preferred it may be another table, whose
    // records are for the next repair.
    let records = if args.prefer.is_none() && status_of(&image) == Status::Damaged {
        let bad: Vec<Update> = image.replaced.iter().map(as_bad).collect();
        change::changed_blocks(&region, &image, &bad, now())?
    } else {
        Vec::new()
    };
    let mut places = places(&region, &image, &records)?;
    if places.is_empty() {
        return report(&region.name, &image);
    }
    for finding in &image.findings {
        if finding.severity() == Severity::Mendable || disputed(finding).is_some() {
            writeln!(stdout(), "{finding}")?;
        }
    }
    let blocks = ui::count(places.len() as u64, "block");
    ui::confirm(&format!("Rewrite {blocks}?"), args.yes)?;
    if !records.is_empty() {
        add_successors(&region, &image, &mut places)?;
    }
    let name = format!(
        "dmremap-{}-{}.backup",
        uuid(&image.superblock().uuid),
        now()
    );
    let backup = args.backup.clone().unwrap_or_else(|| PathBuf::from(name));
    backup::save(&region, image.superblock(), &places, &backup)
        .with_context(|| format!("{}: nothing was repaired", backup.display()))?;
    writeln!(stdout(), "what is replaced is in {}", backup.display())?;
    let bar = ui::progress("repairing", image.mends.len() as u64);
    for mend in &image.mends {
        region.write(mend.to, &mended(&region, mend)?)?;
        bar.inc(1);
    }
    region.sync()?;
    bar.finish_and_clear();
    let after = reread(&mut region, |f| matches!(f, Finding::Replaced { .. }))?;
    if records.is_empty() {
        return report(&region.name, &after);
    }
    change::write(&region, &after, &records)?;
    let after = reread(&mut region, |_| false)?;
    report(&region.name, &after)
}

/// What belongs where `mend` says.
fn mended(region: &Region, mend: &Mend) -> Result<Block> {
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
    Ok(block)
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

/// The blocks that are to be rewritten, those of the table that get `records` included, with the CRC-32Cs of what they become
/// first and in the end.
fn places(
    region: &Region,
    image: &Image,
    records: &[(u64, Box<Block>)],
) -> Result<BTreeMap<u64, [u32; 2]>> {
    let mut places = BTreeMap::new();
    for mend in &image.mends {
        places.insert(mend.to, [crc32c(0, &mended(region, mend)?); 2]);
    }
    for (number, block) in records {
        for at in copies_of(image, Some(*number)) {
            add_as_it_is(region, &mut places, at)?[1] = crc32c(0, &block[..]);
        }
    }
    Ok(places)
}

/// Adds the blocks with the records of the slots that took over from those in `image.replaced`. Without them, the old records
/// must not be put back.
fn add_successors(
    region: &Region,
    image: &Image,
    places: &mut BTreeMap<u64, [u32; 2]>,
) -> Result<()> {
    for loss in &image.replaced {
        let at = image.entries.binary_search_by_key(&loss.unit, |e| e.unit);
        let Some(entry) = at.ok().and_then(|at| image.entries.get(at)) else {
            continue;
        };
        let (number, _) = image.geometry().record_of(entry.slot);
        for at in copies_of(image, Some(number)) {
            add_as_it_is(region, places, at)?;
        }
    }
    Ok(())
}

/// Adds block `at`, which becomes what it is, unless it is there.
fn add_as_it_is<'a>(
    region: &Region,
    places: &'a mut BTreeMap<u64, [u32; 2]>,
    at: u64,
) -> Result<&'a mut [u32; 2]> {
    Ok(match places.entry(at) {
        Entry::Occupied(place) => place.into_mut(),
        Entry::Vacant(place) => {
            let mut block: Block = [0; BLOCK_SIZE];
            region.read(at, &mut block)?;
            place.insert([crc32c(0, &block); 2])
        }
    })
}
