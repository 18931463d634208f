// SPDX-License-Identifier: GPL-2.0-only
//! Rings and descriptor chains, against a model of both.

#![no_main]

use mvas_fuzz::chain;

libfuzzer_sys::fuzz_target!(|input: &[u8]| chain::run(input));
