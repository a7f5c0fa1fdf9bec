// SPDX-License-Identifier: GPL-2.0

//! How a bio ended.

use super::bindings;
use kernel::fmt;

/// A `blk_status_t`, see `include/linux/blk_types.h`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlkStatus(pub(super) kernel::bindings::blk_status_t);

impl BlkStatus {
    /// Done.
    pub(crate) const OK: Self = Self(0);
    /// The device does not know the operation.
    pub(crate) const NOTSUPP: Self = Self(bindings::BLK_STS_NOTSUPP);
    /// Critical target error: the device understood and refused, or broke.
    pub(crate) const TARGET: Self = Self(bindings::BLK_STS_TARGET);
    /// Critical medium error.
    pub(crate) const MEDIUM: Self = Self(bindings::BLK_STS_MEDIUM);
    /// The way to the device failed.
    pub(crate) const TRANSPORT: Self = Self(bindings::BLK_STS_TRANSPORT);
    /// Not enough memory.
    pub(crate) const RESOURCE: Self = Self(bindings::BLK_STS_RESOURCE);
    /// Any other I/O error.
    pub(crate) const IOERR: Self = Self(bindings::BLK_STS_IOERR);
    /// Would block, and the submitter asked not to.
    pub(crate) const AGAIN: Self = Self(bindings::BLK_STS_AGAIN);

    /// Whether the bio succeeded.
    #[inline(always)]
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

impl fmt::Debug for BlkStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blk_status {}", self.0)
    }
}
