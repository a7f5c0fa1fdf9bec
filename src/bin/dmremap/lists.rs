// SPDX-License-Identifier: GPL-2.0

//! Lists of bad sectors: those of badblocks(8), the map files of ddrescue, sectors line by line.

use crate::cli::ListFormat;
use anyhow::{bail, ensure, Context as _, Result};
use dm_remap::engine::SECTOR_SIZE;
use std::io::{self, BufRead, Read as _, Write};
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

/// Bytes of the longest line that is read.
const LONGEST: u64 = 1 << 16;

/// What a list says.
pub(crate) struct List {
    pub(crate) spans: Vec<Span>,
    /// Sectors of a ddrescue map that it has not finished with, and that are not wanted.
    pub(crate) left_out: Vec<Range<u64>>,
    /// Length in sectors of the device that the list speaks of, if it says so: only a ddrescue map does.
    pub(crate) length: Option<u64>,
}

/// Sectors, and the line that named them.
pub(crate) struct Span {
    pub(crate) line: usize,
    pub(crate) sectors: Range<u64>,
}

/// The sectors that bytes `start..end` touch.
fn touched(start: u64, end: u64) -> Range<u64> {
    start / SECTOR..end.div_ceil(SECTOR)
}

/// What a list has in the place of something else, for a message: not more of it than anybody reads.
fn shown(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// The number `word`, which has these digits.
fn number(word: &str, digits: &str, base: u32) -> Result<u64> {
    let valid = digits.chars().all(|c| c.is_digit(base));
    let number = valid.then(|| u64::from_str_radix(digits, base).ok());
    number
        .flatten()
        .with_context(|| format!("not a number: {}", shown(word)))
}

/// A decimal number, or behind `0x` a hexadecimal one.
fn decimal_or_hex(word: &str) -> Result<u64> {
    match word.strip_prefix("0x").or(word.strip_prefix("0X")) {
        Some(hex) => number(word, hex, 16),
        None => number(word, word, 10),
    }
}

/// A number as C reads them, and so ddrescue: octal if it begins with 0.
fn c_number(word: &str) -> Result<u64> {
    match word.as_bytes() {
        [b'0', b'0'..=b'9', ..] => number(word, word, 8),
        _ => decimal_or_hex(word),
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

/// Reads a list; an error names the line. In all of them `#` begins a comment.
pub(crate) fn read(mut list: impl BufRead, options: &Options<'_>) -> Result<List> {
    check_block_size(options.block_size)?;
    for status in options.statuses.chars() {
        ensure!(
            "?*/-".contains(status),
            "--statuses {}: {status:?} is none of ?*/-",
            shown(options.statuses)
        );
    }
    let mut spans = Vec::new();
    let mut map = Map::default();
    let mut bytes = Vec::new();
    for line in 1.. {
        let at = || format!("line {line}");
        bytes.clear();
        // What is no list may have no lines.
        let mut rest = list.by_ref().take(LONGEST + 1);
        let length = rest.read_until(b'\n', &mut bytes).with_context(at)?;
        if length == 0 {
            break;
        }
        ensure!(
            length as u64 <= LONGEST,
            "line {line}: longer than {LONGEST} bytes"
        );
        let text = String::from_utf8_lossy(&bytes);
        let text = text.split('#').next().unwrap_or_default();
        let words: Vec<&str> = text.split_whitespace().collect();
        if words.is_empty() {
            continue;
        }
        let sectors = match options.format {
            ListFormat::Badblocks => badblocks_line(&words, options.block_size).map(Some),
            ListFormat::Sectors => sectors_line(&words).map(Some),
            ListFormat::Ddrescue => map.line(&words, options.statuses),
        };
        let sectors = sectors.with_context(at)?;
        spans.extend(sectors.map(|sectors| Span { line, sectors }));
    }
    ensure!(
        options.format != ListFormat::Ddrescue || map.end.is_some(),
        "not a map file of ddrescue: it has no line of blocks"
    );
    Ok(List {
        spans,
        left_out: map.left_out,
        length: map
            .end
            .filter(|end| *end < UNKNOWN / 2)
            .map(|end| end.div_ceil(SECTOR)),
    })
}

fn badblocks_line(words: &[&str], block_size: u64) -> Result<Range<u64>> {
    let [block] = *words else {
        bail!("more than the number of a block");
    };
    let start = number(block, block, 10)?.checked_mul(block_size);
    let end = start.and_then(|start| start.checked_add(block_size));
    let bytes = start.zip(end).context("past the end of any device")?;
    Ok(touched(bytes.0, bytes.1))
}

fn sectors_line(words: &[&str]) -> Result<Range<u64>> {
    let (sector, count) = match *words {
        [sector] => (decimal_or_hex(sector)?, 1),
        [sector, count] => (decimal_or_hex(sector)?, decimal_or_hex(count)?),
        _ => bail!("more than a sector and a count"),
    };
    ensure!(count > 0, "a count of 0");
    let end = sector.checked_add(count);
    Ok(sector..end.context("past the end of any device")?)
}

/// Where ddrescue lets a map end if it could not tell how long the device is, in bytes; perhaps rounded. No position is
/// higher, and no device half as long.
const UNKNOWN: u64 = i64::MAX as u64;

/// What was read of a ddrescue map so far. The same is accepted and refused as by ddrescue itself (its `mapfile.cc`).
#[derive(Default)]
struct Map {
    has_status_line: bool,
    end: Option<u64>,
    left_out: Vec<Range<u64>>,
}

impl Map {
    fn line(&mut self, words: &[&str], bad: &str) -> Result<Option<Range<u64>>> {
        if !self.has_status_line {
            // <current_pos> <current_status> [<current_pass>]
            let valid = words.get(1).is_some_and(|status| {
                status.len() == 1 && "?*/-FG+".contains(status) && c_number(words[0]).is_ok()
            });
            ensure!(valid, "not the status line of a ddrescue map");
            self.has_status_line = true;
            return Ok(None);
        }
        let [start, length, status, ..] = *words else {
            bail!("not <position> <size> <status>");
        };
        let (start, length) = (c_number(start)?.min(UNKNOWN), c_number(length)?);
        ensure!(
            status.len() == 1 && "?*/-+".contains(status),
            "status {} is none of ?*/-+",
            shown(status)
        );
        ensure!(length > 0 || start == 0, "a size of 0");
        ensure!(
            self.end.is_none_or(|end| end == start),
            "does not begin where the line before ends"
        );
        let end = start.saturating_add(length).min(UNKNOWN);
        self.end = Some(end);
        if start == end {
            return Ok(None);
        }
        let sectors = touched(start, end);
        let is_bad = bad.contains(status);
        if !is_bad && status != "+" {
            self.left_out.push(sectors.clone());
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

/// The blocks of a badblocks list that meet `sectors`, merged.
pub(crate) fn blocks(sectors: &[Range<u64>], block_size: u64) -> Vec<Range<u64>> {
    let per_block = block_size / SECTOR;
    let blocks = sectors
        .iter()
        .map(|r| r.start / per_block..r.end.div_ceil(per_block));
    merge(blocks.collect())
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
            for block in blocks(bad, block_size).into_iter().flatten() {
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
        let blocks = "# bad\r\n\r\n  17 \t\r\n3 # three\r\n17\r\n010\r\n";
        let expected = [34..36, 6..8, 34..36, 20..22];
        assert_eq!(read(blocks, ListFormat::Badblocks), expected);
        let sectors = "# bad\n8 # one\n\n20 3\r\n";
        assert_eq!(read(sectors, ListFormat::Sectors), [8..9, 20..23]);
        let sectors = "0x016561e9\n010 0X10\n";
        let expected = [0x16561e9..0x16561ea, 10..26];
        assert_eq!(read(sectors, ListFormat::Sectors), expected);
        let map = "# Mapfile. Created by GNU ddrescue version 1.27\n\
                   # current_pos  current_status  current_pass\n0x00011200     +               1\n\
                   #      pos        size  status\n0x00000000  0x00011000  +\n\
                   0x00011000  0x00000200  -\n0x00011200  0x00000001  *\n\
                   0x00011201  0x00000400  -\n";
        assert_eq!(read(map, ListFormat::Ddrescue), [136..137, 137..140]);
    }

    #[test]
    fn maps_are_read_as_ddrescue_reads_them() {
        let map = |text: &[u8]| read(text, &options(ListFormat::Ddrescue));
        // The only bad sectors, and the length.
        let bad = |text: &str| {
            let list = map(text.as_bytes()).unwrap_or_else(|e| panic!("{text:?}: {e:#}"));
            assert_eq!(list.spans.len(), 1, "{text:?}");
            (list.spans[0].sectors.clone(), list.length)
        };
        for text in [
            "0x0 + 1\n0 512 -\n512 1024 +\n",
            "0x0 +\n0x0 0x200 -\n0X200 0X400 +\n",
            "00 + 1\n00 01000 -\n01000 02000 +\n",
            "\n# a\n\t0x0 F x y # b\r\n\r\n 0 512 - x # c\r\n512 1024 +#\r\n",
            "0 + 1\n0 0 +\n0 512 -\n512 1024 +",
        ] {
            assert_eq!(bad(text), (0..1, Some(3)), "{text:?}");
        }
        // It need not begin at 0.
        assert_eq!(bad("0 + 1\n512 512 -\n"), (1..2, Some(2)));
        // Of a device whose length ddrescue could not tell.
        for size in [
            "0x7FFFFFFFFFFFF000",
            "0x7FFFFFFFFFFFFFFF",
            "0xFFFFFFFFFFFFFFFF",
        ] {
            let text = format!("0 + 1\n0 512 -\n512 {size} ?\n");
            assert_eq!(bad(&text), (0..1, None), "{size}");
            let left_out = map(text.as_bytes()).unwrap().left_out;
            assert_eq!((left_out[0].start, left_out.len()), (1, 1));
        }
        // The command line in the comments has names as they are.
        assert!(map(b"# ddrescue /dev/sda \xe4.img\n0 + 1\n0 512 -\n").is_ok());
    }

    #[test]
    fn what_is_no_list_is_neither_held_nor_printed_whole() {
        use ListFormat::{Badblocks, Ddrescue, Sectors};
        for format in [Badblocks, Ddrescue, Sectors] {
            let zeros = std::io::BufReader::new(std::io::repeat(0));
            let error = read(zeros, &options(format)).err().unwrap();
            assert_eq!(error.to_string(), "line 1: longer than 65536 bytes");
            let word = format!("\u{1b}[2J{}", "x".repeat(60_000));
            let text = format!("0 + 1\n0 512 {word}\n");
            let text = if format == Ddrescue { &text } else { &word };
            let error = format!("{:#}", ranges(text, format).unwrap_err());
            let expected = format!("\"\\u{{1b}}[2J{}\"…", "x".repeat(56));
            assert!(error.contains(&expected), "{error}");
        }
        let longest = format!("5 #{}\n6\n", "x".repeat(65_532));
        assert_eq!(ranges(&longest, Sectors).unwrap(), [5..6, 6..7]);
    }

    #[test]
    fn every_malformed_list_names_its_line() {
        use ListFormat::{Badblocks, Ddrescue, Sectors};
        for (text, format, why) in [
            ("1\nx\n", Badblocks, "line 2: not a number: \"x\""),
            ("1 2\n", Badblocks, "line 1: more than"),
            ("0x1\n", Badblocks, "line 1: not a number: \"0x1\""),
            ("-1\n", Badblocks, "line 1: not a number"),
            ("18446744073709551615\n", Badblocks, "line 1: past the end"),
            ("18446744073709551616\n", Badblocks, "line 1: not a number"),
            ("1 2 3\n", Sectors, "line 1: more than"),
            ("\n1 0\n", Sectors, "line 2: a count of 0"),
            ("18446744073709551615 1\n", Sectors, "line 1: past the end"),
            ("0x\n", Sectors, "line 1: not a number"),
            ("1 0x1g\n", Sectors, "line 1: not a number: \"0x1g\""),
            ("\n\u{7}5\n", Sectors, "line 2: not a number: \"\\u{7}5\""),
            ("", Ddrescue, "no line of blocks"),
            ("0x0 +\n", Ddrescue, "no line of blocks"),
            ("0x0 0x200 +\n", Ddrescue, "line 1: not the status line"),
            ("0x0 + 1\n0x0 0x200\n", Ddrescue, "line 2: not <position>"),
            ("0x0 + 1\n0x0 0x200 x\n", Ddrescue, "line 2: status"),
            ("x + 1\n0 1 -\n", Ddrescue, "line 1: not the status line"),
            ("0 + 1\n0 08 -\n", Ddrescue, "line 2: not a number: \"08\""),
            ("0 + 1\n0 1 -\n1 0 -\n", Ddrescue, "line 3: a size of 0"),
            (
                "0x0 + 1\n0 512 -\n513 1 +\n",
                Ddrescue,
                "line 3: does not begin",
            ),
        ] {
            let error = format!("{:#}", ranges(text, format).unwrap_err());
            assert!(error.contains(why), "{text:?}: {error}");
        }
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
