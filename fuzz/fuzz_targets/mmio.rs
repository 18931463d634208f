// SPDX-License-Identifier: GPL-2.0-only
//! Accesses to a virtio-mmio device's registers, and whatever lies in its queues.

#![no_main]

use mvas_fuzz::mmio;

libfuzzer_sys::fuzz_target!(|input: &[u8]| mmio::run(input));
