// SPDX-License-Identifier: GPL-2.0

//! Tests: commands that write, cut short by a power failure.
//!
//! The writes and flushes of a command are noted and a part of them is done again: all that a flush
//! made durable, and of each write since then nothing, all, or the first bytes.

use crate::change;
use crate::cli::{Bounds, Cli};
use crate::image::{probe, superblock_at, Image};
use crate::region::{Access, Region};
use crate::Status;
use clap::Parser as _;
use dm_remap::engine::format::{Cause, State, Update};
use dm_remap::engine::geometry::BLOCK_SIZE;
use dm_remap::engine::image::Severity;
use dm_remap::engine::{Slot, Unit};
use proptest::{collection::vec, prelude::*, sample::Index};
use std::cell::RefCell;
use std::path::PathBuf;
use tempfile::TempDir;

/// What a command did to the region.
#[derive(Clone)]
pub(crate) enum Step {
    /// Wrote bytes from a block on.
    Write(u64, Vec<u8>),
    Sync,
}

thread_local! {
    static STEPS: RefCell<Vec<Step>> = const { RefCell::new(Vec::new()) };
}

pub(crate) fn note(step: Step) {
    STEPS.with_borrow_mut(|steps| steps.push(step));
}

/// Length of the region: room for some 400 slots of a sector.
const BLOCKS: u64 = 64;

/// A place with a spare `s.img` for a main of 8,192 sectors.
struct Place(TempDir);

/// What a spare holds, as far as commands may change it: uuid, label, and units, slots and masks.
#[derive(Clone, Debug, PartialEq)]
struct Held {
    uuid: [u8; 16],
    label: [u8; 64],
    entries: Vec<(u64, u32, u64)>,
}

impl Place {
    fn new(blocks: u64) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.put(&vec![0; blocks as usize * BLOCK_SIZE]);
        place
    }

    /// With 150 entries, in two table blocks.
    fn filled(copies: u32) -> Self {
        let place = Self::new(BLOCKS);
        place.run(&format!(
            "format s.img --main-sectors 8192 --unit-sectors 1 --label old --metadata-copies {copies} \
             --yes"
        ));
        place.import("0 150\n");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, bytes: &[u8]) {
        std::fs::write(self.path("s.img"), bytes).unwrap();
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path("s.img")).unwrap()
    }

    /// Runs a command, whose words that end in `.img`, `.txt` or `.backup` are files.
    fn run(&self, command: &str) -> Vec<Step> {
        let is_file = |word: &str| {
            [".img", ".txt", ".backup"]
                .iter()
                .any(|e| word.ends_with(e))
        };
        let words = command.split(' ').map(|word| match is_file(word) {
            true => self.path(word).into_os_string(),
            false => word.into(),
        });
        let cli = Cli::try_parse_from(["dmremap".into()].into_iter().chain(words)).unwrap();
        STEPS.take();
        assert!(
            crate::run(cli.command).unwrap() == Status::Done,
            "{command}"
        );
        STEPS.take()
    }

    fn import(&self, list: &str) -> Vec<Step> {
        std::fs::write(self.path("list.txt"), list).unwrap();
        self.run("import s.img list.txt --format sectors")
    }

    fn region(&self) -> Region {
        Region::open_at(&self.path("s.img"), &Bounds::default(), Access::Read).unwrap()
    }

    /// What the spare holds; it must be usable.
    fn held(&self) -> Held {
        let image = Image::read(&mut self.region()).unwrap();
        assert!(
            image.severity() <= Some(Severity::Mendable),
            "{:?}",
            image.findings
        );
        let entries = image.entries.iter();
        Held {
            uuid: image.superblock().uuid,
            label: image.superblock().label,
            entries: entries.map(|e| (e.unit.0, e.slot.0, e.mask)).collect(),
        }
    }

    /// Its bad slots, and which sectors they lost; all must be recorded if the spare is `sound`.
    fn bad(&self, sound: bool) -> Vec<(u32, u64)> {
        let image = Image::read(&mut self.region()).unwrap();
        assert!(!sound || image.findings.is_empty(), "{:?}", image.findings);
        image.bad.iter().map(|b| (b.slot.0, b.lost)).collect()
    }

    /// The slot of `unit`, and the last slots of all.
    fn slots(&self, unit: u64) -> (Slot, [Slot; 2]) {
        let image = Image::read(&mut self.region()).unwrap();
        let entry = image.entries.iter().find(|e| e.unit == Unit(unit));
        let end = image.geometry().slots_total as u32;
        (entry.unwrap().slot, [Slot(end - 1), Slot(end - 2)])
    }

    fn change(&self, states: &[(Slot, State)]) {
        let image = Image::read(&mut self.region()).unwrap();
        let cause = Cause::Write;
        let update = |(slot, state): &(Slot, State)| Update {
            slot: *slot,
            state: *state,
            cause,
        };
        let updates: Vec<_> = states.iter().map(update).collect();
        let path = self.path("s.img");
        let region = Region::open_at(&path, &Bounds::default(), Access::Write).unwrap();
        change::records(&region, &image, &updates, 1).unwrap();
    }

    /// Whether the first blocks are a region that activation accepts: a spare, or a blank one.
    fn is_accepted(&self, blocks: u64) -> bool {
        let mut region = self.region();
        region.truncate(blocks);
        probe(&region).judge().is_ok()
    }

    fn is_spare(&self) -> bool {
        matches!(probe(&self.region()).judge(), Ok(Some(_)))
    }

    /// Makes the image what a power failure leaves after the steps `done`, which began with `before`.
    fn cut(&self, before: &[u8], done: &[Step], fates: &[Fate]) {
        let mut bytes = before.to_vec();
        let synced = done.iter().rposition(|step| matches!(step, Step::Sync));
        let mut fates = fates.iter().cycle();
        for (n, step) in done.iter().enumerate() {
            let Step::Write(block, written) = step else {
                continue;
            };
            let length = match fates.next() {
                _ if synced.is_some_and(|synced| n < synced) => written.len(),
                Some(Fate::Done) => written.len(),
                Some(Fate::Torn(length)) => *length,
                Some(Fate::Undone) | None => 0,
            };
            let at = *block as usize * BLOCK_SIZE;
            bytes[at..at + length].copy_from_slice(&written[..length]);
        }
        self.put(&bytes);
    }
}

/// Each point of a command, with all fates of the writes that are under way there.
fn all<'a>(
    steps: &'a [Step],
    fates: &'a [Vec<Fate>],
) -> impl Iterator<Item = (&'a [Step], &'a [Fate])> {
    let points = (0..=steps.len()).map(|end| steps.split_at(end).0);
    points.flat_map(|done| fates.iter().map(move |fates| (done, &fates[..])))
}

/// What becomes of a write that no flush made durable.
#[derive(Clone, Debug)]
enum Fate {
    Undone,
    Done,
    /// The first bytes are there: not those of all fields of a head, or not those of all records.
    Torn(usize),
}

impl Fate {
    fn of_sectors(&self) -> Self {
        match self {
            Self::Torn(length) => Self::Torn(length / 512 * 512),
            fate => fate.clone(),
        }
    }
}

/// Fates of the writes that are under way, to be tried at each point of a command.
fn fates() -> impl Strategy<Value = Vec<Vec<Fate>>> {
    let torn = prop_oneof![1..256usize, 1..BLOCK_SIZE].prop_map(Fate::Torn);
    vec(
        vec(prop_oneof![Just(Fate::Undone), Just(Fate::Done), torn], 6),
        12,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_format_cut_short_leaves_a_complete_spare_or_what_can_be_formatted_again(
        fates in fates(), copies in 2u32..=4, used in any::<bool>(), shorter in any::<bool>(),
    ) {
        let place = if used { Place::filled(copies) } else { Place::new(BLOCKS) };
        let before = place.bytes();
        let old = used.then(|| place.held());
        let length = if shorter { " --slots 200" } else { "" };
        let format = "format s.img --main-sectors 8192 --unit-sectors 1 --force --yes";
        let steps = place.run(&format!("{format}{length}"));
        let new = place.held();
        prop_assert!(new.entries.is_empty());
        let blocks = superblock_at(Image::read(&mut place.region()).unwrap().geometry(), 1) + 1;
        for (done, fates) in all(&steps, &fates) {
            place.cut(&before, done, fates);
            if place.is_spare() {
                let held = place.held();
                prop_assert!(held == new || Some(&held) == old.as_ref());
            }
            if !used {
                // A sector is written whole, or not.
                let fates: Vec<Fate> = fates.iter().map(Fate::of_sectors).collect();
                place.cut(&before, done, &fates);
                prop_assert!(place.is_accepted(blocks));
            }
        }
    }

    #[test]
    fn a_label_cut_short_is_the_old_or_the_new_one(fates in fates()) {
        let place = Place::filled(2);
        let (before, old) = (place.bytes(), place.held());
        let steps = place.run("label s.img new");
        let new = place.held();
        prop_assert!(new != old && new.entries == old.entries);
        for (done, fates) in all(&steps, &fates) {
            place.cut(&before, done, fates);
            let held = place.held();
            prop_assert!(held == old || held == new);
        }
    }

    #[test]
    fn an_import_cut_short_leaves_every_unit_as_before_or_after(
        fates in fates(), copies in 2u32..=4,
    ) {
        let place = Place::filled(copies);
        let (before, old) = (place.bytes(), place.held());
        let steps = place.import("200 150\n");
        let new = place.held();
        prop_assert_eq!(new.entries.len(), 300);
        for (done, fates) in all(&steps, &fates) {
            place.cut(&before, done, fates);
            let held = place.held();
            prop_assert!(old.entries.iter().all(|entry| held.entries.contains(entry)));
            prop_assert!(held.entries.iter().all(|entry| new.entries.contains(entry)));
        }
    }

    #[test]
    fn a_repair_of_records_cut_short_can_be_repeated(fates in fates(), copies in 2u32..=4) {
        // The units of two slots, in two table blocks, have moved to slots of a third.
        let place = Place::filled(copies);
        let ((a, to), (b, _)) = (place.slots(5), place.slots(140));
        let (unit_a, unit_b) = (Unit(5), Unit(140));
        prop_assert!(a.0 / 126 < b.0 / 126 && b.0 / 126 < to[1].0 / 126);
        place.change(&[
            (to[0], State::Moved { unit: unit_a, mask: 1 }),
            (to[1], State::Moved { unit: unit_b, mask: 0 }),
            (b, State::Entry { unit: unit_b, mask: 1 }),
        ]);
        let (before, held) = (place.bytes(), place.held());
        prop_assert!(held.entries.contains(&(5, to[0].0, 1)));
        prop_assert!(held.entries.contains(&(140, to[1].0, 0)));
        let bad = [(a.0, 0), (b.0, 1)];
        let steps = place.run("repair s.img --yes --backup a.backup");
        prop_assert_eq!((&place.held(), place.bad(true)), (&held, bad.to_vec()));
        for (done, fates) in all(&steps, &fates) {
            place.cut(&before, done, fates);
            prop_assert_eq!((&place.held(), place.bad(false)), (&held, bad.to_vec()));
        }
        place.run("repair s.img --yes --backup b.backup");
        prop_assert_eq!((&place.held(), place.bad(true)), (&held, bad.to_vec()));
    }

    #[test]
    fn a_repair_cut_short_can_be_repeated(
        fates in fates(), superblock in any::<bool>(), bytes in vec(any::<Index>(), 1..5),
    ) {
        let place = Place::filled(3);
        let (good, held) = (place.bytes(), place.held());
        // Of one replica, and of one superblock.
        let mut damaged = good.clone();
        let area = BLOCK_SIZE..2 * BLOCK_SIZE;
        bytes.iter().for_each(|at| damaged[area.start + at.index(area.len())] ^= 1);
        let end = if superblock { 0 } else { good.len() - BLOCK_SIZE };
        damaged[end + bytes[0].index(BLOCK_SIZE)] ^= 1;
        place.put(&damaged);
        let steps = place.run("repair s.img --yes --backup a.backup");
        prop_assert!(place.bytes() == good);
        for (done, fates) in all(&steps, &fates) {
            place.cut(&damaged, done, fates);
            prop_assert_eq!(&place.held(), &held);
        }
        place.run("repair s.img --yes --backup b.backup");
        prop_assert!(place.bytes() == good);
    }
}
