// SPDX-License-Identifier: GPL-2.0-only
//! The side on the host.

mod connect;
mod copy;
mod exec;
mod terminal;

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;

pub use crate::protocol::reset;
pub use exec::ExecIo;
pub use terminal::{RawTerminal, block_signals, window_size};

use crate::archive::ArchiveError;
use crate::protocol::{
    FailureKind, Frame, FrameError, Info, Link, LinkError, Reply, Request, ShutdownKind, Stopped,
};

/// Why something asked of an agent was not done.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("cannot connect to {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket's owner refused to connect us to the port.
    #[error("the VM refused a connection to port {port}: {answer:?}")]
    Refused {
        /// The vsock port.
        port: u32,
        /// What it said instead of OK.
        answer: String,
    },
    /// The session broke.
    #[error("lost the guest's agent")]
    Link(#[from] LinkError),
    /// The agent could not do it.
    #[error("{message}")]
    Failed {
        /// Class of the failure.
        kind: FailureKind,
        /// What failed, on what, and why.
        message: String,
    },
    /// Files on this side.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Standard input or output of this side.
    #[error("cannot {what}")]
    Stdio {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection to be carried, on this side.
    #[error("the TCP connection failed")]
    Socket(#[source] io::Error),
    /// The user insisted on ending.
    #[error("given up after repeated signals; the command may still run")]
    GivenUp,
}

impl ClientError {
    /// The exit code for it: as shells and Docker say that a command could not be run, 125
    /// for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed {
                kind: FailureKind::CommandNotFound,
                ..
            } => 127,
            Self::Failed {
                kind: FailureKind::CommandNotRunnable,
                ..
            } => 126,
            Self::GivenUp => 130,
            _ => 125,
        }
    }

    /// Whether it is what a machine that still boots would cause.
    fn is_early(&self) -> bool {
        match self {
            Self::Connect { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ),
            Self::Refused { .. } | Self::Link(LinkError::Closed) => true,
            _ => false,
        }
    }
}

impl From<FrameError> for ClientError {
    fn from(error: FrameError) -> Self {
        Self::Link(error.into())
    }
}

impl From<Stopped> for ClientError {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::Link(error) => Self::Link(error),
            Stopped::Failed { kind, message } => Self::Failed { kind, message },
        }
    }
}

/// One session with an agent; every request uses it up.
#[derive(Debug)]
pub struct Session {
    link: Link,
}

impl Session {
    /// Greets the agent at the other end of `stream`, which gets `patience` to answer.
    ///
    /// # Errors
    /// No answer, or another version.
    pub fn start(stream: impl Into<OwnedFd>, patience: Duration) -> Result<Self, ClientError> {
        let mut link = Link::new(stream.into()).map_err(LinkError::Io)?;
        link.greet(patience)?;
        Ok(Self { link })
    }

    /// Connects to the agent behind a VM's vsock socket, and tries again until `patience` is
    /// over: the monitor may still be starting, the guest booting.
    ///
    /// # Errors
    /// Nobody listens at `socket`, or the agent does not answer in time.
    pub fn connect_vsock(
        socket: &Path,
        port: u32,
        patience: Duration,
    ) -> Result<Self, ClientError> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let tried = vsock_stream(socket, port, left).and_then(|s| Self::start(s, left));
            match tried {
                Err(error) if error.is_early() && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                other => return other,
            }
        }
    }

    /// Asks who answers.
    ///
    /// # Errors
    /// The session broke.
    pub fn info(mut self) -> Result<Info, ClientError> {
        match self.ask(Request::Info)? {
            Reply::Info(info) => Ok(info),
            other => Err(Frame::Reply(other).unexpected().into()),
        }
    }

    /// Has the machine write everything to disk and go down. Returns once the first is done.
    ///
    /// # Errors
    /// The session broke, or the agent cannot bring its machine down.
    pub fn shutdown(mut self, kind: ShutdownKind) -> Result<(), ClientError> {
        match self.ask(Request::Shutdown(kind))? {
            Reply::Done => Ok(()),
            other => Err(Frame::Reply(other).unexpected().into()),
        }
    }

    fn ask(&mut self, request: Request) -> Result<Reply, ClientError> {
        self.link.queue(&Frame::Request(request));
        match self.link.recv_reply(None)? {
            Reply::Failed { kind, message } => Err(ClientError::Failed { kind, message }),
            other => Ok(other),
        }
    }
}

/// Connects to a guest's vsock port through Firecracker's convention: `CONNECT <port>`,
/// answered by `OK <port>`.
///
/// # Errors
/// Nobody listens at `socket`, or the guest refuses or does not answer.
pub fn vsock_stream(
    socket: &Path,
    port: u32,
    patience: Duration,
) -> Result<UnixStream, ClientError> {
    let connect = |source| ClientError::Connect {
        path: socket.to_owned(),
        source,
    };
    let patience = patience.max(Duration::from_millis(1));
    let mut stream = UnixStream::connect(socket).map_err(connect)?;
    stream
        .set_read_timeout(Some(patience))
        .and_then(|()| writeln!(stream, "CONNECT {port}"))
        .map_err(connect)?;
    // One byte at a time: what follows the line belongs to the session.
    let mut answer = Vec::new();
    let mut byte = [0];
    while answer.last() != Some(&b'\n') && answer.len() < 32 {
        match stream.read(&mut byte) {
            Ok(0) => break,
            Ok(_) => answer.extend(byte),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Err(LinkError::Timeout(patience).into());
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => break,
            Err(e) => return Err(connect(e)),
        }
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    if answer.starts_with("OK ") && answer.ends_with('\n') {
        // A command may be silent for as long as it likes.
        stream.set_read_timeout(None).map_err(connect)?;
        Ok(stream)
    } else {
        Err(ClientError::Refused { port, answer })
    }
}
