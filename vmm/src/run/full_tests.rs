// SPDX-License-Identifier: GPL-2.0-only
//! Guests whose memory the host cannot provide.

use mvas_host::server::BLOCK;
use mvas_host::store::{Store, StoreOptions};
use vm_memory::{Bytes, GuestAddress};

use super::guests::*;
use super::tests::Guest;
use super::*;
use crate::test_tmpfs::{Ballast, in_tmpfs};

/// A guest whose memory is in a store in `dir`.
fn guest(dir: &Path, code: &[u8]) -> Guest {
    let mut guest = Guest::new(code);
    guest.config.ram = RamBacking::Store {
        store: Store::open(&dir.join("store"), StoreOptions::default()).unwrap(),
        grant: Grant::Own,
    };
    guest
}

fn wants_advice(error: &RunError, dir: &Path) {
    let text = error.to_string();
    let store = dir.join("store").canonicalize().unwrap();
    let place = format!(
        "the file system of {} has 0 of 80 MiB left",
        store.display()
    );
    assert!(matches!(error, RunError::NoMemory { .. }), "{error:?}");
    assert!(
        text.contains(&place) && text.contains("mvasvm snapshots rm"),
        "{text}"
    );
}

/// What KVM's `EFAULT` becomes. That a guest's own access ends in it is KVM's to do: not every
/// software KVM does.
#[test]
fn a_vcpu_that_finds_no_memory_is_told_what_is_full() {
    in_tmpfs("size=80m", |dir| {
        let store = Store::open(&dir.join("store"), StoreOptions::default()).unwrap();
        let _full = Ballast::fill(dir);
        let fault = VcpuError::MemoryFault { cpu: 0, rip: 0 };
        let error = no_memory(fault.into(), Some(store.path()));
        wants_advice(&error, dir);
        let source = std::error::Error::source(&error).unwrap();
        assert!(source.to_string().contains("vCPU 0"), "{source}");
    });
    let other = no_memory(VcpuError::Panic { cpu: 0 }.into(), None);
    assert!(matches!(other, RunError::Vcpu(VcpuError::Panic { .. })));
}

#[test]
fn a_device_that_finds_no_memory_for_its_guest_ends_that_guest_alone() {
    in_tmpfs("size=80m", |dir| {
        let machine = guest(dir, sleep()).machine().0.unwrap();
        let place = machine.ram.run().unwrap().store().path().to_owned();
        let full = Ballast::fill(dir);
        // As a device would, in the event loop's thread or in one of its own.
        let memory = machine.ram.memory().clone();
        memory.write_obj(7u8, GuestAddress(8 * BLOCK)).unwrap();
        drop(memory);
        let error = no_memory(machine.run().unwrap_err(), Some(&place));
        wants_advice(&error, dir);
        drop(full);
        assert_eq!(
            guest(dir, power_off()).run().0.unwrap(),
            ExitReason::PowerOff
        );
    });
}
