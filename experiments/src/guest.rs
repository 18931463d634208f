//! The guest half: one step at a time, as the host half asks for them.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::bench::{clones, drain, samples};
use crate::criu::timed;
use crate::exp::{self, tiers};
use crate::frame::Case;
use crate::frame::provenance::Guest;
use crate::redis::State;
use crate::subject::Subject;
use crate::system::System;
use crate::workload::Pages;
use crate::{demo, vas};

/// What the guest half can be asked for. Its answer, which it writes to standard output as
/// JSON, is named at each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// All of the demo in its first microVM: [`demo::guest::First`].
    Demo {
        /// Data to load into Redis.
        size_mib: usize,
        /// A block device; its content is lost.
        disk: PathBuf,
    },
    /// The demo in its second microVM: [`demo::guest::Restored`].
    DemoAgain {
        /// What Redis should hold.
        expected: State,
    },
    /// Copies of a process, side by side: [`demo::clones::Clones`].
    DemoClones {
        /// Its memory.
        size_mib: usize,
        /// How many.
        count: usize,
    },
    /// Redis in a Docker container, through each system: [`demo::docker::DockerRun`]s. In the
    /// flavor `containers`.
    DemoDocker {
        /// Data to load into Redis.
        size_mib: usize,
    },
    /// One case of an experiment: [`crate::frame::Metrics`].
    Measure(Case),
    /// What the guest is: [`Guest`].
    Facts,
    /// The measurements of the bench in one guest: [`samples::Sample`]s.
    Samples(samples::Plan),
    /// Reads what an experiment needs from the image: nothing.
    WarmUp,
    /// Starts a workload: its PID.
    Start {
        /// Its memory.
        size_mib: usize,
        /// Its pages.
        pages: Pages,
    },
    /// Dumps a workload, which goes on, into the snapshot store: [`drain::Drained`].
    Drain {
        /// Its PID.
        pid: i32,
        /// Name of the snapshot.
        name: String,
    },
    /// Checks a workload's memory: its bad pages.
    CountBadPages {
        /// Its PID.
        pid: i32,
    },
    /// Ends a workload: nothing.
    End {
        /// Its PID.
        pid: i32,
    },
    /// Copies memory to tmpfs: milliseconds.
    Copy {
        /// How much.
        size_mib: usize,
    },
    /// Dumps a new workload into the snapshot store and ends it: its PID.
    Store {
        /// Its memory.
        size_mib: usize,
        /// Name of the snapshot.
        name: String,
    },
    /// Restores copies of a workload and has each write: [`clones::Started`].
    StartClones {
        /// The snapshot.
        name: String,
        /// PID of the workload in it.
        pid: i32,
        /// How many.
        count: usize,
    },
    /// Checks the memory of all copies: their bad pages.
    CountBadPagesOfClones {
        /// PID of the workload that they are copies of.
        pid: i32,
    },
    /// Ends all copies: nothing.
    EndClones {
        /// PID of the workload that they are copies of.
        pid: i32,
    },
    /// Removes a snapshot, here and in the store: nothing.
    Remove {
        /// Its name.
        name: String,
    },
    /// Part of [`tiers`]: as there.
    Tiers(tiers::Turn),
}

/// Does a step and writes its answer to standard output.
///
/// # Errors
/// When the step fails.
pub fn run(step: &str) -> Result<()> {
    let step = serde_json::from_str(step).with_context(|| format!("no step: {step}"))?;
    match step {
        Step::Demo { size_mib, disk } => answer(&demo::guest::first(size_mib, &disk)?),
        Step::DemoAgain { expected } => answer(&demo::guest::again(&expected)?),
        Step::DemoClones { size_mib, count } => answer(&demo::clones::run(size_mib, count)?),
        Step::DemoDocker { size_mib } => answer(&demo::docker::run(size_mib)?),
        Step::Measure(case) => answer(&exp::find(&case.experiment)?.measure_here(&case)?),
        Step::Facts => answer(&Guest::here()?),
        Step::Samples(plan) => answer(&samples::run(&plan)?),
        Step::WarmUp => answer(&warm_up()?),
        Step::Start { size_mib, pages } => answer(&Subject::start(size_mib, pages)?.pid),
        Step::Drain { pid, name } => answer(&drain::drain(pid, &name)?),
        Step::CountBadPages { pid } => answer(&Subject::at(pid).count_bad_pages()?),
        Step::End { pid } => answer(&Subject::at(pid).end()?),
        Step::Copy { size_mib } => answer(&drain::copy(size_mib)?),
        Step::Store { size_mib, name } => answer(&clones::store(size_mib, &name)?),
        Step::StartClones { name, pid, count } => answer(&clones::start(&name, pid, count)?),
        Step::CountBadPagesOfClones { pid } => answer(&clones::count_bad_pages(pid)?),
        Step::EndClones { pid } => answer(&clones::end(pid)?),
        Step::Remove { name } => answer(&vas::delete(&name)?),
        Step::Tiers(turn) => answer(&tiers::take(turn)?),
    }
}

fn answer(result: &impl Serialize) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, result)?;
    writeln!(out)?;
    Ok(())
}

/// Dumps and restores once by each system, so that none pays for reading the programs from the
/// image, and no microVM's memory grows by them later.
///
/// # Errors
/// When one of them fails.
pub fn warm_up() -> Result<()> {
    timed(Command::new("vascriu").arg("check"))?;
    for system in [System::CriuTmpfs, System::Vascriu] {
        samples::measure(system, 16, Pages::Small)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_survives_the_command_line() {
        let step = Step::DemoAgain {
            expected: State {
                keys: 7,
                digest: "a\"b".into(),
            },
        };
        let text = serde_json::to_string(&step).unwrap();
        assert_eq!(serde_json::from_str::<Step>(&text).unwrap(), step);
        assert!(run("{}").is_err() && run("").is_err());
    }
}
