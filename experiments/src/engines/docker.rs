// SPDX-License-Identifier: GPL-2.0-only
//! Docker.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Engine, IMAGE, NAME, ask, command, import, server, switch, wait_for};
use crate::criu::timed;
use crate::system::System;

/// A container with a network of its own, whose port Docker passes on.
#[derive(Debug)]
pub struct Docker(());

/// Name of the checkpoint.
const CHECKPOINT: &str = "checkpoint";

impl Docker {
    /// Waits for Docker and gives it the image.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn new() -> Result<Self> {
        eprintln!("waiting for Docker");
        wait_for("Docker", || ask(&["docker", "info"]).map(drop))?;
        import("docker")?;
        Ok(Self(()))
    }
}

impl Engine for Docker {
    fn switch(&mut self, system: System) -> Result<()> {
        switch("docker", system)
    }

    fn run(&mut self) -> Result<()> {
        let words = [
            "docker",
            "run",
            "-d",
            "--name",
            NAME,
            "-p",
            "6379:6379",
            IMAGE,
        ];
        timed(command(&words).args(server())).map(drop)
    }

    fn pid(&self) -> Result<i32> {
        Ok(ask(&["docker", "inspect", "-f", "{{.State.Pid}}", NAME])?.parse()?)
    }

    fn checkpoint(&mut self) -> Result<Duration> {
        let words = ["docker", "checkpoint", "create", NAME, CHECKPOINT];
        let took = timed(&mut command(&words))?.wall;
        // It hears of the end later, and does not start what runs.
        wait_for("Docker", || {
            let pid = self.pid()?;
            ensure!(pid == 0, "the container runs still");
            Ok(())
        })?;
        Ok(took)
    }

    fn restore(&mut self) -> Result<Duration> {
        let words = ["docker", "start", "--checkpoint", CHECKPOINT, NAME];
        Ok(timed(&mut command(&words))?.wall)
    }

    fn forget(&mut self) -> Result<()> {
        ask(&["docker", "checkpoint", "rm", NAME, CHECKPOINT])?;
        super::forget_snapshots()
    }

    fn remove(&mut self) -> Result<()> {
        ask(&["docker", "rm", "-f", NAME]).map(drop)
    }
}
