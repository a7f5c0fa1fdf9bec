// SPDX-License-Identifier: GPL-2.0

//! Sound images, and access to the fields of their blocks without the engine.

use crate::image::Image;
use dm_remap::engine::format::{Block, Cause, State};
use dm_remap::engine::geometry::{Geometry, BLOCK_SIZE};
use dm_remap::engine::{Slot, Unit};
use std::sync::LazyLock;

pub(super) const UUID: [u8; 16] = *b"0123456789abcdef";
const CRC: usize = 8;

/// A sound image.
pub(super) struct Sample {
    pub(super) geometry: Geometry,
    pub(super) blocks: Vec<Block>,
    /// The metadata blocks: of each its place, and of what it is a copy (`None`: the superblock).
    pub(super) metadata: Vec<(u64, Option<u64>)>,
}

/// The sample that an input chooses.
pub(super) fn sample(choice: u8) -> &'static Sample {
    // The example of docs/format.md; two table blocks; reserved slots; large units, and few slots.
    static SAMPLES: LazyLock<[Sample; 4]> =
        LazyLock::new(|| [(6, 4, 2), (30, 1, 2), (30, 1, 3), (56, 64, 4)].map(Sample::new));
    &SAMPLES[usize::from(choice) % SAMPLES.len()]
}

impl Sample {
    fn new((blocks, unit_sectors, copies): (u64, u32, u32)) -> Self {
        let g = Geometry::plan(1003, blocks * 8, unit_sectors, copies).unwrap();
        let mut image = Image::new(g, UUID, "sample");
        // Some slots of every table block, and the last one.
        let total = g.slots_total as u32;
        let some = |slot: &u32| slot % 126 < 9 || slot + 1 == total;
        let usable = |slot: &u32| !g.is_reserved(Slot(*slot));
        for (n, slot) in (0..).zip((0..total).filter(some).filter(usable)) {
            let last = g.units() - 1;
            match n % 4 {
                // A slot that failed, and the entry that the unit has since.
                0 => {
                    let (unit, lost) = (Unit(n), 1);
                    image.set(slot, State::Bad { unit, lost }, Cause::Read, 1_800_000_000);
                }
                1 => image.set_entry(slot, n - 1, g.unit_mask(Unit(n - 1)) & !1),
                2 => image.set_entry(slot, last - n, g.unit_mask(Unit(last - n))),
                _ => image.set(slot, State::BAD, Cause::Write, 1_800_000_000),
            }
        }
        image.seal(5);
        let bytes = image.bytes();
        let areas = (0..g.areas().len()).flat_map(|copy| {
            let place = move |number| (g.table_sector(copy, number) / 8, Some(number));
            (0..g.table_blocks).map(place)
        });
        Self {
            geometry: g,
            blocks: bytes
                .chunks(BLOCK_SIZE)
                .map(|b| b.try_into().unwrap())
                .collect(),
            metadata: [(0, None), (blocks - 1, None)]
                .into_iter()
                .chain(areas)
                .collect(),
        }
    }
}

/// Field of 8 bytes at byte `at`.
pub(super) fn word(block: &Block, at: usize) -> u64 {
    u64::from_le_bytes(block[at..at + 8].try_into().unwrap())
}

/// Field of 4 bytes at byte `at`.
pub(super) fn half(block: &Block, at: usize) -> u32 {
    u32::from_le_bytes(block[at..at + 4].try_into().unwrap())
}

/// Replaces 8 bytes of `block`, the `index`th ones.
pub(super) fn set_word(block: &mut Block, index: usize, value: u64) {
    block[index * 8..index * 8 + 8].copy_from_slice(&value.to_le_bytes());
}

fn checksum(block: &Block) -> u32 {
    let crc = crc32c::crc32c(&block[..CRC]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &block[CRC + 4..])
}

/// Whether magic and checksum of `block` are right.
pub(super) fn is_intact(block: &Block, magic: &[u8; 8]) -> bool {
    block.starts_with(magic) && half(block, CRC) == checksum(block)
}

/// Puts the checksum right.
pub(super) fn seal(block: &mut Block) {
    let crc = checksum(block);
    block[CRC..CRC + 4].copy_from_slice(&crc.to_le_bytes());
}
