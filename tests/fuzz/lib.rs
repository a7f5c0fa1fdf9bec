// SPDX-License-Identifier: GPL-2.0

//! The fuzz targets as a crate, for the fuzzers in `bin/`.

// The host's tests make files of them, too.
#[allow(dead_code)]
#[path = "../host/image.rs"]
mod image;
pub mod targets;
