// SPDX-License-Identifier: GPL-2.0-only
//! A driver that writes and reads a device's registers in any order and way, and lays anything
//! into its memory. Whatever it does, the device starts only with what was negotiated and
//! with queues in memory, and what does not run touches no memory.

use std::sync::{Arc, Mutex};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
use mvasvm::devices::Interrupt;
use mvasvm::memory::GuestMemory;
use mvasvm::virtio::block::{Block, Disk};
use mvasvm::virtio::device::{ActivateArgs, ActivateError, VirtioDevice};
use mvasvm::virtio::entropy::Entropy;
use mvasvm::virtio::mmio::MmioTransport;
use mvasvm::virtio::vsock::Vsock;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio::*;
use virtio_queue::QueueT;
use vm_device::MutDeviceMmio;
use vm_device::bus::MmioAddress;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::input::Input;
use super::memory::{AVAIL, Image, TABLE, USED, memory, put_descriptor};

/// What a driver has to do with.
const REGISTERS: [u32; 24] = [
    VIRTIO_MMIO_MAGIC_VALUE,
    VIRTIO_MMIO_VERSION,
    VIRTIO_MMIO_DEVICE_ID,
    VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL,
    VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL,
    VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_QUEUE_NUM_MAX,
    VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_NOTIFY,
    VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_INTERRUPT_ACK,
    VIRTIO_MMIO_STATUS,
    VIRTIO_MMIO_QUEUE_DESC_LOW,
    VIRTIO_MMIO_QUEUE_DESC_HIGH,
    VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
    VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_QUEUE_USED_HIGH,
    VIRTIO_MMIO_CONFIG_GENERATION,
    VIRTIO_MMIO_CONFIG,
    VIRTIO_MMIO_SHM_SEL,
];

/// Bytes of each queue's parts, apart from the next queue's.
const STRIDE: u64 = 0x400;

/// The device between transport and test: says whether it runs, and checks what it is started with.
struct Watched<D> {
    device: Arc<Mutex<D>>,
    sizes: Vec<u16>,
    events: Vec<EventFd>,
    mem: GuestMemory,
    runs: bool,
}

impl<D: VirtioDevice> Watched<D> {
    fn new(device: D, mem: &GuestMemory) -> Self {
        let events = device.queue_events().iter();
        Self {
            sizes: device.queue_sizes().to_vec(),
            events: events.map(|e| e.try_clone().expect("a file")).collect(),
            device: Arc::new(Mutex::new(device)),
            mem: mem.clone(),
            runs: false,
        }
    }

    fn device(&self) -> std::sync::MutexGuard<'_, D> {
        self.device.lock().expect("no panic")
    }
}

impl<D: VirtioDevice> VirtioDevice for Watched<D> {
    fn device_type(&self) -> u32 {
        self.device().device_type()
    }

    fn features(&self) -> u64 {
        self.device().features()
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn queue_events(&self) -> &[EventFd] {
        &self.events
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device().read_config(offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.device().write_config(offset, data);
    }

    fn activate(&mut self, args: ActivateArgs) -> Result<(), ActivateError> {
        assert!(!self.runs, "started twice");
        assert_eq!(args.features & !self.features(), 0, "not offered");
        assert_ne!(args.features & 1 << VIRTIO_F_VERSION_1, 0);
        assert_eq!(args.queues.len(), self.sizes.len());
        let image = Image::of(&self.mem);
        for (queue, max) in args.queues.iter().zip(&self.sizes) {
            let size = u64::from(queue.size());
            assert!(queue.size() <= *max && queue.size().is_power_of_two());
            assert!(queue.is_valid(&self.mem));
            assert!(image.get(queue.desc_table(), 16 * size).is_some());
            assert!(image.get(queue.avail_ring(), 6 + 2 * size).is_some());
            assert!(image.get(queue.used_ring(), 6 + 8 * size).is_some());
        }
        self.runs = true;
        self.device().activate(args)
    }

    fn reset(&mut self) {
        self.runs = false;
        self.device().reset();
    }
}

/// Nobody listens.
struct NoLine;

impl Interrupt for NoLine {
    fn trigger(&self) -> std::io::Result<()> {
        Ok(())
    }
}

pub fn run(input: &[u8]) {
    let mut input = Input(input);
    let folder = tempfile::tempdir_in("/dev/shm").expect("a tmpfs");
    match input.byte() % 4 {
        0 => drive(Entropy::new().expect("a device"), in_a_loop, &mut input),
        1 => {
            let path = folder.path().join("vsock");
            let vsock = Vsock::new(&path, 3).expect("a device");
            drive(vsock, in_a_loop, &mut input);
        }
        kind => {
            let path = folder.path().join("disk");
            std::fs::write(&path, [7; 16 << 10]).expect("a disk");
            let disk = Disk::open(&path, kind == 2).expect("a disk");
            let block = Block::new(disk).expect("a device");
            drive(block, as_its_thread, &mut input);
            let metadata = std::fs::metadata(&path).expect("a disk");
            assert_eq!(metadata.len(), 16 << 10, "a disk keeps its size");
        }
    }
}

/// What has a device work.
type Turn = Box<dyn FnMut()>;

/// As the event loop does.
fn in_a_loop<D: MutEventSubscriber + 'static>(device: Arc<Mutex<D>>) -> Turn {
    let mut event_loop = EventManager::new().expect("an event loop");
    event_loop.add_subscriber(device);
    Box::new(move || {
        event_loop.run_with_timeout(0).expect("an event loop");
    })
}

/// As a disk's own thread does, kicked or not.
fn as_its_thread(device: Arc<Mutex<Block>>) -> Turn {
    Box::new(move || device.lock().expect("no panic").process_queue())
}

struct Rig<D> {
    mem: GuestMemory,
    watched: Arc<Mutex<Watched<D>>>,
    transport: MmioTransport,
    work: Turn,
    queues: usize,
}

fn drive<D: VirtioDevice + 'static>(
    device: D,
    turn: fn(Arc<Mutex<D>>) -> Turn,
    input: &mut Input<'_>,
) {
    let mem = memory();
    let watched = Watched::new(device, &mem);
    let work = turn(Arc::clone(&watched.device));
    let queues = watched.sizes.len();
    let watched = Arc::new(Mutex::new(watched));
    let device = Arc::clone(&watched) as Arc<Mutex<dyn VirtioDevice>>;
    let transport = MmioTransport::new(Arc::new(mem.clone()), Box::new(NoLine), device);
    let mut rig = Rig {
        mem,
        watched,
        transport: transport.expect("a window"),
        work,
        queues,
    };
    while !input.is_empty() {
        rig.step(input);
    }
    rig.write(VIRTIO_MMIO_STATUS, 0);
    rig.turn();
    assert!(!rig.watched.lock().expect("no panic").runs);
    assert_eq!(rig.read(VIRTIO_MMIO_STATUS), 0);
    assert_eq!(rig.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    for queue in 0..queues {
        rig.write(VIRTIO_MMIO_QUEUE_SEL, queue as u32);
        assert_eq!(rig.read(VIRTIO_MMIO_QUEUE_READY), 0);
    }
}

impl<D: VirtioDevice + 'static> Rig<D> {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 8 {
            0 => {
                let register = input.pick(&REGISTERS);
                let value = match input.byte() {
                    byte @ 0..=0x7f => u32::from(byte),
                    0x80..=0xbf => u32::from(input.u16()),
                    _ => input.u32(),
                };
                self.write(register, value);
            }
            1 => {
                let offset = u64::from(input.u16() % 0x200);
                let len = usize::from(input.byte() % 9);
                self.transport
                    .mmio_write(MmioAddress(0), offset, input.take(len));
            }
            2 => self.read_any(u64::from(input.u16() % 0x200), input.byte() % 9),
            3 => {
                let at = GuestAddress((u64::from(input.u16()) * 2) % 0x1_1000);
                let len = usize::from(input.byte() % 32);
                let _ = self.mem.write_slice(input.take(len), at);
            }
            4 => self.turn(),
            5 => self.start(input),
            _ => self.offer(input),
        }
    }

    fn write(&mut self, register: u32, value: u32) {
        let bytes = value.to_le_bytes();
        self.transport
            .mmio_write(MmioAddress(0), register.into(), &bytes);
    }

    fn read(&mut self, register: u32) -> u32 {
        let mut bytes = [0xaa; 4];
        self.transport
            .mmio_read(MmioAddress(0), register.into(), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Reads at any place, and registers that have only some values.
    fn read_any(&mut self, offset: u64, len: u8) {
        let mut bytes = [0xaa; 9];
        let (read, rest) = bytes.split_at_mut(usize::from(len));
        self.transport.mmio_read(MmioAddress(0), offset, read);
        assert!(rest.iter().all(|byte| *byte == 0xaa));
        assert_eq!(self.read(VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
        assert!(self.read(VIRTIO_MMIO_INTERRUPT_STATUS) <= 3);
        assert!(self.read(VIRTIO_MMIO_QUEUE_READY) <= 1);
        // A beginning of the steps; NEEDS_RESET and FAILED beside it.
        let status = self.read(VIRTIO_MMIO_STATUS);
        assert!(
            [0, 1, 3, 0xb, 0xf].contains(&(status & 0x3f)),
            "{status:#x}"
        );
        let runs = self.watched.lock().expect("no panic").runs;
        assert!(!runs || status & 4 != 0, "runs unasked");
    }

    /// The device works, if it is to.
    fn turn(&mut self) {
        let runs = self.watched.lock().expect("no panic").runs;
        let before = (!runs).then(|| Image::of(&self.mem));
        (self.work)();
        if let Some(before) = before {
            let changed = before.differs(&Image::of(&self.mem));
            assert_eq!(changed, None, "a device that does not run writes to memory");
        }
    }

    /// What a driver does to start a device; all right but for what the input says.
    fn start(&mut self, input: &mut Input<'_>) {
        self.write(VIRTIO_MMIO_STATUS, 0);
        self.write(VIRTIO_MMIO_STATUS, 1);
        self.write(VIRTIO_MMIO_STATUS, 3);
        for half in 0..2 {
            self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, half);
            let offered = self.read(VIRTIO_MMIO_DEVICE_FEATURES);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            let wrong = u32::from(input.byte()) & 3;
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, offered ^ (wrong << 29));
        }
        self.write(VIRTIO_MMIO_STATUS, 0xb);
        for queue in 0..self.queues as u64 {
            self.write(VIRTIO_MMIO_QUEUE_SEL, queue as u32);
            let at = queue * STRIDE;
            self.write(VIRTIO_MMIO_QUEUE_NUM, 16 << (input.byte() % 16 / 15));
            let wrong = u32::from(input.byte() / 0x80) * u32::from(input.byte());
            self.write(VIRTIO_MMIO_QUEUE_DESC_LOW, (TABLE + at) as u32 + wrong);
            self.write(VIRTIO_MMIO_QUEUE_AVAIL_LOW, (AVAIL + at) as u32 + wrong);
            self.write(VIRTIO_MMIO_QUEUE_USED_LOW, (USED + at) as u32 + wrong);
            self.write(VIRTIO_MMIO_QUEUE_READY, 1);
        }
        self.write(VIRTIO_MMIO_STATUS, 0xf);
    }

    /// A chain for a queue, where [`Self::start`] would put it, and a kick.
    fn offer(&mut self, input: &mut Input<'_>) {
        let queue = u64::from(input.byte()) % self.queues as u64;
        let (table, avail) = (TABLE + queue * STRIDE, AVAIL + queue * STRIDE);
        let first = input.byte() % 16;
        let count = 1 + input.byte() % 4;
        for i in 0..count {
            let at = table + 16 * u64::from((first + i) % 16);
            let addr = 0x5000 + u64::from(input.u16() % 0x5400);
            let len = match input.byte() {
                byte @ 0..0xf0 => u32::from(byte),
                0xf0..0xfe => 512 * u32::from(input.byte() % 16),
                _ => input.u32(),
            };
            let more = u16::from(i + 1 < count);
            let flags = u16::from(input.byte() & 6) | more;
            put_descriptor(
                &self.mem,
                at,
                addr,
                len,
                flags,
                u16::from((first + i + 1) % 16),
            );
        }
        let index = Image::of(&self.mem).u16(avail + 2);
        let slot = GuestAddress(avail + 4 + 2 * u64::from(index % 16));
        let head = u16::from(first);
        self.mem.write_obj(head, slot).expect("memory");
        let next = index.wrapping_add(1);
        self.mem
            .write_obj(next, GuestAddress(avail + 2))
            .expect("memory");
        self.write(VIRTIO_MMIO_QUEUE_NOTIFY, queue as u32);
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    // Features as offered, then three bytes for each queue.
    let start = |queues: usize| [vec![5, 0, 0], vec![0; 3 * queues]].concat();
    let offer = |queue: u8, first: u8, pieces: &[(u16, u8, u8)]| {
        let mut bytes = vec![6, queue, first, pieces.len() as u8 - 1];
        for (addr, len, flags) in pieces {
            bytes.extend(addr.to_le_bytes());
            bytes.push(*len);
            if *len == 0xf0 {
                bytes.push(2);
            }
            bytes.push(*flags);
        }
        bytes
    };
    // A request's header is in memory first: 3, address / 2, length, bytes.
    let header = |bytes: &[u8]| [&[3, 0, 0x28, bytes.len() as u8], bytes].concat();
    let read = header(&[0; 16]);
    let packet = header(&[
        3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1,
    ]);
    let (turn, look) = (vec![4], vec![2, 0x70, 0, 4, 2, 0, 1, 8]);
    let disk = offer(0, 0, &[(0, 16, 0), (0x1000, 0xf0, 2), (0x2000, 1, 2)]);
    let room = offer(0, 0, &[(0x1000, 200, 2)]);
    let send = offer(1, 0, &[(0, 44, 0)]);
    let entropy = [start(1), room.clone(), turn.clone(), look.clone()];
    let vsock = [
        start(3),
        room,
        packet,
        send,
        turn.clone(),
        turn.clone(),
        look.clone(),
    ];
    let block = [start(1), read, disk, turn.clone(), look.clone()];
    // Four sectors from the second on: 11 discards them, 13 writes zeroes.
    let emptied = [11, 13].map(|kind| {
        let mut bytes = [0; 28]; // flags are zero in memory
        (bytes[0], bytes[16], bytes[24]) = (kind, 2, 4);
        let request = offer(0, 0, &[(0, 16, 0), (16, 16, 0), (0x2000, 1, 2)]);
        [
            start(1),
            header(&bytes),
            request,
            turn.clone(),
            look.clone(),
        ]
    });
    vec![
        [vec![0], entropy.concat()].concat(),
        [vec![1], vsock.concat()].concat(),
        [vec![2], block.concat()].concat(),
        [vec![3], block.concat()].concat(),
        [vec![3], emptied[0].concat()].concat(),
        [vec![3], emptied[1].concat()].concat(),
    ]
}
