// SPDX-License-Identifier: GPL-2.0-only
//! The guest's image as the root of processes on this host: the guest's system without a microVM.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use mvas_agent::init::{DEFAULT_PATH, mount_kernel_filesystems, overlay_root};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, pivot_root};
use serde::de::DeserializeOwned;

use super::{Doctor, ask};
use crate::guest::Step;

/// The image that microVMs boot, mounted as their PID 1 does it.
///
/// It is mounted in a mount namespace that a process of its own [`hold`]s until its standard
/// input ends: with our end, of whatever kind, it does, and no mount is left.
#[derive(Debug)]
pub struct ImageRoot {
    holder: Child,
}

impl ImageRoot {
    /// Mounts it. For that one must be root.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn open() -> Result<Self> {
        let image = Doctor::ask()?.image.path.context("there is no image")?;
        let mut holder = Command::new(std::env::current_exe()?)
            .arg("image-root")
            .arg(&image)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Not for the terminal's Ctrl-C.
            .process_group(0)
            .spawn()
            .context("cannot start what holds the image")?;
        let mut said = String::new();
        if let Some(output) = holder.stdout.take() {
            BufReader::new(output).read_line(&mut said)?;
        }
        let root = Self { holder };
        ensure!(said == "ready\n", "{} is not mounted", image.display());
        Ok(root)
    }

    /// Runs a step of the guest half with it as root; what that writes to standard error is
    /// shown.
    ///
    /// # Errors
    /// When the step fails.
    pub fn ask<T: DeserializeOwned>(&self, step: &Step) -> Result<T> {
        let mut enter = Command::new("nsenter");
        enter
            .args(["--mount", "--target", &self.holder.id().to_string(), "--"])
            .env_clear()
            .env("PATH", DEFAULT_PATH);
        ask(&mut enter, step).context("without a microVM")
    }
}

impl Drop for ImageRoot {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// Has `image` as its root, in a mount namespace of its own, until standard input ends.
///
/// # Errors
/// When a mount is refused.
pub fn hold(image: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace (are you root?)")?;
    let none: Option<&str> = None;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).context("cannot make mounts private")?;
    change_root(image).with_context(|| format!("cannot make {} the root", image.display()))?;
    // From here on as the guest's PID 1.
    overlay_root(None).context("cannot make the root writable")?;
    mount_kernel_filesystems();
    let mut out = io::stdout().lock();
    writeln!(out, "ready").and_then(|()| out.flush())?;
    io::copy(&mut io::stdin().lock().by_ref(), &mut io::sink())?;
    Ok(())
}

/// Mounts the image, read-only, and makes it the root instead of this host's.
fn change_root(image: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mounted = Command::new("mount")
        .args(["-t", "ext4", "-o", "loop,ro"])
        .args([image, folder.path()])
        .stdout(Stdio::null())
        .status()
        .context("cannot run mount")?;
    ensure!(mounted.success(), "mount failed ({mounted})");
    chdir(folder.path())?;
    pivot_root(".", "mnt")?;
    chdir("/")?;
    // In the old root the folder is a mount point no more.
    let folder = folder.keep();
    let name = folder.strip_prefix("/").unwrap_or(&folder);
    fs::remove_dir(Path::new("/mnt").join(name)).context("the folder where it was mounted")?;
    umount2("/mnt", MntFlags::MNT_DETACH)?;
    Ok(())
}
