// SPDX-License-Identifier: GPL-2.0-only
//! Redis in a container, and without one: how each engine runs it, checkpoints it and brings it
//! back; the guest half, in the flavor `containers`.

mod containerd;
mod docker;
mod podman;
mod process;
mod runc;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use containerd::Containerd;
pub use docker::Docker;
use podman::Podman;
use process::Process;
use runc::Runc;

use crate::criu::timed;
use crate::redis::{self, Client, State};
use crate::system::System;
use crate::vas;

/// Has one Redis, which listens where [`Client::connect`] looks for it.
pub trait Engine {
    /// From now on, checkpoints are of this system.
    ///
    /// # Errors
    /// When the engine does not have it.
    fn switch(&mut self, system: System) -> Result<()>;

    /// Starts Redis, empty; it need not listen yet.
    ///
    /// # Errors
    /// When it does not start.
    fn run(&mut self) -> Result<()>;

    /// PID of Redis, here.
    ///
    /// # Errors
    /// When it does not run.
    fn pid(&self) -> Result<i32>;

    /// Checkpoints Redis, which ends by that; the time of the whole command.
    ///
    /// # Errors
    /// When the engine fails.
    fn checkpoint(&mut self) -> Result<Duration>;

    /// Restores it; the time of the whole command.
    ///
    /// # Errors
    /// When the engine fails.
    fn restore(&mut self) -> Result<Duration>;

    /// Removes what the checkpoint left.
    ///
    /// # Errors
    /// When it cannot be removed.
    fn forget(&mut self) -> Result<()>;

    /// Ends Redis and removes it.
    ///
    /// # Errors
    /// When it does not end.
    fn remove(&mut self) -> Result<()>;
}

/// Those that [`find`] finds.
pub const NAMES: &[&str] = &["process", "runc", "docker", "containerd", "podman"];

/// The engine of this name, ready to run Redis.
///
/// # Errors
/// When there is none, or it is not ready.
pub fn find(name: &str) -> Result<Box<dyn Engine>> {
    Ok(match name {
        "process" => Box::new(Process::new()?),
        "runc" => Box::new(Runc::new()?),
        "docker" => Box::new(Docker::new()?),
        "containerd" => Box::new(Containerd::new()?),
        "podman" => Box::new(Podman::new()?),
        _ => bail!("{name:?} is none of {}", NAMES.join(", ")),
    })
}

/// A checkpoint and a restore.
#[derive(Debug)]
pub struct Round {
    /// The whole command of the checkpoint.
    pub checkpoint: Duration,
    /// The whole command of the restore.
    pub restore: Duration,
    /// From the beginning of that until Redis answered who asked at its end.
    pub answer: Duration,
    /// What Redis holds differently then.
    pub differs: Option<String>,
}

/// Has the engine run Redis, with `size_mib` MiB of data.
///
/// # Errors
/// When a step fails.
pub fn begin(engine: &mut dyn Engine, size_mib: usize) -> Result<State> {
    engine.run()?;
    wait_for("Redis", || Client::connect()?.write_and_read())?;
    redis::load(size_mib)
}

/// Checkpoints and restores it by `system`.
///
/// # Errors
/// When a step fails. Different data is a result, not an error.
pub fn round(engine: &mut dyn Engine, system: System, expected: &State) -> Result<Round> {
    engine.switch(system)?;
    redis::wait_until_idle(engine.pid()?)?;
    eprintln!("{system}: checkpoint");
    let checkpoint = engine.checkpoint().context("checkpoint")?;
    eprintln!("{system}: restore");
    let begun = Instant::now();
    let restore = engine.restore().context("restore")?;
    wait_for("Redis", || Client::connect()?.command(&[b"PING"]).map(drop))?;
    let answer = begun.elapsed();
    eprintln!("{system}: comparing the data");
    let differs = redis::difference(expected)?;
    engine.forget()?;
    Ok(Round {
        checkpoint,
        restore,
        answer,
        differs,
    })
}

/// Name of the container.
const NAME: &str = "redis";
/// The image, where there are such.
const IMAGE: &str = "mvas";
/// Writes the root file system of a container to its standard output, as a tar file.
const ROOT: &str = "/usr/lib/mvas/container-root";

/// What runs in the container.
fn server() -> impl Iterator<Item = &'static str> {
    "redis-server --bind 0.0.0.0 --save  --appendonly no --protected-mode no --enable-debug-command yes"
        .split(' ')
}

/// How long an engine may take to answer after the boot, or its container to listen.
const PATIENCE: Duration = Duration::from_secs(600);

fn wait_for(what: &str, attempt: impl Fn() -> Result<()>) -> Result<()> {
    let begun = Instant::now();
    while let Err(error) = attempt() {
        ensure!(
            begun.elapsed() < PATIENCE,
            "{what} does not answer: {error:#}"
        );
        sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

/// Runs it to its end; what it printed.
fn ask(words: &[&str]) -> Result<String> {
    let said = timed(&mut command(words))?.stdout;
    Ok(String::from_utf8(said)?.trim().to_owned())
}

/// Makes an image of Docker's or Podman's, if there is none yet.
fn import(engine: &str) -> Result<()> {
    if ask(&[engine, "images", "-q", IMAGE])?.is_empty() {
        let script = format!("{ROOT} | {engine} import - {IMAGE}");
        timed(&mut command(&["sh", "-c", &script]))?;
    }
    Ok(())
}

/// Has an engine use the CRIU of `system`.
fn switch(engine: &str, system: System) -> Result<()> {
    let switch = match system {
        System::CriuTmpfs => "disable",
        System::Vascriu => "enable",
        _ => bail!("{engine} has no {system}"),
    };
    timed(&mut command(&["vascriu", switch, engine])).map(drop)
}

/// Runs to its end what leaves a process behind that has its streams: they are `log`, or
/// nothing, as `stderr` says.
fn detached(command: &mut Command, log: &Path, stderr: Stdio) -> Result<Duration> {
    let ran = timed(command.stdout(Stdio::null()).stderr(stderr));
    let ran = ran.with_context(|| fs::read_to_string(log).unwrap_or_default())?;
    Ok(ran.wall)
}

/// Removes all snapshots: engines know of references to them only.
fn forget_snapshots() -> Result<()> {
    vas::delete_all().context("snapshots of the engine")
}

fn log_file(path: &Path) -> Result<Stdio> {
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(file.into())
}
