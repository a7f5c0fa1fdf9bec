// SPDX-License-Identifier: GPL-2.0

//! The kernel crate with what it has only where the kernel has KUnit: `rust/kernel/kunit.rs` of the tree that is built
//! against. The module is compiled against this crate instead, to have its tests in it; `runner.c` runs them.

pub use kernel::*;

/// Without its first lines, which may only stand at the beginning of a file.
#[allow(missing_docs)]
pub mod kunit {
    include!(env!("DM_REMAP_KUNIT"));
}
