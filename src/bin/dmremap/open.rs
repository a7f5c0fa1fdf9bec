// SPDX-License-Identifier: GPL-2.0

//! `dmremap open` and `close`.

use crate::cli::{Bounds, Format, Only};
use crate::device_cli::{BadOn, Close, Open, Opening, PendingReads};
use crate::dm::{self, check_name, number_at, number_of, Device};
use crate::holder;
use crate::image::{self, Refused};
use crate::main_device::identity;
use crate::region::{measure, Region};
use crate::remaptab::{Boot, Line};
use crate::{boot, format, remaptab, tag, ui, wait, Status};
use anyhow::{bail, ensure, Context as _, Result};
use dm_remap::engine::args;
use dm_remap::engine::format::Superblock;
use dm_remap::engine::geometry::BLOCK_SECTORS;
use rustix::fs::OFlags;
use std::fs::OpenOptions;
use std::io::{stdout, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// A main and a spare, as they were named.
pub(crate) struct Pair {
    pub(crate) main: PathBuf,
    pub(crate) spare: PathBuf,
    pub(crate) opening: Opening,
}

impl Pair {
    pub(crate) fn new(main: &str, spare: &str, opening: Opening) -> Result<Self> {
        Ok(Self {
            main: tag::resolve(main)?,
            spare: tag::resolve(spare)?,
            opening,
        })
    }

    /// Refuses a main that anything uses, and a spare that anything but remap devices does.
    ///
    /// Several regions of one device may be spares; the kernel knows which are in use.
    pub(crate) fn must_be_free(&self) -> Result<()> {
        let remap: Vec<Device> = Device::all()?;
        let serves = |number| remap.iter().any(|device| device.number == number);
        let is_same = self.main_is_spare();
        for (path, except) in [
            (
                &self.main,
                &(|number| is_same && serves(number)) as &dyn Fn(_) -> bool,
            ),
            (&self.spare, &serves),
        ] {
            let name = path.display();
            let number = number_at(path).with_context(|| match path.exists() {
                true => format!("{name}: not a block device"),
                false => format!("{name}: there is no such device"),
            })?;
            if let Some(user) = holder::of_but(path, except) {
                bail!("{name}: in use: {user}");
            }
            // The kernel knows of users that sysfs does not show.
            let is_free = OpenOptions::new()
                .read(true)
                .custom_flags(OFlags::EXCL.bits() as i32)
                .open(path);
            let is_busy = is_free
                .is_err_and(|e| e.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()));
            let is_spare_of_others = remap
                .iter()
                .any(|device| [device.spare, device.main].contains(&number));
            ensure!(
                !is_busy || is_spare_of_others,
                "{name}: in use by something that the kernel does not name"
            );
        }
        Ok(())
    }

    pub(crate) fn main_is_spare(&self) -> bool {
        number_at(&self.main).is_some() && number_at(&self.main) == number_at(&self.spare)
    }

    /// The superblock of the spare; `None`: it is blank.
    pub(crate) fn superblock(&self) -> Result<Option<Superblock>> {
        let mut region = Region::open_active(&self.spare, &self.opening.bounds)?;
        match image::open(&mut region) {
            Ok(found) => Ok(Some(found.superblock)),
            Err(error) if matches!(error.downcast_ref(), Some(Refused::Blank(_))) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Formats the spare, which is blank.
    pub(crate) fn format(&self, label: &str) -> Result<()> {
        let o = &self.opening;
        let bounds = Bounds {
            spare_start: o.bounds.spare_start,
            spare_sectors: o.bounds.spare_sectors,
        };
        let format = Format {
            spare: Some(self.spare.clone()),
            bounds,
            main: Some(self.main.clone()),
            main_start: Some(o.main_start),
            main_sectors: o.main_sectors,
            unit_sectors: o.unit_sectors,
            metadata_copies: o.metadata_copies.unwrap_or(2),
            label: label.into(),
            slots: None,
            share: None,
            advise: false,
            force: false,
            yes: true,
            only: Only { dry_run: false },
        };
        format::make(format, false).map(drop)
    }

    /// Refuses a main that the spare does not belong to, or that is too short.
    pub(crate) fn must_fit(&self, superblock: &Superblock) -> Result<()> {
        let (name, o, g) = (self.main.display(), &self.opening, &superblock.geometry);
        let found = identity(&self.main, Some(o.main_start))?;
        if !o.rebind && superblock.main.contradicts(&found) {
            let why = format!(
                "belongs to another main: {}, and {name} is {found}; if that is a copy of it, give --rebind",
                superblock.main
            );
            return Err(Refused::Unusable(self.spare.display().to_string(), why).into());
        }
        let wanted = o.main_sectors.unwrap_or(g.main_sectors);
        ensure!(
            wanted == g.main_sectors,
            "--main-sectors {wanted}: the spare was made for {}",
            ui::size(g.main_sectors)
        );
        let (length, _) = measure(&self.main)?;
        let left = length.saturating_sub(o.main_start);
        ensure!(
            left >= wanted,
            "{name}: has {} from sector {} on, and the spare was made for {}",
            ui::size(left),
            o.main_start,
            ui::size(wanted)
        );
        for (name, wanted, found) in [
            ("unit-sectors", o.unit_sectors, g.unit_sectors),
            ("metadata-copies", o.metadata_copies, g.copies),
        ] {
            let wanted = wanted.unwrap_or(found);
            ensure!(
                wanted == found,
                "--{name} {wanted}: the spare was formatted with {found}"
            );
        }
        Ok(())
    }

    /// The table line for a spare with that superblock.
    fn table(&self, superblock: &Superblock) -> Result<String> {
        let (o, g) = (&self.opening, &superblock.geometry);
        let (length, _) = measure(&self.spare)?;
        let rest = length.saturating_sub(o.bounds.spare_start) / BLOCK_SECTORS * BLOCK_SECTORS;
        let features = args::Features {
            spare_sectors: (rest != g.spare_sectors || o.bounds.spare_sectors.is_some())
                .then_some(g.spare_sectors),
            bad_on: o.bad_on.map(|on| match on {
                BadOn::Media => args::BadOn::Media,
                BadOn::Io => args::BadOn::Io,
            }),
            read_retries: o.read_retries,
            pending_reads: o.pending_reads.map(|reads| match reads {
                PendingReads::Retry => args::PendingReads::Retry,
                PendingReads::Fail => args::PendingReads::Fail,
            }),
            no_format: true,
            rebind: o.rebind,
            ..args::Features::default()
        };
        let number = |path: &Path| {
            let (major, minor) =
                number_at(path).with_context(|| format!("{}: gone", path.display()))?;
            anyhow::Ok(format!("{major}:{minor}"))
        };
        Ok(format!(
            "0 {} remap {} {} {} {}{features}",
            g.main_sectors,
            number(&self.main)?,
            o.main_start,
            number(&self.spare)?,
            o.bounds.spare_start
        ))
    }

    /// Creates the mapped device; a blank spare is formatted.
    pub(crate) fn open(&self, name: &str) -> Result<()> {
        check_name(name)?;
        ensure!(
            number_of(name).is_none(),
            "{name}: there is an active device of that name"
        );
        self.must_be_free()?;
        let superblock = match self.superblock()? {
            Some(superblock) => superblock,
            None => {
                let spare = self.spare.display();
                ensure!(
                    !self.opening.no_format,
                    "{spare}: blank, and --no-format was given"
                );
                ensure!(
                    !self.opening.readonly,
                    "{spare}: blank, and --readonly was given"
                );
                self.format("")?;
                self.superblock()?
                    .with_context(|| format!("{spare}: still blank"))?
            }
        };
        self.must_fit(&superblock)?;
        let table = self.table(&superblock)?;
        let uuid: String = superblock
            .uuid
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let uuid = format!("REMAP-{uuid}");
        let others = Device::all()?;
        if let Some(device) = others.iter().find(|device| device.uuid == uuid) {
            let (spare, path) = (self.spare.display(), device.path());
            bail!("{spare}: in use: it serves {}", path.display());
        }
        dm::create(name, &uuid, &table, self.opening.readonly).with_context(|| {
            format!(
                "{name}: {} and {}",
                self.main.display(),
                self.spare.display()
            )
        })
    }
}

pub(crate) fn open(args: Open) -> Result<Status> {
    let line = match (args.main, args.spare) {
        (Some(main), Some(spare)) => Line {
            name: args.name,
            main,
            spare,
            opening: args.opening,
            boot: Boot::default(),
        },
        _ => {
            let line = remaptab::find(&args.tab, &args.name)?;
            line.with_context(|| {
                format!(
                    "{}: no line for {}; give MAIN and SPARE",
                    args.tab.display(),
                    args.name
                )
            })?
        }
    };
    let (name, main, spare) = (&line.name, &line.main, &line.spare);
    let is_new = match args.wait {
        Some(patience) => wait::open(&line, patience)?,
        None => {
            Pair::new(main, spare, line.opening.clone())?.open(name)?;
            true
        }
    };
    if boot::in_initrd() {
        // It stays when the initramfs goes.
        wait::leave_mark(name, "initrd")?;
    }
    match is_new {
        true => writeln!(stdout(), "/dev/mapper/{name}: {main} with {spare}")?,
        false => writeln!(stdout(), "/dev/mapper/{name}: is open already")?,
    }
    Ok(Status::Done)
}

/// Whether the machine goes down.
fn is_shutdown() -> bool {
    wait::systemctl(&["is-system-running"]).is_ok_and(|state| state == "stopping")
}

pub(crate) fn close(args: &Close) -> Result<Status> {
    if args.unit && number_of(&args.name).is_none() {
        return Ok(Status::Done);
    }
    let device = Device::open(&args.name)?;
    // Nothing says to systemd that what lies on it stops before it, if that names it by what is inside.
    let is_deferred = args.deferred || args.unit && is_shutdown();
    let Err(error) = dm::remove(&device.name, is_deferred) else {
        return Ok(Status::Done);
    };
    let path = device.path();
    let process = || holder::process(&path).map(|who| format!("{who} has it open"));
    match holder::of(&path).or_else(process) {
        Some(who) => bail!(
            "{}: in use: {who}; --deferred removes it when it is not",
            device.name
        ),
        None => bail!(error),
    }
}
