//! Remapping against copying, on the host itself: what the device does for a guest, without
//! the guest.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use mvas_abi::virtio_vas::{
    VIRTIO_VAS_KIND_BLOCKS, VIRTIO_VAS_META_MAGIC, VIRTIO_VAS_META_VERSION, VIRTIO_VAS_NAME_MAX,
    VIRTIO_VAS_OP_COMMIT, VIRTIO_VAS_OP_COPY, VIRTIO_VAS_OP_CREATE, VIRTIO_VAS_OP_MAP,
    VIRTIO_VAS_OP_META, VIRTIO_VAS_OP_PUBLISH, VIRTIO_VAS_OP_RELEASE, VirtioVasMap, VirtioVasMeta,
    VirtioVasRequest,
};
use mvas_host::server::{BLOCK, Grant, GuestMapping, PAGE, Server, ServerConfig, Status};
use mvas_host::store::{Store, StoreOptions, StoreRun};
use mvasvm::config::MemSize;
use mvasvm::memory::{GuestRam, PhysBits};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

use crate::system::ms;
use crate::table;

/// How long the operations of the device take, in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Remap {
    /// Whose host it is: `native` or `simulated`.
    pub host: String,
    /// The memory of each operation.
    pub size_mib: u64,
    /// PUBLISH: blocks of 2 MiB become the snapshot's.
    pub publish_ms: f64,
    /// COPY of as many 4 KiB pages.
    pub copy_ms: f64,
    /// MAP: the blocks appear elsewhere, in disorder.
    pub map_ms: f64,
    /// RELEASE: blocks are given back.
    pub release_ms: f64,
}

/// Measures on this host, with `size_mib` MiB and the store in the directory `store`.
///
/// # Errors
/// When the store or an operation fails, or mapped memory is not what was published.
pub fn measure(host: &str, size_mib: u64, store: &Path) -> Result<Remap> {
    eprintln!("remapping {size_mib} MiB on the {host} host");
    let guest = Guest::new(store, 3 * size_mib)?;
    let blocks = (size_mib << 20) / BLOCK;
    let written = 2 * blocks * BLOCK;
    for gpa in (0..written).step_by(usize::try_from(PAGE)?) {
        guest.ram.memory().write_obj(gpa, GuestAddress(gpa))?;
    }
    // Every other block is published, so that no two are remapped at once; the pages of those
    // between are copied.
    let draft = guest.create()?;
    let published: Vec<u64> = (0..blocks).map(|i| 2 * i * BLOCK).collect();
    let publish_ms = guest.timed(VIRTIO_VAS_OP_PUBLISH, draft, &published)?;
    let pages = published
        .iter()
        .flat_map(|gpa| (0..BLOCK / PAGE).map(move |i| gpa + BLOCK + i * PAGE));
    let copy_ms = pages
        .collect::<Vec<u64>>()
        .chunks(MOST_ENTRIES)
        .map(|some| guest.timed(VIRTIO_VAS_OP_COPY, draft, some))
        .sum::<Result<f64>>()?;
    guest.commit(draft)?;
    let scattered = |i: u64| (i * STRIDE) % blocks;
    let entries = (0..blocks).map(|i| {
        Ok(VirtioVasMap {
            gpa: ((2 * blocks + scattered(i)) * BLOCK).into(),
            index: u32::try_from(i)?.into(),
            kind: VIRTIO_VAS_KIND_BLOCKS.into(),
        })
    });
    let entries: Vec<VirtioVasMap> = entries.collect::<Result<_>>()?;
    let map_ms = guest.timed(VIRTIO_VAS_OP_MAP, draft, &entries)?;
    for i in 0..blocks {
        let gpa = (2 * blocks + scattered(i)) * BLOCK;
        let read: u64 = guest.ram.memory().read_obj(GuestAddress(gpa))?;
        ensure!(read == 2 * i * BLOCK, "block {i} is not what was published");
    }
    let ranges: Vec<[u64; 2]> = published.iter().map(|gpa| [*gpa, BLOCK]).collect();
    let release_ms = guest.timed(VIRTIO_VAS_OP_RELEASE, 0, &ranges)?;
    Ok(Remap {
        host: host.to_owned(),
        size_mib,
        publish_ms,
        copy_ms,
        map_ms,
        release_ms,
    })
}

/// Entries that one request may have.
const MOST_ENTRIES: usize = 65536;
/// Prime, so that a multiple of it reaches every block, none beside the one before.
const STRIDE: u64 = 199;

/// A guest's memory and the server of its requests.
struct Guest {
    // Dropped in this order: the run ends when its memory is not mapped any more.
    server: Server,
    ram: Arc<GuestRam>,
    _run: StoreRun,
}

impl Guest {
    fn new(store: &Path, mib: u64) -> Result<Self> {
        let store = Store::open(store, StoreOptions::default())?;
        let mem = MemSize::from_bytes(mib << 20)?;
        let run = store.start_run("remap", mem.bytes())?;
        let ram = Arc::new(GuestRam::new(run.ram(), mem, PhysBits(40))?);
        let server = Server::new(ServerConfig {
            run: run.clone(),
            memory: Arc::clone(&ram) as Arc<dyn GuestMapping>,
            ram: ram.blocks(),
            grant: Grant::Own,
            max_mappings: 60_000,
            populate: true,
        });
        Ok(Self {
            server,
            ram,
            _run: run,
        })
    }

    /// Sends a request; what it answers, and milliseconds.
    fn call(&self, op: u32, count: usize, handle: u64, payload: &[u8]) -> Result<(u64, f64)> {
        let head = VirtioVasRequest {
            op: op.into(),
            count: u32::try_from(count)?.into(),
            handle: handle.into(),
            arg: 0.into(),
            reserved: 0.into(),
        };
        let request = [head.as_bytes(), payload].concat();
        let begun = Instant::now();
        let answer = self.server.serve(&request, 0, &AtomicBool::new(false));
        let elapsed = ms(begun.elapsed());
        ensure!(
            answer.status() == Status::Ok,
            "operation {op}: {:?}",
            answer.error
        );
        Ok((answer.value, elapsed))
    }

    fn timed<T: IntoBytes + zerocopy::Immutable>(
        &self,
        op: u32,
        handle: u64,
        entries: &[T],
    ) -> Result<f64> {
        Ok(self.call(op, entries.len(), handle, entries.as_bytes())?.1)
    }

    fn create(&self) -> Result<u64> {
        let mut name = [0; VIRTIO_VAS_NAME_MAX];
        name[0] = b's';
        Ok(self.call(VIRTIO_VAS_OP_CREATE, 0, 0, &name)?.0)
    }

    /// Completes a draft; no VAS has its blocks.
    fn commit(&self, draft: u64) -> Result<()> {
        let meta = VirtioVasMeta {
            magic: VIRTIO_VAS_META_MAGIC.into(),
            version: VIRTIO_VAS_META_VERSION.into(),
            vases: 0.into(),
            reserved: 0.into(),
        };
        let bytes = meta.as_bytes();
        self.call(VIRTIO_VAS_OP_META, bytes.len(), draft, bytes)?;
        self.call(VIRTIO_VAS_OP_COMMIT, 0, draft, &[])
            .context("the snapshot is not complete")?;
        Ok(())
    }
}

/// The table for people.
#[must_use]
pub fn render(rows: &[Remap]) -> String {
    let header = [
        "on the host",
        "memory",
        "PUBLISH ms",
        "MAP ms",
        "RELEASE ms",
        "COPY ms",
        "PUBLISH is",
    ];
    let cells = |row: &Remap| {
        vec![
            row.host.clone(),
            format!("{} MiB", row.size_mib),
            table::ms(row.publish_ms),
            table::ms(row.map_ms),
            table::ms(row.release_ms),
            table::ms(row.copy_ms),
            table::times(row.copy_ms, row.publish_ms),
        ]
    };
    table::render(&header, &rows.iter().map(cells).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mapped_is_what_was_published() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let remap = measure("native", 16, &dir.path().join("store")).unwrap();
        assert_eq!((remap.host.as_str(), remap.size_mib), ("native", 16));
        let table = render(&[remap]);
        assert!(
            table.contains("native") && table.contains("16 MiB"),
            "{table}"
        );
    }
}
