// SPDX-License-Identifier: GPL-2.0

//! What is mounted, and what is swap space, as the kernel says.

use crate::dm::{number, number_at, Number};
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// A line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// The mount's own.
    pub(crate) id: u64,
    /// The device's, but for btrfs and the like, which have one of their own.
    pub(crate) number: Number,
    /// What of the file system is mounted: `/` unless it is a bind mount.
    pub(crate) root: OsString,
    pub(crate) at: PathBuf,
    pub(crate) kind: String,
    /// What was mounted, as it was given.
    pub(crate) source: PathBuf,
    /// The file system's, between commas.
    pub(crate) options: String,
}

impl Mount {
    /// Of `36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw,errors=continue`.
    fn parse(line: &[u8]) -> Option<Self> {
        let dash = line.windows(3).position(|three| three == b" - ")?;
        let words = |part: &'_ [u8]| -> Vec<OsString> {
            part.split(|byte| *byte == b' ').map(unescaped).collect()
        };
        let (place, what) = (words(&line[..dash]), words(&line[dash + 3..]));
        Some(Self {
            id: place.first()?.to_str()?.parse().ok()?,
            number: number(place.get(2)?.to_str()?)?,
            root: place.get(3)?.clone(),
            at: place.get(4)?.into(),
            kind: what.first()?.to_str()?.into(),
            source: what.get(1)?.into(),
            options: what
                .get(2)
                .map_or(String::new(), |it| it.to_string_lossy().into_owned()),
        })
    }

    /// All lines of `table`.
    pub(crate) fn all(table: &[u8]) -> impl Iterator<Item = Self> + '_ {
        table.split(|byte| *byte == b'\n').filter_map(Self::parse)
    }

    /// Whether it is what the device of that number holds.
    pub(crate) fn is_of(&self, device: Number) -> bool {
        // What was once mounted from a path says nothing of what is there now, so it only counts where there is no number.
        let has_own_number = self.number.0 == 0 && matches!(&*self.kind, "btrfs" | "bcachefs");
        self.number == device || has_own_number && number_at(&self.source) == Some(device)
    }
}

/// The kernel's tables.
#[derive(Default)]
pub(crate) struct Tables {
    /// mountinfo(5).
    pub(crate) mounts: Vec<u8>,
    /// /proc/swaps.
    pub(crate) swaps: String,
}

impl Tables {
    pub(crate) fn read() -> Self {
        let bytes = |path| fs::read(path).unwrap_or_default();
        Self {
            mounts: bytes("/proc/self/mountinfo"),
            swaps: String::from_utf8_lossy(&bytes("/proc/swaps")).into_owned(),
        }
    }

    /// The mounts of a device, those first that show most of what is on it.
    pub(crate) fn mounts_of(&self, device: Number) -> Vec<Mount> {
        let mounts = Mount::all(&self.mounts).filter(|mount| mount.is_of(device));
        let mut mounts: Vec<Mount> = mounts.collect();
        mounts.sort_by_key(|mount| mount.root.len());
        mounts
    }

    /// Whether swap space is on the device.
    pub(crate) fn is_swap(&self, device: Number) -> bool {
        let mut paths = self.swaps.lines().filter_map(|line| line.split(' ').next());
        paths.any(|path| number_at(Path::new(&unescaped(path.as_bytes()))) == Some(device))
    }
}

/// A process for which the device is mounted, and where, in whichever mount namespace.
pub(crate) fn elsewhere(device: Number) -> Option<(String, PathBuf)> {
    elsewhere_of(Path::new("/proc"), device)
}

fn elsewhere_of(proc: &Path, device: Number) -> Option<(String, PathBuf)> {
    let mut namespaces = HashSet::new();
    fs::read_dir(proc).ok()?.flatten().find_map(|process| {
        let id = process.file_name().to_str()?.to_string();
        id.parse::<u32>().ok()?;
        // One process of each will do.
        let namespace = fs::read_link(process.path().join("ns/mnt"));
        if namespace.is_ok_and(|namespace| !namespaces.insert(namespace)) {
            return None;
        }
        let table = fs::read(process.path().join("mountinfo")).ok()?;
        let mount = Mount::all(&table).find(|mount| mount.is_of(device))?;
        Some((id, mount.at))
    })
}

/// A path as the kernel's tables have it: blanks and the like are octal numbers there. Other bytes are as they are, of
/// whichever encoding.
fn unescaped(path: &[u8]) -> OsString {
    let mut parts = path.split(|byte| *byte == b'\\');
    let mut bytes = parts.next().unwrap_or_default().to_vec();
    for part in parts {
        let digits = part.get(..3).and_then(|n| OsStr::from_bytes(n).to_str());
        match digits.and_then(|n| u8::from_str_radix(n, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend(&part[3..]);
            }
            None => {
                bytes.push(b'\\');
                bytes.extend(part);
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_mounts_the_one_that_shows_most_comes_first() {
        let tables = Tables {
            mounts: "36 35 8:1 /sub /srv rw - ext4 /dev/none rw\n\
                     37 35 8:1 / /mnt/a\\040b\\134 rw,noatime master:1 - ext4 /dev/none rw\n\
                     38 35 8:1 /sub/sub /opt rw - ext4 /dev/none rw\nnonsense\n"
                .into(),
            swaps: String::new(),
        };
        let mounts = tables.mounts_of((8, 1));
        let at: Vec<&str> = mounts.iter().filter_map(|m| m.at.to_str()).collect();
        assert_eq!(at, ["/mnt/a b\\", "/srv", "/opt"]);
        assert_eq!((&*mounts[0].kind, mounts[0].id), ("ext4", 37));
        assert_eq!(mounts[0].options, "rw");
        assert_eq!(tables.mounts_of((8, 2)), []);
        assert!(!tables.is_swap((8, 1)));
    }

    #[test]
    fn what_was_mounted_from_a_path_counts_only_where_there_is_no_number() {
        // Some block device, if there is one where this runs.
        let nodes = fs::read_dir("/dev").into_iter().flatten().flatten();
        let paths = nodes.map(|node| node.path());
        let Some((path, device)) = paths
            .filter_map(|path| Some((path.clone(), number_at(&path)?)))
            .next()
        else {
            return;
        };
        let of = |number: &str, kind: &str| {
            let path = path.display();
            let line = format!("36 35 {number} / /mnt rw - {kind} {path} rw");
            Mount::parse(line.as_bytes()).is_some_and(|mount| mount.is_of(device))
        };
        assert!(of("0:40", "btrfs"));
        assert!(!of("0:40", "fuse.x"));
        assert!(!of("9999:1", "ext4") && !of("9999:1", "btrfs"));
        assert!(of(&format!("{}:{}", device.0, device.1), "ext4"));
    }

    #[test]
    fn a_mount_in_another_namespace_is_found() {
        let proc = tempfile::tempdir().unwrap();
        for (id, line) in [
            ("1", "36 35 8:1 / / rw - ext4 /dev/sda1 rw\n"),
            ("77", "36 35 8:2 / /data\\040x rw - xfs /dev/sdb rw\n"),
            ("self", "36 35 8:3 / /no rw - xfs /dev/sdc rw\n"),
        ] {
            fs::create_dir(proc.path().join(id)).unwrap();
            fs::write(proc.path().join(id).join("mountinfo"), line).unwrap();
        }
        let found = |minor| elsewhere_of(proc.path(), (8, minor));
        assert_eq!(found(2), Some(("77".into(), "/data x".into())));
        assert_eq!((found(3), found(4)), (None, None));
    }

    #[test]
    fn a_path_may_have_any_bytes() {
        let line = b"36 35 8:1 / /mnt/\xe4\\303\\244\\x rw - exfat /dev/a rw,errors=panic";
        let mount = Mount::parse(line).unwrap();
        assert_eq!(mount.at.as_os_str().as_bytes(), b"/mnt/\xe4\xc3\xa4\\x");
        assert_eq!(mount.options, "rw,errors=panic");
    }
}
