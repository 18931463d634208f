// SPDX-License-Identifier: GPL-2.0-only
//! What a restored process still has to pay when it touches its memory.

use std::time::Instant;

use anyhow::{Context, Result};

use super::common;
use crate::criu::timed;
use crate::frame::{
    Axis, Case, Claim, Definition, Experiment, Figure, Kind, Metric, Metrics, Point, Than, Unit,
    metrics,
};
use crate::procfs::available_bytes;
use crate::subject::Subject;
use crate::system::{Snapshot, System, ms};
use crate::workload::Touch;

pub(super) struct Bill;

const ACCESS: &[&str] = &["read", "write"];

/// Of a process that touches a share of its memory.
pub(super) const AXES: &[Axis] = &[
    Axis {
        name: "size",
        about: "memory of the process",
        kind: Kind::Size,
        quick: &["32M"],
        full: &["256M"],
    },
    common::PAGES,
    Axis {
        name: "access",
        about: "what it does to a page",
        kind: Kind::Word(ACCESS),
        quick: ACCESS,
        full: ACCESS,
    },
    Axis {
        name: "share",
        about: "how many of its pages it touches",
        kind: Kind::Count("%"),
        quick: &["10", "100"],
        full: &["1", "10", "100"],
    },
];

/// A metric over the share that is touched; a panel for each access.
pub(super) const fn by_share(title: &'static str, metric: &'static str) -> Figure {
    Figure {
        title,
        metric,
        x: "share",
        panels: Some("access"),
    }
}

static DEFINITION: Definition = Definition {
    name: "bill",
    title: "The bill afterwards",
    question: "What does a restore that copies nothing leave to pay for: when does the restored \
        process give its first answer, and when is it at full speed, by the share of its memory \
        that it touches?",
    axes: AXES,
    systems: &[
        System::CriuTmpfs,
        System::CriuLazy,
        System::Fork,
        System::Vascriu,
        System::VascriuStore,
    ],
    metrics: &[
        common::RESTORE,
        Metric {
            name: "touch_ms",
            about: "the first touch, by the process's own clock",
            unit: Unit::Ms,
        },
        common::AGAIN,
        Metric {
            name: "first_answer_ms",
            about: "from the restore's start to the process's answer after its first touch",
            unit: Unit::Ms,
        },
        Metric {
            name: "memory_bytes",
            about: "guest memory that the restore and the first touch took",
            unit: Unit::Bytes,
        },
    ],
    machine: common::MACHINE,
    repeats: [1, 3],
    figures: &[
        by_share(
            "From the restore's start to the first answer",
            "first_answer_ms",
        ),
        by_share("The first touch", "touch_ms"),
        by_share("Guest memory that it took in the end", "memory_bytes"),
    ],
    claims: &[
        Claim {
            text: "The first answer comes no later where all memory (4 KiB pages) is read",
            paper: None,
            metric: "first_answer_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("pages", "4k"), ("access", "read"), ("share", "100")],
            goal: 1.0,
        },
        Claim {
            text: "The first answer comes no later where all memory (4 KiB pages) is written to",
            paper: None,
            metric: "first_answer_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("pages", "4k"), ("access", "write"), ("share", "100")],
            goal: 1.0,
        },
        Claim {
            text: "The first answer comes no later where all memory (huge pages) is written to",
            paper: None,
            metric: "first_answer_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("pages", "huge"), ("access", "write"), ("share", "100")],
            goal: 1.0,
        },
    ],
    notes: &[
        "The process touches one word in each of so many of its 4 KiB pages, spread evenly: of \
         huge pages even one percent is a word in each.",
        "fork is a lower bound: what goes on is a child of the process, which lives on, and \
         nothing can be restored later; restore is its fork, asked for and answered.",
        "criu-lazy restores the same images by criu restore --lazy-pages: the process goes on at \
         once, and a daemon (criu lazy-pages, whose start is in restore) brings each page that it \
         touches, and the others beside.",
        "vascriu-store restores a cold snapshot: one that is in the host's store only.",
        "Guest memory is by how much MemAvailable fell from before the restore to after the first \
         touch; the snapshot, in stock CRIU's case its images, was there before.",
        "In the end the process, and of fork the parent, too, checks every word; a single bad \
         page ends the run.",
    ],
};

impl Experiment for Bill {
    fn definition(&self) -> &'static Definition {
        &DEFINITION
    }

    fn measure_here(&self, case: &Case) -> Result<Metrics> {
        let (mut original, touch) = start(&case.point)?;
        let snapshot = match case.system {
            System::Fork => None,
            system => Some(kill_into_snapshot(system, &mut original)?),
        };
        let available = available_bytes()?;
        let begun = Instant::now();
        let mut restored = match &snapshot {
            Some(snapshot) => timed(&mut snapshot.restoring()).map(|_| Subject::at(original.pid)),
            None => original.fork(),
        }?;
        let restore = begun.elapsed();
        let first = restored.touch(touch)?;
        let answered = begun.elapsed();
        let taken = available.saturating_sub(available_bytes()?);
        let again = restored.touch(touch)?;
        restored.end_intact()?;
        match snapshot {
            Some(snapshot) => snapshot.delete()?,
            None => {
                original.end_intact().context("the parent")?;
            }
        }
        Ok(metrics([
            ("restore_ms", ms(restore)),
            ("touch_ms", ms(first)),
            ("again_ms", ms(again)),
            ("first_answer_ms", ms(answered)),
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            ("memory_bytes", taken as f64),
        ]))
    }
}

/// A process, and what it shall touch, by a point of [`AXES`].
pub(super) fn start(point: &Point) -> Result<(Subject, Touch)> {
    let touch = Touch {
        percent: point.count("share")?,
        access: point.word("access")?.parse()?,
    };
    let subject = Subject::start(point.mib("size")?, point.word("pages")?.parse()?)?;
    Ok((subject, touch))
}

/// Dumps the process, which ends, by `system`; cold, where that has a store.
fn kill_into_snapshot(system: System, process: &mut Subject) -> Result<Snapshot> {
    let snapshot = Snapshot::new(system, "bill")?;
    snapshot.dump(process.pid)?;
    process.reap()?;
    snapshot.wait_until_stored()?;
    snapshot.evict()?;
    Ok(snapshot)
}
