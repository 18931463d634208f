//! Memory that knows what it should hold.

use std::hint::black_box;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Words of 8 bytes in a 4 KiB page.
pub(super) const PAGE_WORDS: usize = 512;

/// One word each of a share of all 4 KiB pages, spread evenly over the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touch {
    /// How many of a hundred pages.
    pub percent: usize,
    /// What is done to them.
    pub access: Access,
}

/// What is done to a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// It is read.
    Read,
    /// It is written.
    Write,
}

impl std::str::FromStr for Access {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        <Self as ValueEnum>::from_str(text, false).map_err(anyhow::Error::msg)
    }
}

/// What one page should hold.
#[derive(Debug, Clone, Copy)]
struct Content {
    /// Its first word.
    head: u64,
    /// From where the others go up, by [`STEP`].
    first: u64,
}

impl Content {
    fn fill(self, page: &mut [u64]) {
        let mut word = self.first;
        for slot in &mut *page {
            *slot = word;
            word = word.wrapping_add(STEP);
        }
        page[0] = self.head;
    }

    fn is_in(self, page: &[u64]) -> bool {
        let mut word = self.first;
        page[0] == self.head
            && page[1..].iter().all(|slot| {
                word = word.wrapping_add(STEP);
                *slot == word
            })
    }
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Mixes seed and page number (the finalizer of splitmix64).
fn first_word(seed: u64, index: usize) -> u64 {
    let mut z = seed ^ (index as u64).wrapping_mul(STEP);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Number of the `n`th page of those of which `percent` of a hundred are touched.
fn nth(n: usize, percent: usize) -> usize {
    n * 100 / percent
}

/// Memory that knows what it should hold.
#[derive(Debug)]
pub(crate) struct Patterned<'a> {
    memory: &'a mut [u64],
    seed: u64,
    /// Of every [`EVERY`]th page, once it was written to.
    later: u64,
    /// Shares of the pages whose first words were written.
    touched: Vec<usize>,
}

/// [`Patterned::scatter`] writes to each page whose number is a multiple of this.
pub const EVERY: u64 = 16;

impl<'a> Patterned<'a> {
    /// Fills all pages with the pattern of `seed`.
    pub fn new(memory: &'a mut [u64], seed: u64) -> Self {
        let mut patterned = Self {
            memory,
            seed,
            later: seed,
            touched: Vec::new(),
        };
        patterned.fill_every(1);
        patterned
    }

    /// Writes the pattern of another seed to pages all over; tells how many.
    pub fn scatter(&mut self, seed: u64) -> u64 {
        self.later = seed;
        self.fill_every(EVERY)
    }

    /// Writes to all pages whose numbers are multiples of `every` what they should hold.
    fn fill_every(&mut self, every: u64) -> u64 {
        let mut written = 0;
        for index in 0..self.memory.len() / PAGE_WORDS {
            if (index as u64).is_multiple_of(every) {
                let content = self.content(index);
                content.fill(&mut self.memory[index * PAGE_WORDS..][..PAGE_WORDS]);
                written += 1;
            }
        }
        written
    }

    fn content(&self, index: usize) -> Content {
        let seed = match index as u64 % EVERY {
            0 => self.later,
            _ => self.seed,
        };
        let first = first_word(seed, index);
        let is_in = |&percent: &usize| nth((index * percent).div_ceil(100), percent) == index;
        let head = match self.touched.iter().any(is_in) {
            true => self.touched_word(index),
            false => first,
        };
        Content { head, first }
    }

    fn touched_word(&self, index: usize) -> u64 {
        !(self.seed ^ index as u64)
    }

    /// Touches pages all over; tells how long that took.
    pub fn touch(&mut self, touch: Touch) -> Duration {
        let percent = touch.percent.clamp(1, 100);
        let count = (self.memory.len() / PAGE_WORDS * percent).div_ceil(100);
        if touch.access == Access::Write && !self.touched.contains(&percent) {
            self.touched.push(percent);
        }
        let begun = Instant::now();
        for index in (0..count).map(|n| nth(n, percent)) {
            match touch.access {
                Access::Read => drop(black_box(self.memory[index * PAGE_WORDS])),
                Access::Write => self.memory[index * PAGE_WORDS] = self.touched_word(index),
            }
        }
        begun.elapsed()
    }

    /// Counts the pages that do not hold what was written to them.
    pub fn count_bad(&self) -> u64 {
        self.memory
            .chunks_exact(PAGE_WORDS)
            .zip(0..)
            .map(|(page, index)| u64::from(!self.content(index).is_in(page)))
            .sum()
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: any initialized memory is bytes, of which a u64 has 8, without an
        // alignment; they are borrowed as `self` is.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), size_of_val(self.memory)) }
    }
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

    proptest! {
        #[test]
        fn exactly_a_write_that_is_lost_is_bad(
            seed: u64,
            later: Option<u64>,
            percent in 1usize..=100,
            lost in 0usize..200,
        ) {
            let mut memory = vec![0u64; 200 * PAGE_WORDS];
            let mut patterned = Patterned::new(&mut memory, seed);
            let before: Vec<u64> = patterned.memory.iter().copied().step_by(PAGE_WORDS).collect();
            patterned.touch(Touch { percent, access: Access::Read });
            prop_assert_eq!(patterned.count_bad(), 0);
            patterned.touch(Touch { percent, access: Access::Write });
            if let Some(later) = later {
                patterned.scatter(later);
            }
            prop_assert_eq!(patterned.count_bad(), 0);
            let head = &mut patterned.memory[lost * PAGE_WORDS];
            let written = *head != before[lost];
            *head = before[lost];
            prop_assert_eq!(patterned.count_bad(), u64::from(written));
        }
    }

    #[test]
    fn the_share_asked_for_is_written_to() {
        for (percent, pages) in [(1, 2), (10, 20), (50, 100), (100, 200)] {
            let mut memory = vec![0u64; 200 * PAGE_WORDS];
            let mut patterned = Patterned::new(&mut memory, 7);
            patterned.touch(Touch {
                percent,
                access: Access::Write,
            });
            patterned.touched.clear();
            assert_eq!(patterned.count_bad(), pages, "{percent} %");
        }
    }
}
