// SPDX-License-Identifier: GPL-2.0-only
//! What a block device counts.

use serde::Serialize;

use crate::metrics::Counter;

/// Counters of one block device.
#[derive(Debug, Default, Serialize)]
pub struct BlockMetrics {
    /// Read requests done.
    pub reads: Counter,
    /// Bytes read.
    pub read_bytes: Counter,
    /// Write requests done.
    pub writes: Counter,
    /// Bytes written.
    pub write_bytes: Counter,
    /// Flushes done.
    pub flushes: Counter,
    /// Requests that the driver had no right to make: unknown, out of range, read-only.
    pub bad_requests: Counter,
    /// Chains that broke a rule, or had no room for a status.
    pub bad_chains: Counter,
    /// Errors of the image's file.
    pub host_errors: Counter,
}
