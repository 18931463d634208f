// SPDX-License-Identifier: GPL-2.0-only
//! `vascriu serve`.

use std::fs::{self, File};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{ForkResult, fork, getpid};

use crate::criu::version::Criu;
use crate::criu::work;
use crate::dropin::config;
use crate::service::{self, worker};

const EXAMPLES: &str = "\
Examples:
  vascriu serve &
  systemd-run --unit vascriu vascriu serve";

/// Who is one.
const LOCK: &str = "serve.lock";
/// How long to wait after a worker that failed: the next one may fail as soon.
const PAUSE: Duration = Duration::from_secs(1);

/// Keep a started CRIU ready: each `dump`, and each `restore -d`, is shorter by CRIU's start
///
/// Runs until it is ended. A command that cannot use it, for it is in another namespace or has
/// an option for its own CRIU, starts one as without it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// How many: so many commands at once find one
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=64))]
    ready: u32,
}

/// Runs the command.
///
/// # Errors
/// Another one is there already, or CRIU cannot be started as it would be for a command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let criu = Criu::find()?;
    if config::is_there() {
        bail!("CRIU has a configuration file, which each command has to read anew: take it out");
    }
    work::make_root().context("cannot make the directory of vascriu")?;
    let lock = work::root().join(LOCK);
    let lock = File::create(&lock).with_context(|| format!("cannot make {}", lock.display()))?;
    if lock.try_lock().is_err() {
        bail!("there is one already");
    }
    let ready = service::ready();
    // What a killed one has left.
    let _ = fs::remove_dir_all(&ready);
    fs::create_dir(&ready).with_context(|| format!("cannot make {}", ready.display()))?;
    let service = getpid();
    let mut workers = 0;
    loop {
        while workers < args.ready {
            // SAFETY: this process has one thread, so all of it is there in the child.
            match unsafe { fork() }.context("no process for a worker")? {
                ForkResult::Parent { .. } => workers += 1,
                ForkResult::Child => {
                    // A worker that outlives us is no service.
                    drop(lock);
                    std::process::exit(i32::from(!worker::live(&criu, service)));
                }
            }
        }
        let ended = wait().context("no worker is left")?;
        workers -= 1;
        if !matches!(ended, WaitStatus::Exited(_, 0)) {
            thread::sleep(PAUSE);
        }
    }
}
