// SPDX-License-Identifier: GPL-2.0-only
//! A process with a started CRIU, for one job.
//!
//! It is CRIU's parent and the reaper of what CRIU leaves, so it kills what a killed CRIU has
//! half restored. If the worker itself is killed, CRIU ends where it waits, and does its job to the
//! end where it works. The end of the service ends those that wait, and none that works.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid, setsid};
use protobuf::Message as _;

use super::{End, Hello, Job, nice, ready, set_nice};
use crate::criu::memory_file;
use crate::criu::order::{self, Order};
use crate::criu::orphans::Orphans;
use crate::criu::report::Channel;
use crate::criu::run::{self, libdir};
use crate::criu::version::Criu;
use crate::dropin::request::{Answer, Kind, Request, encode};
use crate::process::PidFd;
use crate::socket;

/// The priority at which a CRIU is started: whoever works goes first.
const LAST: libc::c_int = 19;

/// Lives as a worker of the process `service`, which has just forked this one; whether that
/// went well.
#[must_use]
pub fn live(criu: &Criu, service: Pid) -> bool {
    let live = || -> io::Result<()> {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // What a terminal sends the service is not for a CRIU at work.
        setsid()?;
        if getppid() == service {
            Worker::new(criu)?.wait()?;
        }
        Ok(())
    };
    live()
        .inspect_err(|e| eprintln!("vascriu: a worker ends: {e}"))
        .is_ok()
}

struct Worker {
    criu: Child,
    /// The connection to it.
    request: OwnedFd,
    /// Where its plugin looks for an order.
    order: File,
    /// What CRIU says while it has no log.
    output: File,
    /// Where its plugin reports.
    report: Channel,
    listener: Socket,
}

impl Worker {
    fn new(criu: &Criu) -> io::Result<Self> {
        let (request, theirs) = socket::pair()?;
        let order = memory_file(c"vascriu-order")?;
        let output = memory_file(c"vascriu-output")?;
        let report = Channel::new()?;
        let mut command = Command::new(&criu.program);
        command
            .env_clear()
            .args(["--libdir".as_ref(), libdir().as_os_str()])
            .args(["swrk", &theirs.as_raw_fd().to_string()])
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output.try_clone()?);
        order::give_later(&mut command, order.as_fd());
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let nice = nice();
        set_nice(0, LAST)?;
        let criu = command.spawn()?;
        drop(theirs);
        has_started(&request)?;
        for pid in [0, criu.id().cast_signed()] {
            set_nice(pid, nice)?;
        }
        Ok(Self {
            listener: Socket::new(criu.id())?,
            criu,
            request,
            order,
            output,
            report,
        })
    }

    /// Waits for a job, and does it.
    fn wait(self) -> io::Result<()> {
        let process = PidFd::open(self.criu.id().cast_signed()).map_err(io::Error::other)?;
        let fds = [self.listener.fd.as_fd(), process.as_fd()];
        let mut fds = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        poll(&mut fds, PollTimeout::NONE)?;
        if fds[1].any().unwrap_or(true) {
            return Err(io::Error::other("its CRIU has ended"));
        }
        let Self {
            criu,
            request,
            order,
            mut output,
            report,
            listener,
        } = self;
        let client = listener.accept()?;
        // From here on it is the client's.
        prctl::set_pdeathsig(None)?;
        let hello = serde_json::to_vec(&Hello {
            report: report.number(),
        })?;
        socket::send(client.as_fd(), &hello, &[report.as_fd()])?;
        // Whoever finds after all that it needs its own CRIU goes away.
        let Some(message) = socket::receive(client.as_fd(), true)? else {
            return Ok(());
        };
        let job: Job = serde_json::from_slice(&message.bytes)?;
        let [images, work] = <[OwnedFd; 2]>::try_from(message.fds)
            .map_err(|_| io::Error::other("a job without its directories"))?;
        (&order).write_all(&serde_json::to_vec(&job.order)?)?;
        let orphans = Orphans::from_now_on();
        let asked = asked(&job, &images, &work);
        socket::send(request.as_fd(), &encode(&asked), &[])?;
        let status = run::wait(criu, job.tree)?;
        if !status.success() {
            orphans.kill(|_| true);
        }
        let mut said = Vec::new();
        output
            .rewind()
            .and_then(|()| output.read_to_end(&mut said))?;
        let end = End {
            status: status.into_raw(),
            output: String::from_utf8_lossy(&said).into(),
        };
        // Nobody has to hear it.
        let _ = socket::send(client.as_fd(), &serde_json::to_vec(&end)?, &[]);
        Ok(())
    }
}

/// Waits until CRIU answers.
fn has_started(criu: &OwnedFd) -> io::Result<()> {
    let mut request = Request::new();
    request.set_type(Kind::VERSION);
    request.set_keep_open(true);
    socket::send(criu.as_fd(), &encode(&request), &[])?;
    let answer = socket::receive(criu.as_fd(), true)?;
    match answer.and_then(|m| Answer::parse_from_bytes(&m.bytes).ok()) {
        Some(answer) if answer.success() => Ok(()),
        _ => Err(io::Error::other("its CRIU cannot be started")),
    }
}

/// What CRIU is asked. It opens the directories by our numbers, for we have made its socket.
fn asked(job: &Job, images: &OwnedFd, work: &OwnedFd) -> Request {
    let mut request = Request::new();
    request.set_type(match job.order {
        Order::Dump(_) => Kind::DUMP,
        Order::Restore(_) => Kind::RESTORE,
    });
    let options = request.opts.mut_or_insert_default();
    options.set_images_dir_fd(images.as_raw_fd());
    options.set_work_dir_fd(work.as_raw_fd());
    options.set_log_level(job.log_level);
    options.set_config_file(job.config.clone());
    options.pid = job.tree;
    request
}

/// The socket of a worker that waits.
struct Socket {
    fd: OwnedFd,
    path: PathBuf,
}

impl Socket {
    fn new(criu: u32) -> io::Result<Self> {
        let path = ready().join(criu.to_string());
        let fd = socket::listen(&path)?;
        Ok(Self { fd, path })
    }

    /// Takes one client, and lets go those that have come as well.
    fn accept(self) -> io::Result<OwnedFd> {
        socket::accept(self.fd.as_fd())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
