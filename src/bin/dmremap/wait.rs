// SPDX-License-Identifier: GPL-2.0

//! Opening a device whose main and spare may not be there yet: at boot, and when a disk is plugged in later.
//!
//! One that stays away leaves a mark. [`crate::probe`] starts the unit again when the device appears, and whoever then opens
//! it has what boot had wanted started, too.

use crate::boot::in_initrd;
use crate::dm::{attribute, directory, number_at, Device};
use crate::open::Pair;
use crate::remaptab::Line;
use crate::{tag, ui};
use anyhow::{bail, ensure, Context as _, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Unless the line says otherwise; as systemd waits for a device.
const PATIENCE: Duration = Duration::from_secs(90);

/// What is there may be busy for a moment: somebody looks at it, or it is being made.
const MOMENT: Duration = Duration::from_secs(3);

const STEP: Duration = Duration::from_millis(250);

/// Without udev, looking for a spare reads all devices.
const SEARCH: Duration = Duration::from_secs(5);

/// Where marks are left; tests have a place of their own.
pub(crate) fn mark(name: &str, kind: &str) -> PathBuf {
    let directory = std::env::var_os("DMREMAP_RUN").map_or("/run/dmremap".into(), PathBuf::from);
    directory.join(format!("{name}.{kind}"))
}

pub(crate) fn leave_mark(name: &str, kind: &str) -> Result<()> {
    let path = mark(name, kind);
    let made = fs::create_dir_all(path.parent().unwrap_or(&path));
    made.and_then(|()| fs::write(&path, ""))
        .with_context(|| path.display().to_string())
}

/// Whether `path` is a block device that can be used: one that is being made has no sectors, or no table yet.
fn is_ready(path: &Path) -> bool {
    let Some(device) = number_at(path).and_then(directory) else {
        return false;
    };
    attribute(&device, "size").is_some_and(|size| size != "0")
        && attribute(&device, "dm/suspended").is_none_or(|suspended| suspended == "0")
}

/// Which of its two devices are there.
#[derive(Clone, Copy)]
pub(crate) struct Present {
    pub(crate) main: bool,
    pub(crate) spare: bool,
}

pub(crate) fn present(line: &Line, thoroughly: bool) -> Present {
    let resolve = match thoroughly {
        true => tag::resolve,
        false => tag::resolve_quickly,
    };
    let [main, spare] =
        [&line.main, &line.spare].map(|name| resolve(name).is_ok_and(|path| is_ready(&path)));
    Present { main, spare }
}

/// What is missing, and how to go on.
fn sentence(line: &Line, present: Present) -> String {
    let Line {
        name, main, spare, ..
    } = line;
    match (present.main, present.spare) {
        (true, _) => format!(
            "{name}: its spare {spare} is missing, and nothing of {main} is used without it, as what was relocated is on \
             the spare only. Plug the spare in, and {name} is opened and what lies on it mounted. If the spare is lost: \
             remaptab(5) says how to go on without it"
        ),
        (false, true) => format!(
            "{name}: its main {main} is missing. Plug it in, and {name} is opened and what lies on it mounted"
        ),
        (false, false) => format!(
            "{name}: its main {main} and its spare {spare} are missing. Plug them in, and {name} is opened and what lies on \
             it mounted"
        ),
    }
}

/// Opens the device of `line` as soon as main and spare are there. One that is open already stays as it is; `false` then.
pub(crate) fn open(line: &Line, patience: Option<Duration>) -> Result<bool> {
    if Device::find(&line.name)?.is_some() {
        forget(&line.name);
        return Ok(false);
    }
    let patience = patience.or(line.boot.timeout).unwrap_or(PATIENCE);
    let begin = Instant::now();
    // With it, a spare is found by its link: nobody reads all disks for it.
    let has_udev = Path::new("/run/udev/control").exists();
    let mut searched = None;
    let mut there_since = None;
    let mut is_told = false;
    loop {
        let now = Instant::now();
        let is_late = !patience.is_zero() && now - begin >= patience;
        let is_time = searched.is_none_or(|searched| now - searched >= SEARCH);
        let thoroughly = is_late || !has_udev && is_time;
        if thoroughly {
            searched = Some(now);
        }
        let present = present(line, thoroughly);
        if present.main && present.spare {
            let since = *there_since.get_or_insert(now);
            let pair = Pair::new(&line.main, &line.spare, line.opening.clone());
            match pair.and_then(|pair| pair.open(&line.name)) {
                Ok(()) => break,
                Err(error) if now - since >= MOMENT => return Err(error),
                Err(error) => ui::step(|| format!("{}: {error:#}", line.name)),
            }
        } else if is_told {
            bail!(sentence(line, present));
        } else if is_late {
            // First the mark, then the last look: whatever comes in between is seen by one of us.
            let _ = leave_mark(&line.name, "missing");
            is_told = true;
            continue;
        }
        sleep(STEP);
    }
    pick_up(&line.name);
    Ok(true)
}

/// Nothing is missing any more. Whether something was.
fn forget(name: &str) -> bool {
    fs::remove_file(mark(name, "missing")).is_ok()
}

/// Starts what boot had wanted and could not have, if it could not.
fn pick_up(name: &str) {
    let targets = ["local-fs.target", "swap.target", "cryptsetup.target"];
    let has_systemd = Path::new("/run/systemd/system").exists() && !in_initrd();
    if forget(name) && has_systemd {
        // What there is none of is left out.
        for target in targets {
            let _ = systemctl(&["--no-block", "start", target]);
        }
    }
}

/// Runs systemctl and returns what it printed.
pub(crate) fn systemctl(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("systemctl");
    command.args(arguments).stdin(Stdio::null());
    let output = command.output().context("cannot run systemctl")?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_string();
    ensure!(
        !said.is_empty() || output.status.success(),
        "systemctl {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(said)
}
