// SPDX-License-Identifier: GPL-2.0-only
//! The host's Unix sockets: the one that listens, those that the guest connects to, and what
//! a client of the host says first.

use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, socket};
use thiserror::Error;

/// The longest line that a host client may write, without its end: "CONNECT 4294967295".
pub(super) const MAX_LINE: usize = 18;

/// Why the host's socket cannot be made.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Another process listens there.
    #[error("the vsock socket {} is in use by another VM", .0.display())]
    InUse(PathBuf),
    /// The host does not allow it.
    #[error("cannot listen on the vsock socket {}", path.display())]
    Bind {
        /// Its path.
        path: PathBuf,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// No more files.
    #[error("cannot watch the vsock socket")]
    Watch(#[source] io::Error),
}

/// Listens at `path`, taking the place of a socket that nobody listens on any more. Only the
/// user may connect.
pub(super) fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    let bind_error = |source| ListenError::Bind {
        path: path.to_owned(),
        source,
    };
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let metadata = std::fs::symlink_metadata(path).map_err(bind_error)?;
            if !metadata.file_type().is_socket() {
                return Err(bind_error(error));
            }
            match UnixStream::connect(path) {
                Err(dead) if dead.kind() == ErrorKind::ConnectionRefused => {}
                _ => return Err(ListenError::InUse(path.to_owned())),
            }
            std::fs::remove_file(path).map_err(bind_error)?;
            UnixListener::bind(path)
        }
        result => result,
    }
    .map_err(bind_error)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(bind_error)?;
    Ok(listener)
}

/// The port in `CONNECT <port>`.
pub(super) fn parse_connect(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?;
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Connects to the host's socket for the guest's connections to `port`, without waiting.
pub(super) fn connect(path: &Path, port: u32) -> io::Result<UnixStream> {
    let mut path = path.to_owned().into_os_string();
    path.push(format!("_{port}"));
    let address = UnixAddr::new(Path::new(&path))?;
    // Not UnixStream::connect: it would wait for a listener whose queue is full.
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    nix::sys::socket::connect(socket.as_raw_fd(), &address)?;
    Ok(UnixStream::from(socket))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::sync::Arc;

    use super::super::muxer::Muxer;
    use super::*;

    #[test]
    fn only_whole_connect_lines_name_a_port() {
        assert_eq!(parse_connect(b"CONNECT 52"), Some(52));
        assert_eq!(parse_connect(b"CONNECT 4294967295"), Some(u32::MAX));
        for line in [
            "",
            "CONNECT",
            "CONNECT ",
            "CONNECT 4294967296",
            "CONNECT +1",
            "CONNECT -1",
            "CONNECT 5 ",
            "connect 5",
            "CONNECT 5\r",
        ] {
            assert_eq!(parse_connect(line.as_bytes()), None, "{line:?}");
        }
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock.sock");
        drop(UnixListener::bind(&path).unwrap());
        let first = Muxer::new(&path, 3, Arc::default()).unwrap();
        let error = Muxer::new(&path, 3, Arc::default()).unwrap_err();
        assert!(matches!(error, ListenError::InUse(_)), "{error}");
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn something_else_at_the_path_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock.sock");
        std::fs::write(&path, "precious").unwrap();
        Muxer::new(&path, 3, Arc::default()).unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        Muxer::new(&dir.path().join("no/such/folder"), 3, Arc::default()).unwrap_err();
    }

    proptest! {
        #[test]
        fn any_line_is_parsed_or_refused(line in proptest::collection::vec(any::<u8>(), 0..MAX_LINE)) {
            if let Some(port) = parse_connect(&line) {
                let digits = std::str::from_utf8(&line[8..]).unwrap().trim_start_matches('0').to_owned();
                let port = port.to_string();
                prop_assert_eq!(port.trim_start_matches('0'), digits);
            }
        }
    }
}
