// SPDX-License-Identifier: GPL-2.0

//! The C side of a target type: its registration, and a function for each callback.

use super::{
    bindings::{self, dm_target, target_type},
    bio::{Cookie, EndBio, MapBio, Outcome, Raw, Recorded},
    context::{NoIo, NoSleep},
    info::{Args, TargetInfo},
    instance::Instance,
    limits::{DeviceVisitor, Limits, Stop},
    status::BlkStatus,
    target::{Refused, Target},
    text::TextWriter,
};
use core::{marker::PhantomData, ptr::NonNull};
use kernel::{error::to_result, prelude::*, types::Opaque};

/// A `target_type` and, behind it, what the C structure has no room for.
#[pin_data]
#[repr(C)]
pub(super) struct TypeObject<T: Target> {
    target_type: Opaque<target_type>,
    #[pin]
    registration_data: T::RegistrationData,
}

impl<T: Target> TypeObject<T> {
    pub(super) fn new(
        module: *mut kernel::bindings::module,
        registration_data: impl PinInit<T::RegistrationData, Error>,
    ) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            target_type: Opaque::new(Callbacks::<T>::target_type(module)),
            registration_data <- registration_data,
        }? Error)
    }

    pub(super) fn as_ptr(&self) -> *mut target_type {
        self.target_type.get()
    }

    /// The object of the type of `ti`.
    ///
    /// # Safety
    ///
    /// `ti` must be a target of type `T`. Such an object stays as long as there are targets of its type: for `'a`.
    pub(super) unsafe fn of<'a>(ti: &TargetInfo) -> &'a Self {
        // SAFETY: By the requirement the type is the first field of such an object. Nobody changes it.
        unsafe { &*(*ti.as_ptr()).type_.cast::<Self>() }
    }

    pub(super) fn registration_data(&self) -> &T::RegistrationData {
        &self.registration_data
    }
}

/// A registered target type, for [`module_target!`](crate::module_target); unregistered when dropped.
///
/// # Invariants
///
/// The object is registered, and does not move or change as long as it is.
pub(crate) struct Registration<T: Target>(Pin<KBox<TypeObject<T>>>);

// SAFETY: Only device-mapper looks at the C structure, under its own lock; the data behind it are `Send` and `Sync`.
unsafe impl<T: Target> Send for Registration<T> {}
// SAFETY: No method takes a shared reference.
unsafe impl<T: Target> Sync for Registration<T> {}

impl<T: Target> Registration<T> {
    /// Registers `T`. May sleep.
    ///
    /// # Safety
    ///
    /// The result must be dropped when the module is unloaded, no earlier, and no later: until then, device-mapper keeps the
    /// module as long as there are targets of the type; after that the callbacks are gone. `module` must be the one that they
    /// belong to.
    pub(crate) unsafe fn new(
        module: &'static ThisModule,
        registration_data: impl PinInit<T::RegistrationData, Error>,
    ) -> Result<Self> {
        let object = TypeObject::new(module.as_ptr(), registration_data);
        let object = KBox::pin_init(object, GFP_KERNEL)?;
        // SAFETY: A complete target type that stays where it is until it is unregistered.
        to_result(unsafe { bindings::dm_register_target(object.as_ptr()) })?;
        // INVARIANT: Just registered.
        Ok(Self(object))
    }
}

impl<T: Target> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: Registered, by the invariant; there are no targets of the type, as `new` requires.
        unsafe { bindings::dm_unregister_target(self.0.as_ptr()) };
    }
}

/// Makes the crate a module that registers one target type: `type: Target,`, if need be `registration_data:` and an
/// initialiser, and then what `module!` wants beside `type:`.
#[macro_export]
macro_rules! module_target {
    (type: $type:ty, registration_data: $data:expr, $($module:tt)*) => {
        /// Keeps the target type registered as long as the module is loaded.
        struct TargetModule {
            _registration: $crate::dm::Registration<$type>,
        }

        impl ::kernel::Module for TargetModule {
            fn init(module: &'static ::kernel::ThisModule) -> ::kernel::error::Result<Self> {
                use ::kernel::sync::atomic::{Atomic, Full};

                static ENTERED: Atomic<i32> = Atomic::new(0);
                if ENTERED.xchg(1, Full) != 0 {
                    return Err(::kernel::error::code::EBUSY);
                }
                let data = $data;
                // SAFETY: This is called by the `module!` below, which is this crate's, keeps what it returns, and drops it
                // on unloading. Nobody else's call comes so far: the module's first code to run is that one.
                let made = unsafe { $crate::dm::Registration::new(module, data) };
                Ok(Self { _registration: made? })
            }
        }

        ::kernel::prelude::module! {
            type: TargetModule,
            $($module)*
        }
    };
    (type: $type:ty, $($module:tt)*) => {
        $crate::module_target! { type: $type, registration_data: Ok(()), $($module)* }
    };
}

/// The `extern "C"` side of `T`. All of the functions are called by device-mapper only, with a target
/// of type `T`; `ctr` first and `dtr` last, if `ctr` returned 0. That is the safety requirement of each.
struct Callbacks<T: Target>(PhantomData<T>);

/// `Some(function)` if the target has that callback.
macro_rules! if_has {
    ($has:expr, $function:expr) => {
        if $has {
            Some($function)
        } else {
            None
        }
    };
}

impl<T: Target> Callbacks<T> {
    fn target_type(module: *mut kernel::bindings::module) -> target_type {
        target_type {
            features: if T::NOWAIT {
                bindings::DM_TARGET_NOWAIT.into()
            } else {
                0
            },
            name: T::NAME.as_char_ptr(),
            module,
            version: T::VERSION,
            ctr: Some(Self::ctr),
            dtr: Some(Self::dtr),
            map: Some(Self::map),
            end_io: if_has!(T::HAS_END_IO, Self::end_io),
            presuspend: if_has!(T::HAS_PRESUSPEND, Self::presuspend),
            presuspend_undo: if_has!(T::HAS_PRESUSPEND_UNDO, Self::presuspend_undo),
            postsuspend: if_has!(T::HAS_POSTSUSPEND, Self::postsuspend),
            preresume: if_has!(T::HAS_PRERESUME, Self::preresume),
            resume: if_has!(T::HAS_RESUME, Self::resume),
            status: Some(Self::status),
            message: if_has!(T::HAS_MESSAGE, Self::message),
            iterate_devices: if_has!(T::HAS_ITERATE_DEVICES, Self::iterate_devices),
            io_hints: if_has!(T::HAS_IO_HINTS || !T::POLLED, Self::io_hints),
            // No `prepare_ioctl`: device-mapper then answers every passed-through ioctl with
            // ENOTTY. A target that is more than one device's sectors in order must not forward.
            ..pin_init::zeroed()
        }
    }

    /// # Safety
    ///
    /// As said for [`Callbacks`]; `argv` are `argc` C strings for the duration of the call.
    unsafe extern "C" fn ctr(ti: *mut dm_target, argc: c_uint, argv: *mut *mut c_char) -> c_int {
        // What is registered is shared with callbacks of suspended devices. Should a lock of its be held while memory is asked for,
        // that must not wait for I/O to one of them.
        let _noio = NoIo::enter();
        // SAFETY: As the requirement says.
        let args = unsafe { Args::copy_from_raw(argc, argv) };
        let made = args.map_err(Refused::from).and_then(|args| {
            // SAFETY: The target is under construction, and of a type that `TypeObject::new` made.
            unsafe { Instance::<T>::create(ti, &args) }
        });
        match made {
            Ok(()) => 0,
            Err(Refused(sentence, error)) => {
                // SAFETY: Under construction: nobody else uses the target. The sentence is static, and is only read.
                unsafe { (*ti).error = sentence.as_char_ptr().cast_mut().cast() };
                error.to_errno()
            }
        }
    }

    /// # Safety
    ///
    /// As said for [`Callbacks`].
    unsafe extern "C" fn dtr(ti: *mut dm_target) {
        // As in the constructor.
        let _noio = NoIo::enter();
        // SAFETY: The constructor succeeded. No callback runs beside this one or follows it, and no bio is with the target.
        unsafe { Instance::<T>::destroy(ti) };
    }

    /// # Safety
    ///
    /// As said for [`Callbacks`]; `bio` is a clone for the target to handle.
    unsafe extern "C" fn map(ti: *mut dm_target, bio: *mut kernel::bindings::bio) -> c_int {
        let _no_sleep = NoSleep::enter();
        // SAFETY: The constructor succeeded.
        let instance = unsafe { Instance::<T>::of(ti) };
        // SAFETY: Device-mapper passes a bio, not null, a clone that it made for this target and leaves to it.
        let bio = unsafe { Raw::new(NonNull::new_unchecked(bio)) };
        T::map(instance.data(), MapBio::new(instance, bio)).0 as c_int
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
        // SAFETY: Valid for this call by the requirement.
        let is_ok = unsafe { *error } == BlkStatus::OK.0;
        // SAFETY: Device-mapper passes a bio, not null, a clone that it made for this target and leaves to it.
        let bio = unsafe { Raw::new(NonNull::new_unchecked(bio)) };
        if T::HAS_IS_SETTLED && is_ok {
            // SAFETY: The constructor succeeded, and the destructor is not called before the bio is complete.
            let instance = unsafe { Instance::<T>::of(ti) };
            if T::is_settled(instance.data(), Cookie::new(bio)) {
                return bindings::DM_ENDIO_DONE as c_int;
            }
        }
        // SAFETY: As the requirement says.
        unsafe { Self::end_io_unsettled(ti, bio, error) }
    }

    /// The rest of [`Self::end_io`], out of the way of most bios.
    ///
    /// # Safety
    ///
    /// As said for [`Callbacks`]; `bio` is a clone that `map` handled and `error` its status.
    #[cold]
    #[inline(never)]
    unsafe fn end_io_unsettled(
        ti: *mut dm_target,
        bio: Raw<T>,
        error: *mut kernel::bindings::blk_status_t,
    ) -> c_int {
        if bio.is_done() {
            return bindings::DM_ENDIO_DONE as c_int;
        }
        // SAFETY: The constructor succeeded; the status is valid for this call by the requirement.
        let (instance, status) = unsafe { (Instance::<T>::of(ti), BlkStatus(*error)) };
        // SAFETY: The target sent it down, and has not completed it: so it is recorded.
        let recorded = unsafe { Recorded::new(bio) };
        match T::end_io(instance.data(), EndBio::new(instance, recorded, status)).0 {
            Outcome::Completed(status) => {
                // SAFETY: Valid for this call by the requirement; the bio was not given away.
                unsafe { *error = status.0 };
                bindings::DM_ENDIO_DONE as c_int
            }
            Outcome::Deferred => {
                // Not earlier: once the bio is given away, the target may be gone.
                bio.enqueue(instance, status);
                bindings::DM_ENDIO_INCOMPLETE as c_int
            }
        }
    }

    /// # Safety
    ///
    /// As said for [`Callbacks`].
    unsafe extern "C" fn presuspend(ti: *mut dm_target) {
        let _no_sleep = NoSleep::enter();
        // SAFETY: The constructor succeeded, and the destructor is not called before this returns.
        T::presuspend(unsafe { Instance::<T>::of(ti) }.data());
    }

    /// # Safety
    ///
    /// As said for [`Callbacks`].
    unsafe extern "C" fn presuspend_undo(ti: *mut dm_target) {
        // As in the constructor.
        let _noio = NoIo::enter();
        // SAFETY: The constructor succeeded, and the destructor is not called before this returns.
        T::presuspend_undo(unsafe { Instance::<T>::of(ti) }.data());
    }

    /// # Safety
    ///
    /// As said for [`Callbacks`].
    unsafe extern "C" fn postsuspend(ti: *mut dm_target) {
        // Memory for us must not wait for I/O to the device that is suspended.
        let _noio = NoIo::enter();
        // SAFETY: The constructor succeeded, and the destructor is not called before this returns.
        let instance = unsafe { Instance::<T>::of(ti) };
        if let Some(queue) = instance.queue() {
            queue.flush();
        }
        T::postsuspend(instance.data());
    }

    /// # Safety
    ///
    /// As said for [`Callbacks`].
    unsafe extern "C" fn preresume(ti: *mut dm_target) -> c_int {
        // Memory for us must not wait for I/O to the device that is suspended.
        let _noio = NoIo::enter();
        // SAFETY: The constructor succeeded, and the destructor is not called before this returns.
        match T::preresume(unsafe { Instance::<T>::of(ti) }.data()) {
            Ok(()) => 0,
            Err(error) => error.to_errno(),
        }
    }

    /// # Safety
    ///
    /// As said for [`Callbacks`].
    unsafe extern "C" fn resume(ti: *mut dm_target) {
        // Bios to the device wait until all of its targets have returned from this (`__dm_resume`).
        let _noio = NoIo::enter();
        // SAFETY: The constructor succeeded, and the destructor is not called before this returns.
        T::resume(unsafe { Instance::<T>::of(ti) }.data());
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
        // The device may be suspended, and resuming it waits for us (`dm_get_live_table`).
        let _noio = NoIo::enter();
        // SAFETY: The constructor succeeded, and the destructor is not called before this returns.
        let data = unsafe { Instance::<T>::of(ti) }.data();
        // SAFETY: Valid for writes by the requirement, and for us alone.
        let mut out = unsafe { TextWriter::from_raw(result, maxlen) };
        match kind {
            bindings::status_type_t_STATUSTYPE_INFO if T::HAS_STATUS => T::status(data, &mut out),
            bindings::status_type_t_STATUSTYPE_TABLE if T::HAS_TABLE => T::table(data, &mut out),
            bindings::status_type_t_STATUSTYPE_IMA => {
                let [major, minor, patch] = T::VERSION;
                let name = T::NAME.to_str().unwrap_or("?");
                write!(
                    out,
                    "target_name={name},target_version={major}.{minor}.{patch}"
                );
                if T::HAS_IMA {
                    T::ima(data, &mut out);
                }
                write!(out, ";");
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
        // SAFETY: As the requirement says.
        let args = match unsafe { Args::copy_from_raw(argc, argv) } {
            Ok(args) => args,
            Err(error) => return error.to_errno(),
        };
        // SAFETY: Valid for writes by the requirement; the words, which lie in it, are not used any more.
        let mut out = unsafe { TextWriter::from_raw(result, maxlen) };
        // SAFETY: The constructor succeeded, and the destructor is not called before this returns.
        match T::message(unsafe { Instance::<T>::of(ti) }.data(), &args, &mut out) {
            // 1 says that there is a result (`target_message` in `drivers/md/dm-ioctl.c`).
            Ok(()) => c_int::from(!out.is_empty()),
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
        // The device may be suspended, as for a new table.
        let _noio = NoIo::enter();
        // SAFETY: The constructor succeeded.
        let instance = unsafe { Instance::<T>::of(ti) };
        // SAFETY: What device-mapper passed, for this call.
        let visitor = unsafe { DeviceVisitor::new(instance.info(), visit, data) };
        match T::iterate_devices(instance.data(), visitor) {
            Ok(()) => 0,
            Err(Stop(value)) => value,
        }
    }

    /// # Safety
    ///
    /// As said for [`Callbacks`]; `limits` is the callee's for the duration of the call.
    unsafe extern "C" fn io_hints(ti: *mut dm_target, limits: *mut kernel::bindings::queue_limits) {
        // The device may be suspended, as for a new table.
        let _noio = NoIo::enter();
        // SAFETY: Valid, and nobody else's, for this call, by the requirement.
        let limits = unsafe { &mut *limits };
        if !T::POLLED {
            limits.features &= !bindings::BLK_FEAT_POLL;
        }
        if T::HAS_IO_HINTS {
            // SAFETY: The constructor succeeded, and the destructor is not called before this returns.
            T::io_hints(unsafe { Instance::<T>::of(ti) }.data(), &mut Limits(limits));
        }
    }
}
