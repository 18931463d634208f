// SPDX-License-Identifier: GPL-2.0-only
//! SIGSYS: a system call that a thread's filter refuses. It was not done, and nothing more is:
//! the process ends.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::ptr;
use std::sync::OnceLock;

use libc::{c_int, c_void, siginfo_t};

/// The exit code: mvasvm failed.
const FAILED: c_int = 125;
/// What the kernel keeps of a thread's name, with the zero at its end.
const NAME: usize = 16;

thread_local! {
    static THREAD: Cell<[u8; NAME]> = const { Cell::new([0; NAME]) };
}

/// What the signal handler needs, made before it can be called.
struct Prepared {
    refusals: c_int,
    /// The terminal on standard input, as it was: it may be raw when the end comes.
    terminal: Option<libc::termios>,
}

static PREPARED: OnceLock<Prepared> = OnceLock::new();

/// From here on, a refused system call is written to `refusals` (the thread's name, a space, the
/// call's number, a line feed) and said on standard error, and ends the process. Once for a
/// process: later files are ignored.
pub fn handle(refusals: File) -> io::Result<()> {
    let terminal = terminal();
    PREPARED.get_or_init(|| Prepared {
        refusals: refusals.into_raw_fd(),
        terminal,
    });
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_sigsys;
    // SAFETY: zeroes are a valid value of this plain struct: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO wants, and does only what a signal
    // handler may: system calls, on memory that was made before.
    match unsafe { libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Says who the calling thread is, for when it is refused something.
pub fn name_thread() {
    let mut name = [0; NAME];
    let thread = std::thread::current();
    for (to, from) in name.iter_mut().zip(thread.name().unwrap_or("?").bytes()) {
        *to = from;
    }
    THREAD.set(name);
}

fn terminal() -> Option<libc::termios> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return None;
    }
    let mut termios = MaybeUninit::uninit();
    // SAFETY: writes a termios to where there is room for one.
    let told = unsafe { libc::tcgetattr(stdin.as_raw_fd(), termios.as_mut_ptr()) };
    // SAFETY: the call succeeded, so it is filled in.
    (told == 0).then(|| unsafe { termios.assume_init() })
}

/// The kernel raises it in the thread whose call was refused.
extern "C" fn on_sigsys(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
    /// Of siginfo.h: a seccomp filter raised it, and nobody's kill().
    const SYS_SECCOMP: c_int = 1;
    // SAFETY: the kernel gives SA_SIGINFO handlers a valid `siginfo_t`; for this code it has the
    // fields of `struct Sigsys`: an address, then the number of the system call.
    let (code, number) = unsafe {
        let fields = info.cast::<u8>().add(16 + size_of::<usize>());
        ((*info).si_code, fields.cast::<c_int>().read())
    };
    let mut line = Line::default();
    line.push(&THREAD.get());
    line.push(b" ");
    line.push_number(if code == SYS_SECCOMP { number } else { -1 });
    line.push(b"\n");
    let mut message = Line::default();
    message.push(
        b"mvasvm: internal error: the sandbox ended the VM for a system call (thread, number): ",
    );
    message.push(line.bytes());
    if let Some(prepared) = PREPARED.get() {
        line.write_to(prepared.refusals);
        if let Some(terminal) = &prepared.terminal {
            // SAFETY: reads a termios of ours.
            unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, terminal) };
        }
    }
    message.write_to(libc::STDERR_FILENO);
    // SAFETY: ends the process, whatever its other threads do.
    unsafe { libc::_exit(FAILED) };
}

/// A line that is put together without an allocator. What does not fit is left out.
struct Line {
    bytes: [u8; 160],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; 160],
            len: 0,
        }
    }
}

impl Line {
    /// Adds text up to its first zero.
    fn push(&mut self, text: &[u8]) {
        for byte in text.iter().take_while(|byte| **byte != 0) {
            if let Some(place) = self.bytes.get_mut(self.len) {
                *place = *byte;
                self.len += 1;
            }
        }
    }

    fn push_number(&mut self, number: c_int) {
        if number < 0 {
            return self.push(b"?");
        }
        if number >= 10 {
            self.push_number(number / 10);
        }
        self.push(&[b"0123456789"[usize::try_from(number % 10).unwrap_or(0)]]);
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn write_to(&self, fd: c_int) {
        let bytes = self.bytes();
        // SAFETY: reads bytes of ours. Nobody is left to care whether they were taken.
        unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_line_is_what_was_pushed_or_its_beginning(name in "[a-z]{0,200}", number in 0..c_int::MAX) {
            let mut line = Line::default();
            line.push(name.as_bytes());
            line.push(b" ");
            line.push_number(number);
            let whole = format!("{name} {number}");
            prop_assert_eq!(line.bytes(), &whole.as_bytes()[..whole.len().min(160)]);
        }
    }
}
