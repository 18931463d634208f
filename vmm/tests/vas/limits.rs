// SPDX-License-Identifier: GPL-2.0-only
//! Where the server refuses, or does with less.

use std::sync::atomic::AtomicBool;

use mvas_abi::virtio_vas::*;
use mvas_host::server::{BLOCK, Grant, PAGE, Status};
use mvas_host::store::{Store, StoreOptions};
use zerocopy::{FromBytes, IntoBytes};

use crate::tmpfs::in_tmpfs;
use crate::vm::{Setup, Vm, done, meta, name_field, store, store_with};

#[test]
fn memory_outside_of_ram_is_a_bad_range_and_nothing_is_done() {
    let (_folder, store) = store();
    let vm = Vm::new(&store, "a");
    vm.write(0, 1);
    let handle = vm.snapshot("s", &[0]);
    let draft = vm.create("t");
    let bad = |answer: mvas_host::server::Answer| {
        assert_eq!((answer.status(), answer.done), (Status::BadRange, 0));
    };
    bad(vm.publish(draft, &[1, 16]));
    bad(vm.copy(draft, &[1, 16 * 512]));
    bad(vm.map(handle, &[(1, 0, 0), (16, 0, 0)]));
    bad(vm.map(handle, &[(1, 0, 0), (2, 1, 0)]));
    bad(vm.map(handle, &[(1, 0, 0), (2, 0, 1)]));
    bad(vm.release(&[(0, 1), (15, 2)]));
    bad(vm.release(&[(0, 1), (u64::from(u32::MAX), 1)]));
    assert_eq!((vm.read(0), vm.read(BLOCK)), (1, 0));
    assert_eq!(vm.mappings(), 2);
}

#[test]
fn drafts_and_complete_snapshots_are_told_apart() {
    let (_folder, store) = store();
    let vm = Vm::new(&store, "a");
    let complete = vm.snapshot("s", &[0]);
    let draft = vm.create("t");
    done(vm.publish(draft, &[1]));
    for answer in [
        vm.publish(complete, &[2]),
        vm.copy(complete, &[0]),
        vm.meta(complete, 0, b"x"),
        vm.commit(complete),
        vm.map(draft, &[(2, 0, 0)]),
        vm.publish(draft, &[2, 1]),
    ] {
        assert_eq!(answer.status(), Status::State, "{:?}", answer.error);
    }
    for handle in [0, 99] {
        assert_eq!(vm.commit(handle).status(), Status::BadHandle);
        assert_eq!(vm.close(handle).status(), Status::BadHandle);
    }
}

#[test]
fn a_snapshot_whose_metadata_is_wrong_is_not_completed_and_may_be_mended() {
    let (_folder, store) = store();
    let vm = Vm::new(&store, "a");
    let handle = vm.create("s");
    done(vm.publish(handle, &[0]));
    let bytes = meta(2, 0);
    done(vm.meta(handle, 0, &bytes));
    assert_eq!(vm.commit(handle).status(), Status::BadMeta);
    assert_eq!(vm.named(VIRTIO_VAS_OP_OPEN, "s").status(), Status::NotFound);
    done(vm.publish(handle, &[1]));
    done(vm.commit(handle));
}

#[test]
fn a_delete_that_means_one_snapshot_leaves_a_later_one_of_that_name() {
    let (_folder, store) = store();
    let vm = Vm::new(&store, "a");
    let created = || {
        let answer = done(vm.named(VIRTIO_VAS_OP_OPEN, "s"));
        done(vm.close(answer.value));
        let snapshot = VirtioVasSnapshot::read_from_bytes(&answer.payload).unwrap();
        snapshot.created_ns.get()
    };
    let delete = |created_ns| vm.call(VIRTIO_VAS_OP_DELETE, 0, 0, created_ns, &name_field("s"));
    vm.snapshot("s", &[0]);
    let first = created();
    done(delete(0));
    vm.snapshot("s", &[0]);
    assert_eq!(delete(first).status(), Status::NotFound);
    let second = created();
    done(delete(second));
    assert_eq!(delete(second).status(), Status::NotFound);
}

#[test]
fn a_broken_snapshot_is_told_to_those_who_may_have_it() {
    let (folder, store) = store();
    let guest = |name, grant| {
        let setup = Setup {
            grant,
            ..Setup::default()
        };
        Vm::with(&store, name, setup)
    };
    let maker = guest("maker", Grant::Own);
    let (other, all) = (guest("other", Grant::Own), guest("all", Grant::All));
    maker.snapshot("s", &[0]);
    let manifest = folder.path().join("store/snapshots/s.snap");
    let whole = std::fs::read(&manifest).unwrap();
    let opens = |vm: &Vm| vm.named(VIRTIO_VAS_OP_OPEN, "s").status();
    let deletes = |vm: &Vm| vm.named(VIRTIO_VAS_OP_DELETE, "s").status();

    // The metadata, at the end, is broken: the head still says who made it.
    let mut bytes = whole.clone();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&manifest, &bytes).unwrap();
    let seen = [&maker, &other, &all].map(opens);
    assert_eq!(seen, [Status::BadMeta, Status::NotFound, Status::BadMeta]);
    assert_eq!(deletes(&other), Status::NotFound);
    assert_eq!(deletes(&maker), Status::Ok);

    // The head is broken: whose it is nobody knows.
    std::fs::write(&manifest, &whole[..whole.len() / 4]).unwrap();
    let seen = [&maker, &other, &all].map(opens);
    assert_eq!(seen, [Status::NotFound, Status::NotFound, Status::BadMeta]);
    assert_eq!([&maker, &other].map(deletes), [Status::NotFound; 2]);
    assert_eq!(deletes(&all), Status::Ok);
    assert!(!manifest.exists());
}

#[test]
fn handles_and_metadata_have_limits() {
    let (_folder, store) = store();
    let vm = Vm::new(&store, "a");
    let handles: Vec<u64> = (0..VIRTIO_VAS_MAX_HANDLES)
        .map(|i| vm.create(&format!("s{i}")))
        .collect();
    assert_eq!(vm.named(VIRTIO_VAS_OP_CREATE, "t").status(), Status::Limit);
    assert_eq!(vm.named(VIRTIO_VAS_OP_OPEN, "t").status(), Status::Limit);
    let piece = vec![0; VIRTIO_VAS_MAX_BYTES as usize];
    // 64 MiB each, 256 MiB all.
    for handle in &handles[..4] {
        for i in 0..64 {
            done(vm.meta(*handle, i << 20, &piece));
        }
        assert_eq!(vm.meta(*handle, 64 << 20, b"x").status(), Status::Limit);
    }
    assert_eq!(vm.meta(handles[4], 0, b"x").status(), Status::Limit);
    done(vm.close(handles[0]));
    done(vm.meta(handles[4], 0, b"x"));
}

#[test]
fn a_full_store_refuses_that_draft_and_nothing_else() {
    let options = StoreOptions {
        limit: Some(3 * BLOCK),
        ..StoreOptions::default()
    };
    let (_folder, store) = store_with(options);
    let vm = Vm::new(&store, "a");
    for block in 0..6 {
        vm.write(block * BLOCK, block);
    }
    let kept = vm.snapshot("kept", &[0]);
    let draft = vm.create("s");
    let refused = vm.publish(draft, &[1, 2, 3]);
    assert_eq!((refused.status(), refused.done), (Status::NoSpace, 0));
    assert!(refused.is_hosts_failure());
    done(vm.publish(draft, &[1]));
    let copied = vm.copy(draft, &[512 * 4]);
    assert_eq!(copied.status(), Status::NoSpace);
    for block in 0..6 {
        assert_eq!(vm.read(block * BLOCK), block);
    }
    done(vm.close(draft));
    vm.snapshot("other", &[1]);
    done(vm.map(kept, &[(7, 0, 0)]));
    assert!(store.check().unwrap().problems.is_empty());
}

#[test]
fn a_block_in_two_drafts_is_charged_to_the_one_that_is_left() {
    let options = StoreOptions {
        limit: Some(4 * BLOCK),
        ..StoreOptions::default()
    };
    let (_folder, store) = store_with(options);
    let vm = Vm::new(&store, "a");
    vm.write(0, 7);
    let (first, second) = (vm.create("first"), vm.create("second"));
    done(vm.publish(first, &[0]));
    done(vm.publish(second, &[0]));
    done(vm.close(first));
    done(vm.release(&[(0, 1)]));
    let full = vm.create("full");
    let refused = vm.publish(full, &[8, 9, 10, 11]);
    assert_eq!(refused.status(), Status::NoSpace);
    done(vm.publish(full, &[8, 9, 10]));
    assert_eq!(store.check().unwrap().problems, []);
}

#[test]
fn a_full_file_system_refuses_that_draft_and_kills_nobody() {
    // Memory that the VM was promised, 24 MiB for snapshots, and what the store itself takes.
    in_tmpfs("size=57m", |dir| {
        let store = Store::open(&dir.join("store"), StoreOptions::default()).unwrap();
        let vm = Vm::new(&store, "a");
        for page in 0..8 * 512 {
            vm.write(page * PAGE, page);
        }
        vm.snapshot("kept", &[0, 1]);
        let draft = vm.create("s");
        let pages: Vec<u64> = (0..8 * 512).collect();
        done(vm.copy(draft, &pages));
        let refused = vm.copy(draft, &pages);
        assert_eq!(refused.status(), Status::NoSpace, "{:?}", refused.error);
        assert_eq!(refused.done, 0);
        // Published before and written to since: these would be copied, too.
        for block in [0, 1] {
            vm.write(block * BLOCK, 7);
        }
        let again = vm.publish(draft, &[2, 0, 1]);
        assert_eq!((again.status(), again.done), (Status::NoSpace, 0));
        for page in 0..8 * 512 {
            let written = page == 0 || page == 512;
            assert_eq!(vm.read(page * PAGE), if written { 7 } else { page });
        }
        done(vm.close(draft));
        let second = vm.snapshot("s", &[0, 1, 2]);
        done(vm.map(second, &[(9, 1, 0)]));
        assert_eq!((vm.read(9 * BLOCK), vm.read(9 * BLOCK + PAGE)), (7, 513));
        assert_eq!(store.check().unwrap().problems, []);
    });
}

#[test]
fn near_the_limit_of_mappings_blocks_are_copied_instead() {
    let (_folder, store) = store();
    let setup = Setup {
        max_mappings: 6,
        ..Setup::default()
    };
    let vm = Vm::with(&store, "a", setup);
    for block in 0..16 {
        vm.write(block * BLOCK, 100 + block);
    }
    let draft = vm.create("s");
    // Every other block: each would be a mapping of its own.
    done(vm.publish(draft, &[1, 3, 5, 7, 9, 11]));
    let copied = vm.server.metrics().copied_for_map_count.get();
    assert_eq!(copied, 4);
    assert!(vm.mappings() <= 6, "{}", vm.mappings());
    for block in [1, 3, 5, 7, 9, 11] {
        vm.write(block * BLOCK, 0);
    }
    done(vm.meta(draft, 0, &meta(6, 0)));
    done(vm.commit(draft));
    // So is a snapshot that is mapped here and there.
    done(vm.map(
        draft,
        &[(0, 5, 0), (2, 4, 0), (12, 3, 0), (14, 2, 0), (15, 0, 0)],
    ));
    let seen = [0, 2, 12, 14, 15].map(|block| vm.read(block * BLOCK));
    assert_eq!(seen, [111, 109, 107, 105, 101]);
    assert!(vm.mappings() <= 6, "{}", vm.mappings());
    assert!(vm.server.metrics().copied_for_map_count.get() > copied);
    // And what is released reads as zero.
    done(vm.release(&[(1, 1), (3, 1), (5, 1), (14, 1)]));
    assert_eq!([1, 3, 5, 14].map(|block| vm.read(block * BLOCK)), [0; 4]);
    assert!(vm.mappings() <= 6, "{}", vm.mappings());
    assert_eq!(vm.read(4 * BLOCK), 104);
}

#[test]
fn a_request_that_is_stopped_says_how_far_it_came() {
    let (_folder, store) = store();
    let vm = Vm::new(&store, "a");
    let handle = vm.create("s");
    let head = VirtioVasRequest {
        op: VIRTIO_VAS_OP_COPY.into(),
        count: 1.into(),
        handle: handle.into(),
        arg: 0.into(),
        reserved: 0.into(),
    };
    let request = [head.as_bytes(), PAGE.to_le_bytes().as_slice()].concat();
    let answer = vm.server.serve(&request, 0, &AtomicBool::new(true));
    assert_eq!((answer.status(), answer.done), (Status::Host, 0));
    done(vm.copy(handle, &[1]));
}

/// As the device's two threads do: neither waits for the other for long, and both find what
/// they left.
#[test]
fn two_queues_work_at_once_each_on_memory_of_its_own() {
    let (_folder, store) = store();
    let vm = Vm::new(&store, "a");
    let work = |first: u64, name: &str| {
        for round in 0..40 {
            for block in first..first + 4 {
                vm.write(block * BLOCK, round * 100 + block);
            }
            let handle = vm.create(name);
            done(vm.publish(handle, &[first, first + 2]));
            done(vm.copy(handle, &[(first + 1) * 512, (first + 3) * 512]));
            done(vm.meta(handle, 0, &meta(2, 2)));
            done(vm.commit(handle));
            done(vm.release(&[(first, 4)]));
            done(vm.map(
                handle,
                &[(first + 1, 0, 0), (first, 1, 0), (first + 2, 0, 1)],
            ));
            done(vm.named(VIRTIO_VAS_OP_DELETE, name));
            done(vm.close(handle));
            let seen = [0, 1, 2, 3].map(|i| vm.read((first + i) * BLOCK));
            let wrote = |i: u64| round * 100 + first + i;
            assert_eq!(seen, [wrote(2), wrote(0), wrote(1), 0]);
            assert_eq!(vm.read((first + 2) * BLOCK + PAGE), wrote(3));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| work(0, "one"));
        scope.spawn(|| work(8, "two"));
    });
    done(vm.release(&[(0, 16)]));
    assert_eq!(store.check().unwrap().problems, []);
    assert_eq!(vm.host_bytes(), 0);
}

#[test]
fn an_answer_without_room_is_refused_before_anything_is_open() {
    let (_folder, store) = store();
    let vm = Vm::new(&store, "a");
    done(vm.close(vm.snapshot("s", &[0])));
    let mut payload = b"s".to_vec();
    payload.resize(VIRTIO_VAS_NAME_MAX, 0);
    let head = VirtioVasRequest {
        op: VIRTIO_VAS_OP_OPEN.into(),
        count: 0.into(),
        handle: 0.into(),
        arg: 0.into(),
        reserved: 0.into(),
    };
    let request = [head.as_bytes(), &payload].concat();
    let room = size_of::<VirtioVasSnapshot>();
    let running = AtomicBool::new(false);
    let answer = vm.server.serve(&request, room - 1, &running);
    assert_eq!((answer.status(), answer.value), (Status::BadRequest, 0));
    assert_eq!(
        done(vm.server.serve(&request, room, &running))
            .payload
            .len(),
        room
    );
}
