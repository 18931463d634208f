// SPDX-License-Identifier: GPL-2.0-only
//! What every virtio device is to its transport and to the event loop.

use std::sync::Arc;

use event_manager::{EventOps, Events};
use thiserror::Error;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::Queue;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::VirtioInterrupt;
use crate::memory::GuestMemory;

/// Features of the queues, which every device here offers.
pub const COMMON_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Why a device did not start when the driver set `DRIVER_OK`.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// A host resource of the device failed.
    #[error("the device could not start")]
    Io(#[from] std::io::Error),
}

/// What a device needs in order to run.
///
/// The queues' notification events are not here: they belong to the device from its
/// creation ([`VirtioDevice::queue_events`]), so that the event loop registers them once and
/// neither activation nor reset has to touch it.
#[derive(Debug)]
pub struct ActivateArgs {
    /// Guest memory.
    pub mem: Arc<GuestMemory>,
    /// As many queues as [`VirtioDevice::queue_sizes`] has entries, all of them valid.
    pub queues: Vec<Queue>,
    /// Towards the driver.
    pub interrupt: Arc<VirtioInterrupt>,
    /// What was negotiated.
    pub features: u64,
}

/// Whether the driver has the device running.
#[derive(Debug, Default)]
pub enum DeviceState {
    /// Before `DRIVER_OK`, after a reset, or stopped by an error until the next reset.
    #[default]
    Inactive,
    /// Running.
    Activated(ActivateArgs),
}

impl DeviceState {
    /// The running device's part, if it runs.
    pub fn activated(&mut self) -> Option<&mut ActivateArgs> {
        match self {
            Self::Inactive => None,
            Self::Activated(args) => Some(args),
        }
    }

    /// Stops the device for good: it asks the driver for a reset and does nothing until then.
    pub fn fail(&mut self) {
        if let Self::Activated(args) = std::mem::take(self) {
            args.interrupt.device_error();
        }
    }
}

/// A virtio device as its transport sees it.
///
/// The transport calls it from vCPU threads, under the lock that the event loop also takes, or
/// the device waits for its own threads. So after `reset` returns it does not touch guest memory
/// any more, unless the VM has ended.
pub trait VirtioDevice: Send {
    /// The device id of virtio 1.2, chapter 5.
    fn device_type(&self) -> u32;

    /// The features offered, [`COMMON_FEATURES`] included.
    fn features(&self) -> u64;

    /// The largest size of each queue: powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// One event for each queue, written when the driver kicks it.
    fn queue_events(&self) -> &[EventFd];

    /// Reads configuration space. What lies past its end stays as it is in `data`.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes configuration space. No device here has a writable field.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// A number that changes whenever configuration space does.
    fn config_generation(&self) -> u32 {
        0
    }

    /// Starts the device.
    ///
    /// # Errors
    /// The device cannot run; the driver will be asked for a reset.
    fn activate(&mut self, args: ActivateArgs) -> Result<(), ActivateError>;

    /// Stops the device and forgets all that the driver told it.
    fn reset(&mut self);
}

/// Starts a device: keeps `args`, and processes every queue once, for the driver may have
/// filled them before `DRIVER_OK`.
///
/// # Errors
/// A queue's event could not be written.
pub fn start(
    state: &mut DeviceState,
    events: &[EventFd],
    args: ActivateArgs,
) -> Result<(), ActivateError> {
    for event in events {
        event.write(1)?;
    }
    *state = DeviceState::Activated(args);
    Ok(())
}

/// Asks the event loop for the queues' events; each carries its queue's index.
pub fn watch(ops: &mut EventOps, events: &[EventFd]) {
    for (index, event) in (0..).zip(events) {
        if let Err(error) = ops.add(Events::with_data(event, index, EventSet::IN)) {
            tracing::error!(%error, "the event loop refuses a virtqueue's event");
        }
    }
}

/// Takes an event that [`watch`] asked for: empties it and says which queue it is for.
pub fn drain_event(queue_events: &[EventFd], events: &Events) -> Option<usize> {
    let index = usize::try_from(events.data()).ok()?;
    // It is non-blocking: an event that somebody else emptied is no event.
    queue_events.get(index)?.read().ok()?;
    Some(index)
}

/// Copies the part of a configuration structure that a read at `offset` asks for.
pub fn read_config_from(config: &[u8], offset: u64, data: &mut [u8]) {
    let Some(rest) = usize::try_from(offset).ok().and_then(|at| config.get(at..)) else {
        return;
    };
    let len = rest.len().min(data.len());
    data[..len].copy_from_slice(&rest[..len]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn config_reads_return_the_structure_and_leave_the_rest(
            config in proptest::collection::vec(1u8..=255, 0..40),
            offset in prop_oneof![0u64..50, any::<u64>()],
            len in 0usize..10,
        ) {
            let mut data = vec![0u8; len];
            read_config_from(&config, offset, &mut data);
            for (i, byte) in data.iter().enumerate() {
                let at = usize::try_from(offset).ok().and_then(|o| o.checked_add(i));
                prop_assert_eq!(*byte, at.and_then(|at| config.get(at)).copied().unwrap_or(0));
            }
        }
    }
}
