// SPDX-License-Identifier: GPL-2.0-only
//! Which snapshots there are, which VM runs, and which blocks are needed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, OnceLock, PoisonError};

use super::error::failed;
use super::extent::{BLOCK, ExtentRun, ExtentSet};
use super::id::{RunId, SnapshotName};
use super::manifest::{self, FIXED, Head, Manifest, ManifestError};
use super::sweep::BrokenSnapshot;
use super::uses::{self, Uses};
use super::{Locked, StoreError};
use crate::locked;

/// What was read of `snapshots/`, so that it need not be read again.
#[derive(Debug, Default)]
pub(super) struct Cache {
    /// What is there, as long as the store's generation is this one.
    catalog: Option<(u64, Arc<Catalog>)>,
    /// Heads that were verified. A manifest is never changed: the same file with the same
    /// times has the same head.
    heads: HashMap<String, (Stamp, Arc<Head>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp([i64; 4], [u64; 3]);

impl Stamp {
    fn of(file: &File) -> std::io::Result<Self> {
        let m = file.metadata()?;
        Ok(Self(
            [m.ctime(), m.ctime_nsec(), m.mtime(), m.mtime_nsec()],
            [m.dev(), m.ino(), m.len()],
        ))
    }
}

/// All manifests.
#[derive(Debug, Clone, Default)]
pub(super) struct Catalog {
    /// Those with a whole head, by name.
    pub heads: Vec<(SnapshotName, Arc<Head>)>,
    /// Those of snapshots that were removed, whose blocks are not freed yet: file names.
    pub gone: Vec<(String, Option<Arc<Head>>)>,
    /// Those whose blocks nobody can tell.
    pub broken: Vec<BrokenSnapshot>,
    /// Bytes that all of them have.
    pub bytes: u64,
    /// Made when it is asked for.
    needed: OnceLock<ExtentSet>,
}

impl Catalog {
    /// Blocks that snapshots need.
    pub fn needed(&self) -> &ExtentSet {
        self.needed.get_or_init(|| {
            let sets = self.heads.iter().map(|(_, head)| head.needed());
            sets.flat_map(|set| set.runs()).copied().collect()
        })
    }

    /// A snapshot was made, whose manifest has so many bytes.
    pub fn add(&mut self, head: &Arc<Head>, bytes: u64) {
        self.heads.push((head.name.clone(), head.clone()));
        self.bytes = self.bytes.saturating_add(bytes);
        self.needed = OnceLock::new();
    }

    /// A snapshot was removed. `None`: it was none whose blocks can be told.
    pub fn remove(&mut self, name: &SnapshotName, bytes: u64) -> Option<Arc<Head>> {
        let at = self.heads.iter().position(|(n, _)| n == name)?;
        self.bytes = self.bytes.saturating_sub(bytes);
        self.needed = OnceLock::new();
        Some(self.heads.swap_remove(at).1)
    }
}

/// Every block that a snapshot or a living VM run needs, but for what is a living run's own
/// and never was a snapshot's.
pub(super) struct Needed<'a>(Vec<&'a ExtentSet>);

impl<'a> Needed<'a> {
    pub fn new(catalog: &'a Catalog, uses: &'a [Uses]) -> Self {
        let uses = uses.iter().map(|u| &u.extents);
        Self(std::iter::once(catalog.needed()).chain(uses).collect())
    }

    /// Those of `blocks` that are not needed.
    pub fn without(&self, blocks: ExtentSet) -> ExtentSet {
        self.0.iter().fold(blocks, |rest, set| rest.minus(set))
    }

    /// Whether something of this RAM file is needed.
    pub fn any_of(&self, run: RunId) -> bool {
        self.0.iter().any(|set| !set.of(run).is_empty())
    }
}

/// One VM run that the store knows.
pub(super) struct RunState {
    pub id: RunId,
    pub alive: bool,
    /// Length of its RAM file in blocks.
    pub blocks: u64,
}

impl Locked<'_> {
    /// All manifests; read only if somebody has changed them since they were read last, and
    /// so in a time that does not hang on how many there are.
    pub fn catalog(&self) -> Result<Arc<Catalog>, StoreError> {
        let generation = self.generation()?;
        match &self.cache().catalog {
            Some((at, catalog)) if *at == generation => return Ok(catalog.clone()),
            _ => {}
        }
        self.read_catalog()
    }

    /// All manifests, as they are on the disk even if somebody changed them who must not.
    pub fn read_catalog(&self) -> Result<Arc<Catalog>, StoreError> {
        let generation = self.generation()?;
        let mut cache = self.cache();
        let catalog = Arc::new(self.read_manifests(&mut cache)?);
        cache.catalog = Some((generation, catalog.clone()));
        Ok(catalog)
    }

    /// To be called before anything in `snapshots/` changes: what others have read of it
    /// holds no more, nor what this process has. Returns the next generation.
    pub fn change_manifests(&self) -> Result<u64, StoreError> {
        let next = self.generation()?.wrapping_add(1);
        self.cache().catalog = None;
        let noted = self.lock.write_all_at(&next.to_le_bytes(), 0);
        noted.map_err(failed("write", &self.dir().lock()))?;
        Ok(next)
    }

    /// What is there in the generation that [`Self::change_manifests`] has begun, so that it
    /// is not read again.
    pub fn manifests_are(&self, generation: u64, catalog: Arc<Catalog>) {
        self.cache().catalog = Some((generation, catalog));
    }

    /// Counts the changes of `snapshots/`.
    fn generation(&self) -> Result<u64, StoreError> {
        let mut bytes = [0; 8];
        let read = self.lock.read_exact_at(&mut bytes, 0);
        read.map_err(failed("read", &self.dir().lock()))?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        let cache = &self.store.0.cache;
        cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_manifests(&self, cache: &mut Cache) -> Result<Catalog, StoreError> {
        let mut catalog = Catalog::default();
        let mut fresh = HashMap::new();
        for file_name in self.dir().list("snapshots")? {
            let path = self.dir().snapshots().join(&file_name);
            let name = file_name.strip_suffix(".snap").map(str::parse);
            let gone = file_name.ends_with(".gone");
            if !gone && !matches!(name, Some(Ok(_))) {
                continue; // not ours; `check` tells
            }
            let file = open(&path)?.ok_or_else(|| StoreError::NotAStore {
                path: self.dir().snapshots(),
                found: file_name.clone(),
            })?;
            let stamp = Stamp::of(&file).map_err(failed("stat", &path))?;
            catalog.bytes += stamp.1[2];
            let known = cache.heads.get(&file_name).filter(|(at, _)| *at == stamp);
            let head = match known {
                Some((_, head)) => Ok(head.clone()),
                None => read_head(&file, &path)?.map(Arc::new),
            };
            if let Ok(head) = &head {
                fresh.insert(file_name.clone(), (stamp, head.clone()));
            }
            match (head, name) {
                (Ok(head), Some(Ok(name))) => catalog.heads.push((name, head)),
                (Err(reason), Some(Ok(name))) => catalog.broken.push(BrokenSnapshot {
                    name,
                    reason: reason.to_string(),
                }),
                (head, _) => catalog.gone.push((file_name, head.ok())),
            }
        }
        cache.heads = fresh;
        Ok(catalog)
    }

    /// All VM runs with a RAM file.
    pub fn runs(&self) -> Result<Vec<RunState>, StoreError> {
        let mut runs = Vec::new();
        for file_name in self.dir().list("ram")? {
            let id = file_name.strip_suffix(".ram").map(str::parse::<RunId>);
            let Some(Ok(id)) = id else { continue };
            let path = self.dir().ram(id);
            let Some(file) = open(&path)? else { continue };
            let len = file.metadata().map_err(failed("stat", &path))?.len();
            runs.push(RunState {
                id,
                alive: is_locked(&file, &path)?,
                blocks: len.div_ceil(BLOCK),
            });
        }
        Ok(runs)
    }

    /// What living VM runs say that they use.
    pub fn living_uses(&self, runs: &[RunState]) -> Result<Vec<Uses>, StoreError> {
        let living = runs.iter().filter(|run| run.alive);
        living
            .map(|run| uses::read(run.id, &self.dir().uses(run.id)))
            .collect()
    }

    /// Reads a snapshot and verifies all of it.
    pub fn load(&self, name: &SnapshotName) -> Result<Manifest, StoreError> {
        let loaded = self.load_head(name)?;
        self.check_extents(&loaded.head)?;
        loaded.load_meta()
    }

    /// Reads what a snapshot is, and verifies that.
    pub fn load_head(&self, name: &SnapshotName) -> Result<LoadedHead, StoreError> {
        let path = self.dir().manifest(name);
        let Some(file) = open(&path)? else {
            return Err(StoreError::NotFound(name.clone()));
        };
        let broken = |source| StoreError::Broken {
            name: name.clone(),
            source,
        };
        let head = read_head(&file, &path)?.map_err(broken)?;
        if head.name != *name {
            return Err(broken(ManifestError::Disagrees("the name")));
        }
        Ok(LoadedHead { file, path, head })
    }

    /// Verifies that all extents of a snapshot are there.
    pub fn check_extents(&self, head: &Head) -> Result<(), StoreError> {
        match self.missing(head)? {
            None => Ok(()),
            Some(run) => Err(StoreError::Broken {
                name: head.name.clone(),
                source: ManifestError::NoExtent {
                    run: run.run,
                    block: run.first,
                },
            }),
        }
    }

    /// Blocks that a manifest names and no RAM file has.
    fn missing(&self, head: &Head) -> Result<Option<ExtentRun>, StoreError> {
        let needed = head.needed();
        for run in needed.run_ids() {
            let path = self.dir().ram(run);
            let blocks = match open(&path)? {
                Some(file) => file.metadata().map_err(failed("stat", &path))?.len() / BLOCK,
                None => 0,
            };
            let there = ExtentRun {
                run,
                first: 0,
                count: blocks,
            };
            let missing = needed.minus(&std::iter::once(there).collect());
            if let Some(first) = missing.of(run).first() {
                return Ok(Some(*first));
            }
        }
        Ok(None)
    }
}

/// A snapshot whose metadata was not read yet.
pub(super) struct LoadedHead {
    file: File,
    path: PathBuf,
    pub head: Head,
}

impl LoadedHead {
    /// Verifies the rest, which may be much: without the store's lock, for a manifest never
    /// changes, and whoever is about to use the extents has entered them.
    pub fn load_meta(mut self) -> Result<Manifest, StoreError> {
        let mut meta = Vec::new(); // its length was checked
        let read = self.file.read_to_end(&mut meta);
        read.map_err(failed("read", &self.path))?;
        manifest::check_meta(&self.head, &meta).map_err(|source| StoreError::Broken {
            name: self.head.name.clone(),
            source,
        })?;
        Ok(Manifest {
            head: Arc::new(self.head),
            meta: meta.into(),
        })
    }
}

/// A file of the store for reading and writing; `None` if there is none.
pub(super) fn open(path: &Path) -> Result<Option<File>, StoreError> {
    match locked::options().open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("open", path)(e)),
    }
}

/// Whether somebody holds the file's lock. Only under the store's lock: it takes the lock
/// for a moment.
pub(super) fn is_locked(file: &File, path: &Path) -> Result<bool, StoreError> {
    match file.try_lock() {
        Ok(()) => {
            file.unlock().map_err(failed("unlock", path))?;
            Ok(false)
        }
        Err(std::fs::TryLockError::WouldBlock) => Ok(true),
        Err(std::fs::TryLockError::Error(e)) => Err(failed("lock", path)(e)),
    }
}

/// The head of a manifest; what is wrong with it is the inner error.
fn read_head(mut file: &File, path: &Path) -> Result<Result<Head, ManifestError>, StoreError> {
    let len = file.metadata().map_err(failed("stat", path))?.len();
    let mut bytes = Vec::new();
    let mut read = |upto: usize, bytes: &mut Vec<u8>| {
        let more = (upto - bytes.len()) as u64;
        file.by_ref().take(more).read_to_end(bytes)
    };
    read(FIXED, &mut bytes).map_err(failed("read", path))?;
    let head_len = match manifest::lengths(&bytes, len) {
        Ok((head, _)) => head,
        Err(e) => return Ok(Err(e)),
    };
    read(head_len, &mut bytes).map_err(failed("read", path))?;
    Ok(manifest::decode_head(&bytes))
}
