// SPDX-License-Identifier: GPL-2.0-only
//! Runs a microVM from its configuration to its end.

#[cfg(test)]
mod disk_tests;
#[cfg(test)]
mod full_tests;
#[cfg(test)]
mod guests;
#[cfg(test)]
mod snapshot_tests;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use mvas_host::RamFile;
use mvas_host::server::{Grant, GuestMapping as _, Server, ServerConfig};
use mvas_host::store::{Room, StoreError, StoreRun};
use thiserror::Error;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::boot::{self, BootError, BootSpec, MmioDevice};
use crate::config::{RamBacking, VmConfig};
use crate::devices::power::{self, AcpiPower, Keyboard};
use crate::devices::serial::{self, SerialPort};
use crate::devices::{Bus, BusError};
use crate::end::EndSignal;
use crate::memory::{GuestRam, MemoryError, layout};
use crate::metrics::VcpuMetrics;
use crate::sandbox::{Role, Sandbox, SandboxError};
use crate::vcpu::{Vcpu, VcpuError, VcpuThreads};
use crate::virtio::build::{self as virtio, DeviceConfig};
use crate::vm::{Host, Vm, VmError};

pub use crate::end::ExitReason;

/// Why a microVM could not be started, or had to be ended.
#[derive(Debug, Error)]
pub enum RunError {
    /// The host's KVM is not usable or refuses something.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// Guest memory cannot be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The host has no memory left for the guest.
    #[error("the guest needs memory that the host does not have: {what_to_do}")]
    NoMemory {
        /// What is full, and what to do about it.
        what_to_do: String,
        /// How it was noticed, if not by a device.
        source: Option<Box<RunError>>,
    },
    /// The snapshot store is not usable.
    #[error("cannot put the guest's memory into the snapshot store")]
    Store(#[from] StoreError),
    /// The guest cannot be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A vCPU failed.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// A virtio device cannot be made.
    #[error(transparent)]
    Device(#[from] virtio::BuildError),
    /// More devices than interrupt lines.
    #[error(
        "{count} virtio devices are too many: there are interrupts for {max}; attach fewer disks"
    )]
    TooManyDevices {
        /// What was asked for.
        count: usize,
        /// What there can be.
        max: usize,
    },
    /// A device does not fit on the bus.
    #[error("internal error in the device map")]
    Bus(#[from] BusError),
    /// A thread cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A host resource failed.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The event loop failed.
    #[error("the event loop failed: {0:?}")]
    EventLoop(event_manager::Error),
}

type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// Boots the microVM and blocks until it ends. Write `stop` (from a signal handler or
/// another thread) to end it from outside.
///
/// # Errors
/// The VM cannot be made from `config` on this host, or an internal error ended it.
pub fn run(config: VmConfig, stop: EventFd) -> Result<ExitReason, RunError> {
    run_on(Path::new(Host::DEVICE), config, stop)
}

/// [`run`] with the KVM device at another path.
///
/// # Errors
/// As [`run`].
pub fn run_on(kvm: &Path, config: VmConfig, stop: EventFd) -> Result<ExitReason, RunError> {
    let place = match &config.ram {
        RamBacking::Memfd => None,
        RamBacking::Store { store, .. } => Some(store.path().to_owned()),
    };
    let ended = Machine::new(kvm, config, stop).and_then(Machine::run);
    ended.map_err(|error| no_memory(error, place.as_deref()))
}

/// Says what is full, if that is why the VM ended.
fn no_memory(error: RunError, place: Option<&Path>) -> RunError {
    let room = place.and_then(|dir| Room::of(dir).ok().flatten());
    let source = match error {
        RunError::Memory(MemoryError::Lost) => None,
        RunError::Vcpu(VcpuError::MemoryFault { .. }) => Some(error.into()),
        error => return error,
    };
    let what_to_do = match (place, room) {
        (Some(dir), Some(room)) => format!(
            "the file system of {} has {} of {} MiB left; remove snapshots (mvasvm snapshots rm), \
             end other VMs, give this one less --mem, or make it larger (mount -o remount,size=…)",
            dir.display(),
            room.free >> 20,
            room.total >> 20
        ),
        _ => "end other programs or VMs, or give this one less --mem".to_owned(),
    };
    RunError::NoMemory { what_to_do, source }
}

/// A microVM, complete, before its first instruction.
struct Machine {
    // Dropped in this order: what uses guest memory goes before it.
    vcpus: Vec<Vcpu>,
    vcpu_metrics: Arc<VcpuMetrics>,
    events: EventManager<Subscriber>,
    bus: Bus,
    end: EndSignal,
    sandbox: Sandbox,
    /// And the run in the store, which ends when guest memory is not mapped any more.
    ram: Arc<GuestRam>,
}

impl Machine {
    fn new(kvm: &Path, config: VmConfig, stop: EventFd) -> Result<Self, RunError> {
        let host = Host::open(kvm)?;
        host.check_cpus(config.cpus)?;
        let ram = Arc::new(make_ram(&config, &host)?);
        let vm = Arc::new(Vm::new(&host, &ram)?);
        let end = EndSignal::new().map_err(host_error("make an event"))?;
        let mut bus = Bus::new();
        let mut events = EventManager::new().map_err(RunError::EventLoop)?;
        events.add_subscriber(Arc::new(Mutex::new(StopWatch {
            stop,
            ram: Arc::clone(&ram),
            end: end.clone(),
        })) as Subscriber);
        attach_power(&end, &mut bus)?;
        attach_serial(
            config.serial_output,
            config.serial_input,
            &vm,
            &mut bus,
            &mut events,
        )?;
        let devices = virtio::build(
            DeviceConfig {
                disks: config.disks,
                vsock: config.vsock,
                console: config.console,
                vas: match (&config.ram, ram.run()) {
                    (RamBacking::Store { grant, .. }, Some(run)) => Some(server(run, *grant, &ram)),
                    _ => None,
                },
                sandbox: config.sandbox.clone(),
            },
            &Arc::new(ram.memory().clone()),
            &config.metrics,
            &end,
        )?;
        let virtio = attach_virtio(devices, &vm, &mut bus, &mut events)?;
        let entry = boot::load(
            ram.memory(),
            &BootSpec {
                kernel: &config.kernel,
                initramfs: config.initramfs.as_deref(),
                cmdline: &config.cmdline,
                cpus: config.cpus,
                virtio: &virtio,
            },
        )?;
        let vcpus = Vcpu::create_all(&host, &vm, ram.memory(), config.cpus, entry)?;
        let vcpu_metrics = Arc::<VcpuMetrics>::default();
        config.metrics.add("vcpus", vcpu_metrics.clone());
        config.metrics.add("bus", bus.metrics());
        Ok(Self {
            vcpus,
            vcpu_metrics,
            events,
            bus,
            end,
            sandbox: config.sandbox,
            ram,
        })
    }

    /// Runs the vCPUs in threads of their own, the devices in this one. No vCPU begins before all
    /// of these threads are confined.
    fn run(self) -> Result<ExitReason, RunError> {
        // Dropped in reverse order: guest memory is unmapped last.
        let Self {
            ram,
            end,
            bus,
            mut events,
            vcpus,
            vcpu_metrics,
            sandbox,
        } = self;
        // Devices are dropped by this thread, which may do what that takes, and not by a vCPU's.
        let bus = Arc::new(bus);
        let mut threads = VcpuThreads::start(vcpus, &bus, &end, &vcpu_metrics, &sandbox)?;
        sandbox.enter(Role::Devices)?;
        threads.run();
        while !end.is_ended() {
            events.run().map_err(RunError::EventLoop)?;
        }
        drop(threads);
        if ram.is_lost() {
            return Err(MemoryError::Lost.into());
        }
        let cause = end.take_cause().unwrap_or(Ok(ExitReason::Stopped));
        Ok(cause?)
    }
}

fn host_error(what: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::Host { what, source }
}

fn make_ram(config: &VmConfig, host: &Host) -> Result<GuestRam, RunError> {
    // Checked before there is a file: file systems have limits of their own.
    layout::place(config.mem, host.phys_bits())?;
    let (name, len) = (config.name.as_str(), config.mem.bytes());
    Ok(match &config.ram {
        RamBacking::Memfd => {
            let file = RamFile::memfd(name, len).map_err(MemoryError::from)?;
            GuestRam::new(&file, config.mem, host.phys_bits())?
        }
        RamBacking::Store { store, .. } => {
            let run = store.start_run(name, len)?;
            GuestRam::of_run(run, config.mem, host.phys_bits())?
        }
    })
}

/// The server of the guest's snapshot requests.
fn server(run: &StoreRun, grant: Grant, ram: &Arc<GuestRam>) -> Arc<Server> {
    Arc::new(Server::new(ServerConfig {
        run: run.clone(),
        memory: Arc::clone(ram) as _,
        ram: ram.blocks(),
        grant,
        max_mappings: max_mappings(),
        populate: true,
    }))
}

/// The most mappings that guest memory may take of this process's address space: what the
/// host allows, less some for all else.
fn max_mappings() -> u64 {
    const DEFAULT: u64 = 65530;
    const OTHERS: u64 = 4096;
    let allowed = std::fs::read_to_string("/proc/sys/vm/max_map_count");
    let allowed = allowed.ok().and_then(|text| text.trim().parse().ok());
    allowed.unwrap_or(DEFAULT).saturating_sub(OTHERS)
}

fn attach_power(end: &EndSignal, bus: &mut Bus) -> Result<(), BusError> {
    let acpi = Arc::new(Mutex::new(AcpiPower::new(end.clone())));
    bus.add_port_device(power::ACPI_BASE, power::ACPI_SIZE, acpi)?;
    let keyboard = Arc::new(Mutex::new(Keyboard::new(end.clone())));
    bus.add_port_device(power::I8042_BASE, power::I8042_SIZE, keyboard)
}

fn attach_serial(
    output: Box<dyn Write + Send>,
    input: Option<File>,
    vm: &Vm,
    bus: &mut Bus,
    events: &mut EventManager<Subscriber>,
) -> Result<(), RunError> {
    let interrupt = EventFd::new(EFD_NONBLOCK).map_err(host_error("make an event"))?;
    vm.add_interrupt(&interrupt, serial::IRQ)?;
    let port = SerialPort::new(Box::new(interrupt), output, input)
        .map_err(host_error("make the serial port"))?;
    let port = Arc::new(Mutex::new(port));
    events.add_subscriber(port.clone());
    bus.add_port_device(serial::BASE, serial::SIZE, port)?;
    Ok(())
}

/// Puts virtio devices on the bus, each with a window, an interrupt and doorbells of its own.
fn attach_virtio(
    devices: Vec<virtio::MmioDevice>,
    vm: &Vm,
    bus: &mut Bus,
    events: &mut EventManager<Subscriber>,
) -> Result<Vec<MmioDevice>, RunError> {
    let count = devices.len();
    let windows = (layout::VIRTIO_MMIO_BASE..).step_by(layout::VIRTIO_MMIO_STEP);
    let mut attached = Vec::new();
    for ((base, irq), device) in windows.zip(layout::VIRTIO_IRQS).zip(devices) {
        vm.add_interrupt(&device.irq, irq)?;
        for (event, queue) in device.queue_events.iter().zip(0..) {
            vm.add_doorbell(event, u64::from(base) + QUEUE_NOTIFY, queue)?;
        }
        bus.add_mmio_device(base.into(), layout::VIRTIO_MMIO_SIZE, device.transport)?;
        if let Some(subscriber) = device.subscriber {
            events.add_subscriber(subscriber);
        }
        tracing::debug!(device.name, base, irq, "virtio device");
        attached.push(MmioDevice { base, irq });
    }
    if attached.len() < count {
        let max = layout::VIRTIO_IRQS.count();
        return Err(RunError::TooManyDevices { count, max });
    }
    Ok(attached)
}

/// Wakes the event loop when the VM ends, and ends it when asked from outside.
struct StopWatch {
    stop: EventFd,
    ram: Arc<GuestRam>,
    end: EndSignal,
}

/// A virtio-mmio register: the driver writes the index of a queue that has work.
const QUEUE_NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

const STOP: u32 = 0;
const END: u32 = 1;
const LOST: u32 = 2;

impl MutEventSubscriber for StopWatch {
    fn init(&mut self, ops: &mut EventOps) {
        let lost = self.ram.lost_events().map(|event| (event, LOST));
        for (event, data) in [(&self.stop, STOP), (self.end.event(), END)]
            .into_iter()
            .chain(lost)
        {
            if let Err(error) = ops.add(Events::with_data(event, data, EventSet::IN)) {
                // Without it the VM could not be stopped: do not start it.
                tracing::error!(?error, "cannot wait for the end of the VM");
                self.end.end(Ok(ExitReason::Stopped));
            }
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps) {
        if events.data() != END {
            self.end.end(Ok(ExitReason::Stopped));
        }
    }
}
