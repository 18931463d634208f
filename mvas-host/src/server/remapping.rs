// SPDX-License-Identifier: GPL-2.0-only
//! Where blocks are remapped: PUBLISH, MAP, RELEASE.

use std::collections::HashMap;
use std::fs::File;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::error::{ServerError, cannot};
use super::handles::OpenDraft;
use super::memory::{BLOCK, GuestBlock, Sharing};
use super::plan::{Remap, plan};
use super::request::{BlockRange, Kind, MapEntry};
use super::table::Shown;
use super::{Call, Server, View};
use crate::range::{FileOffset, FileRange};
use crate::store::{Draft, Extent, OpenSnapshot, RunId, StoreError, StoreRun};

/// Blocks of a request that are worked on at a time, while the other queue waits: 1 GiB.
const AT_A_TIME: usize = 512;

impl Server {
    /// PUBLISH: what blocks show now becomes the draft's, without a copy where possible.
    pub(super) fn publish(
        &self,
        draft: &mut OpenDraft,
        blocks: &[GuestBlock],
        call: &mut Call<'_>,
    ) -> Result<(), ServerError> {
        self.check_ram(blocks.iter().copied())?;
        if blocks.iter().any(|block| draft.published.contains(block)) {
            return Err(ServerError::State("a block is published twice"));
        }
        call.answer.value = draft.draft.blocks().len() as u64;
        for chunk in blocks.chunks(AT_A_TIME) {
            call.check_stopping()?;
            self.publish_chunk(&mut draft.draft, chunk, call)?;
            draft.published.extend(chunk);
            call.answer.done += chunk.len() as u64;
            self.metrics.published.add(chunk.len() as u64);
        }
        Ok(())
    }

    fn publish_chunk(
        &self,
        draft: &mut Draft,
        blocks: &[GuestBlock],
        call: &Call<'_>,
    ) -> Result<(), ServerError> {
        let (new, written, shown) = self.look(blocks)?;
        let new = new + written.len() as u64;
        self.run.reserve(draft, new, &shown)?;
        // Not under the lock: it takes long.
        let copies = self.copy_blocks(&written, call)?;
        self.metrics.copied_again.add(copies.len() as u64);
        let mut copied: HashMap<_, _> = written.into_iter().zip(copies).collect();

        let mut view = self.view();
        let mut extents = HashMap::new();
        let mut change = Vec::new();
        for block in blocks {
            let (extent, changes) = match (copied.get(block), view.table.get(*block)) {
                (Some(copy), _) => (*copy, true),
                (None, Some(Shown::Own(block))) => (self.own(block), true),
                (None, Some(Shown::Extent(extent))) => (extent, false),
                (None, None) => return Err(ServerError::BadRange("an address is not in RAM")),
            };
            extents.insert(*block, extent);
            if changes {
                change.push((*block, Shown::Extent(extent)));
            }
        }
        let seen: Vec<_> = change.iter().map(|(block, _)| extents[block]).collect();
        // Before they are mapped: afterwards there is no way back.
        if let Err(error) = self.run.use_extents(&seen) {
            let copies: Vec<_> = copied.into_values().collect();
            self.run.release_extents(&copies)?;
            return Err(error.into());
        }
        let mut files = Files::new(&self.run);
        let mut hidden = Vec::new();
        let mut no_room = Vec::new();
        for remap in plan(change) {
            match self.apply(&mut view, &remap, &mut files)? {
                Some(before) => hidden.extend(before.iter().filter_map(|(_, shown)| match shown {
                    Shown::Own(_) => None, // it is what was published
                    Shown::Extent(extent) => Some(*extent),
                })),
                None => no_room.extend(remap.targets().map(|(block, _)| block)),
            }
        }
        drop(view);
        for block in no_room {
            // The guest goes on seeing what it saw. A copy that was made is the draft's only;
            // a shared block stays noted as in use, which keeps it too long at worst.
            let copy = match copied.remove(&block) {
                Some(copy) => {
                    hidden.push(copy);
                    copy
                }
                None => self.copy_blocks(&[block], call)?[0],
            };
            self.metrics.copied_for_map_count.inc();
            extents.insert(block, copy);
        }
        let in_order: Vec<_> = blocks.iter().map(|block| extents[block]).collect();
        draft.push_blocks(&in_order)?;
        Ok(self.run.release_extents(&hidden)?)
    }

    /// How many of the blocks are shared; which are private and were written to; and which
    /// extents the others show.
    fn look(
        &self,
        blocks: &[GuestBlock],
    ) -> Result<(u64, Vec<GuestBlock>, Vec<Extent>), ServerError> {
        let view = self.view();
        let (mut shared, mut written, mut shown) = (0, Vec::new(), Vec::new());
        for block in blocks {
            match view.table.get(*block) {
                Some(Shown::Extent(extent)) => {
                    let is_written = self.memory.is_written(*block);
                    match is_written.map_err(cannot("look at a block's pages"))? {
                        true => written.push(*block),
                        false => shown.push(extent),
                    }
                }
                _ => shared += 1,
            }
        }
        Ok((shared, written, shown))
    }

    /// MAP: guest blocks show blocks of a snapshot.
    pub(super) fn map(
        &self,
        snapshot: &OpenSnapshot,
        entries: &[MapEntry],
        call: &mut Call<'_>,
    ) -> Result<(), ServerError> {
        self.check_ram(entries.iter().map(|entry| entry.at))?;
        let targets = entries.iter().map(|entry| {
            let list = match entry.kind {
                Kind::Blocks => &snapshot.blocks,
                Kind::Packed => &snapshot.packed,
            };
            Some((entry.at, list.get(entry.index)?))
        });
        let targets: Option<Vec<_>> = targets.collect();
        let targets = targets.ok_or(ServerError::BadRange("the snapshot has no such block"))?;
        for chunk in targets.chunks(AT_A_TIME) {
            call.check_stopping()?;
            self.map_chunk(chunk)?;
            call.answer.done += chunk.len() as u64;
            self.metrics.mapped.add(chunk.len() as u64);
        }
        Ok(())
    }

    fn map_chunk(&self, targets: &[(GuestBlock, Extent)]) -> Result<(), ServerError> {
        let seen: Vec<_> = targets.iter().map(|(_, extent)| *extent).collect();
        self.run.use_extents(&seen)?;
        let targets = targets.iter().map(|(at, e)| (*at, Shown::Extent(*e)));
        let remaps = plan(targets.collect());
        let mut files = Files::new(&self.run);
        let mut hidden = Vec::new();
        let mut shown = Vec::new();
        let mut view = self.view();
        for remap in &remaps {
            match self.apply(&mut view, remap, &mut files)? {
                Some(before) => {
                    hidden.extend(before.iter().map(|(_, shown)| self.extent(*shown)));
                    shown.push(*remap);
                }
                None => hidden.extend(self.fill(remap, &mut files)?),
            }
        }
        drop(view);
        self.run.release_extents(&hidden)?;
        if self.populate {
            for remap in shown {
                let (run, range, _) = self.source(&remap)?;
                self.memory.populate(remap.at, files.get(run)?, range);
            }
        }
        Ok(())
    }

    /// Writes to blocks what they cannot be made to show; returns what that was.
    fn fill(&self, remap: &Remap, files: &mut Files<'_>) -> Result<Vec<Extent>, ServerError> {
        let mut not_shown = Vec::new();
        for (block, to) in remap.targets() {
            let extent = self.extent(to);
            let from = (files.get(extent.run)?, extent.range().start());
            self.memory
                .fill(block, Some(from))
                .map_err(cannot("copy a block from the store"))?;
            self.metrics.copied_for_map_count.inc();
            not_shown.push(extent);
        }
        Ok(not_shown)
    }

    /// RELEASE: blocks read as zero, and their host memory goes back.
    pub(super) fn release(
        &self,
        ranges: &[BlockRange],
        call: &mut Call<'_>,
    ) -> Result<(), ServerError> {
        for range in ranges {
            self.check_ram_range(*range)?;
        }
        let blocks = ranges.iter().flat_map(|range| {
            let first = range.first.0;
            (first..first + range.blocks).map(GuestBlock)
        });
        let mut ends = ranges.iter().scan(0, |end, range| {
            *end += range.blocks;
            Some(*end)
        });
        let (mut ends, mut released) = (ends.by_ref().peekable(), 0);
        let mut blocks = blocks.peekable();
        loop {
            while ends.next_if(|end| *end <= released).is_some() {
                call.answer.done += 1;
            }
            if blocks.peek().is_none() {
                return Ok(());
            }
            call.check_stopping()?;
            let chunk: Vec<_> = blocks.by_ref().take(AT_A_TIME).collect();
            self.release_chunk(&chunk)?;
            released += chunk.len() as u64;
            self.metrics.released.add(chunk.len() as u64);
        }
    }

    fn release_chunk(&self, blocks: &[GuestBlock]) -> Result<(), ServerError> {
        let mut view = self.view();
        let (mut shared, mut private) = (Vec::new(), Vec::new());
        for block in blocks {
            match view.table.get(*block) {
                Some(Shown::Own(of_file)) => shared.push((*block, Shown::Own(of_file))),
                _ => private.push(*block),
            }
        }
        for range in plan(shared) {
            self.punch(&range)?;
        }
        if private.is_empty() {
            return Ok(());
        }
        private.sort_unstable();
        let empty = self.run.allocate(private.len() as u64)?;
        let first = empty.start().0 / BLOCK;
        let targets = private
            .iter()
            .zip(first..)
            .map(|(b, to)| (*b, Shown::Own(to)));
        let mut files = Files::new(&self.run);
        let mut hidden = Vec::new();
        for remap in plan(targets.collect()) {
            match self.apply(&mut view, &remap, &mut files)? {
                Some(before) => hidden.extend(before.iter().map(|(_, s)| self.extent(*s))),
                None => {
                    for (block, to) in remap.targets() {
                        let filled = self.memory.fill(block, None);
                        filled.map_err(cannot("empty a block"))?;
                        self.metrics.copied_for_map_count.inc();
                        hidden.push(self.extent(to));
                    }
                }
            }
        }
        drop(view);
        Ok(self.run.release_extents(&hidden)?)
    }

    /// Gives the memory of blocks of the run's own file back.
    fn punch(&self, blocks: &Remap) -> Result<(), ServerError> {
        let range = self.extent(blocks.to).range().start().0;
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (start, len) = (i64::try_from(range), i64::try_from(blocks.blocks * BLOCK));
        // Offsets of a file that exists.
        let (Ok(start), Ok(len)) = (start, len) else {
            return Err(ServerError::BadRange("an offset that cannot be"));
        };
        fallocate(self.run.ram().file(), flags, start, len)
            .map_err(|e| cannot("give memory back")(e.into()))
    }

    fn check_ram_range(&self, range: BlockRange) -> Result<(), ServerError> {
        match self.view().table.is_ram(range.first, range.blocks) {
            true => Ok(()),
            false => Err(ServerError::BadRange("a range is not all RAM")),
        }
    }

    /// Remaps, and enters it; returns what the blocks showed before. `None`: the host allows
    /// no more mappings.
    fn apply(
        &self,
        view: &mut View,
        remap: &Remap,
        files: &mut Files<'_>,
    ) -> Result<Option<Vec<(GuestBlock, Shown)>>, ServerError> {
        let growth = view.table.growth(remap);
        let mappings = view.table.mappings().saturating_add_signed(growth);
        if growth > 0 && mappings > self.max_mappings {
            return Ok(None);
        }
        let (run, range, sharing) = self.source(remap)?;
        match self.memory.remap(remap.at, files.get(run)?, range, sharing) {
            Ok(()) => {
                self.metrics.remaps.inc();
                Ok(Some(view.table.apply(remap)))
            }
            Err(e) if e.raw_os_error() == Some(Errno::ENOMEM as i32) => Ok(None),
            Err(e) => Err(cannot("remap guest memory")(e)),
        }
    }

    /// Which part of whose RAM file blocks are to show, and how.
    fn source(&self, remap: &Remap) -> Result<(RunId, FileRange, Sharing), ServerError> {
        let (run, block, sharing) = match remap.to {
            Shown::Own(block) => (self.run.id(), block, Sharing::Shared),
            Shown::Extent(extent) => (extent.run, extent.block, Sharing::Private),
        };
        FileRange::new(FileOffset(block * BLOCK), remap.blocks * BLOCK)
            .map(|range| (run, range, sharing))
            .ok_or(ServerError::BadRange("no block"))
    }

    fn own(&self, block: u64) -> Extent {
        Extent {
            run: self.run.id(),
            block,
        }
    }

    /// The block of a file behind what is shown.
    fn extent(&self, shown: Shown) -> Extent {
        match shown {
            Shown::Own(block) => self.own(block),
            Shown::Extent(extent) => extent,
        }
    }
}

/// RAM files, each opened once.
struct Files<'a> {
    run: &'a StoreRun,
    others: HashMap<RunId, File>,
}

impl<'a> Files<'a> {
    fn new(run: &'a StoreRun) -> Self {
        Self {
            run,
            others: HashMap::new(),
        }
    }

    fn get(&mut self, run: RunId) -> Result<&File, StoreError> {
        if run == self.run.id() {
            return Ok(self.run.ram().file());
        }
        Ok(match self.others.entry(run) {
            std::collections::hash_map::Entry::Occupied(file) => file.into_mut(),
            std::collections::hash_map::Entry::Vacant(free) => free.insert(self.run.file_of(run)?),
        })
    }
}
