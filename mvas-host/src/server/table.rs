// SPDX-License-Identifier: GPL-2.0-only
//! What each block of guest memory shows.

use std::collections::{BTreeMap, HashMap};

use super::memory::{GuestBlock, RamRange};
use super::plan::Remap;
use crate::store::{Extent, RunId};

/// What a block of guest memory shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// A block of the VM's own RAM file, shared: guest writes go there. No snapshot has it.
    Own(u64),
    /// An extent, privately: guest writes go elsewhere.
    Extent(Extent),
}

impl Shown {
    /// What a block shows that goes on `blocks` after one that shows this.
    pub fn advanced(self, blocks: u64) -> Self {
        match self {
            Self::Own(block) => Self::Own(block + blocks),
            Self::Extent(extent) => Self::Extent(Extent {
                block: extent.block + blocks,
                ..extent
            }),
        }
    }
}

/// What every block of guest memory shows: where it began, but for exceptions.
///
/// An exception takes 8 bytes, in pieces for 1 GiB of guest memory each.
#[derive(Debug)]
pub struct BlockTable {
    ranges: Vec<RamRange>,
    chunks: BTreeMap<u64, Box<[Entry; CHUNK]>>,
    runs: Vec<RunId>,
    run_indices: HashMap<RunId, u64>,
    mappings: u64,
}

const CHUNK: usize = 512;

/// 0: as at the start. Else bit 63 is set, bit 62 if it is an extent; 22 bits name its run,
/// 40 its block.
type Entry = u64;
const SET: u64 = 1 << 63;
const EXTENT: u64 = 1 << 62;
const RUN_SHIFT: u32 = 40;
const RUN_MASK: u64 = (1 << 22) - 1;
const BLOCK_MASK: u64 = (1 << RUN_SHIFT) - 1;

impl BlockTable {
    /// A table of a VM that just starts.
    pub fn new(ranges: Vec<RamRange>) -> Self {
        Self {
            mappings: ranges.len() as u64,
            ranges,
            chunks: BTreeMap::new(),
            runs: Vec::new(),
            run_indices: HashMap::new(),
        }
    }

    /// What `block` shows; `None` if it is not RAM.
    pub fn get(&self, block: GuestBlock) -> Option<Shown> {
        let home = self.ranges.iter().find_map(|range| range.home_of(block))?;
        let (chunk, at) = split(block);
        let entry = self.chunks.get(&chunk).map_or(0, |chunk| chunk[at]);
        Some(self.decode(entry).unwrap_or(Shown::Own(home)))
    }

    /// Whether blocks from `first` on are all RAM, in one range.
    pub fn is_ram(&self, first: GuestBlock, blocks: u64) -> bool {
        let has = |range: &RamRange| {
            let offset = first.0.checked_sub(range.first.0)?;
            range
                .blocks
                .checked_sub(offset)
                .filter(|room| blocks <= *room)
        };
        self.ranges.iter().any(|range| has(range).is_some())
    }

    /// Enters a remapping; returns what the blocks showed before, in order.
    pub fn apply(&mut self, remap: &Remap) -> Vec<(GuestBlock, Shown)> {
        self.mappings = self.mappings.saturating_add_signed(self.growth(remap));
        remap
            .targets()
            .filter_map(|(block, to)| Some((block, self.set(block, to)?)))
            .collect()
    }

    fn set(&mut self, block: GuestBlock, to: Shown) -> Option<Shown> {
        let before = self.get(block)?;
        let entry = self.encode(to);
        let (chunk, at) = split(block);
        let chunk = self
            .chunks
            .entry(chunk)
            .or_insert_with(|| Box::new([0; CHUNK]));
        chunk[at] = entry;
        Some(before)
    }

    /// Mappings that guest memory takes of the monitor's address space, about: the host
    /// merges neighbours that go on in the same file.
    pub fn mappings(&self) -> u64 {
        self.mappings
    }

    /// How many mappings more there would be after `remap`.
    pub fn growth(&self, remap: &Remap) -> i64 {
        let seams = |show: &dyn Fn(GuestBlock) -> Option<Shown>| -> i64 {
            let edges = remap.at.0..=remap.at.0 + remap.blocks;
            edges
                .filter_map(|right| {
                    let left = show(GuestBlock(right.checked_sub(1)?))?;
                    let right = show(GuestBlock(right))?;
                    Some(i64::from(left.advanced(1) != right))
                })
                .sum()
        };
        seams(&|block| remap.target(block).or_else(|| self.get(block)))
            - seams(&|block| self.get(block))
    }

    fn encode(&mut self, shown: Shown) -> Entry {
        match shown {
            Shown::Own(block) => SET | block & BLOCK_MASK,
            Shown::Extent(extent) => {
                let runs = &mut self.runs;
                let run = *self.run_indices.entry(extent.run).or_insert_with(|| {
                    runs.push(extent.run);
                    runs.len() as u64 - 1
                });
                SET | EXTENT | (run & RUN_MASK) << RUN_SHIFT | extent.block & BLOCK_MASK
            }
        }
    }

    fn decode(&self, entry: Entry) -> Option<Shown> {
        let block = entry & BLOCK_MASK;
        match (entry & SET, entry & EXTENT) {
            (0, _) => None,
            (_, 0) => Some(Shown::Own(block)),
            _ => {
                let run = usize::try_from(entry >> RUN_SHIFT & RUN_MASK).ok()?;
                let run = *self.runs.get(run)?;
                Some(Shown::Extent(Extent { run, block }))
            }
        }
    }
}

/// A chunk, and the place in it.
fn split(block: GuestBlock) -> (u64, usize) {
    #[allow(clippy::cast_possible_truncation)] // less than CHUNK
    let at = (block.0 % CHUNK as u64) as usize;
    (block.0 / CHUNK as u64, at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::test_utils::{any_remaps, extent, ram};
    use super::*;

    proptest! {
        /// Against a plain list of what every block shows, and the seams counted in it.
        #[test]
        fn the_table_is_what_was_entered_last_and_counts_mappings(remaps in any_remaps()) {
            let mut table = BlockTable::new(ram());
            let mut model: BTreeMap<GuestBlock, Shown> = ram()
                .iter()
                .flat_map(|r| (0..r.blocks).map(|i| (GuestBlock(r.first.0 + i), Shown::Own(r.home + i))))
                .collect();
            for remap in remaps {
                let growth = table.growth(&remap);
                let mappings = table.mappings();
                let before: Vec<_> = remap.targets().map(|(block, to)| {
                    (block, model.insert(block, to).expect("RAM"))
                }).collect();
                prop_assert_eq!(table.apply(&remap), before);
                prop_assert_eq!(table.mappings(), mappings.checked_add_signed(growth).expect("never negative"));
            }
            for (block, shown) in &model {
                prop_assert_eq!(table.get(*block), Some(*shown));
            }
            let mut seams = 1;
            for ((a, left), (b, right)) in model.iter().zip(model.iter().skip(1)) {
                seams += u64::from(b.0 != a.0 + 1 || left.advanced(1) != *right);
            }
            prop_assert_eq!(table.mappings(), seams);
        }
    }

    #[test]
    fn what_is_not_ram_shows_nothing() {
        let table = BlockTable::new(ram());
        for range in ram() {
            assert_eq!(table.get(range.first), Some(Shown::Own(range.home)));
            assert_eq!(table.get(GuestBlock(range.first.0 + range.blocks)), None);
        }
        assert_eq!(table.get(GuestBlock(u64::MAX)), None);
    }

    #[test]
    fn a_tebibyte_all_remapped_takes_eight_bytes_a_block() {
        let blocks = 1 << 19;
        let ranges = vec![RamRange {
            first: GuestBlock(0),
            blocks,
            home: 0,
        }];
        let mut table = BlockTable::new(ranges);
        for at in 0..blocks {
            let to = Shown::Extent(extent(1, blocks - at));
            table.apply(&Remap {
                at: GuestBlock(at),
                blocks: 1,
                to,
            });
        }
        assert_eq!(table.mappings(), blocks);
        let bytes = table.chunks.len() * size_of::<[Entry; CHUNK]>();
        assert_eq!(bytes, 4 << 20);
    }
}
