// SPDX-License-Identifier: GPL-2.0-only
//! A command in a guest with this process's terminal, input, output and signals.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use mvas_agent::client::{ClientError, ExecIo, RawTerminal, Session, window_size};
use mvas_agent::protocol::{CommandEnd, Exec, WindowSize};
use nix::sys::signalfd::SignalFd;

/// A terminal whose size nobody knows.
const CLASSIC: WindowSize = WindowSize { rows: 24, cols: 80 };

/// Whether a person sits at both ends.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Runs `exec` to its end. On a terminal, this side's is raw meanwhile.
pub(crate) fn run_in_guest(
    session: Session,
    mut exec: Exec,
    terminal: bool,
    signals: &SignalFd,
) -> Result<CommandEnd, ClientError> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let stdio = |source| ClientError::Stdio {
        what: "set up the terminal",
        source,
    };
    let _raw = if terminal {
        exec.tty = Some(window_size().unwrap_or(CLASSIC));
        stdin
            .is_terminal()
            .then(|| RawTerminal::enter(&stdin))
            .transpose()
            .map_err(stdio)?
    } else {
        None
    };
    let io = ExecIo {
        stdin: Some(stdin.as_fd()),
        stdout: stdout.as_fd(),
        stderr: stderr.as_fd(),
        signals: Some(signals),
    };
    session.exec(exec, &io)
}

/// Signals that are passed on to guests, blocked for this process.
pub(crate) fn signals() -> Result<SignalFd> {
    mvas_agent::client::block_signals().context("cannot receive signals")
}
