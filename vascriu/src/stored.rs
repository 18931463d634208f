//! Snapshots in the snapshot store outside of the guest (docs/STORE.md): the way
//! there, back, and what is where.

use std::collections::HashMap;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use memmap2::MmapMut;
use serde::Serialize;

use crate::device::{
    self, Kept, Session, Stat, StoredSnapshot, VAS_ACCESS_READ, VAS_ACCESS_WRITE, VasFile, VasId,
};
use crate::manifest::{self, Manifest};
use crate::name::Name;
use crate::pack;
use crate::process::{self, PidFd};
use crate::store::{self, Hold, Store};

/// More than the images of a snapshot have: 64 GiB.
const MAX_IMAGES: u64 = 64 << 30;

/// Why a snapshot cannot go to the store or come from there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel.
    #[error(transparent)]
    Device(#[from] device::Error),
    /// Its place in this guest.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Its `vas.json`.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    /// Its images.
    #[error(transparent)]
    Pack(#[from] pack::Error),
    /// This process.
    #[error(transparent)]
    Process(#[from] process::Error),
    /// It was not made by vascriu, or was changed.
    #[error("`{name}` in the snapshot store is no snapshot of vascriu: {why}")]
    NotOurs {
        /// Its name.
        name: Name,
        /// What is wrong.
        why: String,
    },
    /// No memory.
    #[error("no memory for the {0} bytes of its images")]
    NoMemory(u64, #[source] std::io::Error),
}

/// A snapshot that can be drained: all VASes of it, that of its images too.
#[derive(Debug)]
pub struct Ready {
    session: Session,
    name: Name,
    vases: Vec<VasId>,
}

impl Ready {
    /// Puts the images of a snapshot that is whole into a VAS of their own, if an
    /// earlier drain has not left it.
    ///
    /// # Errors
    /// See [`Error`]; then there is no such VAS.
    pub fn new(name: &Name, images: &Path) -> Result<Self, Error> {
        let session = Session::open()?;
        let manifest = Manifest::load(images)?;
        let id = match session.vas_by_name(&name.images_vas(), VAS_ACCESS_READ) {
            Ok(vas) => vas.stat()?.id,
            Err(device::Error::Gone { .. }) => Self::capture_images(&session, name, images)?,
            Err(e) => return Err(e.into()),
        };
        let tasks = manifest.tasks.iter().map(|t| t.vas);
        Ok(Self {
            session,
            name: name.clone(),
            vases: tasks.chain([id]).collect(),
        })
    }

    fn capture_images(session: &Session, name: &Name, images: &Path) -> Result<VasId, Error> {
        let memory = pack::pack(images, store::is_image)?;
        let (id, vas) = session.create(&name.images_vas(), 0o600)?;
        vas.capture_own(myself()?.as_fd(), &memory)?;
        session.commit()?;
        Ok(id)
    }

    /// Begins to put the snapshot into the store; with `sync`, does so to the end.
    ///
    /// # Errors
    /// As [`Session::drain`].
    pub fn drain(&self, sync: bool) -> Result<(), Error> {
        Ok(self.session.drain(self.name.as_str(), &self.vases, sync)?)
    }
}

/// Puts a snapshot that this guest has into the store, or goes on with that; says where
/// it is then. With `sync` that is the store.
///
/// # Errors
/// See [`Error`]; then it is in this guest as before.
pub fn drain(store: &Store, name: &Name, sync: bool) -> Result<Kept, Error> {
    let session = Session::open()?;
    if !session.has_store()? {
        return Err(device::Error::NoStore.into());
    }
    let lock = store.lock(name, Hold::Alone)?;
    let images = store.images(name)?;
    let vases = store::stat_vases(name)?;
    let mut kept = Whereabouts::of(&vases).kept;
    if matches!(kept, Kept::Stored | Kept::Cold) {
        let is_it = |s: &StoredSnapshot| {
            s.name == name.as_str() && vases.iter().all(|v| v.stored_ns == s.created_ns)
        };
        if session.stored()?.iter().any(is_it) {
            return Ok(kept);
        }
        // Removed there, perhaps by another microVM.
        store::notice_loss(name)?;
        kept = Kept::Hot;
    }
    if kept == Kept::Hot {
        let ready = Ready::new(name, &images)?;
        drop(lock); // it can be restored meanwhile
        ready.drain(sync)?;
        return Ok(if sync { Kept::Stored } else { Kept::Draining });
    }
    drop(lock);
    if sync { wait(name) } else { Ok(kept) }
}

/// Waits for the end of a drain that somebody else began.
fn wait(name: &Name) -> Result<Kept, Error> {
    loop {
        let at = Whereabouts::of(&store::stat_vases(name)?);
        match (at.kept, at.drain_error) {
            (Kept::Draining, _) => sleep(Duration::from_millis(10)),
            (Kept::Hot, Some(errno)) => {
                return Err(Session::drain_failed(name.as_str(), errno).into());
            }
            // Removed meanwhile.
            (Kept::Hot, None) => return Err(store::Error::Unknown(name.clone()).into()),
            (kept, _) => return Ok(kept),
        }
    }
}

fn myself() -> Result<PidFd, Error> {
    Ok(PidFd::open(std::process::id().cast_signed())?)
}

/// Whether the store has a snapshot of that name which this microVM may use.
///
/// # Errors
/// As [`Session::stored`].
pub fn has(session: &Session, name: &Name) -> Result<bool, device::Error> {
    let stored = session.stored()?;
    Ok(stored.iter().any(|s| s.name == name.as_str()))
}

/// Brings a snapshot, of which this guest has nothing, from the store: its VASes,
/// cold, and its images. `session` must have nothing else that is transient. The
/// caller holds the name alone.
///
/// # Errors
/// See [`Error`]; then nothing is left, if the session is closed.
pub fn load(store: &Store, session: &Session, name: &Name) -> Result<(), Error> {
    let vases = session.load(name.as_str())?;
    let mut vases = vases
        .into_iter()
        .map(|id| {
            let vas = session.vas(id, VAS_ACCESS_READ | VAS_ACCESS_WRITE)?;
            Ok((vas.name().to_owned(), (id, vas)))
        })
        .collect::<Result<HashMap<_, _>, device::Error>>()?;
    let not_ours = |why: String| Error::NotOurs {
        name: name.clone(),
        why,
    };
    let (_, images) = vases
        .remove(&name.images_vas())
        .ok_or_else(|| not_ours("it has no images".into()))?;
    let memory = read(&images, name)?;
    let files = pack::parse(&memory)?;
    let (manifests, files): (Vec<pack::Image<'_>>, Vec<_>) =
        files.into_iter().partition(|f| f.name == manifest::FILE);
    let text = manifests
        .first()
        .and_then(|m| std::str::from_utf8(m.bytes).ok())
        .ok_or_else(|| not_ours("it has no vas.json".into()))?;
    let ids = vases.iter().map(|(name, (id, _))| (name.as_str(), *id));
    let manifest = adopt(
        Manifest::parse(text, manifest::FILE.into())?,
        name,
        ids.collect(),
    )
    .map_err(not_ours)?;

    let place = store.new_path(name);
    let done = (|| {
        let place = store::empty_dir(&place)?;
        pack::unpack(&files, &place)?;
        manifest.save(&place)?;
        // They are in the directory now, and in the store.
        images.delete(true)?;
        session.commit()?;
        // Should we be killed here, `Store::recover` goes on.
        Ok(store.publish(name, &place)?)
    })();
    if done.is_err() {
        let _ = fs::remove_dir_all(&place);
    }
    done
}

/// The memory of the VAS of a snapshot's images.
fn read(vas: &VasFile, name: &Name) -> Result<MmapMut, Error> {
    let not_ours = || Error::NotOurs {
        name: name.clone(),
        why: "its images are not in one piece".into(),
    };
    let ranges = vas.ranges()?;
    let [range] = ranges.as_slice() else {
        return Err(not_ours());
    };
    let len = range.end.saturating_sub(range.start);
    let size = usize::try_from(len).ok().filter(|_| len <= MAX_IMAGES);
    let memory = MmapMut::map_anon(size.ok_or_else(not_ours)?);
    let mut memory = memory.map_err(|e| Error::NoMemory(len, e))?;
    vas.attach_own(myself()?.as_fd(), range.start, &mut memory)?;
    Ok(memory)
}

/// The manifest of a snapshot that was loaded into this boot, where `vases` are all
/// its VASes of tasks; or what is wrong with it.
fn adopt(
    mut manifest: Manifest,
    name: &Name,
    mut vases: HashMap<&str, VasId>,
) -> Result<Manifest, String> {
    if manifest.header.name != name.as_str() {
        return Err(format!("its vas.json is of `{}`", manifest.header.name));
    }
    for task in &mut manifest.tasks {
        task.vas = vases
            .remove(task.vas_name.as_str())
            .filter(|_| task.vas_name == name.task_vas(task.vpid))
            .ok_or_else(|| format!("the memory of task {} is not in it", task.vpid))?;
    }
    if let Some(vas) = vases.keys().next() {
        return Err(format!("VAS {vas} belongs to no task"));
    }
    manifest.header.boot_id = process::boot_id().map_err(|e| e.to_string())?;
    Ok(manifest)
}

/// Where the memory of a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Whereabouts {
    /// Of all its VASes.
    pub kept: Kept,
    /// How much is in the store, while it is draining.
    pub drained_percent: Option<u64>,
    /// errno of the last drain, if that failed.
    pub drain_error: Option<i32>,
}

impl Whereabouts {
    /// Of a snapshot with such VASes.
    #[must_use]
    pub fn of(vases: &[Stat]) -> Self {
        let any = |kept| vases.iter().any(|v| v.store == kept);
        let kept = if any(Kept::Draining) {
            Kept::Draining
        } else if any(Kept::Hot) || vases.is_empty() {
            Kept::Hot
        } else if any(Kept::Stored) {
            Kept::Stored
        } else {
            Kept::Cold
        };
        let sum = |of: fn(&Stat) -> u64| vases.iter().map(of).fold(0, u64::saturating_add);
        // Pages of zeros are not stored: it ends below 100.
        let percent = sum(|v| v.drained_pages).saturating_mul(100) / sum(|v| v.pages).max(1);
        let failed = vases.iter().map(|v| v.drain_error).find(|&e| e != 0);
        Self {
            kept,
            drained_percent: (kept == Kept::Draining).then_some(percent.min(99)),
            drain_error: failed.filter(|_| kept == Kept::Hot),
        }
    }
}

impl std::fmt::Display for Whereabouts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.kept.fmt(f)?;
        if let Some(percent) = self.drained_percent {
            write!(f, " {percent} %")?;
        }
        match self.drain_error {
            Some(e) => write!(
                f,
                " (drain failed: {})",
                nix::errno::Errno::from_raw(e).desc()
            ),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Vpid;

    fn name() -> Name {
        "n".parse().expect("a name")
    }

    fn manifest(vpids: &[i32]) -> Manifest {
        let task = |vpid: &i32| {
            serde_json::json!({"vpid": vpid, "pid": 1, "started": 1, "comm": "c", "vas": 900,
                "vas_name": format!("n:{vpid}"), "vmas": 1, "pages": 1, "huge_pages": 0,
                "swap_pages": 0, "capture_us": 1})
        };
        let tasks: Vec<_> = vpids.iter().map(task).collect();
        serde_json::from_value(
            serde_json::json!({"version": 1, "boot_id": "then", "name": "n",
            "criu": "4.1.1", "created": 1, "tasks": tasks}),
        )
        .expect("a manifest")
    }

    fn vases<'a>(names: &[&'a str]) -> HashMap<&'a str, VasId> {
        names.iter().copied().zip((5..).map(VasId)).collect()
    }

    #[test]
    fn a_loaded_snapshot_belongs_to_this_boot_and_its_new_vases() {
        let done = adopt(manifest(&[1, 7]), &name(), vases(&["n:1", "n:7"])).expect("adopted");
        assert_eq!(done.header.boot_id, process::boot_id().expect("boot id"));
        let ids: Vec<_> = done.tasks.iter().map(|t| (t.vpid, t.vas)).collect();
        assert_eq!(ids, [(Vpid(1), VasId(5)), (Vpid(7), VasId(6))]);
    }

    #[test]
    fn a_loaded_manifest_that_does_not_fit_its_vases_is_refused() {
        let mut other = manifest(&[1]);
        other.header.name = "m".into();
        assert!(adopt(other, &name(), vases(&["n:1"])).is_err(), "another's");
        assert!(
            adopt(manifest(&[1, 7]), &name(), vases(&["n:1"])).is_err(),
            "one too few"
        );
        assert!(
            adopt(manifest(&[1]), &name(), vases(&["n:1", "n:7"])).is_err(),
            "one too many"
        );
        let mut swapped = manifest(&[1, 7]);
        swapped.tasks[0].vas_name = "n:7".into();
        swapped.tasks[1].vas_name = "n:1".into();
        let both = vases(&["n:1", "n:7"]);
        assert!(
            adopt(swapped, &name(), both).is_err(),
            "memory of another task"
        );
        let mut twice = manifest(&[1, 7]);
        twice.tasks[1].vas_name = "n:1".into();
        assert!(
            adopt(twice, &name(), vases(&["n:1"])).is_err(),
            "one for two"
        );
    }

    fn stat(store: Kept, pages: u64, drained_pages: u64, drain_error: i32) -> Stat {
        Stat {
            id: VasId(1),
            name: "n:1".into(),
            mode: 0o600,
            uid: 0,
            gid: 0,
            committed: true,
            created_ns: 0,
            vmas: 1,
            bytes: pages * 4096,
            pages,
            huge_pages: 0,
            swap_pages: 0,
            attaches: 0,
            users: 1,
            store,
            drain_error,
            drained_pages,
            stored_ns: 0,
        }
    }

    #[test]
    fn a_snapshot_is_where_the_least_kept_of_its_vases_is() {
        let of = |kept: &[Kept]| {
            let stats: Vec<_> = kept.iter().map(|&k| stat(k, 100, 50, 0)).collect();
            Whereabouts::of(&stats).to_string()
        };
        assert_eq!(of(&[]), "hot");
        assert_eq!(of(&[Kept::Hot, Kept::Cold]), "hot");
        assert_eq!(of(&[Kept::Draining, Kept::Draining]), "draining 50 %");
        assert_eq!(of(&[Kept::Cold, Kept::Stored]), "stored");
        assert_eq!(of(&[Kept::Cold, Kept::Cold]), "cold");
    }

    #[test]
    fn a_failed_drain_says_why_and_progress_never_overflows() {
        let failed = Whereabouts::of(&[stat(Kept::Hot, 1, 0, libc::ENOSPC)]);
        assert_eq!(
            failed.to_string(),
            "hot (drain failed: No space left on device)"
        );
        let full = Whereabouts::of(&[stat(Kept::Draining, 0, u64::MAX, 0)]);
        assert_eq!(full.drained_percent, Some(99));
    }
}
