// SPDX-License-Identifier: GPL-2.0-only
//! What a console counts.

use serde::Serialize;

use crate::metrics::Counter;

/// Counters of one console.
#[derive(Debug, Default, Serialize)]
pub struct ConsoleMetrics {
    /// Bytes given to the guest.
    pub input_bytes: Counter,
    /// Bytes taken from the guest.
    pub output_bytes: Counter,
    /// Bytes of the guest that nobody took: the host's file failed.
    pub lost_bytes: Counter,
    /// Chains that broke a rule.
    pub bad_chains: Counter,
}
