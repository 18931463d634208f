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
    /// Discards done.
    pub discards: Counter,
    /// Bytes discarded.
    pub discard_bytes: Counter,
    /// Requests to write zeroes done.
    pub write_zeroes: Counter,
    /// Bytes that became zeroes by them.
    pub write_zeroes_bytes: Counter,
    /// Requests that the driver had no right to make: unknown, out of range, read-only.
    pub bad_requests: Counter,
    /// Chains that broke a rule, or had no room for a status.
    pub bad_chains: Counter,
    /// Errors of the image's file.
    pub host_errors: Counter,
}

impl BlockMetrics {
    /// Bytes of the disk that requests were done on, modulo 2^64.
    pub(super) fn bytes(&self) -> u64 {
        let of_each = [
            &self.read_bytes,
            &self.write_bytes,
            &self.discard_bytes,
            &self.write_zeroes_bytes,
        ];
        of_each
            .into_iter()
            .fold(0, |sum, bytes| sum.wrapping_add(bytes.get()))
    }
}
