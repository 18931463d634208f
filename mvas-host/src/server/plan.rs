// SPDX-License-Identifier: GPL-2.0-only
//! Turns blocks to remap into as few remappings as possible.

use super::memory::GuestBlock;
use super::table::Shown;

/// Neighbouring guest blocks to show neighbouring blocks of a file: one `mmap`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remap {
    /// The first block.
    pub at: GuestBlock,
    /// How many.
    pub blocks: u64,
    /// What the first shows; the others go on from there.
    pub to: Shown,
}

impl Remap {
    /// What `block` will show, if it is one of these.
    pub fn target(&self, block: GuestBlock) -> Option<Shown> {
        let offset = block.0.checked_sub(self.at.0)?;
        (offset < self.blocks).then(|| self.to.advanced(offset))
    }

    /// Each block and what it will show, in order.
    pub fn targets(&self) -> impl Iterator<Item = (GuestBlock, Shown)> + use<> {
        let Self { at, blocks, to } = *self;
        (0..blocks).map(move |i| (GuestBlock(at.0 + i), to.advanced(i)))
    }
}

/// The fewest remappings that make each block show what stands with it. A block comes at
/// most once; blocks on both sides of a hole in RAM are no neighbours.
pub fn plan(mut targets: Vec<(GuestBlock, Shown)>) -> Vec<Remap> {
    targets.sort_unstable_by_key(|(block, _)| *block);
    let mut remaps: Vec<Remap> = Vec::new();
    for (at, to) in targets {
        match remaps.last_mut() {
            Some(last)
                if last.at.0 + last.blocks == at.0 && last.to.advanced(last.blocks) == to =>
            {
                last.blocks += 1;
            }
            _ => remaps.push(Remap { at, blocks: 1, to }),
        }
    }
    remaps
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::test_utils::{any_shown, extent};
    use super::*;

    proptest! {
        #[test]
        fn a_plan_does_exactly_what_was_asked_and_nothing_in_it_could_be_merged(
            targets in proptest::collection::btree_map((0u64..64).prop_map(GuestBlock), any_shown(), 0..40)
                .prop_map(|map| map.into_iter().collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let remaps = plan(targets.clone());
            let done: Vec<_> = remaps.iter().flat_map(Remap::targets).collect();
            prop_assert_eq!(done.len(), targets.len());
            prop_assert_eq!(done.into_iter().collect::<BTreeMap<_, _>>(), targets.into_iter().collect());
            for pair in remaps.windows(2) {
                let end = pair[0].at.0 + pair[0].blocks;
                prop_assert!(end <= pair[1].at.0);
                prop_assert!(end < pair[1].at.0 || pair[0].to.advanced(pair[0].blocks) != pair[1].to);
            }
        }
    }

    #[test]
    fn a_gibibyte_in_any_order_is_one_remapping_where_guest_and_file_agree() {
        let blocks = (0..512).rev();
        let targets = blocks.map(|i| (GuestBlock(100 + i), Shown::Extent(extent(7, i))));
        let [remap] = plan(targets.collect())[..] else {
            panic!("more than one");
        };
        assert_eq!((remap.at, remap.blocks), (GuestBlock(100), 512));
        let reversed = (0..512).map(|i| (GuestBlock(i), Shown::Own(512 - i)));
        assert_eq!(plan(reversed.collect()).len(), 512);
    }
}
