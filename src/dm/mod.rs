// SPDX-License-Identifier: GPL-2.0

//! Safe wrappers over device-mapper and what a target needs beside it.
//!
//! A target implements [`Target`] and registers it with [`module_target!`](crate::module_target). Device-mapper then calls:
//!
//! - [`Target::ctr`] for a table line: it asks for devices ([`Setup::device`]) and works ([`Setup::work`]), and returns an
//!   initialiser for the target's data;
//! - [`Target::map`] for each bio, in the submitter's context, with a [`MapBio`]. It must not sleep, and it must say
//!   what becomes of the bio: [`MapBio::remap`] and its like, [`MapBio::defer`] or [`MapBio::complete`] use it up and return
//!   the [`Mapped`] that `map` has to return;
//! - [`Target::end_io`] when a bio that was sent down is back, unless it [is settled](Target::is_settled), in any context, with
//!   an [`EndBio`], which may be passed on as it is, or deferred;
//! - [`Target::process`] for a deferred bio, in process context, with a [`DeferredBio`]: here it may sleep, submit parts of the bio
//!   again, and complete it;
//! - suspend, resume, status and message callbacks.
//!
//! When the target goes away, the data are dropped.
//!
//! | type | C |
//! |---|---|
//! | [`Target`] | `struct target_type` |
//! | [`module_target!`](crate::module_target) | `dm_register_target` |
//! | [`TargetInfo`], [`Setup`] | `struct dm_target` |
//! | [`Device`] | `struct dm_dev` |
//! | [`MapBio`], [`EndBio`], [`DeferredBio`] | `struct bio`, a clone in its three states |
//! | [`Mapped`], [`Ended`] | `DM_MAPIO_*`, `DM_ENDIO_*` |
//! | [`BlkStatus`] | `blk_status_t` |
//! | [`Work`] | `struct delayed_work` |
//! | [`RcuSliceCell`], [`RcuGuard`] | an `__rcu` pointer, `rcu_read_lock` |
//! | [`PerCpuCounts`] | `alloc_percpu(u64[2])`, `this_cpu_inc` |
//! | [`Limits`], [`DeviceVisitor`] | `struct queue_limits`, `iterate_devices_callout_fn` |
//!
//! What is lent, to the data for their lifetime and to a callback for its call, cannot be kept for longer, nor used for
//! something else: see `docs/design.md` for what each of the types rules out, and `tests/compile-fail` for programs that it does.
//!
//! This layer knows nothing of what a target does. It holds all the `unsafe` of the module.
//!
//! Known limits: bio based targets only; no zoned devices, secure erase, atomic writes, inline encryption, data integrity, DAX; no
//! passed-through ioctls but for persistent reservations, which device-mapper sends to all devices that a target shows. That `map` and `end_io` do not sleep is not
//! checked by the compiler, but by a kernel with `CONFIG_DEBUG_ATOMIC_SLEEP`.
//!
//! C header: `include/linux/device-mapper.h`.
#![cfg_attr(doc, doc = "\n# A whole target\n\n```ignore")]
#![cfg_attr(doc, doc = include_str!("../../samples/linear/rust_dm_linear.rs"))]
#![cfg_attr(doc, doc = "```")]
// No target uses all of it.
#![allow(dead_code, unused_imports)]

mod bindings;
mod bio;
mod bits;
mod callbacks;
mod compat;
mod context;
mod crc;
mod device;
mod info;
mod instance;
mod io;
mod limits;
mod log;
mod percpu;
mod random;
mod rcu;
mod status;
mod target;
#[cfg(CONFIG_KUNIT)]
mod tests;
mod text;
mod time;
mod work;

pub(crate) use bio::{Cookie, DeferredBio, EndBio, Ended, Fua, MapBio, Mapped, Op, ReadyBio};
pub(crate) use bits::{read_ordered, read_relaxed, Bits};
pub(crate) use callbacks::Registration;
pub(crate) use context::is_killed;
pub(crate) use crc::crc32c;
pub(crate) use device::{Device, DeviceRange};
pub(crate) use info::{Args, Table, TargetInfo};
pub(crate) use instance::{Linear, Setup};
pub(crate) use io::{Durability, IoBuffer};
pub(crate) use limits::{DeviceVisitor, Limits, Stop};
pub(crate) use log::log_allowed;
pub(crate) use percpu::PerCpuCounts;
pub(crate) use random::random_bytes;
pub(crate) use rcu::{rcu_read_lock, RcuGuard, RcuSlice, RcuSliceCell};
pub(crate) use status::BlkStatus;
pub(crate) use target::{Refused, Target};
pub(crate) use text::TextWriter;
pub(crate) use time::unix_seconds;
pub(crate) use work::{TargetWork, Work};
