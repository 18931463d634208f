//! A VM's run-time folder. Its lock is held by the VM's monitor as long as it lives, so a
//! folder whose lock is free is what a killed monitor left, and is removed by whoever finds
//! it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mvas_host::store::{Store, StoreOptions};
use mvasvm::config::VmName;
use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};

use super::paths;
use crate::sim::lock;

const LOCK: &str = "lock";
/// How long a monitor that has let go of its lock may hold its memory: KVM takes its time.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);

/// What runs a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Hw {
    /// This host's KVM.
    Kvm,
    /// A simulated host.
    Sim,
}

/// `vm.json`: what is known about a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VmInfo {
    pub name: String,
    /// The monitor's process.
    pub pid: u32,
    pub hw: Hw,
    /// Folder of the simulated host that it runs in.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sim: Option<PathBuf>,
    /// Directory of the snapshot store that its memory is in.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub store: Option<PathBuf>,
    pub mem_bytes: u64,
    pub cpus: u32,
    pub kernel: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image: Option<PathBuf>,
    /// Seconds since 1970.
    pub started: u64,
}

/// The folder of a VM of this process. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct VmDir {
    path: PathBuf,
    _lock: Flock<fs::File>,
}

impl VmDir {
    /// Takes the name.
    ///
    /// # Errors
    /// A VM of that name runs, or the folder cannot be made.
    pub fn claim(name: &VmName) -> Result<Self> {
        let path = paths::runtime_dir()?.join(name.as_str());
        paths::private_dir(&path)?;
        let Some(lock) = lock(&path.join(LOCK))? else {
            let pid = read(&path).map(|info| format!(", process {}", info.pid));
            bail!(
                "a VM named {name} runs already{}: choose another --name, or `mvasvm stop {name}`",
                pid.unwrap_or_default()
            );
        };
        let dir = Self { path, _lock: lock };
        // What is left of a killed one.
        for entry in fs::read_dir(&dir.path)?.flatten() {
            if entry.file_name() != LOCK {
                fs::remove_file(entry.path())
                    .with_context(|| format!("cannot remove {}", entry.path().display()))?;
            }
        }
        Ok(dir)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says what the VM is.
    pub fn describe(&self, info: &VmInfo) -> Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.path)?;
        serde_json::to_writer_pretty(&mut file, info)?;
        file.write_all(b"\n")?;
        file.persist(self.path.join("vm.json"))?;
        Ok(())
    }
}

impl Drop for VmDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A VM of another process.
#[derive(Debug)]
pub(crate) struct FoundVm {
    pub path: PathBuf,
    pub info: VmInfo,
}

impl FoundVm {
    /// Whether its monitor lives.
    pub fn lives(&self) -> bool {
        is_live(&self.path)
    }

    /// The guest's agent.
    pub fn vsock(&self) -> PathBuf {
        self.path.join("vsock.sock")
    }
}

/// Finds a running VM.
///
/// # Errors
/// There is none of that name.
pub(crate) fn find(name: &VmName) -> Result<FoundVm> {
    let path = paths::runtime_dir()?.join(name.as_str());
    let none = || format!("there is no running VM named {name} (`mvasvm ls` lists them)");
    if !is_live(&path) {
        remove_stale(&path);
        bail!(none());
    }
    let info = read(&path).with_context(none)?;
    Ok(FoundVm { path, info })
}

/// All running VMs, by name.
///
/// # Errors
/// The run-time folder cannot be read.
pub(crate) fn all() -> Result<Vec<FoundVm>> {
    let dir = paths::runtime_dir()?;
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        let is_vm = |name: &str| name.parse::<VmName>().is_ok();
        if !path.file_name().and_then(|n| n.to_str()).is_some_and(is_vm) {
            continue;
        }
        if !is_live(&path) {
            remove_stale(&path);
        } else if let Some(info) = read(&path) {
            found.push(FoundVm { path, info });
        }
    }
    found.sort_by(|a, b| a.info.name.cmp(&b.info.name));
    Ok(found)
}

fn is_live(path: &Path) -> bool {
    let lock_file = path.join(LOCK);
    lock_file.exists() && matches!(lock(&lock_file), Ok(None))
}

fn remove_stale(path: &Path) {
    // Taken, so that nobody claims the name while it goes.
    if let Ok(Some(_lock)) = lock(&path.join(LOCK)) {
        if let Some(info) = read(path)
            && let Err(error) = give_back(&info)
        {
            tracing::warn!("cannot give back the memory of {}: {error:#}", info.name);
        }
        match fs::remove_dir_all(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("cannot remove {}: {e}", path.display());
            }
            _ => {}
        }
    }
}

/// Gives back the memory of a killed VM, whose monitor may still be on its way out.
fn give_back(info: &VmInfo) -> Result<()> {
    let Some(dir) = info.store.as_deref().filter(|dir| dir.is_dir()) else {
        return Ok(());
    };
    let options = StoreOptions {
        limit: None,
        force: true, // its store, wherever it is
    };
    let deadline = Instant::now() + EXIT_PATIENCE;
    // Opening cleans up. Nobody else can have this name: we have its lock.
    while Store::open(dir, options)?
        .living_vms()?
        .contains(&info.name)
        && Instant::now() < deadline
    {
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn read(path: &Path) -> Option<VmInfo> {
    serde_json::from_slice(&fs::read(path.join("vm.json")).ok()?).ok()
}
