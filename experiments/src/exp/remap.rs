// SPDX-License-Identifier: GPL-2.0-only
//! Remapping against copying on the host itself: what the device does for a guest, without the
//! guest.

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
use vm_memory::{Bytes, GuestAddress};
use zerocopy::IntoBytes;

use crate::frame::{
    Axis, Case, Claim, Definition, Experiment, Figure, Kind, Lab, Metric, Metrics, Than, Unit,
    metrics,
};
use crate::host::Scratch;
use crate::system::{System, ms};

use super::common;

pub(super) struct Remap;

static DEFINITION: Definition = Definition {
    name: "remap",
    title: "Remap against copy, on the host",
    question: "What does it take the host to bring memory of a guest into the store, and back, by \
        remapping it, against copying it?",
    axes: &[Axis {
        name: "size",
        about: "memory",
        kind: Kind::Size,
        quick: &["32M"],
        full: &["64M", "256M", "1G"],
    }],
    systems: &[System::Copy, System::Remap],
    metrics: &[
        Metric {
            name: "publish_ms",
            about: "memory of the guest becomes the snapshot's",
            unit: Unit::Ms,
        },
        Metric {
            name: "map_ms",
            about: "memory of the snapshot appears in the guest",
            unit: Unit::Ms,
        },
        Metric {
            name: "release_ms",
            about: "memory is given back",
            unit: Unit::Ms,
        },
    ],
    machine: common::MACHINE,
    repeats: [1, 5],
    figures: &[Figure {
        title: "Memory of the guest becomes the snapshot's",
        metric: "publish_ms",
        x: "size",
        panels: None,
    }],
    claims: &[Claim {
        text: "Remapping is 10 times faster than copying",
        paper: None,
        metric: "publish_ms",
        system: System::Remap,
        than: Than::System(System::Copy),
        at: &[],
        goal: 10.0,
    }],
    notes: &[
        "The server of the device is asked without a guest, on the host that the microVMs of the \
         other experiments run on.",
        "remap: PUBLISH of blocks of 2 MiB of which no two lie side by side, MAP of them in \
         disorder, RELEASE of where they were. copy: COPY of as many pages of 4 KiB; the way back \
         is MAP for copies, too, so it is in no number of theirs.",
        "What was mapped is compared with what was published.",
    ],
};

impl Experiment for Remap {
    fn definition(&self) -> &'static Definition {
        &DEFINITION
    }

    fn measure(&self, _lab: &mut Lab, case: &Case) -> Result<Metrics> {
        let store = Scratch::new()?;
        measure(case.system, case.point.mib("size")? as u64, store.path())
    }
}

/// Measures on this host, with the store in the directory `store`.
fn measure(system: System, size_mib: u64, store: &Path) -> Result<Metrics> {
    // Every other block is asked for, so that no two are remapped at once; the last third is
    // where they appear.
    let guest = Guest::new(store, 3 * size_mib)?;
    let blocks = (size_mib << 20) / BLOCK;
    let written = 2 * blocks * BLOCK;
    for gpa in (0..written).step_by(usize::try_from(PAGE)?) {
        guest.ram.memory().write_obj(gpa, GuestAddress(gpa))?;
    }
    let asked: Vec<u64> = (0..blocks).map(|i| 2 * i * BLOCK).collect();
    let draft = guest.create()?;
    if system == System::Copy {
        let pages = |gpa| (0..BLOCK / PAGE).map(move |i| gpa + i * PAGE);
        let pages: Vec<u64> = asked.into_iter().flat_map(pages).collect();
        let copies = pages.chunks(MOST_ENTRIES);
        let copy_ms = copies.map(|some| guest.timed(VIRTIO_VAS_OP_COPY, draft, some));
        return Ok(metrics([("publish_ms", copy_ms.sum::<Result<_>>()?)]));
    }
    let publish_ms = guest.timed(VIRTIO_VAS_OP_PUBLISH, draft, &asked)?;
    guest.commit(draft)?;
    let scattered = |i: u64| (2 * blocks + (i * STRIDE) % blocks) * BLOCK;
    let entries = (0..blocks).map(|i| {
        Ok(VirtioVasMap {
            gpa: scattered(i).into(),
            index: u32::try_from(i)?.into(),
            kind: VIRTIO_VAS_KIND_BLOCKS.into(),
        })
    });
    let entries: Vec<VirtioVasMap> = entries.collect::<Result<_>>()?;
    let map_ms = guest.timed(VIRTIO_VAS_OP_MAP, draft, &entries)?;
    for (i, gpa) in (0..).zip(&asked) {
        let read: u64 = guest.ram.memory().read_obj(GuestAddress(scattered(i)))?;
        ensure!(read == *gpa, "block {i} is not what was published");
    }
    let ranges: Vec<[u64; 2]> = asked.iter().map(|gpa| [*gpa, BLOCK]).collect();
    let release_ms = guest.timed(VIRTIO_VAS_OP_RELEASE, 0, &ranges)?;
    Ok(metrics([
        ("publish_ms", publish_ms),
        ("map_ms", map_ms),
        ("release_ms", release_ms),
    ]))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mapped_is_what_was_published() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let store = |system: System| dir.path().join(system.to_string());
        let measured = |system| measure(system, 16, &store(system)).unwrap();
        assert_eq!(measured(System::Remap).len(), 3);
        assert_eq!(measured(System::Copy).len(), 1);
    }
}
