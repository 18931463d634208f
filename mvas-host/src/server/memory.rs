// SPDX-License-Identifier: GPL-2.0-only
//! Guest memory, as the server needs it; the monitor has the mapping.

use std::fs::File;
use std::io;

use crate::range::{FileOffset, FileRange};

/// Bytes in a block.
pub const BLOCK: u64 = 2 << 20;
/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// Pages in a block.
pub const BLOCK_PAGES: u64 = BLOCK / PAGE;

/// A 2 MiB block of guest-physical memory: its address over 2 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestBlock(pub u64);

impl GuestBlock {
    /// The block that begins at `gpa`, if one does.
    pub fn at(gpa: u64) -> Option<Self> {
        gpa.is_multiple_of(BLOCK).then_some(Self(gpa / BLOCK))
    }

    /// Its guest-physical address.
    pub fn gpa(self) -> u64 {
        self.0 * BLOCK
    }
}

/// A 4 KiB page of guest-physical memory: its address over 4 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestPage(pub u64);

impl GuestPage {
    /// The page that begins at `gpa`, if one does.
    pub fn at(gpa: u64) -> Option<Self> {
        gpa.is_multiple_of(PAGE).then_some(Self(gpa / PAGE))
    }

    /// Its guest-physical address.
    pub fn gpa(self) -> u64 {
        self.0 * PAGE
    }

    /// The block that it is in.
    pub fn block(self) -> GuestBlock {
        GuestBlock(self.0 / BLOCK_PAGES)
    }
}

impl From<GuestBlock> for GuestPage {
    /// The first page of a block.
    fn from(block: GuestBlock) -> Self {
        Self(block.0 * BLOCK_PAGES)
    }
}

/// How a block of guest memory relates to the file behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Guest writes go to the file.
    Shared,
    /// The guest sees the file; its writes go to fresh pages of its own (copy-on-write).
    Private,
}

/// The monitor's mapping of guest memory, while vCPUs run.
///
/// Blocks and pages given here are always in RAM ([`RamRange`]); runs of blocks do not leave
/// one range.
pub trait GuestMapping: Send + Sync {
    /// Makes blocks from `at` on show `range` of `file`, atomically for each page.
    ///
    /// # Errors
    /// The host has no room for another mapping (`ENOMEM`); the blocks show what they did.
    fn remap(
        &self,
        at: GuestBlock,
        file: &File,
        range: FileRange,
        sharing: Sharing,
    ) -> io::Result<()>;

    /// Whether a privately mapped block has pages of its own: the guest wrote to it.
    ///
    /// # Errors
    /// The host does not tell.
    fn is_written(&self, block: GuestBlock) -> io::Result<bool>;

    /// Copies pages to consecutive places of `file`, in huge pages where it has them.
    ///
    /// # Errors
    /// The host has no memory for them (`ENOSPC`), or for a page that the guest never touched.
    fn copy_out(&self, pages: &[GuestPage], file: &File, to: FileOffset) -> io::Result<()>;

    /// Writes a block: from `file`, or zeroes.
    ///
    /// # Errors
    /// The host has no memory for it (`ENOSPC`): the block is as it was.
    fn fill(&self, block: GuestBlock, from: Option<(&File, FileOffset)>) -> io::Result<()>;

    /// Maps the pages that `range` of `file` has, and that blocks from `at` on show, before
    /// the guest touches them. A hint.
    fn populate(&self, at: GuestBlock, file: &File, range: FileRange);

    /// Whether guest memory is no longer what is shown here, because the host had no page when
    /// a device needed one. The VM is about to end, and must complete no snapshot.
    fn is_lost(&self) -> bool;
}

/// A range of guest RAM: at the start of a VM, each of its blocks shows the block of the
/// VM's own RAM file that follows `home` as it follows `first`. Ranges do not touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRange {
    /// Its first block.
    pub first: GuestBlock,
    /// Blocks in it.
    pub blocks: u64,
    /// What its first block shows, a block of the RAM file.
    pub home: u64,
}

impl RamRange {
    /// What `block` shows at first; `None` if it is not in this range.
    pub fn home_of(&self, block: GuestBlock) -> Option<u64> {
        let offset = block.0.checked_sub(self.first.0)?;
        (offset < self.blocks).then(|| self.home + offset)
    }
}
