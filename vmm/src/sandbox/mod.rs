// SPDX-License-Identifier: GPL-2.0-only
//! What a thread of the monitor may ask of the kernel, once the guest runs.
//!
//! Each thread enters its sandbox by itself, when it has opened what it needs and before the
//! guest's first instruction: a Landlock domain with the folders of its [`Role`], then a seccomp
//! filter with the system calls of it. Neither can be left again, and threads that are started
//! later inherit both. `docs/THREATS.md` says what holds then, and what does not: threads share
//! their memory, so whoever has taken over one of them can make the others do what they may.
//!
//! A system call that is on no list ends the process at once, and what it was is told to whoever
//! reads the VM's record ([`refusal`]). The few that libraries make by themselves, and can do
//! without, fail with `EACCES` instead ([`calls`]).

mod calls;
mod files;
mod refusal;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use seccompiler::{BpfProgram, apply_filter};
use thiserror::Error;

pub use files::landlock_version;

/// The most files that a monitor may have open: 255 vCPUs and 19 devices, 512 streams of vsock,
/// drafts and opened snapshots take about 1100.
const OPEN_FILES: u64 = 4096;

/// What a thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The command's own thread: terminal, signals, the session with the guest's agent, the record.
    Command,
    /// Tells the counters and writes them down.
    Counters,
    /// The event loop with all devices but disks and virtio-vas. It ends the VM's run in the store,
    /// too.
    Devices,
    /// Reads and writes the image of a disk.
    Disk,
    /// Runs a vCPU, and answers its port and memory accesses.
    Vcpu,
    /// Serves the guest's snapshot requests.
    Snapshots,
}

impl Role {
    /// Whether it opens no file at all.
    fn opens_nothing(self) -> bool {
        matches!(self, Self::Disk | Self::Vcpu)
    }

    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Command,
        Self::Counters,
        Self::Devices,
        Self::Disk,
        Self::Vcpu,
        Self::Snapshots,
    ];
}

/// Why a thread could not enter its sandbox.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The process's own part.
    #[error("cannot {what} for the monitor's sandbox (--no-sandbox runs without)")]
    Prepare {
        /// What was tried.
        what: &'static str,
        /// What the kernel says.
        source: io::Error,
    },
    /// The kernel refuses the domain.
    #[error("cannot enter a Landlock domain (--no-sandbox runs without)")]
    Landlock(#[source] landlock::RulesetError),
    /// A folder of the domain cannot be opened.
    #[error("cannot enter a Landlock domain (--no-sandbox runs without)")]
    Folder(#[from] landlock::PathFdError),
    /// The filter does not compile.
    #[error("internal error in a seccomp filter")]
    Filter(#[from] seccompiler::BackendError),
    /// The kernel refuses the filter.
    #[error("cannot install a seccomp filter (--no-sandbox runs without)")]
    Seccomp(#[from] seccompiler::Error),
}

/// The sandbox of a monitor's threads. By default there is none, and [`Self::enter`] does nothing.
#[derive(Debug, Clone, Default)]
pub struct Sandbox(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    store: Option<PathBuf>,
    seccomp: bool,
}

impl Sandbox {
    /// Prepares this process, before it starts threads that are to enter: no new privileges, no
    /// core dumps (they would hold what guests sent), a limit to open files, and what happens
    /// when a system call is refused: it is written to `refusals`.
    ///
    /// `folder` is the VM's, `store` the snapshot store that its memory is in.
    ///
    /// # Errors
    /// The kernel refuses one of them.
    pub fn new(folder: &Path, store: Option<&Path>, refusals: File) -> Result<Self, SandboxError> {
        let cannot = |what| move |source| SandboxError::Prepare { what, source };
        set_no_new_privs().map_err(|e| cannot("give up new privileges")(e.into()))?;
        limit().map_err(cannot("set resource limits"))?;
        let seccomp = has_seccomp();
        if seccomp {
            refusal::handle(refusals).map_err(cannot("handle SIGSYS"))?;
        }
        Ok(Self(Some(Arc::new(Inner {
            folder: folder.to_owned(),
            store: store.map(Path::to_owned),
            seccomp,
        }))))
    }

    /// What the host's kernel lacks, so that the sandbox has less than it could.
    pub fn lacks(&self) -> Vec<&'static str> {
        let Some(inner) = &self.0 else {
            return vec!["it was switched off (--no-sandbox)"];
        };
        let mut lacks = Vec::new();
        if !inner.seccomp {
            lacks.push("this kernel has no seccomp filters: system calls are not filtered");
        }
        if landlock_version() == 0 {
            lacks.push("this kernel has no Landlock: threads that open files may open any");
        }
        lacks
    }

    /// Starts a thread that does `work` once it has entered its sandbox, and waits until it has.
    ///
    /// # Errors
    /// The host has no more threads, or refuses the sandbox.
    pub fn spawn(
        &self,
        role: Role,
        name: String,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let sandbox = self.clone();
        let (tell, told) = mpsc::channel();
        let thread = thread::Builder::new().name(name).spawn(move || {
            let confined = sandbox.enter(role);
            let is_confined = confined.is_ok();
            if tell.send(confined).is_ok() && is_confined {
                work();
            }
        })?;
        told.recv()
            .map_err(io::Error::other)?
            .map_err(io::Error::other)?;
        Ok(thread)
    }

    /// Confines the calling thread, and those that it starts from now on, for good.
    ///
    /// # Errors
    /// The kernel refuses. The thread may be confined in part, and must not go on.
    pub fn enter(&self, role: Role) -> Result<(), SandboxError> {
        let Some(inner) = &self.0 else { return Ok(()) };
        files::confine(role, &inner.folder, inner.store.as_deref())?;
        if inner.seccomp {
            refusal::name_thread();
            // The list of what may be done comes last: it has no rule for what makes filters.
            for filter in calls::filters(role)? {
                apply_filter(&BpfProgram::try_from(filter)?)?;
            }
        }
        Ok(())
    }
}

/// Whether the kernel has seccomp filters and the action that ours use.
pub fn has_seccomp() -> bool {
    let action: u32 = libc::SECCOMP_RET_TRAP;
    // SAFETY: only asks; it reads the number, which lives until it returns.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const action,
        )
    };
    answer == 0
}

/// Limits of the process; each only ever goes down.
fn limit() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let files = hard.min(OPEN_FILES);
    Ok(setrlimit(Resource::RLIMIT_NOFILE, files, files)?)
}
