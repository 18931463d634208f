// SPDX-License-Identifier: GPL-2.0-only
//! Device bus and the legacy devices: serial port, reset and power-off registers.

mod bus;
mod log;
pub mod power;
pub mod serial;

use std::io;

use vmm_sys_util::eventfd::EventFd;

pub use bus::{Bus, BusError, BusMetrics};
pub use log::{BoundedLog, keep_newest};

/// A device's interrupt line.
pub trait Interrupt: Send + Sync {
    /// Raises the interrupt once (edge).
    ///
    /// # Errors
    /// The event could not be sent.
    fn trigger(&self) -> io::Result<()>;
}

/// KVM injects the interrupt when the `EventFd` is written (irqfd).
impl Interrupt for EventFd {
    fn trigger(&self) -> io::Result<()> {
        self.write(1)
    }
}
