// SPDX-License-Identifier: GPL-2.0-only
//! A command that takes a worker's CRIU.

use std::env;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use nix::sched::{sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::{End, Hello, Job, nice, ready, set_nice};
use crate::criu::report::Channel;
use crate::criu::version::Criu;
use crate::dropin::aside;
use crate::dropin::config;
use crate::process::PidFd;
use crate::socket;

/// Variables that CRIU, or the loader of its libraries, would hear of from us.
const HEARD: [&str; 3] = ["CRIU_", "LD_", "VASCRIU_LIBDIR"];
/// What of `/proc/PID/status` makes what a process may do.
const RIGHTS: [&str; 12] = [
    "Uid",
    "Gid",
    "Groups",
    "Umask",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
];
const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

/// A CRIU that waits for our job.
#[derive(Debug)]
pub struct Ready {
    worker: OwnedFd,
    criu: PidFd,
    /// Where its plugin reports, and that file's number there.
    pub report: (Channel, i32),
}

impl Ready {
    /// One that does what a CRIU of ours would do; none if there is none.
    #[must_use]
    pub fn find(criu: &Criu) -> Option<Self> {
        let heard = |name: &str| HEARD.iter().any(|h| name.starts_with(h));
        let is_told = env::vars_os().any(|(name, _)| name.to_str().is_some_and(heard));
        if is_told || config::is_there() {
            return None;
        }
        let entries = ready().read_dir().ok()?.flatten();
        let pids = entries.filter_map(|e| e.file_name().to_str()?.parse().ok());
        pids.filter(|&pid| fits(pid, criu).unwrap_or(false))
            .find_map(|pid| Self::take(pid).ok())
    }

    fn take(pid: i32) -> io::Result<Self> {
        let criu = PidFd::open(pid).map_err(io::Error::other)?;
        let worker = socket::connect(&ready().join(pid.to_string()))?;
        // Nothing, if another one was faster.
        let hello = socket::receive(worker.as_fd(), true)?.ok_or(io::ErrorKind::WouldBlock)?;
        let Hello { report } = serde_json::from_slice(&hello.bytes)?;
        let file = hello.fds.into_iter().next();
        let channel = file.ok_or(io::ErrorKind::InvalidData)?.into();
        move_here(pid)?;
        Ok(Self {
            worker,
            criu,
            report: (channel, report),
        })
    }

    /// Has the job done; how CRIU ended, what its plugin reports, and what CRIU said.
    ///
    /// # Errors
    /// The worker was killed. CRIU has ended, too, and nobody knows how.
    pub fn run(
        self,
        job: &Job,
        images: BorrowedFd<'_>,
        work: BorrowedFd<'_>,
    ) -> io::Result<(ExitStatus, Channel, String)> {
        let worker = self.worker.as_fd();
        let sent = serde_json::to_vec(job).map_err(io::Error::from);
        let told = sent
            .and_then(|job| socket::send(worker, &job, &[images, work]))
            .and_then(|()| socket::receive(worker, true));
        match told {
            Ok(Some(message)) => {
                let End { status, output } = serde_json::from_slice(&message.bytes)?;
                Ok((ExitStatus::from_raw(status), self.report.0, output))
            }
            lost => {
                self.criu.wait();
                lost?;
                Err(io::ErrorKind::UnexpectedEof.into())
            }
        }
    }
}

/// Whether the process `pid` is that CRIU, and sees and may what we do.
fn fits(pid: i32, criu: &Criu) -> io::Result<bool> {
    let of = |who: &str, what: &str| Path::new("/proc").join(who).join(what);
    let pid = pid.to_string();
    let file = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino()));
    let same = |what: &str| Ok::<_, io::Error>(file(&of(&pid, what))? == file(&of("self", what))?);
    if file(&of(&pid, "exe"))? != file(&criu.program)? || !same("root")? {
        return Ok(false);
    }
    for namespace in NAMESPACES {
        if !same(&format!("ns/{namespace}"))? {
            return Ok(false);
        }
    }
    let rights = |who: &str| fs::read_to_string(of(who, "status")).map(|text| rights(&text));
    Ok(rights(&pid)? == rights("self")?)
}

/// The lines of a `/proc/PID/status` that are about rights.
fn rights(status: &str) -> Vec<String> {
    let is = |line: &&str| {
        line.split_once(':')
            .is_some_and(|(name, _)| RIGHTS.contains(&name))
    };
    status.lines().filter(is).map(str::to_owned).collect()
}

/// Moves CRIU to our cgroup, CPUs and priority, as if it were our child: restored tasks are in that
/// group and on those CPUs, too.
fn move_here(criu: i32) -> io::Result<()> {
    let groups = |who: &str| fs::read_to_string(format!("/proc/{who}/cgroup"));
    let ours = groups("self")?;
    let pid = criu.to_string();
    if groups(&pid)? != ours {
        let group = aside::cgroup("self").ok_or(io::ErrorKind::Unsupported)?;
        fs::write(group.join("cgroup.procs"), &pid)?;
        if groups(&pid)? != ours {
            return Err(io::ErrorKind::Unsupported.into());
        }
    }
    set_nice(criu, nice())?;
    let criu = Pid::from_raw(criu);
    let cpus = sched_getaffinity(Pid::from_raw(0))?;
    if sched_getaffinity(criu)? != cpus {
        sched_setaffinity(criu, &cpus)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_told_from_what_else_a_process_is() {
        let status = "Name:\tcriu\nUmask:\t0022\nPid:\t5\nCapEff:\t01\nSeccomp:\t0\n";
        assert_eq!(
            rights(status),
            ["Umask:\t0022", "CapEff:\t01", "Seccomp:\t0"]
        );
        let own = fs::read_to_string("/proc/self/status").expect("Linux");
        assert_eq!(rights(&own).len(), RIGHTS.len());
    }

    #[test]
    fn a_process_that_is_not_that_criu_does_not_fit() {
        let own = std::process::id().cast_signed();
        let mut criu = Criu {
            program: env::current_exe().expect("a program"),
            version: "4.1.1".into(),
        };
        assert!(fits(own, &criu).expect("this process"));
        criu.program = "/bin/sh".into();
        assert!(!fits(own, &criu).expect("this process"));
    }
}
