// SPDX-License-Identifier: GPL-2.0-only
//! What a process costs besides its memory.

use anyhow::{Result, ensure};

use super::common;
use crate::criu::timed;
use crate::frame::{
    Axis, Case, Claim, Definition, Experiment, Figure, Kind, Metrics, Point, Than, metrics,
};
use crate::subject::{NAMESPACES, Subject};
use crate::system::{Snapshot, System, ms};
use crate::workload::Pages;

pub(super) struct Fixed;

const IN_NAMESPACES: &str = "namespaces";
const WHAT: &[&str] = &["threads", "descriptors", "vmas", "processes", IN_NAMESPACES];
/// Memory of the process, in MiB.
const SIZE: usize = 16;

static DEFINITION: Definition = Definition {
    name: "fixed",
    title: "Fixed cost",
    question: "What do a dump and a restore of a small process take that has many of something \
        else than memory?",
    axes: &[
        Axis {
            name: "what",
            about: "what the process has many of",
            kind: Kind::Word(WHAT),
            quick: WHAT,
            full: WHAT,
        },
        Axis {
            name: "count",
            about: "how many",
            kind: Kind::Count("of them"),
            quick: &["3", "100"],
            full: &["1", "3", "100", "1000"],
        },
    ],
    systems: &[System::CriuTmpfs, System::Vascriu],
    metrics: &[common::DUMP, common::RESTORE, common::FROZEN],
    machine: common::MACHINE,
    repeats: [1, 3],
    figures: &[
        Figure {
            title: "Dump of a process with many",
            metric: "dump_ms",
            x: "count",
            panels: Some("what"),
        },
        Figure {
            title: "Restore of a process with many",
            metric: "restore_ms",
            x: "count",
            panels: Some("what"),
        },
    ],
    claims: &[
        Claim {
            text: "The dump of a tree of many processes is not slower",
            paper: None,
            metric: "dump_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("what", "processes")],
            goal: 1.0,
        },
        Claim {
            text: "The restore of a tree of many processes is not slower",
            paper: None,
            metric: "restore_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("what", "processes")],
            goal: 1.0,
        },
        Claim {
            text: "The restore of many VMAs is not slower",
            paper: None,
            metric: "restore_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("what", "vmas")],
            goal: 1.0,
        },
        Claim {
            text: "The dump of a process in namespaces of its own is not slower",
            paper: None,
            metric: "dump_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("what", IN_NAMESPACES)],
            goal: 1.0,
        },
        Claim {
            text: "The restore of a process in namespaces of its own is not slower",
            paper: None,
            metric: "restore_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("what", IN_NAMESPACES)],
            goal: 1.0,
        },
    ],
    notes: &[
        "The process has 16 MiB of 4 KiB pages. Child processes do not share them, so that memory \
         does not grow with their number; each has a page of its own, and what any program has.",
        "Threads have a stack of 64 KiB each; descriptors are of one file, each at a position of \
         its own; VMAs have one page each, every second one read-only.",
        "Of namespaces there are three kinds: UTS, IPC (2) and network (3), with a loopback only. \
         A process with mounts and PIDs of its own is a container: see containers.",
        "After the restore each of them is asked whether it is as it was; one that is not ends the \
         run.",
    ],
};

impl Experiment for Fixed {
    fn definition(&self) -> &'static Definition {
        &DEFINITION
    }

    fn fits(&self, _: System, point: &Point) -> bool {
        let (what, count) = (point.word("what"), point.count("count"));
        !what.is_ok_and(|what| what == IN_NAMESPACES) || count.is_ok_and(|n| n <= NAMESPACES.len())
    }

    fn measure_here(&self, case: &Case) -> Result<Metrics> {
        let what = case.point.word("what")?;
        let count = case.point.count("count")?;
        let snapshot = Snapshot::new(case.system, "fixed")?;
        let mut subject = if what == IN_NAMESPACES {
            Subject::start_in_namespaces(SIZE, Pages::Small, count)?
        } else {
            Subject::start_with(SIZE, Pages::Small, Some((what.parse()?, count)))?
        };
        let dump = snapshot.dump(subject.pid)?;
        subject.reap()?;
        let restore = timed(&mut snapshot.restoring())?;
        let bad = subject.count_bad_pages()?;
        ensure!(
            bad == 0,
            "{bad} {what} or pages are not as they were before the dump"
        );
        subject.end()?;
        snapshot.delete()?;
        Ok(metrics([
            ("dump_ms", ms(dump.wall)),
            ("restore_ms", ms(restore.wall)),
            ("frozen_ms", ms(dump.frozen)),
        ]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_only_so_many_kinds_of_namespaces() {
        let fits = |what: &str, count: &str| {
            let values = [("what", what), ("count", count)];
            Fixed.fits(System::Vascriu, &Point::default().with(&values))
        };
        assert!(fits("namespaces", "3") && fits("threads", "1000"));
        assert!(!fits("namespaces", "100"));
    }
}
