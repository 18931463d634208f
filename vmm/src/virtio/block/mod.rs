// SPDX-License-Identifier: GPL-2.0-only
//! virtio block device (virtio 1.2, section 5.2) on a raw disk image.
//!
//! [`disk`] is the image on the host (size, lock, identity), [`request`] turns one chain into
//! one operation on it, and `worker` is the thread that does so: each disk has its own, for an
//! image may be slow, or hang. `ranges` has the requests that bring no data, but empty ranges of
//! the disk.

pub mod device;
pub mod disk;
pub mod metrics;
mod ranges;
pub mod request;
#[cfg(test)]
mod test_utils;
mod worker;

pub use device::Block;
pub use disk::{Disk, DiskError};
pub use metrics::BlockMetrics;
