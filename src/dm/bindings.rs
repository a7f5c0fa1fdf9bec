// SPDX-License-Identifier: GPL-2.0

//! The generated bindings: `bindings/bindings.h` through bindgen, see Kbuild.

#![allow(
    clippy::all,
    clippy::cast_lossless,
    clippy::ptr_as_ptr,
    clippy::ref_as_ptr,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    non_snake_case,
    improper_ctypes,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]

use kernel::bindings::*;
use kernel::ffi;
use pin_init::MaybeZeroable;

include!(env!("DM_REMAP_BINDINGS"));
