// SPDX-License-Identifier: GPL-2.0

//! `dmremap format`: how large a spare should be, and a new one.

use crate::cli::Format;
use crate::dump::{time, uuid};
use crate::image::{crc32c, probe, superblock_at, Image};
use crate::label::{decode, encode};
use crate::main_device::identity;
use crate::output::stdout;
use crate::region::{measure, Access, Region};
use crate::search;
use crate::{change, import::now, ui, Status};
use anyhow::{bail, ensure, Context as _, Result};
use dm_remap::engine::format::{is_blank, is_unused_table, Block, Superblock};
use dm_remap::engine::geometry::{Geometry, BLOCK_SECTORS, BLOCK_SIZE, MAX_UNIT_SECTORS};
use dm_remap::engine::identity::Identity;
use dm_remap::engine::image::{text, Finding, Found, Severity, Standing, NOT_BLANK};
use std::io::Write as _;
use std::ops::Range;
use std::path::Path;

/// Bytes at each end of a region that must be zero.
const END: usize = 1 << 20;

/// What may be at the start of a device: where, which bytes, what.
const SIGNATURES: &[(usize, &[u8], &str)] = &[
    (0, b"RMAPSUPR", "a damaged spare of dm-remap"),
    (4096, b"RMAPTABL", "the table of a spare of dm-remap"),
    (0, b"XFSB", "an XFS file system"),
    (1080, b"\x53\xef", "an ext2, ext3 or ext4 file system"),
    (1024, b"\x10\x20\xf5\xf2", "an F2FS file system"),
    (65600, b"_BHRfS_M", "a btrfs file system"),
    (3, b"NTFS    ", "an NTFS file system"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (512, b"LABELONE", "an LVM physical volume"),
    (4096, b"\xfc\x4e\x2b\xa9", "a member of an md array"),
    (0, b"\xfc\x4e\x2b\xa9", "a member of an md array"),
    (4086, b"SWAPSPACE2", "swap space"),
    (512, b"EFI PART", "a GUID partition table"),
    (510, b"\x55\xaa", "a boot sector or partition table"),
];

/// What the metadata is to be like.
struct Wish {
    main_sectors: u64,
    unit_sectors: u32,
    copies: u32,
}

impl Wish {
    fn plan(&self, blocks: u64) -> Result<Geometry> {
        let sectors = blocks.saturating_mul(BLOCK_SECTORS);
        Geometry::plan(self.main_sectors, sectors, self.unit_sectors, self.copies)
            .map_err(|why| anyhow::anyhow!(text(why)))
    }

    /// Units of main.
    fn units(&self) -> u64 {
        self.main_sectors.div_ceil(self.unit_sectors.into())
    }

    /// Units in a share of main in percent, rounded up.
    fn share(&self, percent: f64) -> u64 {
        (self.units() as f64 * percent / 100.0).ceil() as u64
    }

    /// The layout with the fewest blocks that has `slots` slots to give out.
    fn smallest(&self, slots: u64) -> Result<Geometry> {
        let suffices = |blocks: u64| self.plan(blocks).is_ok_and(|g| g.usable_slots() >= slots);
        let mut high = 5;
        while !suffices(high) {
            high *= 2;
            ensure!(
                high < 1 << 40,
                "--slots {slots}: more than a spare can have"
            );
        }
        let mut low = high / 2;
        while low < high {
            let middle = low + (high - low) / 2;
            if suffices(middle) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        self.plan(high)
    }
}

/// A share for a person.
fn percent(part: u64, all: u64) -> String {
    format!("{:.3} %", 100.0 * part as f64 / all.max(1) as f64)
}

fn advise(args: &Format, wish: &Wish) -> Result<Status> {
    writeln!(
        stdout(),
        "main: {}, {} of {}",
        ui::size(wish.main_sectors),
        ui::count(wish.units(), "unit"),
        ui::size(wish.unit_sectors.into())
    )?;
    let wanted = match (args.slots, args.share) {
        (Some(slots), _) => vec![slots],
        (_, Some(share)) => vec![wish.share(share)],
        _ => [0.01, 0.1, 0.5, 1.0, 5.0]
            .iter()
            .map(|share| wish.share(*share))
            .collect(),
    };
    for slots in wanted {
        let g = wish.smallest(slots)?;
        writeln!(
            stdout(),
            "{}, {} of main: spare of {}",
            ui::count(slots, "slot"),
            percent(slots, wish.units()),
            ui::size(g.spare_sectors)
        )?;
    }
    if args.slots.is_none() && args.share.is_none() {
        writeln!(
            stdout(),
            "A disk that loses more than 1 % of its sectors is about to fail as a whole."
        )?;
    }
    Ok(Status::Done)
}

/// What is on the region, and whether it may go without being asked: it is blank, or what an interrupted format left.
fn contents(region: &mut Region) -> Result<(String, bool)> {
    if is_interrupted_format(region)? {
        return Ok(("an interrupted format".into(), true));
    }
    let judged = probe(region).judge();
    if judged == Ok(None) {
        return Ok(("blank".into(), true));
    }
    if let Ok(Some(found)) = judged {
        let s = &found.superblock;
        let blocks = region.blocks;
        let held = match Image::read(region) {
            Ok(image) => ui::count(image.entries.len() as u64, "entry"),
            Err(_) => "an unreadable table".into(),
        };
        region.blocks = blocks;
        let what = format!(
            "a spare of dm-remap, label {:?}, formatted {}, with {held}",
            decode(&s.label),
            time(s.created)
        );
        return Ok((what, false));
    }
    let data = data_in(region, 0..region.blocks)?;
    Ok((data.unwrap_or_else(|| text(NOT_BLANK).into()), false))
}

/// Whether the region holds nothing but what a format leaves that was interrupted: empty tables, and perhaps the second
/// superblock, which may be that of a shorter region.
fn is_interrupted_format(region: &Region) -> Result<bool> {
    let mut reader = region.reader();
    let mut block: Block = [0; BLOCK_SIZE];
    let mut is_left = false;
    for blocks in search::ends(0..region.blocks) {
        for at in blocks.clone() {
            if !reader.read(at..blocks.end, &mut block) {
                return Ok(false);
            }
            if is_blank(&block) {
                continue;
            }
            let is_unused = is_unused_table(&block, crc32c)
                || Superblock::read(&block, 1, crc32c).is_ok_and(|s| is_unused(region, at, s));
            if !is_unused {
                return Ok(false);
            }
            is_left = true;
        }
    }
    Ok(is_left)
}

/// Whether `superblock` is the second one, in block `at`, of a region that was formatted and never used.
fn is_unused(region: &Region, at: u64, superblock: Superblock) -> bool {
    if superblock.generation != 1 || superblock_at(&superblock.geometry, 1) != at {
        return false;
    }
    let standing = [Standing::Current; 2];
    let image = Image::of(
        region,
        Found {
            superblock,
            standing,
        },
    );
    let is_lost = |finding: &Finding| finding.severity() == Severity::Fatal;
    image.entries.is_empty() && image.bad.is_empty() && !image.findings.iter().any(is_lost)
}

/// What data the first and the last MiB of these blocks hold; `None`: zeroes.
pub(crate) fn data_in(region: &Region, blocks: Range<u64>) -> Result<Option<String>> {
    let count = blocks.end - blocks.start;
    let length = (count as usize).saturating_mul(BLOCK_SIZE).min(END);
    let mut first = vec![0; length];
    let mut last = vec![0; length];
    region.read(blocks.start, &mut first)?;
    region.read(blocks.end - (length / BLOCK_SIZE) as u64, &mut last)?;
    let is_there = |(at, magic, _): &&(usize, &[u8], &str)| {
        let bytes = first.get(*at..*at + magic.len());
        bytes == Some(*magic)
    };
    if let Some((at, _, what)) = SIGNATURES.iter().find(is_there) {
        return Ok(Some(format!("{what} (byte {at})")));
    }
    let ends = count * BLOCK_SIZE as u64;
    let used = first.iter().position(|b| *b != 0).map(|at| at as u64);
    let used = used.or_else(|| {
        let at = last.iter().position(|b| *b != 0)?;
        Some(ends - (length - at) as u64)
    });
    Ok(used.map(|at| format!("unknown data (byte {at} is not zero)")))
}

pub(crate) fn run(args: Format) -> Result<Status> {
    make(args, true)
}

/// Formats a spare; says at the end what it is and its table line if `tell`.
pub(crate) fn make(args: Format, tell: bool) -> Result<Status> {
    let label = encode(&args.label)?;
    let mut sizes = [1, BLOCK_SECTORS as u32];
    let mut main_sectors = args.main_sectors;
    if let Some(main) = &args.main {
        let (length, [logical, physical]) = measure(main)?;
        let rest = length.saturating_sub(args.main_start.unwrap_or_default());
        main_sectors = main_sectors.or(Some(rest));
        sizes = [logical, sizes[1].max(physical)];
    }
    let main_sectors = main_sectors.context("neither --main nor --main-sectors")?;
    ensure!(main_sectors > 0, "main has no sectors");

    let access = if args.advise {
        Access::Read
    } else {
        Access::Write
    };
    let open = |spare: &Path| Region::open_at(spare, &args.bounds, access);
    let mut region = args.spare.as_deref().map(open).transpose()?;
    if let Some(region) = &region {
        let [logical, physical] = region.block_sizes();
        sizes = [sizes[0].max(logical), sizes[1].max(physical)];
    }
    let [logical, physical] = sizes;
    let unit_sectors = args.unit_sectors.unwrap_or(physical.min(MAX_UNIT_SECTORS));
    ensure!(
        unit_sectors >= logical,
        "--unit-sectors {unit_sectors}: less than a logical block of the devices, {logical}"
    );
    let wish = Wish {
        main_sectors,
        unit_sectors,
        copies: args.metadata_copies,
    };
    // Whatever is wrong with unit and copies, without regard to sizes.
    wish.plan(1 << 24)?;
    if args.advise {
        return advise(&args, &wish);
    }
    let Some(region) = &mut region else {
        bail!("no spare given");
    };
    let wanted = match (args.slots, args.share) {
        (Some(slots), _) => Some(slots),
        (_, Some(share)) => Some(wish.share(share)),
        _ => None,
    };
    let g = match wanted {
        Some(slots) => wish.smallest(slots)?,
        None => wish
            .plan(region.blocks)
            .with_context(|| region.name.clone())?,
    };
    let blocks = g.spare_sectors / BLOCK_SECTORS;
    ensure!(
        blocks <= region.blocks,
        "{}: {}, and {} take {}",
        region.name,
        ui::size(region.blocks * BLOCK_SECTORS),
        ui::count(g.usable_slots(), "slot"),
        ui::size(g.spare_sectors)
    );

    if let Some(main) = &args.main {
        let start = args.main_start.unwrap_or_default();
        region.must_not_overlap(blocks, main, start, main_sectors)?;
    }
    let (found, is_free) = contents(region)?;
    ensure!(
        is_free || args.force,
        "{}: not blank: {found}; --force formats it, and what is on it is lost",
        region.name
    );
    writeln!(ui::notes(), "{}: {found}", region.name)?;
    writeln!(
        ui::notes(),
        "main: {}, {} of {}",
        ui::size(main_sectors),
        ui::count(wish.units(), "unit"),
        ui::size(g.unit_sectors.into())
    )?;
    writeln!(
        ui::notes(),
        "{} of {}: {} of main's {}",
        ui::count(g.usable_slots(), "slot"),
        ui::size(g.unit_sectors.into()),
        percent(g.usable_slots(), wish.units()),
        ui::count(wish.units(), "unit")
    )?;
    ui::confirm(
        &format!("Write {} copies of the metadata?", g.copies),
        args.yes,
    )?;
    if args.force {
        // A superblock of before, past the end of the new region.
        region.write(region.blocks - 1, &[0; BLOCK_SIZE])?;
    }
    let shorter = blocks < region.blocks || args.bounds.spare_sectors.is_some();
    region.truncate(blocks);
    // Where main begins is not known of a part of a device.
    let main_start = args.main_start.or(args.main_sectors.is_none().then_some(0));
    let identity = match &args.main {
        Some(main) => identity(main, main_start)?,
        None => Identity::default(),
    };
    let superblock = write(region, g, label, identity)?;
    if !tell {
        return Ok(Status::Done);
    }
    writeln!(stdout(), "uuid {}", uuid(&superblock.uuid))?;
    let main = match &args.main {
        Some(main) => match main_start {
            Some(start) => format!("{} {start}", main.display()),
            None => format!("{} <main_start>", main.display()),
        },
        None => "<main_dev> <main_start>".into(),
    };
    let start = args.bounds.spare_start;
    write!(
        stdout(),
        "table: 0 {main_sectors} remap {main} {} {start}",
        region.name
    )?;
    if shorter {
        write!(stdout(), " 2 spare_sectors {}", g.spare_sectors)?;
    }
    writeln!(stdout())?;
    Ok(Status::Done)
}

/// Writes the metadata of an empty spare. The first superblock comes last.
fn write(
    region: &Region,
    geometry: Geometry,
    label: [u8; 64],
    main: Identity,
) -> Result<Superblock> {
    let mut uuid = [0; 16];
    rustix::rand::getrandom(&mut uuid[..], rustix::rand::GetRandomFlags::empty())
        .context("no random numbers")?;
    let superblock = Superblock {
        uuid,
        generation: 1,
        read_only: false,
        geometry,
        created: now(),
        label,
        main,
    };
    // No superblock of before may lead to what is not its table any more.
    for copy in [0, 1] {
        region.write(superblock_at(&geometry, copy), &[0; BLOCK_SIZE])?;
    }
    region.sync()?;
    change::blank_blocks(region, &superblock, 0..geometry.first_part(), &mut |_| ())?;
    region.sync()?;
    for copy in [1, 0] {
        let mut block: Block = [0; BLOCK_SIZE];
        superblock.write(&mut block, copy, crc32c);
        region.write(superblock_at(&geometry, copy), &block)?;
        region.sync()?;
    }
    Ok(superblock)
}
