// SPDX-License-Identifier: GPL-2.0-only
//! Files that say that they are a snapshot, in a store.

#![no_main]

use mvas_fuzz::manifest;

libfuzzer_sys::fuzz_target!(|input: &[u8]| manifest::run(input));
