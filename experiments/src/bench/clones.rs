//! Many copies of one snapshot, in one microVM and over several: what host memory they take.

use std::fs;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::copies::Room;
use crate::guest::Step;
use crate::host::{Scratch, Vm, settled_bytes};
use crate::procfs::outer_pid;
use crate::stats::median;
use crate::subject::{self, Subject};
use crate::table;
use crate::vas;
use crate::workload::Pages;

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Memory of the process, of huge pages.
    pub size_mib: usize,
    /// How many copies, together.
    pub copies: usize,
    /// How many microVMs they are spread over, the second time.
    pub vms: usize,
}

/// What the guest half tells of its copies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Started {
    /// How long each restore took.
    pub restore_ms: Vec<f64>,
    /// 4 KiB pages that they wrote to afterwards.
    pub pages_written: u64,
}

/// Copies in so many microVMs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Memory of each copy.
    pub size_mib: usize,
    /// How many copies, together.
    pub copies: usize,
    /// How many microVMs they are in.
    pub vms: usize,
    /// Median of the restores, one after the other.
    pub restore_ms: f64,
    /// What all copies wrote to, in MiB.
    pub written_mib: f64,
    /// By how much host memory grew, in MiB.
    pub grown_mib: f64,
}

/// The name of the snapshot.
const NAME: &str = "clones";

/// Stores a process, then restores copies of it in the first of `vms`, then over all of them;
/// the host half.
///
/// # Errors
/// When a step fails, or memory of a copy is not as it should be.
pub fn measure(vms: &[Vm], store: &Scratch, plan: Plan) -> Result<Vec<Row>> {
    let first = vms.first().context("no microVM")?;
    let pid: i32 = first.ask(&Step::Store {
        size_mib: plan.size_mib,
        name: NAME.into(),
    })?;
    let rows = [&vms[..1], vms].map(|some| {
        row(some, store, plan, pid)
            .with_context(|| format!("copies of a snapshot in {} microVMs", some.len()))
    });
    let rows = rows.into_iter().collect::<Result<_>>()?;
    first.ask::<()>(&Step::Remove { name: NAME.into() })?;
    Ok(rows)
}

fn row(vms: &[Vm], store: &Scratch, plan: Plan, pid: i32) -> Result<Row> {
    let all: Vec<&Vm> = vms.iter().collect();
    let before = settled_bytes(store, &all)?;
    let mut started = Started {
        restore_ms: Vec::new(),
        pages_written: 0,
    };
    for (vm, count) in vms.iter().zip(shares(plan.copies, vms.len())) {
        eprintln!(
            "restoring {count} copies of {} MiB in a microVM",
            plan.size_mib
        );
        let some: Started = vm.ask(&Step::StartClones {
            name: NAME.into(),
            pid,
            count,
        })?;
        started.restore_ms.extend(some.restore_ms);
        started.pages_written += some.pages_written;
    }
    let after = settled_bytes(store, &all)?;
    for vm in vms {
        let bad: u64 = vm.ask(&Step::CountBadPagesOfClones { pid })?;
        ensure!(bad == 0, "{bad} pages of copies are not as they should be");
        vm.ask::<()>(&Step::EndClones { pid })?;
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
    let mib = |bytes: i64| bytes as f64 / f64::from(1 << 20);
    Ok(Row {
        size_mib: plan.size_mib,
        copies: plan.copies,
        vms: vms.len(),
        restore_ms: median(&started.restore_ms).context("no copy was restored")?,
        written_mib: mib(started.pages_written.cast_signed() * 4096),
        grown_mib: mib(after.cast_signed() - before.cast_signed()),
    })
}

/// `copies` over `vms`, as evenly as it goes.
fn shares(copies: usize, vms: usize) -> impl Iterator<Item = usize> {
    (0..vms).map(move |i| copies / vms + usize::from(i < copies % vms))
}

/// The table for people.
#[must_use]
pub fn render(rows: &[Row]) -> String {
    let header = [
        "copies",
        "microVMs",
        "restore ms",
        "memory of all",
        "written to",
        "host memory grew by",
    ];
    let cells = |row: &Row| {
        vec![
            format!("{} x {} MiB", row.copies, row.size_mib),
            row.vms.to_string(),
            table::ms(row.restore_ms),
            format!("{} MiB", row.copies * row.size_mib),
            format!("{:.0} MiB", row.written_mib),
            format!("{:.0} MiB", row.grown_mib),
        ]
    };
    table::render(&header, &rows.iter().map(cells).collect::<Vec<_>>())
}

/// Dumps a new process to the store and ends it; its PID. The guest half.
///
/// # Errors
/// When that fails.
pub fn store(size_mib: usize, name: &str) -> Result<i32> {
    subject::use_high_pids()?;
    let mut subject = Subject::start(size_mib, Pages::Huge)?;
    let pid = subject.pid;
    vas::dump_to_store(pid, name, &[])?;
    subject.reap()?;
    Ok(pid)
}

/// What `vascriu restore --json` tells, as far as it is used here.
#[derive(Debug, Deserialize)]
struct Report {
    restore_ms: f64,
}

/// Restores copies of the process that was `pid`, each in a PID namespace of its own, and has
/// each write; the guest half.
///
/// # Errors
/// When one is not restored.
pub fn start(name: &str, pid: i32, count: usize) -> Result<Started> {
    let restore_ms = (0..count).map(|_| start_one(name)).collect::<Result<_>>()?;
    let mut copies = of(pid)?;
    ensure!(
        copies.len() == count,
        "{} copies of {count} are there",
        copies.len()
    );
    let mut pages_written = 0;
    for copy in &mut copies {
        pages_written += Subject::at(*copy).write()?;
    }
    Ok(Started {
        restore_ms,
        pages_written,
    })
}

/// Restores one copy.
fn start_one(name: &str) -> Result<f64> {
    let said = Room::restore(&vas::restoring(name))?.said;
    let report: Report =
        serde_json::from_str(&said).with_context(|| format!("vascriu wrote {said}"))?;
    Ok(report.restore_ms)
}

/// Counts the pages of all copies that do not hold what was written to them; the guest half.
///
/// # Errors
/// When one is gone.
pub fn count_bad_pages(pid: i32) -> Result<u64> {
    let copies = of(pid)?;
    ensure!(!copies.is_empty(), "no copy is there");
    copies
        .into_iter()
        .map(|copy| Subject::at(copy).count_bad_pages())
        .sum()
}

/// Ends all copies; the guest half.
///
/// # Errors
/// When one does not end.
pub fn end(pid: i32) -> Result<()> {
    let copies = of(pid)?;
    // With the init of a PID namespace, all in it end.
    for init in of(1)? {
        kill(Pid::from_raw(init), Signal::SIGKILL)?;
    }
    copies.into_iter().try_for_each(subject::wait_until_gone)
}

/// PIDs, here, of all processes that are `pid` in a PID namespace below this one.
fn of(pid: i32) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        // What is no process, or has ended meanwhile, has no status.
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        found.extend(outer_pid(&status, pid));
    }
    Ok(found)
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

    #[test]
    fn the_table_compares_growth_with_what_was_written() {
        let table = render(&[Row {
            size_mib: 512,
            copies: 8,
            vms: 4,
            restore_ms: 300.0,
            written_mib: 256.0,
            grown_mib: 271.4,
        }]);
        for cell in ["8 x 512 MiB", "4096 MiB", "256 MiB", "271 MiB"] {
            assert!(table.contains(cell), "{table}");
        }
    }
}
