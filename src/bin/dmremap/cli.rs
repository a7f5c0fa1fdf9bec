// SPDX-License-Identifier: GPL-2.0

//! The command line: what `--help`, the man page and the shell completions are made from.

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  dmremap format --advise --main /dev/sda1       how large a spare should be
  dmremap format /dev/sdb1 --main /dev/sda1      a new spare for /dev/sda1
  dmremap check /dev/sdb1                        is it sound?
  dmremap grow /dev/sdb1                         use all of it, now that it is larger
  dmremap import /dev/sdb1 bad.txt --format badblocks
  dmremap import --device safe rescue.map --format ddrescue
  dmremap dump --json /dev/sdb1 | jq .entries

Exit status:
  0   done, and what was looked at is sound
  1   the metadata has damage that costs nothing; repair or the next activation mends it
  2   the metadata cannot be used
  3   there is no dm-remap spare
  4   the command failed
  64  wrong usage";

/// Makes, inspects, repairs and grows the spares of dm-remap devices.
///
/// All commands work offline, on a device or on an image file: a device that is in use is refused.
/// Nothing is written unless the command says so. Addresses are sectors of 512 bytes.
#[derive(Parser)]
#[command(name = "dmremap", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    Format(Format),
    Dump(Dump),
    Check(Check),
    Repair(Repair),
    Grow(Grow),
    Import(Import),
    Export(Export),
    Label(Label),
    Rebind(Rebind),
    /// Write the manual pages, of dmremap and of each command, to a directory
    #[command(hide = true)]
    Man {
        /// The directory
        directory: PathBuf,
    },
    /// Print the completions for a shell
    #[command(hide = true)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// The region of a spare.
#[derive(Args)]
pub(crate) struct Spare {
    /// The spare: a block device or an image file
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) spare: PathBuf,
    #[command(flatten)]
    pub(crate) bounds: Bounds,
}

#[derive(Args, Default)]
pub(crate) struct Bounds {
    /// First sector of the region on it
    #[arg(long, value_name = "SECTOR", default_value_t = 0)]
    pub(crate) spare_start: u64,
    /// Length of the region [default: to the end]
    #[arg(long, value_name = "SECTORS")]
    pub(crate) spare_sectors: Option<u64>,
}

/// The main device that a spare is to serve.
#[derive(Args)]
pub(crate) struct Main {
    /// The main device: is it the one that the spare was made for?
    #[arg(long, value_name = "DEVICE", value_hint = ValueHint::FilePath)]
    pub(crate) main: Option<PathBuf>,
    /// First sector on it of what is protected
    #[arg(long, value_name = "SECTOR", default_value_t = 0, requires = "main")]
    pub(crate) main_start: u64,
}

/// Make a new, empty spare
///
/// Says first what there is and what there will be, and asks. A region that is not blank is refused
/// without --force: its first and last MiB must be zero, or hold what an interrupted format left. So
/// the kernel has it when it formats a spare at activation. The first superblock is written last: a format that was
/// interrupted leaves a region that is complete or no spare at all.
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap format /dev/sdb1 --main /dev/sda1
  dmremap format spare.img --main-sectors 2097152 --unit-sectors 8 --label left-disk --yes
  dmremap format /dev/sdb1 --main /dev/sda1 --share 0.5    use no more of it than this takes
  dmremap format --advise --main /dev/sda1                 sizes for some shares; writes nothing")]
pub(crate) struct Format {
    /// The spare: a block device or an image file
    #[arg(value_hint = ValueHint::FilePath, required_unless_present = "advise")]
    pub(crate) spare: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) bounds: Bounds,
    /// The device that the spare is for; its length and block sizes count
    #[arg(long, value_name = "DEVICE", value_hint = ValueHint::FilePath,
          required_unless_present = "main_sectors")]
    pub(crate) main: Option<PathBuf>,
    /// First sector on it of what is protected [default: 0]
    #[arg(long, value_name = "SECTOR", requires = "main")]
    pub(crate) main_start: Option<u64>,
    /// Length of the device that the spare is for: the length in its table line
    #[arg(long, value_name = "SECTORS")]
    pub(crate) main_sectors: Option<u64>,
    /// Granularity of relocation: a power of two, 1 to 64 [default: a physical block, 8 or more]
    #[arg(long, value_name = "SECTORS")]
    pub(crate) unit_sectors: Option<u32>,
    /// Replicas of the metadata, 2 to 4
    #[arg(long, value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(2..=4))]
    pub(crate) metadata_copies: u32,
    /// A name for it, 64 bytes at most
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) label: String,
    /// Use only as much of the spare as this many slots take
    #[arg(long, value_name = "N", conflicts_with = "share")]
    pub(crate) slots: Option<u64>,
    /// Use only as much of the spare as slots for this share of main take, in percent
    #[arg(long, value_name = "PERCENT")]
    pub(crate) share: Option<f64>,
    /// Say how large a spare should be; write nothing
    #[arg(long)]
    pub(crate) advise: bool,
    /// Format it although it is not blank: what is on it is lost
    #[arg(long)]
    pub(crate) force: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
}

/// Print the superblock, every entry and every bad slot
///
/// Entries are printed as the message `list` prints them: first sector, state, slot, mask of the
/// sectors that the slot holds; then lost sectors, cause and time.
#[derive(Args)]
pub(crate) struct Dump {
    #[command(flatten)]
    pub(crate) spare: Spare,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Say whether the metadata is sound; writes nothing
///
/// Reads both superblocks and every replica of every table block that is in use. With --main, another main than the recorded
/// one makes it unusable.
#[derive(Args)]
#[command(after_help = "\
Exit status:
  0   sound
  1   damaged or stale copies, of which a valid one is there, or a failed slot that was replaced and
      is not recorded as bad yet: nothing is lost; see repair
  2   unusable: activation would be refused; the findings name block, record and reason
  3   no dm-remap spare: blank, or something else
  4   the device cannot be opened, or is in use")]
pub(crate) struct Check {
    #[command(flatten)]
    pub(crate) spare: Spare,
    #[command(flatten)]
    pub(crate) main: Main,
}

/// Rewrite damaged and stale copies from valid ones
///
/// Only what can be proven: a copy that is damaged or stale is replaced by the valid one of the
/// same block with the highest generation. A slot that failed and was replaced when a power cut came
/// is recorded as bad. What it replaces is saved first. Copies of one generation
/// that differ, as of two clones that were mixed, are left alone unless you say which are right.
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap repair /dev/sdb1
  dmremap repair /dev/sdb1 --undo dmremap-3f0c….backup    put back what was replaced")]
pub(crate) struct Repair {
    #[command(flatten)]
    pub(crate) spare: Spare,
    /// Where to save what is replaced; must not exist [default: dmremap-<uuid>-<time>.backup]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) backup: Option<PathBuf>,
    /// Where valid copies of one generation differ, take this one: 0 is the first
    #[arg(long, value_name = "COPY")]
    pub(crate) prefer: Option<usize>,
    /// Put back what such a file holds
    #[arg(long, value_name = "FILE", conflicts_with_all = ["backup", "prefer"], value_hint = ValueHint::FilePath)]
    pub(crate) undo: Option<PathBuf>,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
}

/// Use a longer region, with more slots
///
/// --spare-sectors is the new length; without it, the region is grown to the end of the device. An
/// image file is made longer before, with truncate(1). Entries and their data stay where they are. A
/// growth that was interrupted leaves the region as it was, or one that nothing else uses until
/// this command was run again.
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap grow /dev/sdb1                               to the end of the device
  dmremap grow /dev/sdb1 --spare-sectors 2097152       to 1 GiB
  truncate -s 2G spare.img && dmremap grow spare.img

If the table line has spare_sectors, it must be the new length from then on.")]
pub(crate) struct Grow {
    #[command(flatten)]
    pub(crate) spare: Spare,
    /// Grow although what is added is not blank: what is there is lost
    #[arg(long)]
    pub(crate) force: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
}

/// A list of sectors.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    /// What badblocks(8) prints: numbers of blocks
    Badblocks,
    /// A map file of ddrescue(1)
    Ddrescue,
    /// A sector a line, or a sector and a count; `#` begins a comment
    Sectors,
}

/// Make pending entries from a list of bad sectors
///
/// Sectors count from the start of main. Units that have an entry keep it. With a spare, the list
/// is imported offline, once all of it is known to fit; with --device, into an active device, by
/// messages.
#[derive(Args)]
#[command(
    allow_missing_positional = true,
    after_help = "\
Examples:
  badblocks -b 4096 -o bad.txt /dev/sda1
  dmremap import /dev/sdb1 bad.txt --format badblocks --block-size 4096
  dmremap import --device safe rescue.map --format ddrescue
  echo 4711 | dmremap import /dev/sdb1 - --format sectors"
)]
pub(crate) struct Import {
    /// The spare: a block device or an image file
    #[arg(value_hint = ValueHint::FilePath, required_unless_present = "device")]
    pub(crate) spare: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) bounds: Bounds,
    /// The list; - is standard input
    #[arg(required = true, value_hint = ValueHint::FilePath)]
    pub(crate) list: PathBuf,
    /// An active device of that name instead of a spare
    #[arg(long, value_name = "NAME",
          conflicts_with_all = ["spare", "spare_start", "spare_sectors"])]
    pub(crate) device: Option<String>,
    /// What kind of list
    #[arg(long)]
    pub(crate) format: ListFormat,
    /// Block size of a badblocks list, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1024)]
    pub(crate) block_size: u64,
    /// Which blocks of a ddrescue map are bad: of ?*/-, all of them if main is the copy
    #[arg(
        long,
        value_name = "CHARACTERS",
        default_value = "-",
        allow_hyphen_values = true
    )]
    pub(crate) statuses: String,
    /// Where main begins on the device that the list speaks of
    #[arg(long, value_name = "SECTOR", default_value_t = 0)]
    pub(crate) offset: u64,
    /// Leave out what lies outside main; without it, that is an error
    #[arg(long)]
    pub(crate) clip: bool,
}

/// Which sectors to export.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Those of units known as bad of which nothing is relocated
    Pending,
    /// Those of partly relocated units that are not in the slot
    Partial,
    /// Those that a slot holds
    Relocated,
    /// Those that were lost with a failed slot: errors until they are written
    Lost,
}

/// Print a list of sectors from a spare
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap export /dev/sdb1 --format badblocks --block-size 4096 | e2fsck -l - /dev/mapper/safe
  dmremap export /dev/sdb1 --format sectors --which lost,pending -o lost.txt")]
pub(crate) struct Export {
    #[command(flatten)]
    pub(crate) spare: Spare,
    #[arg(long)]
    pub(crate) format: ListFormat,
    /// Which sectors
    #[arg(
        long,
        value_name = "KINDS",
        value_delimiter = ',',
        default_value = "pending"
    )]
    pub(crate) which: Vec<Kind>,
    /// Block size of a badblocks list, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1024)]
    pub(crate) block_size: u64,
    /// Write to a new file
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
}

/// Print the label, or give a new one
#[derive(Args)]
pub(crate) struct Label {
    #[command(flatten)]
    pub(crate) spare: Spare,
    /// The new label, 64 bytes at most
    pub(crate) label: Option<String>,
}

/// Record another main device
///
/// A spare holds sectors of one main device, and says which: the UUID of its partition, and the number of its disk. With
/// any other, activation is refused. Say here that the disk was replaced by a copy, or sits behind a bridge that hides its
/// number.
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap rebind /dev/sdb1 --main /dev/disk/by-id/wwn-0x5000c500a1b2c3d4-part1")]
pub(crate) struct Rebind {
    #[command(flatten)]
    pub(crate) spare: Spare,
    /// The main device from now on
    #[arg(long, value_name = "DEVICE", value_hint = ValueHint::FilePath)]
    pub(crate) main: PathBuf,
    /// First sector on it of what is protected
    #[arg(long, value_name = "SECTOR", default_value_t = 0)]
    pub(crate) main_start: u64,
}
