//! One process after the other, each dumped and restored by one of the systems: the guest half.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::guest;
use crate::procfs::cpu_of_kernel_workers;
use crate::subject::Subject;
use crate::system::{Snapshot, System, ms};
use crate::table;
use crate::times::Times;
use crate::workload::Pages;

/// What to measure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Sizes of the process's memory, in MiB.
    pub sizes_mib: Vec<usize>,
    /// How often each is measured.
    pub rounds: usize,
}

/// In the order in which they take turns.
const SYSTEMS: [System; 3] = [System::CriuTmpfs, System::Vascriu, System::VascriuStore];

impl Plan {
    /// The measurements of one round, in order: the systems alternate.
    fn round(&self) -> Vec<(usize, Pages, System)> {
        let mut round = Vec::new();
        for &size in &self.sizes_mib {
            for pages in [Pages::Huge, Pages::Small] {
                round.extend(SYSTEMS.map(|system| (size, pages, system)));
            }
        }
        round
    }
}

/// One measurement, in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Size of the process's memory.
    pub size_mib: usize,
    /// Its pages.
    pub pages: Pages,
    /// What dumped and restored it.
    pub system: System,
    /// The times.
    #[serde(flatten)]
    pub times: Times,
    /// CPU time of the guest's kernel for the way to the store, if it goes there.
    pub drain_cpu_ms: f64,
    /// Pages that were not as before, after the restore.
    pub bad_pages: u64,
}

/// Runs all measurements; the guest half.
///
/// # Errors
/// When a dump or restore fails.
pub fn run(plan: &Plan) -> Result<Vec<Sample>> {
    let round = plan.round();
    eprintln!("warming up");
    guest::warm_up()?;
    let mut samples = Vec::new();
    let mut eta = Eta::new(round.iter().map(|(size, ..)| size + 256).sum::<usize>() * plan.rounds);
    for number in 1..=plan.rounds {
        for &(size, pages, system) in &round {
            let sample = measure(system, size, pages).with_context(|| {
                format!("{system} at {size} MiB of {pages} pages, round {number}")
            })?;
            eprintln!(
                "round {number}/{}: {size:>4} MiB {pages:<4} {system:<13} dump {:>8} ms, restore {:>8} ms  ({})",
                plan.rounds,
                table::ms(sample.times.dump_ms),
                table::ms(sample.times.restore_ms),
                eta.after(size + 256),
            );
            samples.push(sample);
        }
    }
    Ok(samples)
}

/// One measurement: a new process, its dump and its restore.
///
/// # Errors
/// When one of them fails.
pub fn measure(system: System, size_mib: usize, pages: Pages) -> Result<Sample> {
    let snapshot = Snapshot::new(system, "bench")?;
    let mut subject = Subject::start(size_mib, pages)?;
    let workers_before = cpu_of_kernel_workers()?;
    let dump = snapshot.dump(subject.pid)?;
    subject.reap()?;
    let drain_cpu = if snapshot.wait_until_stored()? {
        cpu_of_kernel_workers()?.saturating_sub(workers_before)
    } else {
        Duration::ZERO
    };
    snapshot.evict()?;
    let restore = snapshot.restore()?;
    let bad_pages = subject.count_bad_pages()?;
    subject.end()?;
    snapshot.delete()?;
    Ok(Sample {
        size_mib,
        pages,
        system,
        times: Times::new(&dump, &restore),
        drain_cpu_ms: ms(drain_cpu),
        bad_pages,
    })
}

/// Tells how long all the work will still take, from the work done so far.
#[derive(Debug)]
struct Eta {
    begun: Instant,
    total: usize,
    done: usize,
}

impl Eta {
    fn new(total: usize) -> Self {
        Self {
            begun: Instant::now(),
            total,
            done: 0,
        }
    }

    fn after(&mut self, work: usize) -> String {
        self.done += work;
        let seconds = remaining(self.begun.elapsed(), self.done, self.total).as_secs();
        format!("{} min {:02} s left", seconds / 60, seconds % 60)
    }
}

fn remaining(elapsed: Duration, done: usize, total: usize) -> Duration {
    let done = u32::try_from(done).unwrap_or(u32::MAX).max(1);
    let left = u32::try_from(total)
        .unwrap_or(u32::MAX)
        .saturating_sub(done);
    elapsed / done * left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_alternates_the_systems_over_all_sizes_and_pages() {
        let plan = Plan {
            sizes_mib: vec![16, 32],
            rounds: 1,
        };
        let round = plan.round();
        assert_eq!(round.len(), 12);
        for turn in round.chunks(SYSTEMS.len()) {
            let systems: Vec<System> = turn.iter().map(|m| m.2).collect();
            assert_eq!(systems, SYSTEMS);
            assert!(turn.iter().all(|m| (m.0, m.1) == (turn[0].0, turn[0].1)));
        }
    }

    #[test]
    fn the_remaining_time_follows_the_work_done() {
        let ten = Duration::from_secs(10);
        assert_eq!(remaining(ten, 1, 4), Duration::from_secs(30));
        assert_eq!(remaining(ten, 4, 4), Duration::ZERO);
        assert_eq!(remaining(ten, 5, 4), Duration::ZERO);
    }
}
