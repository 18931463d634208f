//! Many copies of one snapshot that run side by side; the guest half.

use std::collections::HashSet;
use std::time::Instant;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::yes_or_no;
use crate::copies;
use crate::procfs::available_bytes;
use crate::stats::median;
use crate::subject::Subject;
use crate::system::ms;
use crate::table;
use crate::vas::{self, Keep};
use crate::workload::Pages;

/// How many copies the demo makes.
pub const COUNT: usize = 20;
/// Name of the snapshot.
const NAME: &str = "demo-clones";

/// `vascriu clone` of a process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Clones {
    /// How many there are.
    pub n: usize,
    /// Milliseconds from the command's start to its end, per copy.
    pub ms_each: f64,
    /// Milliseconds that each took, in their order: one is begun when the one before runs.
    pub each_ms: Vec<f64>,
    /// Guest memory that each took, page tables and supervisor included.
    pub memory_each_bytes: u64,
    /// Whether each drew another random number, all having been drawn in one before.
    pub randomness_distinct: bool,
    /// Pages of copies that do not hold what the process had written.
    pub bad_pages: u64,
}

/// Makes `count` copies of a process of `size_mib` MiB, and has each do something.
///
/// # Errors
/// When a step fails. Equal random numbers and bad pages are results, not errors.
pub fn run(size_mib: usize, count: usize) -> Result<Clones> {
    let mut subject = Subject::start(size_mib, Pages::Huge)?;
    eprintln!("vascriu: {count} copies of a process of {size_mib} MiB");
    vas::dump(subject.pid, NAME, Keep::GuestOnly)?;
    subject.reap()?;
    let before = available_bytes()?;
    let begun = Instant::now();
    let cloned = copies::clone(NAME, count)?;
    let all = begun.elapsed();
    let taken = before.saturating_sub(available_bytes()?);
    let mut copies: Vec<Subject> = cloned.iter().map(|c| Subject::at(c.pid)).collect();
    let mut drawn = HashSet::new();
    let mut bad_pages = 0;
    for copy in &mut copies {
        drawn.insert(copy.random()?);
        bad_pages += copy.count_bad_pages()?;
    }
    let done = Clones {
        n: copies.len(),
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        ms_each: ms(all) / count as f64,
        each_ms: cloned.iter().map(|c| c.restore_ms).collect(),
        memory_each_bytes: taken / count as u64,
        randomness_distinct: drawn.len() == copies.len(),
        bad_pages,
    };
    for copy in copies {
        copy.end()?;
    }
    vas::delete(NAME)?;
    Ok(done)
}

impl Clones {
    /// What is not as it should be.
    pub(super) fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        if !self.randomness_distinct {
            wrong.push("clones: two of them drew the same random number".into());
        }
        if self.bad_pages != 0 {
            wrong.push(format!("clones: {} bad pages", self.bad_pages));
        }
        wrong
    }

    /// Medians of the first ten copies and of the last ten, in milliseconds: whether a copy
    /// takes the longer the more there are.
    #[must_use]
    pub fn first_and_last_ms(&self) -> Option<(f64, f64)> {
        let few = self.each_ms.len().min(10);
        let (first, last) = (
            &self.each_ms[..few],
            &self.each_ms[self.each_ms.len() - few..],
        );
        Some((median(first)?, median(last)?))
    }

    /// The table of how time and memory scale, for people; each copy has `size_mib` MiB.
    #[must_use]
    pub fn render_scaling(&self, size_mib: usize) -> String {
        let header = [
            "copies",
            "ms each, of the first ten",
            "of the last ten",
            "taken by each",
        ];
        let (first, last) = self.first_and_last_ms().unwrap_or_default();
        let row = vec![
            format!("{} x {size_mib} MiB", self.n),
            table::ms(first),
            table::ms(last),
            table::bytes(self.memory_each_bytes),
        ];
        table::render(&header, &[row])
    }

    /// The table for people; each copy has `size_mib` MiB.
    #[must_use]
    pub fn render(&self, size_mib: usize) -> String {
        let header = [
            "copies",
            "ms each",
            "memory of each",
            "taken by each",
            "random numbers differ",
            "same data",
        ];
        let row = vec![
            self.n.to_string(),
            table::ms(self.ms_each),
            format!("{size_mib} MiB"),
            table::bytes(self.memory_each_bytes),
            yes_or_no(self.randomness_distinct),
            yes_or_no(self.bad_pages == 0),
        ];
        table::render(&header, &[row])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_tenth_copy_the_median_counts() {
        let mut copies = Clones {
            n: 100,
            ms_each: 2.0,
            each_ms: [[1.0, 1.0, 9.0], [3.0, 2.0, 2.0]].concat(),
            memory_each_bytes: 0,
            randomness_distinct: true,
            bad_pages: 0,
        };
        assert_eq!(copies.first_and_last_ms(), Some((2.0, 2.0)));
        copies.each_ms = (0..100).map(f64::from).collect();
        assert_eq!(copies.first_and_last_ms(), Some((4.5, 94.5)));
        copies.each_ms.clear();
        assert_eq!(copies.first_and_last_ms(), None);
    }
}
