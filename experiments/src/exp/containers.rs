// SPDX-License-Identifier: GPL-2.0-only
//! Redis in a container, through each engine.

use anyhow::{Result, bail};

use super::common;
use crate::engines::{self, Engine, Round};
use crate::frame::{
    Axis, Case, Claim, Definition, Experiment, Figure, Kind, Machine, Metric, Metrics, Than, Unit,
    metrics,
};
use crate::system::{System, ms};

pub(super) struct Containers;

static DEFINITION: Definition = Definition {
    name: "containers",
    title: "Containers end to end (the paper's title)",
    question: "How long do a checkpoint and a restore of Redis take as users of an engine see \
        them, by engine and by size of the data?",
    axes: &[
        Axis {
            name: "engine",
            about: "what runs Redis; process is none",
            kind: Kind::Word(engines::NAMES),
            quick: engines::NAMES,
            full: engines::NAMES,
        },
        Axis {
            name: "size",
            about: "data in Redis",
            kind: Kind::Size,
            quick: &["16M"],
            full: &["16M", "64M", "128M"],
        },
    ],
    systems: &[System::CriuTmpfs, System::Vascriu],
    metrics: &[
        Metric {
            name: "checkpoint_ms",
            about: "the engine's whole command for the checkpoint",
            unit: Unit::Ms,
        },
        Metric {
            name: "restore_ms",
            about: "the engine's whole command for the restore",
            unit: Unit::Ms,
        },
        Metric {
            name: "first_answer_ms",
            about: "from the beginning of the restore until Redis answers a client that asks at \
                its end",
            unit: Unit::Ms,
        },
    ],
    machine: Machine {
        mem: "4G",
        cpus: 1,
        image: Some("containers"),
    },
    repeats: [1, 3],
    figures: &[
        Figure {
            title: "Checkpoint",
            metric: "checkpoint_ms",
            x: "size",
            panels: Some("engine"),
        },
        Figure {
            title: "Restore, to the first answer",
            metric: "first_answer_ms",
            x: "size",
            panels: Some("engine"),
        },
    ],
    claims: &[
        Claim {
            text: "A snapshot of a container is faster by Docker",
            paper: Some("10x"),
            metric: "checkpoint_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("engine", "docker")],
            goal: 10.0,
        },
        Claim {
            text: "A container is restored faster by Docker",
            paper: Some("9x"),
            metric: "restore_ms",
            system: System::Vascriu,
            than: Than::System(System::CriuTmpfs),
            at: &[("engine", "docker")],
            goal: 9.0,
        },
    ],
    notes: &[
        "Each measurement has a new Redis; its data is compared after the restore, and a \
         difference ends the run. Before the first of an engine in a microVM the same is done \
         with 1 MiB, and not counted: its programs are then in the page cache.",
        "vascriu is the engine after `vascriu enable`, criu-tmpfs the same engine after `vascriu \
         disable`. All files are on tmpfs, so stock CRIU's images are, too.",
        "Engines choose CRIU's options, its log among them: runc, and with it Docker, logs each \
         step, for either system. The process is without.",
        "What engines checkpoint by vascriu also goes to the snapshot store, in the background: \
         beside the restore, which may be the slower for it. The process's stays in the guest.",
        "runc, containerd and Podman give Redis the guest's own network, Docker one of its own.",
        "containerd's checkpoint (ctr container checkpoint) has what the container wrote to its \
         files, too; the container goes on, and is removed before the restore, which makes a new \
         one. That is in no number.",
    ],
};

impl Experiment for Containers {
    fn definition(&self) -> &'static Definition {
        &DEFINITION
    }

    fn measure_here(&self, case: &Case) -> Result<Metrics> {
        let name = case.point.word("engine")?;
        let mut engine = engines::find(name)?;
        common::warm_up(name, || once(&mut *engine, case.system, 1).map(drop))?;
        let round = once(&mut *engine, case.system, case.point.mib("size")?)?;
        Ok(metrics([
            ("checkpoint_ms", ms(round.checkpoint)),
            ("restore_ms", ms(round.restore)),
            ("first_answer_ms", ms(round.answer)),
        ]))
    }
}

/// A new Redis with so much data, checkpointed and restored.
fn once(engine: &mut dyn Engine, system: System, size_mib: usize) -> Result<Round> {
    let expected = engines::begin(engine, size_mib)?;
    let round = engines::round(engine, system, &expected)?;
    engine.remove()?;
    if let Some(differs) = &round.differs {
        bail!("{differs}");
    }
    Ok(round)
}
