// SPDX-License-Identifier: GPL-2.0-only
//! The guest half: one step at a time, as the host half asks for them.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::demo;
use crate::exp::{self, fleet, store, tiers};
use crate::frame::Case;
use crate::frame::provenance::Guest;
use crate::redis::State;
use crate::subject::Subject;
use crate::workload::Pages;

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
    /// Starts a workload: its PID.
    Start {
        /// Its memory.
        size_mib: usize,
        /// Its pages.
        pages: Pages,
    },
    /// Checks a workload's memory: nothing, or an error.
    Check {
        /// Its PID.
        pid: i32,
    },
    /// Ends a workload: nothing.
    End {
        /// Its PID.
        pid: i32,
    },
    /// Part of [`fleet`]: as there.
    Fleet(fleet::Turn),
    /// Part of [`store`]: as there.
    Store(store::Turn),
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
        Step::Start { size_mib, pages } => answer(&Subject::start(size_mib, pages)?.pid),
        Step::Check { pid } => answer(&Subject::at(pid).check()?),
        Step::End { pid } => answer(&Subject::at(pid).end()?),
        Step::Fleet(turn) => answer(&fleet::take(turn)?),
        Step::Store(turn) => answer(&store::take(turn)?),
        Step::Tiers(turn) => answer(&tiers::take(turn)?),
    }
}

fn answer(result: &impl Serialize) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, result)?;
    writeln!(out)?;
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
