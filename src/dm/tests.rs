// SPDX-License-Identifier: GPL-2.0

//! KUnit suites of the wrappers. They run when the module is loaded into a kernel with KUnit.

use super::{
    bits::Bits,
    percpu::PerCpuCounts,
    rcu::{rcu_read_lock, RcuSlice, RcuSliceCell},
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{Atomic, Full, Relaxed},
        Arc,
    },
};

/// Counts, of which each CPU has its part.
#[kunit_tests(dm_remap_percpu)]
mod counted {
    use super::*;

    #[test]
    fn nothing_is_lost_of_what_is_counted_at_the_same_time() -> Result {
        let counter = Arc::new(PerCpuCounts::new()?, GFP_KERNEL)?;
        let running = Arc::new(Atomic::new(4u32), GFP_KERNEL)?;
        for _ in 0..4 {
            let (counter, running) = (counter.clone(), running.clone());
            kernel::workqueue::system_unbound().try_spawn(GFP_KERNEL, move || {
                for _ in 0..100_000 {
                    counter.add_one(true);
                }
                running.fetch_sub(1, Full);
            })?;
        }
        while running.load(Relaxed) != 0 {
            kernel::time::delay::fsleep(kernel::time::Delta::from_millis(1));
        }
        assert_eq!((counter.get(false), counter.get(true)), (0, 400_000));
        Ok(())
    }

    #[test]
    fn a_count_that_was_cleared_begins_at_zero() -> Result {
        let counts = PerCpuCounts::new()?;
        assert_eq!((counts.get(false), counts.get(true)), (0, 0));
        counts.add_one(false);
        counts.add_one(false);
        counts.add_one(true);
        assert_eq!((counts.get(false), counts.get(true)), (2, 1));
        counts.clear();
        assert_eq!((counts.get(false), counts.get(true)), (0, 0));
        counts.add_one(false);
        assert_eq!((counts.get(false), counts.get(true)), (1, 0));
        Ok(())
    }
}

/// Publication of slices.
#[kunit_tests(dm_remap_rcu)]
mod published {
    use super::*;

    fn slice(elements: core::ops::Range<u64>) -> Result<RcuSlice<u64>> {
        let mut slice =
            RcuSlice::with_capacity((elements.end - elements.start) as usize, GFP_KERNEL)?;
        for element in elements {
            slice.extend(&[element]);
        }
        Ok(slice)
    }

    #[test]
    fn an_empty_cell_reads_as_an_empty_slice() {
        let cell = RcuSliceCell::<u64>::empty();
        assert!(cell.read(&rcu_read_lock()).is_empty());
    }

    #[test]
    fn a_slice_holds_what_it_has_room_for() -> Result {
        let cell = RcuSliceCell::empty();
        let mut slice = RcuSlice::with_capacity(3, GFP_KERNEL)?;
        slice.extend(&[1u64, 2]);
        slice.extend(&[3, 4, 5]);
        slice.push(6);
        cell.replace(Some(slice));
        assert!(*cell.read(&rcu_read_lock()) == [1, 2, 3]);
        cell.replace(None);
        assert!(cell.read(&rcu_read_lock()).is_empty());
        Ok(())
    }

    #[test]
    fn bits_are_set_one_by_one() -> Result {
        let bits = Bits::new(200)?;
        assert!(bits.is_clear(0) && bits.is_clear(199) && !bits.is_clear(256));
        assert!(bits.first_set(0, u64::MAX).is_none());
        for index in [63, 64, 130, 63, 255, 256] {
            bits.set(index);
        }
        assert!(!bits.is_clear(63) && !bits.is_clear(64) && !bits.is_clear(130));
        assert!(bits.is_clear(62) && bits.is_clear(65) && bits.is_clear(129));
        assert!(bits.first_set(0, 62).is_none() && bits.first_set(0, 63) == Some(63));
        assert!(bits.first_set(64, 500) == Some(64) && bits.first_set(65, 500) == Some(130));
        assert!(bits.first_set(65, 129).is_none() && bits.first_set(131, 199).is_none());
        assert!(bits.first_set(u64::MAX, u64::MAX).is_none() && bits.first_set(9, 8).is_none());
        Ok(())
    }

    #[test]
    fn a_reader_keeps_the_slice_it_found() -> Result {
        let cell = RcuSliceCell::empty();
        cell.replace(Some(slice(0..1000)?));
        let new = slice(5..7)?;
        let guard = rcu_read_lock();
        let old = cell.read(&guard);
        // Does not wait for the reader, or this would never return.
        cell.replace(Some(new));
        assert!(*cell.read(&guard) == [5, 6]);
        assert!(old.iter().copied().eq(0..1000));
        drop(guard);
        Ok(())
    }

    #[test]
    fn readers_see_one_version_or_another_while_it_is_replaced() -> Result {
        let cell = Arc::new(RcuSliceCell::empty(), GFP_KERNEL)?;
        cell.replace(Some(slice(0..1)?));
        let stop = Arc::new(Atomic::new(0u32), GFP_KERNEL)?;
        let wrong = Arc::new(Atomic::new(0u32), GFP_KERNEL)?;
        let running = Arc::new(Atomic::new(0u32), GFP_KERNEL)?;
        for _ in 0..2 {
            let (cell, stop, wrong) = (cell.clone(), stop.clone(), wrong.clone());
            let running = running.clone();
            running.fetch_add(1, Full);
            kernel::workqueue::system_unbound().try_spawn(GFP_KERNEL, move || {
                while stop.load(Relaxed) == 0 {
                    let guard = rcu_read_lock();
                    let seen = cell.read(&guard);
                    // Version n is n, n + 1, ..., 2 * n.
                    let n = seen.first().copied().unwrap_or(u64::MAX / 4);
                    if !seen.iter().copied().eq(n..=2 * n) {
                        wrong.add(1, Relaxed);
                    }
                }
                running.fetch_sub(1, Full);
            })?;
        }
        for n in Iterator::chain(1..200u64, (1..200).rev()) {
            cell.replace(Some(slice(n..2 * n + 1)?));
            kernel::time::delay::fsleep(kernel::time::Delta::from_micros(100));
        }
        stop.store(1, Relaxed);
        while running.load(Relaxed) != 0 {
            kernel::time::delay::fsleep(kernel::time::Delta::from_millis(1));
        }
        assert_eq!(wrong.load(Relaxed), 0);
        Ok(())
    }
}

/// What the rest relies on of the kernel's C side.
#[kunit_tests(dm_remap_misc)]
mod misc {
    use super::super::{
        context::NoIo, crc32c, random_bytes, unix_seconds, BlkStatus, DeviceRange, IoBuffer,
        TextWriter,
    };
    use super::*;

    #[test]
    fn ranges_overlap_if_they_share_a_sector_of_one_disk() {
        let range = |disk, from, to| DeviceRange { disk, from, to };
        let a = range(1, 100, 200);
        assert!(
            a.overlaps(&a) && a.overlaps(&range(1, 120, 130)) && range(1, 120, 130).overlaps(&a)
        );
        assert!(a.overlaps(&range(1, 199, 300)) && a.overlaps(&range(1, 0, 101)));
        assert!(!a.overlaps(&range(1, 200, 300)) && !a.overlaps(&range(1, 0, 100)));
        assert!(!a.overlaps(&range(2, 100, 200)));
    }

    #[test]
    fn only_the_ok_status_is_ok() {
        assert!(BlkStatus::OK.is_ok() && BlkStatus::OK.check() == Ok(()));
        for status in [
            BlkStatus::MEDIUM,
            BlkStatus::IOERR,
            BlkStatus::AGAIN,
            BlkStatus::RESOURCE,
        ] {
            assert!(!status.is_ok() && status.check() == Err(status));
        }
    }

    #[test]
    fn crc32c_is_the_standard_one() {
        assert_eq!(crc32c(0, b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(crc32c(0, b"1234"), b"56789"), 0xe306_9283);
        assert_eq!(crc32c(0, b""), 0);
    }

    #[test]
    fn random_bytes_differ() {
        assert!(random_bytes::<16>() != random_bytes::<16>());
    }

    #[test]
    fn time_is_not_before_this_was_written() {
        // The machine may have no clock: then it counts from 0.
        assert!(unix_seconds() < 1 << 40);
    }

    #[test]
    fn noio_scopes_nest() {
        let outer = NoIo::enter();
        assert!(!outer.is_nested());
        let inner = NoIo::enter();
        assert!(inner.is_nested());
        drop(inner);
        // Still inside.
        assert!(NoIo::enter().is_nested());
        drop(outer);
        assert!(!NoIo::enter().is_nested());
    }

    #[test]
    fn io_buffers_are_whole_sectors() -> Result {
        assert!(IoBuffer::new(100).is_err());
        let mut buffer = IoBuffer::new(4096)?;
        assert!(buffer.bytes().len() == 4096 && buffer.bytes().iter().all(|b| *b == 0));
        buffer.bytes_mut()[4095] = 7;
        assert!(buffer.bytes().len() == 4096 && buffer.bytes()[4095] == 7);
        Ok(())
    }

    #[test]
    fn text_is_cut_at_the_end_of_the_buffer() {
        let mut buffer = [0xffu8; 8];
        // SAFETY: The array outlives the writer, which is the only one to use it until then.
        let mut out = unsafe { TextWriter::from_raw(buffer.as_mut_ptr(), 8) };
        write!(out, "{}", 12345);
        assert!(out.len() == 5 && !out.is_full());
        write!(out, "{}", 6789);
        assert!(out.len() == 7 && out.is_full());
        assert!(buffer == *b"1234567\0");
        // SAFETY: No byte may be written.
        let mut out = unsafe { TextWriter::from_raw(core::ptr::null_mut(), 0) };
        write!(out, "x");
        assert!(out.is_empty() && out.is_full());
    }
}
