// SPDX-License-Identifier: GPL-2.0-only
//! TCP connections to servers on this machine.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use super::{Failure, ServeError};
use crate::protocol::{Cut, FailureKind, Frame, Link, Reply, Side, splice};

/// What a server gets to accept: one whose queue is full is as good as none.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves a `Connect`.
pub(super) fn serve(link: &mut Link, port: u16) -> Result<(), ServeError> {
    if port == 0 {
        return Err(Failure::new(FailureKind::BadRequest, "there is no TCP port 0").into());
    }
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let socket = TcpStream::connect_timeout(&address, PATIENCE).map_err(|error| {
        let message = format!("cannot connect to {address} in the guest: {error}");
        Failure::new(FailureKind::Os, message)
    })?;
    link.queue(&Frame::Reply(Reply::Ready { bytes: 0 }));
    match splice(link, &socket, Side::Server) {
        Ok(()) => {
            link.queue(&Frame::Reply(Reply::Done));
            Ok(link.flush()?)
        }
        Err(Cut::Session(stopped)) => Err(stopped.into()),
        Err(Cut::Socket(error)) => {
            let message = format!("the connection to {address} in the guest failed: {error}");
            Err(Failure::new(FailureKind::Os, message).into())
        }
    }
}
