//! The kernel's `/dev/vas` interface for Rust: numbers and `#[repr(C)]` structs.
//!
//! `guest-kernel/linux/include/uapi/linux/vas.h` is the single definition, and
//! says what every field means; `tests/header.rs` compiles it and compares every
//! size, offset and number with this crate.
#![no_std]

pub mod vas;
