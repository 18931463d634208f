//! What a process costs besides its memory.

use anyhow::{Result, ensure};

use super::common;
use crate::criu::timed;
use crate::frame::{Axis, Case, Claim, Definition, Experiment, Figure, Kind, Metrics, metrics};
use crate::subject::Subject;
use crate::system::{Snapshot, System, ms};
use crate::workload::Pages;

pub(super) struct Fixed;

const WHAT: &[&str] = &["threads", "descriptors", "vmas", "processes"];
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
            quick: &["10", "100"],
            full: &["10", "100", "1000"],
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
            than: System::CriuTmpfs,
            at: &[("what", "processes")],
            goal: 1.0,
        },
        Claim {
            text: "The restore of a tree of many processes is not slower",
            paper: None,
            metric: "restore_ms",
            system: System::Vascriu,
            than: System::CriuTmpfs,
            at: &[("what", "processes")],
            goal: 1.0,
        },
        Claim {
            text: "The restore of many VMAs is not slower",
            paper: None,
            metric: "restore_ms",
            system: System::Vascriu,
            than: System::CriuTmpfs,
            at: &[("what", "vmas")],
            goal: 1.0,
        },
    ],
    notes: &[
        "The process has 16 MiB of 4 KiB pages. Child processes do not share them, so that memory \
         does not grow with their number; each has a page of its own, and what any program has.",
        "Threads have a stack of 64 KiB each; descriptors are of one file, each at a position of \
         its own; VMAs have one page each, every second one read-only.",
        "After the restore each of them is asked whether it is as it was; one that is not ends the \
         run.",
    ],
};

impl Experiment for Fixed {
    fn definition(&self) -> &'static Definition {
        &DEFINITION
    }

    fn measure_here(&self, case: &Case) -> Result<Metrics> {
        let what = case.point.word("what")?.parse()?;
        let many = Some((what, case.point.count("count")?));
        let snapshot = Snapshot::new(case.system, "fixed")?;
        let mut subject = Subject::start_with(SIZE, Pages::Small, many)?;
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
