// SPDX-License-Identifier: GPL-2.0-only
//! The dump: capture each task into a VAS of its own, and at the end CRIU's images into
//! one, too; commit all of them as one snapshot.
//!
//! CRIU ignores what a plugin's exit says and kills the tasks right after it. So what can
//! fail there ends the dump as CRIU ends a failed one. A post-dump script can fail a dump
//! behind our back (its result is not told to plugins): then, at CRIU's exit, the status is
//! not 0 and all tasks are alive, and the snapshot is deleted again.

use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Mutex;
use std::time::Instant;

use vascriu::criu::order::{self, Order};
use vascriu::criu::report::Report;
use vascriu::device::{self, VasFile};
use vascriu::process::{self, PidFd};
use vascriu::snapshot::images;
use vascriu::snapshot::label::Label;
use vascriu::snapshot::manifest::{self, Manifest, Task};
use vascriu::snapshot::reference::{self, Reference};
use vascriu::snapshot::registry::{self, Registry};
use vascriu::snapshot::shared;
use vascriu::text;

use crate::criu::{self, Criu};
use crate::{imports, inventory, lent, seek, session};

/// Why a dump failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody has told us what to dump.
    #[error(transparent)]
    Order(#[from] order::Error),
    /// `/dev/vas` failed.
    #[error(transparent)]
    Device(#[from] device::Error),
    /// The snapshot's name is taken.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// `vas.json` cannot be made.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    /// The images cannot be captured.
    #[error(transparent)]
    Images(#[from] images::Error),
    /// Shared memory cannot be captured.
    #[error(transparent)]
    Shared(#[from] shared::Error),
    /// The user's directory cannot refer to the snapshot.
    #[error(transparent)]
    Reference(#[from] reference::Error),
    /// A task is not as it should be.
    #[error(transparent)]
    Process(#[from] process::Error),
    /// CRIU has no memory.
    #[error("CRIU cannot record that the images need this plugin")]
    Inventory,
    /// Images that a script copies would be restored without us.
    #[error(transparent)]
    Hide(#[from] imports::Error),
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
    order: order::Dump,
    /// When CRIU ends, its session is closed (see [`lent`]): that deletes what is not
    /// committed.
    registry: Registry,
    label: Label,
    manifest: Manifest,
    /// The VAS for CRIU's images.
    images: VasFile,
    /// Those for the tasks' memory.
    memory: Vec<VasFile>,
    /// Where shared memory is; none if CRIU has to write it.
    shared_dev: Option<u64>,
    /// What they share.
    shared: Vec<shared::Source>,
}

/// What to undo where CRIU, the process `pid`, fails after all.
#[derive(Debug)]
struct Committed {
    pid: u32,
    order: order::Dump,
    manifest: Manifest,
    images: VasFile,
    memory: Vec<VasFile>,
}

static COMMITTED: Mutex<Option<Committed>> = Mutex::new(None);

/// Has CRIU leave the pages of shared memory out of its images; says on which device that is.
fn hide_shared() -> Option<u64> {
    let hide = || -> Result<u64, Error> {
        let dev = shared::device()?;
        seek::install(dev)?;
        Ok(dev)
    };
    hide()
        .inspect_err(|e| criu::info(&format!("CRIU writes shared memory: {}", text::chain(e))))
        .ok()
}

/// The directory that shall refer to the snapshot.
fn reference_dir(order: &order::Dump) -> Option<BorrowedFd<'static>> {
    // SAFETY: who ran CRIU has it inherit this descriptor, which nobody here closes.
    order
        .reference_dir
        .map(|fd| unsafe { BorrowedFd::borrow_raw(fd) })
}

impl Dump {
    /// Begins: all that can be refused is refused here, before any task stops.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn begin(criu: Criu) -> Result<Self, Error> {
        let Order::Dump(order) = Order::from_env()? else {
            return Err(order::Error::Missing.into());
        };
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
        inventory::hide()?;
        if !criu.require_me() {
            return Err(Error::Inventory);
        }
        let mut label = Label::new(order.name.clone(), order.origin.clone());
        label.expires = order.expires;
        label.left_running = order.left_running;
        let registry = Registry::of(session::open()?);
        let images = registry.claim(order.id, &label, order.replace)?;
        if let Err(e) = lent::install(registry.session()) {
            criu::info(&format!("tasks are not guarded: {}", text::chain(&e)));
        }
        Ok(Self {
            criu,
            manifest: Manifest::new(order.id, order.criu.clone(), order.left_running),
            order,
            registry,
            label,
            images,
            memory: Vec::new(),
            shared_dev: hide_shared(),
            shared: Vec::new(),
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
        let (_, vas) = self
            .registry
            .session()
            .create(&self.order.id.task_vas(vpid), 0o600)?;
        let done = vas.capture(pidfd.as_fd(), true)?;
        let capture_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        criu::info(&format!(
            "captured {} pages of {vpid} in {capture_us} us",
            done.pages
        ));
        if self.memory.is_empty() {
            self.manifest.parent = process::restored_from(pid);
        }
        self.manifest.add(Task {
            vpid,
            pid,
            started: process::started(pid)?,
            comm: process::comm(pid)?,
            vmas: done.vmas,
            pages: done.pages,
            huge_pages: done.huge_pages,
            swap_pages: done.swap_pages,
            capture_us,
        })?;
        self.memory.push(vas);
        if let Some(dev) = self.shared_dev {
            let mut found = shared::of(pid, vpid, dev)?;
            found.retain(|source| seek::hide(source.inode));
            self.shared.extend(found);
        }
        Ok(())
    }

    /// Copies what the tasks share, which stand still.
    fn capture_shared(&mut self) -> Result<(), Error> {
        if self.shared.is_empty() {
            return Ok(());
        }
        let name = self.order.id.shared_vas();
        let (_, vas) = self.registry.session().create(&name, 0o600)?;
        self.manifest.shared = shared::capture(&self.shared, &vas)?;
        self.memory.push(vas);
        Ok(())
    }

    /// All images are written; CRIU kills the tasks (or resumes them) next.
    pub fn commit(mut self) {
        match self.try_commit() {
            Ok(image_bytes) => Report {
                image_bytes,
                ..Report::default()
            }
            .save(self.order.report),
            Err(e) => {
                crate::fail(&e);
                self.undo();
                self.criu.resume_tasks_and_exit();
            }
        }
        if let Ok(mut committed) = COMMITTED.lock() {
            *committed = Some(Committed {
                pid: std::process::id(),
                order: self.order,
                manifest: self.manifest,
                images: self.images,
                memory: self.memory,
            });
        }
        // SAFETY: `at_exit` has the type that on_exit wants, and stays loaded
        // (nodelete) until the process is gone.
        unsafe { on_exit(at_exit, std::ptr::null_mut()) };
    }

    fn try_commit(&mut self) -> Result<u64, Error> {
        self.capture_shared()?;
        let manifest = self.manifest.to_bytes()?;
        let image_bytes = images::capture(self.criu.image_dir(), &manifest, &self.images)?;
        self.label.tasks = u32::try_from(self.manifest.tasks.len()).expect("PIDs are fewer");
        self.label.pages = self.manifest.pages();
        self.label.parent = self.manifest.parent;
        if let Some(root) = self.manifest.tasks.first() {
            self.label.comm.clone_from(&root.comm);
        }
        self.images.set_label(&self.label.text())?;
        let dir = reference_dir(&self.order);
        if let Some(dir) = dir {
            let digest = manifest::digest(&manifest);
            Reference::new(self.order.id, &self.label, digest).prepare(dir)?;
        }
        self.registry.session().commit()?;
        if let Some(dir) = dir {
            Reference::place(dir, self.order.id)?;
        }
        Ok(image_bytes)
    }

    /// The tasks are stopped still, all of them: nothing of ours stays.
    fn undo(&self) {
        delete(&self.images, &self.memory);
        if let Some(dir) = reference_dir(&self.order) {
            Reference::take_back(dir, self.order.id);
        }
    }
}

/// Deletes a snapshot, committed or not.
fn delete(images: &VasFile, memory: &[VasFile]) {
    for vas in std::iter::once(images).chain(memory) {
        if let Err(e) = vas.delete(true) {
            criu::error(&text::chain(&e));
        }
    }
}

unsafe extern "C" {
    /// glibc: as atexit, with the exit status.
    fn on_exit(f: extern "C" fn(c_int, *mut c_void), arg: *mut c_void) -> c_int;
}

extern "C" fn at_exit(status: c_int, _: *mut c_void) {
    let _ = std::panic::catch_unwind(|| {
        let done = COMMITTED.lock().ok().and_then(|mut c| c.take());
        let Some(done) = done.filter(|d| d.pid == std::process::id()) else {
            return;
        };
        let dir = reference_dir(&done.order);
        if status == 0 || !done.manifest.all_go_on() {
            if let Some(dir) = dir {
                Reference::keep(dir, done.order.id);
            }
            return;
        }
        delete(&done.images, &done.memory);
        if let Some(dir) = dir {
            Reference::take_back(dir, done.order.id);
        }
    });
}
