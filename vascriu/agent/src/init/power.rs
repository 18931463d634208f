// SPDX-License-Identifier: GPL-2.0-only
//! How the machine goes down.

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, sync};

use super::log;
use crate::protocol::ShutdownKind;
use crate::server::Host;

/// What processes get between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(3);

/// The machine that this process, or its PID 1, runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Machine;

impl Host for Machine {
    fn prepare(&self) -> Result<(), String> {
        sync();
        Ok(())
    }

    fn go_down(&self, kind: ShutdownKind) -> io::Result<()> {
        request(kind)
    }
}

/// Asks PID 1 to bring the machine down, by the signals that other inits take as well.
///
/// # Errors
/// No rights to signal PID 1.
pub fn request(kind: ShutdownKind) -> io::Result<()> {
    Ok(kill(Pid::from_raw(1), signal_of(kind))?)
}

pub(super) fn signal_of(kind: ShutdownKind) -> Signal {
    match kind {
        ShutdownKind::PowerOff => Signal::SIGUSR2,
        ShutdownKind::Reboot => Signal::SIGTERM,
    }
}

/// Ends all processes, writes everything to disk, and ends the machine. For PID 1.
pub(super) fn down(kind: ShutdownKind) {
    end_all(Signal::SIGTERM, GRACE);
    end_all(Signal::SIGKILL, GRACE);
    sync();
    unmount_disks();
    let mode = match kind {
        ShutdownKind::PowerOff => RebootMode::RB_POWER_OFF,
        ShutdownKind::Reboot => RebootMode::RB_AUTOBOOT,
    };
    let Err(error) = reboot(mode);
    log(format!("the kernel does not go down: {error}"));
}

fn end_all(signal: Signal, patience: Duration) {
    let everyone = Pid::from_raw(-1);
    // Nobody is left: no error.
    let _ = kill(everyone, signal);
    let deadline = Instant::now() + patience;
    loop {
        match waitpid(everyone, Some(WaitPidFlag::WNOHANG)) {
            Ok(nix::sys::wait::WaitStatus::StillAlive) => {
                if Instant::now() >= deadline {
                    return;
                }
                thread::sleep(Duration::from_millis(5));
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

/// Unmounts what lies on block devices, the last mounted first, so that nothing needs a
/// recovery at the next mount.
fn unmount_disks() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines().rev() {
        let mut words = line.split(' ');
        if let (Some(source), Some(target)) = (words.next(), words.next())
            && source.starts_with("/dev/")
            && target != "/"
            && let Err(error) = umount2(target, MntFlags::empty())
        {
            log(format!("cannot unmount {target}: {error}"));
        }
    }
}
