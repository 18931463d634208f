//! Where snapshots are: `/run/vascriu/NAME`, a directory of CRIU's images and
//! `vas.json`, or a link to one elsewhere (`-D`, or a dump by plain CRIU).
//!
//! `.new-NAME` is one being made, `.locks/NAME` its lock. The lock is inherited
//! by CRIU, so it is held for as long as either of the two works on the snapshot.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::device::{self, Session};
use crate::manifest;
use crate::name::Name;

mod lock;
mod vases;

pub use lock::{Hold, Lock};
pub use vases::{delete_vases, evict, is_the_only_copy, notice_loss, stat_vases};

/// Where snapshots are kept by default: a tmpfs, which dies with the VASes.
pub const ROOT: &str = "/run/vascriu";
const NEW: &str = ".new-";
const RUN: &str = ".run-";

/// What can go wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such snapshot.
    #[error("no snapshot `{0}`; `vascriu ls` shows what there is")]
    Unknown(Name),
    /// The name is taken.
    #[error("snapshot `{0}` exists already: choose another name, or `vascriu rm {0}`")]
    Exists(Name),
    /// Another vascriu works on it.
    #[error("snapshot `{0}` is in use: it is being dumped, restored or removed right now")]
    Busy(Name),
    /// The directory for a new snapshot holds something.
    #[error("{0} is not empty: give a new or an empty directory")]
    NotEmpty(PathBuf),
    /// The store is root's.
    #[error("no right to use {root}: run as root")]
    NoRights {
        /// The store's directory.
        root: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file system refuses.
    #[error("{call} {path} failed")]
    Io {
        /// What was tried.
        call: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// `/dev/vas` refuses.
    #[error(transparent)]
    Device(#[from] device::Error),
    /// Its `vas.json` is unusable.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
}

fn at<'a>(call: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + use<'a> {
    move |source| Error::Io {
        call,
        path: path.into(),
        source,
    }
}

/// All snapshots of this machine.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store, and makes its directory where there is none.
    ///
    /// # Errors
    /// No rights.
    pub fn open() -> Result<Self, Error> {
        Self::at(std::env::var_os("VASCRIU_DIR").map_or_else(|| ROOT.into(), PathBuf::from))
    }

    fn at(root: PathBuf) -> Result<Self, Error> {
        let locks = root.join(".locks");
        // What is in there is root's: a lock held by others would stop everything.
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&locks);
        made.map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => Error::NoRights {
                root: root.clone(),
                source,
            },
            _ => at("creating", &locks)(source),
        })?;
        let root = root.canonicalize().map_err(at("opening", &root))?;
        Ok(Self { root })
    }

    /// The store's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the snapshot is, or would be.
    #[must_use]
    pub fn path(&self, name: &Name) -> PathBuf {
        self.root.join(name.as_str())
    }

    /// Where it is while it is made.
    #[must_use]
    pub fn new_path(&self, name: &Name) -> PathBuf {
        self.root.join(format!("{NEW}{name}"))
    }

    /// Whether the name is taken.
    #[must_use]
    pub fn has(&self, name: &Name) -> bool {
        self.path(name).symlink_metadata().is_ok()
    }

    /// Names of all snapshots, in order.
    ///
    /// # Errors
    /// The file system's.
    pub fn names(&self) -> Result<Vec<Name>, Error> {
        self.entries("")
    }

    fn entries(&self, prefix: &str) -> Result<Vec<Name>, Error> {
        let dir = self.root.read_dir().map_err(at("reading", &self.root))?;
        let mut names: Vec<Name> = dir
            .flatten()
            .filter_map(|e| e.file_name().to_str()?.strip_prefix(prefix)?.parse().ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// Where the log and the like of this process's CRIU go.
    #[must_use]
    pub fn working_place(&self) -> PathBuf {
        self.root.join(format!("{RUN}{}", std::process::id()))
    }

    /// The working places that there are, by the PIDs of their owners.
    fn working_places(&self) -> Result<Vec<(u32, PathBuf)>, Error> {
        let dir = self.root.read_dir().map_err(at("reading", &self.root))?;
        let owner = |e: &fs::DirEntry| e.file_name().to_str()?.strip_prefix(RUN)?.parse().ok();
        Ok(dir
            .flatten()
            .filter_map(|e| Some((owner(&e)?, e.path())))
            .collect())
    }

    /// The directory of the snapshot's images.
    ///
    /// # Errors
    /// [`Error::Unknown`], or the directory that it was in is gone.
    pub fn images(&self, name: &Name) -> Result<PathBuf, Error> {
        if !self.has(name) {
            return Err(Error::Unknown(name.clone()));
        }
        let path = self.path(name);
        path.canonicalize().map_err(at("opening", &path))
    }

    /// Gives the finished snapshot its name.
    ///
    /// # Errors
    /// The file system's.
    pub fn publish(&self, name: &Name, images: &Path) -> Result<(), Error> {
        let path = self.path(name);
        if images == self.new_path(name) {
            fs::rename(images, &path).map_err(at("creating", &path))
        } else {
            std::os::unix::fs::symlink(images, &path).map_err(at("creating", &path))
        }
    }

    /// Finishes or removes what killed dumps left: a dump whose VASes are all
    /// committed is whole. If its tasks all go on, it was not ended; then it is
    /// taken back.
    ///
    /// # Errors
    /// The file system's, or `/dev/vas` is not usable.
    pub fn recover(&self) -> Result<(), Error> {
        for (pid, path) in self.working_places()? {
            if !Path::new("/proc").join(pid.to_string()).exists() {
                self.discard(&path)?;
            }
        }
        for name in self.entries(NEW)? {
            let Ok(_lock) = self.lock(&name, Hold::Alone) else {
                continue;
            };
            let path = self.new_path(&name);
            if is_the_only_copy(&path) && !self.has(&name) {
                self.publish(&name, &path)?;
            } else {
                delete_vases(&name, true)?;
                self.discard(&path)?;
            }
        }
        Ok(())
    }

    /// Removes a snapshot: its VASes, its images, and it from the snapshot store, if
    /// it is there or was on its way.
    ///
    /// # Errors
    /// [`Error::Unknown`]; [`Error::Busy`] or [`device::Error::Busy`] where it is
    /// in use, and then nothing was removed.
    pub fn remove(&self, name: &Name, force: bool) -> Result<(), Error> {
        let lock = self.lock(name, Hold::Alone)?;
        let removed = self.remove_held(name, force);
        let left = self.leave(name, lock);
        removed.and(left)
    }

    fn remove_held(&self, name: &Name, force: bool) -> Result<(), Error> {
        if !self.has(name) {
            return match Session::open()?.unstore(name.as_str(), None) {
                Err(device::Error::NoStore | device::Error::NotStored(_)) => {
                    Err(Error::Unknown(name.clone()))
                }
                done => Ok(done?),
            };
        }
        let stored = match delete_vases(name, force) {
            Err(Error::Device(device::Error::NoDevice)) => None,
            deleted => deleted?,
        };
        self.remove_place(name)?;
        if stored.is_some() {
            match Session::open()?.unstore(name.as_str(), stored) {
                // Another microVM has removed it, and perhaps made another.
                Err(device::Error::NotStored(_)) => {}
                done => done?,
            }
        }
        Ok(())
    }

    fn remove_place(&self, name: &Name) -> Result<(), Error> {
        let path = self.path(name);
        if let Ok(elsewhere) = path.read_link() {
            self.discard(&elsewhere)?;
            fs::remove_file(&path).map_err(at("removing", &path))
        } else {
            self.discard(&path)
        }
    }

    /// Removes a directory of images: all of it where it is in the store; else
    /// what CRIU and we have put there, and the directory if nothing is left.
    ///
    /// # Errors
    /// The file system's.
    pub fn discard(&self, images: &Path) -> Result<(), Error> {
        let removed = if images.parent() == Some(&self.root) {
            fs::remove_dir_all(images)
        } else {
            remove_images(images)
        };
        match removed {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at("removing", images)(e)),
            _ => Ok(()),
        }
    }
}

/// Whether a file of that name belongs to a snapshot's images.
#[must_use]
pub fn is_image(name: &str) -> bool {
    name.ends_with(".img") || name.starts_with("stats-") || name == manifest::FILE
}

/// Removes CRIU's images, our file and their logs, then the directory if nothing
/// else is in it.
fn remove_images(dir: &Path) -> io::Result<()> {
    for entry in dir.read_dir()? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if is_image(&name) || name.ends_with(".log") {
            fs::remove_file(entry.path())?;
        }
    }
    match fs::remove_dir(dir) {
        // Others' files, or a mount point.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTEMPTY | libc::EBUSY)) => Ok(()),
        done => done,
    }
}

/// Makes the directory for a new snapshot's images.
///
/// # Errors
/// [`Error::NotEmpty`], or the file system's.
pub fn empty_dir(path: &Path) -> Result<PathBuf, Error> {
    fs::create_dir_all(path).map_err(at("creating", path))?;
    let path = path.canonicalize().map_err(at("opening", path))?;
    match path.read_dir().map_err(at("reading", &path))?.next() {
        None => Ok(path),
        Some(_) => Err(Error::NotEmpty(path)),
    }
}

/// Bytes of all files in a directory.
#[must_use]
pub fn dir_bytes(dir: &Path) -> u64 {
    let files = dir.read_dir().into_iter().flatten().flatten();
    files
        .filter_map(|e| e.metadata().ok())
        .filter(|m| m.is_file())
        .map(|m| m.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().expect("temp dir");
        let store = Store::at(dir.path().join("run")).expect("store");
        (dir, store)
    }

    pub(super) fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }

    #[test]
    fn what_is_being_made_is_not_listed() {
        let (_dir, store) = store();
        fs::create_dir(store.new_path(&name("a"))).expect("mkdir");
        assert_eq!(store.names().expect("list"), []);
        store
            .publish(&name("a"), &store.new_path(&name("a")))
            .expect("publish");
        assert_eq!(store.names().expect("list"), [name("a")]);
    }

    #[test]
    fn the_working_place_of_a_dead_process_is_removed() {
        let (_dir, store) = store();
        let dead = store.root().join(format!("{RUN}{}", i32::MAX));
        for place in [&dead, &store.working_place()] {
            fs::create_dir(place).expect("mkdir");
        }
        store.recover().expect("nothing else to recover");
        assert!(!dead.exists() && store.working_place().exists());
    }

    #[test]
    fn a_snapshot_elsewhere_is_found_by_its_name() {
        let (dir, store) = store();
        let images = empty_dir(&dir.path().join("deep/images")).expect("made");
        store.publish(&name("a"), &images).expect("publish");
        assert_eq!(store.images(&name("a")).expect("found"), images);
        assert!(matches!(store.images(&name("b")), Err(Error::Unknown(_))));
    }

    #[test]
    fn a_directory_in_use_is_not_taken() {
        let dir = tempfile::tempdir().expect("temp dir");
        fs::write(dir.path().join("x"), "mine").expect("write");
        assert!(matches!(empty_dir(dir.path()), Err(Error::NotEmpty(_))));
    }

    #[test]
    fn removing_images_leaves_other_files_alone() {
        let dir = tempfile::tempdir().expect("temp dir");
        for file in ["core-1.img", "stats-dump", "vas.json", "dump.log", "mine"] {
            fs::write(dir.path().join(file), "").expect("write");
        }
        remove_images(dir.path()).expect("removed");
        let left: Vec<_> = dir.path().read_dir().expect("dir").flatten().collect();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].file_name(), "mine");
    }
}
