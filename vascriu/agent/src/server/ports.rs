// SPDX-License-Identifier: GPL-2.0-only
//! Serves on virtio-serial ports: channels that are always there, and whose other end comes
//! and goes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{Server, log};

/// Pause after a session that failed, so that a peer that talks nonsense costs little.
const AFTER_FAILURE: Duration = Duration::from_millis(20);

/// Serves all ports whose names in `/sys/class/virtio-ports` begin with `prefix`, each by a
/// thread of its own, for ever.
///
/// # Errors
/// There is no such port, or one cannot be opened.
pub fn serve_ports(server: &Server, prefix: &str) -> io::Result<()> {
    let ports = find_ports(Path::new("/sys/class/virtio-ports"), prefix)?;
    if ports.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("no virtio-serial port is named {prefix}*"),
        ));
    }
    let threads: Vec<_> = ports
        .into_iter()
        .map(|path| {
            let port = OpenOptions::new().read(true).write(true).open(path)?;
            let server = server.clone();
            thread::Builder::new()
                .name("port".into())
                .spawn(move || serve_port(&server, &port))
        })
        .collect::<io::Result<_>>()?;
    for thread in threads {
        if thread.join().is_err() {
            log("a port's thread panicked");
        }
    }
    Err(io::Error::other("all ports failed"))
}

fn serve_port(server: &Server, port: &File) {
    loop {
        if let Err(error) = wait_for_peer(port) {
            log(format!("cannot wait for a peer: {error}"));
            return;
        }
        let served = port
            .as_fd()
            .try_clone_to_owned()
            .map_err(Into::into)
            .and_then(|fd: OwnedFd| server.serve(fd));
        if let Err(error) = served {
            log(crate::chain(&error));
            thread::sleep(AFTER_FAILURE);
        }
    }
}

/// Blocks until the port has a peer. A port without one polls as hung up at once, so the wait
/// is for an edge: the driver wakes those who wait when a peer comes or goes.
fn wait_for_peer(port: &File) -> io::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let edges = EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLET;
    epoll.add(port, EpollEvent::new(edges, 0))?;
    while !connected(port) {
        match epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn connected(port: &File) -> bool {
    let mut fds = [PollFd::new(port.as_fd(), PollFlags::POLLIN)];
    match crate::protocol::poll_fds(&mut fds, PollTimeout::ZERO) {
        Ok(()) => !fds[0]
            .revents()
            .is_some_and(|events| events.contains(PollFlags::POLLHUP)),
        Err(_) => false,
    }
}

/// The device files of the ports that `sysfs` lists, by the names that the machine gave them.
fn find_ports(sysfs: &Path, prefix: &str) -> io::Result<Vec<PathBuf>> {
    let mut ports = Vec::new();
    for entry in fs::read_dir(sysfs)? {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.starts_with(prefix) {
            ports.push(Path::new("/dev").join(entry.file_name()));
        }
    }
    Ok(ports)
}
