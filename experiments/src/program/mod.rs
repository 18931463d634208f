// SPDX-License-Identifier: GPL-2.0-only
//! Real programs: each is started, loaded and asked over the protocol that its users speak.

mod interpreter;
mod memcached;
mod net;
mod nginx;
mod postgresql;
mod redis;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::procfs::children;
use crate::subject::{in_new_session, new_folder};
use interpreter::{JVM, PYTHON};
use memcached::Memcached;
use nginx::Nginx;
use postgresql::PostgreSql;
use redis::Redis;

/// How long a step of a program may take: a simulated host is slow.
const PATIENCE: Duration = Duration::from_secs(300);

/// One kind of program.
pub trait Program {
    /// Starts it in the new folder `dir`, on tmpfs, in a session of its own and with room for
    /// `size_mib` MiB of data.
    ///
    /// # Errors
    /// When it cannot be started.
    fn start(&self, dir: &Path, size_mib: usize) -> Result<Child>;

    /// Loads so much data into it.
    ///
    /// # Errors
    /// When it does not take it.
    fn load(&self, size_mib: usize) -> Result<()>;

    /// Sends one request, and wants the right answer.
    ///
    /// # Errors
    /// When it does not answer, or wrongly.
    fn ask(&self) -> Result<()>;

    /// All of its data in short: the same before a dump and after a restore.
    ///
    /// # Errors
    /// When it does not tell.
    fn state(&self) -> Result<String>;

    /// Whether it still has to do with a client; `pid` is the root of its tree.
    ///
    /// # Errors
    /// When that cannot be told.
    fn is_busy(&self, pid: i32) -> Result<bool>;
}

/// Those that [`find`] finds.
pub const NAMES: &[&str] = &["redis", "memcached", "postgresql", "nginx", "jvm", "python"];

/// The program of this name.
///
/// # Errors
/// When there is none.
pub fn find(name: &str) -> Result<&'static dyn Program> {
    Ok(match name {
        "redis" => &Redis,
        "memcached" => &Memcached,
        "postgresql" => &PostgreSql,
        "nginx" => &Nginx,
        "jvm" => &JVM,
        "python" => &PYTHON,
        _ => bail!("{name:?} is none of {}", NAMES.join(", ")),
    })
}

/// Starts a program, and loads `size_mib` MiB into it.
///
/// # Errors
/// When it does not start, or does not take the data.
pub fn begin(program: &dyn Program, name: &str, size_mib: usize) -> Result<Child> {
    let dir = new_folder(&format!("program-{name}"))?;
    let mut child = program.start(&dir, size_mib)?;
    let begun = Instant::now();
    let loaded = loop {
        match program.load(size_mib) {
            Err(e) if is_refused(&e) && begun.elapsed() < PATIENCE => {}
            other => break other,
        }
        if let Some(status) = child.try_wait()? {
            bail!("{name} ended ({status}): {}", log_of(&dir));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    loaded.with_context(|| format!("cannot load {name}: {}", log_of(&dir)))?;
    Ok(child)
}

/// Waits until it has nothing to do with any client: CRIU would have to take the connection
/// along.
///
/// # Errors
/// When a client stays.
pub fn wait_until_idle(program: &dyn Program, pid: i32) -> Result<()> {
    let begun = Instant::now();
    while program.is_busy(pid)? {
        ensure!(begun.elapsed() < PATIENCE, "a client's connection stays");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A process and all below it, itself first.
///
/// # Errors
/// When one of them is gone.
pub fn tree(pid: i32) -> Result<Vec<i32>> {
    let mut all = vec![pid];
    for child in children(pid)? {
        all.extend(tree(child)?);
    }
    Ok(all)
}

/// Whether it does not listen yet.
fn is_refused(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
}

fn log(dir: &Path) -> PathBuf {
    dir.join("log")
}

fn log_of(dir: &Path) -> String {
    fs::read_to_string(log(dir)).unwrap_or_default()
}

/// Starts `command` as a service is: without a terminal, in a session of its own.
fn spawn(command: &mut Command, dir: &Path) -> Result<Child> {
    let log = File::create(log(dir)).context("no log")?;
    command
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    in_new_session(command)
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found() {
        assert!(NAMES.iter().all(|name| find(name).is_ok()));
        let error = find("mysql").err().expect("an error").to_string();
        assert!(error.contains("postgresql"), "{error}");
    }

    #[test]
    fn a_tree_has_its_root_and_all_below_it() {
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 60 & read line"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let root = i32::try_from(shell.id()).unwrap();
        let begun = Instant::now();
        while tree(root).unwrap().len() < 2 && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        let all = tree(root).unwrap();
        assert_eq!((all.len(), all[0]), (2, root));
        let sleep = nix::unistd::Pid::from_raw(all[1]);
        nix::sys::signal::kill(sleep, nix::sys::signal::Signal::SIGKILL).unwrap();
        shell.kill().and_then(|()| shell.wait()).unwrap();
    }
}
