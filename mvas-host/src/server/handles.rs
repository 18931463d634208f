// SPDX-License-Identifier: GPL-2.0-only
//! Snapshots that the guest has open.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use mvas_abi::virtio_vas::VIRTIO_VAS_MAX_HANDLES;

use super::error::ServerError;
use super::memory::GuestBlock;
use super::request::Handle;
use crate::store::{Draft, OpenSnapshot};

/// The most metadata of a draft, bytes.
pub const MAX_META: usize = 64 << 20;
/// The most metadata of all that is open, bytes: it is in the monitor's memory.
pub const MAX_META_OPEN: usize = 4 * MAX_META;

/// A snapshot that is open.
pub enum Open {
    /// In the making.
    Draft(OpenDraft),
    /// Complete.
    Complete(OpenSnapshot),
}

/// A draft, and what the guest published to it.
pub struct OpenDraft {
    /// In the store.
    pub draft: Draft,
    /// The guest blocks that are in it.
    pub published: HashSet<GuestBlock>,
}

impl OpenDraft {
    /// An empty draft.
    pub fn new(draft: Draft) -> Self {
        Self {
            draft,
            published: HashSet::new(),
        }
    }

    /// Appends metadata; all that is open has `open` bytes of it.
    pub fn append_meta(
        &mut self,
        offset: u64,
        bytes: &[u8],
        open: usize,
    ) -> Result<(), ServerError> {
        let meta = &mut self.draft.meta;
        if offset != meta.len() as u64 {
            return Err(ServerError::BadRequest("metadata not at its end"));
        }
        if meta.len() + bytes.len() > MAX_META || open + bytes.len() > MAX_META_OPEN {
            return Err(ServerError::Limit);
        }
        meta.extend_from_slice(bytes);
        Ok(())
    }
}

/// A place for a snapshot. Its lock is held for all of a request.
pub struct Slot {
    /// The snapshot.
    pub state: Mutex<Open>,
    meta_bytes: AtomicUsize,
}

impl Slot {
    /// Notes how much metadata there is, for those who cannot wait for the lock.
    pub fn note_meta(&self, open: &Open) {
        self.meta_bytes.store(meta_bytes(open), Ordering::Relaxed);
    }
}

fn meta_bytes(open: &Open) -> usize {
    match open {
        Open::Draft(draft) => draft.draft.meta.len(),
        Open::Complete(snapshot) => snapshot.meta.len(),
    }
}

/// All that is open.
#[derive(Default)]
pub struct Handles {
    open: BTreeMap<Handle, Arc<Slot>>,
    last: u64,
}

impl Handles {
    /// Whether there is room for one more, with so much metadata.
    pub fn check_room(&self, meta: usize) -> Result<(), ServerError> {
        let few = self.open.len() < VIRTIO_VAS_MAX_HANDLES as usize;
        match few && self.meta_bytes() + meta <= MAX_META_OPEN {
            true => Ok(()),
            false => Err(ServerError::Limit),
        }
    }

    /// Metadata of all, bytes.
    pub fn meta_bytes(&self) -> usize {
        let bytes = |slot: &Arc<Slot>| slot.meta_bytes.load(Ordering::Relaxed);
        self.open.values().map(bytes).sum()
    }

    /// A handle, never used before.
    pub fn insert(&mut self, open: Open) -> Result<Handle, ServerError> {
        self.check_room(0)?;
        self.last += 1;
        let handle = Handle(self.last);
        let slot = Slot {
            meta_bytes: meta_bytes(&open).into(),
            state: Mutex::new(open),
        };
        self.open.insert(handle, Arc::new(slot));
        Ok(handle)
    }

    /// What a handle names.
    pub fn get(&self, handle: Handle) -> Option<Arc<Slot>> {
        self.open.get(&handle).map(Arc::clone)
    }

    /// Takes all handles away.
    pub fn take_all(&mut self) -> Vec<Arc<Slot>> {
        std::mem::take(&mut self.open).into_values().collect()
    }

    /// Takes a handle away.
    pub fn remove(&mut self, handle: Handle) -> Option<Arc<Slot>> {
        self.open.remove(&handle)
    }
}
