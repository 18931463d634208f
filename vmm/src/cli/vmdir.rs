// SPDX-License-Identifier: GPL-2.0-only
//! The folders of VMs. A folder's lock is held by its VM's monitor as long as that lives. After
//! that the folder is the VM's record, until enough others ended later.
//!
//! Two kinds of locks, taken in this order:
//! - that of all folders (`.lock`), for moments: by whoever looks whether a folder's lock is
//!   held, takes it, or changes a record. So no two commands settle or remove one folder, and
//!   nobody mistakes another's look for a monitor.
//! - a folder's own, by its monitor, which then writes there without the other.

#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mvas_host::store::{Store, StoreOptions};
use mvasvm::config::VmName;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::paths;
use super::record::{self, Cause, End, VmInfo};
use crate::sim::lock;

const LOCK: &str = "lock";
const ALL_LOCK: &str = ".lock";
/// How long a monitor that has let go of its lock may hold its memory: KVM takes its time.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);
/// So many records of VMs are kept: those that ended last.
const KEPT: usize = 16;

/// All folders of VMs.
#[derive(Debug)]
pub(crate) struct Vms {
    dir: PathBuf,
}

/// The lock of all folders.
struct AllLock(#[expect(dead_code, reason = "held, not read")] Flock<fs::File>);

/// The folder of a VM of this process. Dropping it without an end says that the monitor failed.
#[derive(Debug)]
pub(crate) struct VmDir {
    path: PathBuf,
    info: Option<VmInfo>,
    _lock: Flock<fs::File>,
}

/// A VM of another process, or its record.
#[derive(Debug)]
pub(crate) struct FoundVm {
    pub path: PathBuf,
    pub info: VmInfo,
}

impl Vms {
    /// Those of this user.
    ///
    /// # Errors
    /// The run-time folder cannot be used.
    pub fn open() -> Result<Self> {
        Ok(Self {
            dir: paths::runtime_dir()?,
        })
    }

    /// Takes a name.
    ///
    /// # Errors
    /// A VM of that name runs, or the folder cannot be made.
    pub fn claim(&self, name: &VmName) -> Result<VmDir> {
        let all = self.lock()?;
        // The memory of a killed one of that name is given back, too.
        self.look(&all)?;
        let path = self.dir.join(name.as_str());
        paths::private_dir(&path)?;
        let Some(lock) = lock(&path.join(LOCK))? else {
            let pid = record::read(&path).map(|info| format!(", process {}", info.pid));
            bail!(
                "a VM named {name} runs already{}: choose another --name, or `mvasvm stop {name}`",
                pid.unwrap_or_default()
            );
        };
        Ok(VmDir {
            path,
            info: None,
            _lock: lock,
        })
    }

    /// Finds a running VM.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn running(&self, name: &VmName) -> Result<FoundVm> {
        let found = self.get(name)?.filter(FoundVm::runs);
        found.with_context(|| {
            format!("there is no running VM named {name} (`mvasvm ls` lists them)")
        })
    }

    /// Finds a VM that runs or has ended.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn find(&self, name: &VmName) -> Result<FoundVm> {
        self.get(name)?.with_context(|| {
            format!("there is no VM named {name}, running or ended (`mvasvm ls --all` lists them)")
        })
    }

    /// All VMs that run or have ended, by name.
    ///
    /// # Errors
    /// The run-time folder cannot be read.
    pub fn all(&self) -> Result<Vec<FoundVm>> {
        self.look(&self.lock()?)
    }

    /// Removes the records of these VMs: of all, or, if one cannot be, of none.
    ///
    /// # Errors
    /// There is none of a name, or it runs.
    pub fn remove(&self, names: &[VmName]) -> Result<()> {
        let all = self.lock()?;
        for name in names {
            let path = self.dir.join(name.as_str());
            if is_held(&path, &all)? {
                bail!(
                    "{name} runs, so its record stays: end it with `mvasvm stop {name}` or `mvasvm \
                     kill {name}` first"
                );
            }
            if settle(&path, &all)?.is_none() {
                bail!("there is no ended VM named {name} (`mvasvm ls --all` lists them)");
            }
        }
        for name in names {
            remove(&self.dir.join(name.as_str()), &all)?;
        }
        Ok(())
    }

    /// Removes the records of all VMs that have ended.
    ///
    /// # Errors
    /// The run-time folder cannot be read, or one of them cannot be removed.
    pub fn remove_ended(&self) -> Result<()> {
        let all = self.lock()?;
        for vm in self.look(&all)? {
            if !is_held(&vm.path, &all)? {
                remove(&vm.path, &all)?;
            }
        }
        Ok(())
    }

    fn lock(&self) -> Result<AllLock> {
        let path = self.dir.join(ALL_LOCK);
        let cannot = || format!("cannot lock {}", path.display());
        let mut file = fs::File::create(&path).with_context(cannot)?;
        loop {
            match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(lock) => return Ok(AllLock(lock)),
                Err((again, Errno::EINTR)) => file = again,
                Err((_, error)) => return Err(io::Error::from(error)).with_context(cannot),
            }
        }
    }

    fn get(&self, name: &VmName) -> Result<Option<FoundVm>> {
        let all = self.lock()?;
        look_at(self.dir.join(name.as_str()), &all)
    }

    /// Looks at all folders, and removes the records that are too many.
    fn look(&self, all: &AllLock) -> Result<Vec<FoundVm>> {
        let mut found = Vec::new();
        let cannot = || self.dir.display().to_string();
        for entry in fs::read_dir(&self.dir).with_context(cannot)? {
            let path = entry?.path();
            let is_vm = |name: &str| name.parse::<VmName>().is_ok();
            if !path.file_name().and_then(|n| n.to_str()).is_some_and(is_vm) {
                continue;
            }
            match look_at(path, all) {
                Ok(vm) => found.extend(vm),
                // One broken folder does not hide the others.
                Err(error) => tracing::warn!("{error:#}"),
            }
        }
        // Those that run first, then those that ended last.
        found.sort_by_key(|vm| {
            std::cmp::Reverse(vm.info.end.as_ref().map_or(u64::MAX, |end| end.at))
        });
        let running = found.iter().filter(|vm| vm.runs()).count();
        for vm in found.split_off(found.len().min(running + KEPT)) {
            // It may be a name that was just claimed.
            if !is_held(&vm.path, all)? {
                remove(&vm.path, all)?;
            }
        }
        found.sort_by(|a, b| a.info.name.cmp(&b.info.name));
        Ok(found)
    }
}

impl FoundVm {
    /// Whether it had not ended when it was found.
    pub fn runs(&self) -> bool {
        self.info.end.is_none()
    }

    /// Whether its monitor lives.
    ///
    /// # Errors
    /// Its lock cannot be looked at.
    pub fn lives(&self) -> Result<bool> {
        let dir = self.path.parent().unwrap_or(Path::new("/")).to_owned();
        is_held(&self.path, &Vms { dir }.lock()?)
    }

    /// The guest's agent.
    pub fn vsock(&self) -> PathBuf {
        self.path.join(record::VSOCK)
    }
}

impl VmDir {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the record of an earlier VM of the name. From here on the folder is this one's.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn clear(&mut self) -> Result<()> {
        for entry in fs::read_dir(&self.path)?.flatten() {
            if entry.file_name() != LOCK {
                fs::remove_file(entry.path())
                    .with_context(|| format!("cannot remove {}", entry.path().display()))?;
            }
        }
        Ok(())
    }

    /// Says what the VM is.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn describe(&mut self, info: VmInfo) -> Result<()> {
        record::write(&self.path, &info)
            .with_context(|| format!("cannot write to {}", self.path.display()))?;
        self.info = Some(info);
        Ok(())
    }

    /// Says how it ended, and makes the folder its record. Call it when its memory is given back.
    pub fn end(mut self, end: End) {
        self.close(end);
    }

    fn close(&mut self, end: End) {
        let Some(mut info) = self.info.take() else {
            return;
        };
        info.end = Some(end);
        if let Err(error) = record::close(&self.path, &info) {
            tracing::warn!("cannot keep the record of {}: {error}", info.name);
        }
    }
}

impl Drop for VmDir {
    fn drop(&mut self) {
        let text = "internal error: the monitor panicked";
        self.close(End::new(Cause::Failed, text, None));
        // Claimed, but nothing came of it, and no earlier record is there.
        if record::read(&self.path).is_none() {
            let dir = self.path.parent().unwrap_or(Path::new("/")).to_owned();
            let removed = Vms { dir }.lock().and_then(|all| remove(&self.path, &all));
            if let Err(error) = removed {
                tracing::warn!("{error:#}");
            }
        }
    }
}

/// Whether a monitor lives that has this folder.
fn is_held(path: &Path, _: &AllLock) -> Result<bool> {
    let lock_file = path.join(LOCK);
    Ok(lock_file.exists() && lock(&lock_file)?.is_none())
}

fn look_at(path: PathBuf, all: &AllLock) -> Result<Option<FoundVm>> {
    let info = if is_held(&path, all)? {
        record::read(&path)
    } else {
        settle(&path, all)?
    };
    Ok(info.map(|info| FoundVm { path, info }))
}

/// Makes what a killed monitor left a record; what is none is removed. Nobody holds the
/// folder's lock.
fn settle(path: &Path, all: &AllLock) -> Result<Option<VmInfo>> {
    let Some(mut info) = record::read(path) else {
        remove(path, all)?;
        return Ok(None);
    };
    if info.end.is_none() {
        let store = info.store.as_deref();
        if let Err(error) = store.map_or(Ok(()), |store| give_back(&info.name, store)) {
            tracing::warn!("cannot give back the memory of {}: {error:#}", info.name);
        }
        info.end = Some(End::unsaid(path));
        record::close(path, &info)
            .with_context(|| format!("cannot keep the record of {}", info.name))?;
    }
    Ok(Some(info))
}

fn remove(path: &Path, _: &AllLock) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Gives back the memory that a VM had in a store, and whose monitor may still be on its way out.
///
/// # Errors
/// The store cannot be opened.
pub(super) fn give_back(name: &str, store: &Path) -> Result<()> {
    if !store.is_dir() {
        return Ok(());
    }
    let options = StoreOptions {
        force: true, // its store, wherever it is
        ..StoreOptions::default()
    };
    let deadline = Instant::now() + EXIT_PATIENCE;
    let lives = || -> Result<bool> {
        // Opening cleans up.
        let vms = Store::open(store, options)?.living_vms()?;
        Ok(vms.iter().any(|vm| vm == name))
    };
    // If another VM has the name by now, that one is waited for, too. It does no harm.
    while lives()? && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
