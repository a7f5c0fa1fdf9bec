// SPDX-License-Identifier: GPL-2.0

//! `dmremap`: makes, inspects, repairs and grows the spares of dm-remap devices, on the module's engine.
//!
//! - [`cli`]: the command line; everything else is told what to do by it.
//! - [`region`] and [`image`]: a spare, opened and read.
//! - [`change`]: records of its table, and its superblocks, written.
//! - [`main_device`]: which disk main is.
//! - one module for each command; [`lists`]: the formats of lists of bad sectors.

// They panic when nobody reads what they print.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod change;
mod cli;
#[cfg(test)]
mod cuts;
mod dump;
mod export;
mod format;
mod grow;
mod image;
mod import;
mod label;
mod lists;
mod main_device;
mod region;
mod repair;
mod ui;

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, Parser as _};
use cli::{Cli, Command};
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

fn run(command: Command) -> Result<Status> {
    match command {
        Command::Format(args) => format::run(args),
        Command::Dump(args) => dump::run(&args),
        Command::Check(args) => repair::check(&args),
        Command::Repair(args) => repair::run(&args),
        Command::Grow(args) => grow::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Label(args) => label::run(&args),
        Command::Rebind(args) => main_device::rebind(&args),
        Command::Man { directory } => {
            let name = || directory.display().to_string();
            clap_mangen::generate_to(Cli::command(), &directory).with_context(name)?;
            Ok(Status::Done)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "dmremap", &mut script);
            io::stdout().write_all(&script)?;
            Ok(Status::Done)
        }
    }
}

fn main() -> ExitCode {
    let status = match Cli::try_parse() {
        Err(error) => {
            let _ = error.print();
            if error.use_stderr() {
                Status::Usage
            } else {
                Status::Done
            }
        }
        Ok(cli) => run(cli.command)
            .and_then(|status| {
                io::stdout().flush()?;
                Ok(status)
            })
            .unwrap_or_else(|error| {
                // Whoever reads our output has seen enough.
                let pipe = error.root_cause().downcast_ref::<io::Error>();
                if pipe.is_none_or(|e| e.kind() != io::ErrorKind::BrokenPipe) {
                    ui::error(&error);
                }
                error
                    .downcast_ref::<image::Refused>()
                    .map_or(Status::Failed, image::Refused::status)
            }),
    };
    ExitCode::from(status as u8)
}
