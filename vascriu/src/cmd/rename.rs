// SPDX-License-Identifier: GPL-2.0-only
//! `vascriu rename`.

use std::process::ExitCode;

use anyhow::Context;

use crate::snapshot::name::Name;
use crate::snapshot::registry::Registry;

/// Give a snapshot another name
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  vascriu rename 3f2a web-before-the-update")]
pub struct Args {
    /// Its name, its identity, or the beginning of that
    snapshot: String,
    /// Its new name
    name: Name,
    /// Even if another snapshot has that name: it loses it
    #[arg(long)]
    replace: bool,
}

/// Runs the command.
///
/// # Errors
/// There is no such snapshot, or the name is taken.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let registry = Registry::open()?;
    let entry = registry.find(&args.snapshot)?;
    if entry.name() != Some(&args.name) {
        let renamed = registry.rename(entry.id, &args.name, args.replace);
        renamed.with_context(|| format!("cannot rename {entry}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
