// SPDX-License-Identifier: GPL-2.0-only
//! `vas.json`: the tasks of a snapshot. It lies among CRIU's images, inside the object
//! only, and its digest binds references to it.
//!
//! It names no VASes: the members of a snapshot are found by their names.

use std::thread::sleep;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::id::SnapshotId;
use super::shared::Segment;
use crate::process::{self, Vpid};

/// Its name among the images.
pub const FILE: &str = "vas.json";
/// Version of the format that is written, and the only one that is read.
pub const VERSION: u32 = 3;

/// What can be wrong with a `vas.json`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no such file.
    #[error("the snapshot's {FILE} is damaged")]
    Damaged(#[source] serde_json::Error),
    /// It is of another version.
    #[error("the snapshot's {FILE} has version {0}; this vascriu reads version {VERSION}")]
    Version(u32),
    /// Two tasks have one PID.
    #[error("two tasks of the snapshot have PID {0} inside their namespaces")]
    Twice(Vpid),
    /// It is another snapshot's.
    #[error("the images are of snapshot {found}, not of {wanted}")]
    Other {
        /// Whose it is.
        found: SnapshotId,
        /// Whose it should be.
        wanted: SnapshotId,
    },
}

/// One task of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its PID in its innermost namespace.
    pub vpid: Vpid,
    /// Its PID where it was dumped from.
    pub pid: i32,
    /// Its start, in clock ticks since boot: with `pid` it names the task that was dumped.
    pub started: u64,
    /// Its command name.
    pub comm: String,
    /// Captured VMAs.
    pub vmas: u64,
    /// Captured 4 KiB pages.
    pub pages: u64,
    /// Of these, in huge pages.
    pub huge_pages: u64,
    /// Captured swapped pages.
    pub swap_pages: u64,
    /// How long the capture took, in microseconds.
    pub capture_us: u64,
}

impl Task {
    /// Whether the task that was dumped is seen to go on. One that was killed does not, even
    /// if it has not come to its end yet; and one that cannot be looked at may not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        process::started(self.pid).is_ok_and(|s| s == self.started)
            && !process::is_ending(self.pid)
            && process::PidFd::open(self.pid).is_ok_and(|p| !p.is_dead())
    }
}

/// A whole `vas.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`].
    version: u32,
    /// Whose it is.
    pub snapshot: SnapshotId,
    /// The CRIU that made the images.
    pub criu: String,
    /// When, in seconds since the epoch.
    pub created: u64,
    /// On which machine.
    pub machine: String,
    /// The tasks went on after the dump.
    pub left_running: bool,
    /// The snapshot that the tasks were restored from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<SnapshotId>,
    /// The tasks, in the order of their capture: parents before children.
    pub tasks: Vec<Task>,
    /// What they share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared: Vec<Segment>,
}

impl Manifest {
    /// That of a snapshot whose tasks are still to be added.
    #[must_use]
    pub fn new(snapshot: SnapshotId, criu: String, left_running: bool) -> Self {
        Self {
            version: VERSION,
            snapshot,
            criu,
            created: super::label::now(),
            machine: super::label::machine(),
            left_running,
            parent: None,
            tasks: Vec::new(),
            shared: Vec::new(),
        }
    }

    /// Adds a task.
    ///
    /// # Errors
    /// [`Error::Twice`].
    pub fn add(&mut self, task: Task) -> Result<(), Error> {
        if self.tasks.iter().any(|t| t.vpid == task.vpid) {
            return Err(Error::Twice(task.vpid));
        }
        self.tasks.push(task);
        Ok(())
    }

    /// The content of the file.
    ///
    /// # Errors
    /// None that is known.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(self).map_err(Error::Damaged)
    }

    /// Reads the content of the file of the snapshot `wanted`.
    ///
    /// # Errors
    /// Damaged, of another version, another snapshot's.
    pub fn parse(bytes: &[u8], wanted: SnapshotId) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_slice(bytes).map_err(Error::Damaged)?;
        if version != VERSION {
            return Err(Error::Version(version));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(Error::Damaged)?;
        if manifest.snapshot != wanted {
            return Err(Error::Other {
                found: manifest.snapshot,
                wanted,
            });
        }
        let mut vpids: Vec<_> = manifest.tasks.iter().map(|t| t.vpid).collect();
        vpids.sort_unstable();
        match vpids.windows(2).find(|w| w[0] == w[1]) {
            Some(w) => Err(Error::Twice(w[0])),
            None => Ok(manifest),
        }
    }

    /// Whether each of the tasks that were dumped is seen to go on.
    #[must_use]
    pub fn all_go_on(&self) -> bool {
        // A task between being killed and exiting shows neither; so look again.
        (0..5).all(|look: u64| {
            sleep(Duration::from_millis(20 * look.min(1)));
            self.tasks.iter().all(Task::is_alive)
        })
    }

    /// Captured pages of all tasks, huge and swapped ones too, and of what they share.
    #[must_use]
    pub fn pages(&self) -> u64 {
        let tasks: u64 = self.tasks.iter().map(|t| t.pages + t.swap_pages).sum();
        let shared = self.shared.iter().map(Segment::pages);
        shared.fold(tasks, u64::saturating_add)
    }

    /// Microseconds that all captures took.
    #[must_use]
    pub fn capture_us(&self) -> u64 {
        self.tasks.iter().map(|t| t.capture_us).sum()
    }
}

/// SHA-256 of the bytes of a `vas.json`, in hexadecimal.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter()
        .fold(String::new(), |text, b| text + &format!("{b:02x}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn manifest(tasks: Vec<Task>) -> Manifest {
        let mut manifest = Manifest::new(SnapshotId::random(), "4.1.1".into(), false);
        manifest.tasks = tasks;
        manifest
    }

    prop_compose! {
        fn task()(vpid in 1..i32::MAX, comm in ".{0,15}", pages: u32) -> Task {
            Task {
                vpid: Vpid(vpid), pid: vpid, started: 1, comm, vmas: 1, pages: pages.into(),
                huge_pages: 0, swap_pages: 0, capture_us: 3,
            }
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read_back_by_its_own_snapshot_only(
            tasks in prop::collection::vec(task(), 0..8)
        ) {
            let mut manifest = manifest(Vec::new());
            for task in tasks {
                let twice = manifest.tasks.iter().any(|t| t.vpid == task.vpid);
                prop_assert_eq!(manifest.add(task).is_err(), twice);
            }
            let bytes = manifest.to_bytes().expect("json");
            prop_assert_eq!(Manifest::parse(&bytes, manifest.snapshot).expect("read"), manifest);
            let other = Manifest::parse(&bytes, SnapshotId::random());
            let is_refused = matches!(other, Err(Error::Other { .. }));
            prop_assert!(is_refused);
        }

        #[test]
        fn damage_is_an_error_and_never_a_panic(cut in 0usize..400, junk in any::<u8>()) {
            let manifest = manifest(Vec::new());
            let mut bytes = manifest.to_bytes().expect("json");
            bytes.truncate(cut);
            bytes.push(junk);
            let _ = Manifest::parse(&bytes, manifest.snapshot);
        }
    }

    #[test]
    fn another_version_is_named_in_the_error() {
        let err = Manifest::parse(br#"{"version":1,"old":true}"#, SnapshotId::random());
        assert!(matches!(err, Err(Error::Version(1))));
    }

    #[test]
    fn a_pid_twice_is_refused() {
        let task = Task {
            vpid: Vpid(1),
            pid: 1,
            started: 1,
            comm: "a".into(),
            vmas: 1,
            pages: 1,
            huge_pages: 0,
            swap_pages: 0,
            capture_us: 1,
        };
        let manifest = manifest(vec![task.clone(), task]);
        let bytes = manifest.to_bytes().expect("json");
        let read = Manifest::parse(&bytes, manifest.snapshot);
        assert!(matches!(read, Err(Error::Twice(Vpid(1)))));
    }

    #[test]
    fn the_digest_is_that_of_sha256() {
        assert_eq!(
            digest(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
