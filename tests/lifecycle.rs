// SPDX-License-Identifier: GPL-2.0

//! A model of who waits for whom (`docs/lifecycle.md`): all states that the target's threads, works and locks can
//! come to beside device-mapper's suspend, resume, reload and remove, one step at a time, each found once.
//!
//! In every state that is found:
//!
//! - What has begun can end, although nobody begins anything new: suspend, resume, reload and remove come to their
//!   end, and so do the bios. If not, it is a deadlock, or, if steps go on for ever, a livelock.
//! - `presuspend` has a step of its own. Nobody may count on an answer of a device as long as it runs.
//! - When `dtr` returns, no work is queued or runs, and no timer will queue one; no work drops the last reference,
//!   which would destroy the queue that it runs on. No timer ends while the queue is being drained.
//! - When `postsuspend` has returned, the works have no commit on its way, and no pending entry is left to be
//!   committed, unless the spare failed. When another table's `preresume` reads the spare, nobody writes it.
//!
//! Each [`Bug`] breaks one step, and must be found as what it is. The first three are the deadlocks of the earlier
//! implementation, as in `tests/mutations/deadlock-*.patch`.
//!
//! What stands for what:
//!
//! - Two units. A has the failing read and its pending entry, which gives up its slot to data, and a write that `map`
//!   defers. B has a write that main does not take, the background's relocation, and the message's. Both may be on the
//!   lazy sync's list.
//! - The queue: a work is queued or not, beside that it runs or not; as many run as there are workers. Any of
//!   those queued may begin, whatever their order. A flush waits for what is queued or runs when it begins; a drain,
//!   until there is nothing. The watch has a timer, which ends at any time; while the queue is drained, the kernel
//!   refuses what it would queue then, with a warning, and the reference stays.
//! - A commit: the list of requests, `disk`, one I/O for all that wait, as in `Store::commit`.
//! - A device: an answer, at any time. Several I/Os in a row are one. A spare that fails is one that fails commits.
//! - Trying at intervals until there is no hope: it ends at any time.
//! - SRCU, of device-mapper's tables: who was in a section when the wait began.
//!
//! Not covered: memory and its order, locks that are held for a moment only, `check`, `mark` and `forget`, how long
//! anything takes.

#![allow(missing_docs)]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{BuildHasherDefault, Hasher},
};

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    None,
    /// The earlier implementation's first: teardown neither cancels nor flushes nor drains.
    TeardownWaitsForNothing,
    /// The second: `presuspend` waits for the commit on its way, with a lock that this needs to end.
    PresuspendWaitsForCommit,
    /// The third: `presuspend` drains the queue, and the lazy sync puts itself off while suspending.
    PresuspendDrains,
    /// `dtr` drains it, and the lazy sync puts itself off.
    LazyPutsItselfOff,
    /// `presuspend` uses `cancel_work_sync`.
    CancelSync,
    /// `presuspend` cancels what bios wait for as well.
    BiosCancelled,
    /// Recovery waits to be resumed.
    RecoveryPutOff,
    /// Commits are made by a work of their own, on the same queue.
    CommitsByWork,
    /// `postsuspend` flushes nothing.
    NoFlush,
    /// `postsuspend` commits nothing.
    NoSync,
    /// A message goes on when suspending begins.
    MessageGoesOn,
    /// The background queues itself again while suspending, and there is always more to do.
    BackgroundGoesOn,
    /// The watch starts its timer again while suspending.
    WatchGoesOn,
    /// The lazy sync looks whether suspending has begun only when it queues itself again, not when it begins.
    LazyLooksOnce,
    /// So does the background.
    BackgroundLooksOnce,
    /// The watch asks main until it answers, or suspending begins, all in one run.
    WatchLoops,
    /// The background takes the unit's lock, then `mover`.
    LockOrder,
    /// Whoever takes the locks of several units waits for each.
    EachWaits,
    /// Only the write that takes another unit's slot does.
    RoomWaits,
    /// A table that was not resumed yet does not count as suspended.
    NotSuspendedAtFirst,
    /// `dtr` does not tell the works to end.
    NoFlagInDtr,
    /// `dtr` does not cancel the watch.
    NoCancelInDtr,
    /// `dtr` cancels it before it waits for the works that may start its timer.
    EarlyCancelInDtr,
    /// `dtr` drains where it should flush, before it cancels.
    EarlyDrainInDtr,
    /// `dtr` does not drain at last.
    NoDrainInDtr,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Everyone waits.
    Deadlock,
    /// There are steps, and none leads to an end.
    Livelock,
    /// `presuspend` has no step.
    PresuspendWaits,
    /// `dtr` returned with a work queued or running, or a timer that will queue one.
    LeftBehind,
    /// A timer ended while the queue was being drained, and its work's reference stays.
    Leaked,
    /// A work dropped the last reference.
    DestroysItself,
    /// A work ran when the target was gone.
    UsedAfterFree,
    /// Suspended, with something to commit.
    NotCommitted,
    /// The new table read the spare while the old one wrote it.
    WriteBesidePreresume,
}

// Threads. The first are works; three of them have a reference to the target.
const READ: usize = 0;
const WRITE: usize = 1;
const DEFERRED: usize = 2;
const LAZY: usize = 3;
const BACKGROUND: usize = 4;
const WATCH: usize = 5;
const COMMITTER: usize = 6;
const WORKS: usize = 7;
const MESSAGE: usize = 7;
const CORE: usize = 8;
const THREADS: usize = 9;

// Locks.
const DISK: u8 = 1;
const MOVER: u8 = 2;
const PROBE: u8 = 4;
const UNIT_A: u8 = 8;
const UNIT_B: u8 = 16;
const REQUESTS: u8 = 32;
const ROOM: u8 = 64;

/// Where a thread is: what it does next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd)]
enum At {
    #[default]
    Idle,
    Begin,
    Mover,
    Unit,
    Transfer,
    Probe,
    Probing,
    Note,
    Room,
    Other,
    RoomCommit,
    QueueLazy,
    QueueBackground,
    Second,
    Commit,
    Complete,
    Tail,
    StartTimer,
    // Device-mapper's. Up to `Cancelled` it is in `presuspend`.
    Active,
    Flag,
    Wait,
    CancelLazy,
    CancelBackground,
    CancelWatch,
    Cancelled,
    LockFs,
    Frozen,
    Block,
    Barrier,
    Bios,
    SecondBarrier,
    Flush,
    Flushing,
    Sync,
    Suspended,
    Resume,
    Requeue,
    Swap,
    Preresume,
    Holders,
    Dtr,
    DtrFlush,
    DtrFlushing,
    DtrDrain,
    DtrCancel,
    Drain,
    Gone,
}
use At::*;

/// Where a commit is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Request {
    #[default]
    None,
    Waiting,
    /// By its own thread, with `disk`.
    Writing,
    WrittenByOther,
    Done,
    Failed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
enum Bio {
    #[default]
    None,
    InFlight,
    Deferred,
    Done,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct State {
    at: [At; THREADS],
    requests: [Request; THREADS],
    /// Those whose works have the same numbers.
    bios: [Bio; 3],
    /// One bit for each work.
    queued: u8,
    locks: u8,
    /// Those that a flush waits for: running, queued.
    flush: [u8; 2],
    suspends_left: u8,
    messages_left: u8,
    /// Units on the list, to be committed.
    lazy: u8,
    /// Units that are being committed from there, by one thread at a time; their locks are held.
    batch: u8,
    /// How many units the background is to relocate.
    marginal: u8,
    /// A has an entry that gives up its slot.
    yields: bool,
    tripped: bool,
    degraded: bool,
    /// The watch's timer runs.
    timer: bool,
    suspending: bool,
    /// `postsuspend` could not commit all.
    unwritten: bool,
    /// New bios wait for resume.
    blocked: bool,
    lockfs: bool,
    deleting: bool,
    /// Device-mapper gave up its reference.
    released: bool,
    /// Device-mapper waits for the message.
    awaited: bool,
}

impl State {
    fn to(mut self, thread: usize, at: At) -> Self {
        self.at[thread] = at;
        self
    }

    fn take(mut self, locks: u8) -> Self {
        self.locks |= locks;
        self
    }

    fn free(mut self, locks: u8) -> Self {
        self.locks &= !locks;
        self
    }

    fn is_free(&self, locks: u8) -> bool {
        self.locks & locks == 0
    }

    fn with_bio(mut self, bio: usize, to: Bio) -> Self {
        self.bios[bio] = to;
        self
    }

    /// The bio is given to its work.
    fn defer(self, bio: usize) -> Self {
        self.with_bio(bio, Bio::Deferred).queue(bio)
    }

    /// What waits on the list of requests is being written.
    fn write_all(mut self) -> Self {
        let waiting = self.requests.iter_mut().filter(|r| **r == Request::Waiting);
        waiting.for_each(|r| *r = Request::WrittenByOther);
        self.take(DISK)
    }

    fn all_written(mut self, succeeded: bool) -> Self {
        let done = match succeeded {
            true => Request::Done,
            false => Request::Failed,
        };
        let written = (self.requests.iter_mut()).filter(|r| **r == Request::WrittenByOther);
        written.for_each(|r| *r = done);
        self.degraded = !succeeded;
        self.free(DISK)
    }

    fn queue(mut self, work: usize) -> Self {
        self.queued |= 1 << work;
        self
    }

    /// The watch's timer is started, unless it runs or the work is queued.
    fn start_timer(mut self) -> Self {
        self.timer |= !self.is_queued(WATCH);
        self
    }

    fn cancel(mut self, work: usize) -> Self {
        self.timer &= work != WATCH;
        self.queued &= !(1 << work);
        self.flush[1] &= !(1 << work);
        self
    }

    fn is_queued(&self, work: usize) -> bool {
        self.queued & (1 << work) != 0
    }

    fn running(&self) -> u8 {
        let runs = |work: &usize| self.at[*work] != Idle;
        (0..WORKS).filter(runs).map(|work| 1 << work).sum()
    }

    fn is_idle(&self) -> bool {
        self.queued | self.running() == 0
    }

    fn is_in_presuspend(&self) -> bool {
        (Flag..Cancelled).contains(&self.at[CORE])
    }

    fn is_draining(&self) -> bool {
        matches!(self.at[CORE], DtrDrain | Drain)
    }

    fn is_to_be_watched(&self) -> bool {
        self.tripped || self.degraded
    }

    fn bios_are_complete(&self) -> bool {
        (self.bios.iter()).all(|bio| matches!(bio, Bio::None | Bio::Done))
    }

    /// Some of the works has, or will have, a reference to the target.
    fn has_references(&self) -> bool {
        let is_due = |work| self.is_queued(work) || self.at[work] != Idle;
        self.timer || (LAZY..=WATCH).any(is_due)
    }

    /// An entry that is not on the spare although it could be, or a work's commit that is on its way.
    fn has_uncommitted(&self) -> bool {
        let is_committing = |r: &Request| *r != Request::None;
        self.lazy != 0 && !self.unwritten || self.requests[..WORKS].iter().any(is_committing)
    }

    /// Nothing that began has to end.
    fn is_at_rest(&self) -> bool {
        matches!(self.at[CORE], Active | Suspended | Gone) && self.bios_are_complete()
    }

    /// The unit's lock that `thread` takes.
    fn unit_of(thread: usize) -> u8 {
        match thread {
            WRITE | BACKGROUND | MESSAGE => UNIT_B,
            READ | DEFERRED => UNIT_A,
            _ => 0,
        }
    }
}

/// How a device may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Device {
    Answers,
    /// It may stop to answer, and answer again.
    ComesBack,
    /// It may stop to answer, for ever.
    StaysAway,
}

/// What there is, and what may happen.
#[derive(Clone, Copy, Debug)]
struct Scenario {
    workers: u32,
    /// Where device-mapper is: `Active`; `Suspended`, if only `preresume` was called yet; `Holders`, before `dtr`.
    start: At,
    bios: &'static [usize],
    /// Pending, and the work queued.
    lazy: u8,
    marginal: u8,
    tripped: bool,
    degraded: bool,
    main: Device,
    spare: Device,
    /// No slot is free.
    full: bool,
    messages: u8,
    /// The message is `sync`, not one that changes units.
    syncs: bool,
    suspends: u8,
    interrupts: bool,
}

const NOTHING: Scenario = Scenario {
    workers: 1,
    start: Active,
    bios: &[],
    lazy: 0,
    marginal: 0,
    tripped: false,
    degraded: false,
    main: Device::Answers,
    spare: Device::Answers,
    full: false,
    messages: 0,
    syncs: false,
    suspends: 1,
    interrupts: false,
};

/// A hash of bytes that takes little time.
#[derive(Default)]
struct Fold(u64);

impl Hasher for Fold {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u8(*byte));
    }

    fn write_u8(&mut self, byte: u8) {
        self.0 = (self.0.rotate_left(5) ^ u64::from(byte)).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn write_isize(&mut self, discriminant: isize) {
        self.write_u8(discriminant as u8);
    }

    fn write_usize(&mut self, _length: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

struct Search {
    bug: Bug,
    scenario: Scenario,
    states: Vec<State>,
    numbers: HashMap<State, u32, BuildHasherDefault<Fold>>,
    /// From which state each was found first.
    parents: Vec<u32>,
    /// Steps that will be made: from, to.
    steps: Vec<(u32, u32)>,
    /// The state whose steps are looked for.
    current: u32,
    found: BTreeMap<Kind, u32>,
}

impl Search {
    fn number(&mut self, state: State) -> u32 {
        let next = self.states.len() as u32;
        let number = *self.numbers.entry(state).or_insert(next);
        if number == next {
            self.states.push(state);
            self.parents.push(self.current);
        }
        number
    }

    /// A step that will be made if no other is.
    fn will(&mut self, next: State) {
        let number = self.number(next);
        self.steps.push((self.current, number));
    }

    /// A step that nobody may wait for.
    fn may(&mut self, next: State) {
        self.number(next);
    }

    /// A device's answer.
    fn answer(&mut self, next: State) {
        if self.states[self.current as usize].is_in_presuspend() {
            self.may(next);
        } else {
            self.will(next);
        }
    }

    fn will_if(&mut self, condition: bool, next: State) {
        if condition {
            self.will(next);
        }
    }

    /// Takes a lock, if it is free.
    fn lock(&mut self, mut s: State, lock: u8, thread: usize, then: At) {
        let is_free = s.locks & lock == 0;
        s.locks |= lock;
        self.will_if(is_free, s.to(thread, then));
    }

    fn find(&mut self, kind: Kind) {
        self.found.entry(kind).or_insert(self.current);
    }

    /// All steps from `s`.
    fn expand(&mut self, s: State) {
        self.bios(s);
        for work in 0..WORKS {
            if s.at[work] != Idle {
                self.work(s, work);
            } else if s.is_queued(work) && s.running().count_ones() < self.scenario.workers {
                let mut next = State {
                    queued: s.queued & !(1 << work),
                    ..s
                };
                next.flush[0] |= s.flush[1] & (1 << work);
                next.flush[1] &= !(1 << work);
                self.will(next.to(work, Begin));
            }
        }
        if s.timer {
            let next = State { timer: false, ..s };
            if s.is_draining() {
                self.find(Kind::Leaked);
                self.will(next);
            } else {
                self.will(next.queue(WATCH));
            }
        }
        self.message(s);
        let steps = self.steps.len();
        self.core(s);
        if s.is_in_presuspend() && self.steps.len() == steps {
            self.find(Kind::PresuspendWaits);
        }
        for thread in 0..THREADS {
            self.commit(s, thread);
        }
        let is_suspended = s.suspending && matches!(s.at[CORE], Suspended | Holders);
        if is_suspended && s.has_uncommitted() {
            self.find(Kind::NotCommitted);
        }
        if s.at[CORE] == Preresume && !s.is_free(DISK) {
            self.find(Kind::WriteBesidePreresume);
        }
        if s.released && s.running() != 0 {
            self.find(Kind::UsedAfterFree);
        }
    }

    /// The submitter, `map` and `end_io`.
    fn bios(&mut self, s: State) {
        for &bio in self.scenario.bios {
            if s.bios[bio] == Bio::None && !s.blocked && !s.deleting {
                self.may(match bio {
                    DEFERRED => s.defer(bio),
                    _ => s.with_bio(bio, Bio::InFlight),
                });
            }
            if s.bios[bio] == Bio::InFlight {
                self.answer(match s.tripped {
                    true => s.with_bio(bio, Bio::Done),
                    false => s.defer(bio),
                });
            }
        }
    }

    /// A work that runs.
    fn work(&mut self, s: State, work: usize) {
        let (bug, scenario) = (self.bug, self.scenario);
        let is_put_off = bug == Bug::RecoveryPutOff && s.suspending && work < LAZY;
        let puts_itself_off = matches!(bug, Bug::LazyPutsItselfOff | Bug::PresuspendDrains);
        let ignores_suspending = match bug {
            Bug::LazyLooksOnce => work == LAZY,
            Bug::BackgroundLooksOnce | Bug::BackgroundGoesOn => work == BACKGROUND,
            Bug::WatchGoesOn => work == WATCH,
            _ => false,
        };
        let begins = !s.suspending || ignores_suspending;
        match (work, s.at[work]) {
            (_, Begin) if is_put_off => (),
            (READ, Begin) => {
                self.answer(s.to(work, Unit));
                if scenario.marginal > 0 {
                    let marginal = s.marginal.max(1);
                    let next = State { marginal, ..s };
                    self.answer(next.to(
                        work,
                        match s.suspending {
                            true => Complete,
                            false => QueueBackground,
                        },
                    ));
                }
            }
            (READ, Unit) => self.lock(s, UNIT_A, work, Note),
            (READ, Note) => {
                let next = State {
                    lazy: s.lazy | UNIT_A,
                    yields: true,
                    ..s
                };
                self.will(match s.suspending {
                    true => next.free(UNIT_A).to(work, Complete),
                    false => next.to(work, QueueLazy),
                });
            }
            (READ, QueueLazy) => self.will(s.queue(LAZY).free(UNIT_A).to(work, Complete)),
            (READ, QueueBackground) => self.will(s.queue(BACKGROUND).to(work, Complete)),
            (WRITE | DEFERRED, Begin) => self.lock(s, State::unit_of(work), work, Transfer),
            (WRITE, Transfer) if scenario.main != Device::Answers => self.answer(s.to(work, Probe)),
            (_, Probe) => self.lock(s, PROBE, work, Probing),
            (WRITE, Probing) => {
                let next = State { tripped: true, ..s };
                self.answer(next.free(PROBE | UNIT_B).to(work, Complete));
                if scenario.main != Device::StaysAway {
                    self.answer(self.request(s.free(PROBE), work));
                }
            }
            (WRITE, Transfer) if scenario.full => self.answer(s.to(work, Room)),
            (DEFERRED, Transfer) => {
                self.answer(self.request(s, work));
                if scenario.full {
                    // Its slot's medium failed.
                    self.answer(s.to(work, Room));
                }
            }
            (WRITE | BACKGROUND, Transfer) => self.answer(self.request(s, work)),
            (_, Room) => self.room(s, work),
            (_, Other) => {
                let next = self.request(s.take(UNIT_A), work).to(work, RoomCommit);
                self.will_if(s.is_free(UNIT_A), next);
            }
            (_, Complete) => self.will(s.with_bio(work, Bio::Done).to(work, Tail)),
            (LAZY, Begin) if puts_itself_off && s.suspending => self.end(s.queue(LAZY), work),
            (LAZY, Begin) if s.lazy != 0 && begins => self.batch(s, work),
            (_, Second) => self.second(s, work),
            (LAZY, QueueLazy) => self.will(s.queue(LAZY).to(work, Tail)),
            (BACKGROUND, Begin) if s.marginal > 0 && begins => self.will(s.to(work, Mover)),
            (BACKGROUND, Mover) if bug == Bug::LockOrder => self.lock(s, UNIT_B, work, Unit),
            (BACKGROUND, Unit) if bug == Bug::LockOrder => self.lock(s, MOVER, work, Transfer),
            (BACKGROUND, Mover) => self.lock(s, MOVER, work, Unit),
            (BACKGROUND, Unit) => self.lock(s, UNIT_B, work, Transfer),
            (BACKGROUND, QueueBackground) => self.will(s.queue(BACKGROUND).to(work, Tail)),
            (WATCH, Begin) if begins && s.is_to_be_watched() => {
                self.will(s.to(work, if s.tripped { Probe } else { Flush }));
            }
            (WATCH, Probing) => {
                let then = match bug {
                    Bug::WatchLoops => Begin,
                    _ => Flush,
                };
                let next = s.free(PROBE).to(work, then);
                self.answer(next);
                if scenario.main != Device::StaysAway {
                    let tripped = false;
                    self.answer(State { tripped, ..next });
                }
            }
            (WATCH, Flush) if s.degraded => {
                self.will_if(s.is_free(DISK), s.write_all().to(work, Flushing));
            }
            (WATCH, Flush) => self.will(s.to(work, Tail)),
            (WATCH, Flushing) => {
                self.answer(s.all_written(false).to(work, Tail));
                if scenario.spare != Device::StaysAway {
                    self.answer(s.all_written(true).to(work, Sync));
                }
            }
            (WATCH, Sync) if s.lazy != 0 => self.batch(s, work),
            (WATCH, Sync) => self.will(s.to(work, Tail)),
            (_, Tail) if s.is_to_be_watched() && (!s.suspending || bug == Bug::WatchGoesOn) => {
                self.will(s.to(work, StartTimer));
            }
            (_, Tail) => self.end(s, work),
            (_, StartTimer) => self.end(s.start_timer(), work),
            (COMMITTER, Begin) => {
                self.will_if(s.is_free(DISK), s.write_all().to(work, Transfer));
            }
            (COMMITTER, Transfer) => self.end(s.all_written(true), work),
            (LAZY | BACKGROUND | WATCH, Begin) => self.end(s, work),
            // In a commit.
            _ => (),
        }
    }

    /// The work's function returns.
    fn end(&mut self, s: State, work: usize) {
        let mut next = s.to(work, Idle);
        next.flush[0] &= !(1 << work);
        if s.released && (LAZY..=WATCH).contains(&work) && !next.has_references() {
            self.find(Kind::DestroysItself);
        }
        self.will(next);
    }

    /// A write that has its unit's lock finds no free slot: A's entry gives up its own, unless somebody is busy with A
    /// for too long.
    fn room(&mut self, s: State, work: usize) {
        if !s.is_free(ROOM) {
            return;
        }
        let fails = s.free(State::unit_of(work)).to(work, Complete);
        if work == DEFERRED || !s.yields {
            self.will(fails);
        } else if self.bug == Bug::RoomWaits || self.bug == Bug::EachWaits {
            self.will(s.take(ROOM).to(work, Other));
        } else if s.is_free(UNIT_A) {
            let next = self.request(s.take(ROOM | UNIT_A), work);
            self.will(next.to(work, RoomCommit));
        } else {
            self.will(fails);
        }
    }

    /// Commits from the list what nobody is busy with, if no other does.
    fn batch(&mut self, mut s: State, thread: usize) {
        if s.batch != 0 {
            return;
        }
        let got = s.lazy & !s.locks;
        if self.bug == Bug::EachWaits {
            let first = got & s.lazy & s.lazy.wrapping_neg();
            s.batch = first;
            self.will_if(first != 0, s.take(first).to(thread, Second));
            return;
        }
        s.batch = got;
        match (thread, got) {
            // It waits a moment.
            (MESSAGE | CORE, 0) => (),
            (_, 0) => self.will(self.after_batch(s, thread)),
            _ => self.will(self.request(s.take(got), thread)),
        }
    }

    /// Takes, or waits for, the lock of another unit.
    fn second(&mut self, mut s: State, thread: usize) {
        let left = s.lazy & !s.batch;
        let is_free = s.is_free(left);
        s.batch |= left;
        self.will_if(is_free, self.request(s.take(left), thread));
    }

    /// Where the thread goes that has made a batch.
    fn after_batch(&self, s: State, thread: usize) -> State {
        match thread {
            LAZY if s.lazy != 0 && !s.suspending => s.to(thread, QueueLazy),
            LAZY | WATCH => s.to(thread, Tail),
            _ => s.to(thread, Sync),
        }
    }

    fn request(&self, mut s: State, thread: usize) -> State {
        s.requests[thread] = Request::Waiting;
        match self.bug {
            Bug::CommitsByWork => s.queue(COMMITTER).to(thread, Commit),
            _ => s.to(thread, Commit),
        }
    }

    /// `Store::commit`.
    fn commit(&mut self, s: State, thread: usize) {
        let list_is_free = s.is_free(REQUESTS);
        let both_are_free = list_is_free && s.is_free(DISK);
        match s.requests[thread] {
            Request::Waiting if both_are_free && self.bug != Bug::CommitsByWork => {
                let mut next = s.write_all();
                next.requests[thread] = Request::Writing;
                self.will(next);
            }
            Request::Writing if list_is_free => {
                let spare = self.scenario.spare;
                if spare != Device::StaysAway || !s.degraded {
                    let next = self.committed(s.all_written(true), thread, true);
                    self.answer(next);
                }
                if spare != Device::Answers {
                    let next = self.committed(s.all_written(false), thread, false);
                    self.answer(next);
                }
            }
            Request::Done | Request::Failed if both_are_free => {
                let succeeded = s.requests[thread] == Request::Done;
                let next = self.committed(s, thread, succeeded);
                self.will(next);
            }
            _ => (),
        }
    }

    /// What `thread` does behind its commit, up to where it may wait.
    fn committed(&self, mut s: State, thread: usize, succeeded: bool) -> State {
        s.requests[thread] = Request::None;
        if s.at[thread] == RoomCommit {
            s = s.free(UNIT_A | ROOM);
            s.yields &= !succeeded;
            if succeeded {
                return self.request(s, thread);
            }
        }
        let is_batch = match thread {
            LAZY | WATCH | CORE => true,
            MESSAGE => self.scenario.syncs,
            _ => false,
        };
        if is_batch {
            let batch = core::mem::take(&mut s.batch);
            s = s.free(batch);
            if succeeded {
                s.lazy &= !batch;
                return self.after_batch(s, thread);
            }
            return match thread {
                CORE => State {
                    unwritten: true,
                    ..s
                }
                .to(CORE, Sync),
                _ => s.to(thread, Tail),
            };
        }
        let s = s.free(State::unit_of(thread));
        match thread {
            WRITE | DEFERRED => s.to(thread, Complete),
            BACKGROUND => {
                let goes_on = self.bug == Bug::BackgroundGoesOn;
                let marginal = s.marginal - u8::from(!goes_on);
                let is_more = marginal > 0 && (goes_on || !s.suspending);
                State { marginal, ..s }.free(MOVER).to(
                    thread,
                    match is_more {
                        true => QueueBackground,
                        false => Tail,
                    },
                )
            }
            _ => s.free(MOVER).to(
                thread,
                match succeeded {
                    true => Begin,
                    false => Tail,
                },
            ),
        }
    }

    /// A message that changes unit after unit and takes long, or `sync`.
    fn message(&mut self, s: State) {
        let is_live = s.at[CORE] < Swap && !s.deleting;
        let is_over = s.suspending && self.bug != Bug::MessageGoesOn;
        match s.at[MESSAGE] {
            Idle if s.messages_left > 0 && is_live => {
                let messages_left = s.messages_left - 1;
                let next = State { messages_left, ..s };
                if self.scenario.syncs {
                    self.may(next.to(MESSAGE, Sync));
                } else if !s.suspending {
                    self.may(next.to(MESSAGE, Begin));
                }
            }
            Sync if s.lazy == 0 => self.will(s.to(MESSAGE, Tail)),
            Sync => self.batch(s, MESSAGE),
            Second => self.second(s, MESSAGE),
            Begin if is_over => self.will(s.to(MESSAGE, Tail)),
            Begin => {
                self.may(s.to(MESSAGE, Tail));
                self.will(s.to(MESSAGE, Mover));
            }
            Mover => self.lock(s, MOVER, MESSAGE, Unit),
            Unit => self.lock(s, UNIT_B, MESSAGE, Transfer),
            Transfer => self.answer(self.request(s, MESSAGE)),
            Tail if s.is_to_be_watched() && !s.suspending => self.will(s.to(MESSAGE, StartTimer)),
            Tail | StartTimer => {
                let next = match s.at[MESSAGE] {
                    StartTimer => s.start_timer(),
                    _ => s,
                };
                let awaited = false;
                self.will(State { awaited, ..next }.to(MESSAGE, Idle));
            }
            _ => (),
        }
    }

    /// Device-mapper: `dm_suspend`, `dm_resume`, `do_resume` with another table, `__dm_destroy`.
    fn core(&mut self, s: State) {
        let bug = self.bug;
        let tears_nothing_down = bug == Bug::TeardownWaitsForNothing;
        let to = |at| s.to(CORE, at);
        let awaits = State {
            awaited: s.at[MESSAGE] != Idle,
            ..s
        };
        let flushes = State {
            flush: [s.running(), s.queued],
            ..s
        };
        let is_removable = s.bios_are_complete() && s.requests == [Request::None; THREADS];
        let removed = State {
            deleting: true,
            ..s
        };
        let suspended = if s.deleting { Holders } else { Suspended };
        match s.at[CORE] {
            Active => {
                for lockfs in [false, self.scenario.bios.contains(&DEFERRED)] {
                    if s.suspends_left > 0 {
                        let suspends_left = s.suspends_left - 1;
                        self.may(
                            State {
                                suspends_left,
                                lockfs,
                                ..s
                            }
                            .to(CORE, Flag),
                        );
                    }
                }
                if is_removable {
                    self.may(removed.to(CORE, Flag));
                }
            }
            Flag => {
                let next = State {
                    suspending: true,
                    ..s
                };
                match bug {
                    Bug::PresuspendWaitsForCommit => self.lock(next, REQUESTS, CORE, Wait),
                    _ if tears_nothing_down => self.will(next.to(CORE, Cancelled)),
                    _ => self.will(next.to(CORE, CancelLazy)),
                }
            }
            Wait => self.will_if(s.is_free(DISK), to(CancelLazy).free(REQUESTS)),
            CancelLazy => {
                let is_done = match bug {
                    Bug::CancelSync => s.at[LAZY] == Idle,
                    Bug::PresuspendDrains => s.is_idle(),
                    _ => true,
                };
                self.will_if(is_done, to(CancelBackground).cancel(LAZY));
            }
            CancelBackground => self.will(to(CancelWatch).cancel(BACKGROUND)),
            CancelWatch => {
                let next = to(Cancelled).cancel(WATCH);
                self.will(match bug {
                    Bug::BiosCancelled => next.cancel(READ).cancel(WRITE).cancel(DEFERRED),
                    _ => next,
                });
            }
            Cancelled if s.deleting => self.will(to(Flush)),
            Cancelled => self.will(to(if s.lockfs { LockFs } else { Block })),
            // The file system writes, and waits for it.
            LockFs => self.will(match s.bios[DEFERRED] {
                Bio::None | Bio::Done => to(Frozen).defer(DEFERRED),
                _ => to(Frozen),
            }),
            Frozen => self.will_if(s.bios[DEFERRED] == Bio::Done, to(Block)),
            Block => self.will(
                State {
                    blocked: true,
                    ..awaits
                }
                .to(CORE, Barrier),
            ),
            Barrier => self.will_if(!s.awaited, to(Bios)),
            Bios if s.bios_are_complete() => self.will(awaits.to(CORE, SecondBarrier)),
            Bios if self.scenario.interrupts => {
                self.may(
                    State {
                        blocked: false,
                        ..s
                    }
                    .to(CORE, Resume),
                );
            }
            SecondBarrier => self.will_if(!s.awaited, to(Flush)),
            Flush if bug == Bug::NoFlush => self.will(to(Sync)),
            Flush if tears_nothing_down => self.will(to(suspended)),
            Flush => self.will(flushes.to(CORE, Flushing)),
            Flushing => self.will_if(s.flush == [0; 2], to(Sync)),
            Sync if s.lazy == 0 || s.unwritten || bug == Bug::NoSync => self.will(to(suspended)),
            Sync => self.batch(s, CORE),
            Second => self.second(s, CORE),
            Suspended => {
                self.may(to(Resume));
                self.may(awaits.to(CORE, Swap));
                self.may(removed.to(CORE, Holders));
            }
            Resume => self.will(
                State {
                    suspending: false,
                    unwritten: false,
                    ..s
                }
                .to(CORE, Requeue),
            ),
            Requeue => {
                let works = [(LAZY, s.lazy != 0), (BACKGROUND, s.marginal > 0)];
                let wanted = works.iter().filter(|(_, wanted)| *wanted);
                let next = wanted.fold(to(Active), |next, (work, _)| next.queue(*work));
                let next = match s.is_to_be_watched() {
                    true => next.start_timer(),
                    false => next,
                };
                self.will(State {
                    blocked: false,
                    ..next
                });
            }
            Swap => self.will_if(!s.awaited, to(Preresume)),
            // The new table's: it reads the spare.
            Preresume => self.answer(to(Dtr)),
            Holders => self.will_if(s.at[MESSAGE] == Idle, to(Dtr)),
            Dtr if tears_nothing_down => self.release(s),
            Dtr => {
                let suspending = s.suspending || bug != Bug::NoFlagInDtr;
                let next = match bug {
                    Bug::EarlyCancelInDtr => s.cancel(WATCH).to(CORE, DtrFlush),
                    Bug::EarlyDrainInDtr => to(DtrDrain),
                    _ => to(DtrFlush),
                };
                self.will(State { suspending, ..next });
            }
            DtrFlush => self.will(flushes.to(CORE, DtrFlushing)),
            DtrFlushing => self.will_if(s.flush == [0; 2], to(DtrCancel)),
            DtrDrain => self.will_if(s.is_idle(), to(DtrCancel)),
            DtrCancel => {
                let next = match bug {
                    Bug::NoCancelInDtr | Bug::EarlyCancelInDtr => s,
                    _ => s.cancel(WATCH),
                };
                self.will(next.to(CORE, Drain));
            }
            Drain if bug == Bug::NoDrainInDtr => self.release(s),
            Drain if s.is_idle() => self.release(s),
            _ => (),
        }
    }

    /// `dtr` has returned.
    fn release(&mut self, s: State) {
        if !s.is_idle() || s.timer {
            self.find(Kind::LeftBehind);
        }
        self.will(
            State {
                released: true,
                ..s
            }
            .to(CORE, Gone),
        );
    }
}

/// Searches all states; `Ok` is their number. Prints how to come to what is wrong.
fn check(scenario: Scenario, bug: Bug) -> Result<usize, Vec<Kind>> {
    let search = explore(scenario, bug);
    if search.found.is_empty() {
        return Ok(search.states.len());
    }
    for (kind, number) in &search.found {
        let mut path = vec![*number];
        while *path.last().unwrap() != 0 {
            path.push(search.parents[*path.last().unwrap() as usize]);
        }
        println!("{bug:?}: {kind:?}, of {} states:", search.states.len());
        for number in path.iter().rev() {
            println!("  {:?}", search.states[*number as usize]);
        }
    }
    Err(search.found.into_keys().collect())
}

fn explore(scenario: Scenario, bug: Bug) -> Search {
    let mut search = Search {
        bug,
        scenario,
        states: Vec::new(),
        numbers: HashMap::default(),
        parents: Vec::new(),
        steps: Vec::new(),
        current: 0,
        found: BTreeMap::new(),
    };
    let is_suspended = scenario.start == Suspended;
    let mut first = State {
        suspends_left: scenario.suspends,
        messages_left: scenario.messages,
        lazy: scenario.lazy,
        marginal: scenario.marginal,
        yields: scenario.full,
        tripped: scenario.tripped,
        degraded: scenario.degraded,
        suspending: is_suspended && bug != Bug::NotSuspendedAtFirst,
        unwritten: is_suspended,
        blocked: is_suspended,
        deleting: scenario.start == Holders,
        ..State::default()
    };
    if !is_suspended {
        first.timer = first.is_to_be_watched();
        for (work, wanted) in [(LAZY, first.lazy), (BACKGROUND, first.marginal)] {
            first.queued |= u8::from(wanted != 0) << work;
        }
    }
    search.number(first.to(CORE, scenario.start));
    while let Some(state) = search.states.get(search.current as usize) {
        search.expand(*state);
        search.current += 1;
    }
    // Backwards, from where nothing has to end, and from where there is no step.
    let mut goes_on = vec![false; search.states.len()];
    search
        .steps
        .iter()
        .for_each(|(from, _)| goes_on[*from as usize] = true);
    let ends = |n: &u32| search.states[*n as usize].is_at_rest();
    let all = 0..search.states.len() as u32;
    let ended = leads_to(&search.steps, all.clone().filter(ends), goes_on.len());
    let is_dead = |n: &u32| !goes_on[*n as usize] && !ends(n);
    let dead = all.clone().find(is_dead);
    let doomed = leads_to(&search.steps, all.clone().filter(is_dead), goes_on.len());
    let endless = all
        .clone()
        .find(|n| !ended[*n as usize] && !doomed[*n as usize]);
    search.found.extend(dead.map(|n| (Kind::Deadlock, n)));
    search.found.extend(endless.map(|n| (Kind::Livelock, n)));
    search
}

/// Of `count` states, which lead to one of `goals`.
fn leads_to(steps: &[(u32, u32)], goals: impl Iterator<Item = u32>, count: usize) -> Vec<bool> {
    // The steps to each state, in one piece.
    let mut first = vec![0; count + 1];
    steps
        .iter()
        .for_each(|(_, to)| first[*to as usize + 1] += 1);
    (0..count).for_each(|n| first[n + 1] += first[n]);
    let (mut next, mut from) = (first.clone(), vec![0; steps.len()]);
    for (before, to) in steps {
        from[next[*to as usize]] = *before;
        next[*to as usize] += 1;
    }
    let mut known = vec![false; count];
    let mut left: Vec<u32> = goals.collect();
    left.iter().for_each(|n| known[*n as usize] = true);
    while let Some(n) = left.pop() {
        for before in &from[first[n as usize]..first[n as usize + 1]] {
            if !known[*before as usize] {
                known[*before as usize] = true;
                left.push(*before);
            }
        }
    }
    known
}

const BOTH: u8 = UNIT_A | UNIT_B;

/// A read that leaves a pending entry, and a file system's write while it is frozen.
const FROZEN: Scenario = Scenario {
    bios: &[READ, DEFERRED],
    lazy: UNIT_A,
    suspends: 2,
    ..NOTHING
};

/// The lazy sync, the background and two recoveries.
const WORKING: Scenario = Scenario {
    bios: &[READ, WRITE],
    lazy: BOTH,
    marginal: 2,
    ..NOTHING
};

/// A message.
const ASKED: Scenario = Scenario {
    bios: &[WRITE, DEFERRED],
    lazy: UNIT_A,
    messages: 1,
    ..NOTHING
};

/// The message `sync`.
const SYNCED: Scenario = Scenario {
    bios: &[READ, WRITE],
    lazy: BOTH,
    messages: 1,
    syncs: true,
    ..NOTHING
};

/// Messages, and a suspend that is interrupted.
const INTERRUPTED: Scenario = Scenario {
    bios: &[WRITE],
    marginal: 1,
    messages: 2,
    interrupts: true,
    ..NOTHING
};

/// Main that does not answer, and comes back.
const AWAY: Scenario = Scenario {
    bios: &[READ, WRITE],
    tripped: true,
    main: Device::ComesBack,
    suspends: 2,
    ..NOTHING
};

/// Main that stops to answer, for ever.
const AWAY_FOR_EVER: Scenario = Scenario {
    bios: &[READ, WRITE],
    main: Device::StaysAway,
    ..NOTHING
};

/// A spare that fails, and comes back.
const SPARE_AWAY: Scenario = Scenario {
    bios: &[WRITE],
    lazy: BOTH,
    degraded: true,
    spare: Device::ComesBack,
    ..NOTHING
};

/// A spare that fails for ever.
const SPARE_AWAY_FOR_EVER: Scenario = Scenario {
    spare: Device::StaysAway,
    messages: 1,
    syncs: true,
    ..SPARE_AWAY
};

/// Writes that find no free slot, beside a lazy sync that wants the same units.
const FULL: Scenario = Scenario {
    bios: &[WRITE, DEFERRED],
    lazy: BOTH,
    full: true,
    ..NOTHING
};

/// Another target's `preresume` failed, so that `resume` was never called.
const NOT_RESUMED: Scenario = Scenario {
    start: Suspended,
    lazy: UNIT_A,
    degraded: true,
    spare: Device::ComesBack,
    messages: 1,
    syncs: true,
    ..NOTHING
};

/// `dtr`, with all works on their way, whatever came before it.
const REMOVED: Scenario = Scenario {
    start: Holders,
    lazy: BOTH,
    marginal: 2,
    tripped: true,
    degraded: true,
    main: Device::ComesBack,
    spare: Device::ComesBack,
    ..NOTHING
};

/// Each adds something that goes on when the device is suspended, resumed, reloaded or removed.
const SCENARIOS: [Scenario; 12] = [
    FROZEN,
    WORKING,
    ASKED,
    SYNCED,
    INTERRUPTED,
    AWAY,
    AWAY_FOR_EVER,
    SPARE_AWAY,
    SPARE_AWAY_FOR_EVER,
    FULL,
    NOT_RESUMED,
    REMOVED,
];

#[test]
fn whatever_has_begun_ends() {
    let mut all = 0;
    for scenario in SCENARIOS {
        for workers in 1..=3 {
            let scenario = Scenario {
                workers,
                ..scenario
            };
            let states = check(scenario, Bug::None).expect("nothing is wrong");
            assert!(states > 100, "{states} states of {scenario:?}");
            all += states;
        }
    }
    println!("{all} states");
}

#[test]
fn every_bug_is_found() {
    use Kind::*;
    const TIMER_LEFT: [Kind; 4] = [LeftBehind, Leaked, DestroysItself, UsedAfterFree];
    let all: [(Bug, Scenario, &[Kind]); 25] = [
        (
            Bug::TeardownWaitsForNothing,
            FROZEN,
            &[
                LeftBehind,
                DestroysItself,
                UsedAfterFree,
                NotCommitted,
                WriteBesidePreresume,
            ],
        ),
        (
            Bug::PresuspendWaitsForCommit,
            FROZEN,
            &[Deadlock, PresuspendWaits],
        ),
        (
            Bug::PresuspendDrains,
            FROZEN,
            &[Deadlock, Livelock, PresuspendWaits],
        ),
        (Bug::LazyPutsItselfOff, FROZEN, &[Livelock]),
        (Bug::CancelSync, FROZEN, &[Deadlock, PresuspendWaits]),
        (Bug::BiosCancelled, INTERRUPTED, &[Deadlock, Livelock]),
        (Bug::RecoveryPutOff, FROZEN, &[Deadlock]),
        (Bug::CommitsByWork, FROZEN, &[Deadlock]),
        (
            Bug::NoFlush,
            INTERRUPTED,
            &[NotCommitted, WriteBesidePreresume],
        ),
        (Bug::NoSync, FROZEN, &[NotCommitted]),
        (Bug::MessageGoesOn, INTERRUPTED, &[Livelock]),
        (
            Bug::BackgroundGoesOn,
            INTERRUPTED,
            &[Livelock, NotCommitted, WriteBesidePreresume],
        ),
        (
            Bug::WatchGoesOn,
            SPARE_AWAY,
            &[
                LeftBehind,
                Leaked,
                DestroysItself,
                UsedAfterFree,
                NotCommitted,
                WriteBesidePreresume,
            ],
        ),
        (
            Bug::LazyLooksOnce,
            SPARE_AWAY,
            &[NotCommitted, WriteBesidePreresume],
        ),
        (
            Bug::BackgroundLooksOnce,
            WORKING,
            &[NotCommitted, WriteBesidePreresume],
        ),
        (Bug::WatchLoops, AWAY_FOR_EVER, &[Livelock]),
        (Bug::LockOrder, INTERRUPTED, &[Deadlock]),
        (Bug::EachWaits, FULL, &[Deadlock]),
        (Bug::RoomWaits, FULL, &[Deadlock]),
        (
            Bug::NotSuspendedAtFirst,
            NOT_RESUMED,
            &[WriteBesidePreresume],
        ),
        (Bug::NoFlagInDtr, REMOVED, &TIMER_LEFT),
        (Bug::NoCancelInDtr, REMOVED, &TIMER_LEFT),
        (Bug::EarlyCancelInDtr, REMOVED, &TIMER_LEFT),
        (Bug::EarlyDrainInDtr, REMOVED, &[Leaked]),
        (
            Bug::NoDrainInDtr,
            REMOVED,
            &[LeftBehind, DestroysItself, UsedAfterFree],
        ),
    ];
    for (bug, scenario, kinds) in all {
        let workers = match bug {
            // With another one, somebody would serve the bios.
            Bug::WatchLoops => 1,
            _ => 2,
        };
        let scenario = Scenario {
            workers,
            ..scenario
        };
        let found: BTreeSet<Kind> = explore(scenario, bug).found.into_keys().collect();
        assert_eq!(found, kinds.iter().copied().collect(), "{bug:?}");
    }
}
