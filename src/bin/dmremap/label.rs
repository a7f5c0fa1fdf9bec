// SPDX-License-Identifier: GPL-2.0

//! `dmremap label`.

use crate::cli::Label;
use crate::image::{
    crc32c, must_not_be_read_only, next, open, read_superblock, superblock_at, Refused,
};
use crate::region::{Access, Region};
use crate::Status;
use anyhow::{ensure, Result};
use dm_remap::engine::format::update_superblock;
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
    // Copy by copy: a cut tears at most one.
    let superblock = &found.superblock;
    let generation = next(superblock.generation)?;
    for copy in [0, 1] {
        let at = superblock_at(&superblock.geometry, copy);
        let mut block = read_superblock(&region, superblock, copy)?;
        update_superblock(&mut block, copy, generation, &label, crc32c);
        region.write(at, &block)?;
        region.sync()?;
    }
    Ok(Status::Done)
}
