//! virtio block device (virtio 1.2, section 5.2) on a raw disk image.
//!
//! [`disk`] is the image on the host (size, lock, identity), [`request`] turns one chain into
//! one operation on it.

pub mod device;
pub mod disk;
mod event_handler;
pub mod metrics;
pub mod request;

pub use device::Block;
pub use disk::{Disk, DiskError};
pub use metrics::BlockMetrics;
