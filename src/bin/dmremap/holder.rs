// SPDX-License-Identifier: GPL-2.0

//! Who uses a device or an image file.

use crate::dm::{attribute, directory, number, number_at, Number};
use crate::mounts::{Mount, Tables};
use std::fs;
use std::path::{Path, PathBuf};

/// Who uses the device or image file at `path` below the level of processes, in words: `/dev/sdb1 is mounted at /mnt`.
///
/// A partition is used with its disk, and a disk with each of its partitions.
pub(crate) fn of(path: &Path) -> Option<String> {
    of_but(path, &|_| false)
}

/// The same, but that mapped devices of `except` may use it.
pub(crate) fn of_but(path: &Path, except: &dyn Fn(Number) -> bool) -> Option<String> {
    let Some(number) = number_at(path) else {
        return loop_device_of(path);
    };
    let device = directory(number)?;
    let tables = Tables::read();
    related(&device)
        .iter()
        .find_map(|device| user_of(&tables, device, except))
}

/// The loop device that serves an image file, if there is one.
fn loop_device_of(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let mut devices = fs::read_dir("/sys/block").ok()?.flatten();
    let used = devices.find(|device| {
        let backing = fs::read_to_string(device.path().join("loop/backing_file"));
        backing.is_ok_and(|backing| Path::new(backing.trim_end()) == path)
    })?;
    let device = used.file_name();
    Some(format!(
        "/dev/{} serves it; give that, or detach it",
        device.to_string_lossy()
    ))
}

/// The directories in sysfs of `device`, and of its disk or of its partitions.
fn related(device: &Path) -> Vec<PathBuf> {
    let is_partition = |device: &Path| device.join("partition").exists();
    let mut all = vec![device.to_path_buf()];
    if is_partition(device) {
        all.extend(device.parent().map(PathBuf::from));
    } else {
        let inside = fs::read_dir(device).into_iter().flatten().flatten();
        all.extend(inside.map(|e| e.path()).filter(|path| is_partition(path)));
    }
    all
}

/// The name in /dev of the device whose directory in sysfs is `device`.
fn name_of(device: &Path) -> String {
    let name = device.file_name().unwrap_or_default().to_string_lossy();
    format!("/dev/{}", name.replace('!', "/"))
}

/// Who uses the device whose directory in sysfs is `device`.
fn user_of(tables: &Tables, device: &Path, except: &dyn Fn(Number) -> bool) -> Option<String> {
    let name = name_of(device);
    if let Some(holder) = above(device, except) {
        return Some(format!("{name} is below {holder}"));
    }
    let number = number(&attribute(device, "dev")?)?;
    if let Some(mount) = Mount::all(&tables.mounts).find(|mount| mount.is_of(number)) {
        return Some(format!("{name} is mounted at {}", mount.at.display()));
    }
    tables
        .is_swap(number)
        .then(|| format!("{name} is used as swap"))
}

/// A device that lies on the one whose directory in sysfs is `device`.
fn above(device: &Path, except: &dyn Fn(Number) -> bool) -> Option<String> {
    let holders = fs::read_dir(device.join("holders")).ok()?.flatten();
    let number_of = |path: &Path| number(&attribute(path, "dev")?);
    let mut holders = holders.filter(|holder| !number_of(&holder.path()).is_some_and(except));
    let holder = holders.next()?;
    match fs::read_to_string(holder.path().join("dm/name")) {
        Ok(name) => {
            let name = name.trim_end();
            Some(format!(
                "/dev/mapper/{name} (a remap device answers for itself: dmremap check {name})"
            ))
        }
        Err(_) => Some(name_of(&holder.path())),
    }
}

/// A process that has the device or file at `path` open, as far as that can be seen: `mkfs.ext4 (process 4711)`.
pub(crate) fn process(path: &Path) -> Option<String> {
    let (number, path) = (number_at(path), path.canonicalize().ok()?);
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut others = processes.filter(|process| {
        let id = process.file_name().to_string_lossy().parse();
        id.is_ok_and(|id: u32| id != std::process::id())
    });
    let is_it = |file: PathBuf| match number {
        // It may have other names.
        Some(number) => number_at(&file) == Some(number),
        None => fs::read_link(file).is_ok_and(|open| open == path),
    };
    let holder = others.find(|process| {
        let files = fs::read_dir(process.path().join("fd"));
        let mut files = files.into_iter().flatten().flatten();
        files.any(|file| is_it(file.path()))
    })?;
    let name = attribute(&holder.path(), "comm").unwrap_or_default();
    let id = holder.file_name();
    Some(format!("{name} (process {})", id.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_of_a_device_is_named() {
        let root = tempfile::tempdir().unwrap();
        let disk = root.path().join("sda");
        let [one, two] = ["sda1", "sda2"].map(|name| disk.join(name));
        for (device, number) in [(&disk, "8:0\n"), (&one, "8:1\n"), (&two, "8:2\n")] {
            fs::create_dir_all(device.join("holders")).unwrap();
            fs::write(device.join("dev"), number).unwrap();
        }
        for (device, number) in [(&one, "1\n"), (&two, "2\n")] {
            fs::write(device.join("partition"), number).unwrap();
        }
        let tables = |mounts: &str, swaps: &str| Tables {
            mounts: mounts.into(),
            swaps: swaps.into(),
        };
        let used = |tables: &Tables, device: &Path| {
            related(device)
                .iter()
                .find_map(|d| user_of(tables, d, &|_| false))
        };
        let none = tables("21 1 0:5 / /proc rw - proc proc rw\n", "Filename Type\n");
        for device in [&disk, &one, &two] {
            assert_eq!(used(&none, device), None);
        }
        let mounts = "36 35 8:1 / /mnt/a\\040b\\134 rw,noatime master:1 - ext4 /dev/none rw\n";
        let mounted = tables(mounts, "");
        let said = Some("/dev/sda1 is mounted at /mnt/a b\\".into());
        assert_eq!(
            [&disk, &one].map(|d| used(&mounted, d)),
            [said.clone(), said]
        );
        assert_eq!(used(&mounted, &two), None);
        // A mapped device, and one of another kind.
        fs::create_dir_all(two.join("holders/dm-3/dm")).unwrap();
        fs::write(two.join("holders/dm-3/dm/name"), "safe\n").unwrap();
        let said = used(&none, &two).unwrap();
        assert!(
            said.starts_with("/dev/sda2 is below /dev/mapper/safe "),
            "{said}"
        );
        assert!(said.contains("dmremap check safe"), "{said}");
        fs::create_dir(disk.join("holders/md0")).unwrap();
        let said = Some("/dev/sda is below /dev/md0".into());
        assert_eq!([&disk, &one].map(|d| used(&none, d)), [said.clone(), said]);
    }
}
