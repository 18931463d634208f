// SPDX-License-Identifier: GPL-2.0-only
//! TCP connections of this side, carried to servers in the guest.

use std::net::TcpStream;

use super::{ClientError, Session};
use crate::protocol::{Cut, Frame, Reply, Request, Side, splice};

impl Session {
    /// Carries `socket` to `port` of the guest's loopback address, until both directions have
    /// ended and the guest has all that was sent.
    ///
    /// # Errors
    /// Nobody listens there, one of the two connections failed, or the session broke.
    pub fn connect(mut self, port: u16, socket: &TcpStream) -> Result<(), ClientError> {
        match self.ask(Request::Connect { port })? {
            Reply::Ready { .. } => {}
            other => return Err(Frame::Reply(other).unexpected().into()),
        }
        Ok(splice(&mut self.link, socket, Side::Client)?)
    }
}

impl From<Cut> for ClientError {
    fn from(cut: Cut) -> Self {
        match cut {
            Cut::Session(stopped) => stopped.into(),
            Cut::Socket(error) => Self::Socket(error),
        }
    }
}
