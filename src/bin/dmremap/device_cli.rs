// SPDX-License-Identifier: GPL-2.0

//! The command line of what is done with devices in use; see [`crate::cli`].

use crate::cli::{Bounds, Only};
use crate::monitor::Monitor;
use crate::units;
use clap::{Args, Subcommand, ValueEnum, ValueHint};
use std::path::PathBuf;
use std::time::Duration;

/// The commands on active devices.
#[derive(Subcommand)]
pub(crate) enum DeviceCommand {
    Setup(Setup),
    Open(Open),
    Close(Close),
    Status(Status),
    Monitor(Monitor),
    List(List),
    Query(Query),
    /// Relocate units now
    ///
    /// What main can still read is copied to the spare. Exit status 1 if not every sector could be.
    #[command(after_help = "\
Examples:
  dmremap remap safe 4711              the unit of that sector
  dmremap remap safe 1G 64M            all of 64 MiB, from 1 GiB on")]
    Remap(Change),
    /// Make pending entries of units, without touching main
    ///
    /// Units that have an entry keep it. See import for lists.
    #[command(after_help = "\
Examples:
  dmremap mark safe 4711 8")]
    Mark(Change),
    /// Copy what was relocated back to main, and free its slots
    ///
    /// What was copied is read again and compared. Units that main cannot hold stay; then the exit status is 1.
    #[command(after_help = "\
Examples:
  dmremap restore safe 4711
  dmremap restore safe 0 100G")]
    Restore(Change),
    /// Drop pending entries: main is asked again
    #[command(after_help = "\
Examples:
  dmremap forget safe 0 100G")]
    Forget(Change),
    Scrub(Scrub),
    Files(Files),
    Zero(Zero),
    Set(Set),
    Reset(Reset),
    Hide(Hide),
    Unhide(Unhide),
}

impl DeviceCommand {
    /// Whether it is to write nothing, although it is one that writes.
    pub(crate) fn is_dry_run(&self) -> bool {
        match self {
            Self::Setup(Setup { only, .. })
            | Self::Zero(Zero { only, .. })
            | Self::Hide(Hide { only, .. }) => only.dry_run,
            _ => false,
        }
    }
}

/// Which completions of main mean "bad sector".
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BadOn {
    /// Medium errors only
    Media,
    /// Medium, I/O and target errors
    Io,
}

/// What a read of a pending sector does.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PendingReads {
    /// Ask main again
    Retry,
    /// Fail at once
    Fail,
}

/// How a device is made: what a table line can say.
#[derive(Args, Clone)]
pub(crate) struct Opening {
    /// Write nothing: neither to the devices nor to the metadata
    #[arg(long)]
    pub(crate) readonly: bool,
    /// First sector on MAIN of what is protected
    #[arg(long, value_name = "SECTOR", default_value = "0", value_parser = units::sectors)]
    pub(crate) main_start: u64,
    /// Length of what is protected [default: what the spare was made for]
    #[arg(long, value_name = "SECTORS", value_parser = units::length)]
    pub(crate) main_sectors: Option<u64>,
    #[command(flatten)]
    pub(crate) bounds: Bounds,
    /// Granularity of relocation, when a blank spare is formatted: a power of two, 1 to 64
    #[arg(long, value_name = "SECTORS")]
    pub(crate) unit_sectors: Option<u32>,
    /// Replicas of the metadata, when a blank spare is formatted: 2 to 4
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=4))]
    pub(crate) metadata_copies: Option<u32>,
    /// Which errors of MAIN mean "bad sector" [default: io]
    #[arg(long)]
    pub(crate) bad_on: Option<BadOn>,
    /// Extra attempts at what fails before a read is given up, 0 to 10 [default: 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10))]
    pub(crate) read_retries: Option<u32>,
    /// What a read of a pending sector does [default: retry]
    #[arg(long)]
    pub(crate) pending_reads: Option<PendingReads>,
    /// Refuse a blank spare instead of formatting it
    #[arg(long)]
    pub(crate) no_format: bool,
    /// Take a MAIN that is not the one that the spare belongs to, and record it
    #[arg(long)]
    pub(crate) rebind: bool,
}

/// Protect a disk: all that is needed, in one command
///
/// Looks at both devices, says what it found and what it will do, and asks. Then it formats the spare if it is blank, creates
/// /dev/mapper/NAME, hides the signatures on MAIN itself (see hide), and writes a line to the table file. What is done already
/// is not done again: after an interruption, run it again.
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap setup safe /dev/sda1 /dev/sdb1
  dmremap setup safe /dev/disk/by-id/ata-X-part1 /dev/sdb1 --no-hide --yes")]
pub(crate) struct Setup {
    /// The mapped device's name
    pub(crate) name: String,
    /// The disk or partition to protect: a path, PARTUUID=, PARTLABEL= or ID=
    pub(crate) main: String,
    /// Where its bad sectors go: a path or a tag, REMAP= included
    pub(crate) spare: String,
    #[command(flatten)]
    pub(crate) opening: Opening,
    /// A name for the spare, 64 bytes at most
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) label: String,
    /// Leave the signatures on MAIN
    #[arg(long)]
    pub(crate) no_hide: bool,
    /// Write no line to the table file
    #[arg(long)]
    pub(crate) no_tab: bool,
    /// The table file
    #[arg(long, value_name = "FILE", default_value = "/etc/remaptab", value_hint = ValueHint::FilePath)]
    pub(crate) tab: PathBuf,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) only: Only,
}

/// Create the mapped device
///
/// MAIN may not be in use by anything else: what writes past the mapped device would be lost where a sector is relocated. With
/// NAME alone, devices and options are those of its line in the table file.
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap open safe /dev/sda1 /dev/sdb1
  dmremap open safe PARTUUID=0fc63daf-01 REMAP=3f0c7a6e-8b1d-4f6e-9d55-1b0f3c9b7a10
  dmremap open safe                                 as /etc/remaptab says
  dmremap open safe --wait=5min                     as soon as both are plugged in")]
pub(crate) struct Open {
    /// The mapped device's name
    pub(crate) name: String,
    /// The disk or partition that is protected: a path, PARTUUID=, PARTLABEL= or ID=
    #[arg(requires = "spare")]
    pub(crate) main: Option<String>,
    /// Its spare: a path or a tag, REMAP= included
    pub(crate) spare: Option<String>,
    #[command(flatten)]
    pub(crate) opening: Opening,
    /// Wait until MAIN and SPARE are there; one that is open already is left as it is
    ///
    /// So long at most: seconds, or as 5min; 0 or infinity is for ever [default: x-systemd.device-timeout of its line, or
    /// 90 s].
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, value_parser = units::time_span)]
    pub(crate) wait: Option<Option<Duration>>,
    /// The table file
    #[arg(long, value_name = "FILE", default_value = "/etc/remaptab", value_hint = ValueHint::FilePath)]
    pub(crate) tab: PathBuf,
}

/// Remove the mapped device
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap close safe
  dmremap close safe --deferred        when nobody has it open any more")]
pub(crate) struct Close {
    /// The mapped device's name
    pub(crate) name: String,
    /// Remove it when nobody has it open any more
    #[arg(long)]
    pub(crate) deferred: bool,
    /// As its unit stops: a device that is gone is closed, and at shutdown the last one to leave closes it
    #[arg(long, hide = true)]
    pub(crate) unit: bool,
}

/// Say how a device is, and what to do about it
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap status                       all of them
  dmremap status safe
  dmremap status --json | jq '.devices[] | select(.mode != \"active\") | .name'

Exit status:
  0   all is well
  1   something is wrong, and says what: not active, sectors that cannot be read, a failing spare
  4   there is no such device, or it cannot be asked
  64  wrong usage")]
pub(crate) struct Status {
    /// The mapped device's name [default: all]
    pub(crate) name: Option<String>,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A range of the mapped device.
#[derive(Args)]
pub(crate) struct Sectors {
    /// The first sector
    #[arg(value_parser = units::sectors)]
    pub(crate) sector: u64,
    /// How many; every unit that they touch counts
    #[arg(default_value = "1", value_parser = units::length)]
    pub(crate) count: u64,
}

/// List the units that have an entry
///
/// A line each: first sector, state, slot, mask of the sectors that the slot holds.
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap list safe
  dmremap list safe --json | jq '.entries[] | select(.state == \"pending\") | .sector'")]
pub(crate) struct List {
    /// The mapped device's name
    pub(crate) name: String,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Say what is known of the unit of a sector
///
/// First sector of the unit, state (healthy, pending, partial, relocated), slot, mask of the sectors that the slot holds.
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap query safe 4711")]
pub(crate) struct Query {
    /// The mapped device's name
    pub(crate) name: String,
    /// A sector of it
    #[arg(value_parser = units::sectors)]
    pub(crate) sector: u64,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A command on a range of an active device.
#[derive(Args)]
pub(crate) struct Change {
    /// The mapped device's name
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) sectors: Sectors,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Read all of a device, and relocate what is dying before it is dead
///
/// Sectors that cannot be read become pending. Units that read slowly again and again, while others beside them do not, are
/// relocated as long as they can be read. What is pending already is not read; of a place where hardly anything can be read,
/// most is left out. It reads at idle I/O priority, and a tenth of the time at most while others use the disk. Interrupted, by
/// SIGINT or a reboot, the same command goes on where it was: it keeps its state in /var/lib/dmremap.
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap scrub safe
  dmremap scrub safe --rate 20                      at most 20 MiB/s
  dmremap scrub safe --from 1G --to 2G --thorough   only there, and every single unit
  systemctl enable --now dmremap-scrub@safe.timer   each month
  systemctl enable --now \"$(systemd-escape --template=dmremap-scrub@.timer left-disk)\"
                                                    a name with a - must be escaped

Exit status:
  0   nothing new was found
  1   something is: sectors that cannot be read, units that were slow; it says which
  4   the command failed, or could not go on; then the same command goes on where it was
  64  wrong usage")]
pub(crate) struct Scrub {
    /// The mapped device's name
    pub(crate) name: String,
    /// The first sector to read [default: 0]
    #[arg(long, value_name = "SECTOR", value_parser = units::sectors)]
    pub(crate) from: Option<u64>,
    /// The first one that is not read any more [default: to the end]
    #[arg(long, value_name = "SECTOR", value_parser = units::sectors)]
    pub(crate) to: Option<u64>,
    /// MiB to read in a second, at most
    #[arg(long, value_name = "MIB/S", value_parser = units::rate)]
    pub(crate) rate: Option<f64>,
    /// What is slow: so many ms longer than reads beside it [default: 4 times the device's median, from 50 to 200]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub(crate) slow: Option<u64>,
    /// Leave nothing out: on a dead place of 1 GiB that may take weeks
    #[arg(long)]
    pub(crate) thorough: bool,
    /// Begin anew, although one was interrupted; what was interrupted 27 days ago is not gone on with anyway
    #[arg(long)]
    pub(crate) restart: bool,
    /// Do nothing if the last scrub of all began less than so many days ago, and none was interrupted since
    #[arg(long, value_name = "DAYS", conflicts_with_all = ["from", "to", "restart"])]
    pub(crate) if_due: Option<u64>,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Say which files have the sectors that nobody can read
///
/// A line each: sector, how many, state (pending, lost; relocated, healthy), whose they are: a file with the place in it, a
/// directory, what the file system needs for itself, free space. Mounted file systems are asked themselves: ext4, XFS, f2fs,
/// FAT, and less exactly others; ext4 also if it is not mounted. Sectors are followed through partitions, LVM and encryption.
/// Pending units are read, to know which of their sectors are bad. File systems are flushed before; else nothing is written.
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap files safe
  dmremap files safe 4711 8                who has these sectors, bad or not?
  dmremap files safe -z | rsync -aIW --from0 --files-from=- backup:/ /
  dmremap files safe --json | jq -r '.hits[] | select(.kind == \"file\") | .paths[]'

Exit status:
  0   all of it is known
  1   of some sectors it is not known whose they are, or not all files could be looked at; it says why
  4   the command failed
  64  wrong usage")]
pub(crate) struct Files {
    /// The mapped device's name
    pub(crate) name: String,
    /// The first sector to tell of, and of all from there, not only those that cannot be read
    #[arg(value_parser = units::sectors)]
    pub(crate) sector: Option<u64>,
    /// How many
    #[arg(default_value = "1", value_parser = units::length)]
    pub(crate) count: u64,
    /// Tell also of sectors that are on the spare
    #[arg(long)]
    pub(crate) relocated: bool,
    /// Do not read: pending units are taken for bad as a whole, and partly relocated ones for good
    ///
    /// A disk may take 30 s for each sector that it cannot read.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only the paths of the files and directories that are damaged, each with a zero byte behind it; with SECTOR or --relocated,
    /// of all that are asked about
    ///
    /// Of a file system that is not mounted, they are those inside it.
    #[arg(short = 'z', long, conflicts_with = "json")]
    pub(crate) null: bool,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Write zeroes to sectors that nobody can read
///
/// A write gives a bad sector its place on the spare, and then it can be read again: as zeroes. Only sectors are written that
/// are pending or lost, and that cannot be read now, nor once more just before. What they held is gone; it was before, unless the
/// disk reads them one more time. It says before which files they are of, as far as that can be known; see files.
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap zero safe
  dmremap zero safe 4711 8 --yes")]
pub(crate) struct Zero {
    /// The mapped device's name
    pub(crate) name: String,
    /// The first sector to look at [default: 0]
    #[arg(value_parser = units::sectors)]
    pub(crate) sector: Option<u64>,
    /// How many [default: to the end]
    #[arg(value_parser = units::length)]
    pub(crate) count: Option<u64>,
    /// With pending_reads fail: whole units, their healthy sectors, too
    #[arg(long)]
    pub(crate) whole_units: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) only: Only,
}

/// Change a feature until the device is closed
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap set safe pending_reads fail
  dmremap set safe read_retries 0")]
pub(crate) struct Set {
    /// The mapped device's name
    pub(crate) name: String,
    /// bad_on, read_retries or pending_reads
    #[arg(value_parser = ["bad_on", "read_retries", "pending_reads"])]
    pub(crate) feature: String,
    /// Its value
    pub(crate) value: String,
}

/// Trust main again after it did not answer, and clear the counters
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap reset safe")]
pub(crate) struct Reset {
    /// The mapped device's name
    pub(crate) name: String,
}

/// Erase the signatures on main itself, so that nothing takes it for what it was
///
/// Main keeps the signature of its file system, and whoever mounts by UUID may take the raw disk, without its relocated
/// sectors, and write past the mapped device. This relocates the units that hold signatures and then erases, on main itself,
/// just their magic bytes. They are saved before, in files that wipefs(8) names so. The mapped device does not change. Undone
/// by unhide, or without the spare by the files.
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap hide safe
  dd if=~/wipefs-sda1-0x00000438.bak of=/dev/sda1 bs=1 seek=$((0x438)) conv=notrunc     without the spare")]
pub(crate) struct Hide {
    /// The mapped device's name
    pub(crate) name: String,
    /// Where to save what is erased [default: the home directory]
    #[arg(long, value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
    pub(crate) backup: Option<PathBuf>,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) only: Only,
}

/// Bring the signatures back to main itself
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap unhide safe")]
pub(crate) struct Unhide {
    /// The mapped device's name
    pub(crate) name: String,
}
