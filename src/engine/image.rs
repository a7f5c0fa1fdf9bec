// SPDX-License-Identifier: GPL-2.0

//! A whole region as it was found on a spare, judged: which superblock counts, which replica of
//! each table block, whether every record is possible and whether all of them agree.
//!
//! Everything here is hostile input. [`ends`] looks for the superblocks, [`read_table`] goes
//! through the table, [`settle`] compares the entries with each other and with what was lost; what is wrong comes as
//! [`Finding`]s, which name block, replica, record and reason. Blocks are counted from the start
//! of the region.

use super::format::{
    each_record, is_blank, is_unused_table, is_used_table, next_in_use, table_generation, Block,
    Crc32c, Fault, Record, Superblock,
};
use super::geometry::{BLOCK_SECTORS, MAX_COPIES};
use super::{Refusal, Slot, Unit};
use core::fmt;
use core::ops::Range;

mod settle;
pub use settle::{settle, Settled};

/// Reads the first block of a range of numbers; `false` if it cannot be read. The others may be asked for next.
pub type Read<'a> = dyn FnMut(Range<u64>, &mut Block) -> bool + 'a;

/// What is wrong with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A superblock is not as the one that counts.
    Superblock {
        /// Which copy, 0 or 1.
        copy: u64,
        /// What it is.
        standing: Standing,
    },
    /// A replica of a table block is not as the one that counts.
    Replica {
        /// The table block.
        block: u64,
        /// Which replica.
        copy: usize,
        /// What it is.
        standing: Standing,
    },
    /// A table block has no valid replica.
    NoReplica {
        /// The table block.
        block: u64,
        /// What its replicas are.
        standing: [Standing; MAX_COPIES as usize],
    },
    /// A table block says that the table is in use where it cannot be.
    InUse {
        /// The table block.
        block: u64,
        /// How many blocks it says are in use.
        next: u64,
    },
    /// A record says what none may say.
    Record {
        /// The table block.
        block: u64,
        /// Which of its records.
        index: usize,
        /// Why not.
        why: Refusal,
    },
    /// Two slots claim a unit.
    TwoSlots {
        /// The unit.
        unit: Unit,
        /// Both.
        slots: [Slot; 2],
    },
    /// A slot took sectors with it, and their unit has no entry that says so.
    Orphan {
        /// The unit.
        unit: Unit,
        /// The slot.
        slot: Slot,
    },
    /// Two slots that failed claim the same sector of a unit, and its entry does not have it.
    LostTwice {
        /// The unit.
        unit: Unit,
        /// Both.
        slots: [Slot; 2],
    },
    /// A slot has been replaced by another, and its record does not say so yet: [`Settled::Replaced`].
    Replaced {
        /// The unit that it served.
        unit: Unit,
        /// The slot.
        slot: Slot,
    },
}

/// What a finding means for the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Nothing is lost: the block that counts can be written again in its place.
    Mendable,
    /// The image cannot be used: something is missing, or contradicts itself.
    Fatal,
}

impl Finding {
    /// How bad it is.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Superblock { standing, .. } | Self::Replica { standing, .. } => match standing {
                Standing::Differs => Severity::Fatal,
                _ => Severity::Mendable,
            },
            Self::Replaced { .. } => Severity::Mendable,
            _ => Severity::Fatal,
        }
    }
}

/// What one copy of a block is, compared with the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// There is no such copy.
    Unused,
    /// The one that counts, or the same.
    Current,
    /// Valid, of an older generation.
    Stale {
        /// Its generation.
        generation: u64,
        /// That of the one that counts.
        current: u64,
    },
    /// Valid, of the same generation as the one that counts, and not the same.
    Differs,
    /// Not valid.
    Damaged(Refusal),
}

/// The text of a refusal.
pub fn text(why: Refusal) -> &'static str {
    why.to_str().unwrap_or("?")
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unused => f.write_str("unused"),
            Self::Current => f.write_str("current"),
            Self::Stale {
                generation,
                current,
            } => write!(f, "stale: generation {generation} of {current}"),
            Self::Differs => f.write_str("same generation as another copy, other content"),
            Self::Damaged(why) => {
                let why = text(why);
                f.write_str(why.strip_prefix("Superblock: ").unwrap_or(why))
            }
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock { copy, standing } => write!(f, "superblock copy {copy}: {standing}"),
            Self::Replica {
                block,
                copy,
                standing,
            } => write!(f, "table block {block}, replica {copy}: {standing}"),
            Self::NoReplica { block, standing } => {
                write!(f, "table block {block}: no valid replica")?;
                let there = standing.iter().filter(|s| **s != Standing::Unused);
                for (copy, standing) in there.enumerate() {
                    write!(f, "{} {standing}", if copy == 0 { ":" } else { "," })?;
                }
                Ok(())
            }
            Self::InUse { block, next } => {
                write!(
                    f,
                    "table block {block}: says that {next} blocks are in use, which cannot be"
                )
            }
            Self::Record { block, index, why } => {
                write!(f, "table block {block}, record {index}: {}", text(why))
            }
            Self::TwoSlots { unit, slots } => {
                let [Slot(a), Slot(b)] = slots;
                write!(f, "unit {}: has two slots, {a} and {b}", unit.0)
            }
            Self::Orphan { unit, slot } => {
                let (Unit(unit), Slot(slot)) = (unit, slot);
                write!(
                    f,
                    "unit {unit}: slot {slot} lost sectors of it, and it has no entry"
                )
            }
            Self::LostTwice { unit, slots } => {
                let (Unit(unit), [Slot(a), Slot(b)]) = (unit, slots);
                write!(
                    f,
                    "unit {unit}: slots {a} and {b}, which failed, claim the same sector: which has \
                     the newer data cannot be told"
                )
            }
            Self::Replaced { unit, slot } => {
                let (Unit(unit), Slot(slot)) = (unit, slot);
                write!(
                    f,
                    "unit {unit}: slot {slot} was replaced, and is not yet recorded as bad"
                )
            }
        }
    }
}

// ---- Superblocks

/// What the two ends of a region hold.
#[derive(Clone, Debug)]
pub struct Ends {
    /// Each copy, read where it belongs.
    pub copies: [Result<Superblock, Fault>; 2],
    blank: [bool; 2],
    /// The region's length in blocks as copy 0 has it; without that one, as the caller has it.
    blocks: u64,
    /// The caller's.
    given: u64,
    /// With blank ends: whether the blocks near them are those of a blank region.
    inside: Result<(), Refusal>,
}

/// Blocks at each end of a region that are looked at to tell whether it is blank: 1 MiB.
pub const BLANK_BLOCKS: u64 = 256;

/// Something is in a region that begins and ends with zeroes.
pub const NOT_BLANK: Refusal = c"Spare is not blank: its first and last MiB must be zero";

/// A superblock that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it says.
    pub superblock: Superblock,
    /// What each copy is.
    pub standing: [Standing; 2],
}

impl Found {
    /// The copy that counts.
    pub fn newest(&self) -> u64 {
        u64::from(self.standing[0] != Standing::Current)
    }

    /// What is wrong with the copies.
    pub fn findings(&self) -> impl Iterator<Item = Finding> + '_ {
        let copies = (0..).zip(self.standing);
        let wrong = copies.filter(|(_, standing)| *standing != Standing::Current);
        wrong.map(|(copy, standing)| Finding::Superblock { copy, standing })
    }
}

/// Looks for superblocks in a region of `blocks` blocks.
///
/// Reads the first block and the last. If both are zero it reads all of the first and last
/// [`BLANK_BLOCKS`], no block twice.
pub fn ends(read: &mut Read<'_>, blocks: u64, block: &mut Block, crc32c: Crc32c) -> Ends {
    let mut copy = |copy: u64, at: u64| {
        if read(at..at + 1, block) {
            (is_blank(block), Superblock::read(block, copy, crc32c))
        } else {
            (false, Err(Fault::Damaged(c"Superblock: cannot be read")))
        }
    };
    let (first_blank, first) = copy(0, 0);
    let known = match &first {
        Ok(s) => s.geometry.spare_sectors / BLOCK_SECTORS,
        Err(_) => blocks,
    };
    let last = known.min(blocks).saturating_sub(1);
    let (last_blank, last) = copy(1, last);
    let inside = if first_blank && last_blank {
        is_blank_inside(read, blocks, block, crc32c)
    } else {
        Ok(())
    };
    Ends {
        copies: [first, last],
        blank: [first_blank, last_blank],
        blocks: known,
        given: blocks,
        inside,
    }
}

/// Whether a region of `blocks` blocks, the first and last of them zero, is blank.
///
/// Table blocks that were never used are what an interrupted format leaves: nothing is lost with them.
fn is_blank_inside(
    read: &mut Read<'_>,
    blocks: u64,
    block: &mut Block,
    crc32c: Crc32c,
) -> Result<(), Refusal> {
    let last = blocks.saturating_sub(1);
    let behind = blocks.saturating_sub(BLANK_BLOCKS).max(BLANK_BLOCKS);
    let mut result = Ok(());
    let ends = [1..BLANK_BLOCKS.min(last), behind..last];
    for at in ends
        .into_iter()
        .flat_map(|r| r.clone().map(move |at| at..r.end))
    {
        if !read(at, block) {
            return Err(c"Spare cannot be read in its first and last MiB");
        }
        if is_used_table(block) {
            return Err(c"Both superblocks are zero, and a table that was in use is there");
        }
        if !is_blank(block) && !is_unused_table(block, crc32c) {
            // All are looked at: a table that was in use is the better explanation.
            result = Err(NOT_BLANK);
        }
    }
    result
}

impl Ends {
    /// What they say together. `None`: the region is blank. Refused: what is neither blank nor
    /// usable.
    ///
    /// Blank is a region whose first and last [`BLANK_BLOCKS`], or all of a shorter one, are zero or table
    /// blocks that were never used.
    pub fn judge(&self) -> Result<Option<Found>, Refusal> {
        if self.blocks > self.given {
            return Err(c"Spare region is shorter than the one that was formatted");
        }
        if self.blank == [true, true] {
            return self.inside.map(|()| None);
        }
        let [first, last] = &self.copies;
        // If the first copy was wiped, the last one has the better explanation.
        let explains = if self.blank[0] && last.is_err() {
            last
        } else {
            first
        };
        let (superblock, stale) = Superblock::choose([explains.clone(), last.clone()])?;
        if superblock.geometry.spare_sectors / BLOCK_SECTORS != self.blocks {
            return Err(c"Superblock: the spare region has another length");
        }
        let standing = |copy: &Result<Superblock, Fault>, stale: bool| match copy {
            Err(Fault::Damaged(why) | Fault::Unsupported(why)) => Standing::Damaged(why),
            Ok(s) if stale => Standing::Stale {
                generation: s.generation,
                current: superblock.generation,
            },
            Ok(s) if *s != superblock => Standing::Differs,
            Ok(_) => Standing::Current,
        };
        let standing = [standing(first, stale[0]), standing(last, stale[1])];
        Ok(Some(Found {
            superblock,
            standing,
        }))
    }
}

// ---- The table

/// The replicas of a table block, compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replicas {
    /// What each is.
    pub standing: [Standing; MAX_COPIES as usize],
    /// The one that counts: the first of the highest generation. `None`: no replica is valid.
    pub newest: Option<usize>,
    /// Its generation.
    pub generation: u64,
}

/// Compares the replicas of table block `number`; those that cannot be read are `None`.
pub fn compare(
    replicas: &[Option<&Block>],
    uuid: &[u8; 16],
    number: u64,
    crc32c: Crc32c,
) -> Replicas {
    // Of each that is valid: its generation, and whether it is the same as the best before it.
    let mut found = [Err(c"cannot be read"); MAX_COPIES as usize];
    let mut best: Option<(u64, usize, &Block)> = None;
    for (copy, (replica, found)) in replicas.iter().zip(&mut found).enumerate() {
        let Some(block) = *replica else { continue };
        *found = match best {
            // As most are: this costs less than a checksum.
            Some((highest, _, newest)) if block == newest => Ok((highest, true)),
            _ => table_generation(block, uuid, number, crc32c).map(|found| (found, false)),
        };
        if let Ok((generation, _)) = *found {
            if best.is_none_or(|(highest, ..)| generation > highest) {
                best = Some((generation, copy, block));
            }
        }
    }
    let mut standing = [Standing::Unused; MAX_COPIES as usize];
    for (copy, (found, standing)) in found
        .iter()
        .zip(&mut standing)
        .take(replicas.len())
        .enumerate()
    {
        *standing = match (*found, best) {
            (Err(why), _) => Standing::Damaged(why),
            (Ok((generation, _)), Some((current, ..))) if generation < current => Standing::Stale {
                generation,
                current,
            },
            (Ok((_, false)), Some((_, newest, _))) if copy != newest => Standing::Differs,
            (Ok(_), _) => Standing::Current,
        };
    }
    Replicas {
        standing,
        newest: best.map(|(_, copy, _)| copy),
        generation: best.map_or(0, |(generation, ..)| generation),
    }
}

/// What [`read_table`] meets, in ascending order of slots.
#[derive(Debug)]
pub enum Seen<'a> {
    /// Something is wrong.
    Finding(Finding),
    /// A table block.
    Block {
        /// Its number.
        number: u64,
        /// Its replicas; one is valid.
        replicas: &'a Replicas,
        /// The one that counts.
        block: &'a Block,
    },
    /// A record of that block.
    Record(Record),
}

/// Reads all replicas of those table blocks that are in use, and calls `see` with what is there. Returns how many are
/// in use.
pub fn read_table(
    superblock: &Superblock,
    read: &mut Read<'_>,
    room: &mut [Block; MAX_COPIES as usize],
    crc32c: Crc32c,
    see: &mut dyn FnMut(Seen<'_>),
) -> u64 {
    let g = &superblock.geometry;
    let mut in_use = g.first_part();
    let mut number = 0;
    while number < in_use {
        let next = read_block(superblock, number..in_use, read, room, crc32c, see);
        number += 1;
        if number == in_use && g.is_next_part(in_use, next) {
            in_use = next;
        } else if next != 0 {
            see(Seen::Finding(Finding::InUse {
                block: number - 1,
                next,
            }));
        }
    }
    in_use
}

/// How many table blocks are in use, as far as can be told by reading one replica of the last block of each part: one
/// that is stale may say less.
pub fn in_use(
    superblock: &Superblock,
    read: &mut Read<'_>,
    block: &mut Block,
    crc32c: Crc32c,
) -> u64 {
    let g = &superblock.geometry;
    let mut in_use = g.first_part();
    loop {
        let last = in_use.saturating_sub(1);
        let is_valid = (0..g.areas().len()).any(|copy| {
            let at = g.table_sector(copy, last) / BLOCK_SECTORS;
            read(at..at + 1, block)
                && table_generation(block, &superblock.uuid, last, crc32c).is_ok()
        });
        let next = next_in_use(block);
        if !is_valid || !g.is_next_part(in_use, next) {
            return in_use;
        }
        in_use = next;
    }
}

/// Reads the first of the table blocks `numbers`. Returns its [`next_in_use`].
fn read_block(
    superblock: &Superblock,
    numbers: Range<u64>,
    read: &mut Read<'_>,
    room: &mut [Block; MAX_COPIES as usize],
    crc32c: Crc32c,
    see: &mut dyn FnMut(Seen<'_>),
) -> u64 {
    let g = &superblock.geometry;
    let number = numbers.start;
    let mut is_read = [false; MAX_COPIES as usize];
    for ((copy, block), is_read) in (0..).zip(room.iter_mut()).zip(&mut is_read) {
        if copy < g.areas().len() {
            let at = |number| g.table_sector(copy, number) / BLOCK_SECTORS;
            *is_read = read(at(number)..at(numbers.end), block);
        }
    }
    let mut blocks = [None; MAX_COPIES as usize];
    for ((to, block), is_read) in blocks.iter_mut().zip(room.iter()).zip(is_read) {
        *to = is_read.then_some(block);
    }
    let blocks = blocks.get(..g.areas().len()).unwrap_or_default();
    let replicas = compare(blocks, &superblock.uuid, number, crc32c);
    let newest = replicas.newest.and_then(|copy| *blocks.get(copy)?);
    let Some(block) = newest else {
        see(Seen::Finding(Finding::NoReplica {
            block: number,
            standing: replicas.standing,
        }));
        return 0;
    };
    for (copy, standing) in replicas.standing.into_iter().enumerate() {
        if !matches!(standing, Standing::Current | Standing::Unused) {
            see(Seen::Finding(Finding::Replica {
                block: number,
                copy,
                standing,
            }));
        }
    }
    see(Seen::Block {
        number,
        replicas: &replicas,
        block,
    });
    each_record(block, number, g, |index, record| {
        see(match record {
            Ok(record) => Seen::Record(record),
            Err(why) => Seen::Finding(Finding::Record {
                block: number,
                index,
                why,
            }),
        });
    });
    next_in_use(block)
}

#[cfg(test)]
mod tests {
    use super::super::entries::{Entry, Loss};
    use super::super::format::{
        blank_table_block, record, seal_table_block, set_next_in_use, set_record,
        update_superblock, Cause, State, Update,
    };
    use super::super::geometry::{Geometry, BLOCK_SIZE};
    use super::super::identity::Identity;
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::string::{String, ToString};
    use std::{format, vec, vec::Vec};

    fn crc(crc: u32, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(crc, bytes)
    }

    /// A generator that repeats itself: xorshift.
    struct Random(u64);

    impl Random {
        fn below(&mut self, n: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % n as u64) as usize
        }
    }

    /// What an activation of an image has in memory: of each unit slot, mask and lost sectors.
    type Table = BTreeMap<u64, (u32, u64, u64)>;

    /// Of the region that is damaged.
    const BLOCKS: usize = 980;

    /// The metadata of a region, and what each of its blocks was before the last write.
    struct Disk {
        blocks: Vec<Block>,
        older: Vec<Block>,
        superblock: Superblock,
        table: Table,
    }

    impl Disk {
        /// A region that has been written to a few times, with some bad slots. Of its eight table blocks, seven are in use.
        fn new(copies: u32, random: &mut Random) -> Self {
            let geometry = Geometry::plan(1 << 16, BLOCKS as u64 * 8, 8, copies).unwrap();
            assert_eq!((geometry.table_blocks, geometry.first_part()), (8, 4));
            let mut superblock = Superblock {
                uuid: *b"0123456789abcdef",
                generation: 1,
                read_only: false,
                geometry,
                created: 1_800_000_000,
                label: [0; 64],
                main: Identity::default(),
            };
            let mut disk = Self {
                blocks: vec![[0; BLOCK_SIZE]; BLOCKS],
                older: Vec::new(),
                superblock: superblock.clone(),
                table: Table::new(),
            };
            for copy in [0, 1] {
                let at = disk.superblock_at(copy);
                superblock.write(&mut disk.blocks[at], copy, crc);
            }
            let mut tables = vec![[0; BLOCK_SIZE]; 8];
            for (number, block) in (0..).zip(&mut tables) {
                blank_table_block(block, &superblock.uuid, number, crc);
            }
            // What was left in the last one looks as if it were one.
            let (slot, cause) = (Slot(7 * 126), Cause::Write);
            let state = State::Entry {
                unit: Unit(0),
                mask: 1,
            };
            set_record(&mut tables[7], 0, &Update { slot, state, cause }, 0);
            seal_table_block(&mut tables[7], 9, crc);
            for (number, block) in (0..).zip(&tables) {
                disk.put(number, block);
            }
            disk.older = disk.blocks.clone();
            // Generation by generation, every block is written with more entries in it.
            for generation in 2..6 {
                if generation == 3 {
                    set_next_in_use(&mut tables[3], 5);
                    set_next_in_use(&mut tables[4], 7);
                }
                let in_use = if generation == 2 { 4 } else { 7 };
                for (number, block) in (0..).zip(&mut tables).take(in_use) {
                    for _ in 0..4 {
                        let index = random.below(100);
                        let Some(slot) = geometry.slot_at(number, index as u64) else {
                            continue;
                        };
                        let unit = Unit(random.below(geometry.units() as usize) as u64);
                        let free = record(block, number, index, &geometry) == Ok(State::Free);
                        if geometry.is_reserved(slot) || !free || disk.table.contains_key(&unit.0) {
                            continue;
                        }
                        let mask = random.below(256) as u64;
                        let mut lost = 0;
                        let set = |block: &mut Block, index, state| {
                            let (slot, cause) = (slot, Cause::Write);
                            let update = Update { slot, state, cause };
                            set_record(block, index, &update, 1_800_000_000);
                        };
                        set(block, index, State::Entry { unit, mask });
                        // Sometimes the slot above has failed with sectors of the same unit.
                        let above = geometry.slot_at(number, index as u64 + 1);
                        if let Some(above) = above.filter(|_| index % 5 == 0) {
                            let free = record(block, number, index + 1, &geometry);
                            if free == Ok(State::Free) && !geometry.is_reserved(above) {
                                lost = 0x81;
                                set(block, index + 1, State::Bad { unit, lost });
                            }
                        }
                        disk.table.insert(unit.0, (slot.0, mask, lost & !mask));
                    }
                    seal_table_block(block, generation, crc);
                }
                disk.older = disk.blocks.clone();
                for (number, block) in (0..).zip(&tables) {
                    disk.put(number, block);
                }
            }
            superblock.label[0] = b'x';
            superblock.generation = 2;
            for copy in [0, 1] {
                let at = disk.superblock_at(copy);
                update_superblock(&mut disk.blocks[at], copy, &superblock, crc);
            }
            disk.superblock = superblock;
            disk
        }

        fn superblock_at(&self, copy: u64) -> usize {
            (self.superblock.geometry.superblock_sector(copy) / 8) as usize
        }

        fn put(&mut self, number: u64, block: &Block) {
            let g = self.superblock.geometry;
            for copy in 0..g.areas().len() {
                self.blocks[(g.table_sector(copy, number) / 8) as usize] = *block;
            }
        }

        /// Every metadata block: its place, what it is a copy of (`None`: superblock), which copy.
        fn metadata(&self) -> Vec<(usize, Option<u64>, usize)> {
            let g = self.superblock.geometry;
            let mut all = vec![(0, None, 0), (self.blocks.len() - 1, None, 1)];
            for copy in 0..g.areas().len() {
                all.extend((0..7).map(|number| {
                    (
                        (g.table_sector(copy, number) / 8) as usize,
                        Some(number),
                        copy,
                    )
                }));
            }
            all.sort_unstable();
            all
        }
    }

    /// What an activation would do: the table, or what is wrong.
    fn activate(blocks: &[Block]) -> Result<Table, String> {
        let mut room = [[0; BLOCK_SIZE]; 4];
        let mut read = |at: Range<u64>, to: &mut Block| {
            *to = blocks[at.start as usize];
            true
        };
        let found = ends(&mut read, blocks.len() as u64, &mut room[0], crc)
            .judge()
            .map_err(|why| text(why).to_string())?
            .ok_or("blank")?;
        let (mut entries, mut losses, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
        read_table(
            &found.superblock,
            &mut read,
            &mut room,
            crc,
            &mut |seen| match seen {
                Seen::Finding(f) => wrong.push(f),
                Seen::Block { .. } => (),
                Seen::Record(Record { slot, state, .. }) => match state {
                    State::Entry { unit, mask } => entries.push(Entry::new(unit, slot, mask)),
                    State::Moved { unit, mask } => entries.push(Entry {
                        held: true,
                        ..Entry::new(unit, slot, mask)
                    }),
                    State::Bad { unit, lost: mask } if mask != 0 => {
                        losses.push(Loss { unit, mask, slot });
                    }
                    _ => (),
                },
            },
        );
        entries.sort_by_key(|e| e.unit);
        losses.sort_by_key(|l| l.unit);
        let stay = settle(&mut entries, &losses, &mut |seen| {
            if let Settled::Finding(f) = seen {
                wrong.push(f);
            }
        });
        entries.truncate(stay);
        wrong.retain(|f| f.severity() == Severity::Fatal);
        match wrong.first() {
            Some(f) => Err(f.to_string()),
            None => Ok(entries
                .iter()
                .map(|e| (e.unit.0, (e.slot.0, e.mask, e.lost)))
                .collect()),
        }
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Damage {
        Zero,
        Flip(usize),
        Swap,
        Older,
    }

    impl Damage {
        fn any(random: &mut Random) -> Self {
            match random.below(4) {
                0 => Self::Zero,
                1 => Self::Flip(random.below(BLOCK_SIZE * 8)),
                2 => Self::Swap,
                _ => Self::Older,
            }
        }

        /// Damages block `nth` of the metadata; swaps it with the next, the last with the first.
        fn apply(self, disk: &mut Disk, nth: usize, hit: &mut Vec<Option<u64>>) {
            let metadata = disk.metadata();
            let (at, number, _) = metadata[nth];
            hit.push(number);
            match self {
                Self::Zero => disk.blocks[at].fill(0),
                Self::Flip(bit) => disk.blocks[at][bit / 8] ^= 1 << (bit % 8),
                Self::Swap => {
                    let (other, number, _) = metadata[(nth + 1) % metadata.len()];
                    disk.blocks.swap(at, other);
                    hit.push(number);
                }
                Self::Older => disk.blocks[at] = disk.older[at],
            }
        }
    }

    /// Right data, or a refusal that names a block that was hit.
    fn right_or_refused(disk: &Disk, hit: &[Option<u64>], what: &str) -> bool {
        match activate(&disk.blocks) {
            Ok(table) => {
                assert_eq!(table, disk.table, "{what}");
                true
            }
            Err(why) => {
                let named = hit.iter().any(|number| match number {
                    None => why.contains("uperblock") || why.contains("foreign data"),
                    Some(n) => why.starts_with(&format!("table block {n}:")),
                });
                assert!(named, "{what}: {why}");
                false
            }
        }
    }

    #[test]
    fn one_damaged_metadata_block_loses_nothing() {
        let mut cases = 0;
        for copies in 2..=4 {
            let metadata = Disk::new(copies, &mut Random(7)).metadata();
            for (nth, place) in metadata.iter().enumerate() {
                let flips = [0, 70, 100, 300, 383, 600, 32767].map(Damage::Flip);
                for damage in [Damage::Zero, Damage::Swap, Damage::Older]
                    .into_iter()
                    .chain(flips)
                {
                    let mut disk = Disk::new(copies, &mut Random(7));
                    let mut hit = Vec::new();
                    damage.apply(&mut disk, nth, &mut hit);
                    let what = format!("{copies} copies, {damage:?} of {place:?}");
                    let right = right_or_refused(&disk, &hit, &what);
                    // Two neighbours that change places are two damaged blocks.
                    let both = hit.len() == 2 && hit[0] == hit[1];
                    assert!(right || both, "{what}: refused");
                    cases += 1;
                }
            }
        }
        assert!(cases > 400, "{cases}");
    }

    #[test]
    fn two_damaged_metadata_blocks_give_right_data_or_a_refusal_that_names_one() {
        let mut random = Random(0x0123_4567_89ab_cdef);
        let (mut cases, mut right) = (0, 0);
        while cases < 3000 {
            let copies = 2 + (cases % 3) as u32;
            let mut disk = Disk::new(copies, &mut random);
            let mut intact = disk.blocks.clone();
            let metadata = disk.metadata();
            let pair = [random.below(metadata.len()), random.below(metadata.len())];
            let [a, b] = pair.map(|nth| metadata[nth]);
            let damages = [Damage::any(&mut random), Damage::any(&mut random)];
            if a.2 == b.2 {
                continue;
            }
            let mut hit = Vec::new();
            for (damage, nth) in damages.into_iter().zip(pair) {
                damage.apply(&mut disk, nth, &mut hit);
            }
            let what = format!("{copies} copies, {damages:?} of {a:?} and {b:?}");
            // A replica destroyed, the others one generation behind: so a cut in the middle of that
            // write leaves it, and the block counts as before (docs/format.md, section 6).
            let older = damages
                .iter()
                .zip([a, b])
                .filter(|(d, _)| **d == Damage::Older);
            let behind = older.map(|(_, of)| of.1).find(|number| {
                let all = metadata.iter().filter(|m| m.1 == *number);
                let whole = |m: &(usize, _, _)| disk.blocks[m.0] == intact[m.0];
                number.is_some() && !all.clone().any(whole)
            });
            if let Some(number) = behind {
                for (at, ..) in metadata.iter().filter(|m| m.1 == number) {
                    intact[*at] = disk.older[*at];
                }
                if let Ok(table) = activate(&intact) {
                    disk.table = table;
                }
            }
            right += usize::from(right_or_refused(&disk, &hit, &what));
            cases += 1;
        }
        assert!(right > 2000 && right < 3000, "{right}");
    }

    #[test]
    fn a_table_in_use_is_not_taken_for_blank() {
        let mut disk = Disk::new(2, &mut Random(7));
        for copy in [0, 1] {
            let at = disk.superblock_at(copy);
            disk.blocks[at].fill(0);
        }
        let why = activate(&disk.blocks).unwrap_err();
        assert!(why.contains("a table that was in use"), "{why}");
        // Formatting was interrupted: nothing is lost by doing it again.
        for number in 0..8 {
            let mut block = [0; BLOCK_SIZE];
            blank_table_block(&mut block, &disk.superblock.uuid, number, crc);
            disk.put(number, &block);
        }
        assert_eq!(activate(&disk.blocks), Err("blank".into()));
    }

    #[test]
    fn a_table_in_use_where_it_cannot_be_is_refused() {
        // In the middle of a part, backwards, not forwards, past the end.
        for (number, next) in [(1, 7), (3, 3), (3, 4), (4, 9), (4, u64::MAX), (6, 7)] {
            let mut disk = Disk::new(2, &mut Random(7));
            let at = disk.superblock.geometry.table_sector(0, number) / 8;
            let mut block = disk.blocks[at as usize];
            set_next_in_use(&mut block, next);
            seal_table_block(&mut block, 9, crc);
            disk.put(number, &block);
            let expected = format!(
                "table block {number}: says that {next} blocks are in use, which cannot be"
            );
            assert_eq!(activate(&disk.blocks), Err(expected));
        }
    }

    #[test]
    fn what_is_not_in_use_is_not_read() {
        let disk = Disk::new(3, &mut Random(7));
        let metadata = disk.metadata();
        let mut room = [[0; BLOCK_SIZE]; 4];
        let mut read = |at: Range<u64>, to: &mut Block| {
            assert!(
                at.clone()
                    .all(|at| metadata.iter().any(|m| m.0 == at as usize)),
                "{at:?}"
            );
            *to = disk.blocks[at.start as usize];
            true
        };
        let all = read_table(&disk.superblock, &mut read, &mut room, crc, &mut |_| ());
        let found = in_use(&disk.superblock, &mut read, &mut room[0], crc);
        assert_eq!((all, found), (7, 7));
    }

    /// What a block of a region may hold that begins and ends with zeroes.
    #[derive(Clone, Copy, Debug)]
    enum Content {
        Unused,
        Used,
        OldRecord,
        WrongChecksum,
        Byte(usize),
        Unreadable,
    }

    impl Content {
        fn any() -> impl Strategy<Value = Self> {
            prop_oneof![
                3 => Just(Self::Unused),
                1 => prop_oneof![
                    Just(Self::Used), Just(Self::OldRecord), Just(Self::WrongChecksum),
                    (0..BLOCK_SIZE).prop_map(Self::Byte), Just(Self::Unreadable),
                ],
            ]
        }

        fn block(self, at: u64) -> Block {
            let mut block = [0; BLOCK_SIZE];
            blank_table_block(&mut block, &[at as u8; 16], at * 7, crc);
            match self {
                Self::Unused | Self::Unreadable => (),
                Self::Used => seal_table_block(&mut block, 2, crc),
                Self::OldRecord => {
                    let (slot, state, cause) = (Slot(0), State::BAD, Cause::Write);
                    set_record(&mut block, 3, &Update { slot, state, cause }, 1);
                    seal_table_block(&mut block, 1, crc);
                }
                Self::WrongChecksum => block[8] ^= 1,
                Self::Byte(byte) => {
                    block = [0; BLOCK_SIZE];
                    block[byte] = 1;
                }
            }
            block
        }
    }

    proptest! {
        #[test]
        fn a_region_is_blank_if_nothing_but_unused_tables_is_near_its_ends(
            blocks in 2u64..1300,
            contents in proptest::collection::vec(
                (0usize..3, 0u64..600, Content::any()), 0..6,
            ),
        ) {
            // Near an end, near the last block that is looked at, anywhere.
            let contents: BTreeMap<u64, Content> = contents.into_iter().filter_map(|(how, n, what)| {
                let at = match how {
                    0 => 252 + n % 8,
                    1 => blocks.checked_sub(252 + n % 8)?,
                    _ => 1 + n * 31 % blocks,
                };
                (0 < at && at < blocks - 1).then_some((at, what))
            }).collect();
            let mut reads = BTreeMap::new();
            let mut read = |at: Range<u64>, to: &mut Block| {
                let at = at.start;
                *reads.entry(at).or_insert(0) += 1;
                *to = contents.get(&at).map_or([0; BLOCK_SIZE], |what| what.block(at));
                !matches!(contents.get(&at), Some(Content::Unreadable))
            };
            let judged = ends(&mut read, blocks, &mut [0; BLOCK_SIZE], crc).judge();

            let is_near = |at: &u64| *at < 256 || at + 256 >= blocks;
            let near = || contents.iter().filter(|(at, _)| is_near(at)).map(|(_, what)| what);
            let count = |is: fn(&Content) -> bool| near().filter(|what| is(what)).count();
            let used = count(|what| matches!(what, Content::Used));
            let unreadable = count(|what| matches!(what, Content::Unreadable));
            let unused = count(|what| matches!(what, Content::Unused));
            prop_assert!(reads.iter().all(|(at, count)| is_near(at) && *count == 1));
            let why = judged.as_ref().err().map(|why| text(why));
            let in_use = why == Some("Both superblocks are zero, and a table that was in use is there");
            let cannot = why == Some("Spare cannot be read in its first and last MiB");
            if used + unreadable > 0 {
                prop_assert!(used > 0 && in_use || unreadable > 0 && cannot, "{why:?}");
            } else if near().count() > unused {
                prop_assert_eq!(judged, Err(NOT_BLANK));
            } else {
                prop_assert_eq!(judged, Ok(None));
                prop_assert_eq!(reads.len() as u64, blocks.min(512));
            }
        }
    }

    #[test]
    fn copies_of_one_generation_that_differ_are_refused() {
        let mut disk = Disk::new(2, &mut Random(7));
        let g = disk.superblock.geometry;
        let block = &mut disk.blocks[(g.table_sector(1, 2) / 8) as usize];
        let pending = State::Entry {
            unit: Unit(1),
            mask: 0,
        };
        let update = Update {
            slot: Slot(252),
            state: pending,
            cause: Cause::Message,
        };
        set_record(block, 120, &update, 0);
        seal_table_block(block, 5, crc);
        let replicas = [0, 1].map(|copy| disk.blocks[(g.table_sector(copy, 2) / 8) as usize]);
        let found = compare(
            &[Some(&replicas[0]), Some(&replicas[1])],
            &disk.superblock.uuid,
            2,
            crc,
        );
        assert_eq!(found.newest, Some(0));
        assert_eq!(found.standing[..2], [Standing::Current, Standing::Differs]);
        let why = "table block 2, replica 1: same generation as another copy, other content";
        assert_eq!(activate(&disk.blocks), Err(why.to_string()));
    }

    proptest! {
        /// Records of any content under right checksums: no panic; what is accepted keeps the
        /// rules, and what contradicts itself is found.
        #[test]
        fn hostile_records_are_found(
            records in proptest::collection::vec(
                (0usize..504, 0u64..70, any::<u64>(), 0u32..5, any::<[bool; 2]>()), 0..40,
            ),
        ) {
            let mut disk = Disk::new(3, &mut Random(7));
            let g = Geometry { main_sectors: 8 * 60 - 3, ..disk.superblock.geometry };
            disk.superblock.geometry = g;
            let mut model = BTreeMap::new();
            for number in 0..4 {
                let mut block = [0; BLOCK_SIZE];
                blank_table_block(&mut block, &disk.superblock.uuid, number, crc);
                for (slot, unit, mask, state, [small, _]) in &records {
                    if *slot as u64 / 126 != number {
                        continue;
                    }
                    let mask = if *small { mask & 0x1f } else { *mask };
                    let at = 64 + 32 * (slot % 126);
                    block[at..at + 8].copy_from_slice(&unit.to_le_bytes());
                    block[at + 8..at + 16].copy_from_slice(&mask.to_le_bytes());
                    block[at + 16..at + 20].copy_from_slice(&state.to_le_bytes());
                    model.insert(*slot as u32, (*unit, mask, *state));
                }
                seal_table_block(&mut block, 9, crc);
                disk.put(number, &block);
            }
            let mut room = [[0; BLOCK_SIZE]; 4];
            let (mut entries, mut losses, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
            read_table(
                &disk.superblock,
                &mut |at, to| { *to = disk.blocks[at.start as usize]; true },
                &mut room,
                crc,
                &mut |seen| match seen {
                    Seen::Record(Record { slot, state: State::Entry { unit, mask }, .. }) => {
                        entries.push(Entry::new(unit, slot, mask));
                    }
                    Seen::Record(Record { slot, state: State::Moved { unit, mask }, .. }) => {
                        entries.push(Entry { held: true, ..Entry::new(unit, slot, mask) });
                    }
                    Seen::Record(Record { slot, state: State::Bad { unit, lost: mask }, .. }) => {
                        losses.push(Loss { unit, mask, slot });
                    }
                    Seen::Finding(f) => wrong.push(f),
                    _ => (),
                },
            );
            let possible = |slot: u32, unit: u64, mask: u64| {
                u64::from(slot) < g.slots_total && !g.is_reserved(Slot(slot)) && unit < 60
                    && mask & !if unit == 59 { 0x1f } else { 0xff } == 0
            };
            for (slot, (unit, mask, state)) in &model {
                let slot = *slot;
                let entry = entries.iter().find(|e| e.slot.0 == slot);
                let loss = losses.iter().find(|l| l.slot.0 == slot);
                let named = wrong.iter().any(|f| matches!(f, Finding::Record { block, index, .. }
                    if *block == u64::from(slot / 126) && *index == (slot % 126) as usize));
                let fine = possible(slot, *unit, *mask);
                prop_assert_eq!(entry.is_some(), matches!(*state, 1 | 3) && fine);
                prop_assert!(entry.is_none_or(|e| e.held == (*state == 3)));
                prop_assert_eq!(loss.is_some(), *state == 2 && fine);
                prop_assert_eq!(named, *state > 3 || *state != 0 && !fine);
            }
            prop_assert_eq!(
                entries.len() + losses.len() + wrong.len(),
                model.values().filter(|(.., state)| *state != 0).count()
            );
        }

        /// Any bytes behind a superblock's and table's magic: no panic.
        #[test]
        fn hostile_images_never_panic(
            noise in proptest::collection::vec((0usize..BLOCKS, 0usize..4096, any::<u8>()), 0..60),
            seals in any::<bool>(),
        ) {
            let mut disk = Disk::new(2, &mut Random(7));
            for (block, byte, value) in noise {
                let places = disk.metadata();
                let (at, number, copy) = places[block % places.len()];
                disk.blocks[at][byte] = value;
                match number {
                    None if seals => update_superblock(
                        &mut disk.blocks[at], copy as u64, &disk.superblock, crc,
                    ),
                    Some(_) if seals => seal_table_block(&mut disk.blocks[at], 5, crc),
                    _ => (),
                }
            }
            let _ = activate(&disk.blocks);
        }
    }
}
