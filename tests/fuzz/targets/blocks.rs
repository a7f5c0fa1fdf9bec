// SPDX-License-Identifier: GPL-2.0

//! Single blocks.

use super::sample::{half, is_intact, sample, seal, set_word, word, UUID};
use super::take;
use crate::image::crc32c;
use dm_remap::engine::format::{
    each_record, record, seal_table_block, set_record, table_generation, update_superblock, Block,
    Cause, Fault, Origin, State, Superblock, Update,
};
use dm_remap::engine::geometry::{Geometry, BLOCK_SIZE};
use dm_remap::engine::identity::{DiskId, IdKind, Identity};
use dm_remap::engine::{Slot, Unit};

/// What [`each_record`] tells; without what is wrong with a record, and without slots.
fn origins(block: &Block, number: u64, g: &Geometry) -> Vec<(usize, Option<(State, Origin)>)> {
    let mut all = Vec::new();
    each_record(block, number, g, |index, record| {
        if let Ok(record) = &record {
            assert_eq!(g.slot_at(number, index as u64), Some(record.slot));
        }
        all.push((index, record.ok().map(|r| (r.state, r.origin))));
    });
    all
}

/// The sectors of `slot`.
fn sectors_of(g: &Geometry, slot: u64) -> std::ops::Range<u128> {
    let unit = u128::from(g.unit_sectors);
    let start = u128::from(g.data_start) + u128::from(slot) * unit;
    start..start + unit
}

/// Whether `slot` shares a sector with an area.
fn is_reserved(g: &Geometry, slot: u64) -> bool {
    let slot = sectors_of(g, slot);
    g.area_start[..g.copies as usize].iter().any(|area| {
        let start = u128::from(*area) * 8;
        start < slot.end && slot.start < start + u128::from(g.table_blocks) * 8
    })
}

/// Whether this version of the format may read it.
fn is_known(superblock: &Block) -> bool {
    half(superblock, 12) == 1 && word(superblock, 64) == 0
}

/// The generation of superblock `copy` if it is valid: docs/format.md, section 6, point 1.
pub(super) fn superblock_generation(block: &Block, copy: u64) -> Option<u64> {
    let valid = is_intact(block, b"RMAPSUPR") && is_known(block) && is_sound(block, copy);
    valid.then(|| word(block, 40))
}

/// docs/format.md, section 4.
fn is_sound(block: &Block, copy: u64) -> bool {
    let wide = |at| u128::from(word(block, at));
    let (unit, copies) = (u128::from(half(block, 88)), half(block, 92) as usize);
    let (slots, tables, data_start) = (wide(96), wide(104), wide(112));
    let (spare, main) = (wide(120), wide(128));
    let ends_before_last = |sector| sector + 8 <= spare;
    if !matches!(unit, 1 | 2 | 4 | 8 | 16 | 32 | 64) || !(2..=4).contains(&copies) {
        return false;
    }
    let mut areas: Vec<_> = (0..copies).map(|k| wide(136 + 8 * k)).collect();
    areas.sort_unstable();
    word(block, 32) == copy
        && word(block, 40) != u64::MAX
        && (1..1 << 32).contains(&slots)
        && tables * 126 >= slots
        && tables <= 1 << 26
        && data_start >= 8
        && data_start % unit == 0
        && ends_before_last(data_start + slots * unit)
        && spare % 8 == 0
        && spare < 1 << 63
        && (1..1 << 63).contains(&main)
        && areas[0] >= 1
        && areas.windows(2).all(|pair| pair[0] + tables <= pair[1])
        && ends_before_last((areas[copies - 1] + tables) * 8)
        && is_main(block)
}

/// Whether what is said of main can be.
fn is_main(block: &Block) -> bool {
    let text = block[248..288].split(|b| *b == 0).next().unwrap();
    let id = &block[288..304];
    let (kind, length, start) = (
        half(block, 304),
        half(block, 308) as usize,
        word(block, 312),
    );
    let is_zero = |bytes: &[u8]| bytes.iter().all(|b| *b == 0);
    let is_unknown = kind == 0 && length == 0 && start == 0 && is_zero(id);
    let is_text = |b: &u8| (0x21..0x7f).contains(b) && !b.is_ascii_uppercase();
    text.len() < 40
        && text.iter().all(is_text)
        && is_zero(&block[248 + text.len()..288])
        && (is_unknown
            || matches!(kind, 1..=3)
                && (1..=16).contains(&length)
                && !is_zero(&id[..length])
                && is_zero(&id[length..]))
}

/// One superblock. Input: copy (bit 0), leave the checksum (bit 1), sample (from bit 2); edits of a
/// word's index and 8 bytes.
pub fn superblock(mut data: &[u8]) -> bool {
    let [choice] = take(&mut data);
    let copy = u64::from(choice & 1);
    let sample = sample(choice >> 2);
    let (place, _) = sample.metadata[copy as usize];
    let mut block = sample.blocks[place as usize];
    while !data.is_empty() {
        let [index] = take(&mut data);
        set_word(
            &mut block,
            usize::from(index % 40),
            u64::from_le_bytes(take(&mut data)),
        );
    }
    if choice & 2 == 0 {
        seal(&mut block);
    }

    let read = Superblock::read(&block, copy, crc32c);
    match (is_intact(&block, b"RMAPSUPR"), is_known(&block)) {
        (true, false) => assert!(matches!(read, Err(Fault::Unsupported(_)))),
        (true, true) if is_sound(&block, copy) => {
            check_superblock(read.unwrap(), &block, copy);
            return true;
        }
        _ => assert!(matches!(read, Err(Fault::Damaged(_)))),
    }
    false
}

/// What was read from a sound block is what is in it, and can be worked with.
fn check_superblock(read: Superblock, block: &Block, copy: u64) {
    let g = read.geometry;
    assert_eq!(g.checked(), Ok(g));
    assert_eq!(
        (g.unit_sectors, g.copies),
        (half(block, 88), half(block, 92))
    );
    assert_eq!(
        [
            g.slots_total,
            g.table_blocks,
            g.data_start,
            g.spare_sectors,
            g.main_sectors
        ],
        [96, 104, 112, 120, 128].map(|at| word(block, at))
    );
    assert_eq!(g.area_start, [136, 144, 152, 160].map(|at| word(block, at)));
    assert_eq!(read.read_only, word(block, 72) != 0);

    let main = read.main;
    let partition = main.partition().unwrap_or_default().as_bytes();
    assert_eq!(&block[248..248 + partition.len()], partition);
    assert!(block[248 + partition.len()..288].iter().all(|b| *b == 0));
    let (id, start) = main.disk.map_or((&[][..], 0), |(id, start)| {
        (block[288..].split_at(id.bytes().len()).0, start)
    });
    assert_eq!(main.disk.as_ref().map_or(&[][..], |(id, _)| id.bytes()), id);
    assert_eq!(
        (half(block, 308) as usize, word(block, 312)),
        (id.len(), start)
    );
    assert!(main.to_string().is_ascii() && !main.contradicts(&main));

    // Written and read, it says the same but for features that it may not write under.
    let mut again = [0; BLOCK_SIZE];
    read.write(&mut again, copy, crc32c);
    let plain = Superblock {
        read_only: false,
        ..read.clone()
    };
    assert_eq!(Superblock::read(&again, copy, crc32c), Ok(plain));
    // An update leaves all else, known or not.
    again = *block;
    let next = Superblock {
        generation: read.generation / 2,
        label: [7; 64],
        main: Identity::new(
            b"0-1",
            DiskId::new(IdKind::Naa, [7; 16], 8).map(|id| (id, 9)),
        )
        .unwrap(),
        ..read
    };
    update_superblock(&mut again, 1 - copy, &next, crc32c);
    assert_eq!(Superblock::read(&again, 1 - copy, crc32c), Ok(next));
    for at in [8..12, 32..48, 176..240, 248..320] {
        again[at.clone()].copy_from_slice(&block[at]);
    }
    assert_eq!(again, *block);

    // No sum overflows, every slot has its place, every unit its sectors.
    let ends = [0, 1, g.slots_total / 2, g.slots_total - 1].map(|slot| Slot(slot as u32));
    for slot in g.reserved(0..g.slots_total).take(9).chain(ends) {
        let number = u64::from(slot.0);
        if number < g.slots_total {
            assert_eq!(
                u128::from(g.slot_sector(slot)),
                sectors_of(&g, number).start
            );
            assert_eq!(g.is_reserved(slot), is_reserved(&g, number));
            let (block, index) = g.record_of(slot);
            assert!(block < g.table_blocks);
            assert_eq!(g.slot_at(block, index as u64), Some(slot));
        }
    }
    assert!(g
        .reserved(0..g.slots_total)
        .take(9)
        .all(|slot| is_reserved(&g, u64::from(slot.0))));
    let last = Unit(g.units() - 1);
    assert_eq!(g.unit_of(g.main_sectors - 1), last);
    let sectors = u64::from(g.unit_mask(last).count_ones());
    assert_eq!(g.unit_start(last) + sectors, g.main_sectors);
    assert_eq!(g.unit_mask(Unit(g.units())), 0);
}

/// The generation of a table block if it is valid: docs/format.md, section 6, point 3.
pub(super) fn table_block_generation(block: &Block, uuid: &[u8; 16], number: u64) -> Option<u64> {
    let valid = is_intact(block, b"RMAPTABL")
        && half(block, 12) == 1
        && block[16..32] == *uuid
        && word(block, 32) == number
        && word(block, 40) != u64::MAX;
    valid.then(|| word(block, 40))
}

/// Whether it is a table block of any spare as formatting makes it: docs/format.md, section 6, point 2.
pub(super) fn is_unused_table(block: &Block) -> bool {
    is_intact(block, b"RMAPTABL")
        && half(block, 12) == 1
        && word(block, 40) == 1
        && (0..126).all(|index| half(block, 80 + 32 * index) == 0)
}

/// What record `index` of table block `number` says, if it may: docs/format.md, section 6, point 4.
pub(super) fn state(block: &Block, number: u64, index: usize, g: &Geometry) -> Option<State> {
    let at = 64 + 32 * index;
    let (unit, mask) = (word(block, at), word(block, at + 8));
    let state = match half(block, at + 16) {
        0 => return Some(State::Free),
        1 => State::Entry {
            unit: Unit(unit),
            mask,
        },
        2 => State::Bad {
            unit: Unit(unit),
            lost: mask,
        },
        3 => State::Moved {
            unit: Unit(unit),
            mask,
        },
        _ => return None,
    };
    let sectors = u128::from(g.unit_sectors);
    let left = u128::from(g.main_sectors).checked_sub(u128::from(unit) * sectors)?;
    let slot = u128::from(number) * 126 + index as u128;
    let possible = left > 0
        && u128::from(mask) < 1 << left.min(sectors)
        && slot < u128::from(g.slots_total)
        && !is_reserved(g, slot as u64);
    possible.then_some(state)
}

/// One table block. Input: leave the checksum (bit 0), sample (from bit 1); the number that is asked
/// for; edits of a word's index and 8 bytes.
pub fn table_block(mut data: &[u8]) -> bool {
    let [choice, number] = take(&mut data);
    let sample = sample(choice >> 1);
    let g = &sample.geometry;
    let place = |number| (g.table_sector(0, number) / 8) as usize;
    let mut block = sample.blocks[place(u64::from(number) % g.table_blocks)];
    // Of blocks that the table has not, as well.
    let number = u64::from(number % 8);
    while !data.is_empty() {
        let index = usize::from(u16::from_le_bytes(take(&mut data)));
        set_word(
            &mut block,
            index % (BLOCK_SIZE / 8),
            u64::from_le_bytes(take(&mut data)),
        );
    }
    if choice & 1 == 0 {
        seal(&mut block);
    }

    let expected = table_block_generation(&block, &UUID, number);
    let read = table_generation(&block, &UUID, number, crc32c);
    assert_eq!(read.ok(), expected);
    let mut last = (0, State::Free);
    let mut sound = true;
    let mut each = origins(&block, number, g).into_iter();
    for index in 0..126 {
        let expected = state(&block, number, index, g);
        assert_eq!(
            record(&block, number, index, g).ok(),
            expected,
            "record {index}"
        );
        let (cause, changed) = (half(&block, 84 + 32 * index), word(&block, 88 + 32 * index));
        match expected {
            None => {
                sound = false;
                assert_eq!(each.next(), Some((index, None)));
            }
            Some(State::Free) => (),
            Some(state) => {
                last = (index, state);
                let said = (state, Origin { cause, changed });
                assert_eq!(each.next(), Some((index, Some(said))));
            }
        }
    }
    assert_eq!(each.next(), None);
    assert!(record(&block, number, 126, g).is_err());
    let Some(generation) = expected.filter(|generation| *generation < u64::MAX - 1) else {
        return false;
    };

    // A record that is written again says the same, and no other byte changes.
    let (index, state) = last;
    let mut again = block;
    let (slot, cause) = (Slot(0), Cause::Scrub);
    set_record(&mut again, index, &Update { slot, state, cause }, 77);
    assert_eq!(record(&again, number, index, g), Ok(state));
    let said = Origin {
        cause: 4,
        changed: 77,
    };
    assert!(
        state == State::Free || origins(&again, number, g).contains(&(index, Some((state, said))))
    );
    seal_table_block(&mut again, generation + 1, crc32c);
    assert_eq!(
        table_generation(&again, &UUID, number, crc32c),
        Ok(generation + 1)
    );
    let record = 64 + 32 * index;
    for at in [8..12, 40..48, record..record + 32] {
        again[at.clone()].copy_from_slice(&block[at]);
    }
    assert_eq!(again, block);
    sound
}
