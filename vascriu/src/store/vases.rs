//! All VASes of a snapshot.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use super::{Error, Hold, Store};
use crate::device::{self, Kept, Session, Stat, VAS_ACCESS_READ, VAS_ACCESS_WRITE, VasFile};
use crate::manifest::{self, Manifest};
use crate::name::Name;

/// Whether the dump in `images` came to its end in the kernel, and ended a task.
#[must_use]
pub fn is_the_only_copy(images: &Path) -> bool {
    let Ok(manifest) = Manifest::load(images) else {
        return false;
    };
    let whole = Session::open().is_ok_and(|s| manifest.open_all(&s).is_ok());
    let ended = || !manifest.tasks.iter().all(manifest::Task::is_alive);
    // A task between being killed and exiting shows neither; so look again.
    let looks = |n: u64| {
        sleep(Duration::from_millis(20 * n.min(1)));
        ended()
    };
    whole && !manifest.tasks.is_empty() && (0..5).any(looks)
}

/// Open files of all VASes of the snapshot.
fn vases(name: &Name, access: u32) -> Result<Vec<VasFile>, Error> {
    let session = Session::open()?;
    let mut found = Vec::new();
    for id in device::list()? {
        // Others' VASes may be forbidden to us, and may vanish.
        let Ok(vas) = session.vas(id, VAS_ACCESS_READ) else {
            continue;
        };
        if name.owns(vas.name()) {
            found.push(session.vas(id, access)?);
        }
    }
    Ok(found)
}

/// What the kernel says of all VASes of the snapshot.
///
/// # Errors
/// `/dev/vas`'s.
pub fn stat_vases(name: &Name) -> Result<Vec<Stat>, Error> {
    let vases = vases(name, VAS_ACCESS_READ)?;
    Ok(vases.iter().map(VasFile::stat).collect::<Result<_, _>>()?)
}

/// Turns all VASes of a snapshot cold; says how many 4 KiB pages they had.
///
/// # Errors
/// [`Error::Unknown`], [`Error::Busy`], [`device::Error::NotInStore`].
pub fn evict(store: &Store, name: &Name) -> Result<u64, Error> {
    let _lock = store.lock(name, Hold::Shared)?;
    if !store.has(name) {
        return Err(Error::Unknown(name.clone()));
    }
    let vases = vases(name, VAS_ACCESS_READ | VAS_ACCESS_WRITE)?;
    let pages = vases.iter().map(VasFile::evict);
    Ok(pages.sum::<Result<_, _>>()?)
}

/// Makes the kernel see that the snapshot store no longer has the snapshot that these
/// VASes were drained to: they are hot again.
///
/// # Errors
/// [`device::Error::Lost`]: one is cold, and its memory gone; else `/dev/vas`'s.
pub fn notice_loss(name: &Name) -> Result<(), Error> {
    for vas in vases(name, VAS_ACCESS_READ | VAS_ACCESS_WRITE)? {
        if vas.stat()?.store == Kept::Cold {
            let vas = vas.name().into();
            return Err(device::Error::Lost { vas }.into());
        }
        match vas.evict() {
            // As expected; or it was hot before.
            Err(device::Error::NotInStore { .. }) => {}
            done => drop(done?),
        }
    }
    Ok(())
}

/// Deletes all VASes of a snapshot, or none where one is in use; ends its drain.
/// Says when the snapshot was made that they have in the snapshot store, if one is there.
///
/// # Errors
/// `/dev/vas`'s.
pub fn delete_vases(name: &Name, force: bool) -> Result<Option<u64>, Error> {
    let vases = vases(name, VAS_ACCESS_READ | VAS_ACCESS_WRITE)?;
    if !force {
        for vas in &vases {
            if vas.stat()?.users > 1 {
                return Err(device::Error::Busy {
                    vas: vas.name().into(),
                }
                .into());
            }
        }
    }
    for vas in &vases {
        vas.delete(force)?;
    }
    let mut stored_ns = 0;
    for vas in &vases {
        // A drain notices soon; until then the snapshot may still become complete.
        let mut stat = vas.stat()?;
        while stat.store == Kept::Draining {
            sleep(Duration::from_millis(2));
            stat = vas.stat()?;
        }
        stored_ns = stored_ns.max(stat.stored_ns);
    }
    Ok((stored_ns != 0).then_some(stored_ns))
}
