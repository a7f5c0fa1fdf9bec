// SPDX-License-Identifier: GPL-2.0

//! Random numbers. The kernel crate does not have them yet.

/// Random bytes, as for a uuid. Any context.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // SAFETY: Pointer and length are those of a live array.
    unsafe { kernel::bindings::get_random_bytes(bytes.as_mut_ptr().cast(), bytes.len()) };
    bytes
}
