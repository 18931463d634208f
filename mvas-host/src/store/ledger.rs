//! What a living VM run has and uses: plain bookkeeping, no I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;

use super::extent::{Extent, ExtentSet};
use super::id::RunId;

/// A block of the run's own file is *live* (the guest's memory, nobody else's), or it is an
/// extent, or it is gone for good: its number is never used again. Extents, own and foreign,
/// are counted: each guest block, draft and opened snapshot that shows them.
#[derive(Debug)]
pub(super) struct Ledger {
    run: RunId,
    live: BTreeSet<u64>,
    uses: HashMap<Extent, u64>,
    /// Length of the own file in blocks.
    end: u64,
}

/// What a release left without use.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unused {
    /// Own blocks that never were extents: nobody else knows them.
    pub live: ExtentSet,
    /// Extents, each once: somebody else may need them.
    pub extents: Vec<Extent>,
}

impl Ledger {
    /// The run's file has `blocks` live blocks.
    pub fn new(run: RunId, blocks: u64) -> Self {
        Self {
            run,
            live: (0..blocks).collect(),
            uses: HashMap::new(),
            end: blocks,
        }
    }

    /// Where the next new blocks begin.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The file has grown to `end`; what is new is live.
    pub fn grown(&mut self, end: u64) {
        self.live.extend(self.end..end);
        self.end = end;
    }

    /// All live blocks.
    pub fn live(&self) -> ExtentSet {
        self.live.iter().map(|block| self.own(*block)).collect()
    }

    fn own(&self, block: u64) -> Extent {
        Extent {
            run: self.run,
            block,
        }
    }

    fn is_live(&self, extent: Extent) -> bool {
        extent.run == self.run && self.live.contains(&extent.block)
    }

    /// Of `extents`, those that have no record yet, each once.
    pub fn without_record(&self, extents: &[Extent]) -> Vec<Extent> {
        let mut seen = HashSet::new();
        let new = |e: &&Extent| !self.uses.contains_key(e) && seen.insert(**e);
        extents.iter().filter(new).copied().collect()
    }

    /// The first that is neither live nor used: the run has no right to it.
    pub fn unknown(&self, extents: &[Extent]) -> Option<Extent> {
        let known = |e: &Extent| self.uses.contains_key(e) || self.is_live(*e);
        extents.iter().find(|e| !known(e)).copied()
    }

    /// One more use of each; what was live is an extent now.
    pub fn hold(&mut self, extents: &[Extent]) {
        for extent in extents {
            if self.is_live(*extent) {
                self.live.remove(&extent.block);
            }
            *self.uses.entry(*extent).or_default() += 1;
        }
    }

    /// One use less of each. Nothing happens if one has too few: that one is the error.
    pub fn release(&mut self, extents: &[Extent]) -> Result<Unused, Extent> {
        let mut fewer: BTreeMap<Extent, u64> = BTreeMap::new();
        for extent in extents {
            *fewer.entry(*extent).or_default() += 1;
        }
        for (extent, times) in &fewer {
            let has = match self.uses.get(extent) {
                Some(count) => *count,
                None => u64::from(self.is_live(*extent)),
            };
            if has < *times {
                return Err(*extent);
            }
        }
        let mut live = Vec::new();
        let mut unused = Unused::default();
        for (extent, times) in fewer {
            match self.uses.get_mut(&extent) {
                Some(count) if *count > times => *count -= times,
                Some(_) => {
                    self.uses.remove(&extent);
                    unused.extents.push(extent);
                }
                None => {
                    self.live.remove(&extent.block);
                    live.push(extent);
                }
            }
        }
        unused.live = live.into_iter().collect();
        Ok(unused)
    }
}

/// The blocks of a range, as extents.
pub(super) fn blocks_of(run: RunId, blocks: Range<u64>) -> Vec<Extent> {
    blocks.map(|block| Extent { run, block }).collect()
}
