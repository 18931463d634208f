// SPDX-License-Identifier: GPL-2.0-only
//! What a snapshot says of its pages.

#![no_main]

use mvas_fuzz::meta;

libfuzzer_sys::fuzz_target!(|input: &[u8]| meta::run(input));
