// SPDX-License-Identifier: GPL-2.0-only
//! A virtio-mmio device's interrupt: one line and the reasons why it was raised.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};

use crate::devices::Interrupt;

/// Shared by the transport (which the driver asks for the reasons) and the device. Free of
/// locks: an interrupt handler's register accesses never wait for a device at work.
pub struct VirtioInterrupt {
    line: Box<dyn Interrupt>,
    status: AtomicU32,
    needs_reset: AtomicBool,
}

impl fmt::Debug for VirtioInterrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioInterrupt")
            .field("status", &self.status)
            .field("needs_reset", &self.needs_reset)
            .finish_non_exhaustive()
    }
}

impl VirtioInterrupt {
    /// No reason yet.
    pub fn new(line: Box<dyn Interrupt>) -> Self {
        Self {
            line,
            status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
        }
    }

    /// Tells the driver that a used ring has new entries.
    pub fn queue_used(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// Tells the driver that configuration space changed.
    pub fn config_changed(&self) {
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// Tells the driver that the device cannot go on before a reset.
    pub fn device_error(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.config_changed();
    }

    /// Whether [`Self::device_error`] was called since the last reset.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// The reasons not acknowledged yet: the `InterruptStatus` register.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// Drops reasons: the `InterruptACK` register.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Forgets everything.
    pub fn reset(&self) {
        self.status.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
    }

    fn raise(&self, reason: u32) {
        self.status.fetch_or(reason, Ordering::SeqCst);
        if let Err(error) = self.line.trigger() {
            // The line is an eventfd: it fails only if the host closed it under us.
            tracing::error!(%error, "cannot raise a virtio interrupt");
        }
    }
}
