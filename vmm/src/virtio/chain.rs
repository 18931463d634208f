//! Descriptor chains, checked: what a device works on instead of raw descriptors.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use thiserror::Error;
use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemory as _, GuestMemoryError, Permissions, VolatileSlice};

use crate::memory::GuestMemory;

/// The most descriptors in a chain: more than any driver of these devices needs, and few
/// enough for one `preadv` (1024 is the kernel's limit).
pub const MAX_DESCRIPTORS: usize = 512;

/// What is wrong with a chain. The driver gets it back with length 0.
#[derive(Debug, Error)]
pub enum ChainError {
    /// A loop, an index out of the table, a bad indirect table, or nothing at all.
    #[error("the descriptor chain is broken: a loop, a bad index or a bad indirect table")]
    Broken,
    /// More than [`MAX_DESCRIPTORS`].
    #[error("the descriptor chain has more than {MAX_DESCRIPTORS} descriptors")]
    TooLong,
    /// A device-readable descriptor after a device-writable one (virtio 1.2, 2.7.4.2).
    #[error("the descriptor chain has a readable descriptor after a writable one")]
    Order,
    /// A buffer outside of guest memory.
    #[error("a buffer of {len} bytes at {addr:#x} is not all guest memory")]
    Address {
        /// Guest-physical address.
        addr: u64,
        /// Length in bytes.
        len: u32,
        /// What guest memory says.
        #[source]
        source: GuestMemoryError,
    },
}

/// A checked chain: every byte of its buffers is guest memory, readable parts come first.
#[derive(Debug)]
pub struct Chain<'m> {
    /// What the driver gives to the device.
    pub readable: Buffers<'m>,
    /// What the device may fill.
    pub writable: Buffers<'m>,
}

impl<'m> Chain<'m> {
    /// Walks a chain, reading each descriptor once.
    ///
    /// # Errors
    /// The chain breaks a rule of [`ChainError`].
    pub fn new(
        mem: &'m GuestMemory,
        descriptors: DescriptorChain<&'m GuestMemory>,
    ) -> Result<Self, ChainError> {
        let mut chain = Self {
            readable: Buffers::default(),
            writable: Buffers::default(),
        };
        // virtio-queue ends a broken chain like a whole one; the difference is that the last
        // descriptor it gave out names a next one.
        let mut complete = false;
        for (count, descriptor) in descriptors.enumerate() {
            if count == MAX_DESCRIPTORS {
                return Err(ChainError::TooLong);
            }
            complete = !descriptor.has_next();
            let (buffers, access) = if descriptor.is_write_only() {
                (&mut chain.writable, Permissions::Write)
            } else if chain.writable.slices.is_empty() {
                (&mut chain.readable, Permissions::Read)
            } else {
                return Err(ChainError::Order);
            };
            buffers.push(mem, descriptor.addr(), descriptor.len(), access)?;
        }
        if complete {
            Ok(chain)
        } else {
            Err(ChainError::Broken)
        }
    }
}

/// A sequence of pieces of guest memory, used as if it were one buffer.
#[derive(Debug, Default, Clone)]
pub struct Buffers<'m> {
    slices: Vec<VolatileSlice<'m>>,
    len: usize,
}

impl<'m> Buffers<'m> {
    fn push(
        &mut self,
        mem: &'m GuestMemory,
        addr: GuestAddress,
        len: u32,
        access: Permissions,
    ) -> Result<(), ChainError> {
        let error = |source| ChainError::Address {
            addr: addr.0,
            len,
            source,
        };
        // u32 always fits usize on x86-64.
        let count = len as usize;
        for slice in mem.get_slices(addr, count, access).map_err(error)? {
            let slice = slice.map_err(error)?;
            // virtio-queue keeps a chain below 4 GiB, so this sum cannot overflow.
            self.len += slice.len();
            self.slices.push(slice);
        }
        Ok(())
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Splits at byte `mid`, or at the end if `mid` lies behind it.
    pub fn split_at(mut self, mid: usize) -> (Self, Self) {
        let mut tail = Self::default();
        let mut left = mid.min(self.len);
        tail.len = self.len - left;
        self.len = left;
        let whole = self.slices.iter().position(|slice| {
            let inside = left < slice.len();
            if !inside {
                left -= slice.len();
            }
            inside
        });
        if let Some(at) = whole {
            tail.slices = self.slices.split_off(at);
            if left > 0
                && let Ok((head, rest)) = tail.slices[0].split_at(left)
            {
                self.slices.push(head);
                tail.slices[0] = rest;
            }
        }
        (self, tail)
    }

    /// Copies the first bytes into `to`; returns how many there were.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            done += slice.copy_to(&mut to[done..]);
        }
        done
    }

    /// Fills the first bytes from `from`; returns how many fitted.
    pub fn copy_from(&self, from: &[u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            let len = slice.len().min(from.len() - done);
            slice.copy_from(&from[done..done + len]);
            done += len;
        }
        done
    }

    /// Reads the first `N` bytes, if there are so many.
    pub fn read_array<const N: usize>(&self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.copy_to(&mut bytes) == N).then_some(bytes)
    }

    /// Fills all of it from `file` at `offset`.
    ///
    /// # Errors
    /// What the host says, or `UnexpectedEof` where the file ends too early.
    pub fn read_exact_at(&self, file: &File, offset: u64) -> io::Result<()> {
        self.transfer(file, offset, io::ErrorKind::UnexpectedEof, libc::preadv)
    }

    /// Writes all of it to `file` at `offset`.
    ///
    /// # Errors
    /// What the host says.
    pub fn write_all_at(&self, file: &File, offset: u64) -> io::Result<()> {
        self.transfer(file, offset, io::ErrorKind::WriteZero, libc::pwritev)
    }

    /// Fills its beginning from a stream with one `readv`; returns how many bytes came, 0 at
    /// the stream's end.
    ///
    /// # Errors
    /// What the host says, `WouldBlock` included.
    pub fn read_from(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let (iovecs, count) = self.iovecs();
        // SAFETY: as in `transfer`.
        let done = unsafe { libc::readv(fd.as_raw_fd(), iovecs.as_ptr(), count) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// Writes as much of it as the stream takes with one `writev`. On a socket whose peer is
    /// gone, use [`Self::send_to`], which raises no SIGPIPE.
    ///
    /// # Errors
    /// What the host says, `WouldBlock` included.
    pub fn write_to(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let (iovecs, count) = self.iovecs();
        // SAFETY: as in `transfer`.
        let done = unsafe { libc::writev(fd.as_raw_fd(), iovecs.as_ptr(), count) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// Sends as much of it as the socket takes with one `sendmsg`, without SIGPIPE.
    ///
    /// # Errors
    /// What the host says, `WouldBlock` included.
    pub fn send_to(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let (mut iovecs, _) = self.iovecs();
        // SAFETY: all zeroes is a valid msghdr: no address, no data, no control message.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = iovecs.as_mut_ptr();
        message.msg_iovlen = iovecs.len();
        // SAFETY: `message` points to `iovecs`, which lives until the call returns; the rest
        // as in `transfer`.
        let done = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    fn iovecs(&self) -> (Vec<libc::iovec>, libc::c_int) {
        let iovecs: Vec<_> = self
            .slices
            .iter()
            .map(|slice| libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            })
            .collect();
        // At most MAX_DESCRIPTORS, and one more where a descriptor spans the hole below 4 GiB.
        let count = libc::c_int::try_from(iovecs.len()).unwrap_or(libc::c_int::MAX);
        (iovecs, count)
    }

    fn transfer(
        &self,
        file: &File,
        mut offset: u64,
        on_zero: io::ErrorKind,
        call: unsafe extern "C" fn(
            libc::c_int,
            *const libc::iovec,
            libc::c_int,
            libc::off_t,
        ) -> libc::ssize_t,
    ) -> io::Result<()> {
        let mut rest = self.clone();
        while !rest.is_empty() {
            let (iovecs, count) = rest.iovecs();
            let at = libc::off_t::try_from(offset)
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            // SAFETY: each iovec is a VolatileSlice of guest memory, mapped for the lifetime
            // `'m` that `self` borrows. Guest memory is never referenced as `&[u8]`, so the
            // kernel writing to it breaks no aliasing rule, and the guest changing it
            // meanwhile is a race between the guest's own data only.
            let done = unsafe { call(file.as_raw_fd(), iovecs.as_ptr(), count, at) };
            match usize::try_from(done) {
                Ok(0) => return Err(on_zero.into()),
                Ok(done) => {
                    offset += done as u64;
                    rest = rest.split_at(done).1;
                }
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }
}
