// SPDX-License-Identifier: GPL-2.0-only
//! The transport, driven as a guest's driver does, with a real device behind it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use virtio_bindings::virtio_mmio::*;
use vm_device::MutDeviceMmio;
use vm_device::bus::MmioAddress;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::MmioTransport;
use crate::memory::GuestMemory;
use crate::virtio::device::{
    ActivateArgs, ActivateError, COMMON_FEATURES, VirtioDevice, read_config_from,
};
use crate::virtio::entropy::Entropy;
use crate::virtio::test_utils::{CountingLine, memory};

const BASE: MmioAddress = MmioAddress(0xd000_0000);

struct Rig {
    transport: MmioTransport,
    interrupts: Arc<AtomicU64>,
    mem: Arc<GuestMemory>,
}

impl Rig {
    fn new() -> Self {
        Self::with(Arc::new(Mutex::new(Entropy::new().unwrap())))
    }

    fn with(device: Arc<Mutex<dyn VirtioDevice>>) -> Self {
        let mem = memory();
        let (line, interrupts) = CountingLine::new();
        let transport = MmioTransport::new(Arc::clone(&mem), Box::new(line), device).unwrap();
        Self {
            transport,
            interrupts,
            mem,
        }
    }

    fn read(&mut self, offset: u32) -> u32 {
        let mut data = [0xaa; 4];
        self.transport.mmio_read(BASE, offset.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u32, value: u32) {
        self.transport
            .mmio_write(BASE, offset.into(), &value.to_le_bytes());
    }

    /// Reads and writes of unknown registers.
    fn unknown(&self) -> (u64, u64) {
        let metrics = self.transport.metrics();
        (metrics.unknown_reads.get(), metrics.unknown_writes.get())
    }

    fn status(&mut self) -> u32 {
        self.read(VIRTIO_MMIO_STATUS)
    }

    /// As Linux's virtio_mmio does up to FEATURES_OK, taking all features.
    fn negotiate(&mut self) {
        self.write(VIRTIO_MMIO_STATUS, 0);
        self.write(VIRTIO_MMIO_STATUS, 1);
        self.write(VIRTIO_MMIO_STATUS, 3);
        for half in [1, 0] {
            self.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, half);
            let features = self.read(VIRTIO_MMIO_DEVICE_FEATURES);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            self.write(VIRTIO_MMIO_DRIVER_FEATURES, features);
        }
        self.write(VIRTIO_MMIO_STATUS, 0xb);
        assert_eq!(self.status(), 0xb);
    }

    fn set_up_queue(&mut self, index: u32) {
        let at = 0x1_0000 * (index + 1);
        self.write(VIRTIO_MMIO_QUEUE_SEL, index);
        assert_eq!(self.read(VIRTIO_MMIO_QUEUE_READY), 0);
        self.write(VIRTIO_MMIO_QUEUE_NUM, 16);
        self.write(VIRTIO_MMIO_QUEUE_DESC_LOW, at);
        self.write(VIRTIO_MMIO_QUEUE_DESC_HIGH, 0);
        self.write(VIRTIO_MMIO_QUEUE_AVAIL_LOW, at + 0x1000);
        self.write(VIRTIO_MMIO_QUEUE_USED_LOW, at + 0x2000);
        self.write(VIRTIO_MMIO_QUEUE_READY, 1);
    }

    fn start(&mut self) {
        self.negotiate();
        self.set_up_queue(0);
        assert_eq!(self.read(VIRTIO_MMIO_QUEUE_READY), 1);
        self.write(VIRTIO_MMIO_STATUS, 0xf);
    }
}

#[test]
fn a_driver_finds_and_starts_the_device() {
    let mut rig = Rig::new();
    assert_eq!(
        rig.read(VIRTIO_MMIO_MAGIC_VALUE),
        u32::from_le_bytes(*b"virt")
    );
    assert_eq!(rig.read(VIRTIO_MMIO_VERSION), 2);
    assert_eq!(rig.read(VIRTIO_MMIO_DEVICE_ID), 4);
    assert_eq!(rig.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 64);
    rig.start();
    assert_eq!(rig.status(), 0xf);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    for (half, value) in [(0, 1), (1, 1 | 1 << 5), (1, 0)] {
        let mut rig = Rig::new();
        rig.write(VIRTIO_MMIO_STATUS, 1);
        rig.write(VIRTIO_MMIO_STATUS, 3);
        rig.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        rig.write(VIRTIO_MMIO_DRIVER_FEATURES, 1);
        rig.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
        rig.write(VIRTIO_MMIO_DRIVER_FEATURES, value);
        rig.write(VIRTIO_MMIO_STATUS, 0xb);
        assert_eq!(rig.status(), 3, "half {half} value {value:#x}");
    }
}

#[test]
fn features_cannot_change_after_they_were_accepted() {
    let mut rig = Rig::new();
    rig.negotiate();
    rig.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    rig.write(VIRTIO_MMIO_DRIVER_FEATURES, u32::MAX);
    rig.set_up_queue(0);
    rig.write(VIRTIO_MMIO_STATUS, 0xf);
    assert_eq!(rig.status(), 0xf);
}

#[test]
fn a_device_started_without_its_queue_asks_for_a_reset() {
    let mut rig = Rig::new();
    rig.negotiate();
    rig.write(VIRTIO_MMIO_STATUS, 0xf);
    assert_eq!(rig.status(), 0x4f);
    assert_eq!(rig.read(VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    assert_eq!(rig.interrupts.load(Ordering::SeqCst), 1);
    // And a reset helps.
    rig.start();
    assert_eq!(rig.status(), 0xf);
    assert_eq!(rig.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn a_bad_queue_does_not_become_ready() {
    for (register, value) in [
        (VIRTIO_MMIO_QUEUE_NUM, 0),
        (VIRTIO_MMIO_QUEUE_NUM, 128),
        (VIRTIO_MMIO_QUEUE_NUM, 0x1_0010),
        (VIRTIO_MMIO_QUEUE_DESC_HIGH, 1),
        (VIRTIO_MMIO_QUEUE_DESC_LOW, 8),
        (VIRTIO_MMIO_QUEUE_AVAIL_LOW, 1),
        (VIRTIO_MMIO_QUEUE_USED_LOW, 2),
        (VIRTIO_MMIO_QUEUE_USED_HIGH, u32::MAX),
    ] {
        let mut rig = Rig::new();
        rig.negotiate();
        rig.set_up_queue(0);
        rig.write(VIRTIO_MMIO_QUEUE_READY, 0);
        rig.write(register, value);
        rig.write(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(
            rig.read(VIRTIO_MMIO_QUEUE_READY),
            0,
            "{register:#x} {value:#x}"
        );
    }
}

#[test]
fn a_running_queue_cannot_be_moved() {
    let mut rig = Rig::new();
    rig.start();
    rig.write(VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(rig.read(VIRTIO_MMIO_QUEUE_READY), 1);
}

#[test]
fn queues_that_do_not_exist_read_as_absent() {
    let mut rig = Rig::new();
    rig.negotiate();
    for index in [1, 2, u32::MAX] {
        rig.write(VIRTIO_MMIO_QUEUE_SEL, index);
        assert_eq!(rig.read(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        rig.write(VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(rig.read(VIRTIO_MMIO_QUEUE_READY), 0);
    }
}

#[test]
fn a_notification_reaches_the_queues_event_and_no_other() {
    let mut rig = Rig::new();
    rig.start();
    let event = rig.transport.queue_events()[0].try_clone().unwrap();
    assert_eq!(event.read().unwrap(), 1, "starting is a kick");
    rig.write(VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert_eq!(event.read().unwrap(), 1);
    for index in [1, 64, u32::MAX] {
        rig.write(VIRTIO_MMIO_QUEUE_NOTIFY, index);
    }
    assert!(event.read().is_err());
}

#[test]
fn reset_returns_everything_to_the_beginning() {
    let mut rig = Rig::new();
    rig.start();
    rig.write(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(rig.status(), 0);
    rig.write(VIRTIO_MMIO_QUEUE_SEL, 0);
    assert_eq!(rig.read(VIRTIO_MMIO_QUEUE_READY), 0);
    rig.start();
    assert_eq!(rig.status(), 0xf);
}

#[test]
fn wrong_widths_read_as_zero_and_write_nothing() {
    let mut rig = Rig::new();
    for width in [0, 1, 2, 3, 8, 64] {
        let mut data = vec![0xaa; width];
        rig.transport.mmio_read(BASE, 0, &mut data);
        assert!(data.iter().all(|byte| *byte == 0), "{width}");
        rig.transport
            .mmio_write(BASE, VIRTIO_MMIO_STATUS.into(), &vec![1; width]);
        assert_eq!(rig.status(), 0, "{width}");
    }
    assert_eq!(rig.unknown(), (6, 6));
}

#[test]
fn accesses_to_registers_that_are_not_there_are_counted_and_no_others() {
    let mut rig = Rig::new();
    rig.start();
    // As Linux takes a device down: a known register at a time when it does nothing.
    rig.write(VIRTIO_MMIO_STATUS, 0);
    rig.write(VIRTIO_MMIO_QUEUE_SEL, 0);
    rig.write(VIRTIO_MMIO_QUEUE_READY, 0);
    rig.write(VIRTIO_MMIO_DRIVER_FEATURES, 1);
    assert_eq!(rig.unknown(), (0, 0));
    // Of the layout before virtio 1.0, only to be written, and none at all.
    for offset in [VIRTIO_MMIO_QUEUE_PFN, VIRTIO_MMIO_QUEUE_NUM, 0xf0] {
        assert_eq!(rig.read(offset), 0);
    }
    rig.write(VIRTIO_MMIO_QUEUE_PFN, 1);
    rig.write(VIRTIO_MMIO_MAGIC_VALUE, 1);
    assert_eq!(rig.unknown(), (3, 2));
}

/// A device that cannot start, and whose configuration changes: neither happens on demand
/// with the real ones.
struct Moody {
    events: [EventFd; 1],
    generation: u32,
    resets: u32,
}

impl VirtioDevice for Moody {
    fn device_type(&self) -> u32 {
        42
    }
    fn features(&self) -> u64 {
        COMMON_FEATURES
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16]
    }
    fn queue_events(&self) -> &[EventFd] {
        &self.events
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_from(&[1, 2, 3, 4, 5, 6, 7, 8], offset, data);
    }
    fn config_generation(&self) -> u32 {
        self.generation
    }
    fn activate(&mut self, _args: ActivateArgs) -> Result<(), ActivateError> {
        Err(ActivateError::Io(std::io::ErrorKind::OutOfMemory.into()))
    }
    fn reset(&mut self) {
        self.resets += 1;
    }
}

#[test]
fn a_device_that_does_not_start_asks_for_a_reset_and_gets_it() {
    let device = Arc::new(Mutex::new(Moody {
        events: [EventFd::new(EFD_NONBLOCK).unwrap()],
        generation: 7,
        resets: 0,
    }));
    let mut rig = Rig::with(Arc::clone(&device) as Arc<Mutex<dyn VirtioDevice>>);
    rig.start();
    assert_eq!(rig.status(), 0x4f);
    let resets = device.lock().unwrap().resets;
    rig.write(VIRTIO_MMIO_STATUS, 0);
    assert_eq!(rig.status(), 0);
    assert_eq!(device.lock().unwrap().resets, resets + 1);
}

#[test]
fn configuration_space_is_read_at_any_width() {
    let mut rig = Rig::with(Arc::new(Mutex::new(Moody {
        events: [EventFd::new(EFD_NONBLOCK).unwrap()],
        generation: 7,
        resets: 0,
    })));
    assert_eq!(rig.read(VIRTIO_MMIO_CONFIG_GENERATION), 7);
    for (offset, expected) in [
        (0, &[1u8][..]),
        (2, &[3, 4]),
        (4, &[5, 6, 7, 8]),
        (6, &[7, 8, 0, 0]),
    ] {
        let mut data = vec![0xaa; expected.len()];
        rig.transport.mmio_read(BASE, 0x100 + offset, &mut data);
        assert_eq!(data, expected);
    }
    let mut data = [0xaa; 4];
    rig.transport.mmio_read(BASE, u64::MAX, &mut data);
    assert_eq!(data, [0; 4]);
}

proptest! {
    /// A driver that writes anything anywhere never gets a panic, never a ready queue outside
    /// of memory, and a reset always brings the device back.
    #[test]
    fn any_register_accesses_are_survived(
        accesses in proptest::collection::vec(
            (any::<bool>(), prop_oneof![4 => (0u64..0x44).prop_map(|r| r * 4), 1 => 0u64..0x1000],
             prop_oneof![2 => 0u32..0x20, 1 => (0u32..0x40).prop_map(|p| p << 12), 1 => any::<u32>()]),
            0..300,
        ),
    ) {
        let mut rig = Rig::new();
        for (is_write, offset, value) in accesses {
            if is_write {
                rig.transport.mmio_write(BASE, offset, &value.to_le_bytes());
            } else {
                let mut data = [0; 4];
                rig.transport.mmio_read(BASE, offset, &mut data);
            }
        }
        rig.start();
        prop_assert_eq!(rig.status(), 0xf);
        // And it works: one request, through the transport's memory.
        rig.mem.write_obj(0u16, GuestAddress(0x1_1002)).unwrap();
    }
}
