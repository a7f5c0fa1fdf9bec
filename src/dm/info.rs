// SPDX-License-Identifier: GPL-2.0

//! What device-mapper says of a target, and to it.

use super::bindings::{self, dm_target};
use kernel::{prelude::*, types::Opaque};

/// A target of a table, from its constructor to its destructor.
///
/// # Invariants
///
/// Device-mapper initialised it and keeps it until the destructor has returned.
#[repr(transparent)]
pub(crate) struct TargetInfo(Opaque<dm_target>);

// SAFETY: What the methods read does not change after the constructor, and what they call may be
// called from any thread.
unsafe impl Sync for TargetInfo {}

impl TargetInfo {
    /// # Safety
    ///
    /// `ti` must be a target that device-mapper keeps for all of `'a`.
    pub(super) unsafe fn from_raw<'a>(ti: *mut dm_target) -> &'a Self {
        // SAFETY: Transparent, and valid by the requirement.
        unsafe { &*ti.cast::<Self>() }
    }

    #[inline(always)]
    pub(super) fn as_ptr(&self) -> *mut dm_target {
        self.0.get()
    }

    /// Its table, which is valid as long as the target.
    fn raw_table(&self) -> *mut bindings::dm_table {
        // SAFETY: Valid by the invariant; it is not changed after the constructor was called.
        unsafe { (*self.as_ptr()).table }
    }

    /// Its first sector on the mapped device.
    #[inline(always)]
    pub(crate) fn begin(&self) -> u64 {
        // SAFETY: Valid by the invariant; it is not changed after the constructor.
        unsafe { (*self.as_ptr()).begin }
    }

    /// Its length in sectors.
    pub(crate) fn sectors(&self) -> u64 {
        // SAFETY: Valid by the invariant; it is not changed after the constructor.
        unsafe { (*self.as_ptr()).len }
    }

    /// Whether the table was loaded for writing.
    pub(crate) fn is_writable(&self) -> bool {
        // SAFETY: A target's table is valid as long as the target.
        let mode = unsafe { bindings::dm_table_get_mode(self.raw_table()) };
        mode & bindings::BLK_OPEN_WRITE != 0
    }

    /// The mapped device's name, `major:minor`.
    pub(crate) fn name(&self) -> &CStr {
        #[cfg(CONFIG_KUNIT)]
        if self.raw_table().is_null() {
            return c"of a test";
        }
        // SAFETY: A target's table and its device are valid as long as the target, and so is the
        // C string with the device's name.
        unsafe { CStr::from_char_ptr(bindings::dm_table_device_name(self.raw_table())) }
    }

    /// Its table, and its mapped device, among those that exist.
    pub(crate) fn table(&self) -> Table {
        let table = self.raw_table();
        Table {
            table: table.addr(),
            // SAFETY: A target's table is valid as long as the target.
            device: unsafe { bindings::dm_table_get_md(table).addr() },
        }
    }

    /// The duplicates of each discard, and of each write-zeroes, that were asked for.
    pub(super) fn duplicates(&self) -> (u32, u32) {
        let ti = self.as_ptr();
        // SAFETY: Valid by the invariant; neither is changed after the constructor.
        unsafe { ((*ti).num_discard_bios, (*ti).num_write_zeroes_bios) }
    }

    /// Raises an event: `dmsetup wait` returns, udev hears of it. Process context, may sleep.
    pub(crate) fn event(&self) {
        // SAFETY: A target's table is valid as long as the target.
        unsafe { bindings::dm_table_event(self.raw_table()) };
    }
}

/// A table of a mapped device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Table {
    table: usize,
    device: usize,
}

impl Table {
    /// Whether targets of both may be active at the same time: those of one table are, and of several
    /// tables of one device only one is in force.
    pub(crate) fn excludes(&self, other: &Self) -> bool {
        self.device != other.device || self.table == other.table
    }
}

/// The words of a table line or a message, copied: a message's result is written to the very buffer
/// that its words came in (`target_message` in `drivers/md/dm-ioctl.c`).
pub(crate) struct Args(KVec<u8>);

impl Args {
    /// Copies the words. May sleep.
    ///
    /// # Safety
    ///
    /// `argv` must be an array of `argc` valid C strings.
    pub(super) unsafe fn copy_from_raw(argc: c_uint, argv: *mut *mut c_char) -> Result<Self> {
        let mut text = KVec::new();
        for index in 0..argc as usize {
            // SAFETY: Within the array, and a C string, by the requirement.
            let word = unsafe { CStr::from_char_ptr(*argv.add(index)) };
            text.extend_from_slice(word.to_bytes_with_nul(), GFP_KERNEL)?;
        }
        Ok(Self(text))
    }

    fn iter(&self) -> impl Iterator<Item = &CStr> {
        let words = self.0.split_inclusive(|byte| *byte == 0);
        words.filter_map(|word| CStr::from_bytes_with_nul(word).ok())
    }

    /// Word `index`.
    pub(crate) fn get(&self, index: usize) -> Option<&CStr> {
        self.iter().nth(index)
    }

    /// Word `index` as a decimal number.
    pub(crate) fn number(&self, index: usize) -> Option<u64> {
        self.get(index)?.to_str().ok()?.parse().ok()
    }

    /// All words as bytes. May sleep.
    pub(crate) fn words(&self) -> Result<KVec<&[u8]>> {
        let mut words = KVec::new();
        for word in self.iter() {
            words.push(word.to_bytes(), GFP_KERNEL)?;
        }
        Ok(words)
    }
}
