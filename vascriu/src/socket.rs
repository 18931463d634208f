// SPDX-License-Identifier: GPL-2.0-only
//! Messages with descriptors over a SOCK_SEQPACKET socket: one `sendmsg` is one message.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag,
    SockType, UnixAddr, UnixCredentials, getsockopt, recv, recvmsg, sendmsg, socket, socketpair,
    sockopt,
};

/// Most descriptors that come with one message; CRIU sends one.
const FDS_MAX: usize = 16;

/// A message, and the descriptors that came with it.
#[derive(Debug, Default)]
pub struct Message {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its descriptors.
    pub fds: Vec<OwnedFd>,
}

/// Tries again what a signal has interrupted.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            done => return done.map_err(io::Error::from),
        }
    }
}

/// Two ends of a new connection. Whoever asks either of them for its peer is told this
/// process.
///
/// # Errors
/// The kernel's.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?)
}

fn unconnected() -> io::Result<OwnedFd> {
    let (family, kind, flags) = (
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
    );
    Ok(socket(family, kind, flags, None)?)
}

/// A connection to who listens at `path`.
///
/// # Errors
/// The kernel's.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = unconnected()?;
    retry(|| socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?))?;
    Ok(socket)
}

/// Listens at `path`, where nothing may be.
///
/// # Errors
/// The kernel's.
pub fn listen(path: &Path) -> io::Result<OwnedFd> {
    let socket = unconnected()?;
    socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    socket::listen(&socket, Backlog::MAXALLOWABLE)?;
    Ok(socket)
}

/// Waits for who connects.
///
/// # Errors
/// The kernel's.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let accepted = retry(|| socket::accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(accepted) })
}

/// The PID of the process that has made the other end; 0 where we cannot see it.
///
/// # Errors
/// It is no such socket.
pub fn peer(socket: BorrowedFd<'_>) -> io::Result<i32> {
    let peer: UnixCredentials = getsockopt(&socket, sockopt::PeerCredentials)?;
    Ok(peer.pid())
}

/// Waits for the next message and leaves it there. Empty: there will be none.
///
/// # Errors
/// The socket's.
pub fn peek(socket: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; next_len(socket, MsgFlags::empty())?];
    let flags = MsgFlags::MSG_PEEK;
    let len = retry(|| recv(socket.as_raw_fd(), &mut bytes, flags))?;
    bytes.truncate(len);
    Ok(bytes)
}

/// Waits for the next message and tells its length.
fn next_len(socket: BorrowedFd<'_>, more: MsgFlags) -> io::Result<usize> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC | more;
    retry(|| recv(socket.as_raw_fd(), &mut [], flags))
}

/// Takes the next message; none at the end of the connection.
///
/// # Errors
/// The socket's; `WouldBlock` where nothing is there and `wait` is false.
pub fn receive(socket: BorrowedFd<'_>, wait: bool) -> io::Result<Option<Message>> {
    let more = if wait {
        MsgFlags::empty()
    } else {
        MsgFlags::MSG_DONTWAIT
    };
    let len = match next_len(socket, more) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => 0,
        len => len?,
    };
    let mut message = Message {
        bytes: vec![0; len],
        fds: Vec::new(),
    };
    let mut space = nix::cmsg_space!([RawFd; FDS_MAX]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | more;
    let mut into = [IoSliceMut::new(&mut message.bytes)];
    let got = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut into, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            got => break got?,
        }
    };
    for control in got.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: the kernel has just put these descriptors into our table, for us.
            let owned = fds
                .into_iter()
                .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
            message.fds.extend(owned);
        }
    }
    let len = got.bytes;
    message.bytes.truncate(len);
    Ok((len > 0).then_some(message))
}

/// Sends a message.
///
/// # Errors
/// The socket's.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights };
    let from = [IoSlice::new(bytes)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    retry(|| sendmsg::<()>(socket.as_raw_fd(), &from, control, flags, None)).map(|_| ())
}

/// Passes a message on as it came.
///
/// # Errors
/// The socket's.
pub fn pass(socket: BorrowedFd<'_>, message: &Message) -> io::Result<()> {
    let fds: Vec<_> = message.fds.iter().map(AsFd::as_fd).collect();
    send(socket, &message.bytes, &fds)
}
