// SPDX-License-Identifier: GPL-2.0-only
//! `--overlay FILE`: what a guest writes to its root, kept in an ext4 file system.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::note;

/// Size of a new one, bytes; it takes what is written to it.
pub(super) const DEFAULT_SIZE: u64 = 16 << 30;
/// The least that makes sense, bytes.
const MIN_SIZE: u64 = 16 << 20;
/// Where ext4 has its magic number.
const MAGIC_AT: u64 = 1024 + 56;
const MAGIC: [u8; 2] = 0xef53_u16.to_le_bytes();

/// Finds the file, or makes it with this size. What is in it, the guest looks at.
///
/// # Errors
/// It cannot be made, or is something else; it is what it was then.
pub(super) fn find_or_make(path: &Path, size: u64) -> Result<PathBuf> {
    let shown = path.display();
    match path.metadata() {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            make(path, size).with_context(|| format!("cannot make the overlay {shown}"))?;
        }
        Err(e) => return Err(e).with_context(|| format!("cannot use the overlay {shown}")),
        Ok(meta) => {
            ensure!(meta.is_file(), "the overlay {shown} is no file");
            let is_ext4 = has_magic(path).with_context(|| format!("cannot read {shown}"))?;
            ensure!(
                is_ext4,
                "{shown} has no ext4 file system: name another file, or none, and it is made"
            );
        }
    }
    Ok(path.canonicalize()?)
}

fn has_magic(path: &Path) -> Result<bool> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(MAGIC_AT))?;
    let mut magic = Vec::new();
    file.take(2).read_to_end(&mut magic)?;
    Ok(magic == MAGIC)
}

/// Makes it elsewhere first: what has the name is whole.
fn make(path: &Path, size: u64) -> Result<()> {
    ensure!(
        size >= MIN_SIZE,
        "--overlay-size is less than {} MiB",
        MIN_SIZE >> 20
    );
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
    file.as_file().set_len(size.next_multiple_of(4096))?;
    let mut mke2fs = Command::new("mke2fs");
    let places = std::env::var("PATH").unwrap_or_default();
    let made = mke2fs
        // Users other than root do not look for it there.
        .env("PATH", format!("{places}:/usr/sbin:/sbin"))
        .args(["-q", "-t", "ext4", "-m", "0", "-L", "mvas-overlay"])
        .args(["-E", "lazy_itable_init=1,nodiscard"])
        .arg(file.path())
        .output();
    let made = made.context("cannot start mke2fs: install e2fsprogs")?;
    if !made.status.success() {
        let why = String::from_utf8_lossy(&made.stderr);
        bail!("mke2fs failed: {}", why.trim_end());
    }
    file.as_file().sync_all()?;
    file.persist_noclobber(path).map_err(|error| error.error)?;
    note(format!(
        "made the overlay {}, {} MiB at most",
        path.display(),
        size >> 20
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_missing_is_made_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let made = find_or_make(&path, 64 << 20).unwrap();
        assert_eq!(made.metadata().unwrap().len(), 64 << 20);
        assert_eq!(find_or_make(&path, DEFAULT_SIZE).unwrap(), made);
        assert_eq!(made.metadata().unwrap().len(), 64 << 20);
        assert_eq!(dir.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn what_is_none_is_refused_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes");
        std::fs::write(&path, "dear diary").unwrap();
        assert!(find_or_make(&path, DEFAULT_SIZE).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"dear diary");
        assert!(find_or_make(dir.path(), DEFAULT_SIZE).is_err());
        assert!(find_or_make(&dir.path().join("small"), 1 << 20).is_err());
        assert!(find_or_make(&dir.path().join("no/such"), DEFAULT_SIZE).is_err());
        assert_eq!(dir.path().read_dir().unwrap().count(), 1);
    }
}
