// SPDX-License-Identifier: GPL-2.0

//! What the kernel log has room for: `___ratelimit`, which the kernel crate does not have yet.

use super::bindings;

/// Whether one more log line is within the module's rate limit. Any context.
pub(crate) fn log_allowed() -> bool {
    // SAFETY: No requirements.
    unsafe { bindings::dmr_ratelimit() }
}
