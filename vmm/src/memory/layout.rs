// SPDX-License-Identifier: GPL-2.0-only
//! The guest-physical memory map, as plain arithmetic.
//!
//! RAM lies from 0 to 3 GiB and from 4 GiB on; the gap holds virtio-mmio windows, the
//! I/O APIC, the local APICs and KVM's private pages. The RAM file has no gap.

use vm_memory::GuestAddress;

use mvas_host::{FileOffset, FileRange};

use super::MemoryError;
use crate::config::MemSize;

/// Where the hole for devices begins.
pub const HOLE_START: u64 = 3 << 30;
/// Where RAM goes on after the hole.
pub const HOLE_END: u64 = 4 << 30;
/// First virtio-mmio window.
pub const VIRTIO_MMIO_BASE: u32 = 0xd000_0000;
/// Size of a virtio-mmio window, and how far apart they are.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// The same as a step.
pub const VIRTIO_MMIO_STEP: usize = 0x1000;
/// Interrupts of virtio devices, one each: the I/O APIC's pins (24) after the serial port's.
pub const VIRTIO_IRQS: std::ops::Range<u32> = 5..24;
/// The I/O APIC's registers (fixed by KVM).
pub const IOAPIC_BASE: u32 = 0xfec0_0000;
/// Three pages that KVM needs on Intel CPUs without unrestricted guests, and before them
/// one for its identity map; both in the hole.
pub const KVM_TSS_BASE: usize = 0xfffb_d000;
/// See [`KVM_TSS_BASE`].
pub const KVM_IDENTITY_MAP_BASE: u64 = 0xfffb_c000;
/// The local APICs' registers (architectural).
pub const LAPIC_BASE: u32 = 0xfee0_0000;
/// Largest memory slot we make. KVM takes at most 2^31 - 1 pages, just under 8 TiB
/// (`KVM_MEM_MAX_NR_PAGES`); half of it keeps every slot's start huge-page aligned.
pub const SLOT_MAX: u64 = 4 << 40;

/// Width of a guest-physical address in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PhysBits(pub u8);

/// One contiguous range of RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Its guest-physical address.
    pub gpa: GuestAddress,
    /// The part of the RAM file behind it.
    pub file: FileRange,
}

impl Placement {
    /// Cuts it in pieces that fit a memory slot.
    pub fn slots(self) -> impl Iterator<Item = Self> {
        let first = self.file.start().0;
        self.file.chunks(SLOT_MAX).map(move |file| Self {
            gpa: GuestAddress(self.gpa.0 + (file.start().0 - first)),
            file,
        })
    }
}

/// Places `mem` bytes of RAM around the hole.
///
/// # Errors
/// The last byte would not be addressable in `phys_bits`.
pub fn place(mem: MemSize, phys_bits: PhysBits) -> Result<Vec<Placement>, MemoryError> {
    let mem = mem.bytes();
    let hole = HOLE_END - HOLE_START;
    let space = 1u64 << phys_bits.0.clamp(32, 52);
    let limit = (space - hole).max(HOLE_START);
    if mem > limit {
        return Err(MemoryError::TooLarge {
            mem,
            bits: phys_bits.0.into(),
            limit,
        });
    }
    let low = mem.min(HOLE_START);
    let ranges = [(0, 0, low), (HOLE_END, low, mem - low)];
    Ok(ranges
        .into_iter()
        .filter_map(|(gpa, offset, len)| {
            Some(Placement {
                gpa: GuestAddress(gpa),
                file: FileRange::new(FileOffset(offset), len)?,
            })
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mem(bytes: u64) -> MemSize {
        MemSize::from_bytes(bytes).unwrap()
    }

    fn any_mem() -> impl Strategy<Value = MemSize> {
        // Sizes of every magnitude, not only the huge ones.
        (25..52u32, any::<u64>()).prop_map(|(magnitude, random)| {
            let bytes = (1 << magnitude) + random % (1 << magnitude);
            mem(bytes & !(MemSize::BLOCK - 1))
        })
    }

    proptest! {
        #[test]
        fn ram_covers_the_file_once_and_avoids_the_hole(mem in any_mem()) {
            prop_assume!(mem.bytes() <= (1 << 52) - (1 << 30));
            let placed = place(mem, PhysBits(52)).unwrap();
            let mut next = 0;
            for Placement { gpa, file } in &placed {
                prop_assert_eq!(file.start().0, next);
                next = file.end().0;
                let end = gpa.0 + file.len();
                prop_assert!(end <= HOLE_START || gpa.0 >= HOLE_END);
                prop_assert!(gpa.0 % MemSize::BLOCK == 0 && file.is_aligned(MemSize::BLOCK));
            }
            prop_assert_eq!(next, mem.bytes());
        }

        #[test]
        fn slots_tile_each_range_within_kvms_limit(mem in any_mem()) {
            prop_assume!(mem.bytes() <= (1 << 52) - (1 << 30));
            for range in place(mem, PhysBits(52)).unwrap() {
                let mut next = (range.gpa.0, range.file.start().0);
                for slot in range.slots() {
                    prop_assert_eq!((slot.gpa.0, slot.file.start().0), next);
                    prop_assert!(slot.file.len() / 4096 < (1 << 31) - 1);
                    next = (slot.gpa.0 + slot.file.len(), slot.file.end().0);
                }
                prop_assert_eq!(next.1, range.file.end().0);
            }
        }

        #[test]
        fn what_is_placed_is_addressable_and_what_is_not_is_refused(mem in any_mem(), bits in 36..=52u8) {
            let top = if mem.bytes() > HOLE_START { mem.bytes() + (1 << 30) } else { mem.bytes() };
            let placed = place(mem, PhysBits(bits));
            prop_assert_eq!(placed.is_ok(), top <= 1 << bits);
        }
    }

    #[test]
    fn little_memory_is_one_range_and_much_is_two() {
        assert_eq!(place(mem(3 << 30), PhysBits(36)).unwrap().len(), 1);
        let placed = place(mem(8 << 30), PhysBits(36)).unwrap();
        assert_eq!(placed.len(), 2);
        assert_eq!(placed[1].gpa.0, 4 << 30);
        assert_eq!(placed[1].file.start(), FileOffset(3 << 30));
    }

    #[test]
    fn the_error_names_the_most_that_fits() {
        let error = place(mem(64 << 30), PhysBits(36)).unwrap_err().to_string();
        assert!(
            error.contains("36 bits") && error.contains("64512 MiB"),
            "{error}"
        );
    }
}
