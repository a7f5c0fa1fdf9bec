// SPDX-License-Identifier: GPL-2.0

//! The pure part of dm-remap: what to do, never how to do it.
//!
//! Everything here is a total function over plain values: no kernel calls, no allocation, no panic
//! on any input. It is compiled into the module and, by Cargo, on the host, where it is tested.
//! Storage (a bitmap, an array of entries) is handed in by the caller.
//!
//! - [`geometry`]: where metadata and slots lie on the spare.
//! - [`format`]: the blocks on the spare, read as hostile input.
//! - [`entries`]: the sorted entries of one region and how one of them is replaced.
//! - [`route`]: which sectors of a request go where.
//! - [`recovery`]: what next, after a command failed.
//! - [`slots`]: which slots are free, taken, or bad.
//! - [`group`]: which table blocks are in memory, and written together.
//! - [`identity`]: which device main is.
//! - [`image`]: a whole region, judged.
//! - [`grow`]: how a region becomes longer.
//! - [`fit`]: whether table line, devices and spare fit together.
//! - [`args`] and [`message`]: the table line and the messages.

#![deny(unsafe_code)]

pub mod args;
pub mod entries;
pub mod fit;
pub mod format;
pub mod geometry;
pub mod group;
pub mod grow;
pub mod identity;
pub mod image;
pub mod message;
pub mod recovery;
pub mod route;
pub mod slots;

/// Size of a sector in bytes, the unit of every address in this crate unless said otherwise.
pub const SECTOR_SIZE: u32 = 512;

/// A sentence for whoever gave us bad input; a C string, so that `ti->error` can point to it.
pub type Refusal = &'static core::ffi::CStr;

/// Number of a unit of the main device: its first sector divided by `unit_sectors`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unit(pub u64);

/// Number of a slot on the spare, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);
