// SPDX-License-Identifier: GPL-2.0-only
//! `mvasvm forward`: TCP ports of this host that lead to servers in a guest, by its agent.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::str::FromStr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::args::ForwardArgs;
use super::vmdir::{FoundVm, Vms};
use super::{guest, note, reach};

/// How often is looked whether the VM still lives, milliseconds.
const LOOK: u16 = 500;

/// How often is looked whether a connection has ended, while no more may be opened, milliseconds.
const LOOK_FULL: u16 = 100;

/// Connections at once: a quarter of the streams that a guest can have is left to others.
const MOST: usize = 384;

/// The same for a guest in a simulated host, where each takes a channel. Others wait.
const MOST_IN_SIM: usize = 4;

/// A port here and the port there that it leads to: `[HOSTADDR:]HOSTPORT:GUESTPORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Forward {
    host: SocketAddr,
    guest: u16,
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "write HOSTPORT:GUESTPORT or HOSTADDR:HOSTPORT:GUESTPORT".to_owned();
        let (host, guest) = text.rsplit_once(':').ok_or_else(wrong)?;
        let guest = guest.parse().map_err(|_| wrong())?;
        if guest == 0 {
            return Err("a guest has no port 0".to_owned());
        }
        let host = host
            .parse()
            .map(|port: u16| (Ipv4Addr::LOCALHOST, port).into())
            .or_else(|_| host.parse())
            .map_err(|_| wrong())?;
        Ok(Self { host, guest })
    }
}

pub(super) fn run(args: &ForwardArgs) -> Result<u8> {
    let signals = guest::signals()?;
    let vm = Arc::new(Vms::open()?.running(&args.name)?);
    let listeners = args.ports.iter().map(listen);
    let listeners = listeners.collect::<Result<Vec<_>>>()?;
    // A guest that does not answer is one error now, not one for each connection.
    reach::agent(&vm)?.info()?;
    let mut out = io::stdout().lock();
    for (listener, guest) in &listeners {
        writeln!(out, "{} -> {}:{guest}", listener.local_addr()?, args.name)?;
    }
    out.flush()?;
    let most = match vm.info.sim {
        None => MOST,
        Some(_) => MOST_IN_SIM,
    };
    // Each connection has a clone of it for as long as it lives.
    let open = Arc::new(());
    loop {
        let full = Arc::strong_count(&open) > most;
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let waiting = listeners.iter().filter(|_| !full);
        fds.extend(waiting.map(|(l, _)| PollFd::new(l.as_fd(), PollFlags::POLLIN)));
        let timeout = if full { LOOK_FULL } else { LOOK };
        match poll(&mut fds, PollTimeout::from(timeout)) {
            Ok(0) if !vm.lives()? => {
                note(format!("{} has ended", args.name));
                return Ok(0);
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait for connections"),
        }
        while let Ok(Some(info)) = signals.read_signal() {
            if info.ssi_signo != u32::try_from(libc::SIGWINCH)? {
                return Ok(128 + u8::try_from(info.ssi_signo).unwrap_or(127));
            }
        }
        for (listener, guest) in listeners.iter().filter(|_| !full) {
            accept(listener, *guest, &vm, &open);
        }
    }
}

fn listen(forward: &Forward) -> Result<(TcpListener, u16)> {
    let listener = TcpListener::bind(forward.host)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .with_context(|| {
            let host = forward.host;
            format!("cannot listen on {host} (another port may be free; 0 takes any that is)")
        })?;
    Ok((listener, forward.guest))
}

/// Takes a connection, if there is one, and has a thread carry it.
fn accept(listener: &TcpListener, port: u16, vm: &Arc<FoundVm>, open: &Arc<()>) {
    let (socket, peer) = match listener.accept() {
        Ok(accepted) => accepted,
        // It is gone already, or was never there.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
        Err(error) => {
            note(format!("cannot take a connection: {error}"));
            // Out of files or memory: connections that end give some back.
            return thread::sleep(Duration::from_millis(LOOK_FULL.into()));
        }
    };
    let (vm, open) = (vm.clone(), open.clone());
    let carry = move || {
        if let Err(error) = carry(&vm, port, &socket) {
            let why = super::codes::one_line(&error);
            note(format!("{peer} -> {}:{port}: {why}", vm.info.name));
        }
        drop(open);
    };
    if let Err(error) = thread::Builder::new().name("forward".into()).spawn(carry) {
        note(format!("cannot carry the connection of {peer}: {error}"));
    }
}

fn carry(vm: &FoundVm, port: u16, socket: &TcpStream) -> Result<()> {
    let carried = reach::agent(vm).and_then(|session| Ok(session.connect(port, socket)?));
    if carried.is_err() {
        mvas_agent::client::reset(socket);
    }
    carried
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_is_from_loopback_unless_it_says_else() {
        for (text, host, guest) in [
            ("8080:80", "127.0.0.1:8080", 80),
            ("0:80", "127.0.0.1:0", 80),
            ("0.0.0.0:8080:80", "0.0.0.0:8080", 80),
            ("[::1]:8080:65535", "[::1]:8080", 65535),
        ] {
            let host = host.parse().expect("an address");
            assert_eq!(text.parse(), Ok(Forward { host, guest }), "{text}");
        }
    }

    #[test]
    fn a_forward_that_makes_no_sense_is_refused() {
        for text in [
            "",
            ":",
            "80",
            "80:",
            ":80",
            "80:0",
            "80:65536",
            "65536:80",
            "-1:80",
            "::1:80:80",
            "localhost:80:80",
            "1.2.3:80:80",
            "80:80/udp",
            "80:80:80",
        ] {
            assert!(text.parse::<Forward>().is_err(), "{text} was taken");
        }
    }
}
