// SPDX-License-Identifier: GPL-2.0

//! ext2, ext3 and ext4 that is not mounted, through debugfs(8). It only reads, and with `-c` not even the bitmaps, one of which
//! may be what cannot be read.
//!
//! Two commands do it: icheck goes through all inodes for those that have some blocks, and ncheck through all directories for
//! names. They end where an inode cannot be read, in use or asked about. Then [`one_by_one`](super::one_by_one) goes on.

use super::layout::{append, cut, Class, NOT_WHOLE, OUTSIDE};
use super::{one_by_one, shown, Kind, Names, Owner, Part, Piece};
use crate::ui;
use anyhow::{bail, ensure, Context as _, Result};
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Numbers that are given to one command at most: it goes through all inodes each time, and one argument has 128 KiB at most.
const MANY: usize = 10_000;

/// Flags of debugfs: reads past the page cache, and with `-c`.
pub(super) const DIRECT: &str = "-cD";

const SUPERBLOCK: &str = "superblock or group descriptors";

/// The inode of the root directory, of which ncheck does not tell.
pub(super) const ROOT: u64 = 2;

/// A group of blocks.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    block_bitmap: u64,
    inode_bitmap: u64,
    inode_table: u64,
    /// Its bitmap was never written: but for metadata nothing is in use.
    is_empty: bool,
    /// Nor was that of its inodes: none is in use.
    has_no_inodes: bool,
}

/// The file system.
pub(super) struct Ext {
    pub(super) device: PathBuf,
    /// In bytes.
    pub(super) block: u64,
    first_block: u64,
    blocks: u64,
    blocks_per_group: u64,
    /// Blocks that are in use or free together.
    cluster: u64,
    inode: u64,
    inodes_per_group: u64,
    /// Of each copy of the group descriptors.
    descriptor_blocks: u64,
    /// Backups of the superblock and the descriptors are where they are with sparse_super, and nowhere else.
    is_usual: bool,
    groups: Vec<Group>,
    /// Where parts of the list of inodes begin, and their groups, in order.
    tables: Vec<(u64, usize)>,
    /// The blocks of bitmaps.
    own: BTreeMap<u64, &'static str>,
    is_clean: bool,
    /// What inodes of the file system itself have, in bytes and in order, once somebody wants to know.
    reserved: OnceCell<Vec<(Range<u64>, Class)>>,
    bitmaps: Bitmaps,
}

/// The names of inodes.
pub(super) type Paths = BTreeMap<u64, Vec<PathBuf>>;

/// Inodes by their numbers.
pub(super) type Inodes = BTreeMap<u64, Inode>;

/// An inode as `stat` shows it.
pub(super) struct Inode {
    kind: String,
    pub(super) links: u64,
    pub(super) size: u64,
    /// The block of its extended attributes; 0: none.
    pub(super) attributes: u64,
    /// In blocks; those without a place in the file are lists of blocks.
    pub(super) extents: Vec<(Option<Owned>, Range<u64>)>,
}

/// A place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owned {
    pub(super) block: u64,
    pub(super) is_unwritten: bool,
}

/// What debugfs says.
struct Said {
    text: Vec<u8>,
    /// What it could not do.
    complaint: Option<String>,
}

/// What debugfs prints for `request`, a command. Its messages are an error only if it prints nothing else.
fn run(device: &Path, request: &str) -> Result<Said> {
    let said = run_once(device, "-c", request);
    if said.as_ref().is_ok_and(|said| said.complaint.is_none()) {
        return said;
    }
    // Through the page cache, what lies beside what cannot be read may fail, too.
    run_once(device, DIRECT, request).or(said)
}

fn run_once(device: &Path, flags: &str, request: &str) -> Result<Said> {
    let mut command = Command::new("debugfs");
    command.args([flags, "-R", request]).arg(device);
    let output = match command.output() {
        Err(e) if e.kind() == ErrorKind::NotFound => bail!("debugfs is missing: install e2fsprogs"),
        output => output.context("cannot run debugfs")?,
    };
    let complaint = complaint(&String::from_utf8_lossy(&output.stderr));
    if output.stdout.is_empty() {
        bail!("debugfs: {}", complaint.unwrap_or_default());
    }
    Ok(Said {
        text: output.stdout,
        complaint,
    })
}

/// What debugfs complains of, in a line.
fn complaint(said: &str) -> Option<String> {
    let lines = said.lines().filter(|line| {
        // Its version, and that it was told to be careful.
        !line.is_empty() && !line.starts_with("debugfs ") && !line.contains("catastrophic mode")
    });
    let mut lines: Vec<&str> = lines.collect();
    // It may say the same of each of many blocks.
    lines.dedup();
    lines.truncate(3);
    (!lines.is_empty()).then(|| shown(Path::new(&lines.join("; "))))
}

/// The number behind `name:` in `text`.
fn number(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().parse().ok()
}

impl Ext {
    pub(super) fn read(device: &Path) -> Result<Self> {
        let said = run(device, "stats")?;
        let ext = Self::parse(device, &String::from_utf8_lossy(&said.text));
        ext.with_context(|| format!("{}: debugfs stats: not understood", device.display()))
    }

    fn parse(device: &Path, text: &str) -> Option<Self> {
        let mut groups: Vec<Group> = Vec::new();
        for line in text.lines() {
            let line = line.trim_start();
            if line.contains("block bitmap at ") {
                let place = |name: &str| {
                    let (_, rest) = line.split_once(name)?;
                    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
                    digits.parse().ok()
                };
                groups.push(Group {
                    block_bitmap: place("block bitmap at ")?,
                    inode_bitmap: place("inode bitmap at ")?,
                    inode_table: place("inode table at ")?,
                    is_empty: false,
                    has_no_inodes: false,
                });
            } else if line.contains(" not init") {
                let group = groups.last_mut()?;
                group.is_empty |= line.contains("Block not init");
                group.has_no_inodes |= line.contains("Inode not init");
            }
        }
        let block = number(text, "Block size")?;
        let descriptors = number(text, "Group descriptor size").unwrap_or(32) * groups.len() as u64;
        let features = text
            .lines()
            .find(|l| l.starts_with("Filesystem features"))?;
        let tables = groups.iter().enumerate();
        let mut tables: Vec<_> = tables.map(|(n, group)| (group.inode_table, n)).collect();
        tables.sort_unstable();
        let own = groups.iter().flat_map(|group| {
            [
                (group.block_bitmap, "block bitmap"),
                (group.inode_bitmap, "inode bitmap"),
            ]
        });
        let own = own.collect();
        let ext = Self {
            device: device.into(),
            block,
            first_block: number(text, "First block")?,
            blocks: number(text, "Block count")?,
            blocks_per_group: number(text, "Blocks per group")?,
            cluster: number(text, "Cluster size").map_or(1, |size| size / block.max(1)),
            inode: number(text, "Inode size")?,
            inodes_per_group: number(text, "Inodes per group")?,
            descriptor_blocks: descriptors.div_ceil(block.max(1)),
            groups,
            tables,
            own,
            is_usual: is_usual(features),
            is_clean: !features.contains("needs_recovery"),
            reserved: OnceCell::new(),
            bitmaps: Bitmaps::default(),
        };
        let numbers = [
            ext.block,
            ext.blocks_per_group,
            ext.cluster,
            ext.inode,
            ext.inodes_per_group,
        ];
        (!numbers.contains(&0)).then_some(ext)
    }

    /// Blocks of a group's part of the list of inodes.
    fn table_blocks(&self) -> u64 {
        (self.inodes_per_group * self.inode).div_ceil(self.block)
    }

    /// The numbers of the inodes in the blocks that have `bytes`, if these are of the list of inodes.
    pub(super) fn inodes(&self, bytes: &Range<u64>) -> Option<Range<u64>> {
        let at = bytes.start / self.block;
        let behind = self.tables.partition_point(|(begin, _)| *begin <= at);
        let (begin, group) = *self.tables.get(behind.checked_sub(1)?)?;
        if at - begin >= self.table_blocks() {
            return None;
        }
        let per_block = (self.block / self.inode).max(1);
        let first = group as u64 * self.inodes_per_group + 1;
        let end = bytes
            .end
            .div_ceil(self.block)
            .min(begin + self.table_blocks());
        Some(first + (at - begin) * per_block..first + (end - begin) * per_block)
    }

    /// What a block is that is no file's. `what`, if it is in use for another reason than is known of.
    fn class(&mut self, block: u64, what: Class) -> Class {
        let known = |kind, what| Class::Known(kind, what);
        if block >= self.blocks {
            return known(Kind::Free, OUTSIDE);
        }
        let at = block * self.block;
        if let Some(inodes) = self.inodes(&(at..at + self.block)) {
            return Class::Inodes(inodes);
        }
        if let Some(what) = self.own.get(&block) {
            return known(Kind::Metadata, what);
        }
        if self.is_usual && self.is_backup(block) {
            return known(Kind::Metadata, SUPERBLOCK);
        }
        let reserved = self.reserved.get_or_init(|| self.reserved());
        let first = reserved.partition_point(|(bytes, _)| bytes.end <= at);
        if let Some((_, class)) = reserved.get(first).filter(|(bytes, _)| bytes.contains(&at)) {
            return class.clone();
        }
        match self.is_used(block) {
            Some(true) => what,
            Some(false) => known(Kind::Free, "free space"),
            None => Class::Perhaps(
                Kind::Unknown,
                "free space or metadata: the block bitmap cannot be read, or does not tell",
            ),
        }
    }

    /// What is at `bytes`, as far as that can be said without looking for files.
    pub(super) fn classes(&mut self, bytes: &Range<u64>) -> Vec<(Range<u64>, Class)> {
        let mut all = Vec::new();
        for block in bytes.start / self.block..bytes.end.div_ceil(self.block) {
            let own = "the file system's own: superblocks, lists of extents, extended attributes, long symbolic links";
            let class = self.class(block, Class::Perhaps(Kind::Metadata, own));
            append(
                &mut all,
                block * self.block..(block + 1) * self.block,
                class,
            );
        }
        all
    }

    /// The inodes that have these blocks, by block; and what debugfs complained of.
    fn owners(&self, blocks: &BTreeSet<u64>) -> Result<(BTreeMap<u64, u64>, Option<String>)> {
        let blocks: Vec<u64> = blocks.iter().copied().collect();
        let mut owners = BTreeMap::new();
        let mut complaint = None;
        for some in blocks.chunks(MANY) {
            let said = self.ask("icheck", some)?;
            complaint = complaint.or(said.complaint);
            let text = String::from_utf8_lossy(&said.text);
            let mut lines = text.lines();
            ensure!(
                lines.next().is_some_and(|line| line.starts_with("Block"))
                    && lines.clone().count() >= some.len(),
                "debugfs: icheck: not understood"
            );
            for line in lines {
                // Or that no inode has it.
                let pair = line.split_once('\t').map(|(a, b)| (a.parse(), b.parse()));
                if let Some((Ok(block), Ok(inode))) = pair {
                    owners.insert(block, inode);
                }
            }
        }
        Ok((owners, complaint))
    }

    fn ask(&self, command: &str, numbers: &[u64]) -> Result<Said> {
        let words: Vec<String> = numbers.iter().map(u64::to_string).collect();
        run(&self.device, &format!("{command} {}", words.join(" ")))
    }

    /// The paths of inodes; and what debugfs complained of.
    fn paths(&self, inodes: &BTreeSet<u64>) -> (Paths, Option<String>) {
        let mut paths = Paths::new();
        let mut complaint = None;
        if inodes.contains(&ROOT) {
            paths.insert(ROOT, vec!["/".into()]);
        }
        let inodes: Vec<u64> = inodes.iter().copied().collect();
        for some in inodes.chunks(MANY) {
            let said = match self.ask("ncheck", some) {
                Ok(said) => said,
                Err(error) => {
                    complaint = complaint.or(Some(format!("{error:#}")));
                    continue;
                }
            };
            complaint = complaint.or(said.complaint);
            for (inode, path) in names(&said.text) {
                paths.entry(inode).or_default().push(path);
            }
        }
        (paths, complaint)
    }

    /// What inodes of the file system itself have, as far as it can be read.
    fn reserved(&self) -> Vec<(Range<u64>, Class)> {
        let mut all = Vec::new();
        for number in [1, 3, 4, 7, 8] {
            let (Some((kind, what)), Ok(inode)) = (special(number), self.stat(number)) else {
                continue;
            };
            for (_, blocks) in inode.extents {
                let bytes = blocks.start * self.block..blocks.end * self.block;
                all.push((bytes, Class::Known(kind, what)));
            }
        }
        all.sort_by_key(|(bytes, _)| bytes.start);
        all
    }

    fn stat(&self, inode: u64) -> Result<Inode> {
        let said = run(&self.device, &format!("stat <{inode}>"))?;
        let text = String::from_utf8_lossy(&said.text);
        Inode::parse(&text).with_context(|| format!("debugfs stat <{inode}>: not understood"))
    }
}

/// What `ncheck` prints. A line without a number goes on with the name before, in which there is a line break.
fn names(text: &[u8]) -> Vec<(u64, PathBuf)> {
    let mut names: Vec<(u64, Vec<u8>)> = Vec::new();
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    for line in text.split(|byte| *byte == b'\n').skip(1) {
        let tab = line.iter().position(|byte| *byte == b'\t');
        let inode = tab.and_then(|tab| {
            let number = std::str::from_utf8(&line[..tab]).ok()?.parse().ok()?;
            let path = &line[tab + 1..];
            // Some versions begin with two slashes.
            let path = path
                .strip_prefix(b"/")
                .filter(|rest| rest.starts_with(b"/"))
                .unwrap_or(path);
            path.starts_with(b"/").then(|| (number, path.to_vec()))
        });
        match (inode, names.last_mut()) {
            (Some(name), _) => names.push(name),
            (None, Some((_, last))) => {
                last.push(b'\n');
                last.extend(line);
            }
            (None, None) => (),
        }
    }
    let path = |name: Vec<u8>| PathBuf::from(OsStr::from_bytes(&name));
    names
        .into_iter()
        .map(|(inode, name)| (inode, path(name)))
        .collect()
}

impl Inode {
    pub(super) fn parse(text: &str) -> Option<Self> {
        // What a symbolic link says may look like the rest.
        let (text, _) = text.split_once("Fast link dest: ").unwrap_or((text, ""));
        let word = |name: &str| text.split_once(name)?.1.split_whitespace().next();
        let (_, map) = text
            .split_once("\nEXTENTS:\n")
            .or_else(|| text.split_once("\nBLOCKS:\n"))
            .unwrap_or_default();
        let mut extents = Vec::new();
        for part in map.lines().next().unwrap_or_default().split(", ") {
            // (0-3):100-103, (4[u]):104, (ETB0):99, (IND):98
            let Some((file, device)) = part
                .strip_prefix('(')
                .and_then(|part| part.split_once("):"))
            else {
                continue;
            };
            let range = |text: &str| {
                let (first, last) = text.split_once('-').unwrap_or((text, text));
                Some(first.parse::<u64>().ok()?..last.parse::<u64>().ok()? + 1)
            };
            let (place, is_unwritten) = match file.split_once("[u]") {
                Some((place, rest)) => (format!("{place}{rest}"), true),
                None => (file.into(), false),
            };
            let owned = range(&place.replace("[u]", "")).map(|blocks| Owned {
                block: blocks.start,
                is_unwritten,
            });
            extents.push((owned, range(device)?));
        }
        Some(Self {
            kind: word("Type: ")?.into(),
            links: word("Links: ")?.parse().ok()?,
            size: word("Size: ")?.parse().ok()?,
            attributes: word("File ACL: ").map_or(Some(0), |word| word.parse().ok())?,
            extents,
        })
    }

    pub(super) fn is_directory(&self) -> bool {
        self.kind == "directory"
    }

    /// Whose `block` is: of the inode `number`, whose blocks have `size` bytes.
    fn owner(&self, number: u64, block: u64, size: u64) -> Owner {
        let found = self
            .extents
            .iter()
            .find(|(_, range)| range.contains(&block));
        let (part, offset) = match found {
            Some((Some(owned), range)) => {
                let offset = (owned.block + block - range.start) * size;
                let part = if owned.is_unwritten {
                    Part::Unwritten
                } else {
                    Part::Data
                };
                (part, Some(offset))
            }
            Some((None, _)) => (Part::Map, None),
            None => (Part::Attributes, None),
        };
        Owner {
            inode: number,
            offset,
            part,
        }
    }
}

/// Whether a group begins with a copy of the superblock and the group descriptors.
fn has_backup(group: u64) -> bool {
    let is_power_of = |base: u64| {
        let mut power = base;
        while power < group {
            power *= base;
        }
        power == group
    };
    group <= 1 || [3, 5, 7].into_iter().any(is_power_of)
}

/// Whether an ext file system with these features has its backups in the groups that [`has_backup`] names, all of the
/// descriptors each.
fn is_usual(features: &str) -> bool {
    let has = |feature: &str| features.split_whitespace().any(|word| word == feature);
    let others = ["meta_bg", "sparse_super2", "bigalloc"];
    has("sparse_super") && !others.into_iter().any(has)
}

/// Blocks of the bitmaps that were read; `None`: that cannot be.
type Bitmaps = BTreeMap<u64, Option<Vec<u8>>>;

impl Ext {
    /// Whether `block` is in use; `None`: its bitmap cannot be read.
    fn is_used(&mut self, block: u64) -> Option<bool> {
        let Some(from_first) = block.checked_sub(self.first_block) else {
            // The boot sector's.
            return Some(true);
        };
        let number = (from_first / self.blocks_per_group) as usize;
        let group = self.groups.get(number)?;
        if group.is_empty && !self.is_usual {
            // Nothing says where the backups are, if any.
            return None;
        }
        if group.is_empty {
            return Some(self.is_backup(block));
        }
        let (at, bit) = (group.block_bitmap, from_first % self.blocks_per_group);
        self.bit(at, bit / self.cluster)
    }

    /// Whether `block` is of a copy of the superblock and the group descriptors, if these are where they usually are.
    fn is_backup(&self, block: u64) -> bool {
        block
            .checked_sub(self.first_block)
            .is_some_and(|from_first| {
                let in_group = from_first % self.blocks_per_group;
                has_backup(from_first / self.blocks_per_group) && in_group <= self.descriptor_blocks
            })
    }

    /// Whether an inode is in use; `None`: its bitmap cannot be read.
    fn is_inode_used(&mut self, inode: u64) -> Option<bool> {
        let from_first = inode.checked_sub(1)?;
        let group = self
            .groups
            .get((from_first / self.inodes_per_group) as usize)?;
        if group.has_no_inodes {
            return Some(false);
        }
        self.bit(group.inode_bitmap, from_first % self.inodes_per_group)
    }

    /// The inodes that are in use, and those of which that cannot be known; but for those in `bad` blocks.
    pub(super) fn used_inodes(&mut self, bad: &BTreeSet<u64>) -> Vec<u64> {
        let all = 1..=self.groups.len() as u64 * self.inodes_per_group;
        let all = all.filter(|inode| self.is_inode_used(*inode) != Some(false));
        let all: Vec<u64> = all.collect();
        let is_good = |inode: &u64| !bad.contains(&self.inode_block(*inode));
        all.into_iter().filter(is_good).collect()
    }

    /// The block that an inode lies in.
    fn inode_block(&self, inode: u64) -> u64 {
        let from_first = inode.saturating_sub(1);
        let group = self
            .groups
            .get((from_first / self.inodes_per_group) as usize);
        let bytes = from_first % self.inodes_per_group * self.inode;
        group.map_or(0, |group| group.inode_table + bytes / self.block)
    }

    /// A bit of the bitmap in the block `at`; `None`: that cannot be read.
    fn bit(&mut self, at: u64, bit: u64) -> Option<bool> {
        let read = || {
            let mut bitmap = vec![0; self.block as usize];
            let device = File::open(&self.device).ok()?;
            can_read(&device, &mut bitmap, at * self.block).then_some(bitmap)
        };
        let bitmap = self.bitmaps.entry(at);
        let bitmap = bitmap.or_insert_with(read).as_ref()?;
        Some(bitmap.get((bit / 8) as usize)? >> (bit % 8) & 1 == 1)
    }
}

/// Reads from `device` through the page cache, where what lies beside what cannot be read may fail once.
pub(super) fn can_read(device: &File, room: &mut [u8], at: u64) -> bool {
    (0..2).any(|_| device.read_exact_at(room, at).is_ok())
}

/// What the file system itself has inodes for.
fn special(inode: u64) -> Option<(Kind, &'static str)> {
    Some(match inode {
        1 => (Kind::Free, "marked as bad, and not used"),
        3 | 4 => (Kind::Metadata, "quotas"),
        7 => (Kind::Metadata, "reserved group descriptors"),
        8 => (Kind::Journal, "journal"),
        5 | 6 | 9 | 10 => (Kind::Metadata, "reserved"),
        _ => return None,
    })
}

/// Whose pieces are, the names of these files, and why it is not all of them.
pub(super) struct Found {
    pub(super) parts: Vec<(Piece, Class)>,
    pub(super) names: Names,
    pub(super) complaint: Option<String>,
}

/// Whose the pieces are, on the ext file system that is on `device` and not mounted.
pub(super) fn look(device: &Path, pieces: &[Piece]) -> Result<Found> {
    let mut ext = Ext::read(device)?;
    if !ext.is_clean {
        ui::warning(&format!(
            "{}: was not unmounted cleanly, so what it wrote last may not count yet: mount it, and run this again",
            device.display()
        ));
    }
    let size = ext.block;
    let blocks = |piece: &Piece| {
        let bytes = piece.bytes();
        bytes.start / size..bytes.end.div_ceil(size)
    };
    let wanted: BTreeSet<u64> = pieces.iter().flat_map(blocks).collect();
    let bad = pieces.iter().filter(|piece| piece.state.is_bad());
    let bad: BTreeSet<u64> = bad.flat_map(blocks).collect();
    let mut inodes = Inodes::new();
    let mut are_all = false;
    let (owners, mut complaint) = match ext.owners(&wanted) {
        Ok(found) => found,
        Err(error) => {
            let (owners, all) = one_by_one::inodes(&mut ext, &wanted, &bad)?;
            (inodes, are_all) = (all, true);
            (owners, Some(format!("{error:#}")))
        }
    };
    let of_nobody = match complaint {
        None => Class::Known(Kind::Metadata, SUPERBLOCK),
        Some(_) => Class::Known(Kind::Unknown, NOT_WHOLE),
    };
    let mut found = Vec::new();
    let mut unnamed = BTreeSet::new();
    for piece in pieces {
        let mut classes = Vec::new();
        for block in blocks(piece) {
            let range = block * size..(block + 1) * size;
            let class = match owners.get(&block) {
                None => ext.class(block, of_nobody.clone()),
                Some(inode) => match special(*inode) {
                    Some((kind, what)) => Class::Known(kind, what),
                    None => {
                        if !inodes.contains_key(inode) {
                            inodes.insert(*inode, ext.stat(*inode)?);
                        }
                        Class::Of(inodes[inode].owner(*inode, block, size))
                    }
                },
            };
            match &class {
                Class::Of(owner) => unnamed.extend([owner.inode]),
                Class::Inodes(numbers) => {
                    let used = |number: &u64| ext.is_inode_used(*number) != Some(false);
                    unnamed.extend(numbers.clone().filter(used));
                }
                _ => (),
            }
            append(&mut classes, range, class);
        }
        found.extend(cut(piece, &classes));
    }
    let mut names = Names::new(size);
    let mut paths = Paths::new();
    if !are_all {
        let said;
        (paths, said) = ext.paths(&unnamed);
        if said.is_some() {
            // Without them, what was found remains.
            if let Ok((_, all)) = one_by_one::inodes(&mut ext, &BTreeSet::new(), &bad) {
                inodes.extend(all);
                are_all = true;
            }
        }
        complaint = complaint.or(said);
    }
    if are_all {
        for (inode, path) in one_by_one::paths(&ext, &inodes, &unnamed) {
            let paths = paths.entry(inode).or_default();
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
    }
    names.is_whole = complaint.is_none();
    for (inode, paths) in paths {
        let name = names.of(inode);
        name.paths = paths;
        if let Some(inode) = inodes.get(&inode) {
            name.is_directory = inode.is_directory();
            name.size = inode.size;
        }
    }
    Ok(Found {
        parts: found,
        names,
        complaint,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATS: &str = "Filesystem volume name:   <none>\n\
        Filesystem features:      has_journal extent needs_recovery\n\
        First block:              0\nBlock size:               4096\nBlock count:              16384\n\
        Group descriptor size:    64\nBlocks per group:         32768\nInodes per group:         16\nInode size:\t          256\n\
        Directories:              2\n Group  0: block bitmap at 7, inode bitmap at 8, inode table at 9\n\
        \x20          0 free blocks, 0 free inodes, 2 used directories\n\
        \x20          [Checksum 0x5f6f]\n Group  1: block bitmap at 32775, inode bitmap at 32776, inode table at 10\n\
        \x20          [Inode not init, Block not init, Checksum 0xd9d2]\n";

    #[test]
    fn places_of_inodes_are_known() {
        let mut ext = Ext::parse(Path::new("/none"), STATS).unwrap();
        assert!(!ext.is_clean);
        assert_eq!((ext.groups.len(), ext.table_blocks()), (2, 1));
        assert!(ext.groups[1].is_empty && !ext.groups[0].is_empty);
        // The bitmap of the first cannot be read, and none of the second's is in use.
        let mut used = |bad| ext.used_inodes(&BTreeSet::from([bad]));
        assert_eq!(used(10), (1..=16).collect::<Vec<_>>());
        assert!(used(9).is_empty());
        let at = |block: u64| ext.inodes(&(block * 4096 + 512..block * 4096 + 1024));
        assert_eq!(at(9), Some(1..17));
        assert_eq!(at(10), Some(17..33));
        assert_eq!((at(8), at(11)), (None, None));
        assert!(Ext::parse(Path::new("/none"), "").is_none());
    }

    #[test]
    fn what_debugfs_complains_of_is_told_apart_from_what_it_always_says() {
        let always = "debugfs 1.47.2 (1-Jan-2025)\n/dev/dm-0: catastrophic mode - not reading inode or group bitmaps\n";
        assert_eq!(complaint(always), None);
        let said = format!(
            "{always}ncheck: Input/output error \x1b[2J\nncheck: Input/output error \x1b[2J\n"
        );
        let expected = "ncheck: Input/output error \\u{1b}[2J";
        assert_eq!(complaint(&said).as_deref(), Some(expected));
    }

    #[test]
    fn where_backups_are_depends_on_features() {
        assert!(is_usual("Filesystem features: has_journal sparse_super"));
        for other in [
            "",
            "sparse_super2",
            "sparse_super meta_bg",
            "sparse_super bigalloc",
        ] {
            assert!(!is_usual(other), "{other}");
        }
    }

    #[test]
    fn groups_with_backups_are_few() {
        let all: Vec<u64> = (0..50).filter(|group| has_backup(*group)).collect();
        assert_eq!(all, [0, 1, 3, 5, 7, 9, 25, 27, 49]);
    }

    #[test]
    fn what_stat_prints_says_what_is_where() {
        let text = "Inode: 12   Type: regular    Mode:  0644   Flags: 0x80000\n\
            User:     0   Group:     0   Project:     0   Size: 9000\nFile ACL: 77\nLinks: 1   Blockcount: 24\n\
            EXTENTS:\n(ETB0):99, (0-1):100-101, (5[u]-7[u]):200-202, (9[u]):300\n";
        let inode = Inode::parse(text).unwrap();
        assert_eq!((inode.kind.as_str(), inode.size), ("regular", 9000));
        assert_eq!((inode.links, inode.attributes), (1, 77));
        let owner = |block| {
            let owner = inode.owner(12, block, 4096);
            (owner.part, owner.offset)
        };
        assert_eq!(owner(101), (Part::Data, Some(4096)));
        assert_eq!(owner(202), (Part::Unwritten, Some(7 * 4096)));
        assert_eq!(owner(300), (Part::Unwritten, Some(9 * 4096)));
        assert_eq!(owner(99), (Part::Map, None));
        assert_eq!(owner(7), (Part::Attributes, None));
        let text = "Inode: 13   Type: directory    Size: 4096\nLinks: 2\nBLOCKS:\n(0-11):50-61, (IND):62, (12):63\nTOTAL: 14\n";
        let inode = Inode::parse(text).unwrap();
        let owner = |block| inode.owner(13, block, 1024).part;
        assert_eq!(
            (owner(61), owner(62), owner(63)),
            (Part::Data, Part::Map, Part::Data)
        );
        let text = "Inode: 14   Type: symlink    Size: 20\nLinks: 1\nFast link dest: \"a\nEXTENTS:\n(0):5\"\n";
        assert!(Inode::parse(text).unwrap().extents.is_empty());
    }

    #[test]
    fn a_name_may_have_a_line_break() {
        let text = b"Inode\tPathname\n12\t//a\n13\t/b\nc\n12\t/d/e\n";
        let names: Vec<_> = names(text).into_iter().collect();
        let path = PathBuf::from;
        assert_eq!(
            names,
            [(12, path("/a")), (13, path("/b\nc")), (12, path("/d/e"))]
        );
        assert!(super::names(b"Inode\tPathname\n").is_empty());
    }
}
