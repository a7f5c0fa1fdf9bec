// SPDX-License-Identifier: GPL-2.0

//! The fuzz targets as a crate, for the fuzzers in `bin/`.

#[path = "../host/image.rs"]
mod image;
pub mod targets;
