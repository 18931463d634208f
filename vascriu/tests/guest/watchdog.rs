// SPDX-License-Identifier: GPL-2.0-only
//! A test that hangs ends the run, and says where every process stands.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use crate::harness::is_debug_kernel;

/// Far more than the longest test takes on an emulated machine.
fn limit() -> Duration {
    Duration::from_secs(if is_debug_kernel() { 3000 } else { 600 })
}

/// Watches until it is dropped.
pub struct Watchdog {
    _done: Sender<()>,
}

impl Watchdog {
    /// Begins to watch.
    pub fn start() -> Self {
        let (done, watched) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            let limit = limit();
            if watched.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!("the test hangs since {} s; processes:", limit.as_secs());
                eprint!("{}", processes());
                std::process::exit(101);
            }
        });
        Self { _done: done }
    }
}

/// How many of the kernel's functions that a process is in are told.
const CALLS: usize = 4;

/// A line for each process but the kernel's, and where in the kernel it waits.
fn processes() -> String {
    let pids = Path::new("/proc")
        .read_dir()
        .into_iter()
        .flatten()
        .flatten();
    let pids = pids.filter(|e| e.file_name().to_string_lossy().parse::<u32>().is_ok());
    let read = |dir: &Path, file| fs::read_to_string(dir.join(file)).unwrap_or_default();
    let line = |dir: &Path| {
        let cmdline = read(dir, "cmdline").replace('\0', " ");
        let state = read(dir, "stat");
        let state = state.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let state: Vec<&str> = state.split(' ').take(2).collect();
        if state.last() == Some(&"2") {
            return String::new(); // a thread of the kernel
        }
        let (comm, stack) = (read(dir, "comm"), read(dir, "stack"));
        let calls = stack.lines().filter_map(|l| l.split(['+', ' ']).nth(1));
        let calls: Vec<_> = calls.take(CALLS).collect();
        let pid = dir.file_name().unwrap_or_default().display();
        let (comm, state, calls) = (comm.trim_end(), state.join(" parent "), calls.join(" < "));
        format!("hangs: {pid} ({comm}) {state} in {calls}: {cmdline}\n")
    };
    pids.map(|e| line(&e.path())).collect()
}
