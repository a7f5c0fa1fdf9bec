// SPDX-License-Identifier: GPL-2.0

//! Lines in the system's log: in the journal with fields, by journald's native protocol; else by syslog.

use rustix::fs::fstat;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// Where journald listens.
const JOURNAL: &str = "/run/systemd/journal/socket";

/// Where any other syslog does.
const SYSLOG: &str = "/dev/log";

/// How bad it is, as syslog(3) numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Priority {
    Critical = 2,
    Error = 3,
    Warning = 4,
    Notice = 5,
    Info = 6,
}

/// An entry of the journal: a field is a line `NAME=value`, or, if the value has lines itself, its length comes before it.
fn entry(fields: &[(String, String)]) -> Vec<u8> {
    let mut entry = Vec::new();
    for (name, value) in fields {
        entry.extend(name.as_bytes());
        if value.contains('\n') {
            entry.push(b'\n');
            entry.extend((value.len() as u64).to_le_bytes());
        } else {
            entry.push(b'=');
        }
        entry.extend(value.as_bytes());
        entry.push(b'\n');
    }
    entry
}

/// Whoever listens there is not waited for.
fn send(to: &Path, datagram: &[u8]) -> std::io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to(datagram, to).map(drop)
}

/// Writes a line, with fields where there are such; `false`: nobody took it.
pub(super) fn write(priority: Priority, message: &str, fields: &[(&str, String)]) -> bool {
    let own = [
        ("MESSAGE", message.to_string()),
        ("PRIORITY", (priority as u8).to_string()),
        ("SYSLOG_IDENTIFIER", "dmremap".into()),
    ];
    let named = |(name, value): &(&str, String)| (name.to_string(), value.clone());
    let all: Vec<_> = own.iter().chain(fields).map(named).collect();
    if send(Path::new(JOURNAL), &entry(&all)).is_ok() {
        return true;
    }
    // LOG_DAEMON
    let number = 3 << 3 | priority as u8;
    let line = format!("<{number}>dmremap[{}]: {message}", std::process::id());
    send(Path::new(SYSLOG), line.as_bytes()).is_ok()
}

/// Whether what is written to `stream` goes to the journal anyway: systemd says which of a service's streams do.
pub(super) fn is_behind(stream: impl AsFd) -> bool {
    let Some(named) = std::env::var_os("JOURNAL_STREAM") else {
        return false;
    };
    fstat(stream).is_ok_and(|it| *named == *format!("{}:{}", it.st_dev, it.st_ino))
}

/// Writes a line about the monitor itself: also to standard error, unless that is the journal.
pub(super) fn say(priority: Priority, message: &str) {
    let stderr = std::io::stderr();
    let is_written = write(priority, message, &[]);
    if !is_written || !is_behind(&stderr) {
        crate::ui::warning(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_with_lines_has_its_length_before_it() {
        let fields = [("MESSAGE", "one"), ("A", "two\nlines"), ("B", "")];
        let fields = fields.map(|(name, value)| (name.into(), value.into()));
        let expected = b"MESSAGE=one\nA\n\x09\0\0\0\0\0\0\0two\nlines\nB=\n";
        assert_eq!(entry(&fields), expected);
    }

    #[test]
    fn nobody_is_waited_for() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("socket");
        let text = |text: &str| text.as_bytes().to_vec();
        assert!(send(&path, &text("nobody")).is_err());
        let socket = UnixDatagram::bind(&path).unwrap();
        send(&path, &text("one")).unwrap();
        let mut room = [0; 100];
        let length = socket.recv(&mut room).unwrap();
        assert_eq!(&room[..length], b"one");
        // It listens, and takes no more.
        let sent = (0..10_000).take_while(|_| send(&path, &text("more")).is_ok());
        assert!(sent.count() < 10_000);
    }
}
