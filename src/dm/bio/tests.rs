// SPDX-License-Identifier: GPL-2.0

//! Bios as device-mapper makes them, with hand-made bookkeeping in front (`struct dm_target_io` in
//! `drivers/md/dm-core.h`), since a mapped device cannot be made from inside the kernel; and a target without a table.

use super::super::{
    bindings,
    callbacks::TypeObject,
    context::NoIo,
    info::Args,
    instance::{Instance, Setup},
    limits::Limits,
    status::BlkStatus,
    target::{Refused, Target},
    text::TextWriter,
    work::{TargetWork, Work},
};
use super::{raw::PerBio, *};
use core::{mem::offset_of, ptr::NonNull};
use kernel::{
    bindings::{bio, bio_init, bio_uninit},
    prelude::*,
    sync::{
        atomic::{Atomic, Full, Relaxed},
        Arc, Completion,
    },
    time::{delay::fsleep, Delta},
};

/// What the target saw, of the last bio where not said otherwise. It outlives the target.
#[pin_data]
struct Seen {
    sector: Atomic<u64>,
    sectors: Atomic<u32>,
    status: Atomic<u32>,
    private: Atomic<u32>,
    /// Times that bios were processed, and that `end_io` was called.
    processed: Atomic<u32>,
    ended: Atomic<u32>,
    /// Runs of the work, and how often it still queues itself again when it runs.
    runs: Atomic<u32>,
    again: Atomic<u32>,
    #[pin]
    began: Completion,
    #[pin]
    leave: Completion,
    /// Calls that use the target's data, and how many there were when these were dropped.
    inside: Atomic<u32>,
    dropped: Atomic<u32>,
}

const NOT_DROPPED: u32 = 99;

impl Seen {
    fn new() -> Result<Arc<Self>> {
        let seen = try_pin_init!(Self {
            sector: Atomic::new(0),
            sectors: Atomic::new(0),
            status: Atomic::new(0),
            private: Atomic::new(0),
            processed: Atomic::new(0),
            ended: Atomic::new(0),
            runs: Atomic::new(0),
            again: Atomic::new(0),
            began <- Completion::new(),
            leave <- Completion::new(),
            inside: Atomic::new(0),
            dropped: Atomic::new(NOT_DROPPED),
        }? Error);
        Arc::pin_init(seen, GFP_KERNEL)
    }
}

struct Recorder;

struct Recording<'t> {
    seen: Arc<Seen>,
    work: Work<'t>,
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        let inside = self.seen.inside.load(Relaxed);
        self.seen.dropped.store(inside, Relaxed);
        // Nothing begins any more.
        assert!(!self.work.queue() && !self.work.queue_delayed(1));
    }
}

struct Counting;

impl TargetWork<Recorder> for Counting {
    fn run(data: &Recording<'_>) {
        let seen = &data.seen;
        seen.inside.fetch_add(1, Full);
        seen.began.complete_all();
        seen.leave.wait_for_completion();
        seen.runs.fetch_add(1, Full);
        if seen.again.load(Relaxed) > 0 {
            seen.again.fetch_sub(1, Full);
            data.work.queue();
        }
        seen.inside.fetch_sub(1, Full);
    }
}

#[vtable]
impl Target for Recorder {
    type Data<'t> = Recording<'t>;
    type PerBio = u32;
    type RegistrationData = u32;
    const NAME: &'static CStr = c"recorder";
    const VERSION: [u32; 3] = [0, 0, 0];

    fn ctr<'t>(
        setup: &mut Setup<'t, Self>,
        args: &Args,
    ) -> Result<impl PinInit<Recording<'t>, Error>, Refused> {
        let words = args.words()?;
        if words.as_slice() != [b"one".as_slice(), b"two"]
            || args.get(1) != Some(c"two")
            || args.get(2).is_some()
        {
            return Err(Refused(c"Not one, two", ENODEV));
        }
        setup.set_num_flush_bios(2);
        setup.set_num_discard_bios(1);
        setup.set_discards_supported();
        setup.set_num_write_zeroes_bios(2);
        let work = setup.work::<Counting>()?;
        // Not before there are data.
        assert!(!work.queue());
        let seen = Seen::new()?;
        seen.sector.store(setup.info().begin(), Relaxed);
        seen.sectors.store(setup.info().sectors() as u32, Relaxed);
        seen.private.store(*setup.registration_data(), Relaxed);
        Ok(Ok(Recording { seen, work }))
    }

    fn map<'a>(_: &Recording<'_>, bio: MapBio<'a, Self>) -> Mapped<'a> {
        bio.complete(BlkStatus::IOERR)
    }

    fn is_settled(_: &Recording<'_>, cookie: Cookie<'_, Self>) -> bool {
        cookie.get() == SETTLED
    }

    fn end_io<'a>(data: &Recording<'_>, bio: EndBio<'a, Self>) -> Ended<'a> {
        data.seen.ended.fetch_add(1, Full);
        bio.pass_on()
    }

    fn process(data: &Recording<'_>, bio: DeferredBio<'_, Self>) {
        let seen = &data.seen;
        seen.inside.fetch_add(1, Full);
        seen.sector.store(bio.sector(), Relaxed);
        seen.sectors.store(bio.sectors(), Relaxed);
        seen.status.store(bio.status().0.into(), Relaxed);
        seen.processed.fetch_add(1, Full);
        if bio.sectors() == 8 {
            bio.complete(BlkStatus::MEDIUM);
            seen.leave.wait_for_completion();
        }
        // Else it is dropped.
        seen.inside.fetch_sub(1, Full);
    }

    fn message(_: &Recording<'_>, args: &Args, out: &mut TextWriter<'_>) -> Result {
        let is_nested = NoIo::enter().is_nested();
        let word = args.get(0).map_or(&b""[..], CStr::to_bytes);
        write!(out, "{} {is_nested}", word.len());
        Ok(())
    }
}

const MAGIC: u16 = 28714;
const BEGIN: u64 = 100;
const DELTA: u64 = 5000;
const SETTLED: usize = 7;

/// A clone's bookkeeping, the part of it that the wrappers' C functions look at.
#[repr(C)]
struct Clone {
    per_bio: core::mem::MaybeUninit<PerBio<Recorder>>,
    magic: u16,
    flags: u16,
    number: u32,
    io: usize,
    ti: usize,
    len_ptr: usize,
    old_sector: u64,
    bio: bio,
    completions: u32,
}

/// # Safety
///
/// `done` must be the bio of a [`Clone`].
unsafe extern "C" fn completed(done: *mut bio) {
    // SAFETY: By the requirement.
    let clone = unsafe { done.byte_sub(offset_of!(Clone, bio)) }.cast::<Clone>();
    // SAFETY: By the requirement.
    unsafe { (*clone).completions += 1 };
}

type Unmade = (Pin<KBox<TypeObject<Recorder>>>, KBox<bindings::dm_target>);

/// A target before its constructor.
fn target() -> Result<Unmade> {
    let object = KBox::pin_init(TypeObject::new(core::ptr::null_mut(), Ok(33)), GFP_KERNEL)?;
    // SAFETY: Integers, pointers and bits, all of which may be zero.
    let ti: bindings::dm_target = unsafe { core::mem::zeroed() };
    let mut ti = KBox::new(ti, GFP_KERNEL)?;
    ti.begin = BEGIN;
    ti.len = 77;
    ti.type_ = object.as_ptr();
    Ok((object, ti))
}

/// Calls the constructor with these words.
fn construct(ti: &mut bindings::dm_target, words: &[&'static CStr]) -> Result<c_int> {
    let mut argv = KVec::new();
    for word in words {
        argv.push(word.as_char_ptr().cast_mut(), GFP_KERNEL)?;
    }
    // SAFETY: A target type.
    let ctr = unsafe { (*ti.type_).ctr }.ok_or(EINVAL)?;
    // SAFETY: A target to be made, and so many words.
    Ok(unsafe { ctr(ti, argv.len() as c_uint, argv.as_mut_ptr()) })
}

/// A target and a clone on its way through it.
struct Fixture {
    seen: Arc<Seen>,
    ti: KBox<bindings::dm_target>,
    _object: Pin<KBox<TypeObject<Recorder>>>,
    clone: KBox<Clone>,
    is_gone: bool,
}

impl Fixture {
    fn new(opf: u32, sectors: u32) -> Result<Self> {
        let (object, mut ti) = target()?;
        assert_eq!(construct(&mut ti, &[c"one", c"two"])?, 0);
        // SAFETY: The constructor succeeded, and nobody else uses the target.
        unsafe { (*ti.private.cast::<Instance<Recorder>>()).set_linear_delta(DELTA) };
        // SAFETY: As before.
        let seen = unsafe { Instance::<Recorder>::of(&mut *ti) }
            .data()
            .seen
            .clone();
        let clone = Clone {
            per_bio: core::mem::MaybeUninit::zeroed(),
            magic: MAGIC,
            flags: 0,
            number: 3,
            io: 0,
            ti: 0,
            len_ptr: 0,
            old_sector: 0,
            bio: pin_init::zeroed(),
            completions: 0,
        };
        let mut clone = KBox::new(clone, GFP_KERNEL)?;
        let none = core::ptr::null_mut();
        // SAFETY: A place for a bio, which has no vectors.
        unsafe { bio_init(&mut clone.bio, none, core::ptr::null_mut(), 0, opf) };
        clone.bio.bi_iter.bi_sector = BEGIN + 40;
        clone.bio.bi_iter.bi_size = sectors << 9;
        clone.bio.bi_end_io = Some(completed);
        Ok(Self {
            seen,
            ti,
            _object: object,
            clone,
            is_gone: false,
        })
    }

    fn instance<'a>(&mut self) -> &'a Instance<Recorder> {
        // SAFETY: The constructor succeeded; no test uses it after the fixture.
        unsafe { Instance::of(&mut *self.ti) }
    }

    fn raw(&mut self) -> Raw<Recorder> {
        // SAFETY: Such a clone, and tests do one thing at a time.
        unsafe { Raw::new(NonNull::from(&mut self.clone.bio)) }
    }

    fn map_bio(&mut self) -> MapBio<'_, Recorder> {
        MapBio::new(self.instance(), self.raw())
    }

    /// As `remap_linear` sends the bio down, but to no device.
    fn send(&mut self, cookie: usize) {
        self.clone.bio.bi_iter.bi_sector += DELTA;
        self.raw().record();
        self.raw().set_cookie(cookie);
    }

    /// As `remap_with` does.
    fn send_with(&mut self, cookie: usize, private: u32) {
        self.raw().place().record_with(DELTA, private);
        self.clone.bio.bi_iter.bi_sector = 9;
        self.raw().set_cookie(cookie);
    }

    /// As a lower device leaves a bio that it has been through.
    fn used_up(&mut self) {
        let iter = &mut self.clone.bio.bi_iter;
        iter.bi_sector += u64::from(iter.bi_size >> 9);
        iter.bi_size = 0;
        iter.bi_idx = 1;
    }

    fn end_bio(&mut self, status: BlkStatus) -> EndBio<'_, Recorder> {
        // SAFETY: Tests have sent it.
        let recorded = unsafe { Recorded::new(self.raw()) };
        EndBio::new(self.instance(), recorded, status)
    }

    fn end_io(&mut self, mut status: BlkStatus) -> Result<c_int> {
        // SAFETY: A target type.
        let end_io = unsafe { (*self.ti.type_).end_io }.ok_or(EINVAL)?;
        // SAFETY: A clone that was sent, its target and its status.
        Ok(unsafe { end_io(&mut *self.ti, &mut self.clone.bio, &mut status.0) })
    }

    fn drain(&mut self) {
        self.seen.leave.complete_all();
        if let Some(queue) = self.instance().queue() {
            queue.drain();
        }
    }

    fn work(&mut self) -> Work<'_> {
        self.instance().data().work
    }
}

impl Fixture {
    /// The target goes away.
    fn destroy(&mut self) {
        if !core::mem::replace(&mut self.is_gone, true) {
            // SAFETY: Initialised by `new`.
            unsafe { bio_uninit(&mut self.clone.bio) };
            // SAFETY: The constructor succeeded, and nothing else will be called.
            unsafe { Instance::<Recorder>::destroy(&mut *self.ti) };
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.seen.leave.complete_all();
        self.destroy();
        // Whatever went on, it had ended.
        assert_eq!(self.seen.dropped.load(Relaxed), 0);
    }
}

const WRITE: u32 = kernel::bindings::req_op_REQ_OP_WRITE;

/// Bios, one step at a time.
#[kunit_tests(dm_remap_bio)]
mod bios {
    use super::*;

    #[test]
    fn a_constructor_is_refused_or_makes_what_messages_use_and_the_destructor_drops() -> Result {
        let (object, mut ti) = target()?;
        assert_eq!(construct(&mut ti, &[c"one"])?, ENODEV.to_errno());
        // SAFETY: The constructor failed, so this is its sentence.
        assert!(unsafe { CStr::from_char_ptr(ti.error) } == c"Not one, two");
        assert!(ti.private.is_null());
        assert_eq!(construct(&mut ti, &[c"one", c"two"])?, 0);
        assert_eq!((ti.num_flush_bios, ti.num_discard_bios), (2, 1));
        assert!(ti.num_write_zeroes_bios == 2 && ti.discards_supported());
        assert!(!ti.flush_bypasses_map());
        assert_eq!(ti.per_io_data_size as usize, per_bio_size::<Recorder>());
        // SAFETY: The constructor succeeded.
        let seen = unsafe { Instance::<Recorder>::of(&mut *ti) }
            .data()
            .seen
            .clone();
        assert_eq!(seen.sector.load(Relaxed), BEGIN);
        assert_eq!(
            (seen.sectors.load(Relaxed), seen.private.load(Relaxed)),
            (77, 33)
        );
        // A message's result goes where its words are.
        let mut buffer = *b"three\0..............";
        let mut words = [buffer.as_mut_ptr()];
        // SAFETY: A target type.
        let (message, dtr) = unsafe { ((*object.as_ptr()).message, (*object.as_ptr()).dtr) };
        let (message, dtr) = (message.ok_or(EINVAL)?, dtr.ok_or(EINVAL)?);
        let (result, room) = (buffer.as_mut_ptr(), buffer.len() as c_uint);
        // SAFETY: The constructor succeeded; one word, and room for the result.
        let done = unsafe { message(&mut *ti, 1, words.as_mut_ptr(), result, room) };
        assert!(done == 1 && buffer.starts_with(b"5 true\0"));
        // If it forgot the data, kmemleak would find it.
        // SAFETY: The constructor succeeded, and nothing else will be called.
        unsafe { dtr(&mut *ti) };
        assert_eq!(seen.dropped.load(Relaxed), 0);
        Ok(())
    }

    #[test]
    fn a_target_has_the_callbacks_that_it_implements_and_no_polling() -> Result {
        let (object, _ti) = target()?;
        // SAFETY: A target type.
        let made = unsafe { &*object.as_ptr() };
        assert!(made.map.is_some() && made.end_io.is_some() && made.message.is_some());
        assert!(made.presuspend.is_none() && made.preresume.is_none() && made.resume.is_none());
        assert!(made.iterate_devices.is_none() && made.presuspend_undo.is_none());
        assert!(made.postsuspend.is_none() && made.features == 0);
        let io_hints = made.io_hints.ok_or(EINVAL)?;
        let mut limits: kernel::bindings::queue_limits = pin_init::zeroed();
        limits.features = !0;
        // SAFETY: It looks at the limits only.
        unsafe { io_hints(core::ptr::null_mut(), &mut limits) };
        assert_eq!(limits.features, !bindings::BLK_FEAT_POLL);
        Ok(())
    }

    #[test]
    fn write_zeroes_limits_are_the_same_number_or_none() {
        let mut raw: kernel::bindings::queue_limits = pin_init::zeroed();
        raw.max_hw_wzeroes_unmap_sectors = 64;
        Limits(&mut raw).set_max_write_zeroes_sectors(8);
        assert_eq!(
            (
                raw.max_write_zeroes_sectors,
                raw.max_hw_wzeroes_unmap_sectors
            ),
            (8, 0)
        );
    }

    #[test]
    fn end_io_asks_the_target_unless_the_bio_is_settled() -> Result {
        let ended = |cookie, status: BlkStatus| -> Result<u32> {
            let mut f = Fixture::new(WRITE, 8)?;
            f.send(cookie);
            assert!(f.end_io(status)? == bindings::DM_ENDIO_DONE as c_int);
            Ok(f.seen.ended.load(Relaxed))
        };
        assert_eq!(ended(SETTLED, BlkStatus::OK)?, 0);
        assert_eq!(ended(SETTLED + 1, BlkStatus::OK)?, 1);
        assert_eq!(ended(SETTLED, BlkStatus::IOERR)?, 1);
        // Through with it.
        assert_eq!(ended(usize::MAX, BlkStatus::IOERR)?, 0);
        Ok(())
    }

    #[test]
    fn per_bio_data_leads_back_to_its_bio() -> Result {
        let mut f = Fixture::new(WRITE, 8)?;
        let (bio, data) = (f.raw().ptr(), f.raw().per_bio());
        assert!(core::ptr::eq(data.cast(), &*f.clone));
        assert!(data.is_aligned());
        let size = per_bio_size::<Recorder>();
        // SAFETY: The data of a clone.
        let back = unsafe { bindings::dm_bio_from_per_bio_data(data.cast(), size) };
        assert!(core::ptr::eq(back, bio));
        Ok(())
    }

    #[test]
    fn a_bio_in_map_counts_from_the_targets_start() -> Result {
        let mut f = Fixture::new(WRITE | bindings::REQ_NOWAIT, 8)?;
        let bio = f.map_bio();
        assert!(bio.op() == Op::Write && bio.is_nowait());
        assert_eq!(
            (bio.sector(), bio.sectors(), bio.target_bio_nr()),
            (40, 8, 3)
        );
        let mut f = Fixture::new(WRITE | bindings::REQ_PREFLUSH, 0)?;
        assert!(f.map_bio().op() == Op::Flush);
        let mut f = Fixture::new(kernel::bindings::req_op_REQ_OP_DISCARD, 8)?;
        assert!(f.map_bio().op() == Op::Discard);
        Ok(())
    }

    #[test]
    fn what_must_not_be_cut_is_not() -> Result {
        let mut f = Fixture::new(WRITE, 8)?;
        let mut bio = f.map_bio();
        assert!(!bio.accept_partial(0) && !bio.accept_partial(9));
        assert!(bio.accept_partial(8));
        assert_eq!(bio.sectors(), 8);
        let mut f = Fixture::new(WRITE | bindings::REQ_ATOMIC, 8)?;
        assert!(!f.map_bio().accept_partial(4));
        let mut f = Fixture::new(WRITE | bindings::REQ_PREFLUSH, 0)?;
        assert!(!f.map_bio().accept_partial(1));
        // One of two.
        let mut f = Fixture::new(kernel::bindings::req_op_REQ_OP_WRITE_ZEROES, 8)?;
        assert!(!f.map_bio().accept_partial(4) && f.map_bio().accept_partial(8));
        Ok(())
    }

    #[test]
    fn a_failed_bio_comes_to_the_target_as_it_was_mapped() -> Result {
        for with in [false, true] {
            let mut f = Fixture::new(WRITE, 8)?;
            match with {
                false => f.send(0),
                true => f.send_with(0, 5),
            }
            f.used_up();
            assert!(f.end_bio(BlkStatus::IOERR).defer().0 == Outcome::Deferred);
            let (bio, instance) = (f.raw(), f.instance());
            bio.enqueue(instance, BlkStatus::IOERR);
            f.drain();
            assert_eq!(f.seen.processed.load(Relaxed), 1);
            let seen = (f.seen.sector.load(Relaxed), f.seen.sectors.load(Relaxed));
            assert_eq!(seen, (40, 8));
            assert_eq!(f.seen.status.load(Relaxed), u32::from(BlkStatus::IOERR.0));
            // The target completed it, once, and hears no more of it.
            assert_eq!(f.clone.completions, 1);
            assert_eq!(f.clone.bio.bi_status, BlkStatus::MEDIUM.0);
            assert!(f.raw().is_done());
        }
        Ok(())
    }

    #[test]
    fn a_bio_comes_back_with_what_was_kept_with_it() -> Result {
        let mut f = Fixture::new(WRITE | bindings::REQ_PREFLUSH, 8)?;
        f.send_with(6, 11);
        f.used_up();
        let bio = f.end_bio(BlkStatus::OK);
        assert_eq!((bio.sector(), bio.sectors(), bio.cookie()), (40, 8, 6));
        assert!(bio.op() == Op::Write && bio.op_is_write());
        assert!(bio.private() == Some(11));
        let _ = bio.pass_on();
        // Sent to a device without a cache.
        let mut f = Fixture::new(WRITE | bindings::REQ_PREFLUSH, 0)?;
        f.send(6);
        f.clone.bio.bi_opf &= !bindings::REQ_PREFLUSH;
        assert!(f.end_bio(BlkStatus::OK).op() == Op::Flush);
        // Sent again, without.
        let mut f = Fixture::new(WRITE, 8)?;
        f.send(6);
        assert!(f.end_bio(BlkStatus::OK).private().is_none());
        Ok(())
    }

    #[test]
    fn a_bio_deferred_by_map_has_no_error() -> Result {
        let mut f = Fixture::new(WRITE, 8)?;
        let mapped = f.map_bio().defer();
        assert!(mapped.0 == bindings::DM_MAPIO_SUBMITTED);
        f.drain();
        assert_eq!(f.seen.processed.load(Relaxed), 1);
        assert_eq!(
            (f.seen.status.load(Relaxed), f.seen.sector.load(Relaxed)),
            (0, 40)
        );
        Ok(())
    }

    #[test]
    fn a_dropped_bio_fails() -> Result {
        let mut f = Fixture::new(WRITE, 16)?;
        let _ = f.map_bio().defer();
        f.drain();
        assert_eq!(f.clone.completions, 1);
        assert_eq!(f.clone.bio.bi_status, BlkStatus::IOERR.0);
        Ok(())
    }

    #[test]
    fn an_error_that_is_passed_on_stays_the_lower_devices() -> Result {
        let mut f = Fixture::new(WRITE, 8)?;
        f.send(0);
        let bio = f.end_bio(BlkStatus::MEDIUM);
        assert!(bio.status() == BlkStatus::MEDIUM && bio.op() == Op::Write && !bio.is_readahead());
        assert!(bio.pass_on().0 == Outcome::Completed(BlkStatus::MEDIUM));
        assert!(
            f.end_bio(BlkStatus::MEDIUM).complete(BlkStatus::OK).0
                == Outcome::Completed(BlkStatus::OK)
        );
        assert_eq!(f.clone.completions, 0);
        Ok(())
    }

    #[test]
    fn data_used_after_a_bio_is_complete_are_there() -> Result {
        let mut f = Fixture::new(WRITE, 8)?;
        let _ = f.map_bio().defer();
        while f.seen.processed.load(Relaxed) == 0 {
            fsleep(Delta::from_millis(1));
        }
        let seen = f.seen.clone();
        kernel::workqueue::system_long().try_spawn(GFP_KERNEL, move || {
            fsleep(Delta::from_millis(20));
            assert_eq!(seen.dropped.load(Relaxed), NOT_DROPPED);
            seen.leave.complete_all();
        })?;
        // Waits.
        f.destroy();
        assert_eq!(f.seen.dropped.load(Relaxed), 0);
        Ok(())
    }
}

/// Works: idle, queued, running, and queueing themselves again, when they are queued, cancelled, and when the target goes away.
#[kunit_tests(dm_remap_work)]
mod works {
    use super::*;

    fn fixture() -> Result<Fixture> {
        Fixture::new(WRITE, 8)
    }

    #[test]
    fn a_work_runs_once_for_each_time_that_it_is_queued() -> Result {
        let mut f = fixture()?;
        f.seen.leave.complete_all();
        assert!(f.work().queue());
        f.drain();
        assert!(f.work().queue());
        f.drain();
        assert_eq!(f.seen.runs.load(Relaxed), 2);
        Ok(())
    }

    #[test]
    fn queued_while_it_runs_it_runs_again() -> Result {
        let mut f = fixture()?;
        assert!(f.work().queue());
        f.seen.began.wait_for_completion();
        assert!(f.work().queue() && !f.work().queue());
        f.drain();
        assert_eq!(f.seen.runs.load(Relaxed), 2);
        Ok(())
    }

    #[test]
    fn cancelling_takes_it_off_the_queue_and_waits_for_nothing() -> Result {
        let mut f = fixture()?;
        f.work().cancel();
        assert!(f.work().queue());
        f.seen.began.wait_for_completion();
        assert!(f.work().queue());
        f.work().cancel();
        // It runs still.
        assert_eq!(f.seen.runs.load(Relaxed), 0);
        f.drain();
        assert_eq!(f.seen.runs.load(Relaxed), 1);
        Ok(())
    }

    #[test]
    fn a_cancelled_timer_never_fires_and_can_be_started_again() -> Result {
        let mut f = fixture()?;
        assert!(f.work().queue_delayed(1_000_000) && !f.work().queue());
        f.work().cancel();
        assert!(f.work().queue_delayed(1));
        f.seen.leave.complete_all();
        f.seen.began.wait_for_completion();
        f.drain();
        assert_eq!(f.seen.runs.load(Relaxed), 1);
        Ok(())
    }

    #[test]
    fn a_target_that_goes_away_stops_its_timers() -> Result {
        let mut f = fixture()?;
        assert!(f.work().queue_delayed(1_000_000));
        let seen = f.seen.clone();
        f.destroy();
        assert_eq!(
            (seen.runs.load(Relaxed), seen.dropped.load(Relaxed)),
            (0, 0)
        );
        Ok(())
    }

    #[test]
    fn a_target_that_goes_away_waits_for_work_that_runs_and_lets_none_begin() -> Result {
        let mut f = fixture()?;
        f.seen.again.store(1_000_000, Relaxed);
        assert!(f.work().queue());
        f.seen.began.wait_for_completion();
        let seen = f.seen.clone();
        kernel::workqueue::system_long().try_spawn(GFP_KERNEL, move || {
            fsleep(Delta::from_millis(20));
            seen.leave.complete_all();
        })?;
        let seen = f.seen.clone();
        // Waits.
        f.destroy();
        let runs = seen.runs.load(Relaxed);
        fsleep(Delta::from_millis(20));
        assert_eq!(seen.runs.load(Relaxed), runs);
        Ok(())
    }
}
