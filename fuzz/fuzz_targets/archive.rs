// SPDX-License-Identifier: GPL-2.0-only
//! What a guest sends when files are copied out of it (`mvasvm cp`).

#![no_main]

use mvas_fuzz::archive;

libfuzzer_sys::fuzz_target!(|input: &[u8]| archive::run(input));
