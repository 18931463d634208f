// SPDX-License-Identifier: GPL-2.0-only
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
    /// What decides on the content of a page, by its number modulo [`EVERY`].
    seeds: [u64; EVERY],
    /// Of [`Patterned::step`].
    steps: usize,
    state: u64,
    /// Shares of the pages whose first words were written.
    touched: Vec<usize>,
}

/// [`Patterned::scatter`] and [`Patterned::step`] write to one of so many pages.
pub const EVERY: usize = 16;

impl<'a> Patterned<'a> {
    /// Fills all pages with the pattern of `seed`.
    pub fn new(memory: &'a mut [u64], seed: u64) -> Self {
        let mut patterned = Self {
            memory,
            seed,
            seeds: [seed; EVERY],
            steps: 0,
            state: seed,
            touched: Vec::new(),
        };
        for first in 0..EVERY {
            patterned.fill(first);
        }
        patterned
    }

    /// Writes the pattern of another seed to pages all over; tells how many.
    pub fn scatter(&mut self, seed: u64) -> u64 {
        self.seeds[0] = seed;
        self.fill(0)
    }

    /// One step of a computation: reads every [`EVERY`]th page, the next step those beside
    /// them, and writes to these pages what depends on all that it read and on all steps
    /// before. Returns its new state.
    pub fn step(&mut self) -> u64 {
        let first = self.steps % EVERY;
        let words = self.numbers(first).flat_map(|index| self.page(index));
        let mix = |state: u64, word: &u64| (state.rotate_left(5) ^ word).wrapping_mul(STEP);
        self.state = words.fold(self.state, mix);
        self.steps += 1;
        self.seeds[first] = self.state;
        self.fill(first);
        self.state
    }

    /// What its last step returned.
    pub fn state(&self) -> u64 {
        self.state
    }

    /// Writes to every [`EVERY`]th page from `first` on what it should hold; tells how many.
    fn fill(&mut self, first: usize) -> u64 {
        let mut written = 0;
        for index in self.numbers(first) {
            let content = self.content(index);
            content.fill(&mut self.memory[index * PAGE_WORDS..][..PAGE_WORDS]);
            written += 1;
        }
        written
    }

    /// Numbers of every [`EVERY`]th page from `first` on.
    fn numbers(&self, first: usize) -> impl Iterator<Item = usize> + use<> {
        (first..self.memory.len() / PAGE_WORDS).step_by(EVERY)
    }

    fn page(&self, index: usize) -> &[u64] {
        &self.memory[index * PAGE_WORDS..][..PAGE_WORDS]
    }

    fn content(&self, index: usize) -> Content {
        let first = first_word(self.seeds[index % EVERY], index);
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
        fn a_replay_that_began_with_another_page_ends_otherwise(
            seed: u64,
            steps in 0usize..40,
            damaged in 0usize..48,
            word in 0usize..PAGE_WORDS,
        ) {
            let after = |damage: u64| {
                let mut memory = vec![0u64; 48 * PAGE_WORDS];
                let mut patterned = Patterned::new(&mut memory, seed);
                for _ in 0..steps {
                    patterned.step();
                }
                let good = patterned.count_bad() == 0;
                patterned.memory[damaged * PAGE_WORDS + word] ^= damage;
                // Each page is read once.
                let ends = [(); EVERY].map(|()| patterned.step())[EVERY - 1];
                (ends, good && patterned.count_bad() == 0 && patterned.state() == ends)
            };
            prop_assert_eq!(after(0), after(0));
            prop_assert!(after(0).1 && after(1).1);
            prop_assert_ne!(after(0).0, after(1).0);
        }

        #[test]
        fn what_another_copy_wrote_is_bad(seed: u64, ours: u64, theirs: u64) {
            prop_assume!(ours != theirs);
            let mut memory = vec![0u64; 32 * PAGE_WORDS];
            let mut patterned = Patterned::new(&mut memory, seed);
            patterned.scatter(theirs);
            patterned.seeds[0] = ours;
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
