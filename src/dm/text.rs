// SPDX-License-Identifier: GPL-2.0

//! Text for user space.
//!
//! `NullTerminatedFormatter` of the kernel crate is nearly it; but it fails where the buffer ends, and does not say how much it
//! wrote.

use kernel::{fmt, prelude::*};

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

    /// Writes text: `write!(out, ...)`.
    pub(crate) fn write_fmt(&mut self, text: fmt::Arguments<'_>) {
        // It cannot fail: what does not fit is dropped.
        let _ = fmt::Write::write_fmt(self, text);
    }

    /// Bytes written.
    pub(crate) fn len(&self) -> usize {
        self.used
    }

    /// Whether nothing was written.
    pub(crate) fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Whether no more text fits.
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
