// SPDX-License-Identifier: GPL-2.0-only
//! What the fuzz targets do with an input. Each module has `run`, which panics if something
//! is not as it must be, and `seeds`: real inputs, from which the fuzzer begins.
//!
//! Also a part of the test `vmm/tests/fuzz.rs`, which every `cargo test` runs.

// Numbers of an input are of any width, and all of guest memory is small.
#![allow(clippy::cast_possible_truncation, clippy::cast_lossless)]

pub mod agent;
pub mod archive;
pub mod chain;
mod input;
pub mod manifest;
mod memory;
pub mod meta;
pub mod mmio;
pub mod vsock;
