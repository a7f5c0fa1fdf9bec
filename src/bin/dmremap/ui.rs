// SPDX-License-Identifier: GPL-2.0

//! Talking to a person: questions, progress, colours where there is a terminal.

use anyhow::{bail, Result};
use clap::builder::styling::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default().bold();
const GREEN: Style = AnsiColor::Green.on_default().bold();

/// Says on standard error why a command failed.
pub(crate) fn error(error: &anyhow::Error) {
    let _ = writeln!(anstream::stderr(), "{RED}error:{RED:#} {error:#}");
}

/// Prints a verdict after the findings.
pub(crate) fn verdict(status: crate::Status, text: &str) -> Result<()> {
    let style = match status {
        crate::Status::Done => GREEN,
        crate::Status::Damaged => YELLOW,
        _ => RED,
    };
    writeln!(anstream::stdout(), "{style}{text}{style:#}")?;
    Ok(())
}

/// Asks whether to go on, unless `yes`. Without a terminal to ask at, that is an error.
pub(crate) fn confirm(question: &str, yes: bool) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        bail!("nothing was written: give --yes to go on without being asked");
    }
    write!(io::stderr(), "{question} [y/N] ")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("nothing was written");
    }
    Ok(())
}

/// A progress bar over `total` steps, on a terminal only and not for a few.
pub(crate) fn progress(what: &'static str, total: u64) -> ProgressBar {
    if total < 256 {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {percent:>3}% {eta}");
    let bar = ProgressBar::new(total).with_message(what);
    style.map_or(bar.clone(), |style| bar.with_style(style))
}

/// A number of sectors for a person: `8 sectors (4.0 KiB)`.
pub(crate) fn size(sectors: u64) -> String {
    let bytes = sectors.saturating_mul(512);
    format!("{sectors} sectors ({})", indicatif::BinaryBytes(bytes))
}
