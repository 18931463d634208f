// SPDX-License-Identifier: GPL-2.0-only
//! Offsets and ranges in a RAM file, kept apart from guest-physical addresses.

use std::fmt;

/// A position in a RAM file, bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileOffset(pub u64);

/// A non-empty half-open range `[start, end)` of a RAM file; its end never overflows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileRange {
    start: u64,
    end: u64,
}

impl FileRange {
    /// The range of `len` bytes from `start`; `None` if it is empty or overflows.
    ///
    /// ```
    /// use mvas_host::{FileOffset, FileRange};
    /// let range = FileRange::new(FileOffset(4096), 8192).unwrap();
    /// assert_eq!(range.end(), FileOffset(12288));
    /// assert!(FileRange::new(FileOffset(0), 0).is_none());
    /// assert!(FileRange::new(FileOffset(u64::MAX), 2).is_none());
    /// ```
    pub fn new(start: FileOffset, len: u64) -> Option<Self> {
        let end = start.0.checked_add(len)?;
        (len > 0).then_some(Self {
            start: start.0,
            end,
        })
    }

    /// First byte.
    pub fn start(self) -> FileOffset {
        FileOffset(self.start)
    }

    /// One past the last byte.
    pub fn end(self) -> FileOffset {
        FileOffset(self.end)
    }

    /// Bytes in the range, never 0.
    #[allow(clippy::len_without_is_empty)] // a range is never empty
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether every byte of `other` is in this range.
    pub fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The bytes that both have; `None` if there are none.
    pub fn intersect(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end);
        (start < end).then_some(Self { start, end })
    }

    /// Whether start and end are multiples of `block` bytes.
    pub fn is_aligned(self, block: u64) -> bool {
        self.start.is_multiple_of(block) && self.end.is_multiple_of(block)
    }

    /// Cuts the range in pieces of at most `max` bytes (at least 1), in order.
    pub fn chunks(self, max: u64) -> impl Iterator<Item = Self> {
        let mut at = self.start;
        std::iter::from_fn(move || {
            let start = at;
            at = self.end.min(start.saturating_add(max.max(1)));
            (start < at).then_some(Self { start, end: at })
        })
    }
}

impl fmt::Display for FileRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_range() -> impl Strategy<Value = FileRange> {
        (0..1u64 << 40, 1..1u64 << 40)
            .prop_map(|(start, len)| FileRange::new(FileOffset(start), len).unwrap())
    }

    proptest! {
        #[test]
        fn a_range_is_made_exactly_when_it_is_not_empty_and_does_not_overflow(start: u64, len: u64) {
            let range = FileRange::new(FileOffset(start), len);
            prop_assert_eq!(range.is_some(), len > 0 && start.checked_add(len).is_some());
            if let Some(range) = range {
                prop_assert_eq!((range.start().0, range.len()), (start, len));
            }
        }

        #[test]
        fn the_intersection_is_in_both_and_commutes(a in any_range(), b in any_range()) {
            prop_assert_eq!(a.intersect(b), b.intersect(a));
            match a.intersect(b) {
                Some(both) => prop_assert!(a.contains(both) && b.contains(both)),
                None => prop_assert!(a.end() <= b.start() || b.end() <= a.start()),
            }
        }

        #[test]
        fn containing_means_that_the_intersection_is_the_contained(a in any_range(), b in any_range()) {
            prop_assert_eq!(a.contains(b), a.intersect(b) == Some(b));
        }

        #[test]
        fn chunks_tile_the_range_and_none_is_too_long(range in any_range(), parts in 1..50u64) {
            let max = range.len().div_ceil(parts);
            let chunks: Vec<_> = range.chunks(max).collect();
            prop_assert_eq!(chunks[0].start(), range.start());
            prop_assert_eq!(chunks[chunks.len() - 1].end(), range.end());
            prop_assert!(chunks.windows(2).all(|w| w[0].end() == w[1].start()));
            prop_assert!(chunks.iter().all(|c| c.len() <= max));
        }
    }

    #[test]
    fn chunks_do_not_run_past_the_end_of_the_address_space() {
        let range = FileRange::new(FileOffset(u64::MAX - 10), 10).unwrap();
        assert_eq!(range.chunks(8).count(), 2);
        assert_eq!(range.chunks(0).count(), 10);
    }
}
