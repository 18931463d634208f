// SPDX-License-Identifier: GPL-2.0-only
//! The dump or restore that CRIU is made ready for, whoever asked for it, and what comes
//! after CRIU's end.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::{config, request};
use crate::criu::order::{self, Order};
use crate::criu::report::Channel;
use crate::criu::rescue::{self, Frozen};
use crate::criu::settle::{Outcome, settle};
use crate::criu::version::{self, Criu};
use crate::engine::Engine;
use crate::snapshot::id::{Member, SnapshotId};
use crate::snapshot::images::{self, Images};
use crate::snapshot::reference::{self, Reference};
use crate::snapshot::registry::Registry;
use crate::{device, engine, process, store};

/// Why CRIU is not run. No task was touched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be done.
    #[error(transparent)]
    Refused(#[from] request::Refused),
    /// A configuration is in the way.
    #[error(transparent)]
    Config(#[from] config::Refused),
    /// Nobody is at the other end of the socket whom we can see.
    #[error("the engine is in another PID namespace: its descriptors cannot be opened")]
    NoClient,
    /// A request without a place for images.
    #[error("the request names no directory for images")]
    NoDirectory,
    /// A directory of the request.
    #[error("cannot use {0}")]
    Directory(PathBuf, #[source] io::Error),
    /// The stock CRIU.
    #[error(transparent)]
    Criu(#[from] version::Error),
    /// The kernel.
    #[error(transparent)]
    Device(#[from] device::Error),
    /// The images.
    #[error(transparent)]
    Images(#[from] images::Error),
    /// The reference.
    #[error(transparent)]
    Reference(#[from] reference::Error),
    /// There are no images at all.
    #[error("the directory has no reference to a snapshot")]
    NoReference,
    /// What is referred to is not reachable.
    #[error(
        "{0} is not there: it was removed, or it is in the memory or the snapshot store of another machine"
    )]
    Missing(Box<Reference>),
    /// What is referred to is something else.
    #[error("the reference was altered: {0} is there, but has another `vas.json`")]
    Altered(Box<Reference>),
    /// It does not come from the snapshot store.
    #[error("cannot bring it from the snapshot store")]
    Store(#[from] store::Error),
    /// CRIU cannot be told what to do.
    #[error(transparent)]
    Order(#[from] order::Error),
    /// This process, or the engine's.
    #[error(transparent)]
    Process(#[from] process::Error),
    /// The system.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The system, again.
    #[error(transparent)]
    Errno(#[from] Errno),
}

impl Error {
    /// Whether it can never be done, in contrast to what has gone wrong.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Config(_))
    }
}

/// What to do.
#[derive(Debug)]
pub enum Job {
    /// To dump a tree.
    Dump {
        /// Its root.
        pid: i32,
        /// The process that asks, if it is an engine's.
        client: Option<i32>,
        /// The tasks are there afterwards.
        leaves_tasks: bool,
        /// The directory that gets the reference.
        reference: OwnedFd,
    },
    /// To restore.
    Restore {
        /// The directory with the reference.
        reference: OwnedFd,
    },
}

/// What is ready for CRIU.
#[derive(Debug)]
pub struct Ready {
    /// What the plugin shall do.
    pub order: Order,
    /// CRIU's image directory.
    pub images: Images,
    /// Where the plugin reports.
    pub report: Channel,
    /// The directory that gets a reference.
    pub reference: Option<OwnedFd>,
}

impl Job {
    /// Makes everything ready.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn ready(self) -> Result<Ready, Error> {
        let criu = Criu::find()?;
        let registry = Registry::open()?;
        let report = Channel::new()?;
        match self {
            Self::Dump {
                pid,
                client,
                leaves_tasks,
                reference,
            } => {
                let (engine, origin) = engine::of(pid, client);
                if engine == Some(Engine::Docker) {
                    let path = images::path(reference.as_fd()).join(NOT_UNPACKED);
                    fs::write(&path, "").map_err(|e| Error::Directory(path, e))?;
                }
                let dump = order::Dump {
                    id: SnapshotId::random(),
                    name: engine::name_for(&origin),
                    replace: true,
                    origin,
                    expires: None,
                    left_running: leaves_tasks,
                    criu: criu.version,
                    reference_dir: None,
                    report: None,
                };
                let images = Images::empty()?;
                if client.is_some() {
                    keep_descriptors(reference.as_fd(), &images)?;
                }
                Ok(Ready {
                    order: Order::Dump(dump),
                    images,
                    report,
                    reference: Some(reference),
                })
            }
            Self::Restore { reference } => {
                let reference = Reference::load_at(reference.as_fd())?;
                let reference = reference.ok_or(Error::NoReference)?;
                let restore = order::Restore {
                    id: reference.snapshot,
                    clone: reference.clone,
                    report: None,
                    engine: None,
                };
                Ok(Ready {
                    order: Order::Restore(restore),
                    images: images(&registry, reference)?,
                    report,
                    reference: None,
                })
            }
        }
    }
}

/// The images of the snapshot that is referred to.
fn images(registry: &Registry, reference: Reference) -> Result<Images, Error> {
    let id = reference.snapshot;
    match registry.get(id)? {
        None => return Err(Error::Missing(reference.into())),
        Some(entry) if entry.is_here() => {}
        Some(_) => store::load(registry, id)?,
    }
    // While it is open, nobody removes the snapshot; then the plugin has it open.
    let vas = registry.open_member(id, Member::Images)?;
    let (images, found) = Images::of(&vas, id)?;
    if found.digest != reference.manifest_sha256 {
        return Err(Error::Altered(reference.into()));
    }
    Ok(images)
}

/// A file that containerd packs with a checkpoint and does not unpack, as archives of layers
/// tell by such names what to remove. dockerd packs what was unpacked anew for each start, and
/// gives it to containerd, which refuses the very bytes that it still has of the checkpoint's
/// making ("already exists", for seconds after it). So they differ.
const NOT_UNPACKED: &str = ".wh.vascriu";

/// Puts what the engine has written into its directory ahead of the dump beside the images.
fn keep_descriptors(reference: BorrowedFd<'_>, images: &Images) -> Result<(), Error> {
    let from = images::path(reference).join(images::DESCRIPTORS);
    match fs::copy(&from, images.path().join(images::DESCRIPTORS)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::Directory(from, e)),
        _ => Ok(()),
    }
}

/// In the directory of a pre-dump, so that a dump on top of it is known to be one of all.
const PRE_DUMP: &str = "pre-dump.vas.json";
const PRE_DUMP_NOTE: &str =
    "{\"vascriu\":1,\"note\":\"nothing was copied: the dump that follows takes all, at once\"}\n";

/// Does a pre-dump into this directory: there is nothing to do but to mark it.
///
/// # Errors
/// The file system's.
pub fn pre_dump(dir: BorrowedFd<'_>) -> Result<(), Error> {
    let path = images::path(dir).join(PRE_DUMP);
    fs::write(&path, PRE_DUMP_NOTE).map_err(|e| Error::Directory(PRE_DUMP.into(), e))
}

/// Whether the directory is that of a pre-dump of ours.
#[must_use]
pub fn is_pre_dump(dir: &Path) -> bool {
    dir.join(PRE_DUMP).exists()
}

/// Ends a dump whose CRIU has ended: what is whole goes to the snapshot store, if there is
/// one; what is not leaves nothing. Nobody waits for that.
pub fn after_dump(
    order: &order::Dump,
    root: i32,
    reference: Option<BorrowedFd<'_>>,
    frozen: &Frozen,
    succeeded: bool,
) {
    let Ok(registry) = Registry::open() else {
        return;
    };
    match settle(&registry, order.id, reference, succeeded) {
        Ok(Outcome::Whole(_)) => {
            // Should it fail, it is in this guest, and `vascriu ls` says why it is only there.
            let _ = store::drain(&registry, order.id, false);
        }
        Ok(_) if !succeeded => rescue::release(root, frozen),
        // Not known: nothing is touched.
        _ => {}
    }
    let _ = registry.sweep_expired();
}
