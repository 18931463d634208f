// SPDX-License-Identifier: GPL-2.0-only
//! Dump and restore by the kind of the process's memory.

use anyhow::Result;

use super::common;
use crate::criu::timed;
use crate::frame::{
    Axis, Case, Claim, Definition, Experiment, Figure, Kind, Metrics, Than, metrics,
};
use crate::subject::Subject;
use crate::system::{Snapshot, System, ms};

pub(super) struct Kinds;

const PRIVATE: &str = "private";
const FILE: &str = "file";
const SHARED: &str = "shared";
const MEMFD: &str = "memfd";
const KINDS: &[&str] = &[PRIVATE, FILE, SHARED, MEMFD];

static DEFINITION: Definition = Definition {
    name: "kinds",
    title: "Kinds of memory",
    question: "How long do a dump and a restore take by what the process's memory is: private, of a \
        private mapping of a file, shared, or a memfd?",
    axes: &[
        Axis {
            name: "memory",
            about: "what its memory is",
            kind: Kind::Word(KINDS),
            quick: KINDS,
            full: KINDS,
        },
        Axis {
            name: "size",
            about: "how much",
            kind: Kind::Size,
            quick: &["16M"],
            full: &["16M", "64M", "256M"],
        },
    ],
    systems: &[System::CriuTmpfs, System::Vascriu],
    metrics: &[common::DUMP, common::RESTORE, common::FROZEN],
    machine: common::MACHINE,
    repeats: [1, 5],
    figures: &[figure("Dump", "dump_ms"), figure("Restore", "restore_ms")],
    claims: &[
        faster(
            "The dump of what was written of a file is 5 times faster",
            &[("memory", FILE)],
            "dump_ms",
            5.0,
        ),
        faster("So is its restore", &[("memory", FILE)], "restore_ms", 5.0),
        faster(
            "The dump of shared memory is not slower",
            &[("memory", SHARED)],
            "dump_ms",
            1.0,
        ),
        faster(
            "Nor is its restore",
            &[("memory", SHARED)],
            "restore_ms",
            1.0,
        ),
        faster(
            "The dump of a memfd is not slower",
            &[("memory", MEMFD)],
            "dump_ms",
            1.0,
        ),
        faster(
            "Nor is its restore",
            &[("memory", MEMFD)],
            "restore_ms",
            1.0,
        ),
    ],
    notes: &[
        "4 KiB pages, all written to. file: of a file on tmpfs, which is there before and after; \
         memfd: mapped, its descriptor closed.",
        "Shared memory is copied by both: by stock CRIU to images on tmpfs and from there, by \
         vascriu's plugin to a VAS and from there.",
        "In the end the process checks every word; a single bad page ends the run.",
    ],
};

const fn figure(title: &'static str, metric: &'static str) -> Figure {
    Figure {
        title,
        metric,
        x: "size",
        panels: Some("memory"),
    }
}

/// Than stock CRIU's, where its memory is so.
const fn faster(
    text: &'static str,
    at: &'static [(&'static str, &'static str)],
    metric: &'static str,
    goal: f64,
) -> Claim {
    Claim {
        text,
        paper: None,
        metric,
        system: System::Vascriu,
        than: Than::System(System::CriuTmpfs),
        at,
        goal,
    }
}

impl Experiment for Kinds {
    fn definition(&self) -> &'static Definition {
        &DEFINITION
    }

    fn measure_here(&self, case: &Case) -> Result<Metrics> {
        let snapshot = Snapshot::new(case.system, "kinds")?;
        let size = case.point.mib("size")?;
        let mut subject = Subject::start_of(size, case.point.word("memory")?)?;
        let dump = snapshot.dump(subject.pid)?;
        subject.reap()?;
        let restore = timed(&mut snapshot.restoring())?;
        Subject::at(subject.pid).end_intact()?;
        snapshot.delete()?;
        Ok(metrics([
            ("dump_ms", ms(dump.wall)),
            ("restore_ms", ms(restore.wall)),
            ("frozen_ms", ms(dump.frozen)),
        ]))
    }
}
