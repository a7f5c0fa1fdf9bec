// SPDX-License-Identifier: GPL-2.0

//! Images made by the engine, to be read by something else.

use dm_remap::engine::format::{
    blank_table_block, seal_table_block, set_next_in_use, set_record, Block, Cause, State,
    Superblock, Update, Uuid,
};
use dm_remap::engine::geometry::{Geometry, BLOCK_SIZE};
use dm_remap::engine::identity::Identity;
use dm_remap::engine::{Slot, Unit};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

pub(crate) fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc, bytes)
}

/// The metadata of a region in memory, all of whose table blocks are in use: the last version of each.
pub(crate) struct Image {
    pub(crate) geometry: Geometry,
    pub(crate) tables: Vec<Block>,
    pub(crate) main: Identity,
    uuid: Uuid,
    label: [u8; 64],
    generation: u64,
}

impl Image {
    pub(crate) fn new(geometry: Geometry, uuid: Uuid, label: &str) -> Self {
        let mut padded = [0; 64];
        padded[..label.len()].copy_from_slice(label.as_bytes());
        let table = |number| {
            let mut block = [0; BLOCK_SIZE];
            blank_table_block(&mut block, &uuid, number, crc32c);
            block
        };
        let mut tables: Vec<Block> = (0..geometry.table_blocks).map(table).collect();
        let mut in_use = geometry.first_part();
        while let Some(next) = geometry.next_part(in_use) {
            set_next_in_use(&mut tables[in_use as usize - 1], next);
            in_use = next;
        }
        Self {
            geometry,
            tables,
            main: Identity::default(),
            uuid,
            label: padded,
            generation: 1,
        }
    }

    pub(crate) fn set(&mut self, slot: u32, state: State, cause: Cause, now: u64) {
        let slot = Slot(slot);
        let (number, index) = self.geometry.record_of(slot);
        let update = Update { slot, state, cause };
        set_record(&mut self.tables[number as usize], index, &update, now);
    }

    pub(crate) fn set_entry(&mut self, slot: u32, unit: u64, mask: u64) {
        let unit = Unit(unit);
        let state = State::Entry { unit, mask };
        self.set(slot, state, Cause::Write, 1_800_000_000);
    }

    /// Gives every table block that generation.
    pub(crate) fn seal(&mut self, generation: u64) {
        self.generation = generation;
        for block in &mut self.tables {
            seal_table_block(block, generation, crc32c);
        }
    }

    /// The region, slots zero.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; (self.geometry.spare_sectors * 512) as usize];
        self.put(|at, block| bytes[at as usize..at as usize + BLOCK_SIZE].copy_from_slice(block));
        bytes
    }

    /// Makes a file of it, with holes where it is zero.
    pub(crate) fn save(&self, path: &Path) {
        let file = File::create(path).unwrap();
        file.set_len(self.geometry.spare_sectors * 512).unwrap();
        self.put(|at, block| file.write_all_at(block, at).unwrap());
    }

    /// Gives each block, and the byte where it begins, to `to`.
    fn put(&self, mut to: impl FnMut(u64, &Block)) {
        let g = &self.geometry;
        for copy in [0, 1] {
            let mut block = [0; BLOCK_SIZE];
            let superblock = Superblock {
                uuid: self.uuid,
                generation: 1,
                read_only: false,
                geometry: *g,
                created: 1_800_000_000,
                label: self.label,
                main: self.main,
            };
            superblock.write(&mut block, copy, crc32c);
            to(g.superblock_sector(copy) * 512, &block);
        }
        for copy in 0..g.areas().len() {
            for (number, block) in (0..).zip(&self.tables) {
                to(g.table_sector(copy, number) * 512, block);
            }
        }
    }
}
