// SPDX-License-Identifier: GPL-2.0-only
//! virtio entropy device (virtio 1.2, section 5.4): the host's randomness for the guest.

pub mod device;
mod event_handler;
pub mod metrics;

pub use device::Entropy;
pub use metrics::EntropyMetrics;
