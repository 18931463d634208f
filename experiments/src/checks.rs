//! The goals of `make bench`, each reached or missed. They are ratios: absolute
//! times say nothing on an emulated machine.

use serde::{Deserialize, Serialize};

use crate::bench::{Row, Stored, clones, drain, remap};
use crate::stats::geometric_mean;
use crate::system::System;
use crate::times::Times;
use crate::workload::Pages;

/// A goal and what was measured of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What is compared.
    pub what: String,
    /// The measured ratio.
    pub measured: f64,
    /// The least or most it should be.
    pub target: f64,
    /// Whether more is better.
    pub at_least: bool,
    /// Whether the goal is reached.
    pub reached: bool,
}

impl std::fmt::Display for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verdict = if self.reached { "reached" } else { "MISSED " };
        let sign = if self.at_least { "≥" } else { "≤" };
        write!(
            f,
            "{verdict}  {}: {:.2}x (goal {sign} {}x)",
            self.what, self.measured, self.target
        )
    }
}

fn check(what: String, measured: f64, target: f64, at_least: bool) -> Check {
    let reached = if at_least {
        measured >= target
    } else {
        measured <= target
    };
    Check {
        what,
        measured,
        target,
        at_least,
        reached,
    }
}

/// Which time is compared, and its name.
type Column = (&'static str, fn(&Times) -> f64);

const DUMP: Column = ("dump", |t| t.dump_ms);
const RESTORE: Column = ("restore", |t| t.restore_ms);
const FROZEN: Column = ("time frozen of a dump", |t| t.frozen_ms);
const MEMORY_DUMP: Column = ("memory step of the dump", |t| t.memory_dump_ms);
const MEMORY_RESTORE: Column = ("memory step of the restore", |t| t.memory_restore_ms);

/// How often `of`'s time is `to`'s.
fn ratio(time: fn(&Times) -> f64, of: &Row, to: &Row) -> f64 {
    time(&of.times) / time(&to.times)
}

/// Size in MiB at which the speed goals are set.
const GOAL_SIZE: usize = 2048;

/// Checks all goals that the rows, in the guest and in the store, can tell about.
#[must_use]
pub fn check_all(rows: &[Row], stored: &Stored) -> Vec<Check> {
    [
        much_faster(rows),
        flat(rows),
        never_slower(rows),
        dump_to_store(rows, &stored.rows),
        cold_restore(rows, &stored.rows),
        drains(&stored.drain),
        Vec::from_iter(cpu_of_drains(rows, &stored.rows)),
        memory_of_clones(&stored.clones),
        remapping(&stored.remap),
    ]
    .concat()
}

fn find(rows: &[Row], size: usize, pages: Pages, system: System) -> Option<&Row> {
    rows.iter()
        .find(|r| r.size_mib == size && r.pages == pages && r.system == system)
}

fn much_faster(rows: &[Row]) -> Vec<Check> {
    let of = |system| find(rows, GOAL_SIZE, Pages::Huge, system);
    let (Some(stock), Some(vas)) = (of(System::CriuTmpfs), of(System::Vascriu)) else {
        return Vec::new();
    };
    let goals = [
        (DUMP, 15.0),
        (RESTORE, 25.0),
        (MEMORY_DUMP, 100.0),
        (MEMORY_RESTORE, 100.0),
    ];
    let one = |((name, of), goal): (Column, f64)| {
        let what = format!("{name} faster than stock at {GOAL_SIZE} MiB of huge pages");
        check(what, ratio(of, stock, vas), goal, true)
    };
    goals.map(one).to_vec()
}

fn flat(rows: &[Row]) -> Vec<Check> {
    let mut checks = Vec::new();
    for pages in [Pages::Huge, Pages::Small] {
        let of_vas = rows
            .iter()
            .filter(|r| r.pages == pages && r.system == System::Vascriu);
        let smallest = of_vas.clone().min_by_key(|r| r.size_mib);
        let largest = of_vas.max_by_key(|r| r.size_mib);
        if let (Some(small), Some(large)) = (smallest, largest)
            && small.size_mib < large.size_mib
        {
            for (name, of) in [DUMP, RESTORE] {
                let what = format!(
                    "vascriu's {name} at {} MiB of {pages} pages against {} MiB",
                    large.size_mib, small.size_mib
                );
                checks.push(check(what, ratio(of, large, small), 1.5, false));
            }
        }
    }
    checks
}

fn never_slower(rows: &[Row]) -> Vec<Check> {
    let mut checks = Vec::new();
    for vas in rows.iter().filter(|r| r.system == System::Vascriu) {
        if let Some(stock) = find(rows, vas.size_mib, vas.pages, System::CriuTmpfs) {
            for (name, of) in [DUMP, RESTORE] {
                let what = format!(
                    "{name} not slower than stock at {} MiB of {} pages",
                    vas.size_mib, vas.pages
                );
                checks.push(check(what, ratio(of, stock, vas), 1.0, true));
            }
        }
    }
    checks
}

/// At each size; and over all, which tells more: the few samples of one row differ by more
/// than this goal is about.
fn dump_to_store(rows: &[Row], stored: &[Row]) -> Vec<Check> {
    let pairs = stored.iter().filter_map(|draining| {
        let guest_only = find(rows, draining.size_mib, draining.pages, System::Vascriu)?;
        Some((draining, guest_only))
    });
    let pairs = Vec::from_iter(pairs);
    let mut checks = Vec::new();
    for (name, of) in [DUMP, FROZEN] {
        let mut ratios = Vec::new();
        let mut one = |which: String, measured| {
            let what = format!("{name} that drains against guest-only {which}");
            checks.push(check(what, measured, 1.1, false));
        };
        for (draining, guest_only) in &pairs {
            let measured = ratio(of, draining, guest_only);
            let which = format!("at {} MiB of {} pages", draining.size_mib, draining.pages);
            one(which, measured);
            ratios.push(measured);
        }
        if let Some(mean) = geometric_mean(&ratios) {
            one("in the mean of all sizes".into(), mean);
        }
    }
    checks
}

fn cold_restore(rows: &[Row], stored: &[Row]) -> Vec<Check> {
    let stock = find(rows, GOAL_SIZE, Pages::Huge, System::CriuTmpfs);
    let cold = find(stored, GOAL_SIZE, Pages::Huge, System::VascriuStore);
    let one = |(stock, cold): (&Row, &Row)| {
        let what = format!("cold restore faster than stock at {GOAL_SIZE} MiB of huge pages");
        check(what, ratio(RESTORE.1, stock, cold), 20.0, true)
    };
    stock.zip(cold).map(one).into_iter().collect()
}

fn drains(report: &drain::Report) -> Vec<Check> {
    let of = |pages| report.rows.iter().find(|r| r.pages == pages);
    let mut checks = Vec::new();
    if let (Some(huge), Some(small)) = (of(Pages::Huge), of(Pages::Small)) {
        let what = format!("draining {} MiB of huge pages faster than", huge.size_mib);
        for (other, ms) in [
            ("copying it in the guest", report.copy_ms),
            ("the host's copying 4k pages", small.drain_ms),
        ] {
            checks.push(check(
                format!("{what} {other}"),
                ms / huge.drain_ms,
                10.0,
                true,
            ));
        }
    }
    if let Some(huge) = of(Pages::Huge) {
        let what = format!("host memory after draining {} MiB", huge.size_mib);
        checks.push(check(what, huge.memory_times, 1.1, false));
    }
    checks
}

fn cpu_of_drains(rows: &[Row], stored: &[Row]) -> Option<Check> {
    let small = stored.iter().filter(|r| r.pages == Pages::Small);
    let draining = small.max_by_key(|r| r.size_mib)?;
    let of = |system| find(rows, draining.size_mib, Pages::Small, system);
    let (stock, vas) = (of(System::CriuTmpfs)?, of(System::Vascriu)?);
    // What both do anyhow is not writing pages.
    let writing = stock.times.dump_cpu_ms - vas.times.dump_cpu_ms;
    let what = format!(
        "guest CPU of draining {} MiB of 4k pages against CRIU's writing them",
        draining.size_mib
    );
    Some(check(what, draining.drain_cpu_ms / writing, 0.2, false))
}

fn memory_of_clones(rows: &[clones::Row]) -> Vec<Check> {
    let one = |row: &clones::Row| {
        let what = format!(
            "host memory of {} copies of {} MiB in {} microVMs against what they wrote",
            row.copies, row.size_mib, row.vms
        );
        check(what, row.grown_mib / row.written_mib, 1.25, false)
    };
    rows.iter().map(one).collect()
}

fn remapping(rows: &[remap::Remap]) -> Vec<Check> {
    let one = |row: &remap::Remap| {
        let what = format!(
            "PUBLISH of {} MiB faster than COPY on the {} host",
            row.size_mib, row.host
        );
        check(what, row.copy_ms / row.publish_ms, 10.0, true)
    };
    rows.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(size_mib: usize, pages: Pages, system: System, ms: f64) -> Row {
        Row {
            size_mib,
            pages,
            system,
            times: Times {
                dump_ms: ms,
                dump_cpu_ms: ms,
                restore_ms: ms,
                frozen_ms: ms,
                memory_dump_ms: ms / 10.0,
                memory_restore_ms: ms / 10.0,
            },
            drain_cpu_ms: 0.0,
            samples: 1,
            dump_range_ms: (ms, ms),
            restore_range_ms: (ms, ms),
        }
    }

    fn rows(stock: f64, vas_small: f64, vas_large: f64) -> Vec<Row> {
        vec![
            row(16, Pages::Huge, System::CriuTmpfs, stock),
            row(16, Pages::Huge, System::Vascriu, vas_small),
            row(2048, Pages::Huge, System::CriuTmpfs, stock),
            row(2048, Pages::Huge, System::Vascriu, vas_large),
        ]
    }

    fn nothing_stored() -> Stored {
        Stored {
            rows: Vec::new(),
            drain: drain::Report {
                rows: Vec::new(),
                copy_ms: 0.0,
            },
            clones: Vec::new(),
            scaling: Default::default(),
            remap: Vec::new(),
        }
    }

    /// With a store as slow as this, in all.
    fn stored(slow: f64) -> Stored {
        let drain = |pages, ms| drain::Row {
            size_mib: 2048,
            pages,
            drain_ms: ms,
            guest_cpu_ms: ms,
            memory_times: slow,
            samples: 1,
        };
        Stored {
            rows: vec![
                row(2048, Pages::Huge, System::VascriuStore, 100.0 * slow),
                Row {
                    drain_cpu_ms: 100.0 * slow,
                    ..row(2048, Pages::Small, System::VascriuStore, 100.0 * slow)
                },
            ],
            drain: drain::Report {
                rows: vec![drain(Pages::Huge, 10.0 * slow), drain(Pages::Small, 100.0)],
                copy_ms: 100.0,
            },
            clones: vec![clones::Row {
                size_mib: 512,
                copies: 8,
                vms: 4,
                restore_ms: 1.0,
                written_mib: 256.0,
                grown_mib: 256.0 * slow,
            }],
            scaling: Default::default(),
            remap: vec![remap::Remap {
                host: "native".into(),
                size_mib: 2048,
                publish_ms: 10.0 * slow,
                copy_ms: 100.0,
                map_ms: 1.0,
                release_ms: 1.0,
            }],
        }
    }

    fn missed(rows: &[Row], stored: &Stored) -> Vec<String> {
        let checks = check_all(rows, stored);
        checks
            .into_iter()
            .filter(|c| !c.reached)
            .map(|c| c.what)
            .collect()
    }

    fn missed_in_guest(rows: &[Row]) -> Vec<String> {
        missed(rows, &nothing_stored())
    }

    #[test]
    fn a_fast_flat_system_reaches_every_goal() {
        let rows = rows(10_000.0, 90.0, 99.0);
        assert_eq!(check_all(&rows, &nothing_stored()).len(), 10);
        assert_eq!(missed_in_guest(&rows), [""; 0]);
    }

    #[test]
    fn each_missed_goal_is_named() {
        let slow_restore = missed_in_guest(&rows(2_000.0, 99.0, 100.0));
        assert_eq!(slow_restore.len(), 3, "{slow_restore:?}");
        assert!(slow_restore[0].starts_with("restore faster"));

        let not_flat = missed_in_guest(&rows(10_000.0, 10.0, 90.0));
        assert_eq!(not_flat.len(), 2, "{not_flat:?}");
        assert!(not_flat[0].contains("at 2048 MiB of huge pages against 16 MiB"));

        let slower = missed_in_guest(&rows(50.0, 60.0, 60.0));
        assert_eq!(
            slower.iter().filter(|w| w.contains("not slower")).count(),
            4
        );
    }

    #[test]
    fn a_fast_store_reaches_every_goal_and_a_slow_one_none() {
        let mut rows = rows(10_000.0, 90.0, 100.0);
        rows.push(row(2048, Pages::Small, System::CriuTmpfs, 1000.0));
        rows.push(row(2048, Pages::Small, System::Vascriu, 100.0));
        let of_store =
            check_all(&rows, &stored(1.0)).len() - check_all(&rows, &nothing_stored()).len();
        assert_eq!(of_store, 13);
        assert_eq!(missed(&rows, &stored(1.0)), [""; 0]);

        let slow = missed(&rows, &stored(6.0));
        assert_eq!(slow.len(), of_store, "{slow:?}");
    }

    #[test]
    fn what_was_not_measured_is_not_checked() {
        assert_eq!(check_all(&[], &nothing_stored()), []);
        assert_eq!(check_all(&rows(1.0, 1.0, 1.0)[..1], &nothing_stored()), []);
    }
}
