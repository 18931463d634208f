// SPDX-License-Identifier: GPL-2.0-only
//! The restore: attach each task's VAS just before the task is let go.
//!
//! CRIU ignores errors of the hook and would let the tasks run on zeroed memory.
//! So on any failure every restored task is killed in the hook, where it is
//! stopped: CRIU then cannot detach from it, and fails in its own way.

use std::ffi::c_int;
use std::io;
use std::os::fd::AsFd;
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

use vascriu::criu::order::{self, Order};
use vascriu::criu::report::{Attach, Report};
use vascriu::device::{self, VasFile};
use vascriu::process::{self, PidFd, Vpid};
use vascriu::snapshot::id::Member;
use vascriu::snapshot::images;
use vascriu::snapshot::manifest::{self, Manifest, Task};
use vascriu::snapshot::registry::{self, Registry};
use vascriu::snapshot::shared;
use vascriu::text;

use crate::criu::{self, Criu};
use crate::{guard, imports, session};

/// How long to wait for the end of what was killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a restore failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody has told us what to restore.
    #[error(transparent)]
    Order(#[from] order::Error),
    /// `/dev/vas` failed.
    #[error(transparent)]
    Device(#[from] device::Error),
    /// The snapshot's label cannot be changed.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// The images are not those of the snapshot.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    /// They cannot be read.
    #[error("cannot read {}", manifest::FILE)]
    Read(#[source] io::Error),
    /// A task is not as it should be.
    #[error(transparent)]
    Process(#[from] process::Error),
    /// CRIU cannot be guarded.
    #[error(transparent)]
    Imports(#[from] imports::Error),
    /// Shared memory cannot be brought back.
    #[error(transparent)]
    Shared(#[from] shared::Error),
    /// Its VAS is gone.
    #[error("the shared memory of the tasks is gone: the snapshot was removed")]
    SharedGone,
    /// One VAS is gone.
    #[error("the memory of task {0} ({1}) is gone: the snapshot was removed")]
    Gone(Vpid, String),
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
    /// Nobody is there to tell the engine.
    #[error("the process of vascriu between the engine and CRIU was killed")]
    Alone,
    /// An earlier task failed.
    #[error("killed because another task of the tree failed")]
    Earlier,
}

/// A running restore.
#[derive(Debug)]
pub struct Restore {
    order: order::Restore,
    registry: Registry,
    manifest: Manifest,
    /// The snapshot is in use for as long as this is open.
    _images: VasFile,
    /// What the tasks share, if they do.
    shared: Option<VasFile>,
    /// Captured tasks whose hook has not been called yet.
    waiting: Vec<(Task, VasFile)>,
    /// Whether it is a copy; not known before the first task is ready.
    clone: Option<bool>,
    restored: Vec<PidFd>,
    report: Report,
}

impl Restore {
    /// Begins: opens every VAS before CRIU makes the first task.
    ///
    /// # Errors
    /// The images are another snapshot's, or a VAS is gone.
    pub fn begin(criu: &Criu) -> Result<Self, Error> {
        let Order::Restore(order) = Order::from_env()? else {
            return Err(order::Error::Missing.into());
        };
        let file = images::path(criu.image_dir()).join(manifest::FILE);
        let manifest = Manifest::parse(&std::fs::read(file).map_err(Error::Read)?, order.id)?;
        let registry = Registry::of(session::open()?);
        let images = registry.open_member(order.id, Member::Images)?;
        let open = |task: &Task| {
            let vas = registry.open_member(order.id, Member::Task(task.vpid));
            vas.map(|vas| (task.clone(), vas)).map_err(|e| match e {
                device::Error::Gone { .. } => Error::Gone(task.vpid, task.comm.clone()),
                e => e.into(),
            })
        };
        let waiting = manifest.tasks.iter().map(open).collect::<Result<_, _>>()?;
        let has_shared = !manifest.shared.is_empty();
        let shared = has_shared.then(|| registry.open_member(order.id, Member::Shared));
        let shared = shared.transpose().map_err(|e| match e {
            device::Error::Gone { .. } => Error::SharedGone,
            e => e.into(),
        })?;
        guard::install()?;
        Ok(Self {
            order,
            registry,
            manifest,
            _images: images,
            shared,
            waiting,
            clone: None,
            restored: Vec::new(),
            report: Report::default(),
        })
    }

    /// Whether it is a copy: all but one are, of a snapshot whose tasks ended at the dump.
    /// From now on the others know of this one.
    fn is_clone(&mut self) -> Result<bool, Error> {
        if let Some(clone) = self.clone {
            return Ok(clone);
        }
        let mut clone = self.order.clone || self.manifest.left_running;
        let counted = self.registry.change_label(self.order.id, |label| {
            clone |= label.restored > 0;
            label.restored += 1;
        });
        match counted {
            // Who cannot count cannot know that it is the first.
            Err(registry::Error::Label(_)) => clone = true,
            // It is counted here; a store that does not answer brings nothing to others either.
            Err(e @ registry::Error::StoreLabel(_)) => criu::info(&text::chain(&e)),
            done => done?,
        }
        self.report.clone = clone;
        self.clone = Some(clone);
        Ok(clone)
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
        if self.is_alone() {
            return Err(Error::Alone);
        }
        let vpid = process::vpid(pid)?;
        let Some(at) = self.waiting.iter().position(|(t, _)| t.vpid == vpid) else {
            let twice = self.report.attached.iter().any(|a| a.vpid == vpid);
            return Err(if twice {
                Error::Twice(vpid)
            } else {
                Error::Unknown(vpid)
            });
        };
        let clone = self.is_clone()?;
        let (_, vas) = self.waiting.remove(at);
        let task = &self.restored[self.restored.len() - 1];
        let pages = vas
            .attach(task.as_fd(), self.order.id.bytes(), clone)?
            .pages;
        if let Some(vas) = &self.shared {
            for segment in self.manifest.shared.iter().filter(|s| s.vpid == vpid) {
                segment.restore(pid, vas)?;
            }
        }
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

    /// Whether the other end of CRIU's connection to the engine is gone.
    fn is_alone(&self) -> bool {
        let hung_up = |fd| {
            let mut poll = libc::pollfd {
                fd,
                events: 0,
                revents: 0,
            };
            // SAFETY: `poll` is one live pollfd.
            unsafe { libc::poll(&raw mut poll, 1, 0) == 1 && poll.revents & libc::POLLHUP != 0 }
        };
        self.order.engine.is_some_and(hung_up)
    }

    /// Kills what was restored so far. CRIU traces it, and waits for the root first: one that
    /// is PID 1 of a namespace ends after all others there, and they not before CRIU, as their
    /// tracer, has taken note of their ends. So that is done here.
    fn kill_all(&self) {
        for task in &self.restored {
            task.kill(libc::SIGKILL);
        }
        let until = Instant::now() + PATIENCE;
        while !self.restored.iter().all(PidFd::is_dead) && Instant::now() < until {
            // SAFETY: takes the status of any child or traced task, without storing it.
            if unsafe { libc::waitpid(-1, ptr::null_mut(), libc::__WALL | libc::WNOHANG) } <= 0 {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Kills what was restored so far and notes the first reason.
    pub fn fail(&mut self, why: &Error) {
        self.kill_all();
        if self.report.error.is_none() {
            let text = text::chain(why);
            criu::error(&format!("{text}; the restored tasks are killed"));
            self.report.error = Some(text);
            self.report.save(self.order.report);
        }
    }

    /// CRIU is done. It must not say success where we failed. Without anybody to pass on
    /// what it says the engine sees a failure: then it has to be one.
    pub fn end(mut self, ret: c_int) {
        if self.is_alone() {
            self.fail(&Error::Alone);
        }
        if ret == 0 && self.report.error.is_none() && !self.waiting.is_empty() {
            self.fail(&Error::Missing {
                missing: self.waiting.len(),
                all: self.manifest.tasks.len(),
            });
        }
        self.report.save(self.order.report);
        if ret == 0 && self.report.error.is_some() {
            self.kill_all();
            // SAFETY: ends the process; its tasks are dead.
            unsafe { libc::_exit(1) }
        }
    }
}
