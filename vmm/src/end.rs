// SPDX-License-Identifier: GPL-2.0-only
//! The end of a microVM: the first cause wins, whichever thread finds it.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::vcpu::VcpuError;

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

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PowerOff => "the guest powered off",
            Self::Reset => "the guest asked for a reset",
            Self::TripleFault => "the guest crashed (triple fault)",
            Self::Stopped => "the VM was stopped from outside",
        })
    }
}

/// Ends the VM from any thread; cheap to clone.
#[derive(Debug, Clone)]
pub struct EndSignal(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    cause: Mutex<Option<Result<ExitReason, VcpuError>>>,
    ended: AtomicBool,
    event: EventFd,
}

impl EndSignal {
    /// Not ended yet.
    ///
    /// # Errors
    /// The host has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            cause: Mutex::new(None),
            ended: AtomicBool::new(false),
            event: EventFd::new(EFD_NONBLOCK)?,
        })))
    }

    /// Ends the VM, unless it has ended already.
    pub fn end(&self, cause: Result<ExitReason, VcpuError>) {
        if !self.0.ended.swap(true, Ordering::SeqCst) {
            *self.cause() = Some(cause);
            // Only fails when the counter is full, and then it has been written before.
            let _ = self.0.event.write(1);
        }
    }

    /// Whether the VM has ended.
    pub fn is_ended(&self) -> bool {
        self.0.ended.load(Ordering::SeqCst)
    }

    /// Readable once the VM has ended.
    pub fn event(&self) -> &EventFd {
        &self.0.event
    }

    /// Takes the cause: `None` while the VM runs.
    pub(crate) fn take_cause(&self) -> Option<Result<ExitReason, VcpuError>> {
        self.cause().take()
    }

    fn cause(&self) -> std::sync::MutexGuard<'_, Option<Result<ExitReason, VcpuError>>> {
        // Whole at any time: a panic elsewhere does not spoil it.
        self.0.cause.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cause_wins_and_is_announced_once() {
        let end = EndSignal::new().unwrap();
        assert!(end.event().read().is_err(), "not readable before the end");
        assert!(!end.is_ended() && end.take_cause().is_none());
        std::thread::scope(|scope| {
            scope
                .spawn(|| end.clone().end(Ok(ExitReason::Reset)))
                .join()
                .unwrap();
        });
        end.end(Ok(ExitReason::Stopped));
        end.end(Err(VcpuError::Panic { cpu: 0 }));
        assert!(end.is_ended());
        assert_eq!(end.event().read().unwrap(), 1);
        assert_eq!(end.take_cause().unwrap().unwrap(), ExitReason::Reset);
    }
}
