// SPDX-License-Identifier: GPL-2.0-only
//! Processes that become ours while CRIU runs: those that it leaves behind when it is
//! killed, and what it restored.

use std::collections::HashSet;
use std::fs;

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// The children that this process has, by their PIDs.
fn children() -> HashSet<Pid> {
    let list = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    let pids = list.split_whitespace().filter_map(|p| p.parse().ok());
    pids.map(Pid::from_raw).collect()
}

/// Those that come from now on. Children that we had before, from whoever became us, are
/// none.
#[derive(Debug)]
pub struct Orphans {
    others: HashSet<Pid>,
}

impl Orphans {
    /// From now on what our descendants leave behind becomes ours.
    #[must_use]
    pub fn from_now_on() -> Self {
        let _ = prctl::set_child_subreaper(true);
        Self { others: children() }
    }

    fn now(&self) -> Vec<Pid> {
        children().difference(&self.others).copied().collect()
    }

    /// Kills and reaps those that `which` wants (by their PIDs), and theirs as they come to
    /// us.
    pub fn kill(&self, which: impl Fn(i32) -> bool) {
        loop {
            let mut now = self.now();
            now.retain(|pid| which(pid.as_raw()));
            if now.is_empty() {
                return;
            }
            for pid in now {
                let _ = kill(pid, Signal::SIGKILL);
                let _ = waitpid(pid, None);
            }
        }
    }
}
