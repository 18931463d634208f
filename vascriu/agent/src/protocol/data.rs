// SPDX-License-Identifier: GPL-2.0-only
//! A stream of a session as `Read` and `Write`, for sides that do nothing else meanwhile.

use std::io::{self, Read, Write};

use super::{FailureKind, Frame, Link, LinkError, MAX_DATA, Reply, Stream, Window};

/// Why a transfer stopped.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// The session broke.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The server gave up and said why.
    #[error("{message}")]
    Failed {
        /// Class of the failure.
        kind: FailureKind,
        /// Why.
        message: String,
    },
}

impl From<super::FrameError> for Stopped {
    fn from(error: super::FrameError) -> Self {
        Self::Link(error.into())
    }
}

/// Receives a stream until its end.
pub struct DataReader<'a> {
    link: &'a mut Link,
    stream: Stream,
    window: Window,
    bytes: Vec<u8>,
    at: usize,
    ended: bool,
    /// Why reading failed, if it did: more than an `io::Error` can say.
    pub stopped: Option<Stopped>,
}

impl<'a> DataReader<'a> {
    /// At the start of `stream`.
    pub fn new(link: &'a mut Link, stream: Stream) -> Self {
        Self {
            link,
            stream,
            window: Window::new(stream),
            bytes: Vec::new(),
            at: 0,
            ended: false,
            stopped: None,
        }
    }

    /// Reads on to the end of the stream.
    ///
    /// # Errors
    /// The session broke, or the server gave up.
    pub fn finish(mut self) -> Result<(), Stopped> {
        while !self.ended {
            self.refill()?;
        }
        Ok(())
    }

    fn refill(&mut self) -> Result<(), Stopped> {
        if let Some(credit) = self.window.consume(self.bytes.len()) {
            self.link.queue(&credit);
        }
        self.bytes.clear();
        self.at = 0;
        match self.link.recv(None)? {
            Frame::Data { stream, bytes } if stream == self.stream => {
                self.window.take(bytes.len())?;
                self.ended = bytes.is_empty();
                self.bytes = bytes;
                Ok(())
            }
            Frame::Reply(Reply::Failed { kind, message }) => Err(Stopped::Failed { kind, message }),
            other => Err(other.unexpected().into()),
        }
    }
}

impl Read for DataReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.bytes.len() && !self.ended {
            if let Err(stopped) = self.refill() {
                let error = io::Error::other(stopped.to_string());
                self.stopped = Some(stopped);
                return Err(error);
            }
        }
        let n = (&self.bytes[self.at..]).read(out)?;
        self.at += n;
        Ok(n)
    }
}

/// Sends a stream.
pub struct DataWriter<'a> {
    link: &'a mut Link,
    stream: Stream,
    window: Window,
    /// Why writing failed, if it did: more than an `io::Error` can say.
    pub stopped: Option<Stopped>,
}

impl<'a> DataWriter<'a> {
    /// At the start of `stream`.
    pub fn new(link: &'a mut Link, stream: Stream) -> Self {
        Self {
            link,
            stream,
            window: Window::new(stream),
            stopped: None,
        }
    }

    /// Ends the stream, and waits for what the other side says to it (`reply`), or only
    /// until all was sent.
    ///
    /// # Errors
    /// The session broke, or the server gave up.
    pub fn finish(mut self, reply: bool) -> Result<(), Stopped> {
        self.link.queue_data(self.stream, &[]);
        self.link.flush().map_err(Stopped::from)?;
        if reply {
            while !self.take_frame()? {}
        }
        Ok(())
    }

    /// Takes one frame of the other side; true: it is done.
    fn take_frame(&mut self) -> Result<bool, Stopped> {
        match self.link.recv(None)? {
            Frame::Credit { stream, bytes } if stream == self.stream => {
                self.window.grant(bytes)?;
                Ok(false)
            }
            Frame::Reply(Reply::Done) => Ok(true),
            Frame::Reply(Reply::Failed { kind, message }) => Err(Stopped::Failed { kind, message }),
            other => Err(other.unexpected().into()),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<usize, Stopped> {
        while self.window.open() == 0 {
            if self.take_frame()? {
                return Err(super::FrameError::Unexpected("done").into());
            }
        }
        let n = bytes.len().min(self.window.open()).min(MAX_DATA);
        self.window.take(n)?;
        self.link.queue_data(self.stream, &bytes[..n]);
        self.link.flush()?;
        Ok(n)
    }
}

impl Write for DataWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        // Writers above try again when they are dropped.
        if self.stopped.is_some() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.send(bytes).map_err(|stopped| {
            let error = io::Error::other(stopped.to_string());
            self.stopped = Some(stopped);
            error
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
