// SPDX-License-Identifier: GPL-2.0-only
//! State of the entropy device and its one kind of request.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::metrics::EntropyMetrics;
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::device::{
    ActivateArgs, ActivateError, COMMON_FEATURES, DeviceState, VirtioDevice, start,
};
use crate::virtio::queue::{End, RingError, Verdict, process};

const QUEUE_SIZES: [u16; 1] = [64];

/// The most bytes given for one request. A driver must cope with less than it asked for.
pub const MAX_BYTES: usize = 4096;

/// The device.
#[derive(Debug)]
pub struct Entropy {
    pub(super) events: [EventFd; 1],
    state: DeviceState,
    source: File,
    metrics: Arc<EntropyMetrics>,
}

impl Entropy {
    /// A device that gives what `/dev/urandom` gives, which is `getrandom`'s pool in a form
    /// that can be read straight into guest memory.
    ///
    /// # Errors
    /// The source or an event cannot be opened.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            events: [EventFd::new(EFD_NONBLOCK)?],
            state: DeviceState::Inactive,
            source: File::open("/dev/urandom")?,
            metrics: Arc::default(),
        })
    }

    /// Its counters.
    pub fn metrics(&self) -> Arc<EntropyMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Answers what is in the queue.
    pub(super) fn process_queue(&mut self) {
        if let Err(error) = self.try_process_queue() {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "entropy device stopped"
            );
            self.state.fail();
        }
    }

    fn try_process_queue(&mut self) -> Result<(), RingError> {
        let Some(active) = self.state.activated() else {
            return Ok(());
        };
        let mem = Arc::clone(&active.mem);
        let (source, metrics) = (&self.source, &self.metrics);
        let progress = process(&mut active.queues[0], &mem, |chain| {
            Verdict::Used(fill(chain, source, metrics))
        })?;
        if progress.notify {
            active.interrupt.queue_used();
        }
        if progress.end == End::Budget {
            // Cannot fail: the counter is far from its limit.
            let _ = self.events[0].write(1);
        }
        Ok(())
    }
}

/// Fills a request's buffers; returns how many bytes.
fn fill(chain: Result<Chain<'_>, ChainError>, source: &File, metrics: &EntropyMetrics) -> u32 {
    let buffers = match chain {
        Ok(chain) if chain.readable.is_empty() && !chain.writable.is_empty() => chain.writable,
        Ok(_) | Err(_) => {
            metrics.bad_chains.inc();
            return 0;
        }
    };
    match buffers.split_at(MAX_BYTES).0.read_from(source.as_fd()) {
        Ok(len) => {
            metrics.requests.inc();
            metrics.bytes.add(len as u64);
            u32::try_from(len).unwrap_or(0)
        }
        Err(error) => {
            tracing::debug!(%error, "no randomness from the host");
            metrics.host_errors.inc();
            0
        }
    }
}

impl VirtioDevice for Entropy {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn queue_events(&self) -> &[EventFd] {
        &self.events
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, args: ActivateArgs) -> Result<(), ActivateError> {
        start(&mut self.state, &self.events, args)
    }

    fn reset(&mut self) {
        self.state = DeviceState::Inactive;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::test_utils::{Driver, Piece, hostile_queue_tests};

    fn device() -> (Entropy, Driver) {
        let mut device = Entropy::new().unwrap();
        let driver = Driver::start(&mut device);
        (device, driver)
    }

    #[test]
    fn a_request_is_filled_with_randomness_and_interrupts_once() {
        let (mut device, mut driver) = device();
        let pieces = [Piece::write(256), Piece::write(128)];
        let first = driver.send(0, &pieces);
        let second = driver.send(0, &pieces);
        device.process_queue();
        let used = driver.used(0);
        assert_eq!(used, [(first.head, 384), (second.head, 384)]);
        assert_eq!(driver.interrupts(), 1);
        assert_ne!(driver.read(&first, 0), driver.read(&second, 0));
        assert_eq!(device.metrics().bytes.get(), 768);
    }

    #[test]
    fn a_huge_request_gets_a_bounded_answer() {
        let (mut device, mut driver) = device();
        let sent = driver.send(0, &[Piece::write(64 << 10)]);
        device.process_queue();
        assert_eq!(driver.used(0), [(sent.head, 4096)]);
        assert!(driver.read(&sent, 0)[4096..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn requests_without_room_for_an_answer_are_returned_empty() {
        for pieces in [
            vec![Piece::read(b"data")],
            vec![Piece::write(0)],
            vec![Piece::read(b"data"), Piece::write(16)],
        ] {
            let (mut device, mut driver) = device();
            let sent = driver.send(0, &pieces);
            device.process_queue();
            assert_eq!(driver.used(0), [(sent.head, 0)]);
            assert_eq!(device.metrics().bad_chains.get(), 1);
        }
    }

    hostile_queue_tests!(device, |device: &mut Entropy, _queue| device
        .process_queue());
}
