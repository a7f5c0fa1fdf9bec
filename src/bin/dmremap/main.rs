// SPDX-License-Identifier: GPL-2.0

//! `dmremap`: makes, inspects, repairs and grows the spares of dm-remap devices, on the module's engine.
//!
//! - [`cli`]: the command line; everything else is told what to do by it.
//! - [`region`] and [`image`]: a spare, opened and read; [`holder`]: who else uses it; [`search`]: where it is, if not where
//!   it should be.
//! - [`change`]: records of its table, and its superblocks, written.
//! - [`main_device`]: which disk main is.
//! - [`smart`]: what the drive below main says of itself.
//! - [`boot`], [`probe`] and [`wait`]: the table file at boot, for systemd, udev and the initramfs.
//! - [`unreadable`]: which sectors nobody can read; [`mounts`]: what is mounted.
//! - one module for each command, [`monitor`] with its own; [`lists`]: the formats of lists of bad sectors.
//! - [`units`]: numbers on the command line; [`ui`]: talking to a person; [`json`]: to a program; [`man`]: manual pages.

// They panic when nobody reads what they print.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod active;
mod backup;
mod boot;
mod change;
mod cli;
#[cfg(test)]
mod cuts;
mod device_cli;
mod dm;
mod dump;
mod export;
mod files;
mod format;
mod grow;
mod hide;
mod holder;
mod image;
mod import;
mod json;
mod label;
mod lists;
mod main_device;
mod man;
mod map;
mod monitor;
mod mounts;
mod open;
mod others;
mod output;
mod probe;
mod region;
mod remaptab;
mod repair;
mod scrub;
mod scrub_report;
mod search;
mod setup;
mod slow;
mod smart;
mod status;
mod tag;
mod ui;
mod units;
mod unreadable;
mod wait;
mod whole_file;
mod zero;

use anyhow::Result;
use clap::FromArgMatches as _;
use cli::{Cli, Command};
use device_cli::DeviceCommand;
use std::io::{self, Write as _};
use std::process::ExitCode;

/// How a command ended, as `dmremap --help` has it.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    Done = 0,
    Damaged = 1,
    Unusable = 2,
    NoSpare = 3,
    Failed = 4,
    Usage = 64,
}

fn on_device(command: DeviceCommand) -> Result<Status> {
    match command {
        DeviceCommand::Setup(args) => setup::run(args),
        DeviceCommand::Open(args) => open::open(args),
        DeviceCommand::Close(args) => open::close(&args),
        DeviceCommand::Status(args) => status::run(&args),
        DeviceCommand::Monitor(args) => monitor::run(&args),
        DeviceCommand::List(args) => active::list(&args),
        DeviceCommand::Query(args) => active::query(&args),
        DeviceCommand::Remap(args) => active::change("remap", &args),
        DeviceCommand::Mark(args) => active::change("mark", &args),
        DeviceCommand::Restore(args) => active::change("restore", &args),
        DeviceCommand::Forget(args) => active::change("forget", &args),
        DeviceCommand::Files(args) => files::run(&args),
        DeviceCommand::Zero(args) => zero::run(&args),
        DeviceCommand::Scrub(args) => scrub::run(&args),
        DeviceCommand::Set(args) => active::set(&args),
        DeviceCommand::Reset(args) => active::reset(&args),
        DeviceCommand::Hide(args) => hide::run(&args),
        DeviceCommand::Unhide(args) => hide::unhide(&args),
    }
}

fn run(command: Command) -> Result<Status> {
    match command {
        Command::Format(args) => format::run(args),
        Command::Dump(args) => dump::run(&args),
        Command::Check(args) => repair::check(&args),
        Command::Repair(args) => repair::run(&args),
        Command::Grow(args) => grow::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Map(args) => map::run(&args),
        Command::Label(args) => label::run(&args),
        Command::Rebind(args) => main_device::rebind(&args),
        Command::Device(command) => on_device(command),
        Command::Generator(args) => boot::generator(&args),
        Command::Probe(args) => probe::run(&args),
        Command::InitrdTab(args) => boot::initrd_tab(&args),
        Command::Attach(args) => boot::attach(&args),
        Command::Man { directory } => man::write(&directory),
        Command::Completions { shell } => {
            // Without the commands that are for packagers.
            let all = cli::command();
            let shown = all.get_subcommands().filter(|c| !c.is_hide_set()).cloned();
            let mut shown = clap::Command::new("dmremap")
                .version(env!("CARGO_PKG_VERSION"))
                .args(all.get_arguments().cloned())
                .subcommands(shown);
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut shown, "dmremap", &mut script);
            io::stdout().write_all(&script)?;
            Ok(Status::Done)
        }
    }
}

/// What the command line says.
fn parse() -> Result<Cli, clap::Error> {
    Cli::from_arg_matches(&cli::command().try_get_matches()?)
}

/// A command that was told to write nothing has done all that it should; any other error stays.
fn dry_run(error: anyhow::Error) -> Result<Status> {
    let ui::DryRun = error.downcast()?;
    writeln!(io::stdout(), "{}", ui::DryRun)?;
    Ok(Status::Done)
}

fn main() -> ExitCode {
    let status = match parse() {
        Err(error) => {
            let _ = error.print();
            if error.use_stderr() {
                Status::Usage
            } else {
                Status::Done
            }
        }
        Ok(cli) => {
            let _ = ui::MANNER.set(cli.manner());
            let done = run(cli.command).or_else(dry_run);
            let flushed = done.and_then(|status| {
                // The command has done what it was to do.
                output::though_unread(io::stdout().flush().map_err(Into::into))?;
                Ok(status)
            });
            flushed.unwrap_or_else(|error| {
                // Whoever reads our output has seen enough.
                if !output::is_unread(&error) {
                    ui::error(&error);
                }
                error
                    .downcast_ref::<image::Refused>()
                    .map_or(Status::Failed, image::Refused::status)
            })
        }
    };
    ExitCode::from(status as u8)
}
