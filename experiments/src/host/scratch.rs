// SPDX-License-Identifier: GPL-2.0-only
//! A snapshot store for one experiment, which goes with it, however that ends.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::mvasvm;

/// A store of an experiment's own, so that nobody's snapshots are touched. Dropping it removes
/// it.
///
/// Who really removes it is a process of its own, the [`janitor`], when its standard input
/// ends: with our end, of whatever kind, it does.
#[derive(Debug)]
pub struct Scratch {
    folder: PathBuf,
    janitor: Child,
}

impl Scratch {
    /// Makes one in host memory, with huge pages where that is allowed.
    ///
    /// # Errors
    /// When there is no tmpfs for it.
    pub fn new() -> Result<Self> {
        let scratch = Self::in_shared_memory()?;
        let mounted = Command::new(mvasvm())
            .args(["store", "mount", "--store"])
            .arg(scratch.path())
            .stdin(Stdio::null())
            .output()
            .context("cannot run mvasvm")?;
        if !mounted.status.success() {
            let why = String::from_utf8_lossy(&mounted.stderr);
            eprintln!("the store has no huge pages: {}", why.trim());
        }
        Ok(scratch)
    }

    /// Makes one without huge pages.
    ///
    /// # Errors
    /// When a tmpfs cannot be mounted.
    pub fn with_small_pages() -> Result<Self> {
        let scratch = Self::in_shared_memory()?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let options = "huge=never,size=0,mode=0700";
        mount(
            Some("tmpfs"),
            scratch.path(),
            Some("tmpfs"),
            flags,
            Some(options),
        )
        .with_context(|| format!("cannot mount a tmpfs on {}", scratch.path().display()))?;
        Ok(scratch)
    }

    fn in_shared_memory() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("mvas-exp-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in("/dev/shm")
            .context("cannot make a snapshot store in /dev/shm")?;
        let janitor = Command::new(std::env::current_exe()?)
            .arg("janitor")
            .arg(folder.path())
            .stdin(Stdio::piped())
            // Not for the terminal's Ctrl-C.
            .process_group(0)
            .spawn()
            .context("cannot start the janitor")?;
        Ok(Self {
            folder: folder.keep(),
            janitor,
        })
    }

    /// The directory for `mvasvm --store`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Host memory in the store's files.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn allocated_bytes(&self) -> Result<u64> {
        let ram = self.folder.join("ram");
        let mut bytes = 0;
        for entry in fs::read_dir(&ram).with_context(|| ram.display().to_string())? {
            match entry?.metadata() {
                Ok(meta) => bytes += meta.blocks() * 512,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e).context("the store's files"),
            }
        }
        Ok(bytes)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        let _ = self.janitor.wait();
    }
}

/// How long microVMs that are being killed may still hold the store.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for the end of standard input, then removes the store in `folder`.
///
/// # Errors
/// When something of it stays.
pub fn janitor(folder: &Path) -> Result<()> {
    io::copy(&mut io::stdin().lock().by_ref(), &mut io::sink())?;
    // Whoever still has it mapped is being killed; its memory goes with the last of them.
    let _not_mounted = umount2(folder, MntFlags::MNT_DETACH);
    let begun = Instant::now();
    loop {
        match fs::remove_dir_all(folder) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if begun.elapsed() > PATIENCE => {
                return Err(e).with_context(|| format!("cannot remove {}", folder.display()));
            }
            Err(_) => sleep(Duration::from_millis(50)),
        }
    }
}
