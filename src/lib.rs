// SPDX-License-Identifier: GPL-2.0

//! The engine of dm-remap as a host crate: for tests, benches and host tools.
//!
//! The kernel module compiles the same files from `src/dm_remap.rs`.

#![no_std]

#[cfg(test)]
extern crate std;

pub mod engine;
