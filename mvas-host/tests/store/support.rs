// SPDX-License-Identifier: GPL-2.0-only
//! What the tests share.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use mvas_abi::virtio_vas::{
    VIRTIO_VAS_KIND_BLOCKS, VIRTIO_VAS_KIND_PACKED, VIRTIO_VAS_META_MAGIC, VIRTIO_VAS_META_VERSION,
    VirtioVasMeta, VirtioVasMetaRun, VirtioVasMetaVas, VirtioVasMetaVma,
};
use mvas_host::FileRange;
use mvas_host::store::{
    BLOCK, Draft, Extent, Label, OpenSnapshot, SnapshotName, Store, StoreError, StoreOptions,
    StoreRun,
};
use tempfile::TempDir;
use zerocopy::IntoBytes;

pub const MIB: u64 = 1 << 20;
const BLOCK_LEN: usize = 2 << 20;

/// A store of its own in `/dev/shm`.
pub struct Shm {
    pub folder: TempDir,
    pub store: Store,
}

impl Shm {
    pub fn new() -> Self {
        let folder = folder();
        let store = open(folder.path());
        Self { folder, store }
    }

    pub fn with_limit(limit: u64) -> Self {
        let folder = folder();
        let options = StoreOptions {
            limit: Some(limit),
            ..StoreOptions::default()
        };
        let store = Store::open(folder.path(), options).unwrap();
        Self { folder, store }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Bytes of memory that the RAM files take.
    pub fn ram_bytes(&self) -> u64 {
        ram_bytes(self.path())
    }

    /// Wants the store to have nothing wrong.
    pub fn is_right(&self) {
        let report = self.store.check().unwrap();
        assert!(report.problems.is_empty(), "{:?}", report.problems);
    }
}

/// A folder in the tmpfs that every host has.
pub fn folder() -> TempDir {
    private_folder("/dev/shm")
}

pub fn private_folder(parent: &str) -> TempDir {
    let mut builder = tempfile::Builder::new();
    let private = builder.permissions(fs::Permissions::from_mode(0o700));
    private.tempdir_in(parent).unwrap()
}

pub fn open(path: &Path) -> Store {
    Store::open(path, StoreOptions::default()).unwrap()
}

pub fn ram_bytes(store: &Path) -> u64 {
    let files = fs::read_dir(store.join("ram")).unwrap();
    let bytes = files.map(|file| file.unwrap().metadata().unwrap().blocks() * 512);
    bytes.sum()
}

pub fn name(text: &str) -> SnapshotName {
    text.parse().unwrap()
}

pub fn label(text: &str) -> Label {
    text.parse().unwrap()
}

/// Gives a snapshot another label, whatever it has now.
pub fn relabel(store: &Store, snapshot: &str, to: &str) -> Result<(), StoreError> {
    let found = store.labelled(|head| head.name.as_str() == snapshot)?;
    let from = found.into_iter().next().map(|(_, label)| label);
    store.set_label(
        &name(snapshot),
        &from.unwrap_or_default(),
        &label(to),
        |_| true,
    )
}

/// Metadata of one VAS that has all blocks and all packed pages, in this order.
pub fn metadata(blocks: u64, packed_pages: u64) -> Vec<u8> {
    const BASE: u64 = 1 << 32;
    let mut vas_name = [0; 128];
    vas_name[..3].copy_from_slice(b"vas");
    let middle = BASE + blocks * BLOCK;
    let vma = VirtioVasMetaVma {
        start: BASE.into(),
        end: (middle + packed_pages * 4096).max(BASE + 4096).into(),
        pgoff: 0.into(),
        prot: 3.into(),
        flags: 0.into(),
    };
    let run = |start: u64, pages: u64, kind: u32| VirtioVasMetaRun {
        start: start.into(),
        pages: u32::try_from(pages).unwrap().into(),
        kind: kind.into(),
        index: 0.into(),
    };
    let runs: Vec<_> = [
        run(BASE, blocks * 512, VIRTIO_VAS_KIND_BLOCKS),
        run(middle, packed_pages, VIRTIO_VAS_KIND_PACKED),
    ]
    .into_iter()
    .filter(|run| run.pages.get() > 0)
    .collect();
    let head = VirtioVasMeta {
        magic: VIRTIO_VAS_META_MAGIC.into(),
        version: VIRTIO_VAS_META_VERSION.into(),
        vases: 1.into(),
        reserved: 0.into(),
    };
    let vas = VirtioVasMetaVas {
        name: vas_name,
        mode: 0o600.into(),
        vmas: 1.into(),
        runs: u32::try_from(runs.len()).unwrap().into(),
        reserved: 0.into(),
    };
    let mut bytes = head.as_bytes().to_vec();
    bytes.extend(vas.as_bytes());
    bytes.extend(vma.as_bytes());
    runs.iter().for_each(|run| bytes.extend(run.as_bytes()));
    bytes
}

pub fn own(run: &StoreRun, block: u64) -> Extent {
    Extent {
        run: run.id(),
        block,
    }
}

/// A guest writes to a whole block of its own.
pub fn fill(run: &StoreRun, block: u64, byte: u8) {
    let data = vec![byte; BLOCK_LEN];
    run.ram().file().write_all_at(&data, block * BLOCK).unwrap();
}

/// Whether all of the block is this byte.
pub fn shows(run: &StoreRun, extent: Extent, byte: u8) -> bool {
    let mut data = vec![!byte; BLOCK_LEN];
    let file = run.file_of(extent.run).unwrap();
    file.read_exact_at(&mut data, extent.range().start().0)
        .unwrap();
    data == vec![byte; BLOCK_LEN] // a loop is slow without optimization
}

/// A draft of these blocks of guest memory, which the guest goes on to see.
pub fn publish(run: &StoreRun, snapshot: &str, blocks: &[u64]) -> Result<Draft, StoreError> {
    let extents: Vec<_> = blocks.iter().map(|block| own(run, *block)).collect();
    let mut draft = run.draft(name(snapshot))?;
    run.reserve(&mut draft, extents.len() as u64, &[])?;
    run.use_extents(&extents)?;
    draft.push_blocks(&extents)?;
    draft.meta = metadata(blocks.len() as u64, 0);
    Ok(draft)
}

pub fn snapshot(run: &StoreRun, name: &str, blocks: &[u64]) -> Result<OpenSnapshot, StoreError> {
    run.commit(&mut publish(run, name, blocks)?)
}

pub fn blocks(first: u64, count: u64) -> FileRange {
    FileRange::new(mvas_host::FileOffset(first * BLOCK), count * BLOCK).unwrap()
}
