// SPDX-License-Identifier: GPL-2.0-only
//! Metadata of snapshots: whatever is taken, a reader that checks nothing stays in bounds.

use mvas_abi::virtio_vas::{
    VIRTIO_VAS_BLOCK_PAGES, VIRTIO_VAS_META_MAGIC, VIRTIO_VAS_META_VERSION, VirtioVasMeta,
    VirtioVasMetaRun, VirtioVasMetaVas, VirtioVasMetaVma,
};
use mvas_host::store::meta::{MetaSummary, check, vases};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::input::Input;

const PAGE: u64 = 4096;

pub fn run(input: &[u8]) {
    let mut input = Input(input);
    // Of a large snapshot, or of a small one.
    let [blocks, packed] =
        [input.u16(), input.u16()].map(|n| u64::from(n & 0x7fff) << (n >> 15 << 5));
    let meta = input.0;
    let checked = check(meta, blocks, packed);
    let one_by_one = vases(meta, blocks, packed).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match (&checked, one_by_one) {
        (Ok(sum), Ok(each)) => {
            assert_eq!(sum.vases, each.len() as u64);
            assert_eq!(sum.vmas, each.iter().map(|vas| vas.vmas).sum::<u64>());
            assert_eq!(sum.pages, each.iter().map(|vas| vas.pages).sum::<u64>());
            read(meta, blocks, packed, *sum);
        }
        (Err(one), Err(other)) => {
            assert_eq!(*one, other);
            assert!(one.at <= meta.len());
        }
        (one, other) => panic!("{one:?} or {other:?}"),
    }
}

/// Believes all of it.
fn read(mut meta: &[u8], blocks: u64, packed: u64, sum: MetaSummary) {
    let head: VirtioVasMeta = many(&mut meta, 1)[0];
    let mut pages = 0;
    for _ in 0..head.vases.get() {
        let vas: VirtioVasMetaVas = many(&mut meta, 1)[0];
        let vmas: &[VirtioVasMetaVma] = many(&mut meta, vas.vmas.get());
        let runs: &[VirtioVasMetaRun] = many(&mut meta, vas.runs.get());
        let mut free_from = 0;
        for run in runs {
            let (start, count) = (run.start.get(), u64::from(run.pages.get()));
            assert!(start >= free_from, "runs overlap");
            free_from = start + count * PAGE;
            let (has, unit) = if run.kind.get() == 0 {
                (blocks, u64::from(VIRTIO_VAS_BLOCK_PAGES))
            } else {
                (packed, 1)
            };
            assert!(run.index.get() + count / unit <= has, "more than there is");
            for page in [0, count / 2, count - 1] {
                let address = start + page * PAGE;
                let holds = |v: &VirtioVasMetaVma| (v.start.get()..v.end.get()).contains(&address);
                assert!(vmas.iter().any(holds), "outside of the VMAs");
            }
            pages += count;
        }
    }
    assert!(meta.is_empty());
    assert_eq!(pages, sum.pages);
}

fn many<'a, T: FromBytes + KnownLayout + Immutable>(from: &mut &'a [u8], count: u32) -> &'a [T] {
    let (many, rest) = <[T]>::ref_from_prefix_with_elems(from, count as usize).expect("checked");
    *from = rest;
    many
}

/// Metadata of so many VASes of 4 blocks: of each of their VMAs one block is the snapshot's own,
/// and three pages are packed.
pub fn of(count: u32, vmas: u32) -> Vec<u8> {
    let mut bytes = VirtioVasMeta {
        magic: VIRTIO_VAS_META_MAGIC.into(),
        version: VIRTIO_VAS_META_VERSION.into(),
        vases: count.into(),
        reserved: 0.into(),
    }
    .as_bytes()
    .to_vec();
    let block = u64::from(VIRTIO_VAS_BLOCK_PAGES) * PAGE;
    for number in 0..count {
        let mut name = [0; 128];
        name[..5].copy_from_slice(format!("vas:{number}").as_bytes());
        let vas = VirtioVasMetaVas {
            name,
            mode: 0o600.into(),
            vmas: vmas.into(),
            runs: (2 * vmas).into(),
            reserved: 0.into(),
        };
        bytes.extend(vas.as_bytes());
        let start = |vma: u32| (1u64 << 32) + u64::from(vma) * 4 * block;
        for vma in 0..vmas {
            let vma = VirtioVasMetaVma {
                start: start(vma).into(),
                end: (start(vma) + 3 * block).into(),
                pgoff: (start(vma) / PAGE).into(),
                prot: 3.into(),
                flags: 1.into(),
            };
            bytes.extend(vma.as_bytes());
        }
        for (vma, kind) in (0..vmas).flat_map(|vma| [(vma, 0), (vma, 1)]) {
            let pages = if kind == 0 { VIRTIO_VAS_BLOCK_PAGES } else { 3 };
            let run = VirtioVasMetaRun {
                start: (start(vma) + u64::from(kind) * block).into(),
                pages: pages.into(),
                kind: kind.into(),
                index: u64::from(vma * pages / VIRTIO_VAS_BLOCK_PAGES.min(pages)).into(),
            };
            bytes.extend(run.as_bytes());
        }
    }
    bytes
}

pub fn seeds() -> Vec<Vec<u8>> {
    let seed = |(count, vmas)| [&[4, 0, 12, 0], of(count, vmas).as_slice()].concat();
    [(0, 0), (1, 0), (1, 1), (2, 3)].map(seed).to_vec()
}
