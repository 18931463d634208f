// SPDX-License-Identifier: GPL-2.0-only
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

    /// Whether some extent of this RAM file is in use.
    pub fn uses_any_of(&self, run: RunId) -> bool {
        self.uses.keys().any(|extent| extent.run == run)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn own(block: u64) -> Extent {
        Extent {
            run: RunId::new(1).unwrap(),
            block,
        }
    }

    fn foreign(block: u64) -> Extent {
        Extent {
            run: RunId::new(2).unwrap(),
            block,
        }
    }

    fn ledger() -> Ledger {
        Ledger::new(RunId::new(1).unwrap(), 4)
    }

    #[test]
    fn an_extent_is_unused_with_its_last_use() {
        let mut ledger = ledger();
        ledger.hold(&[own(0), own(0), foreign(7)]);
        assert_eq!(ledger.release(&[own(0)]), Ok(Unused::default()));
        let unused = ledger.release(&[foreign(7), own(0)]).unwrap();
        assert_eq!(unused.extents, [own(0), foreign(7)]);
        assert_eq!(
            ledger.unknown(&[own(1), own(0)]),
            Some(own(0)),
            "it is not live again"
        );
    }

    #[test]
    fn what_is_live_is_given_back_without_asking_anybody() {
        let mut ledger = ledger();
        let unused = ledger.release(&[own(2), own(3)]).unwrap();
        assert_eq!((unused.live.len(), unused.extents.len()), (2, 0));
        assert_eq!(
            ledger.live(),
            blocks_of(own(0).run, 0..2).into_iter().collect()
        );
        ledger.grown(6);
        assert_eq!(ledger.live().len(), 4);
    }

    #[test]
    fn a_release_of_too_much_changes_nothing() {
        let mut ledger = ledger();
        ledger.hold(&[own(0)]);
        for wrong in [
            [own(0), own(0)],
            [own(1), own(1)],
            [own(1), own(9)],
            [own(1), foreign(1)],
        ] {
            assert!(ledger.release(&wrong).is_err(), "{wrong:?}");
            assert_eq!(ledger.live().len(), 3);
        }
        assert_eq!(ledger.release(&[own(0)]).unwrap().extents, [own(0)]);
    }

    #[test]
    fn only_the_first_use_needs_a_record() {
        let mut ledger = ledger();
        let new = ledger.without_record(&[own(1), own(0), own(1)]);
        assert_eq!(new, [own(1), own(0)]);
        ledger.hold(&new);
        assert_eq!(ledger.without_record(&[own(0), own(2)]), [own(2)]);
    }
}
