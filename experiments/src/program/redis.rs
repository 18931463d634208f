// SPDX-License-Identifier: GPL-2.0-only
//! Redis: [`crate::redis`].

use std::path::Path;
use std::process::Child;

use anyhow::Result;

use super::{Program, net};
use crate::redis::{self, Client};

pub(super) struct Redis;

const PORT: u16 = 6379;

impl Program for Redis {
    fn start(&self, dir: &Path, _size_mib: usize) -> Result<Child> {
        redis::start(dir)
    }

    fn load(&self, size_mib: usize) -> Result<()> {
        redis::load(size_mib).map(drop)
    }

    fn ask(&self) -> Result<()> {
        Client::connect()?.write_and_read()
    }

    fn state(&self) -> Result<String> {
        let state = Client::connect()?.state()?;
        Ok(format!("{} keys, digest {}", state.keys, state.digest))
    }

    fn is_busy(&self, _pid: i32) -> Result<bool> {
        net::is_connected(PORT)
    }
}
