// SPDX-License-Identifier: GPL-2.0

//! Ranges of devices that belong to one mapped device at a time.
//!
//! Device-mapper lets any number of mapped devices open the same device. A target that writes to
//! a range on its own account claims it first. Tables of one mapped device, the live and the
//! loaded one, may claim the same range: their lives do not overlap. Two targets of one table may not.

use super::{
    device::DeviceRange,
    target::{TableId, TargetInfo},
};
use kernel::{prelude::*, sync::global_lock};

global_lock! {
    // SAFETY: Initialised by `init_claims`, which the module calls before it registers a target.
    unsafe(uninit) static CLAIMS: Mutex<KVec<Claimed>> = KVec::new();
}

struct Claimed {
    owner: TableId,
    range: DeviceRange,
    /// Another table of the same mapped device is about to take the owner's place.
    superseded: bool,
}

/// Prepares the list of claims.
///
/// # Safety
///
/// Must be called exactly once, before any target is registered.
pub(crate) unsafe fn init_claims() {
    // SAFETY: Exactly once, by this function's requirement.
    unsafe { CLAIMS.init() };
}

/// A range claimed by a target, until dropped.
///
/// # Invariants
///
/// The pair is in the list of claims, once.
pub(crate) struct Claim(TableId, DeviceRange);

impl Claim {
    /// Claims `range` for `ti`. May sleep.
    ///
    /// Errors: `EBUSY` if another mapped device, or another target of the same table, holds some of it, `ENOMEM`.
    pub(crate) fn new(ti: &TargetInfo, range: DeviceRange) -> Result<Self> {
        let owner = ti.table_id();
        let mut claims = CLAIMS.lock();
        if claims
            .iter()
            .any(|c| owner.excludes(&c.owner) && c.range.overlaps(&range))
        {
            return Err(EBUSY);
        }
        let claimed = Claimed {
            owner,
            range,
            superseded: false,
        };
        claims.push(claimed, GFP_KERNEL)?;
        // INVARIANT: Just added.
        Ok(Self(owner, range))
    }

    /// Says to the targets of other tables that have the range that they are about to be replaced: those tables are
    /// suspended, and device-mapper will wait for messages that work on them. May sleep.
    pub(crate) fn supersede(&self) {
        for other in CLAIMS.lock().iter_mut() {
            other.superseded |= other.owner != self.0 && other.range.overlaps(&self.1);
        }
    }

    /// Whether another table is about to take this one's place. May sleep.
    pub(crate) fn is_superseded(&self) -> bool {
        let claims = CLAIMS.lock();
        claims
            .iter()
            .any(|c| c.superseded && c.owner == self.0 && c.range == self.1)
    }

    /// This table goes on, after all. May sleep.
    pub(crate) fn go_on(&self) {
        for own in CLAIMS.lock().iter_mut().filter(|c| c.owner == self.0) {
            own.superseded = false;
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claims = CLAIMS.lock();
        let at = claims
            .iter()
            .position(|c| c.owner == self.0 && c.range == self.1);
        if let Some(at) = at {
            let _ = claims.remove(at);
        }
        if claims.is_empty() {
            // Nothing may be left at module exit: statics are not dropped.
            *claims = KVec::new();
        }
    }
}
