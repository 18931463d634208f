// SPDX-License-Identifier: GPL-2.0-only
//! Where a snapshot is when it is restored.

use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::common;
use crate::criu::timed;
use crate::frame::{
    Case, Claim, Definition, Experiment, Lab, Metric, Metrics, Than, Unit, metrics,
};
use crate::guest::Step;
use crate::subject::{DIR, Subject, use_high_pids, wait_until_gone};
use crate::system::{Snapshot, System, ms};
use crate::vas;
use crate::workload::Pages;

pub(super) struct Tiers;

/// Name of the snapshot.
const NAME: &str = "tiers";

static DEFINITION: Definition = Definition {
    name: "tiers",
    title: "Hot, stored, cold, another microVM",
    question: "What does a restore take, and the snapshot cost, by where the snapshot is: in the \
        guest, in the store, in both, or asked for by another microVM?",
    axes: &[common::SIZE, common::PAGES],
    systems: &[
        System::CriuTmpfs,
        System::Vascriu,
        System::VascriuStored,
        System::VascriuStore,
        System::VascriuOther,
    ],
    metrics: &[
        common::RESTORE,
        common::MEMORY_RESTORE,
        Metric {
            name: "host_bytes",
            about: "host memory that the snapshot costs beside the process restored from it",
            unit: Unit::Bytes,
        },
    ],
    machine: common::MACHINE,
    repeats: [1, 3],
    figures: &[
        common::by_size("Restore", "restore_ms"),
        common::by_size("The memory step of the restore", "memory_restore_ms"),
        common::by_size("Host memory that the snapshot costs", "host_bytes"),
    ],
    claims: &[
        Claim {
            text: "A cold restore (huge pages) is 5 times faster",
            paper: None,
            metric: "restore_ms",
            system: System::VascriuStore,
            than: Than::System(System::CriuTmpfs),
            at: &[("pages", "huge")],
            goal: 5.0,
        },
        Claim {
            text: "A restore in another microVM (huge pages) is 5 times faster",
            paper: None,
            metric: "restore_ms",
            system: System::VascriuOther,
            than: Than::System(System::CriuTmpfs),
            at: &[("pages", "huge")],
            goal: 5.0,
        },
        Claim {
            text: "A snapshot in the store (huge pages) costs a fifth of the host memory",
            paper: None,
            metric: "host_bytes",
            system: System::VascriuStored,
            than: Than::System(System::CriuTmpfs),
            at: &[("pages", "huge")],
            goal: 5.0,
        },
    ],
    notes: &[
        "vascriu: the snapshot is in the guest's memory only; vascriu-stored: there and in the \
         host's store; vascriu-store: in the store only; vascriu-other: in the store only, and \
         restored by a microVM that never saw the process.",
        "Host memory is what the store's files, the microVMs' memory among them, have allocated, \
         and what the monitors have of their own; it is read when guests have given back what they \
         freed: before the dump, when there is the process alone, and after the restored process \
         has read all of its memory. Guests keep free memory in pieces of less than 2 MiB; they \
         compact it before.",
        "Of stock CRIU's memory step there is only a log, which would slow its restore: size has \
         it.",
    ],
};

impl Experiment for Tiers {
    fn definition(&self) -> &'static Definition {
        &DEFINITION
    }

    fn measure(&self, lab: &mut Lab, case: &Case) -> Result<Metrics> {
        let system = case.system;
        let restorer = usize::from(system == System::VascriuOther);
        // Booted before host memory is read for the first time.
        lab.vm(restorer)?;
        let start = Turn::Start {
            size_mib: case.point.mib("size")?,
            pages: case.point.word("pages")?.parse()?,
        };
        let pid: i32 = lab.vm(0)?.ask(&Step::Tiers(start))?;
        let before = lab.settled_bytes()?;
        let dump = Turn::Dump { system, pid };
        lab.vm(0)?.ask::<()>(&Step::Tiers(dump))?;
        let restore = Turn::Restore { system, pid };
        let mut measured: Metrics = lab.vm(restorer)?.ask(&Step::Tiers(restore))?;
        let after = lab.settled_bytes()?;
        lab.vm(restorer)?.ask::<()>(&Step::End { pid })?;
        // Who has restored it has it in memory, too.
        for vm in 0..=restorer {
            let delete = Turn::Delete { system };
            lab.vm(vm)?.ask::<()>(&Step::Tiers(delete))?;
        }
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let cost = after.saturating_sub(before) as f64;
        measured.insert("host_bytes".into(), cost);
        Ok(measured)
    }
}

/// What a microVM is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Turn {
    /// To start a process: its PID.
    Start {
        /// Its memory.
        size_mib: usize,
        /// Its pages.
        pages: Pages,
    },
    /// To dump it, which ends it, to where the system has its snapshots: nothing.
    Dump {
        /// The system.
        system: System,
        /// The PID of the process.
        pid: i32,
    },
    /// To restore it, and to check its memory: [`Metrics`].
    Restore {
        /// The system.
        system: System,
        /// The PID of the process.
        pid: i32,
    },
    /// To delete the snapshot, here and in the store: nothing.
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
        Turn::Start { size_mib, pages } => {
            // The other microVM must have no process with its PID.
            use_high_pids()?;
            let pid = Subject::start(size_mib, pages)?.pid;
            compact()?;
            Ok(json!(pid))
        }
        Turn::Dump { system, pid } => dump(system, pid).map(|()| Value::Null),
        Turn::Restore { system, pid } => Ok(json!(restore(system, pid)?)),
        Turn::Delete { system } => {
            Snapshot::new(system, NAME)?.delete()?;
            Ok(Value::Null)
        }
    }
}

fn dump(system: System, pid: i32) -> Result<()> {
    let snapshot = Snapshot::new(system, NAME)?;
    snapshot.dump(pid)?;
    wait_until_gone(pid)?;
    let stored = snapshot.wait_until_stored()?;
    if stored && system != System::VascriuStored {
        snapshot.evict()?;
    }
    compact()
}

fn restore(system: System, pid: i32) -> Result<Metrics> {
    // Not there yet where another microVM had the process.
    fs::create_dir_all(DIR)?;
    let snapshot = Snapshot::new(system, NAME)?;
    let restored = timed(&mut snapshot.restoring())?;
    Subject::at(pid).check()?;
    compact()?;
    let mut measured = metrics([("restore_ms", ms(restored.wall))]);
    if !matches!(snapshot, Snapshot::Stock(_)) {
        let memory = vas::memory_restore(&restored.stdout)?;
        measured.insert("memory_restore_ms".into(), ms(memory));
    }
    Ok(measured)
}

/// Has the kernel put its free memory together: in small pieces it does not give it back.
fn compact() -> Result<()> {
    fs::write("/proc/sys/vm/compact_memory", "1").context("cannot compact memory")
}
