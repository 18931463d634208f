// SPDX-License-Identifier: GPL-2.0-only
//! runc by itself.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Engine, NAME, ROOT, ask, command, detached, server, switch};
use crate::criu::timed;
use crate::subject::new_folder;
use crate::system::System;

/// A container of the network that is here.
pub(super) struct Runc {
    bundle: PathBuf,
}

impl Runc {
    /// Makes a bundle.
    pub fn new() -> Result<Self> {
        let bundle = new_folder("runc")?;
        let script = format!("mkdir rootfs; {ROOT} | tar -x -C rootfs; runc spec");
        timed(command(&["sh", "-ec", &script]).current_dir(&bundle))?;
        let path = bundle.join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&path)?)?;
        spec["process"]["args"] = server().collect();
        spec["process"]["terminal"] = json!(false);
        let namespaces = spec["linux"]["namespaces"].as_array_mut();
        let namespaces = namespaces.context("runc's specification has no namespaces")?;
        namespaces.retain(|namespace| namespace["type"] != "network");
        fs::write(&path, spec.to_string())?;
        Ok(Self { bundle })
    }

    /// `runc VERB` of the container; what it starts has no streams.
    fn runc(&self, words: &[&str]) -> Result<Duration> {
        let log = self.bundle.join("log");
        let mut command = Command::new("runc");
        command.arg("--log").arg(&log).args(words).arg(NAME);
        detached(command.current_dir(&self.bundle), &log, Stdio::null())
    }
}

impl Engine for Runc {
    fn switch(&mut self, system: System) -> Result<()> {
        switch("runc", system)
    }

    fn run(&mut self) -> Result<()> {
        self.runc(&["run", "-d"]).map(drop)
    }

    fn pid(&self) -> Result<i32> {
        let state: Value = serde_json::from_str(&ask(&["runc", "state", NAME])?)?;
        let pid = state["pid"].as_i64().context("runc tells no PID")?;
        Ok(i32::try_from(pid)?)
    }

    fn checkpoint(&mut self) -> Result<Duration> {
        self.runc(&[
            "checkpoint",
            "--image-path",
            "images",
            "--work-path",
            "work",
        ])
    }

    fn restore(&mut self) -> Result<Duration> {
        self.runc(&[
            "restore",
            "-d",
            "--image-path",
            "images",
            "--work-path",
            "work",
        ])
    }

    fn forget(&mut self) -> Result<()> {
        fs::remove_dir_all(self.bundle.join("images")).context("images of the container")?;
        super::forget_snapshots()
    }

    fn remove(&mut self) -> Result<()> {
        self.runc(&["delete", "-f"]).map(drop)
    }
}
