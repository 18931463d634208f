// SPDX-License-Identifier: GPL-2.0-only
//! From configuration to devices that the core can put on its bus.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::MutEventSubscriber;
use mvas_host::server::Server;
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::block::{Block, Disk, DiskError};
use super::console::Console;
use super::device::VirtioDevice;
use super::entropy::Entropy;
use super::mmio::MmioTransport;
use super::vas::Vas;
use super::vsock::{ListenError, Vsock};
use crate::config::{ConsoleConfig, DiskConfig, VsockConfig};
use crate::end::EndSignal;
use crate::memory::GuestMemory;
use crate::metrics::{Counters, Metrics};
use crate::sandbox::Sandbox;

/// Why a device could not be made.
#[derive(Debug, Error)]
pub enum BuildError {
    /// A disk image is not usable.
    #[error("cannot attach a disk")]
    Disk(#[from] DiskError),
    /// The vsock device's socket is not usable.
    #[error("cannot make the vsock device")]
    Vsock(#[from] ListenError),
    /// The host has no more of what devices are made of.
    #[error("cannot make the {device} device")]
    Io {
        /// Which.
        device: &'static str,
        /// What the host says.
        #[source]
        source: io::Error,
    },
}

/// The devices that a microVM has besides its entropy source, which it always has.
#[derive(Debug, Default)]
pub struct DeviceConfig {
    /// `/dev/vda`, `/dev/vdb`, …
    pub disks: Vec<DiskConfig>,
    /// Streams between guest and host.
    pub vsock: Option<VsockConfig>,
    /// `hvc0`.
    pub console: Option<ConsoleConfig>,
    /// The way to the snapshot store.
    pub vas: Option<Arc<Server>>,
    /// What threads of devices enter.
    pub sandbox: Sandbox,
}

/// A device, ready for the bus, KVM and the event loop.
pub struct MmioDevice {
    /// Which it is, for messages.
    pub name: String,
    /// Answers a window of [`WINDOW_SIZE`](super::mmio::WINDOW_SIZE) bytes.
    pub transport: Arc<Mutex<MmioTransport>>,
    /// Written to raise the interrupt (edge): an irqfd.
    pub irq: EventFd,
    /// One for each queue: ioeventfds for 4-byte writes of the queue's index to
    /// `VIRTIO_MMIO_QUEUE_NOTIFY`. Without them, notifications work through the window too.
    pub queue_events: Vec<EventFd>,
    /// To be added to the event loop before the guest runs, unless the device has threads of
    /// its own.
    pub subscriber: Option<Arc<Mutex<dyn MutEventSubscriber + Send>>>,
}

impl MmioDevice {
    /// Adds the counters of the device and of its window.
    fn counted_as(self, part: &str, counters: Arc<dyn Counters>, metrics: &Metrics) -> Self {
        metrics.add(part, counters);
        let transport = self.transport.lock();
        let transport = transport.unwrap_or_else(PoisonError::into_inner);
        metrics.add(format!("{part}_window"), transport.metrics());
        drop(transport);
        self
    }
}

/// Makes all devices, in the order in which the guest should find them, and adds their counters
/// to `metrics`. Images are open and locked when this returns. `end` is the VM's.
///
/// # Errors
/// One of them cannot be made.
pub fn build(
    config: DeviceConfig,
    mem: &Arc<GuestMemory>,
    metrics: &Metrics,
    end: &EndSignal,
) -> Result<Vec<MmioDevice>, BuildError> {
    let mut devices = Vec::new();
    for (index, disk) in config.disks.into_iter().enumerate() {
        let name = format!("disk {}", disk.path.display());
        let disk = Disk::open(&disk.path, disk.read_only)?;
        let mut block = Block::new(disk).map_err(io_error("block"))?;
        block
            .start_thread(index, end, &config.sandbox)
            .map_err(io_error("block"))?;
        let counters = block.metrics();
        let block = Arc::new(Mutex::new(block));
        let device = on_mmio(name, block, mem).map_err(io_error("block"))?;
        devices.push(device.counted_as(&format!("disk{index}"), counters, metrics));
    }
    let entropy = Entropy::new().map_err(io_error("entropy"))?;
    let counters = entropy.metrics();
    let device = attach("entropy".to_owned(), entropy, mem).map_err(io_error("entropy"))?;
    devices.push(device.counted_as("entropy", counters, metrics));
    if let Some(config) = config.vsock {
        let vsock = Vsock::new(&config.uds_path, config.cid)?;
        let counters = vsock.metrics();
        let device = attach("vsock".to_owned(), vsock, mem).map_err(io_error("vsock"))?;
        devices.push(device.counted_as("vsock", counters, metrics));
    }
    if let Some(config) = config.console {
        let console = Console::new(config).map_err(io_error("console"))?;
        let counters = console.metrics();
        let device = attach("console".to_owned(), console, mem).map_err(io_error("console"))?;
        devices.push(device.counted_as("console", counters, metrics));
    }
    if let Some(server) = config.vas {
        metrics.add("snapshots", Arc::clone(server.metrics()) as _);
        let vas = Vas::new(server, &config.sandbox).map_err(io_error("vas"))?;
        let counters = vas.metrics();
        let vas = Arc::new(Mutex::new(vas));
        let device = on_mmio("vas".to_owned(), vas, mem).map_err(io_error("vas"))?;
        devices.push(device.counted_as("vas", counters, metrics));
    }
    Ok(devices)
}

fn io_error(device: &'static str) -> impl Fn(io::Error) -> BuildError {
    move |source| BuildError::Io { device, source }
}

fn attach<D>(name: String, device: D, mem: &Arc<GuestMemory>) -> io::Result<MmioDevice>
where
    D: VirtioDevice + MutEventSubscriber + 'static,
{
    let device = Arc::new(Mutex::new(device));
    let mut attached = on_mmio(name, Arc::clone(&device) as _, mem)?;
    attached.subscriber = Some(device);
    Ok(attached)
}

/// Gives a device its window and its events.
fn on_mmio(
    name: String,
    device: Arc<Mutex<dyn VirtioDevice>>,
    mem: &Arc<GuestMemory>,
) -> io::Result<MmioDevice> {
    let irq = EventFd::new(EFD_NONBLOCK)?;
    let line = Box::new(irq.try_clone()?);
    let transport = MmioTransport::new(Arc::clone(mem), line, device)?;
    let queue_events = transport.queue_events().iter().map(EventFd::try_clone);
    Ok(MmioDevice {
        name,
        queue_events: queue_events.collect::<io::Result<_>>()?,
        transport: Arc::new(Mutex::new(transport)),
        irq,
        subscriber: None,
    })
}

#[cfg(test)]
mod tests {
    use event_manager::{EventManager, SubscriberOps};

    use super::*;
    use crate::virtio::test_utils::memory;

    #[test]
    fn devices_come_in_order_and_join_an_event_loop() {
        let dir = tempfile::tempdir().unwrap();
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(512).unwrap();
        let disk = DiskConfig {
            path: image.path().to_owned(),
            read_only: true,
        };
        let config = DeviceConfig {
            disks: vec![disk.clone(), disk],
            vsock: Some(VsockConfig {
                cid: 3,
                uds_path: dir.path().join("vsock.sock"),
            }),
            console: Some(ConsoleConfig {
                input: None,
                output: tempfile::tempfile().unwrap().into(),
                resized: None,
            }),
            ..DeviceConfig::default()
        };
        let end = EndSignal::new().unwrap();
        let devices = build(config, &memory(), &Metrics::default(), &end).unwrap();
        let names: Vec<_> = devices.iter().map(|device| device.name.as_str()).collect();
        assert!(names[0].starts_with("disk ") && names[1].starts_with("disk "));
        assert_eq!(names[2..], ["entropy", "vsock", "console"]);
        let mut events = EventManager::<Arc<Mutex<dyn MutEventSubscriber + Send>>>::new().unwrap();
        for device in devices {
            device.queue_events[0].write(1).unwrap();
            // Disks have threads of their own.
            assert_eq!(
                device.subscriber.is_none(),
                device.name.starts_with("disk ")
            );
            if let Some(subscriber) = device.subscriber {
                events.add_subscriber(subscriber);
            }
        }
        // Kicks before the driver is ready are taken and do nothing.
        assert_eq!(events.run_with_timeout(0).unwrap(), 3);
        assert_eq!(events.run_with_timeout(0).unwrap(), 0);
    }

    #[test]
    fn a_missing_disk_is_an_error_with_its_cause() {
        let config = DeviceConfig {
            disks: vec![DiskConfig {
                path: "/nonexistent".into(),
                read_only: true,
            }],
            ..DeviceConfig::default()
        };
        let end = EndSignal::new().unwrap();
        let error = build(config, &memory(), &Metrics::default(), &end);
        let error = error.err().unwrap();
        assert!(matches!(error, BuildError::Disk(DiskError::Missing(_))));
    }
}
