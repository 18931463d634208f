// SPDX-License-Identifier: GPL-2.0-only
//! What is in the cache, and cleaning it.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use crate::cache::{self, Cache, disk_bytes};
use crate::kernel::{self, Flavor, SELFTESTS};
use crate::workspace::Workspace;
use crate::{emulator, image, tools};

/// All kinds of entries; each has the lock of its name, except the self-tests,
/// which are built under the kernel's.
fn kinds() -> Vec<(&'static str, &'static str)> {
    let mut kinds = vec![
        ("kernel", "kernel"),
        ("kernel-debug", "kernel-debug"),
        (SELFTESTS, "kernel"),
        (emulator::KIND, emulator::KIND),
        (tools::KIND, tools::KIND),
    ];
    for kind in image::Flavor::ALL.map(|f| [f.base(), f.image()]).concat() {
        kinds.push((kind, kind));
    }
    kinds
}

/// What the cache holds.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The folder of the cache.
    pub cache: PathBuf,
    /// What this checkout needs before its image is packed.
    pub needed: Vec<Needed>,
    /// The names under `current/` and what they point to.
    pub current: Vec<Current>,
    /// Every entry.
    pub entries: Vec<Entry>,
}

/// An entry that this checkout needs.
#[derive(Debug, Serialize)]
pub struct Needed {
    /// Its kind.
    pub kind: &'static str,
    /// Its folder.
    pub path: PathBuf,
    /// Whether it is in the cache.
    pub built: bool,
}

/// A name under `current/`.
#[derive(Debug, Serialize)]
pub struct Current {
    /// The name.
    pub name: String,
    /// What it points to.
    pub path: PathBuf,
    /// Whether that is there.
    pub present: bool,
}

/// An entry of the cache.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// Its kind.
    pub kind: String,
    /// Its folder.
    pub path: PathBuf,
    /// Whether it is whole, or what an interrupted build left.
    pub whole: bool,
    /// What it takes on the disk, in bytes.
    pub disk_bytes: u64,
}

/// Looks at the cache.
///
/// # Errors
/// When the cache or the checkout cannot be read.
pub fn status(cache: &Cache, workspace: &Workspace) -> Result<Status> {
    let mut current = Vec::new();
    for link in fs::read_dir(cache.dir("current")?)? {
        let link = link?;
        if let Ok(path) = fs::read_link(link.path()) {
            current.push(Current {
                name: link.file_name().to_string_lossy().into_owned(),
                present: path.exists(),
                path,
            });
        }
    }
    current.sort_by(|a, b| a.name.cmp(&b.name));
    let entries = cache.entries(&kinds().iter().map(|(kind, _)| *kind).collect::<Vec<_>>())?;
    Ok(Status {
        cache: cache.root().to_path_buf(),
        needed: needed(cache, workspace)?,
        current,
        entries: entries
            .into_iter()
            .map(|e| Entry {
                disk_bytes: disk_bytes(&e.path),
                kind: e.kind,
                path: e.path,
                whole: e.whole,
            })
            .collect(),
    })
}

fn needed(cache: &Cache, workspace: &Workspace) -> Result<Vec<Needed>> {
    let kernel = kernel::Builder::new(cache, workspace)?;
    let mut keys = vec![
        ("kernel", kernel.kernel_key(Flavor::Release)?),
        ("kernel-debug", kernel.kernel_key(Flavor::Debug)?),
        (SELFTESTS, kernel.selftests_key()?),
        (emulator::KIND, emulator::key()),
    ];
    for flavor in image::Flavor::ALL {
        let images = image::Builder::new(cache, workspace, flavor);
        keys.push((flavor.base(), images.base_key()?));
    }
    Ok(keys
        .into_iter()
        .map(|(kind, key)| Needed {
            kind,
            path: cache.entry(kind, &key),
            built: cache.find(kind, &key).is_some(),
        })
        .collect())
}

/// Removes what neither this checkout nor `current/` needs: old entries, what
/// interrupted builds left, and work folders. Returns what was removed.
///
/// # Errors
/// When the cache cannot be read or something cannot be removed.
pub fn gc(cache: &Cache, workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let mut keep = cache.in_use()?;
    keep.extend(needed(cache, workspace)?.into_iter().map(|n| n.path));
    let mut removed = Vec::new();
    for (kind, lock) in kinds() {
        let _lock = cache.lock(lock, || eprintln!("  waiting for a build of the {lock} …"))?;
        for entry in cache.entries(&[kind])? {
            if !entry.whole || !keep.contains(&entry.path) {
                cache::remove(&entry.path)?;
                removed.push(entry.path);
            }
        }
        let work = cache.root().join("work").join(kind);
        if work.exists() {
            cache::remove(&work)?;
            removed.push(work);
        }
    }
    Ok(removed)
}
