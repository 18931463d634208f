// SPDX-License-Identifier: GPL-2.0-only
//! Podman, with crun.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use super::{Engine, IMAGE, NAME, ask, command, detached, import, log_file, server, switch};
use crate::subject::new_folder;
use crate::system::System;

/// A container of the network that is here.
pub(super) struct Podman {
    log: PathBuf,
}

impl Podman {
    /// Gives it the image.
    pub fn new() -> Result<Self> {
        import("podman")?;
        let log = new_folder("podman")?.join("log");
        Ok(Self { log })
    }

    /// What leaves the container's monitor behind.
    fn podman(&self, words: &[&str], more: impl Iterator<Item = &'static str>) -> Result<Duration> {
        let mut command = command(&[&["podman"], words].concat());
        detached(command.args(more), &self.log, log_file(&self.log)?)
    }
}

impl Engine for Podman {
    fn switch(&mut self, system: System) -> Result<()> {
        switch("podman", system)
    }

    fn run(&mut self) -> Result<()> {
        let words = ["run", "-d", "--name", NAME, "--network", "host", IMAGE];
        self.podman(&words, server()).map(drop)
    }

    fn pid(&self) -> Result<i32> {
        Ok(ask(&["podman", "inspect", "-f", "{{.State.Pid}}", NAME])?.parse()?)
    }

    fn checkpoint(&mut self) -> Result<Duration> {
        self.podman(&["container", "checkpoint", NAME], [].into_iter())
    }

    fn restore(&mut self) -> Result<Duration> {
        // It removes the checkpoint.
        self.podman(&["container", "restore", NAME], [].into_iter())
    }

    fn forget(&mut self) -> Result<()> {
        super::forget_snapshots()
    }

    fn remove(&mut self) -> Result<()> {
        ask(&["podman", "rm", "-f", "-t", "0", NAME]).map(drop)
    }
}
