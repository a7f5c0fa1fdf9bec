// SPDX-License-Identifier: GPL-2.0

//! `monitor`, with a dmsetup that says what the test wants.

use crate::json::Schema;
use crate::tool::{self, Done, Place};
use rustix::process::{kill_process, Pid, Signal};
use serde_json::Value;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// A machine with devices and a sendmail.
struct Machine(Place);

impl Machine {
    fn new() -> Self {
        let machine = Self(Place::new());
        fs::create_dir(machine.0.path("bin")).unwrap();
        machine.script("dmsetup", "cat \"$FAKE/$1\"");
        machine.script(
            "sendmail",
            "{ echo \"== $*\"; cat; } >>\"$FAKE/half\"; cat \"$FAKE/half\" >\"$FAKE/mails\"",
        );
        machine.devices(&[]);
        machine
    }

    fn script(&self, name: &str, text: &str) {
        // Written under another name: a file that somebody has open for writing cannot be run.
        let [fresh, path] = ["fresh", &format!("bin/{name}")].map(|name| self.0.path(name));
        fs::write(&fresh, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(fresh, path).unwrap();
    }

    fn put(&self, name: &str, text: &str) {
        let fresh = self.0.path("fresh");
        fs::write(&fresh, text).unwrap();
        fs::rename(fresh, self.0.path(name)).unwrap();
    }

    /// From now on there are these devices: name and status.
    fn devices(&self, devices: &[(&str, &str)]) {
        let lines = |line: fn(&str, &str) -> String| -> String {
            devices
                .iter()
                .map(|(name, status)| line(name, status))
                .collect()
        };
        self.put(
            "status",
            &lines(|name, status| format!("{name}: 0 4096 remap {status}\n")),
        );
        self.put(
            "table",
            &lines(|name, _| format!("{name}: 0 4096 remap 8:1 0 8:17 16\n")),
        );
        self.put(
            "info",
            &lines(|name, _| format!("{name}\tREMAP-{name}\t253\t4\tActive\tWriteable\n")),
        );
    }

    /// From now on they are suspended.
    fn suspend(&self) {
        self.put("info", &self.read("info").replace("Active", "Suspended"));
    }

    fn safe(&self, status: &str) {
        self.devices(&[("safe", status)]);
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let all = [&["monitor"], arguments].concat();
        let own = [&["monitor", "--state", "state"], arguments].concat();
        let all = if arguments.contains(&"--state") {
            all
        } else {
            own
        };
        let mut command = self.0.command(&all);
        let path = std::env::var("PATH").unwrap();
        let bin = self.0.path("bin").display().to_string();
        command.env("PATH", format!("{bin}:{path}"));
        command.env("FAKE", self.0.path(""));
        command.env_remove("NOTIFY_SOCKET");
        command.env_remove("JOURNAL_STREAM");
        command
    }

    fn once(&self, arguments: &[&str]) -> Done {
        tool::done(self.command(&[&["--once"], arguments].concat()))
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.path(name)).unwrap_or_default()
    }

    /// Waits until the file has the text.
    fn wait_for(&self, name: &str, text: &str) -> String {
        soon(|| Some(self.read(name)).filter(|found| found.contains(text)))
    }

    fn start(&self, arguments: &[&str]) -> Daemon {
        let often = ["--interval", "50ms"];
        let mut command = match arguments.contains(&"--interval") {
            true => self.command(arguments),
            false => self.command(&[&often, arguments].concat()),
        };
        let err = fs::File::create(self.0.path("err")).unwrap();
        command.stdout(Stdio::piped()).stderr(err);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let err = self.0.path("err");
        Daemon { child, lines, err }
    }
}

/// What comes soon; on a busy machine, later.
fn soon<T>(mut look: impl FnMut() -> Option<T>) -> T {
    for _ in 0..6000 {
        if let Some(found) = look() {
            return found;
        }
        sleep(Duration::from_millis(50));
    }
    panic!("it does not come");
}

/// A monitor that runs.
struct Daemon {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
    /// What it says on standard error.
    err: PathBuf,
}

impl Daemon {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().into()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// What it prints until it ends, and how it ends.
    fn end(mut self) -> Done {
        let mut out = String::new();
        self.lines.read_to_string(&mut out).unwrap();
        let status = self.child.wait().unwrap().code().unwrap();
        let err = fs::read_to_string(&self.err).unwrap();
        Done { status, out, err }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const WELL: &str = "active 8 0/64 0 0 0 0 0 0 0 0 0 0 0 idle 0";
const THREE_PENDING: &str = "active 8 3/64 0 0 3 3 0 0 0 0 0 3 0 idle 0";
const DEGRADED: &str = "degraded 8 5/64 0 2 3 3 2 0 2 0 0 5 2 idle 8";

#[test]
fn each_change_is_told_once() {
    let machine = Machine::new();
    assert_eq!(machine.once(&[]).ok(), "");
    machine.safe(WELL);
    assert_eq!(machine.once(&[]).ok(), "");
    machine.safe(THREE_PENDING);
    let told = "safe: 3 new units cannot be read (pending), 3 in all; 3 new in 24 h, the spare is full in 20 days at this rate\n";
    let done = machine.once(&[]);
    assert_eq!((done.status, &*done.out, &*done.err), (1, told, ""));
    assert_eq!(machine.once(&[]).ok(), "");
    machine.safe(DEGRADED);
    let done = machine.once(&[]);
    let expected = [
        "safe: mode is degraded, it was active",
        "safe: 8 sectors lost with slots that failed, 8 in all",
        "safe: 2 copies of the metadata could not be read or written, 2 in all",
        "safe: 2 new units relocated, 2 in all; 5 new in 24 h, the spare is full in 11 days at this rate",
    ];
    assert_eq!(done.out.lines().collect::<Vec<_>>(), expected);
    assert_eq!(done.status, 1);
    // It is closed, and opened again under another name; and there is a new one.
    machine.devices(&[]);
    assert_eq!(machine.once(&[]).ok(), "");
    machine.devices(&[("other", WELL), ("safe", DEGRADED)]);
    assert_eq!(machine.once(&[]).ok(), "");
    assert_eq!(
        machine.0.names(),
        ["bin", "info", "state", "state.lock", "status", "table"]
    );
}

#[test]
fn documents_are_what_the_schema_says() {
    let machine = Machine::new();
    let schema = Schema::read("monitor");
    machine.devices(&[("a", DEGRADED), ("b", THREE_PENDING)]);
    let done = machine.once(&["--json", "--test"]);
    let documents: Vec<Value> = done
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let events: Vec<&str> = documents
        .iter()
        .map(|document| document["event"].as_str().unwrap())
        .collect();
    let of_a = [
        "mode",
        "lost",
        "metadata-errors",
        "pending",
        "relocated",
        "test",
    ];
    assert_eq!(events, [&of_a[..], &["pending", "test"]].concat());
    for document in &documents {
        schema.check(document);
    }
    assert_eq!(documents[1]["new"], 8);
    assert_eq!(documents[0]["mode_before"], "active");
    machine.devices(&[]);
    let done = machine.once(&["--json", "--test"]);
    assert_eq!(done.status, 1);
    schema.check(&serde_json::from_str(&done.out).unwrap());
}

#[test]
fn one_mail_has_all_of_it() {
    let machine = Machine::new();
    machine.devices(&[("a", DEGRADED), ("b", WELL), ("c", THREE_PENDING)]);
    let mail = ["--mail", "root", "--mail", "me@example.org"];
    assert_eq!(machine.once(&mail).status, 1);
    let mails = machine.read("mails");
    assert!(mails.starts_with("== -oi -t\nTo: root, me@example.org\nSubject: dm-remap on "));
    assert_eq!(mails.matches("== ").count(), 1, "{mails}");
    let subject = mails.lines().nth(2).unwrap();
    assert!(
        subject.ends_with(": a: mode is degraded, it was active (and 5 more)"),
        "{subject}"
    );
    let (head, body) = mails.split_once("\n\n").unwrap();
    assert!(head.contains("\nAuto-Submitted: auto-generated"), "{head}");
    for text in [
        "\na: mode is degraded, it was active\n",
        "\nc: 3 new units cannot be read (pending), 3 in all\n",
        "\na: needs attention\n",
        "\n  slots       5 used of 64, 0 bad\n",
        "does not take writes",
    ] {
        assert!(body.contains(text), "{text}: {body}");
    }
    assert!(!body.contains("\nb: "), "{body}");
    // Nothing new: no mail.
    machine.once(&mail).ok();
    assert_eq!(machine.read("mails"), mails);
}

#[test]
fn the_program_is_run_for_each_kind() {
    let machine = Machine::new();
    machine.script(
        "tell",
        "echo \"$# $1 $2 $DMREMAP_NEW $DMREMAP_MODE $DMREMAP_PENDING $DMREMAP_MESSAGE\" >>calls",
    );
    machine.devices(&[("a", DEGRADED), ("b", THREE_PENDING)]);
    assert_eq!(machine.once(&["--program", "tell", "--test"]).status, 1);
    let calls = machine.read("calls");
    let expected = "\
2 mode /dev/mapper/a 1 degraded 3 a: mode is degraded, it was active
2 lost /dev/mapper/a 8 degraded 3 a: 8 sectors lost with slots that failed, 8 in all
2 metadata-errors /dev/mapper/a 2 degraded 3 a: 2 copies of the metadata could not be read or written, 2 in all
2 pending /dev/mapper/a 3 degraded 3 a: 3 new units cannot be read (pending), 3 in all
2 relocated /dev/mapper/a 2 degraded 3 a: 2 new units relocated, 2 in all
2 test /dev/mapper/a 0 degraded 3 a: this is a test message of dmremap monitor
2 pending /dev/mapper/b 3 active 3 b: 3 new units cannot be read (pending), 3 in all
2 test /dev/mapper/b 0 active 3 b: this is a test message of dmremap monitor
";
    assert_eq!(calls, expected);
    machine.devices(&[]);
    assert_eq!(machine.once(&["--program", "tell", "--test"]).status, 1);
    assert!(machine.read("calls").contains("\n2 test - "));
}

#[test]
fn who_cannot_be_told_is_no_reason_not_to_tell_the_others() {
    let machine = Machine::new();
    machine.safe(DEGRADED);
    machine.script("sendmail", "exit 75");
    machine.script("hang", "case $1 in mode) sleep 1000 & wait ;; esac; exit 7");
    let arguments = ["--mail", "root", "--program", "hang", "--timeout", "10s"];
    let done = machine.once(&arguments);
    assert_eq!(done.status, 4, "{}", done.err);
    assert_eq!(done.out.lines().count(), 5);
    assert!(
        done.err.contains("sendmail: exit status: 75"),
        "{}",
        done.err
    );
    let ended = done.err.matches(", and was ended");
    assert_eq!(ended.count(), 1, "{}", done.err);
    assert!(done.err.contains("hang: did not end within "));
    let failed = done.err.matches("hang: exit status: 7");
    assert_eq!(failed.count(), 4, "{}", done.err);
    machine.script("sendmail", "exit 0");
    for (program, why) in [
        ("/nonexistent/program", "/nonexistent/program: No such file"),
        ("false", "false: exit status: 1"),
    ] {
        machine
            .once(&["--test", "--program", program])
            .failed(4, why);
    }
    // No sendmail at all.
    fs::remove_file(machine.0.path("bin/sendmail")).unwrap();
    let mut command = machine.command(&["--once", "--test", "--mail", "root"]);
    command.env("PATH", machine.0.path("bin"));
    machine.script(
        "dmsetup",
        "while read -r line; do echo \"$line\"; done <\"$FAKE/$1\"",
    );
    if !["/usr/sbin", "/usr/lib"]
        .iter()
        .any(|at| fs::exists(format!("{at}/sendmail")).unwrap())
    {
        tool::done(command).failed(4, "there is no sendmail");
    }
}

#[test]
fn a_monitor_that_runs_sees_what_comes_and_ends_in_order() {
    let machine = Machine::new();
    let text = "metrics.prom";
    let arguments = ["--collect", "0", "--textfile", text, "--mail", "root"];
    let mut daemon = machine.start(&arguments);
    // What is told while a mail is under way would come with the next one.
    let mailed = |count: usize| {
        soon(|| (machine.read("mails").matches("== ").count() >= count).then_some(()));
    };
    machine.safe(THREE_PENDING);
    assert!(daemon
        .line()
        .starts_with("safe: 3 new units cannot be read"));
    mailed(1);
    machine.safe(DEGRADED);
    assert_eq!(daemon.line(), "safe: mode is degraded, it was active");
    for what in ["8 sectors lost", "2 copies", "2 new units relocated"] {
        assert!(daemon.line().contains(what));
    }
    mailed(2);
    // More of what was told is held back; a mode that is new is not.
    machine.safe("active 8 6/64 0 2 4 3 2 0 2 0 0 5 2 idle 8");
    assert_eq!(daemon.line(), "safe: mode is active, it was degraded");
    mailed(3);
    machine.wait_for(
        text,
        "dm_remap_units{device=\"safe\",state=\"pending\"} 4\n",
    );
    machine.devices(&[]);
    soon(|| (!machine.read(text).contains("safe")).then_some(()));
    // dmsetup fails for a while, which is said once.
    machine.script("dmsetup", "echo sorry >&2; exit 1");
    machine.wait_for("err", "sorry");
    machine.script("dmsetup", "cat \"$FAKE/$1\"");
    machine.devices(&[("safe", "tripped 8 6/64 0 2 4 3 2 0 2 0 0 5 2 idle 8")]);
    assert_eq!(daemon.line(), "safe: mode is tripped, it was active");
    mailed(4);
    daemon.signal(Signal::TERM);
    let done = daemon.end();
    assert_eq!((done.status, &*done.out), (0, ""));
    // Of info, of table and of status.
    let said = done.err.matches("sorry").count();
    assert!((1..=3).contains(&said), "{}", done.err);
    assert_eq!(machine.read("mails").matches("== ").count(), 4);
    // What was held back is told by the next one.
    let done = machine.once(&[]);
    assert!(
        done.out.starts_with("safe: 1 new unit cannot be read"),
        "{}",
        done.out
    );
    assert_eq!(done.out.lines().count(), 1);
}

#[test]
fn a_program_that_hangs_does_not_keep_it_from_looking_nor_from_ending() {
    let machine = Machine::new();
    machine.script("hang", "echo $$ >>\"$FAKE/pids\"; exec sleep 1000");
    machine.script("sendmail", "exec sleep 1000");
    let mut daemon = machine.start(&["--program", "hang", "--mail", "root", "--timeout", "1h"]);
    machine.safe(DEGRADED);
    assert!(daemon.line().contains("degraded"));
    machine.wait_for("pids", "\n");
    for status in [THREE_PENDING, &THREE_PENDING.replace("active", "tripped")] {
        machine.safe(status);
        assert!(daemon.line().contains("mode is "));
    }
    for signal in [Signal::INT, Signal::TERM] {
        daemon.signal(signal);
    }
    let done = daemon.end();
    assert_eq!(done.status, 0, "{}", done.err);
    let pids = machine.read("pids");
    assert_eq!(pids.lines().count(), 1, "one at a time: {pids}");
    let pid = pids.trim();
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "{state}");
    // What was not done is done by the next one that has a program: the first one was ended in the middle.
    let _ = machine.once(&[]);
    machine.script("hang", "echo \"$1 $DMREMAP_MODE\" >>calls");
    machine.once(&["--program", "hang"]).ok();
    let calls = "mode degraded\nmode active\nmode tripped\n";
    let modes = machine.read("calls");
    let modes = modes.lines().filter(|line| line.starts_with("mode "));
    assert!(modes.eq(calls.lines()), "{}", machine.read("calls"));
    machine.once(&["--program", "hang"]).ok();
    assert_eq!(machine.read("calls").matches("degraded").count(), 1);
}

#[test]
fn nobody_need_read_what_it_prints() {
    let machine = Machine::new();
    let mut command = machine.command(&["--interval", "50ms", "--mail", "root"]);
    command.stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    machine.safe(DEGRADED);
    machine.wait_for("mails", "degraded");
    machine.safe(WELL);
    machine.wait_for("mails", "mode is active");
    let pid = Pid::from_raw(child.id() as i32).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_memory_is_one_monitors_and_may_be_damaged() {
    let machine = Machine::new();
    machine.safe(THREE_PENDING);
    machine.put("state", "{\"version\":1,\"devices\":{\"REMAP-safe\":{\"pen");
    let done = machine.once(&[]);
    assert!(
        done.err
            .contains("state: cannot be used, so all that is not well is told once more"),
        "{}",
        done.err
    );
    assert!(done.out.contains("3 new units"));
    assert_eq!(machine.once(&[]).ok(), "");
    let mut daemon = machine.start(&[]);
    machine.safe(DEGRADED);
    assert!(daemon.line().contains("degraded"));
    machine
        .once(&[])
        .failed(4, "state: another dmremap monitor is running");
    assert_eq!(machine.once(&["--state", "own"]).status, 1);
    daemon.signal(Signal::HUP);
    assert_eq!(daemon.end().status, 0);
}

#[test]
fn what_cannot_be_written_is_said_and_the_rest_is_done() {
    let machine = Machine::new();
    machine.safe(THREE_PENDING);
    let done = machine.once(&["--textfile", "none/metrics.prom", "--mail", "root"]);
    assert!(done.out.contains("3 new units"));
    assert!(machine.read("mails").contains("3 new units"));
    done.failed(4, "none/metrics.prom: No such file or directory");
    assert_eq!(machine.once(&[]).ok(), "");
    machine
        .once(&["--state", "."])
        .failed(4, ".: is a directory");
    machine
        .once(&["--state", "table/state"])
        .failed(4, "table/state: ");
    // A device that is not understood.
    machine.safe("active 8 3");
    machine
        .once(&[])
        .failed(4, "safe: status active 8 3: not understood");
    fs::remove_file(machine.0.path("bin/dmsetup")).unwrap();
    let mut command = machine.command(&["--once"]);
    command.env("PATH", machine.0.path("bin"));
    tool::done(command).failed(4, "dmsetup is missing");
}

#[test]
fn a_device_that_is_suspended_is_looked_at_later() {
    let machine = Machine::new();
    machine.safe(THREE_PENDING);
    let text = ["--textfile", "metrics.prom"];
    assert_eq!(machine.once(&text).status, 1);
    let mut daemon = machine.start(&["--collect", "0", "--textfile", "metrics.prom"]);
    machine.safe(DEGRADED);
    for _ in 0..4 {
        daemon.line();
    }
    // Another table takes its place, and has not read its entries.
    machine.suspend();
    let looks = |count: usize| {
        machine.script("dmsetup", "echo \"$1\" >>\"$FAKE/looks\"; cat \"$FAKE/$1\"");
        soon(|| (machine.read("looks").matches("status").count() >= count).then_some(()));
    };
    looks(2);
    machine.put("status", &format!("safe: 0 4096 remap {WELL}\n"));
    looks(6);
    let metrics = machine.read("metrics.prom");
    for metric in [
        "dm_remap_units{device=\"safe\",state=\"pending\"} 3\n",
        "dm_remap_mode{device=\"safe\",mode=\"degraded\"} 1\n",
    ] {
        assert!(metrics.contains(metric), "{metrics}");
    }
    // It has.
    machine.put("status", &format!("safe: 0 4096 remap {DEGRADED}\n"));
    looks(8);
    machine.safe(&DEGRADED.replace("degraded", "tripped"));
    assert_eq!(daemon.line(), "safe: mode is tripped, it was degraded");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end().out, "");
    // Who looks once waits a moment, and has no counts.
    machine.suspend();
    machine.put("status", &format!("safe: 0 4096 remap {WELL}\n"));
    assert_eq!(machine.once(&text).ok(), "");
    assert!(!machine.read("metrics.prom").contains("safe"));
    machine.safe(&DEGRADED.replace("degraded", "tripped"));
    assert_eq!(machine.once(&text).ok(), "");
}

#[test]
fn who_looks_once_waits_a_moment_for_one_that_is_suspended() {
    let machine = Machine::new();
    machine.safe(DEGRADED);
    machine.script(
        "dmsetup",
        "case $1 in info) echo >>\"$FAKE/looks\" ;; esac
        [ $(wc -l <\"$FAKE/looks\") -gt 2 ] || edit=s/Active/Suspended/
        sed \"$edit\" \"$FAKE/$1\"",
    );
    let done = machine.once(&[]);
    assert_eq!((done.status, done.out.lines().count()), (1, 5));
    assert_eq!(machine.read("looks").lines().count(), 3);
}

#[test]
fn a_device_that_resumes_is_looked_at_soon() {
    let machine = Machine::new();
    machine.safe(DEGRADED);
    machine.suspend();
    machine.script("dmsetup", "echo \"$1\" >>\"$FAKE/looks\"; cat \"$FAKE/$1\"");
    let mut daemon = machine.start(&["--interval", "1h"]);
    machine.wait_for("looks", "status");
    machine.safe(DEGRADED);
    machine.wait_for("state", "degraded");
    assert_eq!(daemon.line(), "safe: mode is degraded, it was active");
}

#[test]
fn a_device_that_vanishes_spoils_nothing() {
    let machine = Machine::new();
    machine.safe(THREE_PENDING);
    // As dmsetup does, if any mapped device vanishes while it goes through all of them.
    let vanishes = "cat \"$FAKE/$1\"; [ \"$1\" != table ] || { echo gone >&2; exit 1; }";
    machine.script("dmsetup", vanishes);
    let done = machine.once(&[]);
    assert!(done.out.contains("3 new units"), "{}", done.out);
    done.failed(4, "dmsetup table: gone");
    // For a moment only.
    machine.safe(DEGRADED);
    let again = "cat \"$FAKE/$1\"; echo \"$1\" >>\"$FAKE/runs\"; [ \"$1\" != table ] || [ -e \"$FAKE/seen\" ] || { touch \"$FAKE/seen\"; echo gone >&2; exit 1; }";
    machine.script("dmsetup", again);
    let done = machine.once(&[]);
    assert_eq!((done.status, &*done.err), (1, ""));
    // Nothing else is done again.
    assert_eq!(machine.read("runs"), "info\ntable\ntable\nstatus\n");
    // And a monitor that runs does not wait for its interval.
    machine.script("dmsetup", "echo sorry >&2; exit 1");
    let mut daemon = machine.start(&["--interval", "1h", "--textfile", "metrics.prom"]);
    machine.wait_for("err", "sorry");
    machine.script("dmsetup", "cat \"$FAKE/$1\"");
    machine.safe(WELL);
    machine.wait_for("metrics.prom", "safe");
    assert_eq!(daemon.line(), "safe: mode is active, it was degraded");
}

#[test]
fn what_was_not_seen_for_once_stays_among_the_metrics() {
    let machine = Machine::new();
    let text = "metrics.prom";
    let both = [("a", WELL), ("b", WELL)];
    machine.devices(&both);
    let _daemon = machine.start(&["--textfile", text]);
    machine.wait_for(text, "device=\"b\"");
    // As dmsetup does, if any mapped device vanishes while it goes through all of them.
    machine.script(
        "dmsetup",
        "echo \"$1\" >>\"$FAKE/looks\"
        [ \"$1\" != table ] || { head -n 1 \"$FAKE/$1\"; echo gone >&2; exit 1; }
        cat \"$FAKE/$1\"",
    );
    soon(|| (machine.read("looks").matches("status").count() >= 3).then_some(()));
    for device in ["a", "b"] {
        let metrics = machine.read(text);
        assert!(
            metrics.contains(&format!("device=\"{device}\"")),
            "{metrics}"
        );
    }
    machine.devices(&both[..1]);
    machine.script("dmsetup", "cat \"$FAKE/$1\"");
    soon(|| (!machine.read(text).contains("device=\"b\"")).then_some(()));
}

#[test]
fn a_mail_that_fails_is_in_the_next_one() {
    let machine = Machine::new();
    let sendmail = fs::read_to_string(machine.0.path("bin/sendmail")).unwrap();
    let sendmail = sendmail.trim_start_matches("#!/bin/sh\n");
    machine.safe(THREE_PENDING);
    machine.script("sendmail", "exit 75");
    let mail = ["--mail", "root"];
    let done = machine.once(&mail);
    done.failed(4, "sendmail: exit status: 75; it is kept for later");
    // A monitor that runs; and it ends.
    let mut daemon = machine.start(&mail);
    machine.safe(DEGRADED);
    assert!(daemon.line().contains("degraded"));
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end().status, 0);
    // Whoever mails to nobody forgets nothing.
    let _ = machine.once(&[]);
    machine.script("sendmail", sendmail);
    machine.safe(&DEGRADED.replace("degraded", "tripped"));
    assert_eq!(machine.once(&mail).status, 1);
    let mails = machine.read("mails");
    assert_eq!(mails.matches("== ").count(), 1, "{mails}");
    let subject = mails.lines().nth(2).unwrap();
    let expected = ": safe: mode is tripped, it was degraded (and 2 more)";
    assert!(subject.ends_with(expected), "{subject}");
    let late = mails.find("What could not be mailed before:\n\n2").unwrap();
    let told = [
        "Z safe: 3 new units",
        "Z safe: mode is degraded",
        "\nsafe: mode is tripped",
    ];
    let [first, second, third] = told.map(|text| mails.find(text).expect(text));
    assert!(late < first && first < second && second < third, "{mails}");
    machine.once(&mail).ok();
    assert_eq!(machine.read("mails"), mails);
    // Nothing new comes: the next monitor mails it.
    machine.script("sendmail", "exit 75");
    machine.safe(DEGRADED);
    assert_eq!(machine.once(&mail).status, 4);
    machine.script("sendmail", sendmail);
    machine.once(&mail).ok();
    let more = machine.read("mails");
    let subject = more
        .lines()
        .rfind(|line| line.starts_with("Subject"))
        .unwrap();
    assert!(
        subject.ends_with("Z safe: mode is degraded, it was tripped"),
        "{subject}"
    );
    assert_eq!(more.matches("== ").count(), 2);
}

#[test]
fn what_programs_print_is_not_among_the_documents() {
    let machine = Machine::new();
    machine.safe(DEGRADED);
    machine.script("noise", "echo program");
    machine.script("sendmail", "cat >/dev/null; echo sendmail");
    let done = machine.once(&["--json", "--program", "noise", "--mail", "root"]);
    for line in done.out.lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
    assert_eq!(done.out.lines().count(), 5);
    assert!(done.err.contains("program") && done.err.contains("sendmail"));
}

#[test]
fn what_no_log_takes_is_printed() {
    let machine = Machine::new();
    machine.safe(DEGRADED);
    let out = fs::File::create(machine.0.path("out")).unwrap();
    let place = out.metadata().unwrap();
    let mut command = machine.command(&["--once"]);
    // As if standard output were the journal.
    command.env("JOURNAL_STREAM", format!("{}:{}", place.dev(), place.ino()));
    command.stdout(out).stderr(Stdio::null());
    assert_eq!(command.status().unwrap().code(), Some(1));
    let is_logged = ["/run/systemd/journal/socket", "/dev/log"]
        .iter()
        .any(|path| fs::exists(path).unwrap());
    let expected = if is_logged { 0 } else { 5 };
    assert_eq!(machine.read("out").lines().count(), expected);
}
