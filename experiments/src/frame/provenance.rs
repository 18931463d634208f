// SPDX-License-Identifier: GPL-2.0-only
//! Where samples come from.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::plan::Settings;
use crate::criu::timed;

/// What a reader must know of a run to repeat it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Version of this program, and of the source it was run beside.
    pub program: String,
    /// `kvm`, or `sim`: a simulated host.
    pub host: String,
    /// The CPU that the microVMs run on, and the machine that it is in: of a simulated host,
    /// the emulator's version.
    pub cpu: String,
    /// The guest's kernel.
    pub kernel: String,
    /// The guest's CRIU.
    pub criu: String,
    /// Memory and vCPUs of the microVM.
    pub machine: String,
    /// The settings.
    pub settings: Settings,
    /// When it was begun, in seconds since the epoch.
    pub begun: u64,
}

/// What only a guest can tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// `uname -rv`.
    pub kernel: String,
    /// `criu --version`.
    pub criu: String,
}

impl Guest {
    /// Of this guest.
    ///
    /// # Errors
    /// When a program does not run.
    pub fn here() -> Result<Self> {
        let line = |command: &mut Command| -> Result<String> {
            let said = String::from_utf8(timed(command)?.stdout)?;
            Ok(said.lines().collect::<Vec<_>>().join(" ").trim().to_owned())
        };
        Ok(Self {
            kernel: line(Command::new("uname").arg("-rv"))?,
            criu: line(Command::new("criu").arg("--version"))?,
        })
    }
}

impl Provenance {
    /// Of a run that begins now.
    ///
    /// # Errors
    /// When this host does not tell.
    pub fn now(host: &str, guest: Guest, machine: String, settings: &Settings) -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
        Ok(Self {
            program: program(),
            host: host.to_owned(),
            cpu: cpu(&cpuinfo, &board()),
            kernel: guest.kernel,
            criu: guest.criu,
            machine,
            settings: settings.clone(),
            begun: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        })
    }

    /// What keeps samples of `other` from standing beside samples of this, if something does.
    #[must_use]
    pub fn differs(&self, other: &Self) -> Option<&'static str> {
        let same = [
            ("program", self.program == other.program),
            ("host", self.host == other.host),
            ("CPU", self.cpu == other.cpu),
            ("kernel", self.kernel == other.kernel),
            ("CRIU", self.criu == other.criu),
            ("machine", self.machine == other.machine),
            ("setting", self.settings == other.settings),
        ];
        same.iter().find(|(_, same)| !same).map(|(what, _)| *what)
    }
}

fn cpu(cpuinfo: &str, board: &str) -> String {
    let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
    let model = model.and_then(|line| line.split(": ").nth(1));
    let model = model.unwrap_or("unknown");
    match board {
        "" => model.to_owned(),
        board => format!("{model} in {board}"),
    }
}

/// What the firmware says that this machine is, as far as it says so.
fn board() -> String {
    let said = ["sys_vendor", "product_name", "product_version"]
        .map(|what| fs::read_to_string(Path::new("/sys/class/dmi/id").join(what)))
        .map(Result::unwrap_or_default);
    let said = said.iter().map(|said| said.trim());
    said.filter(|said| !said.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// `0.1.0 (4dd08ac)`; the commit where this runs in a clone of the project.
fn program() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let git = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .output();
    match git {
        Ok(said) if said.status.success() => {
            let commit = String::from_utf8_lossy(&said.stdout);
            format!("{version} ({})", commit.trim())
        }
        _ => version.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_is_told_with_its_machine() {
        let cpuinfo = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu\n";
        assert_eq!(cpu(cpuinfo, ""), "Some CPU @ 2 GHz");
        assert_eq!(cpu("", "QEMU pc-q35-10.0"), "unknown in QEMU pc-q35-10.0");
    }
}
