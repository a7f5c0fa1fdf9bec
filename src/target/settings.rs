// SPDX-License-Identifier: GPL-2.0

//! The features in force: those of the table line, and what `set` made of them.

use crate::dm::{RcuSlice, RcuSliceCell};
use crate::engine::args::{Features, Setting};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{rcu, Mutex},
};

/// Features that change at run time.
#[pin_data]
pub(super) struct Settings {
    features: RcuSliceCell<Features>,
    /// Serialises changes.
    #[pin]
    changing: Mutex<()>,
}

impl Settings {
    /// The features of a table line.
    pub(super) fn new(features: Features) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            features: {
                let cell = RcuSliceCell::empty();
                Self::put(&cell, features)?;
                cell
            },
            changing <- new_mutex!((), "dm_remap::settings"),
        }? Error)
    }

    fn put(cell: &RcuSliceCell<Features>, features: Features) -> Result {
        let mut slice = RcuSlice::with_capacity(1, GFP_KERNEL)?;
        slice.extend(&[features]);
        cell.replace(Some(slice));
        Ok(())
    }

    /// The features as they are now. Any context.
    pub(super) fn get(&self) -> Features {
        let guard = rcu::read_lock();
        self.features
            .read(&guard)
            .first()
            .copied()
            .unwrap_or_default()
    }

    /// Changes one. May sleep.
    pub(super) fn set(&self, setting: Setting) -> Result {
        let _changing = self.changing.lock();
        let mut features = self.get();
        setting.apply(&mut features);
        Self::put(&self.features, features)
    }
}
