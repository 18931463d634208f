// SPDX-License-Identifier: GPL-2.0-only
//! `vascriu gc`.

use std::process::ExitCode;

use crate::criu::work;
use crate::snapshot::registry::Registry;
use crate::text;

/// Remove what killed commands have left. No snapshot is touched: `vascriu prune` removes those
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  vascriu gc --dry-run")]
pub struct Args {
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
}

/// Runs the command.
///
/// # Errors
/// What the kernel says.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    for stat in Registry::open()?.gc(args.dry_run)? {
        println!("{} ({})", stat.name, text::memory(stat.pages));
    }
    if !args.dry_run {
        work::sweep();
    }
    Ok(ExitCode::SUCCESS)
}
