// SPDX-License-Identifier: GPL-2.0-only
//! The same comparison on one level of emulation, on two, and on hardware: how far emulation
//! bends the ratios.

use anyhow::Result;

use super::common;
use crate::frame::{
    Axis, Case, Claim, Definition, Experiment, Figure, Kind, Lab, Metrics, Point, Than,
};
use crate::system::System;
use crate::trial;
use crate::workload::Pages;

pub(super) struct Validity;

const HARDWARE: &str = "hardware";
const ONE: &str = "one";
const TWO: &str = "two";

static DEFINITION: Definition = Definition {
    name: "validity",
    title: "Validity",
    question: "How far does emulation bend the ratios: does the same comparison come out alike on \
        one level of emulation, on two, and on real hardware?",
    axes: &[
        Axis {
            name: "levels",
            about: "levels of emulation; hardware is none",
            kind: Kind::Word(&[HARDWARE, ONE, TWO]),
            quick: &[HARDWARE, ONE, TWO],
            full: &[HARDWARE, ONE, TWO],
        },
        Axis {
            name: "size",
            about: "memory of the process",
            kind: Kind::Size,
            quick: &["32M"],
            full: &["64M", "256M"],
        },
        common::PAGES,
    ],
    systems: &[System::CriuTmpfs, System::Vascriu],
    metrics: &[
        common::DUMP,
        common::RESTORE,
        common::MEMORY_DUMP,
        common::MEMORY_RESTORE,
        common::FROZEN,
    ],
    machine: common::MACHINE,
    repeats: [2, 5],
    figures: &[
        figure("Dump", "dump_ms"),
        figure("Restore", "restore_ms"),
        figure("The memory step of the dump", "memory_dump_ms"),
        figure("The memory step of the restore", "memory_restore_ms"),
    ],
    claims: &[
        Claim {
            text: "The memory step of a dump is 100 times faster, on hardware",
            at: AT_HARDWARE,
            ..MEMORY_DUMP
        },
        Claim {
            text: "The memory step of a dump is 100 times faster, on one level",
            at: AT_ONE,
            ..MEMORY_DUMP
        },
        Claim {
            text: "The memory step of a dump is 100 times faster, on two levels",
            at: AT_TWO,
            ..MEMORY_DUMP
        },
        Claim {
            text: "The memory step of a restore is 100 times faster, on hardware",
            at: AT_HARDWARE,
            ..MEMORY_RESTORE
        },
        Claim {
            text: "The memory step of a restore is 100 times faster, on one level",
            at: AT_ONE,
            ..MEMORY_RESTORE
        },
        Claim {
            text: "The memory step of a restore is 100 times faster, on two levels",
            at: AT_TWO,
            ..MEMORY_RESTORE
        },
        Claim {
            text: "A snapshot is 10 times faster, on hardware",
            at: AT_HARDWARE,
            ..SNAPSHOT
        },
        Claim {
            text: "A snapshot is 10 times faster, on one level",
            at: AT_ONE,
            ..SNAPSHOT
        },
        Claim {
            text: "A snapshot is 10 times faster, on two levels",
            at: AT_TWO,
            ..SNAPSHOT
        },
        Claim {
            text: "A restore is 9 times faster, on hardware",
            at: AT_HARDWARE,
            ..RESTORE
        },
        Claim {
            text: "A restore is 9 times faster, on one level",
            at: AT_ONE,
            ..RESTORE
        },
        Claim {
            text: "A restore is 9 times faster, on two levels",
            at: AT_TWO,
            ..RESTORE
        },
    ],
    notes: &[
        "one: the guest's kernel and image run in QEMU, which emulates all of the machine (TCG): \
         processes directly on the simulated host, in the guest's image. two: the same in a \
         microVM on the simulated host, whose hardware virtualization (SVM, nested paging) QEMU \
         emulates, too. hardware: in a microVM on this host's KVM, whatever that runs on.",
        "What runs is the same on all levels: programs, kernel and image, on one CPU; the run makes \
         sure of the kernel and of CRIU's version. On level one there is the simulated host's \
         memory instead of the microVM's, and an idle microVM beside.",
        "How to read it: what the emulation of virtualization alone makes slower or faster differs \
         between one and two. Where a ratio is about the same on both, it does not come from \
         there. It may still come from what both have in common, the emulation of the CPU: copies \
         and page faults cost other times than in hardware, and not by the same factor. Only \
         hardware tells.",
        "So a verdict on a level supports the paper's claim on this level, and a claim that is \
         reached on one level and missed on another is one that the simulated host cannot decide.",
        "A host has hardware or one and two; what it does not have is left out, and its claims are \
         not measured. For all three beside each other, measure with --hw kvm and with --hw sim \
         into two folders, and make the report of a third with both samples files as one (cat).",
        "Before the first measurement of a system on a level the same is done with 1 MiB, and not \
         counted. Each measurement has a new process, which checks every word after each restore; \
         a single bad page ends the run.",
        "Stock CRIU's restore is timed without a log; its memory step is that of a second restore, \
         with one.",
    ],
};

const fn figure(title: &'static str, metric: &'static str) -> Figure {
    Figure {
        title,
        metric,
        x: "levels",
        panels: Some("pages"),
    }
}

const AT_HARDWARE: &[(&str, &str)] = &[("levels", HARDWARE), ("pages", "huge")];
const AT_ONE: &[(&str, &str)] = &[("levels", ONE), ("pages", "huge")];
const AT_TWO: &[(&str, &str)] = &[("levels", TWO), ("pages", "huge")];

const MEMORY_DUMP: Claim = claim("memory_dump_ms", "100x", 100.0);
const MEMORY_RESTORE: Claim = claim("memory_restore_ms", "100x", 100.0);
const SNAPSHOT: Claim = claim("dump_ms", "10x", 10.0);
const RESTORE: Claim = claim("restore_ms", "9x", 9.0);

/// What the paper claims of a metric; what it is called, and where it is judged, is told by each
/// level.
const fn claim(metric: &'static str, paper: &'static str, goal: f64) -> Claim {
    Claim {
        text: "",
        paper: Some(paper),
        metric,
        system: System::Vascriu,
        than: Than::System(System::CriuTmpfs),
        at: &[],
        goal,
    }
}

impl Experiment for Validity {
    fn definition(&self) -> &'static Definition {
        &DEFINITION
    }

    fn fits_host(&self, host: &str, point: &Point) -> bool {
        let is_hardware = point.0.get("levels").is_some_and(|level| level == HARDWARE);
        is_hardware == (host == "kvm")
    }

    fn measure(&self, lab: &mut Lab, case: &Case) -> Result<Metrics> {
        match case.point.word("levels")? {
            ONE => lab.measure_on_host(case),
            _ => lab.measure_in_guest(case),
        }
    }

    fn measure_here(&self, case: &Case) -> Result<Metrics> {
        let once = |size_mib, pages| trial::run(case.system, size_mib, pages);
        let warm_up = || once(1, Pages::Small).map(drop);
        common::warm_up(&case.system.to_string(), warm_up)?;
        let trial = once(case.point.mib("size")?, case.point.word("pages")?.parse()?)?;
        Ok(common::dump_and_restore(&trial.times))
    }
}
