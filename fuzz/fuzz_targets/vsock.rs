// SPDX-License-Identifier: GPL-2.0-only
//! Packets of a guest and what the host's sockets do meanwhile.

#![no_main]

use mvas_fuzz::vsock;

libfuzzer_sys::fuzz_target!(|input: &[u8]| vsock::run(input));
