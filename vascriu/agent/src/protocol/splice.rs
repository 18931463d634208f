// SPDX-License-Identifier: GPL-2.0-only
//! A TCP connection carried by a session: the same loop on both sides.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{setsockopt, sockopt};

use super::{Frame, FrameError, Link, LinkError, MAX_DATA, Reply, Stopped, Stream, Window};

/// Why a connection was cut.
#[derive(Debug, thiserror::Error)]
pub enum Cut {
    /// The session broke, or the other side gave up.
    #[error(transparent)]
    Session(#[from] Stopped),
    /// This side's TCP connection failed.
    #[error("the TCP connection failed")]
    Socket(#[source] io::Error),
}

impl From<LinkError> for Cut {
    fn from(error: LinkError) -> Self {
        Self::Session(error.into())
    }
}

impl From<FrameError> for Cut {
    fn from(error: FrameError) -> Self {
        Self::Session(error.into())
    }
}

/// Which end of the session this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Sends `Stdin`, takes `Stdout`, and in the end waits for `Done`.
    Client,
    /// Sends `Stdout`, takes `Stdin`; its caller then says `Done`.
    Server,
}

/// Carries bytes both ways until both directions have ended, each by itself, as TCP's do. On
/// return all that came is written, and what a client sent is written on the other side; on an
/// error the connection is reset, so that its peer does not take a part for the whole.
///
/// # Errors
/// The session broke, the other side gave up, or the socket failed.
pub(crate) fn splice(link: &mut Link, socket: &TcpStream, side: Side) -> Result<(), Cut> {
    let carried = socket
        .set_nonblocking(true)
        .and_then(|()| socket.set_nodelay(true))
        .map_err(Cut::Socket)
        .and_then(|()| Splice::new(socket, side).run(link));
    if carried.is_err() {
        reset(socket);
    }
    carried
}

/// Has the connection end, when the last descriptor of it is closed, by a reset: its peer sees
/// that something went wrong.
pub fn reset(socket: &TcpStream) {
    let at_once = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // Without it the peer sees an ordinary end.
    let _ = setsockopt(socket, sockopt::Linger, &at_once);
}

struct Splice<'a> {
    socket: &'a TcpStream,
    incoming: Window,
    outgoing: Window,
    /// Of these two.
    streams: [Stream; 2],
    /// Came, and is not written yet.
    pending: Vec<u8>,
    /// The other side sent its end.
    came: bool,
    /// All that came is written, and the socket has the end.
    written: bool,
    /// The socket gave its end.
    sent: bool,
    /// The other side has written all, or is not asked.
    confirmed: bool,
}

impl<'a> Splice<'a> {
    fn new(socket: &'a TcpStream, side: Side) -> Self {
        let [incoming, outgoing] = match side {
            Side::Client => [Stream::Stdout, Stream::Stdin],
            Side::Server => [Stream::Stdin, Stream::Stdout],
        };
        Self {
            socket,
            incoming: Window::new(incoming),
            outgoing: Window::new(outgoing),
            streams: [incoming, outgoing],
            pending: Vec::new(),
            came: false,
            written: false,
            sent: false,
            confirmed: side == Side::Server,
        }
    }

    fn run(mut self, link: &mut Link) -> Result<(), Cut> {
        loop {
            while let Some(frame) = link.next_frame()? {
                self.take(frame)?;
            }
            self.write_some(link).map_err(Cut::Socket)?;
            self.read_some(link)?;
            if self.written && self.sent && self.confirmed {
                return Ok(link.flush()?);
            }
            self.wait(link).map_err(LinkError::Io)?;
            link.turn()?;
        }
    }

    fn take(&mut self, frame: Frame) -> Result<(), Cut> {
        let [incoming, outgoing] = self.streams;
        match frame {
            Frame::Data { stream, bytes } if stream == incoming && !self.came => {
                self.incoming.take(bytes.len())?;
                self.came = bytes.is_empty();
                self.pending.extend(bytes);
            }
            Frame::Credit { stream, bytes } if stream == outgoing => self.outgoing.grant(bytes)?,
            Frame::Reply(Reply::Done) if self.came && self.sent && !self.confirmed => {
                self.confirmed = true;
            }
            Frame::Reply(Reply::Failed { kind, message }) => {
                return Err(Stopped::Failed { kind, message }.into());
            }
            other => return Err(other.unexpected().into()),
        }
        Ok(())
    }

    /// Writes what fits, and after all of it the end.
    fn write_some(&mut self, link: &mut Link) -> io::Result<()> {
        let mut done = 0;
        while done < self.pending.len() {
            match self.socket.write(&self.pending[done..]) {
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            }
        }
        self.pending.drain(..done);
        if let Some(credit) = self.incoming.consume(done) {
            link.queue(&credit);
        }
        if self.came && self.pending.is_empty() && !self.written {
            self.written = true;
            match self.socket.shutdown(Shutdown::Write) {
                // The peer is gone already, with all that it wanted.
                Err(e) if e.kind() == io::ErrorKind::NotConnected => {}
                other => return other,
            }
        }
        Ok(())
    }

    /// Sends what is there, within the credit.
    fn read_some(&mut self, link: &mut Link) -> Result<(), Cut> {
        let mut buffer = [0; MAX_DATA];
        while !self.sent {
            let room = self.outgoing.open().min(buffer.len());
            if room == 0 {
                break;
            }
            match self.socket.read(&mut buffer[..room]) {
                Ok(n) => {
                    self.outgoing.take(n)?;
                    link.queue_data(self.streams[1], &buffer[..n]);
                    self.sent = n == 0;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(Cut::Socket(e)),
            }
        }
        Ok(())
    }

    /// Waits for either side. The socket only where there is something to do: one that hung up
    /// would wake us again and again.
    fn wait(&self, link: &Link) -> io::Result<()> {
        let mut events = PollFlags::empty();
        events.set(PollFlags::POLLIN, !self.sent && self.outgoing.open() > 0);
        events.set(PollFlags::POLLOUT, !self.pending.is_empty());
        let mut fds = vec![PollFd::new(link.as_fd(), link.interest())];
        if !events.is_empty() {
            fds.push(PollFd::new(self.socket.as_fd(), events));
        }
        super::poll_fds(&mut fds, PollTimeout::NONE)
    }
}
