// SPDX-License-Identifier: GPL-2.0-only
//! A CRIU that is killed when it has opened the last gate for the restored tasks, and whose
//! hook for us has not been called yet, would leave them without memory: the kernel lets a
//! dead tracer's tasks run on. So they are traced with `PTRACE_O_EXITKILL`: the kernel kills
//! them with CRIU.

use std::ffi::{c_int, c_long, c_void};

use crate::imports;

/// Stands in for CRIU's `ptrace`, which is variadic: on x86-64 that takes pointers
/// and integers in the same registers as these.
unsafe extern "C" fn ptrace(
    request: c_int,
    pid: libc::pid_t,
    addr: *mut c_void,
    data: *mut c_void,
) -> c_long {
    let with_options = [libc::PTRACE_SEIZE, libc::PTRACE_SETOPTIONS];
    let options = libc::PTRACE_O_EXITKILL as usize;
    let data = if with_options.iter().any(|&r| r.cast_signed() == request) {
        data.map_addr(|d| d | options)
    } else {
        data
    };
    // SAFETY: what CRIU asked for, with one option more.
    unsafe { libc::ptrace(request.cast_unsigned(), pid, addr, data) }
}

/// Guards the restore that has begun.
///
/// # Errors
/// This CRIU cannot be guarded.
pub fn install() -> Result<(), imports::Error> {
    // SAFETY: it has the signature of what it stands in for.
    unsafe { imports::divert(c"ptrace", ptrace as *const c_void) }
}
