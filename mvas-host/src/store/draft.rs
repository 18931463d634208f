// SPDX-License-Identifier: GPL-2.0-only
//! Snapshots in the making, and snapshots that are open.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::mem;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::libc::O_TMPFILE;
use nix::unistd::linkat;

use super::error::failed;
use super::extent::{BLOCK, Extent, ExtentList, ExtentSet};
use super::id::SnapshotName;
use super::label::Label;
use super::manifest::{self, Head, Manifest, ManifestError};
use super::{Locked, PAGES, StoreError, StoreRun, catalog, meta};
use crate::locked::open_locked;
use crate::range::FileRange;

/// A snapshot in the making: blocks, packed pages, metadata, label. Dropping it gives it up.
///
/// Its name is taken for as long as its file `drafts/NAME` is locked; what that file says is
/// how much room it keeps.
#[derive(Debug)]
pub struct Draft {
    run: StoreRun,
    name: SnapshotName,
    file: File,
    path: PathBuf,
    reserved: u64,
    blocks: Vec<Extent>,
    packed: Vec<Extent>,
    /// How many pages of the packed blocks have content.
    pub packed_pages: u64,
    /// The metadata so far.
    pub meta: Vec<u8>,
    /// The label that the snapshot will have.
    pub label: Label,
}

impl Draft {
    pub(super) fn new(run: &StoreRun, name: SnapshotName) -> Result<Self, StoreError> {
        let store = run.store();
        let _locked = store.lock()?;
        if catalog::open(&store.dir().manifest(&name))?.is_some() {
            return Err(StoreError::Exists(name));
        }
        let path = store.dir().draft(&name);
        let Some(file) = open_locked(&path).map_err(failed("make", &path))? else {
            return Err(StoreError::Drafted(name));
        };
        let draft = Self {
            run: run.clone(),
            name,
            file,
            path,
            reserved: 0,
            blocks: Vec::new(),
            packed: Vec::new(),
            packed_pages: 0,
            meta: Vec::new(),
            label: Label::default(),
        };
        draft.note_reserved(0)?;
        Ok(draft)
    }

    /// The name of the snapshot.
    pub fn name(&self) -> &SnapshotName {
        &self.name
    }

    /// Its blocks of guest memory.
    pub fn blocks(&self) -> &[Extent] {
        &self.blocks
    }

    /// Its blocks of packed pages.
    pub fn packed(&self) -> &[Extent] {
        &self.packed
    }

    /// Adds blocks that the run uses ([`StoreRun::use_extents`]); the draft needs them now, too.
    /// Returns the index of the first.
    ///
    /// # Errors
    /// The run does not use one of them.
    pub fn push_blocks(&mut self, extents: &[Extent]) -> Result<u64, StoreError> {
        self.run.hold_extents(extents)?;
        let index = self.blocks.len() as u64;
        self.blocks.extend(extents);
        self.has_got(extents)?;
        Ok(index)
    }

    /// Hands blocks from [`StoreRun::allocate`] over to the draft, to be filled with pages by
    /// and by ([`Self::packed_pages`]).
    ///
    /// # Errors
    /// The range is not this run's, or there is no space to note it.
    pub fn push_packed(&mut self, range: FileRange) -> Result<(), StoreError> {
        let extents = self.run.own_extents(range)?;
        self.run.hold_extents(&extents)?;
        self.packed.extend(&extents);
        self.has_got(&extents)
    }

    /// These count by themselves now.
    fn has_got(&mut self, extents: &[Extent]) -> Result<(), StoreError> {
        self.keep(self.reserved.saturating_sub(extents.len() as u64))
    }

    pub(super) fn reserve(&mut self, blocks: u64, shown: &[Extent]) -> Result<(), StoreError> {
        let run = self.run.clone();
        let locked = run.store().lock()?;
        self.keep(0)?;
        let new = blocks.saturating_mul(BLOCK);
        let mut kept = blocks;
        if let Some(limit) = locked.store.0.limit {
            let catalog = locked.catalog()?;
            let charged = locked.charged(&catalog)?;
            let shown: ExtentSet = shown.iter().copied().collect();
            kept = kept.saturating_add(shown.minus(&charged).len());
            let used = locked.taken(&catalog, &charged)?;
            check_limit(used, kept.saturating_mul(BLOCK), limit)?;
        }
        locked.check_room(new)?;
        self.keep(kept)
    }

    fn keep(&mut self, blocks: u64) -> Result<(), StoreError> {
        if blocks != self.reserved {
            self.note_reserved(blocks)?;
            self.reserved = blocks;
        }
        Ok(())
    }

    fn note_reserved(&self, blocks: u64) -> Result<(), StoreError> {
        let noted = self.file.write_all_at(&blocks.to_le_bytes(), 0);
        noted.map_err(failed("write", &self.path))
    }

    pub(super) fn commit(&mut self) -> Result<OpenSnapshot, StoreError> {
        let head = self.head()?;
        let bytes = manifest::encode(&head, &self.meta).map_err(|source| StoreError::Broken {
            name: self.name.clone(),
            source,
        })?;
        let locked = self.run.store().lock()?;
        self.check_room(&locked, bytes.len() as u64)?;
        let head = Arc::new(head);
        locked.complete(&head, &self.label, &bytes)?;
        drop(locked);
        let label = mem::take(&mut self.label);
        let manifest = Manifest {
            head,
            meta: mem::take(&mut self.meta).into(),
        };
        let mut held = mem::take(&mut self.blocks);
        held.append(&mut self.packed);
        self.reserved = 0;
        // The name is the snapshot's now; this room is its own.
        let _ = self.note_reserved(0);
        Ok(OpenSnapshot::new(&self.run, manifest, label, held))
    }

    fn head(&self) -> Result<Head, StoreError> {
        let blocks = ExtentList::try_from(self.blocks.as_slice())?;
        let packed = ExtentList::try_from(self.packed.as_slice())?;
        let pages = self.packed_pages;
        let sums = meta::check(&self.meta, blocks.len(), pages).map_err(StoreError::BadMeta)?;
        if pages > packed.len() * PAGES {
            return Err(StoreError::Broken {
                name: self.name.clone(),
                source: ManifestError::Disagrees("the packed pages"),
            });
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_nanos();
        Ok(Head {
            name: self.name.clone(),
            vm: self.run.vm().to_owned(),
            run: self.run.id(),
            created_ns: u64::try_from(now).unwrap_or(u64::MAX),
            vases: sums.vases,
            vmas: sums.vmas,
            pages: sums.pages,
            blocks,
            packed,
            packed_pages: pages,
            meta_bytes: self.meta.len() as u64,
            meta_sha256: manifest::digest(&self.meta),
            needed: OnceLock::new(),
        })
    }

    /// Whether the limit has room for the manifest: the blocks are charged already.
    fn check_room(&self, locked: &Locked<'_>, bytes: u64) -> Result<(), StoreError> {
        let Some(limit) = locked.store.0.limit else {
            return Ok(());
        };
        let catalog = locked.catalog()?;
        let used = locked.taken(&catalog, &locked.charged(&catalog)?)?;
        // What it kept room for and did not use is not needed any more.
        let kept = self.reserved.saturating_mul(BLOCK);
        check_limit(used.saturating_sub(kept), bytes, limit)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Still locked, so the name is ours. What fails here, the next who opens the store does.
        let _ = fs::remove_file(&self.path);
        self.blocks.append(&mut self.packed);
        let _ = self.run.let_go(&self.blocks);
    }
}

fn check_limit(used: u64, wanted: u64, limit: u64) -> Result<(), StoreError> {
    if used.saturating_add(wanted) > limit {
        return Err(StoreError::Limit {
            used,
            limit,
            wanted,
        });
    }
    Ok(())
}

impl Locked<'_> {
    /// Makes a snapshot: with its manifest it is there. Its label comes first; where that is
    /// all, the next sweep removes it.
    fn complete(&self, head: &Arc<Head>, label: &Label, manifest: &[u8]) -> Result<(), StoreError> {
        let name = &head.name;
        if catalog::open(&self.dir().manifest(name))?.is_some() {
            return Err(StoreError::Exists(name.clone())); // and keeps its label
        }
        let mut catalog = self.catalog()?;
        self.put_label(name, label)?;
        let generation = self.change_manifests()?;
        self.link_manifest(name, manifest).inspect_err(|_| {
            let _ = fs::remove_file(self.dir().label(name));
        })?;
        Arc::make_mut(&mut catalog).add(head, manifest.len() as u64);
        self.manifests_are(generation, catalog);
        Ok(())
    }

    /// Writes a manifest: it is there whole, or not at all, and never over another.
    fn link_manifest(&self, name: &SnapshotName, bytes: &[u8]) -> Result<(), StoreError> {
        let (folder, path) = (self.dir().snapshots(), self.dir().manifest(name));
        let mut file = unnamed_file(&folder)?;
        file.write_all(bytes).map_err(failed("write", &path))?;
        let from = format!("/proc/self/fd/{}", file.as_raw_fd());
        let linked = linkat(
            AT_FDCWD,
            Path::new(&from),
            AT_FDCWD,
            &path,
            AtFlags::AT_SYMLINK_FOLLOW,
        );
        linked.map_err(|e| match e {
            Errno::EEXIST => StoreError::Exists(name.clone()),
            e => failed("make", &path)(e),
        })
    }
}

fn unnamed_file(folder: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600).custom_flags(O_TMPFILE);
    options
        .open(folder)
        .map_err(failed("make a file in", folder))
}

/// A complete snapshot whose extents this run uses, so that they stay until it is dropped,
/// and longer where [`StoreRun::use_extents`] was told that the guest sees them.
#[derive(Debug)]
pub struct OpenSnapshot {
    run: StoreRun,
    manifest: Manifest,
    label: Label,
    held: Vec<Extent>,
}

impl OpenSnapshot {
    pub(super) fn new(run: &StoreRun, manifest: Manifest, label: Label, held: Vec<Extent>) -> Self {
        Self {
            run: run.clone(),
            manifest,
            label,
            held,
        }
    }

    /// The label that it had when it was opened.
    pub fn label(&self) -> &Label {
        &self.label
    }

    /// What is in it.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

impl Deref for OpenSnapshot {
    type Target = Manifest;

    fn deref(&self) -> &Manifest {
        &self.manifest
    }
}

impl Drop for OpenSnapshot {
    fn drop(&mut self) {
        // What fails here is done when the run ends.
        let _ = self.run.let_go(&self.held);
    }
}
