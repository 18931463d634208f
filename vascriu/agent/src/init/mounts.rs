// SPDX-License-Identifier: GPL-2.0-only
//! The file systems of a machine.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, umount2};
use nix::unistd::{chdir, pivot_root};

use super::log;

/// One mount.
#[derive(Debug, Clone, Copy)]
pub struct Mount<'a> {
    /// Device or tag.
    pub source: &'a str,
    /// Where; made if it does not exist.
    pub target: &'a Path,
    /// Type of the file system.
    pub kind: &'a str,
    /// Options of the file system.
    pub options: &'a str,
    /// Options of the mount.
    pub flags: MsFlags,
}

/// Mounts a file system.
///
/// # Errors
/// The kernel refuses, or the target cannot be made.
pub fn mount(what: Mount<'_>) -> io::Result<()> {
    if !what.target.is_dir() {
        fs::create_dir_all(what.target)?;
    }
    let options = Some(what.options).filter(|options| !options.is_empty());
    nix::mount::mount(
        Some(what.source),
        what.target,
        Some(what.kind),
        what.flags,
        options,
    )?;
    Ok(())
}

/// Makes the file `source` visible at `target` as well.
///
/// # Errors
/// The kernel refuses.
pub fn bind_file(source: &Path, target: &Path) -> io::Result<()> {
    File::create(target)?;
    let none: Option<&str> = None;
    nix::mount::mount(Some(source), target, none, MsFlags::MS_BIND, none)?;
    Ok(())
}

/// Mounts what every Linux machine has: `/proc`, `/sys` and what belongs below, `/dev`,
/// control groups, and tmpfs on `/run` and `/tmp`. What is mounted already, or what this
/// kernel does not have, is left out; failures are reported on the console.
pub fn mount_kernel_filesystems() {
    let system = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let data = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let table = [
        ("/proc", "proc", "", system),
        ("/sys", "sysfs", "", system),
        ("/dev", "devtmpfs", "mode=755", MsFlags::MS_NOSUID),
        (
            "/dev/pts",
            "devpts",
            "gid=5,mode=620,ptmxmode=666",
            MsFlags::MS_NOSUID,
        ),
        ("/dev/shm", "tmpfs", "mode=1777", data),
        ("/dev/mqueue", "mqueue", "", system),
        ("/run", "tmpfs", "mode=755", data),
        ("/tmp", "tmpfs", "mode=1777", data),
        ("/sys/fs/cgroup", "cgroup2", "nsdelegate", system),
        ("/sys/kernel/debug", "debugfs", "", system),
        ("/sys/kernel/tracing", "tracefs", "", system),
        ("/sys/fs/bpf", "bpf", "mode=700", system),
    ];
    for (target, kind, options, flags) in table {
        let target = Path::new(target);
        let result = mount(Mount {
            source: kind,
            target,
            kind,
            options,
            flags,
        });
        match result {
            Ok(()) => {}
            Err(e) if is_absent_or_mounted(&e) => {}
            // sysfs has no such folder: the kernel lacks that file system.
            Err(_) if target.starts_with("/sys/") && !target.exists() => {}
            Err(e) => log(format!("cannot mount {kind} on {}: {e}", target.display())),
        }
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        if let Err(e) = symlink(target, Path::new("/dev").join(name))
            && e.kind() != io::ErrorKind::AlreadyExists
        {
            log(format!("cannot make /dev/{name}: {e}"));
        }
    }
}

fn is_absent_or_mounted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EBUSY))
}

/// Makes the read-only root writable: what is written goes to a tmpfs, or to the ext4 file system
/// on `disk` and lasts. It all becomes the new root.
///
/// # Errors
/// A mount is refused; the old root is then still the root.
pub fn overlay_root(disk: Option<&str>) -> io::Result<()> {
    let base = Path::new("/run");
    mount(Mount {
        source: "tmpfs",
        target: base,
        kind: "tmpfs",
        options: "mode=755",
        flags: MsFlags::empty(),
    })?;
    let layers = match disk {
        None => base.to_owned(),
        Some(disk) => {
            let target = base.join("disk");
            mount(Mount {
                source: disk,
                target: &target,
                kind: "ext4",
                options: "",
                flags: MsFlags::empty(),
            })?;
            target
        }
    };
    let [upper, work] = ["upper", "work"].map(|folder| layers.join(folder));
    for folder in [&upper, &work] {
        fs::create_dir_all(folder)?;
    }
    let root = base.join("root");
    mount(Mount {
        source: "overlay",
        target: &root,
        kind: "overlay",
        options: &format!(
            "lowerdir=/,upperdir={},workdir={}",
            upper.display(),
            work.display()
        ),
        flags: MsFlags::empty(),
    })?;
    let old = root.join("mnt");
    fs::create_dir_all(&old)?;
    chdir(&root)?;
    pivot_root(".", "mnt")?;
    chdir("/")?;
    // The overlay keeps its layers; nothing else of the old root is to be seen.
    umount2("/mnt", MntFlags::MNT_DETACH)?;
    Ok(())
}
