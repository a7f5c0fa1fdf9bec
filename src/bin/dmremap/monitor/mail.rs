// SPDX-License-Identifier: GPL-2.0

//! Mail, through sendmail. What could not be mailed is tried again after a while, and then comes with the next mail. What is not
//! mailed when the monitor ends is in its file, and the next monitor mails it.

use super::journal::{say, Priority};
use super::notice::{self, Notice};
use super::outlet::{Deadline, Runner};
use super::watch::Now;
use crate::smart;
use crate::status::View;
use anyhow::{Context as _, Result};
use std::collections::{BTreeMap, VecDeque};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{sync_channel, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// When a mail that failed is tried again.
const RETRIES: [Duration; 3] = [
    Duration::from_secs(60),
    Duration::from_secs(300),
    Duration::from_secs(1800),
];

/// Messages that wait at most, the latest ones, and how many of them the next monitor mails; all of them are in the system's log.
const WAITING: usize = 4096;
const KEPT: usize = 100;

/// Characters of a message that the next monitor mails.
const LENGTH: usize = 1000;

/// A message that is to be mailed.
#[derive(Clone)]
struct Message {
    number: u64,
    text: String,
    /// When it was told.
    time: Option<String>,
}

impl Message {
    /// As it is told when it is not new any more.
    fn late(&self) -> String {
        match &self.time {
            Some(time) => format!("{time} {}", self.text),
            None => self.text.clone(),
        }
    }
}

/// What is to be mailed.
#[derive(Clone, Default)]
struct Desk {
    messages: VecDeque<Message>,
    /// The number of the next one.
    next: u64,
    /// Those with lower numbers were in a mail that failed.
    tried: u64,
    /// The latest change, in few words.
    headline: String,
    /// The devices that it is about, by name, and the number of the message with which they came.
    views: BTreeMap<String, (u64, View)>,
}

impl Desk {
    fn put(&mut self, text: String, time: Option<String>) {
        self.messages.push_back(Message {
            number: self.next,
            text,
            time,
        });
        self.next += 1;
        while self.messages.len() > WAITING {
            self.messages.pop_front();
        }
    }

    /// For the next monitor: what is not mailed yet.
    fn untold(&self) -> Vec<String> {
        let skipped = self.messages.len().saturating_sub(KEPT);
        let kept = self.messages.iter().skip(skipped).map(Message::late);
        kept.map(|text| text.chars().take(LENGTH).collect())
            .collect()
    }

    /// Those with lower numbers were mailed.
    fn mailed(&mut self, below: u64) {
        self.messages.retain(|message| message.number >= below);
        self.views.retain(|_, (number, _)| *number >= below);
    }

    /// The mail.
    fn letter(&self, to: &[String]) -> std::io::Result<String> {
        let host = host();
        let mut text = Vec::new();
        let subject = notice::subject(&self.headline, self.messages.len(), &host);
        writeln!(text, "To: {}", to.join(", "))?;
        writeln!(text, "Subject: {subject}")?;
        writeln!(text, "Auto-Submitted: auto-generated")?;
        writeln!(text, "MIME-Version: 1.0")?;
        writeln!(text, "Content-Type: text/plain; charset=UTF-8")?;
        writeln!(text, "Content-Transfer-Encoding: 8bit\n")?;
        writeln!(text, "This is dmremap monitor on {host}.\n")?;
        let is_late = |message: &&Message| message.number < self.tried;
        let (late, new): (Vec<_>, Vec<_>) = self.messages.iter().partition(is_late);
        if !late.is_empty() {
            writeln!(text, "What could not be mailed before:\n")?;
        }
        let lines = late.iter().map(|message| message.late());
        let space = (!late.is_empty() && !new.is_empty()).then(String::new);
        let lines = lines.chain(space);
        for line in lines.chain(new.iter().map(|message| message.text.clone())) {
            for line in textwrap::wrap(&line, 78) {
                writeln!(text, "{line}")?;
            }
        }
        for (_, view) in self.views.values() {
            writeln!(text)?;
            view.print(&mut text)?;
            // Here, as the drive may take its time.
            if let Some(smart) = smart::of(Path::new(&view.main.device)) {
                writeln!(text, "\n  {smart}")?;
            }
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    name.map_or("localhost".into(), |name| name.trim().into())
}

/// The sendmail of this machine.
fn sendmail() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path);
    let usual = ["/usr/sbin", "/usr/lib"].map(PathBuf::from);
    let mut all = directories
        .chain(usual)
        .map(|directory| directory.join("sendmail"));
    all.find(|path| path.is_file())
        .context("no mail was sent: there is no sendmail; see dmremap-monitor(8)")
}

/// How a mail is sent, and what sendmail reads.
fn job(desk: &Desk, to: &[String]) -> Result<(Command, String)> {
    let mut command = Command::new(sendmail()?);
    command.args(["-oi", "-t"]);
    Ok((command, desk.letter(to)?))
}

/// The desk, which the monitor and the thread that mails share.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Desk>>);

impl Shared {
    fn with<T>(&self, work: impl FnOnce(&mut Desk) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Mails all that is there. Smart drives and sendmail may take their time, and nobody waits for the desk meanwhile.
    fn mail(&self, mut send: impl FnMut(&Desk) -> Result<()>) -> Result<()> {
        let desk = self.with(|desk| desk.clone());
        if desk.messages.is_empty() {
            return Ok(());
        }
        let sent = send(&desk);
        self.with(|now| match sent {
            Ok(()) => now.mailed(desk.next),
            Err(_) => now.tried = desk.next,
        });
        sent
    }

    /// Mails each time the bell rings, and if that fails, some times more.
    fn serve(
        &self,
        bell: &Receiver<()>,
        retries: &[Duration],
        mut send: impl FnMut(&Desk) -> Result<()>,
    ) {
        let mut retry = [].iter();
        loop {
            let is_owed = self.with(|desk| !desk.messages.is_empty());
            let ring = match retry.next().filter(|_| is_owed) {
                Some(delay) => bell.recv_timeout(*delay),
                None => bell.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let is_retry = match ring {
                Ok(()) => false,
                Err(RecvTimeoutError::Timeout) => true,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if !is_retry {
                retry = retries.iter();
            }
            // That it still fails is known.
            if let Err(error) = self.mail(&mut send) {
                if !is_retry {
                    say(Priority::Error, &format!("{error:#}; it is kept for later"));
                }
            }
        }
    }
}

/// Who mails.
pub(super) struct Mail {
    shared: Shared,
    bell: SyncSender<()>,
    end: Receiver<()>,
    deadline: Deadline,
    /// Whether there is anybody to mail to.
    is_wanted: bool,
}

impl Mail {
    /// To these addresses; `untold` is what was not mailed before.
    pub(super) fn new(
        to: Vec<String>,
        untold: Vec<String>,
        mut runner: Runner,
        deadline: &Deadline,
    ) -> Self {
        let is_wanted = !to.is_empty();
        let send = move |desk: &Desk| {
            let (command, text) = job(desk, &to)?;
            runner.run(command, &text)
        };
        Self::sent_by(send, &RETRIES, untold, deadline, is_wanted)
    }

    fn sent_by(
        send: impl FnMut(&Desk) -> Result<()> + Send + 'static,
        retries: &'static [Duration],
        untold: Vec<String>,
        deadline: &Deadline,
        is_wanted: bool,
    ) -> Self {
        let shared = Shared::default();
        shared.with(|desk| {
            for text in untold {
                desk.headline.clone_from(&text);
                desk.put(text, None);
            }
            desk.tried = desk.next;
        });
        // It is enough to know that it rang.
        let (bell, rings) = sync_channel(1);
        let (send_end, end) = sync_channel(1);
        let own = shared.clone();
        thread::spawn(move || {
            own.serve(&rings, retries, send);
            let _ = send_end.send(());
        });
        Self {
            shared,
            bell,
            end,
            deadline: deadline.clone(),
            is_wanted,
        }
    }

    /// Has these mailed, and all that is not yet; `views` are the devices that they are about.
    pub(super) fn put(&self, notices: &[Notice], views: Vec<View>, now: Now) {
        let (Some(first), true) = (notices.first(), self.is_wanted) else {
            return;
        };
        self.shared.with(|desk| {
            desk.headline = format!("{}: {}", first.name, first.short);
            for notice in notices {
                desk.put(notice.message.clone(), now.date());
            }
            let last = desk.next - 1;
            let named = views
                .into_iter()
                .map(|view| (view.name.clone(), (last, view)));
            desk.views.extend(named);
        });
        self.ring();
    }

    /// Has all mailed that is not yet.
    pub(super) fn ring(&self) {
        if self.is_wanted {
            let _ = self.bell.try_send(());
        }
    }

    /// What is not mailed yet, for the next monitor.
    pub(super) fn untold(&self) -> Vec<String> {
        self.shared.with(|desk| desk.untold())
    }

    /// Waits until all that is to be mailed was tried once, until the deadline if there is one. Returns whether all was mailed,
    /// and what was not.
    pub(super) fn finish(self) -> (bool, Vec<String>) {
        drop(self.bell);
        self.deadline.wait(&self.end);
        let untold = self.shared.with(|desk| desk.untold());
        (!self.is_wanted || untold.is_empty(), untold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dm::Device;
    use anyhow::ensure;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    const NOW: Now = Now {
        uptime: Duration::ZERO,
        unix: 1_790_000_000,
        boot: 0,
    };

    /// Sendmail, which fails while it is told to.
    #[derive(Clone, Default)]
    struct Post {
        is_shut: Arc<AtomicBool>,
        attempts: Arc<Mutex<Vec<String>>>,
    }

    impl Post {
        fn mail(&self, retries: &'static [Duration], untold: &[&str]) -> Mail {
            self.mail_if(true, retries, untold)
        }

        fn mail_if(&self, is_wanted: bool, retries: &'static [Duration], untold: &[&str]) -> Mail {
            let post = self.clone();
            let send = move |desk: &Desk| {
                let letter = desk.letter(&["root".into()])?;
                post.attempts.lock().unwrap().push(letter);
                ensure!(!post.is_shut.load(SeqCst), "it is shut");
                Ok(())
            };
            let untold = untold.iter().map(|text| text.to_string()).collect();
            Mail::sent_by(send, retries, untold, &Deadline::default(), is_wanted)
        }

        fn shut(&self, is_shut: bool) {
            self.is_shut.store(is_shut, SeqCst);
        }

        /// Waits until so many mails were tried.
        fn wait(&self, count: usize) -> Vec<String> {
            for _ in 0..12_000 {
                let attempts = self.attempts.lock().unwrap().clone();
                if attempts.len() >= count {
                    return attempts;
                }
                thread::sleep(Duration::from_millis(5));
            }
            panic!("it does not come");
        }
    }

    fn put(mail: &Mail, name: &str) {
        let status = "full 8 50/64 4 10 20 5 6 7 8 9 10 11 12 idle 13";
        let view = View::of(&Device::example(name, ""), status, None).unwrap();
        let notice = Notice {
            name: name.into(),
            short: "is full".into(),
            message: format!("{name}: is full, alas"),
            ..Notice::test()
        };
        mail.put(&[notice], vec![view], NOW);
    }

    const LATE: &str = "2026-09-21T14:13:20Z a: is full, alas";

    #[test]
    fn what_fails_is_tried_again_and_then_comes_with_the_next() {
        let post = Post::default();
        post.shut(true);
        const QUICK: [Duration; 3] = [Duration::from_millis(1); 3];
        let mail = post.mail(&QUICK, &[]);
        put(&mail, "a");
        let attempts = post.wait(4);
        assert!(attempts[0].contains("\na: is full, alas\n"));
        assert!(attempts[3].contains(&format!("\n{LATE}\n")));
        assert_eq!(mail.untold(), [LATE]);
        // Not again and again.
        thread::sleep(Duration::from_millis(300));
        assert_eq!(post.wait(4).len(), 4);
        post.shut(false);
        put(&mail, "b");
        let last = post.wait(5).pop().unwrap();
        assert!(last.contains(": b: is full (and 1 more)\n"), "{last}");
        let [old, new] = [LATE, "\nb: is full, alas"].map(|text| last.find(text).unwrap());
        assert!(old < new, "{last}");
        for name in ["a", "b"] {
            assert!(last.contains(&format!("\n{name}: needs attention\n")));
        }
        assert_eq!(mail.finish(), (true, vec![]));
        assert_eq!(post.wait(5).len(), 5);
    }

    #[test]
    fn what_fails_in_the_end_is_for_the_next_monitor() {
        let post = Post::default();
        post.shut(true);
        let mail = post.mail(&RETRIES, &[]);
        put(&mail, "a");
        let (is_mailed, untold) = mail.finish();
        assert!(!is_mailed);
        assert_eq!(untold, [LATE]);
        assert_eq!(post.wait(1).len(), 1);
        // Which mails it, and not twice.
        post.shut(false);
        let mail = post.mail(&RETRIES, &[LATE]);
        mail.ring();
        let attempts = post.wait(2);
        assert!(attempts[1].contains("What could not be mailed before:\n\n2026"));
        put(&mail, "b");
        assert_eq!(mail.finish(), (true, vec![]));
        let attempts = post.wait(3);
        assert!(attempts[2].contains("\nb: is full"), "{}", attempts[2]);
        assert!(!attempts[2].contains("a: "), "{}", attempts[2]);
        assert_eq!(attempts.len(), 3);
    }

    #[test]
    fn what_waits_is_bounded_and_the_latest() {
        let mut desk = Desk::default();
        for number in 0..2 * WAITING {
            desk.put(format!("{number:<2000}"), None);
        }
        assert_eq!(desk.messages.len(), WAITING);
        let untold = desk.untold();
        assert_eq!(untold.len(), KEPT);
        assert!(untold.iter().all(|text| text.len() == LENGTH));
        let last = (2 * WAITING - 1).to_string();
        assert!(untold[KEPT - 1].starts_with(&last));
    }

    #[test]
    fn where_nobody_is_to_be_mailed_nothing_is_lost() {
        let post = Post::default();
        let mail = post.mail_if(false, &RETRIES, &[LATE]);
        mail.ring();
        put(&mail, "b");
        assert_eq!(mail.untold(), [LATE]);
        assert_eq!(mail.finish(), (true, vec![LATE.into()]));
        assert_eq!(post.wait(0).len(), 0);
    }
}
