// SPDX-License-Identifier: GPL-2.0-only
//! A reference to a snapshot: the only file of ours in an image directory.
//!
//! It is called `inventory.img`, as the file that every CRIU reads first: a CRIU that is
//! run on the directory refuses it, a stock dump into the directory replaces it, and
//! engines that look for a checkpoint find one. It owns nothing. A new one lies beside its
//! place until its snapshot is committed; an older one, until the dump is over.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use serde::{Deserialize, Serialize};

use super::id::SnapshotId;
use super::label::{Label, machine};
use super::name::Name;
use crate::text;

/// Its name: CRIU's inventory.
const FILE: &CStr = c"inventory.img";
/// Version of the format that is written, and the only one that is read.
const VERSION: u32 = 1;
/// More than a reference has.
const MAX_BYTES: u64 = 16 << 10;
const NOTE: &str = "The memory of these tasks is not in this directory, but in the snapshot that is \
     named here. Plain CRIU cannot restore it: use `vascriu restore -D DIR`, or CRIU through \
     vascriu (`vascriu enable`).";

/// A reference cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not as it was written.
    #[error("inventory.img is a reference to a snapshot, but damaged")]
    Damaged(#[source] serde_json::Error),
    /// It is of another version.
    #[error("inventory.img is a reference of version {0}; this vascriu reads version {VERSION}")]
    Version(u32),
    /// It cannot be read or written.
    #[error("{0} inventory.img failed")]
    Io(&'static str, #[source] io::Error),
}

/// What is said of a snapshot in an image directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// [`VERSION`].
    vascriu: u32,
    /// For who opens the file.
    note: String,
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The name that it was dumped under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    /// The machine that it was dumped on.
    pub machine: String,
    /// When, in seconds since the epoch.
    pub created: u64,
    /// [`super::manifest::digest`] of its `vas.json`.
    pub manifest_sha256: String,
    /// What is restored by it is a copy, even if the tasks could come back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub clone: bool,
}

/// As people are told of it: which snapshot, of which machine, from when.
impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "snapshot {}", self.snapshot)?;
        if let Some(name) = &self.name {
            write!(f, " (`{name}`)")?;
        }
        let time = text::time(self.created);
        write!(f, ", dumped on {} at {time}", self.machine)
    }
}

fn failed(call: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |e| Error::Io(call, e)
}

/// Its name while it is beside its place.
fn beside(id: SnapshotId) -> CString {
    CString::new(format!(".inventory.img.{id}")).unwrap_or_default()
}

fn open_at(dir: BorrowedFd<'_>, name: &CStr, flags: i32) -> io::Result<File> {
    let flags = flags | libc::O_CLOEXEC | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let fd = unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags, 0o600) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

fn rename_at(dir: BorrowedFd<'_>, from: &CStr, to: &CStr, flags: u32) -> io::Result<()> {
    let dir = dir.as_raw_fd();
    // SAFETY: both names are NUL-terminated strings that outlive the call.
    let done = unsafe { libc::renameat2(dir, from.as_ptr(), dir, to.as_ptr(), flags) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn unlink_at(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    match unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Reference {
    /// Refers to the snapshot with this label and this digest of its `vas.json`.
    #[must_use]
    pub fn new(snapshot: SnapshotId, label: &Label, manifest_sha256: String) -> Self {
        Self {
            vascriu: VERSION,
            note: NOTE.into(),
            snapshot,
            name: label.name.clone(),
            machine: machine(),
            created: label.created,
            manifest_sha256,
            clone: false,
        }
    }

    /// One whose restores are copies.
    #[must_use]
    pub fn for_copies(self) -> Self {
        Self {
            clone: true,
            ..self
        }
    }

    /// Writes it into a directory.
    ///
    /// # Errors
    /// The file system's.
    pub fn put(&self, dir: BorrowedFd<'_>) -> Result<(), Error> {
        self.prepare(dir)?;
        Self::place(dir, self.snapshot)
    }

    /// The reference in an image directory; none where there is no inventory, or one of
    /// CRIU's own.
    ///
    /// # Errors
    /// It is one of ours, but unusable.
    pub fn load_at(dir: BorrowedFd<'_>) -> Result<Option<Self>, Error> {
        Self::load(dir, FILE)
    }

    fn load(dir: BorrowedFd<'_>, name: &CStr) -> Result<Option<Self>, Error> {
        let file = match open_at(dir, name, libc::O_RDONLY) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(failed("opening"))?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES)
            .read_to_end(&mut bytes)
            .map_err(failed("reading"))?;
        Self::parse(&bytes)
    }

    /// The reference with this text; none where it is an image of CRIU's own.
    ///
    /// # Errors
    /// It is one of ours, but unusable.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, Error> {
        #[derive(Deserialize)]
        struct Versioned {
            vascriu: u32,
        }
        // CRIU's begins with its magic number.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Ok(None);
        }
        let Versioned { vascriu } = serde_json::from_slice(bytes).map_err(Error::Damaged)?;
        if vascriu != VERSION {
            return Err(Error::Version(vascriu));
        }
        serde_json::from_slice(bytes)
            .map(Some)
            .map_err(Error::Damaged)
    }

    /// Writes it beside its place.
    ///
    /// # Errors
    /// The file system's: then nothing of it is there.
    pub fn prepare(&self, dir: BorrowedFd<'_>) -> Result<(), Error> {
        let mut text = serde_json::to_vec_pretty(self).map_err(Error::Damaged)?;
        text.push(b'\n');
        let name = beside(self.snapshot);
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        let mut file = open_at(dir, &name, flags).map_err(failed("creating"))?;
        file.write_all(&text).map_err(|e| {
            let _ = unlink_at(dir, &name);
            Error::Io("writing", e)
        })
    }

    /// Gives what was prepared its place; what was there is beside it then.
    ///
    /// # Errors
    /// The file system's: then it is where it was.
    pub fn place(dir: BorrowedFd<'_>, id: SnapshotId) -> Result<(), Error> {
        let name = beside(id);
        match rename_at(dir, &name, FILE, libc::RENAME_NOREPLACE) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                rename_at(dir, &name, FILE, libc::RENAME_EXCHANGE)
            }
            done => done,
        }
        .map_err(failed("replacing"))
    }

    /// The snapshot is there, and stays: its reference gets its place, if a killed CRIU has
    /// not given it that, and what was there goes.
    pub fn keep(dir: BorrowedFd<'_>, id: SnapshotId) {
        let name = beside(id);
        if matches!(Self::load(dir, &name), Ok(Some(r)) if r.snapshot == id) {
            let _ = Self::place(dir, id);
        }
        let _ = unlink_at(dir, &name);
    }

    /// The dump was taken back: the directory is again as it was.
    pub fn take_back(dir: BorrowedFd<'_>, id: SnapshotId) {
        let placed = Self::load_at(dir);
        if matches!(placed, Ok(Some(r)) if r.snapshot == id)
            && rename_at(dir, &beside(id), FILE, 0).is_err()
        {
            let _ = unlink_at(dir, FILE);
        }
        let _ = unlink_at(dir, &beside(id));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;

    use proptest::prelude::*;

    use super::super::label::Origin;
    use super::*;

    fn reference() -> Reference {
        let label = Label::new("web".parse().ok(), Origin::process());
        Reference::new(SnapshotId::random(), &label, "0".repeat(64))
    }

    fn dir() -> (tempfile::TempDir, File) {
        let dir = tempfile::tempdir().expect("temp dir");
        let fd = File::open(dir.path()).expect("open");
        (dir, fd)
    }

    fn files(dir: &tempfile::TempDir) -> usize {
        dir.path().read_dir().expect("dir").count()
    }

    fn put(fd: &File, reference: &Reference) {
        reference.put(fd.as_fd()).expect("placed");
    }

    #[test]
    fn a_reference_is_there_from_its_placing_on_and_is_all_there_is() {
        let (dir, fd) = dir();
        let new = reference();
        new.prepare(fd.as_fd()).expect("prepared");
        assert!(Reference::load_at(fd.as_fd()).expect("none").is_none());
        Reference::place(fd.as_fd(), new.snapshot).expect("placed");
        assert_eq!(
            Reference::load_at(fd.as_fd()).expect("one"),
            Some(new.clone())
        );
        Reference::keep(fd.as_fd(), new.snapshot);
        assert_eq!(files(&dir), 1);
        assert!(
            fs::read_to_string(dir.path().join("inventory.img"))
                .expect("text")
                .contains(NOTE)
        );
    }

    #[test]
    fn a_second_dump_replaces_the_first_reference() {
        let (dir, fd) = dir();
        let (old, new) = (reference(), reference());
        for r in [&old, &new] {
            put(&fd, r);
            Reference::keep(fd.as_fd(), r.snapshot);
        }
        assert_eq!(Reference::load_at(fd.as_fd()).expect("one"), Some(new));
        assert_eq!(files(&dir), 1);
    }

    #[test]
    fn what_was_there_comes_back_when_a_dump_is_taken_back() {
        let (dir, fd) = dir();
        let stock = b"\x16\x31\x31\x58 stock";
        fs::write(dir.path().join("inventory.img"), stock).expect("write");
        let new = reference();
        put(&fd, &new);
        Reference::take_back(fd.as_fd(), new.snapshot);
        assert_eq!(
            fs::read(dir.path().join("inventory.img")).expect("read"),
            stock
        );
        assert_eq!(files(&dir), 1);
    }

    #[test]
    fn taking_back_what_was_never_placed_touches_nothing_else() {
        let (dir, fd) = dir();
        let (old, new) = (reference(), reference());
        put(&fd, &old);
        new.prepare(fd.as_fd()).expect("prepared");
        Reference::take_back(fd.as_fd(), new.snapshot);
        assert_eq!(
            Reference::load_at(fd.as_fd()).expect("one"),
            Some(old.clone())
        );
        Reference::take_back(fd.as_fd(), old.snapshot);
        assert_eq!(files(&dir), 0);
    }

    #[test]
    fn what_a_killed_criu_has_not_placed_is_placed() {
        let (dir, fd) = dir();
        let (old, new) = (reference(), reference());
        put(&fd, &old);
        new.prepare(fd.as_fd()).expect("prepared");
        Reference::keep(fd.as_fd(), new.snapshot);
        assert_eq!(Reference::load_at(fd.as_fd()).expect("one"), Some(new));
        assert_eq!(files(&dir), 1);
    }

    #[test]
    fn images_of_criu_are_no_reference() {
        let (dir, fd) = dir();
        fs::write(dir.path().join("inventory.img"), b"\x16\x31\x31\x58{").expect("write");
        assert!(Reference::load_at(fd.as_fd()).expect("none").is_none());
    }

    #[test]
    fn another_version_is_named_in_the_error() {
        let read = Reference::parse(br#"{"vascriu":7}"#);
        assert!(matches!(read, Err(Error::Version(7))));
    }

    #[test]
    fn a_link_is_not_followed() {
        let (dir, fd) = dir();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("inventory.img")).expect("link");
        assert!(Reference::load_at(fd.as_fd()).is_err());
    }

    proptest! {
        #[test]
        fn what_is_cut_is_damaged_and_never_a_panic(cut in 1usize..300) {
            let whole = serde_json::to_vec(&reference()).expect("json");
            let cut = cut.min(whole.len() - 1);
            prop_assert!(Reference::parse(&whole[..cut]).is_err());
        }
    }
}
