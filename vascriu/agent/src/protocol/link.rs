// SPDX-License-Identifier: GPL-2.0-only
//! One end of the stream: frames in, frames out, no call that blocks unasked.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

use super::{Decoder, Frame, FrameError, Hello, Reply, Stream, VERSION};

/// A greeting that was not answered for this long is sent again: the peer may have taken
/// the first one for the rest of a broken session.
const GREET_AGAIN: Duration = Duration::from_secs(3);

/// Why a session cannot go on.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The other side is gone.
    #[error("the other side closed the connection")]
    Closed,
    /// The other side did not answer in time.
    #[error("no answer within {} seconds", .0.as_secs())]
    Timeout(Duration),
    /// The other side broke the protocol.
    #[error("the other side broke the protocol")]
    Protocol(#[from] FrameError),
    /// The other side is of another version.
    #[error(
        "the other side speaks version {0} of the protocol, this one speaks {VERSION}: rebuild the guest image, or use the mvasvm it was built with"
    )]
    Version(u16),
    /// The stream itself failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
}

/// One end of a stream.
///
/// Everything to be sent is queued, so that a caller that polls can always go on reading;
/// credit ([`super::Window`]) and the size of messages bound the queue.
#[derive(Debug)]
pub struct Link {
    fd: File,
    decoder: Decoder,
    out: Vec<u8>,
    sent: usize,
}

impl Link {
    /// Takes over a connected stream.
    ///
    /// # Errors
    /// It cannot be made non-blocking.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self {
            fd: fd.into(),
            decoder: Decoder::default(),
            out: Vec::new(),
            sent: 0,
        })
    }

    /// What to poll the stream for.
    pub fn interest(&self) -> PollFlags {
        if !self.out.is_empty() {
            PollFlags::POLLIN | PollFlags::POLLOUT
        } else {
            PollFlags::POLLIN
        }
    }

    /// Queues a frame.
    pub fn queue(&mut self, frame: &Frame) {
        frame.encode(&mut self.out);
    }

    /// Queues bytes of a stream; none: its end.
    pub fn queue_data(&mut self, stream: Stream, bytes: &[u8]) {
        self.queue(&Frame::Data {
            stream,
            bytes: bytes.to_vec(),
        });
    }

    /// Sends and receives what is possible without waiting.
    ///
    /// # Errors
    /// The stream failed or ended; frames that came before that can still be had.
    pub fn turn(&mut self) -> Result<(), LinkError> {
        self.send_some()?;
        self.receive_some()
    }

    fn send_some(&mut self) -> Result<(), LinkError> {
        while self.sent < self.out.len() {
            match self.fd.write(&self.out[self.sent..]) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // The peer may have said why before it left: read on.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => self.sent = self.out.len(),
                Err(e) => return Err(closed_or(e)),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }

    fn receive_some(&mut self) -> Result<(), LinkError> {
        let mut buffer = [0; 32 << 10];
        match self.fd.read(&mut buffer) {
            Ok(0) => Err(LinkError::Closed),
            Ok(n) => {
                self.decoder.push(&buffer[..n]);
                Ok(())
            }
            Err(e) => match e.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
                _ => Err(closed_or(e)),
            },
        }
    }

    /// The next frame that came, if any.
    ///
    /// # Errors
    /// The peer broke the protocol.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        self.decoder.next_frame()
    }

    /// Waits for the next frame; sends meanwhile.
    ///
    /// # Errors
    /// The stream failed or ended, the peer broke the protocol, or the deadline passed.
    pub fn recv(&mut self, deadline: Option<Instant>) -> Result<Frame, LinkError> {
        loop {
            if let Some(frame) = self.next_frame()? {
                return Ok(frame);
            }
            self.wait(deadline)?;
        }
    }

    /// Waits for a reply.
    ///
    /// # Errors
    /// As [`Self::recv`], or the next frame is not a reply.
    pub fn recv_reply(&mut self, deadline: Option<Instant>) -> Result<Reply, LinkError> {
        match self.recv(deadline)? {
            Frame::Reply(reply) => Ok(reply),
            other => Err(other.unexpected().into()),
        }
    }

    /// Sends all that is queued.
    ///
    /// # Errors
    /// The stream failed or ended.
    pub fn flush(&mut self) -> Result<(), LinkError> {
        loop {
            self.send_some()?;
            if self.out.is_empty() {
                return Ok(());
            }
            let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)];
            poll_fds(&mut fds, PollTimeout::NONE)?;
            // A port whose peer is gone takes nothing, and says nothing.
            if fds[0].revents() == Some(PollFlags::POLLHUP) {
                return Err(LinkError::Closed);
            }
        }
    }

    fn wait(&mut self, deadline: Option<Instant>) -> Result<(), LinkError> {
        let timeout = match deadline {
            None => PollTimeout::NONE,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(LinkError::Timeout(Duration::ZERO));
                }
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            }
        };
        poll_fds(
            &mut [PollFd::new(self.fd.as_fd(), self.interest())],
            timeout,
        )?;
        self.turn()
    }

    /// Client: starts a session. Waits for the server to answer, for `patience`.
    ///
    /// # Errors
    /// No answer in time, another version, or the stream failed.
    pub fn greet(&mut self, patience: Duration) -> Result<(), LinkError> {
        let mut nonce = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut nonce)?;
        let deadline = Instant::now() + patience;
        loop {
            self.out.extend(Hello::new(nonce).encode());
            let again = deadline.min(Instant::now() + GREET_AGAIN);
            loop {
                match self.decoder.next_hello() {
                    Some(hello) if hello.nonce == nonce && hello.version == VERSION => {
                        return Ok(());
                    }
                    Some(hello) if hello.nonce == nonce => {
                        return Err(LinkError::Version(hello.version));
                    }
                    Some(_) => {}
                    None => match self.wait(Some(again)) {
                        Ok(()) => {}
                        Err(LinkError::Timeout(_)) => break,
                        Err(e) => return Err(e),
                    },
                }
            }
            if Instant::now() >= deadline {
                return Err(LinkError::Timeout(patience));
            }
        }
    }

    /// Server: waits for a greeting, answers it, and gives the request that follows.
    ///
    /// # Errors
    /// The stream failed or ended, or the peer broke the protocol.
    pub fn accept(&mut self) -> Result<Frame, LinkError> {
        loop {
            match self.decoder.next_hello() {
                None => self.wait(None)?,
                Some(hello) => {
                    // What is left of an older session is of no use to anybody.
                    self.out.clear();
                    self.sent = 0;
                    self.out.extend(Hello::new(hello.nonce).encode());
                    if hello.version != VERSION {
                        self.flush()?;
                        continue;
                    }
                    match self.recv(None) {
                        Err(LinkError::Protocol(FrameError::Restart)) => {}
                        other => return other,
                    }
                }
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn closed_or(error: io::Error) -> LinkError {
    match error.kind() {
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => LinkError::Closed,
        _ => LinkError::Io(error),
    }
}

/// `poll`, gone on with after a signal.
pub(crate) fn poll_fds(fds: &mut [PollFd<'_>], timeout: PollTimeout) -> io::Result<()> {
    match poll(fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
