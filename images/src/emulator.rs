// SPDX-License-Identifier: GPL-2.0-only
//! The emulator of simulated hosts: QEMU of a newer Debian than this machine's, which is
//! faster, in a folder of its own that runs by its own C library.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::{Cache, waiting};
use crate::debian::{SUITE, mmdebstrap};
use crate::key::{Inputs, Key};
use crate::step::Steps;

/// Kind of its cache entries.
pub const KIND: &str = "emulator";

/// The program, and its name under `current/`.
const PROGRAM: &str = "qemu-system-x86_64";
/// The package that it comes from.
const PACKAGE: &str = "qemu-system-x86";
/// All of the packages that it needs to run.
const FOLDERS: [&str; 4] = [
    "lib64",
    "lib/x86_64-linux-gnu",
    "share/qemu",
    "share/seabios",
];

/// Starts QEMU from the folder that this script is in, wherever that is.
const LAUNCHER: &str = r#"#!/bin/sh
usr=$(dirname "$(readlink -f "$0")")/usr
exec "$usr/lib64/ld-linux-x86-64.so.2" --library-path "$usr/lib/x86_64-linux-gnu" \
    "$usr/bin/qemu-system-x86_64" -L "$usr/share/qemu" -L "$usr/share/seabios" "$@"
"#;

/// The key of its entry.
#[must_use]
pub fn key() -> Key {
    Inputs::new(KIND)
        .text("suite", SUITE)
        .text("package", PACKAGE)
        .text("folders", &FOLDERS.join(" "))
        .text("launcher", LAUNCHER)
        .key()
}

/// Finds or makes it, and points `current/` to it. Returns the program.
///
/// # Errors
/// When mmdebstrap fails.
pub fn build(cache: &Cache) -> Result<PathBuf> {
    let _lock = cache.lock(KIND, || waiting(KIND))?;
    let entry = cache.find_or_build(KIND, &key(), |out| unpack(cache, out))?;
    let program = entry.join(PROGRAM);
    cache.set_current(PROGRAM, &program)?;
    Ok(program)
}

fn unpack(cache: &Cache, out: &Path) -> Result<()> {
    let steps = Steps::of_build(cache, KIND)?;
    let work = tempfile::tempdir_in(cache.dir("work")?)?;
    let tar = work.path().join("packages.tar");
    // Unpacked, but not installed: nothing of it runs but the program.
    steps.run(
        &format!("fetching QEMU of Debian {SUITE}"),
        &mut mmdebstrap("extract", &[PACKAGE], SUITE, &tar),
    )?;
    let mut unpack = Command::new("tar");
    unpack
        .arg("-C")
        .arg(out)
        .args(["--no-same-owner", "-xf"])
        .arg(&tar);
    unpack.arg(format!("./usr/bin/{PROGRAM}"));
    unpack.args(FOLDERS.map(|folder| format!("./usr/{folder}")));
    steps.run("unpacking QEMU", &mut unpack)?;
    let launcher = out.join(PROGRAM);
    fs::write(&launcher, LAUNCHER)
        .and_then(|()| fs::set_permissions(&launcher, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot write {}", launcher.display()))
}
