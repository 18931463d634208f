// SPDX-License-Identifier: GPL-2.0-only
//! `vascriu check`: is everything there?

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use serde::Serialize;

use super::print_json;
use crate::criu::version::{self, Criu};
use crate::criu::{run, work};
use crate::device::{self, Session};
use crate::engine;
use crate::text::chain;

/// Check that kernel, plugin, CRIU and rights are there
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  vascriu check && echo ready")]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One thing that vascriu needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    what: &'static str,
    /// It is there.
    ok: bool,
    /// What was found, or what to do.
    says: String,
}

fn check(what: &'static str, found: Result<String, String>) -> Check {
    let ok = found.is_ok();
    let says = found.unwrap_or_else(|e| e);
    Check { what, ok, says }
}

fn kernel() -> Result<String, String> {
    let opened = Session::open().map_err(|e| chain(&e));
    opened.map(|_| "/dev/vas answers".to_owned())
}

fn plugin() -> Result<String, String> {
    let path: PathBuf = run::libdir().join(run::PLUGIN);
    if path.exists() {
        Ok(path.display().to_string())
    } else {
        Err(format!(
            "{} is missing: is vascriu installed?",
            path.display()
        ))
    }
}

fn criu_version() -> Result<String, String> {
    let criu = Criu::find().map_err(|e| chain(&e))?;
    Ok(format!("{} ({})", criu.version, criu.program.display()))
}

fn criu_works() -> Result<String, String> {
    let program = version::program().map_err(|e| chain(&e))?;
    let output = Command::new(program).arg("check").output();
    let output = output.map_err(|e| format!("cannot run it: {e}"))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    let last = text.lines().rfind(|l| !l.trim().is_empty());
    let last = last.unwrap_or("says nothing").to_owned();
    if output.status.success() {
        Ok(last)
    } else {
        Err(last)
    }
}

fn work_place() -> Result<String, String> {
    let root = work::root();
    work::make_root().map_err(|e| format!("cannot make {}: {e}", root.display()))?;
    let kind = statfs(root).map_err(|e| e.to_string())?;
    if kind.filesystem_type() == TMPFS_MAGIC {
        Ok(format!("{} is in memory", root.display()))
    } else {
        Err(format!(
            "{} is not on a tmpfs: dumps wait for a disk; mount one at /run",
            root.display()
        ))
    }
}

/// That there is none is no fault: snapshots then stay in the guest.
fn snapshot_store() -> Result<String, String> {
    let stored = || {
        let session = Session::open()?;
        Ok(session.has_store()?.then_some(session.stored()?.len()))
    };
    let found = stored().map_err(|e: device::Error| chain(&e))?;
    Ok(found.map_or_else(
        || "none: snapshots stay in the guest; `mvasvm run --store` gives it one".to_owned(),
        |n| format!("there, with {n} snapshot(s) for this microVM"),
    ))
}

/// Runs the command.
///
/// # Errors
/// None but that nothing can be written.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut checks = vec![
        check("kernel and rights", kernel()),
        check("plugin", plugin()),
        check("CRIU version", criu_version()),
        check("CRIU check", criu_works()),
        check("work directory", work_place()),
        check("snapshot store", snapshot_store()),
    ];
    let engine = |s: engine::Status| {
        let what = s.engine.as_str();
        check(what, if s.ok { Ok(s.says) } else { Err(s.says) })
    };
    checks.extend(engine::status().into_iter().map(engine));
    if args.json {
        print_json(&checks)?;
    } else {
        for c in &checks {
            println!(
                "{:4} {:18} {}",
                if c.ok { "ok" } else { "FAIL" },
                c.what,
                c.says
            );
        }
    }
    Ok(if checks.iter().all(|c| c.ok) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
