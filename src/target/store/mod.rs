// SPDX-License-Identifier: GPL-2.0

//! The metadata on the spare.
//!
//! - [`open`]: what lies there; formatting, and bringing it into force;
//! - [`load`]: all of the table, by [`window`]s;
//! - [`commit`]: changes of it; [`gather`]: many at once; [`flush`]: the spare's cache;
//! - [`extend`]: more of it in use;
//! - [`check`]: whether it is what it should be.
//!
//! A commit changes records of one or more table blocks. Whoever needs one adds it to the list of
//! requests and then flushes the list ([`Store::commit`]): the first to get the `disk` mutex writes
//! for all whose requests wait, the others find theirs done. So many waiting bios cost few writes,
//! and no commit depends on queued work, only on a thread that is doing I/O. Before it writes, it waits
//! for others that are about to bring a request ([`gather`]).
//!
//! A table block is read back from the spare before it is changed, unless it was one of the last
//! ones written: memory holds no copy of the table. First comes a flush, which makes the slots
//! durable that were written before. Then all blocks that wait are written together, as a
//! group: one replica of each block, and a flush; then the next replica of each, and so on. The last replica of a
//! block alone is written with `REQ_FUA` instead of a flush, and all of them after a flush that failed ([`flush`]).

mod check;
mod commit;
mod extend;
mod flush;
mod gather;
mod load;
mod open;
mod window;

pub(super) use flush::Filling;

use super::{
    area::{OnSpare, Sector, Spare},
    counter::Counter,
};
use crate::dm::{IoBuffer, TargetInfo};
use crate::engine::{
    format::{Block, Update, Uuid},
    geometry::{Geometry, BLOCK_SECTORS, BLOCK_SIZE, RECORDS_PER_BLOCK},
    group::{Places, PLACES},
    identity::Identity,
    image::Finding,
    slots::SlotMap,
    Slot,
};
use kernel::{
    new_condvar, new_mutex,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        CondVar, Mutex,
    },
    time::{Instant, Monotonic},
};

/// Requests that may wait at a time; more wait until there is room.
const MAX_REQUESTS: usize = 1024;
/// Updates that [`Store::commit`] takes at a time.
pub(super) const MAX_UPDATES: usize = RECORDS_PER_BLOCK as usize;
/// Updates that may be owed at a time: more than there are works and messages, each of which owes one.
const MAX_OWED: usize = 2048;
/// And at least, if there is not more memory to be had in one piece: 64 KiB. As many are written at once.
const CHUNK: u64 = 16;

const BLOCK: u32 = BLOCK_SECTORS as u32;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Waiting,
    Writing,
    Done(bool),
}

struct Request {
    ticket: u64,
    update: Update,
    /// How the data that it speaks of were put in its slot, if there are any.
    filling: Option<Filling>,
    progress: Progress,
}

impl Request {
    fn is_waiting(&self) -> bool {
        self.progress == Progress::Waiting
    }
}

#[derive(Default)]
struct Requests {
    /// Capacity [`MAX_REQUESTS`], never grows.
    list: KVec<Request>,
    last_ticket: u64,
    /// Those who wait for a commit.
    callers: i64,
    /// The last one to wait for others waited in vain, and some of them are on their way still.
    in_vain: bool,
}

/// More writes than a replica may have taken alone.
const AHEAD: u64 = 1 << 20;

/// What is known of a table block in use.
#[derive(Clone, Copy, Default)]
struct TableBlock {
    /// The generation that was read or written last. A replica with a lower one missed a write, and must not be taken for
    /// the block.
    generation: u64,
    /// The replicas that did, as far as is known: one bit each.
    missed: u8,
}

impl TableBlock {
    /// All replicas have this generation, as far as is known.
    fn at(generation: u64) -> Self {
        Self {
            generation,
            missed: 0,
        }
    }

    /// Replica `copy` missed the last write, or did not.
    fn set_missed(&mut self, copy: usize, missed: bool) {
        self.missed = self.missed & !(1 << copy) | u8::from(missed) << copy;
    }
}

struct Disk {
    uuid: Uuid,
    /// Copy 0 of the superblock as it should be on the spare.
    superblock: IoBuffer,
    /// Which table blocks are in `blocks`, as they are on the spare. What is stuck there is what no replica could be read or
    /// written of. Nothing else may be written before that is, with a higher generation: what could not be written may
    /// be there all the same.
    places: Places,
    /// Capacity and length [`PLACES`].
    blocks: KVec<IoBuffer>,
    /// Of each table block in use.
    table: KVVec<TableBlock>,
    /// How many table blocks are in use up to the end of each part.
    parts: KVVec<u64>,
    /// What a block's generation grows by: 1, or more than [`AHEAD`] if a replica could neither be read nor written when the entries
    /// were loaded. It may have been the only one that took the last writes, and what it has must never count again.
    step: u64,
    /// Updates that must be made before any other is ([`Store::commit_then`]). Capacity [`MAX_OWED`] at least.
    owed: KVVec<Update>,
    /// One bit for each replica that could not be written last.
    failing: u32,
    /// When the last flush for a commit failed, if the last one did.
    flush_failed: Option<Instant<Monotonic>>,
    /// Another block's room: a replica to compare, or one of `blocks` with a change.
    other: IoBuffer,
    /// Room for [`CHUNK`] new blocks.
    chunk: IoBuffer,
    /// Capacity [`MAX_REQUESTS`], never grows.
    batch: KVec<Update>,
}

/// Slots that no entry has, and that must not be given out yet.
#[derive(Default)]
struct Waiting {
    /// A replica may say that a unit has it, until what could not be written is. Capacity [`MAX_REQUESTS`].
    uncommitted: KVec<Slot>,
    /// Bios may be on their way to it, until the device is suspended.
    restored: KVVec<Slot>,
}

/// The metadata of one target.
#[pin_data]
pub(super) struct Store<'t> {
    ti: &'t TargetInfo,
    spare: Spare<'t>,
    geometry: Geometry,
    /// The larger logical block of both devices, in sectors.
    block: u32,
    /// What is known of main.
    main: Identity,
    /// That is to be recorded, whatever the spare says.
    rebind: bool,
    /// No more blocks could be taken in use: not tried again before a bio needs one.
    ended: Atomic<bool>,
    #[pin]
    slots: Mutex<SlotMap<KVVec<u64>>>,
    #[pin]
    waiting: Mutex<Waiting>,
    #[pin]
    requests: Mutex<Requests>,
    /// A request was taken off the list.
    #[pin]
    room: CondVar,
    /// Writes that are being recovered, but for those that wait for another one to the same unit: each may bring a request, or has.
    /// Goes down with `requests` locked.
    coming: Atomic<i64>,
    /// One of them has brought it, or does not come.
    #[pin]
    arrived: CondVar,
    /// Held during metadata I/O; nothing that completes that I/O takes it.
    #[pin]
    disk: Mutex<Disk>,
    degraded: Atomic<bool>,
    /// The last flush for a commit failed. Changed with `disk` locked.
    through: Atomic<bool>,
    flush_failures: Atomic<u32>,
    /// Commits: table blocks written, alone or many together.
    pub(super) commits: Counter,
    /// Replicas that could not be written or read.
    pub(super) errors: Counter,
}

impl kernel::fmt::Display for Identity {
    fn fmt(&self, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

impl kernel::fmt::Display for Finding {
    fn fmt(&self, f: &mut kernel::fmt::Formatter<'_>) -> kernel::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

fn as_block(bytes: &[u8], index: u64) -> Option<&Block> {
    let start = usize::try_from(index).ok()?.checked_mul(BLOCK_SIZE)?;
    bytes.get(start..)?.first_chunk()
}

fn as_block_mut(bytes: &mut [u8], index: u64) -> Option<&mut Block> {
    let start = usize::try_from(index).ok()?.checked_mul(BLOCK_SIZE)?;
    bytes.get_mut(start..)?.first_chunk_mut()
}

impl Disk {
    fn table_block(&self, number: u64) -> TableBlock {
        self.table.get(number as usize).copied().unwrap_or_default()
    }

    /// Changes what is known of block `number`.
    fn note(&mut self, number: u64, note: impl FnOnce(&mut TableBlock)) {
        self.table.get_mut(number as usize).map(note);
    }

    /// The table block in this place.
    fn block(&self, place: usize) -> Option<&Block> {
        as_block(self.blocks.get(place)?.bytes(), 0)
    }

    /// Table blocks in use.
    fn in_use(&self) -> u64 {
        self.parts.last().copied().unwrap_or(0)
    }

    /// What table block `number` has to say about the part behind it.
    fn next_in_use(&self, number: u64) -> u64 {
        let ends = self.parts.iter().zip(self.parts.iter().skip(1));
        let mut ends = ends.filter(|(end, _)| **end == number + 1);
        ends.next().map_or(0, |(_, next)| *next)
    }
}

impl<'t> Store<'t> {
    /// Metadata of the layout `geometry` in the region `spare`. Reads and
    /// writes nothing yet.
    ///
    /// `block`: the larger logical block of both devices, in sectors. `main`: what is known of main, to be recorded if the
    /// spare has nothing, or, with `rebind`, something else.
    pub(super) fn new(
        ti: &'t TargetInfo,
        spare: Spare<'t>,
        geometry: Geometry,
        block: u32,
        main: Identity,
        rebind: bool,
    ) -> impl PinInit<Self, Error> {
        let slots = Self::slots_of(&geometry, 0);
        try_pin_init!(Self {
            ti,
            spare,
            geometry,
            block,
            main,
            rebind,
            ended: Atomic::new(false),
            slots <- new_mutex!(slots?, "dm_remap::slots"),
            waiting <- new_mutex!(
                Waiting {
                    uncommitted: KVec::with_capacity(MAX_REQUESTS, GFP_KERNEL)?,
                    restored: KVVec::new(),
                },
                "dm_remap::waiting"
            ),
            requests <- new_mutex!(
                Requests {
                    list: KVec::with_capacity(MAX_REQUESTS, GFP_KERNEL)?,
                    last_ticket: 0,
                    callers: 0,
                    in_vain: false,
                },
                "dm_remap::requests"
            ),
            room <- new_condvar!("dm_remap::room"),
            coming: Atomic::new(0),
            arrived <- new_condvar!("dm_remap::arrived"),
            disk <- new_mutex!(
                Disk {
                    uuid: [0; 16],
                    superblock: IoBuffer::new(BLOCK_SIZE)?,
                    places: Places::default(),
                    blocks: Self::blocks()?,
                    table: KVVec::new(),
                    parts: KVVec::new(),
                    step: 1,
                    owed: KVVec::with_capacity(MAX_OWED, GFP_KERNEL)?,
                    failing: 0,
                    flush_failed: None,
                    other: IoBuffer::new(BLOCK_SIZE)?,
                    chunk: IoBuffer::new(BLOCK_SIZE * CHUNK as usize)?,
                    batch: KVec::with_capacity(MAX_REQUESTS, GFP_KERNEL)?,
                },
                "dm_remap::disk"
            ),
            degraded: Atomic::new(false),
            through: Atomic::new(false),
            flush_failures: Atomic::new(0),
            commits: Counter::new(),
            errors: Counter::new(),
        })
    }

    /// Room for the table blocks in memory. May sleep.
    fn blocks() -> Result<KVec<IoBuffer>> {
        let mut blocks = KVec::with_capacity(PLACES, GFP_KERNEL)?;
        for _ in 0..PLACES {
            blocks.push(IoBuffer::new(BLOCK_SIZE)?, GFP_KERNEL)?;
        }
        Ok(blocks)
    }

    /// Words for the slots of `in_use` table blocks. May sleep.
    fn words(in_use: u64) -> Result<KVVec<u64>> {
        let words = SlotMap::<KVVec<u64>>::words_for(in_use);
        let words = usize::try_from(words).map_err(|_| EFBIG)?;
        Ok(KVVec::from_elem(0, words, GFP_KERNEL)?)
    }

    /// The slots of `in_use` table blocks, all free. May sleep.
    fn slots_of(geometry: &Geometry, in_use: u64) -> Result<SlotMap<KVVec<u64>>> {
        Ok(SlotMap::new(Self::words(in_use)?, geometry))
    }
    /// The spare's region.
    #[inline(always)]
    pub(super) fn spare(&self) -> &Spare<'t> {
        &self.spare
    }

    /// Where sector `sector` of the region is on the spare.
    fn sector(&self, sector: u64) -> Sector<OnSpare> {
        self.spare.sector(sector)
    }

    /// Whether the last commit could not be made.
    pub(super) fn is_degraded(&self) -> bool {
        self.degraded.load(Relaxed)
    }

    /// Calls `f` with the map of slots. It must not sleep for long.
    pub(super) fn with_slots<R>(&self, f: impl FnOnce(&mut SlotMap<KVVec<u64>>) -> R) -> R {
        f(&mut self.slots.lock())
    }

    fn name(&self) -> &str {
        self.ti.name().to_str().unwrap_or("?")
    }
}
