//! `vascriu dump`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::criu::{self, Run};
use crate::device::{self, Kept, Session};
use crate::manifest::{self, Manifest};
use crate::name::Name;
use crate::orphans::Orphans;
use crate::process;
use crate::report;
use crate::rescue;
use crate::stats;
use crate::store::{self, Hold, Lock, Store};
use crate::stored;

/// Why a dump failed. The tasks go on and nothing is left, unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The task.
    #[error(transparent)]
    Process(#[from] process::Error),
    /// The kernel.
    #[error(transparent)]
    Device(#[from] device::Error),
    /// The place for the snapshot.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Its `vas.json`.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    /// CRIU.
    #[error(transparent)]
    Criu(#[from] criu::Error),
    /// It did not go to the snapshot store, as it should.
    #[error(
        "the snapshot `{name}` is whole, in this guest's memory, but not in the snapshot store (`vascriu drain {name}` tries again)"
    )]
    NotStored {
        /// The snapshot.
        name: Name,
        /// Why.
        #[source]
        source: stored::Error,
    },
    /// CRIU died after the snapshot was whole and tasks had been ended.
    #[error("{source}, when the snapshot was whole and tasks were already ended: it is kept as `{name}`{}", left(.alive))]
    KilledLate {
        /// What happened to CRIU.
        source: criu::Error,
        /// The snapshot.
        name: Name,
        /// PIDs of tasks that it did not come to end.
        alive: Vec<i32>,
    },
}

fn left(alive: &[i32]) -> String {
    let pids: Vec<_> = alive.iter().map(ToString::to_string).collect();
    if pids.is_empty() {
        String::new()
    } else {
        format!("; of its tasks these are still there: {}", pids.join(" "))
    }
}

/// What to dump.
#[derive(Debug)]
pub struct Dump {
    /// Root of the process tree.
    pub pid: i32,
    /// The snapshot's name.
    pub name: Option<Name>,
    /// Where the images go, if not into the store.
    pub images: Option<PathBuf>,
    /// Let the tasks go on afterwards.
    pub leave_running: bool,
    /// Whether it goes to the snapshot store.
    pub keep: Keep,
    /// For CRIU.
    pub options: Vec<String>,
}

/// Whether a snapshot goes to the snapshot store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// In the background, if there is a store.
    Background,
    /// At once, and it must.
    Sync,
    /// No.
    GuestOnly,
}

/// What was dumped, and how long it took.
#[derive(Debug, Serialize)]
pub struct Dumped {
    /// The snapshot.
    pub name: Name,
    /// Where its images are.
    pub images: PathBuf,
    /// Tasks.
    pub tasks: usize,
    /// Captured 4 KiB pages.
    pub pages: u64,
    /// The whole dump.
    pub dump_ms: f64,
    /// CRIU alone, from start to end.
    pub criu_ms: f64,
    /// The tasks stood still.
    pub frozen_ms: f64,
    /// Captures and CRIU's own work on memory.
    pub memory_dump_ms: f64,
    /// The captures alone.
    pub capture_ms: f64,
    /// Pages that CRIU wrote: stacks, file mappings, shared memory.
    pub pages_written: u64,
    /// All files of the snapshot.
    pub image_bytes: u64,
    /// Where its memory is.
    pub kept: Kept,
    /// Why it stays in the guest, where it should not.
    pub store_error: Option<String>,
    /// What the snapshot store took of `dump_ms`; the tasks have gone on before.
    pub store_ms: f64,
}

/// Microseconds as milliseconds.
pub(crate) fn ms(us: u64) -> f64 {
    #[allow(clippy::cast_precision_loss)] // exact up to 285 years
    let us = us as f64;
    us / 1000.0
}

/// Time since `start` in milliseconds.
pub(crate) fn ms_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}

/// Puts a whole snapshot into the snapshot store, as far as is wanted.
fn put(dumped: &Dumped, keep: Keep, lock: Lock) -> Result<Kept, stored::Error> {
    if keep == Keep::GuestOnly {
        return Ok(Kept::Hot);
    }
    let ready = stored::Ready::new(&dumped.name, &dumped.images)?;
    if keep == Keep::Background {
        ready.drain(false)?;
        return Ok(Kept::Draining);
    }
    drop(lock); // it can be restored meanwhile
    ready.drain(true)?;
    Ok(Kept::Stored)
}

impl Dump {
    /// Dumps.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn run(self, start: Instant) -> Result<Dumped, Error> {
        let comm = process::comm(self.pid)?;
        let session = Session::open()?;
        let keep = self.keep(&session)?;
        let store = Store::open()?;
        store.recover()?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let name = self
            .name
            .clone()
            .unwrap_or_else(|| Name::for_task(&comm, self.pid, now.as_millis()));
        let lock = store.lock(&name, Hold::Alone)?;
        if store.has(&name) {
            return Err(store::Error::Exists(name).into());
        }
        let taken = keep != Keep::GuestOnly
            && match stored::has(&session, &name) {
                // The drain will fail, too; that is no reason not to dump.
                Err(_) if keep == Keep::Background => false,
                found => found?,
            };
        if taken {
            return Err(device::Error::StoreHas(name.to_string()).into());
        }
        drop(session);
        let place = self.images.clone().unwrap_or_else(|| store.new_path(&name));
        let images = store::empty_dir(&place)?;
        let dumped = self.dump(&store, name, &images, start);
        let mut dumped = dumped.inspect_err(|e| {
            if !matches!(e, Error::KilledLate { .. }) {
                let _ = store.discard(&images);
            }
        })?;
        // It is whole, and the tasks have gone on: nothing of that changes any more.
        let store_start = Instant::now();
        match (keep, put(&dumped, keep, lock)) {
            (_, Ok(kept)) => dumped.kept = kept,
            (Keep::Sync, Err(source)) => {
                let name = dumped.name;
                return Err(Error::NotStored { name, source });
            }
            (_, Err(e)) => dumped.store_error = Some(report::chain(&e)),
        }
        dumped.store_ms = ms_since(store_start);
        dumped.dump_ms = ms_since(start);
        Ok(dumped)
    }

    /// What can be done of what is wanted.
    fn keep(&self, session: &Session) -> Result<Keep, Error> {
        if self.keep == Keep::GuestOnly || session.has_store()? {
            return Ok(self.keep);
        }
        match self.keep {
            Keep::Sync => Err(device::Error::NoStore.into()),
            _ => Ok(Keep::GuestOnly),
        }
    }

    fn dump(
        &self,
        store: &Store,
        name: Name,
        images: &Path,
        start: Instant,
    ) -> Result<Dumped, Error> {
        let mut own = vec!["--tree".into(), self.pid.to_string()];
        if self.leave_running {
            own.push("--leave-running".into());
        }
        let run = Run {
            action: "dump",
            name: name.as_str(),
            images,
            work: images,
            own,
            user: &self.options,
        };
        let orphans = Orphans::from_now_on();
        let criu_start = Instant::now();
        if let Err(e) = run.run() {
            // A child by which CRIU has tried out the kernel would sleep for ever.
            orphans.kill(|pid| process::has_argument(pid, images));
            return Err(self.take_back(store, name, images, e));
        }
        let criu_ms = ms_since(criu_start);
        let manifest = Manifest::load(images)?;
        let stats = stats::dump(images);
        store.publish(&name, images)?;
        let images = store.images(&name)?;
        let _ = fs::remove_file(images.join("dump.log"));
        Ok(Dumped {
            tasks: manifest.tasks.len(),
            pages: manifest.pages(),
            criu_ms,
            frozen_ms: ms(stats.frozen_us),
            memory_dump_ms: ms(manifest.capture_us() + stats.memdump_us),
            capture_ms: ms(manifest.capture_us()),
            pages_written: stats.pages_written,
            image_bytes: store::dir_bytes(&images),
            kept: Kept::Hot,
            store_error: None,
            store_ms: 0.0,
            dump_ms: ms_since(start),
            name,
            images,
        })
    }
    /// After a failed CRIU: nothing stays, unless the snapshot is all there is.
    fn take_back(&self, store: &Store, name: Name, images: &Path, e: criu::Error) -> Error {
        if matches!(e, criu::Error::Killed { .. }) {
            if store::is_the_only_copy(images) {
                let tasks = Manifest::load(images).map(|m| m.tasks).unwrap_or_default();
                let alive = tasks
                    .iter()
                    .filter(|t| t.is_alive())
                    .map(|t| t.pid)
                    .collect();
                return match store.publish(&name, images) {
                    Ok(()) => Error::KilledLate {
                        source: e,
                        name,
                        alive,
                    },
                    Err(e) => e.into(),
                };
            }
            rescue::release(self.pid, &self.options);
        }
        match store::delete_vases(&name, true) {
            Ok(_) => e.into(),
            Err(e) => e.into(),
        }
    }
}
