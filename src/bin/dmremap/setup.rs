// SPDX-License-Identifier: GPL-2.0

//! `dmremap setup`: from a disk to a protected one.
//!
//! Each step is done only if it is not done already, and none makes an earlier one wrong: whatever is cut is finished by
//! running it again.

use crate::device_cli::{Opening, Setup};
use crate::dm::{check_name, number_at, Device, Number};
use crate::hide::{hide, must_be_readable, signatures, Signature};
use crate::open::Pair;
use crate::region::measure;
use crate::{boot, dm, remaptab, tag, ui, wait, Status};
use anyhow::{ensure, Context as _, Result};
use std::fs::File;
use std::io::{stdout, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Content that is a whole disk's.
const PARTITIONS: [&str; 3] = ["gpt", "PMBR", "dos"];

/// The disk that a device is, or is a part of.
fn disk_of(path: &Path) -> Option<PathBuf> {
    let directory = dm::directory(number_at(path)?)?;
    if directory.join("partition").exists() {
        return directory.parent().map(PathBuf::from);
    }
    Some(directory)
}

/// Whether an ext file system was not unmounted; `None`: it is none, or cannot be read.
fn is_unclean(main: &Path, start: u64) -> Option<bool> {
    let mut superblock = [0; 1024];
    let file = File::open(main).ok()?;
    file.read_exact_at(&mut superblock, start * 512 + 1024)
        .ok()?;
    let word = |at: usize| u16::from_le_bytes([superblock[at], superblock[at + 1]]);
    let is_ext = word(56) == 0xef53;
    // The state, and the feature "needs recovery".
    is_ext.then(|| word(58) & 1 == 0 || word(96) & 4 != 0)
}

fn list(found: &[Signature]) -> String {
    let mut kinds: Vec<String> = found.iter().map(Signature::describe).collect();
    kinds.dedup();
    kinds.join(", ")
}

/// What is said about main.
fn look_at_main(pair: &Pair) -> Result<Vec<Signature>> {
    let (main, start) = (&pair.main, pair.opening.main_start);
    let (length, _) = measure(main)?;
    let found = match signatures(main) {
        Ok(found) => found,
        // A half-dead disk may not let it be read, and is what this is for.
        Err(error) => {
            writeln!(
                stdout(),
                "main   {}: its signatures cannot be read now ({error:#})",
                main.display()
            )?;
            Vec::new()
        }
    };
    let content = if found.is_empty() {
        "no file system that is known".into()
    } else {
        list(&found)
    };
    writeln!(
        stdout(),
        "main   {}, {}: {content}",
        main.display(),
        ui::size(length - start.min(length))
    )?;
    if found.iter().any(|s| PARTITIONS.contains(&s.kind.as_str())) {
        writeln!(
            stdout(),
            "       a whole disk with partitions: they will be inside the mapped device (kpartx -a); to protect one of \
             them, name that"
        )?;
    }
    if is_unclean(main, start) == Some(true) {
        writeln!(
            stdout(),
            "       not cleanly unmounted: run e2fsck on the mapped device before mounting it"
        )?;
    }
    Ok(found)
}

/// The options of a line of the table file.
fn options(o: &Opening) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut number =
        |name: &str, value: Option<u64>| words.extend(value.map(|value| format!("{name}={value}")));
    number("main-start", (o.main_start > 0).then_some(o.main_start));
    number("main-sectors", o.main_sectors);
    number(
        "spare-start",
        (o.bounds.spare_start > 0).then_some(o.bounds.spare_start),
    );
    number("spare-sectors", o.bounds.spare_sectors);
    number("read-retries", o.read_retries.map(u64::from));
    let mut choice = |name: &str, value: Option<clap::builder::PossibleValue>| {
        words.extend(value.map(|value| format!("{name}={}", value.get_name())));
    };
    choice(
        "bad-on",
        o.bad_on
            .and_then(|on| clap::ValueEnum::to_possible_value(&on)),
    );
    choice(
        "pending-reads",
        o.pending_reads
            .and_then(|reads| clap::ValueEnum::to_possible_value(&reads)),
    );
    if o.readonly {
        words.push("readonly".into());
    }
    if words.is_empty() {
        "defaults".into()
    } else {
        words.join(",")
    }
}

/// A name of a device that stays: that of its partition, else of its disk, else the one that was given.
fn lasting(given: &str, path: &Path) -> String {
    let Some(number) = number_at(path) else {
        return given.into();
    };
    if !given.starts_with("/dev/") || given.starts_with("/dev/disk/") {
        return given.into();
    }
    let directory = dm::directory(number);
    let read = |name| dm::attribute(directory.as_ref()?, name);
    let uevent = read("uevent").unwrap_or_default();
    let uuid = uevent
        .lines()
        .find_map(|line| line.strip_prefix("PARTUUID="));
    match uuid {
        Some(uuid) => format!("PARTUUID={uuid}"),
        None if read("dm/name").is_some() => dm::path_of(number).display().to_string(),
        None => by_id(number).unwrap_or_else(|| given.into()),
    }
}

/// The name of a disk that udev made of its model and number, or one that is a number only.
fn by_id(number: Number) -> Option<String> {
    let links = std::fs::read_dir("/dev/disk/by-id").ok()?.flatten();
    let own = links.map(|link| link.path());
    let own = own.filter(|link| number_at(link) == Some(number));
    let names = own.filter_map(|link| Some(link.to_str()?.to_string()));
    // Of another's content, or of the place of a disk among others.
    let names = names.filter(|name| !name.contains("/lvm-pv-uuid-"));
    names.min_by_key(|name| {
        let is_number = ["/wwn-", "/nvme-eui.", "/nvme-uuid."];
        (is_number.iter().any(|is| name.contains(is)), name.clone())
    })
}

/// Tells systemd and udev of a line that is new: main is hidden from now on, and boot knows the device.
fn tell_system(main: &Path) {
    if Path::new("/run/systemd/system").exists() {
        let _ = wait::systemctl(&["daemon-reload"]);
    }
    if !Path::new("/run/udev/control").exists() {
        return;
    }
    let Some(directory) = number_at(main).and_then(dm::directory) else {
        return;
    };
    let inside = std::fs::read_dir(&directory)
        .into_iter()
        .flatten()
        .flatten();
    let partitions = inside
        .map(|entry| entry.path())
        .filter(|path| path.join("partition").exists());
    // In this order: a partition has it from its disk.
    for device in std::iter::once(directory.clone()).chain(partitions) {
        let mut trigger = std::process::Command::new("udevadm");
        trigger
            .args(["trigger", "--settle", "--action=change"])
            .arg(device);
        let _ = trigger.output();
    }
}

pub(crate) fn run(args: Setup) -> Result<Status> {
    check_name(&args.name)?;
    let pair = Pair {
        main: tag::resolve(&args.main)?,
        spare: tag::resolve(&args.spare)?,
        opening: args.opening.clone(),
    };
    let active = Device::find(&args.name)?;
    if let Some(device) = &active {
        let are_ours = Some(device.main) == number_at(&pair.main)
            && Some(device.spare) == number_at(&pair.spare);
        ensure!(
            are_ours,
            "{}: is active already, with other devices",
            args.name
        );
    } else {
        pair.must_be_free()?;
    }
    let in_tab = remaptab::find(&args.tab, &args.name)?.is_some();

    look_at_main(&pair)?;
    let superblock = pair.superblock()?;
    let (length, _) = measure(&pair.spare)?;
    let size = ui::size(length.saturating_sub(args.opening.bounds.spare_start));
    match &superblock {
        None => writeln!(stdout(), "spare  {}, {size}: blank", pair.spare.display())?,
        Some(superblock) => {
            if active.is_none() {
                pair.must_fit(superblock)?;
            }
            writeln!(
                stdout(),
                "spare  {}, {size}: formatted already, for this main",
                pair.spare.display()
            )?;
        }
    }
    if pair.main_is_spare()
        || disk_of(&pair.main).is_some_and(|disk| Some(disk) == disk_of(&pair.spare))
    {
        writeln!(
            stdout(),
            "       on the same disk as main: it may fail with it"
        )?;
    }

    let mut steps = Vec::new();
    if superblock.is_none() {
        steps.push(format!("format {}", pair.spare.display()));
    }
    if active.is_none() {
        steps.push(format!("create /dev/mapper/{}", args.name));
    }
    if !args.no_hide {
        steps.push(format!(
            "hide what {} shows, so that nothing takes it past the mapped device",
            pair.main.display()
        ));
    }
    if !args.no_tab && !in_tab {
        steps.push(format!(
            "add a line for {} to {}",
            args.name,
            args.tab.display()
        ));
    }
    writeln!(stdout(), "This will:")?;
    for step in &steps {
        writeln!(stdout(), "  - {step}")?;
    }
    ui::confirm("Go on?", args.yes)?;

    if superblock.is_none() {
        pair.format(&args.label)?;
    }
    if active.is_none() {
        pair.open(&args.name)?;
    }
    let device = Device::open(&args.name)?;
    if !args.no_tab && !in_tab {
        let [main, spare] = [
            lasting(&args.main, &pair.main),
            lasting(&args.spare, &pair.spare),
        ];
        let line = format!("{} {main} {spare} {}", args.name, options(&args.opening));
        remaptab::add(&args.tab, &line)?;
        writeln!(stdout(), "{}: {line}", args.tab.display())?;
    }
    let inside = signatures(&device.path())?;
    let mut status = Status::Done;
    if !args.no_hide {
        let home = std::env::var_os("HOME").map_or_else(|| "/root".into(), PathBuf::from);
        // The mapped device is right without it.
        let hidden = must_be_readable(&device).and_then(|()| match inside.is_empty() {
            true => Ok(Status::Done),
            false => hide(&device, &inside, &dm::path_of(device.main), &home),
        });
        status = hidden.context("everything else is done; see dmremap hide")?;
    }
    if !args.no_tab {
        tell_system(&pair.main);
    }
    what_next(&args.name, &inside, !args.no_tab)?;
    Ok(status)
}

fn what_next(name: &str, inside: &[Signature], is_in_tab: bool) -> Result<()> {
    let path = format!("/dev/mapper/{name}");
    writeln!(
        stdout(),
        "{path} is ready. From now on use it, never main itself."
    )?;
    let kind = inside
        .iter()
        .map(|s| s.kind.as_str())
        .find(|kind| !PARTITIONS.contains(kind));
    match kind {
        Some("swap") => writeln!(stdout(), "In /etc/fstab: {path} none swap sw 0 0")?,
        Some("LVM2_member") => {
            writeln!(stdout(), "Its volume group comes back with: vgchange -ay")?
        }
        Some("crypto_LUKS") => writeln!(stdout(), "In /etc/crypttab: name it instead of the disk")?,
        Some("linux_raid_member") => writeln!(
            stdout(),
            "Its array comes back with: mdadm --assemble --scan"
        )?,
        Some(kind) => writeln!(
            stdout(),
            "In /etc/fstab: {path} /mnt {kind} defaults,nofail 0 2"
        )?,
        None if !inside.is_empty() => {
            writeln!(stdout(), "Its partitions appear with: kpartx -a {path}")?
        }
        // It would show on main as well.
        None => writeln!(
            stdout(),
            "To use it: mkfs.ext4 {path}, then dmremap hide {name}"
        )?,
    }
    let path = |name: &str| Path::new(name).exists();
    if !is_in_tab || !path(boot::GENERATOR) {
        writeln!(stdout(), "After a reboot: dmremap open {name}")?;
        return Ok(());
    }
    writeln!(
        stdout(),
        "It is opened at boot from now on; see remaptab(5)."
    )?;
    let initramfs = [
        ("/usr/sbin/update-initramfs", "update-initramfs -u"),
        ("/usr/bin/dracut", "dracut --force"),
    ];
    if let Some((_, command)) = initramfs.iter().find(|(program, _)| path(program)) {
        writeln!(
            stdout(),
            "Do this, too, so that the initramfs leaves main alone: {command}"
        )?;
    }
    Ok(())
}
