// SPDX-License-Identifier: GPL-2.0-only
//! `vascriu rm`.

use std::process::ExitCode;

use crate::snapshot::registry::Registry;

/// Remove snapshots: memory and images, here and in the snapshot store
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  vascriu rm redis web 3f2a")]
pub struct Args {
    /// Names, identities, or their beginnings
    #[arg(required = true)]
    snapshots: Vec<String>,
    /// Even while others have its memory open
    #[arg(long, short)]
    force: bool,
}

/// Runs the command.
///
/// # Errors
/// `/dev/vas` is not usable.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let registry = Registry::open()?;
    let mut code = ExitCode::SUCCESS;
    for text in &args.snapshots {
        let removed = registry
            .identify(text)
            .and_then(|id| registry.remove(id, args.force));
        if let Err(e) = removed {
            eprintln!(
                "vascriu: cannot remove {text}: {:#}",
                anyhow::Error::from(e)
            );
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}
