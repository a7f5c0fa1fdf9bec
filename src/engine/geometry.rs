// SPDX-License-Identifier: GPL-2.0

//! Where metadata and slots lie in the spare region.
//!
//! ```text
//! block 0        superblock, copy 0
//! area 0         table_blocks blocks, right behind it
//! slots          slot i begins at sector data_start + i * unit_sectors
//!   area 1..     with more than two replicas: evenly between, inside the run of slots
//! last area      right before ...
//! last block     superblock, copy 1
//! ```
//!
//! Slots are numbered through: a slot whose sectors meet an area in the middle keeps its number
//! and is never given out ([`Geometry::is_reserved`]).
//!
//! In a region that was grown ([`Geometry::grown`]) all areas lie in what was added: the first where
//! the region ended before. What lies between the first superblock and slot 0 is not used any more.

use super::{Refusal, Slot, Unit};
use core::ops::Range;

/// Size of a metadata block in bytes.
pub const BLOCK_SIZE: usize = 4096;
/// Size of a metadata block in sectors.
pub const BLOCK_SECTORS: u64 = 8;
/// Records in one table block.
pub const RECORDS_PER_BLOCK: u64 = 126;
/// Largest unit in sectors: one bit of the valid mask for each.
pub const MAX_UNIT_SECTORS: u32 = 64;
/// Fewest replicas of the table.
pub const MIN_COPIES: u32 = 2;
/// Most replicas of the table.
pub const MAX_COPIES: u32 = 4;

/// Most blocks of a table: slots have numbers of 32 bits, and 2^32 records need half as many.
///
/// Some memory is allocated for each of them. This keeps it far below what can be allocated in one piece,
/// whatever a superblock says.
pub const MAX_TABLE_BLOCKS: u64 = 1 << 26;

/// Table blocks that formatting makes.
const FIRST_PART: u64 = 4;
/// Most table blocks that are taken in use at a time: 1 MiB of each replica.
const MAX_PART: u64 = 256;

/// Why [`Geometry::grown`] refuses a length.
pub const GROWS_TOO_LITTLE: Refusal =
    c"Spare region must grow by more: its metadata must fit in what is added";

/// The layout of a spare region and what it serves.
///
/// # Invariants
///
/// Established by [`Geometry::plan`] and [`Geometry::checked`], which every other method relies on:
/// - `unit_sectors` is a power of two in `1..=64`; `copies` is in `2..=4`;
/// - the superblocks and the first `copies` areas lie inside the region, no two overlap;
/// - the slots lie between the superblocks, there is at least one, each has a record, and their
///   numbers fit a `u32`; there are at most [`MAX_TABLE_BLOCKS`]; slot 0 does not begin before the end of area 0's superblock;
/// - no product or sum of these fields overflows a `u64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Sectors of a unit and of a slot.
    pub unit_sectors: u32,
    /// Replicas of the table.
    pub copies: u32,
    /// Slots, those reserved included.
    pub slots_total: u64,
    /// Table blocks in each replica.
    pub table_blocks: u64,
    /// First sector of slot 0, from the start of the region.
    pub data_start: u64,
    /// Length of the region in sectors, a multiple of 8.
    pub spare_sectors: u64,
    /// Length of the main device in sectors.
    pub main_sectors: u64,
    /// First block of each replica, from the start of the region; unused ones are 0.
    pub area_start: [u64; MAX_COPIES as usize],
}

impl Geometry {
    /// Lays out a blank region of `spare_sectors` sectors for a main device of `main_sectors`.
    ///
    /// Takes the fewest table blocks that describe every slot.
    pub fn plan(
        main_sectors: u64,
        spare_sectors: u64,
        unit_sectors: u32,
        copies: u32,
    ) -> Result<Self, Refusal> {
        if !unit_sectors.is_power_of_two() || unit_sectors > MAX_UNIT_SECTORS {
            return Err(c"unit_sectors must be a power of two from 1 to 64");
        }
        if !(MIN_COPIES..=MAX_COPIES).contains(&copies) {
            return Err(c"metadata_copies must be from 2 to 4");
        }
        let blank = Self {
            unit_sectors,
            copies,
            slots_total: 0,
            table_blocks: 0,
            data_start: 0,
            spare_sectors: spare_sectors - spare_sectors % BLOCK_SECTORS,
            main_sectors,
            area_start: [0; MAX_COPIES as usize],
        };
        blank
            .fewest_tables(1)
            .ok_or(c"Spare region is too small for its metadata and one slot")?
            .checked()
    }

    /// Lays out this region for a length of `spare_sectors` sectors, which is more.
    ///
    /// Slots keep their places and numbers. All areas lie in what is added, and the slots go on up to
    /// the last of them.
    pub fn grown(&self, spare_sectors: u64) -> Result<Self, Refusal> {
        let longer = Self {
            spare_sectors: spare_sectors - spare_sectors % BLOCK_SECTORS,
            ..*self
        };
        longer
            .fewest_tables(self.spare_sectors / BLOCK_SECTORS)
            .ok_or(GROWS_TOO_LITTLE)?
            .checked()
    }

    /// The layout with the fewest table blocks that describe every slot. The areas lie from block
    /// `first` on.
    fn fewest_tables(&self, first: u64) -> Option<Self> {
        let room = (self.spare_sectors / BLOCK_SECTORS).checked_sub(first + 1)?;
        let suffice = |g: &Self| g.slots_total <= g.table_blocks.saturating_mul(RECORDS_PER_BLOCK);
        // More table blocks leave fewer slots, so "they suffice" is monotonous: bisect.
        let (mut low, mut high) = (1, room.checked_div(u64::from(self.copies))?);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.arrange(first, middle) {
                Some(g) if !suffice(&g) => low = middle + 1,
                _ => high = middle,
            }
        }
        self.arrange(first, low).filter(|g| high > 0 && suffice(g))
    }

    /// Spreads the areas from block `first` to the end. The slots begin at `data_start`; if that is 0,
    /// behind the first area.
    fn arrange(&self, first: u64, table_blocks: u64) -> Option<Self> {
        let blocks = self.spare_sectors / BLOCK_SECTORS;
        let last = blocks.checked_sub(1)?.checked_sub(table_blocks)?;
        let mut area_start = [0; MAX_COPIES as usize];
        let gaps = u64::from(self.copies.checked_sub(1)?);
        for (k, start) in (0..u64::from(self.copies)).zip(area_start.iter_mut()) {
            // k/gaps of the way from the first area to the last.
            let span = last.checked_sub(first)?;
            *start = first + span.checked_mul(k)?.checked_div(gaps)?;
        }
        let data_start = match self.data_start {
            0 => (first + table_blocks)
                .checked_mul(BLOCK_SECTORS)?
                .checked_next_multiple_of(self.unit_sectors.into())?,
            start => start,
        };
        let slots_total =
            last.checked_mul(BLOCK_SECTORS)?.checked_sub(data_start)? >> self.unit_shift();
        Some(Self {
            slots_total,
            table_blocks,
            data_start,
            area_start,
            ..*self
        })
    }

    /// Checks a layout that came from outside against the type's invariants.
    pub fn checked(self) -> Result<Self, Refusal> {
        let unit = u64::from(self.unit_sectors);
        if !self.unit_sectors.is_power_of_two() || self.unit_sectors > MAX_UNIT_SECTORS {
            return Err(c"Superblock: unit_sectors is not a power of two from 1 to 64");
        }
        if !(MIN_COPIES..=MAX_COPIES).contains(&self.copies) {
            return Err(c"Superblock: metadata_copies is not from 2 to 4");
        }
        if self.main_sectors == 0 || self.main_sectors > i64::MAX as u64 {
            return Err(c"Superblock: length of main is out of range");
        }
        if self.spare_sectors % BLOCK_SECTORS != 0 || self.spare_sectors > i64::MAX as u64 {
            return Err(c"Superblock: length of the spare region is out of range");
        }
        if self.slots_total == 0 {
            return Err(c"Spare region is too small for its metadata and one slot");
        }
        if self.slots_total > u64::from(u32::MAX) {
            return Err(
                c"Spare region has more than 2^32 slots: use a smaller one or larger units",
            );
        }
        if self.table_blocks > MAX_TABLE_BLOCKS {
            return Err(c"Superblock: more table blocks than slots can need");
        }
        let blocks = self.spare_sectors / BLOCK_SECTORS;
        let inside = |start: u64, length: u64| {
            start >= 1
                && start
                    .checked_add(length)
                    .is_some_and(|end| end < blocks && length > 0)
        };
        let areas = self.areas();
        if !areas.iter().all(|a| inside(*a, self.table_blocks)) {
            return Err(c"Superblock: a metadata area lies outside the spare region");
        }
        for (k, &a) in areas.iter().enumerate() {
            // All ends were found inside the region, so these sums cannot overflow.
            let clash = |&b: &u64| a < b + self.table_blocks && b < a + self.table_blocks;
            if areas.iter().skip(k + 1).any(clash) {
                return Err(c"Superblock: metadata areas overlap");
            }
        }
        if self.slots_total > self.table_blocks.saturating_mul(RECORDS_PER_BLOCK) {
            return Err(c"Superblock: more slots than records");
        }
        let end = unit
            .checked_mul(self.slots_total)
            .and_then(|length| self.data_start.checked_add(length));
        if self.data_start < BLOCK_SECTORS
            || self.data_start & (unit - 1) != 0
            || end.is_none_or(|end| end > (blocks - 1) * BLOCK_SECTORS)
        {
            return Err(c"Superblock: slots lie outside the spare region");
        }
        Ok(self)
    }

    /// Table blocks in use from the beginning.
    pub fn first_part(&self) -> u64 {
        self.table_blocks.min(FIRST_PART)
    }

    /// Table blocks in use with one part more, if `in_use` are: as many again, or 256. `None`: all are.
    pub fn next_part(&self, in_use: u64) -> Option<u64> {
        let next = in_use.saturating_add(in_use.clamp(1, MAX_PART));
        (in_use < self.table_blocks).then(|| self.table_blocks.min(next))
    }

    /// Whether `next` blocks can be in use with the part behind the first `in_use` blocks.
    pub fn is_next_part(&self, in_use: u64, next: u64) -> bool {
        next > in_use && next <= self.table_blocks
    }

    /// Slots that the first `in_use` table blocks describe.
    pub fn slots_of(&self, in_use: u64) -> u64 {
        in_use
            .saturating_mul(RECORDS_PER_BLOCK)
            .min(self.slots_total)
    }

    /// First block of each replica in use.
    pub fn areas(&self) -> &[u64] {
        self.area_start
            .get(..self.copies as usize)
            .unwrap_or(&self.area_start)
    }

    /// First sector of `block` in replica `copy`, from the start of the region.
    pub fn table_sector(&self, copy: usize, block: u64) -> u64 {
        let start = self.areas().get(copy).copied().unwrap_or_default();
        start.wrapping_add(block).wrapping_mul(BLOCK_SECTORS)
    }

    /// First sector of superblock `copy` (0 or 1), from the start of the region.
    pub fn superblock_sector(&self, copy: u64) -> u64 {
        if copy == 0 {
            0
        } else {
            self.spare_sectors.saturating_sub(BLOCK_SECTORS)
        }
    }

    /// First sector of `slot`, from the start of the region.
    pub fn slot_sector(&self, slot: Slot) -> u64 {
        self.data_start
            .wrapping_add(u64::from(slot.0).wrapping_shl(self.unit_shift()))
    }

    /// The slot that record `index` of table block `block` describes, if there is one.
    pub fn slot_at(&self, block: u64, index: u64) -> Option<Slot> {
        let slot = block.checked_mul(RECORDS_PER_BLOCK)?.checked_add(index)?;
        if slot < self.slots_total {
            u32::try_from(slot).ok().map(Slot)
        } else {
            None
        }
    }

    /// Table block and index within it of the record that describes `slot`.
    pub fn record_of(&self, slot: Slot) -> (u64, usize) {
        let slot = u64::from(slot.0);
        (
            slot / RECORDS_PER_BLOCK,
            (slot % RECORDS_PER_BLOCK) as usize,
        )
    }

    /// Whether `slot` meets a metadata area and so must never hold data.
    pub fn is_reserved(&self, slot: Slot) -> bool {
        let start = self.slot_sector(slot);
        let end = start + u64::from(self.unit_sectors);
        self.areas().iter().any(|&area| {
            let (from, to) = (
                area * BLOCK_SECTORS,
                (area + self.table_blocks) * BLOCK_SECTORS,
            );
            start < to && from < end
        })
    }

    /// The slots that `area` meets.
    fn slots_in(&self, area: u64) -> Range<u64> {
        let from = (area * BLOCK_SECTORS).saturating_sub(self.data_start);
        let end = (area + self.table_blocks) * BLOCK_SECTORS;
        let to = end
            .saturating_sub(self.data_start)
            .div_ceil(u64::from(self.unit_sectors.max(1)));
        (from >> self.unit_shift()).min(self.slots_total)..to.min(self.slots_total)
    }

    /// Those of the slots `of` that [`Self::is_reserved`], perhaps more than once.
    pub fn reserved(&self, of: Range<u64>) -> impl Iterator<Item = Slot> + '_ {
        let slots = self.areas().iter().flat_map(move |area| {
            let slots = self.slots_in(*area);
            slots.start.max(of.start)..slots.end.min(of.end)
        });
        slots.filter_map(|slot| u32::try_from(slot).ok().map(Slot))
    }

    /// Slots that can hold data: all but those reserved.
    pub fn usable_slots(&self) -> u64 {
        // From the first on, as a slot that two areas meet counts once.
        let (mut end, mut reserved) = (0, 0_u64);
        let behind = |end: u64| {
            let slots = self.areas().iter().map(|area| self.slots_in(*area));
            slots
                .filter(|slots| slots.end > end)
                .min_by_key(|slots| slots.start)
        };
        while let Some(slots) = behind(end) {
            reserved = reserved.saturating_add(slots.end.saturating_sub(slots.start.max(end)));
            end = slots.end;
        }
        self.slots_total.saturating_sub(reserved)
    }

    /// Base-2 logarithm of `unit_sectors`.
    pub fn unit_shift(&self) -> u32 {
        self.unit_sectors.trailing_zeros()
    }

    /// The unit that holds `sector` of main.
    pub fn unit_of(&self, sector: u64) -> Unit {
        Unit(sector.wrapping_shr(self.unit_shift()))
    }

    /// First sector of `unit` on main.
    pub fn unit_start(&self, unit: Unit) -> u64 {
        unit.0.wrapping_shl(self.unit_shift())
    }

    /// Number of units on main; the last may be cut short by the end of the device.
    pub fn units(&self) -> u64 {
        let whole = self.main_sectors >> self.unit_shift();
        let part = self.main_sectors & u64::from(self.unit_sectors - 1);
        whole + u64::from(part != 0)
    }

    /// Mask of the sectors that `unit` has: all of the unit, or fewer at the end of main.
    pub fn unit_mask(&self, unit: Unit) -> u64 {
        let left = self.main_sectors.saturating_sub(self.unit_start(unit));
        mask_of(0, left.min(u64::from(self.unit_sectors)) as u32)
    }
}

/// Mask with `count` bits set from bit `from`; bits past 63 are dropped.
pub fn mask_of(from: u32, count: u32) -> u64 {
    let ones = match count {
        0 => 0,
        1..=63 => (1u64 << count) - 1,
        _ => u64::MAX,
    };
    ones.checked_shl(from).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_region_is_refused() {
        for sectors in 0..40 {
            let plan = Geometry::plan(1 << 20, sectors, 8, 2);
            assert_eq!(plan.is_ok(), sectors >= 40, "{sectors}");
        }
        assert_eq!(Geometry::plan(1 << 20, 40, 8, 2).unwrap().slots_total, 1);
    }

    #[test]
    fn impossible_units_and_copies_are_refused_as_what_they_are() {
        let why = |unit, copies| {
            let plan = Geometry::plan(1 << 20, 1 << 16, unit, copies);
            plan.err().map(|why| why.to_str().unwrap())
        };
        for unit in [0, 3, 128] {
            let expected = "unit_sectors must be a power of two from 1 to 64";
            assert_eq!(why(unit, 2), Some(expected), "{unit}");
        }
        for copies in [0, 1, 5, u32::MAX] {
            let expected = "metadata_copies must be from 2 to 4";
            assert_eq!(why(8, copies), Some(expected), "{copies}");
        }
        assert_eq!(why(8, 2), None);
    }

    #[test]
    fn parts_double_up_to_256_blocks_and_end_with_the_table() {
        let g = Geometry::plan(1 << 31, 1 << 21, 8, 2).unwrap();
        let parts = |g: Geometry| {
            std::iter::successors(Some(g.first_part()), move |in_use| g.next_part(*in_use))
                .collect::<std::vec::Vec<_>>()
        };
        let all = parts(g);
        assert_eq!(all[..9], [4, 8, 16, 32, 64, 128, 256, 512, 768]);
        assert_eq!(all.last(), Some(&g.table_blocks));
        assert!(all.windows(2).all(|p| g.is_next_part(p[0], p[1])));
        for table_blocks in 1..=4 {
            assert_eq!(parts(Geometry { table_blocks, ..g }), [table_blocks]);
        }
        assert!(!g.is_next_part(8, 8) && !g.is_next_part(8, g.table_blocks + 1));
        assert_eq!(
            (g.slots_of(4), g.slots_of(g.table_blocks)),
            (504, g.slots_total)
        );
    }

    #[test]
    fn one_gib_layout_is_as_documented() {
        let g = Geometry::plan(1 << 31, 1 << 21, 8, 2).unwrap();
        assert_eq!(g.area_start, [1, 262143 - g.table_blocks, 0, 0]);
        assert_eq!(g.data_start, (1 + g.table_blocks) * 8);
        assert_eq!(g.slots_total, 262144 - 2 - 2 * g.table_blocks);
        assert!(g.table_blocks * 126 >= g.slots_total);
        assert!((g.table_blocks - 1) * 126 < g.slots_total);
    }

    #[test]
    fn more_table_blocks_than_slots_can_need_are_refused() {
        // Allocating something for each of them would fail, or warn.
        let forged = |table_blocks| Geometry {
            unit_sectors: 64,
            copies: 2,
            slots_total: 1000,
            table_blocks,
            data_start: 8 + 8 * table_blocks + (56 - 8 * table_blocks % 64),
            spare_sectors: 1 << 40,
            main_sectors: 1 << 40,
            area_start: [1, (1 << 37) - 1 - table_blocks, 0, 0],
        };
        let most = forged(1 << 26);
        assert_eq!(most.checked(), Ok(most));
        let why = c"Superblock: more table blocks than slots can need";
        for more in [(1 << 26) + 1, 1 << 28, 1 << 35] {
            assert_eq!(forged(more).checked(), Err(why), "{more}");
        }
    }

    #[test]
    fn as_many_slots_as_there_can_be_are_never_refused_for_their_table() {
        // The longest region, in blocks, with numbers for all its slots.
        let longest = |layout: &dyn Fn(u64) -> Result<Geometry, Refusal>| {
            let (mut fits, mut too_long) = (1_u64 << 22, 1_u64 << 37);
            while too_long - fits > 1 {
                let middle = (fits + too_long) / 2;
                match layout(8 * middle) {
                    Ok(_) => fits = middle,
                    Err(_) => too_long = middle,
                }
            }
            let why = c"Spare region has more than 2^32 slots: use a smaller one or larger units";
            assert_eq!(layout(8 * too_long), Err(why));
            layout(8 * fits).unwrap()
        };
        for (unit, copies) in [(1, 2), (1, 4), (8, 3), (64, 2), (64, 4)] {
            let plan = |sectors| Geometry::plan(1 << 50, sectors, unit, copies);
            let planned = longest(&plan);
            let small = plan(1 << 20).unwrap();
            let grown = longest(&|sectors| small.grown(sectors));
            for g in [planned, grown] {
                assert!(g.slots_total > u64::from(u32::MAX) - 64, "{g:?}");
                assert!(g.table_blocks < MAX_TABLE_BLOCKS * 3 / 4, "{g:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn planned_layouts_keep_the_invariants(
            spare in 40u64..1 << 24, shift in 0u32..=6, copies in 2u32..=4,
        ) {
            if let Ok(g) = Geometry::plan(1 << 30, spare, 1 << shift, copies) {
                prop_assert_eq!(g.checked(), Ok(g));
                // Fewest table blocks.
                if g.table_blocks > 1 {
                    let blank = Geometry { data_start: 0, ..g };
                    let less = blank.arrange(1, g.table_blocks - 1).unwrap();
                    prop_assert!(less.slots_total > less.table_blocks * 126);
                }
                let mut reserved: std::vec::Vec<_> = g.reserved(0..g.slots_total).collect();
                reserved.dedup();
                if g.slots_total < 10_000 {
                    let all = (0..g.slots_total as u32).map(Slot).filter(|s| g.is_reserved(*s));
                    prop_assert!(all.eq(reserved));
                }
                for slot in [0, g.slots_total / 3, g.slots_total / 2, g.slots_total - 1] {
                    let slot = Slot(slot as u32);
                    let start = g.slot_sector(slot);
                    let meets = g.areas().iter().any(|a| {
                        (start..start + u64::from(g.unit_sectors))
                            .any(|s| s / 8 >= *a && s / 8 < a + g.table_blocks)
                    });
                    prop_assert_eq!(meets, g.is_reserved(slot));
                    let (block, index) = g.record_of(slot);
                    prop_assert_eq!(g.slot_at(block, index as u64), Some(slot));
                }
            }
        }

        /// Nothing that counts before or after meets anything else; also when grown twice.
        #[test]
        fn a_grown_layout_leaves_all_that_there_was_alone(
            spare in 40u64..1 << 14, shift in 0u32..=6, copies in 2u32..=4,
            more in proptest::collection::vec(1u64..1 << 13, 1..3),
        ) {
            let Ok(mut old) = Geometry::plan(1 << 30, spare, 1 << shift, copies) else {
                return Ok(());
            };
            for more in more {
                let Ok(g) = old.grown(old.spare_sectors + more) else {
                    let tables = |g: Geometry| g.table_blocks * u64::from(copies);
                    prop_assert!(more / 8 <= 2 * tables(old) + 4 * u64::from(copies), "{more}");
                    return Ok(());
                };
                prop_assert_eq!(g.checked(), Ok(g));
                let kept = |g: Geometry| (g.unit_sectors, g.copies, g.data_start, g.main_sectors);
                prop_assert_eq!(kept(g), kept(old));
                prop_assert_eq!(g.spare_sectors, old.spare_sectors + more / 8 * 8);
                prop_assert!(g.areas().iter().all(|area| area * 8 >= old.spare_sectors));
                prop_assert!(g.slots_total >= old.slots_total);
                // No slot of before is reserved; as many as there is room for are not.
                let reserved: std::collections::BTreeSet<_> = g.reserved(0..g.slots_total).collect();
                prop_assert!(reserved.iter().all(|slot| u64::from(slot.0) >= old.slots_total));
                prop_assert_eq!(g.usable_slots(), g.slots_total - reserved.len() as u64);
                let some = g.reserved(9..g.slots_total / 2).collect::<std::collections::BTreeSet<_>>();
                let inside = |slot: &&Slot| (9..g.slots_total / 2).contains(&u64::from(slot.0));
                prop_assert!(some.iter().eq(reserved.iter().filter(inside)));
                let unit = u64::from(g.unit_sectors);
                let areas = u64::from(copies) * (8 * g.table_blocks).div_ceil(unit);
                prop_assert!((reserved.len() as u64) < areas + u64::from(copies));
                let last = (g.spare_sectors / 8 - 1 - g.table_blocks) * 8;
                prop_assert_eq!(g.slots_total, (last - g.data_start) / unit);
                old = g;
            }
        }

        #[test]
        fn hostile_layouts_never_panic(
            unit in any::<u32>(), copies in any::<u32>(), fields in any::<[u64; 5]>(),
            area_start in any::<[u64; 4]>(), slot in any::<u32>(),
        ) {
            let g = Geometry {
                unit_sectors: unit, copies, slots_total: fields[0], table_blocks: fields[1],
                data_start: fields[2], spare_sectors: fields[3], main_sectors: fields[4], area_start,
            };
            if let Ok(g) = g.checked() {
                g.is_reserved(Slot(slot % g.slots_total as u32));
                let _ = (g.usable_slots(), g.reserved(0..100).count(), g.next_part(fields[0]));
                let _ = g.grown(fields[4]);
            }
        }
    }
}
