// SPDX-License-Identifier: GPL-2.0-only
//! One request of the driver: header, data, status (virtio 1.2, section 5.2.6).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::disk::{Disk, ID_LEN, SECTOR};
use super::metrics::BlockMetrics;
use super::ranges;
use crate::virtio::chain::{Buffers, Chain, ChainError};

/// Length of a request's header: type, reserved, sector.
const HEADER_LEN: usize = 16;

/// The most data of one request, bytes: what the offered limits allow together.
pub const MAX_DATA: usize = (super::device::SEG_MAX * super::device::SIZE_MAX) as usize;

/// Why a request failed; each has its status.
pub(super) enum Failure {
    /// The driver asked for something that it may not have.
    BadRequest,
    /// It asked for something that this device does not know.
    Unsupported,
    /// The host failed.
    Host(std::io::Error),
}

/// Carries out the request in `chain`; returns how many bytes of it were written.
pub fn execute(chain: Result<Chain<'_>, ChainError>, disk: &Disk, metrics: &BlockMetrics) -> u32 {
    let Ok(Chain { readable, writable }) = chain else {
        metrics.bad_chains.inc();
        return 0;
    };
    let (Some(header), Some(data_len)) = (
        readable.read_array::<HEADER_LEN>(),
        writable.len().checked_sub(1),
    ) else {
        metrics.bad_chains.inc();
        return 0;
    };
    let to_device = readable.split_at(HEADER_LEN).1;
    let (to_driver, status) = writable.split_at(data_len);
    let (code, written) = match run(&header, &to_device, &to_driver, disk, metrics) {
        Ok(written) => (VIRTIO_BLK_S_OK, written),
        Err(failure) => (failure.account(metrics), 0),
    };
    // Status codes are below 256, and data is at most MAX_DATA: neither conversion fails.
    status.copy_from(&[u8::try_from(code).unwrap_or(u8::MAX)]);
    u32::try_from(written + 1).unwrap_or(1)
}

impl Failure {
    fn account(self, metrics: &BlockMetrics) -> u32 {
        match self {
            Self::BadRequest => {
                metrics.bad_requests.inc();
                VIRTIO_BLK_S_IOERR
            }
            Self::Unsupported => {
                metrics.bad_requests.inc();
                VIRTIO_BLK_S_UNSUPP
            }
            Self::Host(error) => {
                // Once in the log: the guest can repeat the request as often as it likes.
                if metrics.host_errors.get() == 0 {
                    tracing::warn!(%error, "a disk image cannot be read or written; the guest gets an I/O error");
                }
                metrics.host_errors.inc();
                VIRTIO_BLK_S_IOERR
            }
        }
    }
}

fn run(
    header: &[u8; HEADER_LEN],
    to_device: &Buffers<'_>,
    to_driver: &Buffers<'_>,
    disk: &Disk,
    metrics: &BlockMetrics,
) -> Result<usize, Failure> {
    let [kind, _reserved, sector @ ..] = words(header);
    let sector = u64::from(sector[0]) | u64::from(sector[1]) << 32;
    match kind {
        VIRTIO_BLK_T_IN => {
            let offset = extent(sector, to_driver, disk)?;
            to_driver
                .read_exact_at(disk.file(), offset)
                .map_err(Failure::Host)?;
            metrics.reads.inc();
            metrics.read_bytes.add(to_driver.len() as u64);
            Ok(to_driver.len())
        }
        VIRTIO_BLK_T_OUT => {
            if disk.is_read_only() {
                return Err(Failure::BadRequest);
            }
            let offset = extent(sector, to_device, disk)?;
            to_device
                .write_all_at(disk.file(), offset)
                .map_err(Failure::Host)?;
            metrics.writes.inc();
            metrics.write_bytes.add(to_device.len() as u64);
            Ok(0)
        }
        VIRTIO_BLK_T_FLUSH => {
            disk.file().sync_data().map_err(Failure::Host)?;
            metrics.flushes.inc();
            Ok(0)
        }
        VIRTIO_BLK_T_DISCARD => ranges::discard(to_device, disk, metrics).map(|()| 0),
        VIRTIO_BLK_T_WRITE_ZEROES => ranges::write_zeroes(to_device, disk, metrics).map(|()| 0),
        VIRTIO_BLK_T_GET_ID if to_driver.len() >= ID_LEN => Ok(to_driver.copy_from(disk.id())),
        VIRTIO_BLK_T_GET_ID => Err(Failure::BadRequest),
        _ => Err(Failure::Unsupported),
    }
}

/// Where in the image the data of a request lies, in bytes; all of it exists.
fn extent(sector: u64, data: &Buffers<'_>, disk: &Disk) -> Result<u64, Failure> {
    let len = data.len() as u64;
    let fits = data.len() <= MAX_DATA && len > 0 && len.is_multiple_of(SECTOR);
    let offset = disk.offset_of(sector, len / SECTOR);
    offset.filter(|_| fits).ok_or(Failure::BadRequest)
}

fn words(header: &[u8; HEADER_LEN]) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(header.chunks_exact(4)) {
        *word = bytes
            .iter()
            .rev()
            .fold(0, |word, byte| word << 8 | u32::from(*byte));
    }
    words
}
