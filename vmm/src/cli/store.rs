// SPDX-License-Identifier: GPL-2.0-only
//! `mvasvm store`: the directory that snapshots live in.

use std::env;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use mvas_host::store::{BrokenSnapshot, Store, StoreOptions};
use mvasvm::config::bytes_of;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::note;

/// There is something wrong in the store, or in the way.
const PROBLEMS: u8 = 1;

/// The store when none is named: `$MVAS_STORE`, or this user's.
pub(crate) fn default_dir() -> PathBuf {
    env::var_os("MVAS_STORE").map_or_else(Store::default_dir, PathBuf::from)
}

/// Which store.
#[derive(Debug, Args)]
pub(super) struct StoreDir {
    /// Directory of the store [default: $MVAS_STORE, or /dev/shm/mvas-UID]
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// Take a file system other than tmpfs, for tests
    #[arg(long)]
    pub store_force: bool,
}

impl StoreDir {
    pub fn path(&self) -> PathBuf {
        self.store.clone().unwrap_or_else(default_dir)
    }

    /// The store, if there is one: looking does not make it.
    pub fn open_existing(&self) -> Result<Option<Store>> {
        let path = self.path();
        match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            _ => {}
        }
        let options = StoreOptions {
            force: self.store_force,
            ..StoreOptions::default()
        };
        Ok(Some(Store::open(&path, options)?))
    }

    /// The store that there must be.
    pub fn open(&self) -> Result<Store> {
        self.open_existing()?
            .with_context(|| format!("there is no store at {}", self.path().display()))
    }
}

/// Look after the snapshot store: verify it, give memory back, mount it
///
/// Snapshots live in a directory in this host's memory and outlive the VMs that made them.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm store check
  mvasvm store gc
  sudo mvasvm store mount --store /dev/shm/mvas-1000")]
pub(super) struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    Gc(GcArgs),
    Check(CheckArgs),
    Mount(MountArgs),
}

/// Give back memory that no snapshot and no running VM needs
///
/// Every command that opens the store does so by itself. A broken snapshot prevents it, for
/// nobody can tell what memory it has: remove that snapshot, or say --force.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm store gc
  mvasvm store gc --force --json

Exit code: 0; 1 if a broken snapshot prevents it; 125 if it failed.")]
struct GcArgs {
    #[command(flatten)]
    dir: StoreDir,
    /// Broken snapshots protect nothing
    #[arg(long)]
    force: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Verify everything in the store
///
/// Checksums and content of all snapshots, that their memory is there, and that no memory is
/// kept that nobody needs. What killed VMs left is cleaned up before.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mvasvm store check
  mvasvm store check --json | jq -r '.problems[].path'

Exit code: 0 if all is right; 1 if something is wrong; 125 if the store cannot be read.")]
struct CheckArgs {
    #[command(flatten)]
    dir: StoreDir,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Mount a tmpfs with huge pages on the store's directory (as root)
///
/// With huge pages snapshots are many times faster; /dev/shm usually has none. The tmpfs belongs
/// to whom the directory belongs to. Unmounting it (umount DIR) removes all snapshots.
///
/// Without --size it has no limit: VMs together may be promised more memory than this host has.
/// With it, each VM and each snapshot in it has its memory for sure, or is refused.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sudo mvasvm store mount --size 48G
  mkdir -m 700 /dev/shm/mvas-1000 && sudo mvasvm store mount --store /dev/shm/mvas-1000")]
struct MountArgs {
    /// Directory of the store [default: $MVAS_STORE, or /dev/shm/mvas-UID]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// The most memory that VMs and snapshots in it may have: a number with K, M, G or T
    #[arg(long, value_name = "SIZE", value_parser = bytes_of)]
    size: Option<u64>,
}

pub(super) fn run(args: &StoreArgs) -> Result<u8> {
    match &args.command {
        StoreCommand::Gc(args) => gc(args),
        StoreCommand::Check(args) => check(args),
        StoreCommand::Mount(args) => {
            let dir = args.store.clone().unwrap_or_else(default_dir);
            mount_tmpfs(&dir, args.size)
        }
    }
}

fn gc(args: &GcArgs) -> Result<u8> {
    let store = args.dir.open()?;
    let mut freed = store.gc(args.force)?;
    freed.bytes += store.cleaned().bytes;
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &freed)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{} given back", size(freed.bytes))?;
    }
    note_blocked(&freed.blocked_by);
    Ok(if freed.blocked_by.is_empty() {
        0
    } else {
        PROBLEMS
    })
}

/// Says why memory was not given back.
pub(super) fn note_blocked(by: &[BrokenSnapshot]) {
    for BrokenSnapshot { name, reason } in by {
        note(format!(
            "no memory was given back: the snapshot {name} is broken ({reason}) and may need it; \
             `mvasvm snapshots rm {name}` removes it"
        ));
    }
}

fn check(args: &CheckArgs) -> Result<u8> {
    let report = args.dir.open()?.check()?;
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        for problem in &report.problems {
            writeln!(out, "{}: {}", problem.path.display(), problem.what)?;
        }
        writeln!(
            out,
            "{} complete snapshots with {} extents, {} RAM files, {} running VMs, {} problems",
            report.snapshots,
            report.extents,
            report.ram_files,
            report.living,
            report.problems.len()
        )?;
    }
    Ok(if report.problems.is_empty() {
        0
    } else {
        PROBLEMS
    })
}

fn mount_tmpfs(dir: &Path, size: Option<u64>) -> Result<u8> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "only root can mount: use sudo, with --store {}",
            dir.display()
        );
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(e).with_context(|| format!("cannot make {}", dir.display()));
        }
        _ => {}
    }
    // Everything from here on is about this one directory, whatever takes its name meanwhile.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(dir);
    let opened = opened.map_err(|e| match e.raw_os_error() {
        Some(libc::ENOTDIR | libc::ELOOP) => anyhow!(
            "{} is not a directory (symbolic links are not followed)",
            dir.display()
        ),
        _ => anyhow::Error::from(e).context(dir.display().to_string()),
    })?;
    let this = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    let meta = opened.metadata()?;
    let above = fs::metadata(this.join("..")).with_context(|| dir.display().to_string())?;
    if above.dev() != meta.dev() {
        bail!(
            "something is mounted on {} already: umount it first",
            dir.display()
        );
    }
    if let Some(entry) = fs::read_dir(&this)?.next() {
        bail!(
            "{} is not empty, and what is in it ({:?}) would be hidden: remove it first",
            dir.display(),
            entry?.file_name()
        );
    }
    let options = format!(
        "huge=advise,mode=0700,size={},nr_inodes=0,uid={},gid={}",
        size.unwrap_or(0),
        meta.uid(),
        meta.gid()
    );
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mounted = mount(
        Some("mvas"),
        &this,
        Some("tmpfs"),
        flags,
        Some(options.as_str()),
    );
    match mounted {
        Err(Errno::EINVAL) => bail!(
            "cannot mount a tmpfs with huge pages on {}: this kernel has none (CONFIG_TRANSPARENT_HUGEPAGE)",
            dir.display()
        ),
        mounted => mounted.with_context(|| format!("cannot mount on {}", dir.display()))?,
    }
    Ok(0)
}

/// Bytes for people: in MiB, or in GiB with one digit after the point.
pub(super) fn size(bytes: u64) -> String {
    const GIB: u64 = 1 << 30;
    if bytes < 10 * GIB {
        return format!("{}M", bytes.div_ceil(1 << 20));
    }
    let tenths = (u128::from(bytes) * 10).div_ceil(u128::from(GIB));
    format!("{}.{}G", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_are_rounded_up_to_a_unit_that_fits() {
        for (bytes, text) in [
            (0, "0M"),
            (1, "1M"),
            (2 << 20, "2M"),
            ((10 << 30) - 1, "10240M"),
            (10 << 30, "10.0G"),
            ((10 << 30) + 1, "10.1G"),
            (u64::MAX, "17179869184.0G"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }
}
