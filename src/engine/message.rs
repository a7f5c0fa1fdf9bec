// SPDX-License-Identifier: GPL-2.0

//! The messages of `dmsetup message`, parsed.

use super::args::number;
use super::Refusal;

/// Entries that `list` prints if not told otherwise.
pub const LIST_DEFAULT: u64 = 1000;

/// What `help` prints.
pub const HELP: &str = "\
remap <sector> [<count>]: relocate now (for the time being only while suspended)
query <sector>: the state of one unit
list [<from> [<max>]]: one line per entry from sector <from> on
sync: commit everything now
help: this list";

/// A message. Sectors count from the target's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Relocate every unit that the range touches.
    Remap {
        /// First sector.
        sector: u64,
        /// Sectors, 1 or more.
        count: u64,
    },
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
    /// Commit everything.
    Sync,
    /// Print [`HELP`].
    Help,
}

impl Message {
    /// Parses `words` for a target of `length` sectors: no range reaches past its end.
    pub fn parse(words: &[&[u8]], length: u64) -> Result<Self, Refusal> {
        let sector = |word: &[u8]| {
            number(word)
                .filter(|s| *s < length)
                .ok_or(c"<sector> must be a sector of the device")
        };
        Ok(match words {
            [b"remap", first] => Self::Remap {
                sector: sector(first)?,
                count: 1,
            },
            [b"remap", first, count] => {
                let first = sector(first)?;
                let count = number(count).filter(|c| *c >= 1 && *c <= length - first);
                Self::Remap {
                    sector: first,
                    count: count.ok_or(c"<count> must be 1 or more and end within the device")?,
                }
            }
            [b"query", word] => Self::Query {
                sector: sector(word)?,
            },
            [b"list"] => Self::List {
                from: 0,
                max: LIST_DEFAULT,
            },
            [b"list", from] => Self::List {
                from: sector(from)?,
                max: LIST_DEFAULT,
            },
            [b"list", from, max] => Self::List {
                from: sector(from)?,
                max: number(max).ok_or(c"<max> must be a number")?,
            },
            [b"sync"] => Self::Sync,
            [b"help"] => Self::Help,
            [b"remap" | b"query" | b"list" | b"sync" | b"help", ..] => {
                return Err(c"wrong number of arguments, see the message help")
            }
            _ => return Err(c"unknown message, see the message help"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn parse(line: &str) -> Result<Message, Refusal> {
        let words: Vec<&[u8]> = line.split_whitespace().map(str::as_bytes).collect();
        Message::parse(&words, 1000)
    }

    #[test]
    fn messages_parse() {
        assert_eq!(
            parse("remap 999"),
            Ok(Message::Remap {
                sector: 999,
                count: 1
            })
        );
        assert_eq!(
            parse("remap 0 1000"),
            Ok(Message::Remap {
                sector: 0,
                count: 1000
            })
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
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_message_panics(words in proptest::collection::vec("[a-z0-9]{0,8}|remap|list|[0-9]{20}", 0..5)) {
            let _ = parse(&words.join(" "));
        }
    }
}
