// SPDX-License-Identifier: GPL-2.0

//! What the fuzzers run (`make fuzz`), and `tests/host` over the corpus.
//!
//! A target takes any bytes, gives the engine what they describe, and compares what comes back with
//! the rules of `docs/format.md` and `docs/usage.md`, written down here a second time. It returns
//! whether the engine accepted the input.
//!
//! Bytes taken as blocks would all stop at the checksum. So an input is a choice of a sound image
//! and then edits of it, after which checksums are right again unless the input says otherwise.

mod blocks;
mod region;
mod sample;
mod words;

pub use blocks::{superblock, table_block};
pub use region::image;
pub use words::{message, table_line};

/// Takes any bytes; whether the engine accepted them.
pub type Target = fn(&[u8]) -> bool;

/// All targets.
pub const TARGETS: [(&str, Target); 5] = [
    ("superblock", superblock),
    ("table_block", table_block),
    ("image", image),
    ("table_line", table_line),
    ("message", message),
];

/// The next bytes of an input, zeros behind its end.
fn take<const N: usize>(data: &mut &[u8]) -> [u8; N] {
    let (head, rest) = data.split_at(N.min(data.len()));
    *data = rest;
    let mut bytes = [0; N];
    bytes[..head.len()].copy_from_slice(head);
    bytes
}
