// SPDX-License-Identifier: GPL-2.0-only
//! The way to the agent of a VM: its vsock socket, or a relay in the simulated host that it
//! runs in.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mvas_agent::client::{ClientError, ExecIo, Session};
use mvas_agent::protocol::{CommandEnd, Exec, VSOCK_PORT};
use mvasvm::config::VmName;

use super::guest;
use super::vmdir::{FoundVm, Vms};
use crate::sim::channels::{Channel, Channels};
use crate::sim::init::MVASVM;

/// What a running guest gets to answer: it may be busy, on a simulated host very busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts a session with the agent of a VM.
pub(super) fn agent(vm: &FoundVm) -> Result<Session> {
    match &vm.info.sim {
        None => Session::connect_vsock(&vm.vsock(), VSOCK_PORT, PATIENCE),
        Some(sim) => Session::start(through(sim, &vm.info.name)?, PATIENCE),
    }
    .with_context(|| format!("the agent of {} does not answer", vm.info.name))
}

/// A free channel of a simulated host.
pub(super) fn channel(sim: &Path) -> Result<Channel> {
    match Channels::in_dir(sim).try_open(PATIENCE)? {
        Some(channel) => Ok(channel),
        None => bail!("the simulated host does not answer, or all of its channels are in use"),
    }
}

/// Runs `mvasvm WORDS` in a simulated host, with this process's outputs and signals.
pub(super) fn run_there(sim: &Path, words: Vec<String>) -> Result<u8> {
    let signals = guest::signals()?;
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let io = ExecIo {
        stdin: None,
        stdout: stdout.as_fd(),
        stderr: stderr.as_fd(),
        signals: Some(&signals),
    };
    let argv = std::iter::once(MVASVM.to_owned()).chain(words);
    let end = channel(sim)?.with(|session| session.exec(Exec::new(argv), &io))?;
    Ok(end.exit_code())
}

/// A stream to the agent of a VM in a simulated host: `mvasvm relay` there is its other end.
fn through(sim: &Path, name: &str) -> Result<OwnedFd, ClientError> {
    let stdio = |source| ClientError::Stdio {
        what: "reach the simulated host",
        source,
    };
    let channel = channel(sim).map_err(|e| stdio(io::Error::other(format!("{e:#}"))))?;
    let (ours, theirs) = UnixStream::pair().map_err(stdio)?;
    let exec = Exec::new([MVASVM, "relay", name]);
    thread::spawn(move || {
        let stderr = io::stderr();
        let io = ExecIo {
            stdin: Some(theirs.as_fd()),
            stdout: theirs.as_fd(),
            stderr: stderr.as_fd(),
            signals: None,
        };
        let ended = channel.with(|session| session.exec(exec, &io));
        match ended {
            Ok(CommandEnd::Code(0)) => {}
            Ok(end) => tracing::debug!("the relay ended: {end}"),
            Err(error) => tracing::debug!("the relay failed: {error}"),
        }
        // The session over it may wait for an answer that will not come.
        let _ = theirs.shutdown(Shutdown::Both);
    });
    Ok(ours.into())
}

/// `mvasvm relay`: bytes between standard input and output and the agent, until one of them
/// ends.
pub(super) fn relay(name: &VmName) -> Result<u8> {
    let vm = Vms::open()?.running(name)?;
    let stream = mvas_agent::client::vsock_stream(&vm.vsock(), VSOCK_PORT, PATIENCE)?;
    let mut to_guest = stream.try_clone()?;
    thread::spawn(move || {
        let _ = pump(&mut io::stdin().lock(), &mut to_guest);
        let _ = to_guest.shutdown(Shutdown::Both);
    });
    pump(&mut &stream, &mut io::stdout().lock()).context("the connection to the guest")?;
    Ok(0)
}

/// Copies, and hands on every piece at once.
fn pump(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                to.write_all(&buffer[..n])?;
                to.flush()?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
