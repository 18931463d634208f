// SPDX-License-Identifier: GPL-2.0-only
//! Many snapshots in a row of a process that writes a little between two of them.

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
use crate::series::{Series, Taken};
use crate::stats::median;
use crate::subject::{DIR, Subject};
use crate::system::{System, ms};
use crate::workload::{Access, Touch};

pub(super) struct Lineage;

static DEFINITION: Definition = Definition {
    name: "lineage",
    title: "Many snapshots in a row",
    question: "What do many snapshots of a process take that goes on and writes a little between \
        two of them: does the last one take longer than the first, and how much memory do all take?",
    axes: &[
        Axis {
            name: "size",
            about: "memory of the process",
            kind: Kind::Size,
            quick: &["32M"],
            full: &["1G"],
        },
        common::PAGES,
        Axis {
            name: "share",
            about: "how many of its 4 KiB pages it writes to before each",
            kind: Kind::Count("%"),
            quick: &["1"],
            full: &["1"],
        },
        Axis {
            name: "snapshots",
            about: "how many are taken; all are kept",
            kind: Kind::Count("snapshots"),
            quick: &["1", "4"],
            full: &["1", "10", "100"],
        },
    ],
    systems: &[System::CriuPredump, System::Vascriu],
    metrics: &[
        Metric {
            name: "last_ms",
            about: "the whole command; median of the last tenth of the snapshots",
            unit: Unit::Ms,
        },
        Metric {
            name: "frozen_ms",
            about: "time frozen for these",
            unit: Unit::Ms,
        },
        Metric {
            name: "memory_bytes",
            about: "guest memory that the process and all snapshots take in the end",
            unit: Unit::Bytes,
        },
        Metric {
            name: "back_ms",
            about: "the way back to the first of them, in the place of the process",
            unit: Unit::Ms,
        },
    ],
    machine: Machine {
        mem: "8G",
        cpus: 1,
        image: None,
    },
    repeats: [1, 3],
    figures: &[
        figure("The last snapshot", "last_ms"),
        figure("Memory of the process and its snapshots", "memory_bytes"),
    ],
    claims: &[
        Claim {
            text: "The hundredth snapshot takes no longer than the first, by more than a fifth",
            ..later("last_ms", 0.83)
        },
        Claim {
            text: "Of huge pages, too",
            at: &[("pages", "huge"), ("snapshots", "100")],
            ..later("last_ms", 0.83)
        },
        Claim {
            text: "A hundred snapshots, between which all memory is written once in sum, take no more \
                than one and a half times the memory of the process",
            ..later("memory_bytes", 0.4)
        },
        Claim {
            text: "The last snapshot takes less time than an incremental one",
            paper: None,
            metric: "last_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuPredump),
            at: &[("pages", "4k"), ("snapshots", "100")],
            goal: 1.0,
        },
    ],
    notes: &[
        "The process writes one word in every hundredth of its 4 KiB pages, the same ones each time, \
         before each snapshot. Guest memory is by how much MemAvailable fell since before it began.",
        "criu-predump: criu pre-dump, then criu dump, each with what changed since the one before; \
         each needs all before it.",
        "In the end it goes back to the first snapshot, and checks every word of its memory.",
    ],
};

const fn figure(title: &'static str, metric: &'static str) -> Figure {
    Figure {
        title,
        metric,
        x: "snapshots",
        panels: Some("pages"),
    }
}

/// Of our hundredth snapshot and our first.
const fn later(metric: &'static str, goal: f64) -> Claim {
    Claim {
        text: "",
        paper: None,
        metric,
        system: System::Vascriu,
        than: Than::At(&[("snapshots", "1")]),
        at: &[("pages", "4k"), ("snapshots", "100")],
        goal,
    }
}

impl Experiment for Lineage {
    fn definition(&self) -> &'static Definition {
        &DEFINITION
    }

    fn measure_here(&self, case: &Case) -> Result<Metrics> {
        let count = case.point.count("snapshots")?;
        ensure!(count > 0, "no snapshot, nothing to measure");
        let touch = Touch {
            percent: case.point.count("share")?,
            access: Access::Write,
        };
        let dir = Path::new(DIR).join("lineage");
        fs::create_dir_all(&dir)?;
        let available = available_bytes()?;
        let pages = case.point.word("pages")?.parse()?;
        let mut process = Subject::start(case.point.mib("size")?, pages)?;
        let mut series = Series::new(case.system, process.pid, &dir)?;
        let mut taken = Vec::with_capacity(count);
        for _ in 0..count {
            process.touch(touch)?;
            taken.push(series.take()?);
        }
        let memory = available.saturating_sub(available_bytes()?);
        let begun = Instant::now();
        let process = series.go_back(process, 0)?;
        let back = begun.elapsed();
        process.end_intact()?;
        series.prune(0)?;
        fs::remove_dir_all(&dir)?;

        let last = &taken[count - count.div_ceil(10)..];
        let of = |time: fn(&Taken) -> Duration| {
            let times: Vec<_> = last.iter().map(|taken| ms(time(taken))).collect();
            median(&times).context("no snapshot was taken")
        };
        Ok(metrics([
            ("last_ms", of(|taken| taken.wall)?),
            ("frozen_ms", of(|taken| taken.frozen)?),
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            ("memory_bytes", memory as f64),
            ("back_ms", ms(back)),
        ]))
    }
}
