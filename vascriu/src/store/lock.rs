//! Who works on a snapshot: a lock for each name, which CRIU inherits. It goes with its
//! snapshot.

use std::fs::{self, File, TryLockError};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::{Error, Store, at};
use crate::name::Name;

/// How to hold a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// With others that only read: restores.
    Shared,
    /// Alone: dump, rm.
    Alone,
}

/// A snapshot held against others.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code, reason = "held, not used")] File);

fn is_same(meta: &fs::Metadata, file: &File) -> bool {
    let ino_of = |m: fs::Metadata| (m.dev(), m.ino());
    file.metadata().map(ino_of).ok() == Some((meta.dev(), meta.ino()))
}

/// CRIU holds it too, should we be killed.
fn inherited(path: &Path, file: File) -> Result<Lock, Error> {
    fcntl(file.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))
        .map_err(|e| at("locking", path)(e.into()))?;
    Ok(Lock(file))
}

impl Store {
    /// Holds the snapshot `name`, whether there is one or not.
    ///
    /// # Errors
    /// [`Error::Busy`] where somebody else does.
    pub fn lock(&self, name: &Name, hold: Hold) -> Result<Lock, Error> {
        self.locked(name, |file| {
            let attempt = || match hold {
                Hold::Shared => file.try_lock_shared(),
                Hold::Alone => file.try_lock(),
            };
            let mut locked = attempt();
            for _ in 0..10 {
                // A listing looks, and lets go at once.
                if !matches!(locked, Err(TryLockError::WouldBlock)) {
                    break;
                }
                sleep(Duration::from_millis(5));
                locked = attempt();
            }
            locked
        })
    }

    /// Holds the snapshot `name` alone, as soon as nobody else does.
    ///
    /// # Errors
    /// The file system's.
    pub fn lock_in_turn(&self, name: &Name) -> Result<Lock, Error> {
        self.locked(name, |file| file.lock().map_err(TryLockError::Error))
    }

    /// Lets go of a name that was held alone. Without a snapshot of that name, its lock
    /// file goes, too.
    ///
    /// # Errors
    /// The file system's.
    pub fn leave(&self, name: &Name, lock: Lock) -> Result<(), Error> {
        if !self.has(name) {
            let path = self.lock_path(name);
            fs::remove_file(&path).map_err(at("removing", &path))?;
        }
        drop(lock);
        Ok(())
    }

    fn locked(
        &self,
        name: &Name,
        lock: impl Fn(&File) -> Result<(), TryLockError>,
    ) -> Result<Lock, Error> {
        loop {
            let (path, file) = self.lock_file(name)?;
            lock(&file).map_err(|e| match e {
                TryLockError::WouldBlock => Error::Busy(name.clone()),
                TryLockError::Error(e) => at("locking", &path)(e),
            })?;
            // Whoever held it may have removed it with the snapshot.
            if path.metadata().is_ok_and(|m| is_same(&m, &file)) {
                return inherited(&path, file);
            }
        }
    }

    fn lock_path(&self, name: &Name) -> PathBuf {
        self.root.join(".locks").join(name.as_str())
    }

    fn lock_file(&self, name: &Name) -> Result<(PathBuf, File), Error> {
        let path = self.lock_path(name);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(at("opening", &path))?;
        Ok((path, file))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{name, store};
    use super::*;

    #[test]
    fn one_holds_alone_or_many_share() {
        let (_dir, store) = store();
        let (a, b) = (name("a"), name("b"));
        let alone = store.lock(&a, Hold::Alone).expect("free");
        assert!(matches!(store.lock(&a, Hold::Shared), Err(Error::Busy(_))));
        let _other = store.lock(&b, Hold::Alone).expect("another name is free");
        drop(alone);
        let _one = store.lock(&a, Hold::Shared).expect("free");
        let _two = store.lock(&a, Hold::Shared).expect("shared");
        assert!(matches!(store.lock(&a, Hold::Alone), Err(Error::Busy(_))));
    }

    #[test]
    fn a_lock_that_went_with_its_snapshot_is_no_lock() {
        let (_dir, store) = store();
        let a = name("a");
        let removing = store.lock(&a, Hold::Alone).expect("free");
        let waiting = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| store.lock_in_turn(&a));
            sleep(Duration::from_millis(50));
            store.leave(&a, removing).expect("left");
            waiting.join().expect("no panic").expect("in turn")
        });
        // It holds what others see.
        assert!(matches!(store.lock(&a, Hold::Shared), Err(Error::Busy(_))));
        drop(waiting);
        let free = store.lock(&a, Hold::Alone).expect("free");
        store.leave(&a, free).expect("left");
        assert!(!store.lock_path(&a).exists());
    }

    #[test]
    fn the_lock_of_a_snapshot_stays() {
        let (_dir, store) = store();
        let a = name("a");
        let lock = store.lock(&a, Hold::Alone).expect("free");
        fs::create_dir(store.path(&a)).expect("mkdir");
        store.leave(&a, lock).expect("left");
        assert!(store.lock_path(&a).exists());
    }
}
