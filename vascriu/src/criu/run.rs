// SPDX-License-Identifier: GPL-2.0-only
//! Running CRIU: with our plugin, and with what it says when it fails.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};

use nix::sys::signal::{SigHandler, Signal, signal};

use super::options;
use super::order::{self, Order};
use super::report::{Channel, Report};
use super::stuck;
use super::version::Criu;
use super::work::Work;
use crate::process::{PidFd, is_ending};
use crate::service::Job;
use crate::service::client::Ready;
use crate::snapshot::images::Images;

/// Where the plugin is; CRIU loads every `*.so` there.
pub const LIBDIR: &str = "/usr/lib/vascriu";
/// The plugin's file name.
pub const PLUGIN: &str = "vas_plugin.so";
/// In its directory: the options of one that the service has started.
const CONFIG: &str = "options.conf";
/// Lines of CRIU's log that are shown.
const LINES: usize = 12;

/// The directory that `--libdir` names.
#[must_use]
pub fn libdir() -> PathBuf {
    std::env::var_os("VASCRIU_LIBDIR").map_or_else(|| LIBDIR.into(), PathBuf::from)
}

/// CRIU could not be run, or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be started.
    #[error("cannot run {0}")]
    Start(PathBuf, #[source] io::Error),
    /// A worker of `vascriu serve` was killed.
    #[error(
        "the process of `vascriu serve` that CRIU was a child of was killed: how CRIU has ended is not known"
    )]
    Service(#[source] io::Error),
    /// Nor can it tell us anything.
    #[error("no memory for the plugin's report")]
    Report(#[source] io::Error),
    /// It cannot be told what to do.
    #[error(transparent)]
    Order(#[from] order::Error),
    /// The plugin is not where it should be.
    #[error("no CRIU plugin at {0}: is vascriu installed?")]
    NoPlugin(PathBuf),
    /// It ended with an error.
    #[error("CRIU's {action} failed{}", because(.lines))]
    Failed {
        /// `dump` or `restore`.
        action: &'static str,
        /// What it said, in its order.
        lines: Vec<String>,
    },
    /// It was killed.
    #[error("CRIU was killed by signal {signal} in its {action}")]
    Killed {
        /// `dump` or `restore`.
        action: &'static str,
        /// By which.
        signal: i32,
    },
}

fn because(lines: &[String]) -> String {
    lines
        .iter()
        .fold(String::new(), |all, line| format!("{all}\n  {line}"))
}

/// The CRIU that a run is of, and where its plugin reports.
#[derive(Debug)]
pub enum Process {
    /// A child of this process.
    Child(Channel),
    /// One of `vascriu serve`, and the user's options for it.
    Service(Ready, options::Config),
}

impl Process {
    /// One of the service, if there is one for these options of the user's; else a child.
    ///
    /// # Errors
    /// [`Error::Report`].
    pub fn any(criu: &Criu, user: &[String]) -> Result<Self, Error> {
        let service = || {
            let config = options::as_config(user)?;
            Some(Self::Service(Ready::find(criu)?, config))
        };
        service().map_or_else(Self::child, Ok)
    }

    /// A child.
    ///
    /// # Errors
    /// [`Error::Report`].
    pub fn child() -> Result<Self, Error> {
        Channel::new().map(Self::Child).map_err(Error::Report)
    }

    /// The number of the report's file there, for the order.
    #[must_use]
    pub fn report(&self) -> RawFd {
        match self {
            Self::Child(channel) => channel.number(),
            Self::Service(ready, _) => ready.report.1,
        }
    }
}

/// One run of CRIU.
#[derive(Debug)]
pub struct Run<'a> {
    /// Which CRIU.
    pub criu: &'a Criu,
    /// `dump` or `restore`.
    pub action: &'static str,
    /// Root of the tree that is dumped.
    pub tree: Option<i32>,
    /// What the plugin shall do.
    pub order: &'a Order,
    /// Where the images are.
    pub images: &'a Images,
    /// Where the log and the statistics go.
    pub work: &'a Work,
    /// Our own options.
    pub own: &'a [&'a str],
    /// The user's, for CRIU.
    pub user: &'a [String],
}

impl Run<'_> {
    fn log(&self) -> PathBuf {
        let name = options::value(self.user, &["-o", "--log-file"]);
        let dir = self.work.path();
        dir.join(name.map_or_else(|| format!("{}.log", self.action), str::to_owned))
    }

    fn command(&self) -> Result<Command, Error> {
        let mut command = Command::new(&self.criu.program);
        command
            .arg(self.action)
            .args(
                self.tree
                    .map(|tree| ["--tree".into(), tree.to_string()])
                    .iter()
                    .flatten(),
            )
            .args([OsStr::new("--images-dir"), self.images.path().as_ref()])
            .args([OsStr::new("--work-dir"), self.work.path().as_ref()])
            .args([OsStr::new("--libdir"), libdir().as_ref()])
            .args(self.own);
        if options::value(self.user, &["-o", "--log-file"]).is_none() {
            command.arg("--log-file").arg(self.log());
        }
        let loud = |a: &String| a.starts_with("-v") || a.starts_with("--verbosity");
        if !self.user.iter().any(loud) {
            command.arg(format!("-v{}", options::LOG_LEVEL));
        }
        command.args(self.user);
        self.order.give(&mut command)?;
        // Its few words go to the user, past our own output; but what the user
        // hands down to the tasks must be what it was.
        if options::value(self.user, &["--inherit-fd"]).is_none() {
            command.stdout(io::stderr());
        }
        Ok(command)
    }

    fn job(&self, user: &options::Config) -> io::Result<Job> {
        let log = format!("log-file={}\n", self.log().display());
        let own = self
            .own
            .iter()
            .filter_map(|option| option.strip_prefix("--"));
        let own = own.fold(log, |all, option| all + option + "\n");
        let config = self.work.path().join(CONFIG);
        fs::write(&config, own + &user.text)?;
        Ok(Job {
            order: self.order.clone(),
            tree: self.tree,
            config: config.display().to_string(),
            log_level: user.log_level,
        })
    }

    /// Runs it to its end in `process`, whose report its order names. What a terminal sends
    /// does not stop it halfway: it and we ignore it meanwhile.
    ///
    /// # Errors
    /// See [`Error`]; the plugin's reason comes first.
    pub fn run(&self, process: Process) -> Result<Report, Error> {
        let plugin = libdir().join(PLUGIN);
        if !plugin.exists() {
            return Err(Error::NoPlugin(plugin));
        }
        let quiet = Quiet::new();
        let (status, report, output) = match process {
            Process::Child(report) => {
                let status = self.command()?.spawn().and_then(|c| wait(c, self.tree));
                let failed = |e| Error::Start(self.criu.program.clone(), e);
                (status.map_err(failed)?, report, String::new())
            }
            Process::Service(ready, config) => self
                .job(&config)
                .and_then(|job| ready.run(&job, self.images.as_fd(), self.work.as_fd()))
                .map_err(Error::Service)?,
        };
        drop(quiet);
        self.judge(status, report.read(), &output)
    }

    fn judge(&self, status: ExitStatus, report: Report, output: &str) -> Result<Report, Error> {
        let action = self.action;
        if status.success() && report.error.is_none() {
            return Ok(report);
        }
        if let Some(signal) = status.signal() {
            return Err(Error::Killed { action, signal });
        }
        let log = fs::read(self.log()).unwrap_or_default();
        let mut lines: Vec<String> = report.error.into_iter().collect();
        lines.extend(telling(&String::from_utf8_lossy(&log)));
        if lines.is_empty() {
            // It had no log yet.
            lines = errors(output);
        }
        Err(Error::Failed { action, lines })
    }
}

/// How long a CRIU may go on that has lost the root of the tree. Where it ended that itself, it
/// is at its own end, too.
const WITHOUT_ROOT: u32 = 30;

/// Waits for CRIU. Where somebody kills the root of the tree while CRIU stops its threads, CRIU
/// waits for it for ever, and the other tasks stand still as long: then CRIU is killed. So it is
/// where it is [`stuck`].
///
/// # Errors
/// The kernel's.
pub fn wait(mut criu: Child, tree: Option<i32>) -> io::Result<ExitStatus> {
    let pid = criu.id().cast_signed();
    let pidfd = PidFd::open(pid).map_err(io::Error::other)?;
    let mut watch = stuck::Watch::new(pid);
    let mut seconds = 0;
    while !pidfd.dies_within(stuck::PERIOD) {
        watch.look(&pidfd);
        seconds = if tree.is_some_and(is_ending) {
            seconds + 1
        } else {
            0
        };
        if seconds == WITHOUT_ROOT {
            pidfd.kill(libc::SIGKILL);
        }
    }
    criu.wait()
}

/// The lines of CRIU's output that tell why it failed, but for the plugin's.
fn telling(log: &str) -> Vec<String> {
    let criu = log.lines().filter(|line| !line.contains("Error (vas)"));
    errors(&criu.collect::<Vec<_>>().join("\n"))
}

/// The lines of CRIU's output that tell why it failed.
pub(crate) fn errors(log: &str) -> Vec<String> {
    let error = |line: &&str| line.contains("Error (") || !line.starts_with('(');
    let mut lines: Vec<String> = log
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with("Warn"))
        .filter(error)
        .map(str::to_owned)
        .collect();
    lines.dedup();
    // The first is the cause, the last its consequences.
    if lines.len() > LINES {
        lines.truncate(LINES);
        lines.push("…".into());
    }
    lines
}

/// What a terminal sends. Not SIGTERM: CRIU ends its own helper, which moves tasks into
/// their cgroups, by it, and would wait for ever for a helper that has inherited to ignore it.
const FROM_A_TERMINAL: [Signal; 3] = [Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

/// While it lives, this process and its new children ignore what a terminal sends.
struct Quiet(Vec<(Signal, SigHandler)>);

impl Quiet {
    fn new() -> Self {
        let ignore = |s| {
            // SAFETY: SIG_IGN runs no code.
            unsafe { signal(s, SigHandler::SigIgn) }
                .ok()
                .map(|old| (s, old))
        };
        Self(FROM_A_TERMINAL.into_iter().filter_map(ignore).collect())
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        for (s, old) in &self.0 {
            // SAFETY: puts back what was there.
            let _ = unsafe { signal(*s, *old) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_log_the_errors_are_told_and_the_plugins_only_once() {
        let log = "(00.01) Info\nError (criu/seize.c:1): no such task\n\
                   (00.02) Error (criu/cr-dump.c:2): Dumping FAILED.\n\
                   Warn  (x): y\nError (vas): said in the report\n";
        assert_eq!(
            telling(log),
            [
                "Error (criu/seize.c:1): no such task",
                "(00.02) Error (criu/cr-dump.c:2): Dumping FAILED."
            ]
        );
    }

    #[test]
    fn a_flood_of_errors_is_cut_behind_the_cause() {
        let log: String = (0..100).map(|i| format!("Error (x): {i}\n")).collect();
        let lines = telling(&log);
        assert_eq!(lines.len(), LINES + 1);
        assert_eq!(lines[0], "Error (x): 0");
    }
}
