//! The command line: what can be asked, and the exit codes that answer.

mod args;
mod codes;
mod guest;
pub(crate) mod paths;
mod sim;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use clap::error::ErrorKind;

use args::{Cli, Command};
pub(crate) use guest::run_in_guest;

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
            eprintln!("mvasvm: {}", codes::one_line(&error));
            codes::of(&error).into()
        }
    }
}

fn run(command: Command) -> Result<u8> {
    match command {
        Command::Sim(args) => sim::run(args),
        Command::SimInit(args) => crate::sim::init::run(&args),
        Command::SimServe => crate::sim::init::serve(),
    }
}

/// Warnings go to standard error; `MVAS_LOG=debug` asks for more.
fn start_log() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("MVAS_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .init();
}
