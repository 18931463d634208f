// SPDX-License-Identifier: GPL-2.0-only
//! The process that is dumped and restored: [`crate::workload`], seen from outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use crate::procfs::kib_of;
use crate::workload::{self, Many, Pages, Request, Touch};

/// Where experiments work in the guest, on tmpfs.
pub const DIR: &str = "/run/mvas-exp";

/// Options of `unshare`, each for one kind of namespaces.
pub const NAMESPACES: [&str; 3] = ["--uts", "--ipc", "--net"];

/// How long a process may take to fill or check its memory.
const PATIENCE: Duration = Duration::from_secs(300);
/// After this long it is said what is waited for.
const SILENCE: Duration = Duration::from_secs(20);

/// A workload, perhaps restored, or one of several copies of one.
#[derive(Debug)]
pub struct Subject {
    /// As the guest's PID 1 sees it.
    pub pid: i32,
    child: Option<Child>,
    /// Where it finds requests and leaves answers. Copies of one process have one in common.
    folder: PathBuf,
}

impl Subject {
    /// Starts one and waits until it has filled its memory.
    ///
    /// # Errors
    /// When it does not, or not with the pages that were asked for.
    pub fn start(size_mib: usize, pages: Pages) -> Result<Self> {
        Self::start_with(size_mib, pages, None)
    }

    /// Starts one which has so many of something, too.
    ///
    /// # Errors
    /// As [`Subject::start`].
    pub fn start_with(size_mib: usize, pages: Pages, many: Option<(Many, usize)>) -> Result<Self> {
        let more = many.map_or(Vec::new(), |(many, count)| {
            vec![format!("--many={many}"), format!("--count={count}")]
        });
        let subject = Self::begin(workload(size_mib, pages, &more)?)?;
        subject.require(size_mib, pages)?;
        Ok(subject)
    }

    /// Starts one which has a folder of its own for requests and answers, of this name below
    /// [`DIR`], so that others can be started at the same time.
    ///
    /// # Errors
    /// As [`Subject::start`].
    pub fn start_apart(size_mib: usize, pages: Pages, name: &str) -> Result<Self> {
        let command = workload(size_mib, pages, &[])?;
        let subject = Self::begin_in(command, &Path::new(DIR).join(name))?;
        subject.require(size_mib, pages)?;
        Ok(subject)
    }

    /// Starts one in namespaces of its own: the first `count` of [`NAMESPACES`].
    ///
    /// # Errors
    /// As [`Subject::start`], or when there are not so many.
    pub fn start_in_namespaces(size_mib: usize, pages: Pages, count: usize) -> Result<Self> {
        let kinds = NAMESPACES.get(..count);
        let kinds = kinds.with_context(|| format!("there are not {count} kinds of namespaces"))?;
        let plain = workload(size_mib, pages, &[])?;
        // It becomes the workload, which so has its PID.
        let mut command = Command::new("unshare");
        command
            .args(kinds)
            .arg(plain.get_program())
            .args(plain.get_args());
        let subject = Self::begin(command)?;
        subject.require(size_mib, pages)?;
        Ok(subject)
    }

    /// Starts one whose memory is of this kind, in 4 KiB pages.
    ///
    /// # Errors
    /// When it does not fill its memory.
    pub fn start_of(size_mib: usize, memory: &str) -> Result<Self> {
        Self::begin(workload(
            size_mib,
            Pages::Small,
            &[format!("--memory={memory}")],
        )?)
    }

    /// Starts one with a pattern of its own in its memory. Where memory is short, not all of
    /// it may be in the pages that were asked for.
    ///
    /// # Errors
    /// When it does not fill its memory.
    pub fn start_with_seed(size_mib: usize, pages: Pages, seed: u64) -> Result<Self> {
        Self::begin(workload(size_mib, pages, &[format!("--seed={seed}")])?)
    }

    /// Starts a program that understands requests as [`crate::workload`] does, and waits until
    /// it is ready. Its last argument will be the file it answers in.
    ///
    /// # Errors
    /// When it does not begin well.
    pub fn begin(command: Command) -> Result<Self> {
        Self::begin_in(command, Path::new(DIR))
    }

    fn begin_in(mut command: Command, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let answer = folder.join("answer");
        remove_if_there(&answer)?;
        command
            .arg(&answer)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = in_new_session(&mut command)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let mut subject = Self {
            folder: folder.into(),
            ..Self::of(child)?
        };
        let ready = subject.wait_for_answer();
        let ready = ready.with_context(|| format!("{command:?}"))?;
        ensure!(ready == 0, "{command:?} does not begin well");
        Ok(subject)
    }

    /// One that was started or restored before.
    #[must_use]
    pub fn at(pid: i32) -> Self {
        Self {
            pid,
            child: None,
            folder: DIR.into(),
        }
    }

    /// A child of ours, which need not be a workload.
    ///
    /// # Errors
    /// When its PID is none.
    pub fn of(child: Child) -> Result<Self> {
        let pid = i32::try_from(child.id())?;
        Ok(Self {
            child: Some(child),
            ..Self::at(pid)
        })
    }

    /// Waits for the process to write its answer.
    fn wait_for_answer(&mut self) -> Result<u64> {
        let begun = Instant::now();
        let answer = self.folder.join("answer");
        let mut silent = true;
        while begun.elapsed() < PATIENCE {
            if let Ok(text) = fs::read_to_string(&answer) {
                remove_if_there(&answer)?;
                return Ok(text.parse()?);
            }
            ensure!(self.is_alive()?, "the workload ended by itself");
            if silent && begun.elapsed() > SILENCE {
                silent = false;
                eprintln!("waiting for an answer of process {} …", self.pid);
            }
            // Not so seldom that it would tell in how long an answer takes.
            let pause = begun.elapsed() / 32;
            sleep(pause.clamp(Duration::from_micros(100), Duration::from_millis(5)));
        }
        bail!("the workload does not answer");
    }

    fn is_alive(&mut self) -> Result<bool> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?.is_none()),
            None => Ok(is_there(self.pid)),
        }
    }

    /// Makes sure that the kernel gave the huge pages that were asked for.
    fn require(&self, size_mib: usize, pages: Pages) -> Result<()> {
        if pages == Pages::Small {
            return Ok(());
        }
        let huge = self.huge_mib()?;
        ensure!(
            huge >= size_mib as u64 / 10 * 9,
            "only {huge} of {size_mib} MiB are in huge pages: is the guest short of memory?"
        );
        Ok(())
    }

    /// How much of its memory is in huge pages, in MiB.
    ///
    /// # Errors
    /// When it is gone.
    pub fn huge_mib(&self) -> Result<u64> {
        let smaps = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid))?;
        let kib =
            kib_of(&smaps, "AnonHugePages:").context("smaps_rollup tells no AnonHugePages")?;
        Ok(kib >> 10)
    }

    /// Takes the exit status of the process that the dump killed, and waits until its children
    /// are gone, too: their PIDs must be free for the restore.
    ///
    /// # Errors
    /// When it is no child of ours.
    pub fn reap(&mut self) -> Result<()> {
        match self.child.take() {
            Some(mut child) => {
                child.wait()?;
            }
            None => bail!("process {} was not started here", self.pid),
        }
        self.wait_for_group()
    }

    /// Has it reaped, when somebody else ends it.
    pub fn reap_beside(&mut self) {
        if let Some(mut child) = self.child.take() {
            thread::spawn(move || child.wait());
        }
    }

    /// Waits until nobody is left in the process group that it leads, if it does.
    fn wait_for_group(&self) -> Result<()> {
        let begun = Instant::now();
        while kill(Pid::from_raw(-self.pid), None).is_ok() {
            ensure!(
                begun.elapsed() < PATIENCE,
                "children of process {} do not end",
                self.pid
            );
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Counts its pages that do not hold what it wrote to them.
    ///
    /// # Errors
    /// When it is gone.
    pub fn count_bad_pages(&mut self) -> Result<u64> {
        self.ask(&Request::CountBad)
    }

    /// Wants its memory to be as it should.
    ///
    /// # Errors
    /// When it is not, or the process is gone.
    pub fn check(&mut self) -> Result<()> {
        let bad = self.count_bad_pages()?;
        ensure!(bad == 0, "{bad} bad pages");
        Ok(())
    }

    /// Ends it, after a look at its memory.
    ///
    /// # Errors
    /// When pages are bad, or it is gone.
    pub fn end_intact(mut self) -> Result<()> {
        self.check()?;
        self.end()
    }

    /// Has it write to pages all over its memory; tells how many.
    ///
    /// # Errors
    /// When it is gone.
    pub fn write(&mut self) -> Result<u64> {
        self.ask(&Request::Scatter)
    }

    /// Has it draw a random number.
    ///
    /// # Errors
    /// When it is gone.
    pub fn random(&mut self) -> Result<u64> {
        self.ask(&Request::Random)
    }

    /// Has it touch pages; tells how long that took by its own clock.
    ///
    /// # Errors
    /// When it is gone.
    pub fn touch(&mut self, touch: Touch) -> Result<Duration> {
        self.ask(&Request::Touch(touch)).map(Duration::from_nanos)
    }

    /// Has it fork; the child is a workload, too.
    ///
    /// # Errors
    /// When it is gone.
    pub fn fork(&mut self) -> Result<Self> {
        let pid = i32::try_from(self.ask(&Request::Fork)?)?;
        Ok(Self {
            folder: self.folder.clone(),
            ..Self::at(pid)
        })
    }

    /// Has it do the next step of its computation; tells the state after it.
    ///
    /// # Errors
    /// When it is gone.
    pub fn step(&mut self) -> Result<u64> {
        self.ask(&Request::Step)
    }

    /// The state of its computation.
    ///
    /// # Errors
    /// When it is gone.
    pub fn state(&mut self) -> Result<u64> {
        self.ask(&Request::State)
    }

    /// Asks it for what it understands.
    ///
    /// # Errors
    /// When it is gone.
    pub fn ask(&mut self, request: &impl Serialize) -> Result<u64> {
        let answer = self.folder.join("answer");
        remove_if_there(&answer)?;
        workload::leave(request, &answer)?;
        kill(Pid::from_raw(self.pid), Signal::SIGUSR1).context("the workload is gone")?;
        self.wait_for_answer()
    }

    /// Ends it, but none of its children, and waits until it is gone.
    ///
    /// # Errors
    /// When it does not end.
    pub fn end_alone(self) -> Result<()> {
        kill(Pid::from_raw(self.pid), Signal::SIGKILL).context("the process is gone")?;
        match self.child {
            Some(mut child) => Ok(child.wait().map(drop)?),
            None => wait_until_gone(self.pid),
        }
    }

    /// Ends it, and its children if it leads their process group, and waits until its memory is
    /// free again.
    ///
    /// # Errors
    /// When it does not end.
    pub fn end(mut self) -> Result<()> {
        let (one, group) = (Pid::from_raw(self.pid), Pid::from_raw(-self.pid));
        kill(group, Signal::SIGKILL)
            .or_else(|_| kill(one, Signal::SIGKILL))
            .context("the process is gone")?;
        if self.child.is_some() {
            return self.reap();
        }
        wait_until_gone(self.pid)?;
        self.wait_for_group()
    }
}

/// A workload, but for the file it answers in.
fn workload(size_mib: usize, pages: Pages, more: &[String]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["workload", "--size-mib", &size_mib.to_string()])
        .args(["--pages", &pages.to_string()])
        .args(more)
        .arg("--answer");
    Ok(command)
}

/// A new folder of this name below [`DIR`], instead of what was there.
///
/// # Errors
/// When it cannot be made.
pub fn new_folder(name: &str) -> Result<PathBuf> {
    let dir = Path::new(DIR).join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// Waits until a process that was killed is gone.
///
/// # Errors
/// When it does not go.
pub fn wait_until_gone(pid: i32) -> Result<()> {
    let begun = Instant::now();
    while is_there(pid) {
        ensure!(begun.elapsed() < PATIENCE, "process {pid} does not end");
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn is_there(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Makes `command` run in a session of its own, as a service does: CRIU dumps
/// whole sessions.
pub fn in_new_session(command: &mut Command) -> &mut Command {
    use std::os::unix::process::CommandExt;
    // SAFETY: setsid is async-signal-safe, and nothing else runs in the new process.
    unsafe { command.pre_exec(|| Ok(nix::unistd::setsid().map(drop)?)) }
}

/// Processes started from now on get PIDs that no process of a microVM has which booted a
/// moment ago: CRIU restores a process under the PID that it had.
///
/// # Errors
/// When the kernel does not allow it.
pub fn use_high_pids() -> Result<()> {
    fs::write("/proc/sys/kernel/ns_last_pid", "9999").context("cannot choose a PID")
}
