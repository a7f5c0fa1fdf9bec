// SPDX-License-Identifier: GPL-2.0

//! A bio on its way through a target.
//!
//! Device-mapper hands the target a clone of the submitter's bio. It is owned by whoever has one of the
//! three types here, in the order in which they can follow each other:
//!
//! ```text
//! map           MapBio --remap--> lower device ---------> EndBio --pass_on--> submitter
//!                 |  +--complete--> submitter                |
//!                 +-----defer-----> DeferredBio <---defer----+
//!                                     +--complete--> submitter
//! ```
//!
//! Each is used up by the step that gives the clone away. `map` and `end_io` must return the token ([`Mapped`],
//! [`Ended`]) that only those steps make, and that carries the [`Brand`] of the very bio: there is no other way to have
//! one of that type.
//!
//! C: `include/linux/bio.h`, `drivers/md/dm.c`, `drivers/md/dm-bio-record.h`.

mod deferred;
mod end;
mod map;
mod raw;
#[cfg(CONFIG_KUNIT)]
mod tests;

pub(super) use deferred::run;
pub(super) use end::Outcome;
pub(super) use raw::{per_bio_size, Raw, Recorded};

pub(crate) use deferred::{DeferredBio, Fua};
pub(crate) use end::{Cookie, EndBio, Ended};
pub(crate) use map::{MapBio, Mapped, ReadyBio};
pub(crate) use raw::Op;

use core::marker::PhantomData;

/// Marks what belongs to one call of one callback.
///
/// `'a` is that call's. A target's callbacks are written for any `'a`, and nothing converts one brand into another, as it
/// is invariant: so what has it cannot be kept past the call, nor used in another one. The raw pointer makes it
/// neither `Send` nor `Sync`.
type Brand<'a> = PhantomData<(fn(&'a ()) -> &'a (), *mut ())>;
