// SPDX-License-Identifier: GPL-2.0-only
//! The server of the virtio-vas device with real guest memory and a real store, without KVM.

#![allow(clippy::unwrap_used)] // tests, and helpers of tests

mod crash;
mod full;
mod limits;
mod model;
mod snapshots;
mod tmpfs;
mod vm;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 200, ..ProptestConfig::default() })]

    /// The fuzz target's body, with random input: any sequence of requests leaves every
    /// block of every guest as a model says, and nothing behind.
    #[test]
    fn any_requests_do_what_the_model_says(input in proptest::collection::vec(any::<u8>(), 0..1500)) {
        model::fuzz_one(&input);
    }
}
