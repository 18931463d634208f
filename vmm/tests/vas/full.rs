// SPDX-License-Identifier: GPL-2.0-only
//! A file system that is full when somebody touches guest memory for the first time.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use mvas_host::FileOffset;
use mvas_host::server::{BLOCK, GuestBlock, GuestMapping, GuestPage, PAGE, Status};
use mvas_host::store::{Store, StoreOptions};

use crate::tmpfs::{Ballast, in_tmpfs};
use crate::vm::{Vm, done, meta};

/// A block of the VMs here that nobody has touched.
const HOLE: u64 = 12;

/// Two VMs of 32 MiB that have a block each, the first with a snapshot of it.
fn vms(dir: &Path) -> (Store, Vm, Vm) {
    let store = Store::open(&dir.join("store"), StoreOptions::default()).unwrap();
    let (one, other) = (Vm::new(&store, "one"), Vm::new(&store, "other"));
    for page in 0..512 {
        one.write(page * PAGE, page);
        other.write(page * PAGE, page);
    }
    done(one.close(one.snapshot("kept", &[0])));
    (store, one, other)
}

fn is_full<T>(result: io::Result<T>) {
    let error = result.err().expect("there should be no room");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
}

#[test]
fn copying_what_was_never_touched_is_refused_and_nothing_is_lost() {
    in_tmpfs("size=80m", |dir| {
        let (store, vm, _other) = vms(dir);
        let file = vm.run.ram().file();
        let to = vm.run.allocate(1).unwrap().start();
        // Room for the copy is there, but none for the page that is copied.
        file.write_all_at(&[1; 8192], to.0).unwrap();
        let full = Ballast::fill(dir);
        let hole = GuestPage::from(GuestBlock(HOLE));
        is_full(vm.ram.copy_out(&[GuestPage(3), hole], file, to));
        is_full(
            vm.ram
                .copy_out(&[GuestPage(3)], file, FileOffset(to.0 + 16384)),
        );
        is_full(vm.ram.fill(GuestBlock(HOLE), Some((file, FileOffset(0)))));
        is_full(vm.ram.fill(GuestBlock(HOLE), None));
        drop(full);
        assert_eq!(vm.read(HOLE * BLOCK), 0);
        assert!(!vm.ram.is_lost());
        vm.ram.copy_out(&[GuestPage(3), hole], file, to).unwrap();
        vm.ram.fill(GuestBlock(HOLE), Some((file, to))).unwrap();
        assert_eq!([0, PAGE].map(|at| vm.read(HOLE * BLOCK + at)), [3, 0]);
        assert_eq!(store.check().unwrap().problems, []);
    });
}

#[test]
fn each_request_without_room_is_refused_or_done() {
    in_tmpfs("size=80m", |dir| {
        let (store, vm, _other) = vms(dir);
        let kept = vm.open("kept");
        vm.write(0, 7); // to be copied again when it is published
        let draft = vm.create("s");
        let full = Ballast::fill(dir);
        let refused = [
            vm.copy(draft, &[HOLE * 512]),
            vm.copy(draft, &[3]),
            vm.publish(draft, &[0]),
        ];
        for answer in refused {
            assert_eq!(answer.status(), Status::NoSpace, "{:?}", answer.error);
        }
        done(vm.map(kept, &[(HOLE, 0, 0)]));
        assert_eq!(vm.read(HOLE * BLOCK + PAGE), 1);
        done(vm.release(&[(HOLE, 1), (1, 1)]));
        done(vm.close(draft));
        done(vm.close(kept));
        assert!(!vm.ram.is_lost());
        drop(full);
        vm.snapshot("s", &[0, HOLE]);
        assert_eq!(store.check().unwrap().problems, []);
    });
}

#[test]
fn memory_that_a_device_touches_in_vain_is_lost_for_this_vm_only() {
    in_tmpfs("size=80m", |dir| {
        let (store, vm, other) = vms(dir);
        let draft = vm.create("s");
        let full = Ballast::fill(dir);
        // A page of zeroes of the monitor's own, and no signal that kills.
        assert_eq!(vm.read(HOLE * BLOCK), 0);
        vm.write(HOLE * BLOCK + PAGE, 7);
        assert_eq!(vm.read(HOLE * BLOCK + PAGE), 7);
        assert!(vm.ram.is_lost() && !other.ram.is_lost());
        assert!(vm.ram.lost_events().any(|event| event.read().is_ok()));
        drop(full);
        // What the RAM file has is not what a device wrote: no snapshot may claim it is.
        done(vm.publish(draft, &[HOLE]));
        done(vm.meta(draft, 0, &meta(1, 0)));
        assert_eq!(vm.commit(draft).status(), Status::Host);
        other.snapshot("other", &[0]);
        drop(vm);
        assert_eq!(other.read(PAGE), 1);
        assert_eq!(store.snapshots().unwrap().len(), 2);
        assert_eq!(store.check().unwrap().problems, []);
    });
}

#[test]
fn memory_behind_a_file_that_was_cut_off_is_lost_and_kills_nobody() {
    in_tmpfs("size=80m", |dir| {
        let (_store, vm, other) = vms(dir);
        vm.run.ram().file().set_len(0).unwrap();
        vm.write(5 * BLOCK, 7);
        assert_eq!((vm.read(5 * BLOCK), vm.read(PAGE)), (7, 0));
        assert!(vm.ram.is_lost() && !other.ram.is_lost());
    });
}
