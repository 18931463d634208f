// SPDX-License-Identifier: GPL-2.0-only
//! What `/proc` says about a task.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::snapshot::id::SnapshotId;

/// What can go wrong when asking about a task.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such task, or no longer.
    #[error("no process with PID {0}")]
    Gone(i32),
    /// `/proc` says something we do not understand.
    #[error("/proc/{pid}/{file} has no {what}")]
    Proc {
        /// The task.
        pid: i32,
        /// Which file.
        file: &'static str,
        /// What was looked for.
        what: &'static str,
    },
    /// Any other failure.
    #[error("{0} failed")]
    Io(String, #[source] io::Error),
}

/// A PID as the task itself sees it, in its innermost PID namespace: the one
/// that is the same after a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Vpid(pub i32);

impl std::fmt::Display for Vpid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

fn read(pid: i32, file: &str) -> Result<String, Error> {
    fs::read_to_string(format!("/proc/{pid}/{file}")).map_err(|e| match e.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => Error::Gone(pid),
        _ => Error::Io(format!("reading /proc/{pid}/{file}"), e),
    })
}

fn nspid(status: &str) -> Option<Vpid> {
    let line = status.lines().find_map(|l| l.strip_prefix("NSpid:"))?;
    line.split_whitespace().next_back()?.parse().ok().map(Vpid)
}

/// Whether SIGKILL is pending, by `/proc/PID/status`.
fn kill_pending(status: &str) -> bool {
    let sets = ["SigPnd:", "ShdPnd:"];
    let pending = |line: &str| {
        let set = sets.iter().find_map(|s| line.strip_prefix(s))?;
        u64::from_str_radix(set.trim(), 16).ok()
    };
    let kill = 1 << (libc::SIGKILL - 1);
    status
        .lines()
        .filter_map(pending)
        .any(|set| set & kill != 0)
}

/// The PIDs of all processes that are seen from here.
pub fn all() -> impl Iterator<Item = i32> {
    let entries = Path::new("/proc").read_dir().into_iter().flatten();
    entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
}

/// The tracer that `/proc/PID/status` names.
fn tracer_in(status: &str) -> Option<i32> {
    let tracer = status.lines().find_map(|l| l.strip_prefix("TracerPid:"))?;
    tracer.trim().parse().ok().filter(|&pid| pid != 0)
}

/// Whether another process traces the task.
#[must_use]
pub fn is_traced(pid: i32) -> bool {
    read(pid, "status").is_ok_and(|status| tracer_in(&status).is_some())
}

/// Field `number` of `/proc/PID/stat`, as proc(5) counts, from 3 on; the command name before
/// may hold anything.
fn field(stat: &str, number: usize) -> Option<u64> {
    let rest = stat.rsplit_once(')')?.1;
    rest.split_whitespace().nth(number - 3)?.parse().ok()
}

/// Whether `PF_EXITING` is among the flags.
fn exiting(stat: &str) -> bool {
    field(stat, 9).is_none_or(|flags| flags & 4 != 0)
}

/// The status, as of wait(2), of a process that has ended and that nobody has waited for.
#[must_use]
pub fn exit_status(pid: i32) -> Option<u64> {
    field(&read(pid, "stat").ok()?, 52)
}

/// Whether the task is gone or on its way: killed, though perhaps not yet dead.
#[must_use]
pub fn is_ending(pid: i32) -> bool {
    read(pid, "status").map_or(true, |status| kill_pending(&status)) || stat_says_ending(pid)
}

/// As [`is_ending`], of a task that `tracer` traces.
#[must_use]
pub fn is_traced_and_ending(pid: i32, tracer: i32) -> bool {
    let traced = |status: &String| tracer_in(status) == Some(tracer);
    let status = read(pid, "status").ok().filter(traced);
    let ending = |status: String| kill_pending(&status) || stat_says_ending(pid);
    status.is_some_and(ending)
}

fn stat_says_ending(pid: i32) -> bool {
    read(pid, "stat").map_or(true, |stat| exiting(&stat))
}

/// The task's PID in its innermost PID namespace.
///
/// # Errors
/// The task is gone.
pub fn vpid(pid: i32) -> Result<Vpid, Error> {
    nspid(&read(pid, "status")?).ok_or(Error::Proc {
        pid,
        file: "status",
        what: "NSpid",
    })
}

/// The task's command name.
///
/// # Errors
/// The task is gone.
pub fn comm(pid: i32) -> Result<String, Error> {
    Ok(read(pid, "comm")?.trim_end().to_owned())
}

/// The PID of the task's parent.
///
/// # Errors
/// The task is gone.
pub fn parent(pid: i32) -> Result<i32, Error> {
    let stat = read(pid, "stat")?;
    let parent = field(&stat, 4).and_then(|p| p.try_into().ok());
    parent.ok_or(Error::Proc {
        pid,
        file: "stat",
        what: "parent",
    })
}

/// Whether the task was started with this argument.
#[must_use]
pub fn has_argument(pid: i32, argument: &Path) -> bool {
    let argument = argument.as_os_str().as_bytes();
    fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| line.split(|&b| b == 0).any(|a| a == argument))
}

/// When the task started, in clock ticks since boot: with its PID it names a
/// task for ever.
///
/// # Errors
/// The task is gone.
pub fn started(pid: i32) -> Result<u64, Error> {
    field(&read(pid, "stat")?, 22).ok_or(Error::Proc {
        pid,
        file: "stat",
        what: "start time",
    })
}

/// `snapshot:` in `/proc/PID/vas`; zeroes are none.
fn snapshot(vas: &str) -> Option<SnapshotId> {
    let id: SnapshotId = vas
        .lines()
        .find_map(|l| l.strip_prefix("snapshot:"))?
        .trim()
        .parse()
        .ok()?;
    (id.bytes() != [0; 16]).then_some(id)
}

/// The snapshot that the task's memory was restored from, if it was.
#[must_use]
pub fn restored_from(pid: i32) -> Option<SnapshotId> {
    snapshot(&read(pid, "vas").ok()?)
}

/// A handle to one process that no other can be mistaken for.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// This process.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn own() -> Result<Self, Error> {
        Self::open(std::process::id().cast_signed())
    }

    /// Opens the process.
    ///
    /// # Errors
    /// There is none, or `pid` is no leader of a thread group.
    pub fn open(pid: i32) -> Result<Self, Error> {
        // SAFETY: pidfd_open takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        match i32::try_from(fd) {
            Ok(fd) if fd >= 0 => {
                // SAFETY: the kernel has just made this descriptor for us.
                Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
            }
            _ => Err(match io::Error::last_os_error() {
                e if e.raw_os_error() == Some(libc::ESRCH) => Error::Gone(pid),
                e => Error::Io(format!("pidfd_open({pid})"), e),
            }),
        }
    }

    /// Whether the process is dead (a zombie is).
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.dies_within(Duration::ZERO)
    }

    /// Waits for the process's death, but no longer than that, or until a signal; whether it is
    /// dead.
    #[must_use]
    pub fn dies_within(&self, time: Duration) -> bool {
        self.poll(libc::c_int::try_from(time.as_millis()).unwrap_or(libc::c_int::MAX)) == 1
    }

    /// Waits until the process is dead.
    pub fn wait(&self) {
        // A signal interrupts it: then it is tried again.
        while self.poll(-1) < 0 {}
    }

    fn poll(&self, ms: libc::c_int) -> libc::c_int {
        let mut poll = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: `poll` is one live pollfd.
        unsafe { libc::poll(&raw mut poll, 1, ms) }
    }

    /// Sends `signal`; a dead process is no error.
    pub fn kill(&self, signal: i32) {
        // SAFETY: pidfd_send_signal with a null siginfo touches no memory.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn the_innermost_pid_is_the_last_of_nspid() {
        assert_eq!(
            nspid("Name:\tx\nNSpid:\t812\t7\t1\nNSsid:\t9\n"),
            Some(Vpid(1))
        );
        assert_eq!(nspid("NSpid:\t812\n"), Some(Vpid(812)));
        assert_eq!(nspid("Pid:\t812\n"), None);
        assert_eq!(nspid("NSpid:\t\n"), None);
    }

    #[test]
    fn a_task_that_never_was_restored_is_from_no_snapshot() {
        let id = "0123456789abcdef0123456789abcdef";
        let found = snapshot(&format!("snapshot:\t{id}\ngeneration:\t1f\n"));
        assert_eq!(found, id.parse().ok());
        assert_eq!(
            snapshot(&format!("snapshot:\t{}\ngeneration:\t0\n", "0".repeat(32))),
            None
        );
        assert_eq!(snapshot(""), None);
    }

    #[test]
    fn the_start_time_is_found_behind_any_command_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 99";
        assert_eq!(field(stat, 22), Some(4242));
        assert_eq!(field("7 no parenthesis", 22), None);
    }

    #[test]
    fn a_killed_task_is_ending_before_it_is_dead() {
        assert!(kill_pending(
            "SigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\n"
        ));
        assert!(!kill_pending(
            "SigPnd:\t0000000000000200\nSigBlk:\t0000000000000100\n"
        ));
        assert!(exiting("7 (a) S 1 7 7 0 -1 4194564 1"));
        assert!(!exiting("7 (a) S 1 7 7 0 -1 4194560 1"));
        assert!(!is_ending(std::process::id().cast_signed()));
        assert!(is_ending(i32::MAX));
    }

    #[test]
    fn a_tracer_is_seen() {
        assert_eq!(tracer_in("Pid:\t7\nTracerPid:\t12\n"), Some(12));
        assert_eq!(tracer_in("Pid:\t7\nTracerPid:\t0\n"), None);
        assert_eq!(tracer_in(""), None);
    }

    #[test]
    fn this_process_is_alive_and_known() {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        assert!(!PidFd::open(pid).expect("alive").is_dead());
        assert_eq!(
            vpid(pid).expect("alive").0,
            std::process::id().cast_signed()
        );
        assert_eq!(started(pid).expect("alive"), started(pid).expect("alive"));
    }

    #[test]
    fn an_argument_is_found_only_whole() {
        let own = std::process::id().cast_signed();
        let program = std::env::args_os().next().expect("a name");
        assert!(has_argument(own, Path::new(&program)));
        let part = program.as_bytes().split_last().expect("a name").1;
        assert!(!has_argument(own, Path::new(OsStr::from_bytes(part))));
        assert!(!has_argument(i32::MAX, Path::new(&program)));
    }

    #[test]
    fn a_pid_that_nobody_has_is_gone() {
        assert!(matches!(PidFd::open(i32::MAX), Err(Error::Gone(_))));
        assert!(matches!(vpid(i32::MAX), Err(Error::Gone(_))));
    }
}
