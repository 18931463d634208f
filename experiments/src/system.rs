//! The systems that are compared, each with one dump and one restore.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::vas::Keep;
use crate::{criu, vas};

/// A system that snapshots a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// Stock CRIU with its images on a disk file system.
    CriuDisk,
    /// Stock CRIU with its images on tmpfs.
    CriuTmpfs,
    /// Ours, the snapshot in the guest's memory only.
    Vascriu,
    /// Ours: the dump drains to the snapshot store in the background, and what is
    /// restored is cold.
    VascriuStore,
}

impl std::fmt::Display for System {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::CriuDisk => "criu-disk",
            Self::CriuTmpfs => "criu-tmpfs",
            Self::Vascriu => "vascriu",
            Self::VascriuStore => "vascriu-store",
        })
    }
}

/// What a dump took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dump {
    /// From the command's start to its end.
    pub wall: Duration,
    /// CPU time of the command.
    pub cpu: Duration,
    /// While the process was frozen.
    pub frozen: Duration,
    /// The memory step alone.
    pub memory: Duration,
    /// Bytes of the image files.
    pub image_bytes: u64,
}

/// What a restore took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restore {
    /// From the command's start to its end, when the process runs again.
    pub wall: Duration,
    /// The memory step alone.
    pub memory: Duration,
}

/// One snapshot to be: what makes it and where it goes.
#[derive(Debug, Clone)]
pub enum Snapshot {
    /// Of stock CRIU, into a folder.
    Stock(PathBuf),
    /// Of vascriu, under a name, in the guest.
    Vas(String),
    /// Of vascriu, under a name, in the snapshot store.
    Stored(String),
}

impl Snapshot {
    /// Dumps the tree of `pid` and kills it.
    ///
    /// # Errors
    /// When the system fails.
    pub fn dump(&self, pid: i32) -> Result<Dump> {
        match self {
            Self::Stock(dir) => criu::dump(pid, dir),
            Self::Vas(name) => vas::dump(pid, name, Keep::GuestOnly),
            Self::Stored(name) => vas::dump(pid, name, Keep::Background),
        }
    }

    /// Waits until it is in the snapshot store; whether it goes there at all.
    ///
    /// # Errors
    /// When it does not get there.
    pub fn wait_until_stored(&self) -> Result<bool> {
        match self {
            Self::Stock(_) | Self::Vas(_) => Ok(false),
            Self::Stored(name) => vas::wait_until_stored(name).map(|()| true),
        }
    }

    /// Makes it cold, if it is in the snapshot store.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn evict(&self) -> Result<()> {
        match self {
            Self::Stock(_) | Self::Vas(_) => Ok(()),
            Self::Stored(name) => vas::evict(name),
        }
    }

    /// Restores the tree.
    ///
    /// # Errors
    /// When the system fails.
    pub fn restore(&self) -> Result<Restore> {
        match self {
            Self::Stock(dir) => criu::restore(dir),
            Self::Vas(name) | Self::Stored(name) => vas::restore(name),
        }
    }

    /// Deletes the snapshot.
    ///
    /// # Errors
    /// When it cannot be deleted.
    pub fn delete(&self) -> Result<()> {
        match self {
            Self::Stock(dir) => {
                fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))
            }
            Self::Vas(name) | Self::Stored(name) => vas::delete(name),
        }
    }
}

/// Milliseconds as the results have them.
#[must_use]
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
