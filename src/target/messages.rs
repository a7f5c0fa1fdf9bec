// SPDX-License-Identifier: GPL-2.0

//! `dmsetup message`.

use super::{name_of, Remap};
use crate::dm::{Args, IoBuffer, NoIo, TargetInfo, TextWriter};
use crate::engine::{
    entries::Entry,
    format::Cause,
    geometry::mask_of,
    message::{Message, HELP},
    Unit,
};
use core::fmt::Write;
use kernel::prelude::*;

impl Remap {
    /// Obeys a message, printing its result to `out`. May sleep.
    pub(super) fn obey(&self, ti: &TargetInfo, args: &Args, out: &mut TextWriter<'_>) -> Result {
        let _noio = NoIo::enter();
        let words = args.words()?;
        let message = Message::parse(&words, ti.len()).map_err(|why| {
            pr_warn!(
                "{}: message: {}\n",
                name_of(ti),
                why.to_str().unwrap_or("?")
            );
            EINVAL
        })?;
        if !self.is_loaded() && message != Message::Help {
            pr_warn!("{}: message: the device was never resumed\n", name_of(ti));
            return Err(EBUSY);
        }
        match message {
            Message::Help => out.write_str(HELP).map_err(|_| EIO),
            Message::Query { sector } => {
                let unit = self.geometry.unit_of(sector);
                self.print(out, unit, self.entries.get(unit).as_ref());
                Ok(())
            }
            Message::List { from, max } => {
                let mut left = max;
                self.entries.visit(self.geometry.unit_of(from), |entry| {
                    if left == 0 || out.is_full() {
                        return false;
                    }
                    left -= 1;
                    if out.len() > 0 {
                        let _ = out.write_str("\n");
                    }
                    self.print(out, entry.unit, Some(&entry));
                    true
                });
                Ok(())
            }
            Message::Sync => {
                self.sync_lazy();
                let done = self.store.flush();
                self.report_mode(ti);
                if done {
                    Ok(())
                } else {
                    Err(EIO)
                }
            }
            Message::Remap { sector, count } => self.remap_range(ti, sector, count, out),
        }
    }

    /// Prints `<unit_start> <state> <slot or -> <mask or ->`.
    fn print(&self, out: &mut TextWriter<'_>, unit: Unit, entry: Option<&Entry>) {
        let start = self.geometry.unit_start(unit);
        // The writer drops what does not fit, and does not fail.
        let _ = match entry {
            None => write!(out, "{start} healthy - -"),
            Some(Entry { slot, mask, .. }) => {
                let state = match *mask {
                    0 => "pending",
                    m if m == self.geometry.unit_mask(unit) => "relocated",
                    _ => "partial",
                };
                write!(out, "{start} {state} {} {mask:x}", slot.0)
            }
        };
    }

    fn remap_range(
        &self,
        ti: &TargetInfo,
        sector: u64,
        count: u64,
        out: &mut TextWriter<'_>,
    ) -> Result {
        // Resuming waits until the copying is done.
        let active = self.active.lock();
        if *active {
            pr_warn!(
                "{}: message: remap needs a suspended device for now\n",
                name_of(ti)
            );
            return Err(EBUSY);
        }
        if !self.writable {
            pr_warn!("{}: message: remap: the table is read-only\n", name_of(ti));
            return Err(EROFS);
        }
        let mut buffer = IoBuffer::new((self.block as usize) << 9)?;
        let (first, last) = (
            self.geometry.unit_of(sector),
            self.geometry.unit_of(sector + (count - 1)),
        );
        let (mut relocated, mut incomplete) = (0u64, 0u64);
        for unit in (first.0..=last.0).map(Unit) {
            let mask = self.remap_unit(ti, unit, &mut buffer)?;
            relocated += 1;
            incomplete += u64::from(mask != self.geometry.unit_mask(unit));
        }
        let _ = write!(
            out,
            "{relocated} units relocated, {incomplete} of them not readable as a whole"
        );
        Ok(())
    }

    /// Copies what main can still read of `unit` to its slot and commits. Nothing may write the unit.
    /// Returns the mask.
    fn remap_unit(&self, ti: &TargetInfo, unit: Unit, buffer: &mut IoBuffer) -> Result<u64> {
        let _guard = self.units.lock(unit);
        let old = self.entries.get(unit);
        let slot = match old {
            Some(entry) => entry.slot,
            None => self.new_slot().ok_or(ENOSPC)?,
        };
        let mut mask = old.map_or(0, |e| e.mask);
        let all = self.geometry.unit_mask(unit);
        let mut offset = 0;
        while offset < self.geometry.unit_sectors {
            let bits = mask_of(offset, self.block);
            if bits & all & !mask != 0 {
                let from = self.main_sector(unit, offset);
                let to = self.slot_sector(slot, offset);
                if self.main.read(from, self.block, buffer).is_ok() {
                    if self
                        .store
                        .spare()
                        .write(to, self.block, buffer, false)
                        .is_err()
                    {
                        if old.is_none() {
                            self.store.with_slots(|s| s.release(slot));
                        }
                        return Err(EIO);
                    }
                    mask |= bits;
                }
            }
            offset += self.block;
        }
        let entry = Entry { unit, slot, mask };
        self.establish(ti, old, &entry, Cause::Message).ok_or(EIO)?;
        Ok(mask)
    }
}
