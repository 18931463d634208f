// SPDX-License-Identifier: GPL-2.0-only
//! Made-up experiments and samples, for the tests of all parts of the report.

use super::Section;
use super::analysis::Results;
use crate::frame::provenance::Provenance;
use crate::frame::samples::{Line, Sample};
use crate::frame::{
    Axis, Case, Claim, Definition, Figure, Kind, Machine, Metric, Point, Than, Unit, metrics,
};
use crate::system::System;

pub(super) const SYSTEMS: &[System] = &[
    System::CriuTmpfs,
    System::Vascriu,
    System::VascriuStore,
    System::CriuDisk,
];

/// An experiment with an axis `x` of this kind, and an axis `mode`; texts with what HTML, SVG and
/// Markdown have a meaning for.
pub(super) fn definition(kind: Kind, unit: Unit) -> &'static Definition {
    let axis = |name, about, kind| Axis {
        name,
        about,
        kind,
        quick: &[],
        full: &[],
    };
    let axes = [
        axis("x", "what <is> | \"varied\" & *how*", kind),
        axis("mode", "its mode", Kind::Word(&["plain", "fancy"])),
    ];
    let metrics = [Metric {
        name: "m",
        about: "what a rather long text says that a figure must not let run out of its frame, \
            however long it may become when someone explains all of what is in the number",
        unit,
    }];
    Box::leak(Box::new(Definition {
        name: "made-up",
        title: "<b>Made up</b> & *done*",
        question: "Is a < b | c?",
        axes: Box::leak(Box::new(axes)),
        systems: SYSTEMS,
        metrics: Box::leak(Box::new(metrics)),
        machine: Machine {
            mem: "1G",
            cpus: 1,
            image: Some("containers"),
        },
        repeats: [1, 1],
        figures: &[
            Figure {
                title: "All",
                metric: "m",
                x: "x",
                panels: Some("mode"),
            },
            Figure {
                title: "The last mode",
                metric: "m",
                x: "x",
                panels: None,
            },
        ],
        claims: &[
            Claim {
                text: "<i>Twice</i> as good",
                paper: Some("2x"),
                metric: "m",
                system: System::Vascriu,
                than: Than::System(System::CriuTmpfs),
                at: &[("mode", "plain")],
                goal: 2.0,
            },
            Claim {
                text: "It stays <i>flat</i>",
                paper: None,
                metric: "m",
                system: System::Vascriu,
                than: Than::At(&[("x", "1")]),
                at: &[("mode", "plain")],
                goal: 0.5,
            },
        ],
        notes: &["A note with <tags> & `ticks`."],
    }))
}

/// A run from which samples are.
pub(super) fn run() -> Line {
    Line::Run(Box::new(Provenance {
        cpu: "<CPU>".into(),
        host: "sim".into(),
        ..Provenance::default()
    }))
}

/// One sample.
pub(super) fn sample(system: System, x: &str, mode: &str, repeat: u32, m: f64) -> Line {
    let point = [("x", x), ("mode", mode)];
    Line::Sample(Sample {
        case: Case {
            experiment: "made-up".into(),
            system,
            point: Point(point.map(|(a, v)| (a.to_owned(), v.to_owned())).into()),
            repeat,
        },
        metrics: metrics([("m", m)]),
        at_s: 0.0,
    })
}

/// Three samples of each system at each of these values; of one system ten times the other's.
pub(super) fn samples(values: &[&str]) -> Vec<Line> {
    let mut lines = vec![run()];
    for mode in ["plain", "fancy"] {
        for (at, value) in (1u32..).zip(values) {
            for (number, system) in (0u32..).zip(SYSTEMS) {
                for repeat in 1..=3 {
                    let m = f64::from(at * 10u32.pow(number)) * (1.0 + 0.1 * f64::from(repeat));
                    lines.push(sample(*system, value, mode, repeat, m));
                }
            }
        }
    }
    lines
}

/// Results and figures of these lines.
pub(super) fn section(kind: Kind, unit: Unit, lines: Vec<Line>) -> Section {
    Section::of(Results::of(definition(kind, unit), lines).unwrap()).unwrap()
}
