// SPDX-License-Identifier: GPL-2.0

//! `dmremap list`, `query`, `remap`, `mark`, `restore`, `forget`, `check`, `set` and `reset`: the messages to an active
//! device.

use crate::device_cli::{Change, List, Query, Reset, Set};
use crate::dm::Device;
use crate::{ui, Status};
use anyhow::{bail, ensure, Context as _, Result};
use serde::Serialize;
use std::io::{stdout, BufWriter, Write as _};
use std::ops::Range;

/// Sectors that a message is about at most: what it does takes a moment, and can be interrupted between two.
const PIECE: u64 = 1 << 14;

/// What a line of `list` or `query` says of a unit.
#[derive(Serialize)]
pub(crate) struct Entry {
    pub(crate) sector: u64,
    pub(crate) state: String,
    pub(crate) slot: Option<u32>,
    /// Of the sectors that the slot holds, in hexadecimal.
    pub(crate) mask: Option<String>,
}

impl Entry {
    pub(crate) fn parse(line: &str) -> Result<Self> {
        let what = || format!("{line}: not understood");
        let words: Vec<&str> = line.split(' ').collect();
        let [sector, state, slot, mask] = words[..] else {
            bail!(what())
        };
        let known = |word: &str| (word != "-").then(|| word.to_string());
        Ok(Self {
            sector: sector.parse().with_context(what)?,
            state: state.into(),
            slot: known(slot)
                .map(|slot| slot.parse())
                .transpose()
                .with_context(what)?,
            mask: known(mask),
        })
    }

    /// The sectors that the slot holds.
    pub(crate) fn bits(&self) -> u64 {
        self.mask
            .as_deref()
            .map_or(0, |mask| u64::from_str_radix(mask, 16).unwrap_or(0))
    }
}

/// Every entry from `from` on, given to `see` with its line, which says whether to go on.
pub(crate) fn entries(
    device: &Device,
    from: u64,
    see: &mut dyn FnMut(&str, Entry) -> Result<bool>,
) -> Result<()> {
    let mut from = from;
    while from < device.sectors {
        let said = device.message(&["list", &from.to_string()])?;
        let mut last = None;
        for line in said.lines() {
            let entry = Entry::parse(line)?;
            last = Some(entry.sector);
            if !see(line, entry)? {
                return Ok(());
            }
        }
        let Some(last) = last else { break };
        // Any sector of the next unit or of one before it will do, as long as it is not of this one.
        from = last + unit_sectors(device)?;
    }
    Ok(())
}

/// The number that is word `at` of the status, counted from 0.
pub(crate) fn status_number(device: &Device, at: usize) -> Result<u64> {
    let status = device.status()?;
    let word = status.split(' ').nth(at).and_then(|word| word.parse().ok());
    word.with_context(|| format!("{}: status {status}: not understood", device.name))
}

/// Sectors of a unit.
pub(crate) fn unit_sectors(device: &Device) -> Result<u64> {
    status_number(device, 1)
}

pub(crate) fn list(args: &List) -> Result<Status> {
    let device = Device::open(&args.name)?;
    let mut out = BufWriter::new(stdout().lock());
    let mut all = Vec::new();
    entries(&device, 0, &mut |line, entry| {
        if args.json {
            all.push(entry);
        } else {
            writeln!(out, "{line}")?;
        }
        Ok(true)
    })?;
    if args.json {
        ui::json(
            &mut out,
            &serde_json::json!({ "version": 1, "name": device.name, "entries": all }),
        )?;
    }
    out.flush()?;
    Ok(Status::Done)
}

pub(crate) fn query(args: &Query) -> Result<Status> {
    let device = Device::open(&args.name)?;
    must_be_in(&device, args.sector, 1)?;
    let said = device.message(&["query", &args.sector.to_string()])?;
    if args.json {
        let entry = Entry::parse(&said)?;
        ui::json(
            &mut stdout(),
            &serde_json::json!({ "version": 1, "name": device.name, "entry": entry }),
        )?;
    } else {
        writeln!(stdout(), "{said}")?;
    }
    Ok(Status::Done)
}

fn must_be_in(device: &Device, sector: u64, count: u64) -> Result<Range<u64>> {
    ensure!(count > 0, "count 0: there must be one sector at least");
    let end = sector
        .checked_add(count)
        .filter(|end| *end <= device.sectors);
    let end = end.with_context(|| {
        format!(
            "sectors {sector} and {count} from there: {} has {}",
            device.name,
            ui::size(device.sectors)
        )
    })?;
    Ok(sector..end)
}

/// Sends `verb` for all units of `range`, piece by piece, and returns the numbers that the answers have, added up, with
/// the words between them.
pub(crate) fn in_pieces(device: &Device, verb: &str, range: Range<u64>) -> Result<Answer> {
    let unit = unit_sectors(device)?;
    // Units that a range cuts are not to be in two pieces.
    let first = range.start / unit * unit;
    let bar = ui::progress(progress_of(verb), (range.end - first) / unit);
    let mut sum = Answer::default();
    let mut from = first;
    while from < range.end {
        let to = (from + PIECE.max(unit)).min(range.end);
        let said = device.message(&[verb, &from.to_string(), &(to - from).to_string()]);
        sum.add(&said.with_context(|| sum.so_far(from))?);
        bar.inc((to - from) / unit);
        from = to;
    }
    bar.finish_and_clear();
    Ok(sum)
}

fn progress_of(verb: &str) -> &'static str {
    match verb {
        "remap" => "relocating",
        "restore" => "restoring",
        "mark" => "marking",
        _ => "forgetting",
    }
}

/// An answer such as `3 units restored, 1 units stay`.
#[derive(Default)]
pub(crate) struct Answer {
    words: Vec<Word>,
}

enum Word {
    Number(u64),
    Text(String),
}

impl Answer {
    fn add(&mut self, said: &str) {
        let words = said.split(' ').map(|word| match word.parse() {
            Ok(number) => Word::Number(number),
            Err(_) => Word::Text(word.into()),
        });
        if self.words.is_empty() {
            self.words = words.collect();
            return;
        }
        for (sum, word) in self.words.iter_mut().zip(words) {
            if let (Word::Number(sum), Word::Number(more)) = (sum, word) {
                *sum += more;
            }
        }
    }

    /// The numbers in it.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        let number = |word: &Word| match word {
            Word::Number(number) => Some(*number),
            Word::Text(_) => None,
        };
        self.words.iter().filter_map(number).collect()
    }

    fn so_far(&self, sector: u64) -> String {
        let done = if self.words.is_empty() {
            String::new()
        } else {
            format!("{self}; then, ")
        };
        format!("{done}at sector {sector}")
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, word) in self.words.iter().enumerate() {
            let blank = if at == 0 { "" } else { " " };
            match word {
                Word::Number(number) => write!(f, "{blank}{number}")?,
                // One of them: the kernel does not care.
                Word::Text(text)
                    if at
                        .checked_sub(1)
                        .is_some_and(|at| matches!(self.words[at], Word::Number(1))) =>
                {
                    write!(f, "{blank}{}", text.replacen("units", "unit", 1))?
                }
                Word::Text(text) => write!(f, "{blank}{text}")?,
            }
        }
        Ok(())
    }
}

/// `remap`, `mark`, `restore` and `forget`.
pub(crate) fn change(verb: &str, args: &Change) -> Result<Status> {
    let device = Device::open(&args.name)?;
    let range = must_be_in(&device, args.sectors.sector, args.sectors.count)?;
    let answer = in_pieces(&device, verb, range)?;
    let numbers = answer.numbers();
    // What stayed behind is not done.
    let rest = numbers.get(1).copied().unwrap_or(0);
    if args.json {
        let json = serde_json::json!({
            "version": 1, "name": device.name, "command": verb,
            "units": numbers.first().copied().unwrap_or(0), "units_incomplete": rest,
        });
        ui::json(&mut stdout(), &json)?;
    } else {
        writeln!(stdout(), "{answer}")?;
    }
    Ok(if rest == 0 {
        Status::Done
    } else {
        Status::Damaged
    })
}

/// `check` of an active device: the kernel compares what is on the spare with what it knows, and mends it.
pub(crate) fn check(device: &Device, json: bool) -> Result<Status> {
    let mut answer = Answer::default();
    answer.add(
        &device
            .message(&["check"])?
            .replace([',', ':'], " ")
            .replace("  ", " "),
    );
    let numbers = answer.numbers();
    let [blocks, stale, damaged, repaired] = numbers[..] else {
        bail!("{}: check: {answer}: not understood", device.name)
    };
    if json {
        let json = serde_json::json!({
            "version": 1, "name": device.name, "blocks": blocks, "stale": stale, "damaged": damaged,
            "repaired": repaired,
        });
        ui::json(&mut stdout(), &json)?;
    } else {
        writeln!(
            stdout(),
            "{}: {blocks} blocks: {stale} stale, {damaged} damaged, {repaired} repaired",
            device.name
        )?;
    }
    Ok(if stale + damaged == 0 {
        Status::Done
    } else {
        Status::Damaged
    })
}

pub(crate) fn set(args: &Set) -> Result<Status> {
    let device = Device::open(&args.name)?;
    device.message(&["set", &args.feature, &args.value])?;
    Ok(Status::Done)
}

pub(crate) fn reset(args: &Reset) -> Result<Status> {
    let device = Device::open(&args.name)?;
    device.message(&["reset"])?;
    Ok(Status::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_add_up() {
        let mut answer = Answer::default();
        answer.add("3 units restored, 1 units stay");
        answer.add("4 units restored, 0 units stay");
        assert_eq!(answer.to_string(), "7 units restored, 1 unit stay");
        assert_eq!(answer.numbers(), [7, 1]);
    }

    #[test]
    fn an_entry_is_four_words() {
        let entry = Entry::parse("4096 partial 7 f0").unwrap();
        assert_eq!(
            (entry.sector, entry.slot, entry.bits()),
            (4096, Some(7), 0xf0)
        );
        let entry = Entry::parse("0 healthy - -").unwrap();
        assert_eq!((entry.slot, entry.bits()), (None, 0));
        for line in ["", "1 pending 2", "x pending 2 0", "1 pending x 0"] {
            assert!(Entry::parse(line).is_err(), "{line}");
        }
    }
}
