// SPDX-License-Identifier: GPL-2.0-only
//! The cache of built things, `${XDG_CACHE_HOME:-~/.cache}/mvas`.
//!
//! An entry is the directory `<kind>/<key>/`. It is made under a temporary name
//! in `<kind>/`, synced, and renamed: what has its final name is whole. A lock
//! per kind makes a second builder wait, then find the entry of the first.

use std::ffi::OsString;
use std::fs::TryLockError;
use std::io;
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::symlink;
use fs_err::{self as fs, File};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::key::Key;

/// Prefix of the temporary name of an entry that is being made.
pub(crate) const BUILDING: &str = ".building-";

/// A file operation on the cache that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither `XDG_CACHE_HOME` nor `HOME` is set.
    #[error("no place for the cache: set XDG_CACHE_HOME or HOME")]
    NoHome,
    /// A file operation failed: which, and on what, it says itself.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The cache.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// An exclusive lock, released when it is dropped and all processes that were started
/// meanwhile have ended: what a killed builder leaves running keeps the next one waiting.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its lock")] File);

/// Tells that somebody else builds it: for [`Cache::lock`].
pub(crate) fn waiting(what: &str) {
    eprintln!("  waiting for another build of the {what} …");
}

impl Cache {
    /// The cache of this user: `$XDG_CACHE_HOME/mvas`, else `~/.cache/mvas`.
    ///
    /// # Errors
    /// When neither variable is set.
    pub fn of_user() -> Result<Self, Error> {
        let set = |name| std::env::var_os(name).filter(|v: &OsString| !v.is_empty());
        let base = set("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| set("HOME").map(|home| Path::new(&home).join(".cache")))
            .ok_or(Error::NoHome)?;
        Ok(Self::at(&base.join("mvas")))
    }

    /// The cache in a given folder.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
        }
    }

    /// The folder of the cache.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A folder of the cache, made if it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn dir(&self, name: &str) -> Result<PathBuf, Error> {
        let dir = self.root.join(name);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// Where the entry is or would be.
    #[must_use]
    pub fn entry(&self, kind: &str, key: &Key) -> PathBuf {
        self.root.join(kind).join(key.to_string())
    }

    /// The entry, if it is in the cache.
    #[must_use]
    pub fn find(&self, kind: &str, key: &Key) -> Option<PathBuf> {
        Some(self.entry(kind, key)).filter(|path| path.is_dir())
    }

    /// Waits for the lock `name`, telling `waiting` if it is held by another builder.
    ///
    /// # Errors
    /// When the lock file cannot be made or locked.
    pub fn lock(&self, name: &str, waiting: impl FnOnce()) -> Result<Lock, Error> {
        let path = self.dir("locks")?.join(name);
        let file = File::create(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting();
                file.lock()?;
            }
            Err(TryLockError::Error(e)) => return Err(e.into()),
        }
        Ok(Lock(for_children(file)?))
    }

    /// Takes the lock `name`, if nobody has it.
    ///
    /// # Errors
    /// When the lock file cannot be made or locked.
    pub fn try_lock(&self, name: &str) -> Result<Option<Lock>, Error> {
        let file = File::create(self.dir("locks")?.join(name))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(for_children(file)?))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e.into()),
        }
    }

    /// Finds the entry, or makes it with `build`, which fills the empty folder it
    /// is given. The caller holds the lock of the kind.
    ///
    /// # Errors
    /// What `build` returns, or when the cache cannot be written.
    pub fn find_or_build<E: From<Error>>(
        &self,
        kind: &str,
        key: &Key,
        build: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        match self.find(kind, key) {
            Some(found) => Ok(found),
            None => self.make(kind, &key.to_string(), build),
        }
    }

    /// Makes the entry `name` of a kind, which is not there, with `build`, which fills the empty
    /// folder it is given. The caller holds a lock under which only this entry is made.
    ///
    /// # Errors
    /// What `build` returns, or when the cache cannot be written.
    pub fn make<E: From<Error>>(
        &self,
        kind: &str,
        name: &str,
        build: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        let parent = self.dir(kind)?;
        let temporary = parent.join(format!("{BUILDING}{name}"));
        remove(&temporary)?;
        fs::create_dir(&temporary).map_err(Error::Io)?;
        if let Err(e) = build(&temporary) {
            remove(&temporary)?;
            return Err(e);
        }
        // The data must be on the disk before the name says that it is whole.
        sync_file_system(&temporary).map_err(Error::Io)?;
        let entry = parent.join(name);
        fs::rename(&temporary, &entry).map_err(Error::Io)?;
        Ok(entry)
    }

    /// Makes `current/<name>` point to `target`, atomically.
    ///
    /// # Errors
    /// When the symbolic link cannot be made.
    pub fn set_current(&self, name: &str, target: &Path) -> Result<(), Error> {
        let dir = self.dir("current")?;
        let link = dir.join(name);
        if fs::read_link(&link).is_ok_and(|old| old == target) {
            return Ok(());
        }
        let temporary = dir.join(format!(".{name}.{}", std::process::id()));
        remove(&temporary)?;
        symlink(target, &temporary)?;
        Ok(fs::rename(&temporary, &link)?)
    }

    /// All whole entries and all left-overs of interrupted builds, of all kinds.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub fn entries(&self, kinds: &[&str]) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        for kind in kinds {
            let dir = self.root.join(kind);
            let listing = match fs::read_dir(&dir) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                listing => listing?,
            };
            for entry in listing {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let whole = Key::is_key(&name);
                if whole || name.starts_with(BUILDING) {
                    entries.push(Entry {
                        kind: (*kind).to_string(),
                        path: entry.path(),
                        whole,
                    });
                }
            }
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(entries)
    }

    /// The entries that `current/` points into.
    ///
    /// # Errors
    /// When the cache cannot be read.
    pub fn in_use(&self) -> Result<Vec<PathBuf>, Error> {
        let dir = self.dir("current")?;
        let mut used = Vec::new();
        for link in fs::read_dir(&dir)? {
            let link = link?.path();
            if let Ok(target) = fs::read_link(&link)
                && let Some(entry) = target.parent()
            {
                used.push(entry.to_path_buf());
            }
        }
        Ok(used)
    }
}

/// Has the processes that are started from now on hold the lock of a file, too.
fn for_children(file: File) -> io::Result<File> {
    fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(file)
}

/// An entry found in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its kind.
    pub kind: String,
    /// Its folder.
    pub path: PathBuf,
    /// Whether it is whole, or what an interrupted build left.
    pub whole: bool,
}

/// Removes a file or folder; fine if it is not there.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove(path: &Path) -> Result<(), Error> {
    let result = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => Ok(result?),
    }
}

/// What a file or folder takes on the disk, bytes.
pub(crate) fn disk_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = fs::symlink_metadata(path) else {
        return 0;
    };
    let below = fs::read_dir(path).into_iter().flatten().flatten();
    meta.blocks() * 512 + below.map(|e| disk_bytes(&e.path())).sum::<u64>()
}

/// Writes everything below `dir` to the disk: its files one by one, as a whole
/// `sync` would wait for the writes of others.
fn sync_file_system(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let meta = fs::symlink_metadata(&path)?;
        if meta.is_dir() {
            sync_file_system(&path)?;
        } else if meta.is_file() {
            File::open(&path)?.sync_all()?;
        }
    }
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Inputs;

    fn cache() -> (tempfile::TempDir, Cache, Key) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(&dir.path().join("mvas"));
        (dir, cache, Inputs::new("test").key())
    }

    fn build(content: &'static str) -> impl Fn(&Path) -> Result<(), Error> {
        move |dir| Ok(fs::write(dir.join("f"), content)?)
    }

    #[test]
    fn what_was_built_is_found_and_not_built_again() {
        let (_dir, cache, key) = cache();
        assert_eq!(cache.find("k", &key), None);
        let entry = cache.find_or_build("k", &key, build("1")).unwrap();
        let again = cache
            .find_or_build("k", &key, |_| -> Result<(), Error> {
                panic!("built twice")
            })
            .unwrap();
        assert_eq!(entry, again);
        assert_eq!(fs::read_to_string(entry.join("f")).unwrap(), "1");
    }

    #[test]
    fn a_failed_build_leaves_nothing() {
        let (_dir, cache, key) = cache();
        let failed = cache.find_or_build("k", &key, |dir| {
            build("half")(dir)?;
            Err(Error::NoHome)
        });
        assert!(failed.is_err());
        assert_eq!(cache.find("k", &key), None);
        assert_eq!(cache.entries(&["k"]).unwrap(), []);
    }

    #[test]
    fn an_interrupted_build_is_not_found_and_is_cleaned_by_the_next() {
        let (_dir, cache, key) = cache();
        let left = cache.dir("k").unwrap().join(format!("{BUILDING}{key}"));
        fs::create_dir(&left).unwrap();
        fs::write(left.join("half"), "").unwrap();
        assert_eq!(cache.find("k", &key), None);
        assert!(!cache.entries(&["k"]).unwrap()[0].whole);
        let entry = cache.find_or_build("k", &key, build("2")).unwrap();
        assert!(!left.exists());
        assert!(!entry.join("half").exists());
    }

    #[test]
    fn a_second_builder_waits_for_the_first() {
        let (_dir, cache, _) = cache();
        let first = cache.lock("kernel", || panic!("nobody holds it")).unwrap();
        let (told, was_told) = std::sync::mpsc::channel();
        std::thread::scope(|s| {
            let waiter = s.spawn(|| cache.lock("kernel", || told.send(()).unwrap()).unwrap());
            was_told.recv().unwrap();
            assert!(!waiter.is_finished());
            drop(first);
            waiter.join().unwrap();
        });
    }

    #[test]
    fn a_builder_waits_for_what_a_dead_one_left_running() {
        let (dir, cache, _) = cache();
        let lock = cache.lock("kernel", || panic!("nobody holds it")).unwrap();
        let ended = dir.path().join("ended");
        let mut left = std::process::Command::new("sh")
            .args(["-c", "sleep 0.3; : > \"$0\""])
            .arg(&ended)
            .spawn()
            .unwrap();
        drop(lock);
        let mut waited = false;
        let _lock = cache.lock("kernel", || waited = true).unwrap();
        assert!(waited && ended.exists());
        left.wait().unwrap();
    }

    #[test]
    fn current_is_replaced_and_protects_its_entry() {
        let (_dir, cache, key) = cache();
        let entry = cache.find_or_build("k", &key, build("1")).unwrap();
        cache.set_current("f", Path::new("/old/f")).unwrap();
        cache.set_current("f", &entry.join("f")).unwrap();
        assert_eq!(
            fs::read_to_string(cache.root().join("current/f")).unwrap(),
            "1"
        );
        assert_eq!(cache.in_use().unwrap(), [entry]);
    }

    #[test]
    fn an_unwritable_place_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let error = Cache::at(&dir.path().join("file/mvas"))
            .dir("k")
            .unwrap_err();
        assert!(error.to_string().contains("file/mvas/k"), "{error}");
    }
}
