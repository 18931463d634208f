// SPDX-License-Identifier: GPL-2.0-only
//! A microVM on this machine's KVM, in this process.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use mvas_agent::client::{ClientError, Session};
use mvas_agent::protocol::{CommandEnd, ShutdownKind, VSOCK_PORT};
use mvasvm::config::{ConsoleConfig, DiskConfig, RamBacking, VmConfig, VsockConfig};
use mvasvm::devices::BoundedLog;
use mvasvm::metrics::Metrics;
use mvasvm::run::{ExitReason, RunError};
use mvasvm::sandbox::{Role, Sandbox};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::backing::backing;
use super::cgroup::Cgroup;
use super::codes::Outcome;
use super::console::{Console, Left};
use super::disk::disk_name;
use super::exec::with_term;
use super::guest::{is_interactive, run_in_guest, signals};
use super::janitor::Janitor;
use super::metrics::MetricsServer;
use super::record::{CONSOLE_LOG, Cause, Hw, MONITOR_LOG, VSOCK, refusals};
use super::run::{READY, Wanted};
use super::vmdir::{VmDir, Vms};
use super::{monitor_log, note};
use crate::sim::tail;

/// The guest's vsock address.
const GUEST_CID: u64 = 3;
/// A kernel log of this many bytes is kept.
const LOG_LIMIT: u64 = 16 << 20;
/// Lines of the kernel log that hold a panic with its trace.
const LAST_WORDS: usize = 60;
/// What a guest gets to power off after its command ended.
const POWER_OFF: Duration = Duration::from_secs(60);

pub(super) fn run(mut wanted: Wanted) -> Result<u8> {
    // Before any thread is started: all of them inherit it.
    let signals = signals()?;
    let mut dir = Vms::open()?.claim(&wanted.name)?;
    let ram = backing(&wanted.args)?;
    let mut info = wanted.info(Hw::Kvm, None);
    let store = match &ram {
        RamBacking::Store { store, .. } => Some(store.clone()),
        RamBacking::Memfd => None,
    };
    info.store = store.as_ref().map(|store| store.path().to_owned());
    dir.clear()?;
    monitor_log::keep(dir.path().join(MONITOR_LOG)).context("cannot make the monitor's log")?;
    let sandbox = sandbox(&wanted, dir.path(), info.store.as_deref())?;
    let metrics = Arc::<Metrics>::default();
    let server = MetricsServer::start(dir.path(), metrics.clone(), &sandbox)
        .context("cannot serve the VM's counters")?;
    dir.describe(info)?;
    let janitor = store.map(|store| Janitor::start(&wanted.name, store));
    let janitor = janitor.transpose()?;
    // The janitor is not in it: it may have to outlive all of it.
    wanted.cgroup.take().map_or(Ok(()), Cgroup::join)?;
    let outcome = run_to_end(wanted, &dir, ram, metrics, sandbox, &signals);
    drop(server);
    dir.end(Outcome::end_of(&outcome));
    drop(janitor);
    outcome.map(|outcome| outcome.code)
}

/// The sandbox that was asked for; what it lacks is said in the VM's log.
fn sandbox(wanted: &Wanted, folder: &Path, store: Option<&Path>) -> Result<Sandbox> {
    let sandbox = match wanted.args.no_sandbox {
        true => Sandbox::default(),
        false => Sandbox::new(folder, store, refusals(folder)?)?,
    };
    for lack in sandbox.lacks() {
        monitor_log::log(format!("sandbox: {lack}"));
    }
    Ok(sandbox)
}

fn run_to_end(
    wanted: Wanted,
    dir: &VmDir,
    ram: RamBacking,
    metrics: Arc<Metrics>,
    sandbox: Sandbox,
    signals: &SignalFd,
) -> Result<Outcome> {
    let login = wanted.exec.argv.is_empty() && !wanted.args.detached_child;
    let (console, ends) = login.then(Console::new).transpose()?.unzip();
    let vm = Vm::start(&wanted, dir, ram, ends, metrics, sandbox)?;
    if let Some(console) = console {
        return match console.run(&vm.ended, signals) {
            Ok(left) => vm.leave(left),
            Err(error) => vm.fail(error),
        };
    }
    let timeout = Duration::from_secs(wanted.args.boot_timeout);
    let session = match vm.connect(timeout, signals) {
        Connected::Session(session) => session,
        Connected::Failed(error) => {
            return vm.fail(anyhow::Error::new(error).context(format!(
                "{} does not take commands (--boot-timeout {})",
                wanted.name, wanted.args.boot_timeout
            )));
        }
        Connected::Left(left) => return vm.leave(left),
    };
    if wanted.args.detached_child {
        drop(session);
        return match say_ready().and_then(|()| vm.wait(signals)) {
            Ok(left) => vm.leave(left),
            Err(error) => vm.fail(error),
        };
    }
    let terminal = is_interactive();
    let mut exec = wanted.exec;
    exec.env.extend(with_term(terminal));
    match run_in_guest(session, exec, terminal, signals) {
        Ok(end) => vm.power_off(end),
        Err(error) => vm.lost(error),
    }
}

/// A running VM.
struct Vm {
    thread: JoinHandle<Result<ExitReason, RunError>>,
    stop: EventFd,
    /// Its other end is closed when the VM ends, which makes this end readable.
    ended: OwnedFd,
    panicked: Arc<AtomicBool>,
    vsock: std::path::PathBuf,
    log: std::path::PathBuf,
    with_command: bool,
    writes_disks: bool,
}

enum Connected {
    Session(Session),
    Failed(ClientError),
    Left(Left),
}

impl Vm {
    /// Starts the VM's thread, and confines this one before it goes on.
    fn start(
        wanted: &Wanted,
        dir: &VmDir,
        ram: RamBacking,
        ends: Option<ConsoleConfig>,
        metrics: Arc<Metrics>,
        sandbox: Sandbox,
    ) -> Result<Self> {
        let log_path = dir.path().join(CONSOLE_LOG);
        let log = BoundedLog::create(&log_path, LOG_LIMIT)
            .with_context(|| format!("cannot create {}", log_path.display()))?;
        let panicked = Arc::new(AtomicBool::new(false));
        let image = wanted.image.iter().map(|path| DiskConfig {
            path: path.clone(),
            read_only: true,
        });
        let vsock = dir.path().join(VSOCK);
        let config = VmConfig {
            name: wanted.name.clone(),
            mem: wanted.args.mem,
            ram,
            cpus: wanted.args.cpus,
            kernel: wanted.kernel.clone(),
            initramfs: wanted.initramfs.clone(),
            cmdline: cmdline(wanted, ends.is_some()),
            disks: image
                .chain(wanted.all_disks().map(|d| d.config()))
                .collect(),
            vsock: Some(VsockConfig {
                cid: GUEST_CID,
                uds_path: vsock.clone(),
            }),
            console: ends,
            serial_output: Box::new(PanicWatch::new(log, panicked.clone())),
            serial_input: None,
            metrics,
            sandbox: sandbox.clone(),
        };
        let stop = EventFd::new(EFD_NONBLOCK).context("cannot make an event")?;
        let stop_in_vm = stop.try_clone().context("cannot make an event")?;
        let (ended, ended_in_vm) = io::pipe().context("cannot make a pipe")?;
        let (gate, wait) = mpsc::channel();
        let run = move || {
            let _ended = ended_in_vm;
            // An error means that nobody is there any more.
            wait.recv().map_or(Ok(ExitReason::Stopped), |()| {
                mvasvm::run::run(config, stop_in_vm)
            })
        };
        let thread = thread::Builder::new().name("vm".to_owned()).spawn(run)?;
        // Not before: threads inherit it.
        sandbox.enter(Role::Command)?;
        // Fails only if the thread has panicked, which `join` tells.
        let _ = gate.send(());
        Ok(Self {
            thread,
            stop,
            ended: ended.into(),
            panicked,
            vsock,
            log: log_path,
            with_command: !wanted.exec.argv.is_empty(),
            writes_disks: wanted.all_disks().any(|disk| !disk.read_only),
        })
    }

    /// Waits for the guest's agent, for the VM's end, or for a signal.
    fn connect(&self, timeout: Duration, signals: &SignalFd) -> Connected {
        let (send, receive) = mpsc::channel();
        let vsock = self.vsock.clone();
        let failed = |source| {
            let what = "wait for the guest";
            Connected::Failed(ClientError::Stdio { what, source })
        };
        let (done, done_in_thread) = match io::pipe() {
            Ok(pipe) => pipe,
            Err(e) => return failed(e),
        };
        thread::spawn(move || {
            let _ = send.send(Session::connect_vsock(&vsock, VSOCK_PORT, timeout));
            drop(done_in_thread);
        });
        loop {
            match wait_any(&[self.ended.as_fd(), done.as_fd()], signals) {
                Err(e) => return failed(e),
                Ok(Some(Event::Signal(number))) => return Connected::Left(Left::Signal(number)),
                Ok(Some(Event::Ready(0))) => return Connected::Left(Left::Ended),
                Ok(Some(Event::Ready(_))) => {
                    return match receive.recv() {
                        Ok(Ok(session)) => Connected::Session(session),
                        Ok(Err(error)) => Connected::Failed(error),
                        Err(error) => failed(io::Error::other(error)),
                    };
                }
                Ok(None) => {}
            }
        }
    }

    /// Waits for its end, or for a signal.
    fn wait(&self, signals: &SignalFd) -> Result<Left> {
        loop {
            match wait_any(&[self.ended.as_fd()], signals).context("cannot wait for the VM")? {
                Some(Event::Signal(number)) => return Ok(Left::Signal(number)),
                Some(Event::Ready(_)) => return Ok(Left::Ended),
                None => {}
            }
        }
    }

    /// Ends it at once.
    fn stop(self) -> Result<ExitReason> {
        self.stop.write(1).context("cannot stop the VM")?;
        self.join()
    }

    fn join(self) -> Result<ExitReason> {
        match self.thread.join() {
            Ok(result) => Ok(result?),
            Err(_) => Err(anyhow!("internal error: the monitor panicked")),
        }
    }

    /// Ends it because of an error.
    fn fail<T>(self, error: anyhow::Error) -> Result<T> {
        self.stop()?;
        Err(error)
    }

    /// It ended by itself.
    fn end(self) -> Result<Outcome> {
        let (panicked, with_command) = (self.panicked.clone(), self.with_command);
        let log = self.log.clone();
        let reason = self.join()?;
        let panicked = panicked.load(Ordering::Relaxed);
        let outcome = Outcome::of_guest(reason, panicked, with_command);
        if outcome.code != 0 {
            note(&outcome.text);
        }
        if panicked {
            note(format!(
                "its kernel log ends with:\n{}",
                tail(&log, LAST_WORDS)
            ));
        }
        Ok(outcome)
    }

    fn leave(self, left: Left) -> Result<Outcome> {
        match left {
            Left::Ended => self.end(),
            Left::Escaped => {
                self.stop()?;
                Ok(Outcome::new(Cause::Stopped, "stopped by Ctrl-A X", 0))
            }
            Left::Signal(number) => {
                self.stop()?;
                let outcome = Outcome::of_signal(number);
                note(&outcome.text);
                Ok(outcome)
            }
        }
    }

    /// The command ended: the VM is of no more use.
    fn power_off(self, end: CommandEnd) -> Result<Outcome> {
        let asked = Session::connect_vsock(&self.vsock, VSOCK_PORT, POWER_OFF)
            .and_then(|session| session.shutdown(ShutdownKind::PowerOff));
        match asked {
            // Disks are to be unmounted; of everything else nothing remains.
            Ok(()) if self.writes_disks => {
                if !self.wait_for_end(POWER_OFF)? {
                    note("the guest did not power off in time: its disks may need a recovery");
                }
            }
            Ok(()) => {}
            // It powered off itself, or crashed just now.
            Err(error) => tracing::debug!("no orderly power-off: {error}"),
        }
        self.stop()?;
        let text = format!("its command ended: {end}");
        Ok(Outcome::new(Cause::CommandEnded, text, end.exit_code()))
    }

    /// The session broke: because the VM ended, or for a reason of its own.
    fn lost(self, error: ClientError) -> Result<Outcome> {
        if !matches!(error, ClientError::Link(_)) {
            return self.fail(error.into());
        }
        // The connection breaks a moment before the VM is gone.
        if self.wait_for_end(Duration::from_secs(5))? {
            return self.end();
        }
        self.fail(error.into())
    }

    /// Waits for its end; false: it did not come in time.
    fn wait_for_end(&self, patience: Duration) -> Result<bool> {
        let mut fds = [PollFd::new(self.ended.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        Ok(poll(&mut fds, timeout).context("cannot wait for the VM")? > 0)
    }
}

/// The monitor goes on without whoever started it.
fn say_ready() -> Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{READY}").and_then(|()| stdout.flush())?;
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null)?;
    monitor_log::leave_stderr().context("cannot write to the monitor's log")
}

enum Event {
    Ready(usize),
    Signal(u8),
}

/// Waits until one of `fds` is readable or hung up, or for a signal. `None`: look again.
fn wait_any(fds: &[std::os::fd::BorrowedFd<'_>], signals: &SignalFd) -> io::Result<Option<Event>> {
    let all = fds.iter().copied().chain([signals.as_fd()]);
    let mut polled: Vec<PollFd<'_>> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    match poll(&mut polled, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(e) => return Err(e.into()),
    }
    if let Some(at) = polled.iter().position(|fd| fd.any() == Some(true)) {
        if at < fds.len() {
            return Ok(Some(Event::Ready(at)));
        }
        if let Ok(Some(info)) = signals.read_signal()
            && info.ssi_signo != libc::SIGWINCH.cast_unsigned()
        {
            let number = u8::try_from(info.ssi_signo).unwrap_or(127);
            return Ok(Some(Event::Signal(number)));
        }
    }
    Ok(None)
}

fn cmdline(wanted: &Wanted, login: bool) -> String {
    let mut line = "console=ttyS0 quiet panic=-1 reboot=k".to_owned();
    if wanted.image.is_some() {
        line.push_str(" root=/dev/vda rootfstype=ext4 ro init=/usr/lib/mvas/agent");
        line.push_str(&format!(" mvas.hostname={}", wanted.name));
    }
    if wanted.overlay.is_some() {
        // Behind the image and the other disks.
        let name = disk_name(1 + wanted.disks.len());
        line.push_str(&format!(" mvas.overlay=/dev/{name}"));
    }
    if login {
        line.push_str(" mvas.login=1");
        if let Some(term) = std::env::var("TERM").ok().filter(|term| is_plain(term)) {
            line.push_str(&format!(" mvas.term={term}"));
        }
    }
    if let Some(more) = &wanted.args.cmdline {
        line.push(' ');
        line.push_str(more);
    }
    line
}

fn is_plain(word: &str) -> bool {
    !word.is_empty()
        && word
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._+".contains(&b))
}

/// Passes the kernel's log on, and notices its last words.
struct PanicWatch<W> {
    inner: W,
    panicked: Arc<AtomicBool>,
    /// How much of the words the latest bytes were.
    matched: usize,
}

impl<W> PanicWatch<W> {
    const WORDS: &'static [u8] = b"Kernel panic - not syncing";

    fn new(inner: W, panicked: Arc<AtomicBool>) -> Self {
        Self {
            inner,
            panicked,
            matched: 0,
        }
    }

    fn watch(&mut self, bytes: &[u8]) {
        for byte in bytes {
            // Their first letter does not come again in them, so no overlap is missed.
            self.matched = match Self::WORDS.get(self.matched) {
                Some(expected) if expected == byte => self.matched + 1,
                _ if *byte == Self::WORDS[0] => 1,
                _ => 0,
            };
            if self.matched == Self::WORDS.len() {
                self.panicked.store(true, Ordering::Relaxed);
            }
        }
    }
}

impl<W: Write> Write for PanicWatch<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.watch(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_panic_is_noticed_however_it_is_cut(
            before in "[Kernl \n-]{0,40}",
            cut in 1..40usize,
        ) {
            let panicked = Arc::new(AtomicBool::new(false));
            let mut watch = PanicWatch::new(Vec::new(), panicked.clone());
            for piece in before.as_bytes().chunks(cut) {
                watch.write_all(piece).expect("a Vec takes all");
            }
            prop_assert!(!panicked.load(Ordering::Relaxed));
            for piece in b"Kernel panic - not syncing: Fatal".chunks(cut) {
                watch.write_all(piece).expect("a Vec takes all");
            }
            prop_assert!(panicked.load(Ordering::Relaxed));
        }
    }
}
