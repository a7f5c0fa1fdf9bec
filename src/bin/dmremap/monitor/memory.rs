// SPDX-License-Identifier: GPL-2.0

//! The file that remembers what was told, from one start to the next.
//!
//! It is replaced as a whole, and bounded. One that is damaged is as good as none: then all that is not well is told once more.

use super::journal::{say, Priority};
use super::outlet::Call;
use super::watch::{Memory, Watch};
use crate::status::View;
use crate::whole_file;
use anyhow::{bail, ensure, Context as _, Result};
use rustix::fs::{flock, FlockOperation};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

/// Devices that are remembered at most; those that were there last.
const DEVICES: usize = 256;

/// Bytes of a file that is read at most. What is written has less.
const BYTES: u64 = 1 << 22;

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    devices: BTreeMap<String, Memory>,
    /// Messages that could not be mailed.
    #[serde(default)]
    untold: Vec<String>,
    /// Calls of the program that did not end.
    #[serde(default)]
    calls: Vec<Call>,
}

/// What it holds.
#[derive(Default)]
pub(super) struct Contents {
    pub(super) watches: BTreeMap<String, Watch>,
    pub(super) untold: Vec<String>,
    pub(super) calls: Vec<Call>,
}

/// By what a device is known, whatever its name is.
pub(super) fn key(view: &View) -> String {
    match view.uuid.as_str() {
        "" => format!("name {}", view.name),
        uuid => uuid.into(),
    }
}

/// Forgets devices that were not there for the longest time, if there are too many, and none that is there `now`.
pub(super) fn forget(watches: &mut BTreeMap<String, Watch>, now: u64) {
    while watches.len() > DEVICES {
        let absent = watches
            .iter()
            .map(|(key, watch)| (watch.memory.seen, key))
            .filter(|(seen, _)| *seen != now);
        let Some((_, oldest)) = absent.min() else {
            return;
        };
        let oldest = oldest.clone();
        watches.remove(&oldest);
    }
}

/// The file.
pub(super) struct Store {
    path: PathBuf,
    /// Nobody else uses it meanwhile.
    _lock: Option<File>,
}

/// Opens the file that is locked for it, and makes its directory.
fn lock_file(path: &Path) -> Result<File> {
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    if let Some(parent) = parent {
        fs::create_dir_all(parent)?;
    }
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    let mut options = OpenOptions::new();
    Ok(options
        .write(true)
        .create(true)
        .truncate(false)
        .open(&lock)?)
}

impl Store {
    /// Opens it. Where it cannot be written, as on a file system that became read-only because of errors, that is an error only
    /// if it `is_needed`.
    pub(super) fn open(path: &Path, is_needed: bool) -> Result<Self> {
        let name = path.display();
        ensure!(!path.is_dir(), "{name}: is a directory");
        let lock = match lock_file(path).with_context(|| name.to_string()) {
            Err(error) if !is_needed => {
                say(
                    Priority::Warning,
                    &format!("{error:#}; what is told is not remembered"),
                );
                None
            }
            lock => Some(lock?),
        };
        if let Some(lock) = &lock {
            match flock(lock, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => bail!(
                    "{name}: another dmremap monitor is running, and remembers there what it told; give this one another --state"
                ),
                locked => locked.with_context(|| name.to_string())?,
            }
        }
        Ok(Self {
            path: path.into(),
            _lock: lock,
        })
    }

    /// What it holds. If it cannot be used, also why.
    pub(super) fn read(&self) -> (Contents, Option<String>) {
        let document = match self.try_read() {
            Ok(None) => return (Contents::default(), None),
            Ok(Some(document)) => document,
            Err(error) => {
                let why = format!(
                    "{}: cannot be used, so all that is not well is told once more: {error:#}",
                    self.path.display()
                );
                return (Contents::default(), Some(why));
            }
        };
        let watches = document
            .devices
            .into_iter()
            .map(|(key, memory)| (key, Watch::new(memory)));
        let contents = Contents {
            watches: watches.collect(),
            untold: document.untold,
            calls: document.calls,
        };
        (contents, None)
    }

    fn try_read(&self) -> Result<Option<Document>> {
        let file = match File::open(&self.path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut text = Vec::new();
        file.take(BYTES + 1).read_to_end(&mut text)?;
        ensure!(text.len() as u64 <= BYTES, "more than 4 MiB long");
        let document: Document = serde_json::from_slice(&text)?;
        ensure!(document.version == 1, "of another version of dmremap");
        Ok(Some(document))
    }

    /// The text of the file for `watches`, without those that were not there for the longest time, and for what could not be
    /// mailed, and calls of the program that did not end.
    pub(super) fn text(
        watches: &BTreeMap<String, Watch>,
        untold: &[String],
        calls: &[Call],
    ) -> String {
        let mut devices: Vec<(&String, &Memory)> = watches
            .iter()
            .map(|(key, watch)| (key, &watch.memory))
            .collect();
        devices.sort_by_key(|(_, memory)| std::cmp::Reverse(memory.seen));
        let devices = devices.into_iter().take(DEVICES);
        let document = Document {
            version: 1,
            devices: devices
                .map(|(key, memory)| (key.clone(), memory.clone()))
                .collect(),
            untold: untold.into(),
            calls: calls.into(),
        };
        serde_json::to_string(&document).unwrap_or_default()
    }

    pub(super) fn write(&self, text: &str) -> Result<()> {
        whole_file::replace(&self.path, text, true).with_context(|| self.path.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::monitor::watch::{Facts, Manner, Now};

    fn watches(count: usize) -> BTreeMap<String, Watch> {
        let manner = Manner {
            collect: Duration::ZERO,
            hold_off: Duration::ZERO,
            few: 10.0,
        };
        let mut watches = BTreeMap::new();
        for number in 0..count {
            let mut watch = Watch::default();
            watch.memory.name = "x".repeat(127);
            let mut facts = Facts {
                mode: "active".into(),
                ..Facts::default()
            };
            // Something new each hour, for longer than is kept.
            for hour in 0..200 {
                facts.pending += 1_000_000_000;
                let now = Now {
                    uptime: Duration::from_secs(hour * 3600),
                    unix: 1_790_000_000 + hour * 3600 + number as u64,
                    boot: u64::MAX,
                };
                watch.look(&facts, now, &manner);
            }
            watches.insert(format!("REMAP-{number:032x}"), watch);
        }
        watches
    }

    #[test]
    fn what_was_told_comes_back() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("new/state.json");
        let store = Store::open(&path, true).unwrap();
        let (none, why) = store.read();
        assert!(none.watches.is_empty() && none.untold.is_empty() && why.is_none());
        let all = watches(3);
        let untold = ["one".to_string(), "two".into()];
        let calls = [Call {
            arguments: vec!["mode".into(), "/dev/mapper/safe".into()],
            variables: BTreeMap::from([("DMREMAP_NEW".into(), "1".into())]),
        }];
        store.write(&Store::text(&all, &untold, &calls)).unwrap();
        let (read, why) = store.read();
        assert_eq!(why, None);
        assert_eq!(read.untold, untold);
        assert_eq!(read.calls, calls);
        assert_eq!(
            Store::text(&read.watches, &untold, &calls),
            Store::text(&all, &untold, &calls)
        );
        // One at a time.
        let second = Store::open(&path, false).err().unwrap().to_string();
        assert!(second.contains("another dmremap monitor"), "{second}");
        drop(store);
        Store::open(&path, true).unwrap();
    }

    #[test]
    fn the_file_is_bounded() {
        let untold = vec!["\u{1}".repeat(1000); 100];
        let call = Call {
            arguments: vec!["pending".into(), "x".repeat(200)],
            variables: BTreeMap::from([("DMREMAP_MAIN".into(), "x".repeat(8000))]),
        };
        let text = Store::text(&watches(DEVICES + 10), &untold, &vec![call; 100]);
        assert!((text.len() as u64) < BYTES, "{}", text.len());
        let document: Document = serde_json::from_str(&text).unwrap();
        assert_eq!(document.devices.len(), DEVICES);
        // Those that were there last.
        assert!(document
            .devices
            .contains_key(&format!("REMAP-{:032x}", DEVICES + 9)));
    }

    #[test]
    fn devices_that_are_gone_are_forgotten_in_the_end() {
        let mut all = BTreeMap::new();
        for seen in 0..DEVICES as u64 + 10 {
            let mut watch = Watch::default();
            watch.memory.seen = seen / 2;
            all.insert(format!("{seen:05}"), watch);
        }
        let mut present = all.values_mut().take(3);
        present.all(|watch| {
            watch.memory.seen = 7000;
            true
        });
        forget(&mut all, 7000);
        assert_eq!(all.len(), DEVICES);
        assert!(all.contains_key("00002") && !all.contains_key("00003"));
        // However many there are.
        all.values_mut().for_each(|watch| watch.memory.seen = 8000);
        all.insert("more".into(), Watch::default());
        forget(&mut all, 8000);
        assert_eq!(all.len(), DEVICES);
        assert!(!all.contains_key("more"));
    }

    #[test]
    fn damage_costs_no_more_than_a_message() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("state.json");
        let store = Store::open(&path, true).unwrap();
        let whole = Store::text(&watches(2), &[], &[]);
        let other = whole.replace("\"version\":1", "\"version\":2");
        let long = " ".repeat(BYTES as usize) + &whole;
        let wrong = whole.replace("\"pending\":", "\"pending\":-");
        assert_ne!(wrong, whole);
        let cut = &whole[..whole.len() / 2];
        for text in ["", "{}", "null", cut, &other, &long, &wrong, "\0\0\0"] {
            fs::write(&path, text).unwrap();
            let (read, why) = store.read();
            assert!(read.watches.is_empty());
            assert!(why.unwrap().contains("told once more"));
        }
        // Fields may be missing, or be those of a later version.
        let devices = [r#"{"pending":3}"#, r#"{"pending":3,"more":[1]}"#];
        for device in devices {
            let text = format!("{{\"version\":1,\"devices\":{{\"a\":{device}}}}}");
            fs::write(&path, text).unwrap();
            assert_eq!(store.read().0.watches.len(), 1);
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(store.read().1.is_some());
        store.write(&whole).unwrap_err();
    }

    #[test]
    fn a_file_at_random_never_stops_us() {
        use proptest::prelude::*;
        let whole = Store::text(&watches(1), &[], &[]);
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("state.json");
        let store = Store::open(&path, true).unwrap();
        let manner = Manner {
            collect: Duration::ZERO,
            hold_off: Duration::ZERO,
            few: 10.0,
        };
        proptest!(ProptestConfig::with_cases(200), |(at in 0..whole.len(), byte in 32_u8..127)| {
            let mut text = whole.clone().into_bytes();
            text[at] = byte;
            fs::write(&path, &text).unwrap();
            let Contents { mut watches, .. } = store.read().0;
            let now = Now { uptime: Duration::from_secs(7), unix: 1_790_000_000, boot: 7 };
            let facts = Facts { mode: "active".into(), pending: 7, ..Facts::default() };
            for watch in watches.values_mut() {
                watch.look(&facts, now, &manner);
            }
        });
    }
}
