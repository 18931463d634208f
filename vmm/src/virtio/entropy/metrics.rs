// SPDX-License-Identifier: GPL-2.0-only
//! What the entropy device counts.

use serde::Serialize;

use crate::metrics::Counter;

/// Counters of one entropy device.
#[derive(Debug, Default, Serialize)]
pub struct EntropyMetrics {
    /// Requests answered.
    pub requests: Counter,
    /// Random bytes given.
    pub bytes: Counter,
    /// Chains that broke a rule.
    pub bad_chains: Counter,
    /// Times the host gave no randomness.
    pub host_errors: Counter,
}
