// SPDX-License-Identifier: GPL-2.0-only
//! The vsock device in the event loop: its queues, and all of its Unix sockets as one event.

use std::os::fd::AsRawFd;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;

use super::device::{QUEUE_COUNT, TX, Vsock};
use crate::virtio::device::{drain_event, watch};

/// Not the index of a queue.
const SOCKETS: u32 = QUEUE_COUNT;

impl MutEventSubscriber for Vsock {
    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, &self.events);
        let sockets = Events::with_data_raw(self.muxer.as_raw_fd(), SOCKETS, EventSet::IN);
        if let Err(error) = ops.add(sockets) {
            tracing::error!(%error, "the event loop refuses the vsock device's sockets");
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        if events.data() == SOCKETS {
            self.muxer.poll();
            self.process_queues(false);
        } else if let Some(queue) = drain_event(&self.events, &events) {
            self.process_queues(queue == TX);
        }
    }
}
