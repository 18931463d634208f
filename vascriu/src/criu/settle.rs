// SPDX-License-Identifier: GPL-2.0-only
//! What has come of a dump, when its CRIU has ended in whatever way: the kernel tells.

use std::os::fd::BorrowedFd;

use crate::device;
use crate::snapshot::id::{Member, SnapshotId};
use crate::snapshot::images::{self, Found};
use crate::snapshot::reference::Reference;
use crate::snapshot::registry::{self, Registry};

/// It cannot be told. Nothing was removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel.
    #[error(transparent)]
    Device(#[from] device::Error),
    /// The snapshot's images.
    #[error(transparent)]
    Images(#[from] images::Error),
    /// The snapshot is to go, and does not.
    #[error(transparent)]
    Registry(#[from] registry::Error),
}

/// What has come of a dump.
#[derive(Debug)]
pub enum Outcome {
    /// There is no snapshot; all tasks go on.
    None,
    /// The snapshot is whole.
    Whole(Found),
    /// It was whole, but CRIU failed and all tasks go on: it was removed again.
    TakenBack,
}

/// Ends the dump of the snapshot `id`, whose CRIU, and all of its children, have ended.
/// A snapshot that is whole goes only where CRIU failed and *every* task is seen to go on:
/// anything less, and it may be the only copy.
///
/// # Errors
/// See [`Error`].
pub fn settle(
    registry: &Registry,
    id: SnapshotId,
    reference_dir: Option<BorrowedFd<'_>>,
    succeeded: bool,
) -> Result<Outcome, Error> {
    let whole = if registry.is_committed(id)? {
        Some(Found::of(&registry.open_member(id, Member::Images)?, id)?)
    } else {
        None
    };
    let (outcome, end): (_, fn(BorrowedFd<'_>, SnapshotId)) = match whole {
        None => (Outcome::None, Reference::take_back),
        Some(found) if succeeded || !found.manifest.all_go_on() => {
            (Outcome::Whole(found), Reference::keep)
        }
        Some(_) => {
            registry.remove(id, true)?;
            (Outcome::TakenBack, Reference::take_back)
        }
    };
    if let Some(dir) = reference_dir {
        end(dir, id);
    }
    Ok(outcome)
}
