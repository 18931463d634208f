// SPDX-License-Identifier: GPL-2.0-only
//! `mvasvm ls`, `stop`, `kill`, `rm` and `logs`.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mvas_agent::protocol::ShutdownKind;
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use super::args::{KillArgs, LogsArgs, LsArgs, RmArgs, StopArgs};
use super::record::{CONSOLE_LOG, Hw, MONITOR_LOG, VmInfo, seconds};
use super::snapshots::text;
use super::vmdir::{FoundVm, Vms};
use super::{metrics, note, reach, record};

/// How long a killed monitor may take to be gone: it may have much memory to give back.
const KILL_PATIENCE: Duration = Duration::from_secs(30);
/// A killed monitor of which for so long only threads are left that no signal reaches hangs.
const HANG_PATIENCE: Duration = Duration::from_secs(2);

pub(super) fn ls(args: &LsArgs) -> Result<u8> {
    let infos = Vms::open()?.all()?.into_iter();
    let infos = infos.filter(|vm| args.all || vm.runs()).map(|vm| vm.info);
    let infos: Vec<VmInfo> = infos.collect();
    let mut out = io::stdout().lock();
    if args.json {
        text::json(&mut out, &infos)?;
        return Ok(0);
    }
    let end = if args.all { "         END" } else { "" };
    writeln!(
        out,
        "{:<20} {:>8}  {:<4} {:>8} {:>4}  UP{end}",
        "NAME", "PID", "HW", "MEM", "CPUS"
    )?;
    for info in infos {
        let hw = match info.hw {
            Hw::Kvm => "kvm",
            Hw::Sim => "sim",
        };
        let mem = format!("{}M", info.mem_bytes >> 20);
        let up = up_time(&info);
        // An error may be a whole log: its first line tells most.
        let end = info.end.as_ref().map(|end| end.text.lines().next());
        let end = end.flatten().map(text::shown).unwrap_or_default();
        let line = format!(
            "{:<20} {:>8}  {hw:<4} {mem:>8} {:>4}  {up:<9}  {end}",
            info.name, info.pid, info.cpus
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(0)
}

/// How long it has been running, or did.
fn up_time(info: &VmInfo) -> String {
    let until = info.end.as_ref().map_or_else(seconds, |end| end.at);
    let seconds = until.saturating_sub(info.started);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours}:{minutes:02}:{:02}", seconds % 60)
}

pub(super) fn stop(args: &StopArgs) -> Result<u8> {
    for name in &args.names {
        let vm = Vms::open()?.running(name)?;
        let deadline = Instant::now() + Duration::from_secs(args.timeout);
        let asked =
            reach::agent(&vm).and_then(|session| Ok(session.shutdown(ShutdownKind::PowerOff)?));
        if let Err(error) = asked {
            note(format!("{name} cannot be asked to power off: {error:#}"));
        } else if wait_gone(&vm, deadline)? {
            continue;
        } else {
            note(format!("{name} did not power off in time: ending it"));
        }
        end(&vm)?;
    }
    Ok(0)
}

pub(super) fn kill(args: &KillArgs) -> Result<u8> {
    for name in &args.names {
        end(&Vms::open()?.running(name)?)?;
    }
    Ok(0)
}

fn end(vm: &FoundVm) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(vm.info.pid)?);
    metrics::write_last(vm);
    // The lock says that this process lives and is the VM's monitor.
    if vm.lives()? {
        record::mark_killed(&vm.path);
        match signal::kill(pid, Signal::SIGKILL) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(e) => return Err(e).with_context(|| format!("cannot kill process {pid}")),
        }
    }
    match wait_killed(vm)? {
        Killed::Gone => {}
        Killed::Hangs => {
            note(format!(
                "{} is killed, but a disk image hangs: process {pid}, which is all that is left of \
                 it, has its name, memory and disks until the host lets it go",
                vm.info.name
            ));
            return Ok(());
        }
        Killed::Lives => bail!("process {pid} of {} does not go away", vm.info.name),
    }
    // Its end is written by whoever finds it: us. So is its simulated host's folder removed.
    Vms::open()?.all()?;
    crate::sim::remove_stale()
}

/// Whether a VM's monitor is gone by then.
pub(super) fn wait_gone(vm: &FoundVm, deadline: Instant) -> Result<bool> {
    while vm.lives()? {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(true)
}

/// What became of a killed monitor.
enum Killed {
    Gone,
    /// Its guest does not run any more, but a system call on a file does.
    Hangs,
    Lives,
}

fn wait_killed(vm: &FoundVm) -> Result<Killed> {
    let deadline = Instant::now() + KILL_PATIENCE;
    let mut moved = Instant::now();
    while vm.lives()? {
        if !hangs(vm.info.pid) {
            moved = Instant::now();
        } else if moved.elapsed() >= HANG_PATIENCE {
            return Ok(Killed::Hangs);
        }
        if Instant::now() >= deadline {
            return Ok(Killed::Lives);
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(Killed::Gone)
}

/// Whether of a process there are only threads that have ended (Z), and such as wait for the host
/// whatever signals they get (D).
fn hangs(pid: u32) -> bool {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    let stats = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok());
    // The thread's name, which may have any character in it, is in parentheses before its state.
    let state = |stat: String| {
        stat.rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next())
    };
    let states: Vec<char> = stats.filter_map(state).collect();
    states.contains(&'D') && states.iter().all(|state| "DZ".contains(*state))
}

pub(super) fn rm(args: &RmArgs) -> Result<u8> {
    let vms = Vms::open()?;
    match args.all {
        true => vms.remove_ended()?,
        false => vms.remove(&args.names)?,
    }
    Ok(0)
}

pub(super) fn logs(args: &LogsArgs) -> Result<u8> {
    let vm = Vms::open()?.find(&args.name)?;
    if vm.runs()
        && let Some(sim) = &vm.info.sim
    {
        let mut words = vec!["logs".to_owned(), args.name.to_string()];
        words.extend(args.follow.then(|| "--follow".to_owned()));
        words.extend(args.monitor.then(|| "--monitor".to_owned()));
        return reach::run_there(sim, words);
    }
    let log = if args.monitor {
        MONITOR_LOG
    } else {
        CONSOLE_LOG
    };
    let path = vm.path.join(log);
    let mut file = File::open(&path)
        .with_context(|| format!("there is no log {} of {}", path.display(), args.name))?;
    let mut out = io::stdout().lock();
    loop {
        let ended = !vm.lives()?;
        // The log keeps its newest half when it is full.
        if file.metadata()?.len() < file.stream_position()? {
            file.rewind()?;
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        if out.write_all(&bytes).and_then(|()| out.flush()).is_err() || ended || !args.follow {
            return Ok(0);
        }
        thread::sleep(Duration::from_millis(100));
    }
}
