// SPDX-License-Identifier: GPL-2.0

//! An output file that appears whole or not at all.

use anyhow::Result;
use rustix::fs::{linkat, open, AtFlags, Mode, OFlags, CWD};
use rustix::io::Errno;
use std::fs::{File, Permissions};
use std::io::{BufWriter, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// What `write` puts into a file.
type Writer = BufWriter<File>;

/// Permissions of a new file, without those that the umask takes.
const MODE: u32 = 0o666;

/// Makes the new file `path`, durable when it returns, of what `write` writes. If that fails, or is interrupted, there is
/// no such file; one that was there before is an error, and stays.
pub(crate) fn create(path: &Path, write: impl FnOnce(&mut Writer) -> Result<()>) -> Result<()> {
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    let directory = parent.unwrap_or(Path::new("."));
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    match open(directory, flags, Mode::from(MODE)) {
        Ok(file) => nameless(file.into(), path, write)?,
        // vfat and NFS have no files without a name.
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => beside(directory, path, write)?,
        Err(e) => return Err(e.into()),
    }
    // So that the name is durable, too. Not every file system can do that.
    let _ = File::open(directory).and_then(|directory| directory.sync_all());
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
}
