// SPDX-License-Identifier: GPL-2.0

//! Running `dmremap`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// What a command did.
pub(crate) struct Done {
    pub(crate) status: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Done {
    /// It succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.status, 0, "{}{}", self.out, self.err);
        self.out
    }

    /// It ended with that status and said so.
    #[track_caller]
    pub(crate) fn failed(self, status: i32, why: &str) {
        let said = format!("{}{}", self.out, self.err);
        assert_eq!(self.status, status, "{said}");
        assert!(said.contains(why), "{said}");
    }
}

/// A directory to run in, that is gone afterwards.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The names of what is there, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    /// A command with standard input empty.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dmremap"));
        command.args(arguments).current_dir(self.0.path());
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Done {
        done(self.command(arguments))
    }

    /// A blank image.
    pub(crate) fn blank(&self, name: &str, blocks: u64) -> PathBuf {
        let path = self.path(name);
        let file = fs::File::create(&path).unwrap();
        file.set_len(blocks * 4096).unwrap();
        path
    }

    /// An image `s.img` of 480 blocks, formatted for a main of 65,531 sectors, and what is in it.
    pub(crate) fn formatted(&self, copies: u32) -> Vec<u8> {
        self.blank("s.img", 480);
        let copies = copies.to_string();
        let format = ["format", "s.img", "--main-sectors", "65531", "--yes"];
        self.run(
            &[
                &format[..],
                &["--metadata-copies", &copies, "--label", "test"],
            ]
            .concat(),
        )
        .ok();
        self.image()
    }

    /// `s.img` again, empty.
    pub(crate) fn formatted_anew(&self) {
        fs::remove_file(self.path("s.img")).unwrap();
        self.formatted(2);
    }

    /// The bytes of `s.img`.
    pub(crate) fn image(&self) -> Vec<u8> {
        fs::read(self.path("s.img")).unwrap()
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    /// `dump --json` of an image, whatever its status.
    pub(crate) fn dump(&self, image: &str) -> serde_json::Value {
        let done = self.run(&["dump", "--json", image]);
        serde_json::from_str(&done.out).unwrap_or_else(|e| panic!("{e}: {}", done.err))
    }
}

pub(crate) fn done(mut command: Command) -> Done {
    let output = command.output().unwrap();
    Done {
        status: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn words(item: &serde_json::Value, names: &[&str]) -> String {
    let word = |name: &&str| match &item[name] {
        serde_json::Value::String(word) => word.clone(),
        other => other.to_string(),
    };
    names.iter().map(word).collect::<Vec<_>>().join(" ")
}

const LIST: [&str; 5] = ["sector", "state", "slot", "mask", "lost_mask"];

/// The entries of `dump --json` as the message `list` has them.
pub(crate) fn list(dump: &serde_json::Value) -> String {
    let entries = dump["entries"].as_array().unwrap().iter();
    entries.map(|e| words(e, &LIST[..4]) + "\n").collect()
}

/// The entries and bad slots of `dump --json` as `tests/reader.py --all` has them.
pub(crate) fn all(dump: &serde_json::Value) -> String {
    let entries = dump["entries"].as_array().unwrap().iter();
    let bad = dump["bad_slots"].as_array().unwrap().iter();
    let bad = bad.map(|b| format!("bad {}\n", words(b, &["slot", "lost_mask"])));
    let entries = entries.map(|e| words(e, &LIST) + "\n");
    entries.chain(bad).collect()
}

/// A file of the repository.
pub(crate) fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
