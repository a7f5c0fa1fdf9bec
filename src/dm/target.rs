// SPDX-License-Identifier: GPL-2.0

//! Target types and targets.
//!
//! C: `struct target_type` and `struct dm_target` in `include/linux/device-mapper.h`.

use super::{
    bindings::{self, dm_target, target_type},
    bio::{self, EndBio, Ended, MapBio, Mapped, PER_BIO_SIZE},
    misc::{NoIo, NoSleep},
    DeferredBio, Device, Status, TextWriter, Version,
};
use core::{marker::PhantomData, ptr::NonNull};
use kernel::{
    error::{to_result, VTABLE_DEFAULT_ERROR},
    prelude::*,
    types::{ForeignOwnable, Opaque},
};

type Borrowed<'a, T> = <<T as Target>::Data as ForeignOwnable>::Borrowed<'a>;

/// A target of a table, from its constructor to its destructor.
///
/// # Invariants
///
/// Device-mapper initialised it and keeps it until the destructor has returned.
#[repr(transparent)]
pub(crate) struct TargetInfo(Opaque<dm_target>);

// SAFETY: What the methods read does not change after the constructor, and what they call may be
// called from any thread.
unsafe impl Sync for TargetInfo {}

impl TargetInfo {
    /// # Safety
    ///
    /// `ti` must be a target that device-mapper keeps for all of `'a`.
    pub(super) unsafe fn from_raw<'a>(ti: *mut dm_target) -> &'a Self {
        // SAFETY: Transparent, and valid by the requirement.
        unsafe { &*ti.cast::<Self>() }
    }

    #[inline(always)]
    pub(super) fn as_ptr(&self) -> *mut dm_target {
        self.0.get()
    }

    /// # Safety
    ///
    /// Must be called between the return of `T`'s constructor and the call of its destructor, on a
    /// target of type `T`.
    #[inline(always)]
    pub(super) unsafe fn data<T: Target>(&self) -> Borrowed<'_, T> {
        // SAFETY: The constructor's trampoline put the data there, the destructor's takes it back.
        unsafe { T::Data::borrow((*self.as_ptr()).private) }
    }

    /// The work function for deferred bios of the target's type.
    pub(super) fn work_function(&self) -> kernel::bindings::work_func_t {
        // SAFETY: The type is the `TypeObject` of the registration that the target was made from:
        // it is the first field there.
        unsafe { (*(*self.as_ptr()).type_.cast::<TypeObject>()).work }
    }

    /// Its first sector on the mapped device.
    #[inline(always)]
    pub(crate) fn begin(&self) -> u64 {
        // SAFETY: Valid by the invariant.
        unsafe { (*self.as_ptr()).begin }
    }

    /// Its length in sectors.
    pub(crate) fn len(&self) -> u64 {
        // SAFETY: Valid by the invariant.
        unsafe { (*self.as_ptr()).len }
    }

    /// Whether the table was loaded for writing.
    pub(crate) fn is_writable(&self) -> bool {
        // SAFETY: A target's table is valid as long as the target.
        let mode = unsafe { bindings::dm_table_get_mode((*self.as_ptr()).table) };
        mode & bindings::BLK_OPEN_WRITE != 0
    }

    /// The mapped device's name, `major:minor`.
    pub(crate) fn name(&self) -> &CStr {
        // SAFETY: A target's table and its device are valid as long as the target, and so is the
        // C string with the device's name.
        unsafe { CStr::from_char_ptr(bindings::dm_table_device_name((*self.as_ptr()).table)) }
    }

    /// Identifies its table and its mapped device among those that exist.
    pub(super) fn table_id(&self) -> TableId {
        // SAFETY: Valid by the invariant.
        let table = unsafe { (*self.as_ptr()).table };
        TableId {
            table: table as usize,
            // SAFETY: A target's table is valid as long as the target.
            device: unsafe { bindings::dm_table_get_md(table) as usize },
        }
    }

    /// Raises an event: `dmsetup wait` returns, udev hears of it. Process context, may sleep.
    pub(crate) fn event(&self) {
        // SAFETY: A target's table is valid as long as the target.
        unsafe { bindings::dm_table_event((*self.as_ptr()).table) };
    }
}

/// A table of a mapped device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct TableId {
    table: usize,
    device: usize,
}

impl TableId {
    /// Whether targets of both may be active at the same time: those of one table are, and of several
    /// tables of one device only one is in force.
    pub(super) fn excludes(&self, other: &Self) -> bool {
        self.device != other.device || self.table == other.table
    }
}

/// A target, for its own data to keep: works of the target use it.
///
/// # Invariants
///
/// The target outlives this object, which lives in the target's data, as [`Device`] does.
pub(crate) struct TargetHandle(NonNull<TargetInfo>);

// SAFETY: It is a shared reference in disguise, and `TargetInfo` is `Sync`.
unsafe impl Send for TargetHandle {}
// SAFETY: As above.
unsafe impl Sync for TargetHandle {}

impl core::ops::Deref for TargetHandle {
    type Target = TargetInfo;

    fn deref(&self) -> &TargetInfo {
        // SAFETY: By the invariant.
        unsafe { self.0.as_ref() }
    }
}

/// The words of a table line or a message, copied: a message's result is written to the very buffer
/// that its words came in (`target_message` in `drivers/md/dm-ioctl.c`).
pub(crate) struct Args(KVec<u8>);

impl Args {
    /// Copies the words. May sleep.
    ///
    /// # Safety
    ///
    /// `argv` must be an array of `argc` valid C strings.
    unsafe fn copy_from_raw(argc: c_uint, argv: *mut *mut c_char) -> Result<Self> {
        let mut text = KVec::new();
        for index in 0..argc as usize {
            // SAFETY: Within the array, and a C string, by the requirement.
            let word = unsafe { CStr::from_char_ptr(*argv.add(index)) };
            text.extend_from_slice(word.to_bytes_with_nul(), GFP_KERNEL)?;
        }
        Ok(Self(text))
    }

    fn iter(&self) -> impl Iterator<Item = &CStr> {
        let words = self.0.split_inclusive(|byte| *byte == 0);
        words.filter_map(|word| CStr::from_bytes_with_nul(word).ok())
    }

    /// Word `index`.
    pub(crate) fn get(&self, index: usize) -> Option<&CStr> {
        self.iter().nth(index)
    }

    /// All words as bytes. May sleep.
    pub(crate) fn words(&self) -> Result<KVec<&[u8]>> {
        let mut words = KVec::new();
        for word in self.iter() {
            words.push(word.to_bytes(), GFP_KERNEL)?;
        }
        Ok(words)
    }
}

/// Why a constructor failed: a sentence for the log, and an error number.
pub(crate) struct Refused(pub(crate) &'static CStr, pub(crate) Error);

impl From<&'static CStr> for Refused {
    fn from(sentence: &'static CStr) -> Self {
        Self(sentence, EINVAL)
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self(c"Not enough memory or other resources", error)
    }
}

/// A target under construction.
pub(crate) struct Setup<'a>(&'a TargetInfo);

impl Setup<'_> {
    /// What is already known of the target.
    pub(crate) fn info(&self) -> &TargetInfo {
        self.0
    }

    /// The target, to be kept in its data.
    pub(crate) fn handle(&self) -> TargetHandle {
        // INVARIANT: The data is dropped when the destructor is called, and the target after that.
        TargetHandle(NonNull::from(self.0))
    }

    /// Opens a device for the target, which must keep it in its data. May sleep.
    pub(crate) fn device(&mut self, path: &CStr) -> Result<Device> {
        Device::open(self.0, path)
    }

    /// Asks for `count` copies of each flush, told apart by [`MapBio::number`].
    pub(crate) fn set_flushes(&mut self, count: u32) {
        // SAFETY: Under construction: nobody else uses it.
        unsafe { (*self.0.as_ptr()).num_flush_bios = count };
    }

    /// Asks for discards, whatever the underlying devices can do.
    pub(crate) fn want_discards(&mut self) {
        let ti = self.0.as_ptr();
        // SAFETY: Under construction: nobody else uses it.
        unsafe {
            (*ti).num_discard_bios = 1;
            (*ti).set_discards_supported(true);
        }
    }

    /// Asks for write-zeroes, if the underlying devices know them.
    pub(crate) fn want_write_zeroes(&mut self) {
        // SAFETY: Under construction: nobody else uses it.
        unsafe { (*self.0.as_ptr()).num_write_zeroes_bios = 1 };
    }
}

/// A visit of [`Target::iterate_devices`] is over.
pub(crate) struct Stop(c_int);

/// Shows a target's devices to device-mapper.
pub(crate) struct DeviceVisitor<'a> {
    ti: &'a TargetInfo,
    visit: bindings::iterate_devices_callout_fn,
    data: *mut c_void,
}

impl DeviceVisitor<'_> {
    /// Whether device-mapper only asks whether all that it is shown can do something (`device_not_..._capable` in
    /// `drivers/md/dm-table.c`): a device of which the target does not need it may then be left out. What changes or
    /// measures something has data.
    pub(crate) fn is_question(&self) -> bool {
        self.data.is_null()
    }

    /// Shows `count` sectors of `device` from `start`.
    pub(crate) fn visit(&self, device: &Device, start: u64, count: u64) -> Result<(), Stop> {
        let Some(visit) = self.visit else {
            return Ok(());
        };
        // SAFETY: The function and its data are what device-mapper passed for just this call.
        match unsafe { visit(self.ti.as_ptr(), device.dm_dev(), start, count, self.data) } {
            0 => Ok(()),
            other => Err(Stop(other)),
        }
    }
}

/// What device-mapper is about to tell the block layer of a mapped device, for [`Target::io_hints`] to change.
///
/// C: `struct queue_limits` in `include/linux/blkdev.h`.
pub(crate) struct Limits<'a>(&'a mut kernel::bindings::queue_limits);

impl Limits<'_> {
    /// Write-zeroes go up to that many sectors, 0: there are none.
    pub(crate) fn set_write_zeroes(&mut self, sectors: u32) {
        if self.0.max_write_zeroes_sectors != sectors {
            self.0.max_write_zeroes_sectors = sectors;
            // Whether they unmap is not known then; the block layer wants the same number or none.
            self.0.max_hw_wzeroes_unmap_sectors = 0;
        }
    }

    /// Bios are not polled for, whatever the underlying devices can do.
    pub(crate) fn forbid_polling(&mut self) {
        self.0.features &= !bindings::BLK_FEAT_POLL;
    }
}

/// A target type. See [the module's documentation](super) for the order of calls.
#[vtable]
pub(crate) trait Target: Sized + 'static {
    /// The target's data. Callbacks borrow it; it is dropped after [`Target::dtr`].
    type Data: ForeignOwnable + Send + Sync;

    /// Name in table lines.
    const NAME: &'static CStr;
    /// Version of the table line, status and messages.
    const VERSION: [u32; 3];
    /// Whether [`Target::map`] never blocks and honours [`MapBio::is_nowait`].
    const NOWAIT: bool;

    /// Makes a target from a table line. May sleep. Other tables of the same mapped device may be
    /// active: nothing may be changed that they rely on.
    fn ctr(setup: &mut Setup<'_>, args: &Args) -> Result<Self::Data, Refused>;

    /// The target goes away; no bio is with it. Suspend may never have been called, nor resume. May
    /// sleep.
    fn dtr(data: Borrowed<'_, Self>, ti: &TargetInfo);

    /// Decides where a bio goes. Must not sleep.
    fn map(data: Borrowed<'_, Self>, bio: MapBio<'_>) -> Mapped;

    /// What [`MapBio::remap`] adds to the sector of each bio but flushes: where healthy sectors are. Constant.
    /// Any context.
    fn offset(data: Borrowed<'_, Self>) -> u64;

    /// Whose stamps bios are sent down with. A bio that succeeded is settled if this has not changed meanwhile:
    /// then [`Target::end_io`] need not see it. Any context; asked for every bio.
    fn version<'a>(data: &'a Borrowed<'_, Self>) -> &'a Version;

    /// A write that was sent down by [`MapBio::remap_aside`] has succeeded; its submitter does not know yet. Any
    /// context.
    fn landed(data: &Borrowed<'_, Self>);

    /// A bio that was sent down is back: it failed, is not settled, or is watched. Any context.
    fn end_io(data: Borrowed<'_, Self>, bio: EndBio<'_>) -> Ended;

    /// A deferred bio. Process context, may sleep.
    fn process(data: Borrowed<'_, Self>, bio: DeferredBio<'_>);

    /// Suspending begins; bios go on coming. Must not wait for any.
    fn presuspend(data: Borrowed<'_, Self>, ti: &TargetInfo);

    /// Suspending failed, the target goes on as it was.
    fn presuspend_undo(data: Borrowed<'_, Self>, ti: &TargetInfo);

    /// All bios are complete. May sleep.
    fn postsuspend(data: Borrowed<'_, Self>, ti: &TargetInfo);

    /// The table is about to become active; the one before it is suspended. May sleep, must not
    /// start I/O for memory ([`super::NoIo`]).
    fn preresume(data: Borrowed<'_, Self>, ti: &TargetInfo) -> Result;

    /// Bios come from now on.
    fn resume(data: Borrowed<'_, Self>, ti: &TargetInfo);

    /// Prints what `dmsetup status` shows.
    fn status(data: Borrowed<'_, Self>, ti: &TargetInfo, out: &mut TextWriter<'_>);

    /// Prints the words behind the target's name in `dmsetup table`.
    fn table(data: Borrowed<'_, Self>, ti: &TargetInfo, out: &mut TextWriter<'_>);

    /// Prints the attributes that the integrity subsystem measures, see
    /// `Documentation/admin-guide/device-mapper/dm-ima.rst`: `,name=value` each.
    fn ima(data: Borrowed<'_, Self>, ti: &TargetInfo, out: &mut TextWriter<'_>);

    /// Obeys a message. What it prints is the message's result. May sleep.
    fn message(
        data: Borrowed<'_, Self>,
        ti: &TargetInfo,
        args: &Args,
        out: &mut TextWriter<'_>,
    ) -> Result;

    /// Shows every range of every underlying device.
    fn iterate_devices(
        data: Borrowed<'_, Self>,
        ti: &TargetInfo,
        v: DeviceVisitor<'_>,
    ) -> Result<(), Stop>;

    /// Changes what the underlying devices, as shown by [`Target::iterate_devices`], make of the limits.
    fn io_hints(data: Borrowed<'_, Self>, limits: &mut Limits<'_>);

    /// The target is so busy that a bio would wait. Optional.
    fn busy(_data: Borrowed<'_, Self>) -> bool {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// A `target_type` and, behind it, what the C structure has no room for.
#[repr(C)]
pub(super) struct TypeObject {
    target_type: Opaque<target_type>,
    work: kernel::bindings::work_func_t,
}

impl TypeObject {
    pub(super) fn new<T: Target>(module: *mut kernel::bindings::module) -> Self {
        Self {
            target_type: Opaque::new(Callbacks::<T>::target_type(module)),
            work: Some(bio::run::<T>),
        }
    }

    pub(super) fn as_ptr(&self) -> *mut target_type {
        self.target_type.get()
    }
}

/// A registered target type; unregistered when dropped, which needs that no table uses it, as the
/// module's reference count ensures.
///
/// # Invariants
///
/// The object is registered, and does not move or change as long as it is.
pub(crate) struct Registration<T: Target>(KBox<TypeObject>, PhantomData<T>);

// SAFETY: Only device-mapper looks at the object, under its own lock.
unsafe impl<T: Target> Send for Registration<T> {}
// SAFETY: No method takes a shared reference.
unsafe impl<T: Target> Sync for Registration<T> {}

impl<T: Target> Registration<T> {
    /// Registers `T`. May sleep.
    pub(crate) fn new(module: &'static ThisModule) -> Result<Self> {
        let object = KBox::new(TypeObject::new::<T>(module.as_ptr()), GFP_KERNEL)?;
        // SAFETY: A complete target type that stays where it is until it is unregistered.
        to_result(unsafe { bindings::dm_register_target(object.as_ptr()) })?;
        // INVARIANT: Just registered.
        Ok(Self(object, PhantomData))
    }
}

impl<T: Target> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: Registered, by the invariant.
        unsafe { bindings::dm_unregister_target(self.0.as_ptr()) };
    }
}

/// The `extern "C"` side of `T`. All of the functions are called by device-mapper only, with a target
/// of type `T`; `ctr` first and `dtr` last, if `ctr` returned 0. That is the safety requirement of each.
struct Callbacks<T: Target>(PhantomData<T>);

impl<T: Target> Callbacks<T> {
    fn target_type(module: *mut kernel::bindings::module) -> target_type {
        target_type {
            features: if T::NOWAIT {
                bindings::DM_TARGET_NOWAIT
            } else {
                0
            },
            name: T::NAME.as_char_ptr(),
            module,
            version: T::VERSION,
            ctr: Some(Self::ctr),
            dtr: Some(Self::dtr),
            map: Some(Self::map),
            end_io: Some(Self::end_io),
            presuspend: Some(Self::presuspend),
            presuspend_undo: Some(Self::presuspend_undo),
            postsuspend: Some(Self::postsuspend),
            preresume: Some(Self::preresume),
            resume: Some(Self::resume),
            status: Some(Self::status),
            message: Some(Self::message),
            iterate_devices: Some(Self::iterate_devices),
            io_hints: Some(Self::io_hints),
            busy: if T::HAS_BUSY { Some(Self::busy) } else { None },
            // No `prepare_ioctl`: device-mapper then answers every passed-through ioctl with
            // ENOTTY. A target that is more than one device's sectors in order must not forward.
            ..pin_init::zeroed()
        }
    }

    /// # Safety
    ///
    /// As said for [`Callbacks`]; `argv` are `argc` C strings for the duration of the call.
    unsafe extern "C" fn ctr(ti: *mut dm_target, argc: c_uint, argv: *mut *mut c_char) -> c_int {
        // SAFETY: Valid for this call by the requirement.
        let info = unsafe { TargetInfo::from_raw(ti) };
        // SAFETY: As the requirement says.
        let args = unsafe { Args::copy_from_raw(argc, argv) };
        let made = match &args {
            Ok(args) => T::ctr(&mut Setup(info), args),
            Err(error) => Err((*error).into()),
        };
        match made {
            Ok(data) => {
                // SAFETY: Under construction: nobody else uses the target.
                unsafe {
                    (*ti).private = data.into_foreign();
                    (*ti).per_io_data_size = PER_BIO_SIZE as c_uint;
                }
                0
            }
            Err(Refused(sentence, error)) => {
                // SAFETY: As above. The sentence is static, and is only read.
                unsafe { (*ti).error = sentence.as_char_ptr().cast_mut().cast() };
                error.to_errno()
            }
        }
    }

    /// # Safety
    ///
    /// As said for [`Callbacks`].
    unsafe extern "C" fn dtr(ti: *mut dm_target) {
        // SAFETY: Valid for this call by the requirement.
        let info = unsafe { TargetInfo::from_raw(ti) };
        // SAFETY: The constructor succeeded.
        T::dtr(unsafe { info.data::<T>() }, info);
        // SAFETY: The constructor's trampoline made the pointer; no callback follows this one.
        drop(unsafe { T::Data::from_foreign((*ti).private) });
    }

    /// # Safety
    ///
    /// As said for [`Callbacks`]; `bio` is a clone for the target to handle.
    unsafe extern "C" fn map(ti: *mut dm_target, bio: *mut kernel::bindings::bio) -> c_int {
        let _no_sleep = NoSleep::enter();
        // SAFETY: Valid for this call by the requirement.
        let ti = unsafe { TargetInfo::from_raw(ti) };
        // SAFETY: The constructor succeeded.
        let data = unsafe { ti.data::<T>() };
        // SAFETY: Device-mapper passes a bio, not null.
        let bio = unsafe { NonNull::new_unchecked(bio) };
        // SAFETY: As the requirement says.
        let bio = unsafe { MapBio::from_raw(bio, ti) };
        T::map(data, bio).0 as c_int
    }

    /// # Safety
    ///
    /// As said for [`Callbacks`]; `bio` is a clone that `map` handled and `error` its status.
    unsafe extern "C" fn end_io(
        ti: *mut dm_target,
        bio: *mut kernel::bindings::bio,
        error: *mut kernel::bindings::blk_status_t,
    ) -> c_int {
        let _no_sleep = NoSleep::enter();
        // SAFETY: Device-mapper passes a bio, not null.
        let bio = unsafe { NonNull::new_unchecked(bio) };
        // SAFETY: Valid by the requirement.
        if unsafe { *error } == Status::OK.0 {
            // SAFETY: Valid for this call by the requirement.
            let ti = unsafe { TargetInfo::from_raw(ti) };
            // SAFETY: The constructor succeeded.
            let data = unsafe { ti.data::<T>() };
            // SAFETY: As the requirement says.
            if T::version(&data).read().0 == unsafe { EndBio::stamp_of(bio) } {
                return bindings::DM_ENDIO_DONE as c_int;
            }
        }
        // SAFETY: As the requirement says.
        unsafe { Self::end_io_slowly(ti, bio, error) }
    }

    /// The rest of [`Self::end_io`], out of the way of most bios.
    ///
    /// # Safety
    ///
    /// As for [`Self::end_io`].
    #[cold]
    #[inline(never)]
    unsafe fn end_io_slowly(
        ti: *mut dm_target,
        bio: NonNull<kernel::bindings::bio>,
        error: *mut kernel::bindings::blk_status_t,
    ) -> c_int {
        // SAFETY: Valid for this call by the requirement.
        let (ti, mut status) = unsafe { (TargetInfo::from_raw(ti), Status(*error)) };
        // SAFETY: As the requirement says.
        let done = unsafe { EndBio::finish::<T>(bio, ti, &mut status) };
        if done == bindings::DM_ENDIO_DONE {
            // SAFETY: Valid for this call by the requirement; the bio was not given away.
            unsafe { *error = status.0 };
        }
        done as c_int
    }

    /// # Safety
    ///
    /// As said for [`Callbacks`].
    unsafe extern "C" fn presuspend(ti: *mut dm_target) {
        let _no_sleep = NoSleep::enter();
        // SAFETY: Valid for this call, and the constructor succeeded.
        let (ti, data) = unsafe { Self::both(ti) };
        T::presuspend(data, ti);
    }

    /// # Safety
    ///
    /// As said for [`Callbacks`].
    unsafe extern "C" fn presuspend_undo(ti: *mut dm_target) {
        // SAFETY: Valid for this call, and the constructor succeeded.
        let (ti, data) = unsafe { Self::both(ti) };
        T::presuspend_undo(data, ti);
    }

    /// # Safety
    ///
    /// As said for [`Callbacks`].
    unsafe extern "C" fn postsuspend(ti: *mut dm_target) {
        // SAFETY: Valid for this call, and the constructor succeeded.
        let (ti, data) = unsafe { Self::both(ti) };
        T::postsuspend(data, ti);
    }

    /// # Safety
    ///
    /// As said for [`Callbacks`].
    unsafe extern "C" fn preresume(ti: *mut dm_target) -> c_int {
        // SAFETY: Valid for this call, and the constructor succeeded.
        let (ti, data) = unsafe { Self::both(ti) };
        match T::preresume(data, ti) {
            Ok(()) => 0,
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// As said for [`Callbacks`].
    unsafe extern "C" fn resume(ti: *mut dm_target) {
        // SAFETY: Valid for this call, and the constructor succeeded.
        let (ti, data) = unsafe { Self::both(ti) };
        T::resume(data, ti);
    }

    /// # Safety
    ///
    /// As said for [`Callbacks`]; `result` is valid for writes of `maxlen` bytes.
    unsafe extern "C" fn status(
        ti: *mut dm_target,
        kind: bindings::status_type_t,
        _flags: c_uint,
        result: *mut c_char,
        maxlen: c_uint,
    ) {
        // SAFETY: Valid for this call, and the constructor succeeded.
        let (ti, data) = unsafe { Self::both(ti) };
        // SAFETY: As the requirement says.
        let mut out = unsafe { TextWriter::from_raw(result, maxlen) };
        match kind {
            bindings::status_type_t_STATUSTYPE_INFO => T::status(data, ti, &mut out),
            bindings::status_type_t_STATUSTYPE_TABLE => T::table(data, ti, &mut out),
            bindings::status_type_t_STATUSTYPE_IMA => {
                let [major, minor, patch] = T::VERSION;
                let name = T::NAME.to_str().unwrap_or("?");
                let _ = core::fmt::write(
                    &mut out,
                    format_args!("target_name={name},target_version={major}.{minor}.{patch}"),
                );
                T::ima(data, ti, &mut out);
                let _ = core::fmt::Write::write_str(&mut out, ";");
            }
            _ => (),
        }
    }

    /// # Safety
    ///
    /// As said for [`Callbacks`]; `argv` are `argc` C strings, `result` is valid for writes of
    /// `maxlen` bytes.
    unsafe extern "C" fn message(
        ti: *mut dm_target,
        argc: c_uint,
        argv: *mut *mut c_char,
        result: *mut c_char,
        maxlen: c_uint,
    ) -> c_int {
        // Suspending waits for us (`dm_get_live_table`), and a request for memory could wait for its I/O.
        let _noio = NoIo::enter();
        // SAFETY: Valid for this call, and the constructor succeeded.
        let (ti, data) = unsafe { Self::both(ti) };
        // SAFETY: As the requirement says.
        let args = match unsafe { Args::copy_from_raw(argc, argv) } {
            Ok(args) => args,
            Err(error) => return error.to_errno(),
        };
        // SAFETY: As the requirement says; the words, which lie in it, are not used any more.
        let mut out = unsafe { TextWriter::from_raw(result, maxlen) };
        match T::message(data, ti, &args, &mut out) {
            // 1 says that there is a result (`target_message` in `drivers/md/dm-ioctl.c`).
            Ok(()) => c_int::from(out.len() > 0),
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// As said for [`Callbacks`]; `visit` and `data` belong together.
    unsafe extern "C" fn iterate_devices(
        ti: *mut dm_target,
        visit: bindings::iterate_devices_callout_fn,
        data: *mut c_void,
    ) -> c_int {
        // SAFETY: Valid for this call, and the constructor succeeded.
        let (ti, target) = unsafe { Self::both(ti) };
        match T::iterate_devices(target, ti, DeviceVisitor { ti, visit, data }) {
            Ok(()) => 0,
            Err(Stop(value)) => value,
        }
    }

    /// # Safety
    ///
    /// As said for [`Callbacks`]; `limits` is the callee's for the duration of the call.
    unsafe extern "C" fn io_hints(ti: *mut dm_target, limits: *mut kernel::bindings::queue_limits) {
        // SAFETY: Valid for this call, and the constructor succeeded.
        let (_, data) = unsafe { Self::both(ti) };
        // SAFETY: As the requirement says.
        T::io_hints(data, &mut Limits(unsafe { &mut *limits }));
    }

    /// # Safety
    ///
    /// As said for [`Callbacks`].
    unsafe extern "C" fn busy(ti: *mut dm_target) -> c_int {
        // SAFETY: Valid for this call, and the constructor succeeded.
        let (_, data) = unsafe { Self::both(ti) };
        c_int::from(T::busy(data))
    }

    /// # Safety
    ///
    /// `ti` must be a target of type `T`, between its constructor's return and its destructor, for `'a`.
    unsafe fn both<'a>(ti: *mut dm_target) -> (&'a TargetInfo, Borrowed<'a, T>) {
        // SAFETY: By the requirement.
        let ti = unsafe { TargetInfo::from_raw(ti) };
        // SAFETY: By the requirement.
        (ti, unsafe { ti.data::<T>() })
    }
}
