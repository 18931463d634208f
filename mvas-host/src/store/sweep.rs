// SPDX-License-Identifier: GPL-2.0-only
//! Giving memory back: what nobody needs is punched out of the RAM files.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, fallocate};
use serde::Serialize;

use super::catalog::{self, Needed, RunState};
use super::error::failed;
use super::extent::{BLOCK, ExtentRun, ExtentSet};
use super::id::{RunId, SnapshotName};
use super::manifest::Head;
use super::{Locked, Store, StoreError, uses};

/// A snapshot that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BrokenSnapshot {
    /// Its name.
    pub name: SnapshotName,
    /// What is wrong with it.
    pub reason: String,
}

/// What was given back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Freed {
    /// Bytes of host memory.
    pub bytes: u64,
    /// While there are these, nobody can tell what of the store's memory is needed, and
    /// nothing was given back.
    pub blocked_by: Vec<BrokenSnapshot>,
}

impl Store {
    /// Gives back all memory that no snapshot and no living VM needs. Snapshots that are
    /// broken prevent it, unless `force` says that they need nothing.
    ///
    /// # Errors
    /// The store cannot be read, or the kernel refuses.
    pub fn gc(&self, force: bool) -> Result<Freed, StoreError> {
        self.lock()?.sweep(force)
    }

    /// Removes a snapshot. Living VMs that see its memory keep it; the rest is given back.
    ///
    /// # Errors
    /// There is no such snapshot, or it cannot be removed.
    pub fn remove(&self, name: &SnapshotName) -> Result<Freed, StoreError> {
        self.lock()?.remove(name)
    }

    /// As [`Self::remove`], but only the snapshot that was made at this time: who has seen one
    /// must not remove another that came to its name since.
    ///
    /// # Errors
    /// There is no such snapshot, it is of another time or broken, or it cannot be removed.
    pub fn remove_made_at(
        &self,
        name: &SnapshotName,
        created_ns: u64,
    ) -> Result<Freed, StoreError> {
        let locked = self.lock()?;
        let catalog = locked.catalog()?;
        let is_it = |(n, head): &(_, Arc<Head>)| n == name && head.created_ns == created_ns;
        if !catalog.heads.iter().any(is_it) {
            return Err(StoreError::NotFound(name.clone()));
        }
        locked.remove(name)
    }
}

impl Locked<'_> {
    fn remove(&self, name: &SnapshotName) -> Result<Freed, StoreError> {
        let path = self.dir().manifest(name);
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(StoreError::NotFound(name.clone()));
            }
            Err(e) => return Err(failed("stat", &path)(e)),
        };
        // From here on the snapshot is gone, and whoever sweeps next frees its blocks: us,
        // or if we are killed the next who opens the store.
        let gone = self.dir().snapshots().join(format!("{}.gone", meta.ino()));
        let mut catalog = self.catalog()?;
        let generation = self.change_manifests()?;
        fs::rename(&path, &gone).map_err(failed("remove", &path))?;
        let head = Arc::make_mut(&mut catalog).remove(name, meta.len());
        let Some(head) = head.filter(|_| catalog.broken.is_empty()) else {
            return self.sweep(false);
        };
        let uses = self.living_uses(&self.runs()?)?;
        let needed = Needed::new(&catalog, &uses);
        let unneeded = needed.without(head.needed().clone());
        let bytes = self.free(&unneeded, |run| needed.any_of(run))?;
        remove_file(&gone)?;
        remove_file(&self.dir().label(name))?;
        self.manifests_are(generation, catalog);
        Ok(Freed {
            bytes: bytes + meta.blocks() * 512,
            blocked_by: Vec::new(),
        })
    }

    /// Forgets what dead VM runs used and frees what nobody needs.
    pub fn sweep(&self, force: bool) -> Result<Freed, StoreError> {
        let catalog = self.read_catalog()?;
        let runs = self.runs()?;
        // Of living runs' blocks, those that only dead runs have used are known from here only.
        let used = self.dead_uses(&runs)?;
        self.forget_dead(&runs)?;
        let mut freed = Freed::default();
        if !catalog.broken.is_empty() && !force {
            freed.blocked_by.clone_from(&catalog.broken);
            return Ok(freed);
        }
        let uses = self.living_uses(&runs)?;
        let needed = Needed::new(&catalog, &uses);
        let dead = runs.iter().filter(|run| !run.alive).map(|run| ExtentRun {
            run: run.id,
            first: 0,
            count: run.blocks.max(1),
        });
        let gone = catalog.gone.iter().filter_map(|(_, head)| head.as_ref());
        let named = gone.flat_map(|head| head.needed().runs()).copied();
        let used = used.iter().flat_map(ExtentSet::runs).copied();
        let unneeded = needed.without(dead.chain(named).chain(used).collect());
        freed.bytes = self.free(&unneeded, |run| needed.any_of(run))?;
        if !catalog.gone.is_empty() {
            self.change_manifests()?;
        }
        for (file, _) in &catalog.gone {
            let path = self.dir().snapshots().join(file);
            let meta = fs::symlink_metadata(&path).map_err(failed("stat", &path))?;
            freed.bytes += meta.blocks() * 512;
            remove_file(&path)?;
        }
        Ok(freed)
    }

    /// Extents that runs have used which are dead.
    fn dead_uses(&self, runs: &[RunState]) -> Result<Vec<ExtentSet>, StoreError> {
        let names = self.dir().list("uses")?.into_iter();
        let ids = names.filter_map(|name| name.parse::<RunId>().ok());
        ids.filter(|id| !runs.iter().any(|run| run.id == *id && run.alive))
            .map(|id| Ok(uses::read(id, &self.dir().uses(id))?.extents))
            .collect()
    }

    /// Removes `uses`, `held` and drafts of dead runs, and labels of snapshots that are gone.
    fn forget_dead(&self, runs: &[RunState]) -> Result<(), StoreError> {
        for folder in ["uses", "held"] {
            for name in self.dir().list(folder)? {
                let Ok(id) = name.parse::<RunId>() else {
                    continue;
                };
                if !runs.iter().any(|run| run.id == id && run.alive) {
                    remove_file(&self.dir().path().join(folder).join(name))?;
                }
            }
        }
        for name in self.dir().list("drafts")? {
            let Ok(name) = name.parse::<SnapshotName>() else {
                continue;
            };
            let path = self.dir().draft(&name);
            if let Some(file) = catalog::open(&path)?
                && !catalog::is_locked(&file, &path)?
            {
                remove_file(&path)?;
            }
        }
        for name in self.stale_labels()? {
            remove_file(&self.dir().labels().join(name))?;
        }
        Ok(())
    }

    /// Gives back what nobody needs, and RAM files of dead runs of which `any_needed` says no.
    /// Returns how many bytes.
    pub fn free(
        &self,
        unneeded: &ExtentSet,
        any_needed: impl Fn(RunId) -> bool,
    ) -> Result<u64, StoreError> {
        let mut bytes = 0;
        for run in unneeded.run_ids() {
            let path = self.dir().ram(run);
            let Some(file) = catalog::open(&path)? else {
                continue;
            };
            if !any_needed(run) && !catalog::is_locked(&file, &path)? {
                bytes += allocated(&file, &path)?;
                // A descriptor that somebody still has must not keep the memory.
                file.set_len(0).map_err(failed("empty", &path))?;
                remove_file(&path)?;
            } else {
                bytes += punch(&file, &path, unneeded.of(run))?;
            }
        }
        Ok(bytes)
    }
}

/// Makes holes; returns how many bytes that gave back.
pub(super) fn punch(file: &fs::File, path: &Path, blocks: &[ExtentRun]) -> Result<u64, StoreError> {
    let before = allocated(file, path)?;
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    for run in blocks {
        // Numbers that no file offset has cannot be allocated either.
        let offset = i64::try_from(run.first.saturating_mul(BLOCK));
        let len = i64::try_from(run.count.saturating_mul(BLOCK));
        if let (Ok(offset), Ok(len)) = (offset, len) {
            fallocate(file, hole, offset, len).map_err(failed("punch a hole into", path))?;
        }
    }
    Ok(before.saturating_sub(allocated(file, path)?))
}

/// Bytes of memory that a file takes.
fn allocated(file: &fs::File, path: &Path) -> Result<u64, StoreError> {
    Ok(file.metadata().map_err(failed("stat", path))?.blocks() * 512)
}

fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(failed("remove", path)(e)),
        _ => Ok(()),
    }
}
