// SPDX-License-Identifier: GPL-2.0-only
//! Publishing, mapping, releasing.

use std::fs;

use mvas_abi::virtio_vas::*;
use mvas_host::server::{BLOCK, Grant, PAGE, Status};
use mvas_host::store::{Store, StoreOptions};
use zerocopy::FromBytes;

use crate::tmpfs::in_tmpfs;
use crate::vm::{Setup, Vm, done, meta, ram_files, store, text};

const PAGES_OF_BLOCK: u64 = BLOCK / PAGE;

#[test]
fn a_published_block_is_kept_while_the_guest_goes_on_writing() {
    let (_folder, store) = store();
    let vm = Vm::new(&store, "a");
    vm.write(3 * BLOCK, 1);
    let handle = vm.snapshot("s", &[3]);
    vm.write(3 * BLOCK, 2);
    done(vm.map(handle, &[(7, 0, VIRTIO_VAS_KIND_BLOCKS)]));
    assert_eq!((vm.read(3 * BLOCK), vm.read(7 * BLOCK)), (2, 1));
    // What the guest writes there stays there, too.
    vm.write(7 * BLOCK, 3);
    done(vm.map(handle, &[(8, 0, VIRTIO_VAS_KIND_BLOCKS)]));
    assert_eq!((vm.read(7 * BLOCK), vm.read(8 * BLOCK)), (3, 1));
}

#[test]
fn publishing_a_gibibyte_takes_one_remapping_and_no_memory() {
    let (_folder, store) = store();
    let setup = Setup {
        mib: 2048,
        ..Setup::default()
    };
    let vm = Vm::with(&store, "a", setup);
    // The driver's order does not matter.
    let blocks: Vec<u64> = (0..512).map(|i| 100 + i * 7 % 512).collect();
    for block in &blocks {
        vm.write(block * BLOCK + PAGE, *block);
    }
    let before = vm.host_bytes();
    let handle = vm.create("s");
    let answer = done(vm.publish(handle, &blocks));
    assert_eq!((answer.value, answer.done), (0, 512));
    assert_eq!(vm.server.metrics().remaps.get(), 1);
    assert_eq!(vm.host_bytes(), before);
    assert!(vm.mappings() <= 3, "{}", vm.mappings());
    done(vm.meta(handle, 0, &meta(512, 0)));
    done(vm.commit(handle));
    let entries: Vec<_> = (0..512).map(|i| (1023 - u64::from(i), i, 0)).collect();
    let half = &entries[..400];
    assert_eq!(done(vm.map(handle, half)).done, 400);
    for (block, index, _) in half {
        let from = blocks[usize::try_from(*index).unwrap()];
        assert_eq!(vm.read(block * BLOCK + PAGE), from);
    }
    assert_eq!(vm.host_bytes(), before);
}

#[test]
fn publishing_again_copies_only_what_was_written_since() {
    let (_folder, store) = store();
    let vm = Vm::new(&store, "a");
    for page in 0..3 * PAGES_OF_BLOCK {
        vm.write(BLOCK + page * PAGE, 1 + page / PAGES_OF_BLOCK);
    }
    vm.snapshot("first", &[1, 2, 3]);
    vm.write(2 * BLOCK, 22);
    let before = vm.host_bytes();
    let second = vm.snapshot("second", &[1, 2, 3]);
    assert_eq!(vm.server.metrics().copied_again.get(), 1);
    assert_eq!(vm.host_bytes(), before + BLOCK);
    vm.write(2 * BLOCK, 222);
    done(vm.map(second, &[(5, 0, 0), (6, 1, 0), (7, 2, 0)]));
    let seen = [5, 6, 7].map(|block| vm.read(block * BLOCK));
    assert_eq!((seen, vm.read(2 * BLOCK)), ([1, 22, 3], 222));
    let first = vm.open("first");
    done(vm.map(first, &[(5, 1, 0)]));
    assert_eq!(vm.read(5 * BLOCK), 2);
}

#[test]
fn copied_pages_are_packed_in_order_over_several_requests() {
    let (_folder, store) = store();
    let vm = Vm::new(&store, "a");
    // More than a block, every other page.
    let pages: Vec<u64> = (0..600).map(|i| i * 2).collect();
    for page in &pages {
        vm.write(page * PAGE, page + 1);
    }
    let handle = vm.create("s");
    let (first, rest) = pages.split_at(250);
    assert_eq!(done(vm.copy(handle, first)).value, 0);
    let answer = done(vm.copy(handle, rest));
    assert_eq!((answer.value, answer.done), (250, 350));
    done(vm.meta(handle, 0, &meta(0, 600)));
    done(vm.commit(handle));
    for page in &pages {
        vm.write(page * PAGE, 0);
    }
    let packed = VIRTIO_VAS_KIND_PACKED;
    done(vm.map(handle, &[(10, 0, packed), (12, 1, packed)]));
    for (i, page) in (0..).zip(&pages[..512]) {
        assert_eq!(vm.read(10 * BLOCK + i * PAGE), page + 1);
    }
    for (i, page) in (0..).zip(&pages[512..]) {
        assert_eq!(vm.read(12 * BLOCK + i * PAGE), page + 1);
    }
    // What no page was copied to reads as zero.
    assert_eq!(vm.read(12 * BLOCK + 88 * PAGE), 0);
    let no_such = vm.map(handle, &[(10, 2, packed)]);
    assert_eq!(no_such.status(), Status::BadRange);
}

#[test]
fn released_blocks_read_zero_and_their_memory_goes_back() {
    let (_folder, store) = store();
    let vm = Vm::new(&store, "a");
    let blocks: Vec<u64> = (2..10).collect();
    for page in 0..8 * PAGES_OF_BLOCK {
        vm.write(2 * BLOCK + page * PAGE, 1);
    }
    assert!(vm.host_bytes() >= 8 * BLOCK);
    let handle = vm.create("s");
    done(vm.publish(handle, &[4, 5, 8]));
    vm.write(5 * BLOCK, 2);
    // Shared and private ones, written and not; one range is empty.
    let answer = done(vm.release(&[(2, 3), (0, 0), (5, 5)]));
    assert_eq!((answer.done, vm.server.metrics().released.get()), (3, 8));
    assert!(vm.host_bytes() <= 3 * BLOCK, "what the draft has");
    for block in &blocks {
        assert_eq!(vm.read(block * BLOCK), 0, "{block}");
    }
    // The draft kept what was published.
    done(vm.meta(handle, 0, &meta(3, 0)));
    done(vm.commit(handle));
    done(vm.map(handle, &[(2, 0, 0), (3, 1, 0), (4, 2, 0)]));
    assert_eq!([2, 3, 4].map(|block| vm.read(block * BLOCK)), [1, 1, 1]);
    // And what was released can be written, published and released again.
    vm.write(6 * BLOCK, 66);
    let second = vm.create("t");
    done(vm.publish(second, &[6, 7]));
    done(vm.close(second));
    assert_eq!(vm.read(6 * BLOCK), 66);
    done(vm.release(&[(0, 16)]));
    assert_eq!([2, 3, 4, 6].map(|block| vm.read(block * BLOCK)), [0; 4]);
}

#[test]
fn a_draft_given_up_leaves_the_guest_its_memory_and_the_name_free() {
    let (folder, store) = store();
    let vm = Vm::new(&store, "a");
    vm.write(0, 5);
    vm.write(BLOCK, 6);
    let handle = vm.create("s");
    done(vm.publish(handle, &[0]));
    done(vm.copy(handle, &[512]));
    done(vm.close(handle));
    assert_eq!((vm.read(0), vm.read(BLOCK)), (5, 6));
    assert_eq!(vm.publish(handle, &[1]).status(), Status::BadHandle);
    assert_eq!(vm.named(VIRTIO_VAS_OP_OPEN, "s").status(), Status::NotFound);
    vm.create("s");
    drop(vm);
    assert_eq!(ram_files(&folder.path().join("store")), 0);
    assert!(store.check().unwrap().problems.is_empty());
}

#[test]
fn another_vm_maps_what_one_that_is_gone_published() {
    let (folder, store) = store();
    {
        let vm = Vm::new(&store, "a");
        vm.write(3 * BLOCK, 33);
        vm.write(9 * PAGE, 9);
        let handle = vm.create("s");
        done(vm.publish(handle, &[3]));
        done(vm.copy(handle, &[9]));
        done(vm.meta(handle, 0, &meta(1, 1)));
        done(vm.commit(handle));
    }
    // By its name it is the same VM, started again.
    let vm = Vm::new(&store, "a");
    let handle = vm.open("s");
    done(vm.map(handle, &[(1, 0, 0), (2, 0, 1)]));
    assert_eq!((vm.read(BLOCK), vm.read(2 * BLOCK)), (33, 9));
    vm.write(BLOCK, 44);
    // Published by this one, it is in both snapshots.
    let again = vm.snapshot("t", &[2]);
    // Removed: who sees it keeps it.
    done(vm.named(VIRTIO_VAS_OP_DELETE, "s"));
    done(vm.close(handle));
    assert_eq!((vm.read(BLOCK), vm.read(2 * BLOCK)), (44, 9));
    done(vm.release(&[(0, 16)]));
    done(vm.map(again, &[(5, 0, 0)]));
    assert_eq!(vm.read(5 * BLOCK), 9);
    drop(vm);
    store.remove(&"t".parse().unwrap()).unwrap();
    assert_eq!(ram_files(&folder.path().join("store")), 0);
}

#[test]
fn two_vms_share_one_copy_of_a_snapshot() {
    let (_folder, store) = store();
    let a = Vm::new(&store, "a");
    let all = Setup {
        grant: Grant::All,
        ..Setup::default()
    };
    let b = Vm::with(&store, "b", all);
    for block in 0..8 {
        a.write(block * BLOCK, 100 + block);
    }
    a.snapshot("s", &[0, 1, 2, 3, 4, 5, 6, 7]);
    let before = (a.host_bytes(), b.host_bytes());
    let handle = b.open("s");
    let entries: Vec<_> = (0..8).map(|i| (8 + u64::from(i), i, 0)).collect();
    done(b.map(handle, &entries));
    for block in 0..8 {
        assert_eq!(b.read((8 + block) * BLOCK), 100 + block);
        a.write(block * BLOCK, 0);
        assert_eq!(b.read((8 + block) * BLOCK), 100 + block);
    }
    assert_eq!((a.host_bytes(), b.host_bytes()), before);
}

#[test]
fn a_guest_has_only_what_it_was_granted() {
    let (_folder, store) = store();
    let a = Vm::new(&store, "a");
    a.snapshot("of-a", &[0]);
    let b = Vm::new(&store, "b");
    b.snapshot("of-b", &[0]);
    let all = Setup {
        grant: Grant::All,
        ..Setup::default()
    };
    let c = Vm::with(&store, "c", all);
    assert_eq!(
        b.named(VIRTIO_VAS_OP_OPEN, "of-a").status(),
        Status::NotFound
    );
    assert_eq!(
        b.named(VIRTIO_VAS_OP_DELETE, "of-a").status(),
        Status::NotFound
    );
    assert_eq!(
        b.named(VIRTIO_VAS_OP_CREATE, "of-a").status(),
        Status::Exists
    );
    let names = |vm: &Vm, skip| {
        let (listed, all) = vm.list(skip);
        let names: Vec<_> = listed.iter().map(|s| text(&s.name)).collect();
        (all, names)
    };
    let of = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(&b, 0), (1, of(&["of-b"])));
    assert_eq!(names(&c, 0), (2, of(&["of-a", "of-b"])));
    assert_eq!(names(&c, 1), (2, of(&["of-b"])));
    assert_eq!(names(&c, u64::MAX), (2, vec![]));
    // Nor is another's labelled.
    for snapshot in ["of-a", "none"] {
        assert_eq!(b.label(0, snapshot, "x").status(), Status::NotFound);
    }
    done(b.label(0, "of-b", "b's"));
    done(c.label(0, "of-a", "c's"));
    let labels: Vec<_> = c.list(0).0.iter().map(|s| text(&s.label)).collect();
    assert_eq!(labels, of(&["c's", "b's"]));
    c.open("of-a");
    done(c.named(VIRTIO_VAS_OP_DELETE, "of-a"));
    assert_eq!(
        a.named(VIRTIO_VAS_OP_OPEN, "of-a").status(),
        Status::NotFound
    );
    assert_eq!(
        c.named(VIRTIO_VAS_OP_DELETE, "of-a").status(),
        Status::NotFound
    );
}

#[test]
fn a_label_is_committed_with_its_draft_and_replaced_later() {
    let (_folder, store) = store();
    let vm = Vm::new(&store, "a");
    let labels = || -> Vec<_> { vm.list(0).0.iter().map(|s| text(&s.label)).collect() };
    let handle = vm.create("s");
    done(vm.label(handle, "", "first"));
    done(vm.label(handle, "", "größe 🦀"));
    // A draft has no name yet by which it could be labelled.
    assert_eq!(vm.label(0, "s", "x").status(), Status::NotFound);
    assert_eq!(vm.label(handle, "s", "x").status(), Status::BadRequest);
    done(vm.meta(handle, 0, &meta(0, 0)));
    done(vm.commit(handle));
    assert_eq!(labels(), ["größe 🦀"]);
    // Once it is complete, only by its name.
    assert_eq!(vm.label(handle, "", "x").status(), Status::State);
    assert_eq!(vm.label(99, "", "x").status(), Status::BadHandle);
    let long = "x".repeat(1023);
    done(vm.label(0, "s", &long));
    let opened = done(vm.named(VIRTIO_VAS_OP_OPEN, "s"));
    let described = VirtioVasSnapshot::read_from_bytes(&opened.payload).unwrap();
    assert_eq!(text(&described.label), long);
    assert_eq!(vm.label(0, "s", "a\nb").status(), Status::BadRequest);
    assert_eq!(labels(), [long.as_str()]);
    // Nobody overwrites what he has not seen.
    for from in ["", "first", &long[1..]] {
        assert_eq!(vm.relabel(0, "s", "x", from).status(), Status::Changed);
    }
    assert_eq!(vm.relabel(0, "s", "x", "a\nb").status(), Status::BadRequest);
    assert_eq!(labels(), [long.as_str()]);
    // What comes to the name later has its own, which is none.
    done(vm.named(VIRTIO_VAS_OP_DELETE, "s"));
    vm.snapshot("s", &[0]);
    assert_eq!(labels(), [""]);
}

#[test]
fn a_list_is_cut_to_whole_snapshots_that_fit_and_goes_on_from_there() {
    let (_folder, store) = store();
    let vm = Vm::new(&store, "a");
    for i in 0..7 {
        let handle = vm.create(&format!("s{i}"));
        done(vm.label(handle, "", &format!("label {i}")));
        done(vm.meta(handle, 0, &meta(0, 0)));
        done(vm.commit(handle));
        done(vm.close(handle));
    }
    // An answer of 4096 bytes has three.
    for (skip, expected) in [(0, 0..3), (3, 3..6), (6, 6..7), (7, 7..7)] {
        let (listed, all) = vm.list(skip);
        let listed: Vec<_> = listed
            .iter()
            .map(|s| (text(&s.name), text(&s.label)))
            .collect();
        let expected: Vec<_> = expected
            .map(|i| (format!("s{i}"), format!("label {i}")))
            .collect();
        assert_eq!((listed, all), (expected, 7));
    }
}

#[test]
fn metadata_comes_back_in_pieces_as_it_went() {
    let (_folder, store) = store();
    let vm = Vm::new(&store, "a");
    let handle = vm.create("s");
    done(vm.publish(handle, &[1]));
    let bytes = meta(1, 0);
    for (i, piece) in bytes.chunks(50).enumerate() {
        done(vm.meta(handle, i as u64 * 50, piece));
    }
    assert_eq!(vm.meta(handle, 0, b"x").status(), Status::BadRequest);
    let fetch = |handle, offset| vm.call(VIRTIO_VAS_OP_FETCH, 0, handle, offset, &[]);
    assert_eq!(fetch(handle, 0).status(), Status::State);
    done(vm.commit(handle));
    let opened = done(vm.named(VIRTIO_VAS_OP_OPEN, "s"));
    let described = VirtioVasSnapshot::read_from_bytes(&opened.payload).unwrap();
    assert_eq!(described.meta_bytes.get(), bytes.len() as u64);
    assert_eq!((described.blocks.get(), described.bytes.get()), (1, BLOCK));
    for handle in [handle, opened.value] {
        assert_eq!(done(fetch(handle, 0)).payload, bytes);
        assert_eq!(done(fetch(handle, 20)).payload, bytes[20..]);
        assert_eq!(done(fetch(handle, bytes.len() as u64)).done, 0);
        assert_eq!(
            fetch(handle, bytes.len() as u64 + 1).status(),
            Status::BadRequest
        );
        assert_eq!(fetch(handle, u64::MAX).status(), Status::BadRequest);
    }
}

/// Blocks of huge pages stay so: the guest's access to them costs one nested page table entry.
#[test]
fn published_mapped_and_copied_blocks_of_huge_pages_stay_huge() {
    in_tmpfs("huge=advise", |dir| {
        let store = Store::open(&dir.join("store"), StoreOptions::default()).unwrap();
        let vm = Vm::new(&store, "a");
        for page in 0..PAGES_OF_BLOCK {
            vm.write(4 * BLOCK + page * PAGE, page + 1);
        }
        if huge_kib(&vm) == 0 {
            println!("SKIPPED: no huge page is to be had in a tmpfs here");
            return;
        }
        let handle = vm.snapshot("s", &[4]);
        assert_eq!(vm.read(4 * BLOCK), 1);
        assert_eq!(huge_kib(&vm), 2048, "published");
        done(vm.map(handle, &[(9, 0, 0)]));
        done(vm.release(&[(4, 1)]));
        assert_eq!(vm.read(9 * BLOCK + PAGE), 2);
        assert_eq!(huge_kib(&vm), 2048, "mapped elsewhere");
        vm.write(9 * BLOCK, 7);
        let again = vm.snapshot("t", &[9]);
        done(vm.map(again, &[(10, 0, 0)]));
        done(vm.release(&[(9, 1)]));
        assert_eq!((vm.read(10 * BLOCK), huge_kib(&vm)), (7, 2048), "copied");
    });
}

/// KiB of this VM's RAM file that are mapped by huge pages.
fn huge_kib(vm: &Vm) -> u64 {
    let name = format!("/{}.ram", vm.run.id());
    let mut ours = false;
    let mut sum = 0;
    for line in fs::read_to_string("/proc/thread-self/smaps")
        .unwrap()
        .lines()
    {
        let key = line.split_whitespace().next().unwrap_or_default();
        if key.contains('-') {
            ours = line.ends_with(&name);
        } else if ours && matches!(key, "ShmemPmdMapped:" | "FilePmdMapped:") {
            let kib = line.split_whitespace().nth(1).unwrap();
            sum += kib.parse::<u64>().unwrap();
        }
    }
    sum
}
