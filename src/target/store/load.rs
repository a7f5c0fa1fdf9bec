// SPDX-License-Identifier: GPL-2.0

//! All of the table, read and judged.

use super::{window::Window, Disk, Store, TableBlock};
use crate::dm::{self, IoBuffer};
use crate::engine::{
    entries::{sort_by_unit, Entry, Loss, OfUnit},
    format::{self, Block, Cause, Record, State, Superblock, Update},
    geometry::{mask_of, BLOCK_SECTORS, BLOCK_SIZE, MAX_COPIES},
    group::Places,
    image::{self, Finding, Seen, Settled, Severity, Standing},
    Slot, Unit,
};
use crate::target::entries::Entries;
use core::{cell::Cell, ops::Range};
use kernel::{prelude::*, sync::atomic::Relaxed};

impl Store<'_> {
    /// Reads the table and makes `entries` and the slots what it says. Returns the numbers of the
    /// blocks of which a replica is not as it should be.
    pub(super) fn load(
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
        disk.places = Places::default();
        disk.owed.clear();
        disk.table.clear();
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
                disk.table
                    .push(TableBlock::at(replicas.generation), GFP_KERNEL)?;
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
            Seen::Record(Record {
                slot,
                state,
                origin,
            }) => {
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
        sort(&mut list)?;
        sort(&mut losses)?;
        let count = image::settle(&mut list, &losses, &mut |settled| {
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
        sort(&mut losses)?;
        entries.load(&list, &losses)?;
        *self.slots.lock() = slots;
        self.degraded.store(false, Relaxed);
        Ok(damaged)
    }

    /// Whether `mask` has all or nothing of each logical block of `unit`.
    fn is_whole_blocks(&self, mask: u64, unit: Unit) -> bool {
        let all = self.geometry.unit_mask(unit);
        // Nearly all have either.
        if mask == 0 || mask == all {
            return true;
        }
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
}

/// Sorts `list` by unit. May sleep.
#[inline(never)] // for the stack that it takes
fn sort<T: OfUnit + Copy>(list: &mut KVVec<T>) -> Result {
    // As it mostly is: bad sectors are found in ascending order.
    if !list.is_sorted_by_key(T::unit) {
        let mut scratch = KVVec::with_capacity(list.len(), GFP_KERNEL)?;
        scratch.extend_from_slice(list, GFP_KERNEL)?;
        sort_by_unit(list, &mut scratch);
    }
    Ok(())
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
            let sector = |number: u64| store.sector(number * BLOCK_SECTORS).number();
            let block = window.block(numbers, store.spare.device(), &sector, &mut self.one);
            store.errors.add(u64::from(block.is_none()));
            return block.map(|block| *to = *block).is_some();
        }
        false
    }
}
