// SPDX-License-Identifier: GPL-2.0-only
//! Opening `/dev/vas` from where runc puts CRIU.
//!
//! For a restore runc moves CRIU into the container's cgroup, whose device filter
//! knows nothing of `/dev/vas`. The filter is applied by cgroup, at the open; so a
//! child that shares our descriptors leaves the cgroup and opens the device.

use std::ffi::{CStr, c_int};
use std::os::fd::{AsRawFd, OwnedFd};

use vascriu::device::{Error, Session};

/// The lists of processes of the root groups: cgroup v2, and v1's device filter.
const ROOT_GROUPS: [&CStr; 2] = [
    c"/sys/fs/cgroup/cgroup.procs",
    c"/sys/fs/cgroup/devices/cgroup.procs",
];

/// Opens a session, past a device filter that a container has put on us.
///
/// # Errors
/// As [`Session::open`].
pub fn open() -> Result<Session, Error> {
    match Session::open() {
        Err(Error::NoRights(e)) => match open_in_root_group() {
            Some(fd) => Session::adopt(fd),
            None => Err(Error::NoRights(e)),
        },
        done => done,
    }
}

fn open_in_root_group() -> Option<OwnedFd> {
    // The child's open replaces this file, so its number is known before.
    let place = std::fs::File::open("/dev/null").ok()?;
    let flags = libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: clone without CLONE_VM and with no stack is fork, with the table of
    // descriptors shared. CRIU has one thread, and the child only makes system
    // calls and ends.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        0 => {
            let opened = enter_and_open(place.as_raw_fd());
            // SAFETY: ends the child without any of the parent's clean-up.
            unsafe { libc::_exit(c_int::from(!opened)) }
        }
        child if child > 0 => {
            let child = libc::pid_t::try_from(child).ok()?;
            let mut status = 0;
            // SAFETY: `status` is a live int.
            let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
            (waited == child && status == 0).then(|| place.into())
        }
        _ => None,
    }
}

/// In the child: leaves the cgroup, and opens the device in place of `fd`.
fn enter_and_open(fd: c_int) -> bool {
    for group in ROOT_GROUPS {
        // SAFETY: a NUL-terminated path, and one byte of a live buffer.
        unsafe {
            let procs = libc::open(group.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if procs >= 0 {
                libc::write(procs, c"0".as_ptr().cast(), 1);
                libc::close(procs);
            }
        }
    }
    // SAFETY: a NUL-terminated path; dup3 replaces a descriptor that is ours.
    unsafe {
        let device = libc::open(c"/dev/vas".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        if device < 0 {
            return false;
        }
        let moved = libc::dup3(device, fd, libc::O_CLOEXEC);
        libc::close(device);
        moved == fd
    }
}
