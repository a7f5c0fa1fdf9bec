// SPDX-License-Identifier: GPL-2.0

//! Regions of spares that belong to one mapped device at a time.
//!
//! Device-mapper lets any number of mapped devices open the same device. A target that writes to a region on its own account
//! claims it first. Tables of one mapped device, the live and the loaded one, may claim the same region: only one of them
//! is in force at a time. Two targets of one table may not.

use crate::dm::{DeviceRange, Table};
use kernel::{new_mutex, prelude::*, sync::Mutex};

/// All claims: what the targets share.
#[pin_data]
pub(crate) struct Claims {
    #[pin]
    list: Mutex<KVec<Claimed>>,
}

struct Claimed {
    owner: Table,
    range: DeviceRange,
    /// Another table of the same mapped device is about to take the owner's place.
    superseded: bool,
}

impl Claims {
    /// None.
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            list <- new_mutex!(KVec::new(), "dm_remap::claims"),
        }? Error)
    }

    /// Claims `range` for a target of `owner`. May sleep.
    ///
    /// Errors: `EBUSY` if another mapped device, or another target of the same table, holds some of it, `ENOMEM`.
    pub(super) fn claim(&self, owner: Table, range: DeviceRange) -> Result<Claim<'_>> {
        let mut list = self.list.lock();
        if list
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
        list.push(claimed, GFP_KERNEL)?;
        // INVARIANT: Just added.
        Ok(Claim {
            claims: self,
            owner,
            range,
        })
    }
}

/// A range claimed by a target, until dropped.
///
/// # Invariants
///
/// The pair is in the list of claims, once.
pub(super) struct Claim<'t> {
    claims: &'t Claims,
    owner: Table,
    range: DeviceRange,
}

impl Claim<'_> {
    /// Says to the targets of other tables that have the range that they are about to be replaced: those tables are
    /// suspended, and device-mapper will wait for messages that work on them. May sleep.
    pub(super) fn supersede(&self) {
        for other in self.claims.list.lock().iter_mut() {
            other.superseded |= other.owner != self.owner && other.range.overlaps(&self.range);
        }
    }

    /// Whether another table is about to take this one's place. May sleep.
    pub(super) fn is_superseded(&self) -> bool {
        let claims = self.claims.list.lock();
        claims
            .iter()
            .any(|c| c.superseded && c.owner == self.owner && c.range == self.range)
    }

    /// This table goes on, after all. May sleep.
    pub(super) fn go_on(&self) {
        let mut claims = self.claims.list.lock();
        for own in claims.iter_mut().filter(|c| c.owner == self.owner) {
            own.superseded = false;
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut claims = self.claims.list.lock();
        let at = claims
            .iter()
            .position(|c| c.owner == self.owner && c.range == self.range);
        if let Some(at) = at {
            let _ = claims.remove(at);
        }
    }
}
