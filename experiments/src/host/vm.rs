// SPDX-License-Identifier: GPL-2.0-only
//! A microVM of an experiment.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;

use super::{Scratch, ask, make_parent, mvasvm};
use crate::guest::Step;
use crate::procfs::kib_of;

/// A microVM to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Its memory, as `mvasvm --mem` takes it.
    pub mem: String,
    /// Number of its vCPUs.
    pub cpus: u32,
    /// The flavor of its image, if not the default.
    pub image: Option<&'static str>,
    /// An empty raw disk to give it, and its size in bytes.
    pub disk: Option<(PathBuf, u64)>,
}

/// A running microVM, granted all of its store. Dropping it kills it, and so does our end.
#[derive(Debug)]
pub struct Vm {
    name: String,
    monitor: Child,
    disk: Option<PathBuf>,
}

impl Vm {
    /// Boots one and waits until it takes commands.
    ///
    /// # Errors
    /// When it does not boot.
    pub fn start(machine: &Machine, name: &str, store: &Scratch) -> Result<Self> {
        // Others may run the same experiment.
        let name = format!("{name}-{}", std::process::id());
        eprintln!(
            "starting microVM {name} with {} and {} vCPUs",
            machine.mem, machine.cpus
        );
        let mut command = Command::new(mvasvm());
        command
            .args(["run", "--hw", "kvm", "--name", &name])
            .args(["--mem", &machine.mem])
            .args(["--cpus", &machine.cpus.to_string()])
            .args(["--grant", "all", "--store"])
            .arg(store.path());
        if let Some(image) = machine.image {
            command.args(["--image", image]);
        }
        if let Some((path, bytes)) = &machine.disk {
            make_parent(path)?;
            File::create(path)
                .and_then(|file| file.set_len(*bytes))
                .with_context(|| format!("cannot create {}", path.display()))?;
            command.arg("--disk").arg(path);
        }
        command
            .args(["--", "sh", "-c", "echo ready; exec sleep infinity"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let parent = nix::unistd::getpid();
        // SAFETY: prctl and getppid are system calls that touch no memory of ours.
        unsafe {
            command.pre_exec(move || {
                set_pdeathsig(Signal::SIGKILL)?;
                if nix::unistd::getppid() == parent {
                    Ok(())
                } else {
                    Err(std::io::ErrorKind::BrokenPipe.into())
                }
            });
        }
        let monitor = command
            .spawn()
            .context("cannot run mvasvm (build it with `make`, or name it in MVASVM)")?;
        let mut vm = Self {
            name,
            monitor,
            disk: machine.disk.as_ref().map(|(path, _)| path.clone()),
        };
        let begun = Instant::now();
        let mut said = String::new();
        if let Some(output) = vm.monitor.stdout.take() {
            BufReader::new(output).read_line(&mut said)?;
        }
        ensure!(said == "ready\n", "microVM {} did not boot", vm.name);
        let took = begun.elapsed().as_secs_f64();
        eprintln!("microVM {} takes commands after {took:.1} s", vm.name);
        Ok(vm)
    }

    /// Runs a step of the guest half in it; what that writes to standard error is shown.
    ///
    /// # Errors
    /// When the step fails.
    pub fn ask<T: DeserializeOwned>(&self, step: &Step) -> Result<T> {
        let mut exec = Command::new(mvasvm());
        exec.args(["exec", &self.name, "--"]);
        ask(&mut exec, step).with_context(|| format!("in microVM {}", self.name))
    }

    /// Ends it at once, as if by pulling the plug.
    ///
    /// # Errors
    /// When it does not end.
    pub fn kill(mut self) -> Result<()> {
        self.pull_the_plug()
    }

    fn pull_the_plug(&mut self) -> Result<()> {
        let status = Command::new(mvasvm())
            .args(["kill", &self.name])
            .stdin(Stdio::null())
            .status()
            .context("cannot run mvasvm")?;
        ensure!(status.success(), "microVM {} cannot be killed", self.name);
        self.monitor.wait()?;
        Ok(())
    }

    /// Memory that its monitor has of its own: its data, and pages that the guest wrote to
    /// where it shares them with the store.
    ///
    /// # Errors
    /// When the monitor is gone.
    pub fn anonymous_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.monitor.id());
        let status = fs::read_to_string(&path).with_context(|| path.clone())?;
        kib_of(&status, "RssAnon:")
            .map(|kib| kib << 10)
            .with_context(|| format!("{path} tells no RssAnon"))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if matches!(self.monitor.try_wait(), Ok(None)) {
            let _ = self.pull_the_plug();
            let _ = self.monitor.kill();
            let _ = self.monitor.wait();
        }
        if let Some(disk) = &self.disk {
            let _ = fs::remove_file(disk);
        }
    }
}
