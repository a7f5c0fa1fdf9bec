// SPDX-License-Identifier: GPL-2.0

//! Talking to a person: questions, progress, colours where there is a terminal.
//!
//! Colours are `anstream`'s matter: it heeds `NO_COLOR`, `CLICOLOR`, `CLICOLOR_FORCE` and `TERM=dumb`.

use anyhow::{bail, Result};
use clap::builder::styling::{AnsiColor, Style};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::termios::tcgetwinsize;
use std::ffi::OsString;
use std::io::{self, BufRead as _, IsTerminal as _, Write};
use std::sync::OnceLock;
use std::time::Duration;

const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default().bold();
const GREEN: Style = AnsiColor::Green.on_default().bold();

/// How much is to be said and done.
#[derive(Clone, Copy, Default)]
pub(crate) struct Manner {
    /// Say only what was asked for.
    pub(crate) quiet: bool,
    /// Say what is read and written.
    pub(crate) verbose: bool,
    /// Write nothing.
    pub(crate) dry_run: bool,
}

/// Set once, before the command begins.
pub(crate) static MANNER: OnceLock<Manner> = OnceLock::new();

fn manner() -> Manner {
    MANNER.get().copied().unwrap_or_default()
}

/// How a command ends that was told to write nothing, where it would begin to write.
#[derive(Debug, thiserror::Error)]
#[error("nothing was written")]
pub(crate) struct DryRun;

/// Says on standard error why a command failed.
pub(crate) fn error(error: &anyhow::Error) {
    let _ = writeln!(anstream::stderr(), "{RED}error:{RED:#} {error:#}");
}

/// Says on standard error what a user should know of a command that succeeds.
pub(crate) fn warning(text: &str) {
    let _ = writeln!(anstream::stderr(), "{YELLOW}warning:{YELLOW:#} {text}");
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

/// Where a command tells what it does, besides what it was asked for: nowhere with `--quiet`.
pub(crate) fn notes() -> Box<dyn Write> {
    if manner().quiet {
        Box::new(io::sink())
    } else {
        Box::new(crate::output::stdout())
    }
}

/// Tells a step, with `--verbose`.
pub(crate) fn step(what: impl FnOnce() -> String) {
    if manner().verbose {
        let _ = writeln!(io::stderr(), "{}", what());
    }
}

/// Refuses to write with `--dry-run`.
pub(crate) fn must_not_be_dry_run() -> Result<()> {
    if manner().dry_run {
        return Err(DryRun.into());
    }
    Ok(())
}

/// Asks whether to go on, unless `yes`. Without a terminal to ask at, that is an error. With `--dry-run` the answer is no.
///
/// Every command calls this before it writes, and writes nothing if it does not return `Ok`: those that never ask with
/// `yes`.
pub(crate) fn confirm(question: &str, yes: bool) -> Result<()> {
    if manner().dry_run {
        writeln!(io::stdout(), "{question} no (--dry-run)")?;
    }
    must_not_be_dry_run()?;
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        bail!("nothing was written: give --yes to go on without being asked");
    }
    write!(io::stderr(), "{question} [y/N] ")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    if !is_yes(&answer) {
        bail!("nothing was written");
    }
    Ok(())
}

fn is_yes(answer: &str) -> bool {
    matches!(&*answer.trim().to_ascii_lowercase(), "y" | "yes")
}

/// Whether the user's locale has more than ASCII, by the variables that setlocale(3) heeds, in its order.
fn has_utf8(variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let set = |name: &&str| variable(name).filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(set);
    locale.is_some_and(|locale| {
        let locale = locale.to_string_lossy().to_ascii_uppercase();
        locale.contains("UTF-8") || locale.contains("UTF8")
    })
}

/// Whether the user's locale has no more than ASCII.
pub(crate) fn is_ascii() -> bool {
    !has_utf8(|name| std::env::var_os(name))
}

/// Columns of the terminal that standard output is; of none, what `COLUMNS` says, or 80.
pub(crate) fn width() -> usize {
    let terminal = tcgetwinsize(io::stdout()).ok();
    let columns = terminal.map(|size| usize::from(size.ws_col));
    let told = || std::env::var("COLUMNS").ok()?.parse().ok();
    columns
        .filter(|columns| *columns > 0)
        .or_else(told)
        .unwrap_or(80)
}

/// A progress bar over `total` steps, on a terminal only and not for a few.
pub(crate) fn progress(what: &'static str, total: u64) -> ProgressBar {
    match total < 256 {
        true => ProgressBar::hidden(),
        false => bar(what, total, "{msg} {wide_bar} {percent:>3}% {eta}"),
    }
}

/// The same for steps that may take half a minute each: also for a few, and it is seen to live meanwhile.
pub(crate) fn slow_progress(what: &'static str, total: u64) -> ProgressBar {
    if total == 0 {
        return ProgressBar::hidden();
    }
    let bar = bar(what, total, "{msg} {wide_bar} {pos}/{len} {elapsed}");
    if !bar.is_hidden() {
        bar.enable_steady_tick(Duration::from_millis(250));
    }
    bar
}

fn bar(what: &'static str, total: u64, template: &str) -> ProgressBar {
    if manner().quiet || manner().verbose {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(template);
    let bar = ProgressBar::new(total).with_message(what);
    style.map_or(bar.clone(), |style| {
        bar.with_style(if is_ascii() {
            style.progress_chars("#>-")
        } else {
            style
        })
    })
}

/// So many things: `1 unit`, `2 units`, `3 copies`.
pub(crate) fn count(number: u64, thing: &str) -> String {
    // Of a day, days.
    let stem = thing.strip_suffix('y').filter(|s| !s.ends_with('a'));
    match (number, stem) {
        (1, _) => format!("1 {thing}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        _ => format!("{number} {thing}s"),
    }
}

/// A number of sectors for a person: `8 sectors (4.0 KiB)`.
pub(crate) fn size(sectors: u64) -> String {
    let bytes = sectors.saturating_mul(512);
    format!("{} ({})", count(sectors, "sector"), binary(bytes))
}

/// Bytes in the unit in which they have no more than three digits.
pub(crate) fn binary(bytes: u64) -> String {
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        (value, unit) = (value / 1024.0, next);
        if value < 999.5 {
            break;
        }
    }
    if value < 99.95 {
        format!("{value:.1} {unit}")
    } else {
        format!("{value:.0} {unit}")
    }
}

/// Prints a document, for other programs.
pub(crate) fn json(out: &mut impl io::Write, document: &impl serde::Serialize) -> Result<()> {
    serde_json::to_writer_pretty(&mut *out, document).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yes_may_be_written_in_any_case() {
        for answer in ["y\n", "Y\n", "yes\n", "Yes\n", "YES\n", "yEs", " y \n"] {
            assert!(is_yes(answer), "{answer:?}");
        }
        for answer in [
            "",
            "\n",
            "n\n",
            "no\n",
            "yy\n",
            "ye\n",
            "yes please\n",
            "ja\n",
        ] {
            assert!(!is_yes(answer), "{answer:?}");
        }
    }

    #[test]
    fn bars_are_ascii_where_the_locale_is() {
        let locale = |set: &[(&str, &str)]| {
            has_utf8(|name| {
                let found = set.iter().find(|(n, _)| *n == name);
                found.map(|(_, value)| value.into())
            })
        };
        assert!(!locale(&[]));
        assert!(!locale(&[("LANG", "C")]));
        assert!(!locale(&[("LANG", "POSIX")]));
        assert!(!locale(&[("LANG", "de_DE@euro")]));
        assert!(locale(&[("LANG", "C.UTF-8")]));
        assert!(locale(&[("LANG", "de_DE.utf8")]));
        assert!(!locale(&[("LANG", "C.UTF-8"), ("LC_ALL", "C")]));
        assert!(!locale(&[("LANG", "C.UTF-8"), ("LC_CTYPE", "C")]));
        assert!(locale(&[
            ("LANG", "C"),
            ("LC_ALL", ""),
            ("LC_CTYPE", "en_GB.UTF-8")
        ]));
    }

    #[test]
    fn one_thing_is_not_plural() {
        assert_eq!(count(0, "unit"), "0 units");
        assert_eq!(count(1, "unit"), "1 unit");
        assert_eq!(count(2, "unit"), "2 units");
        assert_eq!(count(1, "copy"), "1 copy");
        assert_eq!(count(2, "bad copy"), "2 bad copies");
        assert_eq!(count(0, "day"), "0 days");
    }

    #[test]
    fn sizes_have_three_digits_at_most() {
        for (sectors, expected) in [
            (0, "0 sectors (0 B)"),
            (1, "1 sector (512 B)"),
            (2, "2 sectors (1.0 KiB)"),
            (8, "8 sectors (4.0 KiB)"),
            (199, "199 sectors (99.5 KiB)"),
            (200, "200 sectors (100 KiB)"),
            (1998, "1998 sectors (999 KiB)"),
            (1999, "1999 sectors (1.0 MiB)"),
            (2048, "2048 sectors (1.0 MiB)"),
            (976_773_168, "976773168 sectors (466 GiB)"),
            (1 << 54, "18014398509481984 sectors (8.0 EiB)"),
        ] {
            assert_eq!(size(sectors), expected);
        }
    }
}
