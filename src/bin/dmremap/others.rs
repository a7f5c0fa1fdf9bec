// SPDX-License-Identifier: GPL-2.0

//! Whether others use the disks below a device, from the kernel's own counts.
//!
//! The idle class of priorities needs an I/O scheduler that heeds it: BFQ does, mq-deadline only while others have requests in
//! its queue, and with none, as NVMe disks have it, nobody does. So who wants to be no burden looks for himself.

use crate::dm::{attribute, directory, Number};
use std::path::{Path, PathBuf};

/// The disks that a device lies on, in sysfs.
pub(crate) struct Disks {
    paths: Vec<PathBuf>,
    /// Sectors that they have moved so far.
    moved: u64,
}

/// What a disk has done so far.
#[derive(Default, PartialEq, Eq, Debug)]
struct Counts {
    /// Sectors read, written and discarded.
    moved: u64,
    /// Requests that are on their way now.
    in_flight: u64,
}

/// From the file `stat` of a disk.
fn counts(stat: &str) -> Counts {
    let fields: Vec<u64> = stat
        .split_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    let field = |at: usize| fields.get(at).copied().unwrap_or(0);
    Counts {
        moved: [2, 6, 13].map(field).iter().sum(),
        in_flight: field(8),
    }
}

/// Adds the disks below the device whose directory in sysfs is `device`.
fn add(device: &Path, disks: &mut Vec<PathBuf>) {
    let slaves = std::fs::read_dir(device.join("slaves"));
    let slaves: Vec<PathBuf> = slaves
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .collect();
    for slave in &slaves {
        if let Ok(slave) = slave.canonicalize() {
            add(&slave, disks);
        }
    }
    let is_partition = device.join("partition").exists();
    let disk = match device.parent() {
        Some(disk) if is_partition => disk,
        _ => device,
    };
    if slaves.is_empty() && !disks.iter().any(|known| known == disk) {
        disks.push(disk.into());
    }
}

impl Disks {
    /// Those below a device.
    pub(crate) fn below(device: Number) -> Self {
        let mut paths = Vec::new();
        if let Some(directory) = directory(device) {
            add(&directory, &mut paths);
        }
        let mut disks = Self { paths, moved: 0 };
        disks.moved = disks.counts().moved;
        disks
    }

    fn counts(&self) -> Counts {
        let mut all = Counts::default();
        for path in &self.paths {
            let Counts { moved, in_flight } = counts(&attribute(path, "stat").unwrap_or_default());
            all.moved += moved;
            all.in_flight += in_flight;
        }
        all
    }

    /// Whether others have used them since this was asked last, or do now. The caller has no request on its way, and has
    /// moved `own` sectors since.
    pub(crate) fn are_used_by_others(&mut self, own: u64) -> bool {
        let Counts { moved, in_flight } = self.counts();
        let others = moved.saturating_sub(self.moved).saturating_sub(own);
        self.moved = moved;
        others > 0 || in_flight > 0
    }

    /// Whether one of them may turn.
    pub(crate) fn may_turn(&self) -> bool {
        let turns = |path: &PathBuf| attribute(path, "queue/rotational").as_deref() != Some("0");
        self.paths.iter().any(turns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_partition_and_what_is_mapped_lie_on_disks() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let [sda, sdb] = ["sda", "sdb"].map(|name| root.join(name));
        let part = sda.join("sda1");
        let [lv, crypt] = ["dm-0", "dm-1"].map(|name| root.join(name));
        for path in [&sda, &sdb, &part, &lv.join("slaves"), &crypt.join("slaves")] {
            fs::create_dir_all(path).unwrap();
        }
        fs::write(part.join("partition"), "1\n").unwrap();
        symlink(&part, lv.join("slaves/sda1")).unwrap();
        symlink(&sdb, lv.join("slaves/sdb")).unwrap();
        symlink(&lv, crypt.join("slaves/dm-0")).unwrap();
        for (device, expected) in [
            (&sda, vec![&sda]),
            (&part, vec![&sda]),
            (&lv, vec![&sda, &sdb]),
            (&crypt, vec![&sda, &sdb]),
        ] {
            let mut found = Vec::new();
            add(device, &mut found);
            found.sort();
            assert!(found.iter().eq(expected), "{device:?}: {found:?}");
        }

        let stat = |path: &Path, read: u64, written: u64, in_flight: u64| {
            let stat = format!("1 0 {read} 1 1 0 {written} 1 {in_flight} 1 1 0 0 0 0 0 0\n");
            fs::write(path.join("stat"), stat).unwrap();
        };
        stat(&sda, 1000, 0, 0);
        stat(&sdb, 0, 500, 0);
        let paths = vec![sda.clone(), sdb.clone()];
        let mut disks = Disks { paths, moved: 1500 };
        assert!(!disks.are_used_by_others(0));
        stat(&sda, 3048, 0, 0);
        assert!(!disks.are_used_by_others(2048));
        stat(&sdb, 0, 508, 0);
        assert!(disks.are_used_by_others(0));
        assert!(!disks.are_used_by_others(0));
        stat(&sdb, 0, 508, 1);
        assert!(disks.are_used_by_others(0));
        assert!(disks.may_turn());
        for disk in [&sda, &sdb] {
            fs::create_dir(disk.join("queue")).unwrap();
            fs::write(disk.join("queue/rotational"), "0\n").unwrap();
        }
        assert!(!disks.may_turn());
    }

    #[test]
    fn what_is_counted_is_found_in_stat() {
        let with_discards = "9 8 7 6 5 4 3 2 1 10 11 12 13 14 15 16 17";
        assert_eq!(
            counts(with_discards),
            Counts {
                moved: 7 + 3 + 14,
                in_flight: 1
            }
        );
        // Of a kernel that counts no discards.
        assert_eq!(
            counts("9 8 7 6 5 4 3 2 1 10 11"),
            Counts {
                moved: 10,
                in_flight: 1
            }
        );
        assert_eq!(counts(""), Counts::default());
    }
}
