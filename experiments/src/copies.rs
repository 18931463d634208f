// SPDX-License-Identifier: GPL-2.0-only
//! Copies of one snapshot, side by side in one guest: each restored in a PID namespace of its
//! own, or all by `vascriu clone`.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
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
#[derive(Debug, Default)]
pub struct Made {
    /// They, in the order in which they answered.
    pub copies: Vec<Copy>,
    /// Their answers.
    pub answers: Vec<u64>,
    /// From the beginning until the last had answered.
    pub all: Duration,
    /// What the last one took.
    pub last: Duration,
}

impl Made {
    /// So many, `parallel` at a time; each is made by `next`, and then asked by `ask`. Both are
    /// told its number.
    ///
    /// # Errors
    /// When one fails: no more are made then.
    pub fn each(
        count: usize,
        parallel: usize,
        next: impl Fn(usize) -> Result<Copy> + Sync,
        ask: impl Fn(&mut Subject, usize) -> Result<u64> + Sync,
    ) -> Result<Self> {
        let begun = Instant::now();
        let made = Mutex::new(Self::default());
        let one = |number| -> Result<()> {
            let before = begun.elapsed();
            let mut copy = next(number)?;
            // One is asked at a time: copies of one process answer in one file.
            let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
            made.answers.push(ask(&mut copy.subject, number)?);
            made.copies.push(copy);
            made.all = begun.elapsed();
            made.last = made.all.saturating_sub(before);
            Ok(())
        };
        let numbers = AtomicUsize::new(0);
        let work = || -> Result<()> {
            let next = || Some(numbers.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < count);
            while let Some(number) = next() {
                one(number).inspect_err(|_| numbers.store(count, Ordering::Relaxed))?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..parallel).map(|_| scope.spawn(work)).collect();
            let mut ended = workers.into_iter().map(thread::ScopedJoinHandle::join);
            ended.try_for_each(|end| end.map_err(|_| anyhow!("what makes copies panicked"))?)
        })?;
        Ok(made.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// All by one command, of the snapshot `name`, `parallel` at a time; then asks one after the
    /// other.
    ///
    /// # Errors
    /// When not all copies run and answer.
    pub fn cloned(
        name: &str,
        count: usize,
        parallel: usize,
        ask: impl Fn(&mut Subject, usize) -> Result<u64> + Sync,
    ) -> Result<Self> {
        let begun = Instant::now();
        let cloned = clone(name, count, parallel)?;
        let made_last = cloned.last().map_or(0.0, |copy| copy.restore_ms);
        let next = |number: usize| Ok(Subject::at(cloned[number].pid).into());
        let mut made = Self::each(count, 1, next, ask)?;
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

/// `vascriu clone -n COUNT -P PARALLEL` of the snapshot `name`.
///
/// # Errors
/// When not all copies run.
pub fn clone(name: &str, count: usize, parallel: usize) -> Result<Vec<Cloned>> {
    let [n, p] = [count, parallel].map(|number| number.to_string());
    let mut command = Command::new("vascriu");
    let ran = timed(command.args(["clone", name, "-n", &n, "-P", &p, "--json"]))?;
    let report: Report = serde_json::from_slice(&ran.stdout)?;
    let running = report.running;
    ensure!(
        running.len() == count,
        "{} copies of {count} run",
        running.len()
    );
    Ok(running)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a millisecond for each copy, and tells the most that were made at a time.
    fn made(count: usize, parallel: usize) -> (Made, usize) {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let next = |_| {
            let at_a_time = now.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(at_a_time, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(1));
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(Subject::at(1).into())
        };
        let made = Made::each(count, parallel, next, |_, number| Ok(number as u64)).unwrap();
        (made, most.into_inner())
    }

    #[test]
    fn each_copy_is_made_once_and_so_many_at_a_time() {
        for (parallel, at_most) in [(1, 1), (3, 3), (50, 20)] {
            let (made, most) = made(20, parallel);
            assert!(most <= at_most, "{most} at a time");
            assert!(made.last <= made.all && made.copies.len() == 20);
            let mut answers = made.answers;
            if parallel > 1 {
                answers.sort_unstable();
            }
            assert!(answers.into_iter().eq(0..20));
        }
        assert!(made(20, 4).1 > 1);
    }

    #[test]
    fn after_a_copy_that_fails_no_more_are_made() {
        let begun = AtomicUsize::new(0);
        let next = |_| -> Result<Copy> {
            begun.fetch_add(1, Ordering::SeqCst);
            bail!("no room")
        };
        let error = Made::each(1000, 4, next, |_, _| Ok(0)).unwrap_err();
        assert_eq!(error.to_string(), "no room");
        assert!(begun.into_inner() <= 4);
    }
}
