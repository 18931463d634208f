//! Dump and restore by size of memory and of pages.

use anyhow::{Result, ensure};

use super::common;
use crate::bench::samples;
use crate::frame::{
    Axis, Case, Claim, Definition, Experiment, Figure, Kind, Machine, Metric, Metrics, Unit,
    metrics,
};
use crate::system::System;

pub(super) struct Size;

static DEFINITION: Definition = Definition {
    name: "size",
    title: "Dump and restore by size",
    question: "How long do a dump and a restore take, and their memory step alone, by size of \
        the process's memory and of its pages?",
    axes: &[
        Axis {
            name: "size",
            about: "memory of the process",
            kind: Kind::Size,
            quick: &["16M", "64M"],
            full: &["16M", "64M", "256M", "1G", "2G"],
        },
        common::PAGES,
    ],
    systems: &[System::CriuTmpfs, System::Vascriu, System::VascriuStore],
    metrics: &[
        common::DUMP,
        common::RESTORE,
        Metric {
            name: "memory_dump_ms",
            about: "dump, the memory step",
            unit: Unit::Ms,
        },
        common::MEMORY_RESTORE,
        common::FROZEN,
    ],
    machine: Machine {
        mem: "8G",
        cpus: 1,
        image: None,
    },
    repeats: [2, 7],
    figures: &[
        Figure {
            title: "Dump",
            metric: "dump_ms",
            x: "size",
            panels: Some("pages"),
        },
        Figure {
            title: "Restore",
            metric: "restore_ms",
            x: "size",
            panels: Some("pages"),
        },
        Figure {
            title: "The memory step of the dump",
            metric: "memory_dump_ms",
            x: "size",
            panels: Some("pages"),
        },
        Figure {
            title: "The memory step of the restore",
            metric: "memory_restore_ms",
            x: "size",
            panels: Some("pages"),
        },
    ],
    claims: &[
        Claim {
            text: "The memory step of a dump is 100 times faster",
            paper: Some("100x"),
            metric: "memory_dump_ms",
            system: System::Vascriu,
            than: System::CriuTmpfs,
            at: &[("pages", "huge")],
            goal: 100.0,
        },
        Claim {
            text: "A snapshot is 10 times faster",
            paper: Some("10x"),
            metric: "dump_ms",
            system: System::Vascriu,
            than: System::CriuTmpfs,
            at: &[("pages", "huge")],
            goal: 10.0,
        },
        Claim {
            text: "A restore is 9 times faster",
            paper: Some("9x"),
            metric: "restore_ms",
            system: System::Vascriu,
            than: System::CriuTmpfs,
            at: &[("pages", "huge")],
            goal: 9.0,
        },
    ],
    notes: &[
        "Each measurement has a new process, which fills its memory with a pattern of its own and \
         checks every word after the restore; a single bad page ends the run.",
        "vascriu-store restores a cold snapshot: one that is in the host's store only.",
    ],
};

impl Experiment for Size {
    fn definition(&self) -> &'static Definition {
        &DEFINITION
    }

    fn measure_here(&self, case: &Case) -> Result<Metrics> {
        let size = case.point.mib("size")?;
        let sample = samples::measure(case.system, size, case.point.word("pages")?.parse()?)?;
        ensure!(sample.bad_pages == 0, "{} bad pages", sample.bad_pages);
        let times = sample.times;
        Ok(metrics([
            ("dump_ms", times.dump_ms),
            ("restore_ms", times.restore_ms),
            ("memory_dump_ms", times.memory_dump_ms),
            ("memory_restore_ms", times.memory_restore_ms),
            ("frozen_ms", times.frozen_ms),
        ]))
    }
}
