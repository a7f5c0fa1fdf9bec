// SPDX-License-Identifier: GPL-2.0

//! The messages of `dmsetup message`, parsed.

use super::args::{number, Setting};
use super::Refusal;

/// Entries that `list` prints if not told otherwise.
pub const LIST_DEFAULT: u64 = 1000;

/// What `help` prints.
pub const HELP: &str = "\
remap <sector> [<count>]: relocate now
mark <sector> [<count>]: make pending entries
restore <sector> [<count>]: copy back to main and free the slots
forget <sector> [<count>]: drop pending entries
query <sector>: the state of one unit
list [<from> [<max>]]: one line per entry from sector <from> on
check: compare all metadata replicas and rewrite what is stale or bad
sync: commit everything now
set bad_on|read_retries|pending_reads <value>: change a feature
reset: leave the mode tripped, clear the counters
help: this list";

/// Sectors from the target's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First sector.
    pub sector: u64,
    /// Sectors, 1 or more.
    pub count: u64,
}

impl Range {
    /// Parses one or two words for a target of `length` sectors.
    fn parse(words: &[&[u8]], length: u64) -> Result<Self, Refusal> {
        let [first, rest @ ..] = words else {
            return Err(ARGUMENTS);
        };
        let sector = sector(first, length)?;
        let count = match rest {
            [] => 1,
            [count] => number(count)
                .filter(|c| *c >= 1 && *c <= length - sector)
                .ok_or(c"<count> must be 1 or more and end within the device")?,
            _ => return Err(ARGUMENTS),
        };
        Ok(Self { sector, count })
    }
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Relocate every unit that the range touches.
    Remap(Range),
    /// Make pending entries of the units that the range touches and that have none.
    Mark(Range),
    /// Copy every unit that the range touches back to main.
    Restore(Range),
    /// Drop the pending entries of the units that the range touches.
    Forget(Range),
    /// Print the state of the unit that holds a sector.
    Query {
        /// The sector.
        sector: u64,
    },
    /// Print entries in ascending order.
    List {
        /// First sector.
        from: u64,
        /// Most entries to print.
        max: u64,
    },
    /// Compare the replicas and rewrite what is stale or bad.
    Check,
    /// Commit everything.
    Sync,
    /// Change a feature.
    Set(Setting),
    /// Leave `tripped`, clear the counters.
    Reset,
    /// Print [`HELP`].
    Help,
}

const ARGUMENTS: Refusal = c"wrong number of arguments, see the message help";

fn sector(word: &[u8], length: u64) -> Result<u64, Refusal> {
    number(word)
        .filter(|s| *s < length)
        .ok_or(c"<sector> must be a sector of the device")
}

impl Message {
    /// Parses `words` for a target of `length` sectors: no range reaches past its end.
    pub fn parse(words: &[&[u8]], length: u64) -> Result<Self, Refusal> {
        Ok(match words {
            [b"remap", range @ ..] => Self::Remap(Range::parse(range, length)?),
            [b"mark", range @ ..] => Self::Mark(Range::parse(range, length)?),
            [b"restore", range @ ..] => Self::Restore(Range::parse(range, length)?),
            [b"forget", range @ ..] => Self::Forget(Range::parse(range, length)?),
            [b"query", word] => Self::Query {
                sector: sector(word, length)?,
            },
            [b"list"] => Self::List {
                from: 0,
                max: LIST_DEFAULT,
            },
            [b"list", from] => Self::List {
                from: sector(from, length)?,
                max: LIST_DEFAULT,
            },
            [b"list", from, max] => Self::List {
                from: sector(from, length)?,
                max: number(max).ok_or(c"<max> must be a number")?,
            },
            [b"check"] => Self::Check,
            [b"sync"] => Self::Sync,
            [b"set", name, value] => Self::Set(
                Setting::parse(name, Some(value))?
                    .ok_or(c"set knows bad_on, read_retries and pending_reads")?,
            ),
            [b"reset"] => Self::Reset,
            [b"help"] => Self::Help,
            [b"query" | b"list" | b"check" | b"sync" | b"set" | b"reset" | b"help", ..] => {
                return Err(ARGUMENTS)
            }
            _ => return Err(c"unknown message, see the message help"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::args::{BadOn, PendingReads};
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn parse(line: &str) -> Result<Message, Refusal> {
        let words: Vec<&[u8]> = line.split_whitespace().map(str::as_bytes).collect();
        Message::parse(&words, 1000)
    }

    #[test]
    fn messages_parse() {
        let range = |sector, count| Range { sector, count };
        assert_eq!(parse("remap 999"), Ok(Message::Remap(range(999, 1))));
        assert_eq!(parse("mark 0 1000"), Ok(Message::Mark(range(0, 1000))));
        assert_eq!(parse("restore 8 2"), Ok(Message::Restore(range(8, 2))));
        assert_eq!(
            parse("set bad_on media"),
            Ok(Message::Set(Setting::BadOn(BadOn::Media)))
        );
        assert_eq!(
            parse("set read_retries 0"),
            Ok(Message::Set(Setting::ReadRetries(0)))
        );
        assert_eq!(
            parse("set pending_reads fail"),
            Ok(Message::Set(Setting::PendingReads(PendingReads::Fail)))
        );
        assert_eq!(
            (parse("check"), parse("reset")),
            (Ok(Message::Check), Ok(Message::Reset))
        );
        assert_eq!(parse("query 5"), Ok(Message::Query { sector: 5 }));
        assert_eq!(parse("list"), Ok(Message::List { from: 0, max: 1000 }));
        assert_eq!(parse("list 8 2"), Ok(Message::List { from: 8, max: 2 }));
        assert_eq!(
            (parse("sync"), parse("help")),
            (Ok(Message::Sync), Ok(Message::Help))
        );
    }

    #[test]
    fn bad_messages_are_refused() {
        for line in [
            "",
            "frob",
            "remap",
            "remap 1000",
            "remap x",
            "remap 0 0",
            "remap 1 1000",
            "remap 1 1 1",
            "query",
            "query -1",
            "list 1000",
            "list 0 x",
            "list 0 0 0",
            "sync 1",
            "help me",
            "remap 18446744073709551615 18446744073709551615",
            "mark",
            "restore 1 0",
            "check 1",
            "set",
            "set read_retries",
            "set read_retries 11",
            "set unit_sectors 8",
            "set bad_on media io",
            "reset 1",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_message_panics(words in proptest::collection::vec("[a-z0-9]{0,8}|remap|list|set|[0-9]{20}", 0..5)) {
            let _ = parse(&words.join(" "));
        }
    }
}
