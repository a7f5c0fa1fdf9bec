// SPDX-License-Identifier: GPL-2.0

//! What a look-up, an update and an entry cost in several structures, on the host: `scripts/build cargo bench`.
//!
//! Times are criterion's. Memory, and what an update allocates, are counted as the kernel's allocator would give them, and
//! printed behind the times of each case. MOST=n leaves out cases of more entries. docs/performance.md has the results.

#![allow(missing_docs)] // of what criterion's macros make

use criterion::{criterion_group, criterion_main, Criterion};
use dm_remap::engine::{
    entries::{Entry, Layout},
    geometry::Geometry,
    Slot, Unit,
};
use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasherDefault, Hasher},
    hint::black_box,
    sync::OnceLock,
    time::Duration,
};

/// Units of 4 KiB on the main device: 1 TiB.
const UNITS: u64 = 1 << 28;
const COUNTS: [usize; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];
/// Entries side by side, where they are clustered.
const RUN: u64 = 64;
/// What a slice that RCU frees has in front: `kvfree_rcu_head` and the length.
const HEADER: usize = 24;
/// How many different units are asked for, one after the other.
const PROBES: usize = 1 << 16;

/// A generator that gives the same in each run: xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// What kmalloc, or vmalloc above two pages, takes for `bytes`.
fn allocated(bytes: usize) -> usize {
    const CLASSES: [usize; 12] = [8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096];
    match CLASSES.iter().find(|class| **class >= bytes) {
        Some(class) => *class,
        None if bytes <= 8192 => 8192,
        None => bytes.next_multiple_of(4096),
    }
}

trait Table {
    const NAME: &'static str;
    fn new(entries: &[Entry], geometry: &Geometry) -> Self;
    /// The slot of `unit`.
    fn get(&self, unit: Unit) -> Option<Slot>;
    /// The first unit of `from..=to` that has an entry.
    fn first(&self, from: Unit, to: Unit) -> Option<Unit>;
    /// Adds an entry or replaces it, leaving what readers may see as it is. Returns the bytes allocated,
    /// 0 if that is not known.
    fn set(&mut self, entry: &Entry) -> usize;
    /// Bytes of all allocations.
    fn bytes(&self) -> usize;
}

/// 16 bytes an entry, as an array of structures has it.
#[derive(Clone, Copy)]
struct Plain {
    unit: u64,
    slot: u32,
    #[allow(dead_code)] // takes the place that it takes
    mask: u32,
}

fn plain(entry: &Entry) -> Plain {
    Plain {
        unit: entry.unit.0,
        slot: entry.slot.0,
        mask: entry.mask as u32,
    }
}

/// `old`, sorted, with `entry`.
fn with(old: &[Plain], entry: &Entry) -> Vec<Plain> {
    let at = old.partition_point(|p| p.unit < entry.unit.0);
    let behind = at + usize::from(old.get(at).is_some_and(|p| p.unit == entry.unit.0));
    [&old[..at], &[plain(entry)], &old[behind..]].concat()
}

/// One sorted array, copied whole.
struct Sorted(Vec<Plain>);

impl Table for Sorted {
    const NAME: &'static str = "sorted array";
    fn new(entries: &[Entry], _: &Geometry) -> Self {
        Self(entries.iter().map(plain).collect())
    }
    fn get(&self, unit: Unit) -> Option<Slot> {
        let at = self.0.binary_search_by_key(&unit.0, |p| p.unit).ok()?;
        Some(Slot(self.0[at].slot))
    }
    fn first(&self, from: Unit, to: Unit) -> Option<Unit> {
        let at = self.0.partition_point(|p| p.unit < from.0);
        self.0
            .get(at)
            .map(|p| Unit(p.unit))
            .filter(|unit| *unit <= to)
    }
    fn set(&mut self, entry: &Entry) -> usize {
        self.0 = with(&self.0, entry);
        self.bytes()
    }
    fn bytes(&self) -> usize {
        allocated(HEADER + 16 * self.0.len())
    }
}

/// The same in the order of a breadth-first walk: the first steps of all searches lie side by side.
struct Eytzinger(Vec<Plain>);

impl Eytzinger {
    fn fill(&mut self, sorted: &mut impl Iterator<Item = Plain>, at: usize) {
        if at < self.0.len() {
            self.fill(sorted, 2 * at);
            self.0[at] = sorted.next().unwrap();
            self.fill(sorted, 2 * at + 1);
        }
    }
    fn from_sorted(sorted: &[Plain]) -> Self {
        let mut new = Self(vec![
            Plain {
                unit: 0,
                slot: 0,
                mask: 0
            };
            sorted.len() + 1
        ]);
        new.fill(&mut sorted.iter().copied(), 1);
        new
    }
    /// Where the first entry from `unit` on is, 0 if there is none.
    fn search(&self, unit: Unit) -> usize {
        let mut at = 1;
        while at < self.0.len() {
            at = 2 * at + usize::from(self.0[at].unit < unit.0);
        }
        at >> (at.trailing_ones() + 1)
    }
}

impl Table for Eytzinger {
    const NAME: &'static str = "Eytzinger array";
    fn new(entries: &[Entry], _: &Geometry) -> Self {
        Self::from_sorted(&entries.iter().map(plain).collect::<Vec<_>>())
    }
    fn get(&self, unit: Unit) -> Option<Slot> {
        let found = &self.0[self.search(unit)];
        (found.unit == unit.0).then_some(Slot(found.slot))
    }
    fn first(&self, from: Unit, to: Unit) -> Option<Unit> {
        let at = self.search(from);
        (at != 0 && self.0[at].unit <= to.0).then(|| Unit(self.0[at].unit))
    }
    fn set(&mut self, entry: &Entry) -> usize {
        let mut sorted = self.0[1..].to_vec();
        sorted.sort_unstable_by_key(|p| p.unit);
        *self = Self::from_sorted(&with(&sorted, entry));
        self.bytes()
    }
    fn bytes(&self) -> usize {
        allocated(HEADER + 16 * self.0.len())
    }
}

/// The standard library's B-tree, which readers could not use beside a writer: for comparison.
struct BTree(BTreeMap<u64, (u32, u32)>);

impl Table for BTree {
    const NAME: &'static str = "B-tree (not for RCU)";
    fn new(entries: &[Entry], _: &Geometry) -> Self {
        Self(
            entries
                .iter()
                .map(|e| (e.unit.0, (e.slot.0, e.mask as u32)))
                .collect(),
        )
    }
    fn get(&self, unit: Unit) -> Option<Slot> {
        self.0.get(&unit.0).map(|(slot, _)| Slot(*slot))
    }
    fn first(&self, from: Unit, to: Unit) -> Option<Unit> {
        self.0
            .range(from.0..=to.0)
            .next()
            .map(|(unit, _)| Unit(*unit))
    }
    fn set(&mut self, entry: &Entry) -> usize {
        self.0
            .insert(entry.unit.0, (entry.slot.0, entry.mask as u32));
        0
    }
    fn bytes(&self) -> usize {
        // Nodes of 11 entries; filled in order they are full but for the inner ones.
        self.0.len().div_ceil(11) * allocated(11 * 16 + 16)
    }
}

/// The standard library's hash table, with as cheap a hash as can be; neither order nor RCU.
struct Hash(HashMap<u64, (u32, u32), BuildHasherDefault<Cheap>>);

#[derive(Default)]
struct Cheap(u64);

impl Hasher for Cheap {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are u64")
    }
    fn write_u64(&mut self, key: u64) {
        self.0 = key.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

impl Table for Hash {
    const NAME: &'static str = "hash table (not for RCU)";
    fn new(entries: &[Entry], _: &Geometry) -> Self {
        Self(
            entries
                .iter()
                .map(|e| (e.unit.0, (e.slot.0, e.mask as u32)))
                .collect(),
        )
    }
    fn get(&self, unit: Unit) -> Option<Slot> {
        self.0.get(&unit.0).map(|(slot, _)| Slot(*slot))
    }
    fn first(&self, from: Unit, to: Unit) -> Option<Unit> {
        (from.0..=to.0)
            .map(Unit)
            .find(|unit| self.0.contains_key(&unit.0))
    }
    fn set(&mut self, entry: &Entry) -> usize {
        self.0
            .insert(entry.unit.0, (entry.slot.0, entry.mask as u32));
        0
    }
    fn bytes(&self) -> usize {
        allocated(self.0.capacity() * 8 / 7 * 17)
    }
}

/// What dm-remap had first: a pointer for each 2,048 units, null or to a sorted slice.
struct Regions(Vec<Option<Box<[Plain]>>>);

impl Regions {
    const SHIFT: u32 = 11;
    fn slice(&self, region: u64) -> Option<&[Plain]> {
        self.0.get(region as usize)?.as_deref()
    }
}

impl Table for Regions {
    const NAME: &'static str = "regions of 2,048 units";
    fn new(entries: &[Entry], _: &Geometry) -> Self {
        let mut regions = Vec::new();
        regions.resize_with((UNITS >> Self::SHIFT) as usize, || None);
        for chunk in entries.chunk_by(|a, b| a.unit.0 >> Self::SHIFT == b.unit.0 >> Self::SHIFT) {
            regions[(chunk[0].unit.0 >> Self::SHIFT) as usize] =
                Some(chunk.iter().map(plain).collect());
        }
        Self(regions)
    }
    fn get(&self, unit: Unit) -> Option<Slot> {
        let slice = self.slice(unit.0 >> Self::SHIFT)?;
        let at = slice.binary_search_by_key(&unit.0, |p| p.unit).ok()?;
        Some(Slot(slice[at].slot))
    }
    fn first(&self, from: Unit, to: Unit) -> Option<Unit> {
        (from.0 >> Self::SHIFT..=to.0 >> Self::SHIFT).find_map(|region| {
            let slice = self.slice(region)?;
            let at = slice.partition_point(|p| p.unit < from.0);
            slice
                .get(at)
                .map(|p| Unit(p.unit))
                .filter(|unit| *unit <= to)
        })
    }
    fn set(&mut self, entry: &Entry) -> usize {
        let region = &mut self.0[(entry.unit.0 >> Self::SHIFT) as usize];
        let new = with(region.as_deref().unwrap_or_default(), entry).into_boxed_slice();
        let bytes = allocated(HEADER + 16 * new.len());
        *region = Some(new);
        bytes
    }
    fn bytes(&self) -> usize {
        let slices = self.0.iter().flatten();
        8 * self.0.len()
            + slices
                .map(|s| allocated(HEADER + 16 * s.len()))
                .sum::<usize>()
    }
}

/// What dm-remap has: the engine's own layout.
struct Filtered {
    layout: Layout,
    filter: Vec<u64>,
    regions: Vec<Box<[u64]>>,
}

impl Filtered {
    fn is_clear(&self, group: u64) -> bool {
        self.filter[(group >> 6) as usize] >> (group & 63) & 1 == 0
    }
}

impl Table for Filtered {
    const NAME: &'static str = "filter and small slices (ours)";
    fn new(entries: &[Entry], geometry: &Geometry) -> Self {
        let layout = Layout::new(geometry, geometry.table_blocks);
        let mut filter = vec![0u64; layout.groups().div_ceil(64) as usize];
        let mut slices = vec![Vec::new(); layout.regions()];
        for entry in entries {
            let group = layout.group_of(entry.unit);
            filter[(group >> 6) as usize] |= 1 << (group & 63);
            slices[layout.place(entry.unit).0]
                .extend_from_slice(&layout.pack(entry)[..layout.stride()]);
        }
        let regions = slices.into_iter().map(Vec::into_boxed_slice).collect();
        Self {
            layout,
            filter,
            regions,
        }
    }
    fn get(&self, unit: Unit) -> Option<Slot> {
        if self.is_clear(self.layout.group_of(unit)) {
            return None;
        }
        let (region, least) = self.layout.locate(unit.0 * 8);
        let words = &self.regions[region];
        self.layout.slot(words, least, 7, 1)?
    }
    fn first(&self, from: Unit, to: Unit) -> Option<Unit> {
        // By words, as `Bits::first_set` in src/dm/rcu.rs.
        let (mut group, end) = (self.layout.group_of(from), self.layout.group_of(to));
        while group <= end {
            let word = self.filter[(group >> 6) as usize] >> (group & 63);
            if word == 0 {
                group = (group | 63) + 1;
                continue;
            }
            group += u64::from(word.trailing_zeros());
            let (first, last) = self.layout.units_of(group);
            let (region, key) = self.layout.place(first.max(from));
            let words = &self.regions[region];
            let at = self.layout.find(words, key);
            let found = self.layout.entry(region, words, at, || &[]);
            if let Some(found) = found.filter(|e| e.unit <= last.min(to)) {
                return Some(found.unit);
            }
            group += 1;
        }
        None
    }
    fn set(&mut self, entry: &Entry) -> usize {
        let group = self.layout.group_of(entry.unit);
        self.filter[(group >> 6) as usize] |= 1 << (group & 63);
        let region = &mut self.regions[self.layout.place(entry.unit).0];
        let (before, behind) = self.layout.around(region, entry.unit);
        let packed = self.layout.pack(entry);
        *region = [before, &packed[..self.layout.stride()], behind]
            .concat()
            .into_boxed_slice();
        allocated(HEADER + 8 * region.len())
    }
    fn bytes(&self) -> usize {
        let slices = self.regions.iter().filter(|s| !s.is_empty());
        8 * (self.filter.len() + self.regions.len())
            + slices
                .map(|s| allocated(HEADER + 8 * s.len()))
                .sum::<usize>()
    }
}

/// Entries, and units to ask for.
struct Case {
    count: usize,
    kind: &'static str,
    geometry: Geometry,
    entries: Vec<Entry>,
    hits: Vec<Unit>,
    /// Units without an entry, anywhere.
    healthy: Vec<Unit>,
}

impl Case {
    fn new(count: usize, kind: &'static str) -> Self {
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ count as u64);
        // Somewhere in each of so many equal parts of the disk.
        let run = if kind == "random" { 1 } else { RUN };
        let runs = (count as u64).div_ceil(run);
        let part = UNITS / runs;
        let starts = (0..runs).map(|n| n * part + random.next() % (part - run + 1));
        let units: Vec<u64> = starts
            .flat_map(|start| start..start + run)
            .take(count)
            .collect();
        // Slots as they were given out over time: in no order of units. 5 % are free.
        let spare = (count as u64 + count as u64 / 20 + 64) * 8 + 8 * 2 * (2 + count as u64 / 100);
        let geometry = Geometry::plan(UNITS * 8, spare, 8, 2).unwrap();
        let slots = geometry.slots_total;
        let entry = |(n, unit): (usize, &u64)| {
            Entry::new(Unit(*unit), Slot((n as u64 * 7919 % slots) as u32), 0xff)
        };
        let entries: Vec<Entry> = units.iter().enumerate().map(entry).collect();
        let hits = (0..PROBES)
            .map(|_| entries[random.next() as usize % count].unit)
            .collect();
        let mut healthy = Vec::new();
        while healthy.len() < PROBES {
            let unit = random.next() % (UNITS - 256);
            if units.binary_search(&unit).is_err() {
                healthy.push(Unit(unit));
            }
        }
        Self {
            count,
            kind,
            geometry,
            entries,
            hits,
            healthy,
        }
    }
}

fn cases() -> &'static [Case] {
    static CASES: OnceLock<Vec<Case>> = OnceLock::new();
    CASES.get_or_init(|| {
        let most = std::env::var("MOST")
            .ok()
            .and_then(|n| n.parse().ok())
            .unwrap_or(usize::MAX);
        let counts = COUNTS.into_iter().filter(|n| *n <= most);
        counts
            .flat_map(|n| ["random", "clustered"].map(|kind| Case::new(n, kind)))
            .collect()
    })
}

fn structure<T: Table>(c: &mut Criterion) {
    for case in cases() {
        let mut table = T::new(&case.entries, &case.geometry);
        let bytes = table.bytes();
        for entry in case.entries.iter().step_by(case.count / 1000) {
            assert_eq!(table.get(entry.unit), Some(entry.slot));
            assert_eq!(
                table.first(entry.unit, Unit(entry.unit.0 + 255)),
                Some(entry.unit)
            );
        }
        assert!(case.healthy.iter().all(|unit| table.get(*unit).is_none()));
        let id = |what: &str| format!("{}/{what}/{} {}", T::NAME, case.count, case.kind);
        let mut at = 0;
        let mut next = move || {
            at = (at + 1) % PROBES;
            at
        };
        c.bench_function(&id("healthy"), |b| {
            b.iter(|| black_box(table.get(case.healthy[next()])))
        });
        c.bench_function(&id("hit"), |b| {
            b.iter(|| black_box(table.get(case.hits[next()])))
        });
        c.bench_function(&id("256 units"), |b| {
            b.iter(|| {
                let from = case.healthy[next()];
                black_box(table.first(from, Unit(from.0 + 255)))
            })
        });
        let update = table.set(&case.entries[0]);
        // Copying all of ten million takes long, and says nothing new.
        if case.count <= 1_000_000 || update < 1 << 20 {
            c.bench_function(&id("update"), |b| {
                b.iter(|| {
                    let at = next() * (case.count / PROBES).max(1) % case.count;
                    black_box(table.set(&case.entries[at]))
                })
            });
        }
        println!(
            "# {:32} {:>9} {:9} {:7.1} bytes an entry, {} bytes for an update",
            T::NAME,
            case.count,
            case.kind,
            bytes as f64 / case.count as f64,
            if update == 0 {
                "?".into()
            } else {
                update.to_string()
            },
        );
    }
}

criterion_group! {
    name = lookup;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300))
        .without_plots();
    targets = structure::<Sorted>, structure::<Eytzinger>, structure::<BTree>, structure::<Hash>, structure::<Regions>,
        structure::<Filtered>
}
criterion_main!(lookup);
