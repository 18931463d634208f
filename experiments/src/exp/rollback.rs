// SPDX-License-Identifier: GPL-2.0-only
//! Debugging and rollback: a computation that is snapshotted again and again goes back to the
//! middle, and does the rest once more.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::common;
use crate::frame::{
    Axis, Case, Claim, Definition, Experiment, Figure, Kind, Machine, Metric, Metrics, Than, Unit,
    metrics,
};
use crate::procfs::available_bytes;
use crate::series::Series;
use crate::stats::median;
use crate::subject::{DIR, Subject};
use crate::system::{System, ms};

pub(super) struct Rollback;

/// Steps of the computation.
const STEPS: usize = 16;

static DEFINITION: Definition = Definition {
    name: "rollback",
    title: "Debugging and rollback",
    question: "What do snapshots cost a computation that is snapshotted every few steps, and how \
        soon is it back in the middle, to do the rest once more?",
    axes: &[
        Axis {
            name: "size",
            about: "memory of the process",
            kind: Kind::Size,
            quick: &["16M"],
            full: &["256M"],
        },
        common::PAGES,
        Axis {
            name: "every",
            about: "steps from one snapshot to the next",
            kind: Kind::Count("steps"),
            quick: &["1", "4"],
            full: &["1", "4", "16"],
        },
    ],
    systems: &[
        System::Nothing,
        System::CriuTmpfs,
        System::CriuPredump,
        System::Fork,
        System::Vascriu,
    ],
    metrics: &[
        Metric {
            name: "steps_per_s",
            about: "steps done in a second, snapshots among them",
            unit: Unit::PerSecond,
        },
        Metric {
            name: "frozen_ms",
            about: "the process stands still for one snapshot; median",
            unit: Unit::Ms,
        },
        Metric {
            name: "memory_each_bytes",
            about: "what MemAvailable fell by in all steps, by the number of snapshots",
            unit: Unit::Bytes,
        },
        Metric {
            name: "rollback_ms",
            about: "from the decision to go back until the process tells the state that it had",
            unit: Unit::Ms,
        },
        Metric {
            name: "replay_ms",
            about: "the steps after that until the end, without snapshots, by their number",
            unit: Unit::Ms,
        },
    ],
    machine: Machine {
        mem: "10G",
        cpus: 1,
        image: None,
    },
    repeats: [1, 3],
    figures: &[
        Figure {
            title: "Steps in a second",
            metric: "steps_per_s",
            x: "every",
            panels: Some("pages"),
        },
        Figure {
            title: "Memory of one snapshot",
            metric: "memory_each_bytes",
            x: "every",
            panels: Some("pages"),
        },
        common::by_size("Time to go back", "rollback_ms"),
    ],
    claims: &[
        Claim {
            text: "A computation of 256 MiB that is snapshotted after each step is 3 times as fast",
            paper: None,
            metric: "steps_per_s",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("size", "256M"), ("pages", "4k"), ("every", "1")],
            goal: 3.0,
        },
        Claim {
            text: "Then a snapshot takes a fifth of the memory",
            paper: None,
            metric: "memory_each_bytes",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("size", "256M"), ("pages", "4k"), ("every", "1")],
            goal: 5.0,
        },
        Claim {
            text: "Then it is back 5 times sooner",
            paper: None,
            metric: "rollback_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("size", "256M"), ("pages", "4k"), ("every", "1")],
            goal: 5.0,
        },
    ],
    notes: &[
        "16 steps. Each reads one of 16 pages of 4 KiB, all over the memory, and writes to them \
         what depends on what it read and on all steps before; the next step does so with the \
         pages beside them. A huge page is touched by each step. Snapshots are taken before the \
         first step, and then after so many steps; all are kept.",
        "A step is asked for when the one before is answered; the answer is looked for at least \
         each 5 ms, as a rule much more often. That is in steps_per_s.",
        "Back to the snapshot in the middle: as it was before step 9, or with a single snapshot \
         before the first. vascriu rollback dumps what runs before it restores, so that nothing is \
         lost if that fails; for the others the process is killed. All of that is in rollback_ms.",
        "nothing takes no snapshot: only steps_per_s is measured.",
        "fork: its child, which waits, is the snapshot, and goes on when the process is killed: \
         a snapshot that can be gone back to once, and that no other microVM and no file has. \
         frozen is the fork, asked for and answered.",
        "criu-predump: criu pre-dump, then criu dump, each with what changed since the one \
         before; frozen is both together. Each needs all before it.",
        "The state after each step of the replay must be that of the first run, and in the end the \
         process checks every word of its memory; anything else ends the run.",
    ],
};

impl Experiment for Rollback {
    fn definition(&self) -> &'static Definition {
        &DEFINITION
    }

    fn measure_here(&self, case: &Case) -> Result<Metrics> {
        let every = case.point.count("every")?;
        ensure!(every > 0, "every 0 steps means nothing");
        let pages = case.point.word("pages")?.parse()?;
        let mut process = Subject::start(case.point.mib("size")?, pages)?;
        let dir = Path::new(DIR).join("rollback");
        fs::create_dir_all(&dir)?;
        let mut snapshots = match case.system {
            System::Nothing => Snapshots::None,
            System::Fork => Snapshots::Children(Vec::new()),
            system => Snapshots::Series(Series::new(system, process.pid, &dir)?),
        };
        let mut all = Metrics::new();
        let states = first_run(&mut process, &mut snapshots, every, &mut all)?;
        let mut process = match snapshots {
            Snapshots::None => process,
            _ => go_back(process, &mut snapshots, every, &states, &mut all)?,
        };
        process.check()?;
        process.end_alone()?;
        snapshots.delete()?;
        fs::remove_dir_all(&dir)?;
        Ok(all)
    }
}

/// What was taken of the process so far.
enum Snapshots {
    None,
    Series(Series),
    Children(Vec<Subject>),
}

impl Snapshots {
    /// Takes one; tells how long the process stood still.
    fn take(&mut self, process: &mut Subject) -> Result<Duration> {
        match self {
            Self::None => Ok(Duration::ZERO),
            Self::Series(series) => Ok(series.take()?.frozen),
            Self::Children(children) => {
                let begun = Instant::now();
                children.push(process.fork()?);
                Ok(begun.elapsed())
            }
        }
    }

    /// Puts the `nth` in the place of the process.
    fn go_back(&mut self, process: Subject, nth: usize) -> Result<Subject> {
        match self {
            Self::Series(series) => series.go_back(process, nth),
            Self::Children(children) if nth < children.len() => {
                process.end_alone()?;
                Ok(children.remove(nth))
            }
            _ => anyhow::bail!("there is no snapshot {nth}"),
        }
    }

    fn delete(self) -> Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Series(mut series) => series.prune(0),
            Self::Children(children) => children.into_iter().try_for_each(Subject::end_alone),
        }
    }
}

/// All steps, with snapshots; returns the states before the first and after each.
fn first_run(
    process: &mut Subject,
    snapshots: &mut Snapshots,
    every: usize,
    all: &mut Metrics,
) -> Result<Vec<u64>> {
    let mut states = vec![process.state()?];
    let mut frozen = Vec::new();
    let before = available_bytes()?;
    let begun = Instant::now();
    for step in 0..STEPS {
        if step % every == 0 {
            frozen.push(ms(snapshots.take(process)?));
        }
        states.push(process.step()?);
    }
    let took = begun.elapsed();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let taken_by_each = before.saturating_sub(available_bytes()?) as f64 / frozen.len() as f64;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let steps_per_s = STEPS as f64 / took.as_secs_f64();
    all.extend(metrics([("steps_per_s", steps_per_s)]));
    if !matches!(snapshots, Snapshots::None) {
        let frozen = median(&frozen).context("no snapshot was taken")?;
        all.extend(metrics([
            ("frozen_ms", frozen),
            ("memory_each_bytes", taken_by_each),
        ]));
    }
    Ok(states)
}

/// Has the process be as it was in the middle, and do the rest once more.
fn go_back(
    process: Subject,
    snapshots: &mut Snapshots,
    every: usize,
    states: &[u64],
    all: &mut Metrics,
) -> Result<Subject> {
    let nth = middle(every);
    let begun = Instant::now();
    let mut process = snapshots.go_back(process, nth)?;
    let state = process.state()?;
    let back = begun.elapsed();
    let mut again = vec![state];
    let begun = Instant::now();
    let rest = &states[nth * every..];
    for _ in 1..rest.len() {
        again.push(process.step()?);
    }
    let replay = begun.elapsed();
    let wrong = again.iter().zip(rest).position(|(is, was)| is != was);
    if let Some(step) = wrong {
        anyhow::bail!("{step} steps after the snapshot the state is not that of the first run");
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let steps = (rest.len() - 1) as f64;
    all.extend(metrics([
        ("rollback_ms", ms(back)),
        ("replay_ms", ms(replay) / steps),
    ]));
    Ok(process)
}

/// Number of the snapshot in the middle of those that are taken.
fn middle(every: usize) -> usize {
    STEPS.div_ceil(every) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_snapshot_in_the_middle_and_something_to_do_again_after_it() {
        for every in 1..=2 * STEPS {
            let taken = (0..STEPS).step_by(every).count();
            assert!(middle(every) < taken, "every {every}");
            assert!(middle(every) * every < STEPS, "every {every}");
        }
        assert_eq!(middle(1), STEPS / 2);
    }
}
