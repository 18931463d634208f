// SPDX-License-Identifier: GPL-2.0-only
//! QEMU's command line.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use super::SimConfig;
use super::channels::{COUNT, Channels, PORT_PREFIX};
use super::init::{share_argument, share_tag};
use super::pulse::{self, Pulse};
use crate::cli::paths;

/// QEMU's own messages, in the simulated host's folder.
pub(super) const LOG: &str = "qemu.log";

const ROOT_TAG: &str = "hostroot";

/// Starts QEMU. It dies with the thread that calls this.
pub(super) fn spawn(config: &SimConfig, dir: &Path, console: &Path) -> Result<Child> {
    let exe = std::env::current_exe().context("cannot tell the path of mvasvm itself")?;
    let log = File::create(dir.join(LOG))?;
    let Some(program) = paths::emulator() else {
        bail!(
            "there is no emulator for a simulated host: {}",
            paths::BRING_EMULATOR
        );
    };
    let mut command = Command::new(&program);
    command
        .args(arguments(config, dir, console, &exe)?)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C at the terminal is for the command in it.
        .process_group(0);
    let parent = nix::unistd::getpid();
    // SAFETY: prctl and getppid are system calls that touch no memory of ours.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            if nix::unistd::getppid() == parent {
                Ok(())
            } else {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        });
    }
    command
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}

fn arguments(config: &SimConfig, dir: &Path, console: &Path, exe: &Path) -> Result<Vec<OsString>> {
    let mut args: Vec<OsString> = [
        "-no-user-config",
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
        "-machine",
        "q35,hpet=off",
        "-accel",
        "tcg,thread=multi,tb-size=1024",
        "-cpu",
        // Its KVM does not see a nested guest's XSETBV, so that guest kernels warn. Each level
        // of page tables is walked anew for each level of the guest's. TCG does string instructions
        // byte by byte: kernel and libc have faster loops for CPUs whose are slow.
        "max,-xsave,-la57,-erms,-fsrm",
        "-device",
        "virtio-rng-pci",
        "-device",
        "virtio-serial-pci",
    ]
    .map(OsString::from)
    .to_vec();
    let mut add = |option: &str, parts: &[&OsStr]| {
        args.push(option.into());
        args.push(parts.concat_os());
    };
    add("-smp", &[config.cpus.get().to_string().as_ref()]);
    add("-m", &[format!("{}M", config.mem.bytes() >> 20).as_ref()]);
    add("-kernel", &[config.kernel.as_os_str()]);
    add("-append", &[kernel_cmdline(config, exe)?.as_ref()]);
    add(
        "-chardev",
        &["file,id=console,path=".as_ref(), &escaped(console)],
    );
    add("-serial", &["chardev:console".as_ref()]);
    let mut port = |id: &str, name: &str, socket: &Path| {
        let head = format!("socket,id={id},server=on,wait=off,path=");
        add("-chardev", &[head.as_ref(), &escaped(socket)]);
        let device = format!("virtserialport,chardev={id},name={name}");
        add("-device", &[device.as_ref()]);
    };
    port(pulse::PORT, pulse::PORT, &Pulse::socket(dir));
    for channel in 0..COUNT {
        let name = format!("{PORT_PREFIX}{channel}");
        port(
            &format!("ch{channel}"),
            &name,
            &Channels::socket(dir, channel),
        );
    }
    let mut share = |id: &str, writable: bool, path: &Path| {
        let readonly = if writable { "off" } else { "on" };
        let head =
            format!("local,id={id},security_model=none,multidevs=remap,readonly={readonly},path=");
        add("-fsdev", &[head.as_ref(), &escaped(path)]);
        let device = format!("virtio-9p-pci,fsdev={id},mount_tag={id}");
        add("-device", &[device.as_ref()]);
    };
    share(ROOT_TAG, false, Path::new("/"));
    for (index, one) in config.shares.iter().enumerate() {
        share(&share_tag(index), one.writable, &one.path);
    }
    Ok(args)
}

fn kernel_cmdline(config: &SimConfig, exe: &Path) -> Result<String> {
    let exe = exe
        .to_str()
        .filter(|path| !path.contains(|c: char| c.is_whitespace() || c == '"'))
        .with_context(|| {
            format!(
                "{} cannot be named on a kernel command line: install mvasvm at a path without spaces",
                exe.display()
            )
        })?;
    let shares: Vec<String> = config.shares.iter().map(share_argument).collect();
    let cmdline = format!(
        "root={ROOT_TAG} rootfstype=9p rootflags=trans=virtio,version=9p2000.L,cache=loose,msize=524288 ro \
         console=ttyS0 quiet panic=-1 mitigations=off audit=0 tsc=reliable no_timer_check \
         init={exe} -- sim-init {}",
        shares.join(" ")
    );
    // COMMAND_LINE_SIZE of the kernel.
    if cmdline.len() >= 2048 {
        bail!("the paths of the shared folders are too long for a kernel command line");
    }
    Ok(cmdline)
}

/// A comma ends a value in QEMU's options, two stand for one.
fn escaped(path: &Path) -> OsString {
    let bytes = path.as_os_str().as_bytes();
    let parts: Vec<&[u8]> = bytes.split(|byte| *byte == b',').collect();
    OsString::from_vec(parts.join(&b",,"[..]))
}

trait ConcatOs {
    fn concat_os(&self) -> OsString;
}

impl ConcatOs for [&OsStr] {
    fn concat_os(&self) -> OsString {
        self.iter().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_paths_do_not_become_options() {
        assert_eq!(
            escaped(Path::new("/a,readonly=off/b")),
            "/a,,readonly=off/b"
        );
    }
}
