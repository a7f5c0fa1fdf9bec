// SPDX-License-Identifier: GPL-2.0

//! Lists of bad sectors: those of badblocks(8), the map files of ddrescue, sectors line by line.

use crate::cli::ListFormat;
use anyhow::{bail, ensure, Context as _, Result};
use dm_remap::engine::SECTOR_SIZE;
use std::io::{self, BufRead, Write};
use std::ops::Range;

const SECTOR: u64 = SECTOR_SIZE as u64;

/// How a list is to be read.
pub(crate) struct Options<'a> {
    pub(crate) format: ListFormat,
    /// Of a badblocks list, in bytes.
    pub(crate) block_size: u64,
    /// Of a ddrescue map: those that are bad.
    pub(crate) statuses: &'a str,
}

/// What a list says.
pub(crate) struct List {
    pub(crate) spans: Vec<Span>,
    /// Sectors of a ddrescue map that it has not finished with, and that are not wanted.
    pub(crate) left_out: u64,
}

/// Sectors, and the line that named them.
pub(crate) struct Span {
    pub(crate) line: usize,
    pub(crate) sectors: Range<u64>,
}

/// The sectors that bytes `start..start + length` touch.
fn touched(start: u64, length: u64) -> Result<Range<u64>> {
    let end = start
        .checked_add(length)
        .context("past the end of any device")?;
    Ok(start / SECTOR..end.div_ceil(SECTOR))
}

fn decimal(word: &str) -> Result<u64> {
    let digits = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
    let number = digits.then(|| word.parse().ok()).flatten();
    number.with_context(|| format!("not a number: {word:?}"))
}

/// A number as ddrescue writes them.
fn any_base(word: &str) -> Result<u64> {
    match word.strip_prefix("0x").or(word.strip_prefix("0X")) {
        Some(hex) if hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
            u64::from_str_radix(hex, 16).with_context(|| format!("not a number: {word:?}"))
        }
        _ => decimal(word),
    }
}

/// Checks a block size of a badblocks list, in bytes.
pub(crate) fn check_block_size(bytes: u64) -> Result<()> {
    ensure!(
        bytes >= SECTOR && bytes % SECTOR == 0,
        "--block-size {bytes}: must be a multiple of {SECTOR}"
    );
    Ok(())
}

/// Reads a list; an error names the line.
pub(crate) fn read(list: impl BufRead, options: &Options<'_>) -> Result<List> {
    check_block_size(options.block_size)?;
    for status in options.statuses.chars() {
        ensure!(
            "?*/-".contains(status),
            "--statuses {:?}: {status:?} is none of ?*/-",
            options.statuses
        );
    }
    let mut spans = Vec::new();
    let mut map = Map::default();
    for (line, text) in (1..).zip(list.split(b'\n')) {
        let text = text.with_context(|| format!("line {line}"))?;
        let sectors = std::str::from_utf8(&text)
            .context("not text")
            .and_then(|text| match options.format {
                ListFormat::Badblocks => badblocks_line(text, options.block_size),
                ListFormat::Sectors => sectors_line(text),
                ListFormat::Ddrescue => map.line(text, options.statuses),
            })
            .with_context(|| format!("line {line}"))?;
        spans.extend(sectors.map(|sectors| Span { line, sectors }));
    }
    ensure!(
        options.format != ListFormat::Ddrescue || map.end.is_some(),
        "not a map file of ddrescue: it has no line of blocks"
    );
    let left_out = map.left_out;
    Ok(List { spans, left_out })
}

fn badblocks_line(text: &str, block_size: u64) -> Result<Option<Range<u64>>> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let start = decimal(text)?.checked_mul(block_size);
    touched(start.context("past the end of any device")?, block_size).map(Some)
}

fn sectors_line(text: &str) -> Result<Option<Range<u64>>> {
    let text = text.split('#').next().unwrap_or_default();
    let words: Vec<&str> = text.split_whitespace().collect();
    let (sector, count) = match *words {
        [] => return Ok(None),
        [sector] => (decimal(sector)?, 1),
        [sector, count] => (decimal(sector)?, decimal(count)?),
        _ => bail!("more than a sector and a count"),
    };
    ensure!(count > 0, "a count of 0");
    let end = sector.checked_add(count);
    Ok(Some(sector..end.context("past the end of any device")?))
}

/// What was read of a ddrescue map so far.
#[derive(Default)]
struct Map {
    has_status_line: bool,
    end: Option<u64>,
    left_out: u64,
}

impl Map {
    fn line(&mut self, text: &str, bad: &str) -> Result<Option<Range<u64>>> {
        let text = text.split('#').next().unwrap_or_default();
        let words: Vec<&str> = text.split_whitespace().collect();
        if words.is_empty() {
            return Ok(None);
        }
        if !self.has_status_line {
            // <current_pos> <current_status> [<current_pass>]
            let valid = (2..=3).contains(&words.len())
                && words[1].len() == 1
                && "?*/-FG+".contains(words[1]);
            ensure!(valid, "not the status line of a ddrescue map");
            any_base(words[0])?;
            self.has_status_line = true;
            return Ok(None);
        }
        let [start, length, status] = *words else {
            bail!("not <position> <size> <status>");
        };
        let (start, length) = (any_base(start)?, any_base(length)?);
        ensure!(
            status.len() == 1 && "?*/-+".contains(status),
            "status {status:?} is none of ?*/-+"
        );
        ensure!(length > 0, "a size of 0");
        ensure!(
            self.end.is_none_or(|end| end == start),
            "does not begin where the line before ends"
        );
        let sectors = touched(start, length)?;
        self.end = Some(start + length);
        let is_bad = bad.contains(status);
        if !is_bad && status != "+" {
            self.left_out += sectors.end - sectors.start;
        }
        Ok(is_bad.then_some(sectors))
    }
}

/// Sorts ranges and joins those that touch.
pub(crate) fn merge(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|r| r.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// Writes `bad`, merged ranges of the sectors of a device of `sectors` sectors.
pub(crate) fn write(
    out: &mut impl Write,
    format: ListFormat,
    block_size: u64,
    bad: &[Range<u64>],
    sectors: u64,
) -> io::Result<()> {
    match format {
        ListFormat::Badblocks => {
            let per_block = block_size / SECTOR;
            let blocks = bad
                .iter()
                .map(|r| r.start / per_block..r.end.div_ceil(per_block));
            for block in merge(blocks.collect()).into_iter().flatten() {
                writeln!(out, "{block}")?;
            }
        }
        ListFormat::Sectors => {
            for range in bad {
                writeln!(out, "{} {}", range.start, range.end - range.start)?;
            }
        }
        ListFormat::Ddrescue => {
            writeln!(out, "# Mapfile. Created by dmremap export")?;
            writeln!(out, "# current_pos  current_status  current_pass")?;
            writeln!(out, "0x00000000     +               1")?;
            writeln!(out, "#      pos        size  status")?;
            let mut line = |range: Range<u64>, status| {
                if range.is_empty() {
                    return Ok(());
                }
                let [start, length] = [range.start, range.end - range.start].map(|n| n * SECTOR);
                writeln!(out, "0x{start:08X}  0x{length:08X}  {status}")
            };
            let mut at = 0;
            for range in bad {
                line(at..range.start, '+')?;
                line(range.clone(), '-')?;
                at = range.end;
            }
            line(at..sectors, '+')?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn options(format: ListFormat) -> Options<'static> {
        Options {
            format,
            block_size: 1024,
            statuses: "-",
        }
    }

    fn ranges(text: &str, format: ListFormat) -> Result<Vec<Range<u64>>> {
        let list = read(text.as_bytes(), &options(format))?;
        Ok(list.spans.into_iter().map(|span| span.sectors).collect())
    }

    #[test]
    fn lists_are_read_as_their_tools_write_them() {
        let read = |text, format| ranges(text, format).unwrap();
        assert_eq!(read("3\n17\n", ListFormat::Badblocks), [6..8, 34..36]);
        assert_eq!(read("", ListFormat::Badblocks), []);
        let sectors = "# bad\n8 # one\n\n20 3\r\n";
        assert_eq!(read(sectors, ListFormat::Sectors), [8..9, 20..23]);
        let map = "# Mapfile. Created by GNU ddrescue version 1.27\n\
                   # current_pos  current_status  current_pass\n0x00011200     +               1\n\
                   #      pos        size  status\n0x00000000  0x00011000  +\n\
                   0x00011000  0x00000200  -\n0x00011200  0x00000001  *\n\
                   0x00011201  0x00000400  -\n";
        assert_eq!(read(map, ListFormat::Ddrescue), [136..137, 137..140]);
    }

    #[test]
    fn every_malformed_list_names_its_line() {
        use ListFormat::{Badblocks, Ddrescue, Sectors};
        for (text, format, why) in [
            ("1\nx\n", Badblocks, "line 2: not a number: \"x\""),
            ("1 2\n", Badblocks, "line 1: not a number: \"1 2\""),
            ("-1\n", Badblocks, "line 1: not a number"),
            ("18446744073709551615\n", Badblocks, "line 1: past the end"),
            ("18446744073709551616\n", Badblocks, "line 1: not a number"),
            ("1 2 3\n", Sectors, "line 1: more than"),
            ("\n1 0\n", Sectors, "line 2: a count of 0"),
            ("18446744073709551615 1\n", Sectors, "line 1: past the end"),
            ("0x1\n", Sectors, "line 1: not a number"),
            ("", Ddrescue, "no line of blocks"),
            ("0x0 +\n", Ddrescue, "no line of blocks"),
            ("0x0 0x200 +\n", Ddrescue, "line 1: not the status line"),
            ("0x0 + 1\n0x0 0x200\n", Ddrescue, "line 2: not <position>"),
            ("0x0 + 1\n0x0 0x200 x\n", Ddrescue, "line 2: status"),
            ("0x0 + 1\n0x0 0 -\n", Ddrescue, "line 2: a size of 0"),
            (
                "0x0 + 1\n0 512 -\n513 1 +\n",
                Ddrescue,
                "line 3: does not begin",
            ),
            (
                "0x0 + 1\n0xFFFFFFFFFFFFFFFF 1 -\n",
                Ddrescue,
                "line 2: past the end",
            ),
        ] {
            let error = format!("{:#}", ranges(text, format).unwrap_err());
            assert!(error.contains(why), "{text:?}: {error}");
        }
        let error = read(&b"\xff\n"[..], &options(Sectors)).err().unwrap();
        assert!(format!("{error:#}").contains("line 1: not text"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            numbers in proptest::collection::vec((0u64..4000, 1u64..9), 0..40),
            per_block in 1u64..9,
        ) {
            let bad = merge(numbers.into_iter().map(|(at, n)| at..at + n).collect());
            for format in [ListFormat::Badblocks, ListFormat::Sectors, ListFormat::Ddrescue] {
                let mut text = Vec::new();
                write(&mut text, format, per_block * 512, &bad, 5000).unwrap();
                let block_size = per_block * 512;
                let options = Options { format, block_size, statuses: "-" };
                let again: Vec<_> = read(&text[..], &options).unwrap().spans
                    .into_iter().map(|span| span.sectors).collect();
                let expected = if format == ListFormat::Badblocks {
                    let outward = |r: &Range<u64>| {
                        r.start / per_block * per_block..r.end.div_ceil(per_block) * per_block
                    };
                    merge(bad.iter().map(outward).collect())
                } else {
                    bad.clone()
                };
                prop_assert_eq!(merge(again), expected);
            }
        }

        #[test]
        fn no_list_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            text in "[0-9x#?*/+ \n-]{0,200}",
        ) {
            for format in [ListFormat::Badblocks, ListFormat::Sectors, ListFormat::Ddrescue] {
                let _ = read(&bytes[..], &options(format));
                let _ = read(text.as_bytes(), &options(format));
            }
        }
    }
}
