//! The `vascriu` command.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use vascriu::device::{self, Range, Session, Stat, VAS_ACCESS_READ};
use vascriu::manifest::{Header, Manifest, Task};
use vascriu::name::Name;
use vascriu::restore::Source;
use vascriu::store::{Hold, Store};
use vascriu::{check, dump, options, restore};

/// In-memory snapshots of processes and containers: CRIU, with the memory kept
/// in DRAM by the kernel (VAS) instead of copied to files
#[derive(Debug, Parser)]
#[command(name = "vascriu", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  vascriu dump -t 1234 --name web          snapshot the tree of 1234 and end it
  vascriu dump -t 1234 --leave-running     … and let it go on
  vascriu restore web -d                   bring it back, and return
  vascriu restore web                      … and wait for it, again and again
  vascriu ls; vascriu show web; vascriu rm web

CRIU's own options go to CRIU: `vascriu dump -t 1234 --tcp-established -v4 -o /tmp/log`;
what follows `--` goes there unseen.";

const DUMP_EXAMPLES: &str = "\
Examples:
  vascriu dump -t $(pidof redis-server) --name redis --tcp-established
  vascriu dump -t 1234 -D /var/tmp/images --leave-running --json
  vascriu dump -t 1234 --shell-job          (CRIU's option, see criu(8))";

const RESTORE_EXAMPLES: &str = "\
Examples:
  vascriu restore redis -d --tcp-established
  vascriu restore -D /var/tmp/images --pidfile /run/x.pid -d
  vascriu restore job --shell-job           waits; its exit status is the job's";

#[derive(Debug, Subcommand)]
enum Command {
    /// Snapshot a process and its children
    #[command(after_help = DUMP_EXAMPLES)]
    Dump(DumpArgs),
    /// Bring a snapshot back to life, as often as you like
    #[command(after_help = RESTORE_EXAMPLES)]
    Restore(RestoreArgs),
    /// List snapshots
    #[command(after_help = "Example:\n  vascriu ls --json")]
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one snapshot: its tasks and where their memory is
    #[command(after_help = "Example:\n  vascriu show redis")]
    Show {
        /// The snapshot
        name: Name,
        /// Print JSON, memory ranges included
        #[arg(long)]
        json: bool,
    },
    /// Remove snapshots, their memory and their images
    #[command(after_help = "Example:\n  vascriu rm redis web")]
    Rm {
        /// The snapshots
        #[arg(required = true)]
        names: Vec<Name>,
        /// Even while others have its memory open
        #[arg(long, short)]
        force: bool,
    },
    /// Check that kernel, plugin, CRIU and rights are there
    #[command(after_help = "Example:\n  vascriu check && echo ready")]
    Check {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove memory that no snapshot belongs to any more
    #[command(after_help = "Example:\n  vascriu gc --dry-run")]
    Gc {
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
struct DumpArgs {
    /// PID of the root of the tree
    #[arg(short = 't', long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    tree: i32,
    /// Name of the snapshot [default: COMM-PID-TIME]
    #[arg(long, short)]
    name: Option<Name>,
    /// Put the images here, in a new or empty directory [default: /run/vascriu/NAME]
    #[arg(short = 'D', long, value_name = "DIR")]
    images_dir: Option<PathBuf>,
    /// Let the tasks go on afterwards
    #[arg(short = 'R', long)]
    leave_running: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct RestoreArgs {
    /// The snapshot
    #[arg(required_unless_present = "images_dir", conflicts_with = "images_dir")]
    name: Option<Name>,
    /// The snapshot whose images are in this directory
    #[arg(short = 'D', long, value_name = "DIR")]
    images_dir: Option<PathBuf>,
    /// Return when the tasks run, instead of waiting for them
    #[arg(short = 'd', long)]
    restore_detached: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let start = Instant::now();
    match run(start) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("vascriu: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(start: Instant) -> anyhow::Result<ExitCode> {
    let mut args: Vec<String> = std::env::args_os()
        .map(|a| {
            a.into_string()
                .map_err(|a| anyhow::anyhow!("argument {} is no UTF-8", a.display()))
        })
        .collect::<Result<_, _>>()?;
    let mut criu = Vec::new();
    if matches!(args.get(1).map(String::as_str), Some("dump" | "restore")) {
        let split = options::split(args.drain(2..).collect::<Vec<_>>())?;
        args.extend(split.ours);
        criu = split.criu;
    }
    match Cli::parse_from(args).command {
        Command::Dump(a) => run_dump(a, criu, start),
        Command::Restore(a) => run_restore(a, criu, start),
        Command::Ls { json } => ls(json),
        Command::Show { name, json } => show(&name, json),
        Command::Rm { names, force } => rm(&names, force),
        Command::Check { json } => run_check(json),
        Command::Gc { dry_run } => gc(dry_run),
    }
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}

/// 4 KiB pages in words.
fn mib(pages: u64) -> String {
    let kib = pages * 4;
    if kib < 10 << 10 {
        format!("{kib} KiB")
    } else {
        format!("{} MiB", kib >> 10)
    }
}

fn run_dump(args: DumpArgs, options: Vec<String>, start: Instant) -> anyhow::Result<ExitCode> {
    let pid = args.tree;
    let dump = dump::Dump {
        pid,
        name: args.name,
        images: args.images_dir,
        leave_running: args.leave_running,
        options,
    };
    let done = dump
        .run(start)
        .with_context(|| format!("cannot dump {pid}"))?;
    if args.json {
        print_json(&done)?;
    } else {
        println!(
            "{}: {} task(s), {} kept in {:.1} ms; frozen for {:.0} ms, whole dump {:.0} ms",
            done.name,
            done.tasks,
            mib(done.pages),
            done.capture_ms,
            done.frozen_ms,
            done.dump_ms,
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn run_restore(
    args: RestoreArgs,
    options: Vec<String>,
    start: Instant,
) -> anyhow::Result<ExitCode> {
    let source = match (args.name, args.images_dir) {
        (Some(name), _) => Source::Name(name),
        (None, Some(dir)) => Source::Images(dir),
        (None, None) => bail!("give a snapshot or -D DIR"),
    };
    let what = match &source {
        Source::Name(name) => name.to_string(),
        Source::Images(dir) => dir.display().to_string(),
    };
    let done = restore::Restore { source, options }
        .run(start)
        .with_context(|| format!("cannot restore {what}"))?;
    if args.json {
        print_json(&done)?;
    } else {
        println!(
            "{}: {} task(s), root {}, {} attached in {:.1} ms; whole restore {:.0} ms",
            done.name,
            done.tasks,
            done.pid,
            mib(done.pages),
            done.memory_restore_ms,
            done.restore_ms,
        );
    }
    if args.restore_detached {
        return Ok(ExitCode::SUCCESS);
    }
    Ok(restore::wait_for(done.pid).into())
}

/// One line of `ls`.
#[derive(Debug, Serialize)]
struct Row {
    name: Name,
    /// `ready`, `busy`, or why it cannot be restored.
    state: String,
    tasks: usize,
    pages: u64,
    comm: Option<String>,
    created: Option<u64>,
    images: PathBuf,
}

fn row(store: &Store, session: &Session, name: Name) -> Row {
    let path = store.images(&name).unwrap_or_else(|_| store.path(&name));
    let manifest = Manifest::load(&path);
    let state = match &manifest {
        _ if store.lock(&name, Hold::Shared).is_err() => "busy".to_owned(),
        Err(e) => e.to_string(),
        Ok(m) => m
            .open_all(session)
            .map_or_else(|e| e.to_string(), |_| "ready".to_owned()),
    };
    let manifest = manifest.ok();
    Row {
        state,
        tasks: manifest.as_ref().map_or(0, |m| m.tasks.len()),
        pages: manifest.as_ref().map_or(0, Manifest::pages),
        comm: manifest
            .as_ref()
            .and_then(|m| m.tasks.first())
            .map(|t| t.comm.clone()),
        created: manifest.map(|m| m.header.created),
        images: path,
        name,
    }
}

fn ls(json: bool) -> anyhow::Result<ExitCode> {
    let session = Session::open()?;
    let store = Store::open()?;
    store.recover()?;
    let names = store.names()?;
    let rows: Vec<Row> = names
        .into_iter()
        .map(|n| row(&store, &session, n))
        .collect();
    if json {
        print_json(&rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    let width = rows
        .iter()
        .map(|r| r.name.as_str().len())
        .max()
        .unwrap_or(0)
        .max(4);
    println!(
        "{:width$}  {:>5}  {:>10}  {:15}  STATE",
        "NAME", "TASKS", "MEMORY", "ROOT"
    );
    for r in rows {
        let (comm, memory) = (r.comm.unwrap_or_default(), mib(r.pages));
        println!(
            "{:width$}  {:>5}  {memory:>10}  {comm:15}  {}",
            r.name, r.tasks, r.state
        );
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Serialize)]
struct Detail {
    #[serde(flatten)]
    header: Header,
    images: PathBuf,
    tasks: Vec<TaskDetail>,
}

#[derive(Debug, Serialize)]
struct TaskDetail {
    #[serde(flatten)]
    task: Task,
    /// What the kernel says of the VAS now; none where it is gone.
    stat: Option<Stat>,
    ranges: Vec<Range>,
}

fn show(name: &Name, json: bool) -> anyhow::Result<ExitCode> {
    let session = Session::open()?;
    let images = Store::open()?.images(name)?;
    let manifest = Manifest::load(&images)?;
    let detail = |task: Task| {
        let vas = session.vas(task.vas, VAS_ACCESS_READ).ok();
        let stat = vas.as_ref().and_then(|v| v.stat().ok());
        let ranges = vas.and_then(|v| v.ranges().ok()).unwrap_or_default();
        TaskDetail { task, stat, ranges }
    };
    let tasks = manifest.tasks.into_iter().map(detail).collect();
    let all = Detail {
        header: manifest.header,
        images,
        tasks,
    };
    if json {
        print_json(&all)?;
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}: images in {}", name, all.images.display());
    println!(
        "{:>8}  {:15}  {:>6}  {:>10}  {:>10}  {:>8}",
        "PID", "COMMAND", "VAS", "MEMORY", "HUGE", "ATTACHES"
    );
    for TaskDetail { task: t, stat, .. } in all.tasks {
        let attaches = stat.map_or("gone".to_owned(), |s| s.attaches.to_string());
        let (memory, huge) = (mib(t.pages + t.swap_pages), mib(t.huge_pages));
        println!(
            "{:>8}  {:15}  {:>6}  {memory:>10}  {huge:>10}  {attaches:>8}",
            t.vpid, t.comm, t.vas
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn rm(names: &[Name], force: bool) -> anyhow::Result<ExitCode> {
    let store = Store::open()?;
    let mut code = ExitCode::SUCCESS;
    for name in names {
        if let Err(e) = store.remove(name, force) {
            eprintln!(
                "vascriu: cannot remove {name}: {:#}",
                anyhow::Error::from(e)
            );
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

fn run_check(json: bool) -> anyhow::Result<ExitCode> {
    let checks = check::run();
    if json {
        print_json(&checks)?;
    } else {
        for c in &checks {
            println!(
                "{:4} {:18} {}",
                if c.ok { "ok" } else { "FAIL" },
                c.what,
                c.says
            );
        }
    }
    Ok(if checks.iter().all(|c| c.ok) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Whether a snapshot that is there or being made owns the VAS. One whose images
/// are elsewhere counts: they may only have been moved.
fn is_owned(store: &Store, vas: &str) -> bool {
    let Some((name, _)) = vas.rsplit_once(':') else {
        return true;
    };
    let Ok(name) = name.parse::<Name>() else {
        return true;
    };
    !name.owns(vas)
        || store.has(&name)
        || store.new_path(&name).exists()
        || store.lock(&name, Hold::Alone).is_err()
}

fn gc(dry_run: bool) -> anyhow::Result<ExitCode> {
    let session = Session::open()?;
    let store = Store::open()?;
    if !dry_run {
        store.recover()?;
    }
    for id in device::list()? {
        let Ok(vas) = session.vas(id, VAS_ACCESS_READ | device::VAS_ACCESS_WRITE) else {
            continue;
        };
        if is_owned(&store, vas.name()) {
            continue;
        }
        let pages = vas.stat()?.pages;
        if !dry_run {
            match vas.delete(false) {
                Err(device::Error::Busy { .. }) => continue,
                done => done?,
            }
        }
        println!("{} ({})", vas.name(), mib(pages));
    }
    Ok(ExitCode::SUCCESS)
}
