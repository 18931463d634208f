//! The restore: attach each task's VAS just before the task is let go.
//!
//! CRIU ignores errors of the hook and would let the tasks run on zeroed memory.
//! So on any failure every restored task is killed in the hook, where it is
//! stopped: CRIU then cannot detach from it, and fails in its own way.

use std::ffi::c_int;
use std::os::fd::AsFd;
use std::time::Instant;

use vascriu::device::{self, VasFile};
use vascriu::manifest::{self, Manifest, Task};
use vascriu::process::{self, PidFd, Vpid};
use vascriu::report::{self, Attach, Report};

use crate::criu::{self, Criu};
use crate::{guard, imports, session};

/// Why a restore failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/dev/vas` failed.
    #[error(transparent)]
    Device(#[from] device::Error),
    /// The snapshot cannot be restored.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    /// A task is not as it should be.
    #[error(transparent)]
    Process(#[from] process::Error),
    /// CRIU cannot be guarded.
    #[error(transparent)]
    Imports(#[from] imports::Error),
    /// A task that was not captured.
    #[error("task {0} was restored, but the snapshot has no memory for it")]
    Unknown(Vpid),
    /// One task twice.
    #[error("task {0} was restored twice")]
    Twice(Vpid),
    /// Fewer tasks than captures.
    #[error("{missing} of {all} captured tasks were not restored")]
    Missing {
        /// Captured, not restored.
        missing: usize,
        /// Captured.
        all: usize,
    },
    /// An earlier task failed.
    #[error("killed because another task of the tree failed")]
    Earlier,
}

/// A running restore.
#[derive(Debug)]
pub struct Restore {
    /// Captured tasks whose hook has not been called yet.
    waiting: Vec<(Task, VasFile)>,
    all: usize,
    restored: Vec<PidFd>,
    report: Report,
}

impl Restore {
    /// Begins: opens every VAS before CRIU makes the first task.
    ///
    /// # Errors
    /// The snapshot is not whole, of another boot, or lost a VAS.
    pub fn begin(criu: &Criu) -> Result<Self, Error> {
        let manifest = Manifest::load_at(criu.image_dir())?;
        let files = manifest.open_all(&session::open()?)?;
        guard::install()?;
        let all = files.len();
        let waiting = manifest.tasks.into_iter().zip(files).collect();
        Ok(Self {
            waiting,
            all,
            restored: Vec::new(),
            report: Report::default(),
        })
    }

    /// Gives one stopped task its memory, or kills all.
    ///
    /// # Errors
    /// See [`Error`]; every task restored so far is dead.
    pub fn attach(&mut self, pid: c_int) -> Result<(), Error> {
        let done = self.try_attach(pid);
        if let Err(e) = &done {
            self.fail(e);
        }
        done
    }

    fn try_attach(&mut self, pid: c_int) -> Result<(), Error> {
        let start = Instant::now();
        // First of all, so that `fail` reaches this task as well.
        self.restored.push(PidFd::open(pid)?);
        if self.report.error.is_some() {
            return Err(Error::Earlier);
        }
        let task = &self.restored[self.restored.len() - 1];
        let vpid = process::vpid(pid)?;
        let Some(at) = self.waiting.iter().position(|(t, _)| t.vpid == vpid) else {
            let twice = self.report.attached.iter().any(|a| a.vpid == vpid);
            return Err(if twice {
                Error::Twice(vpid)
            } else {
                Error::Unknown(vpid)
            });
        };
        let (_, vas) = self.waiting.remove(at);
        let pages = vas.attach(task.as_fd())?.pages;
        let us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        criu::info(&format!("attached {pages} pages to {vpid} in {us} us"));
        self.report.attached.push(Attach {
            vpid,
            pid,
            pages,
            us,
        });
        Ok(())
    }

    /// Kills what was restored so far and notes the first reason.
    pub fn fail(&mut self, why: &Error) {
        for task in &self.restored {
            task.kill(libc::SIGKILL);
        }
        if self.report.error.is_none() {
            let text = report::chain(why);
            criu::error(&format!("{text}; the restored tasks are killed"));
            self.report.error = Some(text);
            self.report.save();
        }
    }

    /// CRIU is done. It must not say success where we failed.
    pub fn end(mut self, ret: c_int) {
        if ret == 0 && self.report.error.is_none() && !self.waiting.is_empty() {
            self.fail(&Error::Missing {
                missing: self.waiting.len(),
                all: self.all,
            });
        }
        self.report.save();
        if ret == 0 && self.report.error.is_some() {
            for task in &self.restored {
                task.kill(libc::SIGKILL);
            }
            // SAFETY: ends the process; its tasks are dead.
            unsafe { libc::_exit(1) }
        }
    }
}
