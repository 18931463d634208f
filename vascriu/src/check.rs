//! `vascriu check`: is everything there?

use std::path::PathBuf;
use std::process::Command;

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use serde::Serialize;

use crate::criu;
use crate::device::{self, Session};
use crate::report::chain;
use crate::store::Store;

/// One thing that vascriu needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub what: &'static str,
    /// It is there.
    pub ok: bool,
    /// What was found, or what to do.
    pub says: String,
}

fn check(what: &'static str, found: Result<String, String>) -> Check {
    let ok = found.is_ok();
    Check {
        what,
        ok,
        says: found.unwrap_or_else(|e| e),
    }
}

fn kernel() -> Result<String, String> {
    Session::open()
        .map(|_| "/dev/vas answers".to_owned())
        .map_err(|e| chain(&e))
}

fn plugin() -> Result<String, String> {
    let path: PathBuf = criu::libdir().join(criu::PLUGIN);
    if path.exists() {
        Ok(path.display().to_string())
    } else {
        Err(format!(
            "{} is missing: is vascriu installed?",
            path.display()
        ))
    }
}

fn version(output: &str) -> Option<&str> {
    output
        .lines()
        .find_map(|l| l.strip_prefix("Version:"))
        .map(str::trim)
}

fn criu_version() -> Result<String, String> {
    let program = criu::program();
    let output = Command::new(&program)
        .arg("--version")
        .output()
        .map_err(|e| {
            format!(
                "cannot run `{}` ({e}): install the package `criu`",
                program.display()
            )
        })?;
    let text = String::from_utf8_lossy(&output.stdout);
    match version(&text) {
        Some(v) if v == "4.1.1" || v.starts_with("4.1.1-") => Ok(v.to_owned()),
        Some(v) => Err(format!(
            "CRIU {v}: the plugin is made for 4.1.1, of Debian trixie"
        )),
        None => Err(format!("`{} --version` says no version", program.display())),
    }
}

fn criu_works() -> Result<String, String> {
    let output = Command::new(criu::program()).arg("check").output();
    let output = output.map_err(|e| format!("cannot run it: {e}"))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    let last = text
        .lines()
        .rfind(|l| !l.trim().is_empty())
        .unwrap_or("says nothing")
        .to_owned();
    if output.status.success() {
        Ok(last)
    } else {
        Err(last)
    }
}

fn store() -> Result<String, String> {
    let store = Store::open().map_err(|e| chain(&e))?;
    let kind = statfs(store.root()).map_err(|e| e.to_string())?;
    if kind.filesystem_type() == TMPFS_MAGIC {
        Ok(format!("{} is in memory", store.root().display()))
    } else {
        Err(format!(
            "{} is not on a tmpfs: dumps wait for a disk; mount one at /run",
            store.root().display()
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

/// Looks at everything that vascriu needs.
#[must_use]
pub fn run() -> Vec<Check> {
    vec![
        check("kernel and rights", kernel()),
        check("plugin", plugin()),
        check("CRIU version", criu_version()),
        check("CRIU check", criu_works()),
        check("store", store()),
        check("snapshot store", snapshot_store()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_among_other_lines() {
        assert_eq!(
            version("Warn: x\nVersion: 4.1.1\nGitID: v4.1.1\n"),
            Some("4.1.1")
        );
        assert_eq!(version("no"), None);
    }
}
