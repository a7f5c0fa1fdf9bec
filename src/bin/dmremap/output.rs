// SPDX-License-Identifier: GPL-2.0

//! Standard output of commands that change something: what was confirmed is done, also if nobody reads what they print.

use anyhow::{Error, Result};
use std::io::{self, ErrorKind, Write};

/// Standard output, which takes everything in silence once nobody reads it any more.
pub(crate) struct Output(());

pub(crate) fn stdout() -> Output {
    Output(())
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match io::stdout().write(bytes) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(bytes.len()),
            result => result,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match io::stdout().flush() {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }
}

/// Whether `error` is that nobody reads what is printed any more.
pub(crate) fn is_unread(error: &Error) -> bool {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    cause.is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
}

/// The same as `printed`, but for that it succeeds if nobody reads it.
pub(crate) fn though_unread(printed: Result<()>) -> Result<()> {
    match printed {
        Err(error) if is_unread(&error) => Ok(()),
        result => result,
    }
}
