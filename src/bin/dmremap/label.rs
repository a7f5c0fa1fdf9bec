// SPDX-License-Identifier: GPL-2.0

//! `dmremap label`.

use crate::cli::Label;
use crate::image::{must_not_be_read_only, open, Refused};
use crate::region::{Access, Region};
use crate::{change, Status};
use anyhow::{ensure, Result};
use dm_remap::engine::format::Superblock;
use std::io::{stdout, Write as _};

/// The bytes of a label as a superblock has them.
pub(crate) fn encode(label: &str) -> Result<[u8; 64]> {
    let mut bytes = [0; 64];
    ensure!(
        !label.contains(char::is_control),
        "label {label:?}: control characters"
    );
    let length = label.len();
    ensure!(length <= 64, "label {label:?}: {length} bytes, 64 at most");
    bytes[..length].copy_from_slice(label.as_bytes());
    Ok(bytes)
}

/// The text of a label, its control characters escaped.
pub(crate) fn decode(label: &[u8; 64]) -> String {
    let end = label.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
    let text = String::from_utf8_lossy(&label[..end]);
    let escape = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escape).collect()
}

pub(crate) fn run(args: &Label) -> Result<Status> {
    let Some(label) = &args.label else {
        let mut region = Region::open(&args.spare, Access::Read)?;
        writeln!(stdout(), "{}", decode(&open(&mut region)?.superblock.label))?;
        return Ok(Status::Done);
    };
    let label = encode(label)?;
    let mut region = Region::open(&args.spare, Access::Write)?;
    let found = open(&mut region)?;
    must_not_be_read_only(&found, &region)?;
    if found.findings().next().is_some() {
        return Err(Refused::Damaged(region.name).into());
    }
    let new = Superblock {
        label,
        ..found.superblock.clone()
    };
    change::superblock(&region, &found.superblock, new)?;
    Ok(Status::Done)
}
