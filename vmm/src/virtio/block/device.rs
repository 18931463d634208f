// SPDX-License-Identifier: GPL-2.0-only
//! State and configuration space of a block device.

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vmm_sys_util::eventfd::EventFd;

use super::disk::{Disk, SECTOR};
use super::metrics::BlockMetrics;
use super::ranges;
use super::worker::{DiskThread, Shared};
use crate::end::EndSignal;
use crate::sandbox::Sandbox;
use crate::virtio::device::{
    ActivateArgs, ActivateError, COMMON_FEATURES, VirtioDevice, read_config_from,
};

const QUEUE_SIZES: [u16; 1] = [256];

/// The most data segments in a request: with header and status, a chain of 256 descriptors.
pub const SEG_MAX: u32 = 254;
/// The most bytes in a segment.
pub const SIZE_MAX: u32 = 64 << 10;

/// Bytes in a block, as the driver is told them: a [`SECTOR`].
pub const BLOCK_SIZE: u32 = 512;
const _: () = assert!(BLOCK_SIZE as u64 == SECTOR, "both are virtio's sector");
/// Length of the configuration space: all up to `write_zeroes_may_unmap`, padded to words.
const CONFIG_LEN: usize = 60;

/// The device.
#[derive(Debug)]
pub struct Block {
    events: [EventFd; 1],
    shared: Arc<Shared>,
    thread: Option<DiskThread>,
    config: [u8; CONFIG_LEN],
}

impl Block {
    /// A device for an open image, still without its thread.
    ///
    /// # Errors
    /// An event cannot be made: too many open files.
    pub fn new(disk: Disk) -> io::Result<Self> {
        let config = config(&disk);
        // Blocking: its thread waits in it.
        let kick = EventFd::new(0)?;
        Ok(Self {
            events: [kick.try_clone()?],
            shared: Arc::new(Shared::new(kick, disk)),
            thread: None,
            config,
        })
    }

    /// Starts its thread, in `sandbox`, as that of disk `index`. The driver's requests are done
    /// there, until the device is dropped; a reset does not wait for them once the VM has ended.
    ///
    /// # Errors
    /// The host has no more threads, or refuses the sandbox.
    pub fn start_thread(
        &mut self,
        index: usize,
        end: &EndSignal,
        sandbox: &Sandbox,
    ) -> io::Result<()> {
        self.thread = Some(DiskThread::start(index, &self.shared, end, sandbox)?);
        Ok(())
    }

    /// Its counters.
    pub fn metrics(&self) -> Arc<BlockMetrics> {
        Arc::clone(&self.shared.metrics)
    }

    #[cfg(test)]
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Carries out what is in the queue, as its thread does whenever the driver kicks it.
    pub fn process_queue(&self) {
        self.shared.process_queue();
    }
}

/// `struct virtio_blk_config` (virtio 1.2, section 5.2.4). Fields of features that are not offered
/// are zero.
fn config(disk: &Disk) -> [u8; CONFIG_LEN] {
    let mut config = [0; CONFIG_LEN];
    config[0..8].copy_from_slice(&disk.sectors().to_le_bytes());
    let mut words = vec![(8, SIZE_MAX), (12, SEG_MAX), (20, BLOCK_SIZE)];
    if disk.can_discard() {
        words.extend([
            (36, ranges::DISCARD.sectors),
            (40, ranges::DISCARD.segments),
            (44, ranges::ALIGNMENT),
        ]);
    }
    if disk.can_write_zeroes() {
        words.extend([
            (48, ranges::WRITE_ZEROES.sectors),
            (52, ranges::WRITE_ZEROES.segments),
            (56, u32::from(disk.can_discard())),
        ]);
    }
    for (at, word) in words {
        config[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
    config
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let disk = &self.shared.disk;
        COMMON_FEATURES
            | 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | u64::from(disk.is_read_only()) << VIRTIO_BLK_F_RO
            | u64::from(disk.can_discard()) << VIRTIO_BLK_F_DISCARD
            | u64::from(disk.can_write_zeroes()) << VIRTIO_BLK_F_WRITE_ZEROES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn queue_events(&self) -> &[EventFd] {
        &self.events
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_from(&self.config, offset, data);
    }

    fn activate(&mut self, args: ActivateArgs) -> Result<(), ActivateError> {
        Ok(self.shared.start(args)?)
    }

    fn reset(&mut self) {
        let is_over = || self.thread.as_ref().is_none_or(DiskThread::is_over);
        self.shared.stop(is_over);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::virtio::block::test_utils::{
        DISCARD, DISK_SIZE, FLUSH, GET_ID, IN, OUT, WRITE_ZEROES, header, rig, rig_in,
    };
    use crate::virtio::test_utils::{Driver, Piece, hostile_queue_tests};

    #[test]
    fn a_read_fills_several_segments_in_order() {
        let mut rig = rig(true);
        let data = [Piece::write(512), Piece::write(1024), Piece::write(512)];
        let (status, used, bytes) = rig.request(IN, 100, &data);
        assert_eq!((status, used), (0, 2049));
        assert_eq!(bytes, rig.image_at(100 * 512, 2048));
        assert_eq!(rig.device.metrics().read_bytes.get(), 2048);
    }

    #[test]
    fn a_write_reaches_the_image_and_a_flush_succeeds() {
        let mut rig = rig(false);
        let data = [Piece::Read(vec![7; 512]), Piece::Read(vec![9; 1024])];
        assert_eq!(rig.request(OUT, 3, &data).0, 0);
        assert_eq!(rig.request(FLUSH, 0, &[]).0, 0);
        let image = rig.image_at(3 * 512, 1536);
        assert!(image[..512].iter().all(|byte| *byte == 7));
        assert!(image[512..].iter().all(|byte| *byte == 9));
    }

    #[test]
    fn framing_of_header_data_and_status_does_not_matter() {
        let mut rig = rig(true);
        let Piece::Read(head) = header(IN, 5) else {
            unreachable!()
        };
        let pieces = [
            Piece::read(&head[..3]),
            Piece::read(&head[3..]),
            Piece::write(100),
            // The rest of the data, and the status.
            Piece::write(413),
        ];
        let sent = rig.driver.send_indirect(0, &pieces);
        rig.device.process_queue();
        assert_eq!(rig.driver.used(0), [(sent.head, 513)]);
        let mut bytes = rig.driver.read(&sent, 2);
        bytes.extend(rig.driver.read(&sent, 3));
        assert_eq!(bytes.pop(), Some(0));
        assert_eq!(bytes, rig.image_at(5 * 512, 512));
    }

    #[test]
    fn the_identity_is_told() {
        let mut rig = rig(true);
        let (status, used, bytes) = rig.request(GET_ID, 0, &[Piece::write(20)]);
        assert_eq!((status, used), (0, 21));
        assert_eq!(bytes, rig.device.shared.disk.id());
        assert_eq!(rig.request(GET_ID, 0, &[Piece::write(19)]).0, 1);
    }

    #[test]
    fn a_batch_of_requests_interrupts_once() {
        let mut rig = rig(true);
        for sector in 0..50 {
            rig.driver
                .send(0, &[header(IN, sector), Piece::write(512), Piece::write(1)]);
        }
        rig.device.process_queue();
        assert_eq!(rig.driver.used(0).len(), 50);
        assert_eq!(rig.driver.interrupts(), 1);
        assert_eq!(rig.driver.interrupt.status(), 1);
    }

    #[test]
    fn requests_out_of_range_or_of_odd_length_are_io_errors() {
        let sectors = DISK_SIZE / 512;
        for (kind, sector, len) in [
            (IN, sectors, 512),
            (IN, sectors - 1, 1024),
            (IN, u64::MAX, 512),
            (IN, u64::MAX / 512, 512),
            (IN, 0, 511),
            (IN, 0, 0),
            (OUT, sectors, 512),
            (OUT, 0, 513),
            (OUT, 0, 0),
        ] {
            let mut rig = rig(false);
            let data = match kind {
                IN => Piece::write(len),
                _ => Piece::Read(vec![1; usize::try_from(len).unwrap()]),
            };
            let before = rig.image_at(0, 4096);
            assert_eq!(
                rig.request(kind, sector, &[data]).0,
                1,
                "{kind} {sector} {len}"
            );
            assert_eq!(rig.image_at(0, 4096), before);
            assert_eq!(rig.device.metrics().bad_requests.get(), 1);
        }
    }

    #[test]
    fn a_request_with_more_data_than_offered_is_an_io_error() {
        let mut rig = rig(true);
        let data = vec![Piece::write(1 << 20); 16];
        assert_eq!(rig.request(IN, 0, &data).0, 1);
    }

    #[test]
    fn a_read_only_disk_is_never_written() {
        let mut rig = rig(true);
        assert_ne!(rig.device.features() & 1 << VIRTIO_BLK_F_RO, 0);
        assert_eq!(rig.request(OUT, 0, &[Piece::Read(vec![1; 512])]).0, 1);
        assert_eq!(rig.image_at(0, 512), vec![0; 512]);
    }

    #[test]
    fn unknown_requests_are_unsupported() {
        for kind in [2, 3, 5, 14, u32::MAX] {
            assert_eq!(rig(false).request(kind, 0, &[]).0, 2, "{kind}");
        }
    }

    #[test]
    fn an_image_that_shrinks_gives_io_errors() {
        let mut rig = rig(true);
        rig.image.as_file().set_len(512).unwrap();
        assert_eq!(rig.request(IN, 0, &[Piece::write(512)]).0, 0);
        assert_eq!(rig.request(IN, 1, &[Piece::write(512)]).0, 1);
        assert_eq!(rig.device.metrics().host_errors.get(), 1);
    }

    #[test]
    fn chains_without_header_or_status_are_returned_empty() {
        for pieces in [
            vec![Piece::write(1)],
            vec![Piece::read(&[0; 15]), Piece::write(513)],
            vec![header(IN, 0)],
            vec![header(IN, 0), Piece::write(0)],
        ] {
            let mut rig = rig(true);
            let sent = rig.driver.send(0, &pieces);
            rig.device.process_queue();
            assert_eq!(rig.driver.used(0), [(sent.head, 0)]);
            assert_eq!(rig.device.metrics().bad_chains.get(), 1);
        }
    }

    #[test]
    fn work_for_one_event_is_bounded_and_goes_on_with_the_next() {
        let mut rig = rig(true);
        for _ in 0..256 {
            rig.driver
                .store(0, 0, virtio_queue::desc::split::Descriptor::new(0, 0, 0, 0));
            rig.driver.make_available(0, 0);
        }
        rig.device.events[0].read().unwrap();
        rig.device.process_queue();
        assert_eq!(rig.driver.used(0).len(), 256);
        assert_eq!(rig.device.events[0].read().unwrap(), 1);
    }

    #[test]
    fn the_driver_is_told_of_large_requests_before_the_last_is_done() {
        let range = [0u64.to_le_bytes(), 2048u64.to_le_bytes()].concat();
        for (kind, data) in [
            (IN, Piece::write(1 << 20)),
            (DISCARD, Piece::read(&range)),
            (WRITE_ZEROES, Piece::read(&range)),
        ] {
            let mut rig = rig_in(Path::new("/dev/shm"), false);
            rig.device.events[0].read().unwrap();
            for _ in 0..40 {
                rig.driver
                    .send(0, &[header(kind, 0), data.clone(), Piece::write(1)]);
            }
            for expected in [32, 8] {
                rig.device.process_queue();
                assert_eq!(rig.driver.used(0).len(), expected);
            }
            assert_eq!(rig.device.events[0].read().unwrap(), 1);
        }
    }

    #[test]
    fn the_driver_need_not_kick_while_a_batch_runs() {
        let mut rig = rig(true);
        assert_eq!(rig.request(FLUSH, 0, &[]).0, 0);
        rig.driver.send(0, &[header(FLUSH, 0), Piece::write(1)]);
        assert!(rig.driver.would_kick(0));
        rig.driver.send(0, &[header(FLUSH, 0), Piece::write(1)]);
        assert!(!rig.driver.would_kick(0));
    }

    #[test]
    fn configuration_space_tells_the_size_and_the_limits() {
        let rig = rig(true);
        let mut config = [0xff; 64];
        rig.device.read_config(0, &mut config);
        assert_eq!(config[0..8], 2048u64.to_le_bytes());
        assert_eq!(config[8..12], (64u32 << 10).to_le_bytes());
        assert_eq!(config[12..16], 254u32.to_le_bytes());
        assert_eq!(config[20..24], 512u32.to_le_bytes());
        assert_eq!(config[24..60], [0; 36]);
        assert_eq!(config[60..], [0xff; 4]);
    }

    hostile_queue_tests!(
        || {
            let image = tempfile::NamedTempFile::new().unwrap();
            image.as_file().set_len(DISK_SIZE).unwrap();
            let mut device = Block::new(Disk::open(image.path(), false).unwrap()).unwrap();
            let driver = Driver::start(&mut device);
            (device, driver)
        },
        |device: &mut Block, _queue| device.process_queue()
    );
}
