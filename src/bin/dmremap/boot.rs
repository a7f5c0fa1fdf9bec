// SPDX-License-Identifier: GPL-2.0

//! At boot: `dmremap generator`, which makes systemd's units for the table file, and what an initramfs needs: `initrd-tab`
//! when it is made, `attach` in it.

use crate::dm::{attribute, directory, number, number_at, Number};
use crate::output::stdout;
use crate::remaptab::{self, Line, INITRD};
use crate::{ui, wait, Status};
use anyhow::{Context as _, Result};
use clap::{Args, ValueHint};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Make systemd's units for the table file
#[derive(Args)]
#[command(hide = true)]
pub(crate) struct Generator {
    /// Where units go
    normal: PathBuf,
    /// Where more important ones would go
    early: Option<PathBuf>,
    /// Where less important ones would go
    late: Option<PathBuf>,
    /// The table file
    #[arg(long, value_name = "FILE", default_value = "/etc/remaptab", value_hint = ValueHint::FilePath)]
    tab: PathBuf,
}

/// Print the table file as an initramfs is to have it
#[derive(Args)]
#[command(hide = true)]
pub(crate) struct InitrdTab {
    /// The table file
    #[arg(long, value_name = "FILE", default_value = "/etc/remaptab", value_hint = ValueHint::FilePath)]
    tab: PathBuf,
}

/// Open what the initramfs is to open
///
/// Exit status 1: a main is not there, so nothing can be mistaken for what lies on it. Anything else but 0: one is there, and
/// cannot be opened.
#[derive(Args)]
#[command(hide = true)]
pub(crate) struct Attach {
    /// How long to wait for a main
    #[arg(long, value_name = "SECONDS", default_value = "0")]
    patience: u64,
    /// The table file
    #[arg(long, value_name = "FILE", default_value = "/etc/remaptab", value_hint = ValueHint::FilePath)]
    tab: PathBuf,
}

/// Where the units of the package are.
const UNITS: &str = "/usr/lib/systemd/system";

pub(crate) const GENERATOR: &str = "/usr/lib/systemd/system-generators/dmremap-generator";

const TARGET: &str = "dmremap.target";

/// As systemd-escape(1) does it.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'/' => escaped.push('-'),
            b'.' if at == 0 => escaped.push_str("\\x2e"),
            b':' | b'_' | b'.' => escaped.push(byte.into()),
            _ if byte.is_ascii_alphanumeric() => escaped.push(byte.into()),
            _ => escaped.push_str(&format!("\\x{byte:02x}")),
        }
    }
    escaped
}

/// The unit of a device.
pub(crate) fn unit(name: &str) -> String {
    format!("dmremap@{}.service", escaped(name))
}

/// Whether this is an initramfs of systemd.
pub(crate) fn in_initrd() -> bool {
    match std::env::var("SYSTEMD_IN_INITRD") {
        Ok(said) => said == "1",
        Err(_) => Path::new("/etc/initrd-release").exists(),
    }
}

/// Says what is wrong where it can be found: there is no journal yet.
fn complain(error: &anyhow::Error) {
    ui::error(error);
    // Systemd says so to its generators.
    if std::env::var_os("SYSTEMD_SCOPE").is_some() {
        let _ = fs::write("/dev/kmsg", format!("<3>dmremap-generator: {error:#}\n"));
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    let what = || path.display().to_string();
    fs::create_dir_all(path.parent().unwrap_or(path)).with_context(what)?;
    fs::write(path, text).with_context(what)
}

/// Makes `unit` of the package start with what `directory` belongs to.
fn link(directory: &Path, unit: &str, template: &str) -> Result<()> {
    let what = || directory.join(unit).display().to_string();
    fs::create_dir_all(directory).with_context(what)?;
    match symlink(Path::new(UNITS).join(template), directory.join(unit)) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked.with_context(what),
    }
}

/// The unit of a line, and what starts it.
fn write_unit(directory: &Path, tab: &Path, line: &Line) -> Result<()> {
    let (name, boot, unit) = (&line.name, &line.boot, unit(&line.name));
    let mut text = format!(
        "# Made from the table file by dmremap-generator.\n\n[Unit]\nDescription=Remap device {name}\nSourcePath={}\n",
        tab.display()
    );
    if !boot.nofail {
        text += &format!("Before={TARGET}\n");
    }
    // What the initramfs opened holds root, and is needed to the end.
    if !boot.initrd && !wait::mark(name, "initrd").exists() {
        text += "Conflicts=umount.target\nBefore=umount.target\n";
    }
    write(&directory.join(format!("{unit}.d/50-remaptab.conf")), &text)?;
    let template = "dmremap@.service";
    // Whoever wants the device has it opened.
    let device = format!("dev-mapper-{}.device.requires", escaped(name));
    link(&directory.join(device), &unit, template)?;
    if boot.noauto {
        return Ok(());
    }
    let how = if boot.nofail { "wants" } else { "requires" };
    link(&directory.join(format!("{TARGET}.{how}")), &unit, template)?;
    link(&directory.join("sysinit.target.wants"), TARGET, TARGET)
}

pub(crate) fn generator(args: &Generator) -> Result<Status> {
    let lines = match remaptab::all(&args.tab) {
        Ok(lines) => lines,
        Err(error) => {
            complain(&error);
            return Ok(Status::Failed);
        }
    };
    let in_initrd = in_initrd();
    for line in lines {
        let made = line.and_then(|line| match in_initrd && !line.boot.initrd {
            true => Ok(()),
            false => write_unit(&args.normal, &args.tab, &line),
        });
        // The others go on.
        if let Err(error) = made {
            complain(&error);
        }
    }
    Ok(Status::Done)
}

/// The names of the mapped devices that `number` lies on, itself included.
fn below(number_of_it: Number, names: &mut BTreeSet<String>) {
    let Some(mut device) = directory(number_of_it) else {
        return;
    };
    if device.join("partition").exists() {
        device.pop();
    }
    names.extend(attribute(&device, "dm/name"));
    for slave in fs::read_dir(device.join("slaves"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let number = attribute(&slave.path(), "dev").and_then(|dev| number(&dev));
        if let Some(number) = number {
            below(number, names);
        }
    }
}

/// The mapped devices that must be there before root and /usr can be mounted. `mounts` is /proc/self/mountinfo.
fn below_root(mounts: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in mounts.lines() {
        // "36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw,errors=continue". btrfs has a number of its own.
        let words: Vec<&str> = line.split(' ').collect();
        let [_, _, of, _, "/" | "/usr", ..] = words[..] else {
            continue;
        };
        let source = words.iter().position(|word| *word == "-");
        let source = source.and_then(|at| words.get(at + 2));
        let source = source.and_then(|path| number_at(Path::new(path)));
        for number in number(of).into_iter().chain(source) {
            below(number, &mut names);
        }
    }
    names
}

/// The lines of the table file; those of `attached` are to be opened in the initramfs, come what may.
fn for_initrd(text: &str, attached: &BTreeSet<String>) -> String {
    let mut all = String::new();
    for words in text.lines().map(remaptab::words) {
        let [name, main, spare, rest @ ..] = &words[..] else {
            continue;
        };
        let options = rest.first().copied().unwrap_or("defaults");
        let mut options: Vec<&str> = options.split(',').collect();
        if attached.contains(*name) {
            options.retain(|option| !["nofail", "noauto", INITRD].contains(option));
            options.push(INITRD);
        }
        all += &format!("{name} {main} {spare} {}\n", options.join(","));
    }
    all
}

pub(crate) fn initrd_tab(args: &InitrdTab) -> Result<Status> {
    for line in remaptab::all(&args.tab)? {
        if let Err(error) = line {
            ui::error(&error);
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let text = for_initrd(&remaptab::read(&args.tab)?, &below_root(&mounts));
    stdout().write_all(text.as_bytes())?;
    Ok(Status::Done)
}

/// Opens the device of `line`; `false`: its main is not there.
fn attach_one(line: &Line, patience: Duration) -> Result<bool> {
    let begin = Instant::now();
    while !wait::present(line, false).main {
        if begin.elapsed() >= patience {
            return Ok(false);
        }
        sleep(Duration::from_millis(250));
    }
    wait::open(line, None)?;
    wait::leave_mark(&line.name, "initrd")?;
    Ok(true)
}

pub(crate) fn attach(args: &Attach) -> Result<Status> {
    let mut status = Status::Done;
    for line in remaptab::all(&args.tab)? {
        let line = match line {
            Ok(line) if line.boot.initrd && !line.boot.noauto => line,
            Ok(_) => continue,
            Err(error) => {
                ui::error(&error);
                continue;
            }
        };
        match attach_one(&line, Duration::from_secs(args.patience)) {
            Ok(true) => (),
            Ok(false) if status == Status::Done => status = Status::Damaged,
            Ok(false) => (),
            Err(error) => {
                ui::error(&error);
                if !line.boot.nofail {
                    status = Status::Failed;
                }
            }
        }
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_as_systemd_does_it() {
        for (name, expected) in [
            ("safe", "safe"),
            ("a-b c", "a\\x2db\\x20c"),
            (".a.b:c_d", "\\x2ea.b:c_d"),
            ("a/b", "a-b"),
            ("x@y+z", "x\\x40y\\x2bz"),
        ] {
            assert_eq!(escaped(name), expected);
        }
    }

    #[test]
    fn what_root_lies_on_is_opened_in_the_initramfs_come_what_may() {
        let text =
            "# a comment\nroot /dev/a /dev/b nofail,readonly\n\ndata /dev/c /dev/d\nhalf /dev/e\n";
        let attached = BTreeSet::from(["root".to_string()]);
        assert_eq!(
            for_initrd(text, &attached),
            "root /dev/a /dev/b readonly,x-initrd.attach\ndata /dev/c /dev/d defaults\n"
        );
    }
}
