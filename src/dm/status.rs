// SPDX-License-Identifier: GPL-2.0

//! How a bio ended, and text for user space.

use super::bindings;
use core::fmt;
use kernel::prelude::*;

/// A `blk_status_t`, see `include/linux/blk_types.h`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status(pub(super) kernel::bindings::blk_status_t);

impl Status {
    /// Done.
    pub(crate) const OK: Self = Self(0);
    /// The device does not know the operation.
    pub(crate) const NOTSUPP: Self = Self(bindings::BLK_STS_NOTSUPP);
    /// Critical target error: the device understood and refused, or broke.
    pub(crate) const TARGET: Self = Self(bindings::BLK_STS_TARGET);
    /// Critical medium error.
    pub(crate) const MEDIUM: Self = Self(bindings::BLK_STS_MEDIUM);
    /// Not enough memory.
    pub(crate) const RESOURCE: Self = Self(bindings::BLK_STS_RESOURCE);
    /// Any other I/O error.
    pub(crate) const IOERR: Self = Self(bindings::BLK_STS_IOERR);
    /// Would block, and the submitter asked not to.
    pub(crate) const AGAIN: Self = Self(bindings::BLK_STS_AGAIN);

    /// Whether the bio succeeded.
    pub(crate) fn is_ok(self) -> bool {
        self == Self::OK
    }

    /// `Ok` for [`Self::OK`], itself as the error otherwise.
    pub(crate) fn check(self) -> Result<(), Self> {
        if self.is_ok() {
            Ok(())
        } else {
            Err(self)
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blk_status {}", self.0)
    }
}

/// Writes text to a buffer of the kernel's, always ending with a NUL.
///
/// What does not fit is dropped; device-mapper notices a full buffer and says so to user space,
/// which asks again with a larger one (`retrieve_status` and `target_message` in
/// `drivers/md/dm-ioctl.c`).
///
/// # Invariants
///
/// `used < buffer.len()` unless the buffer is empty, and `buffer[used]` is a NUL.
pub(crate) struct TextWriter<'a> {
    buffer: &'a mut [u8],
    used: usize,
}

impl<'a> TextWriter<'a> {
    /// # Safety
    ///
    /// `text` must be valid for writes of `len` bytes for `'a`, and nobody else may use it.
    pub(super) unsafe fn from_raw(text: *mut c_char, len: c_uint) -> Self {
        if len == 0 {
            return Self {
                buffer: &mut [],
                used: 0,
            };
        }
        // SAFETY: Valid for writes by this function's requirements; zeroed, so initialised for the
        // reads that a slice allows. `c_char` is `u8` in the kernel.
        let buffer = unsafe {
            core::ptr::write_bytes(text, 0, len as usize);
            core::slice::from_raw_parts_mut(text, len as usize)
        };
        // INVARIANT: The buffer is not empty and all NUL.
        Self { buffer, used: 0 }
    }

    /// Bytes written.
    pub(crate) fn len(&self) -> usize {
        self.used
    }

    /// Whether more text may fit.
    pub(crate) fn is_full(&self) -> bool {
        self.used + 1 >= self.buffer.len()
    }
}

impl fmt::Write for TextWriter<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let room = self.buffer.len().saturating_sub(self.used + 1);
        let count = room.min(s.len());
        let source = s.as_bytes().get(..count).unwrap_or_default();
        let end = self.used + count;
        if let Some(place) = self.buffer.get_mut(self.used..end) {
            place.copy_from_slice(source);
            // INVARIANT: At most the last byte but one was written, the rest still is NUL.
            self.used = end;
        }
        Ok(())
    }
}
