// SPDX-License-Identifier: GPL-2.0-only
//! How much room there is: what snapshots take, and what running VMs were promised.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::sys::statvfs::statvfs;

use super::catalog::{self, Catalog};
use super::error::failed;
use super::extent::{BLOCK, ExtentSet};
use super::id::SnapshotName;
use super::uses::{self, Uses};
use super::{Locked, Store, StoreError};

/// What a file system of limited size has, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// All that it may hold.
    pub total: u64,
    /// What is free for us.
    pub free: u64,
}

impl Room {
    /// The room of the file system that `path` is in; `None` if it has no limit of its own, as
    /// what `mvasvm store mount` makes.
    ///
    /// # Errors
    /// There is no such path, or the kernel does not tell.
    pub fn of(path: &Path) -> Result<Option<Self>, StoreError> {
        let stat = statvfs(path).map_err(failed("look at the file system of", path))?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
        Ok((stat.blocks() > 0).then(|| Self {
            total: bytes(stat.blocks()),
            free: bytes(stat.blocks_available()),
        }))
    }
}

impl Store {
    /// Whether a VM with so much memory finds room now.
    ///
    /// # Errors
    /// [`StoreError::Promised`]: it does not. The store cannot be read.
    pub fn check_room(&self, mem_bytes: u64) -> Result<(), StoreError> {
        self.lock()?.check_room(mem_bytes)
    }
}

impl Locked<'_> {
    /// Whether `wanted` bytes are free that no running VM and no draft may yet need.
    pub fn check_room(&self, wanted: u64) -> Result<(), StoreError> {
        let Some(room) = Room::of(self.dir().path())? else {
            return Ok(());
        };
        let kept = self.kept_by_drafts()?;
        let runs = self.runs()?;
        let mut most = 0u64;
        for run in runs.iter().filter(|run| run.alive) {
            let mem_bytes = uses::read_mem_bytes(&self.dir().uses(run.id))?;
            most = most.saturating_add(mem_bytes);
        }
        let fits = |promised: u64| {
            let needed = promised.saturating_add(kept).saturating_add(wanted);
            needed <= room.free
        };
        // Mostly there is plenty, and nobody need look at the snapshots.
        if fits(most) {
            return Ok(());
        }
        let promised = self.promised(&self.living_uses(&runs)?)?;
        if fits(promised) {
            return Ok(());
        }
        Err(StoreError::Promised {
            path: self.dir().path().to_owned(),
            free: room.free,
            promised: promised.saturating_add(kept),
            wanted,
        })
    }

    /// Bytes that the guests of running VMs may yet take, at most: their memory, but for what
    /// their own blocks have of it. An extent is none of those: the guest may give it back and
    /// touch an empty block instead, while a snapshot keeps the extent.
    fn promised(&self, living: &[Uses]) -> Result<u64, StoreError> {
        let catalog = self.catalog()?;
        let used = living.iter().flat_map(|uses| uses.extents.runs());
        let extents: ExtentSet = catalog
            .needed()
            .runs()
            .iter()
            .chain(used)
            .copied()
            .collect();
        let mut bytes = 0u64;
        for Uses { run, mem_bytes, .. } in living {
            let path = self.dir().ram(*run);
            let allocated = path.metadata().map_err(failed("stat", &path))?.blocks() * 512;
            let of_extents: u64 = extents.of(*run).iter().map(|run| run.count * BLOCK).sum();
            let own = allocated.saturating_sub(of_extents);
            bytes = bytes.saturating_add(mem_bytes.saturating_sub(own));
        }
        Ok(bytes)
    }

    /// Extents that count for the store's limit, each once: those of snapshots, and those that
    /// drafts and opened snapshots have. What only a guest still sees is its memory.
    pub fn charged(&self, catalog: &Catalog) -> Result<ExtentSet, StoreError> {
        let mut runs = catalog.needed().runs().to_vec();
        for run in self.runs()?.iter().filter(|run| run.alive) {
            let held = uses::read(run.id, &self.dir().held(run.id))?;
            runs.extend(held.extents.runs());
        }
        Ok(runs.into_iter().collect())
    }

    /// Bytes that count for the store's limit.
    pub fn taken(&self, catalog: &Catalog, charged: &ExtentSet) -> Result<u64, StoreError> {
        let bytes = catalog.bytes.saturating_add(charged.len() * BLOCK);
        Ok(bytes.saturating_add(self.kept_by_drafts()?))
    }

    /// Bytes that drafts keep room for.
    fn kept_by_drafts(&self) -> Result<u64, StoreError> {
        let mut bytes = 0u64;
        for name in self.dir().list("drafts")? {
            let Ok(name) = name.parse::<SnapshotName>() else {
                continue;
            };
            let path = self.dir().draft(&name);
            let Some(file) = catalog::open(&path)? else {
                continue;
            };
            let mut blocks = [0; 8];
            if catalog::is_locked(&file, &path)? && file.read_exact_at(&mut blocks, 0).is_ok() {
                let kept = u64::from_le_bytes(blocks).saturating_mul(BLOCK);
                bytes = bytes.saturating_add(kept);
            }
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_tells_its_room_or_has_no_limit() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::of(dir.path()).unwrap().unwrap();
        assert!(0 < room.free && room.free <= room.total, "{room:?}");
        // procfs has no blocks.
        assert_eq!(Room::of(Path::new("/proc")).unwrap(), None);
        assert!(Room::of(Path::new("/nonexistent")).is_err());
    }
}
