// SPDX-License-Identifier: GPL-2.0-only
//! Whole microVMs with guests of a few instructions, on this machine's own KVM.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use mvas_host::server::{BLOCK, GuestBlock, GuestMapping, Sharing};
use tempfile::TempDir;
use vm_device::MutDevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_memory::{Bytes, GuestAddress};

use super::guests::*;
use super::*;
use crate::boot::test_kernel;
use crate::test_store::test_store;

/// Sends what the guest prints to the test.
struct Output(Sender<u8>);

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        for byte in data {
            // The test may have ended already.
            let _ = self.0.send(*byte);
        }
        Ok(data.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A microVM to be: what a test can change before it runs.
pub(super) struct Guest {
    pub config: VmConfig,
    printed: Receiver<u8>,
    pub stop: EventFd,
    pub dir: TempDir,
}

impl Guest {
    pub fn new(code: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("kernel");
        fs::write(&kernel, test_kernel::elf(code)).unwrap();
        let (output, printed) = channel();
        let config = VmConfig {
            name: "test".parse().unwrap(),
            mem: "64M".parse().unwrap(),
            ram: RamBacking::Memfd,
            cpus: "1".parse().unwrap(),
            kernel,
            initramfs: None,
            cmdline: String::new(),
            disks: Vec::new(),
            vsock: None,
            console: None,
            serial_output: Box::new(Output(output)),
            serial_input: None,
            metrics: Arc::default(),
            sandbox: Sandbox::default(),
        };
        Self {
            config,
            printed,
            stop: EventFd::new(EFD_NONBLOCK).unwrap(),
            dir,
        }
    }

    pub fn machine(self) -> (Result<Machine, RunError>, Receiver<u8>) {
        let stop = self.stop.try_clone().unwrap();
        let machine = Machine::new(Path::new(Host::DEVICE), self.config, stop);
        (machine, self.printed)
    }

    /// Runs it to its end; returns how it ended and what it printed.
    pub fn run(self) -> (Result<ExitReason, RunError>, String) {
        let (machine, printed) = self.machine();
        let end = machine
            .expect("these tests need a working /dev/kvm (`mvasvm doctor` tells more)")
            .run();
        (end, printed.try_iter().map(char::from).collect())
    }

    fn error(self) -> RunError {
        self.machine().0.err().expect("it should not start")
    }
}

pub(super) fn wait_for(printed: &Receiver<u8>, byte: u8) {
    while printed
        .recv_timeout(Duration::from_secs(30))
        .expect("the guest should print")
        != byte
    {}
}

#[test]
fn power_off_by_acpi_is_told_from_the_resets() {
    for (code, reason) in [
        (power_off(), ExitReason::PowerOff),
        (acpi_reset(), ExitReason::Reset),
        (keyboard_reset(), ExitReason::Reset),
        (triple_fault(), ExitReason::TripleFault),
    ] {
        assert_eq!(Guest::new(code).run().0.unwrap(), reason);
    }
}

#[test]
fn serial_output_arrives_whole_although_the_guest_does_not_end_its_line() {
    let (end, printed) = Guest::new(hello()).run();
    assert_eq!(
        (end.unwrap(), printed.as_str()),
        (ExitReason::PowerOff, "hello!")
    );
}

#[test]
fn a_guest_that_spins_or_sleeps_stops_when_told() {
    for code in [spin(), sleep()] {
        let mut guest = Guest::new(code);
        guest.config.cpus = "2".parse().unwrap();
        let stop = guest.stop.try_clone().unwrap();
        let (machine, printed) = guest.machine();
        let machine = machine.unwrap();
        let end = thread::scope(|scope| {
            scope.spawn(move || {
                wait_for(&printed, b's');
                stop.write(1).unwrap();
            });
            machine.run()
        });
        assert_eq!(end.unwrap(), ExitReason::Stopped);
    }
}

#[test]
fn a_stop_before_the_start_is_not_lost() {
    let guest = Guest::new(sleep());
    guest.stop.write(1).unwrap();
    assert_eq!(guest.run().0.unwrap(), ExitReason::Stopped);
}

#[test]
fn absent_ports_and_device_memory_read_all_ones_and_virtio_is_where_it_should_be() {
    let (end, printed) = Guest::new(probe()).run();
    assert_eq!(
        (end.unwrap(), printed.as_str()),
        (ExitReason::PowerOff, "12virt")
    );
}

#[test]
fn a_guest_sees_its_memory_on_both_sides_of_the_hole() {
    let mut guest = Guest::new(high_memory());
    guest.config.mem = "64G".parse().unwrap();
    let (end, printed) = guest.run();
    assert_eq!(
        (end.unwrap(), printed.as_str()),
        (ExitReason::PowerOff, "h")
    );
}

#[test]
fn the_second_vcpu_starts_when_the_first_says_so() {
    let mut guest = Guest::new(two_cpus());
    guest.config.cpus = "2".parse().unwrap();
    let (end, printed) = guest.run();
    assert_eq!(
        (end.unwrap(), printed.as_str()),
        (ExitReason::PowerOff, "1")
    );
}

#[test]
fn memory_remapped_under_a_running_vcpu_is_what_it_sees_and_its_writes_stay_private() {
    const WATCHED: GuestAddress = GuestAddress(16 << 20);
    let (machine, printed) = Guest::new(watch_memory()).machine();
    let machine = machine.unwrap();
    let ram = Arc::clone(&machine.ram);
    let source = RamFile::memfd("source", BLOCK).unwrap();
    source.file().write_all_at(b"B", 0).unwrap();
    let end = thread::scope(|scope| {
        let (ram, source) = (&ram, &source);
        scope.spawn(move || {
            wait_for(&printed, b's');
            let watched = GuestBlock::at(WATCHED.0).unwrap();
            ram.remap(watched, source.file(), source.range(), Sharing::Private)
                .unwrap();
        });
        machine.run()
    });
    assert_eq!(end.unwrap(), ExitReason::PowerOff);
    let mut byte = [0];
    source.file().read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(ram.memory().read_obj::<u8>(WATCHED).unwrap(), b'C');
    assert_eq!(byte, *b"B");
}

#[test]
fn code_where_no_memory_is_ends_the_vm_with_the_reason() {
    let error = Guest::new(run_from_nowhere()).run().0.unwrap_err();
    let RunError::Vcpu(VcpuError::Internal { cpu: 0, rip, .. }) = error else {
        panic!("{error}");
    };
    assert_eq!(rip, 0xd010_0000);
}

/// The first column of the table of counters in the docs.
fn documented_counters() -> BTreeSet<String> {
    let docs = include_str!("../../../docs/VMM.md");
    let (_, section) = docs.split_once("\n## Counters\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split('`').next().unwrap().to_owned())
        .collect()
}

#[test]
fn the_docs_list_every_counter_and_no_other() {
    let (_folder, store) = test_store();
    let mut guest = Guest::new(spin());
    let image = guest.dir.path().join("disk");
    fs::write(&image, [0; 512]).unwrap();
    guest.config.disks = vec![crate::config::DiskConfig {
        path: image,
        read_only: true,
    }];
    guest.config.vsock = Some(crate::config::VsockConfig {
        cid: 3,
        uds_path: guest.dir.path().join("vsock.sock"),
    });
    guest.config.console = Some(crate::config::ConsoleConfig {
        input: None,
        output: tempfile::tempfile().unwrap().into(),
        resized: None,
    });
    guest.config.ram = RamBacking::Store {
        store,
        grant: Grant::Own,
    };
    let metrics = Arc::clone(&guest.config.metrics);
    let _machine = guest.machine().0.unwrap();
    let mut counted = BTreeSet::new();
    for (part, counters) in metrics.to_json().as_object().unwrap() {
        let part = match part.as_str() {
            "disk0" => "diskN",
            part if part.ends_with("_window") => "DEVICE_window",
            part => part,
        };
        for (name, count) in counters.as_object().unwrap() {
            assert_eq!(count.as_u64(), Some(0), "{part}.{name}");
            counted.insert(format!("{part}.{name}"));
        }
    }
    assert_eq!(counted, documented_counters());
}

#[test]
fn exits_and_accesses_to_nothing_are_counted() {
    let guest = Guest::new(probe());
    let metrics = Arc::clone(&guest.config.metrics);
    guest.run().0.unwrap();
    let metrics = metrics.to_json();
    // Four bytes of one port; a write and a read of device memory.
    assert_eq!(metrics["bus"]["absent_ports"], 4, "{metrics}");
    assert_eq!(metrics["bus"]["absent_mmio"], 2, "{metrics}");
    assert!(metrics["vcpus"]["pio"].as_u64() > Some(6), "{metrics}");
    assert!(metrics["vcpus"]["mmio"].as_u64() > Some(2), "{metrics}");
}

/// A device with a bug.
struct Panics;

impl MutDevicePio for Panics {
    fn pio_read(&mut self, _: PioAddress, _: PioAddressOffset, _: &mut [u8]) {
        panic!("a panic that a test wants");
    }
    fn pio_write(&mut self, _: PioAddress, _: PioAddressOffset, _: &[u8]) {
        panic!("a panic that a test wants");
    }
}

impl MutEventSubscriber for Panics {
    fn init(&mut self, _: &mut EventOps) {}
    fn process(&mut self, _: Events, _: &mut EventOps) {
        panic!("a panic that a test wants");
    }
}

#[test]
fn a_panic_in_a_vcpu_thread_ends_the_vm() {
    let mut guest = Guest::new(poke_port_80());
    guest.config.cpus = "2".parse().unwrap();
    let mut machine = guest.machine().0.unwrap();
    let device = Arc::new(Mutex::new(Panics));
    machine.bus.add_port_device(0x80, 1, device).unwrap();
    let error = machine.run().unwrap_err();
    assert!(
        matches!(error, RunError::Vcpu(VcpuError::Panic { cpu: 0 })),
        "{error}"
    );
}

#[test]
fn a_panic_in_the_event_loop_stops_the_vcpus_too() {
    let mut machine = Guest::new(spin()).machine().0.unwrap();
    let subscriber = machine.events.add_subscriber(Arc::new(Mutex::new(Panics)));
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    event.write(1).unwrap();
    machine
        .events
        .event_ops(subscriber)
        .unwrap()
        .add(Events::new(&event, EventSet::IN))
        .unwrap();
    let end = machine.end.clone();
    assert!(catch_unwind(AssertUnwindSafe(|| machine.run())).is_err());
    assert!(end.is_ended());
}

#[test]
fn a_ram_file_in_a_store_is_gone_after_its_vm_if_no_snapshot_needs_it() {
    let (folder, store) = test_store();
    let mut guest = Guest::new(power_off());
    guest.config.ram = RamBacking::Store {
        store,
        grant: Grant::Own,
    };
    let machine = guest.machine().0.unwrap();
    let files = || {
        fs::read_dir(folder.path().join("store/ram"))
            .unwrap()
            .count()
    };
    let path = folder.path().to_str().unwrap();
    let is_mapped = || {
        fs::read_to_string("/proc/self/maps")
            .unwrap()
            .contains(path)
    };
    assert_eq!((files(), is_mapped()), (1, true));
    machine.run().unwrap();
    assert_eq!((files(), is_mapped()), (0, false));
}

#[test]
fn nothing_of_the_guests_memory_stays_mapped_after_its_end() {
    let mut guest = Guest::new(power_off());
    guest.config.name = "unmapped".parse().unwrap();
    let is_mapped = || {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        maps.contains("/memfd:unmapped")
    };
    let machine = guest.machine().0.unwrap();
    assert!(is_mapped());
    machine.run().unwrap();
    assert!(!is_mapped());
}

#[test]
fn more_memory_than_the_cpu_can_address_is_refused_before_anything_is_made() {
    let mut guest = Guest::new(power_off());
    guest.config.mem = "4095T".parse().unwrap();
    let error = guest.error();
    assert!(
        matches!(error, RunError::Memory(MemoryError::TooLarge { .. })),
        "{error}"
    );
}

#[test]
fn a_bad_kernel_file_is_refused() {
    let whole = test_kernel::elf(spin());
    let cut = &whole[..whole.len() - 1];
    for (contents, word) in [
        (None, "cannot read the kernel"),
        (Some(&b"not a kernel"[..]), "is not a kernel"),
        (Some(cut), "truncated"),
    ] {
        let guest = Guest::new(spin());
        fs::remove_file(&guest.config.kernel).unwrap();
        if let Some(contents) = contents {
            fs::write(&guest.config.kernel, contents).unwrap();
        }
        let error = guest.error();
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn too_many_disks_are_refused_with_the_limit() {
    let mut guest = Guest::new(power_off());
    let image: PathBuf = guest.dir.path().join("disk");
    fs::write(&image, [0; 512]).unwrap();
    let disk = crate::config::DiskConfig {
        path: image,
        read_only: true,
    };
    guest.config.disks = vec![disk; 19];
    let error = guest.error();
    assert!(
        matches!(error, RunError::TooManyDevices { count: 20, max: 19 }),
        "{error}"
    );
}

#[test]
fn a_missing_kvm_is_an_error_with_advice() {
    let guest = Guest::new(power_off());
    let error = run_on(Path::new("/nonexistent/kvm"), guest.config, guest.stop).unwrap_err();
    assert!(error.to_string().contains("--hw sim"), "{error}");
}
