// SPDX-License-Identifier: GPL-2.0-only
//! `vascriu enable` and `vascriu disable`.

use std::process::ExitCode;

use crate::engine::switch;
use crate::engine::{self, Engine};

/// Have container engines checkpoint into memory
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  vascriu enable docker podman\n\n\
    Engines look `criu` up in PATH. This puts vascriu there, in front of the stock CRIU, which\n\
    stays what it is for everything else. `vascriu check` tells whether engines find it.\n\n\
    What Podman exports refers to a snapshot of this machine, and Podman says so; with\n\
    VASCRIU_EXPORT=memory in Podman's environment it carries the memory, by the stock CRIU.")]
pub struct Enable {
    /// docker, podman, containerd, runc
    #[arg(required = true)]
    engines: Vec<Engine>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Have container engines use the stock CRIU again
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  vascriu disable docker\n\n\
    Checkpoints that were made meanwhile stay: `vascriu restore -D DIR`, or enable it again.")]
pub struct Disable {
    /// docker, podman, containerd, runc
    #[arg(required = true)]
    engines: Vec<Engine>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `vascriu enable`.
///
/// # Errors
/// A file cannot be written, or there is another CRIU in the way.
pub fn enable(args: &Enable) -> anyhow::Result<ExitCode> {
    switch_all(&args.engines, switch::enable, args.json)
}

/// Runs `vascriu disable`.
///
/// # Errors
/// A file cannot be written.
pub fn disable(args: &Disable) -> anyhow::Result<ExitCode> {
    switch_all(&args.engines, switch::disable, args.json)
}

fn switch_all(
    engines: &[Engine],
    switch: impl Fn(Engine) -> Result<Vec<String>, switch::Error>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let mut changed = Vec::new();
    for &engine in engines {
        changed.extend(switch(engine)?);
    }
    let mut status = engine::status();
    status.retain(|s| engines.contains(&s.engine));
    if json {
        let said = serde_json::json!({"changed": changed, "engines": status});
        println!("{said}");
    } else {
        for change in &changed {
            println!("{change}");
        }
        for s in &status {
            println!("{}: {}", s.engine, s.says);
        }
    }
    Ok(if status.iter().all(|s| s.ok) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
