// SPDX-License-Identifier: GPL-2.0-only
//! A task of a copy has PIDs that mean something only inside, so whoever wants to dump it
//! must be inside, too.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use crate::process::{self, PidFd};

/// Which process goes on, and where.
#[derive(Debug, PartialEq, Eq)]
pub enum Where {
    /// This one, as the task is none of a copy.
    Here,
    /// A new one inside, for which the task has this PID.
    Inside(i32),
    /// This one, and the one inside has ended with this status.
    Outside(u8),
}

/// Where to dump the task `pid`: if it is one of a copy, a new process enters that, and this
/// one returns when it has ended. For a process with one thread.
///
/// # Errors
/// The kernel's.
pub fn enter(pid: i32) -> io::Result<Where> {
    let Some(supervisor) = supervisor_of(pid) else {
        return Ok(Where::Here);
    };
    let vpid = process::vpid(pid).map_err(io::Error::other)?.0;
    let copy = PidFd::open(supervisor).map_err(io::Error::other)?;
    let all = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNET;
    let here = std::env::current_dir();
    // SAFETY: this process has no other threads, so all of it is there in the child.
    let ForkResult::Parent { child } = (unsafe { fork()? }) else {
        setns(copy, all)?;
        let _ = here.and_then(std::env::set_current_dir);
        // Only its children are of that PID namespace.
        // SAFETY: as above.
        return match unsafe { fork()? } {
            ForkResult::Child => Ok(Where::Inside(vpid)),
            ForkResult::Parent { child } => Ok(Where::Outside(status(child)?)),
        };
    };
    status(child).map(Where::Outside)
}

fn status(child: nix::unistd::Pid) -> io::Result<u8> {
    loop {
        return match waitpid(child, None) {
            Err(Errno::EINTR) => continue,
            Ok(WaitStatus::Exited(_, status)) => Ok(u8::try_from(status & 0xff).unwrap_or(1)),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                Ok(u8::try_from(128 + signal as i32).unwrap_or(1))
            }
            Ok(_) => Ok(1),
            Err(e) => Err(e.into()),
        };
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
