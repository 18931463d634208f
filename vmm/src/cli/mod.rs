// SPDX-License-Identifier: GPL-2.0-only
//! The command line: what can be asked, and the exit codes that answer.

mod args;
mod backing;
mod cgroup;
mod codes;
mod console;
mod cp;
mod disk;
mod entry;
mod exec;
mod forward;
mod guest;
mod image;
mod janitor;
mod manage;
mod metrics;
mod monitor_log;
mod overlay;
pub(crate) mod paths;
mod reach;
mod record;
mod run;
mod run_kvm;
mod run_sim;
mod sim;
mod snapshots;
pub(crate) mod store;
mod vmdir;

use std::process::ExitCode;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use args::{Cli, Command};

pub(crate) fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A reader that closed its end has seen enough.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => codes::USAGE.into(),
            };
        }
    };
    monitor_log::start();
    match run(cli.command) {
        Ok(code) => code.into(),
        Err(error) => {
            note(codes::one_line(&error));
            codes::of(&error).into()
        }
    }
}

fn run(command: Command) -> Result<u8> {
    match command {
        Command::Run(args) => run::run(args),
        Command::Exec(args) => exec::run(args),
        Command::Cp(args) => cp::run(&args),
        Command::Forward(args) => forward::run(&args),
        Command::Ls(args) => manage::ls(&args),
        Command::Stop(args) => manage::stop(&args),
        Command::Kill(args) => manage::kill(&args),
        Command::Rm(args) => manage::rm(&args),
        Command::Logs(args) => manage::logs(&args),
        Command::Metrics(args) => metrics::run(&args),
        Command::Snapshots(args) => snapshots::run(&args),
        Command::Store(args) => store::run(&args),
        Command::Image(args) => image::run(args),
        Command::Doctor(args) => crate::doctor::run(args.json),
        Command::Sim(args) => sim::run(args),
        Command::Completions(args) => args.print(&Cli::command()).map(|()| 0),
        Command::Man(args) => args.write(Cli::command()).map(|()| 0),
        Command::SimInit(args) => crate::sim::init::run(&args),
        Command::SimServe => crate::sim::init::serve(),
        Command::Relay { name } => reach::relay(&name),
        Command::Janitor { name, store } => janitor::run(&name, &store),
    }
}

/// One line for the user.
pub(crate) fn note(text: impl std::fmt::Display) {
    monitor_log::say(format!("mvasvm: {text}\n").as_bytes());
}
