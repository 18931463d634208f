// SPDX-License-Identifier: GPL-2.0-only
//! PID 1 of the simulated host.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use mvas_agent::init::{self, Machine, Mount, Service};
use mvas_agent::server::{Server, serve_ports};
use nix::mount::MsFlags;

use super::Share;
use super::channels::PORT_PREFIX;
use super::hold_kvm::hold_kvm;

/// Folders that the simulated host does not share with this one.
pub(super) const OWN_FOLDERS: [&str; 6] = ["/dev", "/proc", "/run", "/sys", "/tmp", "/var/tmp"];

/// Where this binary is found in the simulated host, whatever lies over its own path.
pub(crate) const MVASVM: &str = "/run/mvasvm";

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// A shared folder: "r:" or "w:", and its path in hexadecimal, which survives the kernel's
    /// command line
    #[arg(long, value_parser = parse_share)]
    share: Vec<Share>,
}

/// 9p tag of the share with this index.
pub(super) fn share_tag(index: usize) -> String {
    format!("share{index}")
}

/// The argument for a share.
pub(super) fn share_argument(share: &Share) -> String {
    use std::fmt::Write;
    let mut text = format!("--share={}:", if share.writable { 'w' } else { 'r' });
    for byte in share.path.as_os_str().as_bytes() {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn parse_share(text: &str) -> Result<Share, String> {
    let (writable, path) = match text.split_once(':') {
        Some(("r", path)) => (false, path),
        Some(("w", path)) => (true, path),
        _ => return Err("neither r: nor w:".to_owned()),
    };
    let digit = |byte: u8| {
        let digit = char::from(byte).to_digit(16)?;
        u8::try_from(digit).ok()
    };
    path.as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect::<Option<Vec<u8>>>()
        .map(|bytes| Share {
            path: OsString::from_vec(bytes).into(),
            writable,
        })
        .ok_or_else(|| "not hexadecimal".to_owned())
}

/// Runs the machine; does not return.
pub(crate) fn run(args: &InitArgs) -> Result<u8> {
    if std::process::id() != 1 {
        bail!("sim-init is only for PID 1 of a simulated host");
    }
    init::mount_kernel_filesystems();
    // By the link: something may lie over the path by now.
    if let Err(error) = init::bind_file(Path::new("/proc/self/exe"), Path::new(MVASVM)) {
        init::log(format!("cannot make {MVASVM}: {error}"));
    }
    mount_tmpfs("/var/tmp", "mode=1777", MsFlags::empty());
    // For the snapshot store: guests are larger than this machine, and want huge pages.
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_tmpfs("/dev/shm", "huge=advise,size=0", flags);
    for (index, share) in args.share.iter().enumerate() {
        mount_share(&share_tag(index), share);
    }
    for (path, value) in [
        // Guest RAM is a memory file: let it have huge pages where it asks for them.
        (
            "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
            "advise",
        ),
        // Guests are larger than this machine.
        ("/proc/sys/vm/overcommit_memory", "1"),
        ("/proc/sys/vm/max_map_count", "1048576"),
    ] {
        init::set(path, value);
    }
    if let Err(error) = hold_kvm() {
        init::log(format!("KVM: {error}"));
    }
    init::prepare("mvas-sim");
    let mut serve = Command::new("/proc/self/exe");
    serve.arg("sim-serve").env("PATH", init::DEFAULT_PATH);
    let mut services = [Service::new("the simulated host's agent", serve)];
    loop {
        // A panic is reported by its hook; PID 1 goes on.
        let run = AssertUnwindSafe(|| init::supervise(&mut services));
        if let Ok(Err(error)) = std::panic::catch_unwind(run) {
            init::log(format!("PID 1: {error}"));
        }
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

fn mount_share(tag: &str, share: &Share) {
    let mounted = init::mount(Mount {
        source: tag,
        target: &share.path,
        kind: "9p",
        options: "trans=virtio,version=9p2000.L,cache=mmap,msize=524288",
        flags: MsFlags::empty(),
    });
    if let Err(error) = mounted {
        init::log(format!("cannot mount {}: {error}", share.path.display()));
    }
}

fn mount_tmpfs(target: &str, options: &str, flags: MsFlags) {
    let mounted = init::mount(Mount {
        source: "tmpfs",
        target: Path::new(target),
        kind: "tmpfs",
        options,
        flags,
    });
    if let Err(error) = mounted {
        init::log(format!("cannot mount a tmpfs on {target}: {error}"));
    }
}

/// Serves commands on the channels.
pub(crate) fn serve() -> Result<u8> {
    serve_ports(&Server::new(Arc::new(Machine)), PORT_PREFIX).context("the channels")?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_share_survives_the_kernel_command_line(bytes: Vec<u8>, writable: bool) {
            let share = Share { path: OsString::from_vec(bytes).into(), writable };
            let argument = share_argument(&share);
            let text = argument.strip_prefix("--share=").expect("an option");
            prop_assert!(!text.contains(char::is_whitespace));
            prop_assert_eq!(parse_share(text), Ok(share));
        }

        #[test]
        fn nonsense_is_refused_without_a_panic(text: String) {
            if let Ok(share) = parse_share(&text) {
                let argument = share_argument(&share);
                let again = argument.strip_prefix("--share=").unwrap_or_default();
                prop_assert!(again.eq_ignore_ascii_case(&text));
            }
        }
    }
}
