// SPDX-License-Identifier: GPL-2.0-only
//! No engine: a process.

use std::path::Path;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Engine, NAME};
use crate::criu::timed;
use crate::redis;
use crate::subject::{DIR, Subject, use_high_pids};
use crate::system::{Snapshot, System};

pub(super) struct Process {
    server: Option<Child>,
    pid: i32,
    snapshot: Snapshot,
}

impl Process {
    pub fn new() -> Result<Self> {
        Ok(Self {
            server: None,
            pid: 0,
            snapshot: Snapshot::new(System::CriuTmpfs, NAME)?,
        })
    }
}

impl Engine for Process {
    fn switch(&mut self, system: System) -> Result<()> {
        self.snapshot = Snapshot::new(system, NAME)?;
        Ok(())
    }

    fn run(&mut self) -> Result<()> {
        use_high_pids()?;
        std::fs::create_dir_all(DIR)?;
        let server = redis::start(Path::new(DIR))?;
        self.pid = i32::try_from(server.id())?;
        self.server = Some(server);
        Ok(())
    }

    fn pid(&self) -> Result<i32> {
        Ok(self.pid)
    }

    fn checkpoint(&mut self) -> Result<Duration> {
        let dump = self.snapshot.dump(self.pid)?;
        // Its PID must be free for the restore; who was restored is not our child.
        if let Some(mut server) = self.server.take() {
            server.wait().context("redis-server")?;
        }
        Ok(dump.wall)
    }

    fn restore(&mut self) -> Result<Duration> {
        Ok(timed(&mut self.snapshot.restoring())?.wall)
    }

    fn forget(&mut self) -> Result<()> {
        self.snapshot.delete()
    }

    fn remove(&mut self) -> Result<()> {
        if let Some(mut server) = self.server.take() {
            server.kill()?;
            server.wait()?;
            return Ok(());
        }
        Subject::at(self.pid).end()
    }
}
