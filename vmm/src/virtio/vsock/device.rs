// SPDX-License-Identifier: GPL-2.0-only
//! State of the vsock device, and its queues.

use std::path::Path;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::listener::ListenError;
use super::metrics::VsockMetrics;
use super::muxer::Muxer;
use super::packet::{HEADER_LEN, Header};
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::device::{
    ActivateArgs, ActivateError, COMMON_FEATURES, DeviceState, VirtioDevice, read_config_from,
    start,
};
use crate::virtio::queue::{End, Progress, RingError, Verdict, process};

/// How many queues there are.
pub(super) const QUEUE_COUNT: u32 = 3;
const QUEUE_SIZES: [u16; QUEUE_COUNT as usize] = [256; QUEUE_COUNT as usize];
/// Packets for the guest.
pub(super) const RX: usize = 0;
/// Packets of the guest.
pub(super) const TX: usize = 1;
// The third is for events; a guest gets one when it moves to another host, which none here
// does.

/// The device.
#[derive(Debug)]
pub struct Vsock {
    pub(super) events: [EventFd; QUEUE_COUNT as usize],
    pub(super) muxer: Muxer,
    state: DeviceState,
    guest_cid: u64,
    /// Packets of the guest wait until it takes resets.
    tx_stalled: bool,
    metrics: Arc<VsockMetrics>,
}

impl Vsock {
    /// A device for the guest with address `guest_cid`, reached at the Unix socket `path`.
    ///
    /// # Errors
    /// The socket cannot be made, or is another VM's.
    pub fn new(path: &Path, guest_cid: u64) -> Result<Self, ListenError> {
        let event = || EventFd::new(EFD_NONBLOCK).map_err(ListenError::Watch);
        let metrics = Arc::<VsockMetrics>::default();
        Ok(Self {
            events: [event()?, event()?, event()?],
            muxer: Muxer::new(path, guest_cid, Arc::clone(&metrics))?,
            state: DeviceState::Inactive,
            guest_cid,
            tx_stalled: false,
            metrics,
        })
    }

    /// Its counters.
    pub fn metrics(&self) -> Arc<VsockMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Takes packets of the guest if `tx` says that it has some, then gives it what there is
    /// for it, with one interrupt for all.
    pub(super) fn process_queues(&mut self, tx: bool) {
        if let Err(error) = self.try_process_queues(tx) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "vsock device stopped"
            );
            self.stop();
            self.state.fail();
        }
    }

    fn try_process_queues(&mut self, tx: bool) -> Result<(), RingError> {
        let mut notify = false;
        if tx {
            let progress = self.process_tx()?;
            notify |= progress.is_some_and(|progress| progress.notify);
        }
        if self.muxer.has_output() {
            let progress = self.process_rx()?;
            notify |= progress.is_some_and(|progress| progress.notify);
        }
        if self.tx_stalled && self.muxer.can_receive() {
            self.kick(TX);
        }
        if notify && let Some(active) = self.state.activated() {
            active.interrupt.queue_used();
        }
        Ok(())
    }

    fn process_tx(&mut self) -> Result<Option<Progress>, RingError> {
        let Some(active) = self.state.activated() else {
            return Ok(None);
        };
        let mem = Arc::clone(&active.mem);
        let (muxer, metrics) = (&mut self.muxer, &self.metrics);
        let progress = process(&mut active.queues[TX], &mem, |chain| {
            if !muxer.can_receive() {
                return Verdict::Stop;
            }
            receive(chain, muxer, metrics);
            Verdict::Used(0)
        })?;
        self.tx_stalled = progress.end == End::Stopped;
        if progress.end == End::Budget {
            self.kick(TX);
        }
        Ok(Some(progress))
    }

    fn process_rx(&mut self) -> Result<Option<Progress>, RingError> {
        let Some(active) = self.state.activated() else {
            return Ok(None);
        };
        let mem = Arc::clone(&active.mem);
        let (muxer, metrics) = (&mut self.muxer, &self.metrics);
        let progress = process(&mut active.queues[RX], &mem, |chain| {
            if muxer.has_output() {
                fill(chain, muxer, metrics)
            } else {
                Verdict::Stop
            }
        })?;
        if progress.end == End::Budget {
            self.kick(RX);
        }
        Ok(Some(progress))
    }

    fn kick(&self, queue: usize) {
        // Cannot fail: the counter is far from its limit.
        let _ = self.events[queue].write(1);
    }

    fn stop(&mut self) {
        self.muxer.stop();
        self.tx_stalled = false;
    }
}

fn receive(chain: Result<Chain<'_>, ChainError>, muxer: &mut Muxer, metrics: &VsockMetrics) {
    match chain {
        Ok(Chain { readable, writable }) if writable.is_empty() => {
            if let Some(bytes) = readable.read_array::<HEADER_LEN>() {
                // The header is read once; what the guest does to it later changes nothing.
                let header = Header::from_bytes(&bytes);
                return muxer.receive(&header, readable.split_at(HEADER_LEN).1);
            }
        }
        Ok(_) | Err(_) => {}
    }
    metrics.bad_chains.inc();
}

fn fill(
    chain: Result<Chain<'_>, ChainError>,
    muxer: &mut Muxer,
    metrics: &VsockMetrics,
) -> Verdict {
    let buffers = match chain {
        // Room for one byte at least, or data would never get through.
        Ok(chain) if chain.readable.is_empty() && chain.writable.len() > HEADER_LEN => {
            chain.writable
        }
        Ok(_) | Err(_) => {
            metrics.bad_chains.inc();
            return Verdict::Used(0);
        }
    };
    let (head, room) = buffers.split_at(HEADER_LEN);
    match muxer.fill(&room) {
        Some(header) => {
            head.copy_from(&header.to_bytes());
            // Both are bounded by the chain's length, which is a u32.
            Verdict::Used(header.len.saturating_add(44))
        }
        None => Verdict::Stop,
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
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

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_from(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, args: ActivateArgs) -> Result<(), ActivateError> {
        self.muxer.start()?;
        start(&mut self.state, &self.events, args)
    }

    fn reset(&mut self) {
        self.stop();
        self.state = DeviceState::Inactive;
    }
}
