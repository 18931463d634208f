// SPDX-License-Identifier: GPL-2.0-only
//! `mvasvm run`: where a VM runs, and in whose name.

use std::ffi::OsString;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use mvas_agent::protocol::Exec;
use mvasvm::config::VmName;

use super::args::{HwArg, RunArgs};
use super::cgroup::Cgroup;
use super::disk::DiskArg;
use super::entry::entry;
use super::record::{Hw, VmInfo, seconds};
use super::{codes, note, overlay, paths, run_kvm, run_sim};
use crate::doctor;

/// What a detached monitor says once its guest takes commands.
pub(super) const READY: &str = "ready";

/// A VM as asked for, with every file found.
pub(super) struct Wanted {
    pub args: RunArgs,
    pub name: VmName,
    pub kernel: PathBuf,
    pub image: Option<PathBuf>,
    pub initramfs: Option<PathBuf>,
    pub disks: Vec<DiskArg>,
    /// The disk behind those.
    pub overlay: Option<DiskArg>,
    /// The command; empty: a login.
    pub exec: Exec,
    pub cgroup: Option<Cgroup>,
}

pub(super) fn run(args: RunArgs) -> Result<u8> {
    if args.detach {
        return detach(&args);
    }
    let hw = match args.hw {
        HwArg::Kvm => Hw::Kvm,
        HwArg::Sim => Hw::Sim,
        HwArg::Auto => match doctor::KvmHost::look().why_unusable() {
            None => Hw::Kvm,
            Some(why) => {
                note(format!(
                    "{why}: running on a simulated host, about 10 times slower"
                ));
                Hw::Sim
            }
        },
    };
    let wanted = Wanted::find(args)?;
    match hw {
        Hw::Kvm => run_kvm::run(wanted),
        Hw::Sim => run_sim::run(wanted),
    }
}

impl Wanted {
    fn find(mut args: RunArgs) -> Result<Self> {
        if let Some(dir) = args.store.as_mut().filter(|dir| dir.as_os_str() != "none") {
            *dir = std::path::absolute(&dir).context("cannot find the store")?;
        }
        let file = |what: &str, path: &PathBuf| {
            path.canonicalize()
                .with_context(|| format!("there is no {what} {}", path.display()))
        };
        let image = match (&args.image, &args.initramfs) {
            (None, Some(_)) => None,
            (asked, _) => Some(paths::image(asked.as_deref())?),
        };
        let settings = match &image {
            Some(image) if !args.detached_child => mvas_images::own::settings(image)?,
            _ => None,
        };
        if args.overlay.is_some() && image.is_none() {
            bail!("--overlay is for the root of an image, and there is none");
        }
        let overlay = || -> Result<Option<DiskArg>> {
            let size = args.overlay_size.unwrap_or(overlay::DEFAULT_SIZE);
            let path = args.overlay.as_ref();
            let path = path.map(|path| overlay::find_or_make(path, size));
            let read_only = false;
            Ok(path.transpose()?.map(|path| DiskArg { path, read_only }))
        };
        let disks = args.disk.iter().map(|disk| {
            Ok(DiskArg {
                path: file("disk image", &disk.path)?,
                read_only: disk.read_only,
            })
        });
        Ok(Self {
            name: name_of(args.name.as_ref())?,
            kernel: paths::kernel(args.kernel.as_deref())?,
            image,
            initramfs: args
                .initramfs
                .as_ref()
                .map(|path| file("initial RAM file system", path))
                .transpose()?,
            disks: disks.collect::<Result<_>>()?,
            exec: entry(settings.unwrap_or_default(), args.command.clone()),
            cgroup: args.cgroup.as_deref().map(Cgroup::open).transpose()?,
            // Last: what else is wrong, it is not made.
            overlay: overlay()?,
            args,
        })
    }

    /// All disks but the image, in the guest's order.
    pub fn all_disks(&self) -> impl Iterator<Item = &DiskArg> {
        self.disks.iter().chain(&self.overlay)
    }

    /// What others are told about it.
    pub fn info(&self, hw: Hw, sim: Option<PathBuf>) -> VmInfo {
        VmInfo {
            name: self.name.to_string(),
            pid: std::process::id(),
            hw,
            sim,
            store: None,
            mem_bytes: self.args.mem.bytes(),
            cpus: self.args.cpus.get(),
            kernel: self.kernel.clone(),
            image: self.image.clone(),
            started: seconds(),
            end: None,
        }
    }
}

/// The name that was asked for, or any.
fn name_of(asked: Option<&VmName>) -> Result<VmName> {
    asked.cloned().map_or_else(any_name, Ok)
}

/// A name for a VM that was given none: one that no other had or will have, for snapshots
/// outlive a VM and belong to whoever has its name.
fn any_name() -> Result<VmName> {
    // The standard library's hasher has a random key of 128 bits.
    let random = RandomState::new().hash_one(std::process::id());
    Ok(format!("vm-{random:016x}").parse()?)
}

/// Starts the same command as a process of its own session, and waits until its guest takes
/// commands.
fn detach(args: &RunArgs) -> Result<u8> {
    let name = name_of(args.name.as_ref())?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(
            std::env::args_os()
                .skip(1)
                .filter(|arg| arg != "--detach")
                .collect::<Vec<OsString>>(),
        )
        .arg("--detached-child")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if args.name.is_none() {
        command.args(["--name", name.as_str()]);
    }
    // SAFETY: setsid is a system call that touches no memory of ours.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            Ok(())
        });
    }
    let mut child = command.spawn().context("cannot start the monitor")?;
    let errors = child.stderr.take().map(|mut pipe| {
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                let _ = io::stderr().write_all(&buffer[..n]);
            }
        })
    });
    let mut line = String::new();
    if let Some(pipe) = child.stdout.take() {
        BufReader::new(pipe)
            .read_line(&mut line)
            .context("cannot read from the monitor")?;
    }
    if line.trim_end() == READY {
        println!("{name}");
        return Ok(0);
    }
    if let Some(errors) = errors {
        let _ = errors.join();
    }
    let status = child.wait().context("cannot wait for the monitor")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.filter(|code| *code != 0).unwrap_or(codes::FAILED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_vm_without_a_name_gets_that_of_another() {
        assert_ne!(any_name().unwrap(), any_name().unwrap());
    }
}
