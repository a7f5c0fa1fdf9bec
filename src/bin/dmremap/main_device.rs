// SPDX-License-Identifier: GPL-2.0

//! What can be known of a main device: the same that the kernel module asks the kernel for, taken from sysfs. And
//! `dmremap rebind`, which records it.

use crate::cli::{Main, Rebind};
use crate::image::{must_not_be_read_only, open, Refused};
use crate::region::{is_block_device, measure, Access, Region};
use crate::{change, ui, Status};
use anyhow::{ensure, Context as _, Result};
use dm_remap::engine::format::Superblock;
use dm_remap::engine::identity::{DiskId, IdKind, Identity, DISK_ID};
use rustix::fs::{major, minor, FileType, Stat};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// What is known of `main`, the part of it that is protected beginning at sector `start`; `None`: where it begins is not
/// known.
pub(crate) fn identity(main: &Path, start: Option<u64>) -> Result<Identity> {
    if !is_block_device(main)? {
        // An image of a disk, which is no disk.
        return Ok(Identity::default());
    }
    let stat = rustix::fs::stat(main).with_context(|| main.display().to_string())?;
    let device = in_sysfs(&stat);
    Ok(device.map_or(Identity::default(), |device| of_sysfs(&device, start)))
}

/// The directory in sysfs of a block device.
fn in_sysfs(stat: &Stat) -> Option<PathBuf> {
    let (major, minor) = (major(stat.st_rdev), minor(stat.st_rdev));
    fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()
}

/// The disk of the block device whose directory in sysfs is `device`, and at which of its sectors that begins.
fn on_disk(device: &Path) -> (Option<PathBuf>, Option<u64>) {
    if !device.join("partition").exists() {
        return (Some(device.into()), Some(0));
    }
    let first = fs::read_to_string(device.join("start")).unwrap_or_default();
    (
        device.parent().map(PathBuf::from),
        first.trim().parse().ok(),
    )
}

/// What identifies the disk or file of which `stat` speaks, and at which sector of it that begins.
pub(crate) fn place(stat: &Stat) -> (String, u64) {
    if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
        return (format!("file {} of {}", stat.st_ino, stat.st_dev), 0);
    }
    match in_sysfs(stat).map(|device| on_disk(&device)) {
        Some((Some(disk), Some(first))) => (disk.display().to_string(), first),
        _ => (format!("device {}", stat.st_rdev), 0),
    }
}

/// Of the block device whose directory in sysfs is `device`.
fn of_sysfs(device: &Path, start: Option<u64>) -> Identity {
    let uevent = fs::read_to_string(device.join("uevent")).unwrap_or_default();
    let partition = uevent
        .lines()
        .find_map(|line| line.strip_prefix("PARTUUID="))
        .unwrap_or_default();
    let (disk, first) = on_disk(device);
    let sector = start
        .zip(first)
        .and_then(|(a, b): (u64, u64)| a.checked_add(b));
    let id = disk.and_then(|disk| disk_id(&disk));
    Identity::new(partition.as_bytes(), id.zip(sector)).unwrap_or_default()
}

/// The number of the disk whose directory in sysfs is `disk`, chosen as the kernel module chooses it.
fn disk_id(disk: &Path) -> Option<DiskId> {
    if let Ok(page) = fs::read(disk.join("device/vpd_pg83")) {
        return IdKind::ALL
            .into_iter()
            .find_map(|kind| designator(&page, kind));
    }
    let hex = |name: &str| {
        let text = fs::read_to_string(disk.join(name)).ok()?;
        let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
        let bytes: Vec<u8> = digits
            .chunks_exact(2)
            .map(|d| (d[0] << 4 | d[1]) as u8)
            .collect();
        padded(IdKind::Eui64, &bytes)
    };
    hex("nguid").or_else(|| hex("eui"))
}

fn padded(kind: IdKind, bytes: &[u8]) -> Option<DiskId> {
    let mut own = [0; DISK_ID];
    own.get_mut(..bytes.len())?.copy_from_slice(bytes);
    DiskId::new(kind, own, bytes.len())
}

/// The designator of that kind in a Device Identification page of SCSI: the one of 16 bytes, else the last of 8 or 12, as
/// the kernel's sd driver has it.
fn designator(page: &[u8], kind: IdKind) -> Option<DiskId> {
    let mut found = None;
    let mut rest = page.get(4..)?;
    while let [_, about, _, length, behind @ ..] = rest {
        let length = usize::from(*length);
        let Some((id, next)) = behind.split_at_checked(length) else {
            break;
        };
        rest = next;
        let of_disk = about >> 4 & 3 == 0 && u32::from(about & 0xf) == kind as u32;
        if of_disk && matches!(length, 8 | 12 | 16) {
            found = padded(kind, id);
            if length == 16 {
                break;
            }
        }
    }
    found
}

/// Refuses a main that is not the one of `superblock`.
pub(crate) fn must_be(superblock: &Superblock, main: &Main, spare: &str) -> Result<()> {
    let Some(device) = &main.main else {
        return Ok(());
    };
    let found = identity(device, Some(main.main_start))?;
    if superblock.main.contradicts(&found) {
        let why = format!(
            "belongs to another main: {}, and {} is {found}; dmremap rebind takes it",
            superblock.main,
            device.display()
        );
        return Err(Refused::Unusable(spare.into(), why).into());
    }
    Ok(())
}

pub(crate) fn rebind(args: &Rebind) -> Result<Status> {
    let main = identity(&args.main, Some(args.main_start))?;
    let mut region = Region::open(&args.spare, Access::Write)?;
    let found = open(&mut region)?;
    must_not_be_read_only(&found, &region)?;
    if found.findings().next().is_some() {
        return Err(Refused::Damaged(region.name).into());
    }
    let name = args.main.display();
    let (length, _) = measure(&args.main)?;
    let needed = found.superblock.geometry.main_sectors;
    ensure!(
        length
            .checked_sub(args.main_start)
            .is_some_and(|left| left >= needed),
        "{name}: has {} from sector {} on, and main had {}",
        ui::size(length.saturating_sub(args.main_start)),
        args.main_start,
        ui::size(needed)
    );
    region.must_not_overlap(region.blocks, &args.main, args.main_start, needed)?;
    writeln!(
        ui::notes(),
        "{}: main was {}",
        region.name,
        found.superblock.main
    )?;
    writeln!(ui::notes(), "{}: main is  {main}", region.name)?;
    ui::confirm("Record it?", true)?;
    let new = Superblock {
        main,
        ..found.superblock.clone()
    };
    change::superblock(&region, &found.superblock, new)?;
    Ok(Status::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(designators: &[(u8, u8, &[u8])]) -> Vec<u8> {
        let mut page = vec![0, 0x83, 0, 0];
        for (set, about, id) in designators {
            page.extend([*set, *about, 0, id.len() as u8]);
            page.extend(*id);
        }
        page
    }

    #[test]
    fn of_several_designators_the_same_counts_as_for_the_kernel() {
        let naa = [0x50; 8];
        let text = |page: &[u8]| {
            let found = IdKind::ALL
                .into_iter()
                .find_map(|kind| designator(page, kind));
            found.map(|id| id.to_string())
        };
        let port = page(&[
            (1, 0x93, &[0x51; 8]),
            (2, 1, b"LINUX   scsi_debug  "),
            (1, 3, &naa),
        ]);
        assert_eq!(text(&port).as_deref(), Some("naa.5050505050505050"));
        let both = page(&[(1, 2, &[7; 8]), (1, 3, &[0x60; 16]), (1, 3, &naa)]);
        assert_eq!(
            text(&both).as_deref(),
            Some("naa.60606060606060606060606060606060")
        );
        let eui = page(&[(1, 2, &[7; 8]), (1, 2, &[8; 8]), (2, 1, b"ATA     ")]);
        assert_eq!(text(&eui).as_deref(), Some("eui.0808080808080808"));
        for end in 0..both.len() - 1 {
            let _ = text(&both[..end]);
        }
        assert_eq!(text(&page(&[(1, 3, &[1; 20])])), None);
    }

    #[test]
    fn a_partition_lies_on_its_disk() {
        let root = tempfile::tempdir().unwrap();
        let disk = root.path().join("sda");
        let part = disk.join("sda2");
        fs::create_dir_all(disk.join("device")).unwrap();
        fs::create_dir_all(&part).unwrap();
        let put = |path: PathBuf, bytes: &[u8]| fs::write(path, bytes).unwrap();
        put(disk.join("device/vpd_pg83"), &page(&[(1, 3, &[0x50; 8])]));
        put(part.join("partition"), b"2\n");
        put(part.join("start"), b"2048\n");
        put(part.join("uevent"), b"DEVNAME=sda2\nPARTUUID=0A-02\n");
        let shown = |start| of_sysfs(&part, start).to_string();
        let expected = "PARTUUID=0a-02 on disk naa.5050505050505050 from sector 2056";
        assert_eq!(shown(Some(8)), expected);
        assert_eq!(shown(None), "PARTUUID=0a-02");
        assert_eq!(
            of_sysfs(&disk, Some(0)).to_string(),
            "disk naa.5050505050505050 from sector 0"
        );
        let nvme = root.path().join("nvme0n1");
        fs::create_dir_all(&nvme).unwrap();
        assert!(!of_sysfs(&nvme, Some(0)).is_known());
        put(nvme.join("eui"), b"00 25 38 5b 71 40 7a d1\n");
        put(
            nvme.join("nguid"),
            b"00000000-0000-0000-0000-000000000000\n",
        );
        assert_eq!(
            of_sysfs(&nvme, Some(0)).to_string(),
            "disk eui.0025385b71407ad1 from sector 0"
        );
        put(
            nvme.join("nguid"),
            b"36344730-5280-1007-0025-38450000003c\n",
        );
        let expected = "disk eui.3634473052801007002538450000003c from sector 0";
        assert_eq!(of_sysfs(&nvme, Some(0)).to_string(), expected);
    }
}
