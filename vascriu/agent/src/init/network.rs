// SPDX-License-Identifier: GPL-2.0-only
//! The loopback interface: the only network of the machine.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Brings `lo` up; the kernel then gives it its addresses.
///
/// # Errors
/// There is no such interface, or the kernel refuses.
pub fn bring_up_loopback() -> io::Result<()> {
    let control = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: all-zero bytes are a valid ifreq, a C struct of integers and unions of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = (*from).cast_signed();
    }
    // SAFETY: SIOCGIFFLAGS reads the name of and writes the flags into the ifreq given, which
    // lives on our stack; the kernel fills the union's member `ifru_flags`.
    unsafe {
        if libc::ioctl(control.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) < 0 {
            return Err(io::Error::last_os_error());
        }
        let up = i16::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or_default();
        request.ifr_ifru.ifru_flags |= up;
        if libc::ioctl(control.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
