// SPDX-License-Identifier: GPL-2.0

//! `dmremap monitor`: tells what changes of all remap devices, each change once, and little of a flood.
//!
//! It waits for events of device-mapper and looks at all devices after one; and, whatever comes, now and then. What may hang
//! (programs, sendmail, drives) is not done by the thread that looks.
//!
//! - [`watch`]: what a change is, and when it is told; [`trend`]: how fast a device gets worse. Both know no clock of their own.
//! - [`memory`]: the file that remembers what was told.
//! - [`notice`]: a change in words; [`metrics`]: the text for Prometheus.
//! - [`events`]: what it waits for.
//! - [`journal`]: the system's log; [`outlet`]: programs; [`mail`].

mod events;
mod journal;
mod mail;
mod memory;
mod metrics;
mod notice;
mod outlet;
mod trend;
mod watch;

use crate::dm::{self, Device};
use crate::output::{self, stdout};
use crate::status::View;
use crate::{units, whole_file, Status};
use anyhow::{Context as _, Result};
use clap::{Args, ValueHint};
use events::{Events, Signals};
use journal::{say, Priority};
use mail::Mail;
use memory::Store;
use notice::Notice;
use outlet::{Call, Deadline, Outlet, Runner};
use rustix::time::{clock_gettime, ClockId};
use sd_notify::NotifyState;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use watch::{Change, Facts, Kind, Manner, Now, Watch};

/// Between two looks, however many events come.
const PACE: Duration = Duration::from_secs(1);

/// When to look again at the latest if some device could not be looked at: when it can be, there need not be an event.
const SOON: Duration = Duration::from_secs(5);

/// How often one who looks once looks if some device could not be looked at.
const TRIES: usize = 5;

/// Between two times that the file is written only because time passed: it says when a device was there last. And between two
/// times that the same failure is said.
const KEEP: Duration = Duration::from_secs(3600);

/// Failures that are said at most in that time.
const FAILURES: usize = 10;

/// How long what is being told may take once the monitor is to end.
const FAREWELL: Duration = Duration::from_secs(10);

/// Watch all devices, and tell what changes: to the log, by mail, to a program
///
/// Tells of each change once: another mode, new units that are pending or relocated, lost sectors, slots that fail or become
/// few, errors of the metadata, and a disk that fails faster each day. A new mode is told at once, everything else when no more
/// of it came for a while, and the same again only after the hold-off. What happened while nobody watched is told, too. Each
/// change is a line on standard output (unless that is the journal) and in the system's log.
#[derive(Args)]
#[command(after_help = "\
Examples:
  dmremap monitor --mail root
  dmremap monitor --program /usr/local/sbin/on-disk    runs: on-disk pending /dev/mapper/safe
  dmremap monitor --textfile /var/lib/prometheus/node-exporter/dm_remap.prom
  dmremap monitor --once --test --mail root --state /run/test    does mail arrive?
  dmremap monitor --once          for cron, which mails what is printed; where the service does not run

Two that run at the same time need a --state each. The program finds more in variables that begin with DMREMAP_. The service
has its options in /etc/default/dmremap-monitor.

Exit status:
  0   with --once: nothing has changed; else: ended by a signal
  1   with --once: something has changed, and was told
  4   the command failed; with --once: or something could not be told by mail or by the program
  64  wrong usage")]
pub(crate) struct Monitor {
    /// Look once, tell what has changed since the last time, and end
    #[arg(long)]
    once: bool,
    /// Mail to this address, through sendmail; may be given several times
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    mail: Vec<String>,
    /// Run this for each kind of change of a device, with the kind and the device as arguments
    #[arg(long, value_name = "PROGRAM", value_hint = ValueHint::CommandName)]
    program: Option<PathBuf>,
    /// Write metrics for Prometheus to this file, at each look
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    textfile: Option<PathBuf>,
    /// Print changes as JSON, a document a line
    #[arg(long)]
    json: bool,
    /// Tell a test message of each device first
    #[arg(long)]
    test: bool,
    /// Look at least as often as this; an event makes it look at once
    #[arg(long, value_name = "TIME", default_value = "1min", value_parser = units::some_time)]
    interval: Duration,
    /// Tell a change, other than of the mode, when no more came for so long, or after five times that
    #[arg(long, value_name = "TIME", default_value = "1min", value_parser = units::finite)]
    collect: Duration,
    /// Tell the same kind of change of a device again only after this time, and then all of it at once
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = units::finite)]
    hold_off: Duration,
    /// Slots are few when less than this share of them is free
    #[arg(long, value_name = "PERCENT", default_value = "10", value_parser = units::percent)]
    few: f64,
    /// End a program or sendmail that takes longer
    #[arg(long, value_name = "TIME", default_value = "1min", value_parser = units::some_time)]
    timeout: Duration,
    /// Where it remembers what it told
    #[arg(long, value_name = "FILE", default_value = "/var/lib/dmremap/monitor.json", value_hint = ValueHint::FilePath)]
    state: PathBuf,
}

/// An address of mail: what stands in a header.
fn address(text: &str) -> Result<String, String> {
    match text.is_empty() || text.contains(|c: char| c.is_control() || c.is_whitespace()) {
        true => Err("not an address of mail".into()),
        false => Ok(text.into()),
    }
}

fn now() -> Now {
    let uptime = clock_gettime(ClockId::Boottime);
    let unix = SystemTime::now().duration_since(UNIX_EPOCH);
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let boot = boot.replace('-', "");
    Now {
        uptime: Duration::try_from(uptime).unwrap_or_default(),
        unix: unix.map_or(0, |unix| unix.as_secs()),
        boot: boot
            .get(..16)
            .and_then(|half| u64::from_str_radix(half, 16).ok())
            .unwrap_or(0),
    }
}

/// All devices as they are, by name; whether they are all; and why some are not among them.
fn look() -> Result<(Vec<View>, bool, Result<()>)> {
    let (devices, devices_whole) = Device::each()?;
    // After what says whether they are suspended.
    let (statuses, statuses_whole) = dm::statuses()?;
    let is_whole = devices_whole.and(statuses_whole);
    let mut views = Vec::new();
    let mut failure = Ok(());
    for device in devices {
        let view = device.and_then(|device| {
            // Without what the spare says: it may hang.
            let view = |line: &String| View::of(&device, line, None);
            // One that comes or goes just now is looked at after the event of that.
            let view = statuses.get(&device.name).map(view).transpose()?;
            Ok(view.map(|mut view| {
                view.suspended |= dm::is_suspended(device.number);
                view
            }))
        });
        match view {
            Ok(view) => views.extend(view),
            Err(error) => failure = Err(error),
        }
    }
    views.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((views, is_whole.is_ok(), is_whole.and(failure)))
}

/// What was seen of all devices.
struct Seen {
    /// Those that can be believed.
    views: Vec<View>,
    /// The others: suspended, or doubtful.
    others: Vec<View>,
    is_whole: bool,
    failure: Result<()>,
}

impl Seen {
    fn is_settled(&self) -> bool {
        self.is_whole && self.others.is_empty()
    }
}

/// Whoever tells.
struct Teller<'a> {
    args: &'a Monitor,
    program: Outlet,
    mail: Mail,
}

impl Teller<'_> {
    /// Tells `notices`, which come at the same time; `views` are the devices that they are about.
    fn tell(&self, notices: &[Notice], views: Vec<View>, now: Now) -> Result<()> {
        let mut is_logged = true;
        for notice in notices {
            is_logged &= journal::write(notice.priority, &notice.message, &notice.fields);
            if self.args.program.is_some() {
                self.program.put(call(notice));
            }
        }
        self.mail.put(notices, views, now);
        let is_behind = journal::is_behind(std::io::stdout());
        for notice in notices {
            if self.args.json {
                writeln!(stdout(), "{}", notice.json)?;
            } else if !is_logged || !is_behind {
                writeln!(stdout(), "{}", notice.message)?;
            }
        }
        Ok(stdout().flush()?)
    }
}

/// The program's call.
fn call(notice: &Notice) -> Call {
    let device = notice
        .fields
        .iter()
        .find(|(name, _)| *name == "DMREMAP_DEVICE");
    let device = device.map_or("-", |(_, device)| device);
    let fields = notice.fields.iter();
    let fields = fields.map(|(name, value)| (name.to_string(), value.clone()));
    let message = ("DMREMAP_MESSAGE".into(), notice.message.clone());
    Call {
        arguments: vec![notice.kind.name().into(), device.into()],
        variables: fields.chain([message]).collect(),
    }
}

/// All that is watched, and what is told and written of it.
struct Round<'a> {
    args: &'a Monitor,
    manner: Manner,
    teller: Teller<'a>,
    store: Store,
    /// By [`memory::key`]; those that are not there now, too.
    watches: BTreeMap<String, Watch>,
    /// Those that were there at the last look, as they could be believed last; likewise by key.
    views: BTreeMap<String, View>,
    /// Whether the file has what was told; what it has of what could not be mailed, and of the program's calls that have not
    /// ended; and when it was written, since boot.
    is_kept: bool,
    untold: Vec<String>,
    calls: Vec<Call>,
    kept_at: Duration,
    /// Failures, and when they were said, since boot.
    failures: BTreeMap<String, Duration>,
    is_first: bool,
}

impl Round<'_> {
    /// Says why something failed; the same once in a while, and never much.
    fn fails(&mut self, error: &anyhow::Error) {
        let (why, now) = (format!("{error:#}"), now().uptime);
        self.failures.retain(|_, said| now < *said + KEEP);
        if self.failures.len() < FAILURES && !self.failures.contains_key(&why) {
            say(Priority::Error, &why);
            self.failures.insert(why, now);
        }
    }

    /// Looks at all devices. Before that, `events` were armed.
    fn look(&mut self, events: &Events) -> Result<Seen> {
        let (all, is_whole, failure) = look()?;
        let is_disturbed = events.came();
        let mut seen = Seen {
            views: Vec::new(),
            others: Vec::new(),
            is_whole,
            failure,
        };
        for view in all {
            let watch = self.watches.entry(memory::key(&view)).or_default();
            match view.suspended || watch.doubts(&Facts::from(&view), is_disturbed) {
                true => seen.others.push(view),
                false => seen.views.push(view),
            }
        }
        Ok(seen)
    }

    /// Does what is to be done about it. Returns how many changes were told.
    fn act(&mut self, seen: Seen) -> Result<usize> {
        let now = now();
        let is_first = std::mem::take(&mut self.is_first);
        let is_test = self.args.test && is_first;
        let mut notices = Vec::new();
        let mut concerned = Vec::new();
        // Of those that are not there, nothing is to be told; nor of those that cannot be believed.
        self.watches
            .values_mut()
            .for_each(|watch| watch.again = None);
        let mut before = std::mem::take(&mut self.views);
        for view in seen.others {
            let key = memory::key(&view);
            if let Some(view) = before.remove(&key) {
                self.views.insert(key, view);
            }
        }
        for view in seen.views {
            let key = memory::key(&view);
            let watch = self.watches.entry(key.clone()).or_default();
            watch.memory.name.clone_from(&view.name);
            let mut changes = watch.look(&Facts::from(&view), now, &self.manner);
            if is_test {
                changes.push(Change {
                    kind: Kind::Test,
                    new: 0,
                    mode_before: view.mode.clone(),
                });
            }
            let told = changes
                .iter()
                .map(|change| Notice::new(change, &view, &watch.memory, now));
            notices.extend(told);
            if !changes.is_empty() {
                concerned.push(view.clone());
            }
            self.views.insert(key, view);
        }
        if !seen.is_whole || seen.failure.is_err() {
            // One that was not seen now may be there still.
            for (key, view) in before {
                self.views.entry(key).or_insert(view);
            }
        }
        memory::forget(&mut self.watches, now.unix);
        if is_test && notices.is_empty() {
            notices.push(Notice::test());
        }
        self.is_kept &= notices.is_empty();
        // Whatever fails of it, the rest is done.
        let told = self.teller.tell(&notices, concerned, now);
        if is_first && notices.is_empty() {
            // What the last monitor could not mail.
            self.teller.mail.ring();
        }
        let kept = self.keep(now);
        if let Some(path) = &self.args.textfile {
            let replaced = whole_file::replace(path, &metrics::text(&self.views), false);
            replaced.with_context(|| path.display().to_string())?;
        }
        told.and(kept).and(seen.failure)?;
        Ok(notices.len())
    }

    /// Remembers what was told and what is still to be mailed or to be told by the program, at once; what was only seen, now
    /// and then.
    fn keep(&mut self, now: Now) -> Result<()> {
        let (untold, calls) = (self.teller.mail.untold(), self.teller.program.untold());
        self.is_kept &= untold == self.untold && calls == self.calls;
        (self.untold, self.calls) = (untold, calls);
        if !self.is_kept || now.uptime >= self.kept_at + KEEP {
            self.is_kept = false;
            self.store
                .write(&Store::text(&self.watches, &self.untold, &self.calls))?;
            self.is_kept = true;
            self.kept_at = now.uptime;
        }
        Ok(())
    }

    /// When something is to be told although nothing happens.
    fn next(&self) -> Option<Duration> {
        let again = self.watches.values().filter_map(|watch| watch.again);
        again.min()
    }
}

/// Tells systemd, if it is there.
fn notify(state: NotifyState<'_>) {
    let _ = sd_notify::notify(&[state]);
}

/// Looks once.
fn once(round: &mut Round<'_>) -> Result<usize> {
    let mut events = Events::default();
    let mut look = || {
        events.arm();
        round.look(&events)
    };
    let mut seen = look();
    for _ in 1..TRIES {
        if !seen.as_ref().is_ok_and(Seen::is_settled) {
            sleep(PACE);
            seen = look();
        }
    }
    round.act(seen?)
}

/// Looks again and again, until a signal comes.
fn watch(round: &mut Round<'_>) -> Result<()> {
    let signals = Signals::new()?;
    let mut events = Events::default();
    let interval = round.args.interval;
    let pace = PACE.min(interval);
    // Twice as often as systemd wants to hear of us.
    let interval = match sd_notify::watchdog_enabled() {
        Some(limit) => interval.min(limit / 2),
        None => interval,
    };
    notify(NotifyState::Ready);
    loop {
        // Before looking, so that nothing is missed in between.
        events.arm();
        let begin = now().uptime;
        let seen = round.look(&events);
        let is_settled = seen.as_ref().is_ok_and(Seen::is_settled);
        if let Err(error) = seen.and_then(|seen| round.act(seen)) {
            round.fails(&error);
        }
        notify(NotifyState::Watchdog);
        let passed = now().uptime.saturating_sub(begin);
        let next = round.next().map(|next| next.saturating_sub(begin + passed));
        let latest = match is_settled {
            true => interval,
            false => interval.min(SOON),
        };
        let rest = latest.saturating_sub(passed);
        let rest = next.map_or(rest, |next| next.min(rest));
        if signals.wait(rest, Some(&events)) {
            break;
        }
        let passed = now().uptime.saturating_sub(begin);
        if signals.wait(pace.saturating_sub(passed), None) {
            break;
        }
    }
    notify(NotifyState::Stopping);
    Ok(())
}

pub(crate) fn run(args: &Monitor) -> Result<Status> {
    let store = Store::open(&args.state, args.once)?;
    let (contents, why) = store.read();
    if let Some(why) = why {
        say(Priority::Warning, &why);
    }
    let no_wait = |time: Duration| if args.once { Duration::ZERO } else { time };
    let deadline = Deadline::default();
    let runner = || Runner::new(args.timeout, &deadline);
    let mut round = Round {
        args,
        manner: Manner {
            collect: no_wait(args.collect),
            hold_off: no_wait(args.hold_off),
            few: args.few,
        },
        teller: Teller {
            args,
            program: Outlet::new(args.program.clone(), contents.calls.clone(), runner()),
            mail: Mail::new(
                args.mail.clone(),
                contents.untold.clone(),
                runner(),
                &deadline,
            ),
        },
        is_kept: true,
        untold: contents.untold,
        calls: contents.calls,
        kept_at: now().uptime,
        store,
        watches: contents.watches,
        views: BTreeMap::new(),
        failures: BTreeMap::new(),
        is_first: true,
    };
    let told = match args.once {
        true => once(&mut round),
        false => watch(&mut round).map(|()| 0),
    };
    // What was only seen, too; and before waiting, as that may be ended.
    round.is_kept = false;
    let kept = round.keep(now());
    if !args.once {
        deadline.set(Instant::now() + FAREWELL);
    }
    let Round {
        teller: Teller { program, mail, .. },
        store,
        watches,
        untold,
        calls,
        ..
    } = round;
    let (is_run, still_called) = program.finish();
    let (is_mailed, still_untold) = mail.finish();
    let kept = match still_untold == untold && still_called == calls {
        true => kept,
        false => store.write(&Store::text(&watches, &still_untold, &still_called)),
    };
    output::though_unread(stdout().flush().map_err(Into::into))?;
    let told = told?;
    kept?;
    Ok(match (args.once, told) {
        (true, _) if !(is_run && is_mailed) => Status::Failed,
        (true, 1..) => Status::Damaged,
        _ => Status::Done,
    })
}
