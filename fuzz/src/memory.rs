// SPDX-License-Identifier: GPL-2.0-only
//! A little guest memory, with a border between two mappings and a hole.

use mvasvm::memory::GuestMemory;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// Where memory is: address and length. The first two touch, as far as the guest knows.
pub const RANGES: [(u64, usize); 3] = [(0, 0x8000), (0x8000, 0x2000), (0x1_0000, 0x1000)];
/// No byte of memory lies behind it.
pub const END: u64 = 0x1_1000;

/// Where a queue's parts lie.
pub const TABLE: u64 = 0x1000;
pub const AVAIL: u64 = 0x2000;
pub const USED: u64 = 0x3000;

/// Descriptor flags.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub fn memory() -> GuestMemory {
    let ranges = RANGES.map(|(start, len)| (GuestAddress(start), len));
    GuestMemory::from_ranges(&ranges).expect("a little memory")
}

/// A queue of so many entries, at the addresses above.
pub fn queue(size: u16, event_idx: bool) -> Queue {
    let mut queue = Queue::new(size).expect("a power of two");
    queue
        .try_set_desc_table_address(GuestAddress(TABLE))
        .expect("aligned");
    queue
        .try_set_avail_ring_address(GuestAddress(AVAIL))
        .expect("aligned");
    queue
        .try_set_used_ring_address(GuestAddress(USED))
        .expect("aligned");
    queue.set_event_idx(event_idx);
    queue.set_ready(true);
    queue
}

/// Writes a descriptor; nothing where there is no memory.
pub fn put_descriptor(mem: &GuestMemory, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    let _ = mem.write_slice(&bytes, GuestAddress(at));
}

/// What all of memory holds at one time.
#[derive(Clone, PartialEq)]
pub struct Image(Vec<u8>);

impl Image {
    pub fn of(mem: &GuestMemory) -> Self {
        let mut bytes = vec![0; END as usize];
        for (start, len) in RANGES {
            let part = &mut bytes[start as usize..][..len];
            mem.read_slice(part, GuestAddress(start)).expect("memory");
        }
        Self(bytes)
    }

    /// Bytes, if all of them are memory.
    pub fn get(&self, addr: u64, len: u64) -> Option<&[u8]> {
        let end = addr.checked_add(len)?;
        // Touching ranges are one.
        let inside = |(start, stop)| start <= addr && end <= stop;
        let whole = [(0, 0xa000), (0x1_0000, END)].into_iter().any(inside);
        whole.then(|| &self.0[addr as usize..end as usize])
    }

    pub fn u16(&self, addr: u64) -> u16 {
        let bytes = self.get(addr, 2).expect("memory");
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    pub fn u32(&self, addr: u64) -> u32 {
        let bytes = self.get(addr, 4).expect("memory");
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    pub fn set(&mut self, addr: u64, byte: u8) {
        self.0[addr as usize] = byte;
    }

    /// The first byte that another image has otherwise.
    pub fn differs(&self, other: &Self) -> Option<usize> {
        self.0.iter().zip(&other.0).position(|(a, b)| a != b)
    }
}
