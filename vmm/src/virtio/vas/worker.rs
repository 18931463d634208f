//! The thread of a queue.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use mvas_abi::virtio_vas::{
    VIRTIO_VAS_MAX_ENTRIES, VirtioVasMap, VirtioVasRequest, VirtioVasResponse,
};
use mvas_host::server::{Server, ServerError};
use virtio_queue::Queue;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use zerocopy::IntoBytes;

use super::metrics::VasMetrics;
use crate::memory::GuestMemory;
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::interrupt::VirtioInterrupt;
use crate::virtio::queue::{End, RingError, Verdict, process};

/// The longest request there is, bytes.
const MAX_REQUEST: usize =
    size_of::<VirtioVasRequest>() + VIRTIO_VAS_MAX_ENTRIES as usize * size_of::<VirtioVasMap>();
const RESPONSE: usize = size_of::<VirtioVasResponse>();
/// Failed requests that are reported to the host's user; a guest could make any number.
const REPORTS: u64 = 20;

/// What the threads of a device share while the driver has it running.
#[derive(Debug)]
pub(super) struct Shared {
    pub mem: Arc<GuestMemory>,
    pub interrupt: Arc<VirtioInterrupt>,
    pub server: Arc<Server>,
    pub metrics: Arc<VasMetrics>,
    /// Set by a reset, and when a ring is found broken. Long requests look at it.
    pub stopping: AtomicBool,
}

/// A queue's thread; dropping it ends the thread, within the time of one block's copy.
#[derive(Debug)]
pub(super) struct Worker {
    shared: Arc<Shared>,
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread of queue `index`, which `kick` is written for.
    pub fn start(
        shared: &Arc<Shared>,
        index: usize,
        queue: Queue,
        kick: &EventFd,
    ) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let events = Epoll::new()?;
        for event in [kick, &stop] {
            let readable = EpollEvent::new(EventSet::IN, 0);
            events.ctl(ControlOperation::Add, event.as_raw_fd(), readable)?;
        }
        let mut work = QueueWork {
            shared: Arc::clone(shared),
            index,
            queue,
            kick: kick.try_clone()?,
            events,
        };
        let thread = thread::Builder::new()
            .name(format!("vas{index}"))
            .spawn(move || work.run())?;
        Ok(Self {
            shared: Arc::clone(shared),
            stop,
            thread: Some(thread),
        })
    }

    /// Whether the thread ended by itself: the driver broke the ring.
    #[cfg(test)]
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Cannot fail: nobody else writes to it.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // A panic was reported by `QueueWork::run`.
            let _ = thread.join();
        }
    }
}

struct QueueWork {
    shared: Arc<Shared>,
    index: usize,
    queue: Queue,
    kick: EventFd,
    /// The kick, and the end.
    events: Epoll,
}

fn unless_interrupted(error: io::Error) -> io::Result<usize> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(0),
        _ => Err(error),
    }
}

impl QueueWork {
    fn run(&mut self) {
        let _guard = FailOnPanic(Arc::clone(&self.shared));
        while self.wait() {
            if let Err(error) = self.process_queue() {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "virtio-vas device stopped");
                self.shared.stopping.store(true, Ordering::SeqCst);
                self.shared.interrupt.device_error();
            }
            self.shared.metrics.rounds[self.index].inc();
        }
    }

    /// Waits for a kick; false if the thread should end.
    fn wait(&self) -> bool {
        loop {
            let waited = self.events.wait(-1, &mut [EpollEvent::default()]);
            if let Err(error) = waited.or_else(unless_interrupted) {
                tracing::error!(%error, "cannot wait for the virtio-vas queue");
                return false;
            }
            if self.shared.stopping.load(Ordering::SeqCst) {
                return false;
            }
            // It is non-blocking: an event that somebody else emptied is no event.
            if self.kick.read().is_ok() {
                return true;
            }
        }
    }

    /// Works until the queue is empty. Each request is completed, and the driver told, before
    /// the next is begun.
    fn process_queue(&mut self) -> Result<(), RingError> {
        let Self { shared, queue, .. } = self;
        loop {
            let mut one_done = false;
            let progress = process(queue, &shared.mem, |chain| {
                if one_done {
                    return Verdict::Stop;
                }
                one_done = true;
                shared.execute(chain).map_or(Verdict::Stop, Verdict::Used)
            })?;
            if progress.notify {
                shared.interrupt.queue_used();
            }
            if progress.end == End::Empty || shared.stopping.load(Ordering::SeqCst) {
                return Ok(());
            }
        }
    }
}

impl Shared {
    /// Does what a chain asks for; returns how many bytes were written to it. `None`: the
    /// device was stopped meanwhile.
    fn execute(&self, chain: Result<Chain<'_>, ChainError>) -> Option<u32> {
        let chain = match chain {
            Ok(chain) if chain.writable.len() >= RESPONSE => chain,
            Ok(_) | Err(_) => {
                self.metrics.bad_chains.inc();
                return Some(0);
            }
        };
        // One byte more than there can be is as wrong as all of them.
        let mut request = vec![0; chain.readable.len().min(MAX_REQUEST + 1)];
        chain.readable.copy_to(&mut request);
        let (head, rest) = chain.writable.split_at(RESPONSE);
        let answer = self.server.serve(&request, rest.len(), &self.stopping);
        if self.stopping.load(Ordering::SeqCst) {
            return None;
        }
        self.metrics.requests.inc();
        if let Some(error) = &answer.error {
            self.report(error, answer.is_hosts_failure());
        }
        head.copy_from(answer.response().as_bytes());
        let len = RESPONSE + rest.copy_from(&answer.payload);
        Some(u32::try_from(len).unwrap_or(0))
    }

    fn report(&self, error: &ServerError, is_hosts_failure: bool) {
        self.metrics.errors.inc();
        let error = error as &dyn std::error::Error;
        if is_hosts_failure {
            self.metrics.host_failures.inc();
            if self.metrics.host_failures.get() <= REPORTS {
                tracing::warn!(error, "a snapshot request of the guest failed");
                return;
            }
        }
        tracing::debug!(error, "a snapshot request of the guest failed");
    }
}

/// Tells the driver that the device is gone if its thread unwinds.
struct FailOnPanic(Arc<Shared>);

impl Drop for FailOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.stopping.store(true, Ordering::SeqCst);
            self.0.interrupt.device_error();
        }
    }
}
