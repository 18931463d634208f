//! A snapshot's metadata: what its pages mean. Written by guests, so nothing in it is
//! believed. The format is in `docs/VIRTIO-VAS.md`.

use std::ffi::CStr;

use mvas_abi::virtio_vas::{
    VIRTIO_VAS_BLOCK_PAGES, VIRTIO_VAS_KIND_BLOCKS, VIRTIO_VAS_KIND_PACKED, VIRTIO_VAS_META_MAGIC,
    VIRTIO_VAS_META_VERSION, VIRTIO_VAS_PAGE_SIZE, VIRTIO_VAS_VMA_ACCOUNT,
    VIRTIO_VAS_VMA_NORESERVE, VirtioVasMeta, VirtioVasMetaRun, VirtioVasMetaVas, VirtioVasMetaVma,
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
        let flags = VIRTIO_VAS_VMA_ACCOUNT | VIRTIO_VAS_VMA_NORESERVE;
        if vma.prot.get() & !PROT_ALL != 0 || vma.flags.get() & !flags != 0 {
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
                Some(vma) if vma.start.get() <= covered => covered = vma.end.get(),
                _ => return Err(("a run outside of the VMAs", i)),
            }
        }
        free_from = end;
        sum += pages;
    }
    Ok(sum)
}
