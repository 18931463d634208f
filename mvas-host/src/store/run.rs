// SPDX-License-Identifier: GPL-2.0-only
//! A living VM run's part of the store.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::catalog::Needed;
use super::draft::{Draft, OpenSnapshot};
use super::error::failed;
use super::extent::{BLOCK, Extent, ExtentRun};
use super::id::{RunId, SnapshotName};
use super::ledger::{Ledger, blocks_of};
use super::manifest::Head;
use super::uses::{Held, UsesFile};
use super::{Store, StoreError, sweep};
use crate::ram::RamFile;
use crate::range::{FileOffset, FileRange};

/// One life of a monitor in the store. Cheap to clone; ends with its last clone, when the
/// RAM file keeps only what snapshots and other VMs need.
///
/// Every mapping of the RAM file must be gone before: what a mapping shows may be punched
/// out then. Drafts and opened snapshots have a clone.
#[derive(Debug, Clone)]
pub struct StoreRun(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    id: RunId,
    vm: String,
    ram: RamFile,
    // Locked before the store, where both are.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    uses: UsesFile,
    /// Of what is used, what drafts and opened snapshots have.
    held: Held,
}

impl StoreRun {
    pub(super) fn start(store: &Store, vm: &str, mem_bytes: u64) -> Result<Self, StoreError> {
        let blocks = mem_bytes.div_ceil(BLOCK);
        let mem_bytes = blocks.saturating_mul(BLOCK);
        let locked = store.lock()?;
        locked.check_room(mem_bytes)?;
        let id = RunId::random().map_err(failed("read", "/dev/urandom".as_ref()))?;
        // First what says that it uses nothing: a crash in between leaves no memory behind.
        let files = || {
            let uses = UsesFile::create(store.dir().uses(id), vm, mem_bytes)?;
            let held = UsesFile::create(store.dir().held(id), vm, mem_bytes)?;
            let ram = RamFile::create(&store.dir().ram(id), mem_bytes)?;
            Ok((uses, held, ram))
        };
        let made: Result<_, StoreError> = files();
        let (uses, held, ram) = made.inspect_err(|_| {
            // Whoever opens the store next does it otherwise.
            let dir = store.dir();
            for path in [dir.uses(id), dir.held(id), dir.ram(id)] {
                let _ = fs::remove_file(path);
            }
        })?;
        Ok(Self(Arc::new(Inner {
            store: store.clone(),
            id,
            vm: vm.to_owned(),
            ram,
            state: Mutex::new(State {
                ledger: Ledger::new(id, blocks),
                uses,
                held: Held::new(held),
            }),
        })))
    }

    /// Its ID.
    pub fn id(&self) -> RunId {
        self.0.id
    }

    /// The name of its VM.
    pub fn vm(&self) -> &str {
        &self.0.vm
    }

    /// The store that it is in.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Its RAM file: the guest's memory, and beyond its range what [`Self::allocate`] made.
    pub fn ram(&self) -> &RamFile {
        &self.0.ram
    }

    /// The RAM file of any run, read-only, to map extents of it.
    ///
    /// # Errors
    /// There is none, so nobody uses an extent of it.
    pub fn file_of(&self, run: RunId) -> Result<File, StoreError> {
        let path = self.store().dir().ram(run);
        let mut options = fs::OpenOptions::new();
        options.read(true).custom_flags(nix::libc::O_NOFOLLOW);
        options.open(&path).map_err(failed("open", &path))
    }

    /// An empty range of `blocks` blocks at the end of the own file. It is this run's alone,
    /// as the guest's memory is, until it is released or named by a draft. Numbers of blocks
    /// are never used twice.
    ///
    /// # Errors
    /// No blocks were asked for, or the file cannot grow.
    pub fn allocate(&self, blocks: u64) -> Result<FileRange, StoreError> {
        let mut state = self.state();
        let start = state.ledger.end();
        let impossible = || {
            StoreError::Extents(ExtentRun {
                run: self.id(),
                first: start,
                count: blocks,
            })
        };
        let end = start.checked_add(blocks).ok_or_else(impossible)?;
        let range = FileRange::new(FileOffset(start * BLOCK), blocks.saturating_mul(BLOCK))
            .ok_or_else(impossible)?;
        let grown = self.ram().file().set_len(range.end().0);
        grown.map_err(failed("enlarge", &self.ram_path()))?;
        state.ledger.grown(end);
        Ok(range)
    }

    /// Like [`Self::release_extents`], of the blocks of a range of the own file.
    ///
    /// # Errors
    /// As there; the range is not of whole blocks.
    pub fn discard(&self, range: FileRange) -> Result<(), StoreError> {
        self.release_extents(&self.own_extents(range)?)
    }

    /// The blocks of a range of the own file, as extents.
    ///
    /// # Errors
    /// The range is not of whole blocks, or beyond the file's end.
    pub fn own_extents(&self, range: FileRange) -> Result<Vec<Extent>, StoreError> {
        let blocks = range.start().0 / BLOCK..range.end().0 / BLOCK;
        if !range.is_aligned(BLOCK) || blocks.end > self.state().ledger.end() {
            return Err(StoreError::Range(range));
        }
        Ok(blocks_of(self.id(), blocks))
    }

    /// The guest sees each of these once more; to be called before they are mapped. A block of
    /// the own file that was this run's alone becomes an extent: once a draft has it, it must
    /// never be written to.
    ///
    /// # Errors
    /// One is neither this run's own nor in use by it already (through a draft, an opened
    /// snapshot, or an earlier call); or there is no space to note it. Nothing is in use then.
    pub fn use_extents(&self, extents: &[Extent]) -> Result<(), StoreError> {
        let mut state = self.state();
        if let Some(unknown) = state.ledger.unknown(extents) {
            return Err(StoreError::NotInUse(unknown));
        }
        let new = state.ledger.without_record(extents);
        if !new.is_empty() {
            let _locked = self.store().lock()?;
            state.uses.add(&new)?;
        }
        state.ledger.hold(extents);
        Ok(())
    }

    /// The guest sees each of these once less. What nobody needs any more is given back, now
    /// (a batch costs little more than a single one).
    ///
    /// # Errors
    /// One is not in use so many times: nothing is done. Or the kernel refuses to punch a
    /// hole: this run uses them no longer all the same, and the memory goes later.
    pub fn release_extents(&self, extents: &[Extent]) -> Result<(), StoreError> {
        let mut state = self.state();
        let unused = state
            .ledger
            .release(extents)
            .map_err(StoreError::NotInUse)?;
        // Nobody else knows these.
        sweep::punch(self.ram().file(), &self.ram_path(), unused.live.runs())?;
        if unused.extents.is_empty() {
            return Ok(());
        }
        let locked = self.store().lock()?;
        state.uses.remove(&unused.extents)?;
        let catalog = locked.catalog()?;
        if catalog.broken.is_empty() {
            let mut runs = locked.runs()?;
            runs.retain(|run| run.id != self.id()); // the ledger knows, and is quicker
            let uses = locked.living_uses(&runs)?;
            let needed = Needed::new(&catalog, &uses);
            let unneeded = needed.without(unused.extents.into_iter().collect());
            let any_needed = |run| needed.any_of(run) || state.ledger.uses_any_of(run);
            locked.free(&unneeded, any_needed)?;
        }
        Ok(())
    }

    /// Begins a snapshot.
    ///
    /// # Errors
    /// [`StoreError::Exists`] and [`StoreError::Drafted`]: the name is taken.
    pub fn draft(&self, name: SnapshotName) -> Result<Draft, StoreError> {
        Draft::new(self, name)
    }

    /// Makes sure that what a draft gets next finds room: `blocks` new blocks, and `shown`,
    /// extents that the guest sees already. Keeps it until the draft has so many, instead of
    /// what was kept before. To be called before the new blocks are made.
    ///
    /// # Errors
    /// [`StoreError::Limit`]; [`StoreError::Promised`].
    pub fn reserve(
        &self,
        draft: &mut Draft,
        blocks: u64,
        shown: &[Extent],
    ) -> Result<(), StoreError> {
        draft.reserve(blocks, shown)
    }

    /// As [`Self::use_extents`], for a draft: they count as the store's from now on.
    pub(super) fn hold_extents(&self, extents: &[Extent]) -> Result<(), StoreError> {
        let mut state = self.state();
        if let Some(unknown) = state.ledger.unknown(extents) {
            return Err(StoreError::NotInUse(unknown));
        }
        let _locked = self.store().lock()?;
        state.hold(extents)
    }

    /// A draft or an opened snapshot has these no longer.
    pub(super) fn let_go(&self, extents: &[Extent]) -> Result<(), StoreError> {
        let struck = {
            let mut state = self.state();
            let locked = self.store().lock();
            locked.and_then(|_locked| state.held.remove(extents))
        };
        self.release_extents(extents).and(struck)
    }

    /// Makes a draft a complete snapshot, at once; the draft is empty then.
    ///
    /// # Errors
    /// The metadata is wrong, the name is taken, or there is no space: the draft stays as it is.
    pub fn commit(&self, draft: &mut Draft) -> Result<OpenSnapshot, StoreError> {
        draft.commit()
    }

    /// Opens a complete snapshot: its extents are in use until it is dropped, so that they can
    /// be mapped even if the snapshot is removed.
    ///
    /// # Errors
    /// There is no such snapshot, it is broken, or there is no space to note its use.
    pub fn open(&self, name: &SnapshotName) -> Result<OpenSnapshot, StoreError> {
        self.open_if(name, |_| true)
    }

    /// As [`Self::open`], if `may` takes it, which is asked before much is read.
    ///
    /// # Errors
    /// As there; [`StoreError::NotFound`] if `may` does not take it.
    pub fn open_if(
        &self,
        name: &SnapshotName,
        may: impl FnOnce(&Head) -> bool,
    ) -> Result<OpenSnapshot, StoreError> {
        let (loaded, label, held) = {
            let mut state = self.state();
            let locked = self.store().lock()?;
            let loaded = locked.load_head(name)?;
            if !may(&loaded.head) {
                return Err(StoreError::NotFound(name.clone()));
            }
            locked.check_extents(&loaded.head)?;
            let label = locked.label(name)?;
            let held: Vec<Extent> = loaded.head.needed().extents().collect();
            state.hold(&held)?;
            (loaded, label, held)
        };
        match loaded.load_meta() {
            Ok(manifest) => Ok(OpenSnapshot::new(self, manifest, label, held)),
            Err(error) => {
                self.let_go(&held)?;
                Err(error)
            }
        }
    }

    pub(super) fn ram_path(&self) -> std::path::PathBuf {
        self.store().dir().ram(self.id())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Only under the store's lock. After an error nothing is held.
    fn hold(&mut self, extents: &[Extent]) -> Result<(), StoreError> {
        let new = self.ledger.without_record(extents);
        self.uses.add(&new)?;
        if let Err(error) = self.held.add(extents) {
            // What cannot be struck out protects too much while this run lives, no more.
            let _ = self.uses.remove(&new);
            return Err(error);
        }
        self.ledger.hold(extents);
        Ok(())
    }
}

impl Inner {
    /// Gives back what never was a snapshot's, which nobody else can know, and then does what
    /// is done for a run that was killed.
    fn end(&mut self) -> Result<(), StoreError> {
        let locked = self.store.lock()?;
        let path = self.store.dir().ram(self.id);
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        sweep::punch(self.ram.file(), &path, state.ledger.live().runs())?;
        self.ram.file().unlock().map_err(failed("unlock", &path))?;
        locked.sweep(false)?;
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Whoever opens the store next does what fails here.
        let _ = self.end();
    }
}
