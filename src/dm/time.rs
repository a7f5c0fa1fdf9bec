// SPDX-License-Identifier: GPL-2.0

//! The time of day, which the kernel crate has (`Instant<RealTime>`) but does not show as a number.

use super::bindings;

/// The time in seconds since 1970, 0 before that. Any context.
pub(crate) fn unix_seconds() -> u64 {
    // SAFETY: No requirements.
    u64::try_from(unsafe { bindings::ktime_get_real_seconds() }).unwrap_or(0)
}
