// SPDX-License-Identifier: GPL-2.0-only
//! What a process pays that goes on after its dump, when it touches its memory.

use std::time::Instant;

use anyhow::{Context, Result};

use super::{bill, common};
use crate::criu::timed;
use crate::frame::{Case, Claim, Definition, Experiment, Metric, Metrics, Than, Unit, metrics};
use crate::procfs::available_bytes;
use crate::subject::Subject;
use crate::system::{CLOSED, Snapshot, System, ms};

pub(super) struct GoesOn;

static DEFINITION: Definition = Definition {
    name: "goes-on",
    title: "The bill of a process that goes on",
    question: "What does a dump that copies nothing leave to pay for, if the process goes on: \
        when does it give its first answer, and when is it at full speed again, by the share of \
        its memory that it touches?",
    axes: bill::AXES,
    systems: &[
        System::CriuTmpfs,
        System::Fork,
        System::Vascriu,
        System::VascriuStored,
    ],
    metrics: &[
        common::DUMP,
        Metric {
            name: "touch_ms",
            about: "the first touch after it, by the process's own clock",
            unit: Unit::Ms,
        },
        common::AGAIN,
        Metric {
            name: "first_answer_ms",
            about: "from the dump's start to the process's answer after its first touch",
            unit: Unit::Ms,
        },
        Metric {
            name: "memory_bytes",
            about: "guest memory that the snapshot and the first touch took",
            unit: Unit::Bytes,
        },
    ],
    machine: common::MACHINE,
    repeats: [1, 3],
    figures: &[
        bill::by_share(
            "From the dump's start to the first answer",
            "first_answer_ms",
        ),
        bill::by_share("The first touch", "touch_ms"),
        bill::by_share("Guest memory that it took in the end", "memory_bytes"),
    ],
    claims: &[
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
            text: "The first touch of all memory (4 KiB pages) is no slower than after a fork, \
                by more than a quarter",
            paper: None,
            metric: "touch_ms",
            system: System::Vascriu,
            than: Than::System(System::Fork),
            at: &[("pages", "4k"), ("access", "write"), ("share", "100")],
            goal: 0.8,
        },
    ],
    notes: &[
        "The process touches one word in each of so many of its 4 KiB pages, spread evenly: of \
         huge pages even one percent is a word in each.",
        "Stock CRIU has copied everything when the process goes on, to images, which are in its \
         guest memory here.",
        "fork is a lower bound: its child, which does nothing, is the snapshot; dump is the fork, \
         asked for and answered.",
        "vascriu-stored goes on while its snapshot drains to the host's store.",
        "In the end the process checks every word, and so does what is restored from the snapshot: \
         there nothing was touched. A single bad page ends the run.",
    ],
};

impl Experiment for GoesOn {
    fn definition(&self) -> &'static Definition {
        &DEFINITION
    }

    fn measure_here(&self, case: &Case) -> Result<Metrics> {
        let (mut process, touch) = bill::start(&case.point)?;
        let available = available_bytes()?;
        let begun = Instant::now();
        let taken = Taken::take(case.system, &mut process)?;
        let dump = begun.elapsed();
        let first = process.touch(touch)?;
        let answered = begun.elapsed();
        let took = available.saturating_sub(available_bytes()?);
        let again = process.touch(touch)?;
        process.check()?;
        taken.check(process)?;
        Ok(metrics([
            ("dump_ms", ms(dump)),
            ("touch_ms", ms(first)),
            ("again_ms", ms(again)),
            ("first_answer_ms", ms(answered)),
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            ("memory_bytes", took as f64),
        ]))
    }
}

/// The process as it was.
enum Taken {
    Snapshot(Snapshot),
    Child(Subject),
}

impl Taken {
    fn take(system: System, process: &mut Subject) -> Result<Self> {
        if system == System::Fork {
            return process.fork().map(Self::Child);
        }
        let snapshot = Snapshot::new(system, "goes-on")?;
        snapshot.take(process.pid)?;
        Ok(Self::Snapshot(snapshot))
    }

    /// Ends the process, and looks at what was taken of it.
    fn check(self, process: Subject) -> Result<()> {
        match self {
            Self::Snapshot(snapshot) => {
                let pid = process.pid;
                process.end()?;
                snapshot.wait_until_stored()?;
                // Of a dump that closes connections, of which there are none here.
                timed(snapshot.restoring().arg(CLOSED))?;
                Subject::at(pid).end_intact().context("what was dumped")?;
                snapshot.delete()
            }
            Self::Child(child) => {
                child.end_intact().context("the child")?;
                process.end()
            }
        }
    }
}
