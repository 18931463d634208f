// SPDX-License-Identifier: GPL-2.0-only
//! A microVM on a simulated host: the same command, run there.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use mvas_agent::protocol::Exec;
use mvasvm::config::VmName;
use mvasvm::virtio::block::disk::Disk;
use nix::sys::signalfd::SignalFd;
use nix::unistd::Uid;

use super::args::{DEFAULT_SIM_CPUS, GrantArg};
use super::cgroup::Cgroup;
use super::codes::{self, Outcome};
use super::guest::{is_interactive, run_in_guest, signals};
use super::record::{self, CONSOLE_LOG, Cause, End, Hw, METRICS, MONITOR_LOG};
use super::run::Wanted;
use super::sim::{default_mem, environment};
use super::vmdir::Vms;
use super::{paths, reach};
use crate::sim::init::MVASVM;
use crate::sim::{Ended, Share, SimConfig, SimHost, is_hidden};

/// What the simulated host itself gets to boot.
const BOOT: Duration = Duration::from_secs(300);

pub(super) fn run(mut wanted: Wanted) -> Result<u8> {
    let signals = signals()?;
    let mut dir = Vms::open()?.claim(&wanted.name)?;
    // Locks do not reach from there to here: taken for as long as the VM may use the disks.
    let image = wanted.image.iter().map(|path| (path, true));
    let disks = wanted.all_disks().map(|disk| (&disk.path, disk.read_only));
    let _disks = image
        .chain(disks)
        .map(|(path, read_only)| Disk::open(path, read_only))
        .collect::<Result<Vec<_>, _>>()?;
    let config = SimConfig {
        kernel: sim_kernel(&wanted),
        mem: default_mem()?,
        cpus: DEFAULT_SIM_CPUS.parse()?,
        shares: shares(&wanted),
        boot_timeout: BOOT,
        console: None,
    };
    wanted.cgroup.take().map_or(Ok(()), Cgroup::join)?;
    let host = SimHost::start(&config)?;
    dir.clear()?;
    dir.describe(wanted.info(Hw::Sim, Some(host.dir().to_owned())))?;
    let outcome = run_on(host, &wanted, dir.path(), &signals);
    dir.end(Outcome::end_of(&outcome));
    outcome.map(|outcome| outcome.code)
}

fn run_on(
    mut host: SimHost,
    wanted: &Wanted,
    folder: &Path,
    signals: &SignalFd,
) -> Result<Outcome> {
    let channel = match host.wait_booted(signals)? {
        Ok(channel) => channel,
        Err(Ended(code)) => {
            let text = "stopped while the simulated host booted";
            return Ok(Outcome::new(Cause::Stopped, text, code));
        }
    };
    let mut exec = Exec::new(command(wanted));
    exec.env = environment();
    exec.clear_env = true;
    exec.cwd = Some("/".into());
    let terminal = !wanted.args.detached_child && is_interactive();
    let end = channel
        .with(|session| run_in_guest(session, exec, terminal, signals))
        .map_err(|error| host.explain(error))?;
    let recorded = take_record(host.dir(), &wanted.name, folder);
    host.stop();
    let code = end.exit_code();
    Ok(match recorded {
        Ok(there) => Outcome::new(there.cause, there.text, code),
        // It may have been refused there before there was anything to record.
        Err(error) => {
            let cause = match code {
                codes::FAILED | codes::USAGE => Cause::Failed,
                _ => Cause::CommandEnded,
            };
            let text =
                format!("mvasvm ended in the simulated host ({end}), without a record: {error:#}");
            Outcome::new(cause, text, code)
        }
    })
}

/// Takes the VM's record from the simulated host, before that goes: logs and counters to its
/// folder here, and how it ended.
fn take_record(sim: &Path, name: &VmName, folder: &Path) -> Result<End> {
    let there = paths::runtime_path(None, Uid::from_raw(0)).join(name.as_str());
    let channel = reach::channel(sim)?;
    let copy = channel
        .with(|session| session.copy_out(there.as_os_str(), &sim.join("record"), &mut |_, _| ()))?;
    for file in [CONSOLE_LOG, MONITOR_LOG, METRICS] {
        // One that failed early has not all of them.
        if copy.join(file).exists() {
            fs::rename(copy.join(file), folder.join(file))?;
        }
    }
    let info = record::read(&copy).context("its vm.json cannot be read")?;
    info.end.context("it has not ended")
}

/// The simulated host boots what was built last, whatever its guest boots.
fn sim_kernel(wanted: &Wanted) -> PathBuf {
    paths::kernel(None).unwrap_or_else(|_| wanted.kernel.clone())
}

/// Folders of disks to be written, and of files that the simulated host would not see.
fn shares(wanted: &Wanted) -> Vec<Share> {
    let mut shares: Vec<Share> = Vec::new();
    let files = [&wanted.image, &wanted.initramfs];
    let files = files.into_iter().flatten().chain([&wanted.kernel]);
    let files = files.map(|path| (path, true));
    let disks = wanted.all_disks().map(|disk| (&disk.path, disk.read_only));
    for (path, read_only) in files.chain(disks) {
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        if read_only && !is_hidden(path) {
            continue;
        }
        match shares.iter_mut().find(|share| share.path == folder) {
            Some(share) => share.writable |= !read_only,
            None => shares.push(Share {
                path: folder,
                writable: !read_only,
            }),
        }
    }
    // An outer folder must not be mounted over an inner one.
    shares.sort_by(|a, b| a.path.cmp(&b.path));
    shares
}

/// The command there: everything by its whole path.
fn command(wanted: &Wanted) -> Vec<OsString> {
    let args = &wanted.args;
    let mut words: Vec<OsString> = [MVASVM, "run", "--hw", "kvm"].map(OsString::from).to_vec();
    let mut add = |option: &str, value: OsString| {
        words.push(option.into());
        words.push(value);
    };
    add("--name", wanted.name.as_str().into());
    add("--mem", format!("{}M", args.mem.bytes() >> 20).into());
    add("--cpus", args.cpus.get().to_string().into());
    add("--kernel", wanted.kernel.clone().into());
    add("--boot-timeout", args.boot_timeout.to_string().into());
    for (option, file) in [
        ("--image", &wanted.image),
        ("--initramfs", &wanted.initramfs),
        (
            "--overlay",
            &wanted.overlay.as_ref().map(|disk| disk.path.clone()),
        ),
    ] {
        if let Some(file) = file {
            add(option, file.clone().into());
        }
    }
    for disk in &wanted.disks {
        add("--disk", disk.render());
    }
    if let Some(cmdline) = &args.cmdline {
        add("--cmdline", cmdline.into());
    }
    if let Some(store) = &args.store {
        // Of the simulated host; it was made absolute where it names a directory.
        add("--store", store.into());
    }
    if let Some(limit) = args.store_limit {
        add("--store-limit", format!("{}K", limit >> 10).into());
    }
    if args.grant == GrantArg::All {
        add("--grant", "all".into());
    }
    if args.no_sandbox {
        words.push("--no-sandbox".into());
    }
    if args.store_force {
        words.push("--store-force".into());
    }
    if args.detached_child {
        words.push("--detached-child".into());
    }
    if !args.command.is_empty() {
        words.push("--".into());
        words.extend(args.command.iter().cloned());
    }
    words
}
