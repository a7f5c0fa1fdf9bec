// SPDX-License-Identifier: GPL-2.0

//! Growing a region that is not in use: what is written, and in which order.
//!
//! Slots stay where they are. All metadata get places in what is added, so that those which count
//! until then are not touched:
//!
//! 1. [`prepare`] copies the tables. Nothing leads to the copies yet: after a cut the region is as it
//!    was, may be used, and is grown anew.
//! 2. [`finish`] makes each superblock say that the region is growing. As long as one copy says so,
//!    nobody but `finish` uses the region. So there is no moment at which one copy leads to the old
//!    tables and another to the new ones, and both are written to.
//! 3. It gives the old last block up, so that nothing leads to the old tables any more, and then
//!    makes the superblocks say that the region has grown.
//!
//! Superblocks are written one after the other: a cut tears one at most. A block that holds no
//! superblock yet, or no more, gets text: with the first superblock lost as well, zeroes would look
//! like a blank region.

use super::format::{
    blank_table_block, grow_superblock, next_in_use, seal_table_block, Block, Crc32c, Growth,
    Superblock, Uuid,
};
use super::geometry::{Geometry, BLOCK_SECTORS, BLOCK_SIZE, MAX_COPIES};
use super::image::{compare, text};
use super::Refusal;
use core::fmt;

/// A region, read and written in blocks.
pub trait Disk {
    /// Why that failed.
    type Error: From<Unfit>;
    /// Reads a block.
    fn read(&mut self, number: u64, to: &mut Block) -> Result<(), Self::Error>;
    /// Writes a block; durable after [`Self::sync`].
    fn write(&mut self, number: u64, from: &Block) -> Result<(), Self::Error>;
    /// Makes all durable that was written.
    fn sync(&mut self) -> Result<(), Self::Error>;
}

/// A table block cannot be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// Its number.
    pub block: u64,
    /// Why not.
    pub why: Refusal,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table block {}: {}", self.block, text(self.why))
    }
}

impl core::error::Error for Unfit {}

/// What lies in the last block of a region before and after there is a superblock in it.
const NO_SUPERBLOCK: &[u8] = b"dm-remap: no superblock here, see dmremap grow\n";

fn no_superblock(uuid: &Uuid) -> Block {
    let mut block = [0; BLOCK_SIZE];
    let bytes = NO_SUPERBLOCK.iter().chain(uuid);
    block
        .iter_mut()
        .zip(bytes)
        .for_each(|(to, from)| *to = *from);
    block
}

/// Whether `block`, the last one of a region, says that the spare `uuid` was to grow up to it.
pub fn is_prepared(block: &Block, uuid: &Uuid) -> bool {
    *block == no_superblock(uuid)
}

fn last_block(sectors: u64) -> u64 {
    (sectors / BLOCK_SECTORS).saturating_sub(1)
}

fn put<D: Disk>(disk: &mut D, number: u64, block: &Block) -> Result<(), D::Error> {
    disk.write(number, block)?;
    disk.sync()
}

/// Copies the tables of a region, which are usable, to where `new` has them.
///
/// Writes all that [`finish`] will write, so that a block which takes no write is met now, when the
/// region can still be used as it is.
pub fn prepare<D: Disk>(
    disk: &mut D,
    old: &Superblock,
    new: &Geometry,
    crc32c: Crc32c,
) -> Result<(), D::Error> {
    let mut block = no_superblock(&old.uuid);
    put(disk, last_block(new.spare_sectors), &block)?;
    for number in [last_block(old.geometry.spare_sectors), 0] {
        disk.read(number, &mut block)?;
        put(disk, number, &block)?;
    }
    let mut in_use = old.geometry.first_part();
    let mut number = 0;
    while number < in_use.max(new.first_part()) {
        let generation = if number < in_use {
            read_table_block(disk, old, number, &mut block, crc32c)?
        } else {
            blank_table_block(&mut block, &old.uuid, number, crc32c);
            1
        };
        seal_table_block(&mut block, generation + 1, crc32c);
        for copy in 0..new.areas().len() {
            disk.write(new.table_sector(copy, number) / BLOCK_SECTORS, &block)?;
        }
        number += 1;
        if number == in_use && old.geometry.is_next_part(in_use, next_in_use(&block)) {
            in_use = next_in_use(&block);
        }
    }
    disk.sync()
}

/// Reads the replica of table block `number` that counts. Returns its generation, which has a next.
fn read_table_block<D: Disk>(
    disk: &mut D,
    superblock: &Superblock,
    number: u64,
    block: &mut Block,
    crc32c: Crc32c,
) -> Result<u64, D::Error> {
    let g = &superblock.geometry;
    let mut room = [[0; BLOCK_SIZE]; MAX_COPIES as usize];
    let mut replicas = [None; MAX_COPIES as usize];
    for ((copy, to), replica) in (0..g.areas().len()).zip(&mut room).zip(&mut replicas) {
        let read = disk.read(g.table_sector(copy, number) / BLOCK_SECTORS, to);
        *replica = read.is_ok().then_some(&*to);
    }
    let found = compare(&replicas, &superblock.uuid, number, crc32c);
    let newest = found.newest.and_then(|copy| *replicas.get(copy)?);
    let unfit = |why| Unfit { block: number, why };
    *block = *newest.ok_or(unfit(c"no valid replica"))?;
    if found.generation >= u64::MAX - 1 {
        return Err(unfit(c"its generation is the last that there can be").into());
    }
    Ok(found.generation)
}

/// Makes all superblocks say what `growth` does. The tables are prepared, and `block` is one of the
/// region's superblocks.
pub fn finish<D: Disk>(
    disk: &mut D,
    block: &mut Block,
    growth: &Growth,
    crc32c: Crc32c,
) -> Result<(), D::Error> {
    let old_last = last_block(growth.from);
    let last = last_block(growth.superblock.geometry.spare_sectors);
    for (number, copy) in [(old_last, 1), (0, 0), (last, 1)] {
        grow_superblock(block, copy, growth, false, crc32c);
        put(disk, number, block)?;
    }
    let uuid = &growth.superblock.uuid;
    put(disk, old_last, &no_superblock(uuid))?;
    if growth.superblock.geometry.data_start >= 2 * BLOCK_SECTORS {
        // The old last block may become a slot of zeroes. No slot is here, where a region that has
        // lost its superblocks shows that it is not blank.
        let mut table = [0; BLOCK_SIZE];
        blank_table_block(&mut table, uuid, 0, crc32c);
        seal_table_block(&mut table, 2, crc32c);
        put(disk, 1, &table)?;
    }
    let mut grown = growth.clone();
    grown.superblock.generation += 1;
    for (number, copy) in [(last, 1), (0, 0)] {
        grow_superblock(block, copy, &grown, true, crc32c);
        put(disk, number, block)?;
    }
    Ok(())
}
