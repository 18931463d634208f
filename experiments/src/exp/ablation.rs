// SPDX-License-Identifier: GPL-2.0-only
//! Each mechanism switched off by itself.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::common;
use crate::criu::timed;
use crate::frame::{
    Axis, Case, Claim, Definition, Experiment, Figure, Kind, Lab, Metric, Metrics, Point, Than,
    Unit, metrics,
};
use crate::host::Scratch;
use crate::procfs::available_bytes;
use crate::subject::Subject;
use crate::system::{Dump, Snapshot, System, ms};
use crate::vas;
use crate::workload::{Access, Pages, Touch};

pub(super) struct Ablation;

/// Name of the snapshot.
const NAME: &str = "ablation";

/// All is as users have it.
const NOTHING: &str = "nothing";
/// The dump waits for the drain.
const BACKGROUND: &str = "background";
/// The snapshot stays in the guest.
const STORE: &str = "store";
/// The snapshot is in the store only when it is restored.
const HOT: &str = "hot";
/// The process has 4 KiB pages.
const HUGE: &str = "huge";
/// The guest's memory, and so the store, has 4 KiB pages on the host.
const HOST_HUGE: &str = "host-huge";
/// The restored process has a copy of its memory.
const SHARING: &str = "sharing";
/// CRIU logs each step.
const QUIET: &str = "quiet";
/// CRIU stops tasks by hardware breakpoints.
const NO_BREAKPOINTS: &str = "no-breakpoints";

const WITHOUT: &[&str] = &[
    NOTHING,
    BACKGROUND,
    STORE,
    HOT,
    HUGE,
    HOST_HUGE,
    SHARING,
    QUIET,
    NO_BREAKPOINTS,
];

/// In place of what has CRIU do without hardware breakpoints, for it takes only one: this one
/// changes only how it numbers shared memory (`FI_HUGE_ANON_SHMEM_ID`).
const WITH_BREAKPOINTS: (&str, &str) = ("CRIU_FAULT", "132");

static DEFINITION: Definition = Definition {
    name: "ablation",
    title: "Each mechanism off in turn",
    question: "What does each mechanism bring: what do a dump and a restore take without it, \
        where all others are as ever?",
    axes: &[
        Axis {
            name: "without",
            about: "what is switched off",
            kind: Kind::Word(WITHOUT),
            quick: WITHOUT,
            full: WITHOUT,
        },
        Axis {
            name: "size",
            about: "memory of the process",
            kind: Kind::Size,
            quick: &["32M"],
            full: &["256M"],
        },
    ],
    systems: &[System::CriuTmpfs, System::Vascriu],
    metrics: &[
        common::DUMP,
        common::RESTORE,
        common::FROZEN,
        common::MEMORY_DUMP,
        common::MEMORY_RESTORE,
        Metric {
            name: "memory_bytes",
            about: "guest memory that the snapshot and the restored process take, beyond that of \
                the process before",
            unit: Unit::Bytes,
        },
    ],
    machine: common::MACHINE,
    repeats: [1, 5],
    figures: &[
        Figure {
            title: "Dump",
            metric: "dump_ms",
            x: "without",
            panels: None,
        },
        Figure {
            title: "Restore",
            metric: "restore_ms",
            x: "without",
            panels: None,
        },
        Figure {
            title: "Time frozen",
            metric: "frozen_ms",
            x: "without",
            panels: None,
        },
        Figure {
            title: "Guest memory",
            metric: "memory_bytes",
            x: "without",
            panels: None,
        },
    ],
    claims: &[
        pays(
            "A drain in the background shortens the dump",
            "dump_ms",
            &[("without", BACKGROUND)],
        ),
        pays(
            "A hot snapshot shortens the restore",
            "restore_ms",
            &[("without", HOT)],
        ),
        pays(
            "Huge pages shorten the memory step of the dump",
            "memory_dump_ms",
            &[("without", HUGE)],
        ),
        pays(
            "Huge pages behind the guest's memory shorten the restore",
            "restore_ms",
            &[("without", HOST_HUGE)],
        ),
        pays(
            "Shared memory shortens the restore",
            "restore_ms",
            &[("without", SHARING)],
        ),
        pays(
            "Shared memory saves memory",
            "memory_bytes",
            &[("without", SHARING)],
        ),
        pays(
            "A quiet CRIU shortens the dump",
            "dump_ms",
            &[("without", QUIET)],
        ),
        pays(
            "A restore without hardware breakpoints is not slower",
            "restore_ms",
            &[("without", NO_BREAKPOINTS)],
        ),
    ],
    notes: &[
        "nothing is vascriu as users have it: a process with huge pages, a dump that drains to \
         the store in the background, a restore from the guest's memory when the drain is done. \
         criu-tmpfs, which is without all of it, is there for comparison, at nothing.",
        "background: dump --sync, which waits for the drain. store: dump --guest-only, which does \
         not drain. hot: the snapshot is evicted before the restore, so that its memory comes from \
         the store.",
        "huge: the process has 4 KiB pages: page tables are shared entry by entry, and the drain \
         copies where else it remaps. host-huge: a microVM of its own, whose memory and store are \
         a tmpfs with huge=never; the second measurement in it counts, when its programs are in \
         the page cache.",
        "sharing: there is no switch for it, so the restored process writes to each of its pages \
         at once, and restore and its memory step contain that. It so has a copy of all its memory; \
         page faults make it, 4 KiB at a time, which takes longer than a copy in one piece would.",
        "quiet: CRIU with -v4, as runc has it. no-breakpoints: with hardware breakpoints, which \
         simulated hosts with more than one vCPU may lose; this microVM has one.",
        "What cannot be switched off is not here: that images are packed into a VAS, that the \
         plugin guards tasks against a CRIU that is killed, and copy-on-write at the dump.",
        "Guest memory is by how much MemAvailable fell from before the dump, when there was the \
         process, to after the restore. Of stock CRIU's memory step of the restore there is only a \
         log, which would slow it: size has it. In the end the process checks all its memory; a \
         single bad page ends the run.",
    ],
};

/// What a mechanism brings: it with all of them is better than it without that one.
const fn pays(
    text: &'static str,
    metric: &'static str,
    without: &'static [(&'static str, &'static str)],
) -> Claim {
    Claim {
        text,
        paper: None,
        metric,
        system: System::Vascriu,
        than: Than::At(without),
        at: &[("without", NOTHING)],
        goal: 1.0,
    }
}

impl Experiment for Ablation {
    fn definition(&self) -> &'static Definition {
        &DEFINITION
    }

    fn fits(&self, system: System, point: &Point) -> bool {
        system == System::Vascriu || point.word("without").is_ok_and(|word| word == NOTHING)
    }

    fn measure(&self, lab: &mut Lab, case: &Case) -> Result<Metrics> {
        if case.point.word("without")? != HOST_HUGE {
            return lab.measure_in_guest(case);
        }
        let store = Scratch::with_small_pages()?;
        let mut lab = Lab::on(store, &DEFINITION, "ablation-small")?;
        // Once to have programs read.
        lab.measure_in_guest(case)?;
        lab.measure_in_guest(case)
    }

    fn measure_here(&self, case: &Case) -> Result<Metrics> {
        let without = case.point.word("without")?;
        let pages = match without {
            HUGE => Pages::Small,
            _ => Pages::Huge,
        };
        let mut process = Subject::start(case.point.mib("size")?, pages)?;
        let available = available_bytes()?;
        let (snapshot, dump) = dump(case.system, without, process.pid)?;
        process.reap()?;
        if without == HOT {
            snapshot.evict()?;
        }
        let (wall, memory) = restore(&snapshot, without)?;
        let mut process = Subject::at(process.pid);
        let copied = match without {
            SHARING => process.touch(Touch {
                percent: 100,
                access: Access::Write,
            })?,
            _ => Duration::ZERO,
        };
        let taken = available.saturating_sub(available_bytes()?);
        process.end_intact()?;
        snapshot.delete()?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let mut measured = metrics([
            ("dump_ms", ms(dump.wall)),
            ("restore_ms", ms(wall + copied)),
            ("frozen_ms", ms(dump.frozen)),
            ("memory_dump_ms", ms(dump.memory)),
            ("memory_bytes", taken as f64),
        ]);
        if let Some(memory) = memory {
            measured.insert("memory_restore_ms".into(), ms(memory + copied));
        }
        Ok(measured)
    }
}

/// Dumps the process, which ends, and waits until the snapshot is where it shall be.
fn dump(system: System, without: &str, pid: i32) -> Result<(Snapshot, Dump)> {
    if system == System::CriuTmpfs {
        let snapshot = Snapshot::new(system, NAME)?;
        let dump = snapshot.dump(pid)?;
        return Ok((snapshot, dump));
    }
    let (options, kept): (&[&str], _) = match without {
        BACKGROUND => (&["--sync"], "stored"),
        STORE => (&["--guest-only"], "hot"),
        QUIET => (&["-v4"], "draining"),
        _ => (&[], "draining"),
    };
    let mut command = vas::dumping(pid, NAME, options);
    with_breakpoints(&mut command, without);
    let (dump, _) = vas::dumped(&mut command, kept)?;
    let snapshot = match without {
        STORE => Snapshot::Vas(NAME.into()),
        _ => Snapshot::Stored(NAME.into()),
    };
    snapshot.wait_until_stored()?;
    Ok((snapshot, dump))
}

/// What the whole command took, and its memory step if it tells that.
fn restore(snapshot: &Snapshot, without: &str) -> Result<(Duration, Option<Duration>)> {
    let mut command = snapshot.restoring();
    with_breakpoints(&mut command, without);
    if without == QUIET {
        command.arg("-v4");
    }
    let restored = timed(&mut command)?;
    let memory = match snapshot {
        Snapshot::Vas(_) | Snapshot::Stored(_) => Some(vas::memory_restore(&restored.stdout)?),
        Snapshot::Stock(_) | Snapshot::Lazy(_) => None,
    };
    Ok((restored.wall, memory))
}

fn with_breakpoints(command: &mut Command, without: &str) {
    if without == NO_BREAKPOINTS {
        let (name, value) = WITH_BREAKPOINTS;
        command.env(name, value);
    }
}
