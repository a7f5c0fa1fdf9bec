// SPDX-License-Identifier: GPL-2.0

//! What a target is to device-mapper: the trait that it implements.

use super::{
    bio::{Cookie, DeferredBio, EndBio, Ended, MapBio, Mapped},
    info::Args,
    instance::Setup,
    limits::{DeviceVisitor, Limits, Stop},
    text::TextWriter,
};
use kernel::{error::VTABLE_DEFAULT_ERROR, prelude::*};

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

/// A target type. See [the module's documentation](super) for the order of calls.
///
/// A target needs [`Target::ctr`] and [`Target::map`]. What else it does not implement costs no bio anything: device-mapper is
/// not told that there is such a callback. (It is told of `status` and, as long as bios are not polled for, of `io_hints`, which
/// the layer answers by itself.)
///
/// Where it says so, requests for memory start no I/O, as the device, or another one that shares [`Target::RegistrationData`], may
/// be suspended: what waits for that I/O would wait for ever.
///
/// C: `struct target_type` in `include/linux/device-mapper.h`.
#[vtable]
pub(crate) trait Target: Sized + 'static {
    /// The target's data. All callbacks borrow them.
    ///
    /// For `'t` they may keep what [`Setup`] lends them. When the target goes away, they are dropped; that may sleep, and requests
    /// for memory start no I/O. Before it, no bio is with the target, and its works and [`Target::process`] have ended; after it,
    /// what was lent is taken back. Suspend may never have been called, nor resume.
    type Data<'t>: Send + Sync;

    /// What goes with a bio that was sent somewhere special ([`MapBio::remap_with`]).
    type PerBio: Copy + Send + 'static;

    /// What all targets of the type share, from the module's initialisation on.
    type RegistrationData: Send + Sync + 'static;

    /// Name in table lines.
    const NAME: &'static CStr;
    /// Version of the table line, status and messages.
    const VERSION: [u32; 3];
    /// Whether [`Target::map`] never blocks and honours [`MapBio::is_nowait`].
    const NOWAIT: bool = false;
    /// Whether bios may be polled for, if the underlying devices can. Such a target must not cut bios
    /// ([`MapBio::accept_partial`]).
    const POLLED: bool = false;

    /// Makes a target from a table line. May sleep; requests for memory start no I/O. Other tables of the same mapped device may be
    /// active: nothing may be changed that they rely on.
    fn ctr<'t>(
        setup: &mut Setup<'t, Self>,
        args: &Args,
    ) -> Result<impl PinInit<Self::Data<'t>, Error>, Refused>;

    /// Decides where a bio goes. Must not sleep.
    fn map<'a>(data: &Self::Data<'_>, bio: MapBio<'a, Self>) -> Mapped<'a>;

    /// Whether a bio that succeeded, and was sent down with this cookie, is done: then [`Target::end_io`] need not see it.
    /// Any context; asked for every bio that succeeds. Also of those that the target completes itself, from within `complete`,
    /// and with another cookie then: whatever lock is held there must not be taken here.
    fn is_settled(_data: &Self::Data<'_>, _cookie: Cookie<'_, Self>) -> bool {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// A bio that was sent down is back: it failed, or is not settled. Any context: must not sleep.
    fn end_io<'a>(_data: &Self::Data<'_>, _bio: EndBio<'a, Self>) -> Ended<'a> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// A deferred bio. Process context, may sleep; requests for memory start no I/O.
    fn process(_data: &Self::Data<'_>, _bio: DeferredBio<'_, Self>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Suspending begins; bios go on coming. Must not wait for any, nor sleep.
    fn presuspend(_data: &Self::Data<'_>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Suspending failed, the target goes on as it was. May sleep; requests for memory start no I/O.
    fn presuspend_undo(_data: &Self::Data<'_>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// All bios are complete, and [`Target::process`] and the works that were queued or ran have ended. May sleep; requests for
    /// memory start no I/O.
    fn postsuspend(_data: &Self::Data<'_>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The table is about to become active; the one before it is suspended. May sleep; requests for memory start no I/O.
    fn preresume(_data: &Self::Data<'_>) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The table is active; bios come when all of its targets have returned from this. May sleep; requests for memory start no I/O.
    fn resume(_data: &Self::Data<'_>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Prints what `dmsetup status` shows. May sleep; requests for memory start no I/O.
    fn status(_data: &Self::Data<'_>, _out: &mut TextWriter<'_>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Prints the words behind the target's name in `dmsetup table`. May sleep; requests for memory start no I/O.
    fn table(_data: &Self::Data<'_>, _out: &mut TextWriter<'_>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Prints the attributes that the integrity subsystem measures, see
    /// `Documentation/admin-guide/device-mapper/dm-ima.rst`: `,name=value` each. May sleep; requests for memory start no I/O.
    fn ima(_data: &Self::Data<'_>, _out: &mut TextWriter<'_>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Does what a message says. What it prints is the message's result. May sleep; requests for memory start no I/O.
    fn message(_data: &Self::Data<'_>, _args: &Args, _out: &mut TextWriter<'_>) -> Result {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Shows every range of every underlying device. May sleep; requests for memory start no I/O.
    fn iterate_devices(_data: &Self::Data<'_>, _visitor: DeviceVisitor<'_>) -> Result<(), Stop> {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Changes what the underlying devices, as shown by [`Target::iterate_devices`], make of the limits. May sleep; requests for memory start
    /// no I/O.
    fn io_hints(_data: &Self::Data<'_>, _limits: &mut Limits<'_>) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}
