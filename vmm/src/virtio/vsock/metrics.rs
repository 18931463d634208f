// SPDX-License-Identifier: GPL-2.0-only
//! What a vsock device counts.

use serde::Serialize;

use crate::metrics::Counter;

/// Counters of one vsock device.
#[derive(Debug, Default, Serialize)]
pub struct VsockMetrics {
    /// Streams opened, by either side.
    pub opened: Counter,
    /// Streams refused: no listener, too many streams, or a bad `CONNECT` line.
    pub refused: Counter,
    /// Packets taken from the guest.
    pub rx_packets: Counter,
    /// Stream bytes taken from the guest.
    pub rx_bytes: Counter,
    /// Packets given to the guest.
    pub tx_packets: Counter,
    /// Stream bytes given to the guest.
    pub tx_bytes: Counter,
    /// Packets that break the protocol.
    pub bad_packets: Counter,
    /// Chains that broke a rule, or were too short for a packet.
    pub bad_chains: Counter,
    /// Streams ended because the other side did not answer in time.
    pub timeouts: Counter,
}
