// SPDX-License-Identifier: GPL-2.0-only
//! More snapshots than the guest has memory for.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::common;
use crate::criu::timed;
use crate::frame::{
    Axis, Case, Claim, Definition, Experiment, Figure, Kind, Machine, Metric, Metrics, Point, Than,
    Unit, metrics,
};
use crate::procfs::available_bytes;
use crate::stats::median;
use crate::subject::Subject;
use crate::system::{Snapshot, System, ms};
use crate::vas;
use crate::workload::Pages;

pub(super) struct Pressure;

/// The guest's memory.
const GUEST_MIB: usize = 1 << 10;
/// How much of that images may take: a tmpfs has half of what the kernel leaves.
const IMAGES_PERCENT: usize = 40;

static DEFINITION: Definition = Definition {
    name: "pressure",
    title: "Memory pressure",
    question: "What happens to dumps, to restores and to new processes where snapshots do not all \
        fit into the guest's memory, so that its kernel must evict some?",
    axes: &[
        Axis {
            name: "percent",
            about: "memory of all snapshots, of the guest's",
            kind: Kind::Count("%"),
            quick: &["25", "150"],
            full: &["25", "100", "200", "400"],
        },
        common::PAGES,
        Axis {
            name: "size",
            about: "memory of each process",
            kind: Kind::Size,
            quick: &["64M"],
            full: &["64M"],
        },
    ],
    systems: &[
        System::CriuTmpfs,
        System::VascriuStored,
        System::VascriuStore,
    ],
    metrics: &[
        Metric {
            name: "dump_ms",
            about: "dump, the whole command: median of the last quarter of the dumps",
            unit: Unit::Ms,
        },
        Metric {
            name: "early_dump_ms",
            about: "the same of the first quarter, when there was room",
            unit: Unit::Ms,
        },
        Metric {
            name: "fill_ms",
            about: "until a new process has filled its memory: median of the last quarter",
            unit: Unit::Ms,
        },
        Metric {
            name: "newest_ms",
            about: "restore of the last snapshot, the whole command",
            unit: Unit::Ms,
        },
        Metric {
            name: "oldest_ms",
            about: "then restore of the first snapshot, the whole command",
            unit: Unit::Ms,
        },
        Metric {
            name: "cold",
            about: "snapshots that are in the store only, after the last dump",
            unit: Unit::Count,
        },
        Metric {
            name: "used_bytes",
            about: "guest memory that is not available then, beyond what it was before",
            unit: Unit::Bytes,
        },
        Metric {
            name: "small_share",
            about: "of the last quarter of the processes, the share of memory that is in 4 KiB \
                pages: median",
            unit: Unit::Count,
        },
    ],
    machine: Machine {
        mem: "1G",
        cpus: 1,
        image: None,
    },
    repeats: [1, 3],
    figures: &[
        Figure {
            title: "The last quarter of the dumps",
            metric: "dump_ms",
            x: "percent",
            panels: Some("pages"),
        },
        Figure {
            title: "A new process fills its memory",
            metric: "fill_ms",
            x: "percent",
            panels: Some("pages"),
        },
        Figure {
            title: "Restore of the oldest snapshot",
            metric: "oldest_ms",
            x: "percent",
            panels: Some("pages"),
        },
        Figure {
            title: "Guest memory that all snapshots take",
            metric: "used_bytes",
            x: "percent",
            panels: Some("pages"),
        },
    ],
    claims: &[
        Claim {
            text: "Memory pressure adds no more than a tenth to a dump (4 KiB pages)",
            paper: None,
            metric: "dump_ms",
            system: System::VascriuStored,
            than: Than::System(System::VascriuStore),
            at: &[("pages", "4k")],
            goal: 0.9,
        },
        Claim {
            text: "A new process gets its memory (4 KiB pages) no more than a tenth later where \
                snapshots must make way",
            paper: None,
            metric: "fill_ms",
            system: System::VascriuStored,
            than: Than::System(System::VascriuStore),
            at: &[("pages", "4k")],
            goal: 0.9,
        },
        Claim {
            text: "What memory pressure has evicted (4 KiB pages) is restored as soon as what a \
                user has, but for a tenth",
            paper: None,
            metric: "oldest_ms",
            system: System::VascriuStored,
            than: Than::System(System::VascriuStore),
            at: &[("pages", "4k")],
            goal: 0.9,
        },
    ],
    notes: &[
        "One process after the other starts, fills its memory with a pattern that no other has, \
         and is dumped, which ends it. The next starts when the snapshot is in the store: pressure \
         on snapshots that are still on their way there is not measured.",
        "vascriu-stored leaves it to the guest's kernel which snapshots it evicts, and when; \
         vascriu-store evicts each as soon as it is stored, and so has no pressure: the same store \
         beside it is the measure of what pressure costs. Evicting is in no time of its.",
        "criu-tmpfs is there only where all images fit: tmpfs has at most half of the guest's \
         memory, and no store to go to.",
        "After the last dump `vascriu ls` must list every snapshot. The newest is restored first, \
         then the oldest, then all others; each process checks all its memory, and a single bad \
         page ends the run.",
        "A process that asks for huge pages gets 4 KiB pages where the kernel finds none: so of \
         huge pages small_share tells how many are left.",
    ],
};

impl Experiment for Pressure {
    fn definition(&self) -> &'static Definition {
        &DEFINITION
    }

    fn fits(&self, system: System, point: &Point) -> bool {
        // Settings that are no numbers are refused elsewhere.
        let few = point.count("percent").is_ok_and(|p| p <= IMAGES_PERCENT);
        system != System::CriuTmpfs || few
    }

    fn measure_here(&self, case: &Case) -> Result<Metrics> {
        let size_mib = case.point.mib("size")?;
        let pages = case.point.word("pages")?.parse()?;
        let count = count(case.point.count("percent")?, size_mib)?;
        let available = available_bytes()?;
        let all = (0..count).map(|number| take(case.system, number, size_mib, pages));
        let all = all.collect::<Result<Vec<_>>>()?;
        let used = available.saturating_sub(available_bytes()?);
        let cold = match case.system {
            System::CriuTmpfs => 0,
            _ => count_cold(count)?,
        };
        let newest = restore(&all[count - 1])?;
        let oldest = restore(&all[0])?;
        for taken in &all[1..count - 1] {
            restore(taken).with_context(|| format!("{:?}", taken.snapshot))?;
        }
        all.iter().try_for_each(|taken| taken.snapshot.delete())?;
        let (early, late) = (&all[..count / 4], &all[count - count / 4..]);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        Ok(metrics([
            ("dump_ms", of(late, |taken| ms(taken.dump))?),
            ("early_dump_ms", of(early, |taken| ms(taken.dump))?),
            ("fill_ms", of(late, |taken| ms(taken.fill))?),
            ("newest_ms", ms(newest)),
            ("oldest_ms", ms(oldest)),
            ("cold", cold as f64),
            ("used_bytes", used as f64),
            ("small_share", of(late, |taken| taken.small_share)?),
        ]))
    }
}

/// How many snapshots have together this share of the guest's memory.
fn count(percent: usize, size_mib: usize) -> Result<usize> {
    let count = GUEST_MIB * percent / 100 / size_mib;
    ensure!(
        count >= 4,
        "{percent} % of the guest's memory are {count} processes of {size_mib} MiB: there must \
         be 4, to take a quarter of"
    );
    Ok(count)
}

/// A snapshot, and what came before it was there.
struct Taken {
    snapshot: Snapshot,
    /// Of the process.
    pid: i32,
    fill: Duration,
    small_share: f64,
    dump: Duration,
}

fn name(number: usize) -> String {
    format!("pressure-{number}")
}

/// Starts a process and dumps it, which ends it; evicts it, if the system does that.
fn take(system: System, number: usize, size_mib: usize, pages: Pages) -> Result<Taken> {
    let snapshot = Snapshot::new(system, &name(number))?;
    let begun = Instant::now();
    let mut process = Subject::start_with_seed(size_mib, pages, number as u64)?;
    let fill = begun.elapsed();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let huge_share = process.huge_mib()? as f64 / size_mib as f64;
    let dump = snapshot.dump(process.pid)?;
    process.reap()?;
    snapshot.wait_until_stored()?;
    if system == System::VascriuStore {
        snapshot.evict()?;
    }
    Ok(Taken {
        snapshot,
        pid: process.pid,
        fill,
        small_share: (1.0 - huge_share).max(0.0),
        dump: dump.wall,
    })
}

/// How many snapshots are cold; all must be there.
fn count_cold(count: usize) -> Result<usize> {
    let states = vas::states()?;
    let mut cold = 0;
    for name in (0..count).map(name) {
        let state = states.get(&name);
        let state = state.with_context(|| format!("the snapshot {name} is gone"))?;
        ensure!(
            ["stored", "cold"].contains(&state.as_str()),
            "the snapshot {name} is {state}, not in the store"
        );
        cold += usize::from(state == "cold");
    }
    Ok(cold)
}

/// Restores a process, looks at its memory and ends it.
fn restore(taken: &Taken) -> Result<Duration> {
    let restored = timed(&mut taken.snapshot.restoring())?;
    Subject::at(taken.pid).end_intact()?;
    Ok(restored.wall)
}

/// The median of what these have.
fn of(some: &[Taken], what: fn(&Taken) -> f64) -> Result<f64> {
    let all: Vec<f64> = some.iter().map(what).collect();
    median(&all).context("no snapshots")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_as_large_as_shares_are_of() {
        assert_eq!(DEFINITION.machine.mem, "1G");
        assert_eq!(count(150, 64).unwrap(), 24);
        assert!(count(10, 64).is_err());
    }

    #[test]
    fn images_must_fit_into_a_tmpfs() {
        let point = |percent: &str| Point([("percent".into(), percent.into())].into());
        assert!(Pressure.fits(System::CriuTmpfs, &point("25")));
        assert!(!Pressure.fits(System::CriuTmpfs, &point("100")));
        assert!(Pressure.fits(System::VascriuStored, &point("400")));
    }
}
