// SPDX-License-Identifier: GPL-2.0-only
//! Frames of the guest's agent, to its decoder, its client on the host, and its server.

#![no_main]

use mvas_fuzz::agent;

libfuzzer_sys::fuzz_target!(|input: &[u8]| agent::run(input));
