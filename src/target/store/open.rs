// SPDX-License-Identifier: GPL-2.0

//! What lies in the region, and bringing it into force.

use super::{as_block, as_block_mut, check::Checked, window::Window, Store, AHEAD, BLOCK};
use crate::dm::{self, BlkStatus, Device, Durability, IoBuffer, Refused};
use crate::engine::{
    format::{self, Block, Superblock},
    geometry::{BLOCK_SECTORS, BLOCK_SIZE},
    group::Places,
    image::{self, Found, Severity},
};
use crate::target::entries::Entries;
use core::ops::Range;
use kernel::prelude::*;

use super::Disk;

impl Store<'_> {
    /// Looks for superblocks in the region of `length` sectors (a multiple of 8) from `start`.
    ///
    /// `None`: the region is blank ([`image::ends`]). Refused: anything else that is not ours. May sleep.
    pub(in super::super) fn probe(
        spare: Device<'_>,
        start: u64,
        length: u64,
    ) -> Result<Option<Found>, Refused> {
        let blocks = length / BLOCK_SECTORS;
        let mut window = Window::new()?;
        let mut one = IoBuffer::new(BLOCK_SIZE)?;
        let mut room = IoBuffer::new(BLOCK_SIZE)?;
        let mut is_readable = true;
        let mut read = |numbers: Range<u64>, to: &mut Block| {
            let sector = |number: u64| start + number * BLOCK_SECTORS;
            let block = window.block(numbers, spare, &sector, &mut one);
            is_readable &= block.is_some();
            block.map(|block| *to = *block).is_some()
        };
        let room = as_block_mut(room.bytes_mut(), 0).ok_or(c"No room for a block")?;
        let judged = image::ends(&mut read, blocks, room, dm::crc32c).judge();
        let error = if is_readable { EINVAL } else { EIO };
        judged.map_err(|why| Refused(why, error))
    }

    /// How many table blocks of the spare are in use, as far as its table can be read: for what is allocated. May sleep.
    pub(in super::super) fn blocks_in_use(
        spare: Device<'_>,
        start: u64,
        superblock: &Superblock,
    ) -> Result<u64> {
        let mut one = IoBuffer::new(BLOCK_SIZE)?;
        let mut room = IoBuffer::new(BLOCK_SIZE)?;
        let mut read = |numbers: Range<u64>, to: &mut Block| {
            let sector = start + numbers.start * BLOCK_SECTORS;
            let read = !dm::is_killed() && spare.read(sector, BLOCK, &mut one).is_ok();
            if let Some(block) = as_block(one.bytes(), 0).filter(|_| read) {
                *to = *block;
            }
            read
        };
        let room = as_block_mut(room.bytes_mut(), 0).ok_or(EINVAL)?;
        Ok(image::in_use(superblock, &mut read, room, dm::crc32c))
    }
    /// Says in the kernel log what is wrong.
    fn refuse(&self, Refused(why, error): Refused) -> Error {
        pr_err!("{}: {}\n", self.name(), why.to_str().unwrap_or("?"));
        error
    }

    /// Opens the spare, formatting it if it is blank and `format` allows it, and loads `entries`.
    /// Repairs replicas if `writable`. May sleep; the target must be suspended. Says in the kernel
    /// log what is wrong.
    pub(in super::super) fn activate(
        &self,
        entries: &Entries,
        writable: bool,
        format: bool,
    ) -> Result {
        let g = &self.geometry;
        let found = Self::probe(self.spare.device(), self.spare.start(), g.spare_sectors);
        let found = match found.map_err(|why| self.refuse(why))? {
            None if !writable || !format => {
                let why = c"Spare is blank, and must not be formatted";
                return Err(self.refuse(why.into()));
            }
            None => {
                self.format()?;
                return entries.load(&[], &[]);
            }
            Some(found) if found.superblock.geometry != *g => {
                let why = c"Spare was formatted anew since the table was loaded";
                return Err(self.refuse(why.into()));
            }
            Some(found) if !self.rebind && found.superblock.main.contradicts(&self.main) => {
                let why = c"Spare was bound to another main since the table was loaded";
                return Err(self.refuse(why.into()));
            }
            Some(found) => found,
        };
        let doubt = found
            .findings()
            .find(|f| f.severity() != Severity::Mendable);
        if let Some(finding) = doubt {
            pr_err!("{}: {}\n", self.name(), finding);
            return Err(EINVAL);
        }
        let mut disk = self.disk.lock();
        disk.uuid = found.superblock.uuid;
        let copy = found.newest();
        let sector = self.sector(g.superblock_sector(copy));
        let read = self.spare.read(sector, BLOCK, &mut disk.superblock);
        // The copies will be made from this one: it must be what was judged.
        let same = as_block(disk.superblock.bytes(), 0).is_some_and(|b| {
            Superblock::read(b, copy, dm::crc32c).as_ref() == Ok(&found.superblock)
        });
        if read.is_err() || !same {
            let why = c"Superblock: cannot be read a second time";
            return Err(self.refuse(Refused(why, EIO)));
        }
        let damaged = self.load(&mut disk, &found.superblock, entries)?;
        if !writable {
            disk.owed.clear();
            return Ok(());
        }
        let mut mended = Checked::default();
        self.record_main(&mut disk, &found.superblock);
        self.check_superblocks(&mut disk, &mut mended);
        for number in &damaged {
            self.check_block(&mut disk, *number, entries, &mut mended);
        }
        let left = (mended.stale + mended.damaged).saturating_sub(mended.repaired);
        // By chance, so that two replicas that were written apart do not have the same generation.
        let chance = u64::from(u16::from_ne_bytes(dm::random_bytes()));
        disk.step = if left != 0 { AHEAD + chance } else { 1 };
        if mended.repaired != 0 || left != 0 {
            pr_warn!(
                "{}: metadata blocks repaired: {}, cannot be written: {}\n",
                self.name(),
                mended.repaired,
                left
            );
        }
        drop(disk);
        // What a cut left to be done. If it cannot be done now, nothing else is before it.
        self.flush();
        Ok(())
    }

    /// Writes both superblocks and an empty table: the first superblock last, so that an interrupted
    /// format leaves a region that is blank at its start or complete.
    fn format(&self) -> Result {
        let g = &self.geometry;
        let uuid = dm::random_bytes();
        let mut disk = self.disk.lock();
        disk.uuid = uuid;
        disk.places = Places::default();
        disk.table.clear();
        disk.table.reserve(g.first_part() as usize, GFP_KERNEL)?;
        disk.parts.clear();
        let fail = |status: BlkStatus| {
            pr_err!("{}: cannot format the spare: {:?}\n", self.name(), status);
            EIO
        };
        let in_use = g.first_part();
        // All of them: a spare that begins with a replica that cannot be written is not worth it.
        self.write_blank_blocks(&mut disk, 0..in_use)
            .map_err(fail)?;
        disk.parts.push(in_use, GFP_KERNEL)?;
        *self.slots.lock() = Self::slots_of(g, in_use)?;
        let superblock = Superblock {
            uuid,
            generation: 1,
            read_only: false,
            geometry: *g,
            created: dm::unix_seconds(),
            label: [0; 64],
            main: self.main,
        };
        self.spare.device().flush().map_err(fail)?;
        for copy in [1, 0] {
            let block = as_block_mut(disk.superblock.bytes_mut(), 0).ok_or(EINVAL)?;
            superblock.write(block, copy, dm::crc32c);
            let sector = self.sector(g.superblock_sector(copy));
            self.spare
                .write(sector, BLOCK, &mut disk.superblock, Durability::Durable)
                .map_err(fail)?;
        }
        pr_info!(
            "{}: formatted the spare: {} slots of {} sectors\n",
            self.name(),
            g.slots_total,
            g.unit_sectors
        );
        Ok(())
    }

    /// Makes the superblock say which main this is, if it does not, and may be changed. What cannot be written now is at the
    /// next activation.
    fn record_main(&self, disk: &mut Disk, found: &Superblock) {
        let is_new = self.main.is_known() && !found.main.is_known();
        let Some(generation) = found.generation.checked_add(1) else {
            return;
        };
        if !(is_new || self.rebind && self.main != found.main) || generation == u64::MAX {
            return;
        }
        let new = Superblock {
            generation,
            main: self.main,
            ..found.clone()
        };
        pr_info!(
            "{}: the spare belongs to {} from now on\n",
            self.name(),
            new.main
        );
        for copy in [0, 1] {
            if let Some(block) = as_block_mut(disk.superblock.bytes_mut(), 0) {
                format::update_superblock(block, copy, &new, dm::crc32c);
            }
            let sector = self.sector(self.geometry.superblock_sector(copy));
            let done = self
                .spare
                .write(sector, BLOCK, &mut disk.superblock, Durability::Durable);
            self.errors.add(u64::from(done.is_err()));
        }
    }
}
