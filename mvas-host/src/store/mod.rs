// SPDX-License-Identifier: GPL-2.0-only
//! The snapshot store: a directory in host memory that outlives guests and monitors.
//!
//! `docs/STORE.md` says what is in it and who owns a block. Nothing is counted on disk: what
//! a block is needed for is derived, under the store's lock, from the manifests and from
//! what living VM runs say that they use.
//!
//! ```
//! use mvas_host::store::{Store, StoreOptions};
//! let folder = tempfile::tempdir()?;
//! let options = StoreOptions { force: true, ..StoreOptions::default() };
//! let store = Store::open(&folder.path().join("store"), options)?;
//! let run = store.start_run("vm", 64 << 20)?;
//! assert_eq!(run.ram().range().len(), 64 << 20);
//! assert!(store.snapshots()?.is_empty());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod catalog;
mod dir;
mod draft;
mod error;
mod extent;
mod id;
mod label;
mod ledger;
mod manifest;
pub mod meta;
mod report;
mod room;
mod run;
mod sweep;
mod uses;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use nix::unistd::geteuid;

use catalog::Cache;
use dir::StoreDir;
use error::failed;

use crate::locked::lock_within;

pub use draft::{Draft, OpenSnapshot};
pub use error::StoreError;
pub use extent::{BLOCK, Extent, ExtentList, ExtentRun};
pub use id::{RunId, SnapshotName};
pub use label::Label;
pub use manifest::{Head, Manifest, ManifestError};
pub use report::{CheckReport, Kept, Problem, SnapshotEntry, SnapshotFacts, SnapshotState, User};
pub use room::Room;
pub use run::StoreRun;
pub use sweep::{BrokenSnapshot, Freed};

/// Pages of 4 KiB in a block.
pub const PAGES: u64 = BLOCK / 4096;

/// How to use a store.
#[derive(Debug, Clone, Copy)]
pub struct StoreOptions {
    /// The most bytes that snapshots may own together; `None`: what the file system has.
    pub limit: Option<u64>,
    /// Use a file system other than tmpfs, for tests.
    pub force: bool,
    /// How long to wait for somebody else who changes the store. Such a change takes no time to
    /// speak of, but its maker may be stopped in the middle of it.
    pub patience: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            limit: None,
            force: false,
            patience: Duration::from_secs(60),
        }
    }
}

/// An opened store. Cheap to clone; several threads and processes may use one directory.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: StoreDir,
    limit: Option<u64>,
    patience: Duration,
    /// The last wait was in vain: until the lock is to be had again, others are short.
    in_vain: AtomicBool,
    cache: Mutex<Cache>,
    /// Set once, by `open`.
    cleaned: OnceLock<Freed>,
}

impl Store {
    /// Opens the store in `dir`, which is made if it is missing, and cleans up what killed
    /// monitors left.
    ///
    /// # Errors
    /// The directory is not ours alone, not on a tmpfs, or used for something else.
    pub fn open(dir: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        let dir = StoreDir::open(dir, options.force)?;
        let store = Self(Arc::new(Inner {
            dir,
            limit: options.limit,
            patience: options.patience,
            in_vain: AtomicBool::new(false),
            cache: Mutex::default(),
            cleaned: OnceLock::new(),
        }));
        let locked = store.lock()?;
        store.dir().prepare(&locked.lock)?;
        let freed = locked.sweep(false)?;
        drop(locked);
        store.0.cleaned.get_or_init(|| freed);
        Ok(store)
    }

    /// What [`Self::open`] gave back of what killed monitors left.
    pub fn cleaned(&self) -> Freed {
        self.0.cleaned.get().cloned().unwrap_or_default()
    }

    /// The store of this user when none is named: `/dev/shm/mvas-UID`.
    pub fn default_dir() -> PathBuf {
        PathBuf::from(format!("/dev/shm/mvas-{}", geteuid()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.dir.path()
    }

    /// Whether there are clones of it. Each of its runs has one until it ends.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Reads a complete snapshot. Its memory may go when it is removed: who wants to map it
    /// uses [`StoreRun::open`].
    ///
    /// # Errors
    /// There is no such snapshot, or it is broken.
    pub fn load(&self, name: &SnapshotName) -> Result<Manifest, StoreError> {
        self.lock()?.load(name)
    }

    /// What every complete snapshot is, by name; without a look at its metadata.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn heads(&self) -> Result<Vec<Arc<Head>>, StoreError> {
        self.lock()?.heads()
    }

    /// As [`Self::heads`], those that `wanted` takes, each with its label.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn labelled(
        &self,
        mut wanted: impl FnMut(&Head) -> bool,
    ) -> Result<Vec<(Arc<Head>, Label)>, StoreError> {
        let locked = self.lock()?;
        let heads = locked.heads()?.into_iter().filter(|head| wanted(head));
        let labelled = |head: Arc<Head>| Ok((head.clone(), locked.label(&head.name)?));
        heads.map(labelled).collect()
    }

    /// Begins a VM run: makes its RAM file for `mem_bytes` (rounded up to blocks) of guest
    /// memory, sparse and zeroed.
    ///
    /// # Errors
    /// `vm_name` cannot be a name, or the file system refuses.
    pub fn start_run(&self, vm_name: &str, mem_bytes: u64) -> Result<StoreRun, StoreError> {
        StoreRun::start(self, vm_name, mem_bytes)
    }

    fn dir(&self) -> &StoreDir {
        &self.0.dir
    }

    /// Waits until nobody else changes the store, within its patience.
    fn lock(&self) -> Result<Locked<'_>, StoreError> {
        let path = self.dir().lock();
        let file = crate::locked::options()
            .create(true)
            .open(&path)
            .map_err(failed("open", &path))?;
        let Inner {
            patience, in_vain, ..
        } = &*self.0;
        let wait = match in_vain.load(Ordering::Relaxed) {
            true => *patience / 100,
            false => *patience,
        };
        let is_ours = lock_within(&file, wait).map_err(failed("lock", &path))?;
        in_vain.store(!is_ours, Ordering::Relaxed);
        if !is_ours {
            return Err(StoreError::Locked {
                path: self.path().to_owned(),
                patience: *patience,
            });
        }
        Ok(Locked {
            store: self,
            lock: file,
        })
    }
}

/// The store while nobody else changes it. Whatever reads or changes what processes share
/// is a method of this.
struct Locked<'a> {
    store: &'a Store,
    /// It holds the generation of `snapshots/`, 8 bytes.
    lock: std::fs::File,
}

impl Locked<'_> {
    fn dir(&self) -> &StoreDir {
        self.store.dir()
    }

    fn heads(&self) -> Result<Vec<Arc<Head>>, StoreError> {
        let catalog = self.catalog()?;
        let heads = catalog.heads.iter().map(|(_, head)| head.clone());
        let mut heads: Vec<_> = heads.collect();
        heads.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(heads)
    }
}
