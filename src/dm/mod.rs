// SPDX-License-Identifier: GPL-2.0

//! Safe wrappers over device-mapper and what a target needs beside it.
//!
//! A target implements [`Target`] and registers it with [`Registration`]. Device-mapper then calls:
//!
//! - [`Target::ctr`] for a table line: it opens devices ([`Setup::device`]) and returns the
//!   target's data, which every later callback borrows, until [`Target::dtr`];
//! - [`Target::map`] for each bio, in the submitter's context, with a [`MapBio`]. It must not
//!   sleep, and it must say what becomes of the bio: [`MapBio::remap`], [`MapBio::defer`] or
//!   [`MapBio::complete`] use it up and return the [`Mapped`] that `map` has to return;
//! - [`Target::end_io`] when a remapped bio failed, is not settled ([`Target::version`]) or is watched, in any
//!   context, with an [`EndBio`], which may be passed on as it is or deferred;
//! - [`Target::process`] for a deferred bio, from a [`Queue`], with a [`DeferredBio`]: here it may
//!   sleep, submit parts of the bio again, and complete it;
//! - suspend, resume, status and message callbacks.
//!
//! This layer knows nothing of what a target does. It holds all the `unsafe` of the module.
//!
//! Known limits: bio based targets only; no zoned devices. And what nothing in the type system stops a target from
//! doing wrong: [`Device`]s, a [`TargetHandle`] and borrowed data must not be moved out of the target's data, which must
//! own the [`Queue`] that a bio is deferred to.
//!
//! C header: `include/linux/device-mapper.h`.

mod bindings;
mod bio;
mod claim;
mod compat;
mod device;
mod io;
mod misc;
mod rcu;
mod status;
mod target;
#[cfg(CONFIG_KUNIT)]
mod tests;
mod workqueue;

pub(crate) use bio::{DeferredBio, EndBio, Ended, MapBio, Mapped, Op};
pub(crate) use claim::{init_claims, Claim};
pub(crate) use device::Device;
pub(crate) use io::IoBuffer;
pub(crate) use misc::{crc32c, is_killed, log_allowed, random_bytes, unix_seconds, NoIo};
pub(crate) use rcu::{peek, Bits, RcuSlice, RcuSliceCell, Stamp, Version};
pub(crate) use status::{Status, TextWriter};
pub(crate) use target::{
    Args, DeviceVisitor, Limits, Refused, Registration, Setup, Stop, Target, TargetHandle,
    TargetInfo,
};
pub(crate) use workqueue::Queue;
