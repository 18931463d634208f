// SPDX-License-Identifier: GPL-2.0-only
//! virtio-vas (`docs/VIRTIO-VAS.md`): moves blocks of guest memory to and from the snapshot
//! store by remapping them.
//!
//! What requests mean is `mvas_host::server`'s; here is the virtio side. Each queue has a
//! thread of its own, because a request may copy for a long time: the event loop goes on
//! meanwhile, and RELEASE does not wait for COPY.

pub mod device;
pub mod metrics;
mod worker;

pub use device::Vas;
pub use metrics::VasMetrics;
