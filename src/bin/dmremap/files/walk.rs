// SPDX-License-Identifier: GPL-2.0

//! A mounted file system's tree, walked for the files that have certain sectors.
//!
//! It is walked from its root, without what is mounted over parts of it, and as it is on the device: what is only in memory is
//! written before.

use super::ioctl::{self, Extent};
use super::layout::{Class, Layout, NOT_WHOLE};
use super::{outside, shown, Kind, Names, Owner, Part, Piece, Place, Report, Unreachable};
use crate::dm::{directory, Number};
use crate::mounts::Mount;
use crate::ui;
use anyhow::{ensure, Context as _, Result};
use indicatif::ProgressBar;
use rustix::fs::{
    fstat, fstatvfs, major, minor, openat2, statat, statx, syncfs, AtFlags, Dir, FileType, Mode,
    OFlags, ResolveFlags, Stat, StatxFlags, CWD,
};
use rustix::io::Errno;
use rustix::mount::{open_tree, OpenTreeFlags};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// File systems that lie on one device and tell where their files lie on it.
pub(super) const KINDS: [&str; 12] = [
    "ext4", "ext3", "ext2", "xfs", "f2fs", "vfat", "msdos", "exfat", "ntfs3", "jfs", "hfs",
    "hfsplus",
];

/// A path as the kernel takes it: the empty one is the root.
fn here(path: &Path) -> &Path {
    match path.as_os_str().is_empty() {
        true => Path::new("."),
        false => path,
    }
}

/// Opens a file or directory below `root`, never another file system's, and without a trace in its times.
fn open(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::NOCTTY
        | OFlags::NOATIME
        | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_XDEV
        | ResolveFlags::NO_MAGICLINKS;
    openat2(root, here(path), flags, Mode::empty(), resolve)
}

/// What lies under nothing: the root of the mount, without what is mounted over parts of it. With it the mount itself, which
/// is to be kept.
pub(super) fn root_of(mount: &Mount) -> Result<(OwnedFd, OwnedFd)> {
    let what = || shown(&mount.at);
    // Another mount of the same device over it has another number, and the clone one of its own.
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let there = statx(CWD, &mount.at, flags, StatxFlags::MNT_ID).with_context(what)?;
    let is_known = there.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, &mount.at, flags).with_context(what)?;
    let root = open(&tree, Path::new("")).with_context(what)?;
    let device = fstat(&root)?.st_dev;
    ensure!(
        (major(device), minor(device)) == mount.number
            && (!is_known || there.stx_mnt_id == mount.id),
        "{}: something else is mounted over it",
        what()
    );
    Ok((root, tree))
}

struct Walk<'a> {
    place: &'a Place,
    root: &'a OwnedFd,
    device: Number,
    names: Names,
    /// Sorted by place on the device: sought are the files that have them.
    sought: Vec<Piece>,
    /// A file has answered FIEMAP. One that does not is an exception then.
    has_fiemap: bool,
    /// Files may lie on another device: the realtime device of XFS.
    has_realtime: bool,
    /// The file system does not tell where a file lies.
    is_mute: bool,
    /// Inodes with several names that were asked what they have; those that did not answer, with the reason.
    seen: HashMap<u64, Option<Errno>>,
    found: Vec<(Piece, Class)>,
    unreachable: Vec<Unreachable>,
    bar: ProgressBar,
    /// Directories that were not looked into yet, from the root on.
    ahead: Vec<PathBuf>,
}

impl Walk<'_> {
    fn run(&mut self) {
        while let Some(directory) = self.ahead.pop() {
            if let Err(error) = self.look_into(&directory) {
                self.complain(&directory, error);
            }
        }
        self.deleted();
        self.bar.finish_and_clear();
    }

    fn complain(&mut self, path: &Path, error: Errno) {
        // It went away meanwhile, or something is mounted there.
        if !matches!(error, Errno::NOENT | Errno::XDEV) {
            self.unreachable.push(Unreachable {
                path: self.place.path(path),
                error,
            });
        }
    }

    fn look_into(&mut self, directory: &Path) -> rustix::io::Result<()> {
        let opened = open(self.root, directory)?;
        if directory.as_os_str().is_empty() {
            let root = fstat(&opened)?;
            self.see(root.st_ino, FileType::Directory, directory);
        }
        for entry in Dir::new(opened)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let path = directory.join(OsStr::from_bytes(name));
            let kind = match entry.file_type() {
                FileType::Unknown => match statat(self.root, &path, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                    Err(error) => {
                        self.complain(&path, error);
                        continue;
                    }
                },
                kind => kind,
            };
            self.see(entry.ino(), kind, &path);
            if kind == FileType::Directory {
                self.ahead.push(path);
            }
            self.bar.inc(1);
        }
        Ok(())
    }

    /// Notes the name of an inode, and what it has of what is sought. The directory says that it is `inode`, of that kind.
    fn see(&mut self, inode: u64, kind: FileType, path: &Path) {
        let is_mapped = matches!(kind, FileType::RegularFile | FileType::Directory);
        if self.sought.is_empty() || !is_mapped || self.seen.contains_key(&inode) {
            return self.name(inode, kind, path, None);
        }
        let opened = open(self.root, path).and_then(|file| Ok((fstat(&file)?, file)));
        let (stat, file) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.complain(path, error);
                return self.name(inode, kind, path, None);
            }
        };
        // FAT gives an inode a number when it is looked up, and HFS+ has another one for each hard link.
        let inode = stat.st_ino;
        if !self.seen.contains_key(&inode) {
            let failed = self.map(&file, &stat).err();
            if stat.st_nlink > 1 && kind == FileType::RegularFile {
                self.seen.insert(inode, failed);
            } else if let Some(error) = failed {
                self.complain(path, error);
            }
        }
        self.name(inode, kind, path, Some(stat));
    }

    /// Notes the name of an inode, if it is wanted.
    fn name(&mut self, inode: u64, kind: FileType, path: &Path, stat: Option<Stat>) {
        if let Some(Some(error)) = self.seen.get(&inode) {
            self.complain(path, *error);
        }
        if !self.names.wants(inode) {
            return;
        }
        let stat = match stat {
            Some(stat) => Ok(stat),
            None => statat(self.root, here(path), AtFlags::SYMLINK_NOFOLLOW),
        };
        let size = match stat {
            Ok(stat) => stat.st_size as u64,
            Err(Errno::NOENT) => return,
            Err(error) => {
                self.complain(path, error);
                // Nothing of it is known to lie behind its end.
                u64::MAX
            }
        };
        let path = self.place.path(path);
        let name = self.names.of(inode);
        name.paths.push(path);
        name.size = size;
        name.is_directory = kind == FileType::Directory;
    }

    /// Finds what a file has of what is sought.
    fn map(&mut self, file: &OwnedFd, stat: &Stat) -> rustix::io::Result<()> {
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if self.has_realtime && is_file && ioctl::is_realtime(file)? {
            // What it has lies on another device.
            return Ok(());
        }
        let mut extents = Vec::new();
        let mut see = |extent| extents.push(extent);
        let mapped = match ioctl::fiemap(file, &mut see) {
            Ok(()) => {
                self.has_fiemap = true;
                Ok(())
            }
            // XFS does not tell of directories.
            Err(Errno::OPNOTSUPP) if !is_file => Ok(()),
            Err(Errno::OPNOTSUPP) if !self.has_fiemap => match fibmap(file, stat, &mut see) {
                Err(Errno::INVAL) => {
                    self.is_mute = true;
                    Ok(())
                }
                mapped => mapped,
            },
            Err(error) => Err(error),
        };
        for extent in &extents {
            self.take(stat.st_ino, extent);
        }
        mapped
    }

    /// Notes which of the sought pieces an extent of `inode` has.
    fn take(&mut self, inode: u64, extent: &Extent) {
        // What has no place, or not yet, may be said to be at 0, where no file system has a file.
        if extent.flags & ioctl::UNKNOWN != 0
            || extent.device.is_empty()
            || extent.device.start == 0
        {
            return;
        }
        let block = self.names.block;
        let device = match extent.flags & ioctl::NOT_ALIGNED {
            0 => extent.device.clone(),
            // All of the block is read.
            _ => extent.device.start / block * block..extent.device.end.next_multiple_of(block),
        };
        let first = self
            .sought
            .partition_point(|piece| piece.bytes().end <= device.start);
        let parts = self.sought[first..].iter();
        let parts = parts.map_while(|piece| piece.within(&device));
        for part in parts.collect::<Vec<_>>() {
            let is = |flag| extent.flags & flag != 0;
            let into = match is(ioctl::NOT_ALIGNED) || is(ioctl::ENCODED) {
                true => 0,
                false => part.at.saturating_sub(device.start),
            };
            let owner = Owner {
                inode,
                offset: Some(extent.offset + into),
                part: match is(ioctl::UNWRITTEN) {
                    true => Part::Unwritten,
                    false => Part::Data,
                },
            };
            self.names.of(inode);
            self.found.push((part, Class::Of(owner)));
        }
    }

    /// Files that have no name any more and are still open.
    fn deleted(&mut self) {
        if self.sought.is_empty() && !self.names.is_one_missing() {
            return;
        }
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        for process in processes {
            // What is only mapped, as programs and libraries are, has no descriptor.
            for files in ["fd", "map_files"] {
                let files = fs::read_dir(process.path().join(files));
                for file in files.into_iter().flatten().flatten() {
                    self.is_open(&file.path(), &process.file_name().to_string_lossy());
                }
            }
        }
    }

    /// Notes what a file that `process` has open has of what is sought, if it is deleted. `path` is that in /proc.
    fn is_open(&mut self, path: &Path, process: &str) {
        let was = fs::read_link(path).unwrap_or_default();
        if !was.as_os_str().as_bytes().ends_with(b" (deleted)") {
            return;
        }
        // A server that does not answer is not asked.
        let Ok(stat) = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::BASIC_STATS) else {
            return;
        };
        let is_file = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile;
        let is_here = (stat.stx_dev_major, stat.stx_dev_minor) == self.device;
        let inode = stat.stx_ino;
        if !is_file || !is_here || stat.stx_nlink > 0 || self.seen.insert(inode, None).is_some() {
            return;
        }
        if !self.sought.is_empty() {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let opened = rustix::fs::open(path, flags, Mode::empty());
            if let Ok((stat, file)) = opened.and_then(|file| Ok((fstat(&file)?, file))) {
                let _ = self.map(&file, &stat);
            }
        }
        if self.names.wants(inode) {
            let name = self.names.of(inode);
            name.size = stat.stx_size;
            name.deleted = Some(format!("{}, still open in process {process}", shown(&was)));
        }
    }
}

/// Gives `see` the clusters of a file.
fn fibmap(file: &OwnedFd, stat: &Stat, see: &mut dyn FnMut(Extent)) -> rustix::io::Result<()> {
    let block = ioctl::block_size(file)?;
    let cluster = fstatvfs(file)?.f_bsize.max(block);
    let length = (stat.st_size as u64).max(stat.st_blocks as u64 * 512);
    for offset in (0..length).step_by(cluster as usize) {
        let number = u32::try_from(offset / block).map_err(|_| Errno::FBIG)?;
        let place = u64::from(ioctl::fibmap(file, number)?) * block;
        see(Extent {
            offset,
            device: place..place + cluster,
            flags: 0,
        });
    }
    Ok(())
}

/// What a file system does when it cannot read an inode or a directory, as its options say.
#[derive(Debug, PartialEq, Eq)]
enum OnErrors {
    Continue,
    BecomeReadOnly,
    Panic,
}

impl OnErrors {
    /// Of a mount of another kind than ext4. exFAT and JFS become read-only unless they are told otherwise, and JFS does not
    /// say so.
    fn of_mount(mount: &Mount) -> Self {
        match &*mount.kind {
            "exfat" | "jfs" if !mount.options.contains("errors=") => {
                Self::of(&format!("{},errors=remount-ro", mount.options))
            }
            "exfat" | "jfs" => Self::of(&mount.options),
            _ => Self::Continue,
        }
    }

    /// As ext4 has them in /proc, or mountinfo for the others.
    fn of(options: &str) -> Self {
        let has = |option: &str| options.split(['\n', ',']).any(|it| it == option);
        match () {
            () if has("errors=panic") => Self::Panic,
            () if has("errors=remount-ro") && has("rw") => Self::BecomeReadOnly,
            () => Self::Continue,
        }
    }
}

/// Why files must not be looked at, if that does harm where something cannot be read.
fn danger(layout: &Layout<'_>, mount: &Mount, number: Number) -> Option<String> {
    let at = shown(&mount.at);
    if layout.is_headless() {
        return Some(
            "the first sector of a directory cannot be read, and as soon as Linux looks at such a directory of FAT, it gives \
             free what that has. Unmount it, make a copy, and repair that with fsck.fat"
                .into(),
        );
    }
    let device = directory(number);
    let name = device.as_deref().and_then(Path::file_name);
    let options = Path::new("/proc/fs/ext4").join(name.unwrap_or_default());
    let on_errors = match fs::read_to_string(options.join("options")) {
        Ok(options) => OnErrors::of(&options),
        Err(_) => OnErrors::of_mount(mount),
    };
    match on_errors {
        OnErrors::Continue => None,
        OnErrors::BecomeReadOnly => {
            ui::warning(&format!(
                "{at}: mounted with errors=remount-ro: where an inode or a directory cannot be read, it becomes read-only"
            ));
            None
        }
        OnErrors::Panic => Some(format!(
            "it is mounted with errors=panic, and the machine would end where an inode or a directory cannot be read. \
             mount -o remount,errors=continue {at}, and run this again"
        )),
    }
}

/// Adds to `report` whose the pieces are, which lie on the mounted file system `mount`.
pub(super) fn look(
    place: &Place,
    mount: &Mount,
    number: Number,
    pieces: &[Piece],
    report: &mut Report,
) -> Result<()> {
    let (root, _tree) = root_of(mount)?;
    // What is not on the device yet has no place there. If it fails, we take what is there.
    let _ = syncfs(&root);
    let mut layout = Layout::of(place, &root, number);
    let stat = fstat(&root)?;
    let space = fstatvfs(&root)?;
    let mut names = Names::new(ioctl::block_size(&root).unwrap_or(4096));
    let mut found = Vec::new();
    // By what it is if no file has it.
    let mut perhaps: Vec<((Kind, &str), Vec<Piece>)> = Vec::new();
    for (piece, class) in pieces.iter().flat_map(|piece| layout.classify(piece)) {
        match class {
            Class::Perhaps(kind, what) => {
                match perhaps.iter_mut().find(|(same, _)| *same == (kind, what)) {
                    Some((_, all)) => all.push(piece),
                    None => perhaps.push(((kind, what), vec![piece])),
                }
                continue;
            }
            Class::Known(..) => (),
            Class::Of(ref owner) => {
                names.of(owner.inode);
            }
            Class::Inodes(ref numbers) => {
                for number in numbers.clone() {
                    names.of(number);
                }
            }
        }
        found.push((piece, class));
    }
    let sought = perhaps.iter().flat_map(|(_, pieces)| pieces.iter());
    let mut sought: Vec<Piece> = sought.cloned().collect();
    sought.sort_by_key(|piece| piece.at);
    let is_wanted = !sought.is_empty() || !names.is_empty();
    let danger = match is_wanted {
        true => danger(&layout, mount, number),
        false => None,
    };
    if let Some(danger) = danger {
        report.notes.push(format!(
            "{}: no file was looked at: {danger}",
            place.device.display()
        ));
        names.is_whole = false;
    } else if is_wanted {
        let inodes = space.f_files.saturating_sub(space.f_ffree);
        let mut walk = Walk {
            place,
            root: &root,
            device: (major(stat.st_dev), minor(stat.st_dev)),
            names,
            sought,
            has_fiemap: false,
            has_realtime: layout.has_realtime(),
            is_mute: false,
            seen: HashMap::new(),
            found: Vec::new(),
            unreachable: Vec::new(),
            bar: ui::progress("looking at files", inodes),
            ahead: vec![PathBuf::new()],
        };
        walk.run();
        if walk.is_mute {
            report.notes.push(format!(
                "{}: {} does not tell where its files lie",
                place.device.display(),
                mount.kind
            ));
        }
        let can_see_all = walk.unreachable.is_empty() && !walk.is_mute && mount.root == "/";
        names = walk.names;
        found.append(&mut walk.found);
        report.unreachable.append(&mut walk.unreachable);
        // Some file systems leave out what they cannot read of a directory, without a word.
        let is_hole = |(piece, class): &(Piece, Class)| matches!(class, Class::Of(owner) if piece.state.is_bad() && names.is_directory(owner.inode));
        names.is_whole = can_see_all && !found.iter().any(is_hole);
    }
    // What no file has is what it else would be.
    let taken =
        |(piece, class): &(Piece, Class)| matches!(class, Class::Of(_)).then(|| piece.bytes());
    let taken: Vec<Range<u64>> = found.iter().filter_map(taken).collect();
    for ((kind, what), pieces) in perhaps {
        let class = match names.is_whole {
            true => Class::Known(kind, what),
            false => Class::Known(Kind::Unknown, NOT_WHOLE),
        };
        for part in outside(&pieces, taken.clone()) {
            found.push((part, class.clone()));
        }
    }
    let is_nameless = |(piece, class): &(Piece, Class)| {
        piece.state.is_bad() && matches!(class, Class::Known(Kind::Directory, _))
    };
    if found.iter().any(is_nameless) {
        report.notes.push(format!(
            "{}: a directory cannot be read as a whole: files in it may be missing here",
            place.device.display()
        ));
    }
    if mount.root != "/" && is_wanted {
        report.notes.push(format!(
            "of the file system on {}, only {} is mounted here: files elsewhere in it are not named",
            place.device.display(),
            shown(Path::new(&mount.root))
        ));
    }
    report.add(place, found, &names);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unreadable::State;

    /// What `see` makes of a walk below `root`, in which all of the device is sought.
    fn walk(
        root: &Path,
        see: &dyn Fn(&mut Walk<'_>),
    ) -> (Names, Vec<(Piece, Class)>, Vec<PathBuf>) {
        let place = Place {
            device: "/dev/mapper/r".into(),
            filesystem: Some("ext4".into()),
            mountpoint: Some("/mnt".into()),
        };
        let root = OwnedFd::from(fs::File::open(root).unwrap());
        let mut walk = Walk {
            place: &place,
            root: &root,
            device: (8, 1),
            names: Names::new(4096),
            sought: vec![Piece {
                sector: 0,
                count: 64,
                state: State::Pending,
                at: 0,
            }],
            has_realtime: false,
            has_fiemap: false,
            is_mute: false,
            seen: HashMap::new(),
            found: Vec::new(),
            unreachable: Vec::new(),
            bar: ProgressBar::hidden(),
            ahead: Vec::new(),
        };
        see(&mut walk);
        let unreachable = walk.unreachable.into_iter().map(|it| it.path);
        (walk.names, walk.found, unreachable.collect())
    }

    #[test]
    fn what_has_no_place_is_nobodys() {
        let extent = |device: Range<u64>, flags: u32| Extent {
            offset: 0,
            device,
            flags,
        };
        let place = tempfile::tempdir().unwrap();
        let (names, found, _) = walk(place.path(), &|walk| {
            for nowhere in [
                extent(0..4096, 0),
                extent(0..4096, ioctl::UNWRITTEN),
                extent(4096..4096, 0),
                extent(4096..8192, ioctl::UNKNOWN),
            ] {
                walk.take(5, &nowhere);
            }
            walk.take(6, &extent(4096..8192, 0));
        });
        assert!(!names.wants(5) && names.wants(6));
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn a_file_of_which_nothing_is_known_has_no_end_and_is_told_by_all_its_names() {
        let place = tempfile::tempdir().unwrap();
        // No file system has names of that length.
        let long = "x".repeat(300);
        let (mut names, _, unreachable) = walk(place.path(), &|walk| {
            walk.names.of(5);
            walk.name(5, FileType::RegularFile, Path::new(&long), None);
            // It went away.
            walk.names.of(6);
            walk.name(6, FileType::RegularFile, Path::new("none"), None);
            walk.seen.insert(7, Some(Errno::IO));
            for name in ["one", "two"] {
                walk.see(7, FileType::RegularFile, Path::new(name));
            }
        });
        assert_eq!((names.of(5).size, names.of(5).paths.len()), (u64::MAX, 1));
        assert!(names.of(6).paths.is_empty());
        let expected = [&*long, "one", "two"].map(|name| Path::new("/mnt").join(name));
        assert_eq!(unreachable, expected);
    }

    #[test]
    fn the_number_of_an_inode_is_that_which_it_has_when_it_is_open() {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("file"), "x").unwrap();
        let inode = fstat(fs::File::open(place.path().join("file")).unwrap())
            .unwrap()
            .st_ino;
        let (mut names, ..) = walk(place.path(), &|walk| {
            walk.names.of(inode);
            // As FAT has it in its directories.
            walk.see(inode + 1, FileType::RegularFile, Path::new("file"));
        });
        assert_eq!(names.of(inode).paths, [Path::new("/mnt/file")]);
        assert_eq!(names.of(inode).size, 1);
    }

    #[test]
    fn what_ext4_does_at_errors_is_among_its_options() {
        for (options, expected) in [
            ("rw\nbsddf\nerrors=continue\n", OnErrors::Continue),
            ("rw\nerrors=remount-ro\n", OnErrors::BecomeReadOnly),
            ("ro\nerrors=remount-ro\n", OnErrors::Continue),
            ("ro\nerrors=panic\n", OnErrors::Panic),
            ("", OnErrors::Continue),
        ] {
            assert_eq!(OnErrors::of(options), expected, "{options}");
        }
    }

    #[test]
    fn exfat_and_jfs_become_read_only_unless_told_otherwise() {
        for (kind, options, expected) in [
            ("exfat", "rw,errors=remount-ro", OnErrors::BecomeReadOnly),
            ("exfat", "rw,errors=panic", OnErrors::Panic),
            ("jfs", "rw", OnErrors::BecomeReadOnly),
            ("jfs", "ro", OnErrors::Continue),
            ("jfs", "rw,errors=continue", OnErrors::Continue),
            ("xfs", "rw", OnErrors::Continue),
        ] {
            let line = format!("36 35 8:1 / /mnt rw - {kind} /dev/a {options}");
            let mount = Mount::all(line.as_bytes()).next().unwrap();
            assert_eq!(OnErrors::of_mount(&mount), expected, "{line}");
        }
    }
}
