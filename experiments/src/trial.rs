// SPDX-License-Identifier: GPL-2.0-only
//! One process, dumped and restored by one of the systems; the guest half.

use std::time::Duration;

use anyhow::Result;

use crate::criu::timed;
use crate::procfs::cpu_of_kernel_workers;
use crate::subject::Subject;
use crate::system::{Restore, Snapshot, System};
use crate::times::Times;
use crate::vas::{self, Service};
use crate::workload::Pages;

/// What it took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trial {
    /// The times.
    pub times: Times,
    /// CPU time of the guest's kernel for the way to the store, if it goes there.
    pub drain_cpu: Duration,
}

/// A new process, its dump and its restore; of the snapshot store, when it is there only.
///
/// # Errors
/// When one of them fails, or a page is not as it was before.
pub fn run(system: System, size_mib: usize, pages: Pages) -> Result<Trial> {
    let snapshot = Snapshot::new(system, "trial")?;
    let service = (system == System::VascriuService).then(Service::start);
    let service = service.transpose()?;
    let ready = || service.as_ref().map_or(Ok(()), Service::wait_until_ready);
    let mut subject = Subject::start(size_mib, pages)?;
    ready()?;
    let workers_before = cpu_of_kernel_workers()?;
    let dump = snapshot.dump(subject.pid)?;
    subject.reap()?;
    let drain_cpu = if snapshot.wait_until_stored()? {
        cpu_of_kernel_workers()?.saturating_sub(workers_before)
    } else {
        Duration::ZERO
    };
    snapshot.evict()?;
    ready()?;
    let restore = restore(&snapshot, subject.pid)?;
    snapshot.delete()?;
    Ok(Trial {
        times: Times::new(&dump, &restore),
        drain_cpu,
    })
}

/// Restores the process, looks at its memory and ends it. Of stock CRIU it does so a second
/// time: its memory step is told only by a log, and writing that takes time.
fn restore(snapshot: &Snapshot, pid: i32) -> Result<Restore> {
    let restored = timed(&mut snapshot.restoring())?;
    Subject::at(pid).end_intact()?;
    let memory = match snapshot {
        Snapshot::Stock(_) | Snapshot::Lazy(_) => {
            let memory = snapshot.restore()?.memory;
            Subject::at(pid).end_intact()?;
            memory
        }
        Snapshot::Vas(_) | Snapshot::Stored(_) => vas::memory_restore(&restored.stdout)?,
    };
    Ok(Restore {
        wall: restored.wall,
        memory,
    })
}
