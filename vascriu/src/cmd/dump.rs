// SPDX-License-Identifier: GPL-2.0-only
//! `vascriu dump`.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde::{Deserialize, Serialize};

use super::{ms, ms_since, print_json};
use crate::clone;
use crate::criu::order::{self, Order};
use crate::criu::orphans::Orphans;
use crate::criu::report::Report;
use crate::criu::run::{self, Process, Run};
use crate::criu::settle::{self, Outcome, settle};
use crate::criu::version::{self, Criu};
use crate::criu::work::{self, Work};
use crate::criu::{rescue, stats};
use crate::device::{self, Kept};
use crate::process;
use crate::snapshot::id::SnapshotId;
use crate::snapshot::images::{self, Found, Images};
use crate::snapshot::label::{Origin, now};
use crate::snapshot::name::Name;
use crate::snapshot::registry::{self, Registry};
use crate::{store, text};

const EXAMPLES: &str = "\
Examples:
  vascriu dump -t $(pidof redis-server) --name redis --tcp-established
  vascriu dump -t 1234 --name redis --replace --ttl 7d
  vascriu dump -t 1234 -D /var/tmp/images --leave-running --json
  vascriu dump -t 1234 --name job --sync    survives this guest, when it returns
  vascriu dump -t 1234 --shell-job          (CRIU's option, see criu(8))";

/// Snapshot a process and its children
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// PID of the root of the tree
    #[arg(short = 't', long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    tree: i32,
    /// Name of the snapshot; without one, it has its identity
    #[arg(long, short)]
    name: Option<Name>,
    /// Even if another snapshot has that name: it loses it
    #[arg(long, requires = "name")]
    replace: bool,
    /// When it may be removed: in 90s, 15m, 2h, 7d
    #[arg(long, value_name = "TIME", value_parser = text::parse_duration)]
    ttl: Option<u64>,
    /// Put a reference to the snapshot into this directory, for `restore -D`
    #[arg(short = 'D', long, value_name = "DIR")]
    images_dir: Option<PathBuf>,
    /// Let the tasks go on afterwards
    #[arg(short = 'R', long)]
    leave_running: bool,
    /// Return when the snapshot is complete in the snapshot store
    #[arg(long, conflicts_with = "guest_only")]
    sync: bool,
    /// Keep it in this guest's memory, not in the snapshot store
    #[arg(long)]
    guest_only: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    /// A dump that is a step of something else. Without a name nobody wants it for long, so it
    /// stays in the guest.
    pub(super) fn of(tree: i32, name: Option<Name>, leave_running: bool) -> Self {
        Self {
            tree,
            guest_only: name.is_none(),
            name,
            replace: false,
            ttl: None,
            images_dir: None,
            leave_running,
            sync: false,
            json: false,
        }
    }
}

/// Why a dump failed. The tasks go on and nothing is left, unless it says so.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Process(#[from] process::Error),
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
    #[error("cannot use the directory {0}")]
    Dir(PathBuf, #[source] io::Error),
    /// It is not known what has come of it.
    #[error("{why}; whether there is a snapshot {id} is not known: `vascriu ls` tells")]
    Unclear {
        id: SnapshotId,
        why: String,
        #[source]
        source: settle::Error,
    },
    /// A CRIU that is none.
    #[error("{0} says that it has succeeded, but there is no snapshot: the plugin did not run")]
    NoSnapshot(PathBuf),
    /// It did not go to the snapshot store, as it should.
    #[error(
        "the snapshot {called} is whole, in this guest's memory, but not in the snapshot store (`vascriu drain {called}` tries again)"
    )]
    NotStored {
        called: String,
        #[source]
        source: store::Error,
    },
    /// CRIU failed after the snapshot was whole, and a task has ended, or may have.
    #[error("{source}, when the snapshot was whole, and not all of its tasks go on: it is kept as {id}{}", left(.alive))]
    Kept {
        source: run::Error,
        id: SnapshotId,
        /// PIDs of tasks that it did not come to end.
        alive: Vec<i32>,
    },
}

fn left(alive: &[i32]) -> String {
    let pids: Vec<_> = alive.iter().map(ToString::to_string).collect();
    if pids.is_empty() {
        String::new()
    } else {
        format!("; these are still there: {}", pids.join(" "))
    }
}

/// Whether a snapshot goes to the snapshot store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// In the background, if there is a store.
    Background,
    /// At once, and it must.
    Sync,
    /// No.
    GuestOnly,
}

/// What was dumped, and how long it took.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Dumped {
    pub snapshot: SnapshotId,
    name: Option<Name>,
    tasks: usize,
    /// Captured 4 KiB pages.
    pages: u64,
    /// The whole dump.
    pub dump_ms: f64,
    /// CRIU alone, from start to end.
    criu_ms: f64,
    /// The tasks stood still.
    pub frozen_ms: f64,
    /// Captures and CRIU's own work on memory.
    memory_dump_ms: f64,
    /// The captures alone.
    capture_ms: f64,
    /// Pages that CRIU wrote: stacks, file mappings, shared memory.
    pages_written: u64,
    image_bytes: u64,
    /// Where its memory is.
    kept: Kept,
    /// Why it stays in the guest, where it should not.
    store_error: Option<String>,
    /// What the snapshot store took of `dump_ms`; the tasks have gone on before.
    store_ms: f64,
}

/// A directory that CRIU inherits, and which refers to the snapshot when that is there.
#[derive(Debug)]
struct ReferenceDir {
    path: PathBuf,
    dir: File,
    is_new: bool,
}

impl ReferenceDir {
    fn new(path: &Path) -> io::Result<Self> {
        let is_new = !path.exists();
        fs::create_dir_all(path)?;
        let dir = File::open(path)?;
        dir.metadata()?
            .is_dir()
            .then_some(())
            .ok_or(io::ErrorKind::NotADirectory)?;
        fcntl(dir.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
        let path = path.into();
        Ok(Self { path, dir, is_new })
    }

    /// There is nothing to refer to.
    fn forget(&self) {
        if self.is_new {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// One dump.
struct Dump<'a> {
    args: &'a Args,
    options: &'a [String],
    registry: &'a Registry,
    id: SnapshotId,
    dir: Option<ReferenceDir>,
}

impl Dump<'_> {
    fn dir(&self) -> Option<BorrowedFd<'_>> {
        self.dir.as_ref().map(|d| d.dir.as_fd())
    }

    fn order(&self, criu: &Criu, process: &Process) -> Order {
        // Others go on from this memory, too.
        let stays = ["--leave-stopped", "-s"];
        let left_running = self.options.iter().any(|o| stays.contains(&o.as_str()));
        Order::Dump(order::Dump {
            id: self.id,
            name: self.args.name.clone(),
            replace: self.args.replace,
            origin: Origin::process(),
            expires: self.args.ttl.map(|ttl| now().saturating_add(ttl)),
            left_running: left_running || self.args.leave_running,
            criu: criu.version.clone(),
            reference_dir: self.dir().map(|d| d.as_raw_fd()),
            report: Some(process.report()),
        })
    }

    /// Runs CRIU, and says what has come of it.
    fn run(&self, start: Instant) -> Result<Dumped, Error> {
        let criu = Criu::find()?;
        let images = Images::empty()?;
        let work = Work::new()?;
        // It could not inherit the directory that shall refer to the snapshot.
        let process = match self.dir {
            Some(_) => Process::child(),
            None => Process::any(&criu, self.options),
        };
        let process = process?;
        let order = self.order(&criu, &process);
        let own: &[_] = if self.args.leave_running {
            &["--leave-running"]
        } else {
            &[]
        };
        let run = Run {
            criu: &criu,
            action: "dump",
            tree: Some(self.args.tree),
            order: &order,
            images: &images,
            work: &work,
            own,
            user: self.options,
        };
        let frozen = rescue::Frozen::look(self.options);
        let orphans = Orphans::from_now_on();
        let criu_start = Instant::now();
        let ran = run.run(process);
        let criu_ms = ms_since(criu_start);
        if ran.is_err() {
            // A CRIU whose wrapper was killed, and the child by which CRIU has tried out the
            // kernel: the one would go on, the other sleep for ever.
            orphans.kill(|pid| process::has_argument(pid, work.path()));
        }
        let (report, found) = self.settle(ran, &criu, &frozen)?;
        let stats = stats::dump(work.path());
        let manifest = found.manifest;
        Ok(Dumped {
            snapshot: self.id,
            name: self.args.name.clone(),
            tasks: manifest.tasks.len(),
            pages: manifest.pages(),
            criu_ms,
            frozen_ms: ms(stats.frozen_us),
            memory_dump_ms: ms(manifest.capture_us() + stats.memdump_us),
            capture_ms: ms(manifest.capture_us()),
            pages_written: stats.pages_written,
            image_bytes: report.image_bytes,
            kept: Kept::Hot,
            store_error: None,
            store_ms: 0.0,
            dump_ms: ms_since(start),
        })
    }

    fn settle(
        &self,
        ran: Result<Report, run::Error>,
        criu: &Criu,
        frozen: &rescue::Frozen,
    ) -> Result<(Report, Found), Error> {
        let outcome = settle(self.registry, self.id, self.dir(), ran.is_ok());
        match (outcome, ran) {
            (Ok(Outcome::Whole(found)), Ok(report)) => Ok((report, found)),
            (Ok(Outcome::Whole(found)), Err(source)) => {
                let tasks = found.manifest.tasks.iter();
                let alive = tasks.filter(|t| t.is_alive()).map(|t| t.pid).collect();
                let id = self.id;
                Err(Error::Kept { source, id, alive })
            }
            (Ok(_), Err(e)) => {
                rescue::release(self.args.tree, frozen);
                if let Some(dir) = &self.dir {
                    dir.forget();
                }
                Err(e.into())
            }
            (Ok(_), Ok(_)) => Err(Error::NoSnapshot(criu.program.clone())),
            (Err(source), ran) => {
                let why = ran.map_or_else(|e| e.to_string(), |_| "CRIU has succeeded".into());
                let id = self.id;
                Err(Error::Unclear { id, why, source })
            }
        }
    }
}

/// What can be done of what is wanted.
fn keep(args: &Args, registry: &Registry) -> Result<Keep, device::Error> {
    let has_store = registry.session().has_store()?;
    match (args.sync, args.guest_only || !has_store) {
        (true, true) => Err(device::Error::NoStore),
        (true, false) => Ok(Keep::Sync),
        (false, true) => Ok(Keep::GuestOnly),
        (false, false) => Ok(Keep::Background),
    }
}

/// Dumps, and returns when the tasks have gone on or ended.
pub(super) fn dump(args: &Args, options: &[String], start: Instant) -> Result<Dumped, Error> {
    process::comm(args.tree)?;
    let registry = Registry::open()?;
    let keep = keep(args, &registry)?;
    // The plugin claims the name; but why begin?
    registry.make_way(args.name.as_ref().filter(|_| !args.replace))?;
    let dir = args.images_dir.as_deref();
    let dir = dir.map(|d| ReferenceDir::new(d).map_err(|e| Error::Dir(d.into(), e)));
    let dump = Dump {
        args,
        options,
        registry: &registry,
        id: SnapshotId::random(),
        dir: dir.transpose()?,
    };
    let mut dumped = dump.run(start)?;
    // It is whole, and the tasks have gone on: nothing of that changes any more.
    if keep != Keep::GuestOnly {
        let store_start = Instant::now();
        let id = dumped.snapshot;
        match store::drain(&registry, id, keep == Keep::Sync) {
            Ok(kept) => dumped.kept = kept,
            Err(source) if keep == Keep::Sync => {
                let called = super::called(args.name.as_ref(), id);
                return Err(Error::NotStored { called, source });
            }
            Err(e) => dumped.store_error = Some(text::chain(&e)),
        }
        dumped.store_ms = ms_since(store_start);
        dumped.dump_ms = ms_since(start);
    }
    Ok(dumped)
}

/// Runs the command, with these options for CRIU.
///
/// # Errors
/// The dump failed; it says what has come of the tasks.
pub fn run(args: &Args, options: &[String], start: Instant) -> anyhow::Result<ExitCode> {
    let failed = |e| match e {
        Error::NotStored { .. } => anyhow::Error::from(e),
        e => anyhow::Error::from(e).context(format!("cannot dump {}", args.tree)),
    };
    let done = clone::inside(args.tree, |tree| {
        let args = Args {
            tree,
            ..args.clone()
        };
        dump(&args, options, start).map_err(failed)
    })?;
    let called = super::called(done.name.as_ref(), done.snapshot);
    if let Some(e) = &done.store_error {
        eprintln!("vascriu: `{called}` is in this guest's memory only: {e}");
    }
    if args.json {
        print_json(&done).context("writing the result")?;
    } else {
        println!(
            "{called}: {} task(s), {} kept in {:.1} ms; frozen for {:.0} ms, whole dump {:.0} ms",
            done.tasks,
            text::memory(done.pages),
            done.capture_ms,
            done.frozen_ms,
            done.dump_ms,
        );
    }
    Ok(ExitCode::SUCCESS)
}
