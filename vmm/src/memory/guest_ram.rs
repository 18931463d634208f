//! Guest RAM: the file, mapped, in slots.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{GuestAddress, GuestRegionMmap, MmapRegion};

use mvas_host::{FileRange, RamFile};

use super::layout::{self, PhysBits, Placement};
use super::{GuestMemory, MemoryError};
use crate::config::MemSize;

/// How a block of guest memory relates to the file behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Guest writes go to the file.
    Shared,
    /// The guest sees the file; its writes go to fresh pages of its own (copy-on-write).
    Private,
}

impl Sharing {
    fn mmap_flag(self) -> libc::c_int {
        match self {
            Self::Shared => libc::MAP_SHARED,
            Self::Private => libc::MAP_PRIVATE,
        }
    }
}

/// All memory of a guest: a RAM file, mapped where devices and KVM find it.
///
/// The mappings are 2 MiB aligned like the guest-physical ranges, so that a huge page of
/// the file can be a huge page of the nested page tables.
#[derive(Debug)]
pub struct GuestRam {
    file: RamFile,
    ranges: Vec<Range>,
    /// `None` only while dropping.
    memory: Option<GuestMemory>,
}

#[derive(Debug)]
struct Range {
    placement: Placement,
    mapping: Arc<MmapRegion<()>>,
}

impl GuestRam {
    /// Maps `file` as a guest's memory of `mem` bytes.
    ///
    /// # Errors
    /// `mem` does not fit `phys_bits`, the file or the host's address space.
    pub fn new(file: RamFile, mem: MemSize, phys_bits: PhysBits) -> Result<Self, MemoryError> {
        if file.range().len() != mem.bytes() {
            return Err(MemoryError::FileSize {
                file: file.range().len(),
                mem: mem.bytes(),
            });
        }
        let mut ram = Self {
            file,
            ranges: Vec::new(),
            memory: None,
        };
        for placement in layout::place(mem, phys_bits)? {
            let mapping = Arc::new(map_aligned(&ram.file, placement.file)?);
            ram.ranges.push(Range { placement, mapping });
        }
        let regions = ram
            .ranges
            .iter()
            .filter_map(|r| GuestRegionMmap::with_arc(r.mapping.clone(), r.placement.gpa))
            .collect();
        ram.memory =
            Some(GuestMemory::from_regions(regions).map_err(|e| MemoryError::Layout(Box::new(e)))?);
        Ok(ram)
    }

    /// The memory as devices see it; cheap to clone, valid even after `self` is gone.
    #[allow(clippy::missing_panics_doc)] // cannot happen: set by new(), taken by drop()
    pub fn memory(&self) -> &GuestMemory {
        self.memory.as_ref().expect("guest memory lives until drop")
    }

    /// The file behind it.
    pub fn file(&self) -> &RamFile {
        &self.file
    }

    /// Gives the memory to a VM, in as few slots as KVM's limit allows.
    ///
    /// # Errors
    /// KVM refuses a slot.
    pub fn register(&self, vm: &VmFd) -> Result<(), MemoryError> {
        let slots = self.ranges.iter().flat_map(|range| {
            let first = range.placement.file.start().0;
            let base = range.mapping.as_ptr() as u64;
            let hva = move |slot: Placement| base + (slot.file.start().0 - first);
            range.placement.slots().map(move |slot| (slot, hva(slot)))
        });
        for (slot, (part, userspace_addr)) in (0u32..).zip(slots) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: part.gpa.0,
                memory_size: part.file.len(),
                userspace_addr,
            };
            // SAFETY: the range is mapped, and stays so while a `VmFd` can use it: see
            // `Drop`, which leaks a mapping that anybody but us still refers to, and
            // `Vm`, which holds a `GuestMemory`.
            unsafe { vm.set_user_memory_region(region) }.map_err(|source| MemoryError::Slot {
                slot,
                gpa: part.gpa.0,
                len: part.file.len(),
                source,
            })?;
        }
        Ok(())
    }

    /// Makes whole 2 MiB blocks of the guest, from `gpa` on, show `file` instead of what
    /// they show now. Atomic for each page, also under running vCPUs: KVM drops the
    /// nested page tables of the range and faults the new pages in.
    ///
    /// # Errors
    /// Not whole blocks, not in one range of RAM, not in the file, or the host has no
    /// room for another mapping (`vm.max_map_count`).
    pub fn remap(
        &self,
        gpa: GuestAddress,
        file: FileRange,
        sharing: Sharing,
    ) -> Result<(), MemoryError> {
        let bad_block = || MemoryError::BadBlock { gpa, file };
        let aligned = gpa.0.is_multiple_of(MemSize::BLOCK) && file.is_aligned(MemSize::BLOCK);
        if !aligned || !self.file.range().contains(file) {
            return Err(bad_block());
        }
        let (range, offset) = self
            .ranges
            .iter()
            .find_map(|range| {
                let offset = gpa.0.checked_sub(range.placement.gpa.0)?;
                let room = range.placement.file.len().checked_sub(offset)?;
                (file.len() <= room).then_some((range, offset))
            })
            .ok_or_else(bad_block)?;
        // SAFETY: `offset` and the length are inside the mapping, just checked.
        let at = unsafe { range.mapping.as_ptr().add(to_usize(offset)) };
        // SAFETY: replaces part of a mapping that we own; everybody reaches guest memory
        // by volatile accesses only and must expect its contents to change at any time.
        unsafe { map_file(&self.file, file, at, sharing) }
    }
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        self.memory = None;
        for range in self.ranges.drain(..) {
            match Arc::try_unwrap(range.mapping) {
                Ok(mapping) => {
                    // SAFETY: this was the last reference, so nobody can reach it.
                    unsafe { libc::munmap(mapping.as_ptr().cast(), mapping.size()) };
                }
                // A device or the VM still holds it: keep the mapping, it is only address
                // space once the file is gone.
                Err(_) => tracing::warn!("guest memory is still in use at the end of its VM"),
            }
        }
    }
}

/// Guest memory sizes fit `usize`: the crate is for 64-bit hosts.
fn to_usize(len: u64) -> usize {
    const { assert!(size_of::<usize>() == size_of::<u64>()) };
    #[allow(clippy::cast_possible_truncation)] // just asserted
    {
        len as usize
    }
}

/// Maps a range of the file shared, at an address that is a multiple of 2 MiB.
fn map_aligned(file: &RamFile, range: FileRange) -> Result<MmapRegion<()>, MemoryError> {
    let block = to_usize(MemSize::BLOCK);
    let len = to_usize(range.len());
    let failed = |source| MemoryError::Map {
        len: range.len(),
        source,
    };
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
        return Err(failed(io::Error::last_os_error()));
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
    mapped?;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: `at` and `len` are the mapping just made. It is unmapped only by
    // `GuestRam::drop`, and only when nobody refers to this region any more.
    unsafe { MmapRegion::build_raw(at, len, prot, libc::MAP_SHARED | libc::MAP_NORESERVE) }
        .map_err(|e: MmapRegionError| MemoryError::Layout(Box::new(e)))
}

/// Maps a range of the file at `at`.
///
/// # Safety
/// Whatever is mapped at `at` is replaced: the caller owns all of it.
unsafe fn map_file(
    file: &RamFile,
    range: FileRange,
    at: *mut u8,
    sharing: Sharing,
) -> Result<(), MemoryError> {
    let len = to_usize(range.len());
    let failed = || MemoryError::Map {
        len: range.len(),
        source: io::Error::last_os_error(),
    };
    let offset = libc::off_t::try_from(range.start().0).map_err(|_| failed())?;
    // SAFETY: the caller answers for `at`.
    let mapped = unsafe {
        libc::mmap(
            at.cast(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            sharing.mmap_flag() | libc::MAP_NORESERVE | libc::MAP_FIXED,
            file.file().as_raw_fd(),
            offset,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(failed());
    }
    for advice in [libc::MADV_HUGEPAGE, libc::MADV_DONTDUMP] {
        // SAFETY: advice on the mapping just made. Hosts without huge pages refuse the
        // first; the guest then runs on small ones.
        unsafe { libc::madvise(mapped, len, advice) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mvas_host::FileOffset;
    use vm_memory::Bytes;

    const BLOCK: u64 = MemSize::BLOCK;

    fn ram(bytes: u64) -> GuestRam {
        let file = RamFile::memfd("test", bytes).unwrap();
        GuestRam::new(file, MemSize::from_bytes(bytes).unwrap(), PhysBits(46)).unwrap()
    }

    fn blocks(start: u64, count: u64) -> FileRange {
        FileRange::new(FileOffset(start * BLOCK), count * BLOCK).unwrap()
    }

    fn read(ram: &GuestRam, gpa: u64) -> u32 {
        ram.memory().read_obj(GuestAddress(gpa)).unwrap()
    }

    fn write(ram: &GuestRam, gpa: u64, value: u32) {
        ram.memory().write_obj(value, GuestAddress(gpa)).unwrap();
    }

    #[test]
    fn memory_far_above_the_hosts_is_mapped_sparse_and_aligned() {
        let ram = ram(1 << 40);
        let last = (1 << 40) + (1 << 30) - 4;
        write(&ram, last, 7);
        assert_eq!(read(&ram, last), 7);
        assert!(ram.memory().read_obj::<u8>(GuestAddress(3 << 30)).is_err());
        assert!(ram.file().allocated_bytes().unwrap() <= BLOCK);
        for range in &ram.ranges {
            assert_eq!(range.mapping.as_ptr() as u64 % BLOCK, 0);
        }
    }

    #[test]
    fn a_privately_remapped_block_shows_the_file_and_keeps_writes_to_itself() {
        let ram = ram(32 << 20);
        write(&ram, 3 * BLOCK, 33);
        ram.remap(GuestAddress(0), blocks(3, 1), Sharing::Private)
            .unwrap();
        assert_eq!(read(&ram, 0), 33);
        write(&ram, 0, 1);
        assert_eq!((read(&ram, 0), read(&ram, 3 * BLOCK)), (1, 33));
        ram.remap(GuestAddress(0), blocks(0, 1), Sharing::Shared)
            .unwrap();
        assert_eq!(read(&ram, 0), 0);
    }

    #[test]
    fn remapping_across_the_hole_or_beyond_memory_or_unaligned_is_refused() {
        let ram = ram(4 << 30);
        let refused = |gpa, file| {
            let result = ram.remap(GuestAddress(gpa), file, Sharing::Private);
            assert!(
                matches!(result, Err(MemoryError::BadBlock { .. })),
                "{gpa:#x} {file}"
            );
        };
        refused(layout::HOLE_START - BLOCK, blocks(0, 2));
        refused(layout::HOLE_START, blocks(0, 1));
        refused(5 << 30, blocks(0, 1));
        refused(u64::MAX - BLOCK + 1, blocks(0, 1));
        refused(4096, blocks(0, 1));
        refused(0, FileRange::new(FileOffset(4096), BLOCK).unwrap());
        refused(0, FileRange::new(FileOffset(0), 4096).unwrap());
        refused(0, blocks(2047, 2));
    }

    #[test]
    fn dropping_unmaps_unless_somebody_still_holds_the_memory() {
        let held = {
            let ram = ram(32 << 20);
            write(&ram, 0, 5);
            ram.memory().clone()
        };
        assert_eq!(held.read_obj::<u32>(GuestAddress(0)).unwrap(), 5);
    }

    #[test]
    fn a_file_of_another_size_is_refused() {
        let file = RamFile::memfd("test", 64 << 20).unwrap();
        let result = GuestRam::new(file, MemSize::from_bytes(32 << 20).unwrap(), PhysBits(46));
        assert!(matches!(result, Err(MemoryError::FileSize { .. })));
    }

    #[test]
    fn memory_beyond_the_hosts_address_space_is_an_error_not_a_crash() {
        let bytes = 1 << 50;
        let file = RamFile::memfd("test", bytes).unwrap();
        let result = GuestRam::new(file, MemSize::from_bytes(bytes).unwrap(), PhysBits(52));
        assert!(matches!(result, Err(MemoryError::Map { .. })));
    }
}
