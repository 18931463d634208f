// SPDX-License-Identifier: GPL-2.0-only
//! The register window of one device.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use thiserror::Error;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_device::MutDeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};
use vmm_sys_util::eventfd::EventFd;

use super::queue_setup::{QueueSetup, QueueSetupError};
use super::status::{Status, Write};
use crate::devices::Interrupt;
use crate::memory::GuestMemory;
use crate::metrics::Counter;
use crate::virtio::device::{ActivateArgs, ActivateError, VirtioDevice};
use crate::virtio::interrupt::VirtioInterrupt;

/// Bytes of guest-physical address space that a device's window takes.
pub const WINDOW_SIZE: u64 = 0x1000;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// The register layout of virtio 1.0 and later.
const VERSION: u32 = 2;
/// "mvas": which implementation this is.
const VENDOR: u32 = 0x7361_766d;

/// Why a device did not start.
#[derive(Debug, Error)]
pub enum TransportError {
    /// The driver set up a queue wrongly.
    #[error("the driver started the device with queue {index} unusable")]
    Queue {
        /// Which queue.
        index: usize,
        /// What is wrong with it.
        #[source]
        source: QueueSetupError,
    },
    /// The device itself did not start.
    #[error("the device refused to start")]
    Activate(#[from] ActivateError),
}

/// Accesses that a device's window does not answer.
#[derive(Debug, Default, Serialize)]
pub struct WindowMetrics {
    /// Reads of registers that are not there, or of the wrong width.
    pub unknown_reads: Counter,
    /// Writes likewise.
    pub unknown_writes: Counter,
}

/// A virtio-mmio register window and the device behind it.
pub struct MmioTransport {
    mem: Arc<GuestMemory>,
    interrupt: Arc<VirtioInterrupt>,
    device: Arc<Mutex<dyn VirtioDevice>>,
    device_type: u32,
    device_features: u64,
    queue_events: Vec<EventFd>,
    status: Status,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<QueueSetup>,
    metrics: Arc<WindowMetrics>,
}

impl fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device_type", &self.device_type)
            .field("status", &self.status)
            .field("driver_features", &self.driver_features)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}

impl MmioTransport {
    /// A window on `device`, whose interrupts go to `line`.
    ///
    /// # Errors
    /// The queues' events could not be duplicated: too many open files.
    pub fn new(
        mem: Arc<GuestMemory>,
        line: Box<dyn Interrupt>,
        device: Arc<Mutex<dyn VirtioDevice>>,
    ) -> io::Result<Self> {
        let locked = lock(&device);
        let device_type = locked.device_type();
        let device_features = locked.features();
        let queues = locked.queue_sizes().iter().copied().map(QueueSetup::new);
        let queues = queues.collect();
        let queue_events = locked.queue_events().iter().map(EventFd::try_clone);
        let queue_events = queue_events.collect::<io::Result<_>>()?;
        drop(locked);
        Ok(Self {
            mem,
            interrupt: Arc::new(VirtioInterrupt::new(line)),
            device,
            device_type,
            device_features,
            queue_events,
            status: Status::default(),
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues,
            metrics: Arc::default(),
        })
    }

    /// The window's counters; the device has its own.
    pub fn metrics(&self) -> Arc<WindowMetrics> {
        Arc::clone(&self.metrics)
    }

    /// The queues' events, by queue index. A VMM lets KVM write them (ioeventfd): on a 4-byte
    /// write of the index to offset [`VIRTIO_MMIO_QUEUE_NOTIFY`] of the window.
    pub fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device_type,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.device_features, self.device_features_sel),
            VIRTIO_MMIO_QUEUE_NUM_MAX => {
                self.queue().map_or(0, |queue| u32::from(queue.max_size()))
            }
            VIRTIO_MMIO_QUEUE_READY => self.queue().map_or(0, |queue| u32::from(queue.ready)),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            VIRTIO_MMIO_STATUS if self.interrupt.needs_reset() => {
                self.status.bits() | VIRTIO_CONFIG_S_NEEDS_RESET
            }
            VIRTIO_MMIO_STATUS => self.status.bits(),
            // No shared memory region exists: length and address are all ones (4.2.2.1).
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            VIRTIO_MMIO_CONFIG_GENERATION => lock(&self.device).config_generation(),
            _ => {
                self.unknown(&self.metrics.unknown_reads, "reads", offset.into(), 4);
                0
            }
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) {
        match offset {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES if self.status.negotiating() => {
                set_half(&mut self.driver_features, self.driver_features_sel, value);
            }
            VIRTIO_MMIO_QUEUE_SEL => self.queue_sel = value,
            VIRTIO_MMIO_QUEUE_NOTIFY => self.notify(value),
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            VIRTIO_MMIO_STATUS => self.write_status(value),
            // Features at a wrong time; a shared memory region, of which there is none.
            VIRTIO_MMIO_DRIVER_FEATURES | VIRTIO_MMIO_SHM_SEL => {}
            VIRTIO_MMIO_QUEUE_READY
            | VIRTIO_MMIO_QUEUE_NUM
            | VIRTIO_MMIO_QUEUE_DESC_LOW
            | VIRTIO_MMIO_QUEUE_DESC_HIGH
            | VIRTIO_MMIO_QUEUE_AVAIL_LOW
            | VIRTIO_MMIO_QUEUE_AVAIL_HIGH
            | VIRTIO_MMIO_QUEUE_USED_LOW
            | VIRTIO_MMIO_QUEUE_USED_HIGH => self.write_queue_register(offset, value),
            _ => self.unknown(&self.metrics.unknown_writes, "writes", offset.into(), 4),
        }
    }

    fn write_queue_register(&mut self, offset: u32, value: u32) {
        if !self.status.setting_up() {
            return;
        }
        let event_idx = self.event_idx();
        let mem = Arc::clone(&self.mem);
        let Some(queue) = self.queue_mut() else {
            return;
        };
        if offset == VIRTIO_MMIO_QUEUE_READY {
            queue.ready = value == 1
                && queue
                    .check(&mem, event_idx)
                    .inspect_err(|error| tracing::warn!(%error, "a virtqueue was not made ready"))
                    .is_ok();
        } else if !queue.ready {
            match offset {
                VIRTIO_MMIO_QUEUE_NUM => queue.size = value,
                VIRTIO_MMIO_QUEUE_DESC_LOW => set_half(&mut queue.desc_table, 0, value),
                VIRTIO_MMIO_QUEUE_DESC_HIGH => set_half(&mut queue.desc_table, 1, value),
                VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_half(&mut queue.avail_ring, 0, value),
                VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_half(&mut queue.avail_ring, 1, value),
                VIRTIO_MMIO_QUEUE_USED_LOW => set_half(&mut queue.used_ring, 0, value),
                VIRTIO_MMIO_QUEUE_USED_HIGH => set_half(&mut queue.used_ring, 1, value),
                _ => {}
            }
        }
    }

    fn write_status(&mut self, value: u32) {
        match self.status.write(value) {
            Write::Reset => self.reset(),
            Write::Step(VIRTIO_CONFIG_S_FEATURES_OK) if !self.features_acceptable() => {
                tracing::warn!(
                    offered = format_args!("{:#x}", self.device_features),
                    wanted = format_args!("{:#x}", self.driver_features),
                    device = self.device_type,
                    "the driver's choice of virtio features is refused"
                );
            }
            Write::Step(VIRTIO_CONFIG_S_DRIVER_OK) => {
                self.status.accept(VIRTIO_CONFIG_S_DRIVER_OK);
                if let Err(error) = self.activate() {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(
                        error,
                        device = self.device_type,
                        "a virtio device cannot start"
                    );
                    self.interrupt.device_error();
                }
            }
            Write::Step(bit) => self.status.accept(bit),
            Write::Failed => self.status.accept(VIRTIO_CONFIG_S_FAILED),
            Write::Same => {}
            Write::Invalid => tracing::debug!(value, status = ?self.status, "invalid status write"),
        }
    }

    fn activate(&mut self) -> Result<(), TransportError> {
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, setup) in self.queues.iter().enumerate() {
            let queue = setup
                .build(&self.mem, self.event_idx())
                .map_err(|source| TransportError::Queue { index, source })?;
            queues.push(queue);
        }
        lock(&self.device).activate(ActivateArgs {
            mem: Arc::clone(&self.mem),
            queues,
            interrupt: Arc::clone(&self.interrupt),
            features: self.driver_features,
        })?;
        Ok(())
    }

    fn reset(&mut self) {
        // When this returns it is not in the middle of a batch, and starts no other.
        lock(&self.device).reset();
        self.interrupt.reset();
        self.status = Status::default();
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
        for queue in &mut self.queues {
            *queue = QueueSetup::new(queue.max_size());
        }
    }

    fn notify(&self, index: u32) {
        let event = usize::try_from(index)
            .ok()
            .and_then(|index| self.queue_events.get(index));
        if let Some(Err(error)) = event.map(|event| event.write(1)) {
            tracing::error!(%error, "cannot pass on a virtqueue notification");
        }
    }

    /// The driver uses a register that is not there.
    fn unknown(&self, counter: &Counter, what: &str, offset: u64, width: usize) {
        if counter.is_first() {
            tracing::warn!(
                "the driver {what} {width} bytes at {offset:#x} of the window of a virtio device \
                 of type {}, where no such register is; more of that is counted",
                self.device_type
            );
        }
    }

    fn features_acceptable(&self) -> bool {
        self.driver_features & !self.device_features == 0
            && self.driver_features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn event_idx(&self) -> bool {
        self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0
    }

    fn queue(&self) -> Option<&QueueSetup> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    fn queue_mut(&mut self) -> Option<&mut QueueSetup> {
        self.queues.get_mut(usize::try_from(self.queue_sel).ok()?)
    }
}

impl MutDeviceMmio for MmioTransport {
    /// Registers are read 4 bytes at a time; configuration space at any width. Anything else
    /// reads as zero.
    fn mmio_read(&mut self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            lock(&self.device).read_config(offset, data);
        } else if let (Ok(offset), 4) = (u32::try_from(offset), data.len()) {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        } else {
            self.unknown(&self.metrics.unknown_reads, "reads", offset, data.len());
        }
    }

    fn mmio_write(&mut self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            lock(&self.device).write_config(offset, data);
        } else if let (Ok(offset), Ok(value)) = (u32::try_from(offset), data.try_into()) {
            self.write_register(offset, u32::from_le_bytes(value));
        } else {
            self.unknown(&self.metrics.unknown_writes, "writes", offset, data.len());
        }
    }
}

/// Locks a device. One that panicked on another thread is still a device: its state is
/// replaced as a whole by a reset.
fn lock<'a>(
    device: &'a Arc<Mutex<dyn VirtioDevice + 'static>>,
) -> MutexGuard<'a, dyn VirtioDevice + 'static> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The low (0) or high (1) half; other halves are zero.
fn half(value: u64, sel: u32) -> u32 {
    let bytes = value.to_le_bytes();
    match sel {
        0 => u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        1 => u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        _ => 0,
    }
}

fn set_half(to: &mut u64, sel: u32, value: u32) {
    match sel {
        0 => *to = *to & !0xffff_ffff | u64::from(value),
        1 => *to = *to & 0xffff_ffff | u64::from(value) << 32,
        _ => {}
    }
}
