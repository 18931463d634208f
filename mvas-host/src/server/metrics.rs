// SPDX-License-Identifier: GPL-2.0-only
//! What the server counts.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Serialize, Serializer};

/// A number that only grows.
#[derive(Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds one.
    pub(super) fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.get())
    }
}

/// Counters of one VM's server; `docs/VMM.md` lists them under `snapshots`.
#[derive(Debug, Default, Serialize)]
pub struct ServerMetrics {
    /// Blocks that became blocks of a draft.
    pub published: Count,
    /// Of these, copied because the guest had written to them since they became private.
    pub copied_again: Count,
    /// Pages copied to drafts.
    pub copied_pages: Count,
    /// Blocks of snapshots that the guest was shown.
    pub mapped: Count,
    /// Blocks that the guest gave back.
    pub released: Count,
    /// Calls of `mmap` for all that.
    pub remaps: Count,
    /// Blocks copied or filled because the host allows no more mappings.
    pub copied_for_map_count: Count,
    /// Snapshots completed.
    pub commits: Count,
}
