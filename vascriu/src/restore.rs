//! `vascriu restore`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::Serialize;

use crate::criu::{self, Run};
use crate::device::{self, Session};
use crate::dump::{ms, ms_since};
use crate::manifest::{self, Manifest};
use crate::name::{self, Name};
use crate::options;
use crate::orphans::Orphans;
use crate::stats;
use crate::store::{self, Hold, Store};
use crate::stored;

/// Why a restore failed. No restored task is left.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel.
    #[error(transparent)]
    Device(#[from] device::Error),
    /// The snapshot's place.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The snapshot.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    /// The name in its `vas.json`.
    #[error("damaged vas.json")]
    Name(#[from] name::Invalid),
    /// It does not come from the snapshot store.
    #[error("cannot bring it from the snapshot store")]
    Stored(#[from] stored::Error),
    /// The images outlived their memory.
    #[error("{why}; the snapshot store has {}", if *.stored {
        format!("a `{name}`: `vascriu restore {name}`")
    } else {
        format!("no `{name}` for this microVM either")
    })]
    OtherBoot {
        /// Of which snapshot they are.
        name: Name,
        /// Of which boot.
        why: manifest::Error,
        /// Whether the snapshot store has one of that name.
        stored: bool,
    },
    /// CRIU.
    #[error(transparent)]
    Criu(#[from] criu::Error),
    /// CRIU does not say which task it restored.
    #[error("CRIU wrote no PID to {0}")]
    NoPid(PathBuf),
    /// A place for CRIU's log cannot be made.
    #[error("creating {0} failed")]
    Work(PathBuf, #[source] std::io::Error),
}

/// Which snapshot to restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// By its name.
    Name(Name),
    /// By its image directory.
    Images(PathBuf),
}

/// What to restore.
#[derive(Debug)]
pub struct Restore {
    /// The snapshot.
    pub source: Source,
    /// For CRIU.
    pub options: Vec<String>,
}

/// What was restored, and how long it took.
#[derive(Debug, Serialize)]
pub struct Restored {
    /// The snapshot.
    pub name: String,
    /// Root of the restored tree.
    pub pid: i32,
    /// Tasks.
    pub tasks: usize,
    /// Attached 4 KiB pages.
    pub pages: u64,
    /// The whole restore.
    pub restore_ms: f64,
    /// CRIU alone, from start to end.
    pub criu_ms: f64,
    /// From CRIU's beginning to the tasks' being ready, by its own clock.
    pub criu_restore_ms: f64,
    /// The attaches.
    pub memory_restore_ms: f64,
    /// Pages that CRIU read: stacks, file mappings, shared memory.
    pub pages_read: u64,
}

/// Brings a snapshot from the snapshot store, if that has it.
fn bring(store: &Store, session: &Session, name: &Name) -> Result<(), Error> {
    if !session.has_store()? {
        return Ok(());
    }
    let lock = store.lock_in_turn(name)?;
    // Another restore may have been first.
    let loaded = if store.has(name) {
        Ok(())
    } else {
        stored::load(store, session, name)
    };
    store.leave(name, lock)?;
    match loaded {
        Err(stored::Error::Device(device::Error::NotStored(_))) => Ok(()),
        done => Ok(done?),
    }
}

/// A directory that goes with its owner.
struct Work(PathBuf);

impl Work {
    fn new(store: &Store) -> Result<Self, Error> {
        let path = store.working_place();
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).map_err(|e| Error::Work(path.clone(), e))?;
        Ok(Self(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Restore {
    /// Restores, and returns when the tasks run. They become children of ours.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn run(self, start: Instant) -> Result<Restored, Error> {
        let session = Session::open()?;
        let store = Store::open()?;
        store.recover()?;
        let images = match &self.source {
            Source::Name(name) => {
                if !store.has(name) {
                    bring(&store, &session, name)?;
                }
                store.images(name)?
            }
            Source::Images(dir) => dir.canonicalize().map_err(|e| store::Error::Io {
                call: "opening",
                path: dir.clone(),
                source: e,
            })?,
        };
        let manifest = Manifest::load(&images)?;
        let name: Name = manifest.header.name.parse()?;
        let _lock = store.lock(&name, Hold::Shared)?;
        match manifest.open_all(&session) {
            Ok(vases) => drop(vases),
            Err(why @ manifest::Error::OtherBoot { .. })
                if matches!(self.source, Source::Images(_)) =>
            {
                let stored = stored::has(&session, &name)?;
                return Err(Error::OtherBoot { name, why, stored });
            }
            Err(e) => return Err(e.into()),
        }
        drop(session);
        let work = Work::new(&store)?;
        self.restore(&manifest, &images, &work.0, start)
    }

    fn restore(
        &self,
        manifest: &Manifest,
        images: &Path,
        work: &Path,
        start: Instant,
    ) -> Result<Restored, Error> {
        let mut own = vec!["--restore-detached".to_owned()];
        let pidfile = match options::value(&self.options, &["--pidfile"]) {
            Some(path) => work.join(path),
            None => {
                own.extend(["--pidfile".to_owned(), "pid".to_owned()]);
                work.join("pid")
            }
        };
        let name = manifest.header.name.as_str();
        let run = Run {
            action: "restore",
            name,
            images,
            work,
            own,
            user: &self.options,
        };
        // CRIU's orphans become ours: nothing half restored gets away.
        let orphans = Orphans::from_now_on();
        let criu_start = Instant::now();
        let report = run.run().inspect_err(|_| orphans.kill(|_| true))?;
        let criu_ms = ms_since(criu_start);
        let stats = stats::restore(work);
        let pid = fs::read_to_string(&pidfile)
            .ok()
            .and_then(|t| t.trim().parse().ok());
        Ok(Restored {
            name: name.to_owned(),
            pid: pid.ok_or(Error::NoPid(pidfile))?,
            tasks: report.attached.len(),
            pages: report.attached.iter().map(|a| a.pages).sum(),
            criu_ms,
            criu_restore_ms: ms(stats.restore_us),
            memory_restore_ms: ms(report.attached.iter().map(|a| a.us).sum()),
            pages_read: stats.pages_restored,
            restore_ms: ms_since(start),
        })
    }
}

/// Waits for the restored tree as CRIU would; says how the root ended, as a
/// shell would.
#[must_use]
pub fn wait_for(root: i32) -> u8 {
    let mut code = 0;
    loop {
        match waitpid(None::<Pid>, None) {
            Ok(WaitStatus::Exited(pid, status)) if pid.as_raw() == root => {
                code = u8::try_from(status & 0xff).unwrap_or(1);
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == root => {
                code = u8::try_from(128 + signal as i32).unwrap_or(1);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return code,
        }
    }
}
