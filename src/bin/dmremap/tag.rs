// SPDX-License-Identifier: GPL-2.0

//! Names of devices that stay when disks are plugged elsewhere: PARTUUID=, PARTLABEL=, ID=, REMAP=.

use crate::cli::Bounds;
use crate::dm::{attribute, directory, number_at};
use crate::dump::uuid;
use crate::image;
use crate::region::Region;
use anyhow::{bail, ensure, Context as _, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The tag that a name is, and its value; `None`: it is a path.
fn tag(name: &str) -> Option<(&str, &str)> {
    name.split_once('=').filter(|_| !name.starts_with('/'))
}

/// Refuses a name that no device can have.
pub(crate) fn check(name: &str, is_spare: bool) -> Result<()> {
    match tag(name) {
        None | Some(("PARTUUID" | "PARTLABEL" | "ID", _)) => Ok(()),
        Some(("REMAP", value)) if is_spare => digits(value).map(drop),
        Some(("REMAP", _)) => bail!("{name}: only a spare is named so"),
        // It says what is wrong.
        Some(_) => resolve(name).map(drop),
    }
}

/// Whether `name` means the block device at `path`, which has those links now. Nothing is read from it.
pub(crate) fn means(name: &str, path: &Path, links: &[&str]) -> bool {
    let has_link =
        |kind: &str, value: &str| links.contains(&&*format!("/dev/disk/by-{kind}/{value}"));
    match tag(name) {
        None => {
            let number = number_at(path);
            Path::new(name) == path
                || links.contains(&name)
                || number.is_some() && number_at(Path::new(name)) == number
        }
        Some(("PARTUUID", value)) => {
            has_link("partuuid", &value.to_ascii_lowercase())
                || number_at(path)
                    .and_then(directory)
                    .is_some_and(|device| has_partition_uuid(&device, value))
        }
        Some(("PARTLABEL", value)) => has_link("partlabel", value),
        Some(("ID", value)) => has_link("id", value),
        _ => false,
    }
}

/// Whether `name` means the spare of that uuid.
pub(crate) fn means_spare(name: &str, uuid: &str) -> bool {
    matches!(tag(name), Some(("REMAP", value)) if digits(value).ok() == digits(uuid).ok())
}

/// The same as [`resolve`], but a spare by its uuid only if udev knows it.
pub(crate) fn resolve_quickly(name: &str) -> Result<PathBuf> {
    match tag(name) {
        Some(("REMAP", value)) => by_link("remap", &dashed(&digits(value)?))
            .with_context(|| format!("{name}: no spare of that uuid was found")),
        _ => resolve(name),
    }
}

/// The device that `name` means: a path, or a tag as in fstab(5).
pub(crate) fn resolve(name: &str) -> Result<PathBuf> {
    let Some((tag, value)) = tag(name) else {
        return Ok(name.into());
    };
    ensure!(
        !value.is_empty() && !value.contains('/'),
        "{name}: no device is called so"
    );
    match tag {
        "PARTUUID" => by_link("partuuid", &value.to_ascii_lowercase())
            .or_else(|| by_partition_uuid(value))
            .with_context(|| format!("{name}: there is no such partition")),
        "PARTLABEL" => by_link("partlabel", value)
            .with_context(|| format!("{name}: there is no such partition")),
        "ID" => by_link("id", value).with_context(|| format!("{name}: there is no such disk")),
        "UUID" | "LABEL" => bail!(
            "{name}: what lies inside a remap device has its name inside only; \
             name the partition or the disk: PARTUUID=, /dev/disk/by-id/…"
        ),
        "REMAP" => by_spare(value),
        _ if Path::new(name).exists() => Ok(name.into()),
        _ => bail!("{name}: not one of PARTUUID=, PARTLABEL=, ID= and, for spares, REMAP="),
    }
}

/// A link that udev made.
fn by_link(kind: &str, value: &str) -> Option<PathBuf> {
    let path = Path::new("/dev/disk")
        .join(format!("by-{kind}"))
        .join(value);
    path.exists().then_some(path)
}

/// Names of all block devices, as the kernel has them.
fn block_devices() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/sys/class/block").into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path()))
}

fn node(device: &Path) -> Option<PathBuf> {
    let name = device.file_name()?.to_string_lossy().replace('!', "/");
    Some(Path::new("/dev").join(name))
}

/// Whether the block device whose directory in sysfs is `device` is the partition of that UUID.
fn has_partition_uuid(device: &Path, value: &str) -> bool {
    let uevent = attribute(device, "uevent").unwrap_or_default();
    let found = uevent
        .lines()
        .find_map(|line| line.strip_prefix("PARTUUID="));
    found.is_some_and(|found| found.eq_ignore_ascii_case(value))
}

/// Where udev does not run.
fn by_partition_uuid(value: &str) -> Option<PathBuf> {
    node(&block_devices().find(|device| has_partition_uuid(device, value))?)
}

/// The digits of a spare's uuid.
fn digits(value: &str) -> Result<String> {
    let digits = value.replace('-', "").to_ascii_lowercase();
    ensure!(
        digits.len() == 32 && digits.chars().all(|c| c.is_ascii_hexdigit()),
        "REMAP={value}: not a uuid of 32 hexadecimal digits"
    );
    Ok(digits)
}

/// The device that begins or ends with a superblock of that uuid.
fn by_spare(value: &str) -> Result<PathBuf> {
    let wanted = digits(value)?;
    let is_it = |path: &PathBuf| {
        let region = Region::open_active(path, &Bounds::default());
        let found = region
            .ok()
            .and_then(|region| image::probe(&region).judge().ok().flatten());
        found.is_some_and(|found| uuid(&found.superblock.uuid) == dashed(&wanted))
    };
    if let Some(path) = by_link("remap", &dashed(&wanted)).filter(is_it) {
        return Ok(path);
    }
    // A disk and its only partition may seem to be the same spare to who looks at the end; the smaller one is.
    let mut found: Vec<PathBuf> = block_devices()
        .filter_map(|device| node(&device))
        .filter(is_it)
        .collect();
    match found.len() {
        0 => bail!("REMAP={value}: no spare of that uuid was found"),
        1 => Ok(found.remove(0)),
        _ => bail!(
            "REMAP={value}: {} and {} both say they are; is one a copy of the other? Name the right one by its path",
            found[0].display(),
            found[1].display()
        ),
    }
}

fn dashed(digits: &str) -> String {
    let mut text = digits.to_string();
    for at in [20, 16, 12, 8] {
        text.insert(at, '-');
    }
    text
}
