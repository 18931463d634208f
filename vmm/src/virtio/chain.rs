// SPDX-License-Identifier: GPL-2.0-only
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
    /// Length of all its buffers in bytes.
    pub fn len(&self) -> usize {
        self.readable.len() + self.writable.len()
    }

    /// Whether it has no byte at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtio_queue::desc::RawDescriptor;
    use virtio_queue::desc::split::Descriptor;
    use virtio_queue::mock::{DescriptorTable, MockSplitQueue};
    use virtio_queue::{Queue, QueueT};
    use vm_memory::Bytes;

    use super::*;
    use crate::virtio::test_utils::{INDIRECT, NEXT, WRITE};

    const HOLE: u64 = 0x10_0000;

    /// Two regions that touch, as far as the guest is concerned: host addresses may jump.
    fn memory() -> GuestMemory {
        let second = (GuestAddress(HOLE), 0x1_0000);
        GuestMemory::from_ranges(&[(GuestAddress(0), 0x10_0000), second]).unwrap()
    }

    fn chain<'m>(
        mem: &'m GuestMemory,
        table: &[(u64, u32, u16, u16)],
    ) -> Result<Chain<'m>, ChainError> {
        let table: Vec<_> = table
            .iter()
            .map(|(addr, len, flags, next)| {
                RawDescriptor::from(Descriptor::new(*addr, *len, *flags, *next))
            })
            .collect();
        let queue = MockSplitQueue::new(mem, 16);
        queue.add_desc_chains(&table, 0).unwrap();
        let mut queue: Queue = queue.create_queue().unwrap();
        Chain::new(mem, queue.pop_descriptor_chain(mem).unwrap())
    }

    #[test]
    fn readable_and_writable_parts_are_told_apart() {
        let mem = memory();
        let table = [
            (0x2000, 10, NEXT, 1),
            (0x3000, 20, NEXT | WRITE, 2),
            (0x4000, 30, WRITE, 0),
        ];
        let chain = chain(&mem, &table).unwrap();
        assert_eq!((chain.readable.len(), chain.writable.len()), (10, 50));
    }

    #[test]
    fn a_readable_descriptor_after_a_writable_one_is_refused() {
        let table = [(0x2000, 10, NEXT | WRITE, 1), (0x3000, 20, 0, 0)];
        let mem = memory();
        assert!(matches!(chain(&mem, &table), Err(ChainError::Order)));
    }

    #[test]
    fn chains_that_do_not_end_well_are_broken() {
        for table in [
            // A loop; an index outside of the table; indirect in the middle, badly.
            vec![(0x2000, 10, NEXT, 1), (0x3000, 10, NEXT, 0)],
            vec![(0x2000, 10, NEXT, 16)],
            vec![(0x2000, 10, NEXT, 1), (0x3000, 15, INDIRECT, 0)],
            vec![(0x2000, 0, INDIRECT, 0)],
            vec![(u64::MAX - 31, 32, INDIRECT, 0)],
            // More than 4 GiB in all.
            vec![(0x2000, 0xf_0000, NEXT, 1), (0x3000, u32::MAX, 0, 0)],
        ] {
            let mem = memory();
            let result = chain(&mem, &table);
            assert!(
                matches!(result, Err(ChainError::Broken)),
                "{table:x?} {result:?}"
            );
        }
    }

    #[test]
    fn an_indirect_table_longer_than_the_limit_is_refused() {
        let mem = memory();
        let table = DescriptorTable::new(&mem, GuestAddress(0x8000), 600);
        for i in 0..600 {
            let flags = if i < 599 { NEXT } else { 0 };
            let descriptor = Descriptor::new(0x2000, 1, flags, i + 1);
            table.store(i, RawDescriptor::from(descriptor)).unwrap();
        }
        let long = chain(&mem, &[(0x8000, 600 * 16, INDIRECT, 0)]);
        assert!(matches!(long, Err(ChainError::TooLong)));
    }

    #[test]
    fn buffers_partly_outside_of_memory_are_refused() {
        for (addr, len) in [
            (HOLE + 0xffff, 2),
            (HOLE + 0x1_0000, 1),
            (u64::MAX, 1),
            (0, u32::MAX),
        ] {
            let mem = memory();
            let result = chain(&mem, &[(addr, len, 0, 0)]);
            assert!(
                matches!(result, Err(ChainError::Address { .. })),
                "{addr:#x} {len}"
            );
        }
    }

    #[test]
    fn a_file_that_ends_too_early_is_an_error() {
        let mem = memory();
        let chain = chain(&mem, &[(0x2000, 100, WRITE, 0)]).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(99).unwrap();
        let error = chain.writable.read_exact_at(&file, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let error = chain.writable.read_exact_at(&file, u64::MAX).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    proptest! {
        /// However memory is cut into pieces, it is one buffer; also across two regions.
        #[test]
        fn pieces_behave_like_one_buffer(
            lens in proptest::collection::vec(0u32..300, 1..12),
            start in (HOLE - 2000)..HOLE,
            cuts in proptest::collection::vec(0usize..4000, 2),
        ) {
            let mem = memory();
            let last = lens.len() - 1;
            let mut at = start;
            let table: Vec<_> = (1u16..).zip(&lens).map(|(i, len)| {
                let entry = (at, *len, if usize::from(i) <= last { NEXT | WRITE } else { WRITE }, i);
                at += u64::from(*len);
                entry
            }).collect();
            let buffers = chain(&mem, &table).unwrap().writable;
            let total = usize::try_from(at - start).unwrap();
            prop_assert_eq!(buffers.len(), total);

            let data: Vec<u8> = (0..total).map(|i| u8::try_from(i % 251).unwrap()).collect();
            let file = tempfile::tempfile().unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &data, 7).unwrap();
            buffers.read_exact_at(&file, 7).unwrap();
            let mut seen = vec![0; total];
            mem.read_slice(&mut seen, GuestAddress(start)).unwrap();
            prop_assert_eq!(&seen, &data);

            let (first, rest) = buffers.clone().split_at(cuts[0]);
            let (second, third) = rest.split_at(cuts[1]);
            prop_assert_eq!(first.len(), cuts[0].min(total));
            let mut joined = Vec::new();
            for part in [&first, &second, &third] {
                let mut bytes = vec![0; part.len()];
                prop_assert_eq!(part.copy_to(&mut bytes), part.len());
                joined.extend(bytes);
            }
            prop_assert_eq!(&joined, &data);

            buffers.write_all_at(&file, 0).unwrap();
            let mut written = vec![0; total];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut written, 0).unwrap();
            prop_assert_eq!(&written, &data);
            prop_assert_eq!(buffers.copy_from(&vec![9; total + 5]), total);
            prop_assert_eq!(buffers.read_array::<0>(), Some([]));
            prop_assert_eq!(buffers.read_array::<5000>().is_some(), total >= 5000);
        }
    }
}
