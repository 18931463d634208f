// SPDX-License-Identifier: GPL-2.0-only
//! What the virtio side of the device counts; `mvas_host::server` counts blocks and pages.

use serde::{Serialize, Serializer};

use crate::metrics::Counter;

/// Counters of a virtio-vas device.
#[derive(Debug, Default, Serialize)]
pub struct VasMetrics {
    /// Times each queue was looked at.
    #[serde(serialize_with = "sum")]
    pub rounds: [Counter; 2],
    /// Requests done.
    pub requests: Counter,
    /// Requests answered with an error.
    pub errors: Counter,
    /// Of these, because the host failed or its store is full.
    pub host_failures: Counter,
    /// Chains that broke a rule.
    pub bad_chains: Counter,
}

fn sum<S: Serializer>(counters: &[Counter], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(counters.iter().map(Counter::get).sum())
}
