// SPDX-License-Identifier: GPL-2.0-only
//! Redis in a Docker container, checkpointed and started again by stock CRIU and by ours; the
//! guest half, in the flavor `containers`.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::yes_or_no;
use crate::engines::{self, Docker, Engine};
use crate::system::{System, ms};
use crate::table;

/// `docker checkpoint create` and `docker start --checkpoint` of one container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DockerRun {
    /// The CRIU behind Docker: stock, with its images in Docker's folder on tmpfs, or ours.
    pub system: System,
    /// The whole `docker checkpoint create`, in milliseconds.
    pub checkpoint_ms: f64,
    /// The whole `docker start --checkpoint`.
    pub start_ms: f64,
    /// Whether Redis holds exactly the same data afterwards.
    pub data_equal: bool,
    /// What differs, if something does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differs: Option<String>,
}

/// All of it, with `size_mib` MiB of data.
///
/// # Errors
/// When a step fails. Different data is a result, not an error.
pub fn run(size_mib: usize) -> Result<Vec<DockerRun>> {
    let mut docker = Docker::new()?;
    let expected = engines::begin(&mut docker, size_mib)?;
    let runs = [System::CriuTmpfs, System::Vascriu].map(|system| {
        let round = engines::round(&mut docker, system, &expected);
        let round = round.with_context(|| system.to_string())?;
        Ok(DockerRun {
            system,
            checkpoint_ms: ms(round.checkpoint),
            start_ms: ms(round.restore),
            data_equal: round.differs.is_none(),
            differs: round.differs,
        })
    });
    docker.remove()?;
    runs.into_iter().collect()
}

/// The table for people.
#[must_use]
pub fn render(runs: &[DockerRun]) -> String {
    let header = [
        "Docker with",
        "checkpoint ms",
        "start ms",
        "checkpoint",
        "start",
        "same data",
    ];
    let stock = runs.iter().find(|r| r.system == System::CriuTmpfs);
    let row = |run: &DockerRun| {
        let faster = |of: fn(&DockerRun) -> f64| {
            stock.map_or(String::new(), |stock| table::times(of(stock), of(run)))
        };
        vec![
            run.system.to_string(),
            table::ms(run.checkpoint_ms),
            table::ms(run.start_ms),
            faster(|r| r.checkpoint_ms),
            faster(|r| r.start_ms),
            yes_or_no(run.data_equal),
        ]
    };
    table::render(&header, &runs.iter().map(row).collect::<Vec<_>>())
}
