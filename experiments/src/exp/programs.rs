// SPDX-License-Identifier: GPL-2.0-only
//! Real programs, each with its own protocol.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::common;
use crate::criu::timed;
use crate::frame::{
    Axis, Case, Claim, Definition, Experiment, Figure, Kind, Machine, Metric, Metrics, Point, Than,
    Unit, metrics,
};
use crate::program::{self, Program};
use crate::subject::wait_until_gone;
use crate::system::{Dump, Snapshot, System, ms};

pub(super) struct Programs;

static DEFINITION: Definition = Definition {
    name: "programs",
    title: "Real programs",
    question: "How long do a dump and a restore of real programs take, and when does the restored \
        one give its first answer, by program and by size of its data?",
    axes: &[
        Axis {
            name: "program",
            about: "what is snapshotted",
            kind: Kind::Word(program::NAMES),
            quick: program::NAMES,
            full: program::NAMES,
        },
        Axis {
            name: "size",
            about: "its data",
            kind: Kind::Size,
            quick: &["16M"],
            full: &["16M", "256M"],
        },
    ],
    systems: &[System::CriuTmpfs, System::Vascriu, System::VascriuStore],
    metrics: &[
        common::DUMP,
        common::RESTORE,
        common::FROZEN,
        Metric {
            name: "first_answer_ms",
            about: "from the restore's start to the first right answer to a new client",
            unit: Unit::Ms,
        },
        Metric {
            name: "image_bytes",
            about: "bytes of the image files",
            unit: Unit::Bytes,
        },
    ],
    machine: Machine {
        mem: "4G",
        cpus: 1,
        image: Some("programs"),
    },
    repeats: [1, 3],
    figures: &[
        Figure {
            title: "Dump",
            metric: "dump_ms",
            x: "program",
            panels: Some("size"),
        },
        Figure {
            title: "Restore, to the first answer",
            metric: "first_answer_ms",
            x: "program",
            panels: Some("size"),
        },
        Figure {
            title: "Image files",
            metric: "image_bytes",
            x: "program",
            panels: Some("size"),
        },
    ],
    claims: &[
        Claim {
            text: "The JVM's first answer comes earlier",
            paper: None,
            metric: "first_answer_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("program", "jvm")],
            goal: 2.0,
        },
        Claim {
            text: "memcached is frozen for a shorter time",
            paper: None,
            metric: "frozen_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("program", "memcached")],
            goal: 2.0,
        },
        Claim {
            text: "PostgreSQL's dump, whose data is shared memory, is not slower",
            paper: None,
            metric: "dump_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("program", "postgresql")],
            goal: 1.0,
        },
        Claim {
            text: "nginx's restore, which has next to no memory, is not slower",
            paper: None,
            metric: "restore_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("program", "nginx"), ("size", "16M")],
            goal: 1.0,
        },
    ],
    notes: &[
        "Each measurement has a new program. What it holds (a digest of all of it, by its own \
         protocol) is compared after the restore, and a difference ends the run. No client is \
         connected at the dump.",
        "vascriu-store restores a cold snapshot: one that is in the host's store only.",
        "PostgreSQL's data is in its shared buffers, and neither dump captures shared memory: CRIU \
         copies it for both, for vascriu into the packed images. Its System V segment, by which it \
         knows itself, can be dumped by any CRIU only with the IPC namespace that it is in, so it \
         is started in one of its own. Its client is psql, whose start is in the first answer.",
        "nginx has no data, and is measured at 16M only: a master and a worker that serve a file \
         of 64 KiB, which is on tmpfs and in no snapshot.",
        "The JVM is Debian's headless runtime with the serial collector and without performance \
         data in /tmp; Python has its data in a numpy array.",
        "Programs run in sessions of their own with files, not terminals, as their output.",
    ],
};

impl Experiment for Programs {
    fn definition(&self) -> &'static Definition {
        &DEFINITION
    }

    fn fits(&self, _system: System, point: &Point) -> bool {
        let is = |name: &str| point.word("program").is_ok_and(|program| program == name);
        !is("nginx") || point.mib("size").is_ok_and(|size| size == 16)
    }

    fn measure_here(&self, case: &Case) -> Result<Metrics> {
        let name = case.point.word("program")?;
        let program = program::find(name)?;
        let snapshot = Snapshot::new(case.system, "programs")?;
        let (pid, expected, dump) = dumped(program, name, case.point.mib("size")?, &snapshot)?;
        snapshot.wait_until_stored()?;
        snapshot.evict()?;
        let begun = Instant::now();
        let restore = timed(&mut snapshot.restoring())?;
        program.ask().context("after the restore")?;
        let answered = begun.elapsed();
        let now = program.state()?;
        ensure!(
            now == expected,
            "{name} has {now} after the restore, {expected} before the dump"
        );
        end(pid)?;
        snapshot.delete()?;
        Ok(metrics([
            ("dump_ms", ms(dump.wall)),
            ("restore_ms", ms(restore.wall)),
            ("frozen_ms", ms(dump.frozen)),
            ("first_answer_ms", ms(answered)),
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            ("image_bytes", dump.image_bytes as f64),
        ]))
    }
}

/// Has a new program dumped, which is then gone: the root of its tree, and what it held.
fn dumped(
    program: &dyn Program,
    name: &str,
    size_mib: usize,
    snapshot: &Snapshot,
) -> Result<(i32, String, Dump)> {
    let mut root = program::begin(program, name, size_mib)?;
    let pid = i32::try_from(root.id())?;
    program.ask()?;
    let expected = program.state()?;
    program::wait_until_idle(program, pid)?;
    let tree = program::tree(pid)?;
    let dump = snapshot
        .dump(pid)
        .with_context(|| format!("dump of {name}"))?;
    root.wait()?;
    // Their PIDs must be free for the restore.
    tree.into_iter().try_for_each(wait_until_gone)?;
    Ok((pid, expected, dump))
}

/// Ends a restored tree.
fn end(pid: i32) -> Result<()> {
    let tree = program::tree(pid)?;
    for &task in &tree {
        // One may have gone with its parent.
        let _ = kill(Pid::from_raw(task), Signal::SIGKILL);
    }
    tree.into_iter().try_for_each(wait_until_gone)
}
