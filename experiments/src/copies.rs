//! Copies of one snapshot, side by side in one guest: each restored in a PID namespace of its
//! own, or all by `vascriu clone`.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

use crate::criu::timed;
use crate::procfs::children;
use crate::subject::{Subject, in_new_session};

/// What a restore needs to find the PIDs free that it wants: a PID namespace, and its `/proc`.
#[derive(Debug)]
pub struct Room {
    /// `unshare`, the parent of the namespace's init.
    outside: Child,
    init: i32,
    /// What the restore wrote.
    pub said: String,
}

/// Runs a restore, then stays, as the namespace's init.
const INIT: &str = "\"$@\" && echo restored && exec sleep infinity >/dev/null 2>&1";
/// Its word in between; the streams do not end.
const RESTORED: &str = "restored\n";

impl Room {
    /// Makes one and runs `restore` in it, which leaves the restored tree running. It stays
    /// when this process ends.
    ///
    /// # Errors
    /// When the restore fails.
    pub fn restore(restore: &Command) -> Result<Self> {
        let mut command = Command::new("unshare");
        command
            .args(["--pid", "--mount", "--fork", "--mount-proc"])
            .args(["sh", "-c", INIT, "sh"])
            .arg(restore.get_program())
            .args(restore.get_args())
            .envs(restore.get_envs().filter_map(|(k, v)| Some((k, v?))))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut outside = in_new_session(&mut command)
            .spawn()
            .context("cannot run unshare")?;
        let mut said = String::new();
        if let Some(output) = outside.stdout.take() {
            let mut output = BufReader::new(output);
            while !said.ends_with(RESTORED) && output.read_line(&mut said)? > 0 {}
        }
        let Some(said) = said.strip_suffix(RESTORED) else {
            let status = outside.wait()?;
            bail!("{restore:?} did not restore a copy ({status})");
        };
        let init = children(i32::try_from(outside.id())?)?;
        let init = *init.first().context("unshare has no child")?;
        Ok(Self {
            outside,
            init,
            said: said.into(),
        })
    }

    /// PID, here, of the restored tree's root.
    ///
    /// # Errors
    /// When it is gone.
    pub fn root(&self) -> Result<i32> {
        let roots = children(self.init)?;
        ensure!(roots.len() == 1, "{} processes were restored", roots.len());
        Ok(roots[0])
    }

    /// Ends all in it, and waits for that.
    ///
    /// # Errors
    /// When it has ended before.
    pub fn end(mut self) -> Result<()> {
        // The kernel ends a PID namespace with its init, which is gone when all are.
        kill(Pid::from_raw(self.init), Signal::SIGKILL).context("the copy's init is gone")?;
        self.outside.wait()?;
        Ok(())
    }
}

/// A running copy.
#[derive(Debug)]
pub struct Copy {
    /// It.
    pub subject: Subject,
    /// What it runs in, if we have made that.
    pub room: Option<Room>,
}

impl Copy {
    /// Restores one by this command.
    ///
    /// # Errors
    /// When it fails.
    pub fn restore(restore: &Command) -> Result<Self> {
        let room = Room::restore(restore)?;
        Ok(Self {
            subject: Subject::at(room.root()?),
            room: Some(room),
        })
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it has ended before.
    pub fn end(self) -> Result<()> {
        match self.room {
            Some(room) => room.end(),
            None => self.subject.end(),
        }
    }
}

impl From<Subject> for Copy {
    fn from(subject: Subject) -> Self {
        Self {
            subject,
            room: None,
        }
    }
}

/// Copies that have answered.
#[derive(Debug)]
pub struct Made {
    /// They.
    pub copies: Vec<Copy>,
    /// Their answers.
    pub answers: Vec<u64>,
    /// From the beginning until the last had answered.
    pub all: Duration,
    /// What the last one took.
    pub last: Duration,
}

impl Made {
    /// So many, one after the other; each is made by `next`, and then asked by `ask`, which is
    /// told its number.
    ///
    /// # Errors
    /// When one fails.
    pub fn each(
        count: usize,
        mut next: impl FnMut() -> Result<Copy>,
        mut ask: impl FnMut(&mut Subject, usize) -> Result<u64>,
    ) -> Result<Self> {
        let mut made = Self {
            copies: Vec::with_capacity(count),
            answers: Vec::with_capacity(count),
            all: Duration::ZERO,
            last: Duration::ZERO,
        };
        let begun = Instant::now();
        for number in 0..count {
            let before = begun.elapsed();
            let mut copy = next()?;
            made.answers.push(ask(&mut copy.subject, number)?);
            made.copies.push(copy);
            made.all = begun.elapsed();
            made.last = made.all - before;
        }
        Ok(made)
    }

    /// All by one command, of the snapshot `name`; then asks one after the other.
    ///
    /// # Errors
    /// When not all copies run and answer.
    pub fn cloned(
        name: &str,
        count: usize,
        ask: impl FnMut(&mut Subject, usize) -> Result<u64>,
    ) -> Result<Self> {
        let begun = Instant::now();
        let cloned = clone(name, count)?;
        let made_last = cloned.last().map_or(0.0, |copy| copy.restore_ms);
        let mut running = cloned.iter().map(|copy| Subject::at(copy.pid).into());
        let next = || running.next().context("a copy that was not made");
        let mut made = Self::each(count, next, ask)?;
        made.all = begun.elapsed();
        made.last += Duration::try_from_secs_f64(made_last / 1e3)?;
        Ok(made)
    }
}

/// What `vascriu clone --json` tells, as far as it is used here.
#[derive(Debug, Deserialize)]
struct Report {
    running: Vec<Cloned>,
}

/// One copy, as `vascriu clone` tells of it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Cloned {
    /// Of its root.
    pub pid: i32,
    /// What it took.
    pub restore_ms: f64,
}

/// `vascriu clone -n COUNT` of the snapshot `name`.
///
/// # Errors
/// When not all copies run.
pub fn clone(name: &str, count: usize) -> Result<Vec<Cloned>> {
    let n = count.to_string();
    let ran = timed(Command::new("vascriu").args(["clone", name, "-n", &n, "--json"]))?;
    let report: Report = serde_json::from_slice(&ran.stdout)?;
    let running = report.running;
    ensure!(
        running.len() == count,
        "{} copies of {count} run",
        running.len()
    );
    Ok(running)
}
