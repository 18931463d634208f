// SPDX-License-Identifier: GPL-2.0-only
//! The store's directory: where things are, and whether it may be used.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::libc::{EACCES, ELOOP, ENOTDIR, O_DIRECTORY, O_NOFOLLOW};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::geteuid;

use super::StoreError;
use super::error::failed;
use super::id::{RunId, SnapshotName};

const VERSION: &str = "mvas-store 2\n";
pub(super) const FOLDERS: [&str; 6] = ["ram", "uses", "held", "snapshots", "drafts", "labels"];

/// A directory that has been checked. Nobody but us can change what is in it.
#[derive(Debug)]
pub(super) struct StoreDir(PathBuf);

impl StoreDir {
    /// Makes the directory if it is missing, and checks that it can be a store.
    pub fn open(dir: &Path, any_fs: bool) -> Result<Self, StoreError> {
        // Without a slash at its end, which would follow a link.
        let dir = &dir.components().collect::<PathBuf>();
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(failed("make", dir)(e)),
            _ => {}
        }
        check_ours(dir, any_fs)?;
        let path = dir.canonicalize().map_err(failed("open", dir))?;
        let this = Self(path);
        if read_version(&this.version())?.is_none() {
            this.check_empty()?;
        }
        Ok(this)
    }

    /// Makes what a new store has, or checks that this program knows the store's format.
    /// Only under the store's lock, which is `lock`.
    pub fn prepare(&self, lock: &File) -> Result<(), StoreError> {
        let version = self.version();
        let found = read_version(&version)?;
        if let Some(found) = found.as_deref().filter(|found| *found != VERSION) {
            return Err(StoreError::Version {
                path: self.0.clone(),
                found: found.trim_end().to_owned(),
            });
        }
        for folder in FOLDERS {
            let path = self.0.join(folder);
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                    return Err(failed("make", &path)(e));
                }
                _ => {}
            }
        }
        if found.is_some() {
            return Ok(());
        }
        // So that a full file system refuses no change of it.
        let generation = lock.write_all_at(&[0; 8], 0);
        generation.map_err(failed("write", &self.lock()))?;
        // Last and at once: a store that has it is whole.
        let new = self.0.join("version.new");
        fs::write(&new, VERSION).map_err(failed("write", &new))?;
        fs::rename(&new, &version).map_err(failed("write", &version))
    }

    /// Nothing but what a store that is being made has.
    fn check_empty(&self) -> Result<(), StoreError> {
        for name in self.list("")? {
            let known = FOLDERS.contains(&name.as_str());
            if !known && !["lock", "version.new", "version"].contains(&name.as_str()) {
                return Err(StoreError::NotAStore {
                    path: self.0.clone(),
                    found: name,
                });
            }
        }
        Ok(())
    }

    /// Names in a folder of the store ("": in the store itself), sorted. What is no UTF-8
    /// has replacement characters.
    pub fn list(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let path = self.0.join(folder);
        let mut names = Vec::new();
        for entry in fs::read_dir(&path).map_err(failed("list", &path))? {
            let entry = entry.map_err(failed("list", &path))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.sort_unstable();
        Ok(names)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    pub fn version(&self) -> PathBuf {
        self.0.join("version")
    }

    pub fn ram(&self, run: RunId) -> PathBuf {
        self.0.join(format!("ram/{run}.ram"))
    }

    pub fn uses(&self, run: RunId) -> PathBuf {
        self.0.join(format!("uses/{run}"))
    }

    pub fn held(&self, run: RunId) -> PathBuf {
        self.0.join(format!("held/{run}"))
    }

    pub fn draft(&self, name: &SnapshotName) -> PathBuf {
        self.0.join(format!("drafts/{name}"))
    }

    pub fn snapshots(&self) -> PathBuf {
        self.0.join("snapshots")
    }

    pub fn manifest(&self, name: &SnapshotName) -> PathBuf {
        self.0.join(format!("snapshots/{name}.snap"))
    }

    pub fn labels(&self) -> PathBuf {
        self.0.join("labels")
    }

    pub fn label(&self, name: &SnapshotName) -> PathBuf {
        self.0.join(format!("labels/{name}"))
    }
}

/// The text of the file `version`, if there is one.
fn read_version(path: &Path) -> Result<Option<String>, StoreError> {
    match fs::read(path) {
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("read", path)(e)),
    }
}

/// A directory of this user, closed to others, in memory.
fn check_ours(path: &Path, any_fs: bool) -> Result<(), StoreError> {
    let foreign = |owner: u32| StoreError::Foreign {
        path: path.to_owned(),
        owner,
    };
    let dir = OpenOptions::new()
        .read(true)
        .custom_flags(O_DIRECTORY | O_NOFOLLOW)
        .open(path);
    let dir = dir.map_err(|e| match e.raw_os_error() {
        Some(ENOTDIR | ELOOP) => StoreError::NotADirectory(path.to_owned()),
        // Another user's closed one: whose it is can be told without opening it.
        Some(EACCES) => match fs::symlink_metadata(path) {
            Ok(meta) if meta.uid() != geteuid().as_raw() => foreign(meta.uid()),
            _ => failed("open", path)(e),
        },
        _ => failed("open", path)(e),
    })?;
    let meta = dir.metadata().map_err(failed("stat", path))?;
    if meta.uid() != geteuid().as_raw() {
        return Err(foreign(meta.uid()));
    }
    if meta.permissions().mode() & 0o077 != 0 {
        return Err(StoreError::Open(path.to_owned()));
    }
    let fs = fstatfs(&dir).map_err(failed("stat", path))?;
    if fs.filesystem_type() != TMPFS_MAGIC && !any_fs {
        return Err(StoreError::NotTmpfs(path.to_owned()));
    }
    Ok(())
}
