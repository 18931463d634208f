//! The bench: stock CRIU to tmpfs against vascriu, over memory sizes and page sizes, and the
//! snapshot store; interleaved, medians.

pub mod clones;
pub mod drain;
pub mod host;
pub mod remap;
pub mod samples;

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use self::samples::Sample;
use crate::checks::Check;
use crate::demo::clones::Clones;
use crate::stats::{median, range};
use crate::system::System;
use crate::table;
use crate::times::Times;
use crate::workload::Pages;

/// Memory of the process of which there are very many copies: so little that what each copy
/// takes beside it is seen.
const SCALING_MIB: usize = 16;

/// The medians of a size, pages and system.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Size of the process's memory.
    pub size_mib: usize,
    /// Its pages.
    pub pages: Pages,
    /// What dumped and restored it.
    pub system: System,
    /// The times.
    #[serde(flatten)]
    pub times: Times,
    /// CPU time of the guest's kernel for the way to the store, if it goes there.
    pub drain_cpu_ms: f64,
    /// Number of measurements.
    pub samples: usize,
    /// The fastest and the slowest dump.
    pub dump_range_ms: (f64, f64),
    /// The fastest and the slowest restore.
    pub restore_range_ms: (f64, f64),
}

/// What was measured of the snapshot store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stored {
    /// Dumps that drain in the background, and restores of cold snapshots.
    pub rows: Vec<Row>,
    /// Drains.
    pub drain: drain::Report,
    /// Many copies of one snapshot.
    pub clones: Vec<clones::Row>,
    /// Very many copies of a small process, one after the other, in one guest.
    pub scaling: Clones,
    /// The device alone.
    pub remap: Vec<remap::Remap>,
}

/// The results as they are written to `bench.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The medians of snapshots in the guest.
    pub rows: Vec<Row>,
    /// The goals.
    pub checks: Vec<Check>,
    /// Snapshots in the store.
    pub store: Stored,
}

impl Report {
    /// The tables for people.
    #[must_use]
    pub fn render(&self) -> String {
        let all: Vec<Row> = self.rows.iter().chain(&self.store.rows).cloned().collect();
        let mut text = [
            render(&all),
            drain::render(&self.store.drain),
            clones::render(&self.store.clones),
            self.store.scaling.render_scaling(SCALING_MIB),
            remap::render(&self.store.remap),
        ]
        .join("\n");
        text.push('\n');
        for check in &self.checks {
            text.push_str(&format!("{check}\n"));
        }
        text
    }
}

/// The medians of `samples`, in the order of their first appearance.
#[must_use]
pub fn summarize(samples: &[Sample]) -> Vec<Row> {
    let key = |s: &Sample| (s.size_mib, s.pages, s.system);
    let mut seen = Vec::new();
    for sample in samples {
        if !seen.contains(&key(sample)) {
            seen.push(key(sample));
        }
    }
    let row = |wanted: (usize, Pages, System)| {
        let group: Vec<&Sample> = samples.iter().filter(|s| key(s) == wanted).collect();
        let column = |of: fn(&Sample) -> f64| group.iter().map(|s| of(s)).collect::<Vec<f64>>();
        Some(Row {
            size_mib: wanted.0,
            pages: wanted.1,
            system: wanted.2,
            times: Times::medians(&group.iter().map(|s| s.times).collect::<Vec<_>>())?,
            drain_cpu_ms: median(&column(|s| s.drain_cpu_ms))?,
            samples: group.len(),
            dump_range_ms: range(&column(|s| s.times.dump_ms))?,
            restore_range_ms: range(&column(|s| s.times.restore_ms))?,
        })
    };
    seen.into_iter().filter_map(row).collect()
}

/// What is wrong with the samples: a page that was not as before.
///
/// # Errors
/// Names every measurement with bad pages.
pub fn verify(samples: &[Sample]) -> Result<()> {
    let bad: BTreeSet<String> = samples
        .iter()
        .filter(|s| s.bad_pages != 0)
        .map(|s| {
            format!(
                "{} at {} MiB of {} pages: {} pages differ after the restore",
                s.system, s.size_mib, s.pages, s.bad_pages
            )
        })
        .collect();
    ensure!(
        bad.is_empty(),
        "{}",
        bad.into_iter().collect::<Vec<_>>().join("\n")
    );
    Ok(())
}

/// The table of dumps and restores: rows of one process together, with their speed-up.
fn render(rows: &[Row]) -> String {
    let header = [
        "memory",
        "pages",
        "system",
        "dump ms",
        "restore ms",
        "frozen ms",
        "memory dump ms",
        "memory restore ms",
        "dump",
        "restore",
        "mem. dump",
        "mem. restore",
    ];
    let stock = |row: &Row| {
        rows.iter().find(|r| {
            (r.size_mib, r.pages, r.system) == (row.size_mib, row.pages, System::CriuTmpfs)
        })
    };
    let cells = |row: &Row| {
        let own = &row.times;
        let stock = stock(row).filter(|_| row.system != System::CriuTmpfs);
        let faster = |of| own.faster_than(stock.map(|s| &s.times), of);
        vec![
            format!("{} MiB", row.size_mib),
            row.pages.to_string(),
            row.system.to_string(),
            table::ms(own.dump_ms),
            table::ms(own.restore_ms),
            table::ms(own.frozen_ms),
            table::ms(own.memory_dump_ms),
            table::ms(own.memory_restore_ms),
            faster(|t| t.dump_ms),
            faster(|t| t.restore_ms),
            faster(|t| t.memory_dump_ms),
            faster(|t| t.memory_restore_ms),
        ]
    };
    let mut together: Vec<&Row> = rows.iter().collect();
    together.sort_by_key(|r| (r.size_mib, r.pages == Pages::Small));
    let cells: Vec<_> = together.into_iter().map(cells).collect();
    table::render(&header, &cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(system: System, dump_ms: f64, bad_pages: u64) -> Sample {
        Sample {
            size_mib: 16,
            pages: Pages::Huge,
            system,
            times: Times {
                dump_ms,
                restore_ms: 2.0 * dump_ms,
                ..Times::default()
            },
            drain_cpu_ms: 0.0,
            bad_pages,
        }
    }

    #[test]
    fn rows_are_medians_of_their_group() {
        let samples = [
            sample(System::CriuTmpfs, 30.0, 0),
            sample(System::Vascriu, 3.0, 0),
            sample(System::CriuTmpfs, 10.0, 0),
            sample(System::CriuTmpfs, 20.0, 0),
        ];
        let rows = summarize(&samples);
        assert_eq!(rows.len(), 2);
        assert_eq!(
            (
                rows[0].times.dump_ms,
                rows[0].times.restore_ms,
                rows[0].samples
            ),
            (20.0, 40.0, 3)
        );
        assert_eq!(rows[0].dump_range_ms, (10.0, 30.0));
        assert_eq!(
            (rows[1].system, rows[1].times.dump_ms),
            (System::Vascriu, 3.0)
        );
    }

    #[test]
    fn bad_pages_are_named() {
        assert!(verify(&[sample(System::Vascriu, 1.0, 0)]).is_ok());
        let error = verify(&[sample(System::Vascriu, 1.0, 7)])
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "vascriu at 16 MiB of huge pages: 7 pages differ after the restore"
        );
    }

    #[test]
    fn the_table_tells_the_speed_up_of_ours_beside_stock() {
        let rows = summarize(&[
            sample(System::CriuTmpfs, 30.0, 0),
            sample(System::Vascriu, 3.0, 0),
            Sample {
                size_mib: 8,
                ..sample(System::CriuTmpfs, 1.0, 0)
            },
            sample(System::VascriuStore, 6.0, 0),
        ]);
        let table = render(&rows);
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[2].starts_with("| 8 MiB"), "{table}");
        assert!(!lines[3].contains('x'), "{table}");
        assert!(lines[4].contains("10.0x"), "{table}");
        assert!(
            lines[5].contains("vascriu-store") && lines[5].contains("5.0x"),
            "{table}"
        );
    }

    #[test]
    fn the_report_has_the_promised_names() {
        let rows = summarize(&[sample(System::CriuTmpfs, 30.0, 0)]);
        let json = serde_json::to_value(Report {
            rows,
            checks: vec![],
            store: Stored {
                rows: summarize(&[sample(System::VascriuStore, 6.0, 0)]),
                drain: drain::Report {
                    rows: vec![],
                    copy_ms: 1.0,
                },
                clones: vec![],
                scaling: Clones::default(),
                remap: vec![],
            },
        })
        .unwrap();
        let row = &json["rows"][0];
        assert_eq!(row["size_mib"], 16);
        assert_eq!(row["pages"], "huge");
        assert_eq!(row["system"], "criu-tmpfs");
        for name in [
            "dump_ms",
            "restore_ms",
            "memory_dump_ms",
            "memory_restore_ms",
        ] {
            assert!(row[name].is_f64(), "{name}");
        }
        assert_eq!(json["store"]["rows"][0]["system"], "vascriu-store");
    }
}
