// SPDX-License-Identifier: GPL-2.0-only
//! What a guest that broke out of its device would try.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::ptr;

use nix::fcntl::{FallocateFlags, fallocate};

use super::{Attempt, Place, work};

/// So many of the first are tried without a sandbox, too.
pub const HARMLESS: usize = 8;

pub const ALL: &[Attempt] = &[
    ("read", |place| errno(File::open(place.foreign("file")))),
    ("overwrite", |place| {
        errno(OpenOptions::new().write(true).open(place.foreign("file")))
    }),
    ("make", |place| errno(File::create(place.foreign("new")))),
    ("tcp", |_| socket(libc::AF_INET)),
    ("netlink", |_| socket(libc::AF_NETLINK)),
    ("unix", |place| {
        // Nobody listens in the sandbox, for that is refused as well: whoever could connect
        // is told that nobody is there.
        let path = place.foreign("socket");
        match UnixStream::connect(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => errno(other),
        }
    }),
    ("new-code", |_| {
        let prot = libc::PROT_READ | libc::PROT_EXEC;
        // SAFETY: a new mapping, which nobody uses.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                4096,
                prot,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        answer(if at == libc::MAP_FAILED { -1 } else { 0 })
    }),
    ("remove", |place| {
        errno(fs::remove_file(place.foreign("file")))
    }),
    ("vsock", |_| socket(libc::AF_VSOCK)),
    ("exec", |place| {
        let program = program(place);
        let arguments = [program.as_ptr(), ptr::null()];
        // SAFETY: the path and the lists end with zeroes, and live until it returns.
        answer(unsafe { libc::execv(program.as_ptr(), arguments.as_ptr()) })
    }),
    ("execveat", |place| {
        let program = program(place);
        let arguments = [program.as_ptr(), ptr::null()];
        // SAFETY: as above.
        answer(unsafe {
            libc::syscall(
                libc::SYS_execveat,
                libc::AT_FDCWD,
                program.as_ptr(),
                arguments.as_ptr(),
                ptr::null::<*const libc::c_char>(),
                0,
            )
        })
    }),
    ("ptrace", |_| {
        let nothing = ptr::null_mut::<libc::c_void>();
        // SAFETY: touches no memory of ours.
        answer(unsafe { libc::ptrace(libc::PTRACE_SEIZE, 1, nothing, nothing) })
    }),
    ("peek", |_| {
        let mut byte = 0u8;
        let to = libc::iovec {
            iov_base: (&raw mut byte).cast(),
            iov_len: 1,
        };
        // SAFETY: reads another process's memory, if it can, to a byte of ours.
        let read = unsafe { libc::process_vm_readv(1, &raw const to, 1, &raw const to, 1, 0) };
        answer(i64::try_from(read).unwrap())
    }),
    ("kill", |_| {
        // SAFETY: no signal, only whether it could be sent.
        answer(unsafe { libc::kill(1, 0) })
    }),
    ("tgkill", |_| {
        // SAFETY: as above.
        answer(unsafe { libc::syscall(libc::SYS_tgkill, 1, 1, 0) })
    }),
    ("own", |_| {
        // SAFETY: touches no memory.
        answer(unsafe { libc::fcntl(0, libc::F_SETOWN, 1) })
    }),
    ("fork", |_| {
        // SAFETY: a child, if it came to that, would end at once.
        let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        if child == 0 {
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) };
        }
        answer(child)
    }),
    ("data-as-code", |_| {
        let mut memory = vec![0u8; 8192];
        let page = memory.as_mut_ptr().map_addr(|at| at.next_multiple_of(4096));
        let prot = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        // SAFETY: a page of ours, which stays readable and writable.
        answer(unsafe { libc::mprotect(page.cast(), 4096, prot) })
    }),
    ("io_uring", |_| {
        let mut parameters = [0u8; 120];
        // SAFETY: writes its parameters, which are of this size.
        answer(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) })
    }),
    ("bpf", |_| {
        // SAFETY: a command that does not exist, without arguments.
        answer(unsafe { libc::syscall(libc::SYS_bpf, -1, ptr::null::<u8>(), 0) })
    }),
    ("namespace", |_| {
        // SAFETY: touches no memory.
        answer(unsafe { libc::unshare(libc::CLONE_NEWUSER) })
    }),
    ("mount", |_| {
        let none = ptr::null();
        // SAFETY: nothing is named.
        answer(unsafe { libc::mount(none, none, none, 0, none.cast()) })
    }),
    ("handler", |_| {
        // SAFETY: zeroes are a valid action: the default.
        let action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: reads the action.
        answer(unsafe { libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) })
    }),
    ("typing", |_| {
        let byte = b'x';
        // SAFETY: reads one byte.
        answer(unsafe { libc::ioctl(0, libc::TIOCSTI, &raw const byte) })
    }),
    ("grow", |_| {
        let image = work::PREPARED.get().unwrap().1.run.ram();
        fallocate(image.file(), FallocateFlags::empty(), 0, 4096).map_err(|e| e as i32)
    }),
    ("listen", |place| {
        errno(UnixListener::bind(place.foreign("socket")))
    }),
];

fn program(place: &Place) -> CString {
    CString::new(place.foreign("program").as_os_str().as_bytes()).unwrap()
}

fn socket(family: i32) -> Result<(), i32> {
    // SAFETY: touches no memory.
    answer(unsafe { libc::socket(family, libc::SOCK_STREAM, 0) })
        // Netlink has no streams: it was not the sandbox that refused.
        .or_else(|e| {
            if e == libc::ESOCKTNOSUPPORT {
                Ok(())
            } else {
                Err(e)
            }
        })
}

fn errno<T>(result: io::Result<T>) -> Result<(), i32> {
    result.map(drop).map_err(|e| e.raw_os_error().unwrap_or(99))
}

fn answer(result: impl Into<i64>) -> Result<(), i32> {
    match result.into() {
        -1 => errno::<()>(Err(io::Error::last_os_error())),
        _ => Ok(()),
    }
}
