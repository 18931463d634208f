//! The goals of `make bench`, each reached or missed. They are ratios: absolute
//! times say nothing on an emulated machine.

use serde::{Deserialize, Serialize};

use crate::bench::Row;
use crate::system::System;
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
            "{verdict}  {}: {:.1}x (goal {sign} {}x)",
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

/// What of a row is compared, and its name.
type Column = (&'static str, fn(&Row) -> f64);

const DUMP: Column = ("dump", |r| r.dump_ms);
const RESTORE: Column = ("restore", |r| r.restore_ms);
const MEMORY_DUMP: Column = ("memory step of the dump", |r| r.memory_dump_ms);
const MEMORY_RESTORE: Column = ("memory step of the restore", |r| r.memory_restore_ms);

/// Size in MiB at which the speed goals are set.
const GOAL_SIZE: usize = 2048;

/// Checks all goals that `rows` can tell about.
#[must_use]
pub fn check_all(rows: &[Row]) -> Vec<Check> {
    let find = |size: usize, pages: Pages, system: System| {
        rows.iter()
            .find(|r| r.size_mib == size && r.pages == pages && r.system == system)
    };
    let mut checks = Vec::new();
    if let Some(stock) = find(GOAL_SIZE, Pages::Huge, System::CriuTmpfs)
        && let Some(vas) = find(GOAL_SIZE, Pages::Huge, System::Vascriu)
    {
        for ((name, of), goal) in [
            (DUMP, 15.0),
            (RESTORE, 25.0),
            (MEMORY_DUMP, 100.0),
            (MEMORY_RESTORE, 100.0),
        ] {
            let what = format!("{name} faster than stock at {GOAL_SIZE} MiB of huge pages");
            checks.push(check(what, of(stock) / of(vas), goal, true));
        }
    }
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
                checks.push(check(what, of(large) / of(small), 1.5, false));
            }
        }
    }
    for vas in rows.iter().filter(|r| r.system == System::Vascriu) {
        if let Some(stock) = find(vas.size_mib, vas.pages, System::CriuTmpfs) {
            for (name, of) in [DUMP, RESTORE] {
                let what = format!(
                    "{name} not slower than stock at {} MiB of {} pages",
                    vas.size_mib, vas.pages
                );
                checks.push(check(what, of(stock) / of(vas), 1.0, true));
            }
        }
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(size_mib: usize, pages: Pages, system: System, ms: f64) -> Row {
        Row {
            size_mib,
            pages,
            system,
            dump_ms: ms,
            restore_ms: ms,
            memory_dump_ms: ms / 10.0,
            memory_restore_ms: ms / 10.0,
            ..Row::default()
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

    fn missed(rows: &[Row]) -> Vec<String> {
        let checks = check_all(rows);
        checks
            .into_iter()
            .filter(|c| !c.reached)
            .map(|c| c.what)
            .collect()
    }

    #[test]
    fn a_fast_flat_system_reaches_every_goal() {
        assert_eq!(check_all(&rows(10_000.0, 90.0, 99.0)).len(), 10);
        assert_eq!(missed(&rows(10_000.0, 90.0, 99.0)), [""; 0]);
    }

    #[test]
    fn each_missed_goal_is_named() {
        let slow_restore = missed(&rows(2_000.0, 99.0, 100.0));
        assert_eq!(slow_restore.len(), 3, "{slow_restore:?}");
        assert!(slow_restore[0].starts_with("restore faster"));

        let not_flat = missed(&rows(10_000.0, 10.0, 90.0));
        assert_eq!(not_flat.len(), 2, "{not_flat:?}");
        assert!(not_flat[0].contains("at 2048 MiB of huge pages against 16 MiB"));

        let slower = missed(&rows(50.0, 60.0, 60.0));
        assert_eq!(
            slower.iter().filter(|w| w.contains("not slower")).count(),
            4
        );
    }

    #[test]
    fn what_was_not_measured_is_not_checked() {
        assert_eq!(check_all(&[]), []);
        assert_eq!(check_all(&rows(1.0, 1.0, 1.0)[..1]), []);
    }
}
