// SPDX-License-Identifier: GPL-2.0-only
//! SIGBUS: guest memory that the host cannot provide.
//!
//! A page of the RAM file that does not exist yet is made by whoever touches it first. Where its
//! file system is full (or somebody cut the file off) there is no page: the guest's own access
//! makes KVM_RUN fail, a system call on that memory fails with `EFAULT`, and a plain access of
//! the monitor, by a device for example, is a SIGBUS that would kill it.
//!
//! Here that access gets an anonymous page of zeroes in place of the missing one and goes on, and
//! the VM is told ([`Watch`]) that its memory is no longer what the RAM file has: it must end.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

use libc::{c_int, c_void, siginfo_t};
use mvas_host::server::PAGE;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::mapping::to_usize;

/// Ranges that can be watched at once: a VM has two, and a process one VM, but for tests.
static PLACES: [Place; 512] = [const { Place::new() }; 512];

/// What was to be done about SIGBUS before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// A watched range, as the signal handler can read it: without a lock.
#[derive(Debug)]
struct Place {
    taken: AtomicBool,
    start: AtomicUsize,
    /// Written last when it is taken, first when it is given up: 0 means that it is not watched.
    len: AtomicUsize,
    event: AtomicI32,
    lost: AtomicBool,
}

impl Place {
    const fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            event: AtomicI32::new(-1),
            lost: AtomicBool::new(false),
        }
    }

    fn contains(&self, address: usize) -> bool {
        let len = self.len.load(Ordering::SeqCst);
        let offset = address.checked_sub(self.start.load(Ordering::SeqCst));
        offset.is_some_and(|offset| offset < len)
    }
}

/// Watches a range of this process's memory, mapped from a file, until it is dropped.
#[derive(Debug)]
pub struct Watch {
    place: &'static Place,
    event: EventFd,
}

impl Watch {
    /// Watches `len` bytes from `start` on, whole pages that the caller has mapped and owns.
    ///
    /// # Errors
    /// The host has no file descriptor left, or the process has too many VMs.
    pub fn new(start: *mut u8, len: usize) -> io::Result<Self> {
        handle_sigbus()?;
        let event = EventFd::new(EFD_NONBLOCK)?;
        let free = |place: &&Place| !place.taken.swap(true, Ordering::SeqCst);
        let place = PLACES
            .iter()
            .find(free)
            .ok_or_else(|| io::Error::other("too many VMs in one process"))?;
        place.lost.store(false, Ordering::SeqCst);
        place.event.store(event.as_raw_fd(), Ordering::SeqCst);
        place.start.store(start as usize, Ordering::SeqCst);
        place.len.store(len, Ordering::SeqCst);
        Ok(Self { place, event })
    }

    /// Whether a page of it was missing when it was touched.
    pub fn is_lost(&self) -> bool {
        self.place.lost.load(Ordering::SeqCst)
    }

    /// Readable once a page of it was missing.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.place.len.store(0, Ordering::SeqCst);
        self.place.event.store(-1, Ordering::SeqCst);
        self.place.taken.store(false, Ordering::SeqCst);
    }
}

/// Installs the handler, once.
fn handle_sigbus() -> io::Result<()> {
    if BEFORE.get().is_some() {
        return Ok(());
    }
    let mut before = MaybeUninit::uninit();
    // SAFETY: only asks for the present action, and writes it to `before`.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), before.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it is filled in.
    let before = unsafe { before.assume_init() };
    if BEFORE.set(before).is_err() {
        return Ok(()); // another thread does it
    }
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_sigbus;
    // SAFETY: zeroes are a valid value of this plain struct: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO wants, and does only what a signal
    // handler may: atomics and system calls.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The kernel raises it in the thread whose access failed, which goes on with that access when
/// this returns.
extern "C" fn on_sigbus(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel gives SA_SIGINFO handlers a valid `siginfo_t`, whose `si_addr` it fills
    // in for SIGBUS.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // Not a broken memory module (BUS_MCEERR_AR): zeroes would hide it.
    let missing = code == libc::BUS_ADRERR;
    let place = PLACES.iter().find(|place| place.contains(address));
    if let Some(place) = place.filter(|_| missing)
        && provide(place, address)
    {
        return;
    }
    if let Some(before) = BEFORE.get() {
        // SAFETY: puts back an action that the kernel gave us. The access fails again, and then
        // what would have happened without us does.
        unsafe { libc::sigaction(libc::SIGBUS, before, ptr::null_mut()) };
    }
}

/// Puts zeroes where a page is missing. False: the host refuses.
fn provide(place: &Place, address: usize) -> bool {
    const PAGE_LEN: usize = to_usize(PAGE);
    // Before the access can go on: who sees what it wrote sees this, too.
    place.lost.store(true, Ordering::SeqCst);
    let page = ptr::without_provenance_mut::<c_void>(address - address % PAGE_LEN);
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let errno = errno().get();
    // SAFETY: replaces one page of a mapping that its owner has given us to watch, which could
    // not be accessed. `mmap` is a plain system call, with nothing to be interrupted in here.
    let mapped = unsafe { libc::mmap(page, PAGE_LEN, prot, flags, -1, 0) };
    let one = 1u64;
    // SAFETY: writes eight bytes of ours to the owner's eventfd, open as long as it watches; if
    // it is full it has been written before.
    unsafe {
        libc::write(
            place.event.load(Ordering::SeqCst),
            (&raw const one).cast(),
            8,
        )
    };
    self::errno().set(errno);
    mapped != libc::MAP_FAILED
}

/// The thread's `errno`, which a signal handler must leave as it was.
fn errno<'a>() -> &'a Cell<c_int> {
    // SAFETY: the C library's `errno` of this thread, valid while the thread lives, and only
    // reached by this thread.
    unsafe { &*libc::__errno_location().cast::<Cell<c_int>>() }
}
