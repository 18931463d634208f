// SPDX-License-Identifier: GPL-2.0-only
//! The memory of a workload, one type for each kind of mapping: its every word is known.

use std::fs;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nix::sys::memfd::{MFdFlags, memfd_create};

const PAGE: usize = 4096;
const WORDS: usize = PAGE / 8;

/// What word `word` of page `page` holds for `seed`.
fn pattern(seed: u64, page: usize, word: usize) -> u64 {
    (seed ^ (page * WORDS + word) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// A mapping whose every word is known.
pub struct Memory {
    words: &'static mut [u64],
    /// The pattern of all that is nobody's own.
    seed: u64,
    /// Pages that a child made its own, and by which seed.
    own: Option<(Range<usize>, u64)>,
}

impl Memory {
    pub fn new(mib: usize, huge: bool, seed: u64) -> Self {
        let len = mib << 20;
        let align = 2 << 20;
        // SAFETY: a new anonymous mapping, never unmapped, used through `words`.
        let words = unsafe {
            let at = libc::mmap(
                std::ptr::null_mut(),
                len + align,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            );
            assert_ne!(at, libc::MAP_FAILED, "mmap");
            let at = at.map_addr(|a| a.next_multiple_of(align));
            let advice = if huge {
                libc::MADV_HUGEPAGE
            } else {
                libc::MADV_NOHUGEPAGE
            };
            libc::madvise(at, len, advice);
            std::slice::from_raw_parts_mut(at.cast(), len / 8)
        };
        let mut memory = Self {
            words,
            seed,
            own: None,
        };
        memory.fill(0..len / PAGE, seed);
        memory
    }

    fn fill(&mut self, pages: Range<usize>, seed: u64) {
        for page in pages {
            for word in 0..WORDS {
                self.words[page * WORDS + word] = pattern(seed, page, word);
            }
        }
    }

    /// Where it begins.
    pub fn address(&self) -> usize {
        self.words.as_ptr().addr()
    }

    /// An eighth of the memory becomes the `nth` child's.
    pub fn take(&mut self, nth: usize) {
        let pages = self.words.len() / WORDS;
        let own = pages * (nth % 8) / 8..pages * (nth % 8 + 1) / 8;
        let seed = self.seed + 1 + nth as u64;
        self.fill(own.clone(), seed);
        self.own = Some((own, seed));
    }

    pub fn check(&self) -> Result<(), String> {
        for page in 0..self.words.len() / WORDS {
            let seed = match &self.own {
                Some((own, seed)) if own.contains(&page) => *seed,
                _ => self.seed,
            };
            for word in 0..WORDS {
                let (got, want) = (self.words[page * WORDS + word], pattern(seed, page, word));
                if got != want {
                    return Err(format!("page {page} word {word}: {got:#x}, not {want:#x}"));
                }
            }
        }
        Ok(())
    }
}

/// A private mapping of this program's file, of which every fourth page was written to.
pub struct Mapped {
    pages: &'static mut [[u64; WORDS]],
    seed: u64,
}

impl Mapped {
    const PAGES: usize = 64;
    const PROGRAM: &str = "/proc/self/exe";

    pub fn new(seed: u64) -> Self {
        let file = fs::File::open(Self::PROGRAM).expect("program");
        // SAFETY: a new mapping of pages that the file has, never unmapped, used through `pages`.
        let pages = unsafe {
            let at = libc::mmap(
                std::ptr::null_mut(),
                Self::PAGES * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            );
            assert_ne!(at, libc::MAP_FAILED, "mmap");
            std::slice::from_raw_parts_mut(at.cast(), Self::PAGES)
        };
        let mut mapped = Self { pages, seed };
        mapped.write(seed);
        mapped
    }

    pub fn write(&mut self, seed: u64) {
        self.seed = seed;
        for (n, page) in self.pages.iter_mut().enumerate().step_by(4) {
            *page = std::array::from_fn(|word| pattern(seed, n, word));
        }
    }

    pub fn check(&self) -> Result<(), String> {
        let mut of_file = vec![0; Self::PAGES * PAGE];
        let file = fs::File::open(Self::PROGRAM).map_err(|e| format!("program: {e}"))?;
        file.read_exact_at(&mut of_file, 0)
            .map_err(|e| format!("program: {e}"))?;
        for (n, (page, of_file)) in self.pages.iter().zip(of_file.chunks(PAGE)).enumerate() {
            let was_written = n % 4 == 0;
            let good = if was_written {
                (0..WORDS).all(|word| page[word] == pattern(self.seed, n, word))
            } else {
                let bytes = page.iter().flat_map(|word| word.to_ne_bytes());
                bytes.eq(of_file.iter().copied())
            };
            if !good {
                let what = if was_written { "written" } else { "the file's" };
                return Err(format!("mapped page {n} is not what was {what}"));
            }
        }
        Ok(())
    }
}

/// Memory that a tree shares: a count of checks, then a pattern with a hole in its middle.
pub struct Shared {
    both: [&'static mut [[u64; WORDS]]; 2],
    seed: u64,
}

impl Shared {
    const PAGES: usize = 768;
    const HOLE: Range<usize> = 200..600;

    pub fn new(seed: u64) -> Self {
        let memfd = memfd_create(c"shared", MFdFlags::empty()).expect("memfd");
        let memfd = fs::File::from(memfd);
        // More than is mapped.
        memfd
            .set_len(2 * (Self::PAGES * PAGE) as u64)
            .expect("length");
        let map = |flags, fd: i32| {
            // SAFETY: a new mapping of whole pages that are there, never unmapped; others that
            // map it write when this process waits for them.
            unsafe {
                let at = libc::mmap(
                    std::ptr::null_mut(),
                    Self::PAGES * PAGE,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | flags,
                    fd,
                    0,
                );
                assert_ne!(at, libc::MAP_FAILED, "mmap");
                std::slice::from_raw_parts_mut(at.cast::<[u64; WORDS]>(), Self::PAGES)
            }
        };
        let mut both = [map(libc::MAP_ANONYMOUS, -1), map(0, memfd.as_raw_fd())];
        for memory in &mut both {
            for (n, page) in memory.iter_mut().enumerate().skip(1) {
                if !Self::HOLE.contains(&n) {
                    *page = std::array::from_fn(|word| pattern(seed, n, word));
                }
            }
        }
        Self { both, seed }
    }

    /// The root counts, and children look whether they see that.
    pub fn check(&mut self, generation: u64, root: bool) -> Result<(), String> {
        for (which, memory) in self.both.iter_mut().enumerate() {
            let (count, pages) = memory.split_first_mut().expect("pages");
            let expected = generation - u64::from(root);
            if count[0] != expected {
                return Err(format!(
                    "shared {which}: {} checks, not {expected}",
                    count[0]
                ));
            }
            count[0] = generation;
            for (n, page) in (1..).zip(pages.iter()) {
                let is_good = |word: usize| match Self::HOLE.contains(&n) {
                    true => page[word] == 0,
                    false => page[word] == pattern(self.seed, n, word),
                };
                if !(0..WORDS).all(is_good) {
                    return Err(format!("shared {which}: page {n} is bad"));
                }
            }
        }
        Ok(())
    }
}
