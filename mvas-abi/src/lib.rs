//! The kernel's `/dev/vas` interface and the virtio-vas device for Rust: numbers and
//! `#[repr(C)]` structs.
//!
//! `guest-kernel/linux/include/uapi/linux/vas.h` and `include/virtio_vas.h` are the single
//! definitions; `tests/header.rs` compiles them and compares every size, offset and number
//! with this crate.
#![no_std]

pub mod vas;
pub mod virtio_vas;
