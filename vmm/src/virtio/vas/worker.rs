// SPDX-License-Identifier: GPL-2.0-only
//! The threads of the queues.

use std::cell::Cell;
use std::io;
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
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
use crate::sandbox::{Role, Sandbox};
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

/// What a thread is asked to do. It answers each, when it is done.
enum Order {
    /// Work on a queue until it is told to stop, or the queue is broken.
    Serve(Arc<Shared>, Queue),
    /// Forget what the driver has open.
    Reset(Arc<Server>),
}

/// The thread of a queue, as long as there is the device. So it is started before the guest, and
/// what the store needs is done by it and not by a vCPU's thread.
#[derive(Debug)]
pub(super) struct Worker {
    /// None: it is to end.
    orders: Option<Sender<Order>>,
    answers: Receiver<()>,
    stop: EventFd,
    /// While it serves the queue, or has ended that by itself.
    serves: Option<Arc<Shared>>,
    /// Its answer to that was taken already, by [`Self::is_finished`].
    answered: Cell<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread of queue `index`, which `kick` is written for, and has it enter its
    /// sandbox.
    pub fn start(index: usize, kick: &EventFd, sandbox: &Sandbox) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let events = Epoll::new()?;
        for event in [kick, &stop] {
            let readable = EpollEvent::new(EventSet::IN, 0);
            events.ctl(ControlOperation::Add, event.as_raw_fd(), readable)?;
        }
        let (orders, taken) = channel();
        let (answer, answers) = channel();
        let thread = QueueThread {
            index,
            kick: kick.try_clone()?,
            events,
        };
        let thread = sandbox.spawn(Role::Snapshots, format!("vas{index}"), move || {
            thread.obey(&taken, &answer);
        })?;
        Ok(Self {
            orders: Some(orders),
            answers,
            stop,
            serves: None,
            answered: Cell::new(false),
            thread: Some(thread),
        })
    }

    /// Has it work on a queue.
    pub fn serve(&mut self, shared: &Arc<Shared>, queue: Queue) -> io::Result<()> {
        self.stop();
        self.order(Order::Serve(Arc::clone(shared), queue))?;
        self.serves = Some(Arc::clone(shared));
        Ok(())
    }

    /// Waits until it does not work on its queue any more: no longer than for one block's copy.
    pub fn stop(&mut self) {
        let Some(shared) = self.serves.take() else {
            return;
        };
        shared.stopping.store(true, Ordering::SeqCst);
        // Cannot fail: nobody else writes to it.
        let _ = self.stop.write(1);
        if !self.answered.take() {
            // An error means that it is gone.
            let _ = self.answers.recv();
        }
        // It may have ended by itself, without having taken the event.
        let _ = self.stop.read();
    }

    /// Has it close what the driver has open, and waits for that.
    pub fn reset(&mut self, server: &Arc<Server>) {
        self.stop();
        if self.order(Order::Reset(Arc::clone(server))).is_ok() {
            let _ = self.answers.recv();
        }
    }

    /// Whether it does not work on its queue, or not any more: the driver broke the ring.
    #[cfg(test)]
    pub fn is_finished(&self) -> bool {
        let answered = || self.answered.get() || self.answers.try_recv().is_ok();
        self.answered.set(self.serves.is_some() && answered());
        self.serves.is_none() || self.answered.get()
    }

    fn order(&self, order: Order) -> io::Result<()> {
        let sent = self.orders.as_ref().map(|orders| orders.send(order));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(io::Error::other("the thread of a virtio-vas queue is gone")),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // Panics were reported by `QueueWork::run`.
            let _ = thread.join();
        }
    }
}

struct QueueThread {
    index: usize,
    kick: EventFd,
    /// The kick, and the end.
    events: Epoll,
}

impl QueueThread {
    fn obey(&self, orders: &Receiver<Order>, answer: &Sender<()>) {
        for order in orders {
            // A panic costs the driver its device, not the device its thread.
            let _ = catch_unwind(AssertUnwindSafe(|| match order {
                Order::Serve(shared, queue) => QueueWork {
                    thread: self,
                    shared,
                    queue,
                }
                .run(),
                Order::Reset(server) => server.reset(),
            }));
            if answer.send(()).is_err() {
                return;
            }
        }
    }
}

struct QueueWork<'a> {
    thread: &'a QueueThread,
    shared: Arc<Shared>,
    queue: Queue,
}

fn unless_interrupted(error: io::Error) -> io::Result<usize> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(0),
        _ => Err(error),
    }
}

impl QueueWork<'_> {
    fn run(mut self) {
        let _guard = FailOnPanic(Arc::clone(&self.shared));
        while self.wait() {
            if let Err(error) = self.process_queue() {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "virtio-vas device stopped");
                self.shared.stopping.store(true, Ordering::SeqCst);
                self.shared.interrupt.device_error();
            }
            self.shared.metrics.rounds[self.thread.index].inc();
        }
    }

    /// Waits for a kick; false if the thread should end.
    fn wait(&self) -> bool {
        loop {
            let waited = self.thread.events.wait(-1, &mut [EpollEvent::default()]);
            if let Err(error) = waited.or_else(unless_interrupted) {
                tracing::error!(%error, "cannot wait for the virtio-vas queue");
                return false;
            }
            if self.shared.stopping.load(Ordering::SeqCst) {
                return false;
            }
            // It is non-blocking: an event that somebody else emptied is no event.
            if self.thread.kick.read().is_ok() {
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
