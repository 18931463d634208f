// SPDX-License-Identifier: GPL-2.0-only
//! Blocks of RAM files: single ones, lists in a snapshot's order, and sets.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{RunId, StoreError};
use crate::range::{FileOffset, FileRange};

/// Bytes in a block.
pub const BLOCK: u64 = 2 << 20;
/// The most blocks in a RAM file, and in a snapshot: 1 EiB of file, 32 TiB of snapshot.
const MAX_FILE_BLOCKS: u64 = 1 << 39;
const MAX_LIST_BLOCKS: u64 = 1 << 24;

/// One block of a RAM file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    /// Whose RAM file.
    pub run: RunId,
    /// Which block of it.
    pub block: u64,
}

impl Extent {
    /// Where it is in its file.
    ///
    /// # Panics
    /// Its block number cannot exist; what the store hands out does.
    pub fn range(self) -> FileRange {
        #[allow(clippy::expect_used)] // documented; numbers from disk are checked when read
        FileRange::new(FileOffset(self.block.saturating_mul(BLOCK)), BLOCK)
            .expect("a block number from the store")
    }
}

/// Consecutive blocks of one RAM file; never empty where the store hands it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtentRun {
    /// Whose RAM file.
    pub run: RunId,
    /// The first block.
    pub first: u64,
    /// How many.
    pub count: u64,
}

impl ExtentRun {
    fn end(self) -> u64 {
        self.first + self.count
    }

    fn extents(self) -> impl Iterator<Item = Extent> {
        (self.first..self.end()).map(move |block| Extent {
            run: self.run,
            block,
        })
    }
}

/// Blocks in the order of a snapshot; the same block may be in it more than once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<ExtentRun>", into = "Vec<ExtentRun>")]
pub struct ExtentList {
    runs: Vec<ExtentRun>,
    /// Index after each run.
    ends: Vec<u64>,
}

impl ExtentList {
    /// How many blocks.
    pub fn len(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The block of this index.
    pub fn get(&self, index: u64) -> Option<Extent> {
        let at = self.ends.partition_point(|end| *end <= index);
        let run = self.runs.get(at)?;
        Some(Extent {
            run: run.run,
            block: run.end() - (self.ends[at] - index),
        })
    }

    /// Runs of blocks, in order.
    pub fn runs(&self) -> &[ExtentRun] {
        &self.runs
    }

    /// All blocks, in order.
    pub fn iter(&self) -> impl Iterator<Item = Extent> + '_ {
        self.runs.iter().flat_map(|run| run.extents())
    }
}

impl TryFrom<Vec<ExtentRun>> for ExtentList {
    type Error = StoreError;

    fn try_from(runs: Vec<ExtentRun>) -> Result<Self, StoreError> {
        let mut ends = Vec::with_capacity(runs.len());
        let mut total = 0u64;
        for run in &runs {
            let end = run.first.checked_add(run.count);
            total = total.saturating_add(run.count);
            if run.count == 0
                || end.is_none_or(|end| end > MAX_FILE_BLOCKS)
                || total > MAX_LIST_BLOCKS
            {
                return Err(StoreError::Extents(*run));
            }
            ends.push(total);
        }
        Ok(Self { runs, ends })
    }
}

impl From<ExtentList> for Vec<ExtentRun> {
    fn from(list: ExtentList) -> Self {
        list.runs
    }
}

/// Neighbours in order become one run.
impl TryFrom<&[Extent]> for ExtentList {
    type Error = StoreError;

    fn try_from(extents: &[Extent]) -> Result<Self, StoreError> {
        let mut runs: Vec<ExtentRun> = Vec::new();
        for e in extents {
            match runs.last_mut() {
                Some(last) if last.run == e.run && last.end() == e.block => last.count += 1,
                _ => runs.push(ExtentRun {
                    run: e.run,
                    first: e.block,
                    count: 1,
                }),
            }
        }
        runs.try_into()
    }
}

/// A set of blocks: sorted, disjoint, merged runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ExtentSet(Vec<ExtentRun>);

impl ExtentSet {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Its runs, ascending.
    pub fn runs(&self) -> &[ExtentRun] {
        &self.0
    }

    /// Its blocks, ascending.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        self.0.iter().flat_map(|run| run.extents())
    }

    /// How many blocks.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|run| run.count).sum()
    }

    /// The VM runs that have blocks in it, ascending.
    pub fn run_ids(&self) -> Vec<RunId> {
        let mut ids: Vec<_> = self.0.iter().map(|r| r.run).collect();
        ids.dedup();
        ids
    }

    /// The blocks of one RAM file, ascending.
    pub fn of(&self, run: RunId) -> &[ExtentRun] {
        let from = self.0.partition_point(|r| r.run < run);
        let to = self.0.partition_point(|r| r.run <= run);
        &self.0[from..to]
    }

    /// What is in `self` and not in `other`.
    pub fn minus(&self, other: &Self) -> Self {
        let mut rest = Vec::new();
        for run in &self.0 {
            let others = other.of(run.run);
            let mut at = run.first;
            for cut in &others[others.partition_point(|o| o.end() <= run.first)..] {
                if cut.first >= run.end() {
                    break;
                }
                rest.extend(piece(run.run, at..cut.first));
                at = cut.end();
            }
            rest.extend(piece(run.run, at..run.end()));
        }
        Self(rest)
    }

    /// What is in both.
    pub fn and(&self, other: &Self) -> Self {
        self.minus(&self.minus(other))
    }
}

fn piece(run: RunId, blocks: Range<u64>) -> Option<ExtentRun> {
    (blocks.start < blocks.end).then(|| ExtentRun {
        run,
        first: blocks.start,
        count: blocks.end - blocks.start,
    })
}

impl FromIterator<ExtentRun> for ExtentSet {
    fn from_iter<I: IntoIterator<Item = ExtentRun>>(runs: I) -> Self {
        let mut sorted: Vec<_> = runs.into_iter().filter(|r| r.count > 0).collect();
        sorted.sort_unstable();
        let mut merged: Vec<ExtentRun> = Vec::with_capacity(sorted.len());
        for run in sorted {
            match merged.last_mut() {
                Some(last) if last.run == run.run && run.first <= last.end() => {
                    last.count = last.end().max(run.end()) - last.first;
                }
                _ => merged.push(run),
            }
        }
        Self(merged)
    }
}

impl FromIterator<Extent> for ExtentSet {
    fn from_iter<I: IntoIterator<Item = Extent>>(extents: I) -> Self {
        let one = |e: Extent| ExtentRun {
            run: e.run,
            first: e.block,
            count: 1,
        };
        extents.into_iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn any_extent() -> impl Strategy<Value = Extent> {
        (1..4u64, 0..30u64).prop_map(|(run, block)| Extent {
            run: RunId::new(run).unwrap(),
            block,
        })
    }

    fn some_extents() -> impl Strategy<Value = Vec<Extent>> {
        prop::collection::vec(any_extent(), 0..60)
    }

    fn members(set: &ExtentSet) -> BTreeSet<Extent> {
        set.extents().collect()
    }

    proptest! {
        #[test]
        fn a_set_does_what_a_set_does(a in some_extents(), b in some_extents()) {
            let (sa, sb): (ExtentSet, ExtentSet) = (a.iter().copied().collect(), b.iter().copied().collect());
            let (ma, mb): (BTreeSet<_>, BTreeSet<_>) = (a.into_iter().collect(), b.into_iter().collect());
            prop_assert_eq!(sa.len(), ma.len() as u64);
            prop_assert_eq!(members(&sa.minus(&sb)), &ma - &mb);
            prop_assert_eq!(members(&sa.and(&sb)), &ma & &mb);
            prop_assert_eq!(sa.minus(&sb).is_empty(), ma.is_subset(&mb));
            let ids: BTreeSet<_> = ma.iter().map(|e| e.run).collect();
            prop_assert_eq!(sa.run_ids(), ids.into_iter().collect::<Vec<_>>());
            prop_assert_eq!(members(&sa), ma);
        }

        #[test]
        fn a_set_is_merged_whatever_its_pieces(a in some_extents()) {
            let set: ExtentSet = a.into_iter().collect();
            let again: ExtentSet = set.0.iter().copied().chain(set.0.iter().copied()).collect();
            prop_assert!(set.0.windows(2).all(|w| (w[0].run, w[0].end()) < (w[1].run, w[1].first)));
            prop_assert_eq!(again, set);
        }

        #[test]
        fn a_list_keeps_order_and_finds_every_index(extents in some_extents()) {
            let list = ExtentList::try_from(extents.as_slice()).unwrap();
            prop_assert_eq!(list.len(), extents.len() as u64);
            prop_assert_eq!(list.iter().collect::<Vec<_>>(), extents.clone());
            for (index, extent) in (0u64..).zip(&extents) {
                prop_assert_eq!(list.get(index), Some(*extent));
            }
            prop_assert_eq!(list.get(list.len()), None);
            let json = serde_json::to_string(&list).unwrap();
            prop_assert_eq!(serde_json::from_str::<ExtentList>(&json).unwrap(), list);
        }

        #[test]
        fn a_list_from_disk_never_overflows(runs in prop::collection::vec((1u64.., any::<u64>(), any::<u64>()), 0..5)) {
            let runs: Vec<_> = runs.into_iter()
                .map(|(run, first, count)| ExtentRun { run: RunId::new(run).unwrap(), first, count })
                .collect();
            if let Ok(list) = ExtentList::try_from(runs) {
                prop_assert!(list.runs().iter().all(|r| r.count > 0 && r.end() <= MAX_FILE_BLOCKS));
                prop_assert!(list.len() <= MAX_LIST_BLOCKS);
            }
        }
    }

    #[test]
    fn a_list_beyond_the_limits_is_refused() {
        let run = RunId::new(1).unwrap();
        for (first, count) in [
            (0, 0),
            (u64::MAX, 1),
            (MAX_FILE_BLOCKS, 1),
            (0, MAX_LIST_BLOCKS + 1),
        ] {
            let runs = vec![ExtentRun { run, first, count }];
            assert!(ExtentList::try_from(runs).is_err(), "{first} {count}");
        }
    }
}
