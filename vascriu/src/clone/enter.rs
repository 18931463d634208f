// SPDX-License-Identifier: GPL-2.0-only
//! A task of a copy has PIDs that mean something only inside, so whoever wants to dump it
//! must be inside, too.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, anyhow};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::process::{self, PidFd};

/// Does `work` where the task `pid` can be dumped, with the PID that the task has there: in
/// this process, or, if it is a task of a copy, in a new one inside. For a process with one
/// thread.
///
/// # Errors
/// The work's; or it could not be begun, or was killed.
pub fn inside<T: Serialize + DeserializeOwned>(
    pid: i32,
    work: impl FnOnce(i32) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let Some(supervisor) = supervisor_of(pid) else {
        return work(pid);
    };
    let cannot = || format!("cannot enter the copy that task {pid} is of");
    let vpid = process::vpid(pid).with_context(cannot)?.0;
    let copy = PidFd::open(supervisor).with_context(cannot)?;
    let (read, write) = pipe().with_context(cannot)?;
    // SAFETY: this process has no other threads, so all of it is there in the child.
    let child = match unsafe { fork() }.with_context(cannot)? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            drop(read);
            let done = enter(&copy).with_context(cannot).and_then(|()| work(vpid));
            let done = done.map_err(|e| format!("{e:#}"));
            let said = serde_json::to_vec(&done).map_err(io::Error::from);
            let said = said.and_then(|text| File::from(write).write_all(&text));
            std::process::exit(i32::from(said.is_err()));
        }
    };
    drop(write);
    let mut said = Vec::new();
    let read = File::from(read).read_to_end(&mut said);
    ended(child).and(read).with_context(cannot)?;
    let done: Result<T, String> = serde_json::from_slice(&said)
        .map_err(|_| anyhow!("who worked inside the copy that task {pid} is of was killed"))?;
    done.map_err(anyhow::Error::msg)
}

/// Enters all namespaces that a copy has of its own: goes on as a new process, and what called
/// ends with it.
fn enter(copy: &PidFd) -> io::Result<()> {
    let all = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNET;
    let here = std::env::current_dir();
    setns(copy, all)?;
    let _ = here.and_then(std::env::set_current_dir);
    // Only its children are of that PID namespace.
    // SAFETY: this process has no other threads, so all of it is there in the child.
    match unsafe { fork()? } {
        ForkResult::Child => Ok(()),
        ForkResult::Parent { child } => {
            let _ = ended(child);
            std::process::exit(0)
        }
    }
}

/// Waits for its end.
fn ended(child: Pid) -> io::Result<()> {
    loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) => return Ok(()),
            Ok(_) => {}
        }
    }
}

/// The first process of the PID namespace that `pid` is in, if that is a supervisor of ours
/// and not `pid` itself.
fn supervisor_of(pid: i32) -> Option<i32> {
    let namespace = |pid: i32| Some(fs::metadata(format!("/proc/{pid}/ns/pid")).ok()?.ino());
    let program = |pid: &str| {
        let exe = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
        Some((exe.dev(), exe.ino()))
    };
    let of = namespace(pid)?;
    if of == fs::metadata("/proc/self/ns/pid").ok()?.ino() {
        return None;
    }
    let mut at = pid;
    while namespace(at)? == of {
        at = parent(at)?;
        if process::vpid(at).ok()?.0 == 1 && namespace(at)? == of {
            return (program(&at.to_string())? == program("self")?).then_some(at);
        }
    }
    None
}

fn parent(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}
