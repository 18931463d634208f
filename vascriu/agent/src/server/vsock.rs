// SPDX-License-Identifier: GPL-2.0-only
//! Serves on a vsock port of this machine.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, listen, socket,
};

use super::{Server, log};

/// More connections than this wait their turn.
const BACKLOG: i32 = 64;

/// Listens on `port` for connections from the host, for ever.
///
/// # Errors
/// This kernel has no vsock, or the port is taken.
pub fn serve_vsock(server: &Server, port: u32) -> io::Result<()> {
    let listener = socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    bind(
        listener.as_raw_fd(),
        &VsockAddr::new(libc::VMADDR_CID_ANY, port),
    )?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    loop {
        match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Ok(fd) => {
                // SAFETY: accept just gave us this descriptor, nobody else knows it.
                let connection = unsafe { OwnedFd::from_raw_fd(fd) };
                let server = server.clone();
                let serve = move || {
                    if let Err(error) = server.serve(connection) {
                        log(crate::chain(&error));
                    }
                };
                if let Err(error) = thread::Builder::new().name("session".into()).spawn(serve) {
                    log(format!("cannot serve a connection: {error}"));
                }
            }
            Err(nix::errno::Errno::EINTR | nix::errno::Errno::ECONNABORTED) => {}
            Err(error) => {
                // Out of files or memory: sessions that end give some back.
                log(format!("cannot accept a connection: {error}"));
                thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    }
}
