// SPDX-License-Identifier: GPL-2.0-only
//! The host's snapshot store, which is outside of this guest (docs/STORE.md): the way there
//! and back. A snapshot has its identity as its name there.

use std::thread::sleep;
use std::time::Duration;

use crate::device::{self, Kept, Session, VAS_ACCESS_READ, VasFile};
use crate::snapshot::id::{Member, SnapshotId, parse_vas};
use crate::snapshot::registry::{self, Registry};

/// Why a snapshot cannot go to the store or come from there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel.
    #[error(transparent)]
    Device(#[from] device::Error),
    /// There is no such snapshot.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// It was not made by vascriu, or was changed.
    #[error("`{0}` in the snapshot store is no snapshot of vascriu: {1}")]
    NotOurs(SnapshotId, String),
}

/// Puts a snapshot of this guest into the store, or goes on with that; says where it is
/// then. With `sync` that is the store.
///
/// # Errors
/// See [`Error`]; then it is in this guest as before.
pub fn drain(registry: &Registry, id: SnapshotId, sync: bool) -> Result<Kept, Error> {
    let session = registry.session();
    if !session.has_store()? {
        return Err(device::Error::NoStore.into());
    }
    let members = registry.members(id)?;
    let stats: Vec<_> = members
        .iter()
        .map(VasFile::stat)
        .collect::<Result<_, _>>()?;
    let any = |kept| stats.iter().any(|s| s.store == kept);
    if stats.is_empty() {
        return Err(registry::Error::Unknown(id.to_string()).into());
    }
    if any(Kept::Draining) {
        return if sync {
            wait(&members, id)
        } else {
            Ok(Kept::Draining)
        };
    }
    if !any(Kept::Hot) {
        if session.stored()?.iter().any(|s| s.name == id.to_string()) {
            return Ok(if any(Kept::Stored) {
                Kept::Stored
            } else {
                Kept::Cold
            });
        }
        notice_loss(&members)?;
    }
    let ids: Vec<_> = stats.iter().map(|s| s.id).collect();
    session.drain(&id.to_string(), &ids, sync)?;
    Ok(if sync { Kept::Stored } else { Kept::Draining })
}

/// Waits for the end of a drain that somebody else began.
fn wait(members: &[VasFile], id: SnapshotId) -> Result<Kept, Error> {
    for vas in members {
        loop {
            let stat = vas.stat()?;
            match (stat.store, stat.drain_error) {
                (Kept::Draining, _) => sleep(Duration::from_millis(10)),
                (Kept::Hot, 0) => return Err(registry::Error::Unknown(id.to_string()).into()),
                (Kept::Hot, e) => return Err(Session::drain_failed(&id.to_string(), e).into()),
                _ => break,
            }
        }
    }
    Ok(Kept::Stored)
}

/// Makes the kernel see that the store no longer has the snapshot that these VASes were
/// drained to: they are hot again.
fn notice_loss(members: &[VasFile]) -> Result<(), device::Error> {
    for vas in members {
        if vas.stat()?.store == Kept::Cold {
            let vas = vas.name().into();
            return Err(device::Error::Lost { vas });
        }
        match vas.evict() {
            // As expected; or it was hot before.
            Err(device::Error::NotInStore { .. }) => {}
            done => drop(done?),
        }
    }
    Ok(())
}

/// Brings a snapshot from the store, cold, unless it is here.
///
/// # Errors
/// See [`Error`]; then nothing of it is here.
pub fn load(registry: &Registry, id: SnapshotId) -> Result<(), Error> {
    // Of many restores of a snapshot the first one brings it.
    let _held = registry.exclusive()?;
    if registry.is_committed(id)? {
        return Ok(());
    }
    let session = Session::open()?;
    let mut has_images = false;
    for vas in session.load(&id.to_string())? {
        let vas = session.vas(vas, VAS_ACCESS_READ)?;
        match parse_vas(vas.name()) {
            Some((of, member)) if of == id => has_images |= member == Member::Images,
            _ => return Err(Error::NotOurs(id, format!("VAS {} is in it", vas.name()))),
        }
    }
    if !has_images {
        return Err(Error::NotOurs(id, "it has no images".into()));
    }
    Ok(session.commit()?)
}

/// Lets the memory of a snapshot go that the store has; says how many 4 KiB pages it had.
///
/// # Errors
/// [`device::Error::NotInStore`].
pub fn evict(registry: &Registry, id: SnapshotId) -> Result<u64, Error> {
    let members = registry.members(id)?;
    if members.is_empty() {
        return Err(registry::Error::Unknown(id.to_string()).into());
    }
    Ok(members.iter().map(VasFile::evict).sum::<Result<_, _>>()?)
}
