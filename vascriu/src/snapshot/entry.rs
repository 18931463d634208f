// SPDX-License-Identifier: GPL-2.0-only
//! One snapshot as the kernel and the store know it.

use std::fmt;

use nix::errno::Errno;
use serde::Serialize;

use super::id::SnapshotId;
use super::label::Label;
use super::name::Name;
use crate::device::{Kept, Stat, StoredSnapshot};
use crate::process::Vpid;

/// A snapshot.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its identity.
    pub id: SnapshotId,
    /// Its label; none where that is not one that this vascriu can read.
    pub label: Option<Label>,
    /// Its `images` VAS; none where it is in the store only.
    pub images: Option<Stat>,
    /// The VAS of what they share, if they do.
    pub shared: Option<Stat>,
    /// The VASes of its tasks.
    pub tasks: Vec<(Vpid, Stat)>,
    /// What the store has of it.
    pub stored: Option<StoredSnapshot>,
}

impl Entry {
    pub(super) fn new(id: SnapshotId) -> Self {
        Self {
            id,
            label: None,
            images: None,
            shared: None,
            tasks: Vec::new(),
            stored: None,
        }
    }

    /// A snapshot with this label of which this guest has nothing.
    #[cfg(test)]
    pub(crate) fn in_store(id: SnapshotId, label: Label) -> Self {
        Self {
            label: Some(label),
            ..Self::new(id)
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> Option<&Name> {
        self.label.as_ref()?.name.as_ref()
    }

    /// What it is one of many of.
    #[must_use]
    pub fn series(&self) -> Option<&str> {
        self.label.as_ref()?.series()
    }

    /// When it was dumped, in seconds since the epoch.
    #[must_use]
    pub fn created(&self) -> u64 {
        const S: u64 = 1_000_000_000;
        let here = self.images.as_ref().map(|v| v.created_ns / S);
        let there = self.stored.as_ref().map(|s| s.created_ns / S);
        let label = self.label.as_ref().map(|l| l.created);
        label.or(here).or(there).unwrap_or_default()
    }

    /// Which of two is newer; of two of one second, which the kernel has got later.
    pub(super) fn age(&self) -> impl Ord + use<> {
        (self.created(), self.images.as_ref().map(|v| v.id))
    }

    /// Whether it is in this guest.
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.images.is_some()
    }

    /// Whether it is whole: not one that is being dumped or loaded.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        self.images.as_ref().is_some_and(|v| v.committed)
    }

    /// What the kernel says of all its VASes.
    pub fn stats(&self) -> impl Iterator<Item = &Stat> {
        let one = self.images.iter().chain(&self.shared);
        one.chain(self.tasks.iter().map(|(_, s)| s))
    }

    /// Pages of its tasks' memory.
    #[must_use]
    pub fn pages(&self) -> u64 {
        let memory = || self.shared.iter().chain(self.tasks.iter().map(|(_, s)| s));
        let here = || memory().map(|s| s.pages + s.swap_pages).sum();
        let label = self.label.as_ref().map(|l| l.pages);
        label.unwrap_or_else(here)
    }

    /// Where its memory is.
    #[must_use]
    pub fn whereabouts(&self) -> Whereabouts {
        Whereabouts::of(self)
    }
}

/// As people call it.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => name.fmt(f),
            None => f.pad(&self.id.short()),
        }
    }
}

/// Where the memory of a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// In this guest only.
    Hot,
    /// In this guest, and on its way to the store.
    Draining,
    /// In this guest and in the store.
    Stored,
    /// In the store; this guest has its description.
    Cold,
    /// In the store; this guest has nothing of it.
    InStoreOnly,
}

/// [`State`], and how it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Whereabouts {
    /// Of all its VASes.
    pub state: State,
    /// How much is in the store, while it is draining.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drained_percent: Option<u64>,
    /// errno of the last drain, if that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_error: Option<i32>,
}

impl Whereabouts {
    fn of(entry: &Entry) -> Self {
        let any = |kept| entry.stats().any(|v| v.store == kept);
        let state = if !entry.is_here() {
            State::InStoreOnly
        } else if any(Kept::Draining) {
            State::Draining
        } else if any(Kept::Hot) {
            State::Hot
        } else if any(Kept::Stored) {
            State::Stored
        } else {
            State::Cold
        };
        let sum = |of: fn(&Stat) -> u64| entry.stats().map(of).fold(0, u64::saturating_add);
        // Pages of zeros are not stored: it ends below 100.
        let percent = sum(|v| v.drained_pages).saturating_mul(100) / sum(|v| v.pages).max(1);
        let failed = entry.stats().map(|v| v.drain_error).find(|&e| e != 0);
        Self {
            state,
            drained_percent: (state == State::Draining).then_some(percent.min(99)),
            drain_error: failed.filter(|_| state == State::Hot),
        }
    }
}

impl fmt::Display for Whereabouts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.state {
            State::Hot => "hot",
            State::Draining => "draining",
            State::Stored => "stored",
            State::Cold => "cold",
            State::InStoreOnly => "in store only",
        })?;
        if let Some(percent) = self.drained_percent {
            write!(f, " {percent} %")?;
        }
        match self.drain_error {
            Some(e) => write!(f, " (drain failed: {})", Errno::from_raw(e).desc()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::label::Origin;
    use super::*;
    use crate::device::VasId;

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

    /// A hot snapshot of that name and time, whose images have the VAS `vas`.
    pub fn entry(name: Option<&str>, created: u64, vas: u64) -> Entry {
        let mut label = Label::new(name.map(|n| n.parse().expect("a name")), Origin::process());
        label.created = created;
        let images = Stat {
            id: VasId(vas),
            ..stat(Kept::Hot, 1, 0, 0)
        };
        Entry {
            label: Some(label),
            images: Some(images),
            ..Entry::new(SnapshotId::random())
        }
    }

    fn of(stats: &[Stat]) -> Whereabouts {
        let tasks = (1..).map(Vpid).zip(stats.iter().skip(1).cloned()).collect();
        Entry {
            images: stats.first().cloned(),
            tasks,
            ..Entry::new(SnapshotId::random())
        }
        .whereabouts()
    }

    #[test]
    fn a_snapshot_is_where_the_least_kept_of_its_vases_is() {
        let text = |kept: &[Kept]| {
            let stats: Vec<_> = kept.iter().map(|&k| stat(k, 100, 50, 0)).collect();
            of(&stats).to_string()
        };
        assert_eq!(text(&[]), "in store only");
        assert_eq!(text(&[Kept::Hot, Kept::Cold]), "hot");
        assert_eq!(text(&[Kept::Draining, Kept::Draining]), "draining 50 %");
        assert_eq!(text(&[Kept::Cold, Kept::Stored]), "stored");
        assert_eq!(text(&[Kept::Cold, Kept::Cold]), "cold");
    }

    #[test]
    fn a_failed_drain_says_why_and_progress_never_overflows() {
        let failed = of(&[stat(Kept::Hot, 1, 0, libc::ENOSPC)]);
        assert_eq!(
            failed.to_string(),
            "hot (drain failed: No space left on device)"
        );
        let full = of(&[stat(Kept::Draining, 0, u64::MAX, 0)]);
        assert_eq!(full.drained_percent, Some(99));
    }
}
