//! Builds and caches the guest kernel and the guest image.
