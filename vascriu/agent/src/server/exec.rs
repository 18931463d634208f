// SPDX-License-Identifier: GPL-2.0-only
//! Runs one command and carries its streams: a single loop that never blocks on one of
//! them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::spawn::{Spawned, resize, spawn};
use super::{Failure, ServeError, log};
use crate::protocol::{
    CommandEnd, Exec, FailureKind, Frame, Link, LinkError, MAX_DATA, Reply, Stream, Window,
};

/// What a command gets between SIGHUP and SIGKILL when its client vanished.
const GRACE: Duration = Duration::from_secs(2);

/// Serves an `Exec` to its end. A client that vanishes takes its command with it.
pub(super) fn serve(link: &mut Link, exec: Exec) -> Result<(), ServeError> {
    let mut run = Run::start(spawn(&exec)?)?;
    let pid = run.pid.as_raw();
    link.queue(&Frame::Reply(Reply::Started { pid }));
    loop {
        match run.turn(link) {
            Ok(None) => {}
            Ok(Some(end)) => {
                link.queue(&Frame::Reply(Reply::Ended(end)));
                return Ok(link.flush()?);
            }
            Err(error) => {
                run.end_now();
                return Err(error);
            }
        }
    }
}

struct Run {
    child: Child,
    pidfd: OwnedFd,
    pid: Pid,
    terminal: Option<File>,
    input: Input,
    outputs: [Output; 2],
    ended: Option<ExitStatus>,
}

struct Input {
    fd: Option<File>,
    pending: Vec<u8>,
    /// The client sent its end.
    ended: bool,
    window: Window,
}

struct Output {
    fd: Option<File>,
    stream: Stream,
    window: Window,
}

impl Run {
    fn start(spawned: Spawned) -> Result<Self, Failure> {
        let id = i32::try_from(spawned.child.id()).expect("a PID");
        let mut run = Self {
            pid: Pid::from_raw(id),
            child: spawned.child,
            pidfd: spawned.pidfd,
            terminal: spawned.terminal,
            input: Input {
                fd: spawned.stdin.map(File::from),
                pending: Vec::new(),
                ended: false,
                window: Window::new(Stream::Stdin),
            },
            outputs: [
                Output::new(Stream::Stdout, spawned.stdout),
                Output::new(Stream::Stderr, spawned.stderr),
            ],
            ended: None,
        };
        let fds = [&run.input.fd, &run.outputs[0].fd, &run.outputs[1].fd];
        let set = fds.into_iter().flatten().try_for_each(set_nonblocking);
        if let Err(e) = set {
            run.end_now();
            return Err(Failure::new(FailureKind::Os, format!("pipes: {e}")));
        }
        Ok(run)
    }

    /// Does all that can be done now, then waits for anything to happen.
    fn turn(&mut self, link: &mut Link) -> Result<Option<CommandEnd>, ServeError> {
        while let Some(frame) = link.next_frame()? {
            self.take(frame)?;
        }
        if let Some(credit) = self.input.write_some() {
            link.queue(&credit);
        }
        // Asked before the output is read: what a command wrote before it ended is there.
        if self.ended.is_none() {
            self.ended = self.child.try_wait().map_err(LinkError::Io)?;
        }
        let mut drained = true;
        for output in &mut self.outputs {
            drained &= output.read_some(link)?;
        }
        if let Some(status) = self.ended.filter(|_| drained) {
            return Ok(Some(command_end(status)));
        }
        self.wait(link).map_err(LinkError::Io)?;
        link.turn()?;
        Ok(None)
    }

    fn wait(&self, link: &Link) -> io::Result<()> {
        let mut fds = vec![PollFd::new(link.as_fd(), link.interest())];
        if self.ended.is_none() {
            fds.push(PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN));
        }
        if let Some(fd) = self.input.fd.as_ref().filter(|_| self.input.has_work()) {
            fds.push(PollFd::new(fd.as_fd(), PollFlags::POLLOUT));
        }
        for output in &self.outputs {
            if let Some(fd) = output.fd.as_ref().filter(|_| output.window.open() > 0) {
                fds.push(PollFd::new(fd.as_fd(), PollFlags::POLLIN));
            }
        }
        crate::protocol::poll_fds(&mut fds, PollTimeout::NONE)
    }

    fn take(&mut self, frame: Frame) -> Result<(), ServeError> {
        match frame {
            Frame::Data {
                stream: Stream::Stdin,
                bytes,
            } => self.input.take(&bytes)?,
            Frame::Credit {
                stream: Stream::Stdout,
                bytes,
            } => self.outputs[0].window.grant(bytes)?,
            Frame::Credit {
                stream: Stream::Stderr,
                bytes,
            } => self.outputs[1].window.grant(bytes)?,
            Frame::Signal(number) => self.signal(number),
            Frame::Resize(size) => {
                if let Some(terminal) = &self.terminal {
                    resize(terminal, size);
                }
            }
            other => return Err(other.unexpected().into()),
        }
        Ok(())
    }

    /// Sends a signal to the command's process group. A number that is no signal, or a
    /// command that is gone, is no error: the client cannot know.
    fn signal(&self, number: i32) {
        if let (None, Ok(signal)) = (self.ended, Signal::try_from(number)) {
            let _ = killpg(self.pid, signal);
        }
    }

    /// Ends the command for a client that is gone.
    fn end_now(&mut self) {
        if self.ended.is_some() {
            return;
        }
        self.outputs = [
            Output::new(Stream::Stdout, None),
            Output::new(Stream::Stderr, None),
        ];
        self.input.fd = None;
        self.terminal = None;
        self.signal(Signal::SIGHUP as i32);
        self.signal(Signal::SIGCONT as i32);
        let timeout = PollTimeout::try_from(GRACE).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        let _ = crate::protocol::poll_fds(&mut fds, timeout);
        self.signal(Signal::SIGKILL as i32);
        if let Err(e) = self.child.wait() {
            log(format!("cannot wait for process {}: {e}", self.pid));
        }
    }
}

impl Input {
    fn has_work(&self) -> bool {
        self.ended || !self.pending.is_empty()
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), ServeError> {
        if self.ended {
            return Err(crate::protocol::FrameError::Unexpected("data after its end").into());
        }
        self.window.take(bytes.len())?;
        self.ended = bytes.is_empty();
        self.pending.extend(bytes);
        Ok(())
    }

    /// Writes what fits. Input that nobody will read any more counts as consumed.
    fn write_some(&mut self) -> Option<Frame> {
        let mut written = 0;
        while let Some(fd) = &mut self.fd {
            if written == self.pending.len() {
                if self.ended {
                    self.close();
                }
                break;
            }
            match fd.write(&self.pending[written..]) {
                Ok(n) => written += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.fd = None,
            }
        }
        if self.fd.is_none() {
            written = self.pending.len();
        }
        self.pending.drain(..written);
        self.window.consume(written)
    }

    /// A pipe is closed; a terminal, which others still read from, gets its end-of-file
    /// character.
    fn close(&mut self) {
        if let Some(mut fd) = self.fd.take()
            && nix::unistd::isatty(&fd).unwrap_or(false)
        {
            let _ = fd.write(b"\x04");
        }
    }
}

impl Output {
    fn new(stream: Stream, fd: Option<OwnedFd>) -> Self {
        Self {
            fd: fd.map(File::from),
            stream,
            window: Window::new(stream),
        }
    }

    /// Sends what is there, within the credit. True when no more is there now; for a command
    /// that ended, what its descendants may still write is not waited for.
    fn read_some(&mut self, link: &mut Link) -> Result<bool, ServeError> {
        let mut buffer = [0; MAX_DATA];
        while let Some(fd) = &mut self.fd {
            let room = self.window.open().min(buffer.len());
            if room == 0 {
                return Ok(false);
            }
            match fd.read(&mut buffer[..room]) {
                Ok(n) if n > 0 => {
                    self.window.take(n)?;
                    link.queue_data(self.stream, &buffer[..n]);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                // The end; for a terminal that is EIO.
                Ok(_) | Err(_) => {
                    self.fd = None;
                    link.queue_data(self.stream, &[]);
                }
            }
        }
        Ok(true)
    }
}

fn set_nonblocking(fd: &File) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn command_end(status: ExitStatus) -> CommandEnd {
    match (status.code(), status.signal()) {
        (Some(code), _) => CommandEnd::Code(u8::try_from(code).unwrap_or(u8::MAX)),
        (None, signal) => CommandEnd::Signal(signal.unwrap_or(0)),
    }
}
