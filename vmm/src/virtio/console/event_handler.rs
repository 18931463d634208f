// SPDX-License-Identifier: GPL-2.0-only
//! The console in the event loop: its queues, the host's files, and the terminal's size.

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;

use super::device::{Console, QUEUE_COUNT, RX};
use crate::virtio::device::{drain_event, watch};

// Not indices of queues.
const INPUT: u32 = QUEUE_COUNT;
const OUTPUT: u32 = QUEUE_COUNT + 1;
const RESIZED: u32 = QUEUE_COUNT + 2;

impl MutEventSubscriber for Console {
    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, &self.events);
        if let Some(input) = &self.input {
            let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
            // A regular file cannot be watched, and need not be: it always has bytes or its
            // end, which is where `readable` begins.
            let _ = ops.add(Events::with_data(input, INPUT, events));
        }
        let events = EventSet::OUT | EventSet::EDGE_TRIGGERED;
        // A regular file cannot be watched, and need not be: it takes everything.
        let _ = ops.add(Events::with_data(&self.output, OUTPUT, events));
        if let Some(resized) = &self.resized
            && let Err(error) = ops.add(Events::with_data(resized, RESIZED, EventSet::IN))
        {
            tracing::error!(?error, "the console does not follow the terminal's size");
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        match events.data() {
            INPUT => self.on_input(),
            OUTPUT => self.process_tx(),
            RESIZED => {
                if let Some(resized) = &self.resized {
                    // It is non-blocking: an error means that somebody else emptied it.
                    let _ = resized.read();
                }
                self.update_size();
            }
            _ => match drain_event(&self.events, &events) {
                Some(RX) => self.process_rx(),
                Some(_) => self.process_tx(),
                None => {}
            },
        }
    }
}
