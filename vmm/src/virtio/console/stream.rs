// SPDX-License-Identifier: GPL-2.0-only
//! The host's side of a console: files, pipes, sockets or terminals that must not block the
//! event loop.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// The device number of `/dev/ptmx`, every terminal's master side.
const PTMX: u64 = libc::makedev(5, 2);

/// Makes reads and writes of `fd` not wait, without changing it for other processes that have
/// the same terminal or pipe (a shell, above all): those are opened once more. Regular files
/// never wait for long and stay as they are.
///
/// # Errors
/// The file cannot be looked at.
pub fn non_blocking(fd: OwnedFd) -> io::Result<File> {
    let file = File::from(fd);
    let metadata = file.metadata()?;
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_block_device() || kind.is_dir() {
        return Ok(file);
    }
    let flags = OFlag::from_bits_retain(fcntl(file.as_fd(), FcntlArg::F_GETFL)?);
    if flags.contains(OFlag::O_NONBLOCK) {
        return Ok(file);
    }
    // A socket cannot be opened again, and a master opened again is another terminal.
    if !kind.is_socket() && metadata.rdev() != PTMX {
        let access = flags & OFlag::O_ACCMODE;
        let again = OpenOptions::new()
            .read(access != OFlag::O_WRONLY)
            .write(access != OFlag::O_RDONLY)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        if let Ok(again) = again {
            return Ok(again);
        }
        // Another user's terminal, after `su`: share its flags rather than block.
    }
    fcntl(file.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(file)
}

/// A terminal's size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WindowSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// The size of the terminal that `file` is, if it is one.
pub fn window_size(file: &File) -> Option<WindowSize> {
    // SAFETY: all zeroes is a valid winsize.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: the request writes a winsize, which `size` is.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    (result == 0).then_some(WindowSize {
        columns: size.ws_col,
        rows: size.ws_row,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_pipe_is_made_non_blocking_for_us_alone() {
        let (reader, _writer) = io::pipe().unwrap();
        let shared = reader.try_clone().unwrap();
        let mut ours = non_blocking(OwnedFd::from(reader)).unwrap();
        let error = ours.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let flags = fcntl(shared.as_fd(), FcntlArg::F_GETFL).unwrap();
        assert_eq!(flags & libc::O_NONBLOCK, 0);
    }

    #[test]
    fn a_socket_is_made_non_blocking() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut ours = non_blocking(OwnedFd::from(ours)).unwrap();
        let error = ours.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn both_sides_of_a_terminal_stay_themselves() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let mut slave = non_blocking(pty.slave).unwrap();
        let mut master = non_blocking(pty.master).unwrap();
        io::Write::write_all(&mut slave, b"x").unwrap();
        let mut byte = [0];
        master.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        assert_eq!(
            master.read(&mut byte).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    }

    #[test]
    fn only_terminals_have_a_size() {
        assert_eq!(window_size(&File::open("/dev/null").unwrap()), None);
        let size = nix::pty::Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = nix::pty::openpty(&size, None).unwrap();
        let expected = WindowSize {
            columns: 80,
            rows: 24,
        };
        assert_eq!(window_size(&File::from(pty.slave)), Some(expected));
    }
}
