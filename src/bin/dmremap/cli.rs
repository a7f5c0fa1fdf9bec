// SPDX-License-Identifier: GPL-2.0

//! The command line: what `--help`, the man page and the shell completions are made from.

use crate::boot::{Attach, Generator, InitrdTab};
use crate::device_cli::DeviceCommand;
use crate::probe::Probe;
use crate::ui::Manner;
use crate::{label, units};
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum, ValueHint};
use serde::Serialize;
use std::path::{Path, PathBuf};

const AFTER_HELP: &str = "\
Examples:
  dmremap setup safe /dev/sda1 /dev/sdb1         protect a disk that starts to fail
  dmremap status                                 how is it, and what is to be done?
  dmremap format --advise --main /dev/sda1       how large a spare should be
  dmremap check /dev/sdb1                        is a spare sound that is not in use?
  dmremap grow /dev/sdb1                         use all of it, now that it is larger
  dmremap import safe rescue.map --format ddrescue
  dmremap dump --json safe | jq .entries

Exit status:
  0   done, and what was looked at is sound
  1   something is wrong that costs nothing now, or not all could be done; it says what
  2   the metadata cannot be used
  3   there is no dm-remap spare
  4   the command failed
  64  wrong usage

See also:
  remaptab(5), dmsetup(8), badblocks(8), ddrescue(1), e2fsck(8), cryptsetup(8)";

/// Of the commands that do not list their own.
const EXIT_STATUS: &str = "\
Exit status:
  0   done
  1   the metadata has damage, and must be repaired first; see repair
  2   the metadata cannot be used
  3   there is no dm-remap spare
  4   the command failed
  64  wrong usage";

/// Of those on devices in use.
const EXIT_STATUS_OF_DEVICES: &str = "\
Exit status:
  0   done
  1   not all of it could be done; it says what
  2   the metadata of the spare cannot be used
  3   SPARE is no dm-remap spare
  4   the command failed
  64  wrong usage";

/// Keep disks with bad sectors usable, with dm-remap devices and their spares
///
/// NAME is an active device, /dev/mapper/NAME. SPARE is a spare that is not in use, a device or an image file; dump, map, check,
/// export and import take a NAME in its place. Nothing is written unless the command says so. Places and lengths are sectors of 512 bytes, or have a suffix: 4096B, 4K or
/// 4KiB (1024 bytes each), 64KB (1000 bytes each), and so for M, G, T, P and E; 0x800 is hexadecimal.
#[derive(Parser)]
#[command(name = "dmremap", version, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Say only what was asked for, and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Say what is read and written
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
}

impl Cli {
    /// How much is to be said and done.
    pub(crate) fn manner(&self) -> Manner {
        Manner {
            quiet: self.quiet,
            verbose: self.verbose,
            dry_run: self.command.is_dry_run(),
        }
    }
}

/// The command line, each command with its exit statuses.
pub(crate) fn command() -> clap::Command {
    Cli::command().mut_subcommands(|command| {
        // That a number must not be negative is better said than that there is no option of that name.
        let command = command.mut_args(|arg| {
            let takes_value = arg.get_action().takes_values();
            arg.allow_negative_numbers(takes_value)
        });
        let help = command.get_after_help().map(ToString::to_string);
        let help = help.unwrap_or_default();
        if command.is_hide_set() || help.contains("Exit status:") {
            return command;
        }
        let statuses = match DeviceCommand::has_subcommand(command.get_name()) {
            true => EXIT_STATUS_OF_DEVICES,
            false => EXIT_STATUS,
        };
        command.after_help(format!("{help}\n\n{statuses}"))
    })
}

#[derive(Subcommand)]
pub(crate) enum Command {
    Format(Format),
    Dump(Dump),
    Map(Map),
    Check(Check),
    Repair(Repair),
    Grow(Grow),
    Import(Import),
    Export(Export),
    Label(Label),
    Rebind(Rebind),
    #[command(flatten)]
    Device(DeviceCommand),
    Generator(Generator),
    Probe(Probe),
    InitrdTab(InitrdTab),
    Attach(Attach),
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

impl Command {
    /// Whether it is to write nothing, although it is one that writes.
    fn is_dry_run(&self) -> bool {
        match self {
            Self::Format(Format { only, .. })
            | Self::Repair(Repair { only, .. })
            | Self::Grow(Grow { only, .. })
            | Self::Import(Import { only, .. })
            | Self::Label(Label { only, .. })
            | Self::Rebind(Rebind { only, .. }) => only.dry_run,
            Self::Device(command) => command.is_dry_run(),
            _ => false,
        }
    }
}

/// Of the commands that write.
#[derive(Args)]
pub(crate) struct Only {
    /// Say what would be done; write nothing
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
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

#[derive(Args, Clone, Default)]
pub(crate) struct Bounds {
    /// First sector of the region on it
    #[arg(long, value_name = "SECTOR", default_value = "0", value_parser = units::sectors)]
    pub(crate) spare_start: u64,
    /// Length of the region [default: to the end]
    #[arg(long, value_name = "SECTORS", value_parser = units::length)]
    pub(crate) spare_sectors: Option<u64>,
}

/// The main device that a spare is to serve.
#[derive(Args)]
pub(crate) struct Main {
    /// The main device: is it the one that the spare was made for?
    #[arg(long, value_name = "DEVICE", value_hint = ValueHint::FilePath)]
    pub(crate) main: Option<PathBuf>,
    /// First sector on it of what is protected
    #[arg(long, value_name = "SECTOR", default_value = "0", value_parser = units::sectors,
          requires = "main")]
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
  dmremap format --advise --main /dev/sda1                 sizes for some shares; writes nothing

Exit status:
  0   done
  4   the command failed, or the spare is not blank
  64  wrong usage")]
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
    #[arg(long, value_name = "SECTOR", value_parser = units::sectors, requires = "main")]
    pub(crate) main_start: Option<u64>,
    /// Length of the device that the spare is for: the length in its table line
    #[arg(long, value_name = "SECTORS", value_parser = units::length)]
    pub(crate) main_sectors: Option<u64>,
    /// Granularity of relocation: a power of two, 1 to 64 [default: a physical block, 8 or more]
    #[arg(long, value_name = "SECTORS", value_parser = units::unit_sectors)]
    pub(crate) unit_sectors: Option<u32>,
    /// Replicas of the metadata, 2 to 4
    #[arg(long, value_name = "N", default_value = "2", value_parser = units::copies)]
    pub(crate) metadata_copies: u32,
    /// A name for it, 64 bytes at most
    #[arg(long, value_name = "TEXT", default_value = "", value_parser = label::checked)]
    pub(crate) label: String,
    /// Use only as much of the spare as this many slots take
    #[arg(long, value_name = "N", value_parser = units::slots, conflicts_with = "share")]
    pub(crate) slots: Option<u64>,
    /// Use only as much of the spare as slots for this share of main take, in percent
    #[arg(long, value_name = "PERCENT", value_parser = units::percent)]
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
    #[command(flatten)]
    pub(crate) only: Only,
}

/// Print the superblock, every entry and every bad slot
///
/// Entries are printed as the message `list` prints them: first sector, state, slot, mask of the
/// sectors that the slot holds; then lost sectors, cause and time. What is wrong with the metadata comes last.
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap dump /dev/sdb1
  dmremap dump --header /dev/sdb1                     whose spare is it?
  dmremap dump --json /dev/sdb1 | jq .lost_sectors    docs/json.md has all the fields

Exit status:
  0   done, and the metadata is sound
  1   done, and the metadata has damage that costs nothing
  2   the metadata cannot be used: what was found is printed
  3   there is no dm-remap spare
  4   the command failed
  64  wrong usage")]
pub(crate) struct Dump {
    #[command(flatten)]
    pub(crate) spare: Spare,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Only the superblocks; the table is not read
    #[arg(long)]
    pub(crate) header: bool,
}

/// Draw a picture of the disk: where it is healthy, and where not
///
/// In the terminal, as wide as that is, or as SVG; of an active device or of a spare. A cell shows the worst state in it, and
/// how much of it is not healthy; the worst parts are shown again, enlarged. States, from the best to the worst: healthy;
/// relocated: served from the spare; partial: some of its sectors are on the spare; pending: cannot be read until it is
/// written; lost: was on a part of the spare that failed.
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap map safe
  dmremap map safe -o today.svg                    to print, or for a browser
  dmremap map safe --json > monday.json
  dmremap map safe --since monday.json             what is worse than then is marked ^
  dmremap map /dev/sdb1 | less                     of a spare that is not in use

Exit status:
  0   done
  2   the metadata cannot be used; see check
  3   there is no dm-remap spare
  4   the command failed
  64  wrong usage")]
pub(crate) struct Map {
    #[command(flatten)]
    pub(crate) spare: Spare,
    /// Write an SVG picture to a new file; - is standard output
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "json")]
    pub(crate) output: Option<PathBuf>,
    /// As JSON: what is not healthy, and where
    #[arg(long)]
    pub(crate) json: bool,
    /// Mark what is worse than in this report, which map --json or dump --json printed
    #[arg(long, value_name = "REPORT", value_hint = ValueHint::FilePath)]
    pub(crate) since: Option<PathBuf>,
}

/// Say whether the metadata is sound; writes nothing
///
/// Reads both superblocks and every replica of every table block that is in use. With --main, another main than the recorded
/// one makes it unusable.
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap check /dev/sdb1
  dmremap check /dev/sdb1 --main /dev/sda1           also: is it the spare of that main?
  dmremap check --json /dev/sdb1 | jq .findings      docs/json.md has all the fields

Exit status:
  0   sound
  1   damaged or stale copies, of which a valid one is there, or a failed slot that was replaced and
      is not recorded as bad yet: nothing is lost; see repair
  2   unusable: activation would be refused; the findings name block, record and reason
  3   no dm-remap spare: blank, or something else
  4   the device cannot be opened, or is in use
  64  wrong usage")]
pub(crate) struct Check {
    #[command(flatten)]
    pub(crate) spare: Spare,
    #[command(flatten)]
    pub(crate) main: Main,
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Rewrite damaged and stale copies from valid ones
///
/// Only what can be proven: a copy that is damaged or stale is replaced by the valid one of the
/// same block with the highest generation. A slot that failed and was replaced when a power cut came
/// is recorded as bad. What it replaces is saved first. Copies of one generation
/// that differ, as of two clones that were mixed, are left alone unless you say which are right. A table block without
/// any valid copy stays as it is: with an empty one, main would answer for what is in its slots. If there is no superblock
/// where it should be, reads all of the device and says where one is.
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap repair /dev/sdb1
  dmremap repair /dev/sdb1 --dry-run                      what would be replaced?
  dmremap repair /dev/sdb1 --undo saved.backup            put back what was replaced

Exit status:
  0   sound, now or as before
  2   the metadata cannot be used, and not be repaired
  3   there is no dm-remap spare
  4   the command failed
  64  wrong usage")]
pub(crate) struct Repair {
    #[command(flatten)]
    pub(crate) spare: Spare,
    /// Where to save what is replaced; must not exist [default: dmremap-<uuid>-<time>.backup]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) backup: Option<PathBuf>,
    /// Where valid copies of one generation differ, take this one: 0 is the first
    #[arg(long, value_name = "COPY",
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(0..=3))]
    pub(crate) prefer: Option<usize>,
    /// Put back what such a file holds, if that is the spare and nothing was written there since
    #[arg(long, value_name = "FILE", conflicts_with_all = ["backup", "prefer"], value_hint = ValueHint::FilePath)]
    pub(crate) undo: Option<PathBuf>,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) only: Only,
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
    #[command(flatten)]
    pub(crate) only: Only,
}

/// A list of sectors.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    /// What badblocks(8) prints: numbers of blocks
    Badblocks,
    /// A map file of ddrescue(1)
    Ddrescue,
    /// A sector a line, or a sector and a count, decimal or with 0x; `#` begins a comment
    Sectors,
}

/// Make pending entries from a list of bad sectors
///
/// Sectors count from the start of main. Units that have an entry keep it. With a spare, the list
/// is imported offline, once all of it is known to fit; with --device, into an active device, by
/// messages.
#[derive(Args)]
#[command(
    override_usage = "\
dmremap import --format <FORMAT> [OPTIONS] <SPARE> <LIST>
       dmremap import --format <FORMAT> [OPTIONS] --device <NAME> <LIST>",
    after_help = "\
Examples:
  badblocks -b 4096 -o bad.txt /dev/sda1
  dmremap import /dev/sdb1 bad.txt --format badblocks --block-size 4096
  dmremap import --device safe rescue.map --format ddrescue
  echo 4711 | dmremap import /dev/sdb1 - --format sectors"
)]
pub(crate) struct Import {
    /// The spare: a block device or an image file; with --device there is none, and the list stands here
    // Read by `spare()` and `list()`.
    #[arg(value_name = "SPARE", value_hint = ValueHint::FilePath)]
    pub(crate) first: PathBuf,
    #[command(flatten)]
    pub(crate) bounds: Bounds,
    /// The list; - is standard input
    #[arg(value_name = "LIST", value_hint = ValueHint::FilePath, required_unless_present = "device")]
    pub(crate) second: Option<PathBuf>,
    /// An active device of that name instead of a spare
    #[arg(long, value_name = "NAME",
          conflicts_with_all = ["second", "spare_start", "spare_sectors"])]
    pub(crate) device: Option<String>,
    /// What kind of list
    #[arg(long)]
    pub(crate) format: ListFormat,
    /// Block size of a badblocks list, in bytes: the one that badblocks was given with -b
    #[arg(long, value_name = "BYTES")]
    pub(crate) block_size: Option<u64>,
    /// Which blocks of a ddrescue map are bad: of ?*/-, all of them if main is the copy
    #[arg(
        long,
        value_name = "CHARACTERS",
        default_value = "-",
        allow_hyphen_values = true
    )]
    pub(crate) statuses: String,
    /// Where main begins on the device that the list speaks of [default: at its start]
    ///
    /// A ddrescue map of a device that is not as long as main is refused unless this is given.
    #[arg(long, value_name = "SECTOR", value_parser = units::sectors)]
    pub(crate) offset: Option<u64>,
    /// Leave out what lies outside main; without it, that is an error
    #[arg(long)]
    pub(crate) clip: bool,
    #[command(flatten)]
    pub(crate) only: Only,
}

impl Import {
    /// The spare, unless the list goes into an active device.
    pub(crate) fn spare(&self) -> Option<&Path> {
        self.second.is_some().then_some(&*self.first)
    }

    /// The list.
    pub(crate) fn list(&self) -> &Path {
        self.second.as_ref().unwrap_or(&self.first)
    }
}

/// Which sectors to export.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
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
///
/// e2fsck does not take - for a list: -l needs a file, or /dev/stdin with -y.
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap export /dev/sdb1 --format badblocks --block-size 4096 -o bad.txt    for e2fsck -l bad.txt
  dmremap export /dev/sdb1 --format sectors --which lost,pending -o lost.txt")]
pub(crate) struct Export {
    #[command(flatten)]
    pub(crate) spare: Spare,
    /// What kind of list
    #[arg(long, required_unless_present = "json")]
    pub(crate) format: Option<ListFormat>,
    /// As JSON
    #[arg(long, conflicts_with = "format")]
    pub(crate) json: bool,
    /// Which sectors
    #[arg(
        long,
        value_name = "KINDS",
        value_delimiter = ',',
        default_value = "pending"
    )]
    pub(crate) which: Vec<Kind>,
    /// Block size of a badblocks list, in bytes: for e2fsck, that of the file system
    #[arg(long, value_name = "BYTES", required_if_eq("format", "badblocks"))]
    pub(crate) block_size: Option<u64>,
    /// Write to a new file; - is standard output
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
    /// Print what can be read although the metadata cannot be used, and say what is missing
    ///
    /// The exit status is 1 then.
    #[arg(long)]
    pub(crate) salvage: bool,
}

/// Print the label, or give a new one
///
/// A label is text of 64 bytes at most, without control characters, invisible characters, and blanks at its ends. What is on
/// a spare all the same is printed as its number: \u{1b}.
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap label /dev/sdb1                   print it
  dmremap label /dev/sdb1 'left disk'       give a new one
  dmremap label /dev/sdb1 ''                give none")]
pub(crate) struct Label {
    #[command(flatten)]
    pub(crate) spare: Spare,
    /// The new label, 64 bytes at most
    #[arg(value_parser = label::checked)]
    pub(crate) label: Option<String>,
    #[command(flatten)]
    pub(crate) only: Only,
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
    #[arg(long, value_name = "SECTOR", default_value = "0", value_parser = units::sectors)]
    pub(crate) main_start: u64,
    #[command(flatten)]
    pub(crate) only: Only,
}
