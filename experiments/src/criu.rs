// SPDX-License-Identifier: GPL-2.0-only
//! Stock CRIU: dump and restore of one process tree, timed.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use vascriu::criu::stats::decode_dump;

use crate::criu_log;
use crate::system::{Dump, Restore};

/// What a command took, and said.
#[derive(Debug)]
pub struct Ran {
    /// From its start to its end.
    pub wall: Duration,
    /// Of CPU, with its children.
    pub cpu: Duration,
    /// Its standard output.
    pub stdout: Vec<u8>,
}

/// Runs `command` to its end and returns how long it took.
///
/// # Errors
/// When it cannot start or fails; the message has what it wrote to standard error.
pub fn timed(command: &mut Command) -> Result<Ran> {
    let cpu_before = cpu_of(UsageWho::RUSAGE_CHILDREN)?;
    let begun = Instant::now();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    let wall = begun.elapsed();
    if !output.status.success() {
        bail!(
            "{command:?} failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(Ran {
        wall,
        cpu: cpu_of(UsageWho::RUSAGE_CHILDREN)?.saturating_sub(cpu_before),
        stdout: output.stdout,
    })
}

/// CPU time of this process, or of all children that have ended.
///
/// # Errors
/// When the kernel does not tell.
pub(crate) fn cpu_of(who: UsageWho) -> Result<Duration> {
    let usage = getrusage(who)?;
    let duration = |time: TimeVal| -> Result<Duration> {
        let micros = u32::try_from(time.tv_usec())?;
        Ok(Duration::from_secs(u64::try_from(time.tv_sec())?)
            + Duration::from_micros(micros.into()))
    };
    Ok(duration(usage.user_time())? + duration(usage.system_time())?)
}

/// `criu dump` of the tree of `pid` into the new folder `dir`; kills the tree.
///
/// # Errors
/// When CRIU fails; the message has the errors in its log.
pub fn dump(pid: i32, dir: &Path) -> Result<Dump> {
    dump_with(pid, dir, &[])
}

/// [`dump`] with `more` options.
///
/// # Errors
/// When CRIU fails; the message has the errors in its log.
pub fn dump_with(pid: i32, dir: &Path, more: &[&str]) -> Result<Dump> {
    dumped(pid, "dump", dir, more)
}

/// `criu pre-dump` of the tree of `pid` into the new folder `dir`: its memory alone.
///
/// # Errors
/// When CRIU fails; the message has the errors in its log.
pub fn pre_dump(pid: i32, dir: &Path, more: &[&str]) -> Result<Dump> {
    dumped(pid, "pre-dump", dir, more)
}

fn dumped(pid: i32, action: &str, dir: &Path, more: &[&str]) -> Result<Dump> {
    fs::create_dir_all(dir)?;
    let mut command = criu(action, dir);
    command.args(["-t", &pid.to_string()]).args(more);
    let log = dir.join(format!("{action}.log"));
    let ran = timed(&mut command).with_context(|| errors_in(&log))?;
    let stats = fs::read(dir.join("stats-dump")).context("no stats-dump")?;
    let stats = decode_dump(&stats).context("a damaged stats-dump")?;
    Ok(Dump {
        wall: ran.wall,
        cpu: ran.cpu,
        frozen: Duration::from_micros(stats.frozen_us),
        // In a regular dump CRIU writes the pages within this time: `memwrite` is
        // a part of it (`parasite_dump_pages_seized` in its mem.c).
        memory: Duration::from_micros(stats.memdump_us),
        image_bytes: bytes_below(dir)?,
    })
}

/// `criu restore` from `dir`, leaving the tree running on its own.
///
/// # Errors
/// When CRIU fails; the message has the errors in its log.
pub fn restore(dir: &Path) -> Result<Restore> {
    let mut command = restoring(dir);
    // Its log is the clock of the memory step.
    command.arg("-v4");
    let log = dir.join("restore.log");
    let ran = timed(&mut command).with_context(|| errors_in(&log))?;
    let text = fs::read(&log).with_context(|| format!("no {}", log.display()))?;
    Ok(Restore {
        wall: ran.wall,
        memory: criu_log::memory_restore(&String::from_utf8_lossy(&text))?,
    })
}

/// `criu restore` from `dir`, as nobody can make it faster: without a log of each step.
#[must_use]
pub fn restoring(dir: &Path) -> Command {
    let mut command = criu("restore", dir);
    command.arg("--restore-detached");
    command
}

/// `criu restore --lazy-pages` from `dir`, and before it the daemon that brings the pages: those
/// that the tree waits for first, then all others, and then it ends.
#[must_use]
pub fn restoring_lazily(dir: &Path) -> Command {
    let mut command = Command::new("sh");
    command
        .env("CRIU_FAULT", "130")
        .args(["-c", LAZILY])
        .arg(dir);
    command
}

/// The daemon listens when its command ends.
const LAZILY: &str = "criu lazy-pages -D \"$0\" -o lazy-pages.log --daemon && \
    exec criu restore -D \"$0\" -o restore.log --restore-detached --lazy-pages";

/// Without hardware breakpoints, as vascriu runs it (see its `criu/order.rs`): that is not
/// slower, and loses no task.
fn criu(action: &str, dir: &Path) -> Command {
    let mut command = Command::new("criu");
    command
        .env("CRIU_FAULT", "130")
        .arg(action)
        .arg("-D")
        .arg(dir)
        .args(["-o", &format!("{action}.log")]);
    command
}

/// The lines with errors of a CRIU log.
fn errors_in(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let errors: Vec<&str> = text.lines().filter(|l| l.contains("Error")).collect();
    match errors.as_slice() {
        [] => format!("no error in {}", log.display()),
        errors => errors.join("\n"),
    }
}

/// The sizes of the files in `dir`, CRIU's logs apart.
///
/// # Errors
/// When the folder cannot be read.
pub fn bytes_below(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir).with_context(|| format!("no {}", dir.display()))? {
        let entry = entry?;
        if entry.path().extension().is_none_or(|e| e != "log") {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_is_an_error_with_what_it_said() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such task >&2; exit 1"]);
        let error = timed(&mut command).unwrap_err().to_string();
        assert!(error.contains("no such task"), "{error}");
    }

    #[test]
    fn the_cpu_time_of_a_command_is_its_own() {
        let mut idle = Command::new("sleep");
        let idle = timed(idle.arg("0.3")).unwrap();
        assert!(idle.cpu < idle.wall, "{idle:?}");
        let mut busy = Command::new("sh");
        let busy = timed(busy.args(["-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"]));
        let busy = busy.unwrap();
        assert!(busy.cpu > Duration::ZERO && busy.cpu > idle.cpu, "{busy:?}");
    }

    #[test]
    fn the_errors_of_a_log_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("dump.log");
        fs::write(&log, "(00.1) fine\n(00.2) Error (criu/x.c:1): bad\n").unwrap();
        assert_eq!(errors_in(&log), "(00.2) Error (criu/x.c:1): bad");
        assert!(errors_in(Path::new("/no/log")).contains("/no/log"));
    }

    #[test]
    fn logs_are_not_image_bytes() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("pages-1.img"), [0; 10]).unwrap();
        fs::write(dir.path().join("dump.log"), [0; 99]).unwrap();
        assert_eq!(bytes_below(dir.path()).unwrap(), 10);
        assert!(bytes_below(Path::new("/no/dir")).is_err());
    }
}
