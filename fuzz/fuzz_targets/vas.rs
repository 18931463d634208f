// SPDX-License-Identifier: GPL-2.0-only
//! Sequences of virtio-vas requests of two VMs against a model of what their memory shows.
//!
//! The body is that of the property test `vmm/tests/vas`, which every `cargo test` runs with
//! random input; here the input is chosen by what it covers. `fuzz/README.md` says how.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../vmm/tests/vas/model.rs"]
mod model;
#[allow(dead_code)] // the property test's neighbours use the rest
#[path = "../../vmm/tests/vas/vm.rs"]
mod vm;

fuzz_target!(|input: &[u8]| model::fuzz_one(input));
