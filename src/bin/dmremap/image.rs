// SPDX-License-Identifier: GPL-2.0

//! The metadata of a region, read as a whole and judged by the engine.

use crate::cli::Spare;
use crate::dm::Device;
use crate::region::{Access, Region};
use crate::{change, ui, Status};
use anyhow::{ensure, Context as _, Result};
use dm_remap::engine::entries::{Entry, Loss};
use dm_remap::engine::format::{Block, Fault, Origin, Record, State, Superblock, FOREIGN};
use dm_remap::engine::geometry::{Geometry, BLOCK_SECTORS, BLOCK_SIZE, MAX_COPIES};
use dm_remap::engine::image::{
    ends, in_use, read_table, settle, text, Ends, Finding, Found, Seen, Settled, Severity,
    Standing, NOT_BLANK,
};
use dm_remap::engine::slots::SlotMap;
use dm_remap::engine::{Slot, Unit};
use std::ops::Range;

/// Continues a CRC-32C; begins with 0.
pub(crate) fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, bytes)
}

/// Why a spare is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("{0}: blank, no spare of dm-remap")]
    Blank(String),
    #[error("{0}: {1}")]
    Foreign(String, &'static str),
    #[error("{0}: {1}")]
    Unusable(String, String),
    #[error("{0}: its metadata has damage that must be repaired first: dmremap repair {0}")]
    Damaged(String),
}

impl Refused {
    pub(crate) fn status(&self) -> Status {
        match self {
            Self::Blank(_) | Self::Foreign(..) => Status::NoSpare,
            Self::Unusable(..) => Status::Unusable,
            Self::Damaged(_) => Status::Damaged,
        }
    }
}

/// A slot whose medium failed.
#[derive(Clone, Copy)]
pub(crate) struct BadSlot {
    pub(crate) slot: Slot,
    pub(crate) unit: Unit,
    /// The unit's sectors that it took with it, those included that were written again since.
    pub(crate) lost: u64,
    pub(crate) origin: Origin,
}

/// A block to be written again, and where what belongs there is.
#[derive(Clone, Copy)]
pub(crate) struct Mend {
    /// The superblock's copy, if it is one.
    pub(crate) superblock: Option<u64>,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// The metadata of a region.
pub(crate) struct Image {
    pub(crate) found: Found,
    /// Table blocks in use.
    pub(crate) in_use: u64,
    pub(crate) findings: Vec<Finding>,
    /// Sorted by unit.
    pub(crate) entries: Vec<Entry>,
    pub(crate) bad: Vec<BadSlot>,
    pub(crate) slots: SlotMap<Vec<u64>>,
    pub(crate) mends: Vec<Mend>,
    /// Slots that were replaced, whose records are to say that they are bad.
    pub(crate) replaced: Vec<Loss>,
    /// Of the slots with an entry, sorted by slot.
    origins: Vec<(Slot, Origin)>,
}

/// Number of the block, from the start of the region, that is superblock copy `copy`.
pub(crate) fn superblock_at(geometry: &Geometry, copy: u64) -> u64 {
    geometry.superblock_sector(copy) / BLOCK_SECTORS
}

/// Number of the block, from the start of the region, that is replica `copy` of table block
/// `number`.
pub(crate) fn table_at(geometry: &Geometry, copy: usize, number: u64) -> u64 {
    geometry.table_sector(copy, number) / BLOCK_SECTORS
}

/// The generation after `generation`.
pub(crate) fn next(generation: u64) -> Result<u64> {
    let next = generation.checked_add(1).filter(|next| *next != u64::MAX);
    next.context("its generation is the last that there can be")
}

/// What is at the ends of the region.
pub(crate) fn probe(region: &Region) -> Ends {
    let mut reader = region.reader();
    let mut read = |blocks: Range<u64>, to: &mut Block| reader.read(blocks, to);
    ends(&mut read, region.blocks, &mut [0; BLOCK_SIZE], crc32c)
}

/// The superblock of the region, which is shortened to what it says.
pub(crate) fn open(region: &mut Region) -> Result<Found> {
    let name = || region.name.clone();
    let ends = probe(region);
    let damaged = |copy: &Result<_, Fault>| *copy != Err(Fault::Damaged(FOREIGN));
    let found = ends.judge().map_err(|why| {
        if why == NOT_BLANK || why == FOREIGN && !ends.copies.iter().any(damaged) {
            Refused::Foreign(name(), text(why))
        } else {
            Refused::Unusable(name(), text(why).to_string())
        }
    })?;
    let found = found.ok_or_else(|| Refused::Blank(name()))?;
    region.truncate(found.superblock.geometry.spare_sectors / BLOCK_SECTORS);
    Ok(found)
}

/// Copy `copy` of the superblock `judged`, to make other copies of: refused unless it is that.
pub(crate) fn read_superblock(region: &Region, judged: &Superblock, copy: u64) -> Result<Block> {
    let mut block: Block = [0; BLOCK_SIZE];
    region.read(superblock_at(&judged.geometry, copy), &mut block)?;
    ensure!(
        Superblock::read(&block, copy, crc32c).as_ref() == Ok(judged),
        "{}: superblock copy {copy} is not what it was a moment ago",
        region.name
    );
    Ok(block)
}

impl Image {
    /// Reads the superblocks and the whole table; both may have damage that is in the findings.
    pub(crate) fn read(region: &mut Region) -> Result<Self> {
        let found = open(region)?;
        Ok(Self::of(region, found))
    }

    /// Whether the table that the superblock `found` leads to has at most `blocks` blocks in use.
    pub(crate) fn is_small(region: &Region, found: &Found, blocks: u64) -> bool {
        let mut reader = region.reader();
        let mut read = |blocks: Range<u64>, to: &mut Block| reader.read(blocks, to);
        in_use(&found.superblock, &mut read, &mut [0; BLOCK_SIZE], crc32c) <= blocks
    }

    /// Reads the metadata of the spare of an active device.
    pub(crate) fn of_active(device: &Device) -> Result<(Region, Self)> {
        let mut tries = 5;
        loop {
            // A spare that takes no writes can still be read.
            let _ = device.message(&["sync"]);
            let mut region = Region::open_spare_of(device)?;
            let image = Self::read(&mut region)?;
            tries -= 1;
            // What is being written at the moment may be seen half.
            if image.findings.is_empty() || tries == 0 {
                return Ok((region, image));
            }
        }
    }

    /// Reads the metadata of a spare, or of the spare of the active device that `spare` names.
    pub(crate) fn look(spare: &Spare) -> Result<(Region, Self)> {
        if let Some(device) = Device::named(&spare.spare)? {
            return Self::of_active(&device);
        }
        let mut region = Region::open(spare, Access::Read)?;
        let image = Self::read(&mut region)?;
        Ok((region, image))
    }

    /// Reads the table that the superblock `found` leads to.
    pub(crate) fn of(region: &Region, found: Found) -> Self {
        let g = found.superblock.geometry;
        let mut image = Self {
            findings: found.findings().collect(),
            entries: Vec::new(),
            bad: Vec::new(),
            slots: SlotMap::new(Vec::new(), &g),
            in_use: 0,
            mends: Vec::new(),
            replaced: Vec::new(),
            origins: Vec::new(),
            found,
        };
        let newest = image.found.newest();
        for (copy, standing) in (0..).zip(image.found.standing) {
            if matches!(standing, Standing::Stale { .. } | Standing::Damaged(_)) {
                image.mends.push(Mend {
                    superblock: Some(copy),
                    from: superblock_at(&g, newest),
                    to: superblock_at(&g, copy),
                });
            }
        }
        let mut losses = Vec::new();
        let superblock = image.found.superblock.clone();
        let mut reader = region.reader();
        let mut read = |blocks: Range<u64>, to: &mut Block| reader.read(blocks, to);
        let mut room = [[0; BLOCK_SIZE]; MAX_COPIES as usize];
        let expected = in_use(&superblock, &mut read, &mut room[0], crc32c);
        let bar = ui::progress("reading the table", expected);
        let see = &mut |seen: Seen<'_>| {
            if let Seen::Block { number, .. } = seen {
                bar.set_position(number);
            }
            image.see(&g, &mut losses, seen);
        };
        let in_use = read_table(&superblock, &mut read, &mut room, crc32c, see);
        let words = SlotMap::<Vec<u64>>::words_for(in_use);
        image.in_use = in_use;
        image.slots = SlotMap::new(vec![0; words as usize], &g);
        for entry in &image.entries {
            image.slots.take(entry.slot);
        }
        for bad in &image.bad {
            image.slots.set_bad(bad.slot);
        }
        bar.finish_and_clear();
        image.settle(losses);
        image
    }

    fn see(&mut self, g: &Geometry, losses: &mut Vec<Loss>, seen: Seen<'_>) {
        match seen {
            Seen::Finding(finding) => self.findings.push(finding),
            Seen::Block {
                number, replicas, ..
            } => {
                for (copy, standing) in replicas.standing.iter().enumerate() {
                    if matches!(standing, Standing::Stale { .. } | Standing::Damaged(_)) {
                        self.mends.push(Mend {
                            superblock: None,
                            from: table_at(g, replicas.newest.unwrap_or_default(), number),
                            to: table_at(g, copy, number),
                        });
                    }
                }
            }
            Seen::Record(Record {
                slot,
                state: state @ (State::Entry { unit, mask } | State::Moved { unit, mask }),
                origin,
            }) => {
                self.entries.push(Entry {
                    held: matches!(state, State::Moved { .. }),
                    ..Entry::new(unit, slot, mask)
                });
                self.origins.push((slot, origin));
            }
            Seen::Record(Record {
                slot,
                state: State::Bad { unit, lost },
                origin,
            }) => {
                self.bad.push(BadSlot {
                    slot,
                    unit,
                    lost,
                    origin,
                });
                if lost != 0 {
                    let mask = lost;
                    losses.push(Loss { unit, mask, slot });
                }
            }
            Seen::Record(_) => (),
        }
    }

    /// Compares what was seen; slots that were replaced are bad from here on.
    fn settle(&mut self, mut losses: Vec<Loss>) {
        let mut seen = Vec::new();
        self.entries.sort_by_key(|e| e.unit);
        losses.sort_by_key(|l| l.unit);
        let stay = settle(&mut self.entries, &losses, &mut |what| seen.push(what));
        self.entries.truncate(stay);
        for what in seen {
            match what {
                Settled::Finding(finding) => self.findings.push(finding),
                Settled::Replaced(loss) => {
                    let Loss { unit, mask, slot } = loss;
                    self.findings.push(Finding::Replaced { unit, slot });
                    self.replaced.push(loss);
                    self.slots.retire(slot);
                    let at = self.bad.partition_point(|bad| bad.slot < slot);
                    let (lost, origin) = (mask, self.origin(slot));
                    let bad = BadSlot {
                        slot,
                        unit,
                        lost,
                        origin,
                    };
                    self.bad.insert(at, bad);
                }
            }
        }
    }

    pub(crate) fn superblock(&self) -> &Superblock {
        &self.found.superblock
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.found.superblock.geometry
    }

    /// Number of the block, from the start of the region, that is the replica of table block `number` that counts.
    pub(crate) fn newest_at(&self, number: u64) -> u64 {
        let g = self.geometry();
        let is_replica = |at| (0..g.areas().len()).any(|copy| table_at(g, copy, number) == at);
        let mend = self.mends.iter().find(|mend| is_replica(mend.to));
        // With nothing to mend, all are the same.
        mend.map_or(table_at(g, 0, number), |mend| mend.from)
    }

    /// The worst of the findings.
    pub(crate) fn severity(&self) -> Option<Severity> {
        self.findings.iter().map(Finding::severity).max()
    }

    /// Why and when the entry in `slot` was written.
    pub(crate) fn origin(&self, slot: Slot) -> Origin {
        let at = self.origins.binary_search_by_key(&slot, |(slot, _)| *slot);
        at.map_or(Origin::default(), |at| self.origins[at].1)
    }

    /// Takes a free slot, and with it, if need be, more of the table in use.
    pub(crate) fn allocate(&mut self, region: &Region) -> Result<Slot> {
        loop {
            if let Some(slot) = self.slots.allocate() {
                return Ok(slot);
            }
            let next = change::extend(region, self, self.in_use)?;
            self.in_use = next.context("no free slot")?;
            let words = SlotMap::<Vec<u64>>::words_for(self.in_use);
            let words = vec![0; words as usize];
            self.slots.extend(words, &self.found.superblock.geometry);
        }
    }

    /// Refuses an image whose entries cannot be relied on.
    pub(crate) fn must_be_usable(self, region: &Region) -> Result<Self> {
        let fatal = |f: &&Finding| f.severity() == Severity::Fatal;
        if let Some(finding) = self.findings.iter().find(fatal) {
            let why = finding.to_string();
            return Err(Refused::Unusable(region.name.clone(), why).into());
        }
        Ok(self)
    }

    /// Refuses an image that must not be written: unusable, damaged, or of a later version.
    pub(crate) fn must_be_writable(self, region: &Region) -> Result<Self> {
        let image = self.must_be_usable(region)?;
        must_not_be_read_only(&image.found, region)?;
        if image.severity().is_some() {
            return Err(Refused::Damaged(region.name.clone()).into());
        }
        Ok(image)
    }
}

/// Refuses a spare with features that only readers may ignore.
pub(crate) fn must_not_be_read_only(found: &Found, region: &Region) -> Result<()> {
    if found.superblock.read_only {
        let why = "has a feature that this version may only read".to_string();
        return Err(Refused::Unusable(region.name.clone(), why).into());
    }
    Ok(())
}
