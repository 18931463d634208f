// SPDX-License-Identifier: GPL-2.0-only
//! What is in the store, and whether all of it is right.

use std::path::PathBuf;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use serde::Serialize;

use super::catalog::{self, Catalog, Needed, RunState};
use super::dir::FOLDERS;
use super::error::failed;
use super::extent::{BLOCK, ExtentRun, ExtentSet};
use super::id::{RunId, SnapshotName};
use super::label::{Label, UNFINISHED};
use super::manifest::Head;
use super::sweep::BrokenSnapshot;
use super::uses::Uses;
use super::{Locked, Store, StoreError};

/// A snapshot in the store.
#[derive(Debug, Clone, Serialize)]
pub struct SnapshotEntry {
    /// Its name.
    pub name: SnapshotName,
    /// What whoever made it says of it.
    #[serde(skip)]
    pub label: Label,
    /// Whether it can be used, and what is known of it.
    #[serde(flatten)]
    pub state: SnapshotState,
}

/// Whether a snapshot can be used.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum SnapshotState {
    /// It can.
    Complete(SnapshotFacts),
    /// It cannot.
    Broken {
        /// What is wrong with it.
        reason: String,
    },
}

/// What there is to tell of a complete snapshot.
#[derive(Debug, Clone, Serialize)]
pub struct SnapshotFacts {
    /// Name of the VM that made it.
    pub vm: String,
    /// That VM's run.
    pub run: RunId,
    /// When, nanoseconds since 1970.
    pub created_ns: u64,
    /// Virtual address spaces: one for each task, and one for CRIU's images.
    pub vases: u64,
    /// Bytes of memory that they have.
    pub memory_bytes: u64,
    /// Extents that hold it, each once.
    pub extents: u64,
    /// Bytes of extents that no other snapshot has.
    pub own_bytes: u64,
    /// Bytes of extents that other snapshots have, too.
    pub shared_bytes: u64,
    /// Bytes of metadata.
    pub meta_bytes: u64,
    /// Whether a living VM uses its extents.
    pub kept: Kept,
    /// Living VMs that do.
    pub used_by: Vec<User>,
}

/// Where a snapshot's memory is, as far as the store can know. What a guest has in frames of
/// its own, such as the pages that were copied for the snapshot, it cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kept {
    /// In guest memory: a living VM uses some of its extents.
    Hot,
    /// In the store only.
    Cold,
}

/// A living VM that uses a snapshot's extents: its guest's memory shows them, or it has the
/// snapshot open, or it makes another one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct User {
    /// Its name.
    pub vm: String,
    /// How many it uses.
    pub extents: u64,
}

/// What [`Store::check`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Complete snapshots.
    pub snapshots: u64,
    /// RAM files, those of living VM runs included.
    pub ram_files: u64,
    /// Living VM runs.
    pub living: u64,
    /// Extents that snapshots have, each once.
    pub extents: u64,
    /// What is wrong; empty if nothing is.
    pub problems: Vec<Problem>,
}

/// Something wrong in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// With which file.
    pub path: PathBuf,
    /// What it is.
    pub what: String,
}

impl Store {
    /// All snapshots by name, the broken ones included.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn snapshots(&self) -> Result<Vec<SnapshotEntry>, StoreError> {
        let locked = self.lock()?;
        let catalog = locked.read_catalog()?;
        let uses = locked.living_uses(&locked.runs()?)?;
        let mut states = Vec::new();
        for (name, head) in &catalog.heads {
            let state = match locked.load(name) {
                Ok(_) => SnapshotState::Complete(facts(name, head, &catalog, &uses)),
                Err(e @ StoreError::Broken { .. }) => broken(&e),
                Err(e) => return Err(e),
            };
            states.push((name.clone(), state));
        }
        for BrokenSnapshot { name, reason } in catalog.broken.iter().cloned() {
            states.push((name, SnapshotState::Broken { reason }));
        }
        states.sort_by(|(a, _), (b, _)| a.cmp(b));
        let entry = |(name, state)| {
            locked
                .label(&name)
                .map(|label| SnapshotEntry { name, label, state })
        };
        states.into_iter().map(entry).collect()
    }

    /// Names of the VMs whose memory is in the store now.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn living_vms(&self) -> Result<Vec<String>, StoreError> {
        let locked = self.lock()?;
        let uses = locked.living_uses(&locked.runs()?)?;
        Ok(uses.into_iter().map(|uses| uses.vm).collect())
    }

    /// Verifies everything in the store.
    ///
    /// # Errors
    /// The store cannot be read at all.
    pub fn check(&self) -> Result<CheckReport, StoreError> {
        let locked = self.lock()?;
        let catalog = locked.read_catalog()?;
        let runs = locked.runs()?;
        let mut report = CheckReport {
            snapshots: catalog.heads.len() as u64,
            ram_files: runs.len() as u64,
            living: runs.iter().filter(|run| run.alive).count() as u64,
            extents: catalog.needed().len(),
            problems: Vec::new(),
        };
        locked.check_manifests(&catalog, &mut report)?;
        locked.check_names(&mut report)?;
        locked.check_labels(&mut report)?;
        locked.check_uses(&runs, &mut report)?;
        if catalog.broken.is_empty() {
            locked.check_memory(&catalog, &runs, &mut report)?;
        }
        Ok(report)
    }
}

fn broken(error: &StoreError) -> SnapshotState {
    let cause = std::error::Error::source(error);
    SnapshotState::Broken {
        reason: cause.map_or_else(|| error.to_string(), ToString::to_string),
    }
}

fn facts(name: &SnapshotName, head: &Head, catalog: &Catalog, uses: &[Uses]) -> SnapshotFacts {
    let needed = head.needed();
    let others = catalog.heads.iter().filter(|(other, _)| other != name);
    let others = others.flat_map(|(_, head)| head.needed().runs());
    let others: ExtentSet = others.copied().collect();
    let own = needed.minus(&others).len();
    let users = uses.iter().map(|u| (u, u.extents.and(needed)));
    let users = users.filter(|(_, used)| !used.is_empty());
    let used_by: Vec<User> = users
        .map(|(u, used)| User {
            vm: u.vm.clone(),
            extents: used.len(),
        })
        .collect();
    SnapshotFacts {
        vm: head.vm.clone(),
        run: head.run,
        created_ns: head.created_ns,
        vases: head.vases,
        memory_bytes: head.pages.saturating_mul(4096),
        extents: needed.len(),
        own_bytes: own * BLOCK,
        shared_bytes: (needed.len() - own) * BLOCK,
        meta_bytes: head.meta_bytes,
        kept: if used_by.is_empty() {
            Kept::Cold
        } else {
            Kept::Hot
        },
        used_by,
    }
}

impl CheckReport {
    fn problem(&mut self, path: PathBuf, what: impl Into<String>) {
        let what = what.into();
        self.problems.push(Problem { path, what });
    }
}

impl Locked<'_> {
    fn check_manifests(
        &self,
        catalog: &Catalog,
        report: &mut CheckReport,
    ) -> Result<(), StoreError> {
        for (name, _) in &catalog.heads {
            match self.load(name) {
                Ok(_) => {}
                Err(e @ StoreError::Broken { .. }) => {
                    report.snapshots -= 1;
                    if let SnapshotState::Broken { reason } = broken(&e) {
                        report.problem(self.dir().manifest(name), reason);
                    }
                }
                Err(e) => return Err(e),
            }
        }
        for broken in &catalog.broken {
            report.problem(self.dir().manifest(&broken.name), &broken.reason);
        }
        for (file, _) in &catalog.gone {
            let path = self.dir().snapshots().join(file);
            report.problem(path, "a snapshot that was not removed completely: run gc");
        }
        Ok(())
    }

    /// Nothing but what belongs there, and nothing of the dead.
    fn check_names(&self, report: &mut CheckReport) -> Result<(), StoreError> {
        type Known = fn(&str) -> bool;
        let known: [(&str, Known); 7] = [
            ("", |name| {
                ["version", "lock"].contains(&name) || FOLDERS.contains(&name)
            }),
            ("ram", |name| is_name::<RunId>(name, ".ram")),
            ("uses", |name| is_name::<RunId>(name, "")),
            ("held", |name| is_name::<RunId>(name, "")),
            ("drafts", |name| is_name::<SnapshotName>(name, "")),
            ("labels", |name| {
                is_name::<SnapshotName>(name, "") || name == UNFINISHED
            }),
            ("snapshots", |name| {
                is_name::<SnapshotName>(name, ".snap") || name.ends_with(".gone")
            }),
        ];
        for (folder, known) in known {
            for name in self.dir().list(folder)? {
                if !known(&name) {
                    let path = self.dir().path().join(folder).join(name);
                    report.problem(path, "does not belong into a store");
                }
            }
        }
        Ok(())
    }

    fn check_labels(&self, report: &mut CheckReport) -> Result<(), StoreError> {
        let stale = self.stale_labels()?;
        for file in self.dir().list("labels")? {
            let path = self.dir().labels().join(&file);
            if stale.contains(&file) {
                report.problem(path, "is the label of no snapshot: run gc");
            } else if let Ok(name) = file.parse()
                && self.read_label(&name)?.is_none()
            {
                report.problem(path, "is damaged: that snapshot seems to have no label");
            }
        }
        Ok(())
    }

    fn check_uses(&self, runs: &[RunState], report: &mut CheckReport) -> Result<(), StoreError> {
        let there: ExtentSet = runs
            .iter()
            .map(|run| ExtentRun {
                run: run.id,
                first: 0,
                count: run.blocks,
            })
            .collect();
        for uses in self.living_uses(runs)? {
            if let Some(run) = uses.extents.minus(&there).runs().first() {
                let what = format!(
                    "uses block {} of {}, which is not there",
                    run.first, run.run
                );
                report.problem(self.dir().uses(uses.run), what);
            }
        }
        for name in self.dir().list("uses")? {
            if let Ok(id) = name.parse::<RunId>()
                && !runs.iter().any(|run| run.id == id && run.alive)
            {
                report.problem(self.dir().uses(id), "is of a dead VM: run gc");
            }
        }
        Ok(())
    }

    /// RAM files of dead runs hold nothing that nobody needs.
    fn check_memory(
        &self,
        catalog: &Catalog,
        runs: &[RunState],
        report: &mut CheckReport,
    ) -> Result<(), StoreError> {
        let uses = self.living_uses(runs)?;
        let needed = Needed::new(catalog, &uses);
        for run in runs.iter().filter(|run| !run.alive) {
            let path = self.dir().ram(run.id);
            let Some(file) = catalog::open(&path)? else {
                continue;
            };
            if !needed.any_of(run.id) {
                report.problem(path, "is of a dead VM, and nothing in it is needed: run gc");
                continue;
            }
            let all = ExtentRun {
                run: run.id,
                first: 0,
                count: run.blocks,
            };
            let gaps = needed.without(std::iter::once(all).collect());
            for gap in gaps.runs() {
                if has_data(&file, *gap).map_err(failed("examine", &path))? {
                    let what = format!(
                        "has memory from block {} that nobody needs: run gc",
                        gap.first
                    );
                    report.problem(path.clone(), what);
                    break;
                }
            }
        }
        Ok(())
    }
}

fn is_name<T: std::str::FromStr>(name: &str, suffix: &str) -> bool {
    name.strip_suffix(suffix)
        .is_some_and(|name| name.parse::<T>().is_ok())
}

/// Whether the file has memory somewhere in these blocks.
fn has_data(file: &std::fs::File, blocks: ExtentRun) -> Result<bool, Errno> {
    let Ok(start) = i64::try_from(blocks.first.saturating_mul(BLOCK)) else {
        return Ok(false);
    };
    match lseek(file, start, Whence::SeekData) {
        Ok(at) => {
            let end = (blocks.first + blocks.count).saturating_mul(BLOCK);
            Ok(u64::try_from(at).is_ok_and(|at| at < end))
        }
        Err(Errno::ENXIO) => Ok(false),
        Err(e) => Err(e),
    }
}
