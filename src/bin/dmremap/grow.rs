// SPDX-License-Identifier: GPL-2.0

//! `dmremap grow`.

use crate::cli::{Bounds, Grow};
use crate::format::data_in;
use crate::image::{crc32c, must_not_be_read_only, next, probe, read_superblock, Image, Refused};
use crate::output::stdout;
use crate::region::{Access, Region};
use crate::repair::report;
use crate::search::{self, superblocks};
use crate::{ui, Status};
use anyhow::{anyhow, bail, ensure, Context as _, Result};
use dm_remap::engine::format::{read_growth, Block, Growth, Superblock, GROWING};
use dm_remap::engine::geometry::{Geometry, BLOCK_SECTORS, BLOCK_SIZE, GROWS_TOO_LITTLE};
use dm_remap::engine::grow::{finish, is_prepared, prepare, Disk};
use dm_remap::engine::image::{text, Ends, Found, Standing};
use indicatif::ProgressBar;
use std::io::Write as _;
use std::ops::Range;

struct Shown<'a> {
    region: &'a Region,
    bar: ProgressBar,
}

impl Disk for Shown<'_> {
    type Error = anyhow::Error;

    fn read(&mut self, number: u64, to: &mut Block) -> Result<()> {
        self.region.read(number, to)
    }

    fn write(&mut self, number: u64, from: &Block) -> Result<()> {
        self.bar.inc(1);
        self.region.write(number, from)
    }

    fn sync(&mut self) -> Result<()> {
        self.region.sync()
    }
}

/// The growth that was interrupted, if `ends` speak of one, and a superblock that says so.
fn unfinished(region: &Region, ends: &Ends) -> Result<Option<(Block, Growth)>> {
    if ends.judge() != Err(GROWING) {
        return Ok(None);
    }
    let blocks = match &ends.copies[0] {
        Ok(s) => s.geometry.spare_sectors / BLOCK_SECTORS,
        Err(_) => region.blocks,
    };
    let mut block = [0; BLOCK_SIZE];
    for (copy, number) in (0..).zip([0, blocks - 1]) {
        if region.read(number, &mut block).is_ok() {
            if let Some(growth) = read_growth(&block, copy, crc32c) {
                return Ok(Some((block, growth)));
            }
        }
    }
    let why = "Superblock: of a growth that is impossible".to_string();
    Err(Refused::Unusable(region.name.clone(), why).into())
}

/// The usable tables that `superblock` leads to, whatever the superblocks say together.
fn image_of(region: &Region, superblock: &Superblock) -> Result<Image> {
    let found = Found {
        superblock: superblock.clone(),
        standing: [Standing::Current; 2],
    };
    must_not_be_read_only(&found, region)?;
    Image::of(region, found).must_be_usable(region)
}

/// The layout of a region of `g` that has become `to` sectors long.
fn grown(g: &Geometry, to: u64, name: &str) -> Result<Geometry> {
    g.grown(to).map_err(|why| {
        let why = text(why);
        let enough = |sectors: &u64| g.grown(*sectors).is_ok();
        let mut lengths = (g.spare_sectors..=i64::MAX as u64).step_by(BLOCK_SECTORS as usize);
        match (why == text(GROWS_TOO_LITTLE)).then(|| lengths.find(enough)) {
            Some(Some(least)) => anyhow!("{name}: {why}: to {} at least", ui::size(least)),
            _ => anyhow!("{name}: {why}"),
        }
    })
}

/// Refuses to grow `own` into the blocks `added` if another spare is there.
fn must_not_be_another(region: &Region, added: Range<u64>, own: &Superblock) -> Result<()> {
    for blocks in search::ends(added) {
        superblocks(region, blocks, |sighting| {
            let first = sighting.first().unwrap_or(sighting.at);
            ensure!(
                sighting.superblock.uuid == own.uuid,
                "{}: another spare ({}) begins at sector {} of the region",
                region.name,
                sighting.name(),
                first * BLOCK_SECTORS
            );
            Ok(())
        })?;
    }
    Ok(())
}

pub(crate) fn run(args: &Grow) -> Result<Status> {
    let mut region = Region::open(&args.spare, Access::Write)?;
    let blocks = region.blocks;
    let ends = probe(&region);
    let mut began = None;
    let image = match (unfinished(&region, &ends)?, &ends.copies[0]) {
        (None, _) => Image::read(&mut region)?.must_be_writable(&region)?,
        // The old tables are those that count: from the beginning, to whatever length.
        (Some((_, growth)), Ok(old)) => {
            ensure!(
                growth.superblock.uuid == old.uuid,
                "{}: superblocks of different spares",
                region.name
            );
            began = Some(growth.superblock.geometry.spare_sectors);
            image_of(&region, old)?
        }
        (Some((block, growth)), Err(_)) => {
            drop(region);
            return go_on(args, block, growth);
        }
    };
    region.blocks = blocks;
    let name = &region.name;
    let (old, g) = (image.superblock(), image.geometry());
    let (from, to) = (g.spare_sectors, blocks * BLOCK_SECTORS);
    if let (Some(began), true) = (began, from == to) {
        bail!(
            "{name}: growing to {} was interrupted, and must go on: give that --spare-sectors",
            ui::size(began)
        );
    }
    if from == to {
        writeln!(ui::notes(), "{name}: has {} already", ui::size(from))?;
        return report(name, &image);
    }
    let new = grown(g, to, name)?;
    let growth = Growth {
        superblock: Superblock {
            generation: next(old.generation)?,
            geometry: new,
            ..old.clone()
        },
        from,
    };
    let mut block = [0; BLOCK_SIZE];
    region.read(blocks - 1, &mut block)?;
    let found = if began == Some(to) || is_prepared(&block, &old.uuid) {
        Some("left by a growth that was interrupted".into())
    } else {
        must_not_be_another(&region, from / BLOCK_SECTORS..blocks, old)?;
        let found = data_in(&region, from / BLOCK_SECTORS..blocks)?;
        if let Some(found) = &found {
            ensure!(
                args.force,
                "{name}: not blank from sector {from} on: {found}; --force grows it all the same, \
                 and what is there is lost"
            );
        }
        found
    };
    writeln!(
        ui::notes(),
        "{name}: {}, {}, {}",
        ui::count(g.usable_slots(), "slot"),
        ui::count(image.entries.len() as u64, "entry"),
        ui::size(from)
    )?;
    writeln!(
        ui::notes(),
        "sectors {from} to {}: {}",
        to - 1,
        found.unwrap_or_else(|| "blank".into())
    )?;
    ui::confirm(
        &format!(
            "Grow it to {}, {}?",
            ui::count(new.usable_slots(), "slot"),
            ui::size(to)
        ),
        args.yes,
    )?;
    let writes = image.in_use.max(new.first_part()) * u64::from(new.copies);
    let bar = ui::progress("writing the new table", writes);
    let mut disk = Shown {
        region: &region,
        bar,
    };
    prepare(&mut disk, old, &new, crc32c)
        .with_context(|| format!("{name}: not grown, and as before"))?;
    disk.bar.finish_and_clear();
    let block = read_superblock(&region, old, 0)?;
    complete(region, block, &growth)
}

/// Goes on with a growth whose new tables count.
fn go_on(args: &Grow, block: Block, growth: Growth) -> Result<Status> {
    let to = growth.superblock.geometry.spare_sectors;
    let said = format!(
        "growing from {} to {} was interrupted",
        ui::size(growth.from),
        ui::size(to)
    );
    let bounds = Bounds {
        spare_sectors: Some(to),
        ..args.spare.bounds
    };
    let region = Region::open_at(&args.spare.spare, &bounds, Access::Write);
    let region = region.with_context(|| said.clone())?;
    image_of(&region, &growth.superblock)?;
    writeln!(ui::notes(), "{}: {said}", region.name)?;
    ui::confirm("Go on?", args.yes)?;
    complete(region, block, &growth)
}

/// Leads the superblocks to the new tables, and says what there is then.
fn complete(mut region: Region, mut block: Block, growth: &Growth) -> Result<Status> {
    next(growth.superblock.generation)?;
    let mut disk = Shown {
        region: &region,
        bar: ProgressBar::hidden(),
    };
    finish(&mut disk, &mut block, growth, crc32c)
        .with_context(|| format!("{}: run dmremap grow again", region.name))?;
    writeln!(
        stdout(),
        "spare_sectors in the table line, if it is there: {}",
        growth.superblock.geometry.spare_sectors
    )?;
    let image = Image::read(&mut region)?;
    report(&region.name, &image)
}
