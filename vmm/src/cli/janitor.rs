// SPDX-License-Identifier: GPL-2.0-only
//! A process beside each monitor whose guest's memory is in a store.
//!
//! That memory is files, so the end of a killed monitor frees nothing: whom the kernel ended for
//! want of memory would leave all of it taken until somebody runs `mvasvm` again. So the janitor
//! waits for its monitor's end, and then does what any `mvasvm` does that finds a killed one.

use std::io::{self, PipeWriter, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mvasvm::config::VmName;

use super::manage::wait_gone;
use super::vmdir::Vms;

/// What the monitor sends at its end, if it has one of its own.
const WELL: u8 = b'.';
/// How long a killed monitor may take to be gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// A monitor's connection to its janitor. Dropping it says that nothing is left to do.
#[derive(Debug)]
pub(super) struct Janitor(PipeWriter);

impl Janitor {
    /// Starts one. It outlives whoever kills this process's group, and holds none of its files.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(name: &VmName) -> Result<Self> {
        let (end, ours) = io::pipe().context("cannot make a pipe")?;
        Command::new("/proc/self/exe")
            .arg0("mvasvm")
            .args(["janitor", name.as_str()])
            .current_dir("/")
            .stdin(end)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start the janitor")?;
        Ok(Self(ours))
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        // If it has been killed, there is nobody to be told.
        let _ = self.0.write_all(&[WELL]);
    }
}

/// The janitor itself.
pub(super) fn run(name: &VmName) -> Result<u8> {
    let mut said = Vec::new();
    io::stdin().lock().read_to_end(&mut said)?;
    if said == [WELL] {
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
