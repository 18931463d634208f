// SPDX-License-Identifier: GPL-2.0-only
//! A CRIU that waits for ever for a tree that somebody has killed under its hands: for PID 1 of
//! a PID namespace, which ends after all others there, and they not before CRIU, which traces
//! them, has taken note of it. Nothing but CRIU's own end lets go of them.

use std::time::{Duration, Instant};

use crate::process::{self, PidFd};

/// How long what CRIU traces may be dead.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often to look, at most.
pub const PERIOD: Duration = Duration::from_secs(1);
/// A look reads something of every process. So much longer than it took CRIU works alone.
const SELDOM: u32 = 50;

/// Looks at one CRIU again and again.
#[derive(Debug)]
pub struct Watch {
    criu: i32,
    /// What CRIU traces has been dead since then.
    since: Option<Instant>,
    /// Not before.
    next: Instant,
}

impl Watch {
    /// On the CRIU with that PID.
    #[must_use]
    pub fn new(criu: i32) -> Self {
        Self {
            criu,
            since: None,
            next: Instant::now(),
        }
    }

    /// Kills CRIU, which `process` is, where it is stuck.
    pub fn look(&mut self, process: &PidFd) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.since = traces_dead(self.criu).then(|| self.since.unwrap_or(now));
        self.next = now + now.elapsed() * SELDOM;
        if self.since.is_some_and(|since| now - since > PATIENCE) {
            process.kill(libc::SIGKILL);
        }
    }
}

fn traces_dead(criu: i32) -> bool {
    process::all().any(|pid| process::is_traced_and_ending(pid, criu))
}
