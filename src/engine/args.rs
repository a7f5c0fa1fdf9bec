// SPDX-License-Identifier: GPL-2.0

//! The table line: `<main_dev> <main_start> <spare_dev> <spare_start> [<#feature_args> ...]`.

use super::geometry::{MAX_COPIES, MAX_UNIT_SECTORS, MIN_COPIES};
use super::Refusal;
use core::fmt;

/// Most extra attempts at a read.
pub const MAX_READ_RETRIES: u32 = 10;
/// Extra attempts at a read, if the table line does not say.
pub const DEFAULT_READ_RETRIES: u32 = 2;

/// Which completions mean "bad sector".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BadOn {
    /// Medium errors only.
    Media,
    /// Medium, I/O and target errors.
    #[default]
    Io,
}

/// What a read of a pending sector does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PendingReads {
    /// Ask main again.
    #[default]
    Retry,
    /// Fail at once.
    Fail,
}

/// The optional features; `None` where the table line does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Sectors of a unit.
    pub unit_sectors: Option<u32>,
    /// Length of the spare region in sectors.
    pub spare_sectors: Option<u64>,
    /// Replicas of the table.
    pub metadata_copies: Option<u32>,
    /// Which completions mean "bad sector".
    pub bad_on: Option<BadOn>,
    /// Extra attempts at what fails before a read is given up.
    pub read_retries: Option<u32>,
    /// What a read of a pending sector does.
    pub pending_reads: Option<PendingReads>,
    /// Refuse a blank spare.
    pub no_format: bool,
    /// Take a main that is not the recorded one, and record it.
    pub rebind: bool,
}

/// A table line, without the device names (words 0 and 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableLine {
    /// First sector on main.
    pub main_start: u64,
    /// First sector of the spare region.
    pub spare_start: u64,
    /// The features.
    pub features: Features,
}

/// Reads a decimal number: digits only, no sign, no white space.
pub fn number(word: &[u8]) -> Option<u64> {
    if word.is_empty() || !word.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(word).ok()?.parse().ok()
}

impl TableLine {
    /// Parses the words behind the target's name.
    pub fn parse(words: &[&[u8]]) -> Result<Self, Refusal> {
        let (main_start, spare_start, rest) = match words {
            [_, main_start, _, spare_start, rest @ ..] => (main_start, spare_start, rest),
            _ => return Err(c"Needs <main_dev> <main_start> <spare_dev> <spare_start>"),
        };
        let main_start =
            number(main_start).ok_or(c"main_start must be a number of sectors, 0 or more")?;
        let spare_start =
            number(spare_start).ok_or(c"spare_start must be a number of sectors, 0 or more")?;
        let features = match rest {
            [] => Features::default(),
            [count, words @ ..] => {
                let count = number(count).ok_or(c"Number of feature arguments is not a number")?;
                if count != words.len() as u64 {
                    return Err(c"Number of feature arguments does not match those given");
                }
                Features::parse(words)?
            }
        };
        Ok(Self {
            main_start,
            spare_start,
            features,
        })
    }
}

/// Puts `value` where a feature was not given before.
fn once<T>(place: &mut Option<T>, value: T) -> Result<(), Refusal> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(c"A feature is given twice"),
    }
}

/// A feature that can be changed at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// `bad_on`
    BadOn(BadOn),
    /// `read_retries`
    ReadRetries(u32),
    /// `pending_reads`
    PendingReads(PendingReads),
}

impl Setting {
    /// Parses the name and the value of such a feature; `None`: it is none.
    pub fn parse(name: &[u8], value: Option<&[u8]>) -> Result<Option<Self>, Refusal> {
        Ok(Some(match name {
            b"bad_on" => Self::BadOn(BadOn::parse(value)?),
            b"read_retries" => Self::ReadRetries(read_retries(value)?),
            b"pending_reads" => Self::PendingReads(PendingReads::parse(value)?),
            _ => return Ok(None),
        }))
    }

    /// Puts the value in its place in `features`. Returns the one before.
    pub fn apply(self, features: &mut Features) -> Option<Self> {
        match self {
            Self::BadOn(v) => features.bad_on.replace(v).map(Self::BadOn),
            Self::ReadRetries(v) => features.read_retries.replace(v).map(Self::ReadRetries),
            Self::PendingReads(v) => features.pending_reads.replace(v).map(Self::PendingReads),
        }
    }
}

impl Features {
    /// Those given that can be changed at run time.
    pub fn settings(&self) -> impl Iterator<Item = Setting> {
        let all = [
            self.bad_on.map(Setting::BadOn),
            self.read_retries.map(Setting::ReadRetries),
            self.pending_reads.map(Setting::PendingReads),
        ];
        all.into_iter().flatten()
    }

    fn parse(mut words: &[&[u8]]) -> Result<Self, Refusal> {
        let mut f = Self::default();
        while let [name, rest @ ..] = words {
            let flag = match *name {
                b"no_format" => Some(&mut f.no_format),
                b"rebind" => Some(&mut f.rebind),
                _ => None,
            };
            if let Some(flag) = flag {
                if core::mem::replace(flag, true) {
                    return Err(c"A feature is given twice");
                }
                words = rest;
                continue;
            }
            let (value, rest) = match rest {
                [value, rest @ ..] => (Some(*value), rest),
                [] => (None, rest),
            };
            match *name {
                b"unit_sectors" => {
                    let n = value.and_then(number).and_then(|n| u32::try_from(n).ok());
                    let n = n.filter(|n| n.is_power_of_two() && *n <= MAX_UNIT_SECTORS);
                    let n = n.ok_or(c"unit_sectors must be a power of two from 1 to 64")?;
                    once(&mut f.unit_sectors, n)?;
                }
                b"spare_sectors" => {
                    let n = value.and_then(number).filter(|n| *n > 0);
                    let n = n.ok_or(c"spare_sectors must be a number of sectors, 1 or more")?;
                    once(&mut f.spare_sectors, n)?;
                }
                b"metadata_copies" => {
                    let n = value.and_then(number).and_then(|n| u32::try_from(n).ok());
                    let n = n.filter(|n| (MIN_COPIES..=MAX_COPIES).contains(n));
                    let n = n.ok_or(c"metadata_copies must be from 2 to 4")?;
                    once(&mut f.metadata_copies, n)?;
                }
                name => {
                    let setting = Setting::parse(name, value)?.ok_or(c"Unknown feature")?;
                    if setting.apply(&mut f).is_some() {
                        return Err(c"A feature is given twice");
                    }
                }
            }
            words = rest;
        }
        Ok(f)
    }
}

fn read_retries(value: Option<&[u8]>) -> Result<u32, Refusal> {
    let n = value.and_then(number).and_then(|n| u32::try_from(n).ok());
    n.filter(|n| *n <= MAX_READ_RETRIES)
        .ok_or(c"read_retries must be from 0 to 10")
}

impl BadOn {
    fn parse(value: Option<&[u8]>) -> Result<Self, Refusal> {
        match value {
            Some(b"media") => Ok(Self::Media),
            Some(b"io") => Ok(Self::Io),
            _ => Err(c"bad_on must be media or io"),
        }
    }
}

impl PendingReads {
    fn parse(value: Option<&[u8]>) -> Result<Self, Refusal> {
        match value {
            Some(b"retry") => Ok(Self::Retry),
            Some(b"fail") => Ok(Self::Fail),
            _ => Err(c"pending_reads must be retry or fail"),
        }
    }
}

/// The feature part of a table line: empty, or ` <#feature_args> <feature_arg>...`.
impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let valued = [
            self.unit_sectors.is_some(),
            self.spare_sectors.is_some(),
            self.metadata_copies.is_some(),
            self.bad_on.is_some(),
            self.read_retries.is_some(),
            self.pending_reads.is_some(),
        ];
        let flags = [self.no_format, self.rebind];
        let given = |of: &[bool]| of.iter().filter(|given| **given).count();
        let count = 2 * given(&valued) + given(&flags);
        if count == 0 {
            return Ok(());
        }
        write!(f, " {count}")?;
        if let Some(n) = self.unit_sectors {
            write!(f, " unit_sectors {n}")?;
        }
        if let Some(n) = self.spare_sectors {
            write!(f, " spare_sectors {n}")?;
        }
        if let Some(n) = self.metadata_copies {
            write!(f, " metadata_copies {n}")?;
        }
        match self.bad_on {
            Some(BadOn::Media) => write!(f, " bad_on media")?,
            Some(BadOn::Io) => write!(f, " bad_on io")?,
            None => (),
        }
        if let Some(n) = self.read_retries {
            write!(f, " read_retries {n}")?;
        }
        match self.pending_reads {
            Some(PendingReads::Retry) => write!(f, " pending_reads retry")?,
            Some(PendingReads::Fail) => write!(f, " pending_reads fail")?,
            None => (),
        }
        if self.no_format {
            write!(f, " no_format")?;
        }
        if self.rebind {
            write!(f, " rebind")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{format, vec::Vec};

    fn parse(line: &str) -> Result<TableLine, Refusal> {
        let words: Vec<&[u8]> = line.split_whitespace().map(str::as_bytes).collect();
        TableLine::parse(&words)
    }

    #[test]
    fn every_malformed_line_has_its_own_sentence() {
        for (line, sentence) in [
            ("", "Needs <main_dev>"),
            ("/dev/a 0 /dev/b", "Needs <main_dev>"),
            ("/dev/a x /dev/b 0", "main_start"),
            ("/dev/a -1 /dev/b 0", "main_start"),
            ("/dev/a 0 /dev/b +1", "spare_start"),
            ("/dev/a 0 /dev/b 18446744073709551616", "spare_start"),
            ("/dev/a 0 /dev/b 0 x", "not a number"),
            ("/dev/a 0 /dev/b 0 1", "does not match"),
            ("/dev/a 0 /dev/b 0 1 no_format extra", "does not match"),
            ("/dev/a 0 /dev/b 0 2 unit_sectors 3", "unit_sectors"),
            ("/dev/a 0 /dev/b 0 2 unit_sectors 128", "unit_sectors"),
            ("/dev/a 0 /dev/b 0 1 unit_sectors", "unit_sectors"),
            ("/dev/a 0 /dev/b 0 2 spare_sectors 0", "spare_sectors"),
            ("/dev/a 0 /dev/b 0 2 metadata_copies 1", "metadata_copies"),
            ("/dev/a 0 /dev/b 0 2 metadata_copies 5", "metadata_copies"),
            ("/dev/a 0 /dev/b 0 2 bad_on disk", "bad_on"),
            ("/dev/a 0 /dev/b 0 2 read_retries 11", "read_retries"),
            ("/dev/a 0 /dev/b 0 2 pending_reads maybe", "pending_reads"),
            ("/dev/a 0 /dev/b 0 1 frobnicate", "Unknown feature"),
            ("/dev/a 0 /dev/b 0 4 bad_on io bad_on io", "twice"),
            ("/dev/a 0 /dev/b 0 2 no_format no_format", "twice"),
            ("/dev/a 0 /dev/b 0 3 rebind no_format rebind", "twice"),
        ] {
            let error = parse(line).unwrap_err().to_str().unwrap();
            assert!(error.contains(sentence), "{line}: {error}");
        }
    }

    proptest! {
        #[test]
        fn printed_features_parse_to_themselves(
            unit in proptest::option::of(0u32..=6), spare in proptest::option::of(1u64..),
            copies in proptest::option::of(2u32..=4), retries in proptest::option::of(0u32..=10),
            choice in any::<(Option<bool>, Option<bool>, bool, bool)>(),
        ) {
            let features = Features {
                unit_sectors: unit.map(|u| 1 << u),
                spare_sectors: spare,
                metadata_copies: copies,
                bad_on: choice.0.map(|c| if c { BadOn::Io } else { BadOn::Media }),
                read_retries: retries,
                pending_reads: choice.1.map(|c| if c { PendingReads::Fail } else { PendingReads::Retry }),
                no_format: choice.2,
                rebind: choice.3,
            };
            let line = parse(&format!("7:1 5 7:2 6{features}")).unwrap();
            prop_assert_eq!(line, TableLine { main_start: 5, spare_start: 6, features });
        }

        #[test]
        fn no_line_panics(words in proptest::collection::vec("[a-z_0-9]{0,16}|[0-9]{1,21}", 0..14)) {
            let _ = parse(&words.join(" "));
        }
    }
}
