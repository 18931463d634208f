// SPDX-License-Identifier: GPL-2.0-only
//! Copies of one service: how soon they answer, and what memory each takes.

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};

use super::common;
use crate::copies::{Copy, Made};
use crate::frame::{
    Axis, Case, Claim, Definition, Experiment, Figure, Kind, Machine, Metric, Metrics, Point, Than,
    Unit, metrics,
};
use crate::procfs::available_bytes;
use crate::subject::{Subject, use_high_pids};
use crate::system::{Snapshot, System};
use crate::workload::{EVERY, Pages};

pub(super) struct Scaling;

/// The microVM's memory, less what its kernel needs and a snapshot of the largest service.
const ROOM_MIB: usize = 8 << 10;
/// Name of the snapshot.
const NAME: &str = "scaling";

static DEFINITION: Definition = Definition {
    name: "scaling",
    title: "Container instance scaling (paper)",
    question: "How long does it take until N copies of a service with data answer, and how much \
        memory does each take, once it has worked?",
    axes: &[
        Axis {
            name: "parallel",
            about: "copies that are made at a time",
            kind: Kind::Count("copies"),
            quick: &["1", "4"],
            full: &["1", "8"],
        },
        Axis {
            name: "copies",
            about: "copies that run side by side",
            kind: Kind::Count("copies"),
            quick: &["1", "5"],
            full: &["1", "10", "30", "100"],
        },
        Axis {
            name: "size",
            about: "memory of the service",
            kind: Kind::Size,
            quick: &["16M"],
            full: &["16M", "256M"],
        },
    ],
    systems: &[
        System::CriuTmpfs,
        System::ColdStart,
        System::Vascriu,
        System::VascriuClone,
    ],
    metrics: &[
        common::ALL,
        common::EACH,
        common::LAST,
        Metric {
            name: "memory_each_bytes",
            about: "what each copy takes of the guest's memory, once it has written to 1/16 of \
                its pages",
            unit: Unit::Bytes,
        },
        Metric {
            name: "memory_idle_bytes",
            about: "the same before it has written anything",
            unit: Unit::Bytes,
        },
    ],
    machine: Machine {
        mem: "10G",
        cpus: 1,
        image: None,
    },
    repeats: [2, 3],
    figures: &[
        Figure {
            title: "Until all copies answer",
            metric: "all_ms",
            x: "copies",
            panels: Some("size"),
        },
        Figure {
            title: "One after the other, and side by side",
            metric: "all_ms",
            x: "copies",
            panels: Some("parallel"),
        },
        Figure {
            title: "Memory of each copy, after work",
            metric: "memory_each_bytes",
            x: "copies",
            panels: Some("size"),
        },
    ],
    claims: &[
        Claim {
            text: "Copies of a large service answer 9 times sooner",
            paper: Some("9x"),
            metric: "all_ms",
            system: System::VascriuClone,
            than: Than::System(System::CriuTmpfs),
            at: &[("parallel", "1"), ("copies", "30"), ("size", "256M")],
            goal: 9.0,
        },
        Claim {
            text: "A copy takes less memory",
            paper: None,
            metric: "memory_each_bytes",
            system: System::VascriuClone,
            than: Than::System(System::CriuTmpfs),
            at: &[("parallel", "1"), ("copies", "30"), ("size", "256M")],
            goal: 1.0,
        },
        Claim {
            text: "The last of many copies takes no longer than the only one, by more than a \
                quarter",
            paper: None,
            metric: "last_ms",
            system: System::VascriuClone,
            than: Than::At(&[("copies", "1")]),
            at: &[("parallel", "1"), ("size", "16M")],
            goal: 0.8,
        },
        Claim {
            text: "Made side by side, copies answer no later than one after the other",
            paper: None,
            metric: "all_ms",
            system: System::VascriuClone,
            than: Than::At(&[("parallel", "1")]),
            at: &[("size", "16M")],
            goal: 1.0,
        },
    ],
    notes: &[
        "The service is a process with a pattern in its memory, of huge pages. Its first request \
         is a signal, for which it draws a random number; the answer is looked for every 5 ms.",
        "Copies are made one after the other where parallel is 1, else so many at a time: a copy \
         is begun when another one has answered. cold-start starts the service anew, which fills \
         its memory; criu-tmpfs and vascriu restore one snapshot again and again, each time in a \
         new PID and mount namespace, which has an init, and is asked then; vascriu-clone makes \
         all by one command (-P), which makes namespaces, too, and then asks one after the other.",
        "The microVM has one vCPU, as a simulated host has one CPU: side by side is shorter only \
         by what copies wait for.",
        "The dump is in no number. Memory is what MemAvailable fell by, by the number of copies: \
         namespaces, their inits and page tables are in it, the snapshot is not.",
        "All memory of all copies is checked after they have written, and of vascriu-clone that \
         no two drew the same random number; anything wrong ends the run.",
        "What does not fit into the microVM's memory is left out: 100 copies of 256 MiB that \
         share nothing.",
    ],
};

impl Experiment for Scaling {
    fn definition(&self) -> &'static Definition {
        &DEFINITION
    }

    fn fits(&self, system: System, point: &Point) -> bool {
        // Settings that are no numbers are refused elsewhere.
        let all = |point: &Point| Some(point.count("copies").ok()? * point.mib("size").ok()?);
        let shared = matches!(system, System::Vascriu | System::VascriuClone);
        let fits = shared || all(point).is_none_or(|mib| mib <= ROOM_MIB);
        // Of fewer copies as many at a time are all of them.
        let differs = match (point.count("parallel"), point.count("copies")) {
            (Ok(parallel), Ok(copies)) => parallel == 1 || parallel <= copies,
            _ => true,
        };
        fits && differs
    }

    fn measure_here(&self, case: &Case) -> Result<Metrics> {
        let count = case.point.count("copies")?;
        let parallel = case.point.count("parallel")?;
        ensure!(count > 0 && parallel > 0, "no copies were asked for");
        let size_mib = case.point.mib("size")?;
        let snapshot = snapshot(case.system, size_mib)?;
        let before = available_bytes()?;
        let taken_by_each = || anyhow::Ok(before.saturating_sub(available_bytes()?) / count as u64);

        let made = make(case.system, snapshot.as_ref(), size_mib, [count, parallel])?;
        let idle = taken_by_each()?;
        let mut measured = common::times_of(&made);
        let mut copies = made.copies;
        work(&mut copies, size_mib)?;
        let worked = taken_by_each()?;
        let mut all = copies.iter_mut();
        all.try_for_each(|copy| copy.subject.check().context("a copy"))?;
        let distinct = made.answers.iter().collect::<HashSet<_>>().len() == count;
        ensure!(
            distinct || case.system != System::VascriuClone,
            "two copies drew the same random number"
        );
        copies.into_iter().try_for_each(Copy::end)?;
        snapshot.map_or(Ok(()), |snapshot| snapshot.delete())?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        measured.extend(metrics([
            ("memory_each_bytes", worked as f64),
            ("memory_idle_bytes", idle as f64),
        ]));
        Ok(measured)
    }
}

/// A snapshot of the service, if the system needs one.
fn snapshot(system: System, size_mib: usize) -> Result<Option<Snapshot>> {
    if system == System::ColdStart {
        return Ok(None);
    }
    // The restores' own processes must not have its PID.
    use_high_pids()?;
    let snapshot = Snapshot::new(system, NAME)?;
    let mut service = Subject::start(size_mib, Pages::Huge)?;
    snapshot.dump(service.pid)?;
    service.reap()?;
    Ok(Some(snapshot))
}

fn make(
    system: System,
    snapshot: Option<&Snapshot>,
    size_mib: usize,
    [count, parallel]: [usize; 2],
) -> Result<Made> {
    let ask = |copy: &mut Subject, _| copy.random();
    if system == System::VascriuClone {
        return Made::cloned(NAME, count, parallel, ask);
    }
    let next = |number| match snapshot {
        Some(snapshot) => Copy::restore(&snapshot.restoring()),
        None => {
            let name = format!("service-{number}");
            Subject::start_apart(size_mib, Pages::Huge, &name).map(Copy::from)
        }
    };
    Made::each(count, parallel, next, ask)
}

/// Has each copy write to its share of its pages.
fn work(copies: &mut [Copy], size_mib: usize) -> Result<()> {
    let share = (size_mib << 8).div_ceil(EVERY) as u64;
    for copy in copies {
        let written = copy.subject.write()?;
        ensure!(written >= share, "a copy wrote to {written} pages only");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(parallel: &str, copies: &str, size: &str) -> Point {
        let values = [("parallel", parallel), ("copies", copies), ("size", size)];
        Point(values.map(|(a, v)| (a.into(), v.into())).into())
    }

    #[test]
    fn what_shares_nothing_must_fit_into_the_microvm() {
        for system in [System::CriuTmpfs, System::ColdStart] {
            assert!(Scaling.fits(system, &point("1", "30", "256M")));
            assert!(!Scaling.fits(system, &point("1", "100", "256M")));
        }
        for (copies, size) in [("100", "256M"), ("1000", "16M")] {
            assert!(Scaling.fits(System::VascriuClone, &point("1", copies, size)));
        }
    }

    #[test]
    fn no_more_are_made_at_a_time_than_there_are() {
        let fits = |parallel, copies| {
            let point = point(parallel, copies, "16M");
            Scaling.fits(System::VascriuClone, &point)
        };
        assert!(fits("1", "1") && fits("4", "4") && fits("4", "5"));
        assert!(!fits("4", "1"));
    }
}
