// SPDX-License-Identifier: GPL-2.0

//! The metadata on the spare: opening, formatting, loading, and committing changes.
//!
//! A commit changes records of one or more table blocks. Whoever needs one adds it to the list of
//! requests and then flushes the list ([`Store::commit`]): the first to get the `disk` mutex writes
//! for all whose requests wait, the others find theirs done. So many waiting bios cost few writes,
//! and no commit waits for queued work, only for a thread that is doing I/O.
//!
//! A table block is read back from the spare before it is changed, unless it was the last one
//! written: memory holds no copy of the table. Its replicas are written one after the other, each
//! durably (`REQ_PREFLUSH | REQ_FUA`), which also makes the slots durable that were written before.

use super::{counter::Counter, entries::Entries};
use crate::dm::{self, BlkStatus, Device, Durability, IoBuffer, Refused, TargetInfo};
use crate::engine::{
    entries::{sort_by_unit, Entry, Loss},
    format::{self, Block, Cause, State, Superblock, Update, Uuid},
    geometry::{mask_of, Geometry, BLOCK_SECTORS, BLOCK_SIZE, MAX_COPIES, RECORDS_PER_BLOCK},
    identity::Identity,
    image::{self, Finding, Found, Seen, Settled, Severity, Standing},
    slots::SlotMap,
    Slot, Unit,
};
use core::{cell::Cell, ops::Range};
use kernel::{
    new_condvar, new_mutex,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        CondVar, Mutex,
    },
};

/// Requests that may wait at a time; more wait until there is room.
const MAX_REQUESTS: usize = 1024;
/// Updates that [`Store::commit`] takes at a time.
pub(super) const MAX_UPDATES: usize = RECORDS_PER_BLOCK as usize;
/// Updates that may be owed at a time: more than there are works and messages, each of which owes one.
const MAX_OWED: usize = 2048;
/// Blocks read at once when all of the table is, at most: 1 MiB.
const WINDOW: u64 = 256;
/// And at least, if there is not more memory to be had in one piece: 64 KiB. As many are written at once.
const CHUNK: u64 = 16;
/// Slots left to give out of those whose table blocks are in use, below which more blocks are taken in use.
const FEW_LEFT: u64 = RECORDS_PER_BLOCK;

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
    progress: Progress,
}

#[derive(Default)]
struct Requests {
    /// Capacity [`MAX_REQUESTS`], never grows.
    list: KVec<Request>,
    last_ticket: u64,
}

struct Disk {
    uuid: Uuid,
    /// Copy 0 of the superblock as it should be on the spare.
    superblock: IoBuffer,
    /// The table block in `block`, as it is on the spare unless `stuck`.
    loaded: Option<u64>,
    /// Of each table block in use, the generation that was read or written last. A replica with a lower
    /// one missed a write, and must not be taken for the block.
    generations: KVVec<u64>,
    /// How many table blocks are in use up to the end of each part.
    parts: KVVec<u64>,
    /// A replica could not be read when the entries were loaded, nor written: it may be one
    /// generation ahead, after a cut. That one is never used again for something else.
    ahead: bool,
    /// Updates that must be made before any other is ([`Store::commit_then`]). Capacity [`MAX_OWED`] at least.
    owed: KVVec<Update>,
    /// One bit for each replica that could not be written last.
    failing: u32,
    /// A table block that no replica could be read or written of. Nothing else may be written before
    /// this block is, with a higher generation: what could not be written may be there all the same.
    stuck: Option<u64>,
    block: IoBuffer,
    /// Another block's room: a replica to compare, or `block` before a change.
    other: IoBuffer,
    /// Room for [`CHUNK`] new blocks.
    chunk: IoBuffer,
    /// Capacity [`MAX_REQUESTS`], never grows.
    batch: KVec<(u64, Update)>,
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
    spare: Device<'t>,
    start: u64,
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
    /// Held during metadata I/O; nothing that completes that I/O takes it.
    #[pin]
    disk: Mutex<Disk>,
    degraded: Atomic<bool>,
    /// Table blocks committed.
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
    fn generation(&self, number: u64) -> u64 {
        self.generations.get(number as usize).copied().unwrap_or(0)
    }

    fn set_generation(&mut self, number: u64, generation: u64) {
        if let Some(known) = self.generations.get_mut(number as usize) {
            *known = generation;
        }
    }

    fn block(&mut self) -> Result<&mut Block> {
        as_block_mut(self.block.bytes_mut(), 0).ok_or(EINVAL)
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
    /// Metadata of the layout `geometry` in the region of `spare` from sector `start`. Reads and
    /// writes nothing yet.
    ///
    /// `block`: the larger logical block of both devices, in sectors. `main`: what is known of main, to be recorded if the
    /// spare has nothing, or, with `rebind`, something else.
    pub(super) fn new(
        ti: &'t TargetInfo,
        spare: Device<'t>,
        start: u64,
        geometry: Geometry,
        block: u32,
        main: Identity,
        rebind: bool,
    ) -> impl PinInit<Self, Error> {
        let slots = Self::slots_of(&geometry, 0);
        try_pin_init!(Self {
            ti,
            spare,
            start,
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
                },
                "dm_remap::requests"
            ),
            room <- new_condvar!("dm_remap::room"),
            disk <- new_mutex!(
                Disk {
                    uuid: [0; 16],
                    superblock: IoBuffer::new(BLOCK_SIZE)?,
                    loaded: None,
                    generations: KVVec::new(),
                    parts: KVVec::new(),
                    ahead: false,
                    owed: KVVec::with_capacity(MAX_OWED, GFP_KERNEL)?,
                    failing: 0,
                    stuck: None,
                    block: IoBuffer::new(BLOCK_SIZE)?,
                    other: IoBuffer::new(BLOCK_SIZE)?,
                    chunk: IoBuffer::new(BLOCK_SIZE * CHUNK as usize)?,
                    batch: KVec::with_capacity(MAX_REQUESTS, GFP_KERNEL)?,
                },
                "dm_remap::disk"
            ),
            degraded: Atomic::new(false),
            commits: Counter::new(),
            errors: Counter::new(),
        })
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

    /// Looks for superblocks in the region of `length` sectors (a multiple of 8) from `start`.
    ///
    /// `None`: the region is blank ([`image::ends`]). Refused: anything else that is not ours. May sleep.
    pub(super) fn probe(
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
    pub(super) fn blocks_in_use(
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

    /// The spare.
    pub(super) fn spare(&self) -> Device<'t> {
        self.spare
    }

    /// Where sector `sector` of the region is on the spare.
    #[inline(always)]
    pub(super) fn sector(&self, sector: u64) -> u64 {
        self.start.wrapping_add(sector)
    }

    /// First sector of the region on the spare.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Whether the last commit could not be made.
    pub(super) fn is_degraded(&self) -> bool {
        self.degraded.load(Relaxed)
    }

    /// Calls `f` with the map of slots. It must not sleep for long.
    pub(super) fn with_slots<R>(&self, f: impl FnOnce(&mut SlotMap<KVVec<u64>>) -> R) -> R {
        f(&mut self.slots.lock())
    }

    // ---- Activation

    fn name(&self) -> &str {
        self.ti.name().to_str().unwrap_or("?")
    }

    /// Says in the kernel log what is wrong.
    fn refuse(&self, Refused(why, error): Refused) -> Error {
        pr_err!("{}: {}\n", self.name(), why.to_str().unwrap_or("?"));
        error
    }

    /// Opens the spare, formatting it if it is blank and `format` allows it, and loads `entries`.
    /// Repairs replicas if `writable`. May sleep; the target must be suspended. Says in the kernel
    /// log what is wrong.
    pub(super) fn activate(&self, entries: &Entries, writable: bool, format: bool) -> Result {
        let g = &self.geometry;
        let found = Self::probe(self.spare, self.start, g.spare_sectors);
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
        disk.ahead = left != 0;
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
        disk.loaded = None;
        disk.generations.clear();
        disk.generations
            .reserve(g.first_part() as usize, GFP_KERNEL)?;
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

    /// Reads the table and makes `entries` and the slots what it says. Returns the numbers of the
    /// blocks of which a replica is not as it should be.
    fn load(
        &self,
        disk: &mut Disk,
        superblock: &Superblock,
        entries: &Entries,
    ) -> Result<KVVec<u64>> {
        let name = self.name();
        let mut bad = KVVec::<Slot>::new();
        let mut list = KVVec::<Entry>::new();
        let mut losses = KVVec::<Loss>::new();
        let mut damaged = KVVec::new();
        disk.loaded = None;
        disk.stuck = None;
        disk.owed.clear();
        disk.generations.clear();
        disk.parts.clear();
        disk.parts.push(self.geometry.first_part(), GFP_KERNEL)?;
        let killed = Cell::new(false);
        let mut reader = Reader::new(self, &killed)?;
        let mut room = IoBuffer::new(MAX_COPIES as usize * BLOCK_SIZE)?;
        let room = <[Block; MAX_COPIES as usize]>::mut_from_bytes(room.bytes_mut());
        let mut result = Ok(());
        // Of what makes the spare unusable, the log has the first.
        let refuse = |finding: Finding| {
            pr_err!("{name}: {finding}\n");
            Err(EINVAL)
        };
        let mut see = |seen: Seen<'_>| match seen {
            _ if killed.get() => Err(EINTR),
            Seen::Finding(finding) if finding.severity() != Severity::Mendable => refuse(finding),
            Seen::Finding(finding) => {
                if dm::log_allowed() {
                    pr_warn!("{name}: {finding}\n");
                }
                Ok(())
            }
            Seen::Block {
                number,
                replicas,
                block,
            } => {
                disk.generations.push(replicas.generation, GFP_KERNEL)?;
                // What cannot be is found next.
                let next = format::next_in_use(block);
                if next != 0 {
                    disk.parts.push(next, GFP_KERNEL)?;
                }
                let sound = |s: &Standing| matches!(s, Standing::Current | Standing::Unused);
                if !replicas.standing.iter().all(sound) {
                    damaged.push(number, GFP_KERNEL)?;
                }
                Ok(())
            }
            Seen::Record {
                slot,
                state,
                origin,
            } => {
                match state {
                    State::Free => (),
                    State::Bad { unit, lost: mask } => {
                        bad.push(slot, GFP_KERNEL)?;
                        if mask != 0 {
                            losses.push(Loss { unit, mask, slot }, GFP_KERNEL)?;
                        }
                    }
                    State::Entry { unit, mask } | State::Moved { unit, mask } => {
                        if !self.is_whole_blocks(mask, unit) {
                            pr_err!(
                                "{name}: unit {}: relocated in parts of a logical block of these \
                                 devices\n",
                                unit.0
                            );
                            return Err(EINVAL);
                        }
                        let entry = Entry {
                            held: matches!(state, State::Moved { .. }),
                            yields: mask == 0 && origin.cause == Cause::Read as u32,
                            ..Entry::new(unit, slot, mask)
                        };
                        list.push(entry, GFP_KERNEL)?;
                    }
                }
                Ok(())
            }
        };
        let in_use = image::read_table(
            superblock,
            &mut |numbers, to| reader.read(numbers, to),
            room.map_err(|_| EINVAL)?,
            dm::crc32c,
            &mut |seen| {
                if result.is_ok() {
                    result = see(seen);
                }
            },
        );
        result?;
        let mut slots = Self::slots_of(&self.geometry, in_use)?;
        for entry in &list {
            slots.take(entry.slot);
        }
        for slot in bad {
            slots.set_bad(slot);
        }
        let mut replaced = KVVec::<Loss>::new();
        let count = image::settle(&mut list, &mut losses, &mut |settled| {
            if result.is_err() {
                return;
            }
            result = match settled {
                Settled::Finding(finding) => refuse(finding),
                Settled::Replaced(loss) => replaced.push(loss, GFP_KERNEL).map_err(Error::from),
            };
        });
        result?;
        list.truncate(count);
        for loss in replaced {
            let (unit, lost) = (loss.unit, loss.mask);
            slots.retire(loss.slot);
            if lost != 0 {
                losses.push(loss, GFP_KERNEL)?;
            }
            let update = Update {
                slot: loss.slot,
                state: State::Bad { unit, lost },
                cause: Cause::Write,
            };
            disk.owed.push(update, GFP_KERNEL)?;
        }
        sort_by_unit(&mut losses);
        entries.load(&list, &losses)?;
        *self.slots.lock() = slots;
        self.degraded.store(false, Relaxed);
        Ok(damaged)
    }

    /// Whether `mask` has all or nothing of each logical block of `unit`.
    fn is_whole_blocks(&self, mask: u64, unit: Unit) -> bool {
        let all = self.geometry.unit_mask(unit);
        let mut left = mask;
        while left != 0 {
            let offset = left.trailing_zeros() & !(self.block - 1);
            let block = mask_of(offset, self.block) & all;
            if mask & block != block {
                return false;
            }
            left &= !block;
        }
        true
    }

    // ---- Commits

    /// Whether commits are likely to succeed: nothing is left that could not be written. May sleep.
    ///
    /// To be asked before a new slot gets data. See [`Self::commit`].
    pub(super) fn is_ready(&self) -> bool {
        !self.is_degraded() || self.flush()
    }

    /// Makes `updates` (at most [`MAX_UPDATES`]) durable; those of one table block in one step. May
    /// sleep. All writes to the spare that completed before are durable too.
    ///
    /// `false`: they are not, as far as is known. A replica may have them all the same, until the block
    /// is written again: a slot that they speak of must not be given out before, for anything else.
    pub(super) fn commit(&self, updates: &[Update]) -> bool {
        let tickets = {
            let mut requests = self.requests.lock();
            while requests.list.len() + updates.len() > MAX_REQUESTS {
                self.room.wait(&mut requests);
            }
            let first = requests.last_ticket + 1;
            for update in updates {
                requests.last_ticket += 1;
                let request = Request {
                    ticket: requests.last_ticket,
                    update: *update,
                    progress: Progress::Waiting,
                };
                // There is room, as was made sure.
                let _ = requests.list.push_within_capacity(request);
            }
            first..=requests.last_ticket
        };
        self.flush();
        let mut requests = self.requests.lock();
        // Whoever held `disk` before us, or we, wrote all that was on the list by then.
        let mut done = 0;
        requests.list.retain(|r| {
            let ours = tickets.contains(&r.ticket);
            done += usize::from(ours && r.progress == Progress::Done(true));
            !ours
        });
        self.room.notify_all();
        done == updates.len()
    }

    /// Makes `first` durable, and then `then`, in another table block: if that cannot be written now, it is before
    /// anything else is. May sleep.
    ///
    /// `false`: `first` is not durable, as far as is known, and `then` is not made.
    pub(super) fn commit_then(&self, first: Update, then: Update) -> bool {
        if !self.commit(&[first]) {
            return false;
        }
        // There is room for as many as there are threads.
        let _ = self.disk.lock().owed.push_within_capacity(then);
        self.flush();
        true
    }

    /// Frees `slot`, of which a commit failed that gave it to a unit, once that is taken back. May sleep.
    pub(super) fn release_later(&self, slot: Slot) {
        // No room: it is free at the next activation.
        let _ = self.waiting.lock().uncommitted.push_within_capacity(slot);
    }

    /// Frees `slot` when no bio can be on its way to it ([`Self::free_restored`]). May sleep.
    pub(super) fn free_when_suspended(&self, slot: Slot) {
        // No memory: it is free at the next activation.
        let _ = self.waiting.lock().restored.push(slot, GFP_KERNEL);
    }

    /// The device is suspended. May sleep.
    pub(super) fn free_restored(&self) {
        let slots = core::mem::replace(&mut self.waiting.lock().restored, KVVec::new());
        self.with_slots(|s| slots.iter().for_each(|slot| s.release(*slot)));
    }

    /// Writes what waits, and a block that could not be written before. May sleep.
    ///
    /// Returns whether nothing is left to be written.
    pub(super) fn flush(&self) -> bool {
        let mut disk = self.disk.lock();
        let mut batch = core::mem::take(&mut disk.batch);
        for request in self.requests.lock().list.iter_mut() {
            if request.progress == Progress::Waiting {
                request.progress = Progress::Writing;
                let _ = batch.push_within_capacity((request.ticket, request.update));
            }
        }
        let block_of = |update: &Update| self.geometry.record_of(update.slot).0;
        if let Some(number) = disk.stuck {
            self.update_block(&mut disk, number, &[]);
        }
        while let Some(number) = disk.owed.first().map(block_of) {
            if disk.stuck.is_some() || !self.update_block(&mut disk, number, &[]) {
                break;
            }
        }
        while let Some(number) = batch.first().map(|(_, update)| block_of(update)) {
            let done = disk.stuck.is_none() && self.update_block(&mut disk, number, &batch);
            let mut requests = self.requests.lock();
            for (ticket, _) in batch
                .iter()
                .filter(|(_, update)| block_of(update) == number)
            {
                if let Some(r) = requests.list.iter_mut().find(|r| r.ticket == *ticket) {
                    r.progress = Progress::Done(done);
                }
            }
            batch.retain(|(_, update)| block_of(update) != number);
        }
        disk.batch = batch;
        if disk.stuck.is_some() {
            return false;
        }
        // Nothing is left on the spare of what was not acknowledged.
        let mut waiting = self.waiting.lock();
        self.with_slots(|s| {
            waiting
                .uncommitted
                .drain_all()
                .for_each(|slot| s.release(slot));
        });
        true
    }

    /// Applies those of `updates` that belong to block `number` and writes it to the replicas.
    fn update_block(&self, disk: &mut Disk, number: u64, updates: &[(u64, Update)]) -> bool {
        let now = dm::unix_seconds();
        self.change_block(disk, number, |block| {
            for (_, update) in updates {
                let (of, index) = self.geometry.record_of(update.slot);
                if of == number {
                    format::set_record(block, index, update, now);
                }
            }
        })
    }

    /// Makes a change to block `number` and writes it to the replicas.
    fn change_block(&self, disk: &mut Disk, number: u64, change: impl FnOnce(&mut Block)) -> bool {
        let done = self.load_block(disk, number) && self.write_block(disk, number, change);
        disk.stuck = (!done).then_some(number);
        self.degraded.store(!done, Relaxed);
        self.commits.add(u64::from(done));
        done
    }

    /// Makes `disk.block` the newest valid replica of block `number`.
    fn load_block(&self, disk: &mut Disk, number: u64) -> bool {
        if disk.loaded == Some(number) {
            return true;
        }
        if disk.stuck.is_some_and(|stuck| stuck != number) {
            // `block` may have the only good copy of that one.
            return false;
        }
        disk.loaded = None;
        let mut best = None;
        for copy in 0..self.geometry.areas().len() {
            let sector = self.sector(self.geometry.table_sector(copy, number));
            if self.spare.read(sector, BLOCK, &mut disk.other).is_err() {
                self.errors.add(1);
                continue;
            }
            let other = as_block(disk.other.bytes(), 0);
            let Some(generation) = other
                .and_then(|b| format::table_generation(b, &disk.uuid, number, dm::crc32c).ok())
            else {
                self.errors.add(1);
                continue;
            };
            let least = best.unwrap_or(disk.generation(number));
            if generation > least || (generation == least && best.is_none()) {
                best = Some(generation);
                core::mem::swap(&mut disk.block, &mut disk.other);
            }
        }
        if let Some(generation) = best {
            disk.loaded = Some(number);
            disk.set_generation(number, generation);
        }
        best.is_some()
    }

    /// Makes a change, and what is owed, to block `number`, which is loaded, and writes it to all replicas, one after
    /// the other.
    ///
    /// `false`: no replica took it, and the block in memory is as it was but for its generation.
    fn write_block(&self, disk: &mut Disk, number: u64, change: impl FnOnce(&mut Block)) -> bool {
        let step = 1 + u64::from(disk.ahead);
        let next = disk.generation(number).checked_add(step);
        let Some(generation) = next.filter(|g| *g != u64::MAX) else {
            // Only a forged block comes that far, and the last generation is not a valid one.
            return false;
        };
        disk.set_generation(number, generation);
        let (Some(block), Some(before)) = (
            as_block_mut(disk.block.bytes_mut(), 0),
            as_block_mut(disk.other.bytes_mut(), 0),
        ) else {
            return false;
        };
        *before = *block;
        let now = dm::unix_seconds();
        for update in &disk.owed {
            let (of, index) = self.geometry.record_of(update.slot);
            if of == number {
                format::set_record(block, index, update, now);
            }
        }
        change(block);
        format::seal_table_block(block, generation, dm::crc32c);
        let mut written = 0;
        for copy in 0..self.geometry.areas().len() {
            let sector = self.sector(self.geometry.table_sector(copy, number));
            let done = self
                .spare
                .write(sector, BLOCK, &mut disk.block, Durability::Durable);
            written += u32::from(done.is_ok());
            self.note_replica(&mut disk.failing, copy, done);
        }
        if written > 0 {
            let block_of = |update: &Update| self.geometry.record_of(update.slot).0;
            disk.owed.retain(|update| block_of(update) != number);
        } else {
            // It may have reached a medium all the same. The next write of this block, which comes
            // before any other, takes back what was not acknowledged.
            core::mem::swap(&mut disk.block, &mut disk.other);
        }
        written > 0
    }

    /// Replica `copy` was written, or not. The log has the first time, and the end of it, whatever else it has.
    fn note_replica(&self, failing: &mut u32, copy: usize, done: Result<(), BlkStatus>) {
        let bit = 1 << copy;
        let failed = *failing & bit != 0;
        match done {
            Ok(()) if failed => {
                *failing &= !bit;
                pr_info!(
                    "{}: metadata replica {} can be written again\n",
                    self.name(),
                    copy
                );
            }
            Ok(()) => (),
            Err(status) => {
                self.errors.add(1);
                if !failed {
                    *failing |= bit;
                    pr_warn!(
                        "{}: metadata replica {} cannot be written: {:?}\n",
                        self.name(),
                        copy,
                        status
                    );
                }
            }
        }
    }

    // ---- More of the table

    /// Takes a free slot, and for that, if need be, more of the table in use. May sleep.
    pub(super) fn allocate(&self) -> Option<Slot> {
        loop {
            let (slot, in_use) = self.with_slots(|s| (s.allocate(), s.blocks()));
            if slot.is_some() || !self.extend(in_use) {
                return slot;
            }
        }
    }

    /// Takes more of the table in use if few slots are left of what is: so that no write has to wait for it. May sleep.
    pub(super) fn extend_ahead(&self) {
        let (left, in_use) = self.with_slots(|s| (s.left(), s.blocks()));
        let needed = left < FEW_LEFT && in_use < self.geometry.table_blocks && in_use > 0;
        if needed && !self.is_degraded() && !self.ended.load(Relaxed) {
            self.ended.store(!self.extend(in_use), Relaxed);
        }
    }

    /// Takes another part of the table in use, if it is still `from` blocks that are. May sleep.
    ///
    /// `false`: there is no other, or it cannot be written.
    fn extend(&self, from: u64) -> bool {
        if !self.flush() {
            return false;
        }
        let mut disk = self.disk.lock();
        if disk.in_use() != from {
            return disk.in_use() > from;
        }
        let Some(next) = self.geometry.next_part(from) else {
            return false;
        };
        // Something else may have failed meanwhile, and must be written before.
        let is_ready = disk.stuck.is_none() && disk.owed.is_empty();
        let count = next.saturating_sub(from) as usize;
        let has_room = disk.generations.reserve(count, GFP_KERNEL).is_ok()
            && disk.parts.reserve(1, GFP_KERNEL).is_ok();
        let Some(words) = Self::words(next).ok().filter(|_| is_ready && has_room) else {
            return false;
        };
        let Ok(end) = self.make_blocks(&mut disk, from..next) else {
            return false;
        };
        // Nothing leads to the new blocks before they are durable. (Of a flush that comes with a write, a mapped device would
        // not say that it failed.)
        let last = from.saturating_sub(1);
        if self.spare.flush().is_err()
            || !self.change_block(&mut disk, last, |block| format::set_next_in_use(block, end))
        {
            disk.generations.truncate(from as usize);
            return false;
        }
        let _ = disk.parts.push_within_capacity(end);
        let mut words = words;
        words.truncate(SlotMap::<KVVec<u64>>::words_for(end) as usize);
        let before = self.with_slots(|s| s.extend(words, &self.geometry));
        self.ended.store(false, Relaxed);
        drop(disk);
        drop(before);
        true
    }

    /// Writes these table blocks, which follow those in use and are not in use, without records. Not durable. May sleep.
    fn write_blank_blocks(&self, disk: &mut Disk, numbers: Range<u64>) -> Result<(), BlkStatus> {
        let uuid = disk.uuid;
        let mut written = Ok(());
        for copy in 0..self.geometry.areas().len() {
            for first in numbers.clone().step_by(CHUNK as usize) {
                let count = CHUNK.min(numbers.end - first);
                for n in 0..count {
                    if let Some(block) = as_block_mut(disk.chunk.bytes_mut(), n) {
                        format::blank_table_block(block, &uuid, first + n, dm::crc32c);
                    }
                }
                let sector = self.sector(self.geometry.table_sector(copy, first));
                let length = count as u32 * BLOCK;
                written = written.and_then(|()| {
                    self.spare
                        .write(sector, length, &mut disk.chunk, Durability::Cached)
                });
            }
        }
        written?;
        for _ in numbers {
            let _ = disk.generations.push_within_capacity(1);
        }
        Ok(())
    }

    /// Writes table blocks without records where none are in use. Returns the end of those that are there: fewer, if a
    /// replica cannot be written. Not durable yet. There is room for their generations.
    fn make_blocks(&self, disk: &mut Disk, numbers: Range<u64>) -> Result<u64, BlkStatus> {
        let written = self.write_blank_blocks(disk, numbers.clone());
        if written.is_ok() {
            return Ok(numbers.end);
        }
        // One at least: each costs time now.
        written.or_else(|status| {
            self.make_block(disk, numbers.start)
                .then_some(())
                .ok_or(status)
        })?;
        Ok(numbers.start + 1)
    }

    /// Writes table block `number`, which is not in use, without records, although not all replicas take it.
    fn make_block(&self, disk: &mut Disk, number: u64) -> bool {
        let uuid = disk.uuid;
        let copies = 0..self.geometry.areas().len();
        let sector = |copy| self.sector(self.geometry.table_sector(copy, number));
        // What lies there may look like this block. If it stays, it must not count.
        let mut generation = 1;
        for copy in copies.clone() {
            let read = self
                .spare
                .read(sector(copy), BLOCK, &mut disk.other)
                .is_ok();
            let found = as_block(disk.other.bytes(), 0)
                .filter(|_| read)
                .and_then(|block| format::table_generation(block, &uuid, number, dm::crc32c).ok());
            generation = generation.max(found.map_or(0, |found| found.saturating_add(1)));
        }
        if generation == u64::MAX {
            return false;
        }
        let Some(block) = as_block_mut(disk.other.bytes_mut(), 0) else {
            return false;
        };
        format::blank_table_block(block, &uuid, number, dm::crc32c);
        format::seal_table_block(block, generation, dm::crc32c);
        let mut written = 0;
        for copy in copies {
            let done = self
                .spare
                .write(sector(copy), BLOCK, &mut disk.other, Durability::Cached);
            written += u32::from(done.is_ok());
            self.note_replica(&mut disk.failing, copy, done);
        }
        written > 0 && disk.generations.push_within_capacity(generation).is_ok()
    }

    // ---- Checking

    /// Whether the spare answers a read into `buffer`, of a logical block. May sleep.
    pub(super) fn answers(&self, buffer: &mut IoBuffer) -> bool {
        [0, 1].iter().any(|copy| {
            let sector = self.sector(self.geometry.superblock_sector(*copy));
            self.spare.read(sector, self.block, buffer).is_ok()
        })
    }

    /// Reads all replicas of all blocks, and rewrites those that are not what they should be. May
    /// sleep. Then calls `recheck` for each unit whose record is not what memory has.
    ///
    /// Stops early when `stop` says so.
    pub(super) fn check(
        &self,
        entries: &Entries,
        stop: impl Fn() -> bool,
        mut recheck: impl FnMut(Unit) -> bool,
    ) -> Result<Checked> {
        let g = &self.geometry;
        let mut found = Checked::default();
        let mut doubtful = KVec::<Slot>::with_capacity(MAX_UPDATES, GFP_KERNEL)?;
        self.flush();
        {
            let mut disk = self.disk.lock();
            if let Some(number) = disk.stuck {
                // Nothing else may be written before this block is.
                found.damaged += g.areas().len() as u64;
                if disk.loaded.is_some() || !self.rebuild(&mut disk, number, entries) {
                    return Err(EIO);
                }
                found.repaired += g.areas().len() as u64;
            }
            self.check_superblocks(&mut disk, &mut found);
        }
        for number in
            (0..g.table_blocks).take_while(|number| *number < self.with_slots(|s| s.blocks()))
        {
            if stop() {
                return Err(EINTR);
            }
            doubtful.clear();
            {
                let mut disk = self.disk.lock();
                self.check_block(&mut disk, number, entries, &mut found);
                self.compare_records(&mut disk, number, entries, &mut doubtful);
            }
            for slot in &doubtful {
                // A slot that is taken, and no unit's, is one whose commit failed.
                let mut unit = None;
                entries.visit(Unit(0), |e| {
                    unit = (e.slot == *slot).then_some(e.unit);
                    unit.is_none()
                });
                if unit.is_some_and(&mut recheck) {
                    found.stale += 1;
                    found.repaired += 1;
                }
            }
        }
        Ok(found)
    }

    fn check_superblocks(&self, disk: &mut Disk, found: &mut Checked) {
        disk.loaded = None;
        for copy in [0, 1] {
            let sector = self.sector(self.geometry.superblock_sector(copy));
            let Some(right) = as_block_mut(disk.superblock.bytes_mut(), 0) else {
                return;
            };
            format::number_superblock(right, copy, dm::crc32c);
            let read = self.spare.read(sector, BLOCK, &mut disk.other);
            found.blocks += 1;
            if read.is_ok() && disk.other.bytes() == disk.superblock.bytes() {
                continue;
            }
            let known =
                as_block(disk.other.bytes(), 0).map(|b| Superblock::read(b, copy, dm::crc32c));
            let same = matches!(known, Some(Ok(s)) if s.uuid == disk.uuid);
            found.note(read.is_ok() && same);
            self.rewrite(sector, &mut disk.superblock, found);
        }
    }

    fn rewrite(&self, sector: u64, block: &mut IoBuffer, found: &mut Checked) {
        match self.spare.write(sector, BLOCK, block, Durability::Durable) {
            Ok(()) => found.repaired += 1,
            Err(_) => self.errors.add(1),
        }
    }

    /// Makes all replicas of table block `number` the newest one, or what memory has if there is none.
    fn check_block(&self, disk: &mut Disk, number: u64, entries: &Entries, found: &mut Checked) {
        let loaded = self.load_block(disk, number);
        for copy in 0..self.geometry.areas().len() {
            let sector = self.sector(self.geometry.table_sector(copy, number));
            found.blocks += 1;
            let read = self.spare.read(sector, BLOCK, &mut disk.other).is_ok();
            if read && loaded && disk.other.bytes() == disk.block.bytes() {
                continue;
            }
            let other = as_block(disk.other.bytes(), 0).filter(|_| read);
            let valid = other.is_some_and(|b| {
                format::table_generation(b, &disk.uuid, number, dm::crc32c).is_ok()
            });
            found.note(valid);
            if loaded {
                self.rewrite(sector, &mut disk.block, found);
            }
        }
        // As long as another block is stuck, this one cannot be loaded, and its room is taken.
        if !loaded && disk.stuck.is_none() && self.rebuild(disk, number, entries) {
            found.repaired += self.geometry.areas().len() as u64;
        }
    }

    /// Writes table block `number`, of which no replica is left, as memory has it.
    fn rebuild(&self, disk: &mut Disk, number: u64, entries: &Entries) -> bool {
        let (uuid, next) = (disk.uuid, disk.next_in_use(number));
        let Ok(block) = disk.block() else {
            return false;
        };
        format::blank_table_block(block, &uuid, number, dm::crc32c);
        format::set_next_in_use(block, next);
        let now = dm::unix_seconds();
        let mut put = |slot, state| {
            let (of, index) = self.geometry.record_of(slot);
            if of == number {
                let cause = Cause::Message;
                format::set_record(block, index, &Update { slot, state, cause }, now);
            }
        };
        // Whatever is taken and no entry's is bad, or not known to be good.
        let waiting = self.waiting.lock();
        let mut slots = self.slots.lock();
        for index in 0..RECORDS_PER_BLOCK {
            if let Some(slot) = self.geometry.slot_at(number, index) {
                let is_free = waiting.restored.contains(&slot);
                if slots.is_taken(slot) && !self.geometry.is_reserved(slot) && !is_free {
                    put(slot, State::BAD);
                }
            }
        }
        drop(slots);
        drop(waiting);
        entries.visit_losses(|l| {
            let (unit, lost) = (l.unit, l.mask);
            put(l.slot, State::Bad { unit, lost });
        });
        entries.visit(Unit(0), |e| {
            let (unit, mask) = (e.unit, e.mask);
            put(e.slot, State::Entry { unit, mask });
            true
        });
        disk.loaded = Some(number);
        self.update_block(disk, number, &[])
    }

    /// Adds the slots to `doubtful` whose records in block `number` are not what memory has.
    fn compare_records(
        &self,
        disk: &mut Disk,
        number: u64,
        entries: &Entries,
        doubtful: &mut KVec<Slot>,
    ) {
        if !self.load_block(disk, number) {
            return;
        }
        let Some(block) = as_block(disk.block.bytes(), 0) else {
            return;
        };
        for index in 0..RECORDS_PER_BLOCK {
            let Some(slot) = self.geometry.slot_at(number, index) else {
                continue;
            };
            let right = match format::record(block, number, index as usize, &self.geometry) {
                Ok(State::Entry { unit, mask } | State::Moved { unit, mask }) => entries
                    .get(unit)
                    .is_some_and(|e| e.slot == slot && e.mask == mask),
                Ok(State::Free) => {
                    self.geometry.is_reserved(slot) || !self.with_slots(|s| s.is_taken(slot))
                }
                Ok(State::Bad { .. }) => true,
                Err(_) => false,
            };
            if !right {
                let _ = doubtful.push_within_capacity(slot);
            }
        }
    }

    /// Whether the record of `slot` says what memory has for `entry`. May sleep.
    pub(super) fn has_record(&self, entry: &Entry) -> bool {
        let (number, index) = self.geometry.record_of(entry.slot);
        let mut disk = self.disk.lock();
        if !self.load_block(&mut disk, number) {
            return false;
        }
        let block = as_block(disk.block.bytes(), 0);
        let state = block.map(|b| format::record(b, number, index, &self.geometry));
        let (unit, mask) = (entry.unit, entry.mask);
        state == Some(Ok(State::Entry { unit, mask }))
    }
}

/// Reads the table blocks of a store, many at once.
struct Reader<'a> {
    store: &'a Store<'a>,
    windows: KVec<Window>,
    /// A block's room.
    one: IoBuffer,
    /// Whether whoever waits for this is being killed.
    killed: &'a Cell<bool>,
}

/// Blocks that were read together.
struct Window {
    /// The number of the first in the region.
    first: u64,
    count: u64,
    /// One bit for each that cannot be read.
    unreadable: [u64; WINDOW as usize / 64],
    bytes: IoBuffer,
}

impl<'a> Reader<'a> {
    fn new(store: &'a Store<'a>, killed: &'a Cell<bool>) -> Result<Self> {
        let mut windows = KVec::with_capacity(MAX_COPIES as usize, GFP_KERNEL)?;
        for _ in store.geometry.areas() {
            windows.push(Window::new()?, GFP_KERNEL)?;
        }
        let one = IoBuffer::new(BLOCK_SIZE)?;
        Ok(Self {
            store,
            windows,
            one,
            killed,
        })
    }

    /// Reads the first of the blocks `numbers` of the region, which lie in one of its areas. `false`: it cannot be read.
    fn read(&mut self, numbers: Range<u64>, to: &mut Block) -> bool {
        let store = self.store;
        let areas = store.geometry.areas().iter().zip(self.windows.iter_mut());
        for (area, window) in areas {
            let end = area + store.geometry.table_blocks;
            if !(*area..end).contains(&numbers.start) {
                continue;
            }
            if !window.has(numbers.start) && dm::is_killed() {
                self.killed.set(true);
            }
            if self.killed.get() {
                return false;
            }
            let sector = |number: u64| store.sector(number * BLOCK_SECTORS);
            let block = window.block(numbers, store.spare, &sector, &mut self.one);
            store.errors.add(u64::from(block.is_none()));
            return block.map(|block| *to = *block).is_some();
        }
        false
    }
}

impl Window {
    fn new() -> Result<Self> {
        let bytes = IoBuffer::at_most(BLOCK_SIZE * WINDOW as usize, BLOCK_SIZE * CHUNK as usize)?;
        Ok(Self {
            first: 0,
            count: 0,
            unreadable: [0; WINDOW as usize / 64],
            bytes,
        })
    }

    fn has(&self, number: u64) -> bool {
        (self.first..self.first + self.count).contains(&number)
    }

    /// The first of the blocks `numbers` of `spare`, where they begin at `sector` of that. Reads all of them that there is
    /// room for, if need be: one by one, with `one` as room, if they cannot be read together. `None`: it cannot be read.
    fn block(
        &mut self,
        numbers: Range<u64>,
        spare: Device<'_>,
        sector: &dyn Fn(u64) -> u64,
        one: &mut IoBuffer,
    ) -> Option<&Block> {
        let number = numbers.start;
        if !self.has(number) {
            let room = (self.bytes.bytes().len() / BLOCK_SIZE) as u64;
            self.first = number;
            self.count = room.min(numbers.end.saturating_sub(number)).max(1);
            self.unreadable = [0; WINDOW as usize / 64];
            let count = self.count as u32;
            let whole = spare.read(sector(number), count * BLOCK, &mut self.bytes);
            for nth in 0..self.count {
                if whole.is_ok() {
                    break;
                }
                if spare.read(sector(number + nth), BLOCK, one).is_err() {
                    if let Some(bits) = self.unreadable.get_mut(nth as usize / 64) {
                        *bits |= 1 << (nth % 64);
                    }
                }
                let to = as_block_mut(self.bytes.bytes_mut(), nth);
                if let (Some(from), Some(to)) = (as_block(one.bytes(), 0), to) {
                    *to = *from;
                }
            }
        }
        let nth = number - self.first;
        let bits = self.unreadable.get(nth as usize / 64)?;
        as_block(self.bytes.bytes(), nth).filter(|_| bits >> (nth % 64) & 1 == 0)
    }
}

/// What [`Store::check`] found.
#[derive(Default)]
pub(super) struct Checked {
    /// Replicas and superblocks looked at.
    pub(super) blocks: u64,
    /// Sound, and not the newest, or not what memory has.
    pub(super) stale: u64,
    /// Unreadable or not valid.
    pub(super) damaged: u64,
    /// Rewritten.
    pub(super) repaired: u64,
}

impl Checked {
    fn note(&mut self, sound: bool) {
        if sound {
            self.stale += 1;
        } else {
            self.damaged += 1;
        }
    }
}
