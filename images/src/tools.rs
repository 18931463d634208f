// SPDX-License-Identifier: GPL-2.0-only
//! What a guest needs of ours, as one tar file that lies over any root file system: the agent,
//! vascriu, its plugin and CRIU, with a loader and libraries of their own below `/usr/lib/mvas`.
//!
//! It has files only: the folders on the way, and links that lead there, are the image's.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tar::{Builder, Header};

use crate::cache::{Cache, waiting};
use crate::key::{Inputs, Key};
use crate::step::Steps;

/// Kind of its cache entries.
pub const KIND: &str = "guest-tools";
/// The file, and its name under `current/`.
pub const FILE: &str = "guest-tools.tar";

/// What the guest's init is.
const AGENT: &str = "usr/lib/mvas/agent";
const VASCRIU: &str = "usr/bin/vascriu";
const PLUGIN: &str = "usr/lib/vascriu/vas_plugin.so";
const CRIU: &str = "usr/sbin/criu";

/// Their libraries, and where those are in Debian.
const LIBRARIES: &str = "usr/lib/mvas/lib";
const DEBIAN_LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "ld-linux-x86-64.so.2";

/// Part of the key: raise it when this file builds differently.
const RECIPE: &str = "1";

/// Finds or makes it of Debian's packages in `base` and our programs, pairs of the path in the
/// guest and the file, and points `current/` to it.
///
/// # Errors
/// When a program fails, or has a library that is not in `base`.
pub fn build(
    cache: &Cache,
    base: &Path,
    base_key: &Key,
    ours: &[(String, PathBuf)],
) -> Result<PathBuf> {
    let mut inputs = Inputs::new(KIND)
        .text("recipe", RECIPE)
        .with_key("base", base_key);
    let mut files = Vec::new();
    for to in [AGENT, VASCRIU, PLUGIN] {
        let found = ours.iter().find(|(place, _)| place == to);
        let (_, from) = found.with_context(|| format!("there is no {to} among our programs"))?;
        inputs = inputs.file(to, from)?;
        files.push((to, from.as_path()));
    }
    let _lock = cache.lock(KIND, || waiting(KIND))?;
    let entry = cache.find_or_build(KIND, &inputs.key(), |out| -> Result<()> {
        let work = tempfile::tempdir_in(cache.dir("work")?)?;
        collect(cache, work.path(), base, &files)?;
        pack(work.path(), &out.join(FILE))
    })?;
    let file = entry.join(FILE);
    cache.set_current(FILE, &file)?;
    Ok(file)
}

/// Puts everything into `work`, which becomes the root of the tar file but for Debian's libraries.
fn collect(cache: &Cache, work: &Path, base: &Path, files: &[(&str, &Path)]) -> Result<()> {
    let steps = Steps::of_build(cache, KIND)?;
    let mut unpack = Command::new("tar");
    unpack.arg("-C").arg(work).arg("-xf").arg(base);
    unpack.args([CRIU, DEBIAN_LIBRARIES].map(|path| format!("./{path}")));
    steps.run("unpacking CRIU and its libraries", &mut unpack)?;
    for (to, from) in files {
        let to = work.join(to);
        let folder = to.parent().unwrap_or(work);
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    let libraries = work.join(LIBRARIES);
    fs::create_dir_all(&libraries)?;
    let mut todo: Vec<PathBuf> = [AGENT, PLUGIN, CRIU].map(|path| work.join(path)).to_vec();
    let mut found = BTreeSet::from([LOADER.to_owned()]);
    fs::copy(
        work.join(DEBIAN_LIBRARIES).join(LOADER),
        libraries.join(LOADER),
    )?;
    while let Some(program) = todo.pop() {
        for name in needed(&program)? {
            if found.insert(name.clone()) {
                let from = work.join(DEBIAN_LIBRARIES).join(&name);
                let to = libraries.join(&name);
                fs::copy(&from, &to).with_context(|| {
                    format!("{name}, of {}, is not in the image", program.display())
                })?;
                todo.push(to);
            }
        }
    }
    fs::remove_dir_all(work.join(DEBIAN_LIBRARIES))?;
    for program in [AGENT, CRIU] {
        let mut patch = Command::new("patchelf");
        patch.arg("--set-interpreter");
        patch.arg(format!("/{LIBRARIES}/{LOADER}"));
        // Not RUNPATH: what a library or a plugin needs is to be found there, too.
        patch.args(["--force-rpath", "--set-rpath"]);
        patch.arg(format!("/{LIBRARIES}")).arg(work.join(program));
        steps.run(&format!("giving {program} its own libraries"), &mut patch)?;
    }
    Ok(())
}

/// The libraries that a program names.
fn needed(program: &Path) -> Result<Vec<String>> {
    let mut command = Command::new("patchelf");
    let said = command
        .arg("--print-needed")
        .arg(program)
        .output()
        .context("cannot start patchelf (is it installed? `make setup` installs what is needed)")?;
    if !said.status.success() {
        let why = String::from_utf8_lossy(&said.stderr);
        bail!(
            "patchelf cannot read {}: {}",
            program.display(),
            why.trim_end()
        );
    }
    let names = String::from_utf8_lossy(&said.stdout);
    Ok(names.lines().map(str::to_owned).collect())
}

/// Makes the tar file of all files, sorted, as root's.
fn pack(tree: &Path, out: &Path) -> Result<()> {
    let mut tar = Builder::new(File::create(out)?);
    for path in crate::key::files_below(tree)? {
        let mut header = Header::new_gnu();
        header.set_size(fs::metadata(&path)?.len());
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        let name = path.strip_prefix(tree)?;
        tar.append_data(&mut header, name, File::open(&path)?)
            .with_context(|| format!("cannot pack {}", path.display()))?;
    }
    tar.finish()?;
    Ok(())
}
