// SPDX-License-Identifier: GPL-2.0-only
//! Whole microVMs with a disk that hangs.

use std::fs;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use mvas_host::store::{Store, StoreOptions};
use nix::unistd::Pid;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT};
use virtio_bindings::virtio_mmio::*;
use vm_memory::{Bytes, GuestAddress};

use super::guests::*;
use super::tests::{Guest, wait_for};
use super::*;
use crate::config::DiskConfig;
use crate::memory::GuestMemory;
use crate::test_frozen::{Frozen, in_ext4};
use crate::test_store::test_store;
use crate::test_tmpfs::{Ballast, in_tmpfs};

/// What takes longer waits for the disk.
const PATIENCE: Duration = Duration::from_secs(60);

/// A driver's part of a disk: here the test's, before the guest runs. It reads or writes the first
/// sector.
struct Driver {
    /// Where the guest has what it needs for that.
    at: u64,
}

impl Driver {
    /// Where data and status are in it, each in a page of its own.
    const DATA: u64 = 0x8_0000;
    const STATUS: u64 = 0x9_0000;

    fn request(machine: &Machine, index: u64, kind: u32) -> Self {
        let driver = Self::prepare(machine, index, kind);
        driver.start(machine, index);
        driver
    }

    /// Puts a request into the queue of disk `index`.
    fn prepare(machine: &Machine, index: u64, kind: u32) -> Self {
        let at = (32 + index) << 20;
        let mem = machine.ram.memory();
        let (next, write) = (1u16, 2u16);
        let data = match kind {
            VIRTIO_BLK_T_IN => next | write,
            _ => next,
        };
        let descriptors: [(u64, u32, u16, u16); 3] = [
            (at + 0x3000, 16, next, 1),
            (at + Self::DATA, 512, data, 2),
            (at + Self::STATUS, 1, write, 0),
        ];
        for (i, (addr, len, flags, next)) in (0u64..).zip(descriptors) {
            let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
            mem.write_obj([addr, rest], GuestAddress(at + 16 * i))
                .unwrap();
        }
        // Available: no flags, an index of 1, the first chain.
        mem.write_obj([0u16, 1, 0], GuestAddress(at + 0x1000))
            .unwrap();
        mem.write_obj(0u32, GuestAddress(at + 0x2000)).unwrap();
        mem.write_obj([kind, 0, 0, 0], GuestAddress(at + 0x3000))
            .unwrap();
        Self { at }
    }

    /// Starts the disk, and kicks it.
    fn start(&self, machine: &Machine, index: u64) {
        let low = u32::try_from(self.at).unwrap();
        for (register, value) in [
            (VIRTIO_MMIO_STATUS, 0),
            (VIRTIO_MMIO_STATUS, 1),
            (VIRTIO_MMIO_STATUS, 3),
            (VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1),
            (VIRTIO_MMIO_DRIVER_FEATURES, 1),
            (VIRTIO_MMIO_STATUS, 0xb),
            (VIRTIO_MMIO_QUEUE_SEL, 0),
            (VIRTIO_MMIO_QUEUE_NUM, 4),
            (VIRTIO_MMIO_QUEUE_DESC_LOW, low),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, low + 0x1000),
            (VIRTIO_MMIO_QUEUE_USED_LOW, low + 0x2000),
            (VIRTIO_MMIO_QUEUE_READY, 1),
            (VIRTIO_MMIO_STATUS, 0xf),
            (VIRTIO_MMIO_QUEUE_NOTIFY, 0),
        ] {
            let window = u64::from(layout::VIRTIO_MMIO_BASE) + index * layout::VIRTIO_MMIO_SIZE;
            let bytes = u32::to_le_bytes(value);
            machine.bus.mmio_write(window + u64::from(register), &bytes);
        }
    }

    /// Whether the request was answered.
    fn is_done(&self, mem: &GuestMemory) -> bool {
        mem.read_obj::<u16>(GuestAddress(self.at + 0x2002)).unwrap() == 1
    }
}

/// Stops a VM.
struct StopOnDrop(EventFd);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        let _ = self.0.write(1);
    }
}

fn disk(path: &Path) -> DiskConfig {
    fs::write(path, [7; 4096]).unwrap();
    DiskConfig {
        path: path.to_owned(),
        read_only: false,
    }
}

/// Runs a guest whose first disk hangs, and calls `test` when it has printed `s`. Whether it ends
/// then while the disk still hangs is wanted, too.
fn with_hanging_disk(code: &[u8], test: impl FnOnce(&dyn Fn() -> bool, &Receiver<u8>) + Send) {
    in_ext4(|mounted| {
        let (_folder, store) = test_store();
        let mut guest = Guest::new(code);
        guest.config.ram = RamBacking::Store {
            store: store.clone(),
            grant: Grant::Own,
        };
        let dir = guest.dir.path().to_owned();
        guest.config.disks = vec![disk(&mounted.join("disk")), disk(&dir.join("disk"))];
        let stop = guest.stop.try_clone().unwrap();
        // Its folder goes with it.
        let kept = std::mem::replace(&mut guest.dir, tempfile::tempdir().unwrap());
        let (machine, printed) = guest.machine();
        let machine = machine.unwrap();
        let frozen = Frozen::new(mounted);
        let hangs = Driver::request(&machine, 0, VIRTIO_BLK_T_OUT);
        let works = Driver::request(&machine, 1, VIRTIO_BLK_T_IN);
        while !frozen.hangs(Pid::this()) {
            thread::yield_now();
        }
        let mem = machine.ram.memory().clone();
        let (tell, told) = channel();
        thread::scope(|scope| {
            // If this fails: thawed, then ended.
            let stopped = StopOnDrop(stop);
            let frozen = frozen;
            scope.spawn(move || tell.send(machine.run().map_err(drop)).unwrap());
            wait_for(&printed, b's');
            test(&|| works.is_done(&mem), &printed);
            drop(stopped);
            let end = told.recv_timeout(PATIENCE).expect("it should end");
            assert_eq!(end, Ok(ExitReason::Stopped));
            // What the request still has is not freed under it.
            assert!(!hangs.is_done(&mem));
            assert_eq!(store.living_vms().unwrap(), ["test"]);
            drop(frozen);
        });
        drop(kept);
    });
}

#[test]
fn a_disk_that_hangs_keeps_neither_other_devices_nor_the_end_from_coming() {
    // That the guest's `s` came was the event loop's doing: the line had no end.
    with_hanging_disk(sleep(), |other_disk_is_done, _| {
        let deadline = Instant::now() + PATIENCE;
        while !other_disk_is_done() {
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
    });
}

#[test]
fn a_vcpu_that_waits_for_a_disk_that_hangs_ends_when_told() {
    with_hanging_disk(reset_device(), |_, printed| {
        let reset = printed.recv_timeout(Duration::from_millis(300));
        assert!(reset.is_err(), "the request still has the guest's buffers");
    });
}

/// Starts a guest with a disk and a store of 80 MiB that is full, in which of the request's
/// data and status only one is `present`.
fn with_missing_memory(present: u64, test: impl FnOnce(Machine, &Driver, StopOnDrop) + Send) {
    in_tmpfs("size=80m", |dir| {
        let image = tempfile::NamedTempFile::new().unwrap();
        let mut guest = Guest::new(sleep());
        guest.config.disks = vec![disk(image.path())];
        guest.config.ram = RamBacking::Store {
            store: Store::open(&dir.join("store"), StoreOptions::default()).unwrap(),
            grant: Grant::Own,
        };
        let stop = StopOnDrop(guest.stop.try_clone().unwrap());
        let machine = guest.machine().0.unwrap();
        let driver = Driver::prepare(&machine, 0, VIRTIO_BLK_T_IN);
        let mem = machine.ram.memory();
        mem.write_obj(0xffu8, GuestAddress(driver.at + present))
            .unwrap();
        let full = Ballast::fill(dir);
        driver.start(&machine, 0);
        test(machine, &driver, stop);
        drop(full);
    });
}

#[test]
fn a_disk_that_finds_no_memory_for_data_answers_with_an_error() {
    with_missing_memory(Driver::STATUS, |machine, driver, stop| {
        let mem = machine.ram.memory().clone();
        let status = || mem.read_obj::<u8>(GuestAddress(driver.at + Driver::STATUS));
        let deadline = Instant::now() + PATIENCE;
        while !driver.is_done(&mem) {
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
        assert_eq!(status().unwrap(), 1);
        assert!(!machine.ram.is_lost());
        drop(stop);
        assert_eq!(machine.run().unwrap(), ExitReason::Stopped);
    });
}

#[test]
fn a_disk_that_finds_no_memory_for_its_answer_ends_its_guest() {
    with_missing_memory(Driver::DATA, |machine, _, _stop| {
        let error = machine.run().unwrap_err();
        assert!(
            matches!(error, RunError::Memory(MemoryError::Lost)),
            "{error:?}"
        );
    });
}
