// SPDX-License-Identifier: GPL-2.0-only
//! Runs a command in the guest with this process's input, output and signals.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;

use super::terminal::window_size;
use super::{ClientError, Session};
use crate::protocol::{
    CommandEnd, Exec, Frame, Link, MAX_DATA, Reply, Request, Stream, Window, poll_fds,
};

/// Written at once to an output that polls as writable. POSIX: a pipe that does takes this
/// much without blocking.
const WRITE: usize = libc::PIPE_BUF;

/// So many signals that ask to end, and the client ends without the command.
const INSISTENCE: u32 = 3;

/// Where a command's streams and signals are on this side.
pub struct ExecIo<'a> {
    /// Its input; `None`: empty.
    pub stdin: Option<BorrowedFd<'a>>,
    /// Its output.
    pub stdout: BorrowedFd<'a>,
    /// Its errors.
    pub stderr: BorrowedFd<'a>,
    /// Signals to pass on; SIGWINCH resizes the command's terminal. See
    /// [`super::block_signals`].
    pub signals: Option<&'a SignalFd>,
}

impl Session {
    /// Runs a command to its end.
    ///
    /// # Errors
    /// It could not be started, or the session broke.
    pub fn exec(mut self, exec: Exec, io: &ExecIo<'_>) -> Result<CommandEnd, ClientError> {
        let on_terminal = exec.tty.is_some();
        match self.ask(Request::Exec(exec))? {
            Reply::Started { .. } => {}
            other => return Err(Frame::Reply(other).unexpected().into()),
        }
        if io.stdin.is_none() {
            self.link.queue_data(Stream::Stdin, &[]);
        }
        let mut run = Run::new(io, on_terminal)?;
        loop {
            if let Some(end) = run.turn(&mut self.link)? {
                return Ok(end);
            }
        }
    }
}

struct Run<'a> {
    input: Option<File>,
    input_window: Window,
    outputs: [Output; 2],
    signals: Option<&'a SignalFd>,
    insisted: u32,
    on_terminal: bool,
    ended: Option<CommandEnd>,
}

struct Output {
    fd: Option<File>,
    window: Window,
    pending: VecDeque<u8>,
}

impl<'a> Run<'a> {
    fn new(io: &ExecIo<'a>, on_terminal: bool) -> Result<Self, ClientError> {
        let dup = |fd: BorrowedFd<'_>| -> Result<File, ClientError> {
            let owned: OwnedFd = fd.try_clone_to_owned().map_err(|source| {
                let what = "duplicate standard input or output";
                ClientError::Stdio { what, source }
            })?;
            Ok(owned.into())
        };
        Ok(Self {
            input: io.stdin.map(dup).transpose()?,
            input_window: Window::new(Stream::Stdin),
            outputs: [
                Output::new(Stream::Stdout, dup(io.stdout)?),
                Output::new(Stream::Stderr, dup(io.stderr)?),
            ],
            signals: io.signals,
            insisted: 0,
            on_terminal,
            ended: None,
        })
    }

    fn turn(&mut self, link: &mut Link) -> Result<Option<CommandEnd>, ClientError> {
        while self.ended.is_none() {
            match link.next_frame()? {
                Some(frame) => self.take(frame)?,
                None => break,
            }
        }
        let written = self.outputs.iter().all(|o| o.pending.is_empty());
        if let Some(end) = self.ended.filter(|_| written) {
            return Ok(Some(end));
        }
        let ready = self.wait(link)?;
        if ready.signals {
            self.pass_signals(link)?;
        }
        if ready.input {
            self.pass_input(link)?;
        }
        for (output, ready) in self.outputs.iter_mut().zip(ready.outputs) {
            if ready && let Some(credit) = output.write_some() {
                link.queue(&credit);
            }
        }
        if self.ended.is_none() {
            link.turn()?;
        }
        Ok(None)
    }

    fn wait(&self, link: &Link) -> Result<Ready, ClientError> {
        let outputs = [self.outputs[0].waiting(), self.outputs[1].waiting()];
        let input = self
            .input
            .as_ref()
            .filter(|_| self.input_window.open() > 0 && self.ended.is_none());
        let mut fds = Vec::with_capacity(5);
        let link_fd = Some(link.as_fd()).filter(|_| self.ended.is_none());
        push(&mut fds, link_fd, link.interest());
        let signals = self.signals.map(AsFd::as_fd);
        let at_signals = push(&mut fds, signals, PollFlags::POLLIN);
        let at_input = push(&mut fds, input.map(AsFd::as_fd), PollFlags::POLLIN);
        let at_outputs = outputs.map(|fd| push(&mut fds, fd, PollFlags::POLLOUT));
        poll_fds(&mut fds, PollTimeout::NONE).map_err(|source| {
            let what = "wait for input and output";
            ClientError::Stdio { what, source }
        })?;
        let any = |at: Option<usize>| {
            at.is_some_and(|at| fds[at].revents().is_some_and(|events| !events.is_empty()))
        };
        Ok(Ready {
            signals: any(at_signals),
            input: any(at_input),
            outputs: at_outputs.map(any),
        })
    }

    fn take(&mut self, frame: Frame) -> Result<(), ClientError> {
        match frame {
            Frame::Data { stream, bytes } => {
                let output = match stream {
                    Stream::Stdout => &mut self.outputs[0],
                    Stream::Stderr => &mut self.outputs[1],
                    Stream::Stdin => {
                        return Err(Frame::Data { stream, bytes }.unexpected().into());
                    }
                };
                output.window.take(bytes.len())?;
                output.pending.extend(bytes);
            }
            Frame::Credit {
                stream: Stream::Stdin,
                bytes,
            } => self.input_window.grant(bytes)?,
            Frame::Reply(Reply::Ended(end)) => self.ended = Some(end),
            Frame::Reply(Reply::Failed { kind, message }) => {
                return Err(ClientError::Failed { kind, message });
            }
            other => return Err(other.unexpected().into()),
        }
        Ok(())
    }

    fn pass_input(&mut self, link: &mut Link) -> Result<(), ClientError> {
        let Some(input) = &mut self.input else {
            return Ok(());
        };
        let mut buffer = [0; MAX_DATA];
        let room = self.input_window.open().min(buffer.len());
        match input.read(&mut buffer[..room]) {
            Ok(n) => {
                self.input_window.take(n)?;
                link.queue_data(Stream::Stdin, &buffer[..n]);
                if n == 0 {
                    self.input = None;
                }
            }
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            // A terminal that is gone, or a closed standard input, is an empty one.
            Err(_) => {
                link.queue_data(Stream::Stdin, &[]);
                self.input = None;
            }
        }
        Ok(())
    }

    fn pass_signals(&mut self, link: &mut Link) -> Result<(), ClientError> {
        let Some(signals) = self.signals else {
            return Ok(());
        };
        while let Ok(Some(info)) = signals.read_signal() {
            let number = i32::try_from(info.ssi_signo).expect("a signal's number");
            if number == Signal::SIGWINCH as i32 {
                if let (true, Some(size)) = (self.on_terminal, window_size()) {
                    link.queue(&Frame::Resize(size));
                }
                continue;
            }
            if matches!(
                Signal::try_from(number),
                Ok(Signal::SIGINT | Signal::SIGTERM | Signal::SIGHUP | Signal::SIGQUIT)
            ) {
                self.insisted += 1;
                if self.insisted >= INSISTENCE {
                    return Err(ClientError::GivenUp);
                }
            }
            link.queue(&Frame::Signal(number));
        }
        Ok(())
    }
}

fn push<'f>(
    fds: &mut Vec<PollFd<'f>>,
    fd: Option<BorrowedFd<'f>>,
    events: PollFlags,
) -> Option<usize> {
    fds.push(PollFd::new(fd?, events));
    Some(fds.len() - 1)
}

struct Ready {
    signals: bool,
    input: bool,
    outputs: [bool; 2],
}

impl Output {
    fn new(stream: Stream, fd: File) -> Self {
        Self {
            fd: Some(fd),
            window: Window::new(stream),
            pending: VecDeque::new(),
        }
    }

    fn waiting(&self) -> Option<BorrowedFd<'_>> {
        let fd = self.fd.as_ref().filter(|_| !self.pending.is_empty());
        fd.map(AsFd::as_fd)
    }

    /// Writes a piece. Output that nobody reads any more counts as consumed.
    fn write_some(&mut self) -> Option<Frame> {
        let (piece, _) = self.pending.as_slices();
        let piece = &piece[..piece.len().min(WRITE)];
        let n = match self.fd.as_mut().map(|fd| fd.write(piece)) {
            Some(Ok(n)) => n,
            Some(Err(e))
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                0
            }
            _ => {
                self.fd = None;
                self.pending.len()
            }
        };
        self.pending.drain(..n);
        self.window.consume(n)
    }
}
