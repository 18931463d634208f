// SPDX-License-Identifier: GPL-2.0-only
//! The entropy device in the event loop.

use event_manager::{EventOps, Events, MutEventSubscriber};

use super::device::Entropy;
use crate::virtio::device::{drain_event, watch};

impl MutEventSubscriber for Entropy {
    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, &self.events);
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        if drain_event(&self.events, &events).is_some() {
            self.process_queue();
        }
    }
}
