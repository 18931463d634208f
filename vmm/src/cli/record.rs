// SPDX-License-Identifier: GPL-2.0-only
//! What is kept of a VM in its folder: while it runs for other commands to find it, and after
//! its end as a record.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use mvasvm::devices::keep_newest;
use serde::{Deserialize, Serialize};

use super::codes::FAILED;

const INFO: &str = "vm.json";
/// The kernel's log.
pub(super) const CONSOLE_LOG: &str = "console.log";
/// What the monitor said.
pub(super) const MONITOR_LOG: &str = "monitor.log";
/// The counters, as they were last written.
pub(super) const METRICS: &str = "metrics.json";
/// The way to the guest's agent.
pub(super) const VSOCK: &str = "vsock.sock";
/// Where a running VM tells its counters.
pub(super) const STATS: &str = "stats.sock";
/// What the sandbox refused a thread of the monitor, which ended it.
const REFUSED: &str = "refused";
/// Says that whoever kills the monitor is `mvasvm`, for the user.
const KILLED: &str = "killed";

/// The most that is kept of each log after the VM's end, bytes.
const LOG_KEPT: u64 = 1 << 20;

/// What runs a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Hw {
    /// This host's KVM.
    Kvm,
    /// A simulated host.
    Sim,
}

/// `vm.json`: what is known about a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VmInfo {
    pub name: String,
    /// The monitor's process.
    pub pid: u32,
    pub hw: Hw,
    /// Folder of the simulated host that it runs in.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sim: Option<PathBuf>,
    /// Directory of the snapshot store that its memory is in.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub store: Option<PathBuf>,
    pub mem_bytes: u64,
    pub cpus: u32,
    pub kernel: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub image: Option<PathBuf>,
    /// Seconds since 1970.
    pub started: u64,
    /// How it ended. `None`: it runs, or its monitor was killed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub end: Option<End>,
}

/// How and when a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct End {
    /// Seconds since 1970; of a killed monitor, when that was first seen.
    pub at: u64,
    pub cause: Cause,
    /// The cause in words, with what more there is to say.
    pub text: String,
    /// What `run` returned; a killed one returns nothing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exit_code: Option<u8>,
}

/// Why a VM ended; `docs/VMM.md` has the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Cause {
    PoweredOff,
    Reset,
    GuestPanic,
    TripleFault,
    CommandEnded,
    Stopped,
    Killed,
    Failed,
    MonitorKilled,
}

impl End {
    /// An end, now.
    pub fn new(cause: Cause, text: impl Into<String>, exit_code: Option<u8>) -> Self {
        Self {
            at: seconds(),
            cause,
            text: text.into(),
            exit_code,
        }
    }

    /// What is known of the end of a monitor that did not say.
    pub fn unsaid(folder: &Path) -> Self {
        let refused = fs::read_to_string(folder.join(REFUSED)).unwrap_or_default();
        if folder.join(KILLED).exists() {
            Self::new(Cause::Killed, "killed by mvasvm", None)
        } else if let Some((thread, call)) = refused.trim_end().rsplit_once(' ') {
            let text = format!(
                "internal error: the sandbox ended the monitor, for its thread {thread} made system \
                 call {call}: a fault of mvasvm (--no-sandbox runs without), or a guest that breaks out"
            );
            Self::new(Cause::Failed, text, Some(FAILED))
        } else {
            let text = "the monitor was killed: SIGKILL, out of memory, or a crash";
            Self::new(Cause::MonitorKilled, text, None)
        }
    }
}

/// Makes the file for what the sandbox refuses.
///
/// # Errors
/// The folder cannot be written to.
pub(super) fn refusals(folder: &Path) -> io::Result<File> {
    File::create(folder.join(REFUSED))
}

/// Seconds since 1970.
pub(super) fn seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Says that the monitor is about to be killed for the user.
pub(super) fn mark_killed(folder: &Path) {
    if let Err(error) = File::create(folder.join(KILLED)) {
        // It is to be killed all the same.
        tracing::warn!("cannot note in {} who kills it: {error}", folder.display());
    }
}

/// What is known about the VM of a folder; `None`: nothing that can be read.
pub(super) fn read(folder: &Path) -> Option<VmInfo> {
    serde_json::from_slice(&fs::read(folder.join(INFO)).ok()?).ok()
}

/// Says what the VM of a folder is.
///
/// # Errors
/// The folder cannot be written to; it says what it said before.
pub(super) fn write(folder: &Path, info: &VmInfo) -> io::Result<()> {
    replace(&folder.join(INFO), info)
}

/// Replaces a file by `value` as JSON, so that no reader finds half of it.
pub(super) fn replace(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer_pretty(&mut file, value)?;
    file.write_all(b"\n")?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// Makes a folder the record of a VM that ended as `info` says. Only for whoever has the
/// folder's lock, or that of all folders.
///
/// # Errors
/// The folder cannot be written to.
pub(super) fn close(folder: &Path, info: &VmInfo) -> io::Result<()> {
    for log in [CONSOLE_LOG, MONITOR_LOG] {
        absent_is_fine(keep_newest(&folder.join(log), LOG_KEPT))?;
    }
    for gone in [VSOCK, STATS, KILLED, REFUSED] {
        absent_is_fine(fs::remove_file(folder.join(gone)))?;
    }
    // Last: who sees an end sees a whole record.
    write(folder, info)
}

fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
