// SPDX-License-Identifier: GPL-2.0

//! Table lines and messages.

use super::take;
use dm_remap::engine::args::{Features, TableLine};
use dm_remap::engine::message::{Message, Range};
use std::collections::BTreeMap;

/// The words of a line, as device-mapper splits it.
fn words(line: &[u8]) -> Vec<&[u8]> {
    let words = line.split(u8::is_ascii_whitespace);
    words.filter(|word| !word.is_empty()).collect()
}

/// Numbers without leading zeros, other words as they are.
fn plain<'a>(words: &[&'a [u8]]) -> Vec<&'a [u8]> {
    let plain = |word: &&'a [u8]| {
        let zeros = word.iter().take_while(|c| **c == b'0').count();
        match word.iter().all(u8::is_ascii_digit) {
            true => &word[zeros.min(word.len() - 1)..],
            false => word,
        }
    };
    words.iter().map(plain).collect()
}

/// Features by name.
fn features<'a>(words: &[&'a [u8]]) -> BTreeMap<&'a [u8], Option<&'a [u8]>> {
    let words = plain(words);
    let mut words = words.iter();
    if let Some(count) = words.next() {
        assert_eq!(*count, words.len().to_string().as_bytes());
    }
    let mut features = BTreeMap::new();
    while let Some(name) = words.next() {
        let value = (!matches!(*name, b"no_format" | b"rebind")).then(|| *words.next().unwrap());
        assert_eq!(features.insert(*name, value), None, "accepted twice");
    }
    features
}

/// A table line, as text behind the target's name.
pub fn table_line(data: &[u8]) -> bool {
    let given = words(data);
    let line = match TableLine::parse(&given) {
        Ok(line) => line,
        Err(why) => {
            assert!(!why.is_empty());
            return false;
        }
    };
    let f = line.features;
    assert!(f
        .unit_sectors
        .is_none_or(|n| [1, 2, 4, 8, 16, 32, 64].contains(&n)));
    assert!(f.spare_sectors.is_none_or(|n| n >= 1));
    assert!(f.metadata_copies.is_none_or(|n| (2..=4).contains(&n)));
    assert!(f.read_retries.is_none_or(|n| n <= 10));
    // Printed, it says the same, to the parser and to a reader.
    let printed = format!("8:0 {} 8:16 {}{f}", line.main_start, line.spare_start);
    let printed = words(printed.as_bytes());
    assert_eq!(TableLine::parse(&printed), Ok(line));
    assert_eq!(plain(&[given[1], given[3]]), [printed[1], printed[3]]);
    assert_eq!(features(&given[4..]), features(&printed[4..]));
    true
}

/// A message as text that is parsed to it.
fn text(message: &Message) -> String {
    let range = |name, range: &Range| format!("{name} {} {}", range.sector, range.count);
    match message {
        Message::Remap(r) => range("remap", r),
        Message::Mark(r) => range("mark", r),
        Message::Restore(r) => range("restore", r),
        Message::Forget(r) => range("forget", r),
        Message::Query { sector } => format!("query {sector}"),
        Message::List { from, max } => format!("list {from} {max}"),
        Message::Check => "check".into(),
        Message::Sync => "sync".into(),
        Message::Set(setting) => {
            let mut features = Features::default();
            setting.apply(&mut features);
            features.to_string().replacen(" 2", "set", 1)
        }
        Message::Reset => "reset".into(),
        Message::Help => "help".into(),
    }
}

/// A message. Input: the target's length, 8 bytes; the text.
pub fn message(mut data: &[u8]) -> bool {
    let length = u64::from_le_bytes(take(&mut data));
    let given = words(data);
    let message = match Message::parse(&given, length) {
        Ok(message) => message,
        Err(why) => {
            assert!(!why.is_empty());
            return false;
        }
    };
    match message {
        Message::Remap(r) | Message::Mark(r) | Message::Restore(r) | Message::Forget(r) => {
            assert!(r.count >= 1);
            assert!(u128::from(r.sector) + u128::from(r.count) <= length.into());
        }
        Message::Query { sector } => assert!(sector < length),
        Message::List { from, .. } => assert!(from < length || given.len() == 1),
        _ => (),
    }
    let printed = text(&message);
    let printed = words(printed.as_bytes());
    assert_eq!(Message::parse(&printed, length.max(1)), Ok(message));
    // What was not given is the default: one sector, a thousand entries from the first on.
    let default: &[&[u8]] = match printed[0] {
        b"list" => &[b"list", b"0", b"1000"],
        b"remap" | b"mark" | b"restore" | b"forget" => &[b"", b"", b"1"],
        _ => &[],
    };
    let mut whole = plain(&given);
    whole.extend(default.get(given.len()..).unwrap_or_default());
    assert_eq!(whole, printed);
    true
}
