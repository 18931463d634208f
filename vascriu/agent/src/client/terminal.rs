// SPDX-License-Identifier: GPL-2.0-only
//! The user's terminal and signals.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::protocol::WindowSize;

/// A terminal in raw mode; dropping it restores the mode it had.
#[derive(Debug)]
pub struct RawTerminal {
    fd: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// Switches the terminal `fd` to raw mode.
    ///
    /// # Errors
    /// It is no terminal.
    pub fn enter(fd: impl AsFd) -> io::Result<Self> {
        let fd = fd.as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&fd)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&fd, SetArg::TCSADRAIN, &raw)?;
        Ok(Self { fd, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that is gone needs no mode.
        let _ = tcsetattr(&self.fd, SetArg::TCSADRAIN, &self.before);
    }
}

/// Size of the terminal on standard output or input, if one is.
pub fn window_size() -> Option<WindowSize> {
    let (stdout, stdin) = (io::stdout(), io::stdin());
    let fd = if stdout.is_terminal() {
        stdout.as_raw_fd()
    } else if stdin.is_terminal() {
        stdin.as_raw_fd()
    } else {
        return None;
    };
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ writes one winsize, which lives on our stack.
    let got = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &raw mut size) };
    (got == 0).then_some(WindowSize {
        rows: size.ws_row,
        cols: size.ws_col,
    })
}

/// Blocks the signals that a client passes on, in this thread and those it will start, and
/// gives them as something to poll. Call it before any thread is started.
///
/// # Errors
/// The kernel refuses.
pub fn block_signals() -> io::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGWINCH,
    ] {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(SignalFd::with_flags(
        &set,
        SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
    )?)
}
