//! The dump: capture each task into a VAS of its own; commit all at the end.
//!
//! CRIU ignores what a plugin's exit says and kills the tasks right after it, so
//! everything that can fail has happened before, in hooks whose errors it heeds;
//! the commit alone remains. Where that fails, the dump is ended as CRIU ends
//! a failed one. A post-dump script can fail a dump behind our back (its result
//! is not told to plugins): then, at CRIU's exit, the status is not 0 and all
//! tasks are alive, and the VASes are deleted again.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use vascriu::device::{self, Session, VasFile};
use vascriu::manifest::{self, Header, Task, VERSION, Writer};
use vascriu::process::{self, PidFd};
use vascriu::report::{self, ENV_NAME};
use vascriu::store::Store;

use crate::criu::{self, Criu};
use crate::{guard, lent, session};

/// Why a dump failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/dev/vas` failed.
    #[error(transparent)]
    Device(#[from] device::Error),
    /// `vas.json` cannot be written.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    /// A task is not as it should be.
    #[error(transparent)]
    Process(#[from] process::Error),
    /// CRIU has no memory.
    #[error("CRIU cannot record that the images need this plugin")]
    Inventory,
    /// The images would be restored without us.
    #[error("cannot hide the image of the process tree from a CRIU without this plugin")]
    Guard(#[source] io::Error),
    /// An incremental dump.
    #[error(
        "incremental dumps (--prev-images-dir, pre-dump) do not go with VASes: nothing is copied, so there is nothing to save; dump without them"
    )]
    Incremental,
}

/// A running dump.
#[derive(Debug)]
pub struct Dump {
    criu: Criu,
    name: String,
    /// Where the snapshot is entered in the store, if the command does not.
    link: Option<PathBuf>,
    /// When CRIU ends, it is closed (see [`lent`]): that deletes what is not committed.
    session: Session,
    writer: Writer,
    captured: Captured,
}

type Captured = Vec<(PidFd, VasFile)>;

/// What to undo where CRIU, the process `pid`, fails after all.
#[derive(Debug)]
struct Committed {
    pid: u32,
    link: Option<PathBuf>,
    captured: Captured,
}

static COMMITTED: Mutex<Option<Committed>> = Mutex::new(None);

impl Dump {
    /// Begins: all that can be refused is refused here, before any task stops.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn begin(criu: Criu) -> Result<Self, Error> {
        let dir = criu.image_dir();
        // SAFETY: the path is NUL-terminated; AT_SYMLINK_NOFOLLOW is a flag.
        let parent = unsafe {
            libc::faccessat(
                dir.as_raw_fd(),
                c"parent".as_ptr(),
                libc::F_OK,
                libc::AT_SYMLINK_NOFOLLOW,
            )
        };
        if parent == 0 {
            return Err(Error::Incremental);
        }
        let session = session::open()?;
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let (name, link) = match std::env::var(ENV_NAME) {
            Ok(name) => (name, None),
            Err(_) => {
                let name = format!("criu-{}-{}", std::process::id(), since_epoch.as_millis());
                let link = Store::open().ok().map(|store| store.root().join(&name));
                (name, link)
            }
        };
        let header = Header {
            version: VERSION,
            boot_id: process::boot_id()?,
            name: name.clone(),
            criu: "4.1.1".into(),
            created: since_epoch.as_secs(),
        };
        let writer = Writer::create(dir, &header)?;
        if !criu.require_me() {
            return Err(Error::Inventory);
        }
        if let Err(e) = lent::install(&session) {
            criu::info(&format!("tasks are not guarded: {}", report::chain(&e)));
        }
        Ok(Self {
            criu,
            name,
            link,
            session,
            writer,
            captured: Vec::new(),
        })
    }

    /// Captures one task; the whole tree is stopped.
    ///
    /// # Errors
    /// See [`Error`]; CRIU then ends the dump and lets the tasks go on.
    pub fn capture(&mut self, pid: c_int) -> Result<(), Error> {
        let start = Instant::now();
        let pidfd = PidFd::open(pid)?;
        let vpid = process::vpid(pid)?;
        let vas_name = format!("{}:{vpid}", self.name);
        let (id, vas) = self.session.create(&vas_name, 0o600)?;
        let done = vas.capture(pidfd.as_fd(), true)?;
        let capture_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        criu::info(&format!(
            "captured {} pages of {vpid} in {capture_us} us",
            done.pages
        ));
        self.writer.add(&Task {
            vpid,
            pid,
            started: process::started(pid)?,
            comm: process::comm(pid)?,
            vas: id,
            vas_name,
            vmas: done.vmas,
            pages: done.pages,
            huge_pages: done.huge_pages,
            swap_pages: done.swap_pages,
            capture_us,
        })?;
        self.captured.push((pidfd, vas));
        Ok(())
    }

    /// A dump by plain CRIU, as runc runs it, is known to `vascriu ls` and `rm`
    /// too. It works without; so a failure is no failure.
    fn register(&self) {
        let dir = format!("/proc/self/fd/{}", self.criu.image_dir().as_raw_fd());
        if let (Some(link), Ok(images)) = (&self.link, std::fs::read_link(dir)) {
            let _ = std::os::unix::fs::symlink(images, link);
        }
    }

    /// The dump has failed elsewhere: nothing of ours stays.
    pub fn cancel(self) {
        if let Some(link) = &self.link {
            let _ = std::fs::remove_file(link);
        }
        // SAFETY: the path is NUL-terminated, the directory is CRIU's.
        unsafe { libc::unlinkat(self.criu.image_dir().as_raw_fd(), c"vas.json".as_ptr(), 0) };
    }

    /// All images are written; CRIU kills the tasks (or resumes them) next.
    pub fn commit(self) {
        self.register();
        let hidden = guard::hide_tree(self.criu.image_dir()).map_err(Error::Guard);
        let committed = hidden.and_then(|()| Ok(self.session.commit()?));
        if let Err(e) = committed {
            let text = report::chain(&e);
            criu::error(&text);
            report::Report {
                error: Some(text),
                ..Default::default()
            }
            .save();
            let criu = self.criu;
            self.cancel();
            criu.resume_tasks_and_exit();
        }
        if let Ok(mut committed) = COMMITTED.lock() {
            *committed = Some(Committed {
                pid: std::process::id(),
                link: self.link,
                captured: self.captured,
            });
        }
        // SAFETY: `at_exit` has the type that on_exit wants, and stays loaded
        // (nodelete) until the process is gone.
        unsafe { on_exit(at_exit, std::ptr::null_mut()) };
    }
}

unsafe extern "C" {
    /// glibc: as atexit, with the exit status.
    fn on_exit(f: extern "C" fn(c_int, *mut c_void), arg: *mut c_void) -> c_int;
}

extern "C" fn at_exit(status: c_int, _: *mut c_void) {
    let _ = std::panic::catch_unwind(|| {
        let Some(done) = COMMITTED.lock().ok().and_then(|mut c| c.take()) else {
            return;
        };
        let failed = status != 0 && done.pid == std::process::id();
        if !failed || done.captured.iter().any(|(task, _)| task.is_dead()) {
            return;
        }
        if let Some(link) = done.link {
            let _ = std::fs::remove_file(link);
        }
        for (_, vas) in done.captured {
            if let Err(e) = vas.delete(true) {
                criu::error(&report::chain(&e));
            }
        }
    });
}
