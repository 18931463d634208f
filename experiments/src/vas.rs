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
    frozen_ms: f64,
    capture_ms: f64,
    image_bytes: u64,
}

/// What `vascriu restore --json` tells, as far as it is used here.
#[derive(Debug, Deserialize)]
struct RestoreReport {
    memory_restore_ms: f64,
}

/// `vascriu dump` of the tree of `pid` under `name`; kills the tree. The snapshot stays in the
/// guest: a drain to the host's store would run beside what is measured next.
///
/// # Errors
/// When vascriu fails.
pub fn dump(pid: i32, name: &str) -> Result<Dump> {
    let pid = pid.to_string();
    let (wall, report) = timed(&mut vascriu(&[
        "dump",
        "-t",
        &pid,
        "--name",
        name,
        "--guest-only",
        "--json",
    ]))?;
    let report: DumpReport = parse(&report)?;
    Ok(Dump {
        wall,
        frozen: duration(report.frozen_ms)?,
        memory: duration(report.capture_ms)?,
        image_bytes: report.image_bytes,
    })
}

/// `vascriu restore` of the snapshot `name`, leaving the tree running on its own.
///
/// # Errors
/// When vascriu fails.
pub fn restore(name: &str) -> Result<Restore> {
    let (wall, report) = timed(&mut vascriu(&["restore", name, "-d", "--json"]))?;
    let report: RestoreReport = parse(&report)?;
    Ok(Restore {
        wall,
        memory: duration(report.memory_restore_ms)?,
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

fn duration(ms: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(ms / 1e3).with_context(|| format!("vascriu reported {ms} ms"))
}

fn parse<'a, T: Deserialize<'a>>(report: &'a [u8]) -> Result<T> {
    serde_json::from_slice(report).with_context(|| {
        format!(
            "vascriu reported something else than expected: {}",
            String::from_utf8_lossy(report)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_something_else_is_shown() {
        let error = parse::<DumpReport>(b"{\"frozen\":1}").unwrap_err();
        assert!(error.to_string().contains("{\"frozen\":1}"), "{error}");
    }

    #[test]
    fn a_time_that_cannot_be_is_an_error() {
        assert_eq!(duration(1.5).unwrap(), Duration::from_micros(1500));
        assert!(duration(-1.0).is_err() && duration(f64::NAN).is_err());
    }
}
