// SPDX-License-Identifier: GPL-2.0-only
//! The `vascriu` command.

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use vascriu::cmd::{
    check, clone, drain, dump, enable, evict, fork, gc, ls, prune, rename, restore, rm, rollback,
    show,
};
use vascriu::criu::options;
use vascriu::dropin;

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
  vascriu clone web -n 20                  … and many times at once
  vascriu fork -t 1234 -n 20               copies of what runs
  vascriu rollback web                     what runs is again what it was
  vascriu ls; vascriu show web; vascriu rm web

Where the microVM has a snapshot store (`vascriu check`), a dump goes there in the background.

CRIU's own options go to CRIU: `vascriu dump -t 1234 --tcp-established -v4 -o /tmp/log`;
what follows `--` goes there unseen.";

#[derive(Debug, Subcommand)]
enum Command {
    Dump(dump::Args),
    Restore(restore::Args),
    Clone(clone::Args),
    Fork(fork::Args),
    Rollback(rollback::Args),
    Ls(ls::Args),
    Show(show::Args),
    Rename(rename::Args),
    Rm(rm::Args),
    Prune(prune::Args),
    Evict(evict::Args),
    Drain(drain::Args),
    Check(check::Args),
    Enable(enable::Enable),
    Disable(enable::Disable),
    Gc(gc::Args),
}

fn main() -> ExitCode {
    let start = Instant::now();
    let args: Vec<_> = std::env::args_os().collect();
    if args.first().is_some_and(|name| dropin::is_called(name)) {
        return dropin::run(&args[1..]);
    }
    run(start).unwrap_or_else(|e| {
        eprintln!("vascriu: {e:#}");
        ExitCode::FAILURE
    })
}

fn run(start: Instant) -> anyhow::Result<ExitCode> {
    let mut args: Vec<String> = std::env::args_os()
        .map(|a| {
            a.into_string()
                .map_err(|a| anyhow::anyhow!("argument {} is no UTF-8", a.display()))
        })
        .collect::<Result<_, _>>()?;
    let mut criu = Vec::new();
    if matches!(
        args.get(1).map(String::as_str),
        Some("dump" | "restore" | "clone" | "fork" | "rollback")
    ) {
        let split = options::split(args.drain(2..).collect::<Vec<_>>())?;
        args.extend(split.ours);
        criu = split.criu;
    }
    match Cli::parse_from(args).command {
        Command::Dump(args) => dump::run(&args, &criu, start),
        Command::Restore(args) => restore::run(&args, &criu, start),
        Command::Clone(args) => clone::run(&args, &criu, start),
        Command::Fork(args) => fork::run(&args, &criu, start),
        Command::Rollback(args) => rollback::run(&args, &criu, start),
        Command::Ls(args) => ls::run(&args),
        Command::Show(args) => show::run(&args),
        Command::Rename(args) => rename::run(&args),
        Command::Rm(args) => rm::run(&args),
        Command::Prune(args) => prune::run(&args),
        Command::Evict(args) => evict::run(&args),
        Command::Drain(args) => drain::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Enable(args) => enable::enable(&args),
        Command::Disable(args) => enable::disable(&args),
        Command::Gc(args) => gc::run(&args),
    }
}
