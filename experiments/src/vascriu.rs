//! `vascriu`: dump and restore of one process tree, timed. Its own steps it times
//! itself (`--json`).

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::criu::timed;
use crate::system::{Dump, Restore};

/// What `vascriu dump --json` tells, as far as it is used here.
#[derive(Debug, Deserialize)]
struct DumpReport {
    frozen_us: u64,
    capture_us: u64,
    image_bytes: u64,
}

/// What `vascriu restore --json` tells, as far as it is used here.
#[derive(Debug, Deserialize)]
struct RestoreReport {
    attach_us: u64,
}

/// `vascriu dump` of the tree of `pid` under `name`; kills the tree.
///
/// # Errors
/// When vascriu fails.
pub fn dump(pid: i32, name: &str) -> Result<Dump> {
    let pid = pid.to_string();
    let (wall, report) = timed(&mut vascriu(&[
        "dump", "-t", &pid, "--name", name, "--json",
    ]))?;
    let report: DumpReport = parse(&report)?;
    Ok(Dump {
        wall,
        frozen: Duration::from_micros(report.frozen_us),
        memory: Duration::from_micros(report.capture_us),
        image_bytes: report.image_bytes,
    })
}

/// `vascriu restore` of the snapshot `name`, leaving the tree running on its own.
///
/// # Errors
/// When vascriu fails.
pub fn restore(name: &str) -> Result<Restore> {
    let (wall, report) = timed(&mut vascriu(&["restore", name, "--json"]))?;
    let report: RestoreReport = parse(&report)?;
    Ok(Restore {
        wall,
        memory: Duration::from_micros(report.attach_us),
    })
}

/// `vascriu rm` of the snapshot `name`.
///
/// # Errors
/// When vascriu fails.
pub fn delete(name: &str) -> Result<()> {
    timed(&mut vascriu(&["rm", name])).map(drop)
}

fn vascriu(args: &[&str]) -> Command {
    let mut command = Command::new("vascriu");
    command.args(args);
    command
}

fn parse<'a, T: Deserialize<'a>>(report: &'a [u8]) -> Result<T> {
    serde_json::from_slice(report).with_context(|| {
        format!(
            "vascriu reported something else than expected: {}",
            String::from_utf8_lossy(report)
        )
    })
}
