// SPDX-License-Identifier: GPL-2.0-only
//! A snapshot's metadata: what its pages mean. Written by guests, so nothing in it is
//! believed. The format is in `docs/VIRTIO-VAS.md`.

use std::ffi::CStr;

use mvas_abi::virtio_vas::{
    VIRTIO_VAS_BLOCK_PAGES, VIRTIO_VAS_KIND_BLOCKS, VIRTIO_VAS_KIND_PACKED, VIRTIO_VAS_META_MAGIC,
    VIRTIO_VAS_META_VERSION, VIRTIO_VAS_PAGE_SIZE, VIRTIO_VAS_VMA_ACCOUNT,
    VIRTIO_VAS_VMA_DROPPABLE, VIRTIO_VAS_VMA_FILE, VIRTIO_VAS_VMA_NORESERVE,
    VIRTIO_VAS_VMA_WIPEONFORK, VirtioVasMeta, VirtioVasMetaRun, VirtioVasMetaVas, VirtioVasMetaVma,
};
use serde::Serialize;
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// One past the last address of user space, with five-level page tables.
const USER_END: u64 = 1 << 56;
const PAGE: u64 = VIRTIO_VAS_PAGE_SIZE as u64;
const BLOCK_PAGES: u64 = VIRTIO_VAS_BLOCK_PAGES as u64;
/// PROT_READ, PROT_WRITE, PROT_EXEC.
const PROT_ALL: u32 = 7;
const FLAGS_ALL: u32 = VIRTIO_VAS_VMA_ACCOUNT
    | VIRTIO_VAS_VMA_NORESERVE
    | VIRTIO_VAS_VMA_DROPPABLE
    | VIRTIO_VAS_VMA_WIPEONFORK
    | VIRTIO_VAS_VMA_FILE;

/// What is wrong with metadata, and where.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("{what} at byte {at} of the metadata")]
pub struct MetaError {
    /// What is wrong.
    pub what: &'static str,
    /// Offset of the struct that is wrong.
    pub at: usize,
}

/// One virtual address space of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VasSummary {
    /// Its name.
    pub name: String,
    /// Permission bits.
    pub mode: u32,
    /// How many VMAs.
    pub vmas: u64,
    /// How many pages of 4 KiB are not zero.
    pub pages: u64,
}

/// Sums over all virtual address spaces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MetaSummary {
    /// How many there are.
    pub vases: u64,
    /// Their VMAs.
    pub vmas: u64,
    /// Their pages of 4 KiB that are not zero.
    pub pages: u64,
}

/// Checks the metadata of a snapshot with `blocks` blocks and `packed_pages` packed pages.
///
/// # Errors
/// It is not what `docs/VIRTIO-VAS.md` allows, or names more than the snapshot has.
pub fn check(meta: &[u8], blocks: u64, packed_pages: u64) -> Result<MetaSummary, MetaError> {
    let mut sum = MetaSummary::default();
    for vas in vases(meta, blocks, packed_pages)? {
        let vas = vas?;
        sum.vases += 1;
        sum.vmas += vas.vmas;
        sum.pages += vas.pages; // each is at most 2^44, and takes 144 bytes
    }
    Ok(sum)
}

/// The virtual address spaces in metadata, checked as [`check`] does.
///
/// # Errors
/// The header is wrong; of each item, that this one is.
pub fn vases(
    meta: &[u8],
    blocks: u64,
    packed_pages: u64,
) -> Result<impl Iterator<Item = Result<VasSummary, MetaError>> + '_, MetaError> {
    let mut reader = Reader { rest: meta, at: 0 };
    let head: &VirtioVasMeta = reader.one()?;
    if head.magic.get() != VIRTIO_VAS_META_MAGIC || head.version.get() != VIRTIO_VAS_META_VERSION {
        return Err(wrong("no magic or an unknown version", 0));
    }
    if head.reserved.get() != 0 {
        return Err(wrong("a reserved field that is not 0", 0));
    }
    let mut left = head.vases.get();
    let mut failed = false;
    Ok(std::iter::from_fn(move || {
        if failed || (left == 0 && reader.rest.is_empty()) {
            return None;
        }
        let vas = match left.checked_sub(1) {
            Some(fewer) => {
                left = fewer;
                read_vas(&mut reader, blocks, packed_pages)
            }
            None => Err(wrong("something after the last VAS", reader.at)),
        };
        failed = vas.is_err();
        Some(vas)
    }))
}

fn wrong(what: &'static str, at: usize) -> MetaError {
    MetaError { what, at }
}

/// Takes structs from the front of bytes.
struct Reader<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn one<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Result<&'a T, MetaError> {
        let (one, rest) = T::ref_from_prefix(self.rest).map_err(|_| self.cut_short())?;
        self.advance(rest);
        Ok(one)
    }

    fn many<T: FromBytes + KnownLayout + Immutable>(
        &mut self,
        count: u32,
    ) -> Result<&'a [T], MetaError> {
        let cut_short = self.cut_short();
        let count = usize::try_from(count).map_err(|_| cut_short)?;
        let (many, rest) =
            <[T]>::ref_from_prefix_with_elems(self.rest, count).map_err(|_| cut_short)?;
        self.advance(rest);
        Ok(many)
    }

    fn advance(&mut self, rest: &'a [u8]) {
        self.at += self.rest.len() - rest.len();
        self.rest = rest;
    }

    fn cut_short(&self) -> MetaError {
        wrong("less than was announced", self.at)
    }
}

fn read_vas(reader: &mut Reader, blocks: u64, packed_pages: u64) -> Result<VasSummary, MetaError> {
    let at = reader.at;
    let vas: &VirtioVasMetaVas = reader.one()?;
    let name = vas_name(&vas.name).ok_or(wrong("a VAS name that cannot be", at))?;
    if vas.reserved.get() != 0 || vas.mode.get() > 0o777 {
        return Err(wrong("a reserved field or a mode that cannot be", at));
    }
    let vmas_at = reader.at;
    let vmas: &[VirtioVasMetaVma] = reader.many(vas.vmas.get())?;
    check_vmas(vmas).map_err(|(what, i)| wrong(what, vmas_at + i * size_of_val(&vmas[i])))?;
    let runs_at = reader.at;
    let runs: &[VirtioVasMetaRun] = reader.many(vas.runs.get())?;
    let pages = check_runs(runs, vmas, blocks, packed_pages)
        .map_err(|(what, i)| wrong(what, runs_at + i * size_of_val(&runs[i])))?;
    Ok(VasSummary {
        name,
        mode: vas.mode.get(),
        vmas: vmas.len() as u64,
        pages,
    })
}

/// As the kernel's `vas_name_valid`, with zeroes up to the end.
fn vas_name(field: &[u8]) -> Option<String> {
    let name = CStr::from_bytes_until_nul(field).ok()?.to_bytes();
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || b"._:@+-".contains(b);
    let ok = !name.is_empty()
        && name[0] != b'.'
        && name.iter().all(allowed)
        && field[name.len()..].iter().all(|b| *b == 0);
    ok.then(|| name.iter().map(|b| char::from(*b)).collect())
}

/// What is wrong, with which element.
type At = (&'static str, usize);

fn check_vmas(vmas: &[VirtioVasMetaVma]) -> Result<(), At> {
    let mut free_from = 0;
    for (i, vma) in vmas.iter().enumerate() {
        let (start, end) = (vma.start.get(), vma.end.get());
        if !start.is_multiple_of(PAGE) || !end.is_multiple_of(PAGE) {
            return Err(("a VMA that is not of whole pages", i));
        }
        if start < free_from || start >= end || end > USER_END {
            return Err(("a VMA that is empty, out of order or out of user space", i));
        }
        if vma.pgoff.get().checked_add((end - start) / PAGE).is_none() {
            return Err(("a VMA with an offset that cannot be", i));
        }
        if vma.prot.get() & !PROT_ALL != 0 || vma.flags.get() & !FLAGS_ALL != 0 {
            return Err(("a VMA with unknown bits", i));
        }
        free_from = end;
    }
    Ok(())
}

/// Checks the runs of a VAS; returns how many pages they have.
fn check_runs(
    runs: &[VirtioVasMetaRun],
    vmas: &[VirtioVasMetaVma],
    blocks: u64,
    packed_pages: u64,
) -> Result<u64, At> {
    let (mut free_from, mut sum) = (0, 0);
    let mut vmas = vmas.iter().peekable();
    for (i, run) in runs.iter().enumerate() {
        let (start, pages, index) = (run.start.get(), u64::from(run.pages.get()), run.index.get());
        let (align, needs, has) = match run.kind.get() {
            VIRTIO_VAS_KIND_BLOCKS => (BLOCK_PAGES, pages / BLOCK_PAGES, blocks),
            VIRTIO_VAS_KIND_PACKED => (1, pages, packed_pages),
            _ => return Err(("a run of an unknown kind", i)),
        };
        if pages == 0 || !pages.is_multiple_of(align) || !start.is_multiple_of(align * PAGE) {
            return Err(("a run that is empty or not aligned", i));
        }
        if index.checked_add(needs).is_none_or(|end| end > has) {
            return Err(("a run of memory that the snapshot has not", i));
        }
        let end = start
            .checked_add(pages * PAGE)
            .filter(|_| start >= free_from);
        let end = end.ok_or(("a run that is out of order", i))?;
        let mut covered = start;
        while covered < end {
            let vma = vmas.next_if(|vma| vma.end.get() <= covered);
            if vma.is_some() {
                continue;
            }
            match vmas.peek() {
                Some(vma) if vma.start.get() <= covered => {
                    if vma.flags.get() & VIRTIO_VAS_VMA_DROPPABLE != 0 {
                        return Err(("a run in a droppable VMA", i));
                    }
                    if vma.flags.get() & VIRTIO_VAS_VMA_FILE != 0
                        && run.kind.get() != VIRTIO_VAS_KIND_PACKED
                    {
                        return Err(("a block in a file's VMA", i));
                    }
                    covered = vma.end.get();
                }
                _ => return Err(("a run outside of the VMAs", i)),
            }
        }
        free_from = end;
        sum += pages;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    /// A run: kind, pages (of a block, if kind 0), index.
    type Run = (u32, u32, u64);
    /// A VMA with the runs in it, one after the other.
    type Vma = Vec<Run>;

    const BLOCKS: u64 = 40;
    const PACKED: u64 = 4000;

    fn any_vma() -> impl Strategy<Value = Vma> {
        let blocks = (1..4u32, 0..BLOCKS - 3).prop_map(|(n, i)| (0, n * 512, i));
        let packed = (1..900u32, 0..PACKED - 900).prop_map(|(n, i)| (1, n, i));
        prop::collection::vec(prop_oneof![blocks, packed], 0..5)
    }

    fn any_vases() -> impl Strategy<Value = Vec<Vec<Vma>>> {
        prop::collection::vec(prop::collection::vec(any_vma(), 0..4), 0..4)
    }

    /// Right metadata: VMAs of whole blocks with gaps between them.
    fn encode(vases: &[Vec<Vma>]) -> Vec<u8> {
        let mut bytes = VirtioVasMeta {
            magic: VIRTIO_VAS_META_MAGIC.into(),
            version: VIRTIO_VAS_META_VERSION.into(),
            vases: u32::try_from(vases.len()).unwrap().into(),
            reserved: 0.into(),
        }
        .as_bytes()
        .to_vec();
        for (number, vas) in vases.iter().enumerate() {
            let mut name = [0; 128];
            let text = format!("vas:{number}");
            name[..text.len()].copy_from_slice(text.as_bytes());
            let (mut vmas, mut runs, mut at) = (Vec::new(), Vec::new(), 1 << 32);
            for vma in vas {
                let start: u64 = at;
                for (kind, pages, index) in vma {
                    runs.push(VirtioVasMetaRun {
                        start: at.into(),
                        pages: (*pages).into(),
                        kind: (*kind).into(),
                        index: (*index).into(),
                    });
                    at += (u64::from(*pages) * PAGE).next_multiple_of(BLOCK_PAGES * PAGE);
                }
                at += BLOCK_PAGES * PAGE;
                vmas.push(VirtioVasMetaVma {
                    start: start.into(),
                    end: at.into(),
                    pgoff: (start / PAGE).into(),
                    prot: 3.into(),
                    flags: 1.into(),
                });
                at += BLOCK_PAGES * PAGE;
            }
            let vas = VirtioVasMetaVas {
                name,
                mode: 0o600.into(),
                vmas: u32::try_from(vmas.len()).unwrap().into(),
                runs: u32::try_from(runs.len()).unwrap().into(),
                reserved: 0.into(),
            };
            bytes.extend(vas.as_bytes());
            vmas.iter().for_each(|vma| bytes.extend(vma.as_bytes()));
            runs.iter().for_each(|run| bytes.extend(run.as_bytes()));
        }
        bytes
    }

    proptest! {
        #[test]
        fn right_metadata_is_taken_and_summed_up(vases in any_vases()) {
            let sum = check(&encode(&vases), BLOCKS, PACKED).unwrap();
            let runs = vases.iter().flatten().flatten();
            prop_assert_eq!(sum, MetaSummary {
                vases: vases.len() as u64,
                vmas: vases.iter().map(|vas| vas.len() as u64).sum(),
                pages: runs.map(|(_, pages, _)| u64::from(*pages)).sum(),
            });
        }

        #[test]
        fn metadata_cut_short_or_longer_is_refused(vases in any_vases(), cut: prop::sample::Index) {
            let mut bytes = encode(&vases);
            prop_assert!(check(&bytes[..cut.index(bytes.len())], BLOCKS, PACKED).is_err());
            bytes.push(0);
            prop_assert!(check(&bytes, BLOCKS, PACKED).is_err());
        }

        #[test]
        fn changed_metadata_never_names_more_than_there_is(
            vases in any_vases(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            blocks in 0..BLOCKS,
            packed in 0..PACKED,
        ) {
            let mut bytes = encode(&vases);
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            // Whatever is taken, a naive reader of the runs finds it in bounds.
            if check(&bytes, blocks, packed).is_ok() {
                let mut reader = Reader { rest: &bytes, at: 0 };
                let head: &VirtioVasMeta = reader.one().unwrap();
                for _ in 0..head.vases.get() {
                    let vas: &VirtioVasMetaVas = reader.one().unwrap();
                    let vmas: &[VirtioVasMetaVma] = reader.many(vas.vmas.get()).unwrap();
                    let runs: &[VirtioVasMetaRun] = reader.many(vas.runs.get()).unwrap();
                    for run in runs {
                        let pages = u64::from(run.pages.get());
                        let (has, unit) = [(blocks, BLOCK_PAGES), (packed, 1)][run.kind.get() as usize];
                        prop_assert!(u128::from(run.index.get()) + u128::from(pages / unit) <= has.into());
                        for page in [0, pages / 2, pages - 1] {
                            let address = run.start.get() + page * PAGE;
                            let holds = |v: &VirtioVasMetaVma| (v.start.get()..v.end.get()).contains(&address);
                            prop_assert!(vmas.iter().any(holds));
                        }
                    }
                    let apart = |w: &[VirtioVasMetaRun]| {
                        w[0].start.get() + u64::from(w[0].pages.get()) * PAGE <= w[1].start.get()
                    };
                    prop_assert!(runs.windows(2).all(apart));
                }
                prop_assert!(reader.rest.is_empty());
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600), blocks: u64, packed: u64) {
            let _ = check(&bytes, blocks, packed);
            let mut bytes = bytes;
            let head = encode(&[Vec::new()]);
            let len = head.len().min(bytes.len());
            bytes[..len].copy_from_slice(&head[..len]);
            let _ = check(&bytes, blocks, packed);
        }
    }

    /// One VAS, one VMA of two blocks, one run of one block; then one field is changed.
    fn refused(offset: usize, value: &[u8]) -> &'static str {
        let mut bytes = encode(&[vec![vec![(0, 512, 0)]]]);
        assert!(check(&bytes, 1, 0).is_ok());
        bytes[offset..offset + value.len()].copy_from_slice(value);
        check(&bytes, 1, 0).unwrap_err().what
    }

    #[test]
    fn each_field_that_cannot_be_is_refused_for_its_reason() {
        let (vas, vma, run) = (16, 16 + 144, 16 + 144 + 32);
        let max = u64::MAX.to_le_bytes();
        let cases: [(usize, &[u8], &str); 25] = [
            (0, b"X", "magic"),
            (4, &[1], "version"),
            (4, &[3], "version"),
            (8, &[2], "less than"),
            (8, &[0], "after the last"),
            (12, &[1], "reserved"),
            (vas, &[0], "name"),
            (vas, b".", "name"),
            (vas, b"/", "name"),
            (vas + 20, b"x", "name"),
            (vas + 128, &[0, 2], "mode"),
            (vas + 132, &max[..4], "less than"),
            (vas + 136, &max[..4], "less than"),
            (vas + 140, &[1], "reserved"),
            (vma, &[1], "whole pages"),
            (vma, &[0, 0, 0, 0, 2], "out of order"),
            (vma + 8, &[0, 0, 0, 0, 0, 0, 0, 2], "user space"),
            (vma + 16, &max, "offset"),
            (vma + 24, &[8], "unknown bits"),
            (vma + 28, &[32], "unknown bits"),
            (vma + 28, &[4], "droppable"),
            (vma + 28, &[16], "a block in a file's VMA"),
            (run + 8, &[0, 0], "empty"),
            (run + 12, &[2], "unknown kind"),
            (run + 16, &max, "has not"),
        ];
        for (offset, value, reason) in cases {
            let what = refused(offset, value);
            assert!(what.contains(reason), "byte {offset}: {what}");
        }
        assert!(refused(run, &[0, 0, 0x40]).contains("outside"));
        assert!(refused(run, &[0, 0x10]).contains("aligned"));
        assert!(refused(run, &[0, 0, 0xe0, 0xff, 0xff, 0xff, 0xff, 0xff]).contains("out of order"));
    }

    #[test]
    fn a_run_may_lie_in_vmas_that_adjoin() {
        let mut bytes = encode(&[vec![vec![(0, 1024, 0)], vec![]]]);
        let (first_end, second) = (16 + 144 + 8, 16 + 144 + 32);
        let middle = (1u64 << 32) + 5 * PAGE;
        bytes[first_end..first_end + 8].copy_from_slice(&middle.to_le_bytes());
        assert!(check(&bytes, 2, 0).is_err());
        bytes[second..second + 8].copy_from_slice(&middle.to_le_bytes());
        assert_eq!(check(&bytes, 2, 0).unwrap().pages, 1024);
    }
}
