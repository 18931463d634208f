// SPDX-License-Identifier: GPL-2.0-only
//! Where one run of CRIU works: its log, its statistics, and what it mounts. Each has a
//! directory of its own below `/run/vascriu`, which is locked for as long as vascriu or CRIU
//! uses it; those that nobody uses any more are swept.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MntFlags, umount2};

/// The directory of all of them.
const ROOT: &str = "/run/vascriu";
const PREFIX: &str = "work-";
/// Where CRIU mounts cgroups in its working directory for a restore.
const CGROUPS: &str = ".criu.cgyard.";

/// There is no place to work.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a directory below {ROOT}")]
pub struct Error(#[source] io::Error);

/// The directory of all of them.
#[must_use]
pub fn root() -> &'static Path {
    Path::new(ROOT)
}

/// Makes it, for root alone.
///
/// # Errors
/// The file system's.
pub fn make_root() -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(ROOT)
}

/// A directory to work in; it goes with its owner.
#[derive(Debug)]
pub struct Work {
    path: PathBuf,
    /// CRIU inherits it, should we be killed.
    lock: File,
}

/// The directory at `path`, held; none where others hold it, or it is gone.
fn hold(path: &Path) -> io::Result<Option<File>> {
    let dir = File::open(path)?;
    if dir.try_lock().is_err() {
        return Ok(None);
    }
    let (held, there) = (dir.metadata()?, path.symlink_metadata()?);
    let is_there = (held.dev(), held.ino()) == (there.dev(), there.ino());
    Ok(is_there.then_some(dir))
}

impl Work {
    /// A new one; sweeps what others have left.
    ///
    /// # Errors
    /// The file system's.
    pub fn new() -> Result<Self, Error> {
        make_root().map_err(Error)?;
        sweep();
        Self::below(root()).map_err(Error)
    }

    fn below(root: &Path) -> io::Result<Self> {
        loop {
            let path = nix::unistd::mkdtemp(&root.join(format!("{PREFIX}XXXXXX")))?;
            // Swept before it was held?
            if let Ok(Some(lock)) = hold(&path) {
                fcntl(lock.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
                return Ok(Self { path, lock });
            }
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Work {
    /// The directory; whoever has this descriptor holds it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = remove(&self.path);
    }
}

/// Removes those that nobody uses any more.
pub fn sweep() {
    sweep_below(root());
}

fn sweep_below(root: &Path) {
    let entries = root.read_dir().into_iter().flatten().flatten();
    for entry in entries {
        let is_ours = entry
            .file_name()
            .to_str()
            .is_some_and(|n| n.starts_with(PREFIX));
        if is_ours && let Ok(Some(_held)) = hold(&entry.path()) {
            let _ = remove(&entry.path());
        }
    }
}

/// Where something is mounted below `dir`, by `/proc/self/mountinfo`: the innermost first.
fn mounts_below(mountinfo: &str, dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = mountinfo
        .lines()
        .filter_map(|l| l.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|m| m.starts_with(dir))
        .collect();
    found.reverse();
    found
}

/// Removes what a killed CRIU leaves where it worked: the cgroups that it had mounted.
pub fn clear(dir: &Path) {
    for entry in dir.read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|n| n.starts_with(CGROUPS)) {
            let _ = remove(&entry.path());
        }
    }
}

/// Removes a directory. What a killed CRIU has mounted there (cgroups, when it restored
/// tasks) is unmounted first, and where that fails nothing is removed: it is others'.
fn remove(dir: &Path) -> io::Result<()> {
    for mount in mounts_below(&fs::read_to_string("/proc/self/mountinfo")?, dir) {
        umount2(&mount, MntFlags::MNT_DETACH)?;
    }
    fs::remove_dir_all(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_holds_is_swept_and_nothing_else() {
        let dir = tempfile::tempdir().expect("temp dir");
        let used = Work::below(dir.path()).expect("work");
        let stale = dir.path().join("work-abc");
        for d in [&stale, &dir.path().join("other")] {
            fs::create_dir(d).expect("mkdir");
        }
        fs::write(stale.join("restore.log"), "x").expect("write");
        sweep_below(dir.path());
        assert!(used.path().exists() && !stale.exists() && dir.path().join("other").exists());
        let path = used.path().to_owned();
        drop(used);
        assert!(!path.exists());
    }

    #[test]
    fn mounts_below_a_directory_are_found_innermost_first() {
        let info = "1 2 0:3 / /run/vascriu/work-a/y rw - cgroup2 x rw\n\
                    2 2 0:3 / /run/vascriu/work-a/y/z rw - cgroup2 x rw\n\
                    3 2 0:3 / /run/vascriu/work-ab rw - tmpfs x rw\n";
        let found = mounts_below(info, Path::new("/run/vascriu/work-a"));
        let found: Vec<_> = found.iter().filter_map(|p| p.to_str()).collect();
        assert_eq!(found, ["/run/vascriu/work-a/y/z", "/run/vascriu/work-a/y"]);
    }
}
