// SPDX-License-Identifier: GPL-2.0-only
//! Guest RAM: the file, mapped, in slots, and remapped under running vCPUs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend as _, GuestRegionMmap, MmapRegion, VolatileSlice,
};
use vmm_sys_util::eventfd::EventFd;

use mvas_host::server::{BLOCK, GuestBlock, GuestMapping, GuestPage, PAGE, RamRange, Sharing};
use mvas_host::store::StoreRun;
use mvas_host::{FileOffset, FileRange, RamFile};

use super::bus_error::Watch;
use super::layout::{self, PhysBits, Placement};
use super::mapping::{allocate, has_all, map_aligned, map_file, provide, to_usize, write_pages};
use super::{GuestMemory, MemoryError};
use crate::config::MemSize;

const _: () = assert!(
    BLOCK == MemSize::BLOCK,
    "the unit of memory is the unit of remapping"
);

/// All memory of a guest: a RAM file, mapped where devices and KVM find it.
///
/// The mappings are 2 MiB aligned like the guest-physical ranges, so that a huge page of
/// the file can be a huge page of the nested page tables.
#[derive(Debug)]
pub struct GuestRam {
    ranges: Vec<Range>,
    /// `None` only while dropping.
    memory: Option<GuestMemory>,
    /// What this process's pages are.
    pagemap: File,
    /// Ends when nothing of the memory is mapped any more.
    run: Option<StoreRun>,
}

#[derive(Debug)]
struct Range {
    placement: Placement,
    mapping: Arc<MmapRegion<()>>,
    watch: Watch,
}

impl GuestRam {
    /// Maps `file` as a guest's memory of `mem` bytes.
    ///
    /// # Errors
    /// `mem` does not fit `phys_bits`, the file or the host's address space.
    pub fn new(file: &RamFile, mem: MemSize, phys_bits: PhysBits) -> Result<Self, MemoryError> {
        if file.range().len() != mem.bytes() {
            return Err(MemoryError::FileSize {
                file: file.range().len(),
                mem: mem.bytes(),
            });
        }
        let pagemap = File::open("/proc/self/pagemap").map_err(MemoryError::Pagemap)?;
        let mut ram = Self {
            ranges: Vec::new(),
            memory: None,
            pagemap,
            run: None,
        };
        for placement in layout::place(mem, phys_bits)? {
            let mapping = Arc::new(map_range(file.file(), placement.file)?);
            let watch = Watch::new(mapping.as_ptr(), mapping.size()).map_err(MemoryError::Watch)?;
            ram.ranges.push(Range {
                placement,
                mapping,
                watch,
            });
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

    /// The same for a run in the snapshot store, which does not end before the memory is unmapped.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of_run(run: StoreRun, mem: MemSize, phys_bits: PhysBits) -> Result<Self, MemoryError> {
        let mut ram = Self::new(run.ram(), mem, phys_bits)?;
        ram.run = Some(run);
        Ok(ram)
    }

    /// The run in the store whose memory this is.
    pub fn run(&self) -> Option<&StoreRun> {
        self.run.as_ref()
    }

    /// The memory as devices see it; cheap to clone, valid even after `self` is gone.
    #[allow(clippy::missing_panics_doc)] // cannot happen: set by new(), taken by drop()
    pub fn memory(&self) -> &GuestMemory {
        self.memory.as_ref().expect("guest memory lives until drop")
    }

    /// Where RAM is, in blocks.
    pub fn blocks(&self) -> Vec<RamRange> {
        let blocks = |range: &Range| RamRange {
            first: GuestBlock(range.placement.gpa.0 / BLOCK),
            blocks: range.placement.file.len() / BLOCK,
            home: range.placement.file.start().0 / BLOCK,
        };
        self.ranges.iter().map(blocks).collect()
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

    /// Events that become readable once memory is lost ([`GuestMapping::is_lost`]).
    pub fn lost_events(&self) -> impl Iterator<Item = &EventFd> {
        self.ranges.iter().map(|range| range.watch.event())
    }

    /// Where `len` bytes from `gpa` on, all in one range of RAM, are mapped.
    fn hva(&self, gpa: u64, len: u64) -> io::Result<*mut u8> {
        self.ranges
            .iter()
            .find_map(|range| {
                let offset = gpa.checked_sub(range.placement.gpa.0)?;
                let room = range.placement.file.len().checked_sub(offset)?;
                // SAFETY: `offset` and `len` are inside the mapping, just checked.
                (len <= room).then(|| unsafe { range.mapping.as_ptr().add(to_usize(offset)) })
            })
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not in one range of RAM"))
    }

    fn slice(&self, gpa: u64, len: u64) -> io::Result<VolatileSlice<'_>> {
        self.memory()
            .get_slice(GuestAddress(gpa), to_usize(len))
            .map_err(io::Error::other)
    }
}

impl GuestMapping for GuestRam {
    /// KVM's MMU notifier drops the nested page tables of the range, and the next access
    /// faults the new pages in.
    fn remap(
        &self,
        at: GuestBlock,
        file: &File,
        range: FileRange,
        sharing: Sharing,
    ) -> io::Result<()> {
        // Beyond the end of a file there would be SIGBUS instead of memory.
        if !range.is_aligned(BLOCK) || range.end().0 > file.metadata()?.len() {
            let message = "not whole blocks of the file";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let hva = self.hva(at.gpa(), range.len())?;
        // SAFETY: replaces part of a mapping that we own; everybody reaches guest memory
        // by volatile accesses only and must expect its contents to change at any time.
        unsafe { map_file(file, range, hva, sharing) }
    }

    /// From the kernel's page map: a page that is there, or swapped, and not the file's
    /// (Documentation/admin-guide/mm/pagemap.rst).
    fn is_written(&self, block: GuestBlock) -> io::Result<bool> {
        const PRESENT: u64 = 1 << 63;
        const SWAPPED: u64 = 1 << 62;
        const OF_FILE: u64 = 1 << 61;
        let mut entries = [0; to_usize(BLOCK / PAGE * 8)];
        let first = self.hva(block.gpa(), BLOCK)? as u64 / PAGE;
        self.pagemap.read_exact_at(&mut entries, first * 8)?;
        let (entries, _) = entries.as_chunks::<8>();
        Ok(entries.iter().any(|entry| {
            let entry = u64::from_ne_bytes(*entry);
            entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0
        }))
    }

    fn copy_out(&self, pages: &[GuestPage], file: &File, to: FileOffset) -> io::Result<()> {
        let Some(range) = FileRange::new(to, pages.len() as u64 * PAGE) else {
            return Ok(());
        };
        allocate(file, range)?;
        let pages = pages.iter().map(|page| self.hva(page.gpa(), PAGE));
        let pages: Vec<_> = pages.collect::<io::Result<_>>()?;
        // SAFETY: they are guest memory, mapped as long as `self` lives.
        unsafe { write_pages(file, &pages, to) }
    }

    fn fill(&self, block: GuestBlock, from: Option<(&File, FileOffset)>) -> io::Result<()> {
        let to = self.slice(block.gpa(), BLOCK)?;
        // SAFETY: the block is mapped for writing.
        unsafe { provide(self.hva(block.gpa(), BLOCK)?, to_usize(BLOCK))? };
        let mut page = [0; to_usize(PAGE)];
        for at in (0..BLOCK).step_by(page.len()) {
            if let Some((file, from)) = from {
                file.read_exact_at(&mut page, from.0 + at)?;
            }
            to.write_slice(&page, to_usize(at))
                .map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Only blocks of which the file has every page: reading a hole would fill it.
    fn populate(&self, at: GuestBlock, file: &File, range: FileRange) {
        let Ok(hva) = self.hva(at.gpa(), range.len()) else {
            return;
        };
        let blocks: Vec<_> = range.chunks(BLOCK).map(|b| (has_all(file, b), b)).collect();
        for whole in blocks.chunk_by(|a, b| a.0 == b.0).filter(|run| run[0].0) {
            let offset = to_usize(whole[0].1.start().0 - range.start().0);
            // SAFETY: advice on mapped memory of ours; the blocks are in `range`. Hosts
            // before 5.14 refuse it; then the guest faults the pages in.
            unsafe {
                let from = hva.add(offset).cast();
                libc::madvise(
                    from,
                    whole.len() * to_usize(BLOCK),
                    libc::MADV_POPULATE_READ,
                );
            }
        }
    }

    fn is_lost(&self) -> bool {
        self.ranges.iter().any(|range| range.watch.is_lost())
    }
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        self.memory = None;
        for range in self.ranges.drain(..) {
            match Arc::try_unwrap(range.mapping) {
                Ok(mapping) => {
                    drop(range.watch);
                    // SAFETY: this was the last reference, so nobody can reach it.
                    unsafe { libc::munmap(mapping.as_ptr().cast(), mapping.size()) };
                }
                // A device still holds it, one that hangs for example: keep the mapping, and the
                // run, so that nobody frees what it shows. They go with the process.
                Err(_) => {
                    std::mem::forget(range.watch);
                    std::mem::forget(self.run.take());
                    tracing::warn!("guest memory is still in use at the end of its VM");
                }
            }
        }
    }
}

/// A range of guest RAM.
fn map_range(file: &File, range: FileRange) -> Result<MmapRegion<()>, MemoryError> {
    let at = map_aligned(file, range).map_err(|source| MemoryError::Map {
        len: range.len(),
        source,
    })?;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: `at` and the length are the mapping just made. It is unmapped only by
    // `GuestRam::drop`, and only when nobody refers to this region any more.
    unsafe {
        MmapRegion::build_raw(
            at,
            to_usize(range.len()),
            prot,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
        )
    }
    .map_err(|e: MmapRegionError| MemoryError::Layout(Box::new(e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Guest memory, and the file behind it.
    fn ram(bytes: u64) -> (GuestRam, RamFile) {
        let file = RamFile::memfd("test", bytes).unwrap();
        let ram = GuestRam::new(&file, MemSize::from_bytes(bytes).unwrap(), PhysBits(46));
        (ram.unwrap(), file)
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

    fn pages(block: u64) -> Vec<GuestPage> {
        (block * 512..(block + 1) * 512).map(GuestPage).collect()
    }

    #[test]
    fn memory_far_above_the_hosts_is_mapped_sparse_and_aligned() {
        let (ram, file) = ram(1 << 40);
        let last = (1 << 40) + (1 << 30) - 4;
        write(&ram, last, 7);
        assert_eq!(read(&ram, last), 7);
        assert!(ram.memory().read_obj::<u8>(GuestAddress(3 << 30)).is_err());
        assert!(file.allocated_bytes().unwrap() <= BLOCK);
        for range in &ram.ranges {
            assert_eq!(range.mapping.as_ptr() as u64 % BLOCK, 0);
        }
    }

    #[test]
    fn a_privately_remapped_block_shows_the_file_and_keeps_writes_to_itself() {
        let (ram, file) = ram(32 << 20);
        write(&ram, 3 * BLOCK, 33);
        ram.remap(GuestBlock(0), file.file(), blocks(3, 1), Sharing::Private)
            .unwrap();
        assert_eq!(read(&ram, 0), 33);
        write(&ram, 0, 1);
        assert_eq!((read(&ram, 0), read(&ram, 3 * BLOCK)), (1, 33));
        ram.remap(GuestBlock(0), file.file(), blocks(0, 1), Sharing::Shared)
            .unwrap();
        assert_eq!(read(&ram, 0), 0);
    }

    #[test]
    fn another_file_can_be_shown_also_one_that_may_only_be_read() {
        let (ram, _) = ram(32 << 20);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("other");
        std::fs::write(&path, vec![7; 2 << 20]).unwrap();
        let other = File::open(path).unwrap();
        ram.remap(GuestBlock(5), &other, blocks(0, 1), Sharing::Private)
            .unwrap();
        assert_eq!(read(&ram, 5 * BLOCK), 0x0707_0707);
        write(&ram, 5 * BLOCK, 1);
        assert_eq!(read(&ram, 5 * BLOCK), 1);
    }

    #[test]
    fn a_block_is_written_once_the_guest_wrote_to_it_not_when_it_was_read() {
        let (ram, file) = ram(32 << 20);
        write(&ram, BLOCK + 4096, 5);
        ram.remap(GuestBlock(1), file.file(), blocks(1, 1), Sharing::Private)
            .unwrap();
        assert!(!ram.is_written(GuestBlock(1)).unwrap());
        assert_eq!(read(&ram, BLOCK + 4096), 5);
        ram.populate(GuestBlock(1), file.file(), blocks(1, 1));
        assert!(!ram.is_written(GuestBlock(1)).unwrap());
        write(&ram, 2 * BLOCK - 4, 6);
        assert!(ram.is_written(GuestBlock(1)).unwrap());
        assert!(ram.is_written(GuestBlock(16)).is_err());
    }

    #[test]
    fn pages_are_copied_out_in_order_and_blocks_filled_again() {
        let (ram, file) = ram(32 << 20);
        write(&ram, 0, 1);
        write(&ram, 5 * 4096, 2);
        ram.copy_out(
            &[GuestPage(5), GuestPage(0)],
            file.file(),
            FileOffset(BLOCK + 8192),
        )
        .unwrap();
        assert_eq!(
            (read(&ram, BLOCK + 8192), read(&ram, BLOCK + 12288)),
            (2, 1)
        );
        ram.fill(GuestBlock(2), Some((file.file(), FileOffset(BLOCK))))
            .unwrap();
        assert_eq!(read(&ram, 2 * BLOCK + 8192), 2);
        ram.fill(GuestBlock(2), None).unwrap();
        assert_eq!(read(&ram, 2 * BLOCK + 8192), 0);
        // Across two blocks of the file, or from where no memory is.
        let across = ram.copy_out(&pages(0), file.file(), FileOffset(4096));
        assert_eq!(across.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(
            ram.copy_out(&pages(16), file.file(), FileOffset(0))
                .is_err()
        );
        ram.copy_out(&[], file.file(), FileOffset(1 << 50)).unwrap();
    }

    #[test]
    fn remapping_across_the_hole_or_beyond_memory_or_the_file_is_refused() {
        let (ram, file) = ram(4 << 30);
        let refused = |gpa: u64, range| {
            let at = GuestBlock(gpa / BLOCK);
            let result = ram.remap(at, file.file(), range, Sharing::Private);
            let kind = result.unwrap_err().kind();
            assert_eq!(kind, io::ErrorKind::InvalidInput, "{gpa:#x} {range}");
        };
        refused(layout::HOLE_START - BLOCK, blocks(0, 2));
        refused(layout::HOLE_START, blocks(0, 1));
        refused(5 << 30, blocks(0, 1));
        refused(u64::MAX - BLOCK + 1, blocks(0, 1));
        refused(0, FileRange::new(FileOffset(4096), BLOCK).unwrap());
        refused(0, FileRange::new(FileOffset(0), 4096).unwrap());
        refused(0, blocks(2047, 2));
    }

    #[test]
    fn dropping_unmaps_unless_somebody_still_holds_the_memory() {
        let held = {
            let (ram, _) = ram(32 << 20);
            write(&ram, 0, 5);
            ram.memory().clone()
        };
        assert_eq!(held.read_obj::<u32>(GuestAddress(0)).unwrap(), 5);
    }

    #[test]
    fn a_file_of_another_size_is_refused() {
        let file = RamFile::memfd("test", 64 << 20).unwrap();
        let result = GuestRam::new(&file, MemSize::from_bytes(32 << 20).unwrap(), PhysBits(46));
        assert!(matches!(result, Err(MemoryError::FileSize { .. })));
    }

    #[test]
    fn memory_beyond_the_hosts_address_space_is_an_error_not_a_crash() {
        let bytes = 1 << 50;
        let file = RamFile::memfd("test", bytes).unwrap();
        let result = GuestRam::new(&file, MemSize::from_bytes(bytes).unwrap(), PhysBits(52));
        assert!(matches!(result, Err(MemoryError::Map { .. })));
    }
}
