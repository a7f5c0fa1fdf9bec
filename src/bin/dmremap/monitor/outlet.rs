// SPDX-License-Identifier: GPL-2.0

//! Running what tells a person: a program of the administrator's, and sendmail ([`super::mail`]). Either may hang, so each has a
//! thread of its own, which runs one at a time, and ends what takes too long, with all that it started.

use super::journal::{say, Priority};
use anyhow::{anyhow, ensure, Context as _, Result};
use rustix::fs::{memfd_create, MemfdFlags};
use rustix::process::{kill_process_group, Pid, Signal};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{stderr, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{channel, sync_channel, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

/// How often a process that runs is looked at.
const STEP: Duration = Duration::from_millis(50);

/// How long a process may take to end that was killed. One that waits for a disk in the kernel may not.
const DEATH: Duration = Duration::from_secs(5);

/// Of those that did not, how many are too many.
const STUCK: usize = 8;

/// What waits at most. There is never that much, unless the one that runs hangs.
const WAITING: usize = 256;

/// How many calls the next monitor makes, the latest ones; and how long the variables of one are then at most.
const KEPT: usize = 100;
const LENGTH: usize = 8192;

/// When all that is being told is to have ended; at first, never.
#[derive(Clone, Default)]
pub(super) struct Deadline(Arc<Mutex<Option<Instant>>>);

impl Deadline {
    pub(super) fn set(&self, at: Instant) {
        if let Ok(mut deadline) = self.0.lock() {
            *deadline = Some(at);
        }
    }

    fn get(&self) -> Option<Instant> {
        self.0.lock().ok().and_then(|deadline| *deadline)
    }

    fn is_over(&self) -> bool {
        self.get().is_some_and(|at| Instant::now() >= at)
    }

    /// What a thread says at its end; nothing, if that does not come even when all that it ran had the time to end.
    pub(super) fn wait<T>(&self, end: &Receiver<T>) -> Option<T> {
        match self.get() {
            None => end.recv().ok(),
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now());
                end.recv_timeout(left + DEATH + STEP * 4).ok()
            }
        }
    }
}

fn has_ended(child: &mut Child) -> bool {
    !matches!(child.try_wait(), Ok(None))
}

/// How one is run after the other.
pub(super) struct Runner {
    /// How long each may take.
    limit: Duration,
    deadline: Deadline,
    stuck: Vec<Child>,
}

impl Runner {
    pub(super) fn new(limit: Duration, deadline: &Deadline) -> Self {
        Self {
            limit,
            deadline: deadline.clone(),
            stuck: Vec::new(),
        }
    }

    /// Runs a command, which reads `input`, to its end. What it prints comes out as messages do: standard output is for
    /// what is told.
    pub(super) fn run(&mut self, mut command: Command, input: &str) -> Result<()> {
        self.stuck.retain_mut(|child| !has_ended(child));
        let name = command.get_program().to_string_lossy().into_owned();
        ensure!(
            !self.deadline.is_over(),
            "{name}: not run, as the monitor ends"
        );
        ensure!(
            self.stuck.len() < STUCK,
            "{name}: not run, as others of it do not end"
        );
        // Not a pipe: whoever does not read it cannot stop us.
        let mut file = File::from(memfd_create("input", MemfdFlags::CLOEXEC)?);
        file.write_all(input.as_bytes())?;
        file.rewind()?;
        command.stdin(Stdio::from(file)).process_group(0);
        command.stdout(stderr().as_fd().try_clone_to_owned()?);
        let begin = Instant::now();
        let mut child = command.spawn().with_context(|| name.clone())?;
        while begin.elapsed() < self.limit && !self.deadline.is_over() {
            if let Some(status) = child.try_wait()? {
                ensure!(status.success(), "{name}: {status}");
                return Ok(());
            }
            sleep(STEP);
        }
        let lasted = begin.elapsed().as_secs_f32();
        // With all that it started.
        let group = Pid::from_raw(child.id() as i32);
        let killed = group.map(|group| kill_process_group(group, Signal::KILL));
        let begin = Instant::now();
        while !has_ended(&mut child) {
            if begin.elapsed() >= DEATH {
                self.stuck.push(child);
                break;
            }
            sleep(STEP);
        }
        let how = match killed {
            Some(Ok(())) => "and was ended",
            _ => "and could not be ended",
        };
        Err(anyhow!("{name}: did not end within {lasted:.1} s, {how}"))
    }
}

/// A call of the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Call {
    pub(super) arguments: Vec<String>,
    pub(super) variables: BTreeMap<String, String>,
}

impl Call {
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.args(&self.arguments).envs(&self.variables);
        command
    }

    fn is_short(&self) -> bool {
        let variables = self.variables.iter();
        let lengths = variables.map(|(name, value)| name.len() + value.len());
        lengths.sum::<usize>() <= LENGTH
    }
}

/// Calls that were not made to their end yet, in their order; the first one may be under way.
#[derive(Clone, Default)]
struct Waiting(Arc<Mutex<VecDeque<Call>>>);

impl Waiting {
    fn with<T>(&self, work: impl FnOnce(&mut VecDeque<Call>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Those for the next monitor.
    fn untold(&self) -> Vec<Call> {
        self.with(|waiting| {
            let skipped = waiting.len().saturating_sub(KEPT);
            let kept = waiting.iter().skip(skipped);
            kept.filter(|call| call.is_short()).cloned().collect()
        })
    }
}

/// One who calls the program.
pub(super) struct Outlet {
    waiting: Waiting,
    /// Rings once for each of them.
    bell: Sender<()>,
    /// Whether all of them succeeded, when there are no more.
    end: Receiver<bool>,
    deadline: Deadline,
}

impl Outlet {
    /// `calls` are those that the last monitor left. Without a program, they stay.
    pub(super) fn new(program: Option<PathBuf>, calls: Vec<Call>, mut runner: Runner) -> Self {
        let (bell, rings) = channel();
        let (send, end) = sync_channel(1);
        let deadline = runner.deadline.clone();
        let waiting = Waiting::default();
        for call in calls {
            waiting.with(|waiting| waiting.push_back(call));
            if program.is_some() {
                let _ = bell.send(());
            }
        }
        let own = waiting.clone();
        thread::spawn(move || {
            let program = program.unwrap_or_default();
            let mut is_good = true;
            for () in rings {
                let Some(call) = own.with(|waiting| waiting.front().cloned()) else {
                    break;
                };
                if let Err(error) = runner.run(call.command(&program), "") {
                    is_good = false;
                    if runner.deadline.is_over() {
                        // It is made again, as nobody knows how far it came.
                        say(
                            Priority::Error,
                            &format!("{error:#}; it is left to the next monitor"),
                        );
                        break;
                    }
                    say(Priority::Error, &format!("{error:#}"));
                }
                own.with(VecDeque::pop_front);
            }
            let _ = send.send(is_good);
        });
        Self {
            waiting,
            bell,
            end,
            deadline,
        }
    }

    /// Has a call made, as soon as those before it have ended.
    pub(super) fn put(&self, call: Call) {
        let is_put = self.waiting.with(|waiting| {
            let has_room = waiting.len() < WAITING;
            if has_room {
                waiting.push_back(call);
            }
            has_room
        });
        if is_put {
            let _ = self.bell.send(());
        } else {
            say(
                Priority::Error,
                "too much waits to be told, as what tells it does not end: something is not told",
            );
        }
    }

    /// What has not ended yet, for the next monitor.
    pub(super) fn untold(&self) -> Vec<Call> {
        self.waiting.untold()
    }

    /// Waits until all of them have ended, until the deadline if there is one. Returns whether all of them succeeded, and those
    /// that have not ended.
    pub(super) fn finish(self) -> (bool, Vec<Call>) {
        drop(self.bell);
        let is_good = self.deadline.wait(&self.end).unwrap_or(false);
        (is_good, self.waiting.untold())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    fn shell(script: String) -> Call {
        Call {
            arguments: vec!["-c".into(), script],
            variables: BTreeMap::from([("ANSWER".into(), "42".into())]),
        }
    }

    fn outlet_until(limit: Duration, deadline: &Deadline, calls: Vec<Call>) -> Outlet {
        Outlet::new(Some("sh".into()), calls, Runner::new(limit, deadline))
    }

    fn outlet(limit: Duration) -> Outlet {
        outlet_until(limit, &Deadline::default(), Vec::new())
    }

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn jobs_run_one_after_the_other() {
        let place = tempfile::tempdir().unwrap();
        let log = place.path().join("log");
        let outlet = outlet(LONG);
        for number in 0..3 {
            let log = log.display();
            outlet.put(shell(format!(
                "echo begin {number} >>{log}; echo $ANSWER >>{log}; echo end >>{log}"
            )));
        }
        assert_eq!(outlet.finish(), (true, vec![]));
        let expected: String = (0..3)
            .map(|number| format!("begin {number}\n42\nend\n"))
            .collect();
        assert_eq!(read(&log), expected);
        // What one reads, whether it reads it or not.
        let mut runner = Runner::new(LONG, &Deadline::default());
        let input = "input\n".repeat(100_000);
        for script in [format!("wc -c >{}", log.display()), "exit 0".into()] {
            let command = shell(script).command(Path::new("sh"));
            runner.run(command, &input).unwrap();
        }
        assert_eq!(read(&log), "600000\n");
    }

    #[test]
    fn one_that_fails_is_no_reason_to_leave_out_the_next() {
        let place = tempfile::tempdir().unwrap();
        let log = place.path().join("log");
        let outlet = outlet(LONG);
        outlet.put(shell("exit 3".into()));
        outlet.put(shell("exec /nonexistent".into()));
        outlet.put(shell(format!("echo here >{}", log.display())));
        assert_eq!(outlet.finish(), (false, vec![]));
        assert_eq!(read(&log), "here\n");
    }

    #[test]
    fn one_that_hangs_is_ended_with_its_children() {
        let place = tempfile::tempdir().unwrap();
        let [ids, log] = ["ids", "log"].map(|name| place.path().join(name));
        let outlet = outlet(Duration::from_secs(10));
        outlet.put(shell(format!(
            "trap '' TERM; sleep 1000 & echo $! >{0}; sleep 1000 & echo $! >>{0}; wait",
            ids.display()
        )));
        // Meanwhile, others wait.
        for _ in 0..WAITING - 2 {
            outlet.put(shell("true".into()));
        }
        outlet.put(shell(format!("echo here >{}", log.display())));
        assert_eq!(outlet.finish(), (false, vec![]));
        assert_eq!(read(&log), "here\n");
        let ids = read(&ids);
        assert_eq!(ids.lines().count(), 2);
        for id in ids.lines() {
            // They are gone, or dead and not yet buried by whoever is the father of orphans here.
            let stat = read(&Path::new("/proc").join(id).join("stat"));
            let state = stat
                .rsplit(") ")
                .next()
                .and_then(|rest| rest.chars().next());
            assert!(matches!(state, None | Some('Z' | 'X')), "{id}: {stat}");
        }
    }

    #[test]
    fn who_ends_does_not_wait_for_long() {
        let deadline = Deadline::default();
        let outlets = [(); 2].map(|()| outlet_until(LONG, &deadline, Vec::new()));
        let calls: Vec<Call> = (0..10)
            .map(|number| shell(format!("sleep 100{number}")))
            .collect();
        for outlet in &outlets {
            calls.iter().for_each(|call| outlet.put(call.clone()));
        }
        let begin = Instant::now();
        deadline.set(begin + Duration::from_millis(300));
        for outlet in outlets {
            // They are left to the next monitor, also the one that was ended.
            assert_eq!(outlet.finish(), (false, calls.clone()));
        }
        assert!(begin.elapsed() < LONG);
        // What can be done in that time is done.
        let deadline = Deadline::default();
        let outlet = outlet_until(LONG, &deadline, Vec::new());
        outlet.put(shell("true".into()));
        deadline.set(Instant::now() + LONG);
        assert_eq!(outlet.finish(), (true, vec![]));
        // Nobody waits for a thread that does not end at all.
        let (_send, end) = sync_channel::<()>(1);
        deadline.set(Instant::now());
        assert_eq!(deadline.wait(&end), None);
    }
    #[test]
    fn what_the_last_monitor_left_comes_first() {
        let place = tempfile::tempdir().unwrap();
        let log = place.path().join("log");
        let calls = ["old", "new"].map(|text| shell(format!("echo {text} >>{}", log.display())));
        let [old, new] = calls;
        let left = vec![old.clone()];
        // Who has no program forgets nothing.
        let runner = Runner::new(LONG, &Deadline::default());
        let none = Outlet::new(None, left.clone(), runner);
        assert_eq!(none.finish(), (true, left.clone()));
        let outlet = outlet_until(LONG, &Deadline::default(), left);
        outlet.put(new);
        assert_eq!(outlet.finish(), (true, vec![]));
        assert_eq!(read(&log), "old\nnew\n");
        // What is left is bounded.
        let mut long = old.clone();
        long.variables.insert("LONG".into(), "x".repeat(LENGTH));
        let all = [vec![old; WAITING], vec![long]].concat();
        let none = Outlet::new(None, all, Runner::new(LONG, &Deadline::default()));
        assert_eq!(none.untold().len(), KEPT - 1);
    }
}
