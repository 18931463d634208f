// SPDX-License-Identifier: GPL-2.0-only
//! Copies of one snapshot over several microVMs: what host memory they take.

use std::fs;
use std::ops::Range;
use std::time::Instant;

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::copies::Room;
use crate::frame::{
    Axis, Case, Claim, Definition, Experiment, Figure, Kind, Lab, Machine, Metric, Metrics, Than,
    Unit, metrics,
};
use crate::guest::Step;
use crate::procfs::inside;
use crate::subject::{self, DIR, Subject};
use crate::system::{Snapshot, System, ms};
use crate::workload::Pages;

pub(super) struct Fleet;

/// Name of the snapshot.
const NAME: &str = "fleet";

static DEFINITION: Definition = Definition {
    name: "fleet",
    title: "Copies over several microVMs",
    question: "How long does it take until copies of a service answer that are spread over \
        several microVMs of one host, and what host memory does each take once it has worked?",
    axes: &[
        Axis {
            name: "microvms",
            about: "microVMs that the copies are spread over",
            kind: Kind::Count("microVMs"),
            // The most first: so the warm-up warms all.
            quick: &["2", "1"],
            full: &["4", "1"],
        },
        Axis {
            name: "copies",
            about: "copies that run side by side",
            kind: Kind::Count("copies"),
            quick: &["4"],
            full: &["8"],
        },
        Axis {
            name: "size",
            about: "memory of the service",
            kind: Kind::Size,
            quick: &["16M"],
            full: &["64M", "256M"],
        },
    ],
    systems: &[System::CriuTmpfs, System::VascriuStored],
    metrics: &[
        Metric {
            name: "all_ms",
            about: "until all copies have answered a first request, one made after the other",
            unit: Unit::Ms,
        },
        Metric {
            name: "host_each_bytes",
            about: "what host memory grew by for each copy, once it has written to 1/16 of its \
                pages",
            unit: Unit::Bytes,
        },
    ],
    machine: Machine {
        mem: "4G",
        cpus: 1,
        image: None,
    },
    repeats: [1, 5],
    figures: &[
        Figure {
            title: "Until all copies answer",
            metric: "all_ms",
            x: "microvms",
            panels: Some("size"),
        },
        Figure {
            title: "Host memory of each copy, after work",
            metric: "host_each_bytes",
            x: "microvms",
            panels: Some("size"),
        },
    ],
    claims: &[
        Claim {
            text: "Copies over several microVMs take a fifth of the host memory",
            paper: None,
            metric: "host_each_bytes",
            system: System::VascriuStored,
            than: Than::System(System::CriuTmpfs),
            at: &[("microvms", "4")],
            goal: 5.0,
        },
        Claim {
            text: "They answer 5 times sooner",
            paper: None,
            metric: "all_ms",
            system: System::VascriuStored,
            than: Than::System(System::CriuTmpfs),
            at: &[("microvms", "4")],
            goal: 5.0,
        },
    ],
    notes: &[
        "vascriu-stored: the service is dumped once, in the first microVM, into the host's store, \
         from which the others restore it. criu-tmpfs has its images in a guest, so the service \
         is dumped in each microVM. The dumps are in no number.",
        "Each copy is restored in a PID and mount namespace of its own; its first request is a \
         signal, for which it draws a random number. The microVMs work one after the other: \
         all_ms is the sum of their times.",
        "Host memory is what the store's files and the monitors have, read when the guests have \
         given back what they freed. The snapshot is there before, the page tables and the \
         namespaces of the copies are in it.",
        "All memory of all copies is checked after they have written; a single bad page ends the \
         run.",
    ],
};

impl Experiment for Fleet {
    fn definition(&self) -> &'static Definition {
        &DEFINITION
    }

    fn measure(&self, lab: &mut Lab, case: &Case) -> Result<Metrics> {
        let system = case.system;
        let vms = case.point.count("microvms")?;
        let copies = case.point.count("copies")?;
        ensure!(vms > 0 && copies > 0, "there is nothing to do");
        let store = Turn::Store {
            system,
            size_mib: case.point.mib("size")?,
        };
        // Booted before host memory is read for the first time.
        lab.vm(vms - 1)?;
        let mut pids: Vec<i32> = Vec::new();
        for vm in those_that_store(system, vms) {
            pids.push(lab.vm(vm)?.ask(&Step::Fleet(store))?);
        }
        let pid = |vm: usize| pids[vm.min(pids.len() - 1)];
        let before = lab.settled_bytes()?;
        let mut all_ms = 0.0;
        for (vm, count) in shares(copies, vms).enumerate() {
            let make = Turn::Make {
                system,
                pid: pid(vm),
                count,
            };
            all_ms += lab.vm(vm)?.ask::<f64>(&Step::Fleet(make))?;
        }
        let grown = lab.settled_bytes()?.saturating_sub(before);
        for vm in 0..vms {
            let end = Turn::End { pid: pid(vm) };
            lab.vm(vm)?.ask::<()>(&Step::Fleet(end))?;
        }
        // Who has restored it has it in memory, too.
        let have = those_that_store(system, vms).end.max(vms.min(copies));
        for vm in 0..have {
            lab.vm(vm)?
                .ask::<()>(&Step::Fleet(Turn::Delete { system }))?;
        }
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        Ok(metrics([
            ("all_ms", all_ms),
            ("host_each_bytes", grown as f64 / copies as f64),
        ]))
    }
}

/// The microVMs that have a snapshot of their own.
fn those_that_store(system: System, vms: usize) -> Range<usize> {
    match system {
        System::VascriuStored => 0..1,
        _ => 0..vms,
    }
}

/// `copies` over `vms`, as evenly as it goes.
fn shares(copies: usize, vms: usize) -> impl Iterator<Item = usize> {
    (0..vms).map(move |i| copies / vms + usize::from(i < copies % vms))
}

/// What a microVM is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Turn {
    /// To dump a new service, which ends: its PID.
    Store {
        /// The system.
        system: System,
        /// Memory of the service.
        size_mib: usize,
    },
    /// To restore copies, to ask them, and to have them write: milliseconds until all answered.
    Make {
        /// The system.
        system: System,
        /// PID of the service when it was dumped.
        pid: i32,
        /// How many.
        count: usize,
    },
    /// To check the memory of all copies, and to end them: nothing.
    End {
        /// PID of the service when it was dumped.
        pid: i32,
    },
    /// To delete the snapshot: nothing.
    Delete {
        /// The system.
        system: System,
    },
}

/// Does what the host half asks for; the guest half.
///
/// # Errors
/// When that fails.
pub fn take(turn: Turn) -> Result<Value> {
    match turn {
        Turn::Store { system, size_mib } => Ok(json!(store(system, size_mib)?)),
        Turn::Make { system, pid, count } => Ok(json!(make(system, pid, count)?)),
        Turn::End { pid } => end(pid).map(|()| Value::Null),
        Turn::Delete { system } => {
            Snapshot::new(system, NAME)?.delete()?;
            Ok(Value::Null)
        }
    }
}

fn store(system: System, size_mib: usize) -> Result<i32> {
    subject::use_high_pids()?;
    let snapshot = Snapshot::new(system, NAME)?;
    let mut service = Subject::start(size_mib, Pages::Huge)?;
    snapshot.dump(service.pid)?;
    service.reap()?;
    snapshot.wait_until_stored()?;
    Ok(service.pid)
}

fn make(system: System, pid: i32, count: usize) -> Result<f64> {
    // Not there yet where another microVM had the service.
    fs::create_dir_all(DIR)?;
    let snapshot = Snapshot::new(system, NAME)?;
    let begun = Instant::now();
    for _ in 0..count {
        Subject::at(Room::restore(&snapshot.restoring())?.root()?).random()?;
    }
    let answered = begun.elapsed();
    // The copies outlive the program that made them.
    let copies = inside(pid)?;
    ensure!(
        copies.len() == count,
        "{} copies of {count} are there",
        copies.len()
    );
    for copy in copies {
        Subject::at(copy).write()?;
    }
    Ok(ms(answered))
}

fn end(pid: i32) -> Result<()> {
    let copies = inside(pid)?;
    for copy in &copies {
        Subject::at(*copy).check()?;
    }
    // With the init of a PID namespace, all in it end.
    for init in inside(1)? {
        kill(Pid::from_raw(init), Signal::SIGKILL)?;
    }
    copies.into_iter().try_for_each(subject::wait_until_gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_spread_evenly() {
        let of = |copies, vms| shares(copies, vms).collect::<Vec<_>>();
        assert_eq!(of(8, 4), [2, 2, 2, 2]);
        assert_eq!(of(8, 3), [3, 3, 2]);
        assert_eq!(of(1, 2), [1, 0]);
    }
}
