// SPDX-License-Identifier: GPL-2.0-only
//! `mvas-agent`: PID 1 of the microVM's guest, and the server of its exec and copy protocol.

use std::fs;
use std::os::unix::fs::symlink;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use mvas_agent::init::{self, DEFAULT_PATH, Machine, Service};
use mvas_agent::protocol::{ShutdownKind, VSOCK_PORT};
use mvas_agent::server::{Server, serve_vsock};
use nix::mount::MsFlags;

/// What the image wants to have running: a program each.
const SERVICES: &str = "/etc/mvas/services";

/// The agent of a microVM's guest.
///
/// As PID 1 it mounts what a machine needs, serves commands and file copies on vsock port 52,
/// keeps the programs in /etc/mvas/services running and, if the kernel's command line says
/// mvas.login=1, a login on /dev/hvc0. Called as poweroff, halt or reboot it brings the
/// machine down.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// Serve sessions on a vsock port (started by PID 1)
    Serve {
        /// The port
        #[arg(long, default_value_t = VSOCK_PORT)]
        port: u32,
    },
    /// Power the machine off
    Poweroff,
    /// Reset the machine
    Reboot,
}

fn main() -> ExitCode {
    let result = if std::process::id() == 1 {
        run_machine()
    } else {
        run_mode()
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            init::log(format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run_mode() -> Result<()> {
    let called = std::env::args_os().next().unwrap_or_default();
    let mode = match Path::new(&called)
        .file_name()
        .and_then(|name| name.to_str())
    {
        Some("poweroff" | "halt" | "shutdown") => Mode::Poweroff,
        Some("reboot") => Mode::Reboot,
        _ => Args::parse().mode,
    };
    match mode {
        Mode::Serve { port } => {
            let server = Server::new(Arc::new(Machine));
            serve_vsock(&server, port).with_context(|| format!("cannot serve on vsock port {port}"))
        }
        Mode::Poweroff => init::request(ShutdownKind::PowerOff).context("cannot power off"),
        Mode::Reboot => init::request(ShutdownKind::Reboot).context("cannot reboot"),
    }
}

/// PID 1: it must not end, or the kernel panics. Whatever cannot be done is said on the
/// console, and the machine comes up without it. But without the disk that is to keep what is
/// written, nothing must be written: then it does end.
fn run_machine() -> Result<()> {
    match overlay_disk() {
        Ok(None) => {
            if let Err(error) = init::overlay_root(None) {
                init::log(format!("the root stays read-only: {error}"));
            }
        }
        disk => {
            let disk = disk?;
            init::overlay_root(disk.as_deref()).with_context(|| {
                let disk = disk.unwrap_or_default();
                format!("cannot use {disk} (--overlay), which may have no ext4 or a damaged one")
            })?;
        }
    }
    init::mount_kernel_filesystems();
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let hostname = init::kernel_argument(&cmdline, "mvas.hostname");
    init::prepare(hostname.as_deref().unwrap_or("mvas"));
    init::set_for_checkpoints(Path::new("/proc/sys"), &cmdline);
    for name in ["poweroff", "halt", "reboot"] {
        // Where the image brings one of its own, that one stays.
        let _ = symlink("/usr/lib/mvas/agent", Path::new("/usr/sbin").join(name));
    }
    let mut agent = Command::new("/proc/self/exe");
    with_environment(agent.arg("serve"));
    let mut services = vec![Service::new("the agent", agent)];
    for program in init::programs(Path::new(SERVICES)) {
        let mut command = Command::new(&program);
        with_environment(&mut command);
        services.push(Service::new(program.display().to_string(), command));
    }
    if init::kernel_argument(&cmdline, "mvas.login").as_deref() == Some("1") {
        let term = init::kernel_argument(&cmdline, "mvas.term");
        services.push(login(term.as_deref().unwrap_or("linux")));
    }
    loop {
        // A panic is reported by its hook; PID 1 goes on.
        let run = AssertUnwindSafe(|| init::supervise(&mut services));
        let run = std::panic::catch_unwind(run);
        if let Ok(Err(error)) = run {
            init::log(format!("PID 1: {error}"));
        }
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

/// Where what is written is to last.
fn overlay_disk() -> Result<Option<String>> {
    init::mount(init::Mount {
        source: "proc",
        target: Path::new("/proc"),
        kind: "proc",
        options: "",
        flags: MsFlags::empty(),
    })
    .and_then(|()| fs::read_to_string("/proc/cmdline"))
    .map(|cmdline| init::kernel_argument(&cmdline, "mvas.overlay"))
    .context("cannot read the kernel's command line")
}

fn with_environment(command: &mut Command) {
    command
        .env_clear()
        .env("PATH", DEFAULT_PATH)
        .env("HOME", "/root")
        .env("USER", "root")
        .env("LOGNAME", "root")
        .env("SHELL", "/bin/bash")
        .env("LANG", "C.UTF-8")
        .current_dir(if Path::new("/root").is_dir() {
            "/root"
        } else {
            "/"
        });
}

fn login(term: &str) -> Service {
    let shell = ["/bin/bash", "/bin/sh"]
        .into_iter()
        .find(|shell| Path::new(shell).exists())
        .unwrap_or("/bin/sh");
    let mut command = Command::new(shell);
    with_environment(command.arg("-l"));
    command.env("TERM", term);
    Service::on_terminal("the login", command, "/dev/hvc0")
}
