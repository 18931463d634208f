//! Runs a microVM from its configuration to its end.

use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use crate::config::VmConfig;

/// Why a microVM ended, when it ended as machines do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset (`reboot`).
    Reset,
    /// A vCPU hit a triple fault: the guest crashed.
    TripleFault,
    /// The stop event was written (SIGTERM, Ctrl-C, `mvasvm kill`).
    Stopped,
}

/// Why a microVM could not be started, or had to be ended.
#[derive(Debug, Error)]
pub enum RunError {
    /// Not built yet.
    #[error("this build of mvasvm cannot run a VM yet")]
    Unfinished,
}

/// Boots the microVM and blocks until it ends. Write `stop` (from a signal handler or
/// another thread) to end it from outside.
///
/// # Errors
/// The VM cannot be made from `config` on this host, or an internal error ended it.
pub fn run(config: VmConfig, stop: EventFd) -> Result<ExitReason, RunError> {
    let _ = (config, stop);
    Err(RunError::Unfinished)
}
