// SPDX-License-Identifier: GPL-2.0-only
//! A process beside each monitor whose guest's memory is in a store.
//!
//! That memory is files, so the end of a killed monitor frees nothing: whom the kernel ended for
//! want of memory would leave all of it taken until somebody runs `mvasvm` again. So the janitor
//! waits for its monitor's end, and then does what any `mvasvm` does that finds a killed one. It
//! also waits for a monitor whose end is in order but for a disk that hangs: a thread of it still
//! has the memory, until the host lets the process go.

use std::io::{self, PipeWriter, Read, Write};
use std::mem::ManuallyDrop;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mvas_host::store::Store;
use mvasvm::config::VmName;

use super::manage::wait_gone;
use super::vmdir::{Vms, give_back};

/// What the monitor sends at its end, if it has one of its own.
const WELL: u8 = b'.';
/// What it sends then if its memory is still in use, and goes with the process.
const HELD: u8 = b'!';
/// How long a killed monitor may take to be gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// A monitor's connection to its janitor. Dropping it says what is left to do.
#[derive(Debug)]
pub(super) struct Janitor {
    /// Closed by the end of the process, when nobody has its files any more.
    pipe: ManuallyDrop<PipeWriter>,
    store: Store,
}

impl Janitor {
    /// Starts one, for a VM whose memory will be in this store. It outlives whoever kills this
    /// process's group, and holds none of its files.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(name: &VmName, store: Store) -> Result<Self> {
        let (end, ours) = io::pipe().context("cannot make a pipe")?;
        Command::new("/proc/self/exe")
            .arg0("mvasvm")
            .args(["janitor", name.as_str()])
            .arg(store.path())
            .current_dir("/")
            .stdin(end)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start the janitor")?;
        Ok(Self {
            pipe: ManuallyDrop::new(ours),
            store,
        })
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        let word = if self.store.is_shared() { HELD } else { WELL };
        // If it has been killed, there is nobody to be told.
        let _ = self.pipe.write_all(&[word]);
    }
}

/// The janitor itself.
pub(super) fn run(name: &VmName, store: &Path) -> Result<u8> {
    let mut stdin = io::stdin().lock();
    let mut word = [0];
    let is_said = stdin.read(&mut word)? == 1;
    if is_said && word == [WELL] {
        return Ok(0);
    }
    stdin.read_to_end(&mut Vec::new())?;
    if is_said {
        // Its record is complete, and may be another VM's by now.
        give_back(name.as_str(), store)?;
        return Ok(0);
    }
    let vms = Vms::open()?;
    // Else somebody was faster.
    if let Ok(vm) = vms.running(name) {
        wait_gone(&vm, Instant::now() + PATIENCE)?;
        vms.all()?;
    }
    Ok(0)
}
