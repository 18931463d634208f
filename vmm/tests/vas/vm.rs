// SPDX-License-Identifier: GPL-2.0-only
//! A guest's memory and the server of its requests, without a guest: what a driver would
//! send is sent by hand.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mvas_abi::virtio_vas::*;
use mvas_host::server::{Answer, BLOCK, Grant, GuestMapping, PAGE, Server, ServerConfig, Status};
use mvas_host::store::{Store, StoreOptions, StoreRun};
use mvasvm::config::MemSize;
use mvasvm::memory::{GuestRam, PhysBits};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, IntoBytes};

/// A new store in memory. Its folder goes with the first of both.
pub fn store() -> (tempfile::TempDir, Store) {
    store_with(StoreOptions::default())
}

pub fn store_with(options: StoreOptions) -> (tempfile::TempDir, Store) {
    let folder = tempfile::Builder::new()
        .prefix("mvas-test-")
        .tempdir_in("/dev/shm")
        .expect("tests need a tmpfs on /dev/shm");
    let store = Store::open(&folder.path().join("store"), options).expect("a new store");
    (folder, store)
}

/// How a VM is made.
#[derive(Clone, Copy)]
pub struct Setup {
    pub mib: u64,
    pub grant: Grant,
    pub max_mappings: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            mib: 32,
            grant: Grant::Own,
            max_mappings: 60_000,
        }
    }
}

/// Dropped in this order: the run ends when its memory is not mapped any more.
pub struct Vm {
    pub server: Arc<Server>,
    pub ram: Arc<GuestRam>,
    pub run: StoreRun,
}

impl Vm {
    pub fn new(store: &Store, name: &str) -> Self {
        Self::with(store, name, Setup::default())
    }

    pub fn with(store: &Store, name: &str, setup: Setup) -> Self {
        let mem = MemSize::from_bytes(setup.mib << 20).unwrap();
        let run = store.start_run(name, mem.bytes()).unwrap();
        let ram = Arc::new(GuestRam::new(run.ram(), mem, PhysBits(40)).unwrap());
        let server = Server::new(ServerConfig {
            run: run.clone(),
            memory: Arc::clone(&ram) as Arc<dyn GuestMapping>,
            ram: ram.blocks(),
            grant: setup.grant,
            max_mappings: setup.max_mappings,
            populate: true,
        });
        Self {
            server: Arc::new(server),
            ram,
            run,
        }
    }

    /// Sends a request; its answer may have 4 KiB.
    pub fn call(&self, op: u32, count: u32, handle: u64, arg: u64, payload: &[u8]) -> Answer {
        let head = VirtioVasRequest {
            op: op.into(),
            count: count.into(),
            handle: handle.into(),
            arg: arg.into(),
            reserved: 0.into(),
        };
        let request = [head.as_bytes(), payload].concat();
        self.server.serve(&request, 4096, &AtomicBool::new(false))
    }

    pub fn named(&self, op: u32, name: &str) -> Answer {
        self.call(op, 0, 0, 0, &name_field(name))
    }

    /// LABEL of a draft, or where `handle` is 0 of the snapshot of this name, whatever label that
    /// has now.
    pub fn label(&self, handle: u64, name: &str, label: &str) -> Answer {
        let from = match handle {
            0 => self.find(name).map(|s| text(&s.label)),
            _ => None,
        };
        self.relabel(handle, name, label, &from.unwrap_or_default())
    }

    /// LABEL with the label that is expected.
    pub fn relabel(&self, handle: u64, name: &str, label: &str, from: &str) -> Answer {
        let mut payload = name_field(name);
        for text in [label, from] {
            let end = payload.len() + VIRTIO_VAS_LABEL_MAX;
            payload.extend(text.as_bytes());
            payload.resize(end, 0);
        }
        self.call(VIRTIO_VAS_OP_LABEL, 0, handle, 0, &payload)
    }

    /// The granted snapshot of this name.
    fn find(&self, name: &str) -> Option<VirtioVasSnapshot> {
        let mut skip = 0;
        loop {
            let (listed, _) = self.list(skip);
            skip += listed.len() as u64;
            let found = listed.iter().find(|s| text(&s.name) == name);
            if found.is_some() || listed.is_empty() {
                return found.copied();
            }
        }
    }

    /// The granted snapshots that one LIST tells of, from `skip` on, and how many there are.
    pub fn list(&self, skip: u64) -> (Vec<VirtioVasSnapshot>, u64) {
        let answer = done(self.call(VIRTIO_VAS_OP_LIST, 0, 0, skip, &[]));
        let listed = <[VirtioVasSnapshot]>::ref_from_bytes(&answer.payload).unwrap();
        assert_eq!(listed.len() as u64, answer.done);
        (listed.to_vec(), answer.value)
    }

    pub fn create(&self, name: &str) -> u64 {
        done(self.named(VIRTIO_VAS_OP_CREATE, name)).value
    }

    pub fn open(&self, name: &str) -> u64 {
        done(self.named(VIRTIO_VAS_OP_OPEN, name)).value
    }

    pub fn publish(&self, handle: u64, blocks: &[u64]) -> Answer {
        let gpas: Vec<u8> = blocks
            .iter()
            .flat_map(|b| (b * BLOCK).to_le_bytes())
            .collect();
        self.call(VIRTIO_VAS_OP_PUBLISH, count(blocks), handle, 0, &gpas)
    }

    pub fn copy(&self, handle: u64, pages: &[u64]) -> Answer {
        let gpas: Vec<u8> = pages
            .iter()
            .flat_map(|p| (p * PAGE).to_le_bytes())
            .collect();
        self.call(VIRTIO_VAS_OP_COPY, count(pages), handle, 0, &gpas)
    }

    /// Each entry: guest block, index, kind.
    pub fn map(&self, handle: u64, entries: &[(u64, u32, u32)]) -> Answer {
        let payload: Vec<u8> = entries
            .iter()
            .flat_map(|(block, index, kind)| {
                let entry = VirtioVasMap {
                    gpa: (block * BLOCK).into(),
                    index: (*index).into(),
                    kind: (*kind).into(),
                };
                entry.as_bytes().to_vec()
            })
            .collect();
        self.call(VIRTIO_VAS_OP_MAP, count(entries), handle, 0, &payload)
    }

    /// Each range: first block, blocks.
    pub fn release(&self, ranges: &[(u64, u64)]) -> Answer {
        let payload: Vec<u8> = ranges
            .iter()
            .flat_map(|(first, blocks)| [first * BLOCK, blocks * BLOCK])
            .flat_map(u64::to_le_bytes)
            .collect();
        self.call(VIRTIO_VAS_OP_RELEASE, count(ranges), 0, 0, &payload)
    }

    pub fn meta(&self, handle: u64, offset: u64, bytes: &[u8]) -> Answer {
        self.call(VIRTIO_VAS_OP_META, count(bytes), handle, offset, bytes)
    }

    pub fn commit(&self, handle: u64) -> Answer {
        self.call(VIRTIO_VAS_OP_COMMIT, 0, handle, 0, &[])
    }

    pub fn close(&self, handle: u64) -> Answer {
        self.call(VIRTIO_VAS_OP_CLOSE, 0, handle, 0, &[])
    }

    /// A complete snapshot of these blocks; returns its handle.
    pub fn snapshot(&self, name: &str, blocks: &[u64]) -> u64 {
        let handle = self.create(name);
        done(self.publish(handle, blocks));
        done(self.meta(handle, 0, &meta(blocks.len() as u64, 0)));
        done(self.commit(handle));
        handle
    }

    pub fn write(&self, gpa: u64, value: u64) {
        self.ram
            .memory()
            .write_obj(value, GuestAddress(gpa))
            .unwrap();
    }

    pub fn read(&self, gpa: u64) -> u64 {
        self.ram.memory().read_obj(GuestAddress(gpa)).unwrap()
    }

    /// Host memory of the RAM file.
    pub fn host_bytes(&self) -> u64 {
        self.run.ram().allocated_bytes().unwrap()
    }

    /// Mappings of this VM's RAM file, as the kernel counts them.
    pub fn mappings(&self) -> usize {
        let name = format!("/{}.ram", self.run.id());
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().filter(|line| line.ends_with(&name)).count()
    }
}

fn count<T>(entries: &[T]) -> u32 {
    entries.len().try_into().unwrap()
}

/// A name as requests have it.
pub fn name_field(name: &str) -> Vec<u8> {
    let mut field = name.as_bytes().to_vec();
    field.resize(VIRTIO_VAS_NAME_MAX, 0);
    field
}

/// The text of a field with zeroes after it.
pub fn text(field: &[u8]) -> String {
    let text = String::from_utf8(field.to_vec()).unwrap();
    let text = text.trim_end_matches('\0');
    assert!(text.len() < field.len() && !text.contains('\0'));
    text.to_owned()
}

/// An answer that must be a good one.
pub fn done(answer: Answer) -> Answer {
    assert_eq!(answer.status(), Status::Ok, "{:?}", answer.error);
    answer
}

/// Metadata of one VAS that names all blocks and packed pages.
pub fn meta(blocks: u64, packed_pages: u64) -> Vec<u8> {
    let mut runs = Vec::new();
    let mut end = 0;
    for (pages, kind) in [
        (blocks * 512, VIRTIO_VAS_KIND_BLOCKS),
        (packed_pages, VIRTIO_VAS_KIND_PACKED),
    ] {
        if pages > 0 {
            runs.push(VirtioVasMetaRun {
                start: end.into(),
                pages: u32::try_from(pages).unwrap().into(),
                kind: kind.into(),
                index: 0.into(),
            });
            end += pages * PAGE;
        }
    }
    let mut name = [0; VIRTIO_VAS_NAME_MAX];
    name[0] = b'v';
    let vma = VirtioVasMetaVma {
        start: 0.into(),
        end: end.into(),
        pgoff: 0.into(),
        prot: 3.into(),
        flags: 0.into(),
    };
    let vmas: &[VirtioVasMetaVma] = if end > 0 { &[vma] } else { &[] };
    let head = VirtioVasMeta {
        magic: VIRTIO_VAS_META_MAGIC.into(),
        version: VIRTIO_VAS_META_VERSION.into(),
        vases: 1.into(),
        reserved: 0.into(),
    };
    let vas = VirtioVasMetaVas {
        name,
        mode: 0o600.into(),
        vmas: count(vmas).into(),
        runs: count(&runs).into(),
        reserved: 0.into(),
    };
    [
        head.as_bytes(),
        vas.as_bytes(),
        vmas.as_bytes(),
        runs.as_bytes(),
    ]
    .concat()
}

/// RAM files that the store has.
pub fn ram_files(store: &Path) -> usize {
    std::fs::read_dir(store.join("ram")).unwrap().count()
}
