// SPDX-License-Identifier: GPL-2.0

//! An output file that appears whole or not at all, and one that is replaced as a whole.

use anyhow::{Context as _, Result};
use rustix::fs::{linkat, open, AtFlags, Mode, OFlags, CWD};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::{BufWriter, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// What `write` puts into a file.
type Writer = BufWriter<File>;

/// Permissions of a new file, without those that the umask takes.
const MODE: u32 = 0o666;

fn directory_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    parent.unwrap_or(Path::new("."))
}

/// Makes the names in a directory durable. Not every file system can do that.
fn sync(directory: &Path) {
    let _ = File::open(directory).and_then(|directory| directory.sync_all());
}

/// Makes the new file `path`, durable when it returns, of what `write` writes. If that fails, or is interrupted, there is
/// no such file; one that was there before is an error, and stays.
pub(crate) fn create(path: &Path, write: impl FnOnce(&mut Writer) -> Result<()>) -> Result<()> {
    let directory = directory_of(path);
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    match open(directory, flags, Mode::from(MODE)) {
        Ok(file) => nameless(file.into(), path, write)?,
        // vfat and NFS have no files without a name.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => beside(directory, path, write)?,
        Err(e) => return Err(e.into()),
    }
    sync(directory);
    Ok(())
}

/// Writes it as a file that has no name before it is whole.
fn nameless(file: File, path: &Path, write: impl FnOnce(&mut Writer) -> Result<()>) -> Result<()> {
    let file = fill(file, write)?;
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, name, CWD, path, AtFlags::SYMLINK_FOLLOW)?;
    Ok(())
}

/// Writes it under another name. That file stays if the process is killed meanwhile.
fn beside(
    directory: &Path,
    path: &Path,
    write: impl FnOnce(&mut Writer) -> Result<()>,
) -> Result<()> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".dmremap-");
    builder.permissions(Permissions::from_mode(MODE));
    let file = builder.tempfile_in(directory)?;
    fill(file.as_file().try_clone()?, write)?;
    file.persist_noclobber(path)?;
    Ok(())
}

/// Puts `text` in the place of the file `path`, for all to read: whoever opens it finds the old text or the new one, whole, also
/// if several write it at once. `durable`: when this returns, it is the new one after a power cut, too, where the file system can
/// do that.
pub(crate) fn replace(path: &Path, text: &str, durable: bool) -> Result<()> {
    let name = path.file_name().context("not the name of a file")?;
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    let directory = directory_of(path);
    // It is gone if this fails, but stays if the process is killed meanwhile.
    let mut file = tempfile::Builder::new()
        .prefix(&prefix)
        .tempfile_in(directory)?;
    file.as_file()
        .set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(text.as_bytes())?;
    if durable {
        file.as_file().sync_all()?;
    }
    file.persist(path).map_err(|failed| failed.error)?;
    if durable {
        sync(directory);
    }
    Ok(())
}

fn fill(file: File, write: impl FnOnce(&mut Writer) -> Result<()>) -> Result<File> {
    let mut out = BufWriter::new(file);
    write(&mut out)?;
    out.flush()?;
    let file = out.into_inner()?;
    file.sync_all()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;
    use std::fs;

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path();
        let path = directory.join("file");
        let is_empty = || fs::read_dir(directory).unwrap().next().is_none();
        let spoilt = |out: &mut Writer| {
            out.write_all(&[1; 100_000])?;
            bail!("no space left")
        };
        let whole = |out: &mut Writer| {
            // Nobody sees it before it is whole.
            assert!(!path.exists());
            Ok(out.write_all(b"whole")?)
        };
        let mine = |out: &mut Writer| Ok(out.write_all(b"mine")?);

        assert!(create(&path, spoilt).is_err());
        assert!(beside(directory, &path, spoilt).is_err());
        assert!(is_empty());
        create(&path, whole).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert!(create(&path, mine).is_err());
        assert!(beside(directory, &path, mine).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        let mode = |path| fs::metadata(path).unwrap().permissions().mode();
        let before = mode(&path);
        fs::remove_file(&path).unwrap();
        assert!(is_empty());
        beside(directory, &path, whole).unwrap();
        assert_eq!(
            (fs::read(&path).unwrap(), mode(&path)),
            (b"whole".into(), before)
        );
        assert_eq!(fs::read_dir(directory).unwrap().count(), 1);
    }

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("file");
        let names = || fs::read_dir(place.path()).unwrap().count();
        for text in ["first", "second", ""] {
            replace(&path, text, true).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            assert_eq!(names(), 1);
        }
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        // Several at once.
        let texts = ["a", "b", "c"].map(|letter| letter.repeat(100_000));
        std::thread::scope(|scope| {
            for text in &texts {
                scope.spawn(|| (0..100).for_each(|_| replace(&path, text, false).unwrap()));
            }
            for _ in 0..100 {
                let found = fs::read_to_string(&path).unwrap();
                assert!(found.is_empty() || texts.contains(&found));
            }
        });
        assert_eq!(names(), 1);
        // Where there is a directory, it cannot be.
        fs::create_dir(place.path().join("directory")).unwrap();
        replace(&place.path().join("directory"), "x", false).unwrap_err();
        replace(Path::new("/"), "x", false).unwrap_err();
        replace(&place.path().join("none/file"), "x", false).unwrap_err();
        assert_eq!(names(), 2);
    }
}
