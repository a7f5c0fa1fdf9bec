// SPDX-License-Identifier: GPL-2.0

//! Checksums. The kernel crate does not have them yet.

use super::bindings;

/// Continues a standard CRC-32C (Castagnoli); begins with 0. Any context.
///
/// The kernel's own `crc32c` (`include/linux/crc32.h`) leaves both inversions to the caller.
pub(crate) fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    // SAFETY: Pointer and length are those of a live slice, which is only read.
    !unsafe { bindings::crc32c(!crc, bytes.as_ptr().cast(), bytes.len()) }
}
