// SPDX-License-Identifier: GPL-2.0-only
//! The first process of a copy: makes its namespaces, restores the snapshot in them, and
//! then waits for its root to end, as `init` of its PID namespace. Whatever way it ends,
//! the kernel ends the copy with it.

use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::Order;

/// The longest name that a host can have.
const HOSTNAME_MAX: usize = 64;
/// The first PID that the kernel gives a second time.
const RESERVED_PIDS: i32 = 300;
/// How long those who came from outside are left alone before they are looked for again.
const PATIENCE: std::time::Duration = std::time::Duration::from_millis(20);

/// A step on the way to a copy's own namespaces failed.
#[derive(Debug, thiserror::Error)]
#[error("{step} failed")]
pub struct Error {
    step: &'static str,
    source: io::Error,
}

fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Error {
    move |e| Error {
        step,
        source: e.into(),
    }
}

/// Puts this process, PID 1 of a new PID namespace, into new namespaces of the other kinds.
///
/// # Errors
/// The kernel refuses a step.
pub fn enter(order: &Order<'_>) -> Result<(), Error> {
    let new = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    unshare(new).map_err(failed("making its namespaces"))?;
    order
        .net
        .enter(order.address)
        .map_err(failed("making its network"))?;
    // What is mounted here is seen nowhere else.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(failed("making its mounts private"))?;
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), safe, None::<&str>)
        .map_err(failed("mounting its /proc"))?;
    fs::write("/proc/sys/kernel/hostname", hostname(&order.name))
        .map_err(failed("setting its host name"))?;
    let pid_max = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    let last = quiet_place(order.tasks, pid_max.trim().parse().unwrap_or(1 << 15));
    fs::write("/proc/sys/kernel/ns_last_pid", last.to_string())
        .map_err(failed("keeping its tasks' PIDs free"))
}

/// The copy's name, its end kept where it is too long for a host's.
fn hostname(name: &str) -> &str {
    // Names are ASCII.
    &name[name.len().saturating_sub(HOSTNAME_MAX)..]
}

/// The PID behind which CRIU gets its own, far from the tasks', which must be free: the
/// middle of the largest gap between them. Their threads' and sessions' are near.
fn quiet_place(tasks: &[i32], pid_max: i32) -> i32 {
    let mut edges = [tasks, &[RESERVED_PIDS, pid_max]].concat();
    edges.retain(|&e| (RESERVED_PIDS..=pid_max).contains(&e));
    edges.sort_unstable();
    let gaps = edges.windows(2).max_by_key(|gap| gap[1] - gap[0]);
    gaps.map_or(RESERVED_PIDS, |gap| gap[0] + (gap[1] - gap[0]) / 2)
}

/// From now on signals wait for [`watch`], instead of being lost.
pub fn hold_signals() {
    let _ = SigSet::all().thread_block();
}

/// Reaps what comes, and passes signals on to `root` until that has ended; its exit status,
/// as a shell would say it.
pub fn watch(root: Pid) -> i32 {
    let signals = SigSet::all();
    loop {
        // Some may have ended before signals were held.
        if let Some(status) = reap(root) {
            linger();
            return status;
        }
        match signals.wait() {
            Ok(Signal::SIGCHLD) | Err(_) => {}
            Ok(signal) => drop(kill(root, signal)),
        }
    }
}

/// Reaps all that have ended; `root`'s exit status if it is among them, or not there at all.
fn reap(root: Pid) -> Option<i32> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == root => return Some(status),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == root => {
                return Some(128 + signal as i32);
            }
            Ok(WaitStatus::StillAlive) => return None,
            Err(Errno::ECHILD) => return Some(0),
            _ => {}
        }
    }
}

/// Waits for those who have entered the copy from outside, as `vascriu dump` does, which has
/// ended the root, but is not done.
fn linger() {
    let from_outside = |process: &fs::DirEntry| {
        let pid = process
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok());
        let status = fs::read_to_string(process.path().join("status")).unwrap_or_default();
        let parent = status.lines().find_map(|l| l.strip_prefix("PPid:"));
        pid.is_some_and(|pid| pid != 1) && parent.is_some_and(|p| p.trim() == "0")
    };
    let anybody = || {
        let mut all = Path::new("/proc")
            .read_dir()
            .into_iter()
            .flatten()
            .flatten();
        all.any(|process| from_outside(&process))
    };
    while anybody() {
        let _ = reap(Pid::from_raw(0));
        std::thread::sleep(PATIENCE);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_end_of_a_long_name_tells_the_copy() {
        assert_eq!(hostname("web-1"), "web-1");
        let long = format!("{}-17", "x".repeat(100));
        assert!(hostname(&long).len() == HOSTNAME_MAX && hostname(&long).ends_with("x-17"));
    }

    #[test]
    fn crius_pids_are_far_from_the_tasks() {
        assert_eq!(quiet_place(&[], 32768), 16534);
        assert_eq!(quiet_place(&[2, 3], 32768), 16534);
        assert_eq!(quiet_place(&[400, 401], 32768), 16584);
        assert_eq!(quiet_place(&[32000], 32768), 16150);
    }

    proptest! {
        #[test]
        fn crius_pids_are_never_the_tasks(mut tasks in prop::collection::vec(2..32768i32, 0..50)) {
            let last = quiet_place(&tasks, 32768);
            tasks.retain(|&t| t > last && t < last + 200);
            prop_assert_eq!(tasks, Vec::<i32>::new());
        }
    }
}
