// SPDX-License-Identifier: GPL-2.0-only
//! PID 1's loop: services, orphans, signals.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::power::{down, signal_of};
use super::{log, unblock_signals};
use crate::protocol::{ShutdownKind, poll_fds};

/// A service that ended is started again after this.
const AGAIN: Duration = Duration::from_millis(500);

/// A process that is to run always.
#[derive(Debug)]
pub struct Service {
    name: String,
    command: Command,
    terminal: Option<PathBuf>,
    pid: Option<Pid>,
    start_at: Instant,
}

impl Service {
    /// A service that writes to the console.
    pub fn new(name: impl Into<String>, mut command: Command) -> Self {
        // SAFETY: sigprocmask is async-signal-safe and touches the child's stack only.
        unsafe { command.pre_exec(unblock_signals) };
        Self {
            name: name.into(),
            command,
            terminal: None,
            pid: None,
            start_at: Instant::now(),
        }
    }

    /// A service that owns the terminal at `path`.
    pub fn on_terminal(name: &'static str, mut command: Command, path: &str) -> Self {
        // SAFETY: setsid and ioctl are async-signal-safe and touch no memory of ours.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 1);
                Ok(())
            });
        }
        Self {
            terminal: Some(path.into()),
            ..Self::new(name, command)
        }
    }
}

/// The programs of a folder, sorted by name: what an image wants to have running.
pub fn programs(folder: &Path) -> Vec<PathBuf> {
    let is_program = |path: &PathBuf| {
        let meta = path.metadata();
        meta.is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    let entries = folder.read_dir().into_iter().flatten().flatten();
    let mut programs: Vec<_> = entries.map(|e| e.path()).filter(is_program).collect();
    programs.sort();
    programs
}

/// Runs `services` and the machine until it goes down. For PID 1: returns only if something
/// is very wrong, and can be called again then.
///
/// # Errors
/// Signals cannot be received.
pub fn supervise(services: &mut [Service]) -> io::Result<()> {
    let mut wanted = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGINT,
        signal_of(ShutdownKind::PowerOff),
        signal_of(ShutdownKind::Reboot),
    ] {
        wanted.add(signal);
    }
    wanted.thread_block()?;
    let signals = SignalFd::with_flags(&wanted, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    loop {
        let timeout = start_due(services);
        let mut fds = [PollFd::new(
            std::os::fd::AsFd::as_fd(&signals),
            PollFlags::POLLIN,
        )];
        poll_fds(&mut fds, timeout)?;
        while let Ok(Some(info)) = signals.read_signal() {
            let number = i32::try_from(info.ssi_signo).expect("a signal's number");
            match Signal::try_from(number) {
                Ok(Signal::SIGCHLD) => {}
                Ok(Signal::SIGUSR2) => down(ShutdownKind::PowerOff),
                _ => down(ShutdownKind::Reboot),
            }
        }
        reap(services);
    }
}

/// Starts what is to be started now; gives the time until the next start.
fn start_due(services: &mut [Service]) -> PollTimeout {
    let mut next = PollTimeout::NONE;
    for service in services.iter_mut().filter(|service| service.pid.is_none()) {
        let left = service.start_at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            match start(service) {
                Ok(pid) => {
                    service.pid = Some(pid);
                    continue;
                }
                Err(error) => {
                    log(format!("cannot start {}: {error}", service.name));
                    service.start_at = Instant::now() + AGAIN;
                }
            }
        }
        next = PollTimeout::try_from(AGAIN).unwrap_or(PollTimeout::ZERO);
    }
    next
}

fn start(service: &mut Service) -> io::Result<Pid> {
    let command = &mut service.command;
    if let Some(path) = &service.terminal {
        let terminal = OpenOptions::new().read(true).write(true).open(path)?;
        command
            .stdin(terminal.try_clone()?)
            .stdout(terminal.try_clone()?)
            .stderr(terminal);
    }
    let child = command.spawn()?;
    Ok(Pid::from_raw(i32::try_from(child.id()).expect("a PID")))
}

/// Collects everybody that ended: services, and orphans of anything on the machine.
fn reap(services: &mut [Service]) {
    loop {
        let (pid, how) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, format!("exit code {code}")),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, format!("signal {signal}")),
            Err(nix::errno::Errno::EINTR) => continue,
            Ok(_) | Err(_) => return,
        };
        if let Some(service) = services.iter_mut().find(|service| service.pid == Some(pid)) {
            service.pid = None;
            service.start_at = Instant::now() + AGAIN;
            if service.terminal.is_none() {
                log(format!(
                    "{} ended by {how}; starting it again",
                    service.name
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_programs_of_a_folder_are_its_executable_files_in_order() {
        let dir = tempfile::tempdir().unwrap();
        for (name, mode) in [("b", 0o755), ("a", 0o700), ("README", 0o644)] {
            let path = dir.path().join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir(dir.path().join("folder")).unwrap();
        let expected = ["a", "b"].map(|name| dir.path().join(name));
        assert_eq!(programs(dir.path()), expected);
        assert!(programs(Path::new("/no/such")).is_empty());
    }
}
