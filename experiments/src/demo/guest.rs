// SPDX-License-Identifier: GPL-2.0-only
//! The guest half of the demo.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Context, Result};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde::{Deserialize, Serialize};

use super::Run;
use crate::criu::timed;
use crate::redis::{self, State, difference, load};
use crate::subject::{DIR, use_high_pids};
use crate::system::{Snapshot, System, ms};
use crate::times::Times;
use crate::vas;

/// Name of the snapshot that goes to another microVM.
const NAME: &str = "demo";

/// What happened in the first microVM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct First {
    /// One per system.
    pub runs: Vec<Run>,
    /// The dump of Redis into the store.
    pub kept: Kept,
}

/// A Redis that is in the store only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// What it held.
    pub expected: State,
    /// The whole dump, until the snapshot was complete in the store.
    pub dump_ms: f64,
    /// Of it, what the store took.
    pub store_ms: f64,
    /// How long Redis was frozen.
    pub frozen_ms: f64,
}

/// What happened in the second microVM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Restored {
    /// The whole restore, with what it brings from the store.
    pub restore_ms: f64,
    /// The memory step of the restore.
    pub memory_restore_ms: f64,
    /// What Redis holds differently, or does not do any more.
    pub differs: Option<String>,
}

/// Everything in the first microVM: Redis with `size_mib` MiB, through each system, and into
/// the store.
///
/// # Errors
/// When a step fails. Different data after a restore is a result, not an error.
pub fn first(size_mib: usize, disk: &Path) -> Result<First> {
    let dir = Path::new(DIR);
    let on_disk = dir.join("disk");
    fs::create_dir_all(&on_disk)?;
    eprintln!("making a file system on {}", disk.display());
    timed(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk))?;
    timed(Command::new("mount").arg(disk).arg(&on_disk))?;

    // So that no system pays for reading the programs from the image.
    timed(Command::new("vascriu").arg("check"))?;

    use_high_pids()?;
    let mut server = redis::start(dir)?;
    let pid = i32::try_from(server.id())?;
    let expected = load(size_mib)?;
    redis::wait_until_idle(pid)?;

    let mut runs = Vec::new();
    for (system, snapshot) in [
        (System::CriuDisk, Snapshot::Stock(on_disk.join("images"))),
        (System::CriuTmpfs, Snapshot::Stock(dir.join("images"))),
        (System::Vascriu, Snapshot::Vas("in-guest".into())),
    ] {
        let run = run(system, &snapshot, &mut server, &expected);
        runs.push(run.with_context(|| system.to_string())?);
    }
    eprintln!("vascriu: dump into the snapshot store");
    let (dump, store) = vas::dump_to_store(pid, NAME, &[])?;
    let kept = Kept {
        expected,
        dump_ms: ms(dump.wall),
        store_ms: ms(store),
        frozen_ms: ms(dump.frozen),
    };
    Ok(First { runs, kept })
}

/// Dump, restore, compare.
fn run(system: System, snapshot: &Snapshot, server: &mut Child, expected: &State) -> Result<Run> {
    let pid = i32::try_from(server.id())?;
    eprintln!("{system}: dump");
    let dump = snapshot.dump(pid).context("dump")?;
    // The first dump killed our child: its PID must be free for the restore.
    server.wait()?;
    if let (System::CriuDisk, Snapshot::Stock(images)) = (system, snapshot) {
        forget_cached(images)?;
    }
    eprintln!("{system}: restore");
    let restore = snapshot.restore().context("restore")?;
    eprintln!("{system}: comparing the data");
    let differs = difference(expected)?;
    redis::wait_until_idle(pid)?;
    snapshot.delete()?;
    Ok(Run {
        system,
        times: Times::new(&dump, &restore),
        image_bytes: dump.image_bytes,
        data_equal: differs.is_none(),
        differs,
    })
}

/// Everything in the second microVM: Redis, from the store.
///
/// # Errors
/// As [`first`].
pub fn again(expected: &State) -> Result<Restored> {
    // The folder that Redis runs in. Files are not in a snapshot.
    fs::create_dir_all(DIR)?;
    timed(Command::new("vascriu").arg("check"))?;
    eprintln!("vascriu: restore from the snapshot store");
    let restore = vas::restore(NAME)?;
    eprintln!("vascriu: comparing the data");
    let differs = difference(expected)?;
    Ok(Restored {
        restore_ms: ms(restore.wall),
        memory_restore_ms: ms(restore.memory),
        differs,
    })
}

/// Writes the files in `dir` to the disk and drops them from the page cache, so
/// that a restore reads the disk.
fn forget_cached(dir: &Path) -> Result<()> {
    eprintln!("writing the images to the disk");
    for entry in fs::read_dir(dir)? {
        let file = fs::File::open(entry?.path())?;
        file.sync_all()?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    }
    Ok(())
}
