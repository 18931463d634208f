// SPDX-License-Identifier: GPL-2.0-only
//! The `vascriu` command.

use std::process::ExitCode;
use std::time::Instant;

use clap::{CommandFactory, Parser};
use vascriu::cli::{Cli, Command};
use vascriu::cmd::{
    check, clone, drain, dump, enable, evict, fork, gc, ls, prune, rename, restore, rm, rollback,
    serve, show,
};
use vascriu::criu::options;
use vascriu::dropin;

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
        Command::Serve(args) => serve::run(&args),
        Command::Completions(args) => {
            args.print(&Cli::command())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
