// SPDX-License-Identifier: GPL-2.0-only
//! Blocks published, mapped and released under running vCPUs.

use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use mvas_abi::virtio_vas::*;
use mvas_host::server::{Answer, BLOCK, Grant, Status};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

use super::guests::*;
use super::tests::{Guest, wait_for};
use super::*;
use crate::test_store::test_store;

/// A microVM in a store of its own, and a server for its memory that no guest reaches.
struct Rig {
    machine: Machine,
    printed: Receiver<u8>,
    requests: Requests,
    stop: Stop,
    _folder: TempDir,
}

/// Stops the VM when dropped: a test that fails must not leave it running.
struct Stop(EventFd);

impl Drop for Stop {
    fn drop(&mut self) {
        let _ = self.0.write(1);
    }
}

fn rig(code: &[u8]) -> Rig {
    let (folder, store) = test_store();
    let mut guest = Guest::new(code);
    guest.config.cpus = "2".parse().unwrap();
    guest.config.ram = RamBacking::Store {
        store,
        grant: Grant::Own,
    };
    let stop = Stop(guest.stop.try_clone().unwrap());
    let (machine, printed) = guest.machine();
    let machine = machine.unwrap();
    let run = machine.ram.run().unwrap();
    let requests = Requests {
        server: server(run, Grant::Own, &machine.ram),
        ram: Arc::clone(&machine.ram),
    };
    Rig {
        machine,
        printed,
        requests,
        stop,
        _folder: folder,
    }
}

/// What a driver would send.
struct Requests {
    server: Arc<Server>,
    ram: Arc<GuestRam>,
}

impl Requests {
    fn call(&self, op: u32, count: u32, handle: u64, payload: &[u8]) -> Answer {
        let head = VirtioVasRequest {
            op: op.into(),
            count: count.into(),
            handle: handle.into(),
            arg: 0.into(),
            reserved: 0.into(),
        };
        let request = [head.as_bytes(), payload].concat();
        let answer = self.server.serve(&request, 0, &AtomicBool::new(false));
        assert_eq!(answer.status(), Status::Ok, "{:?}", answer.error);
        answer
    }

    fn create(&self) -> u64 {
        let mut name = b"s".to_vec();
        name.resize(VIRTIO_VAS_NAME_MAX, 0);
        self.call(VIRTIO_VAS_OP_CREATE, 0, 0, &name).value
    }

    fn publish(&self, draft: u64, blocks: &[u64]) {
        let gpas: Vec<u8> = blocks
            .iter()
            .flat_map(|b| (b * BLOCK).to_le_bytes())
            .collect();
        let count = u32::try_from(blocks.len()).unwrap();
        self.call(VIRTIO_VAS_OP_PUBLISH, count, draft, &gpas);
    }

    /// Completes a draft whose metadata names nothing.
    fn commit(&self, draft: u64) {
        let meta = VirtioVasMeta {
            magic: VIRTIO_VAS_META_MAGIC.into(),
            version: VIRTIO_VAS_META_VERSION.into(),
            vases: 0.into(),
            reserved: 0.into(),
        };
        self.call(VIRTIO_VAS_OP_META, 16, draft, meta.as_bytes());
        self.call(VIRTIO_VAS_OP_COMMIT, 0, draft, &[]);
    }

    fn map(&self, snapshot: u64, at: u64, index: u32) {
        let entry = VirtioVasMap {
            gpa: (at * BLOCK).into(),
            index: index.into(),
            kind: VIRTIO_VAS_KIND_BLOCKS.into(),
        };
        self.call(VIRTIO_VAS_OP_MAP, 1, snapshot, entry.as_bytes());
    }

    fn release(&self, block: u64) {
        let range = VirtioVasRange {
            gpa: (block * BLOCK).into(),
            bytes: BLOCK.into(),
        };
        self.call(VIRTIO_VAS_OP_RELEASE, 1, 0, range.as_bytes());
    }

    fn read(&self, gpa: u64) -> u64 {
        self.ram.memory().read_obj(GuestAddress(gpa)).unwrap()
    }
}

/// The guest checks that none of its writes is lost and that it reads what it wrote; here is
/// checked that what was published is of one moment.
#[test]
fn publishing_what_vcpus_are_writing_loses_no_write_and_freezes_each_block() {
    const LAST_PAGE: u64 = 0x1f_f000;
    const SPARE: u64 = 24;
    let rig = rig(hammer());
    let ram = Arc::clone(&rig.machine.ram);
    let end = thread::scope(|scope| {
        let (requests, printed, stop) = (rig.requests, rig.printed, rig.stop);
        let test = scope.spawn(move || {
            let _stop = stop;
            wait_for(&printed, b's');
            let draft = requests.create();
            // One by one, in twos, and where the code and the page tables are.
            let groups: [&[u64]; 7] = [
                &[8],
                &[23],
                &[9, 10],
                &[20, 12],
                &[0],
                &[15, 16, 17],
                &[11, 13],
            ];
            for blocks in groups {
                requests.publish(draft, blocks);
            }
            requests.commit(draft);
            // The blocks of one request are published in the order of their addresses.
            let mut indices = 0..;
            let in_time = groups.iter().flat_map(|group| {
                let mut group: Vec<_> = group.iter().copied().zip(indices.by_ref()).collect();
                group.sort_unstable();
                group
            });
            let mut last = 0;
            for (block, index) in in_time {
                requests.map(draft, SPARE, index);
                if block == 0 {
                    assert!(requests.read(SPARE * BLOCK + 0x8f00) & 0xffff_ffff > 0);
                    continue;
                }
                let first_page = requests.read(SPARE * BLOCK);
                let last_page = requests.read(SPARE * BLOCK + LAST_PAGE);
                let together = last_page == first_page || last_page + 1 == first_page;
                assert!(together, "block {block}: {first_page} {last_page}");
                // The later blocks of a round are one behind the earlier ones.
                assert!(
                    first_page + 1 >= last,
                    "block {block}: {first_page} after {last}"
                );
                last = last_page;
            }
            // Go on for a while, then end.
            let now = requests.read(8 * BLOCK);
            while requests.read(8 * BLOCK) < now + 100 {
                thread::yield_now();
            }
            ram.memory().write_obj(1u8, GuestAddress(0x8ff0)).unwrap();
            printed.recv_timeout(Duration::from_secs(30)).unwrap()
        });
        let end = rig.machine.run();
        (end, test.join().unwrap())
    });
    assert_eq!(end.0.unwrap(), ExitReason::PowerOff);
    assert_eq!(char::from(end.1), '.');
}

#[test]
fn a_block_released_under_a_running_vcpu_reads_zero_there() {
    for publish_first in [false, true] {
        let rig = rig(await_zero());
        let end = thread::scope(|scope| {
            let (requests, printed) = (rig.requests, rig.printed);
            scope.spawn(move || {
                wait_for(&printed, b's');
                if publish_first {
                    let draft = requests.create();
                    requests.publish(draft, &[8]);
                }
                requests.release(8);
            });
            rig.machine.run()
        });
        assert_eq!(end.unwrap(), ExitReason::PowerOff);
    }
}
