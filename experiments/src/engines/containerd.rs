// SPDX-License-Identifier: GPL-2.0-only
//! containerd by itself, through its `ctr`.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Docker, Engine, IMAGE, NAME, ask, command, detached, server, switch};
use crate::subject::new_folder;
use crate::system::System;

/// A container of the network that is here.
pub(super) struct Containerd {
    log: PathBuf,
}

/// Name of the checkpoint, which is an image.
const CHECKPOINT: &str = "checkpoint";

fn image() -> String {
    format!("docker.io/library/{IMAGE}:latest")
}

impl Containerd {
    /// Gives it the image, which Docker makes.
    pub fn new() -> Result<Self> {
        Docker::new()?;
        let dir = new_folder("containerd")?;
        let archive = dir.join("image.tar");
        let path = archive.to_str().context("a path in UTF-8")?;
        ask(&["docker", "save", IMAGE, "-o", path])?;
        ask(&["ctr", "image", "import", path])?;
        std::fs::remove_file(&archive)?;
        Ok(Self {
            log: dir.join("log"),
        })
    }

    /// What may leave a process behind.
    fn ctr(&self, words: &[&str], more: impl Iterator<Item = &'static str>) -> Result<Duration> {
        let mut command = command(&[&["ctr"], words].concat());
        detached(command.args(more), &self.log, Stdio::null())
    }
}

impl Engine for Containerd {
    fn switch(&mut self, system: System) -> Result<()> {
        switch("containerd", system)
    }

    fn run(&mut self) -> Result<()> {
        self.ctr(&["run", "-d", "--net-host", &image(), NAME], server())
            .map(drop)
    }

    fn pid(&self) -> Result<i32> {
        let tasks = ask(&["ctr", "task", "ls"])?;
        let mut rows = tasks.lines().map(str::split_whitespace);
        let pid = rows.find_map(|mut row| row.next().filter(|name| *name == NAME).and(row.next()));
        Ok(pid.context("containerd has no such task")?.parse()?)
    }

    fn checkpoint(&mut self) -> Result<Duration> {
        let words = [
            "container",
            "checkpoint",
            "--rw",
            "--task",
            NAME,
            CHECKPOINT,
        ];
        let took = self.ctr(&words, [].into_iter())?;
        // The container goes on.
        self.remove()?;
        Ok(took)
    }

    fn restore(&mut self) -> Result<Duration> {
        let words = ["container", "restore", "--rw", "--live", NAME, CHECKPOINT];
        self.ctr(&words, [].into_iter())
    }

    fn forget(&mut self) -> Result<()> {
        ask(&["ctr", "image", "rm", "--sync", CHECKPOINT])?;
        super::forget_snapshots()
    }

    fn remove(&mut self) -> Result<()> {
        ask(&["ctr", "task", "rm", "-f", NAME])?;
        ask(&["ctr", "container", "rm", NAME]).map(drop)
    }
}
