// SPDX-License-Identifier: GPL-2.0-only
//! Parts of files in this process's address space.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use mvas_host::server::{BLOCK, PAGE, Sharing};
use mvas_host::{FileOffset, FileRange};

/// Guest memory sizes fit `usize`: the crate is for 64-bit hosts.
pub const fn to_usize(len: u64) -> usize {
    const { assert!(size_of::<usize>() == size_of::<u64>()) };
    #[allow(clippy::cast_possible_truncation)] // just asserted
    {
        len as usize
    }
}

/// Whether every page of a range of a file is in memory; hosts before 6.5 do not tell.
pub fn has_all(file: &File, range: FileRange) -> bool {
    /// Of all architectures; not in libc yet.
    const SYS_CACHESTAT: libc::c_long = 451;
    // struct cachestat_range and struct cachestat of <linux/mman.h>.
    let asked = [range.start().0, range.len()];
    let mut told = [0u64; 5];
    // SAFETY: reads and writes the two structs, which live until it returns.
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            asked.as_ptr(),
            told.as_mut_ptr(),
            0u32,
        )
    };
    // Its first field: pages in the cache.
    result == 0 && told[0] >= range.len() / PAGE
}

/// Gets memory for a range of a file that lies in one of its blocks, in huge pages where it has
/// them.
pub fn allocate(file: &File, range: FileRange) -> io::Result<()> {
    let start = range.start().0;
    let block = FileRange::new(FileOffset(start - start % BLOCK), BLOCK)
        .filter(|block| block.contains(range))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not in one block"))?;
    // Mapped, because `fallocate` makes no huge pages where they are only advised.
    let mapped = map_aligned(file, block)?;
    // SAFETY: inside the mapping just made.
    let allocated = unsafe { provide(mapped.add(to_usize(start % BLOCK)), to_usize(range.len())) };
    // SAFETY: the mapping just made, which nobody else knows.
    unsafe { libc::munmap(mapped.cast(), to_usize(BLOCK)) };
    allocated
}

/// Gets memory for a range of a mapping, so that writing to it cannot fail for want of it.
///
/// # Safety
/// The range is mapped for writing.
pub unsafe fn provide(at: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: advice on memory that the caller answers for; its contents stay.
    match unsafe { libc::madvise(at.cast(), len, libc::MADV_POPULATE_WRITE) } {
        0 => Ok(()),
        _ => Err(no_memory(io::Error::last_os_error())),
    }
}

/// Where the kernel finds a page missing, and no memory for it, it says `EFAULT` for what would
/// be SIGBUS in user space: the file system is full.
pub fn no_memory(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EFAULT) => io::Error::from_raw_os_error(libc::ENOSPC),
        _ => error,
    }
}

/// Writes pages of memory to a file, one after another from `to` on. By system calls: where memory
/// is missing and cannot be had, that is an error and no signal.
///
/// # Safety
/// The pages are mapped; what they hold may change meanwhile.
pub unsafe fn write_pages(file: &File, pages: &[*mut u8], to: FileOffset) -> io::Result<()> {
    let vector = |page: &*mut u8| libc::iovec {
        iov_base: page.cast(),
        iov_len: to_usize(PAGE),
    };
    let pages: Vec<_> = pages.iter().map(vector).collect();
    let mut done = 0;
    while done < pages.len() {
        let left = &pages[done..];
        // The kernel takes 1024 of them.
        let count = libc::c_int::try_from(left.len().min(1024)).map_err(io::Error::other)?;
        let offset = libc::off_t::try_from(to.0 + done as u64 * PAGE).map_err(io::Error::other)?;
        // SAFETY: only reads the pages, which the caller answers for.
        let written = unsafe { libc::pwritev(file.as_raw_fd(), left.as_ptr(), count, offset) };
        match usize::try_from(written).map(|bytes| bytes / to_usize(PAGE)) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(whole) => done += whole,
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(no_memory(e)),
            },
        }
    }
    Ok(())
}

/// Maps a range of a file shared, at an address that is a multiple of 2 MiB.
pub fn map_aligned(file: &File, range: FileRange) -> io::Result<*mut u8> {
    let block = to_usize(BLOCK);
    let len = to_usize(range.len());
    let room = len + block;
    // SAFETY: a new inaccessible mapping wherever the kernel likes; it touches nothing else.
    let reserved = unsafe {
        libc::mmap(
            ptr::null_mut(),
            room,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if reserved == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let reserved = reserved.cast::<u8>();
    let skip = reserved.align_offset(block);
    // SAFETY: `skip` is less than a block, so `len` bytes from there are in the reservation.
    let at = unsafe { reserved.add(skip) };
    // SAFETY: replaces `len` bytes of the reservation, which only we know of.
    let mapped = unsafe { map_file(file, range, at, Sharing::Shared) };
    // SAFETY: gives back what is left of the reservation, or all of it after a failure.
    unsafe {
        if mapped.is_err() {
            libc::munmap(reserved.cast(), room);
        } else {
            if skip > 0 {
                libc::munmap(reserved.cast(), skip);
            }
            libc::munmap(at.add(len).cast(), block - skip);
        }
    }
    mapped.map(|()| at)
}

/// Maps a range of the file at `at`.
///
/// # Safety
/// Whatever is mapped at `at` is replaced: the caller owns all of it.
pub unsafe fn map_file(
    file: &File,
    range: FileRange,
    at: *mut u8,
    sharing: Sharing,
) -> io::Result<()> {
    let len = to_usize(range.len());
    let offset = libc::off_t::try_from(range.start().0)
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let sharing = match sharing {
        Sharing::Shared => libc::MAP_SHARED,
        Sharing::Private => libc::MAP_PRIVATE,
    };
    // SAFETY: the caller answers for `at`.
    let mapped = unsafe {
        libc::mmap(
            at.cast(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            sharing | libc::MAP_NORESERVE | libc::MAP_FIXED,
            file.as_raw_fd(),
            offset,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    for advice in [libc::MADV_HUGEPAGE, libc::MADV_DONTDUMP] {
        // SAFETY: advice on the mapping just made. Hosts without huge pages refuse the
        // first; the guest then runs on small ones.
        unsafe { libc::madvise(mapped, len, advice) };
    }
    Ok(())
}
