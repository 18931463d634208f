//! The memory workload: a process with a known pattern in its memory, that can
//! tell at any time how many of its pages are not as it left them (SIGUSR1), and
//! write to some of them (SIGUSR2).
//!
//! It holds no pipe and no socket: it answers in a file.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::ValueEnum;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use serde::{Deserialize, Serialize};

/// Words of 8 bytes in a 4 KiB page.
const PAGE_WORDS: usize = 512;
/// Size and alignment of a huge page.
const HUGE: usize = 2 << 20;

/// What pages the workload asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
pub enum Pages {
    /// 2 MiB pages, by `MADV_HUGEPAGE`.
    #[serde(rename = "huge")]
    Huge,
    /// 4 KiB pages, by `MADV_NOHUGEPAGE`.
    #[serde(rename = "4k")]
    #[value(name = "4k")]
    Small,
}

impl std::fmt::Display for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Huge => "huge",
            Self::Small => "4k",
        })
    }
}

/// Fills one page with its pattern.
fn fill(page: &mut [u64], seed: u64, index: u64) {
    let mut word = first_word(seed, index);
    for slot in page {
        *slot = word;
        word = word.wrapping_add(STEP);
    }
}

/// Whether one page holds its pattern.
fn intact(page: &[u64], seed: u64, index: u64) -> bool {
    let first = first_word(seed, index);
    let mut word = first;
    page.iter().all(|slot| {
        let same = *slot == word;
        word = word.wrapping_add(STEP);
        same
    })
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Mixes seed and page number (the finalizer of splitmix64).
fn first_word(seed: u64, index: u64) -> u64 {
    let mut z = seed ^ index.wrapping_mul(STEP);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Memory that knows what it should hold.
#[derive(Debug)]
pub(crate) struct Patterned<'a> {
    memory: &'a mut [u64],
    seed: u64,
    /// Of every [`EVERY`]th page, once it was written to.
    later: u64,
}

/// [`Patterned::scatter`] writes to each page whose number is a multiple of this.
pub const EVERY: u64 = 16;

impl<'a> Patterned<'a> {
    /// Fills all pages with the pattern of `seed`.
    pub fn new(memory: &'a mut [u64], seed: u64) -> Self {
        for (page, index) in memory.chunks_exact_mut(PAGE_WORDS).zip(0..) {
            fill(page, seed, index);
        }
        Self {
            memory,
            seed,
            later: seed,
        }
    }

    /// Writes the pattern of another seed to pages all over; tells how many.
    pub fn scatter(&mut self, seed: u64) -> u64 {
        self.later = seed;
        let mut written = 0;
        for (page, index) in self.memory.chunks_exact_mut(PAGE_WORDS).zip(0..) {
            if index % EVERY == 0 {
                fill(page, seed, index);
                written += 1;
            }
        }
        written
    }

    /// Counts the pages that do not hold what was written to them.
    pub fn count_bad(&self) -> u64 {
        let seed_of = |index: u64| match index % EVERY {
            0 => self.later,
            _ => self.seed,
        };
        self.memory
            .chunks_exact(PAGE_WORDS)
            .zip(0..)
            .map(|(page, index)| u64::from(!intact(page, seed_of(index), index)))
            .sum()
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: any initialized memory is bytes, of which a u64 has 8, without an
        // alignment; they are borrowed as `self` is.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), size_of_val(self.memory)) }
    }
}

/// Runs the workload: fills `size_mib` MiB, writes `0` into `answer` when ready,
/// and from then on answers each SIGUSR1 with the number of bad pages, and each
/// SIGUSR2 with the number of pages that it has written to, with a pattern that
/// no other copy of it writes. SIGTERM ends it.
///
/// # Errors
/// When memory cannot be mapped or the answer not be written.
pub fn run(size_mib: usize, pages: Pages, seed: u64, answer: &Path) -> Result<()> {
    let mut wanted = SigSet::empty();
    wanted.add(Signal::SIGUSR1);
    wanted.add(Signal::SIGUSR2);
    wanted.add(Signal::SIGTERM);
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&wanted), None)?;
    let mut memory = Patterned::new(map(size_mib, pages)?, seed);
    reply(answer, 0)?;
    loop {
        match wanted.wait()? {
            Signal::SIGUSR1 => reply(answer, memory.count_bad())?,
            Signal::SIGUSR2 => reply(answer, memory.scatter(now()?))?,
            _ => return Ok(()),
        }
    }
}

/// A seed that copies of one process do not have in common.
fn now() -> Result<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(u64::try_from(since.as_nanos())?)
}

/// Maps memory for the rest of the process's life.
pub(crate) fn map(size_mib: usize, pages: Pages) -> Result<&'static mut [u64]> {
    let bytes = size_mib
        .checked_mul(1 << 20)
        .and_then(|bytes| bytes.checked_next_multiple_of(HUGE))
        .context("that many MiB are more than the address space")?;
    let room = (bytes + HUGE)
        .try_into()
        .context("no memory was asked for")?;
    // SAFETY: a new anonymous mapping at an address the kernel chooses overlaps
    // nothing that this process uses.
    let base = unsafe {
        mmap_anonymous(
            None,
            room,
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE,
        )
    }
    .with_context(|| format!("cannot map {size_mib} MiB"))?;
    let start = base.as_ptr().addr().next_multiple_of(HUGE);
    let aligned = base.with_addr(start.try_into().context("a mapping at 0")?);
    let advice = match pages {
        Pages::Huge => MmapAdvise::MADV_HUGEPAGE,
        Pages::Small => MmapAdvise::MADV_NOHUGEPAGE,
    };
    // SAFETY: the range lies in the mapping made above; this advice does not
    // change its content.
    unsafe { madvise(aligned, bytes, advice) }.context("madvise")?;
    // SAFETY: the range lies in the mapping made above, is zeroed by the kernel,
    // aligned to 2 MiB, never unmapped, and this is the only reference to it.
    Ok(unsafe { std::slice::from_raw_parts_mut(aligned.cast::<u64>().as_ptr(), bytes / 8) })
}

/// Writes an answer that a reader sees whole or not at all.
fn reply(answer: &Path, count: u64) -> io::Result<()> {
    let temporary = answer.with_extension("tmp");
    fs::write(&temporary, count.to_string())?;
    fs::rename(&temporary, answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn exactly_the_damaged_pages_are_counted(
            seed: u64,
            later: Option<u64>,
            damaged in proptest::collection::btree_set(0usize..48, 0..48),
            word in 0usize..PAGE_WORDS,
        ) {
            let mut memory = vec![0u64; 48 * PAGE_WORDS];
            let mut patterned = Patterned::new(&mut memory, seed);
            if let Some(later) = later {
                prop_assert_eq!(patterned.scatter(later), 3);
            }
            prop_assert_eq!(patterned.count_bad(), 0);
            for page in &damaged {
                patterned.memory[page * PAGE_WORDS + word] ^= 1;
            }
            prop_assert_eq!(patterned.count_bad(), damaged.len() as u64);
        }

        #[test]
        fn pages_swapped_are_bad(seed: u64, a in 0usize..8, b in 0usize..8) {
            prop_assume!(a != b);
            let mut memory = vec![0u64; 8 * PAGE_WORDS];
            let patterned = Patterned::new(&mut memory, seed);
            for i in 0..PAGE_WORDS {
                patterned.memory.swap(a * PAGE_WORDS + i, b * PAGE_WORDS + i);
            }
            prop_assert_eq!(patterned.count_bad(), 2);
        }

        #[test]
        fn what_another_copy_wrote_is_bad(seed: u64, ours: u64, theirs: u64) {
            prop_assume!(ours != theirs);
            let mut memory = vec![0u64; 32 * PAGE_WORDS];
            let mut patterned = Patterned::new(&mut memory, seed);
            patterned.scatter(theirs);
            patterned.later = ours;
            prop_assert_eq!(patterned.count_bad(), 2);
        }
    }

    #[test]
    fn zeroed_memory_is_bad() {
        let mut memory = vec![0u64; 8 * PAGE_WORDS];
        let patterned = Patterned::new(&mut memory, 7);
        patterned.memory.fill(0);
        assert_eq!(patterned.count_bad(), 8);
    }

    #[test]
    fn the_memory_mapped_is_of_the_asked_size_and_aligned_to_huge_pages() {
        for pages in [Pages::Huge, Pages::Small] {
            let memory = map(4, pages).unwrap();
            assert_eq!(memory.as_ptr().addr() % HUGE, 0);
            let patterned = Patterned::new(memory, 7);
            assert_eq!(patterned.bytes().len(), 4 << 20);
            assert_eq!(patterned.count_bad(), 0);
        }
    }

    #[test]
    fn an_absurd_size_is_an_error() {
        assert!(map(usize::MAX, Pages::Huge).is_err());
        assert!(map(1 << 40, Pages::Huge).is_err());
    }
}
