// SPDX-License-Identifier: GPL-2.0

//! `dmremap label`.

use crate::cli::Label;
use crate::image::{must_not_be_read_only, open, Refused};
use crate::region::{Access, Region};
use crate::{change, ui, Status};
use anyhow::{ensure, Result};
use dm_remap::engine::format::Superblock;
use std::io::{stdout, Write as _};
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory as _};

/// Whether a terminal does not show `c`, or obeys it: control characters, those that turn the direction of writing or have no
/// width, separators of lines.
pub(crate) fn is_invisible(c: char) -> bool {
    use GeneralCategory::{Control, Format, LineSeparator, ParagraphSeparator};
    let category = c.general_category();
    matches!(
        category,
        Control | Format | LineSeparator | ParagraphSeparator
    )
}

/// The bytes of a label as a superblock has them.
pub(crate) fn encode(label: &str) -> Result<[u8; 64]> {
    let mut bytes = [0; 64];
    if let Some(c) = label.chars().find(|c| is_invisible(*c)) {
        let code = u32::from(c);
        anyhow::bail!("U+{code:04X} is a control or an invisible character");
    }
    ensure!(label.trim() == label, "begins or ends with a blank");
    let length = label.len();
    ensure!(length <= 64, "has {length} bytes, 64 at most");
    bytes[..length].copy_from_slice(label.as_bytes());
    Ok(bytes)
}

/// A label that can be written: for the command line.
pub(crate) fn checked(label: &str) -> Result<String> {
    encode(label)?;
    Ok(label.into())
}

/// The text of a label, escaped what cannot be seen.
pub(crate) fn decode(label: &[u8; 64]) -> String {
    let end = label.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
    let text = String::from_utf8_lossy(&label[..end]);
    let inside = text.trim();
    let from = text.len() - text.trim_start().len();
    let inside = from..from + inside.len();
    let escape = |(at, c): (usize, char)| match is_invisible(c) || !inside.contains(&at) {
        true => c.escape_unicode().to_string(),
        false => c.to_string(),
    };
    text.char_indices().map(escape).collect()
}

pub(crate) fn run(args: &Label) -> Result<Status> {
    let Some(label) = &args.label else {
        let mut region = Region::open(&args.spare, Access::Read)?;
        writeln!(stdout(), "{}", decode(&open(&mut region)?.superblock.label))?;
        return Ok(Status::Done);
    };
    let mut region = Region::open(&args.spare, Access::Write)?;
    let found = open(&mut region)?;
    must_not_be_read_only(&found, &region)?;
    if found.findings().next().is_some() {
        return Err(Refused::Damaged(region.name).into());
    }
    let new = Superblock {
        label: encode(label)?,
        ..found.superblock.clone()
    };
    let old = decode(&found.superblock.label);
    ui::confirm(&format!("Change the label {old:?} to {label:?}?"), true)?;
    change::superblock(&region, &found.superblock, new)?;
    Ok(Status::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_no_label_and_is_escaped() {
        for c in [
            '\0',
            '\n',
            '\r',
            '\t',
            '\u{1b}',
            '\u{7f}',
            '\u{85}',
            '\u{9b}',
            '\u{ad}',
            '\u{61c}',
            '\u{200b}',
            '\u{200d}',
            '\u{200e}',
            '\u{2028}',
            '\u{2029}',
            '\u{202a}',
            '\u{202e}',
            '\u{2060}',
            '\u{2066}',
            '\u{2069}',
            '\u{feff}',
            '\u{e0041}',
        ] {
            let label = format!("a{c}b");
            let why = format!("U+{:04X}", u32::from(c));
            assert!(encode(&label).unwrap_err().to_string().contains(&why));
            let mut bytes = [0; 64];
            bytes[..label.len()].copy_from_slice(label.as_bytes());
            let shown = format!("a\\u{{{:x}}}b", u32::from(c));
            assert_eq!(decode(&bytes), shown);
        }
        for label in [
            "",
            "a",
            "left disk",
            "linke Platte, außen",
            "левый диск",
            "左のディスク",
            "💾",
        ] {
            assert_eq!(decode(&encode(label).unwrap()), label);
        }
    }

    #[test]
    fn blanks_at_the_ends_of_a_label_are_seen() {
        for label in [" a", "a ", " ", "\u{a0}a", "a\u{3000}"] {
            assert!(encode(label).is_err(), "{label:?}");
        }
        let mut bytes = [0; 64];
        bytes[..5].copy_from_slice(b" a b ");
        assert_eq!(decode(&bytes), "\\u{20}a b\\u{20}");
    }
}
