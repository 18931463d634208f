// SPDX-License-Identifier: GPL-2.0-only
//! The guest agent: commands and files over one byte stream.
//!
//! One connection carries one *session* after another: a greeting ([`protocol::Link`]), one
//! request ([`protocol::Request`]), its data, its answer. The stream is a vsock connection
//! for a microVM and a virtio-serial port for the simulated host; nothing but bytes in
//! order is asked of it.
//!
//! - [`protocol`]: frames, messages, flow control;
//! - [`server`]: the side in the guest, which runs commands and packs files;
//! - [`client`]: the side on the host;
//! - [`init`]: PID 1 of a machine whose only service is this agent.

pub mod archive;
pub mod client;
pub mod init;
pub mod protocol;
pub mod server;

/// An error with its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
