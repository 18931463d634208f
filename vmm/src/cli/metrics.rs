// SPDX-License-Identifier: GPL-2.0-only
//! A VM's counters: how its monitor tells them, and `mvasvm metrics`.

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use mvasvm::metrics::Metrics;
use mvasvm::sandbox::{Role, Sandbox};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

use super::args::MetricsArgs;
use super::reach;
use super::record;
use super::snapshots::text;
use super::vmdir::{FoundVm, Vms};

/// How often counters are written down while nobody asks for them.
const INTERVAL: Duration = Duration::from_secs(10);
/// How long a client may take to take them. They fit in a socket's buffer: it need not be there.
const CLIENT_PATIENCE: Duration = Duration::from_secs(1);
/// How long a monitor may take to tell them.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same of one that is to be killed: it may be because it hangs.
const LAST_PATIENCE: Duration = Duration::from_secs(1);
/// More than any monitor tells, bytes.
const MOST: u64 = 1 << 20;

/// Tells a VM's counters to whoever connects, and writes them down now and then, and when it is
/// dropped.
#[derive(Debug)]
pub(super) struct MetricsServer {
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsServer {
    /// Starts it in a VM's folder.
    ///
    /// # Errors
    /// The socket or a thread cannot be made, or the thread cannot be confined.
    pub fn start(folder: &Path, metrics: Arc<Metrics>, sandbox: &Sandbox) -> io::Result<Self> {
        let path = folder.join(record::STATS);
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let (stopped, stop) = io::pipe()?;
        let file = folder.join(record::METRICS);
        let sandbox = sandbox.clone();
        let (tell, told) = mpsc::channel();
        let serve = move || {
            let confined = sandbox.enter(Role::Counters);
            let is_confined = confined.is_ok();
            if tell.send(confined).is_ok() && is_confined {
                serve(&listener, &stopped, &file, &metrics);
            }
        };
        let thread = thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(serve)?;
        told.recv()
            .map_err(io::Error::other)?
            .map_err(io::Error::other)?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        // Closing it is the sign.
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been said; the VM ends all the same.
            let _ = thread.join();
        }
    }
}

fn serve(listener: &UnixListener, stopped: &PipeReader, file: &Path, metrics: &Metrics) {
    let timeout = PollTimeout::try_from(INTERVAL).unwrap_or(PollTimeout::MAX);
    loop {
        let mut fds = [
            PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
        ];
        if let Err(error) = poll(&mut fds, timeout)
            && error != Errno::EINTR
        {
            tracing::warn!("cannot wait for who asks for counters: {error}");
            return;
        }
        let [is_stopped, is_asked] = fds.map(|fd| fd.any().unwrap_or(false));
        let counted = metrics.to_json();
        if let Err(error) = record::replace(file, &counted) {
            tracing::debug!("cannot write {}: {error}", file.display());
        }
        if is_stopped {
            return;
        }
        if is_asked && let Err(error) = tell(listener, &counted) {
            tracing::debug!("cannot tell the counters: {error}");
            // If it is for want of file descriptors, that does not pass at once.
            thread::sleep(Duration::from_millis(100));
        }
    }
}

fn tell(listener: &UnixListener, counted: &Value) -> io::Result<()> {
    let (mut client, _) = listener.accept()?;
    client.set_nonblocking(false)?;
    client.set_write_timeout(Some(CLIENT_PATIENCE))?;
    client.write_all(counted.to_string().as_bytes())
}

/// Has a VM's monitor write its counters down, if it still can, before it is killed.
pub(super) fn write_last(vm: &FoundVm) {
    if let Err(error) = ask(vm, LAST_PATIENCE) {
        tracing::debug!("no last counters of {}: {error}", vm.info.name);
    }
}

/// Asks a VM's monitor; so the counters are written down, too.
fn ask(vm: &FoundVm, patience: Duration) -> io::Result<Value> {
    let stream = UnixStream::connect(vm.path.join(record::STATS))?;
    stream.set_read_timeout(Some(patience))?;
    let mut bytes = Vec::new();
    stream.take(MOST).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

pub(super) fn run(args: &MetricsArgs) -> Result<u8> {
    let vm = Vms::open()?.find(&args.name)?;
    if vm.runs()
        && let Some(sim) = &vm.info.sim
    {
        let mut words = vec!["metrics".to_owned(), args.name.to_string()];
        words.extend(args.json.then(|| "--json".to_owned()));
        return reach::run_there(sim, words);
    }
    let counted = counters(&vm)?;
    let mut out = io::stdout().lock();
    if args.json {
        text::json(&mut out, &counted)?;
        return Ok(0);
    }
    for (part, counters) in counted.as_object().into_iter().flatten() {
        for (name, count) in counters.as_object().into_iter().flatten() {
            writeln!(out, "{:<36} {count:>16}", format!("{part}.{name}"))?;
        }
    }
    Ok(0)
}

/// Of a VM that runs, or has ended.
fn counters(vm: &FoundVm) -> Result<Value> {
    let name = &vm.info.name;
    if vm.runs() {
        match ask(vm, PATIENCE) {
            Ok(counted) => return Ok(counted),
            // It may have ended just now.
            Err(error) if vm.lives()? => {
                return Err(error)
                    .with_context(|| format!("the monitor of {name} does not tell its counters"));
            }
            Err(_) => {}
        }
    }
    let written = fs::read(vm.path.join(record::METRICS))
        .with_context(|| format!("{name} ended before its counters were written"))?;
    serde_json::from_slice(&written).with_context(|| format!("the counters of {name}"))
}
