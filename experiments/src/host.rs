//! The host half: boots a microVM, runs the guest half in it, takes its result.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A microVM to be.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Its memory, as `mvasvm --mem` takes it.
    pub mem: String,
    /// The kind of hardware, as `mvasvm --hw` takes it.
    pub hw: String,
    /// Number of its vCPUs.
    pub cpus: u32,
    /// An empty raw disk to give it, and its size in bytes.
    pub disk: Option<(PathBuf, u64)>,
}

/// The guest half's path in the image.
const GUEST_HALF: &str = "/usr/bin/mvas-exp";

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

/// Boots `machine`, runs `mvas-exp ARGS` in it, and returns the JSON that it
/// writes to its standard output. What it writes to standard error is shown.
///
/// # Errors
/// When the microVM or the guest half fails, or the output is not the JSON.
pub fn run_in_guest<T: DeserializeOwned>(machine: &Machine, args: &[String]) -> Result<T> {
    let mut command = Command::new(mvasvm());
    command
        .arg("run")
        .args(["--mem", &machine.mem, "--hw", &machine.hw])
        .args(["--cpus", &machine.cpus.to_string()]);
    if let Some((path, bytes)) = &machine.disk {
        make_parent(path)?;
        let file =
            File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        file.set_len(*bytes)?;
        command.arg("--disk").arg(path);
    }
    command.arg("--").arg(GUEST_HALF).args(args);
    eprintln!(
        "starting a microVM with {} and {} vCPUs",
        machine.mem, machine.cpus
    );
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run mvasvm (build it with `make`, or name it in MVASVM)");
    if let Some((path, _)) = &machine.disk {
        fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    let output = output?;
    ensure!(
        output.status.success(),
        "{command:?} failed ({})",
        output.status
    );
    parse(&output.stdout)
}

fn parse<T: DeserializeOwned>(output: &[u8]) -> Result<T> {
    serde_json::from_slice(output).with_context(|| {
        let text = String::from_utf8_lossy(output);
        let begin: String = text.chars().take(400).collect();
        format!("the guest half wrote something else than its result: {begin}")
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

fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))
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
}
