// SPDX-License-Identifier: GPL-2.0-only
//! `vascriu rollback`.
//!
//! What runs is dumped before the snapshot is restored under its PIDs: so at any moment either
//! tasks run, or a complete snapshot has them. If the restore fails, they go on from that.

use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::Serialize;

use super::restore::{self, Restored};
use super::{called, clone, dump, forget, ms_since, print_json};
use crate::criu::run::Process;
use crate::criu::version::Criu;
use crate::process;
use crate::snapshot::id::{Member, SnapshotId};
use crate::snapshot::images::Images;
use crate::snapshot::manifest::Manifest;
use crate::snapshot::name::Name;
use crate::snapshot::registry::Registry;

/// How long parents may take to reap what has ended.
const PATIENCE: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  vascriu dump -t 1234 --name step1 --leave-running
  vascriu rollback step1                    1234 is again what it was then
  vascriu rollback step1 --keep tried       … and `vascriu rollback tried` undoes that
  vascriu rollback step1 -t 5678            replaces another tree";

/// Replace a running tree by a snapshot of it, under the same PIDs
///
/// What runs is dumped first, so that it goes on if the snapshot cannot be restored. It must not
/// be a container: its engine has to know, and restores it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Its name, its identity, or the beginning of that
    snapshot: String,
    /// PID of the root of the tree that is replaced; without, the one that the snapshot is of
    #[arg(short = 't', long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    tree: Option<i32>,
    /// Keep what is replaced as a snapshot of this name
    #[arg(long, value_name = "NAME")]
    keep: Option<Name>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What runs now, and how long it took.
#[derive(Debug, Serialize)]
struct RolledBack {
    snapshot: SnapshotId,
    name: Option<Name>,
    /// Root of the tree.
    pid: i32,
    tasks: usize,
    /// The snapshot of what was replaced.
    kept: Option<SnapshotId>,
    /// The dump of what was replaced.
    dump_ms: f64,
    /// The restore.
    restore_ms: f64,
    /// All of it.
    rollback_ms: f64,
}

/// The tree that the snapshot is of: the very tasks, or ones that were restored under that PID.
fn tree(manifest: &Manifest) -> anyhow::Result<i32> {
    let root = manifest.tasks.first().context("the snapshot has no task")?;
    let pid = root.vpid.0;
    let was_restored = || {
        process::restored_from(pid).is_some()
            && process::comm(pid).is_ok_and(|comm| comm == root.comm)
    };
    if root.pid == pid && root.is_alive() || was_restored() {
        return Ok(pid);
    }
    match Path::new(&format!("/proc/{pid}")).exists() {
        true => bail!(
            "PID {pid} is another process than the snapshot's: `-t {pid}` if it is to be replaced"
        ),
        false => bail!(
            "there is no PID {pid}, which the snapshot is of: `vascriu restore` brings it back, `-t` replaces another tree"
        ),
    }
}

/// Waits until all PIDs of a snapshot are free: what has ended has them until it is reaped.
fn wait_until_free(manifest: &Manifest) -> anyhow::Result<()> {
    let begun = Instant::now();
    for task in &manifest.tasks {
        let pid = task.vpid.0;
        let path = format!("/proc/{pid}");
        while Path::new(&path).exists() {
            ensure!(
                begun.elapsed() < PATIENCE,
                "PID {pid} is not free: its parent ({}) does not reap it, or it is another process's",
                process::parent(pid).unwrap_or_default()
            );
            sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

/// Restores a snapshot that was unpacked before, once its PIDs are free.
fn restore(
    criu: &Criu,
    id: SnapshotId,
    images: &Images,
    manifest: &Manifest,
    options: &[String],
) -> anyhow::Result<Restored> {
    let start = Instant::now();
    wait_until_free(manifest)?;
    let process = Process::child()?;
    Ok(restore::run_criu(
        criu, process, id, images, options, false, start,
    )?)
}

/// Restores what was dumped a moment ago.
fn go_on(
    criu: &Criu,
    registry: &Registry,
    id: SnapshotId,
    options: &[String],
) -> anyhow::Result<()> {
    let vas = registry.open_member(id, Member::Images)?;
    let (images, found) = Images::of(&vas, id)?;
    restore(criu, id, &images, &found.manifest, options).map(drop)
}

fn rollback(args: &Args, options: &[String], start: Instant) -> anyhow::Result<RolledBack> {
    let criu = Criu::find()?;
    let registry = Registry::open()?;
    let entry = clone::find(&registry, &args.snapshot)?;
    // While it is open, nobody removes the snapshot.
    let vas = registry.open_member(entry.id, Member::Images)?;
    let (images, found) = Images::of(&vas, entry.id)?;
    ensure!(
        found.descriptors.is_none(),
        "it is a container's: end the container, and have its engine restore it"
    );
    let tree = match args.tree {
        Some(tree) => tree,
        None => tree(&found.manifest)?,
    };
    ensure!(
        process::vpid(tree)?.0 == tree,
        "{tree} is in a PID namespace of its own: end it, and restore the snapshot there"
    );
    if let Some(name) = &args.keep {
        registry.is_free(name)?;
    }
    let before = dump::Args::of(tree, args.keep.clone(), false);
    let before = dump::dump(&before, options, start)?;
    let restored = restore(&criu, entry.id, &images, &found.manifest, options);
    let restored = restored.map_err(|e| {
        let kept = before.snapshot;
        match go_on(&criu, &registry, kept, options) {
            Ok(()) if args.keep.is_some() => e.context("what ran goes on, and is kept"),
            Ok(()) => {
                forget(kept);
                e.context("what ran goes on")
            }
            Err(why) => e.context(format!(
                "what ran does not go on ({why:#}), and is kept: `vascriu restore {kept}`"
            )),
        }
    })?;
    if args.keep.is_none() {
        forget(before.snapshot);
    }
    Ok(RolledBack {
        snapshot: entry.id,
        name: entry.name().cloned(),
        pid: restored.pid,
        tasks: restored.tasks,
        kept: args.keep.is_some().then_some(before.snapshot),
        dump_ms: before.dump_ms,
        restore_ms: restored.restore_ms,
        rollback_ms: ms_since(start),
    })
}

/// Runs the command, with these options for CRIU.
///
/// # Errors
/// What ran goes on, or is kept as a snapshot: it says so.
pub fn run(args: &Args, options: &[String], start: Instant) -> anyhow::Result<ExitCode> {
    let done = rollback(args, options, start);
    let done = done.with_context(|| format!("cannot roll back to {}", args.snapshot))?;
    if args.json {
        print_json(&done)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{}: {} task(s), root {}; dump {:.0} ms, restore {:.0} ms",
        called(done.name.as_ref(), done.snapshot),
        done.tasks,
        done.pid,
        done.dump_ms,
        done.restore_ms,
    );
    Ok(ExitCode::SUCCESS)
}
