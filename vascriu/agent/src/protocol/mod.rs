// SPDX-License-Identifier: GPL-2.0-only
//! What the two sides say to each other.
//!
//! A session starts with a greeting of both sides ([`hello`]), which also finds the start of
//! the conversation in whatever an earlier, broken one left in the stream. Then come frames
//! ([`frame`]): 8 bytes of header, and a payload of limited size. Requests and replies are
//! JSON ([`message`]); data is raw bytes on one of three streams.
//!
//! Data flows on credit ([`Window`]): a side may send as many bytes of a stream as the other
//! granted, and grants follow consumption. So neither side ever has to stop reading, and a
//! command that does not read its input cannot hold up a signal sent behind that input.
//!
//! Each side takes the other for hostile: lengths, kinds, order and credit are checked, and
//! a violation ends the session.

mod data;
mod frame;
mod hello;
mod link;
mod message;
mod splice;
mod window;

pub use data::{DataReader, DataWriter, Stopped};
pub use frame::{Decoder, Frame, FrameError, MAX_DATA, MAX_MESSAGE, Stream};
pub use hello::{HELLO_LEN, Hello, VERSION};
pub(crate) use link::poll_fds;
pub use link::{Link, LinkError};
pub use message::{
    CommandEnd, Exec, FailureKind, Info, OsText, Reply, Request, ShutdownKind, WindowSize,
};
pub use splice::{Cut, reset};
pub(crate) use splice::{Side, splice};
pub use window::{CREDIT, Window};

/// vsock port that the agent listens on.
pub const VSOCK_PORT: u32 = 52;
