// SPDX-License-Identifier: GPL-2.0

//! The blocks on the spare: superblocks and table blocks.
//!
//! Little endian, 4,096 bytes each, a checksum over all of it. Blocks that were read are hostile
//! input: nothing of them is used before [`Header`], crc, uuid and number are checked, and then
//! field by field.

use super::geometry::{Geometry, BLOCK_SECTORS, BLOCK_SIZE, MAX_COPIES, RECORDS_PER_BLOCK};
use super::identity::{DiskId, IdKind, Identity, DISK_ID, PARTITION_UUID};
use super::{Refusal, Slot, Unit};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::FromBytes as _;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One metadata block as it is on the spare.
pub type Block = [u8; BLOCK_SIZE];

/// Continues a CRC-32C (Castagnoli, reflected, both inversions) over more bytes; begins with 0.
///
/// The kernel's and the host's implementation are handed in.
pub type Crc32c = fn(u32, &[u8]) -> u32;

/// Identifies the blocks of one formatted spare.
pub type Uuid = [u8; 16];

/// The format's version.
pub const VERSION: u32 = 1;

const SUPERBLOCK_MAGIC: [u8; 8] = *b"RMAPSUPR";
const TABLE_MAGIC: [u8; 8] = *b"RMAPTABL";
/// Where the checksum lies in a block.
const CRC: core::ops::Range<usize> = 8..12;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    crc: U32,
    version: U32,
    uuid: Uuid,
    number: U64,
    generation: U64,
    /// Of a table block, see [`next_in_use`].
    next_in_use: U64,
    zero: [u8; 8],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct SuperblockOnDisk {
    header: Header,
    incompat: U64,
    ro_compat: U64,
    compat: U64,
    unit_sectors: U32,
    metadata_copies: U32,
    slots_total: U64,
    table_blocks: U64,
    data_start: U64,
    spare_sectors: U64,
    main_sectors: U64,
    area_start: [U64; MAX_COPIES as usize],
    created: U64,
    label: [u8; 64],
    grown_from: U64,
    main_partition: [u8; PARTITION_UUID],
    main_disk: [u8; DISK_ID],
    main_disk_kind: U32,
    main_disk_length: U32,
    main_disk_start: U64,
    zero: [u8; 3776],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct RecordOnDisk {
    main_unit: U64,
    valid_mask: U64,
    state: U32,
    cause: U32,
    changed: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct TableBlockOnDisk {
    header: Header,
    records: [RecordOnDisk; RECORDS_PER_BLOCK as usize],
}

const _: () = assert!(size_of::<SuperblockOnDisk>() == BLOCK_SIZE);
const _: () = assert!(size_of::<TableBlockOnDisk>() == BLOCK_SIZE);

/// Why an entry or a bad slot was recorded; the values are those on the spare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A read failed.
    Read = 1,
    /// A write failed.
    Write = 2,
    /// An administrator's message.
    Message = 3,
    /// The background scrub.
    Scrub = 4,
    /// An imported list.
    Import = 5,
}

/// What a record says of its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing is in it.
    Free,
    /// It serves a unit.
    Entry {
        /// The unit.
        unit: Unit,
        /// Its sectors that the slot holds.
        mask: u64,
    },
    /// It serves a unit, in place of another slot that failed: an entry like the one above, that counts if
    /// the record of the other slot still says that it serves the unit.
    Moved {
        /// The unit.
        unit: Unit,
        /// Its sectors that the slot holds.
        mask: u64,
    },
    /// Its medium failed.
    Bad {
        /// The unit that it served.
        unit: Unit,
        /// Sectors of the unit that it took with it: errors until they are written again.
        lost: u64,
    },
}

impl State {
    /// A slot that failed before anything was in it.
    pub const BAD: Self = Self::Bad {
        unit: Unit(0),
        lost: 0,
    };
}

/// A change to one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    /// The slot whose record changes.
    pub slot: Slot,
    /// What it will say.
    pub state: State,
    /// Why.
    pub cause: Cause,
}

/// Why and when a record was written, unchecked: nothing depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// A [`Cause`], or a number that this version does not know.
    pub cause: u32,
    /// Seconds since 1970.
    pub changed: u64,
}

/// What a superblock says, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Identifies the blocks that belong together.
    pub uuid: Uuid,
    /// Writes of this block so far.
    pub generation: u64,
    /// A feature is set that only readers may ignore: activate read-only.
    pub read_only: bool,
    /// Layout and what the region was formatted for.
    pub geometry: Geometry,
    /// When it was formatted, in seconds since 1970.
    pub created: u64,
    /// The administrator's name for it, zero padded UTF-8.
    pub label: [u8; 64],
    /// The device that it serves.
    pub main: Identity,
}

/// Computes the checksum of `block`, its own field counted as zero.
fn checksum(block: &Block, crc32c: Crc32c) -> u32 {
    let mut crc = crc32c(0, block.get(..CRC.start).unwrap_or_default());
    crc = crc32c(crc, &[0; CRC.end - CRC.start]);
    crc32c(crc, block.get(CRC.end..).unwrap_or_default())
}

/// Writes the checksum into `block`.
fn seal(block: &mut Block, crc32c: Crc32c) {
    let crc = checksum(block, crc32c);
    if let Some(field) = block.get_mut(CRC) {
        field.copy_from_slice(&crc.to_le_bytes());
    }
}

/// Whether `block` is all zero, as on a blank spare.
pub fn is_blank(block: &Block) -> bool {
    block.iter().all(|b| *b == 0)
}

fn header(magic: [u8; 8], uuid: Uuid, number: u64, generation: u64) -> Header {
    Header {
        magic,
        crc: U32::ZERO,
        version: U32::new(VERSION),
        uuid,
        number: U64::new(number),
        generation: U64::new(generation),
        next_in_use: U64::ZERO,
        zero: [0; 8],
    }
}

/// Where a superblock should be there is something else.
pub const FOREIGN: Refusal = c"Spare holds foreign data: it is neither blank nor a dm-remap spare";

/// Incompatible feature: the region is being grown, see [`super::grow`].
const GROWING_FEATURE: u64 = 1;
/// The region is being grown: only who grows it may go on.
pub const GROWING: Refusal = c"Superblock: growing was interrupted: run dmremap grow again";

/// Why a superblock cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is damaged or none at all; the other copy may do.
    Damaged(Refusal),
    /// It is sound, and this version must not touch the spare, whatever the other copy says.
    Unsupported(Refusal),
}

impl Superblock {
    /// Reads copy `copy` (0 or 1).
    pub fn read(block: &Block, copy: u64, crc32c: Crc32c) -> Result<Self, Fault> {
        use Fault::{Damaged, Unsupported};
        let Ok(s) = SuperblockOnDisk::ref_from_bytes(block) else {
            return Err(Damaged(c"Superblock has the wrong size"));
        };
        if s.header.magic != SUPERBLOCK_MAGIC {
            return Err(Damaged(FOREIGN));
        }
        if s.header.crc.get() != checksum(block, crc32c) {
            return Err(Damaged(c"Superblock: wrong checksum"));
        }
        if s.header.version.get() != VERSION {
            return Err(Unsupported(c"Superblock: unknown format version"));
        }
        match s.incompat.get() {
            0 => (),
            GROWING_FEATURE => return Err(Unsupported(GROWING)),
            _ => return Err(Unsupported(c"Superblock: unknown incompatible feature")),
        }
        if s.header.number.get() != copy {
            return Err(Damaged(c"Superblock: not the copy that belongs here"));
        }
        if s.header.generation.get() == u64::MAX {
            return Err(Damaged(c"Superblock: impossible generation"));
        }
        let geometry = Geometry {
            unit_sectors: s.unit_sectors.get(),
            copies: s.metadata_copies.get(),
            slots_total: s.slots_total.get(),
            table_blocks: s.table_blocks.get(),
            data_start: s.data_start.get(),
            spare_sectors: s.spare_sectors.get(),
            main_sectors: s.main_sectors.get(),
            area_start: s.area_start.map(U64::get),
        };
        Ok(Self {
            uuid: s.header.uuid,
            generation: s.header.generation.get(),
            read_only: s.ro_compat.get() != 0,
            geometry: geometry.checked().map_err(Damaged)?,
            created: s.created.get(),
            label: s.label,
            main: s
                .main()
                .ok_or(Damaged(c"Superblock: impossible identity of main"))?,
        })
    }

    /// Chooses between the two copies, either of which may be unusable.
    ///
    /// Returns the superblock and whether each copy needs to be written again.
    pub fn choose(copies: [Result<Self, Fault>; 2]) -> Result<(Self, [bool; 2]), Refusal> {
        match copies {
            [Err(Fault::Unsupported(why)), _] | [_, Err(Fault::Unsupported(why))] => Err(why),
            [Err(Fault::Damaged(why)), Err(_)] => Err(why),
            [Ok(a), Err(_)] => Ok((a, [false, true])),
            [Err(_), Ok(b)] => Ok((b, [true, false])),
            [Ok(a), Ok(b)] if a.uuid != b.uuid => {
                Err(c"Superblocks at the two ends belong to different spares")
            }
            [Ok(a), Ok(b)] => Ok(match a.generation.cmp(&b.generation) {
                core::cmp::Ordering::Less => (b, [true, false]),
                core::cmp::Ordering::Equal => (a, [false, false]),
                core::cmp::Ordering::Greater => (a, [false, true]),
            }),
        }
    }

    /// Writes copy `copy` (0 or 1) into `block`.
    pub fn write(&self, block: &mut Block, copy: u64, crc32c: Crc32c) {
        block.fill(0);
        let Ok(s) = SuperblockOnDisk::mut_from_bytes(block) else {
            return;
        };
        s.header = header(SUPERBLOCK_MAGIC, self.uuid, copy, self.generation);
        s.set_geometry(&self.geometry);
        s.created = U64::new(self.created);
        s.label = self.label;
        s.set_main(&self.main);
        seal(block, crc32c);
    }
}

impl SuperblockOnDisk {
    fn main(&self) -> Option<Identity> {
        let disk = match (self.main_disk_kind.get(), self.main_disk_length.get()) {
            (0, 0) if self.main_disk == [0; DISK_ID] && self.main_disk_start.get() == 0 => None,
            (kind, length) => {
                let id = DiskId::new(IdKind::of(kind)?, self.main_disk, length as usize)?;
                let rest = self.main_disk.get(length as usize..).unwrap_or(&[]);
                if rest.iter().any(|b| *b != 0) {
                    return None;
                }
                Some((id, self.main_disk_start.get()))
            }
        };
        Identity::parse(&self.main_partition, disk)
    }

    fn set_main(&mut self, main: &Identity) {
        self.main_partition = *main.partition_field();
        let (mut kind, mut length, mut start) = (0, 0, 0);
        self.main_disk = [0; DISK_ID];
        if let Some((id, at)) = &main.disk {
            (kind, length, start) = (id.kind() as u32, id.bytes().len() as u32, *at);
            self.main_disk
                .iter_mut()
                .zip(id.bytes())
                .for_each(|(to, from)| *to = *from);
        }
        self.main_disk_kind = U32::new(kind);
        self.main_disk_length = U32::new(length);
        self.main_disk_start = U64::new(start);
    }

    fn set_geometry(&mut self, g: &Geometry) {
        self.unit_sectors = U32::new(g.unit_sectors);
        self.metadata_copies = U32::new(g.copies);
        self.slots_total = U64::new(g.slots_total);
        self.table_blocks = U64::new(g.table_blocks);
        self.data_start = U64::new(g.data_start);
        self.spare_sectors = U64::new(g.spare_sectors);
        self.main_sectors = U64::new(g.main_sectors);
        self.area_start = g.area_start.map(U64::new);
    }
}

/// The growth of a region, as its superblocks have it meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growth {
    /// What the superblock will say.
    pub superblock: Superblock,
    /// Length of the region before, in sectors.
    pub from: u64,
}

/// Makes the sound superblock in `block` copy `copy` of a region with the generation and layout of
/// `growth`, and that is growing to it, or has `grown`; all else stays, also what this version does
/// not know.
pub fn grow_superblock(block: &mut Block, copy: u64, growth: &Growth, grown: bool, crc32c: Crc32c) {
    if let Ok(s) = SuperblockOnDisk::mut_from_bytes(block) {
        s.header.number = U64::new(copy);
        s.header.generation = U64::new(growth.superblock.generation);
        s.set_geometry(&growth.superblock.geometry);
        s.incompat = U64::new(if grown { 0 } else { GROWING_FEATURE });
        s.grown_from = U64::new(if grown { 0 } else { growth.from });
        seal(block, crc32c);
    }
}

/// What copy `copy` of the superblock says of a growth that was interrupted; `None` if it is not a
/// sound superblock of a growing region.
pub fn read_growth(block: &Block, copy: u64, crc32c: Crc32c) -> Option<Growth> {
    if Superblock::read(block, copy, crc32c) != Err(Fault::Unsupported(GROWING)) {
        return None;
    }
    let mut grown = *block;
    let s = SuperblockOnDisk::mut_from_bytes(&mut grown).ok()?;
    let from = s.grown_from.get();
    s.incompat = U64::ZERO;
    seal(&mut grown, crc32c);
    let superblock = Superblock::read(&grown, copy, crc32c).ok()?;
    let first = from / BLOCK_SECTORS;
    let added = superblock
        .geometry
        .areas()
        .iter()
        .all(|area| *area >= first);
    (from % BLOCK_SECTORS == 0 && first > 1 && added).then_some(Growth { superblock, from })
}

/// Makes the sound superblock in `block` copy `copy` with the generation, label and main of `new`; all else
/// stays, also what this version does not know.
pub fn update_superblock(block: &mut Block, copy: u64, new: &Superblock, crc32c: Crc32c) {
    if let Ok(s) = SuperblockOnDisk::mut_from_bytes(block) {
        s.header.number = U64::new(copy);
        s.header.generation = U64::new(new.generation);
        s.label = new.label;
        s.set_main(&new.main);
        seal(block, crc32c);
    }
}

/// Makes the sound superblock in `block` copy `copy`; all else stays, also what this version does not
/// know.
pub fn number_superblock(block: &mut Block, copy: u64, crc32c: Crc32c) {
    if let Ok(s) = SuperblockOnDisk::mut_from_bytes(block) {
        s.header.number = U64::new(copy);
        seal(block, crc32c);
    }
}

/// Whether `block` looks like a table block that was written since the spare was formatted.
pub fn is_used_table(block: &Block) -> bool {
    TableBlockOnDisk::ref_from_bytes(block)
        .is_ok_and(|t| t.header.magic == TABLE_MAGIC && t.header.generation.get() > 1)
}

/// Whether `block` is a table block as formatting makes it: valid, of generation 1, no record in use.
pub fn is_unused_table(block: &Block, crc32c: Crc32c) -> bool {
    TableBlockOnDisk::ref_from_bytes(block).is_ok_and(|t| {
        t.header.magic == TABLE_MAGIC
            && t.header.version.get() == VERSION
            && t.header.generation.get() == 1
            && t.records.iter().all(|r| r.state.get() == 0)
            && t.header.crc.get() == checksum(block, crc32c)
    })
}

/// The generation of table block `number` if `block` is a valid replica of it.
pub fn table_generation(
    block: &Block,
    uuid: &Uuid,
    number: u64,
    crc32c: Crc32c,
) -> Result<u64, Refusal> {
    let Ok(t) = TableBlockOnDisk::ref_from_bytes(block) else {
        return Err(c"Table block has the wrong size");
    };
    if t.header.magic != TABLE_MAGIC {
        return Err(c"wrong magic");
    }
    if t.header.crc.get() != checksum(block, crc32c) {
        return Err(c"wrong checksum");
    }
    if t.header.version.get() != VERSION {
        return Err(c"unknown format version");
    }
    if t.header.uuid != *uuid {
        return Err(c"uuid of another spare");
    }
    if t.header.number.get() != number {
        return Err(c"number of another block");
    }
    match t.header.generation.get() {
        // There is none after it.
        u64::MAX => Err(c"impossible generation"),
        generation => Ok(generation),
    }
}

/// What a table block says about how much of the table is in use.
///
/// The blocks that are in use form parts, which follow each other; the first is [`Geometry::first_part`]. The last block
/// of a part says how many blocks are in use with the next part, and has 0 if there is none. All other blocks
/// have 0.
pub fn next_in_use(block: &Block) -> u64 {
    TableBlockOnDisk::ref_from_bytes(block).map_or(0, |t| t.header.next_in_use.get())
}

/// Makes a table block say that with the next part so many blocks are in use, unsealed.
pub fn set_next_in_use(block: &mut Block, in_use: u64) {
    if let Ok(t) = TableBlockOnDisk::mut_from_bytes(block) {
        t.header.next_in_use = U64::new(in_use);
    }
}

/// Makes `block` table block `number` with every slot free.
pub fn blank_table_block(block: &mut Block, uuid: &Uuid, number: u64, crc32c: Crc32c) {
    block.fill(0);
    if let Ok(t) = TableBlockOnDisk::mut_from_bytes(block) {
        t.header = header(TABLE_MAGIC, *uuid, number, 1);
        seal(block, crc32c);
    }
}

/// Sets the generation of a table block and its checksum.
pub fn seal_table_block(block: &mut Block, generation: u64, crc32c: Crc32c) {
    if let Ok(t) = TableBlockOnDisk::mut_from_bytes(block) {
        t.header.generation = U64::new(generation);
        seal(block, crc32c);
    }
}

/// Puts `update`, made at `now` (seconds since 1970), in its place `index` of a table block, unsealed.
pub fn set_record(block: &mut Block, index: usize, update: &Update, now: u64) {
    let Ok(t) = TableBlockOnDisk::mut_from_bytes(block) else {
        return;
    };
    let Some(record) = t.records.get_mut(index) else {
        return;
    };
    let (state, unit, mask) = match update.state {
        State::Free => (0, 0, 0),
        State::Entry { unit, mask } => (1, unit.0, mask),
        State::Bad { unit, lost } => (2, unit.0, lost),
        State::Moved { unit, mask } => (3, unit.0, mask),
    };
    *record = RecordOnDisk {
        main_unit: U64::new(unit),
        valid_mask: U64::new(mask),
        state: U32::new(state),
        cause: U32::new(update.cause as u32),
        changed: U64::new(now),
    };
}

/// Reads record `index` of valid table block `number` for `geometry`.
///
/// Bad: a state, unit, or mask that no writer of this version makes.
pub fn record(
    block: &Block,
    number: u64,
    index: usize,
    geometry: &Geometry,
) -> Result<State, Refusal> {
    let t = TableBlockOnDisk::ref_from_bytes(block).ok();
    let Some(r) = t.and_then(|t| t.records.get(index)) else {
        return Err(c"no such record");
    };
    let state = r.state(geometry, geometry.units())?;
    if state != State::Free {
        let slot = geometry.slot_at(number, index as u64);
        usable(slot, |slot| geometry.is_reserved(slot))?;
    }
    Ok(state)
}

/// A record that is not of a free slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The slot.
    pub slot: Slot,
    /// What it says.
    pub state: State,
    /// Why and when it was written.
    pub origin: Origin,
}

/// Reads the records of valid table block `number` for `geometry`, as [`record`], and calls `see` with the index and what it
/// says of each that is not of a free slot.
pub fn each_record(
    block: &Block,
    number: u64,
    geometry: &Geometry,
    mut see: impl FnMut(usize, Result<Record, Refusal>),
) {
    let Ok(t) = TableBlockOnDisk::ref_from_bytes(block) else {
        return;
    };
    // There may be millions of records; but few blocks have a slot that is reserved.
    let units = geometry.units();
    let first = number.saturating_mul(RECORDS_PER_BLOCK);
    let slots = first..first.saturating_add(RECORDS_PER_BLOCK);
    let has_reserved = geometry.reserved(slots).next().is_some();
    for (index, r) in t.records.iter().enumerate() {
        if r.state.get() == 0 {
            continue;
        }
        let read = || {
            let state = r.state(geometry, units)?;
            let slot = geometry.slot_at(number, index as u64);
            Ok(Record {
                slot: usable(slot, |slot| has_reserved && geometry.is_reserved(slot))?,
                state,
                origin: Origin {
                    cause: r.cause.get(),
                    changed: r.changed.get(),
                },
            })
        };
        see(index, read());
    }
}

impl RecordOnDisk {
    /// What it says, for `geometry`, whose main has so many units.
    fn state(&self, geometry: &Geometry, units: u64) -> Result<State, Refusal> {
        let unit = Unit(self.main_unit.get());
        let mask = self.valid_mask.get();
        let state = match self.state.get() {
            0 => return Ok(State::Free),
            1 => State::Entry { unit, mask },
            2 => State::Bad { unit, lost: mask },
            3 => State::Moved { unit, mask },
            _ => return Err(c"unknown state"),
        };
        if unit.0 >= units {
            return Err(c"unit past the end of main");
        }
        if mask != 0 && mask & !geometry.unit_mask(unit) != 0 {
            return Err(c"mask outside the unit");
        }
        Ok(state)
    }
}

/// The slot of a record that is not free.
fn usable(slot: Option<Slot>, is_reserved: impl FnOnce(Slot) -> bool) -> Result<Slot, Refusal> {
    match slot {
        None => Err(c"record of a slot that does not exist"),
        Some(slot) if is_reserved(slot) => Err(c"slot inside a metadata area"),
        Some(slot) => Ok(slot),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn crc(crc: u32, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(crc, bytes)
    }

    fn superblock() -> Superblock {
        Superblock {
            uuid: *b"0123456789abcdef",
            generation: 7,
            read_only: false,
            geometry: Geometry::plan(1 << 20, 1 << 16, 8, 3).unwrap(),
            created: 1_800_000_000,
            label: [0; 64],
            main: Identity::new(
                b"12345678-02",
                DiskId::new(IdKind::Eui64, [0xab; DISK_ID], 8).map(|id| (id, 2048)),
            )
            .unwrap(),
        }
    }

    #[test]
    fn superblock_fields_lie_where_the_format_says() {
        let mut b = [0; BLOCK_SIZE];
        superblock().write(&mut b, 1, crc);
        let u64_at = |at: usize| u64::from_le_bytes(b[at..at + 8].try_into().unwrap());
        let u32_at = |at: usize| u32::from_le_bytes(b[at..at + 4].try_into().unwrap());
        let g = superblock().geometry;
        assert_eq!(&b[..8], b"RMAPSUPR");
        assert_eq!((u32_at(12), u64_at(32), u64_at(40)), (1, 1, 7));
        assert_eq!(&b[16..32], b"0123456789abcdef");
        assert_eq!((u64_at(64), u64_at(72), u64_at(80)), (0, 0, 0));
        assert_eq!((u32_at(88), u32_at(92)), (8, 3));
        assert_eq!((u64_at(96), u64_at(104)), (g.slots_total, g.table_blocks));
        assert_eq!(
            (u64_at(112), u64_at(120), u64_at(128)),
            (g.data_start, 1 << 16, 1 << 20)
        );
        assert_eq!(
            [u64_at(136), u64_at(144), u64_at(152), u64_at(160)],
            g.area_start
        );
        assert_eq!(u64_at(168), 1_800_000_000);
        assert_eq!((&b[248..259], u64_at(280)), (&b"12345678-02"[..], 0));
        assert_eq!((u64_at(288), u64_at(296)), (0xabab_abab_abab_abab, 0));
        assert_eq!((u32_at(304), u32_at(308), u64_at(312)), (2, 8, 2048));
        let mut zeroed = b;
        zeroed[8..12].fill(0);
        assert_eq!(u32_at(8), crc32c::crc32c(&zeroed));
    }

    #[test]
    fn a_growing_region_can_only_be_grown() {
        let mut b = [0; BLOCK_SIZE];
        let old = superblock();
        old.write(&mut b, 0, crc);
        assert_eq!(read_growth(&b, 0, crc), None);
        // What this version does not know stays.
        b[80] = 8;
        let growth = Growth {
            superblock: Superblock {
                generation: 8,
                geometry: old.geometry.grown(1 << 17).unwrap(),
                ..old.clone()
            },
            from: 1 << 16,
        };
        grow_superblock(&mut b, 1, &growth, false, crc);
        let u64_at = |b: &Block, at: usize| u64::from_le_bytes(b[at..at + 8].try_into().unwrap());
        assert_eq!((u64_at(&b, 64), u64_at(&b, 80)), (1, 8));
        assert_eq!((u64_at(&b, 120), u64_at(&b, 240)), (1 << 17, 1 << 16));
        let read = Superblock::read(&b, 1, crc);
        assert_eq!(read, Err(Fault::Unsupported(GROWING)));
        assert!(Superblock::choose([Ok(old), read]).is_err());
        assert_eq!(read_growth(&b, 0, crc), None);
        assert_eq!(read_growth(&b, 1, crc), Some(growth.clone()));
        // The length before is hostile input.
        let first = growth.superblock.geometry.area_start[0] * 8;
        for (from, sound) in [
            (16, true),
            (first, true),
            (8, false),
            (20, false),
            (first + 8, false),
        ] {
            let odd = Growth {
                from,
                ..growth.clone()
            };
            grow_superblock(&mut b, 1, &odd, false, crc);
            assert_eq!(read_growth(&b, 1, crc).is_some(), sound, "{from}");
        }
        grow_superblock(&mut b, 0, &growth, true, crc);
        assert_eq!(Superblock::read(&b, 0, crc), Ok(growth.superblock));
        assert_eq!((u64_at(&b, 80), u64_at(&b, 240)), (8, 0));
    }

    #[test]
    fn table_record_lies_where_the_format_says() {
        let g = superblock().geometry;
        let mut b = [0; BLOCK_SIZE];
        blank_table_block(&mut b, &[9; 16], 0, crc);
        let update = Update {
            slot: Slot(2),
            state: State::Entry {
                unit: Unit(0x1122),
                mask: 0x81,
            },
            cause: Cause::Write,
        };
        set_record(&mut b, 2, &update, 0x5566);
        seal_table_block(&mut b, 5, crc);
        assert_eq!(&b[..8], b"RMAPTABL");
        let r = &b[64 + 64..64 + 96];
        assert_eq!(r[..8], 0x1122u64.to_le_bytes());
        assert_eq!(r[8..16], 0x81u64.to_le_bytes());
        assert_eq!((r[16], r[20], r[24], r[25]), (1, 2, 0x66, 0x55));
        assert_eq!(table_generation(&b, &[9; 16], 0, crc), Ok(5));
        assert_eq!(record(&b, 0, 2, &g), Ok(update.state));
        assert_eq!(record(&b, 0, 3, &g), Ok(State::Free));
        let bad = Update {
            state: State::Bad {
                unit: Unit(0x1122),
                lost: 0x18,
            },
            ..update
        };
        set_record(&mut b, 2, &bad, 0x5566);
        let r = &b[64 + 64..64 + 96];
        assert_eq!((r[0], r[8], r[16], r[20]), (0x22, 0x18, 2, 2));
        assert_eq!(record(&b, 0, 2, &g), Ok(bad.state));
        let moved = Update {
            state: State::Moved {
                unit: Unit(0x1122),
                mask: 0x7e,
            },
            ..update
        };
        set_record(&mut b, 2, &moved, 0x5566);
        let r = &b[64 + 64..64 + 96];
        assert_eq!((r[0], r[8], r[16], r[20]), (0x22, 0x7e, 3, 2));
        assert_eq!(record(&b, 0, 2, &g), Ok(moved.state));
    }

    #[test]
    fn a_table_block_is_unused_only_as_formatting_made_it() {
        let mut unused = [0; BLOCK_SIZE];
        blank_table_block(&mut unused, &[9; 16], 77, crc);
        assert!(is_unused_table(&unused, crc) && !is_used_table(&unused));
        let changed = |change: &dyn Fn(&mut Block)| {
            let mut b = unused;
            change(&mut b);
            b
        };
        for state in [
            State::BAD,
            State::Entry {
                unit: Unit(0),
                mask: 0,
            },
        ] {
            let (slot, cause) = (Slot(125), Cause::Write);
            let update = Update { slot, state, cause };
            let b = changed(&|b| {
                set_record(b, 125, &update, 0);
                seal_table_block(b, 1, crc);
            });
            assert!(!is_unused_table(&b, crc), "{state:?}");
        }
        for generation in [0, 2, u64::MAX] {
            let b = changed(&|b| seal_table_block(b, generation, crc));
            assert!(!is_unused_table(&b, crc), "{generation}");
        }
        // Another version's, and a superblock.
        for (at, byte) in [(12, 2), (7, b'X')] {
            let b = changed(&|b| {
                b[at] = byte;
                seal(b, crc);
            });
            assert!(!is_unused_table(&b, crc), "{at}");
        }
        for at in [8, 16, 32, 48, 64, 100, BLOCK_SIZE - 1] {
            assert!(!is_unused_table(&changed(&|b| b[at] ^= 1), crc), "{at}");
        }
    }

    #[test]
    fn a_main_that_cannot_be_is_damage() {
        let mut b = [0; BLOCK_SIZE];
        for (at, byte) in [
            (252, 0),
            (280, b'x'),
            (304, 4),
            (304, 0),
            (308, 17),
            (308, 0),
            (296, 1),
            (308, 7),
        ] {
            superblock().write(&mut b, 0, crc);
            b[at] = byte;
            seal(&mut b, crc);
            let read = Superblock::read(&b, 0, crc);
            assert!(matches!(read, Err(Fault::Damaged(_))), "{at}: {read:?}");
        }
    }

    #[test]
    fn of_two_superblocks_the_newer_sound_one_counts() {
        let old = superblock();
        let new = Superblock {
            generation: 8,
            ..superblock()
        };
        let other = Superblock {
            uuid: [1; 16],
            ..superblock()
        };
        let damaged = || Err(Fault::Damaged(c"x"));
        let choose = Superblock::choose;
        assert_eq!(
            choose([Ok(old.clone()), Ok(new.clone())]),
            Ok((new.clone(), [true, false]))
        );
        assert_eq!(
            choose([Ok(new.clone()), Ok(old.clone())]),
            Ok((new, [false, true]))
        );
        assert_eq!(
            choose([damaged(), Ok(old.clone())]),
            Ok((old.clone(), [true, false]))
        );
        assert_eq!(
            choose([Ok(old.clone()), damaged()]),
            Ok((old.clone(), [false, true]))
        );
        assert!(choose([damaged(), damaged()]).is_err());
        assert!(choose([Ok(old.clone()), Ok(other)]).is_err());
        assert!(choose([Ok(old), Err(Fault::Unsupported(c"x"))]).is_err());
    }

    proptest! {
        #[test]
        fn any_changed_byte_is_noticed(at in 0..BLOCK_SIZE, flip in 1u8..) {
            let mut b = [0; BLOCK_SIZE];
            let s = superblock();
            s.write(&mut b, 0, crc);
            prop_assert_eq!(Superblock::read(&b, 0, crc), Ok(s));
            prop_assert!(Superblock::read(&b, 1, crc).is_err());
            b[at] ^= flip;
            prop_assert!(Superblock::read(&b, 0, crc).is_err());
            blank_table_block(&mut b, &[3; 16], 4, crc);
            prop_assert_eq!(table_generation(&b, &[3; 16], 4, crc), Ok(1));
            prop_assert!(table_generation(&b, &[3; 16], 5, crc).is_err());
            prop_assert!(table_generation(&b, &[4; 16], 4, crc).is_err());
            b[at] ^= flip;
            prop_assert!(table_generation(&b, &[3; 16], 4, crc).is_err());
        }

        /// Garbage with a right checksum: no panic, and what is accepted keeps the rules.
        #[test]
        fn hostile_blocks_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), BLOCK_SIZE), number in any::<u64>(),
            index in 0usize..130, spare in 40u64..5000,
        ) {
            let mut b: Block = bytes.try_into().unwrap();
            b[..8].copy_from_slice(b"RMAPSUPR");
            b[12..16].copy_from_slice(&1u32.to_le_bytes());
            b[32..40].fill(0);
            b[64..72].fill(0);
            seal(&mut b, crc);
            let _ = Superblock::read(&b, 0, crc);
            b[64] = 1;
            seal(&mut b, crc);
            let _ = read_growth(&b, 0, crc);
            let g = Geometry::plan(1000, spare, 8, 2).unwrap();
            let _ = record(&b, number, index, &g);
            let state_at = 64 + 32 * index.min(125) + 16;
            b[state_at] &= 3;
            b[state_at + 1..state_at + 4].fill(0);
            if number & 1 != 0 {
                // Else a mask or a unit is hardly ever a possible one.
                b[state_at - 16..state_at - 8].copy_from_slice(&(number % 130).to_le_bytes());
                b[state_at - 8..state_at].copy_from_slice(&(number >> 8 & 0x1ff).to_le_bytes());
            }
            if let Ok(
                State::Entry { unit, mask }
                | State::Moved { unit, mask }
                | State::Bad { unit, lost: mask },
            ) = record(&b, number % 40, index, &g)
            {
                prop_assert!(unit.0 < 125 && mask < 256);
            }
        }
    }
}
