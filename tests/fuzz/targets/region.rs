// SPDX-License-Identifier: GPL-2.0

//! Whole images.

use super::blocks::{is_unused_table, state, superblock_generation, table_block_generation};
use super::sample::{sample, seal, set_word, word, Sample};
use super::take;
use crate::image::crc32c;
use dm_remap::engine::entries::{lost_of, Entry, Loss};
use dm_remap::engine::format::{update_superblock, Block, State};
use dm_remap::engine::geometry::BLOCK_SIZE;
use dm_remap::engine::image::{
    ends, read_table, settle, Finding, Found, Seen, Settled, Severity, Standing,
};
use dm_remap::engine::slots::SlotMap;
use dm_remap::engine::{Refusal, Slot, Unit};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

/// A sample with some blocks replaced.
struct Region {
    sample: &'static Sample,
    /// Length in blocks.
    blocks: u64,
    /// `None`: cannot be read.
    changed: HashMap<u64, Option<Box<Block>>>,
}

/// What was found in a region.
struct Judged {
    found: Found,
    findings: Vec<Finding>,
    entries: Vec<Entry>,
    losses: Vec<Loss>,
    /// Slots that are to be recorded as bad.
    replaced: Vec<Loss>,
    /// What the records say.
    records: Vec<(Slot, State)>,
    /// Replicas that are to be as others: from, to.
    mends: Vec<(u64, u64)>,
}

impl Region {
    fn get(&self, at: u64) -> Option<&Block> {
        assert!(at < self.blocks, "read of block {at} of {}", self.blocks);
        match self.changed.get(&at) {
            Some(changed) => changed.as_deref(),
            None => Some(
                self.sample
                    .blocks
                    .get(at as usize)
                    .unwrap_or(&[0; BLOCK_SIZE]),
            ),
        }
    }

    fn change(&mut self, at: u64, change: impl FnOnce(&mut Block)) {
        let zero = &[0; BLOCK_SIZE];
        let sound = self.sample.blocks.get(at as usize).unwrap_or(zero);
        let block = self
            .changed
            .entry(at)
            .or_insert_with(|| Some(Box::new(*sound)));
        if let Some(block) = block {
            change(block);
        }
    }

    fn edit(&mut self, data: &mut &[u8]) {
        let [how, place] = take(data);
        let index = usize::from(u16::from_le_bytes(take(data))) % (BLOCK_SIZE / 8);
        let value = u64::from_le_bytes(take(data));
        let metadata = &self.sample.metadata;
        let nth = |n: u64| metadata[(n % metadata.len() as u64) as usize];
        let (at, what) = nth(place.into());
        match how % 6 {
            // One word, of this copy or of all, with or without a new checksum.
            how @ 0..3 => {
                for (copy, _) in metadata
                    .iter()
                    .filter(|m| m.0 == at || how == 2 && m.1 == what)
                {
                    self.change(*copy, |block| {
                        set_word(block, index, value);
                        if how != 1 {
                            seal(block);
                        }
                    });
                }
            }
            3 => {
                let other = self.changed.get(&nth(value).0).cloned();
                let sound = || Some(Box::new(self.sample.blocks[nth(value).0 as usize]));
                let other = other.unwrap_or_else(sound);
                self.changed.insert(at, other);
            }
            4 => self.change(at, |block| block.fill(0)),
            _ => drop(self.changed.insert(at, None)),
        }
    }

    /// docs/format.md, section 6, point 2.
    fn is_blank(&self) -> bool {
        let is_zero = |at| self.get(at) == Some(&[0; BLOCK_SIZE]);
        let is_near = |at: &u64| *at < 256 || *at + 256 >= self.blocks;
        let is_unused = |at| is_zero(at) || self.get(at).is_some_and(is_unused_table);
        let ends_are_zero = is_zero(0) && is_zero(self.blocks - 1);
        ends_are_zero && (0..self.blocks).filter(is_near).all(is_unused)
    }

    /// As an activation does it, compared with docs/format.md, section 6. `None`: blank.
    fn judge(&self) -> Result<Option<Judged>, Refusal> {
        let mut room = [[0; BLOCK_SIZE]; 4];
        let mut read = |at: Range<u64>, to: &mut Block| match self.get(at.start) {
            Some(block) => {
                *to = *block;
                true
            }
            None => false,
        };
        let found = ends(&mut read, self.blocks, &mut room[0], crc32c).judge();
        assert_eq!(found == Ok(None), self.is_blank());
        let Some(found) = found? else {
            return Ok(None);
        };
        let g = &found.superblock.geometry;
        assert_eq!(g.checked(), Ok(*g));
        assert!(g.spare_sectors <= self.blocks * 8);
        let copies = [(0, 0), (1, g.spare_sectors / 8 - 1)].into_iter();
        let valid = copies.filter_map(|(copy, at)| {
            Some((superblock_generation(self.get(at)?, copy)?, Reverse(copy)))
        });
        let newest = (found.superblock.generation, Reverse(found.newest()));
        assert_eq!(valid.max(), Some(newest));
        let (mut findings, mut records) = (found.findings().collect::<Vec<_>>(), Vec::new());
        let mut mends = Vec::new();
        let at = |copy, number| g.table_sector(copy, number) / 8;
        let all = read_table(
            &found.superblock,
            &mut read,
            &mut room,
            crc32c,
            &mut |seen| match seen {
                Seen::Finding(finding) => findings.push(finding),
                Seen::Block {
                    number, replicas, ..
                } => {
                    for (copy, standing) in replicas.standing.iter().enumerate() {
                        if matches!(standing, Standing::Stale { .. } | Standing::Damaged(_)) {
                            let newest = replicas.newest.unwrap();
                            mends.push((at(newest, number), at(copy, number)));
                        }
                    }
                }
                Seen::Record(record) => records.push((record.slot, record.state)),
            },
        );

        // The same by other means.
        let (mut bad, mut expected) = (Vec::new(), Vec::new());
        let (mut in_use, mut number) = (g.table_blocks.min(4), 0);
        let mut misplaced = Vec::new();
        while number < in_use {
            let valid = |copy| {
                let block = self.get(at(copy, number))?;
                let generation = table_block_generation(block, &found.superblock.uuid, number)?;
                Some((generation, Reverse(copy), block))
            };
            let Some((.., block)) = (0..g.areas().len()).filter_map(valid).max() else {
                bad.push((number, None));
                number += 1;
                continue;
            };
            let next = u64::from_le_bytes(block[48..56].try_into().unwrap());
            if number + 1 == in_use && in_use < next && next <= g.table_blocks {
                in_use = next;
            } else if next != 0 {
                misplaced.push((number, next));
            }
            for index in 0..126 {
                let slot = Slot((number * 126 + index as u64) as u32);
                match state(block, number, index, g) {
                    Some(State::Free) => (),
                    Some(state) => expected.push((slot, state)),
                    None => bad.push((number, Some(index))),
                }
            }
            number += 1;
        }
        assert_eq!(all, in_use);
        let found_misplaced = findings.iter().filter_map(|finding| match *finding {
            Finding::InUse { block, next } => Some((block, next)),
            _ => None,
        });
        assert_eq!(found_misplaced.collect::<Vec<_>>(), misplaced);
        assert_eq!(records, expected);
        let fatal = findings.iter().filter_map(|finding| match *finding {
            Finding::NoReplica { block, .. } => Some((block, None)),
            Finding::Record { block, index, .. } => Some((block, Some(index))),
            _ => None,
        });
        assert_eq!(fatal.collect::<Vec<_>>(), bad);

        let (mut entries, mut losses) = (Vec::new(), Vec::new());
        let mut replaced = Vec::new();
        for (slot, state) in records.iter().copied() {
            match state {
                State::Entry { unit, mask } => entries.push(Entry::new(unit, slot, mask)),
                State::Moved { unit, mask } => entries.push(Entry {
                    held: true,
                    ..Entry::new(unit, slot, mask)
                }),
                State::Bad { unit, lost: mask } if mask != 0 => {
                    losses.push(Loss { unit, mask, slot })
                }
                _ => (),
            }
        }
        entries.sort_by_key(|e| e.unit);
        losses.sort_by_key(|l| l.unit);
        let stay = settle(&mut entries, &losses, &mut |seen| match seen {
            Settled::Finding(finding) => findings.push(finding),
            Settled::Replaced(loss) => replaced.push(loss),
        });
        entries.truncate(stay);
        Ok(Some(Judged {
            found,
            findings,
            entries,
            losses,
            replaced,
            records,
            mends,
        }))
    }

    /// Writes what can be proven in place of what is stale or damaged.
    fn mend(&mut self, judged: &Judged) {
        let Found {
            superblock,
            standing,
        } = &judged.found;
        let place = |copy| superblock.geometry.superblock_sector(copy) / 8;
        let newest = *self.get(place(judged.found.newest())).unwrap();
        for (copy, standing) in (0..).zip(standing) {
            if matches!(standing, Standing::Stale { .. } | Standing::Damaged(_)) {
                let mut block = Box::new(newest);
                update_superblock(&mut block, copy, superblock, crc32c);
                self.changed.insert(place(copy), Some(block));
            }
        }
        for (from, to) in &judged.mends {
            let block = self.get(*from).copied().map(Box::new);
            self.changed.insert(*to, block);
        }
        if judged.is_fatal() {
            return;
        }
        let g = superblock.geometry;
        for Loss { unit, mask, slot } in judged.replaced.iter().copied() {
            let (number, index) = (u64::from(slot.0) / 126, slot.0 as usize % 126);
            let generation = |block: &Block| word(block, 40);
            for copy in 0..g.areas().len() {
                self.change(g.table_sector(copy, number) / 8, |block| {
                    set_word(block, 8 + 4 * index, unit.0);
                    set_word(block, 9 + 4 * index, mask);
                    set_word(block, 10 + 4 * index, 2);
                    set_word(block, 5, generation(block).min(u64::MAX - 2) + 1);
                    seal(block);
                });
            }
        }
    }
}

impl Judged {
    fn is_fatal(&self) -> bool {
        let mut findings = self.findings.iter();
        findings.any(|f| f.severity() == Severity::Fatal)
    }

    /// Slots that were replaced, and units of which a sector is lost with two slots: docs/format.md, section 6,
    /// point 5, unit by unit.
    fn check_pairs(&self) {
        let mut units: BTreeMap<Unit, Vec<(Slot, State)>> = BTreeMap::new();
        for (slot, state) in &self.records {
            if let State::Entry { unit, .. } | State::Moved { unit, .. } | State::Bad { unit, .. } =
                state
            {
                units.entry(*unit).or_default().push((*slot, *state));
            }
        }
        let (mut replaced, mut twice) = (BTreeSet::new(), BTreeSet::new());
        for (unit, records) in units {
            let mut losses = Vec::new();
            let mut old = Vec::new();
            let mut new = Vec::new();
            for (slot, state) in records {
                match state {
                    State::Entry { mask, .. } => old.push((slot, mask)),
                    State::Moved { mask, .. } => new.push((slot, mask)),
                    State::Bad { lost, .. } => losses.push(lost),
                    State::Free => (),
                }
            }
            let held = match (&old[..], &new[..]) {
                (&[(slot, mask)], &[(_, held)]) => {
                    let lost = mask & !held;
                    replaced.insert((unit, slot, lost));
                    losses.push(lost);
                    held
                }
                ([], []) => continue,
                _ => old
                    .iter()
                    .chain(&new)
                    .fold(0, |held, (_, mask)| held | mask),
            };
            let claims = |bit: u32| {
                losses
                    .iter()
                    .filter(|l| **l & !held & 1 << bit != 0)
                    .count()
            };
            if (0..64).any(|bit| claims(bit) > 1) {
                twice.insert(unit);
            }
        }
        let found = self.replaced.iter().map(|l| (l.unit, l.slot, l.mask));
        assert_eq!(found.collect::<BTreeSet<_>>(), replaced);
        assert_eq!(self.replaced.len(), replaced.len());
        let found = self.findings.iter().filter_map(|finding| match finding {
            Finding::LostTwice { unit, slots } => {
                assert!(slots[0] < slots[1]);
                Some(*unit)
            }
            _ => None,
        });
        assert!(found.eq(twice));
    }

    /// No two entries of one unit, none in a slot that is not theirs, or a finding that says so.
    fn check(&self) {
        let units: BTreeSet<_> = self.entries.iter().map(|e| e.unit).collect();
        assert!(self.entries.is_sorted_by_key(|e| e.unit));
        let (mut twice, mut orphans) = (0, 0);
        for finding in &self.findings {
            assert!(!finding.to_string().is_empty());
            match finding {
                Finding::TwoSlots { unit, slots } => {
                    let has = |slot| {
                        self.entries
                            .iter()
                            .any(|e| e.unit == *unit && e.slot == slot)
                    };
                    assert!(slots[0] < slots[1] && slots.iter().all(|slot| has(*slot)));
                    twice += 1;
                }
                Finding::Orphan { unit, slot } => {
                    assert!(self
                        .losses
                        .iter()
                        .any(|l| l.unit == *unit && l.slot == *slot));
                    assert!(!units.contains(unit));
                    orphans += 1;
                }
                _ => (),
            }
        }
        assert_eq!(units.len() + twice, self.entries.len());
        let without = self.losses.iter().filter(|l| !units.contains(&l.unit));
        assert_eq!(without.count(), orphans);

        let g = &self.found.superblock.geometry;
        let words = SlotMap::<Vec<u64>>::words_for(g.table_blocks);
        let mut slots = SlotMap::new(vec![0; words as usize], g);
        for entry in &self.entries {
            assert!(slots.take(entry.slot), "slot {} is not free", entry.slot.0);
            if twice == 0 {
                let replaced = self.replaced.iter().filter(|l| l.unit == entry.unit);
                let lost =
                    replaced.fold(lost_of(&self.losses, entry.unit), |lost, l| lost | l.mask);
                assert_eq!(entry.lost, lost & !entry.mask);
            }
            let here = entry.mask | entry.lost;
            assert_eq!(here & !g.unit_mask(entry.unit), 0);
        }
        let mut bad = self.losses.iter().chain(&self.replaced);
        assert!(bad.all(|l| slots.set_bad(l.slot)));
        self.check_pairs();
    }
}

/// A whole image. Input: sample; its length in blocks, 0: as it was formatted; edits of 12 bytes.
pub fn image(mut data: &[u8]) -> bool {
    let [choice, blocks] = take(&mut data);
    let sample = sample(choice);
    let blocks = match blocks {
        0 => sample.blocks.len() as u64,
        n => n.into(),
    };
    let mut region = Region {
        sample,
        blocks,
        changed: HashMap::new(),
    };
    while !data.is_empty() {
        region.edit(&mut data);
    }
    let judged = match region.judge() {
        Ok(Some(judged)) => judged,
        Ok(None) => return false,
        Err(why) => {
            assert!(!why.is_empty());
            return false;
        }
    };
    judged.check();
    // Repairs leave nothing to repair, and change nothing else.
    if judged
        .findings
        .iter()
        .any(|f| f.severity() == Severity::Mendable)
        || !judged.replaced.is_empty()
    {
        region.mend(&judged);
        let again = region.judge().unwrap().unwrap();
        assert_eq!(again.found.superblock, judged.found.superblock);
        assert_eq!(again.entries, judged.entries);
        let lost = |losses: &[Loss]| {
            let losses = losses.iter().filter(|l| l.mask != 0);
            let lost: BTreeSet<_> = losses.map(|l| (l.unit, l.slot, l.mask)).collect();
            lost
        };
        if judged.is_fatal() {
            assert_eq!(again.losses, judged.losses);
        } else {
            let all = [&judged.losses[..], &judged.replaced[..]].concat();
            assert_eq!(lost(&again.losses), lost(&all));
            assert!(again.replaced.is_empty());
        }
        let mut left = judged.findings.clone();
        left.retain(|f| f.severity() != Severity::Mendable);
        assert_eq!(again.findings, left);
    }
    !judged.is_fatal()
}
