// SPDX-License-Identifier: GPL-2.0-only
//! virtio 1.2 devices over MMIO, on rust-vmm's `virtio-queue`.
//!
//! Three layers, each testable without the one above and all of them without KVM:
//! [`mmio`] is the transport (registers, negotiation, queue set-up), a folder per device
//! holds its state and its in-order request logic, and [`queue`] and [`chain`] turn what
//! the guest wrote into checked, bounded work.
//!
//! The guest is hostile. Three kinds of wrong are told apart:
//! - a wrong *request* is answered with the device's own error code;
//! - a wrong *chain* (loop, bad address, wrong direction) is returned with length 0;
//! - a wrong *ring* stops the device, which asks for a reset (`DEVICE_NEEDS_RESET`).
//!
//! None of them panics, hangs, or does more than [`queue::BUDGET`] chains of work before
//! the event loop's other subscribers get their turn. [`vas`], whose requests may copy for
//! long, and [`block`], whose images may hang, have threads of their own instead.

pub mod block;
pub mod build;
pub mod chain;
pub mod console;
pub mod device;
pub mod entropy;
pub mod interrupt;
pub mod mmio;
pub mod queue;
pub mod vas;
pub mod vsock;

#[cfg(test)]
mod test_utils;

pub use build::{BuildError, DeviceConfig, MmioDevice, build};
