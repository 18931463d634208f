// SPDX-License-Identifier: GPL-2.0-only
//! The host's side of the virtio-vas device: does what requests ask for.
//!
//! `docs/VIRTIO-VAS.md` is the specification. Requests come as bytes and go as bytes, so
//! that nothing here knows of virtio or KVM; guest memory is behind [`GuestMapping`].
//!
//! Two threads may have a request each. Locks, in the order in which they are taken: a
//! handle's, for all of a request; then that of [`View`], for as long as blocks are remapped,
//! but not while pages are copied. So a RELEASE waits for no copy.

mod answer;
mod copying;
mod error;
mod handles;
mod memory;
mod metrics;
mod plan;
mod remapping;
mod request;
mod table;
#[cfg(test)]
mod test_utils;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mvas_abi::virtio_vas::{VIRTIO_VAS_MAX_BYTES, VIRTIO_VAS_MAX_META, VirtioVasSnapshot};
use zerocopy::IntoBytes;

use crate::store::{Head, Label, SnapshotName, StoreError, StoreRun};
use handles::{Handles, MAX_META, Open, OpenDraft};
use request::{Handle, Request};
use table::BlockTable;

pub use answer::Answer;
pub use error::{ServerError, Status};
pub use memory::{BLOCK, GuestBlock, GuestMapping, GuestPage, PAGE, RamRange, Sharing};
pub use metrics::ServerMetrics;

/// Which snapshots of the store a guest may see, open, label and delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// Those that a VM of the same name made.
    Own,
    /// All.
    All,
}

/// What a server is made of.
pub struct ServerConfig {
    /// The VM's part of the store.
    pub run: StoreRun,
    /// Guest memory; at first it shows the run's RAM file as `ram` says.
    pub memory: Arc<dyn GuestMapping>,
    /// Where RAM is.
    pub ram: Vec<RamRange>,
    /// What the guest may see.
    pub grant: Grant,
    /// The most mappings that guest memory should take of the monitor's address space.
    pub max_mappings: u64,
    /// Whether what MAP shows is mapped before the guest touches it.
    pub populate: bool,
}

/// Serves one VM's requests.
pub struct Server {
    run: StoreRun,
    memory: Arc<dyn GuestMapping>,
    grant: Grant,
    max_mappings: u64,
    populate: bool,
    handles: Mutex<Handles>,
    view: Mutex<View>,
    metrics: Arc<ServerMetrics>,
}

/// What the guest sees.
struct View {
    table: BlockTable,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("run", &self.run.id())
            .field("grant", &self.grant)
            .field("metrics", &self.metrics)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// A server for a VM that just starts.
    pub fn new(config: ServerConfig) -> Self {
        Self {
            run: config.run,
            memory: config.memory,
            grant: config.grant,
            max_mappings: config.max_mappings,
            populate: config.populate,
            handles: Mutex::default(),
            view: Mutex::new(View {
                table: BlockTable::new(config.ram),
            }),
            metrics: Arc::default(),
        }
    }

    /// Its counters.
    pub fn metrics(&self) -> &Arc<ServerMetrics> {
        &self.metrics
    }

    /// Does what a request asks for; the answer's payload has at most `room` bytes. Once
    /// `stopping` is set it ends soon, with an error.
    pub fn serve(&self, request: &[u8], room: usize, stopping: &AtomicBool) -> Answer {
        let mut answer = Answer::default();
        let mut call = Call {
            room,
            stopping,
            answer: &mut answer,
        };
        let done = request::decode(request).and_then(|request| self.execute(request, &mut call));
        answer.error = done.err();
        answer
    }

    /// Closes all handles. Guest memory stays as it is.
    pub fn reset(&self) {
        // Dropped without the lock: giving up drafts takes time.
        let all = lock(&self.handles).take_all();
        drop(all);
    }

    fn execute(&self, request: Request<'_>, call: &mut Call<'_>) -> Result<(), ServerError> {
        match request {
            Request::Create(name) => self.create(name, call),
            Request::Publish(handle, blocks) => {
                self.with_draft(handle, |draft| self.publish(draft, &blocks, call))
            }
            Request::Copy(handle, pages) => {
                self.with_draft(handle, |draft| self.copy(&mut draft.draft, &pages, call))
            }
            Request::Meta(handle, offset, bytes) => {
                let others = lock(&self.handles).meta_bytes();
                self.with_draft(handle, |draft| draft.append_meta(offset, bytes, others))
            }
            Request::Commit(handle) => self.commit(handle),
            Request::Open(name) => self.open(&name, call),
            Request::Fetch(handle, offset) => self.fetch(handle, offset, call),
            Request::Map(handle, entries) => self.with_open(handle, |open| match open {
                Open::Complete(snapshot) => self.map(snapshot, &entries, call),
                Open::Draft(_) => Err(ServerError::State("MAP of a draft")),
            }),
            Request::Release(ranges) => self.release(&ranges, call),
            Request::Close(handle) => self.close(handle),
            Request::List(skip) => self.list(skip, call),
            Request::Delete(name, created_ns) => self.delete(&name, created_ns),
            Request::LabelDraft(handle, label) => self.with_draft(handle, |draft| {
                draft.draft.label = label;
                Ok(())
            }),
            Request::Relabel { name, from, to } => self.relabel(&name, &from, &to),
        }
    }

    fn create(&self, name: SnapshotName, call: &mut Call<'_>) -> Result<(), ServerError> {
        lock(&self.handles).check_room(0)?;
        let draft = OpenDraft::new(self.run.draft(name)?);
        let handle = lock(&self.handles).insert(Open::Draft(draft))?;
        call.answer.value = handle.0;
        Ok(())
    }

    fn commit(&self, handle: Handle) -> Result<(), ServerError> {
        self.with_open(handle, |open| {
            let Open::Draft(draft) = open else {
                return Err(ServerError::State("COMMIT of a complete snapshot"));
            };
            if self.memory.is_lost() {
                return Err(ServerError::Lost);
            }
            let snapshot = self.run.commit(&mut draft.draft)?;
            self.metrics.commits.inc();
            *open = Open::Complete(snapshot);
            Ok(())
        })
    }

    fn open(&self, name: &SnapshotName, call: &mut Call<'_>) -> Result<(), ServerError> {
        lock(&self.handles).check_room(0)?;
        // What it is comes first: none but those who may have it make the host read all of it.
        let mut granted = None;
        let opened = self
            .run
            .open_if(name, |head| *granted.insert(self.is_granted(head)));
        match (&opened, granted) {
            (_, Some(false)) => return Err(ServerError::NotGranted),
            // It does not even tell whose it is.
            (Err(StoreError::Broken { .. }), None) if self.grant == Grant::Own => {
                return Err(ServerError::NotGranted);
            }
            _ => {}
        }
        let snapshot = opened?;
        let described = describe(&snapshot, snapshot.label());
        if call.room < size_of_val(&described) {
            return Err(ServerError::BadRequest("there is no room for the answer"));
        }
        let handle = {
            let mut handles = lock(&self.handles);
            handles.check_room(snapshot.meta.len())?;
            handles.insert(Open::Complete(snapshot))?
        };
        call.answer.value = handle.0;
        call.answer.payload = described.as_bytes().to_vec();
        Ok(())
    }

    fn fetch(&self, handle: Handle, offset: u64, call: &mut Call<'_>) -> Result<(), ServerError> {
        self.with_open(handle, |open| {
            let Open::Complete(snapshot) = open else {
                return Err(ServerError::State("FETCH from a draft"));
            };
            let from = usize::try_from(offset).ok();
            let rest = from.and_then(|from| snapshot.meta.get(from..));
            let rest = rest.ok_or(ServerError::BadRequest("it begins after the end"))?;
            let most = call.room.min(VIRTIO_VAS_MAX_BYTES as usize);
            call.answer.payload = rest[..rest.len().min(most)].to_vec();
            call.answer.done = call.answer.payload.len() as u64;
            Ok(())
        })
    }

    fn close(&self, handle: Handle) -> Result<(), ServerError> {
        let closed = lock(&self.handles).remove(handle);
        // Dropped without the lock, and after a request of the other queue that uses it.
        closed.map(drop).ok_or(ServerError::BadHandle(handle))
    }

    fn list(&self, skip: u64, call: &mut Call<'_>) -> Result<(), ServerError> {
        let most = call.room.min(VIRTIO_VAS_MAX_BYTES as usize) / size_of::<VirtioVasSnapshot>();
        let shown = skip..skip.saturating_add(most as u64);
        let mut granted = 0;
        let listed = self.run.store().labelled(|head| {
            let is_shown = self.is_granted(head) && shown.contains(&granted);
            granted += u64::from(self.is_granted(head));
            is_shown
        })?;
        for (head, label) in &listed {
            let described = describe(head, label);
            call.answer.payload.extend(described.as_bytes());
        }
        call.answer.done = listed.len() as u64;
        call.answer.value = granted;
        Ok(())
    }

    fn relabel(&self, name: &SnapshotName, from: &Label, to: &Label) -> Result<(), ServerError> {
        let store = self.run.store();
        Ok(store.set_label(name, from, to, |head| self.is_granted(head))?)
    }

    fn delete(&self, name: &SnapshotName, created_ns: u64) -> Result<(), ServerError> {
        let store = self.run.store();
        match self.granted(name)? {
            Some(head) if created_ns == 0 || created_ns == head.created_ns => {
                store.remove_made_at(name, head.created_ns)?;
            }
            // It is broken, or there is none.
            None if created_ns == 0 && self.grant == Grant::All => drop(store.remove(name)?),
            _ => return Err(StoreError::NotFound(name.clone()).into()),
        }
        Ok(())
    }

    /// What the snapshot is, if it tells and is granted.
    fn granted(&self, name: &SnapshotName) -> Result<Option<Arc<Head>>, ServerError> {
        let mut heads = self.run.store().heads()?.into_iter();
        Ok(heads.find(|head| head.name == *name && self.is_granted(head)))
    }

    fn is_granted(&self, head: &Head) -> bool {
        self.grant == Grant::All || head.vm == self.run.vm()
    }

    fn with_open<T>(
        &self,
        handle: Handle,
        f: impl FnOnce(&mut Open) -> Result<T, ServerError>,
    ) -> Result<T, ServerError> {
        let open = lock(&self.handles).get(handle);
        let open = open.ok_or(ServerError::BadHandle(handle))?;
        let mut slot = lock(&open.state);
        let result = f(&mut slot);
        open.note_meta(&slot);
        result
    }

    fn with_draft<T>(
        &self,
        handle: Handle,
        f: impl FnOnce(&mut OpenDraft) -> Result<T, ServerError>,
    ) -> Result<T, ServerError> {
        self.with_open(handle, |open| match open {
            Open::Draft(draft) => f(draft),
            Open::Complete(_) => Err(ServerError::State("a complete snapshot does not change")),
        })
    }

    fn view(&self) -> MutexGuard<'_, View> {
        lock(&self.view)
    }
}

/// A request at work.
struct Call<'a> {
    room: usize,
    stopping: &'a AtomicBool,
    answer: &'a mut Answer,
}

impl Call<'_> {
    fn check_stopping(&self) -> Result<(), ServerError> {
        match self.stopping.load(Ordering::SeqCst) {
            true => Err(ServerError::Stopped),
            false => Ok(()),
        }
    }
}

fn describe(head: &Head, label: &Label) -> VirtioVasSnapshot {
    let blocks = head.blocks.len();
    VirtioVasSnapshot {
        name: padded(head.name.as_str()),
        created_ns: head.created_ns.into(),
        meta_bytes: head.meta_bytes.into(),
        blocks: blocks.into(),
        packed_pages: head.packed_pages.into(),
        bytes: ((blocks + head.packed.len()) * BLOCK).into(),
        reserved: 0.into(),
        label: padded(label.as_str()),
    }
}

/// Text with zeroes after it. Names and labels are always shorter than their fields.
fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    field
}

/// Locks; what a panic left is used as it is, for each field is valid by itself.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const _: () = assert!(MAX_META == (VIRTIO_VAS_MAX_META as usize) << 20);
