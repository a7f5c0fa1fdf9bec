// SPDX-License-Identifier: GPL-2.0

//! A model of who waits for whom (`docs/lifecycle.md`): all states that the target's threads, works and locks can
//! come to beside device-mapper's suspend, resume, reload and remove, one step at a time, each found once.
//!
//! In every state that is found:
//!
//! - What has begun can end, although nobody begins anything new: suspend, resume, reload and remove come to their
//!   end, and so do the bios. If not, it is a deadlock, or, if steps go on for ever, a livelock.
//! - `presuspend` has a step of its own. Nobody may count on an answer of a device as long as it runs.
//! - When `dtr` returns, no work is queued or runs; no work drops the last reference, which would destroy the queue
//!   that it runs on.
//! - When `postsuspend` has returned, the works have no commit on its way, and no pending entry is left to be
//!   committed. When another table's `preresume` reads the spare, no commit at all is on its way.
//!
//! Each [`Bug`] breaks one step, and must be found as what it is. The first three are the deadlocks of the earlier
//! implementation, as in `tests/mutations/deadlock-*.patch`.
//!
//! What stands for what:
//!
//! - Two units: A with the failing read and its pending entry, and a write that `map` defers; B with a write that main
//!   does not take, the background's relocation, and the message's. One read in a slot, which `restore` waits for.
//! - The queue: a work is queued or not, beside that it runs or not; as many run as there are workers. Any of
//!   those queued may begin, whatever their order.
//! - A commit: the list of requests, `disk`, one I/O for all that wait, as in `Store::commit`.
//! - A device: an answer, at any time. Several I/Os in a row are one.
//! - SRCU, of device-mapper's tables: who was in a section when the wait began.
//!
//! Not covered: memory and its order, errors of the spare, locks that are held for a moment only, `check` and `mark`,
//! lists of more than one unit, `lock_fs` that fails.

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
    /// `dtr` does not drain.
    NoDrain,
    /// A message goes on when suspending begins.
    MessageGoesOn,
    /// The background goes on, and there is always more to do.
    BackgroundGoesOn,
    /// The watch goes on.
    WatchGoesOn,
    /// The background takes the unit's lock, then `mover`.
    LockOrder,
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
    /// `dtr` returned with a work queued or running.
    LeftBehind,
    /// A work dropped the last reference.
    DestroysItself,
    /// A bio's work ran when the target was gone.
    UsedAfterFree,
    /// Suspended, with something to commit.
    NotCommitted,
    /// The new table read the spare while the old one wrote it.
    CommitBesidePreresume,
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
/// The bio that needs no work; the others have their works' numbers.
const HEALTHY: usize = 3;

// Locks.
const DISK: u8 = 1;
const MOVER: u8 = 2;
const PROBE: u8 = 4;
const UNIT_A: u8 = 8;
const UNIT_B: u8 = 16;
const REQUESTS: u8 = 32;

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
    QueueLazy,
    QueueBackground,
    Commit,
    Complete,
    Tail,
    QueueWatch,
    Sections,
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
    bios: [Bio; 4],
    /// One bit for each work.
    queued: u8,
    locks: u8,
    /// Those that a flush waits for: running, queued.
    flush: [u8; 2],
    suspends_left: u8,
    messages_left: u8,
    /// On the list, to be committed.
    lazy: bool,
    marginal: bool,
    tripped: bool,
    suspending: bool,
    /// New bios wait for resume.
    blocked: bool,
    lockfs: bool,
    deleting: bool,
    /// Device-mapper gave up its reference.
    released: bool,
    /// Device-mapper waits for the message.
    awaited: bool,
    /// The message began with this.
    was_suspending: bool,
    /// It has no more to do.
    last: bool,
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

    fn all_written(mut self) -> Self {
        let written = (self.requests.iter_mut()).filter(|r| **r == Request::WrittenByOther);
        written.for_each(|r| *r = Request::Done);
        self.free(DISK)
    }

    fn queue(mut self, work: usize) -> Self {
        self.queued |= 1 << work;
        self
    }

    fn cancel(mut self, work: usize) -> Self {
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

    fn bios_are_complete(&self) -> bool {
        (self.bios.iter()).all(|bio| matches!(bio, Bio::None | Bio::Done))
    }

    /// Some of the works has, or will have, a reference to the target.
    fn has_references(&self) -> bool {
        (LAZY..=WATCH).any(|work| self.is_queued(work) || self.at[work] != Idle)
    }

    /// An entry that is not on the spare yet, or a work's commit that is on its way.
    fn has_uncommitted(&self) -> bool {
        let is_committing = |r: &Request| *r != Request::None;
        self.lazy || self.at[LAZY] == Unit || self.requests[..WORKS].iter().any(is_committing)
    }

    /// Nothing that began has to end.
    fn is_at_rest(&self) -> bool {
        matches!(self.at[CORE], Active | Suspended | Gone) && self.bios_are_complete()
    }

    /// The unit's lock that `thread` takes.
    fn unit_of(thread: usize) -> u8 {
        match thread {
            WRITE | BACKGROUND | MESSAGE => UNIT_B,
            _ => UNIT_A,
        }
    }
}

/// What there is, and what may happen.
#[derive(Clone, Copy, Debug)]
struct Scenario {
    workers: u32,
    bios: &'static [usize],
    /// Pending, and the work queued.
    lazy: bool,
    marginal: bool,
    tripped: bool,
    /// Main may stop to answer; once it did, it may answer again, or never.
    trips: bool,
    stays_away: bool,
    messages: u8,
    suspends: u8,
    interrupts: bool,
}

const NOTHING: Scenario = Scenario {
    workers: 1,
    bios: &[],
    lazy: false,
    marginal: false,
    tripped: false,
    trips: false,
    stays_away: false,
    messages: 0,
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
                let mut next = s.cancel(work).to(work, Begin);
                next.flush[0] |= s.flush[1] & (1 << work);
                self.will(next);
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
        if matches!(s.at[CORE], Suspended | Holders) && s.has_uncommitted() {
            self.find(Kind::NotCommitted);
        }
        if s.at[CORE] == Preresume && s.requests.contains(&Request::Writing) {
            self.find(Kind::CommitBesidePreresume);
        }
        if s.released && s.running() & 0b111 != 0 {
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
        }
        for bio in [READ, WRITE, HEALTHY] {
            if s.bios[bio] == Bio::InFlight {
                self.answer(if bio == HEALTHY || s.tripped {
                    s.with_bio(bio, Bio::Done)
                } else {
                    s.defer(bio)
                });
            }
        }
    }

    /// A work that runs.
    fn work(&mut self, s: State, work: usize) {
        let (bug, scenario) = (self.bug, self.scenario);
        let is_put_off = match bug {
            Bug::RecoveryPutOff => s.suspending && work < LAZY,
            _ => false,
        };
        let puts_itself_off = matches!(bug, Bug::LazyPutsItselfOff | Bug::PresuspendDrains);
        match (work, s.at[work]) {
            (_, Begin) if is_put_off => (),
            (READ, Begin) => {
                self.answer(s.to(work, Unit));
                if scenario.marginal {
                    let then = if s.suspending {
                        Complete
                    } else {
                        QueueBackground
                    };
                    let next = State {
                        marginal: true,
                        ..s
                    };
                    self.answer(next.to(work, then));
                }
            }
            (READ, Unit) => self.lock(s, UNIT_A, work, Note),
            (READ, Note) => {
                let next = State { lazy: true, ..s };
                self.will(match s.suspending {
                    true => next.free(UNIT_A).to(work, Complete),
                    false => next.to(work, QueueLazy),
                });
            }
            (READ, QueueLazy) => self.will(s.queue(LAZY).free(UNIT_A).to(work, Complete)),
            (READ, QueueBackground) => self.will(s.queue(BACKGROUND).to(work, Complete)),
            (WRITE | DEFERRED, Begin) => self.lock(s, State::unit_of(work), work, Transfer),
            (WRITE, Transfer) if scenario.trips => self.answer(s.to(work, Probe)),
            (_, Probe) => self.lock(s, PROBE, work, Probing),
            (WRITE, Probing) => {
                let next = State { tripped: true, ..s };
                self.answer(next.free(PROBE | UNIT_B).to(work, Complete));
                if !scenario.stays_away {
                    self.answer(self.request(s.free(PROBE), work));
                }
            }
            (WRITE | DEFERRED | BACKGROUND, Transfer) => self.answer(self.request(s, work)),
            (_, Complete) => self.will(s.with_bio(work, Bio::Done).to(work, Tail)),
            (_, Tail) if s.tripped && !s.suspending => self.will(s.to(work, QueueWatch)),
            (_, Tail) => self.end(s, work),
            (_, QueueWatch) => self.end(s.queue(WATCH), work),
            (LAZY, Begin) if puts_itself_off && s.suspending => self.end(s.queue(LAZY), work),
            (LAZY, Begin) if s.lazy => self.will(State { lazy: false, ..s }.to(work, Unit)),
            (LAZY, Unit) => {
                let next = self.request(s.take(UNIT_A), work);
                self.will_if(s.locks & UNIT_A == 0, next);
            }
            (BACKGROUND, Begin) if bug == Bug::BackgroundGoesOn => self.will(s.to(work, Mover)),
            (BACKGROUND, Begin) if s.marginal && !s.suspending => self.will(s.to(work, Mover)),
            (BACKGROUND, Mover) if bug == Bug::LockOrder => self.lock(s, UNIT_B, work, Unit),
            (BACKGROUND, Unit) if bug == Bug::LockOrder => self.lock(s, MOVER, work, Transfer),
            (BACKGROUND, Mover) => self.lock(s, MOVER, work, Unit),
            (BACKGROUND, Unit) => self.lock(s, UNIT_B, work, Transfer),
            (WATCH, Begin) if s.tripped && (!s.suspending || bug == Bug::WatchGoesOn) => {
                self.will(s.to(work, Probe));
            }
            (WATCH, Probing) => {
                let next = s.free(PROBE).to(work, Begin);
                self.answer(next);
                if !scenario.stays_away {
                    self.answer(State {
                        tripped: false,
                        ..next
                    });
                }
            }
            (COMMITTER, Begin) => {
                let next = s.write_all().to(work, Transfer);
                self.will_if(s.locks & DISK == 0, next);
            }
            (COMMITTER, Transfer) => self.end(s.all_written(), work),
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

    fn request(&self, mut s: State, thread: usize) -> State {
        s.requests[thread] = Request::Waiting;
        match self.bug {
            Bug::CommitsByWork => s.queue(COMMITTER).to(thread, Commit),
            _ => s.to(thread, Commit),
        }
    }

    /// `Store::commit`.
    fn commit(&mut self, s: State, thread: usize) {
        let list_is_free = s.locks & REQUESTS == 0;
        let both_are_free = list_is_free && s.locks & DISK == 0;
        match s.requests[thread] {
            Request::Waiting if both_are_free && self.bug != Bug::CommitsByWork => {
                let mut next = s.write_all();
                next.requests[thread] = Request::Writing;
                self.will(next);
            }
            Request::Writing if list_is_free => {
                let next = self.committed(s.all_written(), thread);
                self.answer(next);
            }
            Request::Done if both_are_free => {
                let next = self.committed(s, thread);
                self.will(next);
            }
            _ => (),
        }
    }

    /// What `thread` does behind its commit, up to where it may wait.
    fn committed(&self, mut s: State, thread: usize) -> State {
        s.requests[thread] = Request::None;
        let s = s.free(State::unit_of(thread));
        match thread {
            WRITE | DEFERRED => s.to(thread, Complete),
            LAZY => s.to(thread, Begin),
            BACKGROUND => State {
                marginal: false,
                ..s
            }
            .free(MOVER)
            .to(thread, Begin),
            MESSAGE => State { last: true, ..s }.free(MOVER).to(thread, Sections),
            _ => s.to(thread, Sync),
        }
    }

    /// A message that changes unit after unit and takes long.
    fn message(&mut self, s: State) {
        let ended = State {
            awaited: false,
            was_suspending: false,
            last: false,
            ..s
        };
        let is_interrupted = s.suspending && !s.was_suspending && self.bug != Bug::MessageGoesOn;
        // If it began with the device suspended, all that ends it is that it has no more to do.
        let has_no_more = s.last && s.was_suspending;
        let is_live = s.at[CORE] < Swap && !s.deleting;
        match s.at[MESSAGE] {
            Idle if s.messages_left > 0 && is_live => {
                let messages_left = s.messages_left - 1;
                let was_suspending = s.suspending;
                self.may(
                    State {
                        messages_left,
                        was_suspending,
                        ..s
                    }
                    .to(MESSAGE, Begin),
                );
            }
            Begin if is_interrupted || has_no_more => self.will(ended.to(MESSAGE, Idle)),
            Begin => {
                self.may(ended.to(MESSAGE, Idle));
                self.will(State { last: false, ..s }.to(MESSAGE, Mover));
            }
            Mover => self.lock(s, MOVER, MESSAGE, Unit),
            Unit => self.lock(s, UNIT_B, MESSAGE, Transfer),
            Transfer => self.answer(self.request(s, MESSAGE)),
            Sections => self.will_if(s.bios[HEALTHY] != Bio::InFlight, s.to(MESSAGE, Begin)),
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
            Wait => self.will_if(s.locks & DISK == 0, to(CancelLazy).free(REQUESTS)),
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
            Flush => {
                let flush = [s.running(), s.queued];
                self.will(State { flush, ..s }.to(CORE, Flushing));
            }
            Flushing => self.will_if(s.flush == [0; 2], to(Sync)),
            Sync if s.lazy && bug != Bug::NoSync => {
                self.will(State { lazy: false, ..s }.to(CORE, Unit));
            }
            Sync => self.will(to(suspended)),
            Unit => {
                let next = self.request(s.take(UNIT_A), CORE);
                self.will_if(s.locks & UNIT_A == 0, next);
            }
            Suspended => {
                self.may(to(Resume));
                self.may(awaits.to(CORE, Swap));
                self.may(removed.to(CORE, Holders));
            }
            Resume => self.will(
                State {
                    suspending: false,
                    ..s
                }
                .to(CORE, Requeue),
            ),
            Requeue => {
                let works = [(LAZY, s.lazy), (BACKGROUND, s.marginal), (WATCH, s.tripped)];
                let wanted = works.iter().filter(|(_, wanted)| *wanted);
                let next = wanted.fold(to(Active), |next, (work, _)| next.queue(*work));
                self.will(State {
                    blocked: false,
                    ..next
                });
            }
            Swap => self.will_if(!s.awaited, to(Preresume)),
            // The new table's: it reads the spare.
            Preresume => self.answer(to(Dtr)),
            Holders => self.will_if(s.at[MESSAGE] == Idle, to(Dtr)),
            Dtr if tears_nothing_down || bug == Bug::NoDrain => self.release(s),
            Dtr if s.is_idle() => self.release(s),
            _ => (),
        }
    }

    /// `dtr` has returned.
    fn release(&mut self, s: State) {
        if !s.is_idle() {
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
    let works = [
        (LAZY, scenario.lazy),
        (BACKGROUND, scenario.marginal),
        (WATCH, scenario.tripped),
    ];
    let queued = works
        .iter()
        .filter(|(_, wanted)| *wanted)
        .map(|(work, _)| 1 << work)
        .sum();
    let first = State {
        queued,
        suspends_left: scenario.suspends,
        messages_left: scenario.messages,
        lazy: scenario.lazy,
        marginal: scenario.marginal,
        tripped: scenario.tripped,
        ..State::default()
    };
    search.number(first.to(CORE, Active));
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

/// Each adds something that goes on when the device is suspended, resumed, reloaded or removed.
const SCENARIOS: [Scenario; 6] = [
    // A read that leaves a pending entry, and a file system's write while it is frozen.
    Scenario {
        bios: &[READ, DEFERRED],
        lazy: true,
        suspends: 2,
        ..NOTHING
    },
    // The lazy sync, the background and two recoveries.
    Scenario {
        bios: &[READ, WRITE],
        lazy: true,
        marginal: true,
        ..NOTHING
    },
    // A message.
    Scenario {
        bios: &[WRITE, DEFERRED],
        lazy: true,
        messages: 1,
        ..NOTHING
    },
    // Messages of which one may begin while suspending, and a suspend that is interrupted.
    Scenario {
        bios: &[WRITE, HEALTHY],
        marginal: true,
        messages: 2,
        interrupts: true,
        ..NOTHING
    },
    // Main that does not answer, and comes back, or not.
    Scenario {
        bios: &[READ, WRITE],
        tripped: true,
        trips: true,
        suspends: 2,
        ..NOTHING
    },
    Scenario {
        bios: &[READ, WRITE],
        tripped: true,
        trips: true,
        stays_away: true,
        ..NOTHING
    },
];

#[test]
fn whatever_has_begun_ends() {
    for scenario in SCENARIOS {
        for workers in 1..=3 {
            let scenario = Scenario {
                workers,
                ..scenario
            };
            let states = check(scenario, Bug::None).expect("nothing is wrong");
            assert!(states > 100, "{states} states of {scenario:?}");
        }
    }
}

#[test]
fn every_bug_is_found() {
    use Kind::*;
    let all: [(Bug, &[Kind]); 15] = [
        (
            Bug::TeardownWaitsForNothing,
            &[
                LeftBehind,
                DestroysItself,
                UsedAfterFree,
                NotCommitted,
                CommitBesidePreresume,
            ],
        ),
        (Bug::PresuspendWaitsForCommit, &[Deadlock, PresuspendWaits]),
        (
            Bug::PresuspendDrains,
            &[Deadlock, Livelock, PresuspendWaits],
        ),
        (Bug::LazyPutsItselfOff, &[Livelock]),
        (Bug::CancelSync, &[Deadlock, PresuspendWaits]),
        (Bug::BiosCancelled, &[Deadlock, Livelock]),
        (Bug::RecoveryPutOff, &[Deadlock]),
        (Bug::CommitsByWork, &[Deadlock]),
        (Bug::NoFlush, &[NotCommitted, CommitBesidePreresume]),
        (Bug::NoSync, &[NotCommitted]),
        (Bug::NoDrain, &[LeftBehind, DestroysItself]),
        (Bug::MessageGoesOn, &[Livelock]),
        (Bug::BackgroundGoesOn, &[Livelock]),
        (Bug::WatchGoesOn, &[Livelock]),
        (Bug::LockOrder, &[Deadlock]),
    ];
    for (bug, kinds) in all {
        let workers = 2;
        let search = |scenario| {
            explore(
                Scenario {
                    workers,
                    ..scenario
                },
                bug,
            )
            .found
            .into_keys()
        };
        let found: BTreeSet<Kind> = SCENARIOS.into_iter().flat_map(search).collect();
        assert_eq!(found, kinds.iter().copied().collect(), "{bug:?}");
    }
}
