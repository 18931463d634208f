// SPDX-License-Identifier: GPL-2.0-only
//! `vascriu`: dump and restore of one process tree, timed. Its own steps it times
//! itself (`--json`).

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::criu::timed;
use crate::system::{Dump, Restore};

/// What `vascriu dump --json` tells, as far as it is used here.
#[derive(Debug, Deserialize)]
struct DumpReport {
    frozen_ms: f64,
    capture_ms: f64,
    image_bytes: u64,
    store_ms: f64,
    kept: String,
    store_error: Option<String>,
}

/// What `vascriu restore --json` tells, as far as it is used here.
#[derive(Debug, Deserialize)]
struct RestoreReport {
    memory_restore_ms: f64,
}

/// What `vascriu ls --json` tells, as far as it is used here.
#[derive(Debug, Deserialize)]
struct List {
    snapshots: Vec<Row>,
}

/// One snapshot of it.
#[derive(Debug, Deserialize)]
struct Row {
    id: String,
    name: Option<String>,
    state: String,
    drain_error: Option<i32>,
}

/// Whether a snapshot goes to the store outside of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// No: a drain would run beside what is measured next.
    GuestOnly,
    /// In the background.
    Background,
}

/// `vascriu dump` of the tree of `pid` under `name`; kills the tree.
///
/// # Errors
/// When vascriu fails.
pub fn dump(pid: i32, name: &str, keep: Keep) -> Result<Dump> {
    dump_with(pid, name, keep, &[])
}

/// [`dump`] with `more` options, such as that which has the tree go on.
///
/// # Errors
/// When vascriu fails.
pub fn dump_with(pid: i32, name: &str, keep: Keep, more: &[&str]) -> Result<Dump> {
    let (option, kept): (&[&str], _) = match keep {
        Keep::GuestOnly => (&["--guest-only"], "hot"),
        Keep::Background => (&[], "draining"),
    };
    let mut command = dumping(pid, name, &[more, option].concat());
    Ok(dumped(&mut command, kept)?.0)
}

/// `vascriu dump --sync` of the tree of `pid` under `name`, with `more` options: also how
/// long the store took, until the snapshot was complete there.
///
/// # Errors
/// When vascriu fails.
pub fn dump_to_store(pid: i32, name: &str, more: &[&str]) -> Result<(Dump, Duration)> {
    let more = [more, &["--sync"]].concat();
    dumped(&mut dumping(pid, name, &more), "stored")
}

/// `vascriu dump` of the tree of `pid` under `name`, with `more` options, not run yet; it will
/// tell of itself in JSON.
#[must_use]
pub fn dumping(pid: i32, name: &str, more: &[&str]) -> Command {
    let pid = pid.to_string();
    vascriu(&[&["dump", "-t", &pid, "--name", name, "--json"], more].concat())
}

/// Runs a dump: what it took, and what of that the store did. In the end the snapshot must be
/// `kept` so.
///
/// # Errors
/// When vascriu fails.
pub fn dumped(command: &mut Command, kept: &str) -> Result<(Dump, Duration)> {
    let ran = timed(command)?;
    let report: DumpReport = parse(&ran.stdout)?;
    if report.kept != kept {
        let why = report.store_error.unwrap_or_default();
        bail!(
            "{command:?}: the snapshot is {}, not {kept} {why}",
            report.kept
        );
    }
    let dump = Dump {
        wall: ran.wall,
        cpu: ran.cpu,
        frozen: duration(report.frozen_ms)?,
        memory: duration(report.capture_ms)?,
        image_bytes: report.image_bytes,
    };
    Ok((dump, duration(report.store_ms)?))
}

/// How long something may take: copies on an emulated machine are slow.
const PATIENCE: Duration = Duration::from_secs(600);

/// Waits until the snapshot `name` is complete in the store.
///
/// # Errors
/// When it does not get there.
pub fn wait_until_stored(name: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        let rows = list()?;
        let row = rows.iter().find(|row| row.name.as_deref() == Some(name));
        match row.with_context(|| format!("the snapshot {name} is gone"))? {
            row if row.state == "stored" => return Ok(()),
            row if row.state == "draining" && begun.elapsed() < PATIENCE => {
                sleep(Duration::from_millis(100));
            }
            row => {
                let error = row.drain_error.map(io::Error::from_raw_os_error);
                let why = error.map_or(String::new(), |e| format!(": {e}"));
                bail!(
                    "the snapshot {name} is {}, not in the store{why}",
                    row.state
                );
            }
        }
    }
}

/// Of all snapshots with a name, the state that `vascriu ls` tells.
///
/// # Errors
/// When vascriu fails.
pub fn states() -> Result<HashMap<String, String>> {
    let named = list()?.into_iter();
    Ok(named
        .filter_map(|row| Some((row.name?, row.state)))
        .collect())
}

fn list() -> Result<Vec<Row>> {
    let ran = timed(&mut vascriu(&["ls", "--json"]))?;
    Ok(parse::<List>(&ran.stdout)?.snapshots)
}

/// `vascriu rm` of all snapshots, whoever refers to them.
///
/// # Errors
/// When one cannot be deleted.
pub fn delete_all() -> Result<()> {
    let rows = list()?;
    rows.iter()
        .try_for_each(|row| timed(&mut vascriu(&["rm", "--force", &row.id])).map(drop))
}

/// `vascriu evict` of the snapshot `name`: from now on it is in the store only.
///
/// # Errors
/// When vascriu fails.
pub fn evict(name: &str) -> Result<()> {
    timed(&mut vascriu(&["evict", name])).map(drop)
}

/// `vascriu restore` of the snapshot `name`, leaving the tree running on its own.
///
/// # Errors
/// When vascriu fails.
pub fn restore(name: &str) -> Result<Restore> {
    let ran = timed(&mut restoring(name))?;
    Ok(Restore {
        wall: ran.wall,
        memory: memory_restore(&ran.stdout)?,
    })
}

/// `vascriu restore` of the snapshot `name`, not run yet; it will tell of itself in JSON.
#[must_use]
pub fn restoring(name: &str) -> Command {
    vascriu(&["restore", name, "-d", "--json"])
}

/// `vascriu rollback` to the snapshot `name`, not run yet.
#[must_use]
pub fn rolling_back(name: &str) -> Command {
    vascriu(&["rollback", name])
}

/// The memory step of a restore, from what `vascriu restore --json` wrote.
pub(crate) fn memory_restore(report: &[u8]) -> Result<Duration> {
    let report: RestoreReport = parse(report)?;
    duration(report.memory_restore_ms)
}

/// `vascriu rm` of the snapshot `name`.
///
/// # Errors
/// When vascriu fails.
pub fn delete(name: &str) -> Result<()> {
    timed(&mut vascriu(&["rm", name])).map(drop)
}

/// A running `vascriu serve`; it ends with this.
#[derive(Debug)]
pub struct Service(Child);

impl Service {
    /// Starts one.
    ///
    /// # Errors
    /// When that fails.
    pub fn start() -> Result<Self> {
        let started = vascriu(&["serve"]).spawn();
        Ok(Self(started.context("cannot start `vascriu serve`")?))
    }

    /// Waits until it has a CRIU ready.
    ///
    /// # Errors
    /// When it does not come to that.
    pub fn wait_until_ready(&self) -> Result<()> {
        let begun = Instant::now();
        let is_ready = || {
            Path::new(READY)
                .read_dir()
                .is_ok_and(|mut d| d.next().is_some())
        };
        while !is_ready() {
            ensure!(
                begun.elapsed() < PATIENCE,
                "`vascriu serve` has no CRIU ready"
            );
            sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        // Of a killed one they stay.
        let _ = fs::remove_dir_all(READY);
    }
}

/// Where `vascriu serve` has what is ready.
const READY: &str = "/run/vascriu/ready";

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
