// SPDX-License-Identifier: GPL-2.0-only
//! The simulated host: QEMU emulates an AMD machine with SVM and nested paging, which boots
//! our kernel on this host's files.
//!
//! Its PID 1 is this same binary ([`init`]); commands reach it over a pool of virtio-serial
//! channels ([`channels`]) that speak the agent's protocol.

pub(crate) mod channels;
mod hold_kvm;
pub(crate) mod init;
mod pulse;
mod qemu;

use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mvas_agent::client::ClientError;
use mvas_agent::protocol::ShutdownKind;
use mvasvm::config::{CpuCount, MemSize};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signalfd::SignalFd;
use tempfile::TempDir;

use crate::cli::{note, paths};
use channels::{Channel, Channels};
use pulse::Pulse;

/// Their folders, among those of the VMs.
const SIMS: &str = ".sim";

/// Ended by a signal before it booted: the exit code for that.
pub(crate) struct Ended(pub u8);

/// How often a simulated host may die while it boots. Under load, QEMU's emulator at times
/// runs an instruction while another CPU patches it (the kernel's jump labels), and the
/// kernel dies of it; the next boot goes well.
const BOOTS: u32 = 3;

/// Lines of a log that tell why a simulated host ended.
const TAIL: usize = 15;

/// What a simulated host is made of.
#[derive(Debug, Clone)]
pub(crate) struct SimConfig {
    pub kernel: PathBuf,
    pub mem: MemSize,
    pub cpus: CpuCount,
    /// Folders of this host that it may write to, or that its own `/tmp` or `/run` would hide.
    pub shares: Vec<Share>,
    pub boot_timeout: Duration,
    /// Where its kernel log goes; otherwise it vanishes with it.
    pub console: Option<PathBuf>,
}

/// A folder of this host, at the same path in the simulated one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Share {
    pub path: PathBuf,
    pub writable: bool,
}

impl Share {
    /// The simulated host may write to it.
    pub fn writable(path: PathBuf) -> Self {
        Self {
            path,
            writable: true,
        }
    }
}

/// Whether the simulated host has a folder of its own over this path.
pub(crate) fn is_hidden(path: &Path) -> bool {
    init::OWN_FOLDERS.iter().any(|own| path.starts_with(own))
}

/// A running simulated host. Dropping it ends it and leaves nothing behind.
pub(crate) struct SimHost {
    qemu: Child,
    dir: TempDir,
    console: PathBuf,
    config: SimConfig,
    boots: u32,
    _pulse: Pulse,
    _lock: Flock<fs::File>,
}

impl SimHost {
    /// Starts it; it boots while this returns.
    pub fn start(config: &SimConfig) -> Result<Self> {
        let sims = paths::runtime_dir()?.join(SIMS);
        paths::private_dir(&sims)?;
        remove_stale()?;
        let dir = tempfile::Builder::new()
            .prefix("")
            .tempdir_in(&sims)
            .with_context(|| format!("cannot make a folder in {}", sims.display()))?;
        let lock = lock(&dir.path().join("lock"))?
            .with_context(|| format!("{} is locked", dir.path().display()))?;
        let console = match &config.console {
            Some(path) => std::path::absolute(path)?,
            None => dir.path().join("console.log"),
        };
        let qemu = qemu::spawn(config, dir.path(), &console)?;
        let pulse = Pulse::start(dir.path())?;
        Ok(Self {
            qemu,
            dir,
            console,
            config: config.clone(),
            boots: 1,
            _pulse: pulse,
            _lock: lock,
        })
    }

    /// Its folder: where other processes find its channels.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Waits until it takes commands.
    pub fn wait_booted(&mut self, signals: &SignalFd) -> Result<Result<Channel, Ended>> {
        let channels = Channels::in_dir(self.dir.path());
        let mut deadline = Instant::now() + self.config.boot_timeout;
        loop {
            if let Ok(Some(info)) = signals.read_signal() {
                let number = u8::try_from(info.ssi_signo).unwrap_or(127);
                if number != u8::try_from(libc::SIGWINCH)? {
                    return Ok(Err(Ended(128 + number)));
                }
            }
            if let Some(status) = self.qemu.try_wait().context("cannot wait for QEMU")? {
                if self.boots == BOOTS || tail(&self.console, TAIL).is_empty() {
                    bail!("{}", self.why_ended(status));
                }
                note("the simulated host died while it booted: trying again");
                self.boots += 1;
                self.qemu = qemu::spawn(&self.config, self.dir.path(), &self.console)?;
                deadline = Instant::now() + self.config.boot_timeout;
            }
            if let Some(channel) = channels.try_open(Duration::from_secs(1))? {
                return Ok(Ok(channel));
            }
            if Instant::now() >= deadline {
                bail!(
                    "the simulated host did not boot within {} s (--boot-timeout); its kernel log ends with:\n{}",
                    self.config.boot_timeout.as_secs(),
                    tail(&self.console, TAIL)
                );
            }
        }
    }

    /// A session with it broke: says so if it is because QEMU is gone.
    pub fn explain(&mut self, error: ClientError) -> anyhow::Error {
        match self.qemu.try_wait() {
            Ok(Some(status)) if matches!(error, ClientError::Link(_)) => {
                anyhow::Error::new(error).context(self.why_ended(status))
            }
            _ => error.into(),
        }
    }

    fn why_ended(&self, status: ExitStatus) -> String {
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (_, signal) => format!("signal {}", signal.unwrap_or(0)),
        };
        let said = tail(&self.dir.path().join(qemu::LOG), TAIL);
        let log = tail(&self.console, TAIL);
        format!("the simulated host ended (QEMU: {how})\n{said}{log}")
    }

    /// Has it write everything to the work folder, and ends it.
    pub fn stop(mut self) {
        let channels = Channels::in_dir(self.dir.path());
        let synced = channels
            .try_open(Duration::from_secs(10))
            .and_then(|channel| match channel {
                Some(channel) => {
                    channel.with(|session| session.shutdown(ShutdownKind::PowerOff))?;
                    Ok(())
                }
                None => bail!("no channel is free"),
            });
        if let Err(error) = synced {
            note(format!("the simulated host was ended hard: {error:#}"));
        }
        self.end();
    }

    /// Nothing in it is worth a slow end: what it wrote is here already.
    fn end(&mut self) {
        let ended = self.qemu.kill().and_then(|()| self.qemu.wait());
        if let Err(error) = ended {
            note(format!(
                "cannot end QEMU (process {}): {error}",
                self.qemu.id()
            ));
        }
    }
}

impl Drop for SimHost {
    fn drop(&mut self) {
        if matches!(self.qemu.try_wait(), Ok(None)) {
            self.end();
        }
    }
}

/// Takes a lock for the life of the process; `None`: another has it.
pub(crate) fn lock(path: &Path) -> Result<Option<Flock<fs::File>>> {
    let file = fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => {
            Err(io::Error::from(error)).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// Removes the folders of simulated hosts that were killed.
pub(crate) fn remove_stale() -> Result<()> {
    let sims = paths::runtime_dir()?.join(SIMS);
    for entry in fs::read_dir(&sims).into_iter().flatten().flatten() {
        let dir = entry.path();
        let lock_path = dir.join("lock");
        // Without a lock it was made a moment ago.
        if lock_path.exists() && matches!(lock(&lock_path), Ok(Some(_))) {
            let _ = fs::remove_dir_all(&dir);
        }
    }
    Ok(())
}

/// The last lines of a log.
pub(crate) fn tail(path: &Path, count: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(count)..];
    last.iter().map(|line| format!("  {line}\n")).collect()
}
