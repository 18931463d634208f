//! The `vascriu` command.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use vascriu::device::{self, Session, VAS_ACCESS_READ};
use vascriu::dump::Keep;
use vascriu::name::Name;
use vascriu::restore::Source;
use vascriu::store::{self, Hold, Store};
use vascriu::{check, dump, options, restore, stored};

mod listing;

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

Where the microVM has a snapshot store (`vascriu check`), a dump goes there in the background.

CRIU's own options go to CRIU: `vascriu dump -t 1234 --tcp-established -v4 -o /tmp/log`;
what follows `--` goes there unseen.";

const DUMP_EXAMPLES: &str = "\
Examples:
  vascriu dump -t $(pidof redis-server) --name redis --tcp-established
  vascriu dump -t 1234 -D /var/tmp/images --leave-running --json
  vascriu dump -t 1234 --name job --sync    survives this guest, when it returns
  vascriu dump -t 1234 --shell-job          (CRIU's option, see criu(8))";

const RESTORE_EXAMPLES: &str = "\
Examples:
  vascriu restore redis -d --tcp-established
  vascriu restore -D /var/tmp/images --pidfile /run/x.pid -d
  vascriu restore web -d                    also after a reboot of this guest
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
    /// Let the memory of a snapshot go that the snapshot store has; a restore brings it back
    #[command(
        after_help = "Example:\n  vascriu dump -t 1234 --name web --sync && vascriu evict web"
    )]
    Evict {
        /// The snapshot
        name: Name,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Put snapshots into the snapshot store that are not there: dumped with --guest-only,
    /// or when the store was full
    #[command(after_help = "Example:\n  vascriu drain web --sync && vascriu evict web")]
    Drain {
        /// The snapshots
        #[arg(required = true)]
        names: Vec<Name>,
        /// Return when they are complete there
        #[arg(long)]
        sync: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove snapshots: memory and images, here and in the snapshot store
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
        Command::Ls { json } => listing::ls(json),
        Command::Show { name, json } => listing::show(&name, json),
        Command::Evict { name, json } => evict(&name, json),
        Command::Drain { names, sync, json } => drain(&names, sync, json),
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
        keep: match (args.sync, args.guest_only) {
            (true, _) => Keep::Sync,
            (_, true) => Keep::GuestOnly,
            _ => Keep::Background,
        },
        options,
    };
    let done = dump.run(start).map_err(|e| match e {
        dump::Error::NotStored { .. } => anyhow::Error::from(e),
        e => anyhow::Error::from(e).context(format!("cannot dump {pid}")),
    })?;
    if let Some(e) = &done.store_error {
        eprintln!(
            "vascriu: `{}` is in this guest's memory only: {e}",
            done.name
        );
    }
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

fn evict(name: &Name, json: bool) -> anyhow::Result<ExitCode> {
    let store = Store::open()?;
    let pages = store::evict(&store, name).with_context(|| format!("cannot evict {name}"))?;
    if json {
        print_json(&serde_json::json!({"name": name, "pages": pages}))?;
    } else {
        println!("{name}: {} of this guest's memory are free", mib(pages));
    }
    Ok(ExitCode::SUCCESS)
}

fn drain(names: &[Name], sync: bool, json: bool) -> anyhow::Result<ExitCode> {
    let store = Store::open()?;
    let mut code = ExitCode::SUCCESS;
    let mut done = Vec::new();
    for name in names {
        match stored::drain(&store, name, sync) {
            Ok(kept) => done.push((name, kept)),
            Err(e) => {
                let e = anyhow::Error::from(e);
                eprintln!("vascriu: cannot drain {name}: {e:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    if json {
        let row = |(name, kept)| serde_json::json!({"name": name, "kept": kept});
        print_json(&done.into_iter().map(row).collect::<Vec<_>>())?;
    } else {
        for (name, kept) in done {
            println!("{name}: {kept}");
        }
    }
    Ok(code)
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
