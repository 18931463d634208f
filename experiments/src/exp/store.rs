// SPDX-License-Identifier: GPL-2.0-only
//! The way of a snapshot to the host's store, against a copy of as much memory.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use nix::sys::resource::UsageWho;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::common;
use crate::criu::cpu_of;
use crate::frame::{
    Case, Claim, Definition, Experiment, Lab, Metric, Metrics, Than, Unit, metrics,
};
use crate::guest::Step;
use crate::procfs::cpu_of_kernel_workers;
use crate::subject::DIR;
use crate::system::{System, ms};
use crate::vas;
use crate::workload::{self, Pages, Patterned};

pub(super) struct Store;

/// Name of the snapshot.
const NAME: &str = "store";

static DEFINITION: Definition = Definition {
    name: "store",
    title: "The way to the store",
    question: "How long does a snapshot take from the guest to the host's store, while its \
        process goes on, and what CPU time and host memory, against a copy of as much memory in \
        the guest?",
    axes: &[common::SIZE, common::PAGES],
    systems: &[System::Copy, System::VascriuStored],
    metrics: &[
        Metric {
            name: "store_ms",
            about: "from the end of the dump until the snapshot is complete in the store; of \
                copy, the copy",
            unit: Unit::Ms,
        },
        Metric {
            name: "guest_cpu_ms",
            about: "CPU time of the guest for it",
            unit: Unit::Ms,
        },
        Metric {
            name: "host_bytes",
            about: "what host memory grew by, while the process goes on",
            unit: Unit::Bytes,
        },
    ],
    machine: common::MACHINE,
    repeats: [1, 5],
    figures: &[
        common::by_size("To the store", "store_ms"),
        common::by_size("CPU time of the guest", "guest_cpu_ms"),
    ],
    claims: &[
        Claim {
            text: "A drain of huge pages, which are remapped, is 10 times faster than a copy",
            paper: None,
            metric: "store_ms",
            system: System::VascriuStored,
            than: Than::System(System::Copy),
            at: &[("pages", "huge")],
            goal: 10.0,
        },
        Claim {
            text: "A drain of 4 KiB pages, which the host copies, takes a fifth of the guest's \
                CPU time that a copy takes",
            paper: None,
            metric: "guest_cpu_ms",
            system: System::VascriuStored,
            than: Than::System(System::Copy),
            at: &[("pages", "4k")],
            goal: 5.0,
        },
        Claim {
            text: "A drain of huge pages grows host memory by a tenth of what a copy does",
            paper: None,
            metric: "host_bytes",
            system: System::VascriuStored,
            than: Than::System(System::Copy),
            at: &[("pages", "huge")],
            goal: 10.0,
        },
    ],
    notes: &[
        "copy writes as much memory of the process's to a new file on the guest's tmpfs, which is \
         what CRIU does with pages; it has pages as the process has them.",
        "The CPU time of a drain is that of the guest kernel's workers (kworker/u*) meanwhile; \
         the host's is in store_ms only: host and guest share one CPU.",
        "Host memory is what the store's files and the monitors have, read when the guest has \
         given back what it freed, before and after; free memory in pieces of less than 2 MiB it \
         keeps, so the growth may be less than what was written, and none is at least one byte.",
        "The process goes on, and checks all its memory after the drain; a single bad page ends \
         the run.",
    ],
};

impl Experiment for Store {
    fn definition(&self) -> &'static Definition {
        &DEFINITION
    }

    fn measure(&self, lab: &mut Lab, case: &Case) -> Result<Metrics> {
        let size_mib = case.point.mib("size")?;
        let pages = case.point.word("pages")?.parse()?;
        let pid: i32 = lab.vm(0)?.ask(&Step::Start { size_mib, pages })?;
        let before = lab.settled_bytes()?;
        let turn = match case.system {
            System::Copy => Turn::Copy { size_mib, pages },
            _ => Turn::Drain { pid },
        };
        let mut measured: Metrics = lab.vm(0)?.ask(&Step::Store(turn))?;
        let grown = lab.settled_bytes()?.saturating_sub(before).max(1);
        let vm = lab.vm(0)?;
        vm.ask::<()>(&Step::Check { pid })?;
        vm.ask::<()>(&Step::End { pid })?;
        let turn = Turn::Forget {
            system: case.system,
        };
        vm.ask::<()>(&Step::Store(turn))?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        measured.insert("host_bytes".into(), grown as f64);
        Ok(measured)
    }
}

/// What the microVM is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Turn {
    /// To dump a process, which goes on, into the store: [`Metrics`].
    Drain {
        /// Its PID.
        pid: i32,
    },
    /// To copy memory to tmpfs: [`Metrics`].
    Copy {
        /// How much.
        size_mib: usize,
        /// Its pages.
        pages: Pages,
    },
    /// To delete what that made: nothing.
    Forget {
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
        Turn::Drain { pid } => Ok(json!(drain(pid)?)),
        Turn::Copy { size_mib, pages } => Ok(json!(copy(size_mib, pages)?)),
        Turn::Forget { system } => {
            match system {
                System::Copy => fs::remove_file(copied())?,
                _ => vas::delete(NAME)?,
            }
            Ok(Value::Null)
        }
    }
}

fn drain(pid: i32) -> Result<Metrics> {
    let before = cpu_of_kernel_workers()?;
    let (_, store) = vas::dump_to_store(pid, NAME, &["--leave-running"])?;
    let cpu = cpu_of_kernel_workers()?.saturating_sub(before);
    Ok(metrics([
        ("store_ms", ms(store)),
        ("guest_cpu_ms", ms(cpu)),
    ]))
}

/// Copies memory to a new file on tmpfs, as CRIU does.
fn copy(size_mib: usize, pages: Pages) -> Result<Metrics> {
    let memory = Patterned::new(workload::map(size_mib, pages)?, 1);
    let path = copied();
    let cpu_before = cpu_of(UsageWho::RUSAGE_SELF)?;
    let begun = Instant::now();
    File::create(&path)
        .and_then(|mut file| file.write_all(memory.bytes()))
        .with_context(|| format!("cannot write {}", path.display()))?;
    let copy = begun.elapsed();
    let cpu = cpu_of(UsageWho::RUSAGE_SELF)?.saturating_sub(cpu_before);
    Ok(metrics([("store_ms", ms(copy)), ("guest_cpu_ms", ms(cpu))]))
}

fn copied() -> PathBuf {
    Path::new(DIR).join("copy")
}
