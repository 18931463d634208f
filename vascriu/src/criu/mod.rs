// SPDX-License-Identifier: GPL-2.0-only
//! Running CRIU: what it is told, which one it is, what it leaves.

pub mod options;
pub mod order;
pub mod orphans;
pub mod report;
pub mod rescue;
pub mod run;
pub mod settle;
pub mod stats;
pub mod stuck;
pub mod version;
pub mod work;

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// A file in memory, which children inherit.
///
/// # Errors
/// The kernel's.
pub fn memory_file(name: &CStr) -> io::Result<File> {
    // SAFETY: a NUL-terminated string. Without MFD_CLOEXEC: children inherit it.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}
