// SPDX-License-Identifier: GPL-2.0-only
//! Requests that bring no data, but name ranges of the disk that are to be empty: discard and write
//! zeroes (virtio 1.2, section 5.2.6).

use virtio_bindings::virtio_blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP as UNMAP;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::device::{BLOCK_SIZE, SEG_MAX, SIZE_MAX};
use super::disk::{Disk, SECTOR};
use super::metrics::BlockMetrics;
use super::request::Failure;
use crate::virtio::chain::Buffers;

/// What a request may name.
pub struct Limits {
    /// Ranges.
    pub segments: u32,
    /// Sectors of one range.
    pub sectors: u32,
    /// Flags of a range.
    flags: u32,
}

/// A driver's reset waits for one request: 4 GiB of holes take below a second.
pub const DISCARD: Limits = Limits {
    segments: 64,
    sectors: 64 << 11,
    flags: 0,
};
/// No more than the largest write brings, for it may come to writing.
pub const WRITE_ZEROES: Limits = Limits {
    segments: 1,
    sectors: SEG_MAX * SIZE_MAX / BLOCK_SIZE,
    flags: UNMAP,
};
/// Sectors in a block of nearly all file systems: less than one is not freed.
pub const ALIGNMENT: u32 = 8;

/// `struct virtio_blk_discard_write_zeroes`
#[derive(Debug, Clone, FromBytes, IntoBytes)]
#[repr(C)]
struct Segment {
    sector: U64,
    sectors: U32,
    flags: U32,
}

/// A range that exists.
#[derive(Debug, PartialEq, Eq)]
struct Range {
    at: u64,
    len: u64,
    unmap: bool,
}

/// Discards the ranges in `list`: all of them, or none if something is wrong with one.
pub fn discard(list: &Buffers<'_>, disk: &Disk, metrics: &BlockMetrics) -> Result<(), Failure> {
    must_offer(disk, disk.can_discard())?;
    for range in ranges(list, disk, &DISCARD)? {
        disk.discard(range.at, range.len).map_err(Failure::Host)?;
        metrics.discard_bytes.add(range.len);
    }
    metrics.discards.inc();
    Ok(())
}

/// Zeroes the ranges in `list`, likewise.
pub fn write_zeroes(
    list: &Buffers<'_>,
    disk: &Disk,
    metrics: &BlockMetrics,
) -> Result<(), Failure> {
    must_offer(disk, disk.can_write_zeroes())?;
    for Range { at, len, unmap } in ranges(list, disk, &WRITE_ZEROES)? {
        disk.write_zeroes(at, len, unmap).map_err(Failure::Host)?;
        metrics.write_zeroes_bytes.add(len);
    }
    metrics.write_zeroes.inc();
    Ok(())
}

fn must_offer(disk: &Disk, is_offered: bool) -> Result<(), Failure> {
    match is_offered {
        true => Ok(()),
        // As any write.
        false if disk.is_read_only() => Err(Failure::BadRequest),
        false => Err(Failure::Unsupported),
    }
}

/// The ranges of a request. They are copied before they are looked at: the driver may change them.
fn ranges(list: &Buffers<'_>, disk: &Disk, limits: &Limits) -> Result<Vec<Range>, Failure> {
    let count = list.len() / size_of::<Segment>();
    let is_list = count > 0
        && count <= limits.segments as usize
        && list.len().is_multiple_of(size_of::<Segment>());
    if !is_list {
        return Err(Failure::BadRequest);
    }
    let mut segments = vec![Segment::new_zeroed(); count];
    list.copy_to(segments.as_mut_bytes());
    // Whatever else is wrong with them.
    if segments.iter().any(|s| s.flags.get() & !limits.flags != 0) {
        return Err(Failure::Unsupported);
    }
    let ranges = segments.iter().map(|segment| range(segment, disk, limits));
    ranges.collect::<Option<_>>().ok_or(Failure::BadRequest)
}

fn range(segment: &Segment, disk: &Disk, limits: &Limits) -> Option<Range> {
    let sectors = segment.sectors.get();
    let at = disk.offset_of(segment.sector.get(), sectors.into())?;
    (1..=limits.sectors).contains(&sectors).then(|| Range {
        at,
        len: u64::from(sectors) * SECTOR,
        unmap: segment.flags.get() & UNMAP != 0,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use proptest::prelude::*;
    use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES};

    use super::{Disk, Limits, SECTOR, Segment, UNMAP, range};
    use crate::test_frozen::{in_ext4, in_ramfs};
    use crate::virtio::block::test_utils::{
        DISCARD, DISK_SIZE, FLUSH, Rig, WRITE_ZEROES, rig, rig_in,
    };
    use crate::virtio::device::VirtioDevice;
    use crate::virtio::test_utils::Piece;

    const SECTORS: u64 = DISK_SIZE / SECTOR;
    const OK: u8 = 0;
    const IOERR: u8 = 1;
    const UNSUPP: u8 = 2;

    /// Sector, count, flags.
    type Named = (u64, u32, u32);

    fn list(segments: &[Named]) -> Piece {
        let bytes = |(sector, sectors, flags): &Named| {
            let (sector, numbers) = (sector.to_le_bytes(), [*sectors, *flags]);
            [&sector[..], &numbers.map(u32::to_le_bytes).concat()].concat()
        };
        Piece::Read(segments.iter().flat_map(bytes).collect())
    }

    impl Rig {
        fn name(&mut self, kind: u32, segments: &[Named]) -> u8 {
            let (status, used, _) = self.request(kind, 0, &[list(segments)]);
            assert_eq!(used, 1);
            status
        }

        fn content(&self) -> Vec<u8> {
            self.image_at(0, usize::try_from(DISK_SIZE).unwrap())
        }

        /// Bytes that the image takes.
        fn allocated(&self) -> u64 {
            self.image.as_file().metadata().unwrap().blocks() * 512
        }

        fn offers(&self, feature: u32) -> bool {
            self.device.features() & 1 << feature != 0
        }

        /// Words of configuration space from 36 on: of discard, then of write zeroes.
        fn config(&self) -> [u32; 6] {
            std::array::from_fn(|word| {
                let mut bytes = [0; 4];
                self.device.read_config(36 + 4 * word as u64, &mut bytes);
                u32::from_le_bytes(bytes)
            })
        }
    }

    fn zero(content: &mut [u8], (sector, sectors, _): Named) {
        let at = usize::try_from(sector).unwrap() * 512;
        content[at..at + sectors as usize * 512].fill(0);
    }

    fn in_shm() -> Rig {
        rig_in(Path::new("/dev/shm"), false)
    }

    #[test]
    fn what_is_discarded_takes_no_room_and_reads_as_zeroes() {
        let mut rig = in_shm();
        let (mut content, before) = (rig.content(), rig.allocated());
        // Whole blocks, and parts of some.
        let segments = [(8, 64, 0), (512, 8, 0), (1001, 3, 0), (SECTORS - 1, 1, 0)];
        assert_eq!(rig.name(DISCARD, &segments), OK);
        for segment in segments {
            zero(&mut content, segment);
        }
        assert_eq!(rig.content(), content);
        assert_eq!(rig.allocated(), before - 72 * 512);
        let metrics = rig.device.metrics();
        let counted = (metrics.discards.get(), metrics.discard_bytes.get());
        assert_eq!(counted, (1, 76 * 512));
        assert_eq!(rig.request(FLUSH, 0, &[]).0, OK);
    }

    #[test]
    fn zeroes_take_no_room_only_where_the_driver_says_so() {
        in_ext4(|mounted| {
            let mut rig = rig_in(mounted, false);
            let (mut content, before) = (rig.content(), rig.allocated());
            for (flags, freed) in [(0, 0), (UNMAP, 64 * 512)] {
                let segment = (u64::from(flags) * 800 + 8, 64, flags);
                assert_eq!(rig.name(WRITE_ZEROES, &[segment]), OK);
                zero(&mut content, segment);
                assert_eq!(rig.content(), content);
                assert_eq!(rig.allocated(), before - freed);
            }
            let metrics = rig.device.metrics();
            let counted = (metrics.write_zeroes.get(), metrics.write_zeroes_bytes.get());
            assert_eq!(counted, (2, 128 * 512));
        });
    }

    #[test]
    fn zeroes_are_written_where_the_file_system_knows_no_holes() {
        in_ramfs(|mounted| {
            let mut rig = rig_in(mounted, false);
            assert!(!rig.offers(VIRTIO_BLK_F_DISCARD));
            assert_eq!(rig.config(), [0, 0, 0, 32512, 1, 0]);
            let mut content = rig.content();
            assert_eq!(rig.name(DISCARD, &[(0, 8, 0)]), UNSUPP);
            for segment in [(3, 1, 0), (1001, 700, 0), (5, 128, UNMAP)] {
                assert_eq!(rig.name(WRITE_ZEROES, &[segment]), OK);
                zero(&mut content, segment);
                assert_eq!(rig.content(), content);
            }
        });
    }

    #[test]
    fn the_driver_is_told_what_it_may_name() {
        let rig = in_shm();
        assert!(rig.offers(VIRTIO_BLK_F_DISCARD) && rig.offers(VIRTIO_BLK_F_WRITE_ZEROES));
        assert_eq!(rig.config(), [131_072, 64, 8, 32512, 1, 1]);
    }

    #[test]
    fn a_read_only_disk_loses_nothing_and_offers_nothing() {
        let mut rig = rig(true);
        assert!(!rig.offers(VIRTIO_BLK_F_DISCARD) && !rig.offers(VIRTIO_BLK_F_WRITE_ZEROES));
        assert_eq!(rig.config(), [0; 6]);
        let before = rig.content();
        for kind in [DISCARD, WRITE_ZEROES] {
            assert_eq!(rig.name(kind, &[(0, 8, 0)]), IOERR);
        }
        assert_eq!(rig.content(), before);
        assert_eq!(rig.device.metrics().bad_requests.get(), 2);
    }

    #[test]
    fn nothing_is_done_if_something_is_wrong_with_one_range() {
        let good = (8, 8, 0);
        let mut rig = in_shm();
        let before = rig.content();
        let mut refused = 0;
        let mut refuses = |kind, segments: &[Named], status| {
            assert_eq!(rig.name(kind, segments), status, "{kind} {segments:x?}");
            assert_eq!(rig.content(), before, "{kind} {segments:x?}");
            refused += 1;
            assert_eq!(rig.device.metrics().bad_requests.get(), refused);
        };
        for bad in [
            (SECTORS, 1, 0),
            (SECTORS - 1, 2, 0),
            (u64::MAX, 1, 0),
            (u64::MAX, u32::MAX, 0),
            (u64::MAX / 512, 1, 0),
            (0, u32::MAX, 0),
            (0, 0, 0),
        ] {
            refuses(DISCARD, &[good, bad], IOERR);
            refuses(WRITE_ZEROES, &[bad], IOERR);
        }
        // The spec has no flag for a discard, and one for zeroes.
        for flags in [1, 2, 1 << 31, u32::MAX] {
            refuses(DISCARD, &[good, (8, 8, flags)], UNSUPP);
            refuses(DISCARD, &[(SECTORS, 1, 0), (8, 8, flags)], UNSUPP);
            refuses(WRITE_ZEROES, &[(8, 8, flags & !1 | 2)], UNSUPP);
        }
        refuses(DISCARD, &[], IOERR);
        refuses(DISCARD, &[good; 65], IOERR);
        refuses(WRITE_ZEROES, &[], IOERR);
        refuses(WRITE_ZEROES, &[good; 2], IOERR);
    }

    #[test]
    fn a_list_of_odd_length_is_an_io_error() {
        let mut rig = in_shm();
        let Piece::Read(bytes) = list(&[(8, 8, 0), (16, 8, 0)]) else {
            unreachable!()
        };
        for len in [1, 15, 17, 31] {
            for kind in [DISCARD, WRITE_ZEROES] {
                let data = [Piece::read(&bytes[..len])];
                assert_eq!(rig.request(kind, 0, &data).0, IOERR, "{kind} {len}");
            }
        }
        // However it is cut.
        let data = [Piece::read(&bytes[..5]), Piece::read(&bytes[5..])];
        assert_eq!(rig.request(DISCARD, 0, &data).0, OK);
        assert_eq!(rig.image_at(8 * 512, 16 * 512), [0; 16 * 512]);
    }

    #[test]
    fn a_range_longer_than_offered_is_an_io_error() {
        let image = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
        image.as_file().set_len(1 << 30).unwrap();
        let disk = Disk::open(image.path(), false).unwrap();
        let fits = |limits: &Limits, sectors: u32| {
            let segment = Segment {
                sector: 0.into(),
                sectors: sectors.into(),
                flags: 0.into(),
            };
            range(&segment, &disk, limits).is_some()
        };
        for limits in [super::DISCARD, super::WRITE_ZEROES] {
            assert!(fits(&limits, limits.sectors));
            assert!(!fits(&limits, limits.sectors + 1));
        }
    }

    fn any_segment() -> impl Strategy<Value = Named> {
        let sector = prop_oneof![8 => 0..SECTORS, 1 => SECTORS - 4..SECTORS + 4, 1 => any::<u64>()];
        let sectors = prop_oneof![8 => 0u32..40, 1 => any::<u32>()];
        let flags = prop_oneof![8 => Just(0u32), 2 => Just(UNMAP), 1 => any::<u32>()];
        (sector, sectors, flags)
    }

    proptest! {
        /// What is done is exactly what was named, and the image keeps its size.
        #[test]
        fn any_list_of_ranges_does_what_it_says_or_nothing(
            segments in proptest::collection::vec(any_segment(), 0..5),
            is_discard in any::<bool>(),
        ) {
            let mut rig = in_shm();
            let (kind, known) = if is_discard { (DISCARD, 0) } else { (WRITE_ZEROES, UNMAP) };
            let mut expected = rig.content();
            let exists = |(sector, sectors, _): &Named| {
                *sectors > 0 && u128::from(*sector) + u128::from(*sectors) <= u128::from(SECTORS)
            };
            let counts = if is_discard { 1..=64 } else { 1..=1 };
            let status = if !counts.contains(&segments.len()) {
                IOERR
            } else if segments.iter().any(|(.., flags)| flags & !known != 0) {
                UNSUPP
            } else if !segments.iter().all(exists) {
                IOERR
            } else {
                segments.iter().for_each(|segment| zero(&mut expected, *segment));
                OK
            };
            prop_assert_eq!(rig.name(kind, &segments), status);
            prop_assert!(rig.content() == expected);
            prop_assert_eq!(rig.image.as_file().metadata().unwrap().len(), DISK_SIZE);
        }
    }
}
