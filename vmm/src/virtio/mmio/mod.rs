// SPDX-License-Identifier: GPL-2.0-only
//! The virtio-mmio transport (virtio 1.2, section 4.2, register layout version 2).
//!
//! [`status`] decides which status writes a driver may make, [`queue_setup`] holds what it
//! says about a queue until the device starts; both are plain values. [`transport`] is the
//! register window that joins them with a device.

pub mod queue_setup;
pub mod status;
pub mod transport;

#[cfg(test)]
mod tests;

pub use transport::{MmioTransport, TransportError, WINDOW_SIZE};
