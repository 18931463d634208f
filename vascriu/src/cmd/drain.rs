// SPDX-License-Identifier: GPL-2.0-only
//! `vascriu drain`.

use std::process::ExitCode;

use super::print_json;
use crate::device::Kept;
use crate::snapshot::entry::Entry;
use crate::snapshot::registry::Registry;
use crate::store;

/// Put snapshots into the snapshot store that are not there: dumped with --guest-only, or
/// when the store was full
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  vascriu drain web --sync && vascriu evict web")]
pub struct Args {
    /// Names, identities, or their beginnings
    #[arg(required = true)]
    snapshots: Vec<String>,
    /// Return when they are complete there
    #[arg(long)]
    sync: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn drain(registry: &Registry, text: &str, sync: bool) -> Result<(Entry, Kept), store::Error> {
    let entry = registry.find(text)?;
    if !entry.is_here() {
        return Ok((entry, Kept::Cold));
    }
    let kept = store::drain(registry, entry.id, sync)?;
    Ok((entry, kept))
}

/// Runs the command.
///
/// # Errors
/// `/dev/vas` is not usable.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let registry = Registry::open()?;
    let mut code = ExitCode::SUCCESS;
    let mut done = Vec::new();
    for text in &args.snapshots {
        match drain(&registry, text, args.sync) {
            Ok(drained) => done.push(drained),
            Err(e) => {
                let e = anyhow::Error::from(e);
                eprintln!("vascriu: cannot drain {text}: {e:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    if args.json {
        let row = |(e, kept): &(Entry, Kept)| serde_json::json!({"snapshot": e.id, "name": e.name(), "kept": kept});
        print_json(&done.iter().map(row).collect::<Vec<_>>())?;
    } else {
        for (entry, kept) in done {
            println!("{entry}: {kept}");
        }
    }
    Ok(code)
}
