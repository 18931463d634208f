// SPDX-License-Identifier: GPL-2.0-only
//! The systems that are compared, each with one dump and one restore.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::subject::DIR;
use crate::vas::Keep;
use crate::{criu, vas};

/// A system that snapshots a process.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// Stock CRIU with its images on a disk file system.
    CriuDisk,
    /// Stock CRIU with its images on tmpfs.
    CriuTmpfs,
    /// Ours, the snapshot in the guest's memory only.
    Vascriu,
    /// The same, with a CRIU that `vascriu serve` has started before.
    VascriuService,
    /// Ours: the dump drains to the snapshot store in the background, and what is
    /// restored is cold.
    VascriuStore,
    /// No snapshot: the program is started anew.
    ColdStart,
    /// `vascriu clone`: all copies by one command.
    VascriuClone,
    /// No snapshot, but the process's `fork`.
    Fork,
    /// Ours, the snapshot both in the guest's memory and in the snapshot store.
    VascriuStored,
    /// Ours, the snapshot in the snapshot store only, and another microVM restores it.
    VascriuOther,
    /// Stock CRIU in steps, each of what changed since the last; images on tmpfs.
    CriuPredump,
    /// Redis's own snapshot, its file on tmpfs.
    Bgsave,
    /// Stock CRIU, whose restore lets the process go on before its memory is there; images on
    /// tmpfs.
    CriuLazy,
    /// No snapshots at all.
    Nothing,
    /// No snapshot: a copy of as much memory.
    Copy,
    /// The store's device alone: page tables change, contents stay.
    Remap,
}

impl std::fmt::Display for System {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::CriuDisk => "criu-disk",
            Self::CriuTmpfs => "criu-tmpfs",
            Self::Vascriu => "vascriu",
            Self::VascriuService => "vascriu-service",
            Self::VascriuStore => "vascriu-store",
            Self::ColdStart => "cold-start",
            Self::VascriuClone => "vascriu-clone",
            Self::Fork => "fork",
            Self::VascriuStored => "vascriu-stored",
            Self::VascriuOther => "vascriu-other",
            Self::CriuPredump => "criu-predump",
            Self::Bgsave => "bgsave",
            Self::CriuLazy => "criu-lazy",
            Self::Nothing => "nothing",
            Self::Copy => "copy",
            Self::Remap => "remap",
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

/// Connections are neither locked nor dumped, and restored closed.
pub(crate) const CLOSED: &str = "--tcp-close";
/// The tree goes on after its dump.
pub(crate) const GOING_ON: [&str; 2] = ["--leave-running", CLOSED];

/// One snapshot to be: what makes it and where it goes.
#[derive(Debug, Clone)]
pub enum Snapshot {
    /// Of stock CRIU, into a folder.
    Stock(PathBuf),
    /// The same, restored lazily.
    Lazy(PathBuf),
    /// Of vascriu, under a name, in the guest.
    Vas(String),
    /// Of vascriu, under a name, in the snapshot store.
    Stored(String),
}

impl Snapshot {
    /// What `system` makes of a process; its name, or its folder below [`DIR`], is `name`.
    ///
    /// # Errors
    /// When that makes none, or needs more than a name.
    pub fn new(system: System, name: &str) -> Result<Self> {
        Ok(match system {
            System::CriuTmpfs => Self::Stock(Path::new(DIR).join(name)),
            System::CriuLazy => Self::Lazy(Path::new(DIR).join(name)),
            System::Vascriu | System::VascriuService | System::VascriuClone => {
                Self::Vas(name.into())
            }
            System::VascriuStore | System::VascriuStored | System::VascriuOther => {
                Self::Stored(name.into())
            }
            _ => bail!("{system} makes no snapshot in the guest"),
        })
    }

    /// Dumps the tree of `pid` and kills it.
    ///
    /// # Errors
    /// When the system fails.
    pub fn dump(&self, pid: i32) -> Result<Dump> {
        match self {
            Self::Stock(dir) | Self::Lazy(dir) => criu::dump(pid, dir),
            Self::Vas(name) => vas::dump(pid, name, Keep::GuestOnly),
            Self::Stored(name) => vas::dump(pid, name, Keep::Background),
        }
    }

    /// Dumps the tree of `pid`, which goes on, with its connections. The snapshot has them
    /// closed.
    ///
    /// # Errors
    /// When the system fails.
    pub fn take(&self, pid: i32) -> Result<Dump> {
        match self {
            Self::Stock(dir) | Self::Lazy(dir) => criu::dump_with(pid, dir, &GOING_ON),
            Self::Vas(name) => vas::dump_with(pid, name, Keep::GuestOnly, &GOING_ON),
            Self::Stored(name) => vas::dump_with(pid, name, Keep::Background, &GOING_ON),
        }
    }

    /// Waits until it is in the snapshot store; whether it goes there at all.
    ///
    /// # Errors
    /// When it does not get there.
    pub fn wait_until_stored(&self) -> Result<bool> {
        match self {
            Self::Stock(_) | Self::Lazy(_) | Self::Vas(_) => Ok(false),
            Self::Stored(name) => vas::wait_until_stored(name).map(|()| true),
        }
    }

    /// Makes it cold, if it is in the snapshot store.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn evict(&self) -> Result<()> {
        match self {
            Self::Stock(_) | Self::Lazy(_) | Self::Vas(_) => Ok(()),
            Self::Stored(name) => vas::evict(name),
        }
    }

    /// Restores the tree, and tells what the memory step took.
    ///
    /// # Errors
    /// When the system fails, or has no such step.
    pub fn restore(&self) -> Result<Restore> {
        match self {
            Self::Stock(dir) => criu::restore(dir),
            Self::Lazy(_) => bail!("a lazy restore has no memory step of its own"),
            Self::Vas(name) | Self::Stored(name) => vas::restore(name),
        }
    }

    /// The command that restores the tree and leaves it running, with nothing that only a
    /// measurement of its steps needs.
    #[must_use]
    pub fn restoring(&self) -> Command {
        match self {
            Self::Stock(dir) => criu::restoring(dir),
            Self::Lazy(dir) => criu::restoring_lazily(dir),
            Self::Vas(name) | Self::Stored(name) => vas::restoring(name),
        }
    }

    /// Deletes the snapshot.
    ///
    /// # Errors
    /// When it cannot be deleted.
    pub fn delete(&self) -> Result<()> {
        match self {
            Self::Stock(dir) | Self::Lazy(dir) => {
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
