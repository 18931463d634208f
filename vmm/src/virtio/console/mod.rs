// SPDX-License-Identifier: GPL-2.0-only
//! virtio console (virtio 1.2, section 5.3) with one port: `hvc0` in the guest.
//!
//! Nothing is buffered: input goes from the host's file straight into the guest's buffers,
//! and output that the host's file does not take stays in the guest's queue. [`stream`] is the
//! host's side, [`device`] the queues.

pub mod device;
mod event_handler;
pub mod metrics;
pub mod stream;

pub use device::Console;
pub use metrics::ConsoleMetrics;
