// SPDX-License-Identifier: GPL-2.0-only
//! `vascriu evict`.

use std::process::ExitCode;

use anyhow::Context;

use super::print_json;
use crate::snapshot::registry::Registry;
use crate::{store, text};

/// Let the memory of a snapshot go that the snapshot store has; a restore brings it back
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  vascriu dump -t 1234 --name web --sync && vascriu evict web")]
pub struct Args {
    /// Its name, its identity, or the beginning of that
    snapshot: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// The store does not have the snapshot.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let registry = Registry::open()?;
    let entry = registry.find(&args.snapshot)?;
    let pages = store::evict(&registry, entry.id);
    let pages = pages.with_context(|| format!("cannot evict {entry}"))?;
    if args.json {
        print_json(
            &serde_json::json!({"snapshot": entry.id, "name": entry.name(), "pages": pages}),
        )?;
    } else {
        println!(
            "{entry}: {} of this guest's memory are free",
            text::memory(pages)
        );
    }
    Ok(ExitCode::SUCCESS)
}
