// SPDX-License-Identifier: GPL-2.0-only
//! Where memory is copied: COPY, and blocks that cannot be had by remapping.

use super::error::{ServerError, cannot};
use super::memory::{BLOCK_PAGES, GuestBlock, GuestPage, PAGE};
use super::{Call, Server};
use crate::range::FileOffset;
use crate::store::{Draft, Extent};

impl Server {
    /// COPY: pages follow one another in the draft's packed blocks.
    pub(super) fn copy(
        &self,
        draft: &mut Draft,
        pages: &[GuestPage],
        call: &mut Call<'_>,
    ) -> Result<(), ServerError> {
        self.check_ram(pages.iter().map(|page| page.block()))?;
        call.answer.value = draft.packed_pages;
        let pages_after = draft.packed_pages + pages.len() as u64;
        let more = pages_after.div_ceil(BLOCK_PAGES) - draft.packed().len() as u64;
        self.run.reserve(draft, more, &[])?;
        let mut left = pages;
        while !left.is_empty() {
            call.check_stopping()?;
            let (block, at) = self.packing(draft)?;
            let room = usize::try_from(BLOCK_PAGES - at).expect("at most a block");
            let (now, later) = left.split_at(room.min(left.len()));
            let to = FileOffset(block.range().start().0 + at * PAGE);
            self.memory
                .copy_out(now, self.run.ram().file(), to)
                .map_err(cannot("copy pages to the store"))?;
            let copied = now.len() as u64;
            draft.packed_pages += copied;
            call.answer.done += copied;
            self.metrics.copied_pages.add(copied);
            left = later;
        }
        Ok(())
    }

    /// The packed block that is being filled, and the first free page of it.
    fn packing(&self, draft: &mut Draft) -> Result<(Extent, u64), ServerError> {
        let at = draft.packed_pages % BLOCK_PAGES;
        if draft.packed().len() as u64 * BLOCK_PAGES == draft.packed_pages {
            let range = self.run.allocate(1)?;
            draft.push_packed(range)?;
        }
        let block = draft.packed().last().copied();
        // There is one: it was just made, or is not full.
        let block = block.ok_or(ServerError::State("no packed block"))?;
        Ok((block, at))
    }

    /// Copies blocks of guest memory to new blocks of the run's own file, which are nobody
    /// else's yet.
    pub(super) fn copy_blocks(
        &self,
        blocks: &[GuestBlock],
        call: &Call<'_>,
    ) -> Result<Vec<Extent>, ServerError> {
        if blocks.is_empty() {
            return Ok(Vec::new());
        }
        let range = self.run.allocate(blocks.len() as u64)?;
        let extents = self.run.own_extents(range)?;
        let copied = blocks.iter().zip(&extents).try_for_each(|(block, to)| {
            call.check_stopping()?;
            let first = GuestPage::from(*block).0;
            let pages: Vec<_> = (first..first + BLOCK_PAGES).map(GuestPage).collect();
            self.memory
                .copy_out(&pages, self.run.ram().file(), to.range().start())
                .map_err(cannot("copy a block to the store"))
        });
        match copied {
            Ok(()) => Ok(extents),
            Err(error) => {
                self.run.release_extents(&extents)?;
                Err(error)
            }
        }
    }

    /// Refuses blocks that are not all RAM.
    pub(super) fn check_ram(
        &self,
        blocks: impl IntoIterator<Item = GuestBlock>,
    ) -> Result<(), ServerError> {
        let view = self.view();
        match blocks.into_iter().all(|b| view.table.get(b).is_some()) {
            true => Ok(()),
            false => Err(ServerError::BadRange("an address is not in RAM")),
        }
    }
}
