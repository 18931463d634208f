// SPDX-License-Identifier: GPL-2.0-only
//! What can go wrong with the store.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use thiserror::Error;

use super::extent::{BLOCK, Extent, ExtentRun};
use super::id::SnapshotName;
use super::manifest::ManifestError;
use super::meta::MetaError;
use crate::ram::RamError;

/// Why the store did not do what was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Text that cannot name a snapshot.
    #[error(
        "{0:?} cannot name a snapshot: use 1 to 127 letters, digits, '.', '_', ':', '@', '+' or '-', beginning with a letter or digit"
    )]
    Name(String),
    /// Text that cannot name a VM.
    #[error("{0:?} cannot name a VM in the store: use 1 to 119 bytes without NUL")]
    VmName(String),
    /// Text that cannot be a label.
    #[error("a snapshot's label has at most 1023 bytes of text without control characters")]
    Label,
    /// It has another label than the one expected.
    #[error("the label of snapshot `{0}` was changed meanwhile: read it once more")]
    Relabelled(SnapshotName),
    /// Text that is no run ID.
    #[error("{0:?} is not the ID of a VM run: those have 16 hexadecimal digits")]
    RunId(String),
    /// Blocks that cannot exist.
    #[error("{} blocks from {} of {} cannot exist", .0.count, .0.first, .0.run)]
    Extents(ExtentRun),
    /// The path is something else, a symbolic link for example.
    #[error("{} is not a directory (symbolic links are not followed): name another store", .0.display())]
    NotADirectory(PathBuf),
    /// Somebody else could change the store.
    #[error("{} belongs to user {owner}, not to you: it may be a trap; name another store", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner's user ID.
        owner: u32,
    },
    /// Somebody else may read or change the store.
    #[error("others may enter {}: it holds memory of guests; chmod 700 it", .0.display())]
    Open(PathBuf),
    /// Pages would not be DRAM.
    #[error(
        "{} is not on a tmpfs, and snapshots belong in memory: name a directory in one (/dev/shm), or force it for tests",
        .0.display()
    )]
    NotTmpfs(PathBuf),
    /// The directory is used for something else.
    #[error("{} holds {found:?}, which is not of a store: name an empty or a new directory", path.display())]
    NotAStore {
        /// The directory.
        path: PathBuf,
        /// What does not belong there.
        found: String,
    },
    /// Made by another version of this program.
    #[error("{} is a store of another format ({found:?}): use the mvasvm that made it", path.display())]
    Version {
        /// The directory.
        path: PathBuf,
        /// What its file `version` says.
        found: String,
    },
    /// The name is taken.
    #[error("there is a snapshot {0} already: remove it or use another name")]
    Exists(SnapshotName),
    /// The name is being taken.
    #[error("a living VM is making a snapshot {0}: wait for it or use another name")]
    Drafted(SnapshotName),
    /// There is no such snapshot.
    #[error("there is no snapshot {0}")]
    NotFound(SnapshotName),
    /// A snapshot that cannot be used.
    #[error("the snapshot {name} is broken and cannot be used: remove it")]
    Broken {
        /// Its name.
        name: SnapshotName,
        /// What is wrong.
        source: ManifestError,
    },
    /// What the store may hold is reached.
    #[error(
        "no space: the store has {used} of at most {limit} bytes, and {wanted} more are needed; remove snapshots or raise --store-limit"
    )]
    Limit {
        /// Bytes that snapshots and drafts take.
        used: u64,
        /// Bytes that they may.
        limit: u64,
        /// Bytes that were asked for.
        wanted: u64,
    },
    /// The rest of the file system is promised to VMs.
    #[error(
        "no space: {} MiB are needed, and the file system of {} has {} MiB free, of which {} are promised to running VMs and their snapshots; remove snapshots (mvasvm snapshots rm), end VMs (mvasvm ls), or make it larger (mount -o remount,size=…)",
        wanted.div_ceil(1 << 20), path.display(), free >> 20, promised.div_ceil(1 << 20)
    )]
    Promised {
        /// The store.
        path: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes of them that running VMs may yet take.
        promised: u64,
        /// Bytes that were asked for.
        wanted: u64,
    },
    /// Somebody is in the middle of a change of the store, and does not go on.
    #[error(
        "{} was locked for {} s: a process that uses it is stopped or hangs (`fuser` of the file tells which); let it go on, or end it",
        path.join("lock").display(),
        patience.as_secs()
    )]
    Locked {
        /// The store.
        path: PathBuf,
        /// How long was waited.
        patience: Duration,
    },
    /// The file system is full.
    #[error("no space: the file system of {} is full; remove snapshots or enlarge it", .0.display())]
    Full(PathBuf),
    /// Metadata that does not fit its snapshot, or no metadata.
    #[error("the snapshot's metadata is wrong")]
    BadMeta(#[source] MetaError),
    /// An extent that this VM does not use, so that it may be gone.
    #[error("block {} of {} is not in use by this VM", .0.block, .0.run)]
    NotInUse(Extent),
    /// Not whole blocks, or beyond the end.
    #[error("{0} is not a range of whole blocks ({BLOCK} bytes) of the RAM file")]
    Range(crate::FileRange),
    /// A RAM file cannot be made.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// A system call failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// For `map_err`: says what failed on which file; a full file system has its own error.
pub(super) fn failed<E: Into<io::Error>>(
    what: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> StoreError {
    let path = path.to_owned();
    move |error| {
        let source = error.into();
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC | Errno::EDQUOT) => StoreError::Full(path),
            _ => StoreError::Io { what, path, source },
        }
    }
}
