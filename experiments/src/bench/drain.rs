//! The way of a snapshot to the store: huge blocks are remapped, 4 KiB pages copied. Both
//! against a copy of as much memory in the guest.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::guest::Step;
use crate::host::{Scratch, Vm, settled_bytes};
use crate::procfs::cpu_of_kernel_workers;
use crate::stats::median;
use crate::subject::DIR;
use crate::system::ms;
use crate::table;
use crate::vas;
use crate::workload::{self, Pages, Patterned};

/// What the guest half tells of one drain.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Drained {
    /// From the end of the dump until the snapshot was complete in the store.
    pub drain_ms: f64,
    /// CPU time of the guest's kernel for it.
    pub cpu_ms: f64,
}

/// One drain, as the host sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The process's pages.
    pub pages: Pages,
    /// What the guest tells.
    pub drained: Drained,
    /// How host memory grew by it; measured in the first round only.
    pub growth_bytes: Option<i64>,
}

/// The medians of drains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Memory of the process.
    pub size_mib: usize,
    /// Its pages.
    pub pages: Pages,
    /// From the end of the dump until the snapshot was complete in the store.
    pub drain_ms: f64,
    /// CPU time of the guest's kernel for it.
    pub guest_cpu_ms: f64,
    /// Host memory after the drain, while the process goes on, in units of the process's memory:
    /// 1 if nothing was copied.
    pub memory_times: f64,
    /// Number of measurements.
    pub samples: usize,
}

/// All of this part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The drains.
    pub rows: Vec<Row>,
    /// A copy of as much memory to tmpfs, in the guest.
    pub copy_ms: f64,
}

/// Measures everything, in rounds; the host half.
///
/// # Errors
/// When a step fails, or memory was damaged.
pub fn measure(vm: &Vm, store: &Scratch, size_mib: usize, rounds: usize) -> Result<Report> {
    let mut samples = Vec::new();
    let mut copies = Vec::new();
    for round in 1..=rounds {
        for pages in [Pages::Huge, Pages::Small] {
            let sample = one(vm, store, size_mib, pages, round == 1)
                .with_context(|| format!("a drain of {size_mib} MiB of {pages} pages"))?;
            eprintln!(
                "round {round}/{rounds}: {size_mib:>4} MiB {pages:<4} to the store {:>8} ms, guest CPU {:>8} ms",
                table::ms(sample.drained.drain_ms),
                table::ms(sample.drained.cpu_ms)
            );
            samples.push(sample);
        }
        let copied: f64 = vm.ask(&Step::Copy { size_mib })?;
        eprintln!(
            "round {round}/{rounds}: {size_mib:>4} MiB copied in the guest {:>8} ms",
            table::ms(copied)
        );
        copies.push(copied);
    }
    let rows = [Pages::Huge, Pages::Small].map(|pages| row(size_mib, pages, &samples));
    Ok(Report {
        rows: rows.into_iter().flatten().collect(),
        copy_ms: median(&copies).context("no copy was measured")?,
    })
}

fn one(vm: &Vm, store: &Scratch, size_mib: usize, pages: Pages, weigh: bool) -> Result<Sample> {
    let pid: i32 = vm.ask(&Step::Start { size_mib, pages })?;
    let weight =
        || -> Result<Option<u64>> { weigh.then(|| settled_bytes(store, &[vm])).transpose() };
    let before = weight()?;
    let name = "drain".to_owned();
    let drained = vm.ask(&Step::Drain {
        pid,
        name: name.clone(),
    })?;
    let after = weight()?;
    let bad_pages: u64 = vm.ask(&Step::CountBadPages { pid })?;
    ensure!(
        bad_pages == 0,
        "{bad_pages} pages of the process, which went on, are not as they should be"
    );
    vm.ask::<()>(&Step::End { pid })?;
    vm.ask::<()>(&Step::Remove { name })?;
    let growth = |(before, after): (u64, u64)| after.cast_signed() - before.cast_signed();
    Ok(Sample {
        pages,
        drained,
        growth_bytes: before.zip(after).map(growth),
    })
}

/// The medians of all samples with such pages.
fn row(size_mib: usize, pages: Pages, samples: &[Sample]) -> Option<Row> {
    let of_pages: Vec<&Sample> = samples.iter().filter(|s| s.pages == pages).collect();
    let column = |of: fn(&Drained) -> f64| {
        median(
            &of_pages
                .iter()
                .map(|s| of(&s.drained))
                .collect::<Vec<f64>>(),
        )
    };
    let growth = of_pages.iter().find_map(|s| s.growth_bytes)?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
    let growth_times = growth as f64 / (size_mib << 20) as f64;
    Some(Row {
        size_mib,
        pages,
        drain_ms: column(|d| d.drain_ms)?,
        guest_cpu_ms: column(|d| d.cpu_ms)?,
        memory_times: 1.0 + growth_times,
        samples: of_pages.len(),
    })
}

/// The table for people.
#[must_use]
pub fn render(report: &Report) -> String {
    let header = ["to the store", "pages", "ms", "guest CPU ms", "host memory"];
    let cells = |row: &Row| {
        vec![
            format!("{} MiB", row.size_mib),
            row.pages.to_string(),
            table::ms(row.drain_ms),
            table::ms(row.guest_cpu_ms),
            format!("{:.2}x", row.memory_times),
        ]
    };
    let mut rows: Vec<Vec<String>> = report.rows.iter().map(cells).collect();
    rows.push(vec![
        "(copied in the guest)".into(),
        String::new(),
        table::ms(report.copy_ms),
        String::new(),
        String::new(),
    ]);
    table::render(&header, &rows)
}

/// Dumps the process `pid`, which goes on, into the store; the guest half.
///
/// # Errors
/// When that fails.
pub fn drain(pid: i32, name: &str) -> Result<Drained> {
    let before = cpu_of_kernel_workers()?;
    let (_, store) = vas::dump_to_store(pid, name, &["--leave-running"])?;
    Ok(Drained {
        drain_ms: ms(store),
        cpu_ms: ms(cpu_of_kernel_workers()?.saturating_sub(before)),
    })
}

/// Copies memory to a new file on tmpfs, as CRIU does; milliseconds. The guest half.
///
/// # Errors
/// When there is no memory for it.
pub fn copy(size_mib: usize) -> Result<f64> {
    let memory = Patterned::new(workload::map(size_mib, Pages::Huge)?, 1);
    let path = Path::new(DIR).join("copy");
    let begun = Instant::now();
    let copied = File::create(&path).and_then(|mut file| file.write_all(memory.bytes()));
    let elapsed = begun.elapsed();
    fs::remove_file(&path)?;
    copied.with_context(|| format!("cannot write {}", path.display()))?;
    Ok(ms(elapsed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(pages: Pages, drain_ms: f64, growth_bytes: Option<i64>) -> Sample {
        Sample {
            pages,
            drained: Drained {
                drain_ms,
                cpu_ms: drain_ms / 10.0,
            },
            growth_bytes,
        }
    }

    #[test]
    fn a_row_has_the_medians_and_the_memory_of_its_pages() {
        let samples = [
            sample(Pages::Huge, 10.0, Some(1 << 20)),
            sample(Pages::Small, 500.0, Some(16 << 20)),
            sample(Pages::Huge, 30.0, None),
            sample(Pages::Huge, 20.0, None),
        ];
        let huge = row(16, Pages::Huge, &samples).unwrap();
        assert_eq!((huge.drain_ms, huge.guest_cpu_ms), (20.0, 2.0));
        assert_eq!((huge.memory_times, huge.samples), (1.0625, 3));
        let small = row(16, Pages::Small, &samples).unwrap();
        assert_eq!((small.memory_times, small.samples), (2.0, 1));
        assert_eq!(row(16, Pages::Small, &samples[..1]), None);
    }

    #[test]
    fn the_table_shows_the_copy_beside_the_drains() {
        let samples = [sample(Pages::Huge, 10.0, Some(0))];
        let table = render(&Report {
            rows: row(16, Pages::Huge, &samples).into_iter().collect(),
            copy_ms: 4321.0,
        });
        assert!(table.contains("1.00x") && table.contains("4321"), "{table}");
    }
}
