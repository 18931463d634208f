//! PID 1 of the simulated host.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use mvas_agent::init::{self, Machine, Mount, Service};
use mvas_agent::server::{Server, serve_ports};
use nix::mount::MsFlags;

use super::channels::PORT_PREFIX;

/// 9p tag of the work folder.
pub(super) const WORK_TAG: &str = "hostwork";

/// Where this binary is found in the simulated host, whatever lies over its own path.
pub(crate) const MVASVM: &str = "/run/mvasvm";

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Path of the work folder, in hexadecimal
    #[arg(long, value_parser = unhex)]
    work: Option<PathBuf>,
}

/// The path in hexadecimal digits.
pub(super) fn unhex(text: &str) -> Result<PathBuf, String> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    text.as_bytes()
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect::<Option<Vec<u8>>>()
        .map(|bytes| OsString::from_vec(bytes).into())
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
    mount_tmpfs("/var/tmp");
    if let Some(work) = &args.work {
        let shared = init::mount(Mount {
            source: WORK_TAG,
            target: work,
            kind: "9p",
            options: "trans=virtio,version=9p2000.L,cache=mmap,msize=524288",
            flags: MsFlags::empty(),
        });
        if let Err(error) = shared {
            init::log(format!(
                "cannot mount the work folder {}: {error}",
                work.display()
            ));
        }
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

fn mount_tmpfs(target: &str) {
    let mounted = init::mount(Mount {
        source: "tmpfs",
        target: Path::new(target),
        kind: "tmpfs",
        options: "mode=1777",
        flags: MsFlags::empty(),
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
