// SPDX-License-Identifier: GPL-2.0-only
//! Dump and restore by size of memory and of pages.

use anyhow::Result;

use super::common;
use crate::frame::{
    Axis, Case, Claim, Definition, Experiment, Kind, Machine, Metric, Metrics, Than, Unit, metrics,
};
use crate::system::{System, ms};
use crate::trial;

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
            full: &["1M", "16M", "64M", "256M", "1G", "2G"],
        },
        common::PAGES,
    ],
    systems: &[
        System::CriuTmpfs,
        System::Vascriu,
        System::VascriuService,
        System::VascriuStore,
    ],
    metrics: &[
        common::DUMP,
        common::RESTORE,
        common::MEMORY_DUMP,
        common::MEMORY_RESTORE,
        common::FROZEN,
        Metric {
            name: "dump_cpu_ms",
            about: "CPU time of the dump's command",
            unit: Unit::Ms,
        },
        Metric {
            name: "drain_cpu_ms",
            about: "CPU time of the guest's kernel for the way to the store",
            unit: Unit::Ms,
        },
    ],
    machine: Machine {
        mem: "8G",
        cpus: 1,
        image: None,
    },
    repeats: [2, 5],
    figures: &[
        common::by_size("Dump", "dump_ms"),
        common::by_size("Restore", "restore_ms"),
        common::by_size("The memory step of the dump", "memory_dump_ms"),
        common::by_size("The memory step of the restore", "memory_restore_ms"),
    ],
    claims: &[
        Claim {
            text: "A small snapshot is not slower",
            paper: None,
            metric: "dump_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("pages", "4k"), ("size", "16M")],
            goal: 1.0,
        },
        Claim {
            text: "A small restore is not slower",
            paper: None,
            metric: "restore_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("pages", "4k"), ("size", "16M")],
            goal: 1.0,
        },
        with_service(
            "With a started CRIU the smallest dump takes half the time",
            "dump_ms",
            &[("pages", "4k"), ("size", "1M")],
            2.0,
        ),
        with_service(
            "With a started CRIU the smallest restore takes half the time",
            "restore_ms",
            &[("pages", "4k"), ("size", "1M")],
            2.0,
        ),
        with_service(
            "The smallest process is frozen for no more than 0.6 of the time",
            "frozen_ms",
            &[("pages", "4k"), ("size", "1M")],
            1.67,
        ),
        with_service(
            "With a started CRIU a dump of 64 MiB is 3 times faster",
            "dump_ms",
            &[("pages", "huge"), ("size", "64M")],
            3.0,
        ),
        with_service(
            "With a started CRIU a restore of 64 MiB is 5 times faster",
            "restore_ms",
            &[("pages", "huge"), ("size", "64M")],
            5.0,
        ),
        with_service(
            "With a started CRIU a dump of 1 GiB is 15 times faster",
            "dump_ms",
            &[("pages", "huge"), ("size", "1G")],
            15.0,
        ),
        with_service(
            "With a started CRIU a restore of 1 GiB is 50 times faster",
            "restore_ms",
            &[("pages", "huge"), ("size", "1G")],
            50.0,
        ),
        Claim {
            text: "The memory step of a restore is 100 times faster",
            paper: Some("100x"),
            metric: "memory_restore_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("pages", "huge")],
            goal: 100.0,
        },
        Claim {
            text: "A cold restore is 20 times faster",
            paper: None,
            metric: "restore_ms",
            system: System::VascriuStore,
            than: Than::System(System::CriuTmpfs),
            at: &[("pages", "huge")],
            goal: 20.0,
        },
        Claim {
            text: "A drain in the background adds no more than a tenth to a dump",
            paper: None,
            metric: "dump_ms",
            system: System::VascriuStore,
            than: Than::System(System::Vascriu),
            at: &[("pages", "huge")],
            goal: 0.9,
        },
        Claim {
            text: "The memory step of a dump is 100 times faster",
            paper: Some("100x"),
            metric: "memory_dump_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("pages", "huge")],
            goal: 100.0,
        },
        Claim {
            text: "A snapshot is 10 times faster",
            paper: Some("10x"),
            metric: "dump_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("pages", "huge")],
            goal: 10.0,
        },
        Claim {
            text: "A restore is 9 times faster",
            paper: Some("9x"),
            metric: "restore_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("pages", "huge")],
            goal: 9.0,
        },
        Claim {
            text: "A dump of the most memory takes no more than one and a half times as long as \
                one of 16 MiB",
            paper: None,
            metric: "dump_ms",
            system: System::Vascriu,
            than: Than::At(&[("size", "16M")]),
            at: &[("pages", "huge")],
            goal: 0.67,
        },
        Claim {
            text: "A restore of the most memory takes no more than one and a half times as long \
                as one of 16 MiB",
            paper: None,
            metric: "restore_ms",
            system: System::Vascriu,
            than: Than::At(&[("size", "16M")]),
            at: &[("pages", "huge")],
            goal: 0.67,
        },
        Claim {
            text: "The memory step of a dump of 2 GiB takes no more than 10 times as long as of \
                16 MiB, which is 128 times less memory",
            paper: None,
            metric: "memory_dump_ms",
            system: System::Vascriu,
            than: Than::At(&[("size", "16M")]),
            at: &[("pages", "huge"), ("size", "2G")],
            goal: 0.1,
        },
        Claim {
            text: "The memory step of a restore of 2 GiB takes no more than 10 times as long as \
                of 16 MiB",
            paper: None,
            metric: "memory_restore_ms",
            system: System::Vascriu,
            than: Than::At(&[("size", "16M")]),
            at: &[("pages", "huge"), ("size", "2G")],
            goal: 0.1,
        },
    ],
    notes: &[
        "Each measurement has a new process, which fills its memory with a pattern of its own and \
         checks every word after the restore; a single bad page ends the run.",
        "Stock CRIU's restore is timed without a log. Its memory step is told by nothing but a log \
         of each step, so it is that of a second restore.",
        "vascriu-store restores a cold snapshot: one that is in the host's store only.",
        "vascriu-service is `vascriu serve`: the next CRIU is started when the last one has ended, \
         and is ready before the dump and the restore. That start is in no number, nor is in dump_cpu_ms \
         what that CRIU does.",
    ],
};

const fn with_service(
    text: &'static str,
    metric: &'static str,
    at: &'static [(&'static str, &'static str)],
    goal: f64,
) -> Claim {
    Claim {
        text,
        paper: None,
        metric,
        system: System::VascriuService,
        than: Than::System(System::CriuTmpfs),
        at,
        goal,
    }
}

impl Experiment for Size {
    fn definition(&self) -> &'static Definition {
        &DEFINITION
    }

    fn measure_here(&self, case: &Case) -> Result<Metrics> {
        let pages = case.point.word("pages")?.parse()?;
        let trial = trial::run(case.system, case.point.mib("size")?, pages)?;
        let mut measured = common::dump_and_restore(&trial.times);
        measured.extend(metrics([
            ("dump_cpu_ms", trial.times.dump_cpu_ms),
            ("drain_cpu_ms", ms(trial.drain_cpu)),
        ]));
        Ok(measured)
    }
}
