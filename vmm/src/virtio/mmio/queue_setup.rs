// SPDX-License-Identifier: GPL-2.0-only
//! What the driver says about a queue before the device starts.

use thiserror::Error;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory as _, Permissions};

use crate::memory::GuestMemory;

/// Why a queue cannot be used.
#[derive(Debug, Error)]
pub enum QueueSetupError {
    /// The driver did not make it ready.
    #[error("the driver did not set up the queue")]
    NotReady,
    /// The size is zero, too large, or not a power of two; or an address is not aligned.
    #[error("the size or an address of the queue is not allowed")]
    Rejected(#[from] virtio_queue::Error),
    /// A part of it is not guest memory.
    #[error("the queue's {part} at {addr:#x} is not all guest memory")]
    Address {
        /// Which part.
        part: &'static str,
        /// Its guest-physical address.
        addr: u64,
    },
}

/// A queue's registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueSetup {
    max_size: u16,
    /// `QueueNum`: what the driver wrote, whatever it is.
    pub size: u32,
    /// `QueueReady`.
    pub ready: bool,
    /// `QueueDesc`.
    pub desc_table: u64,
    /// `QueueDriver`.
    pub avail_ring: u64,
    /// `QueueDevice`.
    pub used_ring: u64,
}

impl QueueSetup {
    /// A queue that the driver has not touched.
    pub fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: u32::from(max_size),
            ready: false,
            desc_table: 0,
            avail_ring: 0,
            used_ring: 0,
        }
    }

    /// The largest size offered.
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// Checks the queue as the driver describes it, ready or not.
    ///
    /// # Errors
    /// The queue would be unusable.
    pub fn check(&self, mem: &GuestMemory, event_idx: bool) -> Result<Queue, QueueSetupError> {
        let mut queue = Queue::new(self.max_size)?;
        let size = u16::try_from(self.size).map_err(|_| virtio_queue::Error::InvalidSize)?;
        queue.try_set_size(size)?;
        queue.try_set_desc_table_address(GuestAddress(self.desc_table))?;
        queue.try_set_avail_ring_address(GuestAddress(self.avail_ring))?;
        queue.try_set_used_ring_address(GuestAddress(self.used_ring))?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        // virtio 1.2, 2.7: sizes of the three parts, the event fields included.
        let entries = usize::from(size);
        let parts = [
            ("descriptor table", self.desc_table, 16 * entries),
            ("available ring", self.avail_ring, 6 + 2 * entries),
            ("used ring", self.used_ring, 6 + 8 * entries),
        ];
        for (part, addr, len) in parts {
            // virtio-queue takes address 0 for "never set".
            if addr == 0 || !mem.check_range(GuestAddress(addr), len, Permissions::ReadWrite) {
                return Err(QueueSetupError::Address { part, addr });
            }
        }
        Ok(queue)
    }

    /// The queue for the device to work with.
    ///
    /// # Errors
    /// The driver did not make it ready, or it is unusable.
    pub fn build(&self, mem: &GuestMemory, event_idx: bool) -> Result<Queue, QueueSetupError> {
        if !self.ready {
            return Err(QueueSetupError::NotReady);
        }
        self.check(mem, event_idx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MEM: u64 = 0x1_0000;

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()
    }

    fn good() -> QueueSetup {
        QueueSetup {
            size: 16,
            ready: true,
            desc_table: 0x1000,
            avail_ring: 0x2000,
            used_ring: 0x3000,
            ..QueueSetup::new(256)
        }
    }

    #[test]
    fn a_good_queue_is_built_as_described() {
        let queue = good().build(&memory(), true).unwrap();
        assert_eq!((queue.size(), queue.ready()), (16, true));
        assert!(queue.event_idx_enabled());
        assert_eq!(
            (queue.desc_table(), queue.avail_ring(), queue.used_ring()),
            (0x1000, 0x2000, 0x3000)
        );
    }

    #[test]
    fn a_queue_that_is_not_ready_is_refused() {
        let setup = QueueSetup {
            ready: false,
            ..good()
        };
        assert!(matches!(
            setup.build(&memory(), false),
            Err(QueueSetupError::NotReady)
        ));
    }

    #[test]
    fn sizes_that_are_zero_too_large_or_no_power_of_two_are_refused() {
        for size in [0, 3, 257, 512, 0x1_0000, 0x1_0010, u32::MAX] {
            let setup = QueueSetup { size, ..good() };
            assert!(
                matches!(
                    setup.build(&memory(), false),
                    Err(QueueSetupError::Rejected(_))
                ),
                "{size}"
            );
        }
    }

    #[test]
    fn a_ring_that_ends_one_byte_outside_of_memory_is_refused() {
        // 16 entries: 256 + 38 + 134 bytes.
        for (field, len) in [(0, 256), (1, 38), (2, 134)] {
            for (addr, fits) in [(MEM - len, true), (MEM - len + 16, false)] {
                // 38 and 134 are even, but not multiples of every alignment.
                let addr = addr & !0xf;
                let mut setup = good();
                match field {
                    0 => setup.desc_table = addr,
                    1 => setup.avail_ring = addr,
                    _ => setup.used_ring = addr,
                }
                let fits = fits || addr + len <= MEM;
                assert_eq!(
                    setup.build(&memory(), false).is_ok(),
                    fits,
                    "{field} {addr:#x}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn any_registers_give_a_queue_inside_of_memory_or_an_error(
            size in prop_oneof![Just(16u32), 0u32..600, any::<u32>()],
            desc_table in prop_oneof![0u64..MEM + 64, any::<u64>()],
            avail_ring in prop_oneof![0u64..MEM + 64, any::<u64>()],
            used_ring in prop_oneof![0u64..MEM + 64, any::<u64>()],
        ) {
            let setup = QueueSetup { size, desc_table, avail_ring, used_ring, ..good() };
            if let Ok(queue) = setup.build(&memory(), false) {
                prop_assert!(queue.is_valid(&memory()));
                prop_assert!(queue.size().is_power_of_two() && queue.size() <= 256);
                prop_assert!(desc_table + 16 * u64::from(size) <= MEM);
                prop_assert!(used_ring + 8 * u64::from(size) + 6 <= MEM);
            }
        }
    }
}
