//! The command line: what can be asked, and the exit codes that answer.

mod args;
mod backing;
mod codes;
mod console;
mod cp;
mod disk;
mod exec;
mod guest;
mod manage;
pub(crate) mod paths;
mod reach;
mod run;
mod run_kvm;
mod run_sim;
mod sim;
mod snapshots;
pub(crate) mod store;
mod vmdir;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use clap::error::ErrorKind;

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
    start_log();
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
        Command::Ls(args) => manage::ls(&args),
        Command::Stop(args) => manage::stop(&args),
        Command::Kill(args) => manage::kill(&args),
        Command::Logs(args) => manage::logs(&args),
        Command::Snapshots(args) => snapshots::run(&args),
        Command::Store(args) => store::run(&args),
        Command::Doctor(args) => crate::doctor::run(args.json),
        Command::Sim(args) => sim::run(args),
        Command::SimInit(args) => crate::sim::init::run(&args),
        Command::SimServe => crate::sim::init::serve(),
        Command::Relay { name } => reach::relay(&name),
    }
}

/// One line for the user. Nobody may be there to read it: that is no error.
pub(crate) fn note(text: impl std::fmt::Display) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "mvasvm: {text}");
}

/// Warnings go to standard error; `MVAS_LOG=debug` asks for more.
fn start_log() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("MVAS_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .log_internal_errors(false)
        .init();
}
