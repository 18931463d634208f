// SPDX-License-Identifier: GPL-2.0-only
//! Files and folders as a tar stream with one root entry.
//!
//! The stream may come from a hostile machine: nothing is made outside the destination, no
//! device, and nothing is seen at the destination before all of it is there.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, Builder, EntryType};
use thiserror::Error;

/// Name of the root entry in the stream.
const ROOT: &str = "root";

/// The most bytes that an entry may have besides its content: its names, and where the parts of a
/// sparse file are. The archive's reader keeps them in memory.
const MAX_HEADERS: u64 = 16 << 20;

/// The same of all folders together, which are kept until the end.
const MAX_FOLDERS: u64 = if cfg!(test) { 1 << 20 } else { 256 << 20 };

/// Why files could not be packed or unpacked.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// The source cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The source.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The destination cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The destination.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The destination is a folder, and is not to be mixed with another.
    #[error("{0} exists and is not empty: remove it first, or copy to another name")]
    Exists(PathBuf),
    /// The stream holds what no sender of ours puts in.
    #[error("refused an archive: {0}")]
    Refused(String),
}

/// What an archive may set on the files made from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// All mode bits: the sender has power over this machine anyway.
    Full,
    /// Permissions only; no set-user-id and the like. And its root is no symbolic link.
    PermissionsOnly,
}

/// Bytes of file content below `path`.
///
/// # Errors
/// A file or folder cannot be read.
pub fn measure(path: &Path) -> Result<u64, ArchiveError> {
    fn walk(path: &Path, meta: &fs::Metadata) -> io::Result<u64> {
        if !meta.is_dir() {
            return Ok(if meta.is_file() { meta.len() } else { 0 });
        }
        fs::read_dir(path)?
            .map(|entry| {
                let entry = entry?;
                walk(&entry.path(), &entry.metadata()?)
            })
            .sum()
    }
    fs::metadata(path)
        .and_then(|meta| walk(path, &meta))
        .map_err(|source| ArchiveError::Read {
            path: path.to_owned(),
            source,
        })
}

/// Writes the file or folder `path` as a stream to `out`. A symbolic link is followed where
/// it is `path` itself, kept where it is below.
///
/// # Errors
/// The source cannot be read, or `out` refuses.
pub fn pack(path: &Path, out: impl Write) -> Result<(), ArchiveError> {
    let mut builder = Builder::new(out);
    builder.follow_symlinks(false);
    let add = |builder: &mut Builder<_>| -> io::Result<()> {
        let path = path.canonicalize()?;
        if path.is_dir() {
            builder.append_dir_all(ROOT, &path)?;
        } else {
            builder.append_path_with_name(&path, ROOT)?;
        }
        builder.finish()
    };
    add(&mut builder).map_err(|source| ArchiveError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Makes the file or folder in the stream `from` at `dest`, or as `name` in `dest` where that
/// is a folder. Gives the path that it then has.
///
/// # Errors
/// The stream is broken or refused, or the destination cannot be written; it is then as it
/// was.
pub fn unpack(
    from: impl Read,
    dest: &Path,
    name: &OsStr,
    trust: Trust,
) -> Result<PathBuf, ArchiveError> {
    let target = target(dest, name)?;
    let parent = match target.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(ArchiveError::Exists(target)),
    };
    let write = |source| ArchiveError::Write {
        path: target.clone(),
        source,
    };
    let staging = tempfile::Builder::new()
        .prefix(".mvas-cp-")
        .tempdir_in(parent)
        .map_err(write)?;
    extract(from, staging.path(), trust)?;
    let root = staging.path().join(ROOT);
    let meta =
        fs::symlink_metadata(&root).map_err(|_| ArchiveError::Refused("it is empty".to_owned()))?;
    if meta.is_symlink() && trust == Trust::PermissionsOnly {
        // Whoever opens what was copied would open what a guest chose.
        let to = fs::read_link(&root).map_err(write)?;
        return Err(ArchiveError::Refused(format!(
            "it is a symbolic link to {}: copy what it leads to",
            to.display()
        )));
    }
    if meta.is_file() {
        File::open(&root)
            .and_then(|f| f.sync_all())
            .map_err(write)?;
    }
    match fs::rename(&root, &target) {
        Ok(()) => Ok(target),
        Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Err(ArchiveError::Exists(target)),
        Err(e) => Err(write(e)),
    }
}

fn target(dest: &Path, name: &OsStr) -> Result<PathBuf, ArchiveError> {
    if !dest.is_dir() {
        return Ok(dest.to_owned());
    }
    let mut parts = Path::new(name).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) => Ok(dest.join(name)),
        _ => Err(ArchiveError::Refused(format!(
            "{} cannot be the name of a file",
            name.display()
        ))),
    }
}

fn extract(from: impl Read, staging: &Path, trust: Trust) -> Result<(), ArchiveError> {
    let write = |source| ArchiveError::Write {
        path: staging.to_owned(),
        source,
    };
    let left = Cell::new(MAX_HEADERS);
    let mut archive = Archive::new(Bounded { from, left: &left });
    archive.set_preserve_permissions(trust == Trust::Full);
    archive.set_overwrite(false);
    // A folder's mode may forbid writing into it: folders get theirs last, inner ones first.
    let (mut folders, mut kept) = (Vec::new(), 0);
    for entry in archive.entries().map_err(write)? {
        let headers = MAX_HEADERS - left.replace(u64::MAX);
        if headers == MAX_HEADERS || kept > MAX_FOLDERS {
            let why = "it has too many folders, or a file of too many names or parts".to_owned();
            return Err(ArchiveError::Refused(why));
        }
        let mut entry = entry.map_err(write)?;
        let path = entry.path().map_err(write)?.into_owned();
        let refuse = |why: &str| {
            Err(ArchiveError::Refused(format!(
                "entry {} {why}",
                path.display()
            )))
        };
        if path.components().next() != Some(Component::Normal(OsStr::new(ROOT))) {
            return refuse("is outside of it");
        }
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::GNUSparse | EntryType::Symlink | EntryType::Link => {
                if !entry.unpack_in(staging).map_err(write)? {
                    return refuse("leads outside of it");
                }
            }
            EntryType::Directory => {
                if path.components().any(|part| part == Component::ParentDir) {
                    return refuse("leads outside of it");
                }
                kept += headers;
                folders.push(entry);
            }
            _ => return refuse("is not a file, folder or link"),
        }
        left.set(MAX_HEADERS);
    }
    folders.sort_by_cached_key(|folder| std::cmp::Reverse(folder.path_bytes().into_owned()));
    for mut folder in folders {
        folder.unpack_in(staging).map_err(write)?;
    }
    Ok(())
}

/// Reads no more than is left.
struct Bounded<'a, R> {
    from: R,
    left: &'a Cell<u64>,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left.get()).unwrap_or(usize::MAX);
        if most == 0 {
            return Err(io::Error::other("more than may be read"));
        }
        let most = most.min(out.len());
        let read = self.from.read(&mut out[..most])?;
        self.left.set(self.left.get() - read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use proptest::prelude::*;
    use tar::Header;

    use super::*;

    fn packed(path: &Path) -> Vec<u8> {
        let mut bytes = Vec::new();
        pack(path, &mut bytes).expect("readable source");
        bytes
    }

    fn entry(kind: EntryType, path: &str, link: Option<&str>) -> Vec<u8> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_mode(0o4755);
        // Written by hand: the library refuses to make what an attacker would.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        if let Some(link) = link {
            header.set_link_name(link).expect("short");
        }
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    #[test]
    fn a_folder_arrives_with_modes_links_and_content() {
        let dir = tempfile::tempdir().expect("tmp");
        let source = dir.path().join("source");
        fs::create_dir_all(source.join("sub/deep")).expect("mkdir");
        fs::write(source.join("sub/run"), "echo").expect("write");
        fs::set_permissions(source.join("sub/run"), PermissionsExt::from_mode(0o751))
            .expect("mode");
        symlink("sub/run", source.join("link")).expect("symlink");
        fs::set_permissions(source.join("sub"), PermissionsExt::from_mode(0o555)).expect("mode");
        let dest = dir.path().join("dest");
        let got = unpack(
            packed(&source).as_slice(),
            &dest,
            OsStr::new("x"),
            Trust::Full,
        )
        .expect("own archive");
        assert_eq!(got, dest);
        assert_eq!(fs::read(dest.join("link")).expect("read"), b"echo");
        let mode = |path: &str| {
            let meta = fs::metadata(dest.join(path)).expect("there");
            meta.permissions().mode() & 0o7777
        };
        assert_eq!((mode("sub/run"), mode("sub")), (0o751, 0o555));
        assert!(dest.join("sub/deep").is_dir());
        assert_eq!(
            fs::read_dir(dir.path()).expect("ls").count(),
            2,
            "no staging left"
        );
    }

    #[test]
    fn a_file_replaces_a_file_and_goes_into_a_folder_under_its_name() {
        let dir = tempfile::tempdir().expect("tmp");
        let file = dir.path().join("a");
        fs::write(&file, "new").expect("write");
        let other = dir.path().join("b");
        fs::write(&other, "old").expect("write");
        let bytes = packed(&file);
        unpack(bytes.as_slice(), &other, OsStr::new("a"), Trust::Full).expect("replace");
        assert_eq!(fs::read(&other).expect("read"), b"new");
        let folder = dir.path().join("d");
        fs::create_dir(&folder).expect("mkdir");
        let got = unpack(bytes.as_slice(), &folder, OsStr::new("a"), Trust::Full).expect("into");
        assert_eq!(got, folder.join("a"));
    }

    #[test]
    fn what_a_guest_sends_is_no_link_to_elsewhere() {
        let dir = tempfile::tempdir().expect("tmp");
        let bytes = entry(EntryType::Symlink, "root", Some("/etc/passwd"));
        let dest = dir.path().join("log");
        let result = unpack(
            bytes.as_slice(),
            &dest,
            OsStr::new("log"),
            Trust::PermissionsOnly,
        );
        let error = result.expect_err("refused").to_string();
        assert!(error.contains("a symbolic link to /etc/passwd"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).expect("ls").count(), 0);
        // A person's own is what it is.
        unpack(bytes.as_slice(), &dest, OsStr::new("log"), Trust::Full).expect("made");
        assert!(dest.is_symlink());
    }

    #[test]
    fn a_folder_with_content_is_not_overwritten() {
        let dir = tempfile::tempdir().expect("tmp");
        let source = dir.path().join("source");
        fs::create_dir(&source).expect("mkdir");
        fs::create_dir(dir.path().join("dest")).expect("mkdir");
        fs::create_dir_all(dir.path().join("dest/source/kept")).expect("mkdir");
        let result = unpack(
            packed(&source).as_slice(),
            &dir.path().join("dest"),
            OsStr::new("source"),
            Trust::Full,
        );
        assert!(matches!(result, Err(ArchiveError::Exists(_))));
        assert!(dir.path().join("dest/source/kept").is_dir());
    }

    #[test]
    fn an_archive_cut_short_leaves_nothing() {
        let dir = tempfile::tempdir().expect("tmp");
        let file = dir.path().join("a");
        fs::write(&file, vec![7; 100_000]).expect("write");
        let bytes = packed(&file);
        let dest = dir.path().join("b");
        let result = unpack(&bytes[..50_000], &dest, OsStr::new("a"), Trust::Full);
        assert!(result.is_err());
        assert_eq!(fs::read_dir(dir.path()).expect("ls").count(), 1);
    }

    #[test]
    fn entries_that_lead_outside_are_refused() {
        for (kind, path, link) in [
            (EntryType::Regular, "../evil", None),
            (EntryType::Regular, "root/../../evil", None),
            (EntryType::Directory, "root/../../evil", None),
            (EntryType::Regular, "/evil", None),
            (EntryType::Regular, "evil", None),
            (EntryType::Link, "root", Some("/etc/passwd")),
            (EntryType::Link, "root", Some("../secret")),
            (EntryType::Char, "root", None),
            (EntryType::Block, "root", None),
            (EntryType::Fifo, "root", None),
        ] {
            let dir = tempfile::tempdir().expect("tmp");
            fs::write(dir.path().join("secret"), "s").expect("write");
            let bytes = entry(kind, path, link);
            let dest = dir.path().join("dest");
            let result = unpack(
                bytes.as_slice(),
                &dest,
                OsStr::new("x"),
                Trust::PermissionsOnly,
            );
            assert!(result.is_err(), "{kind:?} {path} was taken");
            let left = fs::read_dir(dir.path()).expect("ls").count();
            assert_eq!(left, 1, "{kind:?} {path} left something");
        }
    }

    #[test]
    fn writing_through_a_link_of_the_archive_is_refused() {
        let dir = tempfile::tempdir().expect("tmp");
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).expect("mkdir");
        let mut bytes = entry(EntryType::Directory, "root", None);
        bytes.extend(entry(EntryType::Symlink, "root/l", outside.to_str()));
        bytes.extend(entry(EntryType::Regular, "root/l/evil", None));
        let dest = dir.path().join("dest");
        let result = unpack(
            bytes.as_slice(),
            &dest,
            OsStr::new("x"),
            Trust::PermissionsOnly,
        );
        assert!(result.is_err());
        assert!(!outside.join("evil").exists());
    }

    #[test]
    fn a_guest_cannot_plant_a_set_user_id_file() {
        let dir = tempfile::tempdir().expect("tmp");
        let bytes = entry(EntryType::Regular, "root", None);
        for (trust, mode) in [(Trust::PermissionsOnly, 0o755), (Trust::Full, 0o4755)] {
            let dest = dir.path().join("f");
            unpack(bytes.as_slice(), &dest, OsStr::new("x"), trust).expect("taken");
            let meta = fs::metadata(&dest).expect("there");
            assert_eq!(meta.permissions().mode() & 0o7777, mode);
        }
    }

    /// What of an endless archive is read before it is refused.
    fn read_of(start: &[u8], again: &[u8]) -> usize {
        struct Endless<'a>(&'a [u8], &'a [u8], usize);
        impl Read for Endless<'_> {
            fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
                if self.0.is_empty() {
                    self.0 = self.1;
                }
                let n = self.0.read(out)?;
                self.2 += n;
                assert!(self.2 < 64 << 20, "all of it is kept");
                Ok(n)
            }
        }
        let dir = tempfile::tempdir().expect("tmp");
        let mut endless = Endless(start, again, 0);
        let dest = dir.path().join("x");
        let result = unpack(&mut endless, &dest, OsStr::new("x"), Trust::PermissionsOnly);
        let error = result.expect_err("endless").to_string();
        assert!(error.contains("too many"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).expect("ls").count(), 0);
        endless.2
    }

    #[test]
    fn what_is_kept_of_an_archive_is_bounded() {
        let mut name = Header::new_gnu();
        name.set_entry_type(EntryType::GNULongName);
        name.set_size(1 << 40);
        name.set_cksum();
        read_of(name.as_bytes(), &[b'a'; 512]);

        let mut sparse = Header::new_gnu();
        sparse.set_entry_type(EntryType::GNUSparse);
        sparse.set_size(1 << 40);
        sparse.as_gnu_mut().expect("GNU").isextended = [1];
        sparse.set_cksum();
        // 21 parts of no length at one place, and more of them to come.
        let mut parts = [b'0'; 512];
        parts[504] = 1;
        read_of(sparse.as_bytes(), &parts);

        let folder = entry(EntryType::Directory, "root", None);
        read_of(&folder, &folder);
    }

    #[test]
    fn a_name_that_is_a_path_is_refused() {
        let dir = tempfile::tempdir().expect("tmp");
        let bytes = entry(EntryType::Regular, "root", None);
        for name in ["..", ".", "a/b", "/", ""] {
            let result = unpack(bytes.as_slice(), dir.path(), OsStr::new(name), Trust::Full);
            assert!(result.is_err(), "{name:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_write_outside(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let dir = tempfile::tempdir().expect("tmp");
            let inner = dir.path().join("inner");
            fs::create_dir(&inner).expect("mkdir");
            let _ = unpack(bytes.as_slice(), &inner.join("x"), OsStr::new("x"), Trust::Full);
            prop_assert_eq!(fs::read_dir(dir.path()).expect("ls").count(), 1);
        }
    }
}
