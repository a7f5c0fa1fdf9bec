// SPDX-License-Identifier: GPL-2.0

//! Blocks that are read many at a time.

use super::{as_block, as_block_mut, BLOCK, CHUNK};
use crate::dm::{Device, IoBuffer};
use crate::engine::{format::Block, geometry::BLOCK_SIZE};
use core::ops::Range;
use kernel::prelude::*;

/// Blocks read at once when all of the table is, at most: 1 MiB.
const WINDOW: u64 = 256;

/// Blocks that were read together.
pub(super) struct Window {
    /// The number of the first in the region.
    first: u64,
    count: u64,
    /// One bit for each that cannot be read.
    unreadable: [u64; WINDOW as usize / 64],
    bytes: IoBuffer,
}
impl Window {
    /// None yet. May sleep.
    pub(super) fn new() -> Result<Self> {
        let bytes = IoBuffer::at_most(BLOCK_SIZE * WINDOW as usize, BLOCK_SIZE * CHUNK as usize)?;
        Ok(Self {
            first: 0,
            count: 0,
            unreadable: [0; WINDOW as usize / 64],
            bytes,
        })
    }

    /// Whether this block was read.
    pub(super) fn has(&self, number: u64) -> bool {
        (self.first..self.first + self.count).contains(&number)
    }

    /// The first of the blocks `numbers` of `spare`, where they begin at `sector` of that. Reads all of them that there is
    /// room for, if need be: one by one, with `one` as room, if they cannot be read together. `None`: it cannot be read.
    pub(super) fn block(
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
