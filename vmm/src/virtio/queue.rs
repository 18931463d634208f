// SPDX-License-Identifier: GPL-2.0-only
//! Working through a queue in batches: bounded, with at most one interrupt for a batch.

use thiserror::Error;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::chain::{Chain, ChainError};
use crate::memory::GuestMemory;

/// The most chains processed for one event before others get their turn.
pub const BUDGET: usize = 256;

/// The ring itself is unusable: the device must be reset.
#[derive(Debug, Error)]
#[error("the driver broke a virtqueue's ring")]
pub struct RingError(#[from] virtio_queue::Error);

/// What the device did with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Done; this many bytes were written to the chain's writable buffers.
    Used(u32),
    /// Not now: the chain stays in the queue, and so do those behind it.
    Stop,
}

/// How [`process`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The driver wants an interrupt.
    pub notify: bool,
    /// Why there is no more to do.
    pub end: End,
}

/// Why a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The queue is empty; the driver will kick when it adds to it.
    Empty,
    /// The device said [`Verdict::Stop`]; the driver will not kick.
    Stopped,
    /// The budget is used up; the driver will not kick.
    Budget,
}

/// Hands the queue's chains to `handle` in order, until it is empty, `handle` says stop, or
/// [`BUDGET`] is used up.
///
/// # Errors
/// The driver broke the ring.
pub fn process<'m>(
    queue: &mut Queue,
    mem: &'m GuestMemory,
    mut handle: impl FnMut(Result<Chain<'m>, ChainError>) -> Verdict,
) -> Result<Progress, RingError> {
    let mut budget = BUDGET;
    let mut used = false;
    let end = 'batch: loop {
        queue.disable_notification(mem)?;
        loop {
            if budget == 0 {
                break 'batch End::Budget;
            }
            budget -= 1;
            let Some(chain) = queue.iter(mem)?.next() else {
                break;
            };
            let head = chain.head_index();
            match handle(Chain::new(mem, chain)) {
                Verdict::Used(len) => {
                    queue.add_used(mem, head, len)?;
                    used = true;
                }
                Verdict::Stop => {
                    queue.go_to_previous_position();
                    break 'batch End::Stopped;
                }
            }
        }
        if !queue.enable_notification(mem)? {
            break End::Empty;
        }
    };
    Ok(Progress {
        notify: used && queue.needs_notification(mem)?,
        end,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::device::VirtioDevice;
    use crate::virtio::entropy::Entropy;
    use crate::virtio::test_utils::{Driver, Piece};

    /// A queue with `count` chains and the driver that put them there.
    fn queue(count: usize) -> (Driver, Queue) {
        let mut device = Entropy::new().unwrap();
        let mut driver = Driver::start(&mut device);
        device.reset();
        for _ in 0..count {
            driver.send(0, &[Piece::write(8)]);
        }
        let queue = driver.device_queue(0);
        (driver, queue)
    }

    #[test]
    fn an_empty_queue_interrupts_nobody() {
        let (driver, mut queue) = queue(0);
        let progress = process(&mut queue, driver.mem, |_| Verdict::Used(0)).unwrap();
        assert_eq!(
            progress,
            Progress {
                notify: false,
                end: End::Empty
            }
        );
    }

    #[test]
    fn a_chain_that_was_stopped_at_comes_again() {
        let (mut driver, mut queue) = queue(3);
        let mut seen = 0;
        let progress = process(&mut queue, driver.mem, |_| {
            seen += 1;
            if seen == 2 {
                Verdict::Stop
            } else {
                Verdict::Used(seen)
            }
        });
        assert_eq!(
            progress.unwrap(),
            Progress {
                notify: true,
                end: End::Stopped
            }
        );
        assert_eq!(driver.used(0), [(0, 1)]);
        let progress = process(&mut queue, driver.mem, |_| Verdict::Used(9)).unwrap();
        assert_eq!(
            progress,
            Progress {
                notify: true,
                end: End::Empty
            }
        );
        assert_eq!(driver.used(0), [(1, 9), (2, 9)]);
    }
}
