// SPDX-License-Identifier: GPL-2.0-only
//! The user's terminal as the guest's console.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use mvas_agent::client::RawTerminal;
use mvasvm::config::ConsoleConfig;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use nix::unistd::pipe2;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Ctrl-A begins a command to the monitor.
const ESCAPE: u8 = 1;

/// What the console's loop ended with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// The VM ended by itself.
    Ended,
    /// The user typed Ctrl-A X.
    Escaped,
    /// A signal to this process.
    Signal(u8),
}

/// The host's side of the guest's console.
pub(super) struct Console {
    to_guest: Option<File>,
    resized: EventFd,
    output_flags: OFlag,
}

impl Console {
    /// A console on this process's standard input and output, and the guest's side of it.
    pub fn new() -> Result<(Self, ConsoleConfig)> {
        // Input that the guest does not take is lost, as on any serial line.
        let flags = OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let (input, to_guest) = pipe2(flags).context("cannot make a pipe")?;
        let resized = EventFd::new(EFD_NONBLOCK).context("cannot make an event")?;
        let stdout = io::stdout();
        let console = Self {
            to_guest: Some(to_guest.into()),
            resized: resized.try_clone()?,
            output_flags: OFlag::from_bits_retain(fcntl(&stdout, FcntlArg::F_GETFL)?),
        };
        let guest = ConsoleConfig {
            input: Some(input),
            output: stdout.as_fd().try_clone_to_owned()?,
            resized: Some(resized),
        };
        Ok((console, guest))
    }

    /// Passes input on until the VM ends (`ended` becomes readable), the user escapes, or a
    /// signal comes. The terminal is raw meanwhile.
    pub fn run(mut self, ended: impl AsFd, signals: &SignalFd) -> Result<Left> {
        let mut stdin = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let typed = io::stdin().is_terminal();
        let _raw = typed
            .then(|| RawTerminal::enter(io::stdin()))
            .transpose()
            .context("cannot set up the terminal")?;
        let mut escape = typed.then(Escape::default);
        loop {
            let mut fds = vec![
                PollFd::new(ended.as_fd(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            if self.to_guest.is_some() {
                fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(e).context("cannot wait for input"),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            if ready[0] {
                return Ok(Left::Ended);
            }
            if ready[1] {
                while let Ok(Some(info)) = signals.read_signal() {
                    if info.ssi_signo == libc::SIGWINCH.cast_unsigned() {
                        // Fails only when it is full, and then it has been written before.
                        let _ = self.resized.write(1);
                    } else {
                        return Ok(Left::Signal(u8::try_from(info.ssi_signo).unwrap_or(127)));
                    }
                }
            }
            if ready.get(2) == Some(&true) && self.pass(&mut stdin, &mut escape) {
                return Ok(Left::Escaped);
            }
        }
    }

    /// Passes what was typed; true: the user wants to leave.
    fn pass(&mut self, stdin: &mut File, escape: &mut Option<Escape>) -> bool {
        let mut buffer = [0; 1024];
        let n = match stdin.read(&mut buffer) {
            Ok(n) if n > 0 => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return false,
            // The end of input is no reason to end the VM.
            _ => {
                self.to_guest = None;
                return false;
            }
        };
        let (bytes, leave) = match escape {
            Some(escape) => escape.filter(&buffer[..n]),
            None => (buffer[..n].to_vec(), false),
        };
        let pipe = self.to_guest.as_mut();
        if let Some(Err(e)) = pipe.map(|pipe| pipe.write_all(&bytes))
            && e.kind() != io::ErrorKind::WouldBlock
        {
            self.to_guest = None;
        }
        leave
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // The device made the terminal non-blocking, for everybody who has it open.
        let _ = fcntl(io::stdout(), FcntlArg::F_SETFL(self.output_flags));
    }
}

/// Finds Ctrl-A X in what is typed.
#[derive(Debug, Default)]
struct Escape {
    begun: bool,
}

impl Escape {
    /// What is for the guest, and whether the user wants to leave.
    fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut bytes = Vec::with_capacity(typed.len());
        for byte in typed {
            match (self.begun, *byte) {
                (false, ESCAPE) => self.begun = true,
                (true, b'x' | b'X') => return (bytes, true),
                (true, ESCAPE) => {
                    self.begun = false;
                    bytes.push(ESCAPE);
                }
                (begun, other) => {
                    if begun {
                        self.begun = false;
                        bytes.push(ESCAPE);
                    }
                    bytes.push(other);
                }
            }
        }
        (bytes, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_ctrl_a_x_leaves() {
        let filter = |typed: &[u8]| Escape::default().filter(typed);
        assert_eq!(filter(b"ab\x01xcd"), (b"ab".to_vec(), true));
        assert_eq!(filter(b"\x01X"), (vec![], true));
        assert_eq!(filter(b"\x01\x01x"), (b"\x01x".to_vec(), false));
        assert_eq!(filter(b"\x01c"), (b"\x01c".to_vec(), false));
        assert_eq!(filter(b"xX"), (b"xX".to_vec(), false));
    }

    proptest! {
        #[test]
        fn pieces_are_treated_like_the_whole(typed in proptest::collection::vec(proptest::sample::select(b"\x01xab".as_slice()), 0..20), cut in 0..20usize) {
            let whole = Escape::default().filter(&typed);
            let (first, second) = typed.split_at(cut.min(typed.len()));
            let mut escape = Escape::default();
            let (mut bytes, left) = escape.filter(first);
            let (rest, left) = if left { (vec![], true) } else { escape.filter(second) };
            bytes.extend(rest);
            prop_assert_eq!((bytes, left), whole);
        }
    }
}
