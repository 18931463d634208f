//! `mvasvm ls`, `stop`, `kill` and `logs`.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use mvas_agent::client::ExecIo;
use mvas_agent::protocol::{Exec, ShutdownKind};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use super::args::{KillArgs, LogsArgs, LsArgs, StopArgs};
use super::vmdir::{self, FoundVm, Hw, VmInfo};
use super::{guest, note, reach};
use crate::sim::init::MVASVM;

/// How long a killed monitor may take to be gone: it may have much memory to give back.
const KILL_PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn ls(args: &LsArgs) -> Result<u8> {
    let infos: Vec<VmInfo> = vmdir::all()?.into_iter().map(|vm| vm.info).collect();
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &infos)?;
        writeln!(out)?;
        return Ok(0);
    }
    writeln!(
        out,
        "{:<20} {:>8}  {:<4} {:>8} {:>4}  UP",
        "NAME", "PID", "HW", "MEM", "CPUS"
    )?;
    for info in infos {
        let hw = match info.hw {
            Hw::Kvm => "kvm",
            Hw::Sim => "sim",
        };
        let mem = format!("{}M", info.mem_bytes >> 20);
        let up = up_time(&info);
        writeln!(
            out,
            "{:<20} {:>8}  {hw:<4} {mem:>8} {:>4}  {up}",
            info.name, info.pid, info.cpus
        )?;
    }
    Ok(0)
}

fn up_time(info: &VmInfo) -> String {
    let started = SystemTime::UNIX_EPOCH + Duration::from_secs(info.started);
    let seconds = started.elapsed().map_or(0, |up| up.as_secs());
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours}:{minutes:02}:{:02}", seconds % 60)
}

pub(super) fn stop(args: &StopArgs) -> Result<u8> {
    for name in &args.names {
        let vm = vmdir::find(name)?;
        let deadline = Instant::now() + Duration::from_secs(args.timeout);
        let asked =
            reach::agent(&vm).and_then(|session| Ok(session.shutdown(ShutdownKind::PowerOff)?));
        if let Err(error) = asked {
            note(format!("{name} cannot be asked to power off: {error:#}"));
        } else if wait_gone(&vm, deadline) {
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
        end(&vmdir::find(name)?)?;
    }
    Ok(0)
}

fn end(vm: &FoundVm) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(vm.info.pid)?);
    // The lock says that this process lives and is the VM's monitor.
    if vm.lives() {
        match signal::kill(pid, Signal::SIGKILL) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(e) => return Err(e).with_context(|| format!("cannot kill process {pid}")),
        }
    }
    if !wait_gone(vm, Instant::now() + KILL_PATIENCE) {
        bail!("process {pid} of {} does not go away", vm.info.name);
    }
    // Its folder is removed by whoever finds it: us. So is its simulated host's.
    vmdir::all()?;
    crate::sim::remove_stale()
}

fn wait_gone(vm: &FoundVm, deadline: Instant) -> bool {
    while vm.lives() {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
    true
}

pub(super) fn logs(args: &LogsArgs) -> Result<u8> {
    let vm = vmdir::find(&args.name)?;
    if let Some(sim) = &vm.info.sim {
        return logs_in(sim, args);
    }
    let path = vm.path.join("console.log");
    let mut file = File::open(&path).with_context(|| path.display().to_string())?;
    let mut out = io::stdout().lock();
    loop {
        let ended = !vm.lives();
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

/// The log of a VM in a simulated host: the same command there.
fn logs_in(sim: &std::path::Path, args: &LogsArgs) -> Result<u8> {
    let signals = guest::signals()?;
    let mut argv = vec![MVASVM.to_owned(), "logs".to_owned(), args.name.to_string()];
    argv.extend(args.follow.then(|| "--follow".to_owned()));
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let io = ExecIo {
        stdin: None,
        stdout: stdout.as_fd(),
        stderr: stderr.as_fd(),
        signals: Some(&signals),
    };
    let end = reach::channel(sim)?.with(|session| session.exec(Exec::new(argv), &io))?;
    Ok(end.exit_code())
}
