// SPDX-License-Identifier: GPL-2.0-only
//! The host half: microVMs, the store they share, and the guest half in them.

mod image_root;
mod scratch;
mod vm;

pub use image_root::{ImageRoot, hold as hold_image_root};
pub use scratch::{Scratch, janitor};
pub use vm::{Machine, Vm};

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::guest::Step;

/// `mvasvm`: what `MVASVM` names, else beside this program, else in `PATH`.
fn mvasvm() -> OsString {
    let beside = || {
        let beside = std::env::current_exe().ok()?.with_file_name("mvasvm");
        beside.is_file().then(|| beside.into_os_string())
    };
    std::env::var_os("MVASVM")
        .or_else(beside)
        .unwrap_or_else(|| "mvasvm".into())
}

/// Where the microVMs of an experiment run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On this host's KVM.
    Here,
    /// On a simulated host, all on one: this program runs there, too.
    Simulated,
}

/// What `mvasvm doctor --json` tells, as far as it is used here.
#[derive(Debug, Deserialize)]
struct Doctor {
    runs_on: String,
    image: Built,
}

/// A file that is booted.
#[derive(Debug, Deserialize)]
struct Built {
    path: Option<PathBuf>,
}

impl Doctor {
    fn ask() -> Result<Self> {
        let output = Command::new(mvasvm())
            .args(["doctor", "--json"])
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run mvasvm (build it with `make`, or name it in MVASVM)")?;
        parse(&output.stdout)
    }
}

impl Place {
    /// As `mvasvm run --hw` would decide.
    ///
    /// # Errors
    /// When microVMs cannot run here at all.
    pub fn find(hw: &str) -> Result<Self> {
        match hw {
            "kvm" => return Ok(Self::Here),
            "sim" => return Ok(Self::Simulated),
            _ => {}
        }
        match Doctor::ask()?.runs_on.as_str() {
            "kvm" => Ok(Self::Here),
            "sim" => Ok(Self::Simulated),
            _ => bail!("microVMs cannot run here: `mvasvm doctor` says why"),
        }
    }
}

/// Runs this same command, with `more` arguments, on a simulated host, which can write to the
/// folder `out`. Returns only if that fails.
///
/// # Errors
/// When mvasvm cannot be run.
pub fn become_simulated(out: &Path, more: &[String]) -> Result<()> {
    eprintln!("no hardware virtualization: running on a simulated host, about 10 times slower");
    let work = work_folder(out)?;
    let error = Command::new(mvasvm())
        .arg("sim")
        .arg("--work")
        .arg(work)
        .arg("--")
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .args(["--hw", "kvm"])
        .args(more)
        .stdin(Stdio::null())
        .exec();
    Err(error).context("cannot run mvasvm (build it with `make`, or name it in MVASVM)")
}

/// The folder that a simulated host must be able to write, so that it can write to `out`: the
/// current one, if `out` is in it, for our programs may be there, too.
fn work_folder(out: &Path) -> Result<PathBuf> {
    make_folder(out)?;
    let out = out.canonicalize()?;
    let here = std::env::current_dir()?.canonicalize()?;
    let inside = here != Path::new("/") && out.starts_with(&here);
    Ok(if inside { here } else { out })
}

/// Host memory that these microVMs and their store take: the store's files, and what the
/// monitors have of their own, their guests' writes to memory of snapshots included.
///
/// # Errors
/// When it cannot be told.
pub fn host_bytes(store: &Scratch, vms: &[&Vm]) -> Result<u64> {
    let mut bytes = store.allocated_bytes()?;
    for vm in vms {
        bytes += vm.anonymous_bytes()?;
    }
    Ok(bytes)
}

/// Longest wait for guests to give their free memory back.
const SETTLING: Duration = Duration::from_secs(60);
/// A guest reports free memory every two seconds.
const REPORTS: Duration = Duration::from_secs(3);

/// [`host_bytes`], once the guests have given back what they freed.
///
/// # Errors
/// As [`host_bytes`].
pub fn settled_bytes(store: &Scratch, vms: &[&Vm]) -> Result<u64> {
    let begun = Instant::now();
    let mut last = host_bytes(store, vms)?;
    loop {
        sleep(REPORTS);
        let now = host_bytes(store, vms)?;
        if now.abs_diff(last) < 1 << 20 || begun.elapsed() > SETTLING {
            return Ok(now);
        }
        last = now;
    }
}

/// The guest half's path in the image.
const GUEST_HALF: &str = "/usr/bin/mvas-exp";

/// Runs a step of the guest half by `command`, to which only that is added; what it writes to
/// standard error is shown.
fn ask<T: DeserializeOwned>(command: &mut Command, step: &Step) -> Result<T> {
    let output = command
        .args([GUEST_HALF, "guest"])
        .arg(serde_json::to_string(step)?)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    ensure!(
        output.status.success(),
        "{step:?} failed ({})",
        output.status
    );
    parse(&output.stdout)
}

fn parse<T: DeserializeOwned>(output: &[u8]) -> Result<T> {
    serde_json::from_slice(output).with_context(|| {
        let text = String::from_utf8_lossy(output);
        let begin: String = text.chars().take(400).collect();
        format!("this is something else than a result: {begin}")
    })
}

/// Writes a result; a reader sees it whole or not at all.
///
/// # Errors
/// When the file cannot be written.
pub fn save(result: &impl Serialize, path: &Path) -> Result<()> {
    make_parent(path)?;
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, serde_json::to_string_pretty(result)? + "\n")
        .and_then(|()| fs::rename(&temporary, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The folder that a file is in.
#[must_use]
pub fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| *parent != Path::new(""))
        .unwrap_or(Path::new("."))
}

fn make_parent(path: &Path) -> Result<()> {
    make_folder(folder_of(path))
}

fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_saved_whole_in_a_new_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("target/mvas/demo.json");
        save(&[1, 2], &path).unwrap();
        assert_eq!(parse::<Vec<u8>>(&fs::read(&path).unwrap()).unwrap(), [1, 2]);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn other_output_than_a_result_is_shown() {
        let error = parse::<Vec<u8>>(b"Kernel panic").unwrap_err();
        assert!(error.to_string().contains("Kernel panic"));
    }

    #[test]
    fn the_simulated_host_writes_here_or_where_the_result_goes() {
        let here = std::env::current_dir().unwrap().canonicalize().unwrap();
        assert_eq!(work_folder(folder_of(Path::new("x.json"))).unwrap(), here);
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = dir.path().canonicalize().unwrap();
        let out = elsewhere.join("new/samples");
        assert_eq!(work_folder(&out).unwrap(), out);
    }

    #[test]
    fn the_place_can_be_chosen() {
        assert_eq!(Place::find("kvm").unwrap(), Place::Here);
        assert_eq!(Place::find("sim").unwrap(), Place::Simulated);
    }
}
