// SPDX-License-Identifier: GPL-2.0

//! ext2, ext3 and ext4 that is not mounted, where debugfs cannot go through all inodes: each that is in use is asked for, and
//! directories are read here, so that what cannot be read hides nothing else.

use super::debugfs::{can_read, Ext, Inode, Inodes, DIRECT, ROOT};
use crate::ui;
use anyhow::{ensure, Context as _, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Inodes that are asked for at most: that takes some minutes.
const MOST: usize = 1 << 22;

/// Directories in a path at most.
const DEEPEST: usize = 4096;

/// Bytes of a directory entry before its name.
const HEAD: usize = 8;

/// The inodes that have these blocks, by block; and these inodes and all directories, as far as they can be read. That takes
/// a disk seconds for each that cannot be, so those in `bad` blocks are left out.
pub(super) fn inodes(
    ext: &mut Ext,
    blocks: &BTreeSet<u64>,
    bad: &BTreeSet<u64>,
) -> Result<(BTreeMap<u64, u64>, Inodes)> {
    let used = ext.used_inodes(bad);
    ensure!(
        used.len() <= MOST,
        "{}: its inodes cannot all be read, and are too many to be asked for one by one. Mount it without writing to it (mount -o \
         ro,noload), and run this again",
        ext.device.display()
    );
    // Nobody can have it in the file system.
    let mut mark = [0; 16];
    rustix::rand::getrandom(&mut mark[..], rustix::rand::GetRandomFlags::empty())
        .context("no random numbers")?;
    let mark = format!("#{:032x} ", u128::from_ne_bytes(mark));
    let mut debugfs = Command::new("debugfs")
        .args([DIRECT, "-f", "-"])
        .arg(&ext.device)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run debugfs")?;
    let commands = debugfs.stdin.take().context("no pipe")?;
    let answers = debugfs.stdout.take().context("no pipe")?;
    let bar = ui::progress("asking for inodes", used.len() as u64);
    let (mut owners, mut inodes) = (BTreeMap::new(), Inodes::new());
    let is_whole = std::thread::scope(|scope| {
        scope.spawn(|| {
            // It prints a comment as it is.
            let mut commands = BufWriter::new(commands);
            for inode in used {
                writeln!(commands, "{mark}{inode}\nstat <{inode}>")?;
            }
            writeln!(commands, "{mark}0")?;
            commands.flush()
        });
        answers_to(BufReader::new(answers), &mark, &mut |number, text| {
            bar.inc(1);
            let Some(inode) = Inode::parse(text).filter(|inode| inode.links > 0) else {
                return;
            };
            let mut is_owner = false;
            let attributes = inode.attributes..inode.attributes + 1;
            let ranges = inode.extents.iter().map(|(_, range)| range.clone());
            for range in ranges.chain([attributes]) {
                if !range.is_empty() && range.start != 0 {
                    for block in blocks.range(range) {
                        owners.entry(*block).or_insert(number);
                        is_owner = true;
                    }
                }
            }
            if is_owner || inode.is_directory() {
                inodes.insert(number, inode);
            }
        })
    })?;
    debugfs.wait()?;
    bar.finish_and_clear();
    ensure!(is_whole, "debugfs ended before it had shown all inodes");
    Ok((owners, inodes))
}

/// Calls `see` with what stands behind each line of `mark` and a number, but for the number 0: then all was read.
fn answers_to(
    mut text: impl BufRead,
    mark: &str,
    see: &mut dyn FnMut(u64, &str),
) -> std::io::Result<bool> {
    let (mut number, mut answer) = (0, Vec::new());
    loop {
        let begin = answer.len();
        if text.read_until(b'\n', &mut answer)? == 0 {
            return Ok(false);
        }
        let line = String::from_utf8_lossy(&answer[begin..]);
        let next = line
            .strip_prefix(mark)
            .and_then(|number| number.trim_end().parse().ok());
        let Some(next) = next else { continue };
        if number != 0 {
            see(number, &String::from_utf8_lossy(&answer[..begin]));
        }
        if next == 0 {
            return Ok(true);
        }
        (number, answer) = (next, Vec::new());
    }
}

/// The inodes and names in a block of a directory, without itself and its parent. What cannot be ends it.
fn entries(block: &[u8]) -> Vec<(u64, &[u8])> {
    let mut all = Vec::new();
    let mut rest = block;
    while let [i0, i1, i2, i3, l0, l1, length, _, ..] = *rest {
        let inode = u32::from_le_bytes([i0, i1, i2, i3]);
        // Of 64 KiB it has not room for.
        let size = match u16::from_le_bytes([l0, l1]) {
            0 | u16::MAX => 1 << 16,
            size => usize::from(size),
        };
        let name = rest.get(HEAD..HEAD + usize::from(length));
        let (Some(name), Some(next)) = (name, rest.get(size..)) else {
            break;
        };
        if size < HEAD + name.len() {
            break;
        }
        let is_name = !name.is_empty() && !name.contains(&0) && !name.contains(&b'/');
        if inode != 0 && is_name && name != b"." && name != b".." {
            all.push((inode.into(), name));
        }
        rest = next;
    }
    all
}

/// Names by the inodes that have them, with the directories they stand in.
type Entries = BTreeMap<u64, Vec<(u64, Vec<u8>)>>;

/// The paths of `wanted`, as far as the directories of `inodes` can be read.
pub(super) fn paths(ext: &Ext, inodes: &Inodes, wanted: &BTreeSet<u64>) -> Vec<(u64, PathBuf)> {
    let is_directory = |number: &u64| inodes.get(number).is_some_and(Inode::is_directory);
    let mut names = Entries::new();
    let Ok(device) = File::open(&ext.device) else {
        return Vec::new();
    };
    let mut room = vec![0; ext.block as usize];
    for (number, inode) in inodes.iter().filter(|(_, inode)| inode.is_directory()) {
        let size = inode.size.div_ceil(ext.block);
        for (owned, blocks) in &inode.extents {
            // Others are lists of blocks, or hold nothing.
            let Some(first) = owned.filter(|owned| !owned.is_unwritten) else {
                continue;
            };
            let used = size.saturating_sub(first.block);
            for at in blocks.clone().take(used as usize) {
                if !can_read(&device, &mut room, at * ext.block) {
                    continue;
                }
                for (inode, name) in entries(&room) {
                    if wanted.contains(&inode) || is_directory(&inode) {
                        let names = names.entry(inode).or_default();
                        names.push((*number, name.to_vec()));
                    }
                }
            }
        }
    }
    let mut paths = Vec::new();
    for inode in wanted {
        if *inode == ROOT {
            paths.push((ROOT, "/".into()));
        }
        for (parent, name) in names.get(inode).into_iter().flatten() {
            paths.extend(path(&names, *parent, name).map(|path| (*inode, path)));
        }
    }
    paths
}

/// The path of what is called `name` in the directory `parent`; `None`: its name, or that of one above, cannot be read.
fn path(names: &Entries, parent: u64, name: &[u8]) -> Option<PathBuf> {
    let mut parts = vec![name];
    let mut at = parent;
    while at != ROOT {
        let (above, name) = names.get(&at)?.first()?;
        parts.push(name);
        at = *above;
        if parts.len() > DEEPEST {
            return None;
        }
    }
    let parts = parts.iter().rev().map(|part| OsStr::from_bytes(part));
    Some(PathBuf::from("/").join(parts.collect::<PathBuf>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart_by_what_nobody_can_write_into_the_file_system() {
        let text =
            "debugfs 1.47\n#1f 12\nInode: 12\n#1e 99\nInode: 99\n#1f 13\n#1f 14\na\n#1f 0\nb\n";
        let mut seen = Vec::new();
        let mut see = |number, text: &str| seen.push((number, text.to_string()));
        assert!(answers_to(text.as_bytes(), "#1f ", &mut see).unwrap());
        let expected = [
            (12, "Inode: 12\n#1e 99\nInode: 99\n"),
            (13, ""),
            (14, "a\n"),
        ];
        assert_eq!(seen, expected.map(|(n, text)| (n, text.to_string())));
        // It ended early.
        assert!(!answers_to(&b"#1f 12\nInode: 12\n"[..], "#1f ", &mut |_, _| ()).unwrap());
    }

    /// An entry of a directory that takes `size` bytes.
    fn entry(inode: u32, name: &[u8], size: u16) -> Vec<u8> {
        let mut bytes = inode.to_le_bytes().to_vec();
        bytes.extend(size.to_le_bytes());
        bytes.extend([name.len() as u8, 1]);
        bytes.extend(name);
        bytes.resize(usize::from(size).max(bytes.len()), 0);
        bytes
    }

    #[test]
    fn what_is_in_a_block_of_a_directory_ends_at_what_cannot_be() {
        let of = |parts: &[Vec<u8>]| {
            let block = parts.concat();
            let of = entries(&block).into_iter();
            of.map(|(inode, name)| (inode, String::from_utf8_lossy(name).into_owned()))
                .collect::<Vec<_>>()
        };
        let [a, b] = [(12, "a".to_string()), (13, "b\nc".to_string())];
        let first = [entry(2, b".", 12), entry(2, b"..", 12), entry(12, b"a", 12)];
        let next = |more: Vec<u8>| of(&[first.concat(), more]);
        assert_eq!(next(entry(13, b"b\nc", 900)), [a.clone(), b.clone()]);
        // Deleted, a checksum, and names that none can be.
        for none in [
            entry(0, b"gone", 900),
            entry(0, b"", 12),
            entry(14, b"a/b", 12),
        ] {
            let last = entry(13, b"b\nc", 12);
            assert_eq!(next([none, last].concat()), [a.clone(), b.clone()]);
        }
        // The name is longer than the entry, and the entry than the block.
        for wrong in [entry(13, b"longer", 8), entry(13, b"b", 12)[..11].to_vec()] {
            assert_eq!(next(wrong), std::slice::from_ref(&a));
        }
        assert!(of(&[vec![0xff; 4096]]).is_empty() && of(&[vec![0; 1024]]).is_empty());
    }

    #[test]
    fn a_path_is_told_only_if_all_above_has_a_name() {
        let name = |parent: u64, name: &str| vec![(parent, name.as_bytes().to_vec())];
        let names = Entries::from([
            (12, name(ROOT, "dir")),
            (13, name(12, "sub")),
            (14, name(15, "lost")),
            (16, name(17, "round")),
            (17, name(16, "and")),
        ]);
        let of = |parent| path(&names, parent, b"a");
        assert_eq!(of(ROOT), Some("/a".into()));
        assert_eq!(of(13), Some("/dir/sub/a".into()));
        assert_eq!((of(14), of(15), of(16)), (None, None, None));
    }
}
