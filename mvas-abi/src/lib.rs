// SPDX-License-Identifier: GPL-2.0-only
//! The kernel's `/dev/vas` interface and the virtio-vas device for Rust: numbers and
//! `#[repr(C)]` structs.
//!
//! `vas.h` and `virtio_vas.h` in `guest-kernel/linux/include/uapi/linux/` are the single
//! definitions; `tests/header.rs` compiles them and compares every size, offset and number
//! with this crate.
#![no_std]

pub mod vas;
pub mod virtio_vas;
