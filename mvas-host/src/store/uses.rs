// SPDX-License-Identifier: GPL-2.0-only
//! `uses/ID`: which extents a living VM run uses; `held/ID`: which of them its drafts and opened
//! snapshots have. 128 bytes with the VM's name and the size of its memory, then records of 16
//! bytes: run and block, or zeroes. Only its run writes them, only under the store's lock, and
//! they mean nothing once that run is dead: so they need not survive a crash.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::StoreError;
use super::error::failed;
use super::extent::{Extent, ExtentSet};
use super::id::RunId;
use crate::locked;

/// Bytes for the VM's name, padded with zeroes.
const NAME: usize = 120;
/// Bytes before the records: the name, and the size of the guest's memory.
const HEAD: usize = NAME + 8;
const RECORD: usize = 16;

/// What a VM run uses.
pub(super) struct Uses {
    pub run: RunId,
    pub vm: String,
    /// Bytes that the guest's memory may take.
    pub mem_bytes: u64,
    pub extents: ExtentSet,
}

/// Reads what a run uses; no file, no uses.
pub(super) fn read(run: RunId, path: &Path) -> Result<Uses, StoreError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(failed("read", path)(e)),
    };
    let (head, records) = bytes.split_at(HEAD.min(bytes.len()));
    let (name, mem) = head.split_at(NAME.min(head.len()));
    let name = name.split(|b| *b == 0).next().unwrap_or_default();
    Ok(Uses {
        run,
        vm: String::from_utf8_lossy(name).into_owned(),
        mem_bytes: mem_bytes(mem),
        extents: records.chunks_exact(RECORD).filter_map(decode).collect(),
    })
}

/// The size of a run's guest memory, bytes; 0 if that is not known.
pub(super) fn read_mem_bytes(path: &Path) -> Result<u64, StoreError> {
    let mut head = [0; HEAD];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut head, 0));
    match read {
        Ok(()) => Ok(mem_bytes(&head[NAME..])),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => Ok(0),
        Err(e) => Err(failed("read", path)(e)),
    }
}

fn mem_bytes(field: &[u8]) -> u64 {
    let field = field.first_chunk();
    field.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn encode(extent: Extent) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..8].copy_from_slice(&extent.run.get().to_le_bytes());
    record[8..].copy_from_slice(&extent.block.to_le_bytes());
    record
}

fn decode(record: &[u8]) -> Option<Extent> {
    let (run, block) = record.split_first_chunk::<8>()?;
    Some(Extent {
        run: RunId::new(u64::from_le_bytes(*run))?,
        block: u64::from_le_bytes(*block.first_chunk()?),
    })
}

/// The file of this process's own run.
#[derive(Debug)]
pub(super) struct UsesFile {
    file: File,
    path: PathBuf,
    /// The record of each extent.
    slots: HashMap<Extent, u64>,
    free: Vec<u64>,
    /// Records in the file.
    len: u64,
}

impl UsesFile {
    pub fn create(path: PathBuf, vm: &str, mem_bytes: u64) -> Result<Self, StoreError> {
        let valid = !vm.is_empty() && vm.len() < NAME && !vm.contains('\0');
        if !valid {
            return Err(StoreError::VmName(vm.to_owned()));
        }
        let mut head = [0; HEAD];
        head[..vm.len()].copy_from_slice(vm.as_bytes());
        head[NAME..].copy_from_slice(&mem_bytes.to_le_bytes());
        let file = locked::options()
            .create_new(true)
            .open(&path)
            .map_err(failed("make", &path))?;
        file.write_all_at(&head, 0)
            .map_err(failed("write", &path))?;
        Ok(Self {
            file,
            path,
            slots: HashMap::new(),
            free: Vec::new(),
            len: 0,
        })
    }

    /// Enters extents that are not in it. After an error none of them counts; the file may
    /// then protect some all the same, for as long as the run lives.
    pub fn add(&mut self, extents: &[Extent]) -> Result<(), StoreError> {
        let (reuse, append) = extents.split_at(self.free.len().min(extents.len()));
        let records: Vec<u8> = append.iter().flat_map(|e| encode(*e)).collect();
        let end = position(self.len);
        if let Err(e) = self.file.write_all_at(&records, end) {
            let _ = self.file.set_len(end); // what is left there protects too much, no more
            return Err(failed("write", &self.path)(e));
        }
        let reused = self.free.split_off(self.free.len() - reuse.len());
        for (extent, slot) in reuse.iter().zip(&reused) {
            let written = self.file.write_all_at(&encode(*extent), position(*slot));
            written.map_err(failed("write", &self.path))?;
            self.slots.insert(*extent, *slot);
        }
        for (extent, slot) in append.iter().zip(self.len..) {
            self.slots.insert(*extent, slot);
            self.len = slot + 1;
        }
        Ok(())
    }

    /// Strikes extents out. After an error the file may protect some for as long as the run
    /// lives.
    pub fn remove(&mut self, extents: &[Extent]) -> Result<(), StoreError> {
        let mut slots: Vec<u64> = extents
            .iter()
            .filter_map(|e| self.slots.remove(e))
            .collect();
        slots.sort_unstable();
        for slots in slots.chunk_by(|a, b| a + 1 == *b) {
            let struck = self
                .file
                .write_all_at(&vec![0; slots.len() * RECORD], position(slots[0]));
            struck.map_err(failed("write", &self.path))?;
            self.free.extend(slots);
        }
        if self.slots.is_empty() {
            let cut = self.file.set_len(position(0));
            cut.map_err(failed("shorten", &self.path))?;
            self.free.clear();
            self.len = 0;
        }
        Ok(())
    }
}

/// `held/ID`, and how many drafts and opened snapshots have each extent.
#[derive(Debug)]
pub(super) struct Held {
    file: UsesFile,
    counts: HashMap<Extent, u64>,
}

impl Held {
    pub fn new(file: UsesFile) -> Self {
        let counts = HashMap::new();
        Self { file, counts }
    }

    /// Once more each. After an error none is.
    pub fn add(&mut self, extents: &[Extent]) -> Result<(), StoreError> {
        let mut new: Vec<_> = extents.to_vec();
        new.sort_unstable();
        new.dedup();
        new.retain(|extent| !self.counts.contains_key(extent));
        self.file.add(&new)?;
        for extent in extents {
            *self.counts.entry(*extent).or_default() += 1;
        }
        Ok(())
    }

    /// Once less each of what was added. After an error the file may have too many.
    pub fn remove(&mut self, extents: &[Extent]) -> Result<(), StoreError> {
        let mut gone = Vec::new();
        for extent in extents {
            match self.counts.get_mut(extent) {
                Some(count) if *count > 1 => *count -= 1,
                Some(_) => {
                    self.counts.remove(extent);
                    gone.push(*extent);
                }
                None => {}
            }
        }
        self.file.remove(&gone)
    }
}

/// Where a record is.
fn position(slot: u64) -> u64 {
    HEAD as u64 + slot * RECORD as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn extent(run: u64, block: u64) -> Extent {
        let run = RunId::new(run).unwrap();
        Extent { run, block }
    }

    fn set(extents: &BTreeSet<Extent>) -> ExtentSet {
        extents.iter().copied().collect()
    }

    proptest! {
        #[test]
        fn the_file_always_says_what_was_added_and_not_removed(
            steps in prop::collection::vec(prop::collection::btree_set((1..4u64, 0..9u64), 0..9), 0..30)
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("uses");
            let mut file = UsesFile::create(path.clone(), "vm", 7).unwrap();
            let mut model = BTreeSet::new();
            // Each step adds what is missing of a set, or removes it if all is there.
            for step in steps {
                let step: BTreeSet<_> = step.into_iter().map(|(r, b)| extent(r, b)).collect();
                let new: Vec<_> = step.difference(&model).copied().collect();
                if new.is_empty() {
                    file.remove(&step.iter().copied().collect::<Vec<_>>()).unwrap();
                    model = &model - &step;
                } else {
                    file.add(&new).unwrap();
                    model.extend(new);
                }
                let uses = read(RunId::new(9).unwrap(), &path).unwrap();
                prop_assert_eq!(read_mem_bytes(&path).unwrap(), 7);
                let said = (uses.vm.as_str(), uses.mem_bytes, uses.extents);
                prop_assert_eq!(said, ("vm", 7, set(&model)));
            }
        }

        #[test]
        fn any_bytes_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("uses");
            fs::write(&path, bytes).unwrap();
            prop_assert!(read(RunId::new(9).unwrap(), &path).is_ok());
            prop_assert!(read_mem_bytes(&path).is_ok());
        }
    }

    #[test]
    fn no_file_means_no_uses_and_bad_names_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("uses");
        let long = "x".repeat(120);
        for name in ["", "a\0b", &long] {
            let made = UsesFile::create(path.clone(), name, 7);
            assert!(matches!(made, Err(StoreError::VmName(_))), "{name:?}");
        }
        assert!(
            read(RunId::new(1).unwrap(), &path)
                .unwrap()
                .extents
                .is_empty()
        );
    }
}
