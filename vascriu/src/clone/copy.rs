// SPDX-License-Identifier: GPL-2.0-only
//! One copy: the process that becomes it, and what it says when it runs.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2, setsid};
use serde::{Deserialize, Serialize};

use super::{Order, oom, supervisor};
use crate::process;
use crate::text::chain;

/// What a copy says.
#[derive(Debug, Serialize, Deserialize)]
enum Said {
    /// The root's PID, by the copy's own count.
    Runs(i32),
    /// Why it does not.
    Failed(String),
}

/// A copy that is being made.
#[derive(Debug)]
pub struct Begun {
    process: Pid,
    report: File,
    is_container: bool,
    oom_kills: u64,
}

impl Begun {
    /// Begins a copy: a process that is PID 1 of a new PID namespace; of a container, for
    /// which CRIU makes all namespaces, one that only restores it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(order: &Order<'_>) -> io::Result<Self> {
        let (report, theirs) = pipe2(OFlag::O_CLOEXEC)?;
        let oom_kills = oom::kills();
        let ours = File::open("/proc/self/ns/pid")?;
        if !order.is_container {
            unshare(CloneFlags::CLONE_NEWPID)?;
        }
        // SAFETY: this process has no other threads, so all of it is there in the child.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => be_copy(order, theirs),
            forked => {
                // The next child is no longer one of the new namespace.
                setns(ours, CloneFlags::CLONE_NEWPID)?;
                let Ok(ForkResult::Parent { child }) = forked else {
                    return Err(io::Error::last_os_error());
                };
                Ok(Self {
                    process: child,
                    report: report.into(),
                    is_container: order.is_container,
                    oom_kills,
                })
            }
        }
    }

    /// Can be read when the copy runs, or has failed.
    pub fn report(&self) -> BorrowedFd<'_> {
        self.report.as_fd()
    }

    /// Waits until it runs: the PIDs of its supervisor, if it has one, and of its root.
    ///
    /// # Errors
    /// Why it does not run, in words; nothing of it is left.
    pub fn finish(mut self) -> Result<(Option<i32>, i32), String> {
        let mut text = String::new();
        let said = self
            .report
            .read_to_string(&mut text)
            .map(|_| serde_json::from_str(&text));
        let why = match said {
            Ok(Ok(Said::Runs(pid))) if self.is_container => {
                let _ = waitpid(self.process, None);
                return Ok((None, pid));
            }
            Ok(Ok(Said::Runs(vpid))) => match seen_from_here(self.process, vpid) {
                Some(pid) => return Ok((Some(self.process.as_raw()), pid)),
                None => "its root ended at once".to_owned(),
            },
            Ok(Ok(Said::Failed(why))) => why,
            _ => "its first process was ended".to_owned(),
        };
        let _ = kill(self.process, Signal::SIGKILL);
        let _ = waitpid(self.process, None);
        if oom::kills() > self.oom_kills {
            return Err(format!(
                "{why}\n  no memory was left, and the kernel had to end it"
            ));
        }
        Err(why)
    }
}

/// The child of `parent` that is `vpid` by its own count.
fn seen_from_here(parent: Pid, vpid: i32) -> Option<i32> {
    let list = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    let mut pids = list.split_whitespace().filter_map(|p| p.parse().ok());
    pids.find(|&pid| process::vpid(pid).is_ok_and(|v| v.0 == vpid))
}

/// The child's life.
fn be_copy(order: &Order<'_>, report: OwnedFd) -> ! {
    // Nothing of the parent's may run here: neither what a panic unwinds nor what it left
    // to be done at exit.
    let status = catch_unwind(AssertUnwindSafe(|| live(order, report))).unwrap_or(1);
    // SAFETY: ends this process.
    unsafe { libc::_exit(status) }
}

fn live(order: &Order<'_>, report: OwnedFd) -> i32 {
    let begun = keep_only(&report).map_err(|e| e.to_string());
    let (said, root) = match begun.and_then(|()| begin(order)) {
        Ok(root) => (Said::Runs(root), Some(Pid::from_raw(root))),
        Err(why) => (Said::Failed(why), None),
    };
    // From here on it lives without who made it, but never unknown to him.
    let _ = prctl::set_pdeathsig(None);
    let text = serde_json::to_string(&said).unwrap_or_default();
    let told = File::from(report).write_all(text.as_bytes());
    match root {
        Some(root) if told.is_ok() && !order.is_container => supervisor::watch(root),
        Some(_) if told.is_ok() => 0,
        Some(root) if order.is_container => {
            order.maker.end(&order.name, root.as_raw());
            1
        }
        _ => 1,
    }
}

/// Lets go of every descriptor of the parent's but one.
fn keep_only(kept: &OwnedFd) -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    let kept = kept.as_raw_fd().cast_unsigned();
    for (first, last) in [(3, kept - 1), (kept + 1, u32::MAX)] {
        // SAFETY: what is closed has owners, but in the parent's code, which never goes on
        // in this process; and `null`, which goes with it.
        let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        if first <= last && closed < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    std::mem::forget(null);
    Ok(())
}

/// Restores the snapshot; the root's PID.
fn begin(order: &Order<'_>) -> Result<i32, String> {
    // What a terminal sends is not for copies.
    setsid().map_err(|e| e.to_string())?;
    if order.is_container {
        return order.maker.make(&order.name);
    }
    // Half restored tasks go with this process, and it with its parent.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|e| e.to_string())?;
    let first = oom::First::from_now_on();
    supervisor::enter(order).map_err(|e| chain(&e))?;
    let root = order.maker.make(&order.name)?;
    first.no_more();
    supervisor::hold_signals();
    Ok(root)
}
