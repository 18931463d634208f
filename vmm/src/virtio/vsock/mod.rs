// SPDX-License-Identifier: GPL-2.0-only
//! virtio socket device (virtio 1.2, section 5.10): streams between guest and host.
//!
//! On the host each stream is a Unix socket, by Firecracker's convention:
//! - into the guest: connect to the device's socket, write `CONNECT <port>\n`, read
//!   `OK <host port>\n`; from then on the socket is the stream. The socket is closed instead
//!   if the guest refuses, or does not answer in [`CONNECT_TIMEOUT`](connection::CONNECT_TIMEOUT);
//! - out of the guest: a connection to CID 2, port P goes to the Unix socket that listens at
//!   the device's path followed by `_P`.
//!
//! [`packet`] is the wire format, [`connection`] one stream's state machine and flow control,
//! `listener` the host's sockets, [`muxer`] all streams of a
//! guest, and [`device`] the queues.
//!
//! # Memory
//! From host to guest nothing is buffered: bytes go from the Unix socket straight into guest
//! memory, when the guest has credit and buffers. From guest to host a stream holds what its
//! reader on the host has not taken yet, at most the window announced to the guest:
//! [`muxer::LARGE_WINDOW`] for the first [`muxer::LARGE_WINDOWS`] streams,
//! [`muxer::SMALL_WINDOW`] for those beyond; 30 MiB for [`muxer::MAX_STREAMS`] streams whose
//! readers all sleep.

pub mod connection;
pub mod device;
mod event_handler;
mod listener;
pub mod metrics;
pub mod muxer;
pub mod packet;

#[cfg(test)]
mod tests;

pub use device::Vsock;
pub use listener::ListenError;
pub use metrics::VsockMetrics;
