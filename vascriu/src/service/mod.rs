// SPDX-License-Identifier: GPL-2.0-only
//! CRIUs that are started before they are needed: a quarter of a small dump is CRIU's exec and
//! the linking of some twenty libraries.
//!
//! `vascriu serve` keeps workers ([`worker`]). Each is a process with a CRIU of its own
//! (`criu swrk`), does one job, and ends with it; then the next one is made, so that no job
//! shares its CPU with that. A command ([`client`]) takes a worker where what CRIU does there is
//! what it would do as the command's own child: the same namespaces, rights, cgroup, CPUs, and no
//! option that needs the command's terminal, descriptors or environment. Otherwise, and where
//! there is no worker, the command starts CRIU itself: nothing depends on the service.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::criu::order::Order;
use crate::criu::work;

pub mod client;
pub mod worker;

/// Below [`work::root`]: for each worker its socket, which CRIU's PID names.
const READY: &str = "ready";

/// The directory of the workers that wait.
#[must_use]
pub fn ready() -> PathBuf {
    work::root().join(READY)
}

/// The first word of a worker: the job is yours. With it comes the file for the plugin's
/// report.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    /// The number of that file in CRIU.
    report: i32,
}

/// What a worker shall have its CRIU do. With it come the directory of the images, and the one
/// where CRIU works.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    /// For the plugin.
    pub order: Order,
    /// Root of the tree that is dumped.
    pub tree: Option<i32>,
    /// CRIU's options, a file of its configuration.
    pub config: String,
    /// What CRIU logs, from 0 to 4.
    pub log_level: i32,
}

/// How a CRIU ended.
#[derive(Debug, Serialize, Deserialize)]
struct End {
    /// As `waitpid` tells it.
    status: i32,
    /// What it said, but for its log.
    output: String,
}

/// The priority of this process.
fn nice() -> libc::c_int {
    // SAFETY: getpriority takes two integers.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// Sets the priority of a process, or of this one (0).
fn set_nice(pid: i32, nice: libc::c_int) -> io::Result<()> {
    // SAFETY: setpriority takes three integers.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, pid.cast_unsigned(), nice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
