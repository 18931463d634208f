// SPDX-License-Identifier: GPL-2.0-only
//! Many copies of one snapshot that run side by side; the guest half.

use std::collections::HashSet;
use std::time::Instant;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::yes_or_no;
use crate::copies;
use crate::procfs::available_bytes;
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
    let cloned = copies::clone(NAME, count, 1)?;
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
