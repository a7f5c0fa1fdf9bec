// SPDX-License-Identifier: GPL-2.0

//! `dmremap files`: whose the sectors are that nobody can read.
//!
//! - [`stack`] follows sectors from the remap device up to a file system, swap space, or nobody.
//! - [`layout`] asks a mounted file system what lies where, with [`ioctl`]s, and for [`fat`] and [`f2fs`] by its own tables.
//! - [`walk`] goes through its files for those that have what is left, and for names.
//! - [`debugfs`] does both for ext4 that is not mounted, and [`one_by_one`] where part of the list of inodes cannot be read.

mod debugfs;
mod f2fs;
mod fat;
mod ioctl;
mod layout;
mod one_by_one;
mod stack;
mod walk;

use crate::device_cli::Files;
use crate::dm::{path_of, Device, Number};
use crate::hide::signatures;
use crate::label::is_invisible;
use crate::mounts::{Mount, Tables};
use crate::unreadable::{look, By, Direct, State};
use crate::{holder, ui, Status};
use anyhow::{ensure, Context as _, Result};
use layout::{Class, NOT_WHOLE};
use rustix::io::Errno;
use serde::Serialize;
use stack::User;
use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io::{stdout, BufWriter, Write as _};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

const SECTOR: u64 = 512;

/// Sectors that can be asked about at once, bad or not: 1 GiB. What has each of their blocks is found one by one.
const LONGEST: u64 = 1 << 21;

/// Names of one thing that a person is shown, at most.
const NAMES: usize = 3;

/// Sectors of the remap device, side by side there and on the device above it that is spoken of.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    /// The first, on the remap device.
    sector: u64,
    count: u64,
    state: State,
    /// Where they begin on the device that is spoken of, in bytes.
    at: u64,
}

impl Piece {
    /// Where they lie on the device that is spoken of.
    fn bytes(&self) -> Range<u64> {
        self.at..self.at + self.count * SECTOR
    }

    /// Those that `bytes` touch.
    fn within(&self, bytes: &Range<u64>) -> Option<Self> {
        let first = bytes.start.saturating_sub(self.at) / SECTOR;
        let end = bytes.end.saturating_sub(self.at).div_ceil(SECTOR);
        let end = end.min(self.count);
        (first < end).then(|| Self {
            sector: self.sector + first,
            count: end - first,
            at: self.at + first * SECTOR,
            ..*self
        })
    }
}

/// The parts of `pieces` that lie in none of `ranges`.
fn outside(pieces: &[Piece], mut ranges: Vec<Range<u64>>) -> Vec<Piece> {
    ranges.sort_by_key(|range| range.start);
    // Those that touch become one.
    ranges.dedup_by(|next, range| {
        let is_touched = next.start <= range.end;
        if is_touched {
            range.end = range.end.max(next.end);
        }
        is_touched
    });
    let mut rest = Vec::new();
    for piece in pieces {
        let bytes = piece.bytes();
        let first = ranges.partition_point(|range| range.end <= bytes.start);
        let inside = ranges[first..].iter();
        let mut from = bytes.start;
        for range in inside.take_while(|range| range.start < bytes.end) {
            rest.extend(piece.within(&(from..range.start.max(from))));
            from = range.end;
        }
        rest.extend(piece.within(&(from..bytes.end.max(from))));
    }
    rest
}

/// What is at a place; the names are those of docs/json.md and stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    /// Data of a file.
    File,
    /// A file's, but it holds nothing: reserved, or behind its end.
    Unused,
    /// Names in a directory.
    Directory,
    /// What leads to a file: its inode, its list of extents.
    Inode,
    Journal,
    /// Of the file system itself.
    Metadata,
    Free,
    Swap,
    Unknown,
}

/// What of a file is at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Data,
    Unwritten,
    Attributes,
    /// The list of its extents.
    Map,
}

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    inode: u64,
    /// Where in the file it begins, in bytes.
    offset: Option<u64>,
    part: Part,
}

/// A file system, or a device without one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    device: PathBuf,
    filesystem: Option<String>,
    mountpoint: Option<PathBuf>,
}

impl Place {
    /// The path of what is at `path` in the file system.
    fn path(&self, path: &Path) -> PathBuf {
        let root = self.mountpoint.as_deref().unwrap_or(Path::new("/"));
        match path.as_os_str().is_empty() {
            true => root.into(),
            false => root.join(path),
        }
    }
}

/// An inode whose names are wanted.
#[derive(Default)]
struct Name {
    paths: Vec<PathBuf>,
    is_directory: bool,
    size: u64,
    /// It has no name any more, and who has it open.
    deleted: Option<String>,
}

/// Inodes whose names are wanted, of a file system with such blocks.
struct Names {
    block: u64,
    /// No file was left out. Otherwise what has no name may be of one that was.
    is_whole: bool,
    all: HashMap<u64, Name>,
}

impl Names {
    fn new(block: u64) -> Self {
        Self {
            block,
            is_whole: true,
            all: HashMap::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    fn wants(&self, inode: u64) -> bool {
        self.all.contains_key(&inode)
    }

    fn is_directory(&self, inode: u64) -> bool {
        self.all.get(&inode).is_some_and(|name| name.is_directory)
    }

    fn is_one_missing(&self) -> bool {
        self.all.values().any(|name| name.paths.is_empty())
    }

    /// From now on its names are wanted.
    fn of(&mut self, inode: u64) -> &mut Name {
        self.all.entry(inode).or_default()
    }
}

/// Sectors side by side that are one's.
#[derive(Clone, Debug)]
struct Hit {
    sector: u64,
    count: u64,
    state: State,
    kind: Kind,
    paths: Vec<PathBuf>,
    inode: Option<u64>,
    /// Where in the file, in bytes.
    offset: Option<u64>,
    place: Rc<Place>,
    /// What it is, where no path says it.
    what: String,
}

/// A file or directory that cannot be looked at.
struct Unreachable {
    path: PathBuf,
    error: Errno,
}

impl Unreachable {
    /// Whether it is because of something that cannot be read.
    fn is_damaged(&self) -> bool {
        // The last two are what file systems say of metadata.
        [
            Errno::IO,
            Errno::NODATA,
            Errno::REMOTEIO,
            Errno::UCLEAN,
            Errno::BADMSG,
        ]
        .contains(&self.error)
    }
}

/// Whose the sectors are.
#[derive(Default)]
pub(crate) struct Report {
    hits: Vec<Hit>,
    unreachable: Vec<Unreachable>,
    notes: Vec<String>,
}

/// A path, or other words of others, for a person: what a terminal does not show, or obeys, is escaped.
pub(crate) fn shown(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match is_invisible(c) {
                true => text.extend(c.escape_default()),
                false => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text += &format!("\\x{byte:02x}");
        }
    }
    text
}

impl Report {
    /// Adds what was found on a file system.
    fn add(&mut self, place: &Place, found: Vec<(Piece, Class)>, names: &Names) {
        let place = Rc::new(place.clone());
        for (piece, class) in found {
            self.hits.push(Hit::of(&place, &piece, class, names));
        }
    }

    /// Adds pieces of which all is said in words.
    fn plainly(&mut self, place: &Place, pieces: Vec<Piece>, kind: Kind, what: &str) {
        let place = Rc::new(place.clone());
        let names = Names::new(SECTOR);
        for piece in pieces {
            let mut hit = Hit::of(&place, &piece, Class::Perhaps(kind, ""), &names);
            hit.what = what.into();
            self.hits.push(hit);
        }
    }

    /// Puts them in order; what is one thing after the other becomes one.
    fn settle(&mut self) {
        self.hits.iter_mut().for_each(|hit| hit.paths.sort());
        self.hits
            .sort_by(|a, b| (a.sector, &a.place.device).cmp(&(b.sector, &b.place.device)));
        self.hits.dedup_by(|next, hit| {
            let goes_on = hit.goes_on(next);
            if goes_on {
                hit.count += next.count;
            }
            goes_on
        });
        self.unreachable.sort_by(|a, b| a.path.cmp(&b.path));
        self.unreachable
            .dedup_by(|a, b| (&a.path, a.error) == (&b.path, b.error));
    }

    /// A line each for a person, without the sectors.
    pub(crate) fn lines(&self) -> Vec<String> {
        let hits = self
            .hits
            .iter()
            .map(|hit| format!("{}: {}", ui::count(hit.count, "sector"), hit.whose()));
        let others = self.unreachable.iter().map(Unreachable::text);
        hits.chain(others)
            .chain(self.notes.iter().cloned())
            .collect()
    }

    /// The paths of what cannot be read as a whole.
    fn damaged(&self) -> BTreeSet<&Path> {
        let hits = self.hits.iter().filter(|hit| hit.is_damage());
        let hits = hits.flat_map(|hit| hit.paths.iter().map(PathBuf::as_path));
        let others = self.unreachable.iter().filter(|u| u.is_damaged());
        hits.chain(others.map(|u| u.path.as_path())).collect()
    }

    /// The paths of all that was asked about, damaged or not.
    fn paths(&self) -> BTreeSet<&Path> {
        let hits = self.hits.iter();
        let hits = hits.flat_map(|hit| hit.paths.iter().map(PathBuf::as_path));
        hits.chain(self.damaged()).collect()
    }

    /// Whether it is not known of all whose they are.
    fn is_partial(&self) -> bool {
        let is_unknown = |hit: &Hit| hit.kind == Kind::Unknown;
        self.hits.iter().any(is_unknown) || !self.unreachable.is_empty() || !self.notes.is_empty()
    }
}

impl Unreachable {
    fn text(&self) -> String {
        let error = std::io::Error::from(self.error);
        format!("{}: cannot be looked at: {error}", shown(&self.path))
    }
}

impl Hit {
    fn of(place: &Rc<Place>, piece: &Piece, class: Class, names: &Names) -> Self {
        let mut hit = Self {
            sector: piece.sector,
            count: piece.count,
            state: piece.state,
            kind: Kind::Unknown,
            paths: Vec::new(),
            inode: None,
            offset: None,
            place: place.clone(),
            what: String::new(),
        };
        match class {
            Class::Known(kind, what) | Class::Perhaps(kind, what) => {
                hit.kind = kind;
                hit.what = what.into();
            }
            Class::Inodes(numbers) => {
                hit.kind = Kind::Inode;
                let paths = numbers.filter_map(|number| names.all.get(&number));
                hit.paths = paths.flat_map(|name| name.paths.clone()).collect();
                hit.what = "inodes".into();
                if hit.paths.is_empty() && !names.is_whole {
                    hit.kind = Kind::Unknown;
                    hit.what = "inodes, of files that could not be found, or not in use: not all of the tree could be looked at".into();
                }
            }
            Class::Of(owner) => hit.belongs_to(&owner, names),
        }
        hit
    }

    fn belongs_to(&mut self, owner: &Owner, names: &Names) {
        self.inode = Some(owner.inode);
        self.offset = owner.offset;
        let nothing = Name::default();
        let name = names.all.get(&owner.inode).unwrap_or(&nothing);
        self.paths = name.paths.clone();
        // The whole block is read, if any of it belongs to the file.
        let is_behind = |offset: u64| offset / names.block * names.block >= name.size;
        let is_named = !name.paths.is_empty() || name.deleted.is_some();
        self.kind = match owner.part {
            Part::Attributes => Kind::Metadata,
            Part::Unwritten => Kind::Unused,
            _ if !is_named && names.is_whole => Kind::Metadata,
            _ if !is_named => Kind::Unknown,
            _ if name.is_directory => Kind::Directory,
            Part::Map => Kind::Inode,
            Part::Data if owner.offset.is_some_and(is_behind) => Kind::Unused,
            Part::Data => Kind::File,
        };
        self.what = match (&name.deleted, owner.part) {
            (Some(deleted), _) => deleted.clone(),
            (None, _) if !is_named && !names.is_whole => {
                format!("inode {}: {NOT_WHOLE}", owner.inode)
            }
            (None, _) if !is_named => {
                format!(
                    "inode {}, which has no name: of the file system itself, or deleted",
                    owner.inode
                )
            }
            (None, Part::Attributes) => "extended attributes".into(),
            (None, Part::Map) => "list of extents".into(),
            (None, _) => String::new(),
        };
    }

    /// Whether `next` is the same thing, and continues it.
    fn goes_on(&self, next: &Self) -> bool {
        let offset = self.offset.map(|offset| offset + self.count * SECTOR);
        self.sector + self.count == next.sector
            && (self.state, self.kind, self.inode) == (next.state, next.kind, next.inode)
            && offset == next.offset
            && self.place == next.place
            && self.what == next.what
            && self.paths == next.paths
    }

    /// Whether something of its paths cannot be read because of it.
    fn is_damage(&self) -> bool {
        self.state.is_bad() && matches!(self.kind, Kind::File | Kind::Directory | Kind::Inode)
    }

    /// For a person.
    fn whose(&self) -> String {
        let on = || match &self.place.filesystem {
            Some(kind) => format!(
                "{} on {}",
                shown(Path::new(kind)),
                self.place.device.display()
            ),
            None => self.place.device.display().to_string(),
        };
        let mut paths: Vec<String> = self
            .paths
            .iter()
            .take(NAMES)
            .map(|path| shown(path))
            .collect();
        if let Some(more) = self.paths.len().checked_sub(NAMES).filter(|more| *more > 0) {
            paths.push(format!("{more} more"));
        }
        let paths = paths.join(", ");
        let what = &self.what;
        let at = self
            .offset
            .map_or(String::new(), |offset| format!(", byte {offset}"));
        match self.kind {
            Kind::File if self.paths.is_empty() => format!("{what}{at}"),
            Kind::File => format!("{paths}{at}"),
            Kind::Unused if self.paths.is_empty() => format!("{what}{at}, no data"),
            Kind::Unused => format!("{paths}{at}, no data: reserved or behind its end"),
            Kind::Directory if self.paths.is_empty() => format!("{what} of {}", on()),
            Kind::Directory => format!("directory {paths}"),
            Kind::Inode if self.paths.is_empty() => format!("{what} of {}, not in use", on()),
            Kind::Inode => format!("{what} of {paths}"),
            Kind::Metadata if !self.paths.is_empty() => format!("{what} of {paths}"),
            _ => format!("{}: {what}", on()),
        }
    }
}

/// A hit, or what cannot be looked at, as JSON; the names are those of docs/json.md and stay.
#[derive(Serialize)]
struct HitView {
    start: u64,
    count: u64,
    state: State,
    kind: Kind,
    paths: Vec<String>,
    inode: Option<u64>,
    offset: Option<u64>,
    device: String,
    filesystem: Option<String>,
    mountpoint: Option<String>,
    text: String,
}

#[derive(Serialize)]
struct UnreachableView {
    path: String,
    error: String,
}

fn lossy(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

impl Hit {
    fn view(&self) -> HitView {
        HitView {
            start: self.sector,
            count: self.count,
            state: self.state,
            kind: self.kind,
            paths: self.paths.iter().map(|path| lossy(path)).collect(),
            inode: self.inode,
            offset: self.offset,
            device: lossy(&self.place.device),
            filesystem: self.place.filesystem.clone(),
            mountpoint: self.place.mountpoint.as_deref().map(lossy),
            text: self.whose(),
        }
    }
}

/// Adds whose the pieces are, which `user` has on the device `number`.
fn ask(report: &mut Report, number: Number, user: User, pieces: Vec<Piece>) -> Result<()> {
    let mut place = Place {
        device: path_of(number),
        filesystem: None,
        mountpoint: None,
    };
    let name = place.device.display().to_string();
    match user {
        User::Mounted(mounts) => {
            let mount = usable(mounts);
            place.filesystem = Some(mount.kind.clone());
            place.mountpoint = Some(mount.at.clone());
            if !walk::KINDS.contains(&mount.kind.as_str()) {
                let what = match mount.kind.as_str() {
                    "btrfs" => format!(
                        "btrfs numbers its sectors itself, so they are not followed: btrfs scrub start {} names the files that \
                         it cannot read in the kernel log",
                        shown(&mount.at)
                    ),
                    kind => format!(
                        "{}, of which not enough is known to say whose its sectors are",
                        shown(Path::new(kind))
                    ),
                };
                report.plainly(&place, pieces, Kind::Unknown, &what);
                return Ok(());
            }
            if let Err(error) = walk::look(&place, &mount, number, &pieces, report) {
                let what = format!("cannot be looked at: {error:#}");
                report.plainly(&place, pieces, Kind::Unknown, &what);
            }
        }
        User::Elsewhere { process, at } => {
            let what = format!(
                "mounted at {} in another namespace, as process {process} sees it: run this there, by nsenter -t {process} -m",
                shown(&at)
            );
            report.plainly(&place, pieces, Kind::Unknown, &what);
        }
        User::Swap => report.plainly(&place, pieces, Kind::Swap, "swap space, in use"),
        User::Opaque(who) => {
            let what = format!("below {who}, through which sectors are not followed");
            report.plainly(&place, pieces, Kind::Unknown, &what);
        }
        User::Outside(encrypted_from) => {
            let header = 0..encrypted_from.unwrap_or(0);
            let inside = pieces.iter().filter_map(|piece| piece.within(&header));
            let inside = inside.collect();
            report.plainly(&place, inside, Kind::Metadata, "header of the encryption");
            let rest = outside(&pieces, vec![header]);
            let what = "outside of what is in use on it: labels of LVM or partitions, free space, or volumes that are not active";
            report.plainly(&place, rest, Kind::Unknown, what);
        }
        User::Idle => {
            let found = match signatures(&place.device) {
                Ok(found) => found,
                Err(error) => {
                    report.plainly(&place, pieces, Kind::Unknown, &format!("{error:#}"));
                    return Ok(());
                }
            };
            // Tables of partitions may be left from before.
            let is_table = |kind: &str| matches!(kind, "gpt" | "dos" | "PMBR");
            let kinds = found.iter().map(|signature| signature.kind.as_str());
            let kind = kinds.min_by_key(|kind| is_table(kind)).unwrap_or_default();
            let kind = kind.to_string();
            place.filesystem = (!kind.is_empty()).then(|| kind.clone());
            // A virtual machine, or a file system in user space.
            let holder = holder::process(&place.device);
            let plainly = match kind.as_str() {
                "ext2" | "ext3" | "ext4" => match debugfs::look(&place.device, &pieces) {
                    Ok(found) => {
                        report.add(&place, found.parts, &found.names);
                        let said = found.complaint.map(|said| {
                            format!("{name}: not all of the tree could be looked at: {said}")
                        });
                        report.notes.extend(said);
                        report.notes.extend(holder.map(|holder| {
                            format!("{name}: open in {holder}, which may know more of it")
                        }));
                        return Ok(());
                    }
                    Err(error) => format!("{error:#}"),
                },
                "swap" => {
                    report.plainly(&place, pieces, Kind::Swap, "swap space, not in use");
                    return Ok(());
                }
                "" => match holder {
                    Some(holder) => {
                        format!("open in {holder}, and nothing is on it that is known")
                    }
                    None => "no user of it is known, and nothing is on it that is known".into(),
                },
                "crypto_LUKS" => {
                    format!("encrypted: open it (cryptsetup open {name} NAME), and run this again")
                }
                "LVM2_member" => {
                    "volumes of LVM that are not active: vgchange -ay, and run this again".into()
                }
                "gpt" | "dos" | "PMBR" => {
                    format!("partitions that are not in use: kpartx -a {name}, mount them, and run this again")
                }
                kind => format!(
                    "{kind}, not in use: mount it (read-only is enough), and run this again"
                ),
            };
            report.plainly(&place, pieces, Kind::Unknown, &plainly);
        }
    }
    Ok(())
}

/// Of the mounts of a device, the first whose root can be seen.
fn usable(mut mounts: Vec<Mount>) -> Mount {
    let can_be_seen = |mount: &Mount| walk::root_of(mount).is_ok();
    let first = mounts.iter().position(can_be_seen).unwrap_or(0);
    mounts.swap_remove(first)
}

/// Makes file systems above `device` write what they have in memory only: before that, what was restored to a file cannot be
/// read from the device.
pub(crate) fn flush(device: &Device) {
    let all = Piece {
        sector: 0,
        count: device.sectors,
        state: State::Healthy,
        at: 0,
    };
    // Where it cannot be, nothing is lost: they write it later.
    let _ = stack::visit(
        &Tables::read(),
        device.number,
        vec![all],
        &mut |_, user, _| {
            if let User::Mounted(mounts) = user {
                if let Ok((root, _tree)) = walk::root_of(&usable(mounts)) {
                    let _ = rustix::fs::syncfs(&root);
                }
            }
            Ok(())
        },
    );
}

/// Whose sectors of `device` are.
pub(crate) fn whose(device: &Device, sectors: &[(Range<u64>, State)]) -> Result<Report> {
    let piece = |(range, state): &(Range<u64>, State)| Piece {
        sector: range.start,
        count: range.end - range.start,
        state: *state,
        at: range.start * SECTOR,
    };
    let pieces = sectors.iter().map(piece).collect();
    let mut report = Report::default();
    let tables = Tables::read();
    stack::visit(
        &tables,
        device.number,
        pieces,
        &mut |number, user, pieces| ask(&mut report, number, user, pieces),
    )?;
    report.settle();
    Ok(report)
}

/// The sectors that are asked about.
fn wanted(device: &Device, args: &Files) -> Result<Vec<(Range<u64>, State)>> {
    let within = match args.sector {
        None => 0..device.sectors,
        Some(sector) => {
            ensure!(
                args.count <= LONGEST,
                "{} at once are too many: {} at most. Without a range, it tells of all that cannot be read",
                ui::size(args.count),
                ui::binary(LONGEST * SECTOR)
            );
            let end = sector.checked_add(args.count);
            let end = end.filter(|end| *end <= device.sectors);
            sector..end.with_context(|| {
                format!(
                    "{} has {}, and no such range",
                    device.name,
                    ui::size(device.sectors)
                )
            })?
        }
    };
    let direct;
    let by = match args.quick {
        true => By::Belief,
        false => {
            direct = Direct::open(device, false)?;
            By::Reading(&direct, direct.physical)
        }
    };
    let mut found = Vec::new();
    let mut from = within.start;
    look(device, &within, &by, &mut |sectors, state| {
        if args.sector.is_some() && from < sectors.start {
            found.push((from..sectors.start, State::Healthy));
        }
        from = sectors.end;
        let is_wanted = match state {
            State::Relocated => args.relocated || args.sector.is_some(),
            State::Healthy => args.sector.is_some(),
            _ => true,
        };
        if is_wanted {
            found.push((sectors, state));
        }
    })?;
    if args.sector.is_some() && from < within.end {
        found.push((from..within.end, State::Healthy));
    }
    Ok(found)
}

pub(crate) fn run(args: &Files) -> Result<Status> {
    let device = Device::open(&args.name)?;
    let sectors = wanted(&device, args)?;
    let report = whose(&device, &sectors)?;
    let mut out = BufWriter::new(stdout().lock());
    if args.json {
        let unreachable = report.unreachable.iter().map(|it| UnreachableView {
            path: lossy(&it.path),
            error: std::io::Error::from(it.error).to_string(),
        });
        let document = serde_json::json!({
            "version": 1,
            "name": device.name,
            "hits": report.hits.iter().map(Hit::view).collect::<Vec<_>>(),
            "unreachable": unreachable.collect::<Vec<_>>(),
            "notes": report.notes,
        });
        ui::json(&mut out, &document)?;
    } else if args.null {
        let is_all = args.sector.is_some() || args.relocated;
        let paths = if is_all {
            report.paths()
        } else {
            report.damaged()
        };
        for path in paths {
            out.write_all(OsStr::new(path).as_bytes())?;
            out.write_all(&[0])?;
        }
    } else {
        report.print(&device, &sectors, &mut out)?;
    }
    out.flush()?;
    Ok(match report.is_partial() {
        true => Status::Damaged,
        false => Status::Done,
    })
}

impl Report {
    /// What was found out about `sectors`, for a person.
    fn print(
        &self,
        device: &Device,
        sectors: &[(Range<u64>, State)],
        out: &mut impl std::io::Write,
    ) -> Result<()> {
        for hit in &self.hits {
            let (sector, count, state) = (hit.sector, hit.count, hit.state);
            writeln!(out, "{sector} {count} {state} {}", hit.whose())?;
        }
        let others = self.unreachable.iter().map(Unreachable::text);
        for line in others.chain(self.notes.iter().cloned()) {
            writeln!(out, "{line}")?;
        }
        let bad = sectors.iter().filter(|(_, state)| state.is_bad());
        let bad: u64 = bad.map(|(range, _)| range.end - range.start).sum();
        if bad > 0 {
            let cannot = format!("{} cannot be read", ui::count(bad, "sector"));
            let said = match self.damaged().len() as u64 {
                0 => "no file or directory that is known is damaged".into(),
                1 => "1 file or directory is damaged".into(),
                number => format!("{number} files or directories are damaged"),
            };
            writeln!(out, "{}: {cannot}; {said}", device.name)?;
        } else if sectors.is_empty() {
            writeln!(
                out,
                "{}: all that is pending or lost can be read",
                device.name
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(sector: u64, count: u64, at: u64) -> Piece {
        Piece {
            sector,
            count,
            state: State::Pending,
            at: at * SECTOR,
        }
    }

    #[test]
    fn parts_of_pieces_are_whole_sectors() {
        let it = piece(100, 8, 20);
        assert_eq!(it.within(&(0..u64::MAX)), Some(it.clone()));
        let bytes = 22 * SECTOR + 1..24 * SECTOR;
        assert_eq!(it.within(&bytes), Some(piece(102, 2, 22)));
        for bytes in [0..20 * SECTOR, 28 * SECTOR..99 * SECTOR, 0..0, 9..9] {
            assert_eq!(it.within(&bytes), None, "{bytes:?}");
        }
        let range = |from: u64, to: u64| from * SECTOR..to * SECTOR;
        let rest = |ranges| outside(std::slice::from_ref(&it), ranges);
        assert_eq!(rest(vec![]), std::slice::from_ref(&it));
        assert_eq!(rest(vec![range(0, 99)]), []);
        assert_eq!(
            rest(vec![
                range(25, 26),
                range(21, 23),
                range(22, 24),
                range(0, 1)
            ]),
            [piece(100, 1, 20), piece(104, 1, 24), piece(106, 2, 26)]
        );
    }

    #[test]
    fn names_are_shown_as_they_are_or_escaped() {
        let path = |bytes: &[u8]| shown(Path::new(OsStr::from_bytes(bytes)));
        assert_eq!(path("/a b/ä".as_bytes()), "/a b/ä");
        assert_eq!(path(b"/a\nb\x1b[2J\xff"), "/a\\nb\\u{1b}[2J\\xff");
        assert_eq!(path("/\u{202e}gpj".as_bytes()), "/\\u{202e}gpj");
    }

    fn place() -> Place {
        Place {
            device: "/dev/mapper/r".into(),
            filesystem: Some("ext4".into()),
            mountpoint: Some("/mnt".into()),
        }
    }

    #[test]
    fn the_last_block_belongs_to_a_file_and_what_is_behind_it_does_not() {
        let place = Rc::new(place());
        let mut names = Names::new(4096);
        *names.of(12) = Name {
            paths: vec!["/mnt/a".into()],
            size: 5000,
            ..Name::default()
        };
        let of = |names: &Names, inode: u64, offset: u64, part: Part| {
            let owner = Owner {
                inode,
                offset: Some(offset),
                part,
            };
            Hit::of(&place, &piece(0, 1, 0), Class::Of(owner), names)
        };
        let kind = |offset: u64, part: Part| of(&names, 12, offset, part).kind;
        assert_eq!(kind(0, Part::Data), Kind::File);
        assert_eq!(kind(8191, Part::Data), Kind::File);
        assert_eq!(kind(8192, Part::Data), Kind::Unused);
        assert_eq!(kind(0, Part::Unwritten), Kind::Unused);
        assert_eq!(kind(0, Part::Attributes), Kind::Metadata);
        let text = |names: &Names, inode: u64| of(names, inode, 512, Part::Data).whose();
        assert_eq!(text(&names, 12), "/mnt/a, byte 512");
        assert!(text(&names, 13).contains("inode 13, which has no name"));
        assert_eq!(of(&names, 13, 0, Part::Data).kind, Kind::Metadata);
        names.is_whole = false;
        assert_eq!(of(&names, 13, 0, Part::Data).kind, Kind::Unknown);
        assert!(text(&names, 13).ends_with(NOT_WHOLE));
        names.is_whole = true;
        names.of(12).is_directory = true;
        let hit = of(&names, 12, 0, Part::Data);
        let said = (hit.kind, hit.whose());
        assert_eq!(said, (Kind::Directory, "directory /mnt/a".into()));
    }

    #[test]
    fn what_can_be_read_is_not_damaged() {
        let mut report = Report::default();
        let mut names = Names::new(4096);
        for (inode, path) in [(12, "/mnt/a"), (13, "/mnt/b"), (14, "/mnt/c")] {
            *names.of(inode) = Name {
                paths: vec![path.into()],
                size: 9000,
                ..Name::default()
            };
        }
        let part = |at: u64, state: State, inode: u64| {
            let owner = Owner {
                inode,
                offset: Some(0),
                part: Part::Data,
            };
            let piece = Piece {
                state,
                ..piece(at, 1, at)
            };
            (piece, Class::Of(owner))
        };
        let found = vec![
            part(0, State::Healthy, 12),
            part(8, State::Relocated, 13),
            part(16, State::Lost, 14),
        ];
        report.add(&place(), found, &names);
        let of = |paths: BTreeSet<&Path>| paths.into_iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(of(report.damaged()), [PathBuf::from("/mnt/c")]);
        let all = ["/mnt/a", "/mnt/b", "/mnt/c"].map(PathBuf::from);
        assert_eq!(of(report.paths()), all);
    }

    #[test]
    fn what_goes_on_is_one_line() {
        let mut report = Report::default();
        let place = place();
        let names = Names::new(4096);
        let free = || Class::Known(Kind::Free, "free space");
        let at = |offset: u64| {
            Class::Of(Owner {
                inode: 12,
                offset: Some(offset),
                part: Part::Data,
            })
        };
        let found = vec![
            (piece(20, 8, 20), free()),
            (piece(8, 8, 8), at(4096)),
            (piece(0, 8, 0), at(0)),
            (piece(16, 4, 16), at(0)),
            (piece(28, 1, 28), free()),
        ];
        report.add(&place, found, &names);
        report.settle();
        let hits = report.hits.iter().map(|hit| (hit.sector, hit.count));
        assert_eq!(hits.collect::<Vec<_>>(), [(0, 16), (16, 4), (20, 9)]);
        let free = "9 sectors: ext4 on /dev/mapper/r: free space";
        assert_eq!(report.lines()[2], free);
    }
}
