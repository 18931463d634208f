// SPDX-License-Identifier: GPL-2.0-only
//! A guest's driver, as far as tests need one: real guest memory, real rings, no KVM.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{io, iter};

use proptest::prelude::*;
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::{AvailRing, DescriptorTable, UsedRing};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::device::{ActivateArgs, VirtioDevice};
use super::interrupt::VirtioInterrupt;
use crate::devices::Interrupt;
use crate::memory::GuestMemory;

/// Guest memory of a test, bytes.
pub const MEM_SIZE: u64 = 64 << 20;
/// Each queue's rings lie at a multiple of this, from [`QUEUE_STRIDE`] on.
const QUEUE_STRIDE: u64 = 0x1_0000;
/// Buffers are handed out from here on, over and over.
const BUFFERS: u64 = 0x20_0000;

/// Descriptor flags.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
const _: () = assert!(
    VRING_DESC_F_NEXT == 1 && VRING_DESC_F_WRITE == 2 && VRING_DESC_F_INDIRECT == 4,
    "the flags above are virtio's"
);

/// An interrupt line that counts.
#[derive(Debug, Default)]
pub struct CountingLine(Arc<AtomicU64>);

impl Interrupt for CountingLine {
    fn trigger(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

impl CountingLine {
    pub fn new() -> (Self, Arc<AtomicU64>) {
        let count = Arc::default();
        (Self(Arc::clone(&count)), count)
    }
}

/// One buffer of a request.
#[derive(Debug, Clone)]
pub enum Piece {
    /// The device reads these bytes.
    Read(Vec<u8>),
    /// The device may write so many bytes.
    Write(u32),
}

impl Piece {
    pub fn read(bytes: &[u8]) -> Self {
        Self::Read(bytes.to_vec())
    }

    pub fn write(len: u32) -> Self {
        Self::Write(len)
    }
}

/// A request in a queue.
#[derive(Debug, Clone)]
pub struct Sent {
    pub head: u16,
    buffers: Vec<(u64, u32)>,
}

struct QueueHalf {
    base: u64,
    table: DescriptorTable<'static, GuestMemory>,
    avail: AvailRing<'static, GuestMemory>,
    used: UsedRing<'static, GuestMemory>,
    size: u16,
    avail_idx: u16,
    next_used: u16,
    next_desc: u16,
}

// Where a queue's parts lie. (`MockSplitQueue` makes the rings overlap.)
const AVAIL: u64 = 0x8000;
const USED: u64 = 0xa000;

impl QueueHalf {
    fn new(mem: &'static GuestMemory, base: u64, size: u16) -> Self {
        Self {
            base,
            table: DescriptorTable::new(mem, GuestAddress(base), size),
            avail: AvailRing::new(mem, GuestAddress(base + AVAIL), size),
            used: UsedRing::new(mem, GuestAddress(base + USED), size),
            size,
            avail_idx: 0,
            next_used: 0,
            next_desc: 0,
        }
    }

    fn device_half(&self, event_idx: bool) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        queue
            .try_set_desc_table_address(GuestAddress(self.base))
            .unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(self.base + AVAIL))
            .unwrap();
        queue
            .try_set_used_ring_address(GuestAddress(self.base + USED))
            .unwrap();
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        queue
    }
}

/// The driver's side of a device. The memory leaks: tests are short.
pub struct Driver {
    pub mem: &'static GuestMemory,
    pub interrupt: Arc<VirtioInterrupt>,
    count: Arc<AtomicU64>,
    queues: Vec<QueueHalf>,
    next_buffer: u64,
}

pub fn memory() -> Arc<GuestMemory> {
    let size = usize::try_from(MEM_SIZE).unwrap();
    Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), size)]).unwrap())
}

impl Driver {
    /// Sets up full-size queues with every feature, and starts the device.
    pub fn start(device: &mut dyn VirtioDevice) -> Self {
        let features = device.features();
        Self::start_with(device, features)
    }

    pub fn start_with(device: &mut dyn VirtioDevice, features: u64) -> Self {
        let owned = memory();
        // The rings borrow the memory for as long as the test runs.
        let mem: &'static GuestMemory = Box::leak(Box::new((*owned).clone()));
        let (line, count) = CountingLine::new();
        let interrupt = Arc::new(VirtioInterrupt::new(Box::new(line)));
        let queues: Vec<QueueHalf> = iter::zip(1.., device.queue_sizes())
            .map(|(i, size)| QueueHalf::new(mem, i * QUEUE_STRIDE, *size))
            .collect();
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let device_queues = queues.iter().map(|half| half.device_half(event_idx));
        let args = ActivateArgs {
            mem: owned,
            queues: device_queues.collect(),
            interrupt: Arc::clone(&interrupt),
            features,
        };
        device.activate(args).unwrap();
        Self {
            mem,
            interrupt,
            count,
            queues,
            next_buffer: BUFFERS,
        }
    }

    /// Interrupts since the last call.
    pub fn interrupts(&self) -> u64 {
        self.count.swap(0, Ordering::SeqCst)
    }

    fn allocate(&mut self, len: u32) -> u64 {
        let len = u64::from(len).next_multiple_of(16);
        if self.next_buffer + len > MEM_SIZE {
            self.next_buffer = BUFFERS;
        }
        let addr = self.next_buffer;
        self.next_buffer += len;
        addr
    }

    /// Puts one request into a queue. Descriptors are reused in turn: keep fewer in flight
    /// than the queue has.
    pub fn send(&mut self, queue: usize, pieces: &[Piece]) -> Sent {
        let buffers = self.place(pieces);
        let half = &mut self.queues[queue];
        let head = half.next_desc;
        for (i, (piece, (addr, len))) in iter::zip(pieces, &buffers).enumerate() {
            let at = half.next_desc;
            half.next_desc = (at + 1) % half.size;
            let mut flags = flags_of(piece);
            if i + 1 < pieces.len() {
                flags |= NEXT;
            }
            let descriptor = Descriptor::new(*addr, *len, flags, half.next_desc);
            half.table
                .store(at, RawDescriptor::from(descriptor))
                .unwrap();
        }
        self.make_available(queue, head);
        Sent { head, buffers }
    }

    /// Like [`Self::send`], with the pieces in an indirect table.
    pub fn send_indirect(&mut self, queue: usize, pieces: &[Piece]) -> Sent {
        let buffers = self.place(pieces);
        let table_len = u32::try_from(pieces.len() * 16).unwrap();
        let table = self.allocate(table_len);
        for (i, (piece, (addr, len))) in (0u16..).zip(iter::zip(pieces, &buffers)) {
            let mut flags = flags_of(piece);
            if usize::from(i) + 1 < pieces.len() {
                flags |= NEXT;
            }
            let descriptor = Descriptor::new(*addr, *len, flags, i + 1);
            let at = GuestAddress(table + u64::from(i) * 16);
            self.mem
                .write_obj(RawDescriptor::from(descriptor), at)
                .unwrap();
        }
        let head = self.queues[queue].next_desc;
        self.queues[queue].next_desc = (head + 1) % self.queues[queue].size;
        self.store(queue, head, Descriptor::new(table, table_len, INDIRECT, 0));
        self.make_available(queue, head);
        Sent { head, buffers }
    }

    fn place(&mut self, pieces: &[Piece]) -> Vec<(u64, u32)> {
        pieces
            .iter()
            .map(|piece| match piece {
                Piece::Read(bytes) => {
                    let len = u32::try_from(bytes.len()).unwrap();
                    let addr = self.allocate(len);
                    self.mem.write_slice(bytes, GuestAddress(addr)).unwrap();
                    (addr, len)
                }
                Piece::Write(len) => {
                    let addr = self.allocate(*len);
                    let zeroes = vec![0; usize::try_from(*len).unwrap()];
                    self.mem.write_slice(&zeroes, GuestAddress(addr)).unwrap();
                    (addr, *len)
                }
            })
            .collect()
    }

    /// Writes a descriptor as it is.
    pub fn store(&mut self, queue: usize, index: u16, descriptor: Descriptor) {
        self.queues[queue]
            .table
            .store(index, RawDescriptor::from(descriptor))
            .unwrap();
    }

    /// Writes an entry of the available ring and moves its index.
    pub fn make_available(&mut self, queue: usize, head: u16) {
        let half = &mut self.queues[queue];
        let slot = usize::from(half.avail_idx % half.size);
        half.avail.ring().ref_at(slot).unwrap().store(head);
        half.avail_idx = half.avail_idx.wrapping_add(1);
        half.avail.idx().store(half.avail_idx);
    }

    /// Sets the available ring's index, however wrong.
    pub fn set_avail_idx(&mut self, queue: usize, idx: u16) {
        self.queues[queue].avail_idx = idx;
        self.queues[queue].avail.idx().store(idx);
    }

    /// What the device returned since the last call: (head, length). Asks for the next
    /// interrupt, as Linux does (EVENT_IDX).
    pub fn used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let half = &mut self.queues[queue];
        let idx = half.used.idx().load();
        let mut used = Vec::new();
        while half.next_used != idx {
            let slot = usize::from(half.next_used % half.size);
            let element = half.used.ring().ref_at(slot).unwrap().load();
            used.push((u16::try_from(element.id()).unwrap(), element.len()));
            half.next_used = half.next_used.wrapping_add(1);
        }
        let used_event = GuestAddress(half.base + AVAIL + 4 + 2 * u64::from(half.size));
        self.mem.write_obj(half.next_used, used_event).unwrap();
        used
    }

    /// Whether a driver that keeps to EVENT_IDX would kick now for what it just added.
    pub fn would_kick(&self, queue: usize) -> bool {
        let half = &self.queues[queue];
        let avail_event = GuestAddress(half.base + USED + 4 + 8 * u64::from(half.size));
        let event: u16 = self.mem.read_obj(avail_event).unwrap();
        event == half.avail_idx.wrapping_sub(1)
    }

    /// The bytes of a request's buffer.
    pub fn read(&self, sent: &Sent, piece: usize) -> Vec<u8> {
        let (addr, len) = sent.buffers[piece];
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        self.mem.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    /// A queue as the device sees it, from its beginning on.
    pub fn device_queue(&self, queue: usize) -> Queue {
        self.queues[queue].device_half(true)
    }

    /// How many queues there are.
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// A queue's size.
    pub fn queue_size(&self, queue: usize) -> u16 {
        self.queues[queue].size
    }
}

fn flags_of(piece: &Piece) -> u16 {
    match piece {
        Piece::Read(_) => 0,
        Piece::Write(_) => WRITE,
    }
}

/// Any descriptor: good, nearly good, or nonsense.
pub fn any_descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let addr = prop_oneof![
        6 => BUFFERS..MEM_SIZE,
        2 => 0..MEM_SIZE,
        1 => MEM_SIZE - 64..MEM_SIZE + 64,
        1 => any::<u64>(),
    ];
    let len = prop_oneof![
        6 => 0u32..70_000,
        2 => prop_oneof![Just(0u32), Just(1), Just(16), Just(44), Just(512)],
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![8 => 0u16..8, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0u16..16, 1 => any::<u16>()];
    (addr, len, flags, next)
}

/// What every device must survive, on each of its queues. `$start` makes `(device, Driver)`,
/// `$process` lets the device handle an event of a queue.
macro_rules! hostile_queue_tests {
    ($start:expr, $process:expr) => {
        mod hostile {
            use proptest::prelude::*;
            use virtio_queue::desc::split::Descriptor;
            use vm_memory::Bytes;

            use super::*;
            use crate::virtio::device::VirtioDevice;
            use crate::virtio::test_utils::{INDIRECT, NEXT, WRITE, any_descriptor};

            #[test]
            fn a_descriptor_loop_is_returned() {
                for flags in [NEXT, NEXT | WRITE] {
                    let (mut device, mut driver) = $start();
                    for queue in 0..driver.queue_count() {
                        driver.store(queue, 0, Descriptor::new(0x20_0000, 64, flags, 1));
                        driver.store(queue, 1, Descriptor::new(0x20_1000, 64, flags, 0));
                        driver.make_available(queue, 0);
                        $process(&mut device, queue);
                        assert!(driver.used(queue).iter().all(|used| *used == (0, 0)));
                    }
                    assert!(!driver.interrupt.needs_reset());
                }
            }

            #[test]
            fn bad_indirect_tables_are_returned() {
                for (addr, len) in [
                    (0x20_0000, 0),
                    (0x20_0000, 17),
                    (0x20_0000, u32::MAX),
                    (0x20_0000, 1 << 20),
                    (u64::MAX - 15, 32),
                ] {
                    let (mut device, mut driver) = $start();
                    for queue in 0..driver.queue_count() {
                        driver.store(queue, 0, Descriptor::new(addr, len, INDIRECT, 0));
                        // Indirect in indirect, if the table is read at all.
                        driver
                            .mem
                            .write_obj(
                                virtio_queue::desc::RawDescriptor::from(Descriptor::new(
                                    0x20_0000, 16, INDIRECT, 0,
                                )),
                                vm_memory::GuestAddress(0x20_0000),
                            )
                            .unwrap();
                        driver.make_available(queue, 0);
                        $process(&mut device, queue);
                        assert!(driver.used(queue).iter().all(|used| *used == (0, 0)));
                    }
                    assert!(!driver.interrupt.needs_reset());
                }
            }

            #[test]
            fn buffers_outside_of_memory_are_returned() {
                for (addr, len) in [
                    (u64::MAX, 1),
                    (1 << 40, 512),
                    (crate::virtio::test_utils::MEM_SIZE - 8, 16),
                    (0x20_0000, u32::MAX),
                ] {
                    let (mut device, mut driver) = $start();
                    for queue in 0..driver.queue_count() {
                        for flags in [0, WRITE] {
                            driver.store(queue, 0, Descriptor::new(addr, len, flags, 0));
                            driver.make_available(queue, 0);
                            $process(&mut device, queue);
                            assert!(driver.used(queue).iter().all(|used| *used == (0, 0)));
                        }
                    }
                    assert!(!driver.interrupt.needs_reset());
                }
            }

            #[test]
            fn an_available_index_ahead_of_the_ring_stops_the_device() {
                let (mut device, mut driver) = $start();
                let ahead = driver.queue_size(0) + 1;
                driver.set_avail_idx(0, ahead);
                $process(&mut device, 0);
                assert!(driver.interrupt.needs_reset());
                // Stopped: it does not look at the ring any more.
                driver.set_avail_idx(0, 1);
                $process(&mut device, 0);
                assert_eq!(driver.used(0), []);
            }

            #[test]
            fn a_head_outside_of_the_table_stops_the_device() {
                let (mut device, mut driver) = $start();
                let outside = driver.queue_size(0);
                driver.make_available(0, outside);
                $process(&mut device, 0);
                assert!(driver.used(0).is_empty());
            }

            #[test]
            fn kicks_after_a_reset_do_nothing() {
                let (mut device, mut driver) = $start();
                driver.send(0, &[Piece::write(64)]);
                device.reset();
                for queue in 0..driver.queue_count() {
                    $process(&mut device, queue);
                    assert_eq!(driver.used(queue), []);
                }
                assert_eq!(driver.interrupts(), 0);
            }

            proptest! {
                #![proptest_config(ProptestConfig::with_cases(64))]

                #[test]
                fn any_descriptors_are_survived(
                    table in proptest::collection::vec(any_descriptor(), 16),
                    heads in proptest::collection::vec(prop_oneof![16 => 0u16..16, 1 => any::<u16>()], 1..40),
                    fill in proptest::collection::vec(any_descriptor(), 16),
                ) {
                    let (mut device, mut driver) = $start();
                    for queue in 0..driver.queue_count() {
                        for (i, (addr, len, flags, next)) in (0u16..).zip(&table) {
                            driver.store(queue, i, Descriptor::new(*addr, *len, *flags, *next));
                        }
                        // Indirect tables find descriptors too.
                        for (i, (addr, len, flags, next)) in (0u64..).zip(&fill) {
                            driver
                                .mem
                                .write_obj(
                                    virtio_queue::desc::RawDescriptor::from(
                                        Descriptor::new(*addr, *len, *flags, *next),
                                    ),
                                    vm_memory::GuestAddress(0x20_0000 + 16 * i),
                                )
                                .unwrap();
                        }
                        for head in &heads {
                            driver.make_available(queue, *head);
                            $process(&mut device, queue);
                        }
                    }
                }
            }
        }
    };
}
pub(super) use hostile_queue_tests;
