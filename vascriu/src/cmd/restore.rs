// SPDX-License-Identifier: GPL-2.0-only
//! `vascriu restore`.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::Serialize;

use super::{ms, ms_since, print_json};
use crate::criu::order::{self, Order};
use crate::criu::orphans::Orphans;
use crate::criu::run::{self, Process, Run};
use crate::criu::stats;
use crate::criu::version::{self, Criu};
use crate::criu::work::{self, Work};
use crate::snapshot::id::{Member, SnapshotId};
use crate::snapshot::images::{self, Images};
use crate::snapshot::label::Label;
use crate::snapshot::name::Name;
use crate::snapshot::reference::{self, Reference};
use crate::snapshot::registry::{self, Registry};
use crate::{device, store, text};

const EXAMPLES: &str = "\
Examples:
  vascriu restore redis -d --tcp-established
  vascriu restore 3f2a -d                   by the beginning of its identity
  vascriu restore -D /var/tmp/images --pidfile /run/x.pid -d
  vascriu restore web -d                    also after a reboot of this guest
  vascriu restore job --shell-job           waits; its exit status is the job's";

/// Bring a snapshot back to life, as often as you like
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Its name, its identity, or the beginning of that
    #[arg(required_unless_present = "images_dir", conflicts_with = "images_dir")]
    snapshot: Option<String>,
    /// The snapshot that this directory refers to
    #[arg(short = 'D', long, value_name = "DIR")]
    images_dir: Option<PathBuf>,
    /// Return when the tasks run, instead of waiting for the root of the tree
    #[arg(short = 'd', long)]
    restore_detached: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Why a restore failed. No restored task is left.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Device(#[from] device::Error),
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error(transparent)]
    Version(#[from] version::Error),
    #[error(transparent)]
    Images(#[from] images::Error),
    #[error(transparent)]
    Work(#[from] work::Error),
    #[error(transparent)]
    Criu(#[from] run::Error),
    #[error("cannot bring it from the snapshot store")]
    Store(#[from] store::Error),
    #[error("cannot use the directory {0}")]
    Dir(PathBuf, #[source] io::Error),
    #[error("{0}")]
    Reference(PathBuf, #[source] reference::Error),
    /// There is nothing of ours.
    #[error(
        "{0} refers to no snapshot: it was not made by vascriu (images of CRIU alone are restored by `criu restore`)"
    )]
    NoReference(PathBuf),
    /// What is referred to is not reachable.
    #[error(
        "{0} is not there: it was removed, or it is in the memory or the snapshot store of another machine"
    )]
    Missing(Box<Reference>),
    /// What is referred to is something else.
    #[error("the reference was altered: {0} is there, but has another `vas.json`")]
    Altered(Box<Reference>),
    /// CRIU says that it has restored it, but no task's memory was wanted.
    #[error("CRIU has restored no task")]
    NoTask,
}

/// What was restored, and how long it took.
#[derive(Debug, Serialize)]
pub(super) struct Restored {
    snapshot: SnapshotId,
    name: Option<Name>,
    /// A copy, not the continuation of the tasks that were dumped.
    clone: bool,
    /// Root of the restored tree.
    pub pid: i32,
    pub tasks: usize,
    /// Attached 4 KiB pages.
    pages: u64,
    /// The whole restore.
    pub restore_ms: f64,
    /// CRIU alone, from start to end.
    criu_ms: f64,
    /// From CRIU's beginning to the tasks' being ready, by its own clock.
    criu_restore_ms: f64,
    /// The attaches.
    memory_restore_ms: f64,
    /// Pages that CRIU read: stacks, file mappings, shared memory.
    pages_read: u64,
}

/// What the directory `path` refers to.
fn referred(path: &Path) -> Result<Reference, Error> {
    let dir = File::open(path).map_err(|e| Error::Dir(path.into(), e))?;
    let reference = Reference::load_at(dir.as_fd());
    let reference = reference.map_err(|e| Error::Reference(path.into(), e))?;
    reference.ok_or_else(|| Error::NoReference(path.into()))
}

/// Brings a snapshot from the store if it is not here; whether it is then.
fn bring(registry: &Registry, id: SnapshotId) -> Result<bool, Error> {
    use device::Error::{NoStore, NotStored};
    match store::load(registry, id) {
        Err(store::Error::Device(NoStore | NotStored(_))) => Ok(false),
        done => Ok(done.map(|()| true)?),
    }
}

/// Restores, and returns when the tasks run. They become children of ours.
fn restore(args: &Args, options: &[String], start: Instant) -> Result<Restored, Error> {
    let criu = Criu::find()?;
    let registry = Registry::open()?;
    let text = args.snapshot.as_deref().unwrap_or_default();
    let reference = args.images_dir.as_deref().map(referred).transpose()?;
    let id = match &reference {
        Some(reference) => reference.snapshot,
        None => registry.identify(text)?,
    };
    if !bring(&registry, id)? {
        return Err(reference.map_or_else(
            || registry::Error::Unknown(text.into()).into(),
            |r| Error::Missing(Box::new(r)),
        ));
    }
    // While it is open, nobody removes the snapshot.
    let vas = registry.open_member(id, Member::Images)?;
    let (images, found) = Images::of(&vas, id)?;
    if let Some(reference) = reference.filter(|r| r.manifest_sha256 != found.digest) {
        return Err(Error::Altered(Box::new(reference)));
    }
    // Tasks that are waited for must become our children.
    let process = if args.restore_detached {
        Process::any(&criu, options)
    } else {
        Process::child()
    };
    let mut restored = run_criu(&criu, process?, id, &images, options, false, start)?;
    restored.name = Label::parse(&vas.label()?).and_then(|l| l.name);
    Ok(restored)
}

/// Makes one more copy of a snapshot that is here; the PID of its root.
pub(crate) fn copy(criu: &Criu, id: SnapshotId, options: &[String]) -> Result<i32, Error> {
    let registry = Registry::open()?;
    let vas = registry.open_member(id, Member::Images)?;
    let (images, _) = Images::of(&vas, id)?;
    let process = Process::child()?;
    Ok(run_criu(criu, process, id, &images, options, true, Instant::now())?.pid)
}

/// Restores from images that were unpacked before.
pub(super) fn run_criu(
    criu: &Criu,
    process: Process,
    id: SnapshotId,
    images: &Images,
    options: &[String],
    clone: bool,
    start: Instant,
) -> Result<Restored, Error> {
    let work = Work::new()?;
    let order = Order::Restore(order::Restore {
        id,
        clone,
        report: Some(process.report()),
        engine: None,
    });
    let run = Run {
        criu,
        action: "restore",
        tree: None,
        order: &order,
        images,
        work: &work,
        own: &["--restore-detached"],
        user: options,
    };
    // CRIU's orphans become ours: nothing half restored gets away.
    let orphans = Orphans::from_now_on();
    let criu_start = Instant::now();
    let report = run.run(process).inspect_err(|_| orphans.kill(|_| true))?;
    let criu_ms = ms_since(criu_start);
    let stats = stats::restore(work.path());
    // CRIU comes to the root first.
    let root = report.attached.first().ok_or(Error::NoTask)?;
    Ok(Restored {
        snapshot: id,
        name: None,
        clone: report.clone,
        pid: root.pid,
        tasks: report.attached.len(),
        pages: report.attached.iter().map(|a| a.pages).sum(),
        criu_ms,
        criu_restore_ms: ms(stats.restore_us),
        memory_restore_ms: ms(report.attached.iter().map(|a| a.us).sum()),
        pages_read: stats.pages_restored,
        restore_ms: ms_since(start),
    })
}

/// Waits until the root of the restored tree has ended, and reaps whom it leaves meanwhile;
/// says how it ended, as a shell would.
fn wait_for(root: i32) -> u8 {
    loop {
        match waitpid(None::<Pid>, None) {
            Ok(WaitStatus::Exited(pid, status)) if pid.as_raw() == root => {
                return u8::try_from(status & 0xff).unwrap_or(1);
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == root => {
                return u8::try_from(128 + signal as i32).unwrap_or(1);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return 0,
        }
    }
}

/// Runs the command, with these options for CRIU.
///
/// # Errors
/// The restore failed; no restored task is left.
pub fn run(args: &Args, options: &[String], start: Instant) -> anyhow::Result<ExitCode> {
    let dir = args.images_dir.as_ref().map(|d| d.display().to_string());
    let what = args.snapshot.clone().or(dir).unwrap_or_default();
    let done = restore(args, options, start).with_context(|| format!("cannot restore {what}"))?;
    if args.json {
        print_json(&done)?;
    } else {
        println!(
            "{}: {} task(s), root {}, {} attached in {:.1} ms; whole restore {:.0} ms",
            super::called(done.name.as_ref(), done.snapshot),
            done.tasks,
            done.pid,
            text::memory(done.pages),
            done.memory_restore_ms,
            done.restore_ms,
        );
    }
    if args.restore_detached {
        return Ok(ExitCode::SUCCESS);
    }
    Ok(wait_for(done.pid).into())
}
